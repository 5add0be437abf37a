from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
TARGETS = ["help", ".venv", "install", "demo", "serve", "test", "lint", "bench"]
MAKE = shutil.which("make") or ""

pytestmark = pytest.mark.skipif(not MAKE, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the files that `make .venv` reads, and `bin`, the only folder on its PATH."""
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "awk", "cat", "echo", "mv", "rm"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "pyproject.toml", "tools/venv.sh"):
        shutil.copy(CHECKOUT / name, tmp_path / name)
    return tmp_path


def _write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _add_python(checkout: Path, name: str, version: str) -> None:
    """Put a Python on the PATH that knows its version and has neither venv nor ensurepip."""
    _write_program(checkout / "bin" / name, f'[ "$1" = -V ] && echo "Python {version}"')


def _make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MAKE, *arguments],
        cwd=checkout,
        env={"PATH": str(checkout / "bin")},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize("arguments", [[], ["help"]])
def test_help_lists_every_target(checkout: Path, arguments: list[str]) -> None:
    """`make help`, and `make` alone, print one line for each target and need no Python."""
    result = _make(checkout, *arguments)

    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("make ")]
    assert [words[1] for words in lines] == TARGETS
    assert all(len(words) > 3 for words in lines), "a target without a description"


@pytest.mark.parametrize(
    ("pythons", "arguments", "expected"),
    [
        pytest.param(
            {"python3": "3.9.2"},
            [],
            ["python3 is 3.9.2", "sudo apt-get install python3.11 python3.11-venv", "make PYTHON=/path/to/python3.11"],
            id="too old",
        ),
        pytest.param(
            {},
            [],
            ["python3 is not there", "sudo apt-get install python3.11 python3.11-venv"],
            id="no Python",
        ),
        pytest.param(
            {"python3": "3.9.2", "python3.12": "3.12.1"},
            ["PYTHON=python3"],
            ["python3.12 (Python 3.12.1)", "sudo apt-get install python3.12-venv\n"],
            id="too old, but a newer one is there, without ensurepip",
        ),
        pytest.param(
            {"python3": "3.9.2", "python3.9": "3.9.2", "python3.12": "3.12.1"},
            ["PYTHON=python3.9"],
            ["python3.9 is 3.9.2"],
            id="a Python that was named is not replaced by another",
        ),
        pytest.param(
            {"python3": "3.11.2"},
            [],
            ["python3 (Python 3.11.2)", "sudo apt-get install python3.11-venv\n"],
            id="without ensurepip",
        ),
        pytest.param(
            {"python3": "3.13.0rc1"},
            [],
            ["python3 (Python 3.13.0)", "sudo apt-get install python3.13-venv\n"],
            id="a release candidate without ensurepip",
        ),
    ],
)
def test_an_unfit_python_is_an_error_that_says_what_to_do(
    checkout: Path, pythons: dict[str, str], arguments: list[str], expected: list[str]
) -> None:
    """The error names the version that was found and the command that helps; no `.venv` is left behind."""
    for name, version in pythons.items():
        _add_python(checkout, name, version)

    result = _make(checkout, ".venv", *arguments)

    assert result.returncode != 0
    assert [text for text in expected if text not in result.stderr] == []
    assert not (checkout / ".venv").exists()


def test_a_name_that_does_not_run_is_no_python(checkout: Path) -> None:
    """A pyenv shim without its Python behind it is passed over."""
    _add_python(checkout, "python3", "3.9.2")
    _write_program(checkout / "bin" / "python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127")
    _add_python(checkout, "python3.13", "3.13.0")

    assert "python3.13 (Python 3.13.0)" in _make(checkout, ".venv").stderr


@pytest.mark.parametrize(
    ("stamp", "is_complete"),
    [
        pytest.param("{checkout}", True, id="complete"),
        pytest.param(None, False, id="interrupted"),
        pytest.param("/elsewhere", False, id="made before the checkout was moved"),
    ],
)
def test_only_a_complete_environment_is_kept(checkout: Path, stamp: str | None, is_complete: bool) -> None:
    """A `.venv` without the stamp of this place is made anew, which fails here for want of a Python."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    _write_program(checkout / ".venv" / "bin" / "python", "exit 1")
    if stamp:
        (checkout / ".venv" / ".installed").write_text(stamp.format(checkout=checkout.resolve()) + "\n")

    assert (_make(checkout, ".venv").returncode == 0) is is_complete


def test_a_changed_pyproject_updates_the_environment(checkout: Path) -> None:
    """After a change of pyproject.toml the packages are installed again, into the same `.venv`, once."""
    stamp = checkout / ".venv" / ".installed"
    stamp.parent.joinpath("bin").mkdir(parents=True)
    _write_program(stamp.parent / "bin" / "python", 'echo "$@" >>.venv/calls')
    stamp.write_text(f"{checkout.resolve()}\n")
    os.utime(stamp, (0, 0))

    for _ in range(2):
        result = _make(checkout, ".venv")
        assert result.returncode == 0, result.stderr

    calls = (stamp.parent / "calls").read_text().splitlines()
    assert len(calls) == 1
    assert calls[0].startswith("-m pip install ")


def test_a_failed_update_is_tried_again(checkout: Path) -> None:
    """When pip fails, so does make, and the next make calls pip again."""
    stamp = checkout / ".venv" / ".installed"
    stamp.parent.joinpath("bin").mkdir(parents=True)
    _write_program(stamp.parent / "bin" / "python", "echo 'no network' >&2; exit 1")
    stamp.write_text(f"{checkout.resolve()}\n")
    os.utime(stamp, (0, 0))

    results = [_make(checkout, ".venv") for _ in range(2)]

    assert all(result.returncode != 0 and "no network" in result.stderr for result in results)
