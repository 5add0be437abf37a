"""The key hash: 64 bits that sort offline tables by entity and cut them into buckets.

Specification, named in each table's metadata as `ALGORITHM`. A key column becomes 64-bit values `pandas.util.hash_array` of its
distinct values with pandas' default hash key (strings as text, bytes as they are, numbers as int64: dates count days, timestamps
microseconds, booleans are 0 and 1). Columns combine from left to right as `h = (h * 0x9E3779B97F4A7C15) XOR next`, modulo 2**64.
The result is read as a signed integer, since Delta tables have no unsigned one. Golden vectors are in `tests/test_keys.py`.

The hash only sorts: whoever looks a key up by it compares the real columns afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["ALGORITHM", "key_hash"]

ALGORITHM = "pandas-hash-array-1"
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def key_hash(columns: Sequence[pa.Array | pa.ChunkedArray]) -> npt.NDArray[np.int64]:
    """Return the hash of each row of the key columns, shape (rows,). Columns have their declared types and no nulls."""
    combined = _column_hash(columns[0])
    for column in columns[1:]:
        combined = (combined * _MULTIPLIER) ^ _column_hash(column)
    return combined.view(np.int64)


def _column_hash(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = array.dictionary_encode()
    hashed = pd.util.hash_array(_hashable(encoded.dictionary), categorize=False)
    taken: npt.NDArray[np.uint64] = hashed[encoded.indices.to_numpy(zero_copy_only=False)]
    return taken


def _hashable(values: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        objects = np.empty(len(values), dtype=object)
        objects[:] = values.to_pylist()
        return objects
    if pa.types.is_date32(values.type):
        values = values.cast(pa.int32())
    return np.ascontiguousarray(pc.cast(values, pa.int64()).to_numpy(zero_copy_only=False))
