from __future__ import annotations

import base64
import datetime as dt
import math
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.definitions import Field
from featurestore.errors import OnlineStoreError
from featurestore.online.keys import key_bytes, marker, online_key, pattern
from featurestore.online.rows import HEADER_BYTES, NO_EVENT_TIME, RowCodec, deleted_row, is_deleted
from featurestore.types import Array, Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType

# Every row of the tables was written at event time 1 by run 2.
HEADER = "01 0100000000000000 0200000000000000"
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
US = dt.timedelta(microseconds=1)


def codec(*types: ValueType) -> RowCodec:
    """Return the codec of a view with features of these types."""
    return RowCodec([Field(f"f{number}", type_) for number, type_ in enumerate(types)])


def table(types: Sequence[ValueType], *rows: Sequence[Any]) -> pa.Table:
    """Return rows of Python values as a table of features."""
    columns = [pa.array([row[number] for row in rows], type_.arrow) for number, type_ in enumerate(types)]
    return pa.table(columns, names=[f"f{number}" for number in range(len(types))])


def times(count: int, first: int = 1) -> Any:
    """Return event times, one after the other."""
    return np.arange(first, first + count, dtype=np.int64)


def plain(type_: ValueType, value: Any) -> Any:
    """Return a value as plain lists have it: dates and timestamps as the integers that are stored."""
    if type_.item is not None:
        return None if value is None else [plain(type_.item, item) for item in value]
    if type_ == Timestamp and value is not None:
        return (value - EPOCH) // US
    return (value - dt.date(1970, 1, 1)).days if type_ == Date and value is not None else value


GOLDEN: list[tuple[ValueType, Any, str, str]] = [
    # type, value, slot, tail
    (Bool, True, "01", ""),
    (Bool, False, "00", ""),
    (Int32, -2, "feffffff", ""),
    (Int32, 2**31 - 1, "ffffff7f", ""),
    (Int64, 2**53 + 1, "0100000000002000", ""),
    (Int64, -(2**63), "0000000000000080", ""),
    (Float32, 1.5, "0000c03f", ""),
    (Float32, -math.inf, "000080ff", ""),
    (Float64, -0.0, "0000000000000080", ""),
    (Float64, 0.1, "9a9999999999b93f", ""),
    (Date, dt.date(2013, 6, 1), "f13d0000", ""),
    (Date, dt.date(1969, 12, 31), "ffffffff", ""),
    (Timestamp, EPOCH - US, "ffffffffffffffff", ""),
    (Timestamp, EPOCH + dt.timedelta(seconds=1), "40420f0000000000", ""),
    (String, "é", "02000000", "c3a9"),
    (String, "", "00000000", ""),
    (String, "a\0b", "03000000", "610062"),
    (Bytes, b"\0\xff", "02000000", "00ff"),
    (Bytes, b"", "00000000", ""),
    # arrays of fixed width: end and count; then the items, and their bitmap only if one is null
    (Array(Int32), [1, -1], "08000000 02000000", "01000000 ffffffff"),
    (Array(Int32), [1, None], "09000000 02000000", "01000000 00000000 02"),
    (Array(Int32), [None], "05000000 01000000", "00000000 01"),
    (Array(Int32), [], "00000000 00000000", ""),
    (Array(Bool), [True, None, False], "04000000 03000000", "01 00 00 02"),
    (Array(Int64), [2**53 + 1], "08000000 01000000", "0100000000002000"),
    (Array(Float32), [1.5, 0.0], "08000000 02000000", "0000c03f 00000000"),
    (Array(Float64), [None, -0.0], "11000000 02000000", "0000000000000000 0000000000000080 01"),
    (Array(Date), [dt.date(2013, 6, 1)], "04000000 01000000", "f13d0000"),
    (Array(Timestamp), [EPOCH - US, None], "11000000 02000000", "ffffffffffffffff 0000000000000000 02"),
    (Array(Bool), [None] * 9, "0b000000 09000000", "000000000000000000 ff01"),
    # arrays of variable width: end and count; then the ends of the items, their bitmap always, their bytes
    (Array(String), ["a", None, "bc"], "10000000 03000000", "01000000 01000000 03000000 02 616263"),
    (Array(String), ["", "é"], "0b000000 02000000", "00000000 02000000 00 c3a9"),
    (Array(String), [], "00000000 00000000", ""),
    (Array(Bytes), [b"\xff"], "06000000 01000000", "01000000 00 ff"),
    (Array(Bytes), [None], "05000000 01000000", "00000000 01"),
]


