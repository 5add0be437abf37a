"""The row format of the online store. This docstring is its specification, byte by byte; numbers are little-endian.

    offset  size  field
    0       1     format: 1 a row, 0 a deleted row (17 bytes, nothing follows)
    1       8     event time, int64, microseconds; -2**63 in rows of static views
    9       8     order, int64: the number of the run that wrote the row (T8)
    17      b     null bitmap, b = ceil(features / 8): bit i % 8 of byte i // 8 is set if feature i is null
    17 + b  f     slots, in declared order without padding; that of a null is zero, or of variable width an empty value
    …             tail: the values of variable width, in declared order; those of nulls are empty

    type        slot
    Bool        1 byte, 0 or 1
    Int32       int32           Date       int32, days since 1970-01-01
    Int64       int64           Timestamp  int64, microseconds
    Float32     IEEE 754, the bits as they are (NaN payloads included); Float64 likewise
    String      uint32: where the value ends in the tail; it begins where the one before ends. UTF-8
    Bytes       as String, any bytes
    Array(T)    uint32 end as String, then uint32: the number of items. Items of fixed width follow each other as in their slots; if
    the
                value is longer than that, a null bitmap of the items follows them (a null item is zero). Items of variable width:
                the uint32 end of each, counted from the first item's first byte; their null bitmap, always; their bytes

The length of a row follows from its content; anything else is refused rather than read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.definitions import Field
from featurestore.errors import OnlineStoreError
from featurestore.types import ValueType

__all__ = ["HEADER_BYTES", "NO_EVENT_TIME", "RowCodec", "deleted_row", "fixed_bytes", "is_deleted"]

HEADER_BYTES = 17
NO_EVENT_TIME = -(2**63)
_ROW, _DELETED = 1, 0

Bytes2D = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


def deleted_row(order: int) -> bytes:
    """Return the row that stands for a deletion by the run of that number."""
    return bytes([_DELETED]) + NO_EVENT_TIME.to_bytes(8, "little", signed=True) + order.to_bytes(8, "little", signed=True)


def is_deleted(row: bytes) -> bool:
    """Whether a row stands for a deletion."""
    return len(row) == HEADER_BYTES and row[0] == _DELETED


class RowCodec:
    """Rows of one view version to bytes and back, a batch at a time."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self._bitmap = (len(self.fields) + 7) // 8
        offset = HEADER_BYTES + self._bitmap
        self._slots: list[tuple[int, int]] = []
        for field in self.fields:
            width = _slot_width(field.type)
            self._slots.append((offset, offset + width))
            offset += width
        self._width = offset

    def encode(self, features: pa.Table, event_times: Integers, order: int) -> list[bytes]:
        """Return a row for each row of `features`, whose columns are the fields. `event_times` are microseconds, shape (rows,)."""
        count = len(event_times)
        fixed = np.zeros((count, self._width), dtype=np.uint8)
        fixed[:, 0] = _ROW
        fixed[:, 1:9] = _bytes_of(event_times.astype("<i8"), 8)
        fixed[:, 9:17] = _bytes_of(np.full(count, order, dtype="<i8"), 8)
        ends = np.zeros(count, dtype=np.int64)
        tails: list[tuple[Integers, pa.Array]] = []
        for index, (field, (first, last)) in enumerate(zip(self.fields, self._slots, strict=True)):
            column = _contiguous(features[field.name])
            nulls = pc.is_null(column).to_numpy(zero_copy_only=False)
            fixed[:, HEADER_BYTES + index // 8] |= nulls.astype(np.uint8) << (index % 8)
            if field.type.is_fixed_width:
                fixed[:, first:last] = fixed_bytes(column, field.type)
                continue
            values = _variable_values(column, field.type)
            lengths = _lengths(values)
            tails.append((ends.copy(), values))
            ends = ends + lengths
            fixed[:, first : first + 4] = _bytes_of(ends.astype("<u4"), 4)
            if field.type.item is not None:
                items = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
                fixed[:, first + 4 : last] = _bytes_of(items.astype("<u4"), 4)
        return _join(fixed, ends, tails)

    def decode(self, rows: Sequence[bytes]) -> tuple[list[pa.Array], Integers]:
        """Return the feature columns and the event times of rows that are not deleted.

        Raises:
            OnlineStoreError: a row is of an unknown format, cut, or longer than it says.

        """
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        if len(rows) and lengths.min() < self._width:
            raise _foreign(rows[int(lengths.argmin())])
        buffer = np.frombuffer(b"".join(rows), dtype=np.uint8)
        starts = np.cumsum(lengths) - lengths
        fixed = buffer[starts[:, None] + np.arange(self._width)] if len(rows) else np.zeros((0, self._width), np.uint8)
        if np.any(fixed[:, 0] != _ROW):
            raise _foreign(rows[int(np.argmax(fixed[:, 0] != _ROW))])
        tail = starts + self._width
        ends = np.zeros(len(rows), dtype=np.int64)
        columns = []
        for index, (field, (first, last)) in enumerate(zip(self.fields, self._slots, strict=True)):
            nulls = (fixed[:, HEADER_BYTES + index // 8] >> (index % 8) & 1).astype(bool)
            slot = np.ascontiguousarray(fixed[:, first:last])
            if field.type.is_fixed_width:
                columns.append(_fixed_column(slot, nulls, field.type))
                continue
            begins, ends = ends, np.ascontiguousarray(slot[:, :4]).view("<u4")[:, 0].astype(np.int64)
            if np.any(ends < begins) or np.any(tail + ends > starts + lengths):
                raise OnlineStoreError(f"a row of the online store is cut within feature {field.name!r}; load the view again")
            values = _slices(buffer, tail + begins, ends - begins)
            counts = slot[:, 4:].copy().view("<u4")[:, 0] if field.type.item is not None else None
            try:
                columns.append(_variable_column(values, counts, nulls, field.type))
            except (pa.ArrowException, ValueError) as reason:
                raise OnlineStoreError(
                    f"a row of the online store contradicts itself in feature {field.name!r}: {reason}"
                ) from reason
        if np.any(tail + ends != starts + lengths):
            raise OnlineStoreError("a row of the online store is longer than it says; load the view again")
        return columns, np.ascontiguousarray(fixed[:, 1:9]).view("<i8")[:, 0]


def _slot_width(type_: ValueType) -> int:
    if type_.is_fixed_width:
        return np.dtype(type_.numpy).itemsize
    return 8 if type_.item is not None else 4


def _foreign(row: bytes) -> OnlineStoreError:
    return OnlineStoreError(
        f"the online store holds a row of {len(row)} bytes, format {row[:1].hex() or 'none'}, that is cut or not of this view's "
        "format: another program wrote it, or a newer release did; load the view again"
    )


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _bytes_of(values: npt.NDArray[Any], width: int) -> Bytes2D:
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), width)


def _storage(column: pa.Array | pa.ChunkedArray, type_: ValueType) -> pa.Array | pa.ChunkedArray:
    """Return dates and timestamps as the integers that they are stored as."""
    storage = {"Date": pa.int32(), "Timestamp": pa.int64()}.get(type_.name)
    return column.cast(storage) if storage is not None else column


def fixed_bytes(column: pa.Array | pa.ChunkedArray, type_: ValueType) -> Bytes2D:
    """Return the slots of a column of fixed width, shape (rows, width); those of nulls are zero."""
    stored = _storage(column, type_)
    filled = pc.fill_null(stored, pa.scalar(0).cast(stored.type)) if stored.null_count else stored
    values = filled.to_numpy(zero_copy_only=False) if isinstance(filled, pa.Array) else filled.to_numpy()
    return _bytes_of(values.astype(type_.numpy, copy=False), np.dtype(type_.numpy).itemsize)


def _fixed_column(slot: Bytes2D, nulls: npt.NDArray[np.bool_], type_: ValueType) -> pa.Array:
    values = slot.view(type_.numpy)[:, 0]
    storage = {"Date": pa.int32(), "Timestamp": pa.int64()}.get(type_.name, type_.arrow)
    return pa.array(values, type=storage, mask=nulls).cast(type_.arrow)


def _variable_values(column: pa.Array, type_: ValueType) -> pa.Array:
    """Return the tail value of each row as binary, empty for null."""
    if type_.item is None:
        return pc.fill_null(column.cast(pa.large_binary()), b"")
    if type_.item.is_fixed_width and column.flatten().null_count == 0:
        items = fixed_bytes(column.flatten(), type_.item)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]) * items.shape[1]
        return _binary(offsets, items.reshape(-1))
    return pa.array([_pack_items(value, type_.item) for value in column], pa.large_binary())


