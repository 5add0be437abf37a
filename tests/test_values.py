from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.offline.asked import Asked as AskedRows
from featurestore.offline.point_in_time import values_at
from featurestore.offline.sources import BEGINNING
from featurestore.types import Array, Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType
from tests.histories import (
    ABSENT,
    DAY,
    FIRST,
    JUNE_1,
    LAST,
    NOON,
    TINY,
    UTC_TIME,
    Key,
    Landing,
    Row,
    answers,
    ask,
    at,
    batch_source,
    define,
    delays,
    differences,
    landing,
    materialize,
    moment,
    numbers,
    set_bucket_rows,
    source_schema,
    write_files,
)

# --- what comes back -------------------------------------------------------------------------------------------------


def test_answers_stand_in_the_order_asked_with_duplicates(tmp_path: Path) -> None:
    """There is one answer for each row asked for, in the same order, however often it is asked (T5)."""
    view = delays()
    rows = [landing(1), landing(2, "11:00"), landing(3, tail="b")]
    write_files(tmp_path, source_schema(view), [rows])
    noon, half = at("12:00"), at("10:30")
    asked = [(("b",), noon), (("a",), noon), (("c",), noon), (("a",), half), (("b",), noon), (("a",), noon)]

    found = answers(ask(view, materialize(view, tmp_path), asked))

    assert [row and row["n"] for row in found] == [3, 2, None, 1, 3, 2]


def test_a_null_join_key_gets_nulls(tmp_path: Path) -> None:
    """A row asked for with a null in any join key is absent, whatever the source holds (T5)."""
    view = define({"a": String, "b": Int64}, {"n": Int64}, batch_source())
    keys = [("x", 1), ("x", None), (None, 1), (None, None)]
    rows = [{"a": a, "b": b, "landed": NOON, "written": NOON, "n": n} for n, (a, b) in enumerate(keys)]
    write_files(tmp_path, source_schema(view), [rows])

    found = answers(ask(view, materialize(view, tmp_path), [(key, LAST) for key in reversed(keys)]))

    assert [row and row["n"] for row in found] == [None, None, None, 0]


def test_only_null_join_keys_get_only_nulls(tmp_path: Path) -> None:
    """Nulls alone are answered too (T5)."""
    view = delays()
    write_files(tmp_path, source_schema(view), [[landing(1)]])

    assert answers(ask(view, materialize(view, tmp_path), [((None,), LAST)] * 3)) == [None] * 3


@pytest.mark.parametrize(
    ("types", "keys"),
    [
        ([Int64, Int64], [(1, 11), (11, 1), (1, 1), (11, 11), (111, 1), (1, 111)]),
        ([String, String], [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("a", "b"), ("a\0", "b"), ("a", "\0b")]),
        ([String, Int64], [("1", 11), ("11", 1), ("1", 1), ("111", 1), ("", 111)]),
        ([Bytes, String], [(b"a", "bc"), (b"ab", "c"), (b"", "abc")]),
    ],
    ids=["integers", "texts", "text and integer", "bytes and text"],
)
def test_composite_keys_are_compared_column_by_column(tmp_path: Path, types: list[ValueType], keys: list[Key]) -> None:
    """Keys whose columns would concatenate to the same text, or hold the same values elsewhere, are different (T5)."""
    view = define({f"k{number}": type_ for number, type_ in enumerate(types)}, {"n": Int64}, batch_source())
    rows = [
        {**{f"k{number}": part for number, part in enumerate(key)}, "landed": NOON, "written": None, "n": n}
        for n, key in enumerate(keys)
    ]
    write_files(tmp_path, source_schema(view), [rows])

    found = answers(ask(view, materialize(view, tmp_path), [(key, LAST) for key in keys]))

    assert [row and row["n"] for row in found] == list(range(len(keys)))


NO_ROWS: dict[str, list[list[Row]]] = {
    "an empty file": [[]],
    "empty files": [[], []],
    "null keys only": [[{"tail": None, "landed": NOON, "written": NOON, "n": 1}]],
    "no event times": [[{"tail": "a", "landed": None, "written": NOON, "n": 1}]],
}


