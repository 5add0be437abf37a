"""Materialization and the online store, against the oracle and at its edges."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore import Entity, FeatureStore, FeatureView, FileSource
from featurestore.definitions import FeatureView as View
from featurestore.errors import (
    GapError,
    IncompleteError,
    InputError,
    NotFoundError,
    OnlineStoreError,
    RunInProgressError,
    RunsFailedError,
    SourceError,
)
from featurestore.materialize import offline_table
from featurestore.online import embedded
from featurestore.online.store import Status
from featurestore.registry.lease import lease
from featurestore.types import Int64
from tests.conftest import HOUR, NOON, TIME, Repo, at
from tests.oracle import Row, row_at, visible_time

Rows = list[dict[str, Any]]

KEYS = ("a", "b", "c")
OFFSETS = [-HOUR, -1, 0, 1, HOUR // 2, HOUR, HOUR + 1, 2 * HOUR, 3 * HOUR, 5 * HOUR]

source_row = st.fixed_dictionaries(
    {
        "key": st.sampled_from(KEYS),
        "at": st.sampled_from(OFFSETS).map(lambda offset: at(NOON + offset)),
        "made": st.one_of(st.none(), st.sampled_from(OFFSETS).map(lambda offset: at(NOON + offset))),
        "value": st.one_of(st.none(), st.integers(0, 9), st.just(2**53 + 1)),
    }
)
change = st.one_of(
    st.tuples(st.just("add"), st.lists(source_row, max_size=4)),
    st.tuples(st.just("correct"), st.integers(0, 50)),
    st.tuples(st.just("retract"), st.integers(0, 50)),
)
run_step = st.tuples(
    st.lists(change, max_size=3),
    st.sampled_from([0, 1, HOUR // 2, HOUR, 2 * HOUR]),  # how far the clock moves on
    st.one_of(st.none(), st.tuples(st.sampled_from(OFFSETS), st.sampled_from(OFFSETS))),  # an old interval to run again
)

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "refresh and delay": ({"delay": "10m"}, {"refresh": "1h"}),
    "created time": ({"created_time": "made"}, {"refresh": "1h", "ttl": "2h"}),
    "visible from created time": ({"created_time": "made", "visible_from": "created_time"}, {"refresh": "30m"}),
    "lookback": ({}, {"lookback": "1h"}),
    "history start": ({}, {"history_start": at(NOON)}),
}


def _view(variant: str) -> View:
    source, view = VARIANTS[variant]
    return FeatureView(
        "readings",
        entities=[Entity("thing", join_keys={"key": "String"})],  # type: ignore[dict-item]  # names of types are read too
        source=FileSource("readings_source", path="rows.parquet", event_time="at", **source),
        fields={"value": Int64},
        **view,
    )


def _write(folder: Path, rows: Rows) -> None:
    schema = pa.schema([("key", pa.string()), ("at", TIME), ("made", TIME), ("value", pa.int64())])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "rows.parquet")


def _changed(rows: Rows, changes: list[tuple[str, Any]]) -> Rows:
    rows = [dict(row) for row in rows]
    for kind, what in changes:
        if kind == "add":
            rows += what
        elif rows and kind == "correct":
            rows[what % len(rows)] = rows[what % len(rows)] | {"value": what}
        elif rows:
            del rows[what % len(rows)]
    return rows


def _within(view: View, row: Row, start: int | None, end: int) -> bool:
    visible = visible_time(view, row)
    assert visible is not None
    return (start is None or visible > start) and visible <= end


class _Model:
    """What the table holds, kept as T7 says: each run replaces its interval by what the source has then."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.rows: list[Row] = []

    def run(self, source: Rows, start: int | None, end: int) -> None:
        kept = [row for row in self.rows if not _within(self.view, row, start, end)]
        self.rows = kept + [row for row in source if _within(self.view, row, start, end)]

    def late(self, source: Rows, watermark: int) -> int:
        def values(rows: list[Row]) -> Counter[Any]:
            history = self.view.history_start
            start = None if history is None else (history - at(0)) // dt.timedelta(microseconds=1)
            names = ["key", "at", "value", *(["made"] if self.view.source.created_time else [])]
            return Counter(tuple(row[name] for name in names) for row in rows if _within(self.view, row, start, watermark))

        return (values(list(source)) - values(self.rows)).total()


