"""The matrix of bad input, end to end: each is one clear error or the right answer, and nothing is half done.

Its other rows have tests beside what they are about: columns gone or changed and truncated files in test_materialize_errors.py,
spines with wrong key types, null timestamps and names given twice in test_spine.py, an embedded server's sockets in
test_embedded.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.errors import DefinitionError, OnlineStoreError, SettingsError, SourceError
from featurestore.materialize import offline_table
from featurestore.online import embedded
from featurestore.online.store import OnlineLoad
from tests.conftest import HOUR, NOON, TIME, WEATHER, Repo, at
from tests.contents import table_rows, temperatures
from tests.kills import unnamed_files


def weather(rows: int = 1, **columns: Any) -> dict[str, Any]:
    """Return columns of the weather's source, all visible at noon; some replaced."""
    times = pa.array([at(NOON - HOUR)] * rows, TIME)
    whole = {"origin": ["EWR"] * rows, "observed_at": times, "temperature": [4.5] * rows, "gusts": pa.array([1] * rows)}
    return {**whole, **columns}


def state(store: FeatureStore) -> Any:
    """Return what a failure must leave as it was: coverage, offline rows, an online value, files."""
    [version] = [each for each in store.applied().versions if each.state == "serving"]
    folder = offline_table(store.settings, version).folder
    rows = table_rows(store, ["origin", "temperature"])
    return version, rows, temperatures(store, "EWR"), sorted(path.name for path in folder.rglob("*"))


# Sources


def test_an_empty_source_is_covered_and_has_no_rows(weather_repo: Repo) -> None:
    """A file without rows is no error: what there is to cover is covered, and rows that come later are late or new."""
    weather_repo.write("weather.parquet", weather(0, temperature=pa.array([], pa.float64()), gusts=pa.array([], pa.int64()),
                                                  origin=pa.array([], pa.string())))  # fmt: skip
    store = weather_repo.open()
    store.apply()
    [report] = store.materialize()
    assert (report.rows, report.online_written, report.late) == (0, 0, 0)
    assert temperatures(store, "EWR") == [None]
    weather_repo.write("weather.parquet", weather())
    weather_repo.now += HOUR
    [report] = store.materialize()
    assert (report.rows, report.late) == (0, 1)


def test_a_source_that_lost_all_its_files_is_an_error(weather_repo: Repo) -> None:
    """No file is not the same as no rows: the error names the source, and what serves stays."""
    weather_repo.write("many/one.parquet", weather())
    weather_repo.define(WEATHER.replace('path="weather.parquet"', 'path="many"'))
    store = weather_repo.open()
    store.apply()
    store.materialize()
    before = state(store)
    (weather_repo.folder / "many/one.parquet").unlink()
    with pytest.raises(SourceError, match=r"source 'weather'.*many"):
        store.materialize(start=at(NOON - 9 * HOUR))
    assert state(store) == before


@pytest.mark.parametrize("column", ["text", "number", "date only"])
def test_a_time_column_that_is_none_is_a_fault(weather_repo: Repo, column: str) -> None:
    """A text or a number as event time is refused when definitions are loaded, with the column and its type."""
    given = {"text": pa.array(["2013-06-01T11:00:00Z"]), "number": pa.array([1.5]), "date only": pa.array([True])}[column]
    weather_repo.write("weather.parquet", weather(observed_at=given))
    with pytest.raises(DefinitionError, match=r"'observed_at'") as caught:
        weather_repo.open().apply()
    assert len(caught.value.faults) == 1


def test_a_naive_time_column_is_utc(weather_repo: Repo) -> None:
    """T1: a timestamp without a zone is read as UTC."""
    weather_repo.write("weather.parquet", weather(observed_at=pa.array([at(NOON - HOUR).replace(tzinfo=None)], pa.timestamp("us"))))
    store = weather_repo.open()
    store.apply()
    store.materialize()
    answer = store.get_online_features({"origin": ["EWR"]}, "flight_weather")
    assert answer.event_times["airport_weather"].to_pylist() == [at(NOON - HOUR)]


