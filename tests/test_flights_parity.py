"""The flights example agrees with itself, on every key of every view, whatever has happened to it."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.online import embedded
from featurestore.parity.findings import Cause, Parity
from featurestore.testing import VirtualClock
from tests.conftest import CHECKOUT
from tests.flights import SOURCE, query

DAY = dt.datetime(2013, 7, 10, 12, tzinfo=dt.UTC)
FIRST = DAY - dt.timedelta(days=2)
LIVE = """
from featurestore import FeatureView, PushSource
from featurestore.types import Int32, String

from .entities import aircraft

landed = PushSource("landed", fields={"tail_number": String, "arrival_delay": Int32}, event_time="arrived_at")
live_landing = FeatureView("live_landing", entities=[aircraft], source=landed, fields={"arrival_delay": Int32}, ttl="12h")
"""
OVER_FLIGHTS = {"last_landing", "route_departure", "aircraft_delays", "carrier_delays", "route_delays"}
LATE = "flight_id % 10 = 0"
"""Which flights arrive in a file of their own, later."""


def flights(condition: str) -> pa.Table:
    """Return the flights of two days and the afternoon that follows, of some of the airlines."""
    end = DAY + dt.timedelta(hours=12)
    return query(f"FROM '{SOURCE}' WHERE scheduled_at BETWEEN '{FIRST}' AND '{end}' AND carrier < 'C' AND {condition}")


@dataclass
class Flights:
    """The example in a folder of its own, the store over it, and the present."""

    folder: Path
    store: FeatureStore
    clock: VirtualClock

    def reopen(self) -> None:
        """End the store and its online server, and begin anew."""
        self.store.close()
        self.store.stop()
        self.store = FeatureStore(self.folder, clock=self.clock)

    def change(self, file: str, before: str, after: str) -> None:
        """Change the definitions."""
        path = self.folder / file
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    def versions(self) -> dict[str, int]:
        """Return which version of each view serves."""
        return {version.view.name: version.number for version in self.store.registry.serving().versions}

    @property
    def tails(self) -> list[str]:
        """Aircraft that landed before noon and were pushed."""
        return sorted({row["tail_number"] for row in landings(DAY - dt.timedelta(hours=11), DAY)})

    def compared(self) -> Parity:
        """Compare all keys of all views, of which each has some."""
        found = self.store.verify(keys=None)
        assert [(view.view, view.skipped) for view in found.views if view.skipped or not view.compared] == []
        return found

    def assert_equal(self) -> None:
        """Assert that no key of any view is different, missing or extra."""
        found = self.compared()
        counts = {view.view: (view.different, view.missing_online, view.extra_online) for view in found.views}
        assert counts == dict.fromkeys(counts, (0, 0, 0))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The example with a few days of flights and a push view beside, applied, materialized and pushed to; at rest."""
    folder = tmp_path_factory.mktemp("flights") / "repo"
    shutil.copytree(
        CHECKOUT / "definitions", folder, ignore=shutil.ignore_patterns(".featurestore", "__pycache__", "flights.parquet")
    )
    sources = folder / "sources.py"
    sources.write_text(sources.read_text().replace("data/flights.parquet", "data/flights*.parquet"))
    pq.write_table(flights(f"NOT ({LATE})"), folder / "data/flights.parquet")
    (folder / "live.py").write_text(LIVE)
    with FeatureStore(folder, clock=VirtualClock(DAY)) as store:
        store.apply()
        store.materialize()
        store.push("landed", landings(DAY - dt.timedelta(hours=11), DAY))
        store.stop()
    yield folder
    embedded.stop(folder / ".featurestore/online")


@pytest.fixture
def example(prepared: Path, tmp_path: Path) -> Iterator[Flights]:
    """A copy of it, as it is at noon."""
    folder = shutil.copytree(prepared, tmp_path / "repo")
    clock = VirtualClock(DAY)
    made = Flights(folder, FeatureStore(folder, clock=clock), clock)
    yield made
    made.store.close()
    made.store.stop()


