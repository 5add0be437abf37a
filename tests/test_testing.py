from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from featurestore.errors import IncompleteError, SettingsError
from featurestore.testing import Throwaway, VirtualClock, assert_parity, assert_point_in_time, throwaway_store
from tests.conftest import CHECKOUT, HOUR, NOON, TIME, Repo, at
from tests.flights import query

SERVICE = "flight_weather"
Make = Callable[..., Throwaway]


def spine(*rows: tuple[str | None, int]) -> pa.Table:
    """Return a spine of airports and instants."""
    times = pa.array([instant for _, instant in rows], pa.int64()).cast(TIME)
    return pa.table({"origin": pa.array([key for key, _ in rows], pa.string()), "event_timestamp": times})


@pytest.fixture
def weather(weather_repo: Repo, make_throwaway_store: Make) -> Throwaway:
    """The weather of `conftest.py`, thrown away at the end; it is noon."""
    return make_throwaway_store(weather_repo.folder, now=NOON)


def test_a_virtual_clock_stands_still_until_it_is_set() -> None:
    """It is set to a moment or moved on by a duration, in microseconds."""
    clock = VirtualClock("2013-06-01T12:00:00Z")
    assert (clock(), clock()) == (NOON, NOON)
    assert (clock.advance("90m"), clock()) == (NOON + 3 * HOUR // 2,) * 2
    assert (clock.set(at(NOON)), clock()) == (NOON, NOON)


def test_a_throwaway_store_touches_nothing_of_the_folder_and_leaves_nothing(
    weather_repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings and variables that lead to what serves are not followed; the copy, its server and its state are gone at the end."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://127.0.0.1:1/0")
    (weather_repo.folder / "featurestore.toml").write_text('project = "shop"\nregistry.url = "postgresql://nowhere.invalid/x"\n')
    before = sorted(weather_repo.folder.rglob("*"))
    with throwaway_store(weather_repo.folder, now=NOON) as thrown:
        thrown.store.apply()
        thrown.store.materialize()
        assert thrown.store.get_online_features({"origin": ["EWR"]}, SERVICE).to_dict()["airport_weather__temperature"] == [21.0]
        pid = int((thrown.folder / ".featurestore/online/server.pid").read_text())
    assert sorted(weather_repo.folder.rglob("*")) == before
    assert not thrown.folder.parent.exists()
    assert not Path(f"/proc/{pid}/exe").exists()


def test_it_is_removed_when_the_test_fails_and_a_folder_without_settings_is_refused(weather_repo: Repo, tmp_path: Path) -> None:
    """What a block raises comes out, and the copy is gone; a folder that is no repo is an error that says so."""
    with pytest.raises(ZeroDivisionError), throwaway_store(weather_repo.folder, now=NOON) as thrown:
        raise ZeroDivisionError
    assert not thrown.folder.parent.exists()
    with pytest.raises(SettingsError, match=r"no featurestore\.toml"), throwaway_store(tmp_path):
        pass


def test_data_can_be_left_out_and_is_replaced_without_writing_through_a_link(weather_repo: Repo) -> None:
    """`leave_out` keeps data from being copied, and `write` replaces a link instead of what it leads to."""
    original = weather_repo.folder / "weather.parquet"
    content = original.read_bytes()
    with throwaway_store(weather_repo.folder, now=NOON, leave_out=["*.parquet"]) as thrown:
        copy = thrown.folder / "weather.parquet"
        assert not copy.exists()
        copy.symlink_to(original)
        thrown.write("weather.parquet", [{"origin": "LGA", "observed_at": at(NOON - HOUR), "temperature": 1.0, "gusts": 2}])
        assert pq.read_table(copy)["origin"].to_pylist() == ["LGA"]
    assert original.read_bytes() == content


def test_parity_holds_and_is_lost_when_a_row_is_written_beside_the_store(weather: Throwaway) -> None:
    """`assert_parity` names service, key, feature and both values of what differs."""
    store = weather.store
    store.apply()
    store.materialize()
    assert assert_parity(store, SERVICE) == 2
    assert assert_parity(store, ["airport_weather:gusts"], {"origin": ["EWR", None, "ZZZ"]}) == 3
    [version] = store.applied().versions_of("airport_weather")
    row = pa.table({"temperature": [99.0], "gusts": pa.array([1], pa.int64())})
    store.online.write(
        version, [pa.chunked_array([["EWR"]])], row, pa.chunked_array([pa.array([at(NOON - HOUR)], TIME)]), run=99, now=NOON
    )
    with pytest.raises(
        AssertionError, match=r"differ in 1 of 1 rows(.|\n)*origin='EWR': airport_weather__temperature is 99.0 as served"
    ):
        assert_parity(store, SERVICE)


def test_parity_of_what_is_not_materialized_is_an_error(weather: Throwaway) -> None:
    """A present beyond the watermark is no difference, and not silently left out: the message says to materialize."""
    weather.store.apply()
    weather.store.materialize()
    weather.clock.advance("2h")
    with pytest.raises(IncompleteError, match="Materialize"):
        assert_parity(weather.store, SERVICE)
    weather.store.materialize()
    assert assert_parity(weather.store, SERVICE) == 4


def test_training_sets_are_those_of_the_oracle_and_a_wrong_table_is_told(weather: Throwaway) -> None:
    """`assert_point_in_time` reads the sources itself: rows that the table lacks are differences."""
    store = weather.store
    store.apply()
    store.materialize()
    asked = spine(("EWR", NOON), ("EWR", NOON - HOUR), (None, NOON), ("JFK", NOON), ("EWR", NOON + HOUR // 6 - 1))
    assert assert_point_in_time(store, SERVICE, asked) == 10
    rows = pq.read_table(weather.folder / "weather.parquet")
    changed = rows.set_column(2, "temperature", pc.add(rows["temperature"], 1.0))
    weather.write("weather.parquet", changed)  # a correction that no run has seen
    with pytest.raises(AssertionError, match=r"temperature is 21.0 as trained, 22.0 as expected"):
        assert_point_in_time(store, SERVICE, asked)


@pytest.fixture(scope="module")
def flights() -> Iterator[Throwaway]:
    """The flights example with the flights of one day, which the oracle can read; it is the day's evening."""
    day = "2013-02-02"
    with throwaway_store(CHECKOUT / "definitions", now=f"{day}T20:00:00Z", leave_out=["flights.parquet"]) as thrown:
        source = CHECKOUT / "definitions/data/flights.parquet"
        rows = query(
            f"FROM '{source}' WHERE scheduled_at BETWEEN '{day}' AND TIMESTAMP '{day}' + INTERVAL 1 DAY AND flight_id % 4 = 0"
        )
        thrown.write("data/flights.parquet", rows)
        thrown.store.apply()
        thrown.store.materialize()
        yield thrown


def test_the_flights_example_is_what_the_rules_say(flights: Throwaway) -> None:
    """Every view of the example, windows, SQL and aliases included, is as the oracle says, and served as it is trained."""
    source = flights.folder / "data/flights.parquet"
    keys = "tail_number, origin, destination, carrier"
    asked = query(
        f"SELECT {keys}, scheduled_at AS event_timestamp FROM '{source}' WHERE flight_id % 28 = 0 AND hour(scheduled_at) < 20"
    )
    assert len(asked) > 15
    assert assert_point_in_time(flights.store, "departure_delay_v1", asked) > 400
    assert assert_parity(flights.store, "departure_delay_v1", keys=50) > 1000


def test_the_kit_is_not_paid_for_by_those_who_do_not_ask_for_it() -> None:
    """No entry point loads it into every pytest, and `featurestore.testing` itself does not need pytest."""
    code = "import sys, featurestore.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    from importlib.metadata import entry_points

    assert [each for each in entry_points(group="pytest11") if each.value.startswith("featurestore")] == []
