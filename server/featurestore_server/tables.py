"""Tables between bytes and Arrow: bodies that hold one, and answers that are sent as they are computed.

What came over the network is validated in full, since Arrow trusts offsets and indices that a crafted stream could point anywhere.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import InputError
from featurestore_server.contract import ARROW, JSON, PARQUET
from featurestore_server.problems import ProblemError
from featurestore_server.values import has_json_form, to_json

__all__ = ["check_form", "encoded", "metadata_of", "read_table", "reader"]

_BATCH_ROWS = 122_880
_SMALL_BATCH_ROWS = 16_384
_PART_BYTES = 16_000_000

Batches = Iterable[pa.RecordBatch]


# Reading


def reader(body: bytes | Path, type_: str) -> pa.RecordBatchReader:
    """Return what an Arrow or Parquet body holds, batch by batch, once; a ProblemError if it is not what it should be.

    The body may be in a file, which is mapped, not loaded.
    """
    batches = {ARROW: _arrow_batches, PARQUET: _parquet_batches}[type_]
    try:
        for batch in batches(body):
            batch.validate(full=True)
        schema = _schema(body, type_)
        _ = schema.names  # a name need not be UTF-8
        return pa.RecordBatchReader.from_batches(schema, batches(body))
    except (pa.ArrowException, OSError, ValueError) as reason:
        raise ProblemError("malformed", f"the body is no {type_}: {reason}") from reason


def read_table(body: bytes, type_: str) -> pa.Table:
    """Return what an Arrow or Parquet body holds."""
    return reader(body, type_).read_all()


def metadata_of(body: bytes) -> dict[bytes, bytes]:
    """Return what the schema of an Arrow body that was read says beside the columns, which they go without otherwise."""
    with pa.ipc.open_stream(_opened(body)) as stream:
        return stream.schema.metadata or {}


def _opened(body: bytes | Path) -> pa.NativeFile:
    if isinstance(body, Path):
        return pa.memory_map(str(body)) if body.stat().st_size else pa.BufferReader(b"")
    return pa.BufferReader(body)


def _schema(body: bytes | Path, type_: str) -> pa.Schema:
    if type_ == ARROW:
        with pa.ipc.open_stream(_opened(body)) as stream:
            return stream.schema.remove_metadata()
    return pq.read_schema(_opened(body)).remove_metadata()


def _arrow_batches(body: bytes | Path) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_stream(_opened(body)) as stream:
        for batch in stream:
            yield batch.replace_schema_metadata()


def _parquet_batches(body: bytes | Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(_opened(body)) as file:
        for batch in file.iter_batches(_BATCH_ROWS):
            yield batch.replace_schema_metadata()


# Writing


def encoded(type_: str, schema: pa.Schema, batches: Batches, spine: Sequence[str]) -> Iterator[bytes]:
    """Return a training set as chunks of bytes in one of the three types; `spine` names the columns that are not features.

    Raises:
        InputError: a column has no form in the type.

    """
    check_form(type_, schema)
    if type_ == JSON:
        return _json_chunks(schema, batches, spine)
    return {ARROW: _arrow_chunks, PARQUET: _parquet_chunks}[type_](schema, batches)


def check_form(type_: str, schema: pa.Schema) -> None:
    """Raise InputError if a column has no form in a type."""
    has_form = {JSON: has_json_form, ARROW: lambda _: True, PARQUET: _has_parquet_form}[type_]
    for field in schema:
        if not has_form(field.type):
            raise InputError(f"column {field.name!r} is {field.type}, which {type_} cannot hold; ask for {ARROW}", name=field.name)


def _has_parquet_form(type_: pa.DataType) -> bool:
    try:
        pq.ParquetWriter(io.BytesIO(), pa.schema([pa.field("column", type_)])).close()
    except pa.ArrowException:
        return False
    return True


class _Sink(io.BytesIO):
    """Keeps what a writer writes until it is taken; nothing that was taken is kept."""

    def taken(self) -> bytes:
        value = self.getvalue()
        self.seek(0)
        self.truncate()
        return value


def _arrow_chunks(schema: pa.Schema, batches: Batches) -> Iterator[bytes]:
    sink = _Sink()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            for part in _parts(batch):
                writer.write_batch(part)
                yield sink.taken()
    yield sink.taken()


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch where it would take too much memory to encode."""
    rows = max(1, len(batch) * _PART_BYTES // max(batch.nbytes, 1))
    return (batch.slice(first, rows) for first in range(0, max(len(batch), 1), rows))


def _parquet_chunks(schema: pa.Schema, batches: Batches) -> Iterator[bytes]:
    sink = _Sink()
    with pq.ParquetWriter(pa.PythonFile(sink, "w"), schema, compression="zstd") as writer:
        for batch in _row_groups(batches):
            try:
                writer.write_batch(batch)
            except pa.ArrowException as reason:  # a second beyond what milliseconds count, a null where the schema has none
                raise InputError(f"the spine holds what {PARQUET} cannot: {reason}; ask for {ARROW}") from reason
            yield sink.taken()
    yield sink.taken()


def _row_groups(batches: Batches) -> Iterator[pa.RecordBatch]:
    """Join small batches, each of which would else become a row group."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= _SMALL_BATCH_ROWS:
            yield from pa.Table.from_batches(held).combine_chunks().to_batches()
            held = []
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


def _json_chunks(schema: pa.Schema, batches: Batches, spine: Sequence[str]) -> Iterator[bytes]:
    """Write columns one after the other, from a file in which the batches wait: memory holds one batch of one column."""
    with tempfile.TemporaryDirectory(prefix="featurestore-answer-") as folder:
        path = Path(folder) / "answer.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        with pa.memory_map(str(path)) as file:
            yield b'{"entities":{'
            yield from _json_columns(file, [index for index, name in enumerate(schema.names) if name in spine])
            yield b'},"features":{'
            yield from _json_columns(file, [index for index, name in enumerate(schema.names) if name not in spine])
            yield b"}}"


def _json_columns(file: pa.NativeFile, indices: Sequence[int]) -> Iterator[bytes]:
    for number, index in enumerate(indices):
        file.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=[index])
        with pa.ipc.open_stream(file, options=options) as stream:
            yield (b"," if number else b"") + orjson.dumps(stream.schema.names[0]) + b":["
            is_first = True
            for batch in stream:
                if len(batch):
                    yield (b"" if is_first else b",") + orjson.dumps(to_json(batch.column(0)))[1:-1]
                    is_first = False
        yield b"]"