@pytest.mark.parametrize("variant", VARIANTS)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(run_step, min_size=1, max_size=4))
def test_after_every_run_online_and_offline_equal_the_oracle_at_the_watermark(variant: str, steps: list[Any]) -> None:
    """Late rows, corrections, retractions and re-runs of old intervals: online is T4 at the watermark, for every key."""
    view = _view(variant)
    model, clock = _Model(view), [NOON]
    source: Rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "featurestore.toml").write_text('project = "test"')
        _write(folder, source)
        (folder / "views.py").write_text(_definition(variant))
        store = FeatureStore(folder, clock=lambda: clock[0])
        try:
            store.apply()
            assert store.applied().versions[0].view == view
            for changes, advance, again in steps:
                source = _changed(source, changes)
                _write(folder, source)
                clock[0] += advance
                _run_and_compare(store, model, source, clock[0], None)
                if again is not None and NOON + min(again) < NOON + max(again) <= clock[0]:
                    _run_and_compare(store, model, source, clock[0], (NOON + min(again), NOON + max(again)))
        finally:
            store.close()
            embedded.stop(folder / ".featurestore" / "online")


def _definition(variant: str) -> str:
    source, view = VARIANTS[variant]
    options = "".join(f", {name}={str(value)!r}" for name, value in view.items())
    sources = "".join(f", {name}={value!r}" for name, value in source.items())
    return f"""
from featurestore import *
from featurestore.types import *
thing = Entity("thing", join_keys={{"key": String}})
source = FileSource("readings_source", path="rows.parquet", event_time="at"{sources})
readings = FeatureView("readings", entities=[thing], source=source, fields={{"value": Int64}}{options})
"""


def _run_and_compare(store: FeatureStore, model: _Model, source: Rows, now: int, interval: tuple[int, int] | None) -> None:
    [version] = store.applied().versions
    watermark, view = version.watermark, version.view
    history = None if view.history_start is None else (view.history_start - at(0)) // dt.timedelta(microseconds=1)
    if interval is None:
        lookback = 0 if view.lookback is None else view.lookback // dt.timedelta(microseconds=1)
        start = history if watermark is None else watermark - lookback
        [report] = store.materialize()
        start, end = start if history is None or start is None else max(start, history), now
    else:
        start, end = interval
        [report] = store.materialize(start=start, end=end)
        start = start if history is None else max(start, history)
    if start is None or start < end:
        model.run(source, start, end)
    [version] = store.applied().versions
    assert version.watermark == max(end, watermark or end)
    assert report.late == (0 if watermark is None else model.late(source, watermark))
    expected = {key: row_at(view, model.rows, (key,), version.watermark) for key in KEYS}
    [rows] = store.online.read([(version, [pa.chunked_array([list(KEYS)])])], now=version.watermark)
    assert rows.features[0].to_pylist() == [_value(expected[key]) for key in KEYS]
    assert rows.event_times.filter(pa.array(rows.statuses == Status.PRESENT)).to_pylist() == [
        row["at"] for row in expected.values() if row
    ]
    assert [status == Status.PRESENT for status in rows.statuses] == [row is not None for row in expected.values()]
    spine = pa.table({"key": list(KEYS) * len(OFFSETS), "event_timestamp": np.repeat([NOON + each for each in OFFSETS], len(KEYS))})
    spine = spine.set_column(1, "event_timestamp", spine["event_timestamp"].cast(TIME))
    trained = store.get_historical_features(spine, ["readings:value"], incomplete="stale").to_dict()["readings__value"]
    assert trained == [_value(row_at(view, model.rows, (key,), NOON + each)) for each in OFFSETS for key in KEYS]


def _value(row: Mapping[str, Any] | None) -> Any:
    return None if row is None else row["value"]


def _table(store: FeatureStore, columns: list[str]) -> list[dict[str, Any]]:
    [version] = [each for each in store.applied().versions if each.state == "serving"]
    files = [pq.read_table(file.path, columns=columns) for file in store.snapshot(version).files]
    return pa.concat_tables(files).to_pylist() if files else []


def _temperatures(store: FeatureStore, *origins: str) -> list[float | None]:
    answer = store.get_online_features({"origin": list(origins)}, ["airport_weather:temperature"])
    values: list[float | None] = answer.to_dict()["airport_weather__temperature"]
    return values


