"""How answers look: tables and colours on a terminal, plain and uncut text where stdout is piped, JSON where it is asked for.

The widths of a terminal bend tables, never what is piped. Colours follow NO_COLOR and FORCE_COLOR.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from rich.cells import cell_len
from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from featurestore.clock import floor, instant_text, parse_instant
from featurestore.errors import FeatureStoreError

__all__ = [
    "NOTHING",
    "OutputError",
    "bytes_text",
    "cell",
    "counted",
    "elapsed_text",
    "fitted",
    "grid",
    "json_form",
    "messages",
    "show",
    "show_json",
    "time_text",
    "values_grid",
    "writing",
]

_UNBOUNDED = 1_000_000
_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000))
NOTHING = Text("-", "dim")


class OutputError(FeatureStoreError):
    """stdout cannot be written; whoever asked for something else than an answer got it."""

    code = "output"


def bytes_text(count: float) -> str:
    """Return a number of bytes as people read it: `396 B`, `19.6 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004 (the prefixes are decimal)
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _console(*, is_error: bool) -> Console:
    # Values are shown as they are: brackets, colons and digits in them mean nothing.
    console = Console(stderr=is_error, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNBOUNDED
    return console


def messages() -> Console:
    """Return the console of stderr."""
    return _console(is_error=True)


@contextmanager
def writing() -> Iterator[None]:
    """Tell a stdout that cannot be written from the files of a store; BrokenPipeError stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as reason:
        raise OutputError(
            f"standard output cannot be written: {reason.strerror}; what the command had to do is done, and its answer is lost"
        ) from reason


def show(parts: Iterable[RenderableType]) -> None:
    """Write parts of an answer to stdout, one below the other."""
    console = _console(is_error=False)
    for part in parts:
        if console.is_terminal:
            with writing():
                console.print(part, soft_wrap=not isinstance(part, Table))
        else:
            console.file = shown = io.StringIO()
            console.print(part)
            with writing():
                sys.stdout.writelines(line.rstrip() + "\n" for line in shown.getvalue().splitlines())


def show_json(record: Any) -> None:
    """Write JSON-ready data to stdout."""
    text = orjson.dumps(record, option=orjson.OPT_INDENT_2).decode() + "\n"
    with writing():
        sys.stdout.write(text)


def counted(count: int, thing: str) -> str:
    """Write a number of things: `1 row`, `2,000 rows`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


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
        return Text(value if value and value.isprintable() else repr(value))
    return Text(json.dumps(value, ensure_ascii=False))


def grid(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table. Numbers are aligned to the right; on a narrow terminal texts of several words are wrapped first."""
    held = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, header in enumerate(headers):
        values = [row[place] for row in held]
        is_prose = any(" " in cell(value).plain for value in values)
        justify: JustifyMethod = "right" if _are_numbers(values) else "left"
        table.add_column(Text(header), justify=justify, overflow="fold", no_wrap=not is_prose)
    for row in held:
        table.add_row(*map(cell, row))
    return table


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether a column holds numbers; what stands for a missing one does not count."""
    present = [value for value in values if not (value is None or isinstance(value, Text))]
    return bool(present) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)


def fitted(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[RenderableType]:
    """Give a table, or, where the terminal is too narrow for it, turn it: a column for each row, headed by its first value."""
    console = _console(is_error=False)
    upright = grid(headers, rows)
    if console.measure(upright, options=console.options.update_width(_UNBOUNDED)).maximum <= console.width:
        yield upright
        return
    names = [Text(header, "bold") for header in headers]
    widths = [max(cell_len(cell(value).plain) for value in row) + 2 for row in rows]
    for first, last in _runs(widths, console.width - max(map(cell_len, headers)) - 2):
        titles, *lines = zip(names, *rows[first:last], strict=True)
        yield grid([cell(title).plain for title in titles], lines)
        if last < len(rows):
            yield ""


def _runs(widths: Sequence[int], available: int) -> Iterator[tuple[int, int]]:
    """Cut columns of these widths into runs that fit, of at least one column each."""
    first = used = 0
    for place, width in enumerate(widths):
        if place > first and used + width > available:
            yield first, place
            first, used = place, 0
        used += width
    yield first, len(widths)


def values_grid(columns: Mapping[str, Sequence[Any]]) -> Iterator[RenderableType]:
    """Give columns of values as a table, turned where the terminal is too narrow for it."""
    return fitted(list(columns), list(zip(*columns.values(), strict=True)))


def time_text(instant: int | str | None) -> str:
    """Write an instant for a table, to the second; JSON has all of it."""
    return instant_text(None if instant is None else floor(parse_instant(instant), 1_000_000))


def elapsed_text(micros: int) -> str:
    """Write a span of time for people, in its two largest units: `3d 4h`, `12m 5s`; less than a second is `0s`."""
    parts: list[str] = []
    left = max(micros, 0)
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0")) or "0s"
