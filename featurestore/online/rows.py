"""The row format of the online store. This docstring is its specification, byte by byte; numbers are little-endian.

    offset  size  field
    0       1     format: 1 a row, 0 a deleted row (17 bytes, nothing follows)
    1       8     event time, int64, microseconds; -2**63 in rows of static views, and where a run deleted the row
    9       8     order, int64: the number of the run that wrote the row; in push views the created time, microseconds (T8).
                  Where an erasure deleted the row of a push view, event time and order are 2**63-1: no push is newer
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
    Array(T)    uint32 end as String, then uint32: the number of items. Items of fixed width follow each other as in their slots;
                if the value is longer than that, a null bitmap of the items follows them (a null item is zero). Items of variable
                width: the uint32 end of each, counted from the first item's first byte; their null bitmap, always; their bytes

The length of a row follows from its content; anything else is refused rather than read.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.definitions import Field
from featurestore.errors import OnlineStoreError
from featurestore.online.packed import PackedRows, joined
from featurestore.online.tails import (
    Bytes1D,
    Integers,
    contiguous,
    fixed_column,
    fixed_values,
    item_counts,
    lengths_of,
    nulls_of,
    plain_value,
    slices,
    variable_column,
    variable_values,
)

__all__ = ["HEADER_BYTES", "NO_EVENT_TIME", "Placed", "RowBatch", "RowCodec", "codec_of", "deleted_row", "erased_row", "is_deleted"]

HEADER_BYTES = 17
NO_EVENT_TIME = -(2**63)
_ROW, _DELETED = 1, 0
_ROW_FORMAT = bytes([_ROW])
_FEW_ROWS = 24  # where one numpy call for each column begins to cost less than one `struct` call for each row

Placed = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]
"""For each row that is wanted its place among those of a batch, and whether it is null instead; both of shape (rows,)."""

_CODES = {"?": "?", "<i4": "i", "<i8": "q", "<f4": "f", "<f8": "d"}


def deleted_row(order: int) -> bytes:
    """Return the row that stands for a deletion by the run of that number."""
    return bytes([_DELETED]) + NO_EVENT_TIME.to_bytes(8, "little", signed=True) + order.to_bytes(8, "little", signed=True)


def erased_row() -> bytes:
    """Return the row that stands for the erasure of a row that was pushed."""
    return bytes([_DELETED]) + 2 * (2**63 - 1).to_bytes(8, "little", signed=True)


def is_deleted(row: bytes) -> bool:
    """Whether a row stands for a deletion."""
    return len(row) == HEADER_BYTES and row[0] == _DELETED


@dataclass(frozen=True)
class _Run:
    """Slots of one type side by side, which are read as one matrix.

    `part` is the place of the first among all parts of the slots, `feature` its place among the features, `arrow` the type of all,
    or none where the values are in the tail.
    """

    part: int
    feature: int
    count: int
    offset: int
    dtype: str
    arrow: pa.DataType | None

    def of(self, fixed: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the slots of all rows, shape (rows, count)."""
        end = self.offset + self.count * np.dtype(self.dtype).itemsize
        return np.ascontiguousarray(fixed[:, self.offset : end]).view(self.dtype).reshape(len(fixed), self.count)

    def columns(self, block: npt.NDArray[Any], nulls: npt.NDArray[np.bool_] | None) -> list[pa.Array]:
        """Return the slots, shape (count, rows), as columns. All are slices of one array, which costs a third of making each."""
        rows = block.shape[1]
        absent = None if nulls is None else nulls[self.feature : self.feature + self.count].reshape(-1)
        whole = fixed_column(block.reshape(-1), absent, self.arrow)
        return [whole.slice(place * rows, rows) for place in range(self.count)]


@lru_cache(maxsize=4096)
def codec_of(fields: tuple[Field, ...]) -> RowCodec:
    """Return the codec of these features, compiled once."""
    return RowCodec(fields)


