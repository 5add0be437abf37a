from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.errors import InputError, OnlineStoreError
from featurestore.online.store import OnlineLoad
from tests.commands import Run
from tests.conftest import HOUR, NOON, TIME, Repo, at


def temperatures(store: FeatureStore) -> list[Any]:
    """Look both airports up."""
    values: list[Any] = store.get_online_features({"origin": ["EWR", "JFK"]}, "flight_weather").to_dict()[
        "airport_weather__temperature"
    ]
    return values


def test_a_lost_server_is_rebuilt_out_of_the_tables_alone(weather_repo: Repo) -> None:
    """The sources may be gone: `sync` writes every key, and the values are those of before, bit for bit."""
    weather_repo.now += HOUR
    store = weather_repo.open()
    store.apply()
    store.materialize()
    before = temperatures(store)
    store.online._client.flushall()
    (weather_repo.folder / "weather.parquet").unlink()
    [report] = store.sync()

    assert (report.online_full, report.online_written, report.rows) == (True, 2, 0)
    assert temperatures(store) == before == [21.0, None]
    assert all(each.is_equal and each.compared == 2 for each in store.verify(keys=None).views)
    assert [run.status for run in store.runs()] == ["completed", "completed"]


def test_without_anything_to_do_nothing_is_written(weather_repo: Repo) -> None:
    """After a completed load there is nothing to write; `full` writes all the same."""
    weather_repo.now += HOUR
    store = weather_repo.open()
    store.apply()
    store.materialize()

    assert [(each.online_full, each.online_written) for each in store.sync()] == [(False, 0)]
    assert [(each.online_full, each.online_written) for each in store.sync(full=True)] == [(True, 2)]
    assert [(each.online_full, each.online_written) for each in store.sync(["airport_weather"])] == [(False, 0)]


def test_sync_completes_what_a_failed_load_left(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A materialization whose load failed is not repeated: `sync` loads the keys that it touched, and no others."""
    weather_repo.now += HOUR
    store = weather_repo.open()
    store.apply()
    store.materialize()
    weather_repo.now += HOUR
    weather_repo.write(
        "weather.parquet",
        {
            "origin": ["JFK"],
            "observed_at": pa.array([at(NOON + HOUR // 4)], TIME),
            "temperature": [30.0],
            "gusts": pa.array([1], pa.int64()),
        },
    )
    with monkeypatch.context() as patch:
        patch.setattr(OnlineLoad, "finish", _failing)
        with pytest.raises(OnlineStoreError, match="gone"):
            store.materialize()
    [report] = store.sync()

    assert (report.online_full, report.online_written, report.online_deleted) == (False, 1, 0)
    assert temperatures(store) == [21.0, 30.0]


def _failing(_load: OnlineLoad) -> None:
    raise OnlineStoreError("gone")


def test_serving_goes_on_during_a_sync(weather_repo: Repo) -> None:
    """While every row is written anew, a lookup finds what it found before."""
    weather_repo.now += HOUR
    store = weather_repo.open()
    store.apply()
    store.materialize()
    seen, end = set(), threading.Event()

    def look() -> None:
        while not end.is_set():
            seen.add(tuple(temperatures(store)))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(5):
            store.sync(full=True)
    finally:
        end.set()
        reader.join()

    assert seen == {(21.0, None)}


@pytest.mark.parametrize(("setting", "is_materialized"), [(", online=False", True), ("", False)])
def test_a_view_that_has_nothing_to_load_is_named(weather_repo: Repo, setting: str, is_materialized: bool) -> None:
    """Of all views those without online rows are left out; one that is named is an error."""
    definitions = weather_repo.folder / "definitions.py"
    definitions.write_text(definitions.read_text().replace('ttl="6h"', f'ttl="6h"{setting}'))
    store = weather_repo.open()
    store.apply()
    if is_materialized:
        store.materialize()

    assert store.sync() == []
    with pytest.raises(InputError, match="'airport_weather' has nothing to load") as error:
        store.sync(["airport_weather"])
    assert error.value.name == "airport_weather"


def test_the_command_reports_its_runs(run: Run, fresh: Path) -> None:
    """`sync` answers as `materialize` does; --views takes names, --max-rate a bound."""
    run("materialize", repo=fresh)
    [report] = run("sync", "--full", "--max-rate", "1000", "--json", repo=fresh).json()["reports"]
    assert (report["view"], report["online_full"], report["online_written"], report["rows"]) == ("machine_health", True, 3, 0)

    header, row = run("sync", "--views", "machine_health", repo=fresh).out.splitlines()
    assert header.split()[0] == "view"
    assert row.split()[0] == "machine_health"
    assert run("sync", "--views", "machine_helth", repo=fresh).code == 1


def test_a_rate_bounds_a_load(make_repo: Callable[..., Repo]) -> None:
    """A load of 300 rows at 200 rows per second takes the second that it has to, however fast the server is."""
    repo = make_repo()
    repo.define("""
thing = Entity("thing", join_keys={"id": Int64})
things = FileSource("things", path="things.parquet")
view = FeatureView("view", entities=[thing], source=things, fields={"n": Int64})
""")
    repo.write("things.parquet", {"id": list(range(300)), "n": list(range(300))})
    store = repo.open()
    store.apply()
    store.materialize()
    began = time.monotonic()
    store.sync(full=True, max_rate=200)

    # The first frame leaves at once, the last when the others' time is over.
    assert time.monotonic() - began > (300 - 64) / 200 * 0.9