@pytest.mark.parametrize(("type_", "value", "slot", "tail"), GOLDEN, ids=str)
def test_golden_bytes_of_a_value(type_: ValueType, value: Any, slot: str, tail: str) -> None:
    """A row with one feature has the bytes that the specification says, and they read back as the value."""
    row = bytes.fromhex(f"{HEADER} 00 {slot} {tail}")

    assert codec(type_).encode(table([type_], [value]), times(1), 2) == [row]
    [column], event_times = codec(type_).decode([row])
    assert column.equals(table([type_], [value])["f0"].chunk(0))
    assert event_times.tolist() == [1]
    for count in (1, 100):
        assert codec(type_).decode_plain([row] * count) == [[plain(type_, value)] * count]


ZEROS = [
    (Bool, 1),
    (Int32, 4),
    (Int64, 8),
    (Float32, 4),
    (Float64, 8),
    (Date, 4),
    (Timestamp, 8),
    (String, 4),
    (Bytes, 4),
    *((Array(type_), 8) for type_ in (Bool, Int32, Int64, Float32, Float64, Date, Timestamp, String, Bytes)),
]
EVERY_TYPE = [type_ for type_, _ in ZEROS]


@pytest.mark.parametrize(("type_", "width"), ZEROS, ids=str)
def test_golden_bytes_of_a_null(type_: ValueType, width: int) -> None:
    """A null is its bit in the bitmap and a slot of zeros, and has nothing in the tail."""
    row = bytes.fromhex(f"{HEADER} 01") + bytes(width)

    assert codec(type_).encode(table([type_], [None]), times(1), 2) == [row]
    [column], _ = codec(type_).decode([row])
    assert column.equals(pa.array([None], type_.arrow))
    assert codec(type_).decode_plain([row]) == [[None]]


def test_golden_bytes_of_a_row_of_every_type() -> None:
    """Slots follow each other without padding in declared order; ends in the tail count on from value to value."""
    types = [Bool, String, Int32, Array(Int32), Int64, Bytes, Float32, Date, Float64, Array(String), Timestamp, String]
    values = [True, "é", 5, [7, None], None, None, 1.5, dt.date(1970, 1, 3), None, ["a", ""], EPOCH + 9 * US, "z"]
    row = bytes.fromhex(
        f"{HEADER} 3001"  # the fifth, the sixth and the ninth are null
        "01"
        "02000000"  # é ends at 2
        "05000000"
        "0b000000 02000000"  # two items end at 2 + 9
        "0000000000000000"
        "0b000000"  # nothing more
        "0000c03f"
        "02000000"
        "0000000000000000"
        "15000000 02000000"  # two texts end at 11 + 10
        "0900000000000000"
        "16000000"  # z ends at 22
        "c3a9 07000000 00000000 02 01000000 01000000 00 61 7a"
    )

    assert codec(*types).encode(table(types, values), times(1), 2) == [row]
    columns, _ = codec(*types).decode([row])
    assert [column.to_pylist() for column in columns] == [[value] for value in values]
    for count in (1, 30):
        expected = [[plain(type_, value)] * count for type_, value in zip(types, values, strict=True)]
        assert codec(*types).decode_plain([row] * count) == expected


