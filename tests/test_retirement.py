"""T11 with tables and servers: what runs feed, what a rollback reaches, and what is removed of the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.errors import RollbackError, RunsFailedError
from featurestore.functions import copy_name, keep_copy, remove_copies
from featurestore.materialize import offline_table
from featurestore.registry.state import Version
from featurestore.retirement import KEPT_MICROS
from featurestore.runs import fed_versions
from tests.conftest import HOUR, NOON, TIME, WEATHER, Repo, at
from tests.contents import temperatures


def define_ttl(repo: Repo, ttl: str) -> None:
    """Define the weather view with another ttl, which makes a new version."""
    repo.define(WEATHER.replace('ttl="6h"', f'ttl="{ttl}"'))


def observe(repo: Repo, *rows: tuple[str, int, float]) -> None:
    """Write the weather's source anew."""
    columns = {
        "origin": [origin for origin, _, _ in rows],
        "observed_at": pa.array([at(time) for _, time, _ in rows], TIME),
        "temperature": [temperature for _, _, temperature in rows],
        "gusts": pa.nulls(len(rows), pa.int64()),
    }
    repo.write("weather.parquet", columns)


def states(store: FeatureStore) -> list[str]:
    """Return the states of the weather view's versions, oldest first."""
    return [version.state for version in store.applied().versions_of("airport_weather")]


def left(store: FeatureStore, version: Version) -> tuple[bool, int]:
    """Return whether a version's table is there, and how many online rows it has."""
    return offline_table(store.settings, version).folder.exists(), store.online.count(version)


