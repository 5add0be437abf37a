"""What is pushed, whatever it comes as, as a table of its push source's columns; whatever does not fit is refused as a whole.

Rows may come as an Arrow table, record batch or reader, a pandas or Polars frame, a dict of columns, or a list of dicts. The type
of a column must hold only values of the declared one: an int is a Float64 if a double holds it, text is no Timestamp. Python floats
may be a Float32, to which they are rounded. Timestamps without a time zone are UTC, nanoseconds are rounded down.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import BEGINNING, instant_text
from featurestore.definitions import PushSource
from featurestore.errors import InputError, known_names
from featurestore.types import ValueType

__all__ = ["MOST_ROWS", "TOLERANCE", "digest", "taken_in"]

TOLERANCE = 60_000_000
"""By how many microseconds an event time may lie in the future."""

MOST_ROWS = 1_000_000
"""How many rows one push may have: it is one transaction, and in memory."""


def taken_in(source: PushSource, rows: Any, *, keys: Iterable[str] = (), now: int, first: int = 0) -> pa.Table:
    """Return rows as a table of the source's columns, in their declared types; columns named by `keys` have no null.

    Messages count the rows from `first`, which a part of a file is after others.

    Raises:
        InputError: they are no rows, there are none or too many, a column is missing or unknown or of a wrong type, a key or an
            event time is null, or an event time lies in the future.

    """
    is_typed, given = _columns(source, rows)
    columns = source.columns
    for name in given:
        if name not in columns:
            raise InputError(f"push source {source.name!r} has no column {name!r}; {known_names(name, columns)}", name=name)
    counts = {name: len(column) for name, column in given.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise InputError(f"push source {source.name!r}: columns differ in length: {shown}")
    count = next(iter(counts.values()), 0)
    missing = [name for name in columns if name not in given and name != source.created_time]
    if missing and (count or given):
        raise InputError(f"push source {source.name!r}: column {missing[0]!r} is missing", name=missing[0])
    if not 0 < count <= MOST_ROWS:
        wrong = f"{count} rows are too many for one push; {MOST_ROWS} are the most" if count else "there are no rows to push"
        raise InputError(f"push source {source.name!r}: {wrong}")
    given.setdefault(source.created_time or source.event_time, pa.nulls(count))
    table = pa.table({name: _declared(source, name, type_, given[name], is_typed=is_typed) for name, type_ in columns.items()})
    for name in dict.fromkeys([source.event_time, *keys]):
        _refuse(source, name, pc.is_null(table[name]), "is null, which no row can do without", first)
    _check_times(source, table[source.event_time], now, first)
    return table


def digest(rows: pa.Table) -> str:
    """Return a hash of the rows of a push: SHA-256 of their columns as one Arrow batch."""
    hashed = hashlib.sha256(rows.schema.serialize())
    for batch in rows.combine_chunks().to_batches():
        hashed.update(batch.serialize())
    return hashed.hexdigest()


def _columns(source: PushSource, rows: Any) -> tuple[bool, dict[str, pa.ChunkedArray | pa.Array]]:
    """Return columns by name, and whether their types are the giver's own rather than found for Python values."""
    if isinstance(rows, Mapping):
        return False, {name: _column(source, name, values) for name, values in rows.items()}
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        return False, _of_dicts(source, rows)
    table = _table(source, rows)
    names = table.column_names
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"push source {source.name!r}: there is more than one column {name!r}", name=name)
    return True, dict(zip(names, table.columns, strict=True))


def _of_dicts(source: PushSource, rows: Sequence[Any]) -> dict[str, pa.ChunkedArray | pa.Array]:
    names: dict[str, None] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"push source {source.name!r}: row {place} is no mapping of columns to values")
        names.update(dict.fromkeys(row))
    for name in names:
        for place, row in enumerate(rows):
            if name not in row and name != source.created_time:
                raise InputError(f"push source {source.name!r}: row {place} lacks column {name!r}", name=name)
    return {name: _column(source, name, [row.get(name) for row in rows]) for name in names}