def test_a_first_run_covers_from_the_beginning_and_the_next_goes_on_at_the_watermark(weather_repo: Repo) -> None:
    """T7: incremental by default; the watermark is the end of the last run."""
    store = weather_repo.open()
    store.apply()
    [first] = store.materialize()
    weather_repo.now += HOUR
    [second] = store.materialize()
    assert (first.start, first.end, first.rows) == (None, NOON, 2)
    assert (second.start, second.end, second.rows) == (NOON, NOON + HOUR, 1)


def test_running_again_changes_nothing(weather_repo: Repo) -> None:
    """An interval is replaced, so a re-run is idempotent offline and online."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    before = (_table(store, ["origin", "temperature"]), _temperatures(store, "EWR", "JFK"))
    [report] = store.materialize(start=at(NOON - 4 * HOUR), end=at(NOON))
    assert report.rows == 2
    assert (_table(store, ["origin", "temperature"]), _temperatures(store, "EWR", "JFK")) == before


def test_rows_without_key_or_event_time_are_skipped_and_counted(weather_repo: Repo) -> None:
    """Nothing is lost silently: what a run cannot place is in its report."""
    columns = {
        "origin": ["EWR", None, "EWR", None],
        "observed_at": pa.array([at(NOON - HOUR), at(NOON - HOUR), None, None], TIME),
        "temperature": [1.0, 2.0, 3.0, 4.0],
        "gusts": pa.array([1, 2, 3, 4], pa.int64()),
    }
    weather_repo.write("weather.parquet", columns)
    store = weather_repo.open()
    store.apply()
    [report] = store.materialize()
    assert (report.rows, report.null_keys, report.null_times) == (1, 1, 2)


def test_an_event_time_beyond_what_a_calendar_holds_is_skipped_and_counted(weather_repo: Repo) -> None:
    """Times outside the years 1 to 9999 cannot be compared with any timestamp that can be asked for."""
    times = pa.array([NOON - HOUR, 2**62, -(2**62)], pa.int64()).cast(TIME)
    columns = {"origin": ["EWR"] * 3, "observed_at": times, "temperature": [1.0, 2.0, 3.0], "gusts": pa.array([1, 2, 3])}
    weather_repo.write("weather.parquet", columns)
    store = weather_repo.open()
    store.apply()
    [report] = store.materialize()
    assert (report.rows, report.null_times) == (1, 2)


def test_late_rows_are_counted_until_a_lookback_heals_them(weather_repo: Repo) -> None:
    """T7: a row that arrives below the watermark is reported by every run until it is materialized."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    late = {
        "origin": ["EWR", "EWR"],
        "observed_at": pa.array([at(NOON - HOUR), at(NOON - 2 * HOUR)], TIME),
        "temperature": [21.0, 5.0],
        "gusts": pa.array([2**53 + 1, 1], pa.int64()),
    }
    weather_repo.write("weather.parquet", late)
    assert [store.materialize()[0].late for _ in range(2)] == [1, 1]
    [healed] = store.materialize(start=at(NOON - 3 * HOUR))
    assert (healed.late, store.materialize()[0].late) == (0, 0)