@pytest.fixture
def on_database(database_url: str, weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """The weather's repo with its registry on each kind of database."""
    monkeypatch.setenv("FEATURESTORE_REGISTRY__URL", database_url)
    return weather_repo


def test_a_rollback_serves_up_to_date_values_at_once(on_database: Repo) -> None:
    """Runs feed the version before as well, so a rollback gives the newest rows by its own definition, in lookup and training."""
    store = on_database.open()
    store.apply()
    store.materialize()
    define_ttl(on_database, "30m")
    store.apply()
    store.materialize()
    assert temperatures(store, "EWR") == [None]
    on_database.now += 2 * HOUR
    observe(on_database, ("EWR", NOON - HOUR, 21.0), ("EWR", NOON + HOUR // 2, -7.0))
    reports = store.materialize()
    assert [(report.version, report.rows, report.error) for report in reports] == [(2, 1, None), (1, 1, None)]
    assert temperatures(store, "EWR") == [None]
    done = store.rollback("airport_weather")
    assert done.versions == {"airport_weather": (2, 1)}
    assert temperatures(store, "EWR") == [-7.0]
    spine = pa.table({"origin": ["EWR"], "event_timestamp": pa.array([at(on_database.now)], TIME)})
    training = store.get_historical_features(spine, "flight_weather").to_dict()
    assert training["airport_weather__temperature"] == [-7.0]
    [parity] = store.verify(keys=None).views
    assert (parity.compared, parity.is_equal) == (1, True)


def test_a_version_that_has_just_been_replaced_can_serve_again(weather_repo: Repo) -> None:
    """All versions of one call are brought to one present, so no further run is needed before a rollback."""
    ticks = iter(range(NOON, NOON + 10**9, 1_000_000))
    store = weather_repo.open()
    store.clock = lambda: next(ticks)
    store.apply()
    store.materialize()
    define_ttl(weather_repo, "5h")
    store.apply()
    store.materialize()
    assert states(store) == ["replaced", "serving"]
    store.rollback("airport_weather")
    assert states(store) == ["serving", "replaced"]


def test_a_kept_version_that_cannot_be_fed_fails_no_run(weather_repo: Repo) -> None:
    """Where the source no longer has what the version before needs, the run does its work and says so in that report."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    weather_repo.define(WEATHER.replace(', Field("gusts", Int64)', ""))
    store.apply()
    store.materialize()
    table = {"origin": ["EWR"], "observed_at": pa.array([at(NOON + HOUR)], TIME), "temperature": [3.5]}
    weather_repo.write("weather.parquet", table)
    weather_repo.now += 3 * HOUR
    served, kept = store.materialize()
    assert (served.version, served.rows, served.error) == (2, 1, None)
    assert kept.version == 1
    assert "gusts" in (kept.error or "")
    assert temperatures(store, "EWR") == [3.5]
    with pytest.raises(RollbackError, match="needs materialization until"):
        store.rollback("airport_weather")
    (weather_repo.folder / "weather.parquet").unlink()
    with pytest.raises(RunsFailedError, match="1 of 2 views failed"):
        store.materialize()


def test_what_no_rollback_reaches_is_removed_an_hour_later(on_database: Repo) -> None:
    """Serving version and the one before stay; table, rows and marker of older ones go at the end of a run, once an hour old."""
    store = on_database.open()
    for ttl in ("4h", "5h", "6h"):
        define_ttl(on_database, ttl)
        store.apply()
        store.materialize()
    first, second, third = store.applied().versions
    assert left(store, first) == (True, 1)
    on_database.now += KEPT_MICROS - 1
    store.materialize()
    assert left(store, first) == (True, 1)
    on_database.now += 1
    store.materialize()
    assert (left(store, first), store.online.loaded_run(first)) == ((False, 0), None)
    assert left(store, second)[0]
    assert states(store) == ["removed", "replaced", "serving"]
    assert temperatures(store, "EWR") == [21.0]
    store.rollback("airport_weather")
    assert left(store, third)[0]


def test_a_dropped_candidate_is_removed(weather_repo: Repo) -> None:
    """A candidate that a later apply has overtaken leaves nothing; one that was never materialized has nothing to leave."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    define_ttl(weather_repo, "5h")
    store.apply()
    store.materialize(end=at(NOON - HOUR))
    assert states(store) == ["serving", "candidate"]
    define_ttl(weather_repo, "4h")
    store.apply()
    define_ttl(weather_repo, "3h")
    store.apply()
    _, overtaken, unused, _ = store.applied().versions
    assert left(store, overtaken)[0]
    assert [(each.version, each.is_complete) for each in store.prune(now=True)] == [(2, True), (3, True)]
    assert (left(store, overtaken), left(store, unused)) == ((False, 0), (False, 0))
    assert states(store) == ["serving", "removed", "removed", "candidate"]
    assert store.prune(now=True) == []


def test_a_version_under_a_run_is_left_for_the_next_time(weather_repo: Repo) -> None:
    """Nothing is removed under a run that still writes; the next one removes it."""
    store = weather_repo.open()
    for ttl in ("4h", "5h", "6h"):
        define_ttl(weather_repo, ttl)
        store.apply()
        store.materialize()
    first = store.applied().versions[0]
    with store.registry.lease(first):
        assert store.prune(now=True) == []
    assert [each.version for each in store.prune(now=True)] == [1]


def test_removal_goes_on_after_a_limit(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run removes so many online rows at most; the table goes when no row is left."""
    count = 1200
    times = pa.array([at(NOON - HOUR)] * count, TIME)
    columns = {"origin": [f"A{each}" for each in range(count)], "observed_at": times, "temperature": [1.5] * count}
    weather_repo.write("weather.parquet", columns | {"gusts": pa.nulls(count, pa.int64())})
    store = weather_repo.open()
    for ttl in ("4h", "5h", "6h"):
        define_ttl(weather_repo, ttl)
        store.apply()
        store.materialize()
    first, second, third = store.applied().versions
    monkeypatch.setattr("featurestore.runs.KEYS_PER_RUN", 500)
    weather_repo.now += KEPT_MICROS
    seen = []
    for _ in range(3):
        store.materialize()
        seen.append((states(store)[0], *left(store, first)))
    assert seen == [("removing", True, 700), ("removing", True, 200), ("removed", False, 0)]
    assert store.online.count(second) == store.online.count(third) == count


def test_a_copy_of_code_that_is_taken_up_again_is_as_one_just_made(tmp_path: Path) -> None:
    """However old it is, no removal takes it from an apply that is about to need it."""
    root, state = tmp_path / "repo", tmp_path / "state"
    root.mkdir()
    (root / "definitions.py").write_text("x = 1\n")
    name = copy_name(root)
    for _ in range(2):
        keep_copy(root, state, name)
        remove_copies(state, [], kept_seconds=3600)
        assert (state / "code" / name / "definitions.py").exists()
        os.utime(state / "code" / name, (0, 0))
    remove_copies(state, [], kept_seconds=3600)
    assert not (state / "code" / name).exists()


KILLED = """
import os, signal, sys
import featurestore.retirement as retirement
from featurestore import FeatureStore
store = FeatureStore(sys.argv[1])
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
target, name = {"online": (store.online, "drop"), "table": (retirement.shutil, "rmtree"), "record": (store.registry, "mark_removed")}[sys.argv[2]]
if sys.argv[3] == "after":
    before = getattr(target, name)
    setattr(target, name, lambda *given, **named: (before(*given, **named), die()))
else:
    setattr(target, name, die)
store.prune(now=True)
"""  # noqa: E501 (a program of its own)


@pytest.mark.parametrize(
    "moment", [("online", "before"), ("online", "after"), ("table", "before"), ("table", "after"), ("record", "before")]
)
def test_a_removal_that_was_killed_is_completed_by_the_next(weather_repo: Repo, moment: tuple[str, str]) -> None:
    """SIGKILL before or after each step: the next removal leaves nothing, and what serves is untouched."""
    store = weather_repo.open()
    for ttl in ("4h", "5h", "6h"):
        define_ttl(weather_repo, ttl)
        store.apply()
        store.materialize()
    first = store.applied().versions[0]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(weather_repo.folder), *moment], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert states(store) == ["removing", "replaced", "serving"]
    assert [each.version for each in store.prune()] == [1]
    assert (left(store, first), states(store)[0]) == ((False, 0), "removed")
    assert temperatures(store, "EWR") == [21.0]


def test_a_run_on_a_version_that_was_removed_is_refused(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that was overtaken and removed after a run had chosen it gets no table again."""
    store, other = weather_repo.open(), weather_repo.open()
    store.apply()
    store.materialize()
    define_ttl(weather_repo, "5h")
    store.apply()
    stale = fed_versions(store.registry, None)
    define_ttl(weather_repo, "4h")
    other.apply()
    other.prune(now=True)
    monkeypatch.setattr("featurestore.runs.fed_versions", lambda *_: stale)
    with pytest.raises(RunsFailedError, match="version 2 of view 'airport_weather' has been removed; run again"):
        store.materialize()
    assert left(store, stale[1]) == (False, 0)


def test_teardown_leaves_nothing_on_either_database(on_database: Repo) -> None:
    """After a teardown the repo can begin anew."""
    store = on_database.open()
    store.apply()
    store.materialize()
    store.teardown()
    again = on_database.open()
    assert again.applied().specs == {}
    again.apply()
    again.materialize()
    assert temperatures(again, "EWR") == [21.0]


APPLY = """
import sys, time
from featurestore import FeatureStore
from featurestore.errors import ConflictError
with FeatureStore(sys.argv[1]) as store:
    plan = store.plan()
    print("planned", flush=True)
    sys.stdin.readline()
    try:
        store.apply(plan)
    except ConflictError:
        print("refused")
    else:
        print("applied")
"""


def test_of_two_applies_from_two_processes_one_succeeds(on_database: Repo) -> None:
    """No update is lost: of two processes that planned from one state, the second is refused and has changed nothing."""
    on_database.open().plan()
    command = [sys.executable, "-c", APPLY, str(on_database.folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "planned\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = sorted(process.communicate(timeout=60)[0] for process in processes)
    assert answers == ["applied\n", "refused\n"]
    store = on_database.open()
    assert (store.applied().revision, states(store)) == (1, ["serving"])


RUN = """
import sys
from featurestore import FeatureStore
from featurestore.errors import RunInProgressError
with FeatureStore(sys.argv[1], clock=lambda: int(sys.argv[2])) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(store.materialize()[0].rows)
    except RunInProgressError:
        print("refused")
"""


def test_of_two_runs_from_two_processes_each_row_is_written_once(on_database: Repo, make_rows: Callable[[int], None]) -> None:
    """Two processes that materialize at once exclude each other or follow each other; the table is that of one run."""
    make_rows(50_000)
    store = on_database.open()
    store.apply()
    store.online.ping()
    command = [sys.executable, "-c", RUN, str(on_database.folder), str(NOON)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=100)[0].strip() for process in processes]
    assert "50000" in answers
    assert set(answers) <= {"50000", "0", "refused"}
    [version] = store.applied().versions
    assert (store.snapshot(version).rows, store.online.count(version)) == (50_000, 1000)


@pytest.fixture
def make_rows(weather_repo: Repo) -> Callable[[int], None]:
    """Write so many rows of a thousand airports, all visible at noon."""

    def make(count: int) -> None:
        times = pa.array(range(NOON - HOUR - count, NOON - HOUR), pa.int64()).cast(TIME)
        columns = {"origin": [f"A{each % 1000}" for each in range(count)], "observed_at": times, "temperature": [1.5] * count}
        weather_repo.write("weather.parquet", columns | {"gusts": pa.nulls(count, pa.int64())})

    return make
