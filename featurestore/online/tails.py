"""Columns of features as numpy and Arrow see them: fixed-width values, and the variable-width ones of a row's tail (`rows.py`)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.types import ValueType

__all__ = [
    "Bytes1D",
    "Integers",
    "contiguous",
    "fixed_bytes",
    "fixed_column",
    "fixed_values",
    "item_counts",
    "lengths_of",
    "nulls_of",
    "plain_value",
    "positions",
    "slices",
    "variable_column",
    "variable_values",
]

Bytes1D = npt.NDArray[np.uint8]
Bytes2D = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


def contiguous(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def nulls_of(column: pa.Array) -> Bools:
    """Return which values are null, shape (rows,)."""
    nulls: Bools = pc.is_null(column).to_numpy(zero_copy_only=False)
    return nulls


def lengths_of(values: pa.Array) -> Integers:
    """Return the bytes of each value of a binary column, shape (rows,)."""
    lengths: Integers = pc.binary_length(values).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def item_counts(column: pa.Array) -> Integers:
    """Return the number of items of each list, shape (rows,); that of a null is zero."""
    counts: Integers = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return counts


# Fixed width


def _storage(column: pa.Array | pa.ChunkedArray, type_: ValueType) -> pa.Array | pa.ChunkedArray:
    """Return dates and timestamps as the integers that they are stored as."""
    storage = {"Date": pa.int32(), "Timestamp": pa.int64()}.get(type_.name)
    return column.cast(storage) if storage is not None else column


def fixed_values(column: pa.Array | pa.ChunkedArray, type_: ValueType) -> npt.NDArray[Any]:
    """Return a column of fixed width as numbers, shape (rows,); nulls are zero."""
    stored = _storage(column, type_)
    filled = pc.fill_null(stored, pa.scalar(0).cast(stored.type)) if stored.null_count else stored
    values = filled.to_numpy(zero_copy_only=False) if isinstance(filled, pa.Array) else filled.to_numpy()
    numbers: npt.NDArray[Any] = np.ascontiguousarray(values.astype(type_.numpy, copy=False))
    return numbers


def fixed_bytes(column: pa.Array | pa.ChunkedArray, type_: ValueType) -> Bytes2D:
    """Return the slots of a column of fixed width, shape (rows, width); those of nulls are zero."""
    values = fixed_values(column, type_)
    return values.view(np.uint8).reshape(len(values), values.dtype.itemsize)


def fixed_column(values: npt.NDArray[Any], nulls: Bools | None, arrow: pa.DataType) -> pa.Array:
    """Return numbers, which are contiguous, as a column of an Arrow type of fixed width."""
    if values.dtype == np.bool_:
        return pa.array(values, mask=nulls)
    validity = None if nulls is None else pa.py_buffer(np.packbits(~nulls, bitorder="little"))
    return pa.Array.from_buffers(arrow, len(values), [validity, pa.py_buffer(values)])


# Variable width


def positions(starts: Integers, lengths: Integers) -> Integers:
    """Return the indices of many slices, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def slices(buffer: Bytes1D, starts: Integers, lengths: Integers) -> pa.Array:
    """Return slices of a buffer as a large binary column."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return _binary(offsets, buffer[positions(starts, lengths)])


def variable_values(column: pa.Array, type_: ValueType) -> pa.Array:
    """Return the tail value of each row as large binary, empty for null."""
    if type_.item is None:
        return pc.fill_null(column.cast(pa.large_binary()), b"")
    items = column.flatten()
    if type_.item.is_fixed_width and items.null_count == 0:
        packed = fixed_bytes(items, type_.item)
        offsets = np.concatenate([[0], np.cumsum(item_counts(column))]) * packed.shape[1]
        return _binary(offsets, packed.reshape(-1))
    return pa.array([_pack_items(value, type_.item) for value in column], pa.large_binary())


def _pack_items(value: pa.ListScalar[Any], item: ValueType) -> bytes:
    if not value.is_valid:
        return b""
    items = value.values
    nulls = np.packbits(nulls_of(items), bitorder="little").tobytes()
    if item.is_fixed_width:
        return fixed_bytes(items, item).tobytes() + (nulls if items.null_count else b"")
    packed = variable_values(items, item)
    return np.cumsum(lengths_of(packed)).astype("<u4").tobytes() + nulls + b"".join(packed.to_pylist())


def variable_column(values: pa.Array, counts: npt.NDArray[np.uint32] | None, nulls: Bools | None, type_: ValueType) -> pa.Array:
    """Return tail values as a column; ValueError or ArrowException where they contradict themselves."""
    if counts is None:
        column = values.cast(type_.arrow)
        return column if nulls is None else pc.if_else(pa.array(~nulls), column, pa.scalar(None, type_.arrow))
    item, mask = type_.item, None if nulls is None else pa.array(nulls)
    assert item is not None
    width = np.dtype(item.numpy).itemsize if item.is_fixed_width else 0
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int32)
    if width and np.array_equal(lengths_of(values), counts * np.int64(width)):
        # No item is null, as in embeddings: all items of all rows are one array.
        content = np.frombuffer(values.buffers()[2], np.uint8)[: int(offsets[-1]) * width]
        items = fixed_column(content.view(item.numpy), None, item.arrow)
        return pa.ListArray.from_arrays(pa.array(offsets), items, mask=mask)
    lists = [_unpack_items(value, int(count), item) for value, count in zip(_raw(values), counts, strict=True)]
    items = pa.concat_arrays(lists) if lists else pa.nulls(0, item.arrow)
    return pa.ListArray.from_arrays(pa.array(offsets), items, mask=mask)


def _unpack_items(value: Bytes1D, count: int, item: ValueType) -> pa.Array:
    width = np.dtype(item.numpy).itemsize if item.is_fixed_width else 4
    has_bitmap = len(value) > count * width or not item.is_fixed_width
    first = count * width + ((count + 7) // 8 if has_bitmap else 0)
    if first > len(value) or (item.is_fixed_width and first < len(value)):
        raise ValueError(f"{len(value)} bytes for {count} items")
    bits = value[count * width : first] if has_bitmap else np.zeros((count + 7) // 8, np.uint8)
    nulls = np.unpackbits(bits, bitorder="little")[:count].astype(bool)
    heads = value[: count * width].copy()  # aligned then
    if item.is_fixed_width:
        return fixed_column(heads.view(item.numpy), nulls, item.arrow)
    ends = heads.view("<u4").astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    if np.any(lengths < 0) or (ends[-1] if count else 0) != len(value) - first:
        raise ValueError("items do not end where they should")
    return variable_column(slices(value[first:], ends - lengths, lengths), None, nulls, item)


def _raw(values: pa.Array) -> Iterator[Bytes1D]:
    """Give the bytes of each value of a binary column that was made by `_binary`."""
    offsets = np.frombuffer(values.buffers()[1], "<i8")[: len(values) + 1].tolist()
    content = np.frombuffer(values.buffers()[2], np.uint8)
    yield from (content[begin:end] for begin, end in itertools.pairwise(offsets))


def _binary(offsets: Integers, content: Bytes1D) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets.astype("<i8")), pa.py_buffer(np.ascontiguousarray(content))]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


# One value


def plain_value(value: bytes, count: int, type_: ValueType) -> Any:
    """Return one tail value as str, bytes or a list of `count` items; ValueError where it contradicts itself."""
    if type_.item is None:
        return value.decode() if type_.name == "String" else value
    item = type_.item
    width = np.dtype(item.numpy).itemsize if item.is_fixed_width else 4
    has_bitmap = len(value) > count * width or not item.is_fixed_width
    first = count * width + ((count + 7) // 8 if has_bitmap else 0)
    if first > len(value) or (item.is_fixed_width and first < len(value)):
        raise ValueError(f"{len(value)} bytes for {count} items")
    if item.is_fixed_width:
        items: list[Any] = np.frombuffer(value, item.numpy, count).tolist()
    else:
        ends = struct.unpack_from(f"<{count}I", value)
        bounds = list(itertools.pairwise([0, *ends]))
        if any(begin > end for begin, end in bounds) or (ends[-1] if count else 0) != len(value) - first:
            raise ValueError("items do not end where they should")
        items = [plain_value(value[first + begin : first + end], 0, item) for begin, end in bounds]
    if has_bitmap:
        bits = int.from_bytes(value[count * width : first], "little")
        items = [None if bits >> place & 1 else each for place, each in enumerate(items)]
    return items
