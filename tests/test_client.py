from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import duckdb
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import AsyncFeatureStoreClient, FeatureService, FeatureStore, FeatureStoreClient, errors
from featurestore.client.exchange import Answer, Failure, Retries
from featurestore.client.spool import Spool
from featurestore.errors import InputError, ServiceError, restored
from featurestore.types import pandas_type
from tests.conftest import NOON, TIME, Repo, at
from tests.service import BIG, SPINE, THING, serving
from tests.test_push import define

Body = Callable[[Any], Any]
Given = tuple[int, dict[str, str], bytes]


def _vectors(entities: dict[str, Any], features: Any, **options: Any) -> Body:
    def body(store: Any) -> Any:
        found = store.get_online_features(entities, features, **options)
        times = {view: each.to_pylist() for view, each in found.event_times.items()}
        return found.features, found.to_arrow().schema, found.to_dict(), found.to_pandas(), dict(found.statuses), times

    return body


def _training(spine: Any, features: Any, **options: Any) -> Body:
    def body(store: Any) -> Any:
        found = store.get_historical_features(spine, features, **options)
        batches = [batch.to_pydict() for batch in found.to_batches()]
        return found.schema, found.to_arrow().schema, found.to_dict(), found.to_pandas(), batches

    return body


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_vectors({"user_id": [BIG, BIG - 1, -5, 7, None, 0]}, "everything"), id="every type"),
        pytest.param(_vectors({"user_id": [BIG, 7], "friend_id": [BIG - 1, None]}, "pair"), id="an alias"),
        pytest.param(_vectors({"friend_id": [2], "user_id": [1]}, ["every_type:flag", "friend:text"]), id="another order of keys"),
        pytest.param(_vectors({"user_id": []}, "everything"), id="no rows"),
        pytest.param(
            _vectors({"user_id": pa.array([BIG], pa.int64())}, FeatureService("everything", features=["every_type:text"])),
            id="an array",
        ),
        pytest.param(
            _vectors({name: [value, None] for name, value in THING.items()}, ["thing_notes:note"]), id="keys of all types"
        ),
        pytest.param(_training(SPINE, "everything"), id="training of every type"),
        pytest.param(
            _training(SPINE.slice(0, 0), ["friend:vector"], timestamp_column="event_timestamp"), id="the spine lacks a key"
        ),
        pytest.param(
            _training(SPINE.rename_columns(["a", "user_id", "at", "b"]), ["every_type:day"], timestamp_column="at"), id="at"
        ),
        pytest.param(_vectors({"user_id": [1]}, "evrything"), id="no such service"),
        pytest.param(_vectors({"user_id": [1]}, ["every_type:lage"]), id="no such feature"),
        pytest.param(_vectors({"user_id": [1]}, []), id="nothing asked for"),
        pytest.param(_vectors({"user_id": "1"}, "everything"), id="a text for a list"),
        pytest.param(_vectors({"user_id": [1], "friend_id": [1, 2]}, "pair"), id="lengths differ"),
        pytest.param(_vectors({"user": [1]}, "everything"), id="no such key"),
        pytest.param(_vectors({"user_id": [1.5]}, "everything"), id="a key of a wrong type"),
        pytest.param(_vectors({"user_id": [2**63]}, "everything"), id="a key beyond its type"),
        pytest.param(_vectors({"user_id": [1]}, ["offline_only:small"]), id="not online"),
        pytest.param(_training(SPINE.drop(["user_id"]), "everything"), id="no key in the spine"),
        pytest.param(_training(SPINE, "everything", timestamp_column="label"), id="no times"),
        pytest.param(_training(SPINE, "everything", incomplete="maybe"), id="incomplete=maybe"),
        pytest.param(
            _training(pa.table({"user_id": [1], "event_timestamp": pa.array([at(NOON + 1)], TIME)}), "everything"), id="too late"
        ),
        pytest.param(_vectors({"user_id": [1]}, "everything", lock="0" * 32), id="another lock"),
        pytest.param(_vectors({"user_id": [1]}, "everything", lock="nowhere.lock"), id="no lock"),
        pytest.param(_training(SPINE, "everything", lock="0" * 32), id="another lock in training"),
        pytest.param(_training(SPINE, "everything", availability="measured"), id="measured"),
        pytest.param(_training(SPINE, "everything", availability="maybe"), id="availability=maybe"),
        pytest.param(_training(3, "everything"), id="no spine"),
        pytest.param(_training("nowhere.parquet", "everything"), id="no file"),
    ],
)
def test_the_same_code_gives_the_same_on_both_sides(store: FeatureStore, remote: str, body: Body) -> None:
    """What runs on a FeatureStore runs on a client: equal tables, types, statuses and times, or errors of one class and name."""
    with FeatureStoreClient(remote) as client:
        here, there = _outcome(body, store), _outcome(body, client)

    assert type(here) is type(there)
    assert repr(here) == repr(there)


