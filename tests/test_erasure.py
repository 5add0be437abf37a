"""T14: erased entities are gone online, from every retained version of every table, and do not come back."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from featurestore import FeatureStore
from featurestore.definitions import Field
from featurestore.errors import InputError, NotFoundError, RunInProgressError
from featurestore.materialize import offline_table
from featurestore.offline.erased import digests
from featurestore.online.store import OnlineLoad
from featurestore.types import Bool, Bytes, Date, Int64, String, Timestamp
from tests.commands import NEW_TTL, Run, apply
from tests.conftest import HOUR, NOON, TIME, Repo, at

DEFINITIONS = """
airport = Entity("airport", join_keys={{"origin": String}})
carrier = Entity("carrier", join_keys={{"carrier": String}})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
flights = FileSource("flights", path="flights.parquet", event_time="left_at")
facts = FileSource("facts", path="facts.parquet")
airport_weather = FeatureView("airport_weather", entities=[airport], source=weather, ttl="{ttl}", fields={{"temperature": Float64}})
airport_carrier = FeatureView("airport_carrier", entities=[airport, carrier], source=flights, fields={{"delay": Int64}})
carrier_facts = FeatureView("carrier_facts", entities=[carrier], source=facts, fields={{"planes": Int64}})
airport_facts = FeatureView("airport_facts", entities=[airport], source=FileSource("runways", path="runways.parquet"),
                            fields={{"runways": Int64}})
