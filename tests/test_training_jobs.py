from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore, FeatureStoreClient
from featurestore.client import TrainingSetJob
from featurestore.errors import InputError, NotFoundError, OfflineStoreError, RunInProgressError, SpineError, TrainingSetError
from featurestore.offline.stored_sets import StoredSet
from featurestore_server.app import create_app
from featurestore_server.computing import compute
from tests.conftest import NOON, TIME, at
from tests.service import BIG, SPINE, ended, serving, write_repo

ROWS = 2_000_000


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A materialized store of this module's own, whose training sets no other server computes."""
    with ended(FeatureStore(write_repo(tmp_path_factory.mktemp("jobs") / "repo").folder)) as store:
        store.apply()
        store.materialize()
        yield store


@pytest.fixture
def idle(kept: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeatureStoreClient]:
    """A client of a server that computes no jobs."""
    with _client(kept, monkeypatch, 0) as (client, _):
        yield client


@pytest.fixture
def busy(kept: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FeatureStoreClient, int]]:
    """A client of a server that computes jobs, and the server's process id."""
    with _client(kept, monkeypatch, 1) as found:
        yield found


@contextmanager
def _client(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, jobs: int) -> Iterator[tuple[FeatureStoreClient, int]]:
    monkeypatch.setenv("FEATURESTORE_SERVER__TRAINING_JOBS", str(jobs))
    with serving(store.settings.root, "--json") as (process, line), FeatureStoreClient(json.loads(line)["url"]) as client:
        yield client, process.pid


