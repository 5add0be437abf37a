"""Spines: any table of entity keys and timestamps, read in batches as often as needed, its own columns left as they are.

A spine may be an Arrow table, a pandas or Polars frame or anything else with `__arrow_c_stream__` (a DuckDB relation, a record
batch reader), a path to Parquet, or SQL text for DuckDB. What can be read only once, or could answer differently the second time,
is kept in a temporary Arrow file first.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import InputError, OfflineStoreError, SpineError, known_names
from featurestore.offline.session import session
from featurestore.types import ValueType, as_key_column, as_request_column

__all__ = ["Spine", "key_column", "open_spine", "request_column", "spine_batches", "times_of"]

_BATCH_ROWS = 122_880
_DIGEST_ROWS = 65_536
_FARTHEST = 2**62
"""What lies beyond it, 146,000 years away, is taken for it, so that delays and the like can be added without wrapping around."""

_SQL = re.compile(r"\s*(?:--.*\s+)*(?:select|with|from|values)[\s(*\"']|\s*\(\s*(?:select|with|from|values)\s", re.IGNORECASE)

Batches = Callable[[Sequence[str] | None], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class Spine:
    """A table of keys and timestamps. `read` gives its batches, of all columns or of some, anew at each call."""

    schema: pa.Schema
    timestamp_column: str
    read: Batches
    path: Path | None = None
    """The file that it is read from, if it is one."""

    def chunks(self, rows: int) -> Iterator[pa.Table]:
        """Give the rows in order, in tables of about so many."""
        held: list[pa.RecordBatch] = []
        count = 0
        for batch in self.read(None):
            held.append(batch)
            count += len(batch)
            if count >= rows:
                yield pa.Table.from_batches(held, self.schema)
                held, count = [], 0
        if held:
            yield pa.Table.from_batches(held, self.schema)

    def bytes_per_row(self) -> int:
        """Estimate how many bytes a row takes, from the first batch."""
        batch = next(iter(self.read(None)), None)
        return 1 if not batch else batch.nbytes // len(batch) + 1

    def digest(self) -> str:
        """Return a hash of all columns: SHA-256 of their names and of batches of 65,536 rows, as Arrow IPC writes them.

        How the spine comes in batches, or in which form, does not matter.
        """
        hashed = hashlib.sha256("\0".join(self.schema.names).encode())
        held, first = [], 0
        for batch in self.read(None):
            held.append(batch)
            first += len(batch)
            if first >= _DIGEST_ROWS:
                table = pa.Table.from_batches(held, self.schema)
                whole = len(table) - len(table) % _DIGEST_ROWS
                _hash_into(hashed, table.slice(0, whole))
                held = table.slice(whole).to_batches()
                first = len(table) - whole
        _hash_into(hashed, pa.Table.from_batches(held, self.schema))
        return hashed.hexdigest()

    def times(self) -> Iterator[npt.NDArray[np.int64]]:
        """Give the timestamps of all rows, in microseconds."""
        for batch in self.read([self.timestamp_column]):
            yield times_of(batch.column(0), self.timestamp_column)


def _hash_into(hashed: Any, table: pa.Table) -> None:
    # Texts have several layouts in Arrow, dictionaries among them; which one a spine comes with says nothing of it.
    table = pa.Table.from_arrays([_decoded(column) for column in table.columns], table.schema.names)
    table = table.cast(pa.schema([field.with_type(_plain(field.type)) for field in table.schema]))
    for first in range(0, len(table), _DIGEST_ROWS):
        part = table.slice(first, _DIGEST_ROWS)
        # A copy, since a slice brings bytes of its neighbours along.
        for batch in part.take(pa.array(np.arange(len(part)))).combine_chunks().to_batches():
            hashed.update(batch.serialize())


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_dictionary(column.type):
        return column
    return pa.chunked_array([each.dictionary_decode() for each in column.chunks], column.type.value_type)


def _plain(arrow: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        return pa.string()
    if pa.types.is_large_binary(arrow) or pa.types.is_binary_view(arrow):
        return pa.binary()
    return _without_dictionaries(arrow)


def _without_dictionaries(arrow: pa.DataType) -> pa.DataType:
    # Other texts within lists and structs stay as they are, since the hashes in manifests do.
    if pa.types.is_dictionary(arrow):
        return _plain(arrow.value_type)
    if pa.types.is_map(arrow):
        key, item = (each.with_type(_without_dictionaries(each.type)) for each in (arrow.key_field, arrow.item_field))
        return pa.map_(key, item, arrow.keys_sorted)
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow) or pa.types.is_fixed_size_list(arrow):
        item = arrow.value_field.with_type(_without_dictionaries(arrow.value_type))
        if pa.types.is_fixed_size_list(arrow):
            return pa.list_(item, arrow.list_size)
        return pa.list_(item) if pa.types.is_list(arrow) else pa.large_list(item)
    if pa.types.is_struct(arrow):
        return pa.struct([field.with_type(_without_dictionaries(field.type)) for field in arrow])
    return arrow


def open_spine(
    source: Any, timestamp_column: str, keys: Mapping[str, ValueType], request: Mapping[str, ValueType] = MappingProxyType({})
) -> Spine:
    """Return a spine, checked for its timestamp and key columns, and for those that only on-demand views take.

    Raises:
        SpineError: it cannot be read, lacks a column, names one twice, or a column has a type that cannot be a key or a timestamp.

    """
    schema, read = spine_batches(source)
    spine = Spine(schema, timestamp_column, read, Path(source) if _is_path(source) else None)
    twice = {name for name in schema.names if schema.names.count(name) > 1}
    if twice:
        raise SpineError(f"the spine has more than one column {min(twice)!r}", name=min(twice))
    for name in [timestamp_column, *keys, *request]:
        if name not in schema.names:
            what = "timestamp" if name == timestamp_column else "key" if name in keys else "request"
            raise SpineError(f"the spine has no {what} column {name!r}; {known_names(name, schema.names)}", name=name)
    empty = schema.empty_table()
    times_of(empty[timestamp_column], timestamp_column)
    for name, type_ in keys.items():
        key_column(empty[name], name, type_)
    for name, type_ in request.items():
        request_column(empty[name], name, type_)
    return spine


def _is_path(source: Any) -> bool:
    return isinstance(source, Path) or (isinstance(source, str) and not _SQL.match(source))


def spine_batches(source: Any) -> tuple[pa.Schema, Batches]:
    """Return the schema of a spine, of any kind, and what reads it; SpineError if it is none."""
    if _is_path(source):
        return _parquet(Path(source))
    if isinstance(source, str):
        with session(SpineError, "the spine's SQL") as connection:
            return _spooled(connection.sql(source).to_arrow_reader(_BATCH_ROWS))
    if isinstance(source, pa.Table | pa.RecordBatch):
        return _table(source if isinstance(source, pa.Table) else pa.Table.from_batches([source]))
    try:
        if type(source).__module__.partition(".")[0] == "pandas":
            return _table(pa.Table.from_pandas(source, preserve_index=False).replace_schema_metadata())
        if isinstance(source, duckdb.DuckDBPyRelation):
            return _spooled(source.to_arrow_reader(_BATCH_ROWS))
        if hasattr(source, "__arrow_c_stream__"):
            return _spooled(pa.RecordBatchReader.from_stream(source))
    except (pa.ArrowException, duckdb.Error, ValueError) as reason:
        raise SpineError(f"the spine cannot be read: {reason}") from reason
    raise SpineError(
        f"a {type(source).__name__} is no spine; pass an Arrow table, a pandas or Polars frame, a DuckDB relation, "
        "a path to Parquet, or SQL text"
    )


def _table(table: pa.Table) -> tuple[pa.Schema, Batches]:
    return table.schema, lambda columns: iter((table.select(columns) if columns else table).to_batches(_BATCH_ROWS))


def _parquet(path: Path) -> tuple[pa.Schema, Batches]:
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        raise SpineError(f"no spine at {path}: neither a Parquet file nor SQL (which begins with SELECT, WITH or FROM)") from None
    except (OSError, pa.ArrowException) as reason:
        raise SpineError(f"the spine {path} cannot be read as Parquet: {reason}") from reason

    def read(columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(_BATCH_ROWS, columns=list(columns) if columns else None)
        except (OSError, pa.ArrowException) as reason:
            raise SpineError(f"the spine {path} cannot be read as Parquet: {reason}") from reason

    return schema.remove_metadata(), read


def _spooled(reader: pa.RecordBatchReader) -> tuple[pa.Schema, Batches]:
    folder = Path(tempfile.mkdtemp(prefix="featurestore-spine-"))
    path = folder / "spine.arrow"

    def read(columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(path)) as file:
            for batch in pa.ipc.open_stream(file):
                yield batch.select(list(columns)) if columns else batch

    weakref.finalize(read, shutil.rmtree, folder, ignore_errors=True)
    try:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
    except (OSError, pa.ArrowException, duckdb.Error) as reason:
        if isinstance(reason, OSError) and reason.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OfflineStoreError(f"cannot keep the spine in {folder}: {reason}") from reason
        raise SpineError(f"the spine cannot be read: {reason}") from reason
    return reader.schema, read


def times_of(column: pa.Array | pa.ChunkedArray, name: str) -> npt.NDArray[np.int64]:
    """Return a timestamp column in microseconds, shape (rows,); a naive one is read as UTC, nanoseconds are rounded down."""
    if not pa.types.is_timestamp(column.type):
        raise SpineError(f"timestamp column {name!r} is {column.type}, not a timestamp; cast it", name=name)
    if column.null_count:
        raise SpineError(f"timestamp column {name!r} has {column.null_count} nulls; a row without a time has no value", name=name)
    try:
        if column.type.unit == "ns":
            nanoseconds: npt.NDArray[np.int64] = np.asarray(column.cast(pa.int64()))
            return nanoseconds // 1000
        microseconds: npt.NDArray[np.int64] = np.asarray(column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()))
        return np.clip(microseconds, -_FARTHEST, _FARTHEST)
    except pa.ArrowInvalid as reason:
        raise SpineError(f"timestamp column {name!r} holds a time that microseconds cannot count: {reason}", name=name) from reason


def key_column(column: pa.Array | pa.ChunkedArray, name: str, type_: ValueType) -> pa.ChunkedArray:
    """Return a key column of the spine in its declared type; SpineError for a type whose values could change on the way."""
    try:
        return as_key_column(column, name, type_)
    except InputError as reason:
        raise SpineError(str(reason), name=name) from None


def request_column(column: pa.Array | pa.ChunkedArray, name: str, type_: ValueType) -> pa.ChunkedArray:
    """Return a column that on-demand views take in its declared type; SpineError for a type whose values could change."""
    try:
        return as_request_column(column, name, type_)
    except InputError as reason:
        raise SpineError(str(reason), name=name) from None
