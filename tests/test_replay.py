"""One day of the flights example as live traffic, under the virtual clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from featurestore.testing import Throwaway, assert_point_in_time, throwaway_store
from tests.conftest import CHECKOUT

# The example's newest service, with the landings as they are pushed beside those that a run brings every hour.
LIVE = """
from featurestore import FeatureService, FeatureView, PushSource
from featurestore.types import Int32, Int64, String

from .entities import aircraft
from .services import departure_delay_v2

landed = PushSource("landed", fields={"tail_number": String, "flight_id": Int64, "arrival_delay": Int32}, event_time="arrived_at")
live_landing = FeatureView(
    "live_landing", entities=[aircraft], source=landed, fields={"flight_id": Int64, "arrival_delay": Int32}, ttl="12h"
)
live = FeatureService("live", features=[*departure_delay_v2.features, live_landing])
"""
DAY = dt.datetime(2013, 7, 10, tzinfo=dt.UTC)
NEXT = DAY + dt.timedelta(days=1)
DAYS_BEFORE = 3
HOURLY = {
    5: ["last_landing", "route_departure", "aircraft_delays", "carrier_delays", "route_delays"],
    10: ["airport_weather"],
}
"""Which views have something new, by the minute of the hour: what `refresh` and `delay` of the example declare."""


def flights(column: str, first: dt.datetime) -> pa.Table:
    """Return the flights with a time from then on to the end of the day, in its order."""
    source = CHECKOUT / "definitions/data/flights.parquet"
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        planned = "date_diff('minute', scheduled_at, arrived_at) - CAST(arrival_delay AS DOUBLE) AS planned_minutes"
        query = (
            f"SELECT *, {planned} FROM '{source}' WHERE {column} >= '{first}' AND {column} < '{NEXT}' ORDER BY {column}, flight_id"
        )
        return pa.Table.from_batches(connection.sql(query).to_arrow_reader())


@dataclass
class Replay:
    """A day that was served: the store at its end, the flights that were asked for, and those that landed."""

    thrown: Throwaway
    asked: pa.Table
    landed: list[dict[str, Any]]


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    """Serve a day: each flight looked up by itself at its scheduled departure, each landing pushed, views materialized as declared.

    The example's source is cut to the day and a few days before, so that a run takes little; the requests are all of the day's.
    """
    with throwaway_store(CHECKOUT / "definitions", now=DAY, leave_out=["flights.parquet"], logged=1.0) as thrown:
        thrown.write(
            "data/flights.parquet", flights("scheduled_at", DAY - dt.timedelta(days=DAYS_BEFORE)).drop_columns("planned_minutes")
        )
        (thrown.folder / "live.py").write_text(LIVE)
        thrown.store.apply()
        thrown.store.materialize()
        landed = [row for row in flights("arrived_at", DAY).to_pylist() if row["tail_number"] is not None]
        made = Replay(thrown, flights("scheduled_at", DAY), landed)
        serve(made)
        yield made


def serve(replay: Replay) -> None:
    """Serve the day: what is due at an instant is materialized and pushed before the lookups of that instant.

    Of the runs of the night, which nobody sees anything of, the last of each kind is enough.
    """
    thrown, needed = replay.thrown, list(replay.thrown.store.selection("live").needed)
    due = [(DAY + dt.timedelta(hours=hour, minutes=minute), minute) for hour in range(24) for minute in HOURLY]
    landings: dict[dt.datetime, list[dict[str, Any]]] = {}
    for landing in replay.landed:
        row = {name: landing[name] for name in ("tail_number", "flight_id", "arrival_delay", "arrived_at")}
        landings.setdefault(landing["arrived_at"], []).append(row)
    for flight in replay.asked.to_pylist():
        now = flight["scheduled_at"]
        runs = {minute: time for time, minute in sorted(due) if time <= now}
        due = [each for each in due if each[0] > now]
        for minute, time in sorted(runs.items(), key=lambda run: run[1]):
            thrown.clock.set(time)
            thrown.store.materialize(HOURLY[minute])
        for time in [time for time in landings if time <= now]:
            thrown.clock.set(time)
            thrown.store.push("landed", landings.pop(time))
        thrown.clock.set(now)
        thrown.store.get_online_features({name: [flight[name]] for name in needed}, "live")
    thrown.clock.set(NEXT)
    thrown.store.materialize()


def test_a_day_of_flights_was_served_as_it_is_trained(replay: Replay) -> None:
    """Over all requests of the day, and all views, no value, status or event time differs from what training sees."""
    selection = replay.thrown.store.selection("live")
    found = replay.thrown.store.verify_log()
    names = [each.name for each in selection.lookups] + [each.name for each in selection.computed]
    assert [view.view for view in found.views] == names
    assert len(replay.asked) > 900
    assert {view.compared for view in found.views} == {len(replay.asked)}
    assert (found.differences, [view.notes for view in found.views]) == (0, [[]] * len(found.views))


def test_and_training_sees_what_the_rules_say(replay: Replay) -> None:
    """The oracle, which shares nothing with the engine, gives the same for a sample of the day's requests."""
    store, asked = replay.thrown.store, replay.asked
    sample = asked.take(pa.array(range(0, len(asked), 120)))
    spine = sample.select(list(store.selection("live").needed))
    assert assert_point_in_time(store, "departure_delay_v2", spine, timestamp_column="scheduled_at") > 150
    served = store.training_set_from_log("live", spine, timestamp_column="scheduled_at")
    trained = store.get_historical_features(spine, "live", timestamp_column="scheduled_at")
    assert served.unmatched == 0
    assert repr(served.to_dict()) == repr(trained.to_dict())


def test_and_pushed_landings_are_those_that_had_arrived(replay: Replay) -> None:
    """The pushed view serves the aircraft's last landing up to the request, however many minutes ago, within its TTL."""
    found = replay.thrown.store.training_set_from_log("live", replay.asked, timestamp_column="scheduled_at").to_arrow()
    half_a_day = dt.timedelta(hours=12)
    expected = [
        max(
            (
                (landing["arrived_at"], landing["flight_id"])
                for landing in replay.landed
                if landing["tail_number"] == flight["tail_number"]
                and flight["scheduled_at"] - half_a_day <= landing["arrived_at"] <= flight["scheduled_at"]
            ),
            default=(None, None),
        )[1]
        for flight in replay.asked.to_pylist()
    ]
    assert found["live_landing__flight_id"].to_pylist() == expected
    assert len(expected) - expected.count(None) > 200