def _large() -> pa.Table:
    """Return a spine that takes some seconds."""
    times = pa.array([NOON] * ROWS, pa.int64()).cast(TIME)
    return pa.table({"user_id": [BIG, 7] * (ROWS // 2), "event_timestamp": times, "row": range(ROWS)})


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _wait_until(client: FeatureStoreClient, identifier: str, state: str) -> TrainingSetJob:
    for _ in range(1000):
        job = client.training_set(identifier)
        if job.state == state and (job.attempts or state == "waiting"):  # whoever has it says a moment later that it began
            return job
        time.sleep(0.02)
    raise AssertionError(job)


def test_a_training_set_as_a_job(kept: FeatureStore, busy: tuple[FeatureStoreClient, int], tmp_path: Path) -> None:
    """It is computed, listed, fetched and deleted; its rows are the Python API's, and its manifest makes it again."""
    client, _ = busy
    made = client.create_training_set(SPINE, "everything")
    job = client.wait_for_training_set(made.id, timeout_seconds=60)
    size = client.fetch_training_set(made.id, tmp_path / "rows.parquet")
    expected = kept.get_historical_features(SPINE, "everything").to_arrow()
    again = kept.get_historical_features(SPINE, "everything", as_of_manifest=kept.training_sets.find(made.id).result)

    assert (made.state, made.features, made.spine_rows) == ("waiting", "everything", SPINE.num_rows)
    assert (job.state, job.rows, job.rows_done, job.attempts, job.error) == ("completed", SPINE.num_rows, SPINE.num_rows, 1, None)
    assert job.columns == expected.column_names
    assert repr(pq.read_table(tmp_path / "rows.parquet").to_pydict()) == repr(expected.to_pydict())
    assert pq.read_schema(tmp_path / "rows.parquet").remove_metadata() == expected.schema
    assert size == job.bytes == (tmp_path / "rows.parquet").stat().st_size
    assert repr(again.to_dict()) == repr(expected.to_pydict())
    assert [each.id for each in client.training_sets()] == [made.id]
    assert client.delete_training_set(made.id).id == made.id
    with pytest.raises(NotFoundError, match=made.id):
        client.training_set(made.id)
    assert client.training_sets() == []


def test_what_is_wrong_is_refused_at_once(idle: FeatureStoreClient, kept: FeatureStore) -> None:
    """Names, spines and columns that cannot be are refused by the request, and no job is kept."""
    for spine, features, error in (
        (SPINE, "nothing", NotFoundError),
        (SPINE.drop(["user_id"]), "everything", SpineError),
        (SPINE.append_column("odd", pa.array([None] * 5, pa.month_day_nano_interval())), "everything", InputError),
    ):
        with pytest.raises(error):
            idle.create_training_set(spine, features)
    with pytest.raises(NotFoundError, match=r"training set 'x\.\.y'"):
        idle.training_set("x..y")

    assert idle.training_sets() == []
    assert list(kept.training_sets.folder.glob("*")) == []


def test_a_request_that_is_sent_twice_makes_one_job(idle: FeatureStoreClient) -> None:
    """An Idempotency-Key names a job: the second request with it finds what the first made."""
    one, same, other = (idle.create_training_set(SPINE, "everything", idempotency_key=key) for key in ("a", "a", "b"))

    assert one.id == same.id != other.id
    assert {each.id for each in idle.training_sets()} == {one.id, other.id}
    for each in idle.training_sets():
        idle.delete_training_set(each.id)


def test_a_job_by_measured_availability(idle: FeatureStoreClient, kept: FeatureStore) -> None:
    """What a job was asked to go by is kept with it, and it is computed so."""
    made = idle.create_training_set(SPINE, "everything", availability="measured")
    manifest = _computed(kept, made.id).result.with_name("result.parquet.manifest.json")

    assert json.loads(manifest.read_bytes())["availability"] == "measured"
    idle.delete_training_set(made.id)


def test_a_job_that_waits(idle: FeatureStoreClient, tmp_path: Path) -> None:
    """It has no rows yet; cancelled it is over, which cancelling it again does not change, and can be deleted."""
    made = idle.create_training_set(SPINE, ["every_type:flag"])
    with pytest.raises(TrainingSetError, match="is waiting, and has no rows"):
        idle.fetch_training_set(made.id, tmp_path / "rows.parquet")
    cancelled = [idle.cancel_training_set(made.id).state for _ in range(2)]

    assert cancelled == ["cancelled"] * 2
    assert idle.wait_for_training_set(made.id, timeout_seconds=0).state == "cancelled"
    assert idle.delete_training_set(made.id).features == ["every_type:flag"]
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_runs_is_cancelled(busy: tuple[FeatureStoreClient, int]) -> None:
    """It cannot be deleted while it runs; cancelled it ends within moments, and leaves no rows."""
    client, _ = busy
    made = client.create_training_set(_large(), "everything")
    _wait_until(client, made.id, "running")
    with pytest.raises(TrainingSetError, match="cancel it first"):
        client.delete_training_set(made.id)
    client.cancel_training_set(made.id)
    job = client.wait_for_training_set(made.id, timeout_seconds=20)

    assert (job.state, job.rows) == ("cancelled", None)
    client.delete_training_set(made.id)


def test_a_job_outlives_its_server(
    kept: FeatureStore, busy: tuple[FeatureStoreClient, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 of the server that computes it another takes it up; of two servers each job is computed by one."""
    client, server = busy
    made = client.create_training_set(_large(), ["every_type:large"])
    _wait_until(client, made.id, "running")
    os.kill(server, signal.SIGKILL)
    for _ in range(500):
        if (state := kept.training_sets.find(made.id).state).state == "waiting":
            break
        time.sleep(0.02)
    assert (state.state, state.attempts) == ("waiting", 1)
    with ExitStack() as stack:
        one, two = (stack.enter_context(_client(kept, monkeypatch, 1))[0] for _ in range(2))
        small = [one.create_training_set(SPINE, "everything").id for _ in range(4)]
        done = two.wait_for_training_set(made.id, timeout_seconds=180)
        others = [two.wait_for_training_set(each, timeout_seconds=180) for each in small]

    assert (done.state, done.rows, done.attempts) == ("completed", ROWS, 2)
    assert [(each.state, each.attempts) for each in others] == [("completed", 1)] * 4
    rows = pq.read_table(kept.training_sets.find(made.id).result)
    assert rows["row"].to_pylist() == list(range(ROWS))
    for each in kept.training_sets.all():
        kept.training_sets.delete(each.job.id)


def _made(store: FeatureStore, spine: pa.Table = SPINE, features: Any = "everything") -> str:
    training = store.get_historical_features(spine, features)
    identifier = os.urandom(16).hex()
    store.training_sets.create(identifier, training, now="2013-06-01T12:00:00Z")
    return identifier


def _computed(store: FeatureStore, identifier: str) -> StoredSet:
    with store.training_sets.held(identifier) as held:
        compute(store, held)
    return store.training_sets.find(identifier)


def test_a_job_that_fails(kept: FeatureStore) -> None:
    """What is wrong by then is kept with the job; so is that its process was lost again and again."""
    broken, lost = _made(kept), _made(kept)
    (kept.training_sets.find(broken).folder / "spine.arrow").write_bytes(b"")
    with pytest.raises(pa.ArrowException):
        _computed(kept, broken)
    with kept.training_sets.held(lost) as held:
        held.save(attempts=3)

    assert kept.training_sets.find(broken).state.error == {"code": "internal", "detail": "the log of the service says why"}
    found = _computed(kept, lost)
    assert (found.state.state, found.state.error) == (
        "failed",
        {"code": "lost", "detail": "the process that computed it was lost 3 times; the log of the service may say why"},
    )
    for identifier in (broken, lost):
        kept.training_sets.delete(identifier)


def test_one_that_cannot_be_read_at_the_moment(kept: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system may pass, and is no state: whoever asks is told, and what there is stays as it is."""
    made, read = _made(kept), Path.read_bytes
    _computed(kept, made)

    def failing(path: Path) -> bytes:
        if path.name == "state.json":
            raise OSError(errno.EMFILE, "Too many open files")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        with pytest.raises(OfflineStoreError, match="Too many open files"):
            kept.training_sets.find(made)
    assert kept.training_sets.find(made).state.state == "completed"
    kept.training_sets.delete(made)


@pytest.mark.parametrize("content", [b"", b"{", b'{"state": "what"}', None])
def test_one_whose_state_cannot_be_read(kept: FeatureStore, content: bytes | None) -> None:
    """It counts as failed, says why, and can be deleted; the others are listed, and wait, as before."""
    broken, other = _made(kept), _made(kept)
    file = kept.training_sets.folder / broken / "state.json"
    if content is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(content)
    waiting = [each.job.id for each in kept.training_sets.waiting()]
    client = TestClient(create_app(kept))
    listed = {each["id"]: each for each in client.get("/v1/training-sets").json()["training_sets"]}
    deleted = [client.delete(f"/v1/training-sets/{each}").status_code for each in (broken, other)]

    assert {each: found["state"] for each, found in listed.items()} == {broken: "failed", other: "waiting"}
    error = {"code": "offline-store", "detail": "its state cannot be read; delete it, and ask for it anew"}
    assert (listed[broken]["error"], listed[broken]["features"]) == (error, "everything")
    assert (waiting, deleted) == ([other], [200, 200])
    assert list(kept.training_sets.folder.iterdir()) == []


def test_one_that_cannot_be_begun_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without its temporary folder a server says so, of every attempt, and computes the set once the folder is back."""
    monkeypatch.setattr("featurestore_server.jobs._PAUSE_SECONDS", 0.1)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv("FEATURESTORE_OFFLINE__TEMP_DIRECTORY", str(place))
    with ended(FeatureStore(write_repo(tmp_path / "repo").folder)) as store, TestClient(create_app(store)):
        store.apply()
        store.materialize()
        place.rmdir()
        made = _made(store)
        _until(lambda: f"training set {made} cannot be computed: [Errno 2] No such file or directory" in caplog.text)
        assert store.training_sets.find(made).state.state == "waiting"
        place.mkdir()
        _until(lambda: store.training_sets.find(made).state.state == "completed")


def test_one_that_is_over_is_deleted_once_its_process_lets_go_of_it(kept: FeatureStore) -> None:
    """Whoever computed it holds it for a moment after it has said so, and somebody who waited for that may delete it then."""
    made, begun = _made(kept), threading.Event()
    _computed(kept, made)

    def hold() -> None:
        with kept.training_sets.held(made):
            begun.set()
            time.sleep(0.3)

    with ThreadPoolExecutor() as pool:
        holding = pool.submit(hold)
        assert begun.wait(10)
        kept.training_sets.delete(made)
        holding.result()
    with pytest.raises(NotFoundError, match=made):
        kept.training_sets.find(made)


def test_deleting_one_twice_at_once_leaves_nothing(kept: FeatureStore) -> None:
    """Of several who delete the same set one does, the others are told that there is none, and no folder stays."""

    def delete(identifier: str) -> bool:
        try:
            kept.training_sets.delete(identifier)
        except (NotFoundError, TrainingSetError):
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            made = _made(kept)
            assert sum(pool.map(delete, [made] * 4)) == 1
    assert list(kept.training_sets.folder.iterdir()) == []


def test_erasure_reaches_stored_training_sets(tmp_path: Path) -> None:
    """T14: rows of erased entities leave result and spine; made again they have nulls, and one that runs has to end before."""
    with ended(FeatureStore(write_repo(tmp_path / "repo").folder)) as store:
        store.apply()
        store.materialize()
        spine = pa.table(
            {"user_id": [BIG, BIG - 1, BIG, None, -5], "friend_id": [7, 7, BIG, 7, 0], "event_timestamp": [at(NOON)] * 5}
        )
        done, waiting, other = _made(store, spine, "pair"), _made(store, spine, "pair"), _made(store, spine.slice(4), "pair")
        lost = _made(store, spine, "pair")
        for each in (done, other, lost):
            _computed(store, each)
        (store.training_sets.find(lost).folder / "state.json").write_bytes(b"")
        untouched = store.training_sets.find(other).result.read_bytes()
        with store.training_sets.held(waiting), pytest.raises(RunInProgressError, match=waiting):
            store.delete_entities("user", {"user_id": [BIG]})
        manifest = store.delete_entities("user", {"user_id": [BIG]})

        found, rest = store.training_sets.find(done), [BIG - 1, None, -5]
        assert pq.read_table(found.result)["user_id"].to_pylist() == rest
        assert found.spine()["user_id"].to_pylist() == store.training_sets.find(waiting).spine()["user_id"].to_pylist() == rest
        assert (found.state.rows, found.state.erased_rows, found.state.bytes) == (3, 2, found.result.stat().st_size)
        assert store.training_sets.find(other).result.read_bytes() == untouched
        unread = store.training_sets.find(lost).state
        assert (unread.state, unread.rows, unread.erased_rows) == ("failed", None, 2)
        assert manifest.to_dict()["training_sets"] == [waiting]
        again = store.get_historical_features(spine, "pair", as_of_manifest=found.result)
        assert again.erased_since == 2
        assert again.to_dict()["every_type__large"] == [None, 2**63 - 1, None, None, None]
        assert not [file for file in store.training_sets.folder.rglob("*") if _holds(file, BIG)]


def _holds(file: Path, number: int) -> bool:
    return file.is_file() and number.to_bytes(8, "little") in file.read_bytes()


def test_a_key_that_is_restricted_to_a_service(tmp_path: Path) -> None:
    """Its jobs are those of the service: others are neither listed nor named, shown, fetched, cancelled or deleted."""
    with ended(FeatureStore(write_repo(tmp_path / "repo").folder)) as store:
        store.apply()
        store.materialize()
        mine, others = _made(store), _made(store, features=["every_type:flag"])
        _, key = store.registry.api_keys.create("trainer", ["read-offline"], ["everything"], now=store.clock())
        client = TestClient(create_app(store), headers={"Authorization": f"Bearer {key}"})
        listed = client.get("/v1/training-sets").json()["training_sets"]
        refused = [
            client.request(method, f"/v1/training-sets/{others}{suffix}").status_code
            for method, suffix in (("GET", ""), ("GET", "/data"), ("POST", "/cancel"), ("DELETE", ""))
        ]
        unknown = [
            client.request(method, f"/v1/training-sets/{os.urandom(16).hex()}{suffix}").json()["detail"]
            for method, suffix in (("GET", ""), ("GET", "/data"), ("POST", "/cancel"), ("DELETE", ""))
        ]
        own = client.delete(f"/v1/training-sets/{mine}").status_code

    assert [each["id"] for each in listed] == [mine]
    assert refused == [403] * 4
    assert [(mine in each, others in each) for each in unknown] == [(True, False)] * 4
    assert own == 200
