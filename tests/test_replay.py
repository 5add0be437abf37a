"""One day of the flights example as live traffic, under the virtual clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from featurestore.clock import to_micros
from featurestore.testing import Throwaway, assert_point_in_time, throwaway_store
from tests.conftest import CHECKOUT

SERVICE = "departure_delay_v1"
DAY = dt.datetime(2013, 7, 10, tzinfo=dt.UTC)
NEXT = DAY + dt.timedelta(days=1)
DAYS_BEFORE = 3
KEYS = ["tail_number", "origin", "destination", "carrier"]
HOURLY = {
    5: ["last_landing", "route_departure", "aircraft_delays", "carrier_delays", "route_delays"],
    10: ["airport_weather"],
}
"""Which views have something new, by the minute of the hour: what `refresh` and `delay` of the example declare."""


def flights(first: dt.datetime) -> pa.Table:
    """Return the flights scheduled from then on to the end of the day, by their departure."""
    source = CHECKOUT / "definitions/data/flights.parquet"
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        query = f"FROM '{source}' WHERE scheduled_at >= '{first}' AND scheduled_at < '{NEXT}' ORDER BY scheduled_at, flight_id"
        return pa.Table.from_batches(connection.sql(query).to_arrow_reader())


@pytest.fixture(scope="module")
def replayed() -> Iterator[tuple[Throwaway, pa.Table]]:
    """A day served: each of its flights looked up by itself at its scheduled departure, views materialized as they declare.

    The example's source is cut to the day and a few days before, so that a run takes little; the requests are all of the day's.
    """
    with throwaway_store(CHECKOUT / "definitions", now=DAY, leave_out=["flights.parquet"], logged=1.0) as thrown:
        thrown.write("data/flights.parquet", flights(DAY - dt.timedelta(days=DAYS_BEFORE)))
        thrown.store.apply()
        thrown.store.materialize()
        day = flights(DAY)
        serve(thrown, day, [to_micros(DAY + dt.timedelta(hours=hour)) for hour in range(24)])
        yield thrown, day


def serve(thrown: Throwaway, day: pa.Table, hours: list[int]) -> None:
    """Serve a day: what is due at an instant is materialized before the lookups of that instant.

    Of the runs of the night, which nobody sees anything of, the last of each kind is enough.
    """
    due = sorted(((hour + minute * 60_000_000, views) for hour in hours for minute, views in HOURLY.items()), reverse=True)
    for flight in day.to_pylist():
        now = to_micros(flight["scheduled_at"])
        runs: dict[tuple[str, ...], int] = {}
        while due and due[-1][0] <= now:
            time, names = due.pop()
            runs[tuple(names)] = time
        for views, time in sorted(runs.items(), key=lambda run: run[1]):
            thrown.clock.set(time)
            thrown.store.materialize(views)
        thrown.clock.set(now)
        thrown.store.get_online_features({name: [flight[name]] for name in KEYS}, SERVICE)
    thrown.clock.set(NEXT)
    thrown.store.materialize()


def test_a_day_of_flights_was_served_as_it_is_trained(replayed: tuple[Throwaway, pa.Table]) -> None:
    """Over all requests of the day, and all views, no value, status or event time differs from what training sees."""
    thrown, day = replayed
    found = thrown.store.verify_log()
    assert [view.view for view in found.views] == [each.name for each in thrown.store.selection(SERVICE).lookups]
    assert len(day) > 900
    assert {view.compared for view in found.views} == {len(day)}
    assert (found.differences, [view.notes for view in found.views]) == (0, [[]] * len(found.views))


def test_and_training_sees_what_the_rules_say(replayed: tuple[Throwaway, pa.Table]) -> None:
    """The oracle, which shares nothing with the engine, gives the same for a sample of the day's requests."""
    thrown, day = replayed
    spine = day.select([*KEYS, "scheduled_at"]).take(pa.array(range(0, len(day), 120)))
    assert assert_point_in_time(thrown.store, SERVICE, spine, timestamp_column="scheduled_at") > 150
    served = thrown.store.training_set_from_log(SERVICE, spine, timestamp_column="scheduled_at")
    trained = thrown.store.get_historical_features(spine, SERVICE, timestamp_column="scheduled_at")
    assert served.unmatched == 0
    assert served.to_dict() == trained.to_dict()
