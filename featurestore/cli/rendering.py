"""How answers look: tables and colours on a terminal, plain and uncut text where stdout is piped, JSON where it is asked for.

The widths of a terminal bend tables, never what is piped. Colours follow NO_COLOR and FORCE_COLOR.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["NOTHING", "cell", "elapsed_text", "grid", "json_form", "messages", "note", "show", "show_json", "values_grid"]

_UNBOUNDED = 1_000_000
_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000))
NOTHING = Text("-", "dim")


def _console(*, is_error: bool) -> Console:
    # Values are shown as they are: brackets, colons and digits in them mean nothing.
    console = Console(stderr=is_error, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNBOUNDED
    return console


def messages() -> Console:
    """Return the console of stderr."""
    return _console(is_error=True)


def show(parts: Iterable[RenderableType]) -> None:
    """Write parts of an answer to stdout, one below the other."""
    console = _console(is_error=False)
    for part in parts:
        if console.is_terminal:
            console.print(part, soft_wrap=isinstance(part, str))
        else:
            with console.capture() as captured:
                console.print(part)
            sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


def show_json(record: Any) -> None:
    """Write JSON-ready data to stdout."""
    sys.stdout.write(orjson.dumps(record, option=orjson.OPT_INDENT_2).decode() + "\n")


def note(text: str) -> None:
    """Say something on stderr that is not part of the answer."""
    messages().print(Text(text, "yellow"), soft_wrap=True)


def json_form(value: Any) -> Any:
    """Return the JSON form of any Python value that an Arrow column gives, as `ValueType.to_json` does for declared types."""
    if isinstance(value, list | tuple):
        return [json_form(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): json_form(each) for name, each in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "isoformat"):
        return value.isoformat().replace("+00:00", "Z")
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def cell(value: Any) -> Text:
    """Return a JSON value as the text of a table's cell; what could move the cursor is escaped."""
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("null", "dim")
    if isinstance(value, str):
        return Text(value if value.isprintable() else repr(value))
    return Text(json.dumps(value, ensure_ascii=False))


def grid(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table; columns of numbers are aligned to the right."""
    held = [list(row) for row in rows]
    piped = not _console(is_error=False).is_terminal
    table = Table(box=None if piped else SIMPLE_HEAD, pad_edge=False, header_style="" if piped else "bold", padding=(0, 2, 0, 0))
    for place, header in enumerate(headers):
        is_number = any(_is_number(row[place]) for row in held) and all(_is_number(row[place], or_none=True) for row in held)
        table.add_column(Text(header), justify="right" if is_number else "left", overflow="fold")
    for row in held:
        table.add_row(*map(cell, row))
    return table


def _is_number(value: Any, *, or_none: bool = False) -> bool:
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    return or_none and (value is None or value is NOTHING)


def values_grid(columns: Mapping[str, Sequence[Any]]) -> Iterator[Table]:
    """Give columns of values as a table, or, where the terminal is too narrow for it, as tables with a line for each column."""
    console = _console(is_error=False)
    rows = list(zip(*columns.values(), strict=True))
    upright = grid(list(columns), rows)
    if console.measure(upright, options=console.options.update_width(_UNBOUNDED)).maximum <= console.width:
        yield upright
        return
    names = max(map(cell_len, columns)) + 2
    for first, last in _fitting([_width(row) for row in rows], console.width - names):
        headers = ["", *(f"row {number}" for number in range(first + 1, last + 1))]
        yield grid(headers, [[Text(name, "bold"), *(row[place] for row in rows[first:last])] for place, name in enumerate(columns)])


def _width(row: Sequence[Any]) -> int:
    return max(8, *(cell_len(cell(each).plain) + 2 for each in row))


def _fitting(widths: Sequence[int], available: int) -> Iterator[tuple[int, int]]:
    """Cut columns of these widths into runs that fit, of at least one column each."""
    first = used = 0
    for place, width in enumerate(widths):
        if place > first and used + width > available:
            yield first, place
            first, used = place, 0
        used += width
    yield first, len(widths)


def elapsed_text(micros: int) -> str:
    """Write a span of time for people, in its two largest units: `3d 4h`, `12m 5s`; less than a second is `0s`."""
    parts: list[str] = []
    left = max(micros, 0)
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0")) or "0s"
