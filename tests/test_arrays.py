from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore.definitions import Field
from featurestore.online.answers import OnlineRows
from featurestore.online.rows import RowCodec, deleted_row
from featurestore.online.status import Status
from featurestore.types import Bool, Date, Float32, Float64, Int32, Int64, String, ValueType
from featurestore_server.app import create_app
from tests.conftest import Repo
from tests.service import ONLINE, ended

NUMBERS: dict[str, Any] = {
    "flag": [number % 3 == 0 for number in range(30)],
    "small": [2**31 - 1 - number for number in range(30)],
    "large": [-(2**63) + number for number in range(30)],
    "single": [1 / (number + 3) for number in range(30)],
    "double": [1e308 / (number + 3) for number in range(30)],
}
KINDS = {"flag": Bool, "small": Int32, "large": Int64, "single": Float32, "double": Float64}


def listed(arrays: Sequence[Any] | None) -> list[list[Any]]:
    """Return arrays as JSON will have them: NaN is null."""
    assert arrays is not None
    lists = [array if type(array) is list else array.tolist() for array in arrays]
    return [[None if isinstance(value, float) and math.isnan(value) else value for value in values] for values in lists]


@pytest.mark.parametrize(
    ("change", "rows", "is_array"),
    [
        ({}, 30, True),
        ({}, 5, False),
        ({"flag": None}, 30, True),
        ({"large": None, "single": None}, 30, True),
        (dict.fromkeys(NUMBERS), 30, True),
        ({"single": math.nan}, 30, False),
        ({"double": -math.inf}, 30, False),
        ({"flag": None, "double": math.nan}, 30, False),
    ],
)
def test_numbers_as_arrays(change: dict[str, Any], rows: int, is_array: bool) -> None:
    """Many rows of numbers come as arrays whose values are the columns', nulls included; a NaN, an infinity and few rows do not."""
    columns = {name: [*values[: rows - 1], change.get(name, values[rows - 1])] for name, values in NUMBERS.items()}
    table = pa.table({name: pa.array(values, KINDS[name].arrow) for name, values in columns.items()})
    codec = RowCodec([Field(name, type_) for name, type_ in KINDS.items()])
    arrays = codec.open(codec.encode(table, np.zeros(rows, np.int64), 1)).arrays()

    assert (arrays is not None) == is_array
    if is_array:
        assert listed(arrays) == [table[name].to_pylist() for name in KINDS]


TTL, NOW = 100, 1000
WORDS = {"word": String, "day": Date, **KINDS}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("kinds", [KINDS, WORDS], ids=["numbers", "words"])
@pytest.mark.parametrize(
    "among", ["fresh null", "fresh null missing", "fresh null deleted", "fresh null old", "missing deleted old", "all"]
)
def test_rows_that_are_not_all_there(kinds: dict[str, ValueType], rows: int, seed: int, among: str) -> None:
    """Whatever is missing, deleted, too old or null is null in each form of the answer, with nothing of other rows under it."""
    random = Random(seed)
    states = "fresh null missing deleted old" if among == "all" else among
    chosen = [random.choice(states.split()) for _ in range(rows)]
    codec = RowCodec([Field(name, type_) for name, type_ in kinds.items()])
    given = NUMBERS | {"word": [f"word {number}" for number in range(30)], "day": list(range(1, 31))}
    stored: list[bytes | None] = []
    expected: list[list[Any]] = [[] for _ in kinds]
    for state in chosen:
        values = [None if state == "null" and random.random() < 0.5 else given[name][random.randrange(30)] for name in kinds]
        columns = [pa.array([value], type_.arrow) for value, type_ in zip(values, kinds.values(), strict=True)]
        time = NOW - TTL - 1 if state == "old" else NOW - TTL
        row = codec.encode(pa.table(columns, names=list(kinds)), np.array([time], np.int64), 1)[0]
        stored.append({"missing": None, "deleted": deleted_row(1)}.get(state, row))
        for column, value, read in zip(expected, values, columns, strict=True):
            plain = read.cast(pa.int32()) if read.type == pa.date32() else read
            column.append((plain[0].as_py() if value is not None else None) if state in ("fresh", "null") else None)
    found = OnlineRows(codec, TTL, stored, NOW)

    of_state = {"missing": Status.NOT_FOUND, "deleted": Status.NOT_FOUND, "old": Status.OUTSIDE_MAX_AGE}
    assert found.status_list == [of_state.get(state, Status.PRESENT) for state in chosen]
    assert found.plain == expected
    for column, values, type_ in zip(found.features, expected, kinds.values(), strict=True):
        column.validate(full=True)
        assert (column.type, len(column)) == (type_.arrow, rows)
        assert (column.cast(pa.int32()) if type_ == Date else column).to_pylist() == values
        if type_.name in ("Int64", "Float64"):
            buffer, first = column.buffers()[1], column.offset
            bits = np.zeros(rows) if buffer is None else np.frombuffer(buffer, np.int64)[first : first + rows]
            assert not bits[[value is None for value in values]].any()
    arrays = found.arrays()
    if arrays is not None:
        assert listed(arrays) == expected
    assert (arrays is None) == (kinds is WORDS or (rows < 24 and any(state in ("fresh", "null", "old") for state in chosen)))
    each = OnlineRows(codec, TTL, stored, [NOW] * rows)
    assert (each.status_list, each.plain) == (found.status_list, expected)
    times = [None if state in ("missing", "deleted") else NOW - TTL - (state == "old") for state in chosen]
    assert found.event_times.cast(pa.int64()).to_pylist() == times


def test_a_row_as_old_as_the_ttl_is_served() -> None:
    """T6 holds to the microsecond, for one present and for one of each row: only what is older than the TTL is outside."""
    codec = RowCodec([Field("a", Int64)])
    stored = codec.encode(pa.table({"a": pa.array([1, 2])}), np.array([NOW - TTL, NOW - TTL - 1], np.int64), 1)

    for now in (NOW, [NOW, NOW]):
        assert OnlineRows(codec, TTL, stored, now).status_list == [Status.PRESENT, Status.OUTSIDE_MAX_AGE]
    assert OnlineRows(codec, TTL, stored, [NOW + 1, NOW - 1]).status_list == [Status.OUTSIDE_MAX_AGE, Status.PRESENT]


def test_texts_are_no_arrays() -> None:
    """A feature that is no number keeps all of a view from being arrays."""
    codec = RowCodec([Field("a", Int64), Field("day", Date)])
    table = pa.table({"a": pa.array(range(30)), "day": pa.array([0] * 30, pa.date32())})

    assert codec.open(codec.encode(table, np.zeros(30, np.int64), 1)).arrays() is None


def test_many_numbers_in_json(weather_repo: Repo) -> None:
    """Many rows have the JSON that few have, written as arrays, also beside rows that are not there."""
    with ended(weather_repo.open()) as store:
        store.apply()
        store.materialize()
        with TestClient(create_app(store)) as client:
            for origins in (["EWR"] * 30, ["EWR", "JFK", "LGA"] * 10, ["LGA"] * 30):
                answer = client.post(ONLINE, json={"feature_service": "flight_weather", "entities": {"origin": origins}}).json()
                values = {"EWR": (21.0, 2**53 + 1), "JFK": (None, None), "LGA": (None, None)}
                temperatures, gusts = zip(*[values[origin] for origin in origins], strict=True)
                assert answer["features"] == {
                    "airport_weather__temperature": list(temperatures),
                    "airport_weather__gusts": list(gusts),
                }
