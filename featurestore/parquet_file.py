"""Writing a result to a Parquet file that appears when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import OfflineStoreError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["write_parquet"]


def write_parquet(path: str | Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches to a file, which replaces one of its name; returns the number of rows.

    Raises:
        OfflineStoreError: it cannot be written; what was there stays.

    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target, rows = Path(path), 0
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += len(batch)
        partial.replace(target)
    except (OSError, pa.ArrowException) as reason:
        raise OfflineStoreError(f"cannot write {target}: {reason}") from reason
    finally:
        with suppress(OSError):
            partial.unlink()
    return rows