all_of_it = FeatureService("all_of_it", features=[airport_weather, airport_carrier, carrier_facts, airport_facts])
"""
SECRET = "SECRETAIRPORT"
PLACES = ["EWR", SECRET, "JFK"]
CARRIERS = ["AA", "UA", "AA"]


def write(repo: Repo, *, shift: int = 0) -> None:
    """Write the sources; each airport has rows in all but one of them."""
    times = pa.array([at(NOON - HOUR + shift + number) for number in range(3)], TIME)
    repo.write("weather.parquet", {"origin": PLACES, "observed_at": times, "temperature": [1.5 + shift, 2.5, 3.5]})
    repo.write("flights.parquet", {"origin": PLACES, "carrier": CARRIERS, "left_at": times, "delay": [1, 2, 3]})
    repo.write("facts.parquet", {"carrier": ["AA", "UA"], "planes": [5, 6]})
    repo.write("runways.parquet", {"origin": PLACES, "runways": [3, 2, 4]})


@pytest.fixture
def airports(repo: Repo, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """A repo, its registry on SQLite or where a test says: two versions of a view, several commits, everything loaded online."""
    if getattr(request, "param", "sqlite") == "postgresql":
        monkeypatch.setenv("FEATURESTORE_REGISTRY__URL", request.getfixturevalue("postgres_url"))
    repo.define(DEFINITIONS.format(ttl="8h"))
    write(repo)
    store = repo.open()
    store.apply()
    store.materialize()
    repo.define(DEFINITIONS.format(ttl="9h"))
    store.apply()
    store.materialize()
    store.materialize(start=at(NOON - 9 * HOUR))
    return repo


def everything(repo: Repo) -> Iterator[tuple[str, bytes]]:
    """Give all that the repo holds, decoded where it is packed: files, rows of tables, keys and rows online."""
    for path in (repo.folder / ".featurestore").rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
            if path.suffix == ".parquet":
                yield str(path), repr(pq.read_table(path).to_pylist()).encode()


def online_keys(store: FeatureStore) -> list[bytes]:
    """Return the keys online whose rows are not deleted ones."""
    client = store.online._client
    return sorted(key for key in client.scan_iter() if (client.getrange(key, 0, 0) or b"\0") != b"\0")


def looked_up(store: FeatureStore) -> dict[str, list[Any]]:
    """Return the features of the three airports, each with its carrier."""
    return store.get_online_features({"origin": PLACES, "carrier": CARRIERS}, "all_of_it").to_dict()


GONE = {
    "airport_weather__temperature": [1.5, None, 3.5],
    "airport_carrier__delay": [1, None, 3],
    "carrier_facts__planes": [5, 6, 5],
    "airport_facts__runways": [3, None, 4],
}


on_both = pytest.mark.parametrize("airports", ["sqlite", "postgresql"], indirect=True)


@on_both
def test_an_erased_entity_is_gone_everywhere(airports: Repo) -> None:
    """Online and in training it has nulls, alone and in keys of several entities; others are as they were; no file holds it."""
    store = airports.open()
    before = looked_up(store)
    assert before["airport_carrier__delay"] == [1, 2, 3]
    manifest = store.delete_entities("airport", {"origin": [SECRET]})
    assert {name: values for name, values in looked_up(store).items() if "__" in name} == GONE
    times = pa.array([at(airports.now)] * 3, TIME)
    spine = pa.table({"origin": PLACES, "carrier": CARRIERS, "event_timestamp": times})
    training = store.get_historical_features(spine, "all_of_it").to_dict()
    assert {name: values for name, values in training.items() if "__" in name} == GONE
    assert not [key for key in online_keys(store) if SECRET.encode() in key]
    names = {each.view for each in manifest.versions}
    assert names == {"airport_weather", "airport_carrier", "airport_facts"}
    assert [(each.version, each.rows, each.online_rows) for each in manifest.versions if each.view == "airport_weather"] == [
        (1, 1, 1), (2, 1, 1),
    ]  # fmt: skip
    assert all(view.is_equal for view in store.verify(keys=None).views)
    store.stop()
    assert [place for place, held in everything(airports) if SECRET.encode() in held and "/online/" not in place] == []


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_old_versions_of_tables_can_be_read_without_it(airports: Repo, *, is_checkpointed: bool) -> None:
    """Every retained version of a table is whole for other tools as well, its log included, and none has the erased rows."""
    store = airports.open()
    seen = {}
    for version in store.applied().versions:
        folder = offline_table(store.settings, version).folder
        seen[folder] = DeltaTable(folder).version()
        if is_checkpointed:
            DeltaTable(folder).create_checkpoint()
    store.delete_entities("airport", {"origin": [SECRET]})
    for folder, newest in seen.items():
        assert DeltaTable(folder).version() - newest == (0 if "carrier_facts" in str(folder) else 1)
        for number in range(DeltaTable(folder).version() + 1):
            table = DeltaTable(folder, version=number)
            rows = table.to_pyarrow_table().to_pylist()
            assert not [row for row in rows if row.get("origin") == SECRET]
            actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
            assert sum(action["num_records"] for action in actions) == len(rows)
            assert all((folder / each["path"]).stat().st_size == each["size_bytes"] for each in actions)


@on_both
def test_no_later_run_brings_it_back(airports: Repo) -> None:
    """Runs over old and new intervals, a server that lost its rows, a new version: the tombstone holds, and nothing is late."""
    store = airports.open()
    store.delete_entities("airport", {"origin": [SECRET]})
    airports.now += 2 * HOUR
    reports = store.materialize()
    assert sum(report.late for report in reports) == 0
    store.materialize(start=at(NOON - 9 * HOUR))
    store.online._client.flushall()
    airports.define(DEFINITIONS.format(ttl="7h"))
    store.apply()
    store.materialize()
    store.materialize()
    assert {name: values for name, values in looked_up(store).items() if "__" in name} == GONE
    assert not [key for key in online_keys(store) if SECRET.encode() in key]
    store.rollback("airport_weather")
    assert looked_up(store)["airport_weather__temperature"] == [1.5, None, 3.5]


def test_erasing_again_changes_nothing(airports: Repo) -> None:
    """A second time there is nothing left to do; it is how an erasure that was killed is completed."""
    store = airports.open()
    first = store.delete_entities("airport", {"origin": [SECRET]})
    again = store.delete_entities("airport", {"origin": [SECRET, "NOWHERE"]})
    assert again.digests[0] == first.digests[0]
    assert {(each.rows, each.files) for each in again.versions} == {(0, 0)}
    [_] = [each for each in store.materialize() if each.view == "airport_weather" and each.version == 2]
    assert {name: values for name, values in looked_up(store).items() if "__" in name} == GONE


def test_a_load_that_was_complete_stays_so(airports: Repo) -> None:
    """The next run has nothing to load, though the tables have new versions."""
    store = airports.open()
    store.delete_entities("airport", {"origin": [SECRET]})
    reports = [report for report in store.materialize() if report.view not in ("carrier_facts", "airport_facts")]
    assert {(report.rows, report.online_written, report.online_full) for report in reports} == {(0, 0, False)}


def test_the_manifest_has_hashes_and_counts_and_no_keys(airports: Repo) -> None:
    """It is kept by the registry; a hash is keyed, so it says nothing to those who have not the secret."""
    store = airports.open()
    manifest = store.delete_entities("airport", {"origin": [SECRET]})
    [kept] = store.registry.erasures.manifests()
    assert kept == json.loads(json.dumps(manifest.to_dict()))
    assert SECRET not in json.dumps(kept)
    assert SECRET not in repr(store.registry.erasures.tombstones())
    [digest] = manifest.digests
    secret = store.registry.erasures.secret()
    message = f"{len(SECRET)}:{SECRET}"
    assert digest == hashlib.sha256(f"{secret}{hashlib.sha256(f'{secret}{message}'.encode()).hexdigest()}".encode()).hexdigest()


@on_both
def test_a_lifted_tombstone_lets_later_runs_read_it_again(airports: Repo) -> None:
    """Nothing is brought back by lifting; a run over the interval of its rows does."""
    store = airports.open()
    store.delete_entities("airport", {"origin": [SECRET]})
    assert store.restore_entities("airport", {"origin": [SECRET, "EWR"]}) == 1
    assert looked_up(store)["airport_weather__temperature"] == [1.5, None, 3.5]
    store.materialize(start=at(NOON - 9 * HOUR))
    assert looked_up(store)["airport_weather__temperature"] == [1.5, 2.5, 3.5]


FAULTY = [
    ("airpot", {"origin": ["EWR"]}, NotFoundError, "did you mean 'airport'"),
    ("airport", {}, InputError, "join key 'origin' of entity 'airport' is missing"),
    ("airport", {"origin": [None]}, InputError, "holds a null"),
    ("airport", {"origin": [5]}, InputError, "declared String"),
    ("airport", {"origin": ["EWR"], "gate": ["A1"]}, InputError, "'gate' is no join key of entity 'airport'"),
]


@pytest.mark.parametrize(("entity", "keys", "error", "message"), FAULTY)
def test_what_is_no_key_is_refused_before_anything_is_erased(
    airports: Repo, entity: str, keys: dict[str, list[Any]], error: type[Exception], message: str
) -> None:
    """The error names the entity or the column, and nothing has changed."""
    store = airports.open()
    before = looked_up(store)
    with pytest.raises(error, match=message):
        store.delete_entities(entity, keys)
    assert looked_up(store) == before
    assert store.registry.erasures.tombstones().digests == {}


def test_under_a_run_it_is_gone_online_at_once_and_from_tables_later(airports: Repo) -> None:
    """A view that is being materialized is named; online the rows are gone, and the next try erases the tables too."""
    store = airports.open()
    [version] = [each for each in store.applied().versions_of("airport_weather") if each.state == "serving"]
    with store.registry.lease(version), pytest.raises(RunInProgressError, match="not yet erased everywhere; do it again"):
        store.delete_entities("airport", {"origin": [SECRET]})
    assert looked_up(store)["airport_weather__temperature"] == [1.5, None, 3.5]
    manifest = store.delete_entities("airport", {"origin": [SECRET]})
    assert [each.rows for each in manifest.versions if each.view == "airport_weather"] == [0, 1]


def test_a_run_that_began_before_does_not_bring_it_back_online(airports: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was reading when the entity was erased writes by a lower number, which the server refuses."""
    store, other = airports.open(), airports.open()
    write = OnlineLoad.write

    def erase_first(*given: Any, **named: Any) -> None:
        with pytest.raises(RunInProgressError):
            other.delete_entities("airport", {"origin": [SECRET]})
        write(*given, **named)

    monkeypatch.setattr(OnlineLoad, "write", erase_first)
    store.materialize(["airport_carrier"], start=at(NOON - 9 * HOUR))
    assert looked_up(store)["airport_carrier__delay"] == [1, None, 3]
    other.delete_entities("airport", {"origin": [SECRET]})
    assert all(view.is_equal for view in other.verify(keys=None).views)


