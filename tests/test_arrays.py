from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore.definitions import Field
from featurestore.online.rows import RowCodec
from featurestore.types import Bool, Date, Float32, Float64, Int32, Int64
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


@pytest.mark.parametrize(
    ("change", "rows", "is_array"),
    [
        ({}, 30, True),
        ({}, 5, False),
        ({"flag": None}, 30, False),
        ({"single": math.nan}, 30, False),
        ({"double": -math.inf}, 30, False),
    ],
)
def test_numbers_as_arrays(change: dict[str, Any], rows: int, is_array: bool) -> None:
    """Many rows of numbers come as arrays whose values are the columns'; a null, a NaN, an infinity and few rows do not."""
    columns = {name: [*values[: rows - 1], change.get(name, values[rows - 1])] for name, values in NUMBERS.items()}
    table = pa.table({name: pa.array(values, KINDS[name].arrow) for name, values in columns.items()})
    codec = RowCodec([Field(name, type_) for name, type_ in KINDS.items()])
    arrays = codec.open(codec.encode(table, np.zeros(rows, np.int64), 1)).arrays()

    assert (arrays is not None) == is_array
    if arrays is not None:
        assert [array.tolist() for array in arrays] == [table[name].to_pylist() for name in KINDS]


def test_texts_are_no_arrays() -> None:
    """A feature that is no number keeps all of a view from being arrays."""
    codec = RowCodec([Field("a", Int64), Field("day", Date)])
    table = pa.table({"a": pa.array(range(30)), "day": pa.array([0] * 30, pa.date32())})

    assert codec.open(codec.encode(table, np.zeros(30, np.int64), 1)).arrays() is None


def test_many_numbers_in_json(weather_repo: Repo) -> None:
    """Many rows have the JSON that few have, written as arrays or, beside rows that are not there, one by one."""
    with ended(weather_repo.open()) as store:
        store.apply()
        store.materialize()
        with TestClient(create_app(store)) as client:
            for origins in (["EWR"] * 30, ["EWR", "JFK", "LGA"] * 10):
                answer = client.post(ONLINE, json={"feature_service": "flight_weather", "entities": {"origin": origins}}).json()
                values = {"EWR": (21.0, 2**53 + 1), "JFK": (None, None), "LGA": (None, None)}
                temperatures, gusts = zip(*[values[origin] for origin in origins], strict=True)
                assert answer["features"] == {
                    "airport_weather__temperature": list(temperatures),
                    "airport_weather__gusts": list(gusts),
                }