@pytest.mark.parametrize("files", NO_ROWS.values(), ids=NO_ROWS.keys())
def test_a_source_without_rows_gives_absent_values(tmp_path: Path, files: list[list[Row]]) -> None:
    """A table that was materialized from nothing answers, with nothing."""
    view = delays()
    write_files(tmp_path, source_schema(view), files)
    snapshot = materialize(view, tmp_path)

    assert snapshot.rows == 0
    assert answers(ask(view, snapshot, [(("a",), LAST), ((None,), LAST)])) == [None, None]


def test_no_rows_asked_get_no_answers(tmp_path: Path) -> None:
    """An empty spine gives empty columns of the declared types (T5)."""
    view = delays()
    write_files(tmp_path, source_schema(view), [[landing(1)]])

    assert answers(ask(view, materialize(view, tmp_path), [])) == []


def test_a_history_in_the_future_gives_absent_values(tmp_path: Path) -> None:
    """Rows that are visible only after all times asked for answer none of them (T2)."""
    landings: list[Landing] = [("2030-01-01T00:00", None, 1), ("2031-01-01T00:00", None, 2)]

    assert numbers(tmp_path, delays(), landings, [0, at("10:00"), at("2029-12-31T23:59:59")]) == [ABSENT] * 3


def test_a_projection_gives_its_features_in_its_order(tmp_path: Path) -> None:
    """Only the features that are asked for come back, in the order asked."""
    view = define({"tail": String}, {"x": Int64, "y": String, "z": Bool}, batch_source())
    row = {"tail": "a", "landed": NOON, "written": NOON, "x": 1, "y": "one", "z": True}
    write_files(tmp_path, source_schema(view), [[row]])
    snapshot = materialize(view, tmp_path)

    for features in (["z", "x"], ["y"]):
        values = values_at(view, snapshot, AskedRows.of([pa.chunked_array([["a"]])], np.array([LAST])), features)
        assert values.features.column_names == features
        assert values.present.tolist() == [True]
        assert values.features.to_pylist() == [{name: row[name] for name in features}]


def test_keys_may_come_in_chunks_and_slices(tmp_path: Path) -> None:
    """How the key columns asked for are chunked does not matter, nor that two of them are chunked differently."""
    view = define({"a": String, "b": Int64}, {"n": Int64}, batch_source())
    rows = [
        {"a": a, "b": b, "landed": NOON, "written": NOON, "n": 10 * b + (a == "y")} for a, b in itertools.product("xy", range(4))
    ]
    write_files(tmp_path, source_schema(view), [rows])
    names = pa.chunked_array([["x", "y"], pa.array(["no", None, "x", "y"]).slice(1), pa.array([], pa.string())])
    integers = pa.chunked_array([pa.array([9, 0, 1, 2]).slice(1), pa.array([3, None], pa.int64())])

    values = values_at(view, materialize(view, tmp_path), AskedRows.of([names, integers], np.full(5, LAST)), ["n"])

    assert values.features["n"].to_pylist() == [0, 11, None, 30, None]


def test_an_int64_with_nulls_stays_exact(tmp_path: Path) -> None:
    """Integers above 2**53 beside nulls come back as they are, as int64 (T5)."""
    exact = [2**53 + 1, None, -(2**53) - 1, 2**63 - 1, -(2**63), None]
    view = delays()
    rows = [landing(n, tail=f"a{number}") for number, n in enumerate(exact)]
    write_files(tmp_path, source_schema(view), [rows])

    values = ask(view, materialize(view, tmp_path), [((f"a{number}",), LAST) for number in range(7)])

    assert values.features["n"].type == pa.int64()
    assert values.features["n"].to_pylist() == [*exact, None]
    assert values.present.tolist() == [True] * 6 + [False]


# --- types -----------------------------------------------------------------------------------------------------------