def test_the_bitmap_has_a_bit_for_each_feature() -> None:
    """Bit i % 8 of byte i // 8 says that feature i is null; the bitmap is as long as it has to be."""
    for count in (1, 7, 8, 9, 16, 17):
        types = [Bool] * count
        for null in range(count):
            values = [None if number == null else True for number in range(count)]
            [row] = codec(*types).encode(table(types, values), times(1), 2)
            bitmap = row[HEADER_BYTES : HEADER_BYTES + (count + 7) // 8]
            assert int.from_bytes(bitmap, "little") == 1 << null
            assert len(row) == HEADER_BYTES + len(bitmap) + count


HEADERS = [
    (0, 1, "0000000000000000", "0100000000000000"),
    (-1, 2**32, "ffffffffffffffff", "0000000001000000"),
    (NO_EVENT_TIME, 2**63 - 1, "0000000000000080", "ffffffffffffff7f"),
    (2**63 - 1, 2**53 + 1, "ffffffffffffff7f", "0100000000002000"),
]


@pytest.mark.parametrize(("event_time", "order", "first", "second"), HEADERS)
def test_golden_bytes_of_the_header(event_time: int, order: int, first: str, second: str) -> None:
    """The header is the format, the event time and the order, each of the two an int64."""
    [row] = codec(Bool).encode(table([Bool], [True]), np.array([event_time], dtype=np.int64), order)

    assert row == bytes.fromhex(f"01 {first} {second} 00 01")
    assert codec(Bool).decode([row])[1].tolist() == [event_time]


def test_golden_bytes_of_a_deleted_row() -> None:
    """A deletion is 17 bytes: format 0, no event time, the run's number."""
    row = deleted_row(2**53 + 1)

    assert row == bytes.fromhex("00 0000000000000080 0100000000002000")
    assert is_deleted(row)
    assert not is_deleted(row + b"\0")
    assert not is_deleted(codec(Bool).encode(table([Bool], [None]), times(1), 0)[0])


def test_no_rows_are_no_bytes() -> None:
    """An empty batch encodes to nothing, and nothing decodes to empty columns of the declared types."""
    rows = codec(*EVERY_TYPE).encode(table(EVERY_TYPE), times(0), 1)
    columns, event_times = codec(*EVERY_TYPE).decode([])

    assert rows == []
    assert [column.type for column in columns] == [type_.arrow for type_ in EVERY_TYPE]
    assert [len(column) for column in columns] + [len(event_times)] == [0] * (len(EVERY_TYPE) + 1)


# Any values

BITS = {"Bool": 1, "Int32": 32, "Int64": 64, "Float32": 32, "Float64": 64, "Date": 32, "Timestamp": 64}
SPECIAL = {
    "Float32": [0x7FC00001, 0x7FA00000, 0xFFFFFFFF, 0x80000000, 0x7F800000, 1],
    "Float64": [0x7FF8000000000001, 0x7FF4000000000000, 2**64 - 1, 2**63, 0x7FF0000000000000, 1],
    "Int64": [2**63, 2**63 - 1, 2**53 + 1],
    "Timestamp": [2**63 - 1, 2**63 + 1],
    "Date": [2**31, 2**31 - 1],
}


def raw_values(type_: ValueType) -> st.SearchStrategy[Any]:
    """Generate values of a type: the bits of fixed-width ones as unsigned numbers, so that none is changed on the way."""
    if type_.item is not None:
        return st.lists(st.none() | raw_values(type_.item), max_size=4)
    if type_.name == "String":
        return st.text(st.characters(codec="utf-8"), max_size=5)
    if type_.name == "Bytes":
        return st.binary(max_size=5)
    any_bits = st.integers(0, 2 ** BITS[type_.name] - 1)
    return any_bits | st.sampled_from(SPECIAL[type_.name]) if type_.name in SPECIAL else any_bits


def build(type_: ValueType, values: Sequence[Any]) -> pa.Array:
    """Return generated values as an Arrow column."""
    if type_.item is not None:
        items = build(type_.item, [item for value in values if value is not None for item in value])
        offsets = np.cumsum([0, *(0 if value is None else len(value) for value in values)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, mask=pa.array([value is None for value in values]))
    if type_.name in ("String", "Bytes"):
        return pa.array(values, type_.arrow)
    if type_.name == "Bool":
        return pa.array([None if value is None else bool(value) for value in values], pa.bool_())
    unsigned = pa.uint32() if BITS[type_.name] == 32 else pa.uint64()
    return pa.array(values, unsigned).view(type_.arrow)


def bits(column: pa.Array) -> list[Any]:
    """Return a column so that equal lists mean equal bits."""
    if pa.types.is_list(column.type):
        items = iter(bits(column.flatten()))
        return [None if length is None else [next(items) for _ in range(length)] for length in column.value_lengths().to_pylist()]
    width = {4: pa.uint32(), 8: pa.uint64()}
    if pa.types.is_primitive(column.type) and not pa.types.is_boolean(column.type):
        return list(column.view(width[column.type.bit_width // 8]).to_pylist())
    return list(column.to_pylist())


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[ValueType], pa.Table, list[int], int]:
    """Generate a schema, rows of it, their event times and an order."""
    types = draw(st.lists(st.sampled_from(EVERY_TYPE), min_size=1, max_size=10))
    count = draw(st.integers(1, 4))
    columns = [build(type_, draw(st.lists(st.none() | raw_values(type_), min_size=count, max_size=count))) for type_ in types]
    instants = st.integers(-(2**63), 2**63 - 1)
    event_times = draw(st.lists(instants, min_size=count, max_size=count))
    return (
        types,
        pa.table(columns, names=[f"f{number}" for number in range(len(types))]),
        event_times,
        draw(st.integers(0, 2**63 - 1)),
    )


def stored(column: pa.Array, type_: ValueType) -> list[Any]:
    """Return a column as the Python values that Arrow makes of it, dates and timestamps as integers."""
    storage = {"Date": pa.int32(), "Timestamp": pa.int64()}.get((type_.item or type_).name)
    if storage is not None:
        column = column.cast(pa.list_(storage) if type_.item is not None else storage)
    return list(column.to_pylist())


def shown(values: list[Any]) -> list[str]:
    """Return values as texts, so that NaN equals itself and -0.0 is not 0.0."""
    return list(map(repr, values))


@given(batches())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100, report_multiple_bugs=False)
def test_rows_read_back_bit_for_bit(batch: tuple[list[ValueType], pa.Table, list[int], int]) -> None:
    """Whatever the schema and the values, NaN payloads and extremes included: what is encoded is decoded."""
    types, rows, event_times, order = batch
    encoded = codec(*types).encode(rows, np.array(event_times, dtype=np.int64), order)
    columns, decoded_times = codec(*types).decode(encoded)

    assert [column.type for column in columns] == [type_.arrow for type_ in types]
    assert [bits(column) for column in columns] == [bits(rows[name].combine_chunks()) for name in rows.column_names]
    assert decoded_times.tolist() == event_times == codec(*types).open(encoded).event_times
    for times_over in (1, 24):  # `struct` reads few rows, numpy reads many
        found = [shown(column) for column in codec(*types).decode_plain(encoded * times_over)]
        assert found == [shown(stored(column, type_)) * times_over for column, type_ in zip(columns, types, strict=True)]
    alone = [codec(*types).one(row) or [] for row in encoded]
    assert [shown(list(values)) for values in zip(*alone, strict=True)] == [
        shown(stored(column, type_)) for column, type_ in zip(columns, types, strict=True)
    ]
    assert {row[9:17] for row in encoded} == {order.to_bytes(8, "little")}


@pytest.mark.parametrize("type_", EVERY_TYPE, ids=str)
def test_extremes_of_each_type_read_back_beside_nulls(type_: ValueType) -> None:
    """The special values of each type keep their bits, alone and in arrays, with and without null neighbours."""
    of = type_.item or type_
    special = SPECIAL.get(of.name, [])
    values: list[Any] = [*special, None] if type_.item is None else [special, [*special, None], [], None]
    rows = pa.table([build(type_, values)], names=["f0"])
    [column], _ = codec(type_).decode(codec(type_).encode(rows, times(len(values)), 1))

    assert bits(column) == bits(rows["f0"].combine_chunks())


@given(batches())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
def test_a_batch_is_its_rows(batch: tuple[list[ValueType], pa.Table, list[int], int]) -> None:
    """A row's bytes depend on the row alone: not on its neighbours, on chunks or on offsets into larger columns."""
    types, rows, event_times, order = batch
    instants = np.array(event_times, dtype=np.int64)
    whole = codec(*types).encode(rows, instants, order)
    single = [codec(*types).encode(rows.slice(n, 1), instants[n : n + 1], order)[0] for n in range(len(rows))]
    chunked = pa.concat_tables([rows.slice(0, 1), rows.slice(1), rows.slice(0, 0)])

    assert single == whole
    assert codec(*types).encode(chunked, instants, order) == whole


@given(batches(), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40, report_multiple_bugs=False)
def test_a_row_that_is_cut_or_too_long_is_refused(
    batch: tuple[list[ValueType], pa.Table, list[int], int], data: st.DataObject
) -> None:
    """Every truncation and every extension of a row is refused, alone and among good rows."""
    types, rows, event_times, order = batch
    reader = codec(*types)
    good = reader.encode(rows, np.array(event_times, dtype=np.int64), order)
    place = data.draw(st.integers(0, len(good) - 1))
    row = good[place]
    cut = data.draw(st.integers(0, len(row) - 1))
    for wrong in (row[:cut], row + data.draw(st.binary(min_size=1, max_size=9)), row + row):
        with pytest.raises(OnlineStoreError, match="load the view again"):
            reader.decode([wrong])
        with pytest.raises(OnlineStoreError, match="load the view again"):
            reader.decode([*good[:place], wrong, *good[place + 1 :]])
        for copies in (0, 1, 30):
            with pytest.raises(OnlineStoreError, match="load the view again"):
                reader.decode_plain([*good * copies, wrong])
        with suppress(OnlineStoreError):
            assert reader.one(wrong) is None


def test_every_cut_of_a_row_of_every_type_is_refused() -> None:
    """No prefix of a row is a row."""
    values = [
        True,
        1,
        2,
        1.5,
        2.5,
        dt.date(2013, 6, 1),
        EPOCH,
        "ab",
        b"cd",
        [True, None],
        [1],
        [2],
        [0.5],
        [None],
        [],
        [EPOCH],
        ["x", None],
        [b""],
    ]
    [row] = codec(*EVERY_TYPE).encode(table(EVERY_TYPE, values), times(1), 1)
    for length in range(len(row)):
        with pytest.raises(OnlineStoreError):
            codec(*EVERY_TYPE).decode([row[:length]])
        with pytest.raises(OnlineStoreError):
            codec(*EVERY_TYPE).decode_plain([row[:length]])
        with pytest.raises(OnlineStoreError):
            codec(*EVERY_TYPE).one(row[:length])


@given(batches(), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60, report_multiple_bugs=False)
def test_a_damaged_row_is_read_or_refused_as_foreign(
    batch: tuple[list[ValueType], pa.Table, list[int], int], data: st.DataObject
) -> None:
    """A row with a changed byte is read as other values or refused as an OnlineStoreError: no other error leaves the codec."""
    types, rows, event_times, order = batch
    reader = codec(*types)
    row = bytearray(reader.encode(rows, np.array(event_times, dtype=np.int64), order)[0])
    row[data.draw(st.integers(HEADER_BYTES, len(row) - 1))] = data.draw(st.integers(0, 255))
    try:
        columns, _ = reader.decode([bytes(row)])
    except OnlineStoreError:
        with pytest.raises(OnlineStoreError):
            reader.decode_plain([bytes(row)])
        return
    for column, values, type_ in zip(columns, reader.decode_plain([bytes(row)]), types, strict=True):
        column.validate(full=True)
        assert shown(values) == shown(stored(column, type_))


DAMAGED = [
    # type, value, the damaged slot and tail
    ("a text that is no UTF-8", String, "02000000", "c328"),
    ("more items than bytes", Array(Int64), "08000000 03000000", "0100000000000000"),
    ("fewer items than bytes", Array(Int64), "18000000 01000000", "01" * 24),
    ("items without end", Array(String), "05000000 02000000", "0100000000"),
    ("an item beyond the value", Array(String), "06000000 01000000", "ff000000 00 61"),
    ("an item of no UTF-8", Array(String), "07000000 01000000", "02000000 00 c328"),
    ("bytes after the last item", Array(String), "07000000 01000000", "01000000 00 6162"),
    ("ends that fall", Array(Bytes), "0c000000 02000000", "02000000 01000000 00 616263"),
]


@pytest.mark.parametrize(("type_", "slot", "tail"), [pytest.param(*rest, id=name) for name, *rest in DAMAGED])
def test_content_that_contradicts_itself_is_refused(type_: ValueType, slot: str, tail: str) -> None:
    """The length of a row follows from its content; anything else is refused rather than read."""
    row = bytes.fromhex(f"{HEADER} 00 {slot} {tail}")
    with pytest.raises(OnlineStoreError):
        codec(type_).decode([row])
    with pytest.raises(OnlineStoreError):
        codec(type_).decode_plain([row])


@pytest.mark.parametrize("format_", [0, 2, 3, 127, 128, 255])
def test_an_unknown_format_is_refused(format_: int) -> None:
    """A row that a newer release wrote is refused with its format, not guessed at."""
    [row] = codec(Int64).encode(table([Int64], [5]), times(1), 1)
    with pytest.raises(
        OnlineStoreError, match=f"a row of 26 bytes, format {format_:02x}, that is cut or not of this view's format"
    ):
        codec(Int64).decode([row, bytes([format_]) + row[1:]])


# Keys

UID = "0123abcd"
KEYS: list[tuple[list[ValueType], list[Any], str]] = [
    # types of the key columns, values, key bytes
    ([String], ["EWR"], "455752"),
    ([String], [""], ""),
    ([String], ["é"], "c3a9"),
    ([Bytes], [b"\0\xff"], "00ff"),
    ([Int64], [1], "0100000000000000"),
    ([Int64], [-(2**63)], "0000000000000080"),
    ([Int32], [-1], "ffffffff"),
    ([Bool], [True], "01"),
    ([Date], [dt.date(2013, 6, 1)], "f13d0000"),
    ([Timestamp], [EPOCH - US], "ffffffffffffffff"),
    ([Int64, Int64], [1, 11], "0100000000000000 0b00000000000000"),
    ([Int64, Int64], [11, 1], "0b00000000000000 0100000000000000"),
    ([String, String], ["a", "bc"], "01000000 61 6263"),
    ([String, String], ["ab", "c"], "02000000 6162 63"),
    ([String, String], ["", "a"], "00000000 61"),
    ([String, String], ["a", ""], "01000000 61"),
    ([String, Int32], ["ab", -1], "02000000 6162 ffffffff"),
    ([Int32, String], [-1, "ab"], "ffffffff 6162"),
    ([Bytes, String, Bool], [b"\x01", "", False], "01000000 01 00000000 00"),
    ([Date, Bool, Bytes], [dt.date(1970, 1, 2), True, b""], "01000000 01"),
]


@pytest.mark.parametrize(("types", "values", "expected"), KEYS, ids=str)
def test_golden_bytes_of_a_key(types: list[ValueType], values: list[Any], expected: str) -> None:
    """Fixed widths as in rows, variable ones with their length before them, except in the last column."""
    columns = [pa.chunked_array([pa.array([value], type_.arrow)]) for type_, value in zip(types, values, strict=True)]

    assert key_bytes(columns, types) == [bytes.fromhex(expected)]


@pytest.mark.parametrize("key", [b"", b"EWR", b"\0", b"\xff" * 40, bytes(range(256))])
def test_golden_bytes_of_an_online_key(key: bytes) -> None:
    """The key has the version's uid, and a tag in braces: the 18 low bits of the key's CRC-32 as three digits of base64url."""
    low = zlib.crc32(key) & (2**18 - 1)
    tag = base64.urlsafe_b64encode((low << 6).to_bytes(3, "big"))[:3]

    assert online_key(UID, key) == b"0123abcd{" + tag + b"}" + key


def test_golden_tags() -> None:
    """Some tags as literals: what Redis keeps under them must be found by every later release."""
    assert online_key(UID, b"") == b"0123abcd{AAA}"
    assert online_key(UID, b"EWR") == b"0123abcd{21y}EWR"
    assert online_key(UID, b"123456789") == b"0123abcd{Dkm}123456789"


def test_the_marker_is_no_row() -> None:
    """The marker's key is outside the pattern of the rows' keys, and no key of a row has its form."""
    assert marker(UID) == "0123abcd:loaded"
    assert pattern(UID) == "0123abcd{*"
    assert not marker(UID).startswith(pattern(UID)[:-1])


DISTINCT: list[tuple[list[ValueType], Sequence[Any], Sequence[Any]]] = [
    ([Int64, Int64], (1, 11), (11, 1)),
    ([Int32, Int32], (1, 256), (256, 1)),
    ([String, String], ("a", "bc"), ("ab", "c")),
    ([String, String], ("", "ab"), ("ab", "")),
    ([String, Bytes, String], ("a", b"", "b"), ("", b"a", "b")),
    ([String, String], ("\x01\0\0\0a", ""), ("\x01", "\0\0\0a")),
    ([String], ("a",), ("a\0",)),
    ([Bool, String], (True, ""), (False, "\x01")),
]


@pytest.mark.parametrize(("types", "one", "other"), DISTINCT, ids=str)
def test_different_keys_have_different_bytes(types: list[ValueType], one: Sequence[Any], other: Sequence[Any]) -> None:
    """Keys are never told apart by concatenation: no two of them have the same bytes."""
    columns = [
        pa.chunked_array([pa.array([first, second], type_.arrow)]) for type_, first, second in zip(types, one, other, strict=True)
    ]
    first, second = key_bytes(columns, types)

    assert online_key(UID, first) != online_key(UID, second)


KEY_TYPES = [String, Bytes, Int32, Int64, Bool, Date, Timestamp]


@st.composite
def composite_keys(draw: st.DrawFn) -> tuple[list[ValueType], list[tuple[Any, ...]]]:
    """Generate types of key columns and distinct keys of them."""
    types = draw(st.lists(st.sampled_from(KEY_TYPES), min_size=1, max_size=4))
    keys = draw(st.lists(st.tuples(*map(raw_values, types)), min_size=2, max_size=8, unique=True))
    return types, keys


@given(composite_keys())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_keys_never_meet(generated: tuple[list[ValueType], list[tuple[Any, ...]]]) -> None:
    """Whatever the types and the values, as many keys as entities; a key does not depend on its batch."""
    types, keys = generated
    columns = [pa.chunked_array([build(type_, [key[number] for key in keys])]) for number, type_ in enumerate(types)]
    made = key_bytes(columns, types)

    assert len(set(made)) == len(keys)
    assert [key_bytes([column.slice(n, 1) for column in columns], types)[0] for n in range(len(keys))] == made


def test_no_keys_are_no_bytes() -> None:
    """An empty batch has no keys, whatever the columns."""
    for types in ([String], [Int64], [String, Int64]):
        assert key_bytes([pa.chunked_array([], type_.arrow) for type_ in types], types) == []
