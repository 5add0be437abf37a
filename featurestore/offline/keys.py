"""The key hash: 64 bits that sort offline tables by entity and cut them into buckets.

Specification, named in each table's metadata as `ALGORITHM`. A key column becomes 64-bit values `pandas.util.hash_array` of its
distinct values with pandas' default hash key (strings as text, bytes as they are, numbers as int64: dates count days, timestamps
microseconds, booleans are 0 and 1). Columns combine from left to right as `h = (h * 0x9E3779B97F4A7C15) XOR next`, modulo 2**64.
The result is read as a signed integer, since Delta tables have no unsigned one. Golden vectors are in `tests/test_keys.py`.

The hash only sorts: whoever looks a key up by it compares the real columns afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["ALGORITHM", "Encoded", "encoded", "hashed", "key_hash"]

ALGORITHM = "pandas-hash-array-1"
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def key_hash(columns: Sequence[pa.Array | pa.ChunkedArray]) -> npt.NDArray[np.int64]:
    """Return the hash of each row of the key columns, shape (rows,). Columns have their declared types and no nulls."""
    return hashed([encoded(column) for column in columns])


def hashed(columns: Sequence[Encoded]) -> npt.NDArray[np.int64]:
    """Return the hash of each row of encoded key columns, shape (rows,)."""
    combined = columns[0].hashes()
    for column in columns[1:]:
        combined = (combined * _MULTIPLIER) ^ column.hashes()
    return combined.view(np.int64)


@dataclass(frozen=True)
class Encoded:
    """A key column as integers, shape (rows,), equal where its values are: the values themselves, or places in `distinct`."""

    codes: npt.NDArray[Any]
    distinct: pa.Array | None = None

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return the hash of each row, shape (rows,)."""
        if self.distinct is None:
            return pd.util.hash_array(self.codes, categorize=False)
        texts = np.empty(len(self.distinct), dtype=object)
        texts[:] = self.distinct.to_pylist()
        taken: npt.NDArray[np.uint64] = pd.util.hash_array(texts, categorize=False)[self.codes]
        return taken


def encoded(column: pa.Array | pa.ChunkedArray) -> Encoded:
    """Return a key column without nulls as integers; texts and bytes may be dictionary-encoded already."""
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    kind = chunked.type.value_type if pa.types.is_dictionary(chunked.type) else chunked.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        array = chunked.dictionary_encode().unify_dictionaries().combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # of no chunk at all
            return Encoded(np.zeros(0, dtype=np.int32), pa.nulls(0, kind))
        return Encoded(array.indices.to_numpy(zero_copy_only=False), array.dictionary)
    integers = chunked.cast(pa.int32()) if pa.types.is_date32(kind) else chunked
    return Encoded(np.ascontiguousarray(pc.cast(integers, pa.int64()).to_numpy()))
