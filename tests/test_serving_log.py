from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore.errors import OfflineStoreError, OnDemandError, SettingsError
from featurestore.serving_log.layout import log_files
from featurestore.settings import load_settings
from featurestore.testing import Throwaway
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW
from tests.conftest import HOUR, NOON, TIME, Repo, at
from tests.logged import feel
from tests.service import BIG, DEFINITIONS, READINGS, THING
from tests.service import write_repo as write_shop

SERVICE = "flight_weather"
Logging = Callable[..., FeatureStore]


def set_log(folder: Path, **settings: Any) -> None:
    """Let a repo's settings ask for a log."""
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    file = folder / "featurestore.toml"
    file.write_text(file.read_text() + "\n[serving_log]\n" + "\n".join(lines) + "\n")


@pytest.fixture
def logging(weather_repo: Repo) -> Logging:
    """Return a store over the weather, materialized at 13:00 and logging as the settings say."""

    def make(**settings: Any) -> FeatureStore:
        set_log(weather_repo.folder, **settings)
        weather_repo.now = NOON + HOUR
        store = weather_repo.open()
        store.apply()
        store.materialize()
        return store

    return make


def written(store: FeatureStore) -> pa.Table:
    """Return all rows of the log, read without the library."""
    folder = store.settings.root / ".featurestore/serving_log"
    files = sorted(folder.glob("*/*/*.parquet"), key=lambda file: file.name)
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]) if files else pa.table({})


def logged(store: FeatureStore) -> pa.Table:
    """Write what waits, and return all rows."""
    assert store.serving_log is not None
    store.serving_log.flush()
    return written(store)


def look_up(store: FeatureStore, *origins: str | None) -> Any:
    """Look the weather up."""
    return store.get_online_features({"origin": list(origins)}, SERVICE)