def landings(after: dt.datetime, until: dt.datetime) -> list[dict[str, Any]]:
    """Return the landings of some hours, as they are pushed."""
    columns, of_some = "tail_number, arrival_delay, arrived_at", "tail_number IS NOT NULL AND carrier < 'C'"
    text = f"SELECT {columns} FROM '{SOURCE}' WHERE arrived_at > '{after}' AND arrived_at <= '{until}' AND {of_some}"
    return query(text).to_pylist()


def test_after_incremental_runs_and_a_restart(example: Flights) -> None:
    """Run after run, and with store and online server begun anew."""
    example.assert_equal()
    for hours in ("1h", "3h"):
        example.clock.advance(hours)
        example.store.materialize()
        example.assert_equal()
    example.reopen()
    example.assert_equal()


def test_after_a_late_file_that_is_healed(example: Flights) -> None:
    """Flights in a file that came after the run are late rows of every view over flights, healed by a run over their days."""
    pq.write_table(flights(LATE), example.folder / "data/flights_late.parquet")
    found = example.compared()
    assert found.differences > 100
    assert {view.view for view in found.views if not view.is_equal} == OVER_FLIGHTS
    assert {cause for view in found.views for cause in view.causes} == {Cause.LATE_ROWS}
    example.store.materialize(sorted(OVER_FLIGHTS), start=FIRST, end=DAY)
    example.assert_equal()
    example.clock.advance("1h")
    example.store.materialize()
    example.assert_equal()


def test_after_a_version_change_and_a_rollback(example: Flights) -> None:
    """While the new versions wait, when they have taken over, and when the old ones serve again."""
    example.change("views.py", 'ttl="30d"', 'ttl="20d"')
    example.change("views.py", 'Aggregation("arrival_delay", "max", ["7d"])', 'Aggregation("arrival_delay", "max", ["1d"])')
    example.store.apply()
    example.assert_equal()
    assert example.versions()["last_landing"] == 1
    example.clock.advance("1h")
    example.store.materialize()
    example.assert_equal()
    assert (example.versions()["last_landing"], example.versions()["aircraft_delays"]) == (2, 2)
    example.store.rollback("last_landing")
    example.assert_equal()
    assert example.versions()["last_landing"] == 1
    example.clock.advance("1h")
    example.store.materialize()  # feeds both
    example.assert_equal()


def test_after_every_ttl_has_passed(example: Flights) -> None:
    """At the watermark when nothing has run since, and when runs have brought it behind the TTL of each row."""
    example.clock.advance("13h")
    example.assert_equal()
    example.clock.set(DAY + dt.timedelta(days=32))
    example.assert_equal()
    example.store.materialize()
    example.assert_equal()
    served = example.store.get_online_features({"tail_number": [example.tails[0]]}, ["last_landing:flight_id"])
    assert [each.name for each in served.statuses["last_landing"]] == ["OUTSIDE_MAX_AGE"]


def test_after_a_push(example: Flights) -> None:
    """Pushed landings, of aircraft that are known and new, at once, after the run that folds them, and again after a restart."""
    example.clock.advance("1h")
    pushed = landings(DAY, DAY + dt.timedelta(hours=1))
    example.store.push("landed", [*pushed, {"tail_number": "NEW", "arrival_delay": None, "arrived_at": DAY}])
    example.assert_equal()
    example.store.materialize()
    example.assert_equal()
    example.reopen()
    example.assert_equal()
    assert example.store.get_online_features({"tail_number": ["NEW"]}, ["live_landing:arrival_delay"]).to_dict() == {
        "tail_number": ["NEW"], "live_landing__arrival_delay": [None],
    }  # fmt: skip


def test_after_entities_are_deleted(example: Flights) -> None:
    """Aircraft and a route are gone from both sides, and stay away in the run that follows."""
    tails = example.tails[:3]
    example.store.delete_entities("aircraft", {"tail_number": tails})
    example.store.delete_entities("route", {"origin": ["EWR"], "destination": ["MIA"]})
    example.assert_equal()
    asked = example.store.get_online_features({"tail_number": tails}, ["last_landing:flight_id", "live_landing:arrival_delay"])
    assert asked.to_dict()["last_landing__flight_id"] == [None] * 3
    example.clock.advance("1h")
    example.store.materialize()
    example.assert_equal()