KEY_VALUES: list[tuple[ValueType, list[Any]]] = [
    (String, ["a", "A", "", "a\0b", "é", "e\u0301", "東京", "x" * 1_000, "'; --"]),
    (Int64, [0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]),
    (Int32, [0, 1, -1, 2**31 - 1, -(2**31)]),
    (Bytes, [b"", b"\x00", b"\x00\x00", b"a", b"\xff\xfe", b"'"]),
    (Bool, [False, True]),
    (Date, [dt.date(1, 1, 1), dt.date(1969, 12, 31), dt.date(1970, 1, 1), dt.date(2013, 6, 1), dt.date(9999, 12, 31)]),
    (Timestamp, [NOON, NOON + TINY, NOON - TINY, moment(-1), moment(0), moment(BEGINNING), moment(LAST)]),
]


@pytest.mark.parametrize("bucket_rows", [1, 2_000_000], ids=["many buckets", "one bucket"])
@pytest.mark.parametrize(("type_", "keys"), KEY_VALUES, ids=[str(type_) for type_, _ in KEY_VALUES])
def test_every_key_type_finds_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: ValueType, keys: list[Any], bucket_rows: int
) -> None:
    """Keys of each type are found by their value, in several files of a table, and null is no value."""
    set_bucket_rows(monkeypatch, bucket_rows)
    view = define({"k": type_}, {"n": Int64}, batch_source(is_created=False))
    rows = [
        {"k": key, "landed": moment(JUNE_1 + day * DAY), "written": None, "n": 100 * day + number}
        for day in range(3)
        for number, key in enumerate([*keys, None])
    ]
    write_files(tmp_path, source_schema(view), [rows])
    snapshot = materialize(view, tmp_path, [(FIRST, JUNE_1), (JUNE_1, JUNE_1 + DAY), (JUNE_1 + DAY, LAST)])
    asked = [((key,), JUNE_1 + day * DAY) for key in [*keys, None] for day in (-1, 0, 1, 2)]

    assert differences(view, rows, snapshot, asked) == []


def _float32(value: float) -> float:
    return float(np.float32(value))