def _column(source: PushSource, name: str, values: Any) -> pa.ChunkedArray | pa.Array:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise InputError(f"push source {source.name!r}: column {name!r} needs a list of values, one for each row", name=name)
    try:
        return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as reason:
        declared = source.columns.get(name, "column")
        raise InputError(
            f"push source {source.name!r}: column {name!r} holds a value that is no {declared}: {reason}", name=name
        ) from (reason)


def _table(source: PushSource, rows: Any) -> pa.Table:
    try:
        if isinstance(rows, pa.Table | pa.RecordBatch):
            return rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
        if type(rows).__module__.partition(".")[0] == "pandas":
            return pa.Table.from_pandas(rows, preserve_index=False)
        if hasattr(rows, "__arrow_c_stream__"):
            return pa.RecordBatchReader.from_stream(rows).read_all()
    except (pa.ArrowException, ValueError, TypeError) as reason:
        raise InputError(f"push source {source.name!r}: the rows cannot be read: {reason}") from reason
    raise InputError(
        f"push source {source.name!r}: a {type(rows).__name__} is no rows; pass an Arrow table, a pandas or Polars frame, "
        "a dict of columns or a list of dicts"
    )


def _declared(
    source: PushSource, name: str, type_: ValueType, column: pa.ChunkedArray | pa.Array, *, is_typed: bool
) -> pa.ChunkedArray:
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    if pa.types.is_dictionary(chunked.type):
        chunked = pa.chunked_array([each.dictionary_decode() for each in chunked.chunks], chunked.type.value_type)
    where = f"push source {source.name!r}: column {name!r}"
    if not _is_held(chunked.type, type_, is_typed=is_typed):
        raise InputError(f"{where} is {chunked.type}, but it is declared {type_}; cast it", name=name)
    try:
        if pa.types.is_timestamp(chunked.type) and chunked.type.unit == "ns":
            chunked = _in_microseconds(chunked)
        return pa.chunked_array([each.cast(type_.arrow) for each in chunked.chunks], type_.arrow)
    except (pa.ArrowException, OverflowError) as reason:
        raise InputError(f"{where} holds a value that {type_} cannot: {reason}", name=name) from reason


def _in_microseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    nanoseconds = column.cast(pa.int64())
    floored = pa.array(nanoseconds.fill_null(0).to_numpy() // 1000, mask=np.asarray(nanoseconds.is_null()))
    return pa.chunked_array([floored.cast(pa.timestamp("us", "UTC"))])


def _is_held(arrow: pa.DataType, type_: ValueType, *, is_typed: bool) -> bool:
    """Whether all values of an Arrow type can be ones of the declared type; which of them are is for the cast to say."""
    from pyarrow import types

    if types.is_null(arrow):
        return True
    if type_.item is not None:
        is_list = types.is_list(arrow) or types.is_large_list(arrow) or types.is_fixed_size_list(arrow)
        return is_list and _is_held(arrow.value_type, type_.item, is_typed=is_typed)
    kinds: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
        "Bool": (types.is_boolean,),
        "Int32": (types.is_integer,),
        "Int64": (types.is_integer,),
        "Float32": (types.is_float16, types.is_float32, types.is_integer),
        "Float64": (types.is_floating, types.is_integer),
        "String": (types.is_string, types.is_large_string, types.is_string_view),
        "Bytes": (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary),
        "Date": (types.is_date,),
        "Timestamp": (types.is_timestamp, types.is_date),
    }
    is_rounded = type_.name == "Float32" and types.is_float64(arrow) and not is_typed
    return is_rounded or any(is_it(arrow) for is_it in kinds[type_.name])


def _check_times(source: PushSource, times: pa.ChunkedArray, now: int, first: int) -> None:
    micros = times.cast(pa.int64())
    latest = now + TOLERANCE
    _refuse(source, source.event_time, pc.greater(micros, latest), f"lies in the future: it is {instant_text(now)} now", first)
    _refuse(source, source.event_time, pc.less(micros, BEGINNING), "lies before the year 1", first)


def _refuse(source: PushSource, name: str, is_wrong: pa.ChunkedArray, why: str, first: int) -> None:
    place = pc.index(is_wrong, pa.scalar(True)).as_py()  # noqa: FBT003 (the value looked for)
    if place >= 0:
        raise InputError(f"push source {source.name!r}: row {first + place}: {name!r} {why}", name=name)