def test_a_gap_that_holds_rows_is_refused_and_names_the_interval(weather_repo: Repo) -> None:
    """T7: coverage has no holes, so a run that would leave one does nothing."""
    store = weather_repo.open()
    store.apply()
    with pytest.raises(GapError, match=r"'airport_weather' is covered until the beginning.*leave out 2 source rows"):
        store.materialize(start=at(NOON - 50 * HOUR // 60))
    store.materialize(end=at(NOON - 2 * HOUR))
    with pytest.raises(GapError, match=r"covered until 2013-06-01T10:00:00Z: a run from 2013-06-01T11:10:00Z"):
        store.materialize(start=at(NOON - 50 * HOUR // 60))
    [version] = store.applied().versions
    assert version.watermark == NOON - 2 * HOUR


def test_a_gap_without_rows_is_no_gap(weather_repo: Repo) -> None:
    """An interval in which nothing became visible may be skipped."""
    store = weather_repo.open()
    store.apply()
    [report] = store.materialize(start=at(NOON - 20 * HOUR))
    assert report.rows == 2


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (None, NOON + 1, "lies in the future"),
        (NOON, NOON, "is not before end"),
        ("yesterday", None, "start: expected a timestamp"),
        (None, "2013-13-01", "end: expected a timestamp"),
    ],
)
def test_a_wrong_interval_is_refused(weather_repo: Repo, start: Any, end: Any, message: str) -> None:
    """Materialization never lies beyond now, and an interval has a start before its end."""
    store = weather_repo.open()
    store.apply()
    with pytest.raises(InputError, match=message):
        store.materialize(start=start, end=end)
    assert store.runs() == []


def test_an_unknown_view_is_named_with_the_nearest(weather_repo: Repo) -> None:
    """Nothing runs when one of the views asked for does not exist."""
    store = weather_repo.open()
    store.apply()
    with pytest.raises(NotFoundError, match="'airport_wether'; did you mean 'airport_weather'"):
        store.materialize(["airport_weather", "airport_wether"])
    assert store.runs() == []


def test_chunks_of_a_backfill_are_files_with_disjoint_visible_times(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backfill is cut between days; the values are those of one run."""
    monkeypatch.setattr("featurestore.materialize._CHUNK_ROWS", 30)
    times = [NOON - (200 - each) * HOUR for each in range(200)]
    columns = {
        "origin": [f"A{each % 7}" for each in range(200)],
        "observed_at": pa.array([at(each) for each in times], TIME),
        "temperature": [float(each) for each in range(200)],
        "gusts": pa.array(range(200), pa.int64()),
    }
    weather_repo.write("weather.parquet", columns)
    store = weather_repo.open()
    store.apply()
    [report] = store.materialize()
    [version] = store.applied().versions
    files = store.snapshot(version).files
    assert report.chunks == len(files) > 3
    assert all(one.last < other.first for one, other in itertools.pairwise(files))
    assert _temperatures(store, "A0", "A1") == [196.0, 197.0]
    assert all(each.is_equal for each in store.check_parity())


def test_a_run_killed_between_chunks_goes_on_where_it_stopped(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is committed and covered by itself, so what is done is done."""
    monkeypatch.setattr("featurestore.materialize._CHUNK_ROWS", 1)
    times = [at(NOON - each * HOUR) for each in (80, 55, 30, 5)]
    columns = {"origin": ["EWR"] * 4, "observed_at": pa.array(times, TIME), "temperature": [1.0, 2.0, 3.0, 4.0]}
    columns["gusts"] = pa.array([1, 2, 3, 4])
    weather_repo.write("weather.parquet", columns)
    store = weather_repo.open()
    store.apply()
    cover, calls = store.registry.cover, []

    def fail_at_third(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        cover(*arguments)

    monkeypatch.setattr(store.registry, "cover", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        store.materialize()
    monkeypatch.setattr(store.registry, "cover", cover)
    [version] = store.applied().versions
    assert [run.status for run in store.runs()] == ["failed"]
    [report] = store.materialize()
    assert report.start == version.watermark
    assert report.rows == 2
    assert sorted(row["temperature"] for row in _table(store, ["temperature"])) == [1.0, 2.0, 3.0, 4.0]
    assert _temperatures(store, "EWR") == [4.0]


def test_a_process_killed_during_a_run_leaves_what_the_next_run_completes(weather_repo: Repo) -> None:
    """SIGKILL at any moment: the lease is free, the run is closed as failed, and a run gives the clean result."""
    count = 20_000
    columns = {
        "origin": [f"A{each % 5000}" for each in range(count)],
        "observed_at": pa.array(np.arange(NOON - count * 1_000_000, NOON, 1_000_000), pa.int64()).cast(TIME),
        "temperature": np.arange(count, dtype=float),
        "gusts": pa.array(range(count), pa.int64()),
    }
    weather_repo.write("weather.parquet", columns)
    weather_repo.now += HOUR
    store = weather_repo.open()
    store.apply()
    embedded.ensure_running(weather_repo.folder / ".featurestore" / "online")
    code = (
        "import sys; from featurestore import FeatureStore; import featurestore.materialize as m\n"
        "m._CHUNK_ROWS = 3000; m._LOAD_ROWS = 500\n"
        f"print('ready', flush=True); FeatureStore(sys.argv[1], clock=lambda: {weather_repo.now}).materialize()"
    )
    for delay in (0.02, 0.1, 0.2, 0.3, 0.4):
        process = subprocess.Popen([sys.executable, "-c", code, str(weather_repo.folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    store.materialize()
    assert sorted(row["temperature"] for row in _table(store, ["temperature"])) == list(range(count))
    [parity] = store.check_parity(keys=5000)
    assert (parity.compared, parity.is_equal) == (5000, True)
    assert {run.status for run in store.runs()} <= {"failed", "completed"}


def test_two_runs_on_one_view_exclude_each_other(weather_repo: Repo) -> None:
    """The second is refused at once, names the process that runs, and has done nothing."""
    store = weather_repo.open()
    store.apply()
    [version] = store.applied().versions
    with (
        lease(weather_repo.folder / ".featurestore" / "leases", version.uid, "view 'airport_weather'"),
        pytest.raises(RunInProgressError, match=f"'airport_weather' is being materialized by process {os.getpid()}"),
    ):
        store.materialize()
    assert store.runs() == []
    assert store.materialize()[0].rows == 2


def test_an_online_server_that_lost_its_rows_is_loaded_in_full(weather_repo: Repo) -> None:
    """T8: a missing marker makes the next run write every key, not only those that changed."""
    store = weather_repo.open()
    store.apply()
    weather_repo.now += HOUR
    store.materialize()
    store.online._client.flushall()
    assert _temperatures(store, "EWR", "JFK") == [None, None]
    [report] = store.materialize()
    assert (report.online_full, report.online_written) == (True, 2)
    assert _temperatures(store, "EWR", "JFK") == [21.0, None]


def test_rows_of_an_older_server_are_swept_by_a_full_load(weather_repo: Repo) -> None:
    """A server restored from a copy may hold keys that are gone since; a full load deletes them."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    client = store.online._client
    [version] = store.applied().versions
    saved = [(key, value) for key in client.keys("*") if isinstance(value := client.get(key), bytes)]
    schema = pa.schema([("origin", pa.string()), ("observed_at", TIME), ("temperature", pa.float64()), ("gusts", pa.int64())])
    weather_repo.write("weather.parquet", schema.empty_table())
    store.materialize(start=at(NOON - 10 * HOUR))
    client.flushall()
    for key, value in saved:
        client.set(key, value)
    [report] = store.materialize()
    assert report.online_full
    assert _temperatures(store, "EWR") == [None]
    assert store.online.count(version) == 0


def test_a_key_whose_rows_are_gone_is_deleted_online(weather_repo: Repo) -> None:
    """T7: a retraction reaches serving."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    assert _temperatures(store, "EWR") == [21.0]
    schema = pa.schema([("origin", pa.string()), ("observed_at", TIME), ("temperature", pa.float64()), ("gusts", pa.int64())])
    weather_repo.write("weather.parquet", schema.empty_table())
    [report] = store.materialize(start=at(NOON - 10 * HOUR))
    assert (report.rows, report.online_deleted) == (0, 1)
    assert _temperatures(store, "EWR") == [None]


def test_a_view_that_fails_does_not_keep_the_others_from_running(weather_repo: Repo) -> None:
    """All failures are reported together, each with its view; what succeeded is done."""
    weather_repo.define(
        """
        gate = Entity("gate", join_keys={"gate": String})
        gates = FileSource("gates", path="gates.parquet")
        gate_facts = FeatureView("gate_facts", entities=[gate], source=gates, fields={"width": Float64})
        """.replace("\n        ", "\n"),
        "gates.py",
    )
    weather_repo.write("gates.parquet", {"gate": ["A1"], "width": [3.5]})
    store = weather_repo.open()
    store.apply()
    (weather_repo.folder / "weather.parquet").unlink()
    with pytest.raises(RunsFailedError, match=r"1 of 2 views failed:\n  airport_weather: .*no Parquet file at") as caught:
        store.materialize()
    assert isinstance(caught.value.failures["airport_weather"], SourceError)
    assert store.get_online_features({"gate": ["A1"]}, ["gate_facts:width"]).to_dict()["gate_facts__width"] == [3.5]


@pytest.mark.parametrize("damage", ["missing", "no Parquet", "truncated", "column gone", "type changed"])
def test_a_damaged_source_is_one_clear_error_and_nothing_is_half_done(weather_repo: Repo, damage: str) -> None:
    """The error names the source or the view; table, coverage and online rows stay as they were."""
    path = weather_repo.folder / "weather.parquet"
    store = weather_repo.open()
    store.apply()
    store.materialize(end=at(NOON - HOUR // 2))
    table = pq.read_table(path)
    if damage == "missing":
        path.unlink()
    elif damage == "no Parquet":
        path.write_text("origin,observed_at\n")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "column gone":
        pq.write_table(table.drop_columns(["gusts"]), path)
    else:
        pq.write_table(table.set_column(2, "temperature", pa.array(["warm"] * 3)), path)
    with pytest.raises(SourceError, match="weather"):
        store.materialize()
    [version] = store.applied().versions
    assert version.watermark == NOON - HOUR // 2
    assert len(_table(store, ["origin"])) == 2
    assert _temperatures(store, "EWR") == [21.0]


def test_a_source_that_breaks_in_the_middle_leaves_no_file_behind(weather_repo: Repo) -> None:
    """A run that fails while it writes removes what it wrote, commits nothing, and blames the source."""
    sql = "SELECT origin, observed_at, temperature, CAST(text AS BIGINT) AS gusts FROM weather"
    text = (weather_repo.folder / "definitions.py").read_text().replace("source=weather,", f"source=weather, sql={sql!r},")
    (weather_repo.folder / "definitions.py").write_text(text)
    count = 300_000
    columns = {
        "origin": [f"A{each % 100}" for each in range(count)],
        "observed_at": pa.array([at(NOON - HOUR)] * count, TIME),
        "temperature": np.zeros(count),
        "text": ["1"] * (count - 1) + ["one"],
    }
    weather_repo.write("weather.parquet", columns)
    store = weather_repo.open()
    store.apply()
    with pytest.raises(SourceError, match=r"view 'airport_weather', source 'weather': .*'one'"):
        store.materialize()
    [version] = store.applied().versions
    assert (version.watermark, store.snapshot(version).files) == (None, ())
    assert [run.status for run in store.runs()] == ["failed"]
    assert list(offline_table(store.settings, version).folder.glob("*.parquet*")) == []


def test_an_online_store_that_does_not_answer_keeps_what_is_offline(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offline part of the run is done and covered; the next run loads what is missing online."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://user:secret@127.0.0.1:1/0")
    store = weather_repo.open()
    store.apply()
    with pytest.raises(OnlineStoreError, match=r"redis://user:\*\*\*@127.0.0.1:1/0 does not answer") as caught:
        store.materialize()
    assert "secret" not in str(caught.value)
    assert len(_table(store, ["origin"])) == 2
    monkeypatch.delenv("FEATURESTORE_ONLINE__URL")
    again = weather_repo.open()
    [report] = again.materialize()
    assert (report.rows, report.online_written) == (0, 1)
    assert _temperatures(again, "EWR") == [21.0]


def test_a_view_with_online_false_is_not_loaded(weather_repo: Repo) -> None:
    """`online=False` keeps a view out of the online store, and a lookup says so."""
    text = (weather_repo.folder / "definitions.py").read_text().replace('ttl="6h"', 'ttl="6h", online=False')
    (weather_repo.folder / "definitions.py").write_text(text)
    store = weather_repo.open()
    store.apply()
    [report] = store.materialize()
    assert (report.rows, report.online_written) == (2, 0)
    assert not embedded.is_running(weather_repo.folder / ".featurestore" / "online")
    with pytest.raises(InputError, match="'airport_weather' is not served online"):
        store.get_online_features({"origin": ["EWR"]}, "flight_weather")


STATIC = """
gate = Entity("gate", join_keys={"terminal": Int64, "gate": Int64})
gates = FileSource("gates", path="gates.parquet")
gate_facts = FeatureView("gate_facts", entities=[gate], source=gates, fields={"width": Float64})
"""


def _widths(store: FeatureStore) -> list[float | None]:
    keys = {"terminal": [1, 11, 2], "gate": [11, 1, 2]}
    widths: list[float | None] = store.get_online_features(keys, ["gate_facts:width"]).to_dict()["gate_facts__width"]
    return widths


def test_a_static_source_is_a_snapshot(repo: Repo) -> None:
    """T13: a run replaces the table and the online keys; past training rows see the present."""
    repo.define(STATIC)
    repo.write("gates.parquet", {"terminal": [1, 11], "gate": [11, 1], "width": [3.0, 4.0]})
    store = repo.open()
    store.apply()
    store.materialize()
    assert _widths(store) == [3.0, 4.0, None]
    repo.write("gates.parquet", {"terminal": [11, 2], "gate": [1, 2], "width": [5.0, 6.0]})
    [report] = store.materialize()
    assert (report.rows, report.online_written, report.online_deleted) == (2, 2, 1)
    assert _widths(store) == [None, 5.0, 6.0]
    spine = pa.table({"terminal": [2, 1], "gate": [2, 11], "event_timestamp": pa.array([at(0), at(NOON)], TIME)})
    assert store.get_historical_features(spine, ["gate_facts:width"]).to_dict()["gate_facts__width"] == [6.0, None]


def test_a_duplicate_key_in_a_static_source_is_refused(repo: Repo) -> None:
    """T13: the error names the key; what was there stays."""
    repo.define(STATIC)
    repo.write("gates.parquet", {"terminal": [1, 11], "gate": [11, 1], "width": [3.0, 4.0]})
    store = repo.open()
    store.apply()
    store.materialize()
    repo.write("gates.parquet", {"terminal": [1, 11, 1], "gate": [11, 1, 11], "width": [3.0, 4.0, 5.0]})
    with pytest.raises(SourceError, match="terminal=1, gate=11 stands in 2 rows"):
        store.materialize()
    assert _widths(store) == [3.0, 4.0, None]


def test_a_changed_view_serves_its_old_version_until_the_new_one_is_ready(weather_repo: Repo) -> None:
    """T11: a name means the serving version; the candidate takes over when it covers and is loaded."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    text = (weather_repo.folder / "definitions.py").read_text().replace('ttl="6h"', 'ttl="30m"')
    (weather_repo.folder / "definitions.py").write_text(text)
    plan = store.apply()
    assert [(new.number, new.replaces) for new in plan.new_versions] == [(2, 1)]
    assert _temperatures(store, "EWR") == [21.0]
    assert [report.version for report in store.materialize()] == [1, 2]
    assert _temperatures(store, "EWR") == [None]
    assert [(version.number, version.state) for version in store.applied().versions] == [(1, "replaced"), (2, "serving")]


def test_training_before_the_first_run_names_the_view(weather_repo: Repo) -> None:
    """A view that was never materialized has no values, and that is an error rather than nulls."""
    store = weather_repo.open()
    store.apply()
    spine = pa.table({"origin": ["EWR"], "event_timestamp": pa.array([at(NOON)], TIME)})
    with pytest.raises(IncompleteError, match="'airport_weather' is not materialized yet, 1 of 1 rows are later"):
        store.get_historical_features(spine, "flight_weather")


def test_runs_report_what_they_did(weather_repo: Repo) -> None:
    """The registry keeps each run with its interval, status and counts."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    [run] = store.runs()
    assert (run.view, run.version, run.start, run.end, run.status) == ("airport_weather", 1, None, NOON, "completed")
    assert json.loads(json.dumps(run.report))["rows"] == 2


def test_progress_counts_rows_of_both_phases(weather_repo: Repo) -> None:
    """Whoever watches a run sees rows done of rows to do, offline and then online."""
    store = weather_repo.open()
    store.apply()
    seen = []
    store.materialize(progress=lambda step: seen.append((step.view, step.phase, step.done, step.total)))
    assert seen == [("airport_weather", "offline", 2, 2), ("airport_weather", "online", 1, 2)]


def test_teardown_removes_everything_but_definitions_and_sources(weather_repo: Repo) -> None:
    """After teardown the repo is as it was before the first apply, and can begin anew."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    store.teardown()
    assert sorted(path.name for path in weather_repo.folder.iterdir() if path.name != "__pycache__") == [
        "definitions.py", "featurestore.toml", "weather.parquet"
    ]  # fmt: skip
    again = weather_repo.open()
    again.apply()
    again.materialize()
    assert _temperatures(again, "EWR") == [21.0]
