from __future__ import annotations

import itertools
import json

import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.errors import GapError, InputError, SourceError
from featurestore.online import embedded
from tests.conftest import HOUR, NOON, TIME, WEATHER, Repo, at
from tests.contents import table_rows, temperatures


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
    before = (table_rows(store, ["origin", "temperature"]), temperatures(store, "EWR", "JFK"))
    [report] = store.materialize(start=at(NOON - 4 * HOUR), end=at(NOON))
    assert report.rows == 2
    assert (table_rows(store, ["origin", "temperature"]), temperatures(store, "EWR", "JFK")) == before


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
    assert temperatures(store, "A0", "A1") == [196.0, 197.0]
    assert all(each.is_equal for each in store.verify(keys=None).views)


def test_an_online_server_that_lost_its_rows_is_loaded_in_full(weather_repo: Repo) -> None:
    """T8: a missing marker makes the next run write every key, not only those that changed."""
    store = weather_repo.open()
    store.apply()
    weather_repo.now += HOUR
    store.materialize()
    store.online._client.flushall()
    assert temperatures(store, "EWR", "JFK") == [None, None]
    [report] = store.materialize()
    assert (report.online_full, report.online_written) == (True, 2)
    assert temperatures(store, "EWR", "JFK") == [21.0, None]


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
    assert temperatures(store, "EWR") == [None]
    assert store.online.count(version) == 0


def test_a_key_whose_rows_are_gone_is_deleted_online(weather_repo: Repo) -> None:
    """T7: a retraction reaches serving."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    assert temperatures(store, "EWR") == [21.0]
    schema = pa.schema([("origin", pa.string()), ("observed_at", TIME), ("temperature", pa.float64()), ("gusts", pa.int64())])
    weather_repo.write("weather.parquet", schema.empty_table())
    [report] = store.materialize(start=at(NOON - 10 * HOUR))
    assert (report.rows, report.online_deleted) == (0, 1)
    assert temperatures(store, "EWR") == [None]


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
    assert temperatures(store, "EWR") == [21.0]
    assert [report.version for report in store.materialize()] == [1, 2]
    assert temperatures(store, "EWR") == [None]
    assert [(version.number, version.state) for version in store.applied().versions] == [(1, "replaced"), (2, "serving")]


def test_a_lookback_that_is_applied_heals_at_the_next_run(weather_repo: Repo) -> None:
    """A changed lookback makes no new version, and the next run of the version there is goes back by it (T7, T11)."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    weather_repo.define(WEATHER.replace('ttl="6h"', 'ttl="6h", lookback="1d"'))
    assert store.apply().new_versions == ()
    late = {"origin": ["JFK"], "observed_at": pa.array([at(NOON - HOUR)], TIME), "temperature": [9.5], "gusts": [3]}
    weather_repo.write("weather.parquet", late)
    [report] = store.materialize()

    assert (report.start, report.rows, report.late) == (NOON - 24 * HOUR, 1, 0)


def test_a_view_that_is_put_online_is_loaded_at_the_next_run(weather_repo: Repo) -> None:
    """`online=True` makes no new version; the next run of the version there is loads it, and lookups answer (T11)."""
    weather_repo.define(WEATHER.replace('ttl="6h"', 'ttl="6h", online=False'))
    store = weather_repo.open()
    store.apply()
    store.materialize()
    weather_repo.define(WEATHER)
    assert store.apply().new_versions == ()
    weather_repo.now += HOUR
    [report] = store.materialize()

    assert report.online_written == 2
    assert store.get_online_features({"origin": ["EWR"]}, "flight_weather").to_dict()["airport_weather__temperature"] == [21.0]


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
    assert temperatures(again, "EWR") == [21.0]
