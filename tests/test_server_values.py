from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import InputError
from featurestore.types import Array, Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType
from featurestore_server.values import are_finite, from_json, has_json_form, plain_writer, to_json, untyped_from_json
from tests.conftest import NOON, TIME, at
from tests.service import BIG


def _encoded(values: pa.Array) -> pa.Array:
    """Return a column that refers to three values: to the last, the first, the second, and to none."""
    return pa.DictionaryArray.from_arrays(pa.array([2, 0, 1, None], pa.int8()), values)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([0, None, 2**63 - 1], TIME), ["1970-01-01T00:00:00Z", None, "294247-01-10T04:00:54.775807Z"]),
        (pa.array([5], pa.timestamp("ms", "Europe/Berlin")), ["1970-01-01T00:00:00.005Z"]),
        (pa.array([2**31 - 1, None], pa.date32()), ["5881580-07-11", None]),
        (pa.array([1.0, -0.0, math.nan, None]), [1.0, -0.0, "NaN", None]),
        (pa.array([[1, 2], None, [5, 6]], pa.list_(pa.int64(), 2)).slice(1), [None, [5, 6]]),
        (pa.array([[1.0], [2.0, math.inf], None]).slice(1, 1), [[2.0, "Infinity"]]),
        (pa.array([{"a": 1}, None]), [{"a": 1}, None]),
        (pa.array(["x", None]).dictionary_encode(), ["x", None]),
        (pa.DictionaryArray.from_arrays([2, None, 2], pa.array(["x", "y", "z"], pa.string_view())), ["z", None, "z"]),
        (pa.DictionaryArray.from_arrays(pa.array([None], pa.int8()), pa.array([[1]])), [None]),
        (_encoded(pa.array([[1], None, [2, 3]])), [[2, 3], [1], None, None]),
        (_encoded(pa.array([{"a": [1]}, None, {"a": None}])).slice(1), [{"a": [1]}, None, None]),
        (_encoded(pa.array(["x", "y", "z"], pa.string_view())).slice(0, 1), ["z"]),
        (pa.nulls(2), [None, None]),
        (pa.chunked_array([], pa.int64()), []),
    ],
)
def test_columns_to_json(column: pa.Array, expected: list[Any]) -> None:
    """Columns become lists; slices, nulls and times of any year included."""
    assert has_json_form(column.type)
    assert repr(to_json(column)) == repr(expected)


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([1, None, -(2**63)], pa.int64()),
        ([2**64 - 1], pa.uint64()),
        ([1, 1.5, "NaN", "-Infinity", None], pa.float64()),
        (["NaN", None], pa.string()),
        ([True, None], pa.bool_()),
        ([None, None], pa.null()),
        ([], pa.null()),
        ([[1, 2], None, []], pa.list_(pa.int64())),
        ([[0.5, "NaN"], ["Infinity"]], pa.list_(pa.float64())),
    ],
)
def test_columns_without_a_declared_type(values: list[Any], type_: pa.DataType) -> None:
    """A column of a spine takes the type of its values, and its JSON is what was sent."""
    column = untyped_from_json("x", values)

    assert column.type == type_
    assert to_json(column) == values


@pytest.mark.parametrize("values", [[1, "a"], [1, True], [{}], [[1], 1], [BIG, 0.5], [2**64 - 1, -1], [[1, "a"]]])
def test_columns_of_several_kinds_are_refused(values: list[Any]) -> None:
    """Values of several kinds, or that one type cannot hold exactly, are no column."""
    with pytest.raises(InputError, match="'x'"):
        untyped_from_json("x", values)


def test_declared_columns_are_exact() -> None:
    """Declared types take their JSON forms and nothing else."""
    assert from_json("x", Int64, [BIG, None]).to_pylist() == [BIG, None]
    assert from_json("x", Timestamp, ["2013-06-01T14:00:00+02:00", "2013-06-01 12:00"]).to_pylist() == [at(NOON), at(NOON)]
    with pytest.raises(InputError, match="its value 1, '2', is none"):
        from_json("x", Int64, [1, "2"])


@pytest.mark.parametrize(
    ("type_", "values", "expected"),
    [
        (Float64, [1.5, None, math.nan, math.inf, -math.inf], [1.5, None, "NaN", "Infinity", "-Infinity"]),
        (Float64, [1e308, 1e308], [1e308, 1e308]),
        (Float32, [0.10000000149011612], [0.10000000149011612]),
        (Bytes, [b"\x00\xff", None, b""], ["AP8=", None, ""]),
        (Date, [15857, None, -719162], ["2013-06-01", None, "0001-01-01"]),
        (Timestamp, [NOON, None, NOON + 1], ["2013-06-01T12:00:00Z", None, "2013-06-01T12:00:00.000001Z"]),
        (Array(Float32), [[0.5, None, math.nan], None, []], [[0.5, None, "NaN"], None, []]),
        (Array(Bytes), [[b"x", None], None], [["eA==", None], None]),
        (Array(Date), [[15857, None], None], [["2013-06-01", None], None]),
    ],
)
def test_plain_values_to_json(type_: ValueType, values: list[Any], expected: list[Any]) -> None:
    """Plain values of a type become its JSON, as an Arrow column of them does."""
    writer = plain_writer(type_)

    assert writer is not None
    assert repr(writer(values)) == repr(expected)
    assert repr(to_json(pa.array(values, type_.arrow))) == repr(expected)


@pytest.mark.parametrize("type_", [Bool, Int32, Int64, String, Array(Int64), Array(String)])
def test_plain_values_that_are_json(type_: ValueType) -> None:
    """Values that JSON has as they are need no writer."""
    assert plain_writer(type_) is None


def test_numbers_that_json_has() -> None:
    """Only columns of finite numbers pass; what takes a closer look (a null, a sum beyond all doubles) does not."""
    assert are_finite([[1.0, -0.0], [1e308], []])
    for column in ([math.nan], [math.inf], [math.inf, -math.inf], [None, 1.0], [1e308, 1e308]):
        assert not are_finite([[1.0], column])