def test_locks(store: FeatureStore, remote: str, tmp_path: Path) -> None:
    """The file of a lock lets through what it was made of, and nothing else, here and there."""
    lock, entities = tmp_path / "pair.lock", {"user_id": [BIG], "friend_id": [BIG - 1]}
    store.lock("pair", lock)
    with FeatureStoreClient(remote) as client:
        assert client.get_online_features(entities, "pair", lock=lock).to_dict()["every_type__large"] == [-(2**63)]
        with pytest.raises(errors.LockError):
            client.get_historical_features(SPINE, "everything", lock=lock)
        with pytest.raises(errors.LockError):
            client.create_training_set(SPINE, "everything", lock=lock)
        store.lock("everything", lock)  # a file that has changed is read anew
        with pytest.raises(errors.LockError):
            client.get_online_features(entities, "pair", lock=lock)


def _outcome(body: Body, store: Any) -> Any:
    try:
        return body(store)
    except errors.FeatureStoreError as error:
        return type(error), getattr(error, "name", None)


SPINES: dict[str, Callable[[Path], Any]] = {
    "Parquet": lambda file: file,
    "Parquet, by text": str,
    "pandas": lambda _: SPINE.to_pandas(types_mapper=pandas_type),
    "Polars": lambda _: pl.from_arrow(SPINE),
    "DuckDB": lambda _: duckdb.from_arrow(SPINE),
    "reader": lambda _: SPINE.to_reader(2),
    "batch": lambda _: SPINE.to_batches()[0],
    "SQL": lambda file: f"SELECT * FROM '{file}' WHERE user_id IS NOT NULL",
}


@pytest.mark.parametrize("kind", SPINES)
def test_every_kind_of_spine(store: FeatureStore, remote: str, tmp_path: Path, kind: str) -> None:
    """A client takes every kind of spine that a FeatureStore takes, and reads paths and SQL itself."""
    pq.write_table(SPINE, tmp_path / "spine.parquet")
    body = _training(SPINES[kind](tmp_path / "spine.parquet"), "everything")
    again = _training(SPINES[kind](tmp_path / "spine.parquet"), "everything")
    with FeatureStoreClient(remote) as client:
        assert repr(body(store)) == repr(again(client))


def test_training_sets_go_to_files(store: FeatureStore, remote: str, tmp_path: Path) -> None:
    """`to_parquet` writes the file that a FeatureStore writes; a place where none can be is an error that names it."""
    with FeatureStoreClient(remote) as client:
        training = client.get_historical_features(SPINE, "everything")
        rows = training.to_parquet(tmp_path / "there.parquet")
        with pytest.raises(errors.OfflineStoreError, match="nowhere"):
            training.to_parquet(tmp_path / "nowhere" / "there.parquet")
    store.get_historical_features(SPINE, "everything").to_parquet(tmp_path / "here.parquet")

    assert rows == SPINE.num_rows
    assert repr(pq.read_table(tmp_path / "there.parquet")) == repr(pq.read_table(tmp_path / "here.parquet"))
    assert [file.name for file in tmp_path.iterdir() if "there" in file.name] == ["there.parquet"]


def test_the_asynchronous_client(store: FeatureStore, remote: str) -> None:
    """Its methods are awaited, many at a time, and give what the other client's give, errors included."""

    async def asked() -> tuple[Any, Any, Any, Any]:
        async with AsyncFeatureStoreClient(remote) as client:
            vectors = await asyncio.gather(*(client.get_online_features({"user_id": [BIG]}, "everything") for _ in range(20)))
            training = await client.get_historical_features(SPINE, "everything")
            with pytest.raises(errors.NotFoundError, match="no feature service 'nope'"):
                await client.get_online_features({}, "nope")
            seen = [await client.overview(), await client.versions(), await client.runs(2), await client.definitions("entities")]
            seen.append(await client.definition("feature-services", "pair"))
            return vectors, training, seen, (await client.freshness())["feature_views"]

    vectors, training, seen, freshness = asyncio.run(asked())
    expected = store.get_online_features({"user_id": [BIG]}, "everything").to_dict()
    with FeatureStoreClient(remote) as client:
        same = [client.overview(), client.versions(), client.runs(2), client.definitions("entities")]
        same.append(client.definition("feature-services", "pair"))

    assert {repr(each.to_dict()) for each in vectors} == {repr(expected)}
    assert repr(training.to_dict()) == repr(store.get_historical_features(SPINE, "everything").to_dict())
    assert seen == same
    assert {each["view"] for each in freshness} == {"every_type", "thing_notes", "offline_only"}