def test_a_column_name_given_twice_in_the_source_is_a_fault(weather_repo: Repo) -> None:
    """Which of the two is meant cannot be known: nothing is applied, and a run on a source that has come to be so fails."""
    columns = weather()
    table = pa.table([*columns.values(), pa.array([9.5])], names=[*columns, "temperature"])
    store = weather_repo.open()
    store.apply()
    store.materialize()
    before = state(store)
    pq.write_table(table, weather_repo.folder / "weather.parquet")
    with pytest.raises(SourceError, match=r"weather\.parquet has more than one column 'temperature'"):
        store.materialize(start=at(NOON - 9 * HOUR))
    assert state(store) == before
    with pytest.raises(DefinitionError, match="has more than one column 'temperature'"):
        store.plan()


def test_two_thousand_columns(weather_repo: Repo) -> None:
    """A view of 2,000 features is defined, materialized, looked up and trained on like any other."""
    names = [f"f{number}" for number in range(2000)]
    weather_repo.write("weather.parquet", weather() | {name: [float(number)] for number, name in enumerate(names)})
    fields = "[" + ", ".join(f'Field("{name}", Float64)' for name in names) + "]"
    weather_repo.define(WEATHER.replace('[Field("temperature", Float64), Field("gusts", Int64)]', fields))
    store = weather_repo.open()
    store.apply()
    store.materialize()
    online = store.get_online_features({"origin": ["EWR"]}, "flight_weather").to_dict()
    spine = pa.table({"origin": ["EWR"], "event_timestamp": pa.array([at(NOON)], TIME)})
    offline = store.get_historical_features(spine, "flight_weather").to_dict()
    expected = {f"airport_weather__{name}": [float(number)] for number, name in enumerate(names)}
    assert {name: online[name] for name in expected} == expected
    assert {name: offline[name] for name in expected} == expected


# Names and values


HOSTILE = [
    "'; DROP TABLE versions; --",
    '"quoted"',
    "../../etc/passwd",
    "nul\0inside",
    "Zürich 机场 🛬",
    "",
    " ",
    "{braces}*?[a]",
    "a" * 5000,
]


def test_hostile_key_values_are_values(weather_repo: Repo) -> None:
    """Quotes, SQL, paths, NUL, patterns and any script come back as what they are, and meet no other key."""
    values = [float(number) for number in range(len(HOSTILE))]
    count = len(HOSTILE)
    weather_repo.write("weather.parquet", weather(count, origin=HOSTILE, temperature=values))
    store = weather_repo.open()
    store.apply()
    store.materialize()
    assert temperatures(store, *HOSTILE) == values
    spine = pa.table({"origin": HOSTILE, "event_timestamp": pa.array([at(NOON)] * count, TIME)})
    assert store.get_historical_features(spine, "flight_weather").to_dict()["airport_weather__temperature"] == values
    [parity] = store.verify(keys=None).views
    assert (parity.compared, parity.is_equal) == (count, True)
    store.online.drop(store.applied().versions[0])
    assert temperatures(store, *HOSTILE) == [None] * count


COLUMN = 'when"; DROP TABLE x; -- ünï 时'


def test_hostile_column_names_are_names(weather_repo: Repo) -> None:
    """Columns of a source and of a spine may have any name that Parquet holds; spine columns come back untouched."""
    columns = weather()
    columns[COLUMN] = columns.pop("observed_at")
    weather_repo.write("we'ather %s ünï.parquet", columns)
    text = WEATHER.replace('event_time="observed_at"', f"event_time={COLUMN!r}")
    weather_repo.define(text.replace("weather.parquet", "we'ather %s ünï.parquet"))
    store = weather_repo.open()
    store.apply()
    store.materialize()
    assert temperatures(store, "EWR") == [4.5]
    spine = pa.table({"origin": ["EWR"], COLUMN: pa.array([at(NOON)], TIME), "'); --": [1]})
    training = store.get_historical_features(spine, "flight_weather", timestamp_column=COLUMN).to_arrow()
    assert training.column_names[:3] == ["origin", COLUMN, "'); --"]
    assert training["airport_weather__temperature"].to_pylist() == [4.5]


