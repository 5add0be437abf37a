"""Writes docs/reference/ from the code: python tools/reference.py. With --check it only says which pages would change.

Each page is made of what its owner says of itself: docstrings, the parameters of commands, the fields of settings. So it can be
read without the code, and cannot say anything else.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

import featurestore
from featurestore import errors, settings, types
from featurestore.cli import commands
from featurestore_server.contract import PROBLEMS

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
_MADE = "<!-- made by tools/reference.py: change the code, then run it -->"
_FORMATS = {
    "Value types": "featurestore.types",
    "Offline tables": "featurestore.offline.tables",
    "Stored training sets": "featurestore.offline.stored_sets",
    "Key hashes": "featurestore.offline.keys",
    "Online keys": "featurestore.online.keys",
    "Online rows": "featurestore.online.rows",
    "The embedded server's folder": "featurestore.online.embedded",
    "Code of on-demand views": "featurestore.functions",
    "Locks": "featurestore.lock",
    "The serving log": "featurestore.serving_log.layout",
    "The log of a push source": "featurestore.offline.push_log",
    "Registry": "featurestore.registry.schema",
    "Pushes in the registry": "featurestore.registry.pushes",
    "Leases": "featurestore.registry.lease",
}


def _page(title: str, parts: Iterator[str]) -> str:
    return "\n\n".join([f"# {title}", _MADE, *parts]) + "\n"


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _fenced(text: str) -> str:
    return f"~~~\n{text.strip()}\n~~~"


def _clean(owner: Any) -> str:
    return inspect.cleandoc(owner.__doc__ or "")


# The command line


def _cli() -> Iterator[str]:
    yield "`featurestore`, or short `fs`. Every command takes `--repo DIR`, `--json` and `--debug`, before its name or after it."
    yield "Exit codes: 0 done, 1 failed (stderr says why), 2 wrong usage, 130 Ctrl-C."
    for panel, functions in commands._COMMANDS.items():  # noqa: SLF001 (the one list of commands)
        yield f"## {panel}"
        for name, function in functions.items():
            yield from _command(name, function)


def _command(name: str, function: Callable[..., None]) -> Iterator[str]:
    from featurestore.cli.invocation import exposed

    app = typer.Typer(add_completion=False)
    app.command(name)(exposed(function))
    parameters = typer.main.get_command(app).params
    own = list(inspect.signature(function).parameters)[1:]
    text, _, example = _clean(function).partition("\nExample: ")
    yield f"### featurestore {name}"
    yield text.strip()
    rows = []
    for each in parameters:
        if each.name in own:
            options = getattr(each, "opts", []) + getattr(each, "secondary_opts", [])
            is_argument = each.param_type_name == "argument"
            metavar = str(each.metavar or "") if not getattr(each, "is_flag", False) else ""
            shown = metavar if is_argument else ", ".join(options) + (f" {metavar}" if metavar else "")
            rows.append([f"`{shown}`", "yes" if each.required else "", getattr(each, "help", "") or ""])
    if rows:
        yield _table(["parameter", "needed", "what it is"], rows)
    if example:
        yield f"Example: `{example.strip()}`"


# Python


def _python() -> Iterator[str]:
    yield _clean(featurestore)
    for name in featurestore.__all__:
        yield from _class(name, getattr(featurestore, name))
    yield "## featurestore.types"
    yield _fenced(_clean(types))


def _class(name: str, owner: Any) -> Iterator[str]:
    yield f"## {name}"
    yield f"`{name}({_signature(owner)})`"
    yield _doc(owner)
    for member, value in vars(owner).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property) and value.__doc__:
            yield f"### {name}.{member}"
            yield _doc(value)
        elif inspect.isfunction(value) and value.__doc__:
            yield f"### {name}.{member}({_signature(value)})"
            yield _doc(value)


def _doc(owner: Any) -> str:
    """Return a docstring; its errors become a list."""
    text, _, raised = _clean(owner).partition("\nRaises:\n")
    lines = inspect.cleandoc(raised).splitlines()
    items: list[str] = []
    for line in lines:
        if line.startswith(" "):
            items[-1] += f" {line.strip()}"
        else:
            items.append(f"- {line}")
    return text.strip() + ("\n\nRaises:\n\n" + "\n".join(items) if items else "")


def _signature(owner: Any) -> str:
    parts, is_keyword = [], False
    for each in inspect.signature(owner).parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not is_keyword:
            parts.append("*")
            is_keyword = True
        default = "" if each.default is each.empty else f"={_default(each.default)}"
        parts.append(f"{each.name}{default}")
    return ", ".join(parts)


def _default(value: Any) -> str:
    return "…" if callable(value) or "<" in repr(value) else repr(value)


# The others


def _http() -> Iterator[str]:
    yield "`featurestore serve` answers on http://127.0.0.1:8000; `/docs` shows the same contract as OpenAPI."
    yield _fenced(inspect.cleandoc(importlib.import_module("featurestore_server.contract").__doc__ or ""))
    yield "## Problems"
    yield _table(["code", "status", "title"], [[f"`{code}`", str(kind.status), kind.title] for code, kind in PROBLEMS.items()])


def _settings() -> Iterator[str]:
    yield (
        "In `featurestore.toml`, or by environment: `FEATURESTORE_ONLINE__URL` is `online.url`, and wins. Relative paths are "
        "relative to the repo's folder."
    )
    rows = []
    for line in (settings.__doc__ or "").splitlines():
        if line.startswith("    ") and not line.lstrip().startswith("setting "):
            name, default, text = re.split(r"\s{2,}", line.strip(), maxsplit=2)
            rows.append([f"`{name}`", default if default.startswith(("(", "the ")) else f"`{default}`", text])
    yield _table(["setting", "default", "what it is"], rows)


def _errors() -> Iterator[str]:
    yield _fenced(_clean(errors))
    rows = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.FeatureStoreError):
            rows.append([f"`{kind.code}`", f"`{name}`", _clean(kind).splitlines()[0]])
    yield _table(["code", "class", "what it is"], rows)


def _formats() -> Iterator[str]:
    yield "Each persistent format has one owner, whose specification is this text."
    for title, module in _FORMATS.items():
        yield f"## {title}"
        yield f"`{module}`"
        yield _fenced(inspect.cleandoc(importlib.import_module(module).__doc__ or ""))
    from featurestore.registry.schema import metadata

    yield "### Tables of the registry"
    for table in metadata.sorted_tables:
        columns = [[f"`{each.name}`", str(each.type), "" if each.nullable else "yes"] for each in table.columns]
        yield f"`{table.name}`"
        yield _table(["column", "type", "always set"], columns)


def pages() -> dict[str, str]:
    """Return the text of each page by its file's name."""
    return {
        "cli.md": _page("Commands", _cli()),
        "python.md": _page("Python", _python()),
        "http.md": _page("HTTP", _http()),
        "settings.md": _page("Settings", _settings()),
        "errors.md": _page("Errors", _errors()),
        "formats.md": _page("Formats", _formats()),
    }


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check say which would change."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = []
    for name, text in pages().items():
        file = FOLDER / name
        if not file.exists() or file.read_text("utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(text, "utf-8")
    for name in stale:
        sys.stdout.write(f"{name} {'is not what the code says' if '--check' in arguments else 'written'}\n")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