class RowCodec:
    """Rows of one view version to bytes and back, a batch at a time."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.bitmap = (len(self.fields) + 7) // 8
        self._no_nulls = bytes(self.bitmap)
        parts: list[str] = []  # the dtypes of all parts of the slots: two for an array, one for everything else
        self.parts: list[int] = []
        for field in self.fields:
            self.parts.append(len(parts))
            parts += [field.type.numpy] if field.type.is_fixed_width else ["<u4"] * (2 if field.type.item else 1)
        widths = [np.dtype(part).itemsize for part in parts]
        first = HEADER_BYTES + self.bitmap
        offsets = [first, *(first + width for width in itertools.accumulate(widths))]
        self.width = offsets.pop()
        self._dtype = np.dtype(
            {
                "names": ["format", "event_time", "order", "nulls", *map(str, range(len(parts)))],
                "formats": ["u1", "<i8", "<i8", f"({self.bitmap},)u1", *parts],
                "offsets": [0, 1, 9, HEADER_BYTES, *offsets],
                "itemsize": self.width,
            }
        )
        self.runs = list(self._grouped(offsets))
        self.row = struct.Struct(f"<17x{self.bitmap}s" + "".join("I" if part == "<u4" else _CODES[part] for part in parts))
        self.is_fixed_width = all(field.type.is_fixed_width for field in self.fields)
        self.is_numeric = all(field.type.name in ("Bool", "Int32", "Int64", "Float32", "Float64") for field in self.fields)

    def _grouped(self, offsets: Sequence[int]) -> Iterator[_Run]:
        feature = 0
        for type_, group in itertools.groupby(field.type for field in self.fields):
            count = len(list(group))
            part = self.parts[feature]
            if type_.is_fixed_width:
                yield _Run(part, feature, count, offsets[part], type_.numpy, type_.arrow)
            else:
                yield _Run(part, feature, count * (2 if type_.item else 1), offsets[part], "<u4", None)
            feature += count

    # Encoding

    def encode(self, features: pa.Table, event_times: Integers, order: int | Integers) -> list[bytes]:
        """Return what `pack` does, row by row."""
        return self.pack(features, event_times, order).to_list()

    def pack(self, features: pa.Table, event_times: Integers, order: int | Integers) -> PackedRows:
        """Return a row for each row of `features`, whose columns are the fields.

        `event_times` are microseconds, shape (rows,); `order` is that of all rows, or of each, shape (rows,).
        """
        records = np.zeros(len(event_times), dtype=self._dtype)
        records["format"], records["event_time"], records["order"] = _ROW, event_times, order
        ends = np.zeros(len(records), dtype=np.int64)
        tails: list[pa.Array] = []
        for index, (field, part) in enumerate(zip(self.fields, self.parts, strict=True)):
            column = contiguous(features[field.name])
            if column.null_count:
                records["nulls"][:, index // 8] |= nulls_of(column).view(np.uint8) << (index % 8)
            if field.type.is_fixed_width:
                records[str(part)] = fixed_values(column, field.type)
                continue
            tails.append(variable_values(column, field.type))
            ends += lengths_of(tails[-1])
            records[str(part)] = ends
            if field.type.item is not None:
                records[str(part + 1)] = item_counts(column)
        return joined(records, ends, tails)

    # Decoding

    def is_each_whole(self, values: Sequence[bytes]) -> bool:
        """Whether each value is a row of these features and of fixed width; if not, one may be deleted or foreign."""
        if not self.is_fixed_width or {*map(len, values)} != {self.width}:
            return False
        return b"".join(values)[:: self.width].count(_ROW) == len(values)

    def has_arrays(self, rows: int) -> bool:
        """Whether so many rows can come as arrays: all features are numbers or booleans, and lists would take more time."""
        return self.is_numeric and rows >= _FEW_ROWS

    def open(self, rows: Sequence[bytes], *, is_checked: bool = False) -> RowBatch:
        """Return rows that are not deleted, to be decoded in one form or another; OnlineStoreError for a foreign header."""
        return RowBatch(self, rows, is_checked=is_checked)

    def decode(self, rows: Sequence[bytes]) -> tuple[list[pa.Array], Integers]:
        """Return the feature columns and the event times of rows that are not deleted.

        Raises:
            OnlineStoreError: a row is of an unknown format, cut, or longer than it says.

        """
        batch = RowBatch(self, rows)
        return batch.columns(), np.array(batch.event_times, dtype=np.int64)

    def one(self, row: bytes) -> list[Any] | None:
        """Return the features of one row as `RowBatch.plain` does; none if it is no row of these features. Raises as `decode`."""
        if not self.is_fixed_width:
            return [column[0] for column in RowBatch(self, [row]).plain()]
        if len(row) != self.width or row[0] != _ROW:
            return None
        bitmap, *values = self.row.unpack_from(row)
        if bitmap != self._no_nulls:
            bits = int.from_bytes(bitmap, "little")
            values = [None if bits >> feature & 1 else value for feature, value in enumerate(values)]
        return values

    def decode_plain(self, rows: Sequence[bytes]) -> list[list[Any]]:
        """Return the feature columns as `RowBatch.plain` does. Raises as `decode`."""
        return RowBatch(self, rows).plain()


class RowBatch:
    """Rows of one view version that are not deleted. Their headers are checked at once, what they hold when it is decoded."""

    def __init__(self, codec: RowCodec, rows: Sequence[bytes], *, is_checked: bool = False) -> None:
        self._codec, self._rows = codec, rows
        if is_checked or codec.is_each_whole(rows):
            return
        width, is_fixed_width = codec.width, codec.is_fixed_width
        for row in rows:
            if row[:1] != _ROW_FORMAT or len(row) < width or (is_fixed_width and len(row) > width):
                _refuse_foreign(row)

    @cached_property
    def event_times(self) -> list[int]:
        """The event time of each row, microseconds."""
        if len(self._rows) < _FEW_ROWS:
            return [int.from_bytes(row[1:9], "little", signed=True) for row in self._rows]
        times: list[int] = np.ascontiguousarray(self._fixed[:, 1:9]).view("<i8")[:, 0].tolist()
        return times

    @cached_property
    def _buffer(self) -> Bytes1D:
        return np.frombuffer(b"".join(self._rows), dtype=np.uint8)

    @cached_property
    def _lengths(self) -> Integers:
        return np.fromiter(map(len, self._rows), dtype=np.int64, count=len(self._rows))

    @cached_property
    def _fixed(self) -> npt.NDArray[np.uint8]:
        """What all rows have up to the tail, shape (rows, width)."""
        width = self._codec.width
        if self._codec.is_fixed_width:
            return self._buffer.reshape(-1, width)
        starts = np.cumsum(self._lengths) - self._lengths
        return self._buffer[starts[:, None] + np.arange(width)]

    def _at(self, placed: Placed | None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
        """Return what rows have up to the tail, shape (rows, width), and which features are null, shape (features, rows)."""
        fixed, absent = self._fixed, None
        if placed is not None:
            places, absent = placed
            fixed = fixed[places]
            fixed[absent] = 0  # nothing of another row is left under a null
        return fixed, self._nulls(fixed, absent)

    def columns(self, placed: Placed | None = None) -> list[pa.Array]:
        """Return the features as columns of their declared Arrow types; `placed` goes with rows of fixed width."""
        columns: list[pa.Array] = []
        fixed, nulls = self._at(placed)
        variable = None if self._codec.is_fixed_width else _Tails(self._buffer, self._lengths, self._codec.width)
        for run in self._codec.runs:
            block = np.ascontiguousarray(run.of(fixed).T)
            if run.arrow is not None:
                columns += run.columns(block, nulls)
                continue
            parts = iter(block)
            for ends in parts:
                field = self._codec.fields[len(columns)]
                counts = next(parts) if field.type.item is not None else None
                absent = None if nulls is None else nulls[len(columns)]
                assert variable is not None
                columns.append(variable.column(field, ends, counts, absent))
        if variable is not None:
            variable.end()
        return columns

    def _nulls(self, fixed: npt.NDArray[np.uint8], absent: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_] | None:
        """Return which features are null, shape (features, rows); none where no feature is."""
        bitmap = fixed[:, HEADER_BYTES : HEADER_BYTES + self._codec.bitmap]
        if absent is None and not bitmap.any():
            return None
        nulls = np.unpackbits(bitmap, axis=1, bitorder="little")[:, : len(self._codec.fields)].T.astype(bool)
        return nulls if absent is None else nulls | absent

    def plain(self) -> list[list[Any]]:
        """Return the features as lists by column, of None, bool, int, float, str, bytes or list.

        Dates and timestamps stay the integers that they are stored as.
        """
        parts, nulls = self._unpacked() if len(self._rows) < _FEW_ROWS else self._blocks()
        columns = [parts[part] for part in self._codec.parts] if self._codec.is_fixed_width else self._with_tails(parts)
        for feature, row in nulls:
            columns[feature][row] = None
        return columns

    def arrays(self, placed: Placed | None = None) -> list[npt.NDArray[Any] | list[Any]] | None:
        """Return the features as arrays, floats as doubles with NaN for a null; whole numbers and booleans beside a null as lists.

        None unless the codec has arrays of so many rows, and all numbers are finite.
        """
        if not self._codec.has_arrays(len(self._rows if placed is None else placed[0])):
            return None
        fixed, nulls = self._at(placed)
        arrays: list[npt.NDArray[Any] | list[Any]] = []
        for run in self._codec.runs:
            block = np.ascontiguousarray(run.of(fixed).T)
            absent = None if nulls is None else nulls[run.feature : run.feature + run.count]
            if absent is not None and not absent.any():
                absent = None
            if block.dtype.kind == "f":
                if not np.isfinite(block).all():
                    return None
                block = block.astype(np.float64, copy=False)
                if absent is not None:
                    block[absent] = np.nan
            elif absent is not None:
                values = block.astype(object)
                values[absent] = None
                arrays += values.tolist()
                continue
            arrays.extend(block)
        return arrays

    def _blocks(self) -> tuple[list[list[Any]], list[tuple[int, int]]]:
        """Return the parts of the slots by column, and (feature, row) of each null."""
        parts: list[list[Any]] = []
        for run in self._codec.runs:
            parts += run.of(self._fixed).T.tolist()
        nulls = self._nulls(self._fixed)
        return parts, [] if nulls is None else [(feature, row) for feature, row in np.argwhere(nulls).tolist()]

    def _unpacked(self) -> tuple[list[list[Any]], list[tuple[int, int]]]:
        """Return the same as `_blocks`, by one call for each row."""
        unpack = self._codec.row.unpack_from
        columns = list(map(list, zip(*[unpack(row) for row in self._rows], strict=True)))
        if not columns:
            return [[] for run in self._codec.runs for _ in range(run.count)], []
        nulls = []
        for row, bitmap in enumerate(columns[0]):
            bits = int.from_bytes(bitmap, "little")
            while bits:
                feature = (bits & -bits).bit_length() - 1
                bits &= bits - 1
                if feature < len(self._codec.fields):
                    nulls.append((feature, row))
        return columns[1:], nulls

    def _with_tails(self, parts: list[list[Any]]) -> list[list[Any]]:
        columns: list[list[Any]] = []
        width = self._codec.width
        begins = [width] * len(self._rows)
        for field, part in zip(self._codec.fields, self._codec.parts, strict=True):
            if field.type.is_fixed_width:
                columns.append(parts[part])
                continue
            counts = parts[part + 1] if field.type.item is not None else itertools.repeat(0)
            column = []
            for row, (content, end, count) in enumerate(zip(self._rows, parts[part], counts, strict=False)):
                begin, begins[row] = begins[row], width + end
                if not begin <= width + end <= len(content):
                    _refuse_cut(field)
                try:
                    column.append(plain_value(content[begin : width + end], count, field.type))
                except (struct.error, ValueError) as reason:
                    _refuse_content(field, reason)
            columns.append(column)
        if any(len(content) != end for content, end in zip(self._rows, begins, strict=True)):
            _refuse_longer()
        return columns


class _Tails:
    """The tails of rows, read from value to value."""

    def __init__(self, buffer: Bytes1D, lengths: Integers, width: int) -> None:
        self._buffer = buffer
        self._last = np.cumsum(lengths)
        self._first = self._last - lengths + width
        self._ends = self._first

    def column(
        self, field: Field, ends: npt.NDArray[np.uint32], counts: npt.NDArray[np.uint32] | None, nulls: npt.NDArray[np.bool_] | None
    ) -> pa.Array:
        begins, self._ends = self._ends, self._first + ends
        if np.any(self._ends < begins) or np.any(self._ends > self._last):
            _refuse_cut(field)
        try:
            return variable_column(slices(self._buffer, begins, self._ends - begins), counts, nulls, field.type)
        except (pa.ArrowException, ValueError) as reason:
            _refuse_content(field, reason)

    def end(self) -> None:
        if np.any(self._ends != self._last):
            _refuse_longer()


def _refuse_foreign(row: bytes) -> NoReturn:
    raise OnlineStoreError(
        f"the online store holds a row of {len(row)} bytes, format {row[:1].hex() or 'none'}, that is cut or not of this view's "
        "format: another program wrote it, or a newer release did; load the view again"
    )


def _refuse_cut(field: Field) -> NoReturn:
    raise OnlineStoreError(f"a row of the online store is cut within feature {field.name!r}; load the view again")


def _refuse_content(field: Field, reason: Exception) -> NoReturn:
    raise OnlineStoreError(
        f"a row of the online store contradicts itself in feature {field.name!r} ({reason}); load the view again"
    ) from reason


def _refuse_longer() -> NoReturn:
    raise OnlineStoreError("a row of the online store is longer than it says; load the view again")
