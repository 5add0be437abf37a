"""What the client sends: entities and spines as Arrow streams, a spine in a Parquet file as that file."""

from __future__ import annotations

import base64
import datetime as dt
import math
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
    import pyarrow as pa

    columns = {name: _column(name, values) for name, values in entities.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise InputError(f"key columns differ in length: {shown}")
    return pa.table(columns)


def _column(name: str, values: Sequence[Any]) -> Any:
    import pyarrow as pa

    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise InputError(f"key {name!r} needs a list of values, one for each row; got {type(values).__name__}", name=name)
    try:
        return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as reason:
        raise InputError(f"key {name!r} holds values that are no column: {reason}", name=name) from reason


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


def push_body(rows: Any) -> tuple[str, Spool]:
    """Return the media type and the bytes of rows to push: tables as Arrow, Python values as JSON, which has no type of its own."""
    if isinstance(rows, Mapping):
        columns = {name: _plain_values(name, values) for name, values in rows.items()}
    elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        columns = _columns_of(rows)
    else:
        return ARROW, _table_body(rows)
    spool = Spool()
    try:
        spool.write(orjson.dumps({"columns": columns}))
    except TypeError as reason:
        raise InputError(f"the rows hold a value that no column can: {reason}") from reason
    return JSON, spool


def _columns_of(rows: Sequence[Any]) -> dict[str, list[Any]]:
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"row {place} is no mapping of columns to values")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_json_value(row.get(name)) for row in rows] for name in names}


def _plain_values(name: str, values: Any) -> list[Any]:
    if hasattr(values, "to_pylist"):
        values = values.to_pylist()
    elif hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise InputError(f"column {name!r} needs a list of values, one for each row; got {type(values).__name__}", name=name)
    return [_json_value(value) for value in values]


def _json_value(value: Any) -> Any:
    """Return a Python value in the form that the contract's JSON has of it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dt.date):  # a datetime is one too
        return value.isoformat()
    return [_json_value(each) for each in value] if isinstance(value, list | tuple) else value


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