def _pack_items(value: pa.ListScalar[Any], item: ValueType) -> bytes:
    if not value.is_valid:
        return b""
    items = value.values
    nulls = np.packbits(pc.is_null(items).to_numpy(zero_copy_only=False), bitorder="little").tobytes()
    if item.is_fixed_width:
        return fixed_bytes(items, item).tobytes() + (nulls if items.null_count else b"")
    packed = _variable_values(items, item)
    return np.cumsum(_lengths(packed)).astype("<u4").tobytes() + nulls + b"".join(packed.to_pylist())


def _variable_column(
    values: pa.Array, counts: npt.NDArray[np.uint32] | None, nulls: npt.NDArray[np.bool_], type_: ValueType
) -> pa.Array:
    valid = pa.array(~nulls)
    if counts is None:
        return pc.if_else(valid, values.cast(type_.arrow), pa.scalar(None, type_.arrow))
    item = type_.item
    assert item is not None
    width = np.dtype(item.numpy).itemsize if item.is_fixed_width else 0
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int32)
    if width and np.array_equal(_lengths(values), counts * np.int64(width)):
        # No item is null, as in embeddings: all items of all rows are one array.
        content = np.frombuffer(values.buffers()[2], np.uint8)[: int(offsets[-1]) * width].reshape(-1, width)
        items = _fixed_column(content, np.zeros(len(content), dtype=bool), item)
        return pa.ListArray.from_arrays(pa.array(offsets), items, mask=pa.array(nulls))
    lists = [_unpack_items(value, int(count), item) for value, count in zip(_raw(values), counts, strict=True)]
    items = pa.concat_arrays(lists) if lists else pa.nulls(0, item.arrow)
    return pa.ListArray.from_arrays(pa.array(offsets), items, mask=pa.array(nulls))