def test_what_the_registry_says(store: FeatureStore, remote: str) -> None:
    """Definitions, versions and runs are those of the registry."""
    with FeatureStoreClient(remote) as client:
        assert client.overview()["feature_services"] == ["everything", "pair"]
        assert client.definition("feature-services", "pair")["keys"] == {"user_id": "Int64", "friend_id": "Int64"}
        assert [each["name"] for each in client.definitions("entities")] == ["thing", "user"]
        assert {each["view"] for each in client.versions("every_type")} == {"every_type"}
        assert [each["run"] for each in client.runs(limit=1)] == [store.runs(1)[0].number]
        with pytest.raises(errors.NotFoundError, match="'evry_type'"):
            client.versions("evry_type")


# Pushes


def test_pushes(repo: Repo) -> None:
    """Rows of each kind are pushed as by a FeatureStore, under one key once; what is wrong is an error of the same class."""
    store = define(repo)
    table = pa.table({"tail": ["B"], "rested": [False], "hours": [7], "at": pa.array([at(NOON)], TIME)})
    row = {"tail": "C", "rested": None, "hours": 9, "at": at(NOON)}
    with serving(store.settings.root, "--json") as (_, line), FeatureStoreClient(json.loads(line)["url"]) as client:
        receipts = [client.push("crew", rows, "a") for rows in (table, table)]
        receipts += [client.push("crew", rows) for rows in (table.to_pandas(), pl.from_arrow(table), [row], {**table.to_pydict()})]
        faults = [_outcome(lambda side: side.push("crew", {**row, "hours": ["x"]}), each) for each in (store, client)]
        faults += [_outcome(lambda side: side.push("crow", [row]), each) for each in (store, client)]

    assert receipts[0] == receipts[1]
    assert [receipt.rows for receipt in receipts] == [1] * 6
    assert len({receipt.arrival for receipt in receipts}) == 5
    assert store.registry.pushes.state("crew").rows == 5
    assert [kind for kind, *_ in faults] == [InputError, InputError, errors.NotFoundError, errors.NotFoundError]


# Refusals and lost connections


@contextmanager
def answering(*answers: Given | None) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Run a server that gives these answers in turn, none being a connection that breaks; gives the headers that it saw as well."""
    left, seen = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = left.pop(0)
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = do_GET  # noqa: N815 (names that the library gives)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


OK: Given = (200, {"Content-Type": "application/json"}, b'{"versions": []}')
BUSY = (503, {"Retry-After": "0"}, orjson.dumps({"type": "/problems/registry", "title": "x", "status": 503, "detail": "locked"}))
LIMITED = (429, {"Retry-After": "0"}, orjson.dumps({"type": "/problems/too-many-requests", "detail": "slower", "status": 429}))
LATER = (503, {"Retry-After": "3600"}, BUSY[2])
SLOW: Given = (503, {"Retry-After": "0"}, b'{"type":"/problems/too-slow","detail":"10 s were not enough"}')
PROXY: Given = (502, {}, b"<html>Bad gateway</html>")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([OK], None),
        ([BUSY, LIMITED, None, OK], None),
        ([BUSY] * 4, (errors.RegistryError, "locked")),
        ([LIMITED] * 4, (ServiceError, "slower")),
        ([None] * 4, (ServiceError, "GET /v1/registry/versions: the service cannot be reached: Server disconnected")),
        ([SLOW], (ServiceError, "10 s were not enough")),
        ([LATER], (errors.RegistryError, "locked")),
        ([PROXY], (ServiceError, "was answered with 502, and not by a feature store")),
    ],
)
def test_what_is_tried_again(answers: list[Any], expected: tuple[type[Exception], str] | None) -> None:
    """Closed doors and broken connections are tried again, up to four times in all; other refusals and long waits are not."""
    with answering(*answers) as (url, seen), FeatureStoreClient(url, api_key="k-1") as client:
        if expected is None:
            assert client.versions() == []
        else:
            with pytest.raises(expected[0], match=expected[1]):
                client.versions()

    assert len(seen) == len(answers)
    assert {headers["Authorization"] for headers in seen} == {"Bearer k-1"}


def test_nobody_listens() -> None:
    """A refused connection is a ServiceError that names the request, after as many attempts as were allowed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with FeatureStoreClient(url, retries=1) as client, pytest.raises(ServiceError, match=r"POST /v1/online-f.*refused"):
            client.get_online_features({"user_id": [1]}, "everything")


