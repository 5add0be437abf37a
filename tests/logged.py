"""The weather with everything logged that is served, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.testing import Throwaway
from tests.conftest import NOON, TIME, Repo

SERVICE = "flight_weather"
TEMPERATURE, GUSTS = "airport_weather__temperature", "airport_weather__gusts"


@pytest.fixture
def logged_weather(weather_repo: Repo, make_throwaway_store: Callable[..., Throwaway]) -> Throwaway:
    """The weather of `conftest.py`, materialized; it is noon, and all that is served is logged."""
    with (weather_repo.folder / "featurestore.toml").open("a") as file:
        file.write("\n[serving_log]\nsample = 1.0\nflush_seconds = 3600.0\n")
    thrown = make_throwaway_store(weather_repo.folder, now=NOON)
    thrown.store.apply()
    thrown.store.materialize()
    return thrown


def look_up(weather: Throwaway, *origins: str | None) -> dict[str, list[Any]]:
    """Look the weather up."""
    return weather.store.get_online_features({"origin": list(origins)}, SERVICE).to_dict()


def labels(*rows: tuple[str | None, int, Any]) -> pa.Table:
    """Return labels of airports at instants."""
    times = pa.array([time for _, time, _ in rows], pa.int64()).cast(TIME)
    return pa.table({"label": [label for _, _, label in rows], "origin": [key for key, _, _ in rows], "event_timestamp": times})


COMFORT = """
import numpy as np

trip = RequestSource("trip", {"distance": Float64})


@on_demand_feature_view(inputs=[airport_weather[["temperature"]], trip], fields={"warmth": Float64})
def comfort(inputs):
    return {"warmth": inputs["temperature"] * inputs["distance"]}


comfortable = FeatureService("comfortable", features=[airport_weather[["gusts"]], comfort])
"""


@pytest.fixture
def comfort(logged_weather: Throwaway) -> Throwaway:
    """The weather with an on-demand view over a feature that is not served by itself, and a column of the request."""
    file = logged_weather.folder / "definitions.py"
    file.write_text(file.read_text() + COMFORT)
    logged_weather.store.apply()
    return logged_weather


def feel(store: FeatureStore, origins: list[str | None], distances: list[float | None]) -> list[Any]:
    """Look the comfort up."""
    found = store.get_online_features({"origin": origins, "distance": distances}, "comfortable")
    return found.to_dict()["comfort__warmth"]