def _unpack_items(value: npt.NDArray[np.uint8], count: int, item: ValueType) -> pa.Array:
    width = np.dtype(item.numpy).itemsize if item.is_fixed_width else 4
    has_bitmap = len(value) > count * width or not item.is_fixed_width
    first = count * width + ((count + 7) // 8 if has_bitmap else 0)
    if first > len(value) or (item.is_fixed_width and first < len(value)):
        raise ValueError(f"{len(value)} bytes for {count} items")
    bits = value[count * width : first] if has_bitmap else np.zeros((count + 7) // 8, np.uint8)
    nulls = np.unpackbits(bits, bitorder="little")[:count].astype(bool)
    heads = np.ascontiguousarray(value[: count * width]).reshape(count, width)
    if item.is_fixed_width:
        return _fixed_column(heads, nulls, item)
    ends = heads.view("<u4").reshape(-1).astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    if np.any(lengths < 0) or (ends[-1] if count else 0) != len(value) - first:
        raise ValueError("items do not end where they should")
    return _variable_column(_slices(value[first:], ends - lengths, lengths), None, nulls, item)


def _raw(values: pa.Array) -> Iterator[npt.NDArray[np.uint8]]:
    """Give the bytes of each value of a binary column that was made by `_binary`."""
    offsets = np.frombuffer(values.buffers()[1], "<i8")[: len(values) + 1].tolist()
    content = np.frombuffer(values.buffers()[2], np.uint8)
    yield from (content[begin:end] for begin, end in itertools.pairwise(offsets))


def _lengths(values: pa.Array) -> Integers:
    lengths: Integers = pc.binary_length(values).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _binary(offsets: Integers, content: npt.NDArray[np.uint8]) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets.astype("<i8")), pa.py_buffer(np.ascontiguousarray(content))]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _slices(buffer: npt.NDArray[np.uint8], starts: Integers, lengths: Integers) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return _binary(offsets, buffer[_positions(starts, lengths)])


def _positions(starts: Integers, lengths: Integers) -> Integers:
    """Return the indices of many slices, one after the other."""
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(total)


def _join(fixed: Bytes2D, tail_lengths: Integers, tails: list[tuple[Integers, pa.Array]]) -> list[bytes]:
    width = fixed.shape[1]
    lengths = tail_lengths + width
    starts = np.cumsum(lengths) - lengths
    if not tails:
        joined = fixed
    else:
        joined = np.empty(int(lengths.sum()), dtype=np.uint8)
        joined[starts[:, None] + np.arange(width)] = fixed
        for begins, values in tails:
            content = np.frombuffer(b"".join(values.to_pylist()), np.uint8)
            joined[_positions(starts + width + begins, _lengths(values))] = content
    blob = joined.tobytes()
    return [blob[start : start + length] for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
