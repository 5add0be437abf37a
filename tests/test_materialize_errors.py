from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import (
    IncompleteError,
    InputError,
    NotFoundError,
    OfflineStoreError,
    OnlineStoreError,
    RunInProgressError,
    RunsFailedError,
    SourceError,
)
from featurestore.materialize import offline_table
from featurestore.offline.tables import OfflineTable
from featurestore.online import embedded
from tests.conftest import HOUR, NOON, TIME, WEATHER, Repo, at
from tests.contents import table_rows, temperatures


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
    assert sorted(row["temperature"] for row in table_rows(store, ["temperature"])) == [1.0, 2.0, 3.0, 4.0]
    assert temperatures(store, "EWR") == [4.0]


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
    assert sorted(row["temperature"] for row in table_rows(store, ["temperature"])) == list(range(count))
    [parity] = store.verify(keys=5000).views
    assert (parity.compared, parity.is_equal) == (5000, True)
    assert {run.status for run in store.runs()} <= {"failed", "completed"}


def test_a_disk_that_takes_no_more_is_named_and_nothing_is_left_of_the_run(weather_repo: Repo) -> None:
    """The write fails in the midst of the file: the error is about the table, not the source, and the next run does it all."""
    count = 50_000
    weather_repo.write(
        "weather.parquet",
        {
            "origin": [f"A{each % 500}" for each in range(count)],
            "observed_at": pa.array(np.arange(NOON - count * 1_000_000, NOON, 1_000_000), pa.int64()).cast(TIME),
            "temperature": np.random.default_rng(1).random(count),
            "gusts": pa.array(range(count), pa.int64()),
        },
    )
    weather_repo.now += HOUR
    store = weather_repo.open()
    store.apply()
    [version] = store.applied().versions
    embedded.ensure_running(weather_repo.folder / ".featurestore" / "online")
    code = (
        "import resource, sys; from featurestore import FeatureStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "try:\n"
        f"    FeatureStore(sys.argv[1], clock=lambda: {weather_repo.now}).materialize()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(weather_repo.folder)], capture_output=True, text=True, check=True)
    folder = offline_table(store.settings, version).folder
    assert f"cannot write the table of view 'airport_weather' at {folder}" in ended.stdout
    assert "File too large" in ended.stdout
    assert list(folder.glob("*.parquet*")) == []
    assert store.materialize()[0].rows == count


def test_files_that_change_while_they_are_read_are_refused(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are read before rows: a row whose key was not there yet is neither written without its hash nor lost."""
    store = weather_repo.open()
    store.apply()
    hashes_of = OfflineTable._key_hashes
    monkeypatch.setattr(OfflineTable, "_key_hashes", lambda table, keys: hashes_of(table, keys)[1:])
    with pytest.raises(SourceError, match="the files have changed while they were read; run again"):
        store.materialize()
    [version] = store.applied().versions
    assert list(offline_table(store.settings, version).folder.glob("*.parquet*")) == []
    monkeypatch.setattr(OfflineTable, "_key_hashes", hashes_of)
    assert store.materialize()[0].rows == 2


def test_a_null_that_statistics_deny_stops_the_run(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that was said to have no null is written without room for one: it is refused, not replaced by a value."""
    times = pa.array([at(NOON - HOUR), at(NOON - 2 * HOUR)], TIME)
    columns = {"origin": ["EWR", "JFK"], "observed_at": times, "temperature": [1.0, None], "gusts": pa.array([1, 2])}
    weather_repo.write("weather.parquet", columns)
    store = weather_repo.open()
    store.apply()
    with monkeypatch.context() as patched:
        patched.setattr("featurestore.offline.tables._never_null", lambda *_: {"temperature"})
        with pytest.raises(OfflineStoreError, match="'temperature' is declared non-nullable but contains nulls"):
            store.materialize()
    [version] = store.applied().versions
    assert list(offline_table(store.settings, version).folder.glob("*.parquet*")) == []
    store.materialize()
    assert sorted(row["temperature"] or 0 for row in table_rows(store, ["temperature"])) == [0, 1.0]


def test_two_runs_on_one_view_exclude_each_other(weather_repo: Repo) -> None:
    """The second is refused at once, names the process that runs, and has done nothing."""
    store = weather_repo.open()
    store.apply()
    [version] = store.applied().versions
    with (
        store.registry.lease(version),
        pytest.raises(RunInProgressError, match=f"'airport_weather' is being materialized by process {os.getpid()}"),
    ):
        store.materialize()
    assert store.runs() == []
    assert store.materialize()[0].rows == 2


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
    assert len(table_rows(store, ["origin"])) == 2
    assert temperatures(store, "EWR") == [21.0]
    assert [(run.status, "weather" in (run.error or "")) for run in store.runs()] == [("failed", True), ("completed", False)]


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
    assert len(table_rows(store, ["origin"])) == 2
    monkeypatch.delenv("FEATURESTORE_ONLINE__URL")
    again = weather_repo.open()
    [report] = again.materialize()
    assert (report.rows, report.online_written) == (0, 1)
    assert temperatures(again, "EWR") == [21.0]


def test_training_before_the_first_run_names_the_view(weather_repo: Repo) -> None:
    """A view that was never materialized has no values, and that is an error rather than nulls."""
    store = weather_repo.open()
    store.apply()
    spine = pa.table({"origin": ["EWR"], "event_timestamp": pa.array([at(NOON)], TIME)})
    with pytest.raises(IncompleteError, match="'airport_weather' is not materialized yet, 1 of 1 rows are later"):
        store.get_historical_features(spine, "flight_weather")


def test_a_sum_beyond_int64_fails_the_load_and_names_the_aggregation(weather_repo: Repo) -> None:
    """The offline part stands, nothing is loaded, and a changed definition takes over."""
    sums = 'aggregations=[Aggregation("gusts", "sum", ["1d"]{})]'
    weather_repo.define(WEATHER.replace('fields=[Field("temperature", Float64), Field("gusts", Int64)]', sums.format("")))
    times = pa.array([at(NOON - 3 * HOUR), at(NOON - 2 * HOUR)], TIME)
    weather_repo.write("weather.parquet", {"origin": ["EWR"] * 2, "observed_at": times, "gusts": pa.array([2**62, 2**62])})
    store = weather_repo.open()
    store.apply()
    with pytest.raises(OfflineStoreError, match=r"view 'airport_weather': 'gusts_sum' over 1d exceeds int64; sum floats instead"):
        store.materialize()
    [version] = store.applied().versions
    assert (version.watermark, version.loaded) == (NOON, None)

    floats = sums.format(', sql="CAST(gusts AS DOUBLE)"')
    weather_repo.define(WEATHER.replace('fields=[Field("temperature", Float64), Field("gusts", Int64)]', floats))
    store.apply()
    with pytest.raises(RunsFailedError, match="1 of 2 views failed"):  # the old version fails again, the new one takes over
        store.materialize()
    assert store.get_online_features({"origin": ["EWR"]}, ["airport_weather:gusts_sum_1d"]).to_dict() == {
        "origin": ["EWR"],
        "airport_weather__gusts_sum_1d": [2.0**63],
    }