@pytest.mark.parametrize("name", ["../up", "a/b", "a b", "a__b", "", "x\0", "é", "'; --", "_a", "1a", "a" * 64])
def test_names_of_definitions_are_plain(repo: Repo, name: str) -> None:
    """A name becomes a folder, a column and a part of messages, so anything but letters, digits and underscores is a fault."""
    repo.define(WEATHER.replace('"airport_weather"', repr(name)))
    repo.write("weather.parquet", weather())
    with pytest.raises(DefinitionError) as caught:
        repo.open().apply()
    assert [fault.field for fault in caught.value.faults] == ["name"]
    assert not (repo.folder / ".featurestore/offline").exists()


@pytest.mark.parametrize("project", ["../up", "a b", "", "é", "1a", "a" * 64])
def test_the_name_of_a_project_is_plain(repo: Repo, project: str) -> None:
    """The project's name is checked with the settings."""
    (repo.folder / "featurestore.toml").write_text(f'project = "{project}"\n')
    with pytest.raises(SettingsError, match="project: String should match pattern"):
        repo.open()


# Servers


def _stopping(signum: int, pid: Callable[[], int]) -> Callable[..., None]:
    """Return a write that sends the server a signal after its first batch."""
    write = OnlineLoad.write
    calls: list[int] = []

    def stop_after(*given: Any, **named: Any) -> None:
        if len(calls) == 1:
            os.kill(pid(), signum)
        calls.append(1)
        write(*given, **named)

    return stop_after


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_stops_in_the_middle_of_a_load(
    weather_repo: Repo, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    """Gone or hanging: one error of the online store, the offline part stands, and the next run loads what is missing."""
    count = 3000
    weather_repo.write("weather.parquet", weather(count, origin=[f"A{each}" for each in range(count)]))
    monkeypatch.setenv("FEATURESTORE_ONLINE__TIMEOUT_MS", "300")
    monkeypatch.setattr("featurestore.materialize._LOAD_ROWS", 1000)
    place = weather_repo.folder / ".featurestore/online"
    embedded.ensure_running(place)
    pid = int((place / "server.pid").read_text())
    store = weather_repo.open()
    store.apply()
    with monkeypatch.context() as patch:
        patch.setattr(OnlineLoad, "write", _stopping(signum, lambda: pid))
        with pytest.raises(OnlineStoreError, match="restarted, failed over or was moved during the load"):
            store.materialize()
    monkeypatch.delenv("FEATURESTORE_ONLINE__TIMEOUT_MS")
    if signum == signal.SIGSTOP:
        with suppress(ProcessLookupError):  # whoever found it silent may have replaced it
            os.kill(pid, signal.SIGCONT)
    [version] = store.applied().versions
    assert (version.watermark, version.loaded, store.snapshot(version).rows) == (NOON, None, count)
    [report] = weather_repo.open().materialize()
    assert (report.rows, report.online_written, report.online_full) == (0, count, True)
    assert all(view.is_equal for view in weather_repo.open().verify(keys=count).views)


def test_a_stale_socket_is_an_error_that_names_it(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A socket file that nobody listens on is an online store that does not answer; the offline part is done."""
    place = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", f"unix://{place}")
    store = weather_repo.open()
    store.apply()
    with pytest.raises(OnlineStoreError, match=rf"the online store unix://{place} does not answer"):
        store.materialize()
    [version] = store.applied().versions
    assert (version.watermark, version.loaded) == (NOON, None)


def test_two_repos_of_one_project_on_one_server_do_not_meet(
    make_repo: Callable[..., Repo], online_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys begin with an id that no two versions share, so each repo sees its rows, and the end of one leaves the other's."""
    one, other = make_repo("one"), make_repo("other")
    if online_url == "embedded":
        online_url = f"unix://{embedded.ensure_running(one.folder / '.featurestore/online')}"
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    stores = []
    for repo, temperature in ((one, 1.5), (other, 2.5)):
        repo.define(WEATHER)
        repo.write("weather.parquet", weather(temperature=[temperature]))
        stores.append(repo.open())
        stores[-1].apply()
        stores[-1].materialize()
    assert [temperatures(store, "EWR") for store in stores] == [[1.5], [2.5]]
    monkeypatch.setattr("featurestore.store.FeatureStore.stop", lambda _: False)  # the server is that of both
    stores[1].teardown()
    assert temperatures(stores[0], "EWR") == [1.5]
    assert [report.online_full for report in stores[0].materialize()] == [False]


# The machine


FULL = """
import resource, sys
from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError
with FeatureStore(sys.argv[1], clock=lambda: int(sys.argv[2])) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        store.materialize(["airport_weather"])
    except FeatureStoreError as error:
        print(type(error).__name__, error)
"""


def test_a_disk_without_room_is_one_error_and_leaves_no_file(weather_repo: Repo) -> None:
    """Where a table's file cannot be written to its end, the run fails with the table's name; then it is done as if it had not."""
    count = 300_000
    numbers = pa.array([number * 0.37 for number in range(count)])
    times = pa.array(range(NOON - HOUR - count, NOON - HOUR), pa.int64()).cast(TIME)
    columns = weather(count, origin=[f"A{each % 100}" for each in range(count)], temperature=numbers, observed_at=times)
    weather_repo.write("weather.parquet", columns)
    store = weather_repo.open()
    store.apply()
    store.online.ping()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(weather_repo.folder), str(NOON)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stderr == ""
    assert done.stdout.startswith("OfflineStoreError cannot write the table of view 'airport_weather' at "), done.stdout
    [version] = store.applied().versions
    assert (version.watermark, store.snapshot(version).files) == (None, ())
    assert list(offline_table(store.settings, version).folder.glob("*.parquet*")) == []
    [report] = store.materialize()
    assert report.rows == count


FORBIDDEN = """
import os, sys
import duckdb, pandas, pyarrow.dataset, redis, deltalake, encodings.idna
from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError
with FeatureStore(sys.argv[1], clock=lambda: int(sys.argv[2])) as store:
    store.applied(); store.online.ping()
    os.setgid(65534); os.setuid(65534)
    try:
        store.materialize()
    except FeatureStoreError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def open_repo(weather_repo: Repo) -> Iterator[Repo]:
    """The weather in a folder that every user may enter; those of pytest are closed anew by each other pytest that begins."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        repo = Repo(Path(shutil.copytree(weather_repo.folder, f"{name}/repo")), weather_repo.now)
        yield repo
        for store in repo.stores:
            store.close()
        embedded.stop(repo.folder / ".featurestore/online")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without rights")
def test_a_folder_without_permission_is_one_error_that_names_it(open_repo: Repo) -> None:
    """A user who may not write the tables is told so, and nothing has changed."""
    store = open_repo.open()
    store.apply()
    store.materialize()
    store.online.ping()
    before = state(store)
    for path in (open_repo.folder / ".featurestore").rglob("*"):
        if "offline" not in path.parts and "online" not in path.parts:
            shutil.chown(path, 65534, 65534)
    shutil.chown(open_repo.folder / ".featurestore", 65534, 65534)
    open_repo.write("weather.parquet", weather(temperature=[9.5]))
    open_repo.now += HOUR
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, str(open_repo.folder), str(open_repo.now)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.startswith("OfflineStoreError cannot write the table of view"), done.stdout
    assert "ermission denied" in done.stdout
    for path in (open_repo.folder / ".featurestore").rglob("*"):
        shutil.chown(path, 0, 0)
    assert state(open_repo.open())[1:] == before[1:]


def test_no_file_is_left_without_a_version(weather_repo: Repo) -> None:
    """What the tests above count as left behind is found where there is some."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    [version] = store.applied().versions
    (offline_table(store.settings, version).folder / "1_2_3.parquet").touch()
    assert [path.name for path in unnamed_files(weather_repo.folder)] == ["1_2_3.parquet"]
