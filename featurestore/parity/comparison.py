"""When two values are the same. This docstring is the rule.

Two values are equal if both are null, or if their bits are the same. Of floats, any NaN equals any NaN, whatever its sign and
payload, and 0.0 and -0.0 differ; there is no tolerance. Lists are equal if they have the same items in the same order, nulls
included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.online.tails import contiguous, fixed_values, item_counts, nulls_of, variable_values
from featurestore.types import ValueType

__all__ = ["differing"]

Bools = npt.NDArray[np.bool_]
_FLOATS = ("Float32", "Float64")


def differing(one: pa.Array | pa.ChunkedArray, other: pa.Array | pa.ChunkedArray, type_: ValueType) -> Bools:
    """Return which rows of two columns of one type are not equal, shape (rows,)."""
    first, second = contiguous(one), contiguous(other)
    absent = [nulls_of(each) for each in (first, second)]
    if type_.is_fixed_width:
        is_different = _bits(first, type_) != _bits(second, type_)
    elif type_.item is None:
        same: Bools = np.asarray(pc.fill_null(pc.equal(first, second), fill_value=True))
        is_different = ~same
    else:
        is_different = _packed(first, type_) != _packed(second, type_)
    different: Bools = (is_different & ~absent[0] & ~absent[1]) | (absent[0] != absent[1])
    return different


def _bits(column: pa.Array, type_: ValueType) -> npt.NDArray[Any]:
    values = fixed_values(column, type_)
    if type_.name in _FLOATS:
        values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values).view(f"<i{values.dtype.itemsize}")
    return values


def _packed(column: pa.Array, type_: ValueType) -> npt.NDArray[Any]:
    """Return lists as bytes and their lengths, so that equal ones are equal objects."""
    if type_.item is not None and type_.item.name in _FLOATS:
        column = _without_nan_bits(column, type_.item)
    counts = item_counts(column).tolist()
    packed = np.empty(len(column), dtype=object)
    packed[:] = list(zip(counts, variable_values(column, type_).to_pylist(), strict=True))
    return packed


def _without_nan_bits(column: pa.ListArray, item: ValueType) -> pa.Array:
    whole = column.take(pa.array(np.arange(len(column)))) if column.offset else column
    items = whole.values
    is_nan = pc.fill_null(pc.is_nan(items), fill_value=False)
    plain = pc.if_else(is_nan, pa.scalar(float("nan"), item.arrow), items)
    return pa.ListArray.from_arrays(whole.offsets, plain, mask=whole.is_null() if whole.null_count else None)