def test_nothing_is_logged_unless_the_settings_say_so(weather_repo: Repo) -> None:
    """Without a setting there is no log, no thread and no folder."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    look_up(store, "EWR")
    store.close()
    assert store.serving_log is None
    assert not (weather_repo.folder / ".featurestore/serving_log").exists()


@pytest.mark.parametrize("wrong", [{"sample": 1.5}, {"sample": -1}, {"queue_rows": 0}, {"max_size": "much"}, {"path_": "x"}])
def test_a_setting_that_makes_no_sense_is_refused(weather_repo: Repo, wrong: dict[str, Any]) -> None:
    """Shares are 0 to 1, bounds are positive, names are known."""
    set_log(weather_repo.folder, **wrong)
    with pytest.raises(SettingsError, match=f"serving_log.{next(iter(wrong))}"):
        load_settings(weather_repo.folder)


def test_the_log_has_keys_values_statuses_and_times_as_they_were_served(logging: Logging, weather_repo: Repo) -> None:
    """A row for each entity of each request, in declared types, absent values null; the status and event time of each view."""
    store = logging(sample=1.0)
    look_up(store, "EWR", None, "JFK", "LGA")
    weather_repo.now += (
        5 * HOUR + HOUR // 4
    )  # EWR's observation of 11:00 is 7:15 old now, JFK's of 11:30 6:45; the TTL is six hours
    look_up(store, "EWR")
    assert logged(store).to_pydict() == {
        "__requested_at": [at(NOON + HOUR)] * 4 + [at(NOON + 6 * HOUR + HOUR // 4)],
        "origin": ["EWR", None, "JFK", "LGA", "EWR"],
        "airport_weather__temperature": [21.0, None, None, None, None],
        "airport_weather__gusts": [2**53 + 1, None, 7, None, None],
        "__airport_weather__status": ["PRESENT", "NOT_FOUND", "PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE"],
        "__airport_weather__event_time": [at(NOON - HOUR), None, at(NOON - HOUR // 2), None, at(NOON - HOUR)],
    }
    assert [str(type_) for type_ in written(store).schema.types] == [
        "timestamp[us, tz=UTC]", "string", "double", "int64", "string", "timestamp[us, tz=UTC]",
    ]  # fmt: skip
    [file] = (weather_repo.folder / ".featurestore/serving_log").glob("*/*/*")
    header = orjson.loads(pq.read_metadata(file).metadata[b"featurestore.serving_log"])
    assert (header["service"], header["fingerprint"]) == (SERVICE, store.selection(SERVICE).fingerprint()) == file.parts[-3:-1]
    assert (header["sample"], header["dropped"], header["keys"]) == (1.0, 0, {"origin": "String"})
    assert file.name.startswith("20130601T130000000000Z-")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """The repo of the HTTP tests, whose features have every type, with everything logged."""
    repo = write_shop(tmp_path_factory.mktemp("log") / "repo")
    set_log(repo.folder, sample=1.0, flush_seconds=3600.0)
    with FeatureStore(repo.folder) as store:
        try:
            store.apply()
            store.materialize()
            yield store
        finally:
            store.stop()


USERS = [BIG, BIG - 1, -5, 7, None, 99]


@pytest.mark.parametrize("entities", [USERS, pa.array(USERS, pa.int64()), USERS * 100], ids=["few", "Arrow", "many"])
def test_values_of_every_type_come_back_bit_for_bit(shop: FeatureStore, entities: Any) -> None:
    """What the log has of each type, in whatever form it was asked for, is what the lookup gave."""
    assert shop.serving_log is not None
    shop.serving_log.flush()
    before = {file.path for file in log_files(shop.settings.serving_log_folder, "everything")}
    served = shop.get_online_features({"user_id": entities}, "everything").to_arrow()
    shop.serving_log.flush()
    [newest] = [file for file in log_files(shop.settings.serving_log_folder, "everything") if file.path not in before]
    found = pq.read_table(newest.path, partitioning=None).select(served.column_names)
    assert found.schema.equals(served.schema)
    for name in served.column_names:
        assert repr(found[name].to_pylist()) == repr(served[name].to_pylist()), (
            name
        )  # of floats the shortest text that gives the bits


def test_lookups_over_http_and_of_tasks_and_of_features_are_logged(shop: FeatureStore) -> None:
    """The HTTP service's own fast way logs, in both types; so does a task; a list of features is logged as `features`."""
    with TestClient(create_app(shop)) as client:
        body = {"feature_service": "pair", "entities": {"user_id": [BIG, None], "friend_id": [7, BIG]}}
        assert client.post("/v1/online-features", json=body).status_code == 200
        assert client.post("/v1/online-features", json=body, headers={"Accept": ARROW}).status_code == 200
        assert client.post("/v1/online-features", json=body | {"feature_service": "nobody"}).status_code == 404

    async def task() -> None:
        await shop.get_online_features_async({"user_id": [7]}, ["every_type:text"])
        await shop.online.aclose()

    asyncio.run(task())
    assert shop.serving_log is not None
    shop.serving_log.flush()
    folder = shop.settings.serving_log_folder
    [pair] = log_files(folder, "pair")
    assert pq.read_table(pair.path, partitioning=None).drop_columns("__requested_at").to_pydict() == {
        "user_id": [BIG, None] * 2, "friend_id": [7, BIG] * 2,
        "every_type__large": [-(2**63), None] * 2, "every_type__double": [math.inf, None] * 2,
        "friend__large": [None, -(2**63)] * 2,
        "__every_type__status": ["PRESENT", "NOT_FOUND"] * 2, "__every_type__event_time": [at(NOON - HOUR), None] * 2,
        "__friend__status": ["PRESENT", "PRESENT"] * 2, "__friend__event_time": [at(NOON - HOUR)] * 4,
    }  # fmt: skip
    [features] = log_files(folder, "features")
    assert pq.read_table(features.path, partitioning=None)["every_type__text"].to_pylist() == [None]