FEATURE_VALUES: list[tuple[ValueType, list[Any]]] = [
    (Bool, [True, False]),
    (Int32, [0, 2**31 - 1, -(2**31)]),
    (Int64, [0, 2**53 + 1, 2**63 - 1, -(2**63)]),
    (Float32, [0.0, -0.0, _float32(0.1), float("inf"), float("-inf"), float("nan"), 2.0**-149]),
    (Float64, [0.0, -0.0, 0.1, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")]),
    (String, ["", "a", "é", "東京", "a\0b", "x" * 10_000]),
    (Bytes, [b"", b"\x00\xff", bytes(range(256))]),
    (Date, [dt.date(1, 1, 1), dt.date(1969, 12, 31), dt.date(2013, 6, 1), dt.date(9999, 12, 31)]),
    (Timestamp, [NOON, moment(-1), moment(BEGINNING), moment(LAST)]),
    (Array(Float32), [[], [_float32(0.1), None, float("nan")], [1.5] * 300, [None]]),
    (Array(Float64), [[], [0.1, None]]),
    (Array(String), [[], ["a", None, "", "é"], [None, None]]),
    (Array(Int64), [[], [2**53 + 1, None, -(2**63)]]),
    (Array(Int32), [[1, None]]),
    (Array(Bool), [[True, None, False]]),
    (Array(Bytes), [[b"\x00", None, b""]]),
    (Array(Date), [[dt.date(1969, 12, 31), None]]),
    (Array(Timestamp), [[NOON, None, moment(-1)]]),
]
FEATURE_IDS = [str(type_) for type_, _ in FEATURE_VALUES]


@pytest.mark.parametrize("bucket_rows", [1, 2_000_000], ids=["many buckets", "one bucket"])
@pytest.mark.parametrize(("type_", "values"), FEATURE_VALUES, ids=FEATURE_IDS)
def test_every_feature_type_gives_back_what_went_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: ValueType, values: list[Any], bucket_rows: int
) -> None:
    """A value comes back as it was written, in the declared Arrow type, beside nulls and absent rows (T5)."""
    set_bucket_rows(monkeypatch, bucket_rows)
    view = define({"tail": String}, {"x": type_}, batch_source())
    stored = [*values, None]
    rows = [
        {"tail": f"a{number}", "landed": moment(JUNE_1 + number), "written": None, "x": value}
        for number, value in enumerate(stored)
    ]
    write_files(tmp_path, source_schema(view), [rows])
    snapshot = materialize(view, tmp_path, [(FIRST, JUNE_1), (JUNE_1, LAST)])

    found = ask(view, snapshot, [((f"a{number}",), LAST) for number in range(len(stored) + 1)])

    # As text, which tells -0.0 from 0.0 and holds NaN equal to itself.
    assert str(found.features["x"].to_pylist()) == str(pa.array([*stored, None], type_.arrow).to_pylist())
    assert found.present.tolist() == [True] * len(stored) + [False]


@pytest.mark.parametrize("type_", [type_ for type_, _ in FEATURE_VALUES], ids=FEATURE_IDS)
def test_a_column_of_nulls_keeps_its_type(tmp_path: Path, type_: ValueType) -> None:
    """Where all values are null or absent the column still has the declared Arrow type (T5)."""
    view = define({"tail": String}, {"x": type_}, batch_source())
    write_files(tmp_path, source_schema(view), [[{"tail": "a", "landed": NOON, "written": NOON, "x": None}]])
    snapshot = materialize(view, tmp_path)

    for asked in ([(("a",), LAST)], [(("b",), LAST)], [((None,), LAST)], []):
        found = ask(view, snapshot, asked)  # which checks the type
        assert found.features["x"].null_count == len(asked)


NARROWER: list[tuple[ValueType, pa.DataType, list[Any], list[Any]]] = [
    (Int64, pa.int32(), [-1, None], [-1, None]),
    (Int64, pa.uint32(), [2**32 - 1, None], [2**32 - 1, None]),
    (Int32, pa.uint16(), [2**16 - 1, None], [2**16 - 1, None]),
    (Float64, pa.float32(), [_float32(0.1), None], [_float32(0.1), None]),
    (Float64, pa.int32(), [2**31 - 1, None], [float(2**31 - 1), None]),
    (String, pa.large_string(), ["a", None], ["a", None]),
    (String, pa.dictionary(pa.int32(), pa.string()), ["a", None], ["a", None]),
    (Bytes, pa.binary(2), [b"ab", None], [b"ab", None]),
    (Timestamp, pa.timestamp("us"), [dt.datetime.fromisoformat("2013-06-01T12:00"), None], [NOON, None]),
    (Timestamp, pa.timestamp("ms", "Europe/Berlin"), [NOON, None], [NOON, None]),
    (Timestamp, pa.date32(), [dt.date(2013, 6, 1), None], [moment(JUNE_1), None]),
    (Array(Float32), pa.list_(pa.float32(), 2), [[1.5, None], None], [[1.5, None], None]),
    (Array(Float64), pa.list_(pa.float32()), [[1.5, None], None], [[1.5, None], None]),
    (Array(Int64), pa.large_list(pa.int32()), [[1, None], None], [[1, None], None]),
]


@pytest.mark.parametrize(
    ("type_", "stored", "values", "found"), NARROWER, ids=[f"{type_} from {stored}" for type_, stored, *_ in NARROWER]
)
def test_a_narrower_column_gives_the_declared_type(
    tmp_path: Path, type_: ValueType, stored: pa.DataType, values: list[Any], found: list[Any]
) -> None:
    """A source column whose type holds only values of the declared one is converted to it, exactly."""
    view = define({"tail": String}, {"x": type_}, batch_source())
    schema = pa.schema([("tail", pa.string()), ("landed", UTC_TIME), ("written", UTC_TIME), ("x", stored)])
    rows = [{"tail": f"a{n}", "landed": NOON, "written": NOON, "x": value} for n, value in enumerate(values)]
    write_files(tmp_path, schema, [rows])

    answer = ask(view, materialize(view, tmp_path), [((f"a{n}",), LAST) for n in range(len(values))])

    assert answer.features["x"].to_pylist() == found
