from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import OfflineStoreError
from tests.conftest import HOUR, NOON, TIME, Repo, at
from tests.spines import spine

GUSTS = [3, None, 40, 7, -5, 40, None]
TIMES = [NOON - (7 - index) * HOUR // 2 for index in range(7)]


def view(sql: str, aggregations: str) -> str:
    """Return definitions of a view over the weather with these aggregations, with its own SQL or without."""
    return f"""
airport = Entity("airport", join_keys={{"origin": String}})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
airport_weather = FeatureView(
    "airport_weather", entities=[airport], source=weather, online=False, sql={sql}, aggregations=[{aggregations}]
)
"""


def asked(repo: Repo, definitions: str, features: list[str], gusts: list[int | None]) -> list[Any]:
    """Return the features of EWR at noon, of these gusts every half hour before it."""
    repo.define(definitions)
    columns = {"origin": ["EWR"] * len(gusts), "observed_at": pa.array([at(time) for time in TIMES[: len(gusts)]], TIME)}
    repo.write("weather.parquet", columns | {"gusts": pa.array(gusts, pa.int64())})
    names = [f"airport_weather:{name}" for name in features]
    store = repo.open()
    store.apply()
    store.materialize()
    found = store.get_historical_features(spine(("EWR", NOON)), names).to_dict()
    return [found[name.replace(":", "__")][0] for name in names]


@pytest.mark.parametrize("sql", ["None", "'SELECT origin, observed_at, gusts FROM weather'"], ids=["columns", "sql"])
@pytest.mark.parametrize("limit", [5, 40, 1_000])
def test_a_condition_and_an_expression_say_what_python_says(repo: Repo, sql: str, limit: int) -> None:
    """`where` leaves rows out as Python's own condition does, null being no; `sql` gives each row's value."""
    made = f"""Aggregation("gusts", "sum", ["1d"], where="gusts > {limit}", name="strong"),
        Aggregation("gusts", "mean", ["1d"], where="gusts > {limit}", name="mean_strong"),
        Aggregation("*", "count", ["1d"], where="gusts > {limit}", name="times"), Aggregation("*", "count", ["1d"]),
        Aggregation("double", "max", ["1d"], sql="gusts * 2"), Aggregation("double", "count", ["1d"], sql="gusts * 2")"""
    features = ["strong_1d", "mean_strong_1d", "times_1d", "count_1d", "double_max_1d", "double_count_1d"]

    kept = [value for value in GUSTS if value is not None and value > limit]
    doubles = [2 * value for value in GUSTS if value is not None]
    mean = math.fsum(kept) / len(kept) if kept else None
    expected = [sum(kept), mean, len(kept), len(GUSTS), max(doubles), len(doubles)]
    assert asked(repo, view(sql, made), features, GUSTS) == expected


def test_a_sum_beyond_int64_is_one_error(repo: Repo) -> None:
    """A training set whose sum int64 cannot hold says which view, aggregation and window."""
    made = 'Aggregation("gusts", "sum", ["1d"])'

    with pytest.raises(OfflineStoreError, match="view 'airport_weather': 'gusts_sum' over 1d exceeds int64"):
        asked(repo, view("None", made), ["gusts_sum_1d"], [2**62] * 3)
