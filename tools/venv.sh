#!/bin/sh
# Creates or updates .venv in the current folder, for the Makefile: tools/venv.sh PYTHON
set -eu

wanted=$1
stamp=.venv/.installed
here=$(pwd -P)

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Prints "3.11.2", or nothing for what is not there or does not run: a pyenv shim can be on the PATH without its Python.
version_of() {
    answer=$("$1" -V 2>&1) || return 0
    case $answer in
    "Python "[0-9]*.[0-9]*)
        answer=${answer#Python }
        printf '%s' "${answer%%[!0-9.]*}"
        ;;
    esac
}

is_new_enough() {
    minor=${1#*.}
    [ "${1%%.*}" -gt 3 ] || { [ "${1%%.*}" -eq 3 ] && [ "${minor%%.*}" -ge 11 ]; }
}

# Sets python and version. Other names stand in for the default only: who names a Python gets that one or an error.
find_python() {
    others=
    [ "$wanted" != python3 ] || others='python3.14 python3.13 python3.12 python3.11'
    for python in "$wanted" $others; do
        version=$(version_of "$python")
        if [ -n "$version" ] && is_new_enough "$version"; then return; fi
    done
    version=$(version_of "$wanted")
    fail "featurestore needs Python 3.11 or newer; $wanted is ${version:-not there}." \
        ${others:+"  Also looked for:    $others"} \
        "  Debian, Ubuntu:     sudo apt-get install $(packaged_python)" \
        '  A Python at hand:   make PYTHON=/path/to/python3.11'
}

# Releases of Debian and Ubuntu package different Pythons.
packaged_python() {
    for name in python3.14 python3.13 python3.12 python3.11; do
        [ -z "$(apt-cache show "$name-venv" 2>/dev/null)" ] || break
    done
    echo "$name $name-venv"
}

# Sets base. In an active environment, this one included, python3 is but a link to the Python that is meant.
find_base() {
    minor=${version#*.}
    package=python${version%%.*}.${minor%%.*}-venv
    base=$("$python" -c 'import ensurepip, sys, venv; print(sys._base_executable)' 2>/dev/null) ||
        fail "$python (Python $version) cannot make .venv: its module venv or ensurepip is missing." \
            "  Debian, Ubuntu:     sudo apt-get install $package" \
            '  Another Python:     make PYTHON=/path/to/python3.11'
}

create() {
    find_python
    find_base
    echo "Creating .venv with Python $version ($base)"
    rm -rf .venv
    "$base" -m venv .venv || fail "$base could not make .venv; its message is above."
}

install() {
    .venv/bin/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
}

# The stamp is away while .venv changes, so that what was interrupted is not taken for complete.
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$here" ]; then
    echo 'Updating .venv, because pyproject.toml has changed'
    mv "$stamp" "$stamp.old"
    install || {
        mv "$stamp.old" "$stamp"
        fail 'The update of .venv failed; the message is above. The next make tries again.'
    }
    rm "$stamp.old"
else
    create
    echo 'Installing featurestore and its tools into .venv: a minute or two'
    install || fail 'The installation into .venv failed; the message is above. The next make starts anew.'
fi
echo "$here" >"$stamp"