def test_a_sample_has_whole_requests_by_chance(logging: Logging) -> None:
    """Each request is logged with all of its rows or not at all, about as often as `sample` says, whatever its keys."""
    store = logging(sample=0.25)
    random.seed(7)
    for _ in range(400):
        look_up(store, "EWR", "JFK", "LGA")
    found = logged(store)["origin"].to_pylist()
    assert found == ["EWR", "JFK", "LGA"] * (len(found) // 3)
    assert 70 <= len(found) // 3 <= 130


def test_a_full_queue_drops_rows_counts_them_and_holds_no_lookup_up(logging: Logging) -> None:
    """While the log cannot write, lookups are answered; what does not fit is counted, and the next file says how much it was."""
    store = logging(sample=1.0, queue_rows=10)
    log = store.serving_log
    assert log is not None
    with log._writing:  # the disk takes its time
        for _ in range(7):
            assert look_up(store, "EWR", "JFK").to_dict()["airport_weather__gusts"] == [2**53 + 1, 7]
        look_up(store, *["EWR"] * 11)  # larger than the queue will ever be
        assert (log.counts.logged, log.counts.dropped, log.counts.queued) == (0, 4 + 11, 10)
    assert len(logged(store)) == 10
    assert (log.counts.logged, log.counts.dropped, log.counts.queued) == (10, 15, 0)
    look_up(store, "EWR")
    assert len(logged(store)) == 11
    assert sorted(file.header.dropped for file in log_files(store.settings.serving_log_folder)) == [0, 15]


def test_a_scrape_says_what_was_written_dropped_and_waits(logging: Logging) -> None:
    """`/metrics` of a service with a log has its rows by outcome, those that wait, and nothing else of it."""
    store = logging(sample=1.0, queue_rows=4)
    assert store.serving_log is not None
    with TestClient(create_app(store)) as client:

        def scraped() -> dict[str, float]:
            lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines() if line[:1] != "#"]
            of_log = "featurestore_serving_log_"
            return {name.removeprefix(of_log): float(value) for name, _, value in lines if name.startswith(of_log)}

        written, dropped = 'rows_total{worker="0",outcome="written"}', 'rows_total{worker="0",outcome="dropped"}'
        with store.serving_log._writing:  # the disk takes its time
            for origins in (["EWR", "JFK", "LGA"], ["EWR", "JFK"]):
                body = {"feature_service": SERVICE, "entities": {"origin": origins}}
                assert client.post("/v1/online-features", json=body).status_code == 200
            assert scraped() == {written: 0, dropped: 2, 'waiting{worker="0"}': 3}
        store.serving_log.flush()
        assert scraped() == {written: 3, dropped: 2, 'waiting{worker="0"}': 0}


