"""Columns of one type in three forms: plain lists, numpy arrays and Arrow arrays, exact in every direction.

    type         numpy                     plain list (as online rows give it)
    Bool         bool                      bool
    Int32 …      int32, int64, float32, float64    int, float
    Date         datetime64[D]             days since 1970
    Timestamp    datetime64[us], in UTC    microseconds since 1970
    String       object, of str            str
    Bytes        object, of bytes          bytes
    Array(T)     object, of arrays of T    list of T's plain form

A numpy column stands beside a mask of its nulls, none where there are none. An array that holds a null counts as null there.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.clock import to_micros
from featurestore.types import ValueType

__all__ = ["Column", "arrow_of", "as_arrow", "as_numpy", "as_plain", "dtype_of", "plain_of"]

Mask = npt.NDArray[np.bool_]
Numpy = tuple[npt.NDArray[Any], Mask | None]
Column = Any
"""A plain list, an Arrow array or chunked array, or a numpy array with its mask."""

_DTYPES = {"Date": "M8[D]", "Timestamp": "M8[us]"}
_FILL: dict[str, Any] = {"Bool": False, "Date": 0, "Timestamp": 0}
_STORAGE = {"Date": pa.int32(), "Timestamp": pa.int64()}


def dtype_of(type_: ValueType) -> np.dtype[Any]:
    """Return the dtype that columns of a type have in numpy."""
    return np.dtype(_DTYPES.get(type_.name) or type_.numpy or object)


def as_numpy(column: Column, type_: ValueType) -> Numpy:
    """Return a column in numpy."""
    if type(column) is tuple:
        return column
    if type(column) is not list:
        return _numpy_of_arrow(column, type_)
    is_null = None
    if None in column:
        is_null = np.array([value is None for value in column])
    if not type_.is_fixed_width:
        return _objects(column, type_, is_null)
    if is_null is not None:
        fill = _FILL.get(type_.name, 0)
        column = [fill if value is None else value for value in column]
    if type_.name in _DTYPES:
        return np.array(column, np.int64).view(_DTYPES[type_.name]), is_null
    return np.array(column, type_.numpy), is_null


def as_plain(column: Column, type_: ValueType) -> list[Any]:
    """Return a column as a plain list."""
    if type(column) is list:
        return column
    if type(column) is not tuple:
        return _plain_of_arrow(column, type_)
    values, is_null = column
    if is_null is None and values.dtype.kind in "bif":
        found: list[Any] = values.tolist()
        return found
    if type_.item is not None:
        plain = [None if value is None else _plain_items(value, type_.item) for value in values]
    else:
        plain = (values.view(np.int64) if type_.name in _DTYPES else values).tolist()
    if is_null is not None:
        for row in np.flatnonzero(is_null).tolist():
            plain[row] = None
    return plain


def as_arrow(column: Column, type_: ValueType) -> pa.Array | pa.ChunkedArray:
    """Return a column in Arrow, of the type's own Arrow type."""
    if type(column) is list:
        return pa.array(column, _storage(type_)).cast(type_.arrow)
    if type(column) is not tuple:
        return column
    values, is_null = column
    if not type_.is_fixed_width:
        return as_arrow(as_plain(column, type_), type_)
    if type_.name in _DTYPES:
        integers = values.view(np.int64)
        return pa.array(integers.astype(np.int32) if type_.name == "Date" else integers, mask=is_null).cast(type_.arrow)
    return pa.array(values, type_.arrow, mask=is_null)


def arrow_of(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
    return column


def plain_of(type_: ValueType) -> Callable[[list[Any]], list[Any] | None]:
    """Return what makes a plain list of Python values of the type's very kind; of other values it makes none."""
    kinds = frozenset({_KINDS.get(type_.name), type(None)})
    converters: dict[str, Callable[[Any], Any]] = {"Date": _days, "Timestamp": to_micros, "Float32": float, "Float64": float}
    convert = converters.get(type_.name)
    bound = {"Int32": 2**31, "Int64": 2**63, "Float32": 2**24 + 1, "Float64": 2**53 + 1}.get(type_.name)

    def plain(values: list[Any]) -> list[Any] | None:
        is_whole = bound is not None and int in map(type, values)  # integers, which must be exact in the type
        if is_whole and not all(-bound <= value < bound for value in values if type(value) is int):  # type: ignore[operator]
            return None
        if not (kinds | {int} if is_whole else kinds).issuperset(map(type, values)):
            return None
        if convert is None or (convert is float and not is_whole):
            return values
        return [None if value is None else convert(value) for value in values]

    return plain


_KINDS: dict[str, type] = {
    "Bool": bool, "Int32": int, "Int64": int, "Float32": float, "Float64": float, "String": str, "Bytes": bytes, "Date": dt.date,
    "Timestamp": dt.datetime,
}  # fmt: skip
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()


def _days(day: dt.date) -> int:
    return day.toordinal() - _EPOCH_DAY


def _storage(type_: ValueType) -> pa.DataType:
    if type_.item is not None:
        return pa.list_(_storage(type_.item))
    return _STORAGE.get(type_.name, type_.arrow)


def _objects(values: Sequence[Any], type_: ValueType, is_null: Mask | None) -> Numpy:
    objects = np.empty(len(values), object)
    item = type_.item
    if item is None:
        objects[:] = values
        return objects, is_null
    nulls = [value is None or None in value for value in values]
    for row, value in enumerate(values):
        if not nulls[row]:
            objects[row] = as_numpy(value, item)[0]
    return objects, np.array(nulls) if True in nulls else None


def _plain_items(value: Any, item: ValueType) -> list[Any]:
    return value if isinstance(value, list) else as_plain((value, None), item)


def _plain_of_arrow(column: Any, type_: ValueType) -> list[Any]:
    plain: list[Any] = column.cast(_storage(type_)).to_pylist()
    return plain


def _numpy_of_arrow(column: Any, type_: ValueType) -> Numpy:
    array = arrow_of(column)
    is_null = np.asarray(array.is_null()) if array.null_count else None
    if not type_.is_fixed_width:
        return _objects(_plain_of_arrow(array, type_), type_, is_null)
    stored = array.cast(_storage(type_))
    if is_null is not None:
        stored = stored.fill_null(_FILL.get(type_.name, 0))
    values = stored.to_numpy(zero_copy_only=False)
    if type_.name in _DTYPES:
        values = values.astype(np.int64).view(_DTYPES[type_.name])
    return values, is_null