KILLED = """
import importlib, os, signal, sys
from featurestore import FeatureStore
place, when, count = sys.argv[3], sys.argv[4], int(sys.argv[5])
module, _, path = place.partition(":")
owner = importlib.import_module(module)
*path, name = path.split(".")
for part in path:
    owner = getattr(owner, part)
function, left = getattr(owner, name), [count]
def dying(*given, **named):
    left[0] -= 1
    if left[0] == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = function(*given, **named)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
setattr(owner, name, dying)
with FeatureStore(sys.argv[1], clock=lambda: int(sys.argv[2])) as store:
    store.delete_entities("airport", {"origin": ["SECRETAIRPORT"]})
"""
MOMENTS = [
    ("featurestore.registry.erasures:Erasures.bury", "after", 1),
    ("featurestore.online.store:OnlineStore.delete", "after", 2),
    ("featurestore.offline.tables:OfflineTable.commit", "before", 1),
    ("featurestore.offline.tables:OfflineTable.commit", "after", 1),
    ("featurestore.offline.upkeep:_correct_log", "before", 1),
    ("featurestore.offline.upkeep:_correct_log", "after", 2),
    ("featurestore.registry.registry:Registry.cover", "after", 1),
    ("featurestore.online.store:OnlineLoad.finish", "after", 1),
    ("featurestore.registry.erasures:Erasures.record", "before", 1),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: ":".join(map(str, moment)))
