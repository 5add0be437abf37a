"""Pushing a Parquet file: in one push, or where it is long, checked as a whole first and then pushed in parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import InputError
from featurestore.push import Pushing, Receipt

__all__ = ["push_file"]

_BATCH_ROWS = 100_000


def push_file(pushing: Pushing, source: str, path: Path, idempotency_key: str | None) -> list[Receipt]:
    """Push the rows of a file; returns a receipt for each part.

    Raises:
        InputError: the file cannot be read, or a row does not fit; nothing was pushed.

    """
    if sum(1 for _ in _parts(path)) > 1:
        first = 0
        for part in _parts(path):
            pushing.check(source, part, first)
            first += len(part)
    return [pushing.push(source, part, _key(idempotency_key, number)) for number, part in enumerate(_parts(path))]


def _key(given: str | None, number: int) -> str | None:
    return given if given is None or not number else f"{given} part {number}"


def _parts(path: Path) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as opened:
            schema, held = opened.schema_arrow.remove_metadata(), list[pa.RecordBatch]()
            for batch in opened.iter_batches(_BATCH_ROWS):
                held.append(batch.replace_schema_metadata())
                if sum(map(len, held)) >= _BATCH_ROWS:
                    yield pa.Table.from_batches(held, schema)
                    held = []
            if held or not opened.metadata.num_rows:
                yield pa.Table.from_batches(held, schema)
    except (OSError, pa.ArrowException) as reason:
        raise InputError(f"cannot read {path} as Parquet: {reason}", name=str(path)) from reason
