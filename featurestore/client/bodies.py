"""What the client sends: entities and spines as Arrow streams, a spine in a Parquet file as that file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from featurestore.client.spool import Spool
from featurestore.definitions import FeatureService
from featurestore.errors import InputError, SpineError
from featurestore.types import as_request_column

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ARROW",
    "JSON",
    "PARQUET",
    "Features",
    "asked_for",
    "entity_columns",
    "locked",
    "push_body",
    "rows_body",
    "spine_body",
    "typed",
]

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
JSON = "application/json"
_PYTHON_ROWS = b"featurestore.python_rows"

Features = str | FeatureService | Sequence[str]
"""What is asked for: a feature service, its name, or a list of `"view:feature"`."""


def asked_for(features: Features) -> list[tuple[str, str]]:
    """Return the parameters that ask for a service or for features."""
    if isinstance(features, str | FeatureService):
        return [("feature_service", features if isinstance(features, str) else features.name)]
    return [("features", each) for each in features]


def locked(lock: str | Path | None) -> dict[str, str]:
    """Return the header that holds a request to a lock, given by its file or its fingerprint; InputError if it is neither."""
    if lock is None:
        return {}
    try:
        changed = Path(lock).stat().st_mtime_ns
    except (OSError, ValueError):
        changed = 0  # a fingerprint, or an error when it is read
    return {"Feature-Service-Fingerprint": _fingerprint(lock, changed)}


@lru_cache(maxsize=128)
def _fingerprint(lock: str | Path, _changed: int) -> str:
    """Return what a lock stands for; its file is read anew when it has changed, not for each lookup."""
    from featurestore.lock import read_lock

    return read_lock(lock).fingerprint


def entity_columns(entities: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return entities as a table; InputError if a column is none, or they differ in length."""
    return _table("key", entities)


def _table(what: str, given: Mapping[str, Sequence[Any]]) -> pa.Table:
    import pyarrow as pa

    for name in given:
        if not isinstance(name, str):
            raise InputError(f"{name!r} is no name of a {what}")
    columns = {name: _column(what, name, values) for name, values in given.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise InputError(f"{'key columns' if what == 'key' else 'columns'} differ in length: {shown}")
    return pa.table(columns)


def _column(what: str, name: str, values: Sequence[Any]) -> Any:
    import pyarrow as pa

    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise InputError(f"{what} {name!r} needs a list of values, one for each row; got {type(values).__name__}", name=name)
    try:
        return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as reason:
        raise InputError(f"{what} {name!r} holds values that are no column: {reason}", name=name) from reason


def typed(entities: pa.Table, name: str, type_: Any) -> pa.ChunkedArray:
    """Return a column of entities in its declared type, as the service read it."""
    return as_request_column(entities[name], name, type_)


def rows_body(table: pa.Table) -> Spool:
    """Return a table as an Arrow stream."""
    return _stream(table.to_reader())


def spine_body(spine: Any) -> tuple[str, Spool]:
    """Return the media type and the bytes of a spine, of any kind that `FeatureStore` takes; SpineError if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(spine, Path) or (isinstance(spine, str) and os.path.isfile(spine)):  # noqa: PTH113 (SQL is no path)
        try:
            pq.read_schema(spine)
            return PARQUET, Spool.of_file(Path(spine))
        except FileNotFoundError:
            raise SpineError(f"no spine at {spine}") from None
        except (OSError, pa.ArrowException) as reason:
            raise SpineError(f"the spine {spine} cannot be read as Parquet: {reason}") from reason
    try:
        return ARROW, _stream(_reader(spine))
    except (OSError, pa.ArrowException, ValueError) as reason:
        raise SpineError(f"the spine cannot be read: {reason}") from reason


def push_body(rows: Any) -> Spool:
    """Return rows to push as an Arrow stream. Of Python values it says that their types were found for them, not given with them.

    Raises:
        InputError: they are no rows, or hold what no column can.

    """
    lacks: dict[str, int] = {}
    if isinstance(rows, Mapping):
        columns = rows
    elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        columns, lacks = _columns_of(rows)
    else:
        return _table_body(rows)
    table = _table("column", columns)
    return rows_body(table.replace_schema_metadata({_PYTHON_ROWS: orjson.dumps({"lacks": lacks})}))


def _columns_of(rows: Sequence[Any]) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Return dicts as columns, and the first row that lacks one of them: whether it may, the source says."""
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"row {place} is no mapping of columns to values")
    names = dict.fromkeys(name for row in rows for name in row)
    lacks = {name: next((place for place, row in enumerate(rows) if name not in row), None) for name in names}
    columns = {name: [row.get(name) for row in rows] for name in names}
    return columns, {name: place for name, place in lacks.items() if place is not None}


def _table_body(rows: Any) -> Spool:
    import pyarrow as pa

    try:
        if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__"):
            return _stream(_reader(rows))
    except (OSError, pa.ArrowException, ValueError) as reason:
        raise InputError(f"the rows cannot be read: {reason}") from reason
    raise InputError(f"a {type(rows).__name__} is no rows; pass an Arrow table, a frame, a dict of columns or a list of dicts")


def _reader(spine: Any) -> pa.RecordBatchReader:
    import pyarrow as pa

    if isinstance(spine, pa.Table | pa.RecordBatch):
        return (spine if isinstance(spine, pa.Table) else pa.Table.from_batches([spine])).to_reader()
    if type(spine).__module__.partition(".")[0] == "pandas":
        return pa.Table.from_pandas(spine, preserve_index=False).replace_schema_metadata().to_reader()
    if hasattr(spine, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(spine)
    # SQL needs DuckDB, which knows as well what to say of what is no spine at all.
    from featurestore.offline.spine import spine_batches

    schema, read = spine_batches(spine)
    return pa.RecordBatchReader.from_batches(schema, read(None))


def _stream(reader: pa.RecordBatchReader) -> Spool:
    import pyarrow as pa

    spool = Spool()
    with pa.ipc.new_stream(spool, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
    return spool