def test_an_erasure_that_was_killed_is_completed_by_the_next(airports: Repo, moment: tuple[str, str, int]) -> None:
    """SIGKILL between any two steps: erased again, nothing is left, tables are whole, and what serves is as it should be."""
    command = [sys.executable, "-c", KILLED, str(airports.folder), str(airports.now), *map(str, moment)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    store = airports.open()
    store.delete_entities("airport", {"origin": [SECRET]})
    store.materialize()
    assert {name: values for name, values in looked_up(store).items() if "__" in name} == GONE
    assert all(view.is_equal for view in store.verify(keys=None).views)
    for version in store.applied().versions:
        table = DeltaTable(offline_table(store.settings, version).folder)
        assert table.to_pyarrow_table().num_rows == store.snapshot(version).rows
    store.stop()
    assert [place for place, held in everything(airports) if SECRET.encode() in held and "/online/" not in place] == []


def test_keys_of_every_type_have_a_hash_of_their_own() -> None:
    """Each type of key is hashed by its value, and columns cannot be mistaken for one another."""
    fields = [Field("s", String), Field("i", Int64), Field("b", Bytes), Field("d", Date), Field("t", Timestamp), Field("f", Bool)]
    values = [
        pa.array(["a", "a", "é\0'"]),
        pa.array([-(2**63), 1, 1]),
        pa.array([b"\0", b"", b"\xff"]),
        pa.array([1, 1, 2], pa.date32()),
        pa.array([at(NOON)] * 3, TIME),
        pa.array([True, False, True]),
    ]
    columns = [pa.chunked_array([each]) for each in values]
    whole = digests("k", fields, columns)
    assert len(set(whole)) == 3
    assert digests("other", fields, columns) != whole
    for field, column in zip(fields, columns, strict=True):
        found = digests("k", [field], [column])
        assert [len(each) for each in found] == [64] * 3
        assert len(set(found)) == len(set(column.to_pylist()))
    pair = [Field("x", String), Field("y", String)]
    one, other = digests("k", pair, [pa.chunked_array([["a1:", "a"]]), pa.chunked_array([["b", "1:1:b"]])])
    assert one != other


def test_delete_entities_says_what_it_erased(run: Run, fresh: Path) -> None:
    """The command needs --yes without a terminal, answers with counts, and --lift takes it back."""
    assert run("materialize", repo=fresh).code == 0
    apply(fresh, NEW_TTL)
    assert run("materialize", repo=fresh).code == 0
    arguments = ["delete-entities", "sensor", "-k", "sensor_id=pump_1"]
    assert run(*arguments, "--json", repo=fresh).error()["message"].endswith("if that is meant, say so with --yes")
    result = run(*arguments, "--yes", repo=fresh)
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("1 sensor erased. The sources are yours to erase.\n")
    assert "pump_1" not in result.out
    record = run(*arguments, "--yes", "--json", repo=fresh).json()
    assert [(each["view"], each["version"], each["rows"]) for each in record["versions"]] == [
        ("machine_health", 1, 0), ("machine_health", 2, 0),
    ]  # fmt: skip
    assert run(*arguments, "--lift", repo=fresh).out.startswith("1 tombstone lifted")
    assert run("delete-entities", "senor", "-k", "sensor_id=x", "--json", repo=fresh).error()["nearest"] == ["sensor"]
