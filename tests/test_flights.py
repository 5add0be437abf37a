"""The flights example: what its second service computes when it is asked, and the lock of its model."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator

import pyarrow as pa
import pytest

from featurestore.errors import LockError
from featurestore.testing import Throwaway, throwaway_store
from tests.conftest import CHECKOUT
from tests.flights import SOURCE, query

DAY = dt.datetime(2013, 2, 2, 20, tzinfo=dt.UTC)
SERVICE = "departure_delay_v2"
LOCK = CHECKOUT / "definitions/model/features.lock"
KEYS = ("tail_number", "origin", "destination", "carrier")


@pytest.fixture(scope="module")
def flights() -> Iterator[Throwaway]:
    """The flights example with the flights of one day; it is the day's evening."""
    with throwaway_store(CHECKOUT / "definitions", now=DAY, leave_out=["flights.parquet"]) as thrown:
        thrown.write("data/flights.parquet", query(f"SELECT * FROM '{SOURCE}' WHERE scheduled_at::DATE = '{DAY:%Y-%m-%d}'"))
        thrown.store.apply()
        thrown.store.materialize()
        yield thrown


def test_t09_the_example_serves_what_it_trains_on_in_every_column(flights: Throwaway) -> None:
    """A lookup of flights and a training set as of now agree in every feature, and the computed ones are what their inputs give."""
    asked = query(
        f"SELECT {', '.join(KEYS)}, scheduled_at, distance::DOUBLE AS distance, "
        f"date_diff('minute', scheduled_at, arrived_at)::DOUBLE - arrival_delay AS planned_minutes "
        f"FROM '{SOURCE}' WHERE scheduled_at::DATE = '{DAY:%Y-%m-%d}' AND flight_id % 3 = 0"
    )
    spine = asked.append_column("event_timestamp", pa.array([DAY] * len(asked), pa.timestamp("us", "UTC")))
    training = flights.store.get_historical_features(spine, SERVICE, lock=LOCK).to_arrow()
    online = flights.store.get_online_features({name: asked[name] for name in asked.column_names}, SERVICE, lock=LOCK).to_arrow()
    few = {name: asked[name].to_pylist()[:100] for name in asked.column_names}

    assert len(asked) > 200
    for name in online.column_names:
        assert online[name].combine_chunks().equals(training[name].combine_chunks()), name
        assert (
            flights.store.get_online_features(few, SERVICE)
            .to_arrow()[name]
            .combine_chunks()
            .equals(online[name].slice(0, 100).combine_chunks())
        ), name
    computed = 0
    for row in online.to_pylist():
        wind, slowness = row["origin_weather__wind_speed"], row["route_delays__slowness_mean_30d"]
        assert row["weather_by_distance__wind_per_100_miles"] == (None if wind is None else wind / (row["distance"] / 100))
        if None in (slowness, row["planned_minutes"]):
            assert (row["flight_schedule__hour"], row["flight_schedule__slack_minutes"]) == (None, None)
            continue
        computed += 1
        assert row["flight_schedule__hour"] == row["scheduled_at"].hour
        assert row["flight_schedule__slack_minutes"] == row["planned_minutes"] - slowness * row["distance"] / 100
    assert computed > 100


def test_the_lock_of_the_example_is_what_its_definitions_are(flights: Throwaway) -> None:
    """Whoever changes the example's definitions locks them anew, with `featurestore lock`."""
    made = flights.store.lock(SERVICE, flights.folder / "again.lock")

    assert made.fingerprint == json.loads(LOCK.read_text("utf-8"))["fingerprint"]
    with pytest.raises(LockError, match="the lock is of 'departure_delay_v2'"):
        flights.store.get_historical_features(
            pa.table({name: [] for name in (*KEYS, "event_timestamp")}, schema=SPINE), "departure_delay_v1", lock=LOCK
        )


SPINE = pa.schema([*((name, pa.string()) for name in KEYS), ("event_timestamp", pa.timestamp("us", "UTC"))])