def test_it_is_written_by_itself_and_when_the_store_is_closed(logging: Logging) -> None:
    """After `flush_seconds` what waits is in a file; `close` writes the rest."""
    store = logging(sample=1.0, flush_seconds=0.05)
    look_up(store, "EWR")
    deadline = time.monotonic() + 20
    while not len(written(store)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(written(store)) == 1
    look_up(store, "JFK")
    store.close()
    assert sorted(written(store)["origin"].to_pylist()) == ["EWR", "JFK"]
    look_up(store, "LGA")  # a store that goes on being used goes on logging
    store.close()
    assert len(written(store)) == 3


def test_the_oldest_files_go_when_the_log_is_too_large(logging: Logging, weather_repo: Repo) -> None:
    """What the log takes on disk stays within `max_size`."""
    store = logging(sample=1.0, max_size="8K")
    for _ in range(6):
        look_up(store, "EWR")
        logged(store)
        weather_repo.now += 1
    files = [file.path for file in log_files(store.settings.serving_log_folder)]
    assert sum(file.stat().st_size for file in files) <= 8000
    times = written(store)["__requested_at"].to_pylist()
    assert 0 < len(times) < 6
    assert times == [at(weather_repo.now - len(times) + place) for place in range(len(times))]


def test_a_log_that_cannot_be_written_costs_its_rows_and_nothing_else(logging: Logging, weather_repo: Repo) -> None:
    """Lookups go on, the rows count as dropped, which the next file says that can be written."""
    taken = weather_repo.folder / "taken"
    taken.write_text("no folder")
    store = logging(sample=1.0, path="taken")
    assert look_up(store, "EWR").to_dict()["airport_weather__temperature"] == [21.0]
    assert store.serving_log is not None
    store.serving_log.flush()
    assert (store.serving_log.counts.logged, store.serving_log.counts.dropped, store.serving_log.counts.queued) == (0, 1, 0)
    look_up(store, "JFK", "LGA")
    taken.unlink()
    store.serving_log.flush()
    assert (store.serving_log.counts.logged, store.serving_log.counts.dropped) == (2, 1)
    assert [file.header.dropped for file in log_files(taken)] == [1]


def test_what_cannot_be_logged_costs_nothing_of_what_can(comfort: Throwaway, caplog: pytest.LogCaptureFixture) -> None:
    """A lookup whose on-demand features nobody can compute is dropped, counted and told; those beside it are logged."""
    file = comfort.folder / "definitions.py"
    fails = '    assert (inputs["distance"] > 0).all(), "no distance"\n    return {"warmth"'
    file.write_text(file.read_text().replace('    return {"warmth"', fails))
    comfort.store.apply()
    log = comfort.store.serving_log
    assert log is not None
    assert feel(comfort.store, ["EWR", "EWR"], [2.0, 3.0]) == [42.0, 63.0]
    with pytest.raises(OnDemandError, match="no distance"):
        feel(comfort.store, ["EWR"], [-1.0])
    with pytest.raises(OnDemandError, match="no distance"):
        feel(comfort.store, ["EWR", "EWR"], [1.0, -1.0])
    assert feel(comfort.store, ["EWR"], [4.0]) == [84.0]
    log.flush()
    assert (log.counts.logged, log.counts.dropped, log.counts.queued) == (3, 3, 0)
    [logged_file] = log_files(comfort.store.settings.serving_log_folder)
    assert pq.read_table(logged_file.path, partitioning=None)["comfort__warmth"].to_pylist() == [42.0, 63.0, 84.0]
    assert logged_file.header.dropped == 3
    assert [record.getMessage().startswith("the serving log loses") for record in caplog.records] == [True, True]


def test_many_requests_of_one_and_of_many_rows_keep_their_values_beside_them(shop: FeatureStore) -> None:
    """However requests are put together to be written, each row has its own values, and a request's rows follow each other."""
    assert shop.serving_log is not None
    shop.serving_log.flush()
    before = {file.path for file in log_files(shop.settings.serving_log_folder, "pair")}
    users = [BIG, 7, None, -5, 99]
    asked: list[tuple[Any, Any]] = []
    for place in range(700):
        rows = 1 + place % 4
        users_of, friends = [users[(place + row) % 5] for row in range(rows)], [users[(place * 3 + row) % 5] for row in range(rows)]
        shop.get_online_features({"user_id": users_of, "friend_id": friends}, "pair")
        asked += zip(users_of, friends, strict=True)
    expected = shop.get_online_features(
        {"user_id": [user for user, _ in asked], "friend_id": [friend for _, friend in asked]}, "pair"
    ).to_arrow()
    shop.serving_log.flush()
    [newest] = [file for file in log_files(shop.settings.serving_log_folder, "pair") if file.path not in before]
    found = pq.read_table(newest.path, partitioning=None).select(expected.column_names)
    assert repr(found.to_pydict()) == repr(pa.concat_tables([expected, expected]).to_pydict())


def test_a_file_that_is_none_of_ours_is_named(logging: Logging) -> None:
    """Reading a torn or foreign file is an error with its path."""
    store = logging(sample=1.0)
    look_up(store, "EWR")
    logged(store)
    [file] = log_files(store.settings.serving_log_folder)
    file.path.write_bytes(file.path.read_bytes()[:-20])
    with pytest.raises(OfflineStoreError, match=file.path.name):
        log_files(store.settings.serving_log_folder)


KILLED = """
import sys
from featurestore import FeatureStore
with FeatureStore(sys.argv[1]) as store:
    print("ready", flush=True)
    while True:
        store.get_online_features({"user_id": [1, 2, 3]}, "everything")
"""


def test_a_killed_process_leaves_whole_files(shop: FeatureStore, tmp_path: Path) -> None:
    """Kill -9 at any moment leaves files that are complete; what it began is invisible, and removed by an erasure or in time."""
    folder = tmp_path / "log"
    variables = {"FEATURESTORE_SERVING_LOG__PATH": str(folder), "FEATURESTORE_SERVING_LOG__FLUSH_SECONDS": "0.01"}
    generator = random.Random(3)
    rows = 0
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, str(shop.settings.root)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | variables)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before, deadline = len(list(folder.rglob("*.parquet"))), time.monotonic() + 30
        while len(list(folder.rglob("*.parquet"))) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(generator.random() * 0.6)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        found = sum(len(pq.read_table(file.path, partitioning=None)) for file in log_files(folder))
        assert found > rows
        rows = found
    assert rows % 3 == 0


