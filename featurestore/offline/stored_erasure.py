"""Erasure from stored training sets (T14): rows of erased entities leave the result and the spine, with all their columns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.definitions import Field
from featurestore.errors import OfflineStoreError
from featurestore.offline.erased import is_row_kept
from featurestore.offline.session import session
from featurestore.offline.spine import key_column
from featurestore.offline.stored_sets import Keys, StoredSet
from featurestore.registry.state import Tombstones
from featurestore.types import value_type

__all__ = ["erase_stored"]

Conditions = list[tuple[Keys, list[Field], str]]


def erase_stored(held: StoredSet, tombstones: Tombstones) -> int:
    """Write the files of a set anew without the rows of erased entities; returns how many rows of the result, or else of the spine.

    The caller holds the set. Its manifest stays, as what it was made of; made again, it has nulls there.
    """
    conditions = _conditions(held, tombstones)
    if not conditions:
        return 0
    try:
        lost = _rewrite(held.spine_file, conditions, _arrow_batches, _arrow_writer)
        erased = _rewrite(held.result, conditions, _parquet_batches, _parquet_writer) if held.result.exists() else 0
        for left in held.folder.glob(".*.partial"):  # of a process that was killed
            left.unlink()
        if erased:
            state = held.state
            rows, size = None if state.rows is None else state.rows - erased, held.result.stat().st_size
            held.save(rows=rows, bytes=size, erased_rows=state.erased_rows + erased)
    except (OSError, pa.ArrowException) as reason:
        raise OfflineStoreError(f"cannot write the training set in {held.folder} anew: {reason}") from reason
    return erased or lost


def _conditions(held: StoredSet, tombstones: Tombstones) -> Conditions:
    found: Conditions = []
    for keys in held.job.keys:
        fields = [Field(name, value_type(type_)) for name, type_ in zip(keys.names, keys.types, strict=True)]
        condition = is_row_kept({field.name: field for field in fields}, tombstones)
        if condition is not None:
            found.append((keys, fields, condition))
    return found


def _rewrite(path: Path, conditions: Conditions, batches: Any, writer: Any) -> int:
    """Write a file anew; returns how many rows it lost."""
    partial, lost = path.with_name(f".{path.name}.{os.getpid()}.partial"), 0
    try:
        with ExitStack() as stack:
            schema, rows = stack.enter_context(batches(path))
            target = stack.enter_context(writer(partial, schema))
            for batch in rows:
                kept = batch.filter(_kept(batch, conditions))
                target.write_batch(kept)
                lost += len(batch) - len(kept)
        if lost:
            partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    return lost


def _kept(batch: pa.RecordBatch, conditions: Conditions) -> pa.Array:
    """Return which rows of a batch are of no erased entity."""
    mask = pa.array(np.ones(len(batch), dtype=bool))
    with session(OfflineStoreError, "the keys of a stored training set") as connection:
        for keys, fields, condition in conditions:
            columns = {
                field.name: key_column(batch[column], column, field.type)
                for field, column in zip(fields, keys.columns, strict=True)
            }
            connection.register("stored_keys", pa.table(columns))
            kept = connection.sql(f"SELECT {condition} AS kept FROM stored_keys").to_arrow_table()["kept"]
            mask = pc.and_(mask, kept.combine_chunks())
    return mask


@contextmanager
def _arrow_batches(path: Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as stored:
        yield stored.schema, (stored.get_batch(number) for number in range(stored.num_record_batches))


@contextmanager
def _parquet_batches(path: Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    with pq.ParquetFile(path) as file:
        yield file.schema_arrow, file.iter_batches(122_880)


@contextmanager
def _arrow_writer(path: Path, schema: pa.Schema) -> Iterator[Any]:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        yield writer


@contextmanager
def _parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Any]:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield writer