def test_a_service_that_is_silent() -> None:
    """One that does not answer in time is an error that says so, and is not asked again."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with FeatureStoreClient(url, timeout_seconds=0.1) as client, pytest.raises(ServiceError, match="not answer in time"):
            client.overview()
        silent.settimeout(0.2)
        silent.accept()[0].close()
        with pytest.raises(TimeoutError):
            silent.accept()


@pytest.mark.parametrize(
    ("got", "attempt", "chance", "expected"),
    [
        (Failure("refused", is_retryable=True), 0, 0.0, 0.0),
        (Failure("refused", is_retryable=True), 0, 1.0, 0.1),
        (Failure("refused", is_retryable=True), 2, 1.0, 0.4),
        (Failure("refused", is_retryable=True), 3, 1.0, None),
        (Failure("slow", is_retryable=False), 0, 1.0, None),
        (Answer(503, {"retry-after": "2"}, Spool()), 1, 0.5, 2.1),
        (Answer(429, {"retry-after": "2"}, Spool()), 0, 0.0, 2.0),
        (Answer(503, {}, Spool()), 0, 0.0, None),
        (Answer(503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, Spool()), 0, 0.0, None),
        (Answer(503, {"retry-after": "21"}, Spool()), 0, 0.0, None),
        (Answer(500, {"retry-after": "1"}, Spool()), 0, 0.0, None),
        (Answer(200, {}, Spool()), 0, 0.0, None),
    ],
)
def test_pauses(got: Answer | Failure, attempt: int, chance: float, expected: float | None) -> None:
    """The pause is what the service asks for and a random part of 0.1 s, which doubles with each attempt; none where none helps."""
    pause = Retries(3, chance=lambda: chance).pause(got, attempt)

    assert pause is expected is None or (pause is not None and expected is not None and math.isclose(pause, expected))


# Settings


def test_where_the_service_is(monkeypatch: pytest.MonkeyPatch, remote: str) -> None:
    """URL and key come from arguments or the environment; a key is never shown, and one that no header can hold is refused."""
    monkeypatch.delenv("FEATURESTORE_URL", raising=False)
    with pytest.raises(InputError, match="FEATURESTORE_URL"):
        FeatureStoreClient()
    with pytest.raises(InputError, match="'localhost:8000' is no URL"):
        FeatureStoreClient("localhost:8000")
    with pytest.raises(InputError, match="API key"):
        FeatureStoreClient(remote, api_key="a\nb")
    with pytest.raises(InputError, match="there are no certificates to read in /nowhere"):
        FeatureStoreClient(remote, ca_file="/nowhere")
    monkeypatch.setenv("FEATURESTORE_URL", f"{remote}/")
    monkeypatch.setenv("FEATURESTORE_API_KEY", "secret-key")
    with FeatureStoreClient() as client:
        assert repr(client) == f"FeatureStoreClient({remote!r})"
        for login in ("me:secret", "me:sec@ret"):
            assert repr(FeatureStoreClient(f"http://{login}@host/")) == "FeatureStoreClient('http://me:***@host')"
        assert client.overview()["project"] == "shop"
    with answering(OK) as (url, seen), FeatureStoreClient(url) as client:
        client.versions()
    assert seen[0]["Authorization"] == "Bearer secret-key"


def test_errors_are_restored_by_their_codes() -> None:
    """Each error of the tree comes back from its code, message and name as an error of its class."""
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.FeatureStoreError):
            error = restored(kind.code, "what is wrong", {"name": "x", "nearest": ["y"]})
            assert (type(error), str(error)) == (kind, "what is wrong")
            assert (vars(error)["name"], vars(error)["nearest"]) == ("x", ("y",))
    assert restored("internal", "?", {}) is None


def test_a_spool(tmp_path: Path) -> None:
    """Few bytes stay in memory, more go to a temporary file that ends with the spool; both are read as often as needed."""
    small, large = Spool(), Spool()
    small.write(b"abc")
    for _ in range(9):
        large.write(b"x" * 1_000_000)
    path = large._path

    assert (small._path, small.size, small.content(), b"".join(small.chunks())) == (None, 3, b"abc", b"abc")
    assert path is not None
    assert path.stat().st_size == large.size == len(large.content()) == large.source().size() == 9_000_000
    del large
    assert not path.exists()
    kept = Spool(tmp_path / "kept")
    kept.write(b"abc")
    kept.flush()
    del kept
    assert Spool.of_file(tmp_path / "kept").content() == b"abc"


def test_an_instant_key_is_the_same_in_any_zone(store: FeatureStore, remote: str) -> None:
    """T1: a key of another offset is the same instant on both sides."""
    east = dt.timezone(dt.timedelta(hours=2))
    keys = {name: [value.astimezone(east) if isinstance(value, dt.datetime) else value] for name, value in THING.items()}
    with FeatureStoreClient(remote) as client:
        assert client.get_online_features(keys, ["thing_notes:note"]).to_dict()["thing_notes__note"] == ["found"]
        assert store.get_online_features(keys, ["thing_notes:note"]).to_dict()["thing_notes__note"] == ["found"]