# T14


ORDERS = """
item = Entity("item", join_keys={"item_id": String})
orders = FileSource("orders", path="orders.parquet", event_time="at")
bought = FeatureView("bought", entities=[user, item], source=orders, fields=[Field("count", Int64)])
of_gift = bought.alias("of_gift", join_keys={"user_id": "giver_id"})
gift = FeatureService("gift", features=[of_gift, friend[["large"]]])
"""


@pytest.fixture
def gifts(repo: Repo) -> FeatureStore:
    """A repo with a view of users and items, looked up under other names; all is logged."""
    repo.define(DEFINITIONS + ORDERS)
    repo.write("readings.parquet", READINGS)
    repo.write("orders.parquet", {
        "user_id": [BIG, BIG, 7], "item_id": ["a", "b", "a"], "at": pa.array([at(NOON)] * 3, TIME), "count": [1, 2, 3],
    })  # fmt: skip
    repo.write("notes.parquet", {name: pa.array([value]) for name, value in THING.items()} | {
        "note": ["x"], "number": pa.array([1], pa.int32()), "day": pa.array([THING["day"]], pa.date32()),
        "moment": pa.array([THING["moment"]], TIME),
    })  # fmt: skip
    set_log(repo.folder, sample=1.0, flush_seconds=3600.0)
    store = repo.open()
    store.apply()
    store.materialize()
    return store


GIFTS: dict[str, Any] = {"giver_id": [BIG, BIG, 7, 7], "item_id": ["a", "b", "a", "b"], "friend_id": [7, 7, 7, 1]}


def test_t14_an_erased_entity_is_erased_from_the_log_in_every_role_and_key(gifts: FeatureStore) -> None:
    """Rows go whose key columns hold it, under an alias's names and as part of a composite key, and whatever a killed process left.

    The others keep every bit.
    """
    gifts.get_online_features(GIFTS, "gift")
    gifts.get_online_features({"user_id": [BIG, 1]}, "everything")
    assert gifts.serving_log is not None
    gifts.serving_log.flush()
    [file] = log_files(gifts.settings.serving_log_folder, "gift")
    before = pq.read_table(file.path, partitioning=None)
    partial = file.path.with_name(".20130601.parquet.partial")
    partial.write_bytes(file.path.read_bytes()[:100])
    manifest = gifts.delete_entities("item", {"item_id": ["b"]})
    assert manifest.serving_log_rows == 2
    assert manifest.to_dict()["serving_log_rows"] == 2
    assert not partial.exists()
    [file] = log_files(gifts.settings.serving_log_folder, "gift")
    assert pq.read_table(file.path, partitioning=None).equals(before.take([0, 2]))
    assert gifts.delete_entities("user", {"user_id": [BIG]}).serving_log_rows == 2
    [file] = log_files(gifts.settings.serving_log_folder, "gift")
    assert pq.read_table(file.path, partitioning=None)["giver_id"].to_pylist() == [7]
    [other] = log_files(gifts.settings.serving_log_folder, "everything")
    assert pq.read_table(other.path, partitioning=None)["user_id"].to_pylist() == [1]
    assert gifts.delete_entities("user", {"user_id": [7, 1]}).serving_log_rows == 2
    assert log_files(gifts.settings.serving_log_folder) == []


def test_t14_what_waits_to_be_logged_when_an_entity_is_erased_is_not_written(gifts: FeatureStore) -> None:
    """Rows in the queue of a running server respect the tombstone; a file that an older process wrote late is read without them."""
    gifts.get_online_features(GIFTS, "gift")
    gifts.delete_entities("user", {"user_id": [7]})
    logged(gifts)
    assert log_files(gifts.settings.serving_log_folder) == []  # each row has the user as giver or as friend
    gifts.restore_entities("user", {"user_id": [7]})
    gifts.get_online_features(GIFTS, "gift")
    logged(gifts)
    [file] = log_files(gifts.settings.serving_log_folder, "gift")
    content = file.path.read_bytes()
    gifts.delete_entities("item", {"item_id": ["a"]})
    file.path.write_bytes(content)
    found = file.read(gifts.registry.erasures.tombstones())
    assert found is not None
    assert found["item_id"].to_pylist() == ["b", "b"]
