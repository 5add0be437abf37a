from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis

from featurestore.errors import OnlineStoreError
from featurestore.online.keys import fence, key_codec, marker, online_key, slot
from featurestore.online.store import OnlineStore
from featurestore.settings import load_settings
from featurestore.types import String
from tests.conftest import NOON, TIME, Repo
from tests.servers import Cluster, Process, Topologies, Watched, cluster, watched
from tests.versions import version

TIMES = pa.chunked_array([pa.array([NOON], TIME)])


@pytest.fixture
def store_at(make_repo: Callable[..., Repo]) -> Iterator[Callable[[str], OnlineStore]]:
    """Make online stores by URL."""
    folder, made = make_repo().folder, []

    def make(url: str) -> OnlineStore:
        (folder / "featurestore.toml").write_text(f'project = "test"\n[online]\nurl = "{url}"\ntimeout_ms = 2000\n')
        made.append(OnlineStore(load_settings(folder)))
        return made[-1]

    yield make
    for store in made:
        store.close()


def names(count: int) -> list[pa.ChunkedArray]:
    """Return keys, which spread over all slots."""
    return [pa.chunked_array([[f"k{number}" for number in range(count)]])]


def write(store: OnlineStore, count: int, value: int, run: int) -> int:
    """Write a value under many keys."""
    features = pa.table({"gusts": pa.array([value] * count, pa.int64())})
    return store.write(version(), names(count), features, pa.chunked_array([pa.array([NOON] * count, TIME)]), run=run, now=NOON)


def read(store: OnlineStore, count: int) -> list[Any]:
    """Read them."""
    [rows] = store.read([(version(), names(count))], now=NOON)
    values: list[Any] = rows.features[0].to_pylist()
    return values


def test_slots_are_those_of_the_cluster(topologies: Topologies) -> None:
    """The slot of a key is the one that the server computes, for rows, fences and markers alike."""
    topologies.url("cluster")
    raw = topologies.raw("cluster")
    keys = [online_key("0123abcd", b"%d" % number) for number in range(500)]
    codec = key_codec("0123abcd", (String,))
    [*blocks] = codec.blocks([pa.chunked_array([[str(number) for number in range(500)]])])
    slots = np.concatenate([block.slots() for block in blocks])[np.argsort(np.concatenate([block.rows for block in blocks]))]

    assert [slot(key) for key in keys] == slots.tolist() == [raw.cluster_keyslot(key) for key in keys]
    for first in (0, 1, 5461, 16383):
        assert {raw.cluster_keyslot(mark("0123abcd", first)) for mark in (fence, marker)} == {first}


def move_slot(made: Cluster, number: int, *, keys: list[bytes]) -> Callable[[], None]:
    """Begin to move a slot to another primary, with these keys moved already; the result completes it."""
    source, target, *_ = sorted(made.primaries(), key=lambda node: not owns(made, node, number))
    with made.client(source) as giving, made.client(target) as taking:
        ids = [each.cluster("MYID") for each in (giving, taking)]
        here, there = (each.decode() if isinstance(each, bytes) else each for each in ids)
        taking.execute_command("CLUSTER", "SETSLOT", number, "IMPORTING", here)
        giving.execute_command("CLUSTER", "SETSLOT", number, "MIGRATING", there)
        for key in keys:
            giving.migrate("127.0.0.1", target.port, key, 0, 5000)

    def complete() -> None:
        with made.client(source) as giving, made.client(target) as taking:
            for key in giving.execute_command("CLUSTER", "GETKEYSINSLOT", number, 100):
                giving.migrate("127.0.0.1", target.port, key, 0, 5000)
            for each in (taking, giving):
                each.execute_command("CLUSTER", "SETSLOT", number, "NODE", there)

    return complete


def owns(made: Cluster, node: Process, number: int) -> bool:
    """Whether a node owns a slot."""
    with made.client(node) as client:
        mine = f"127.0.0.1:{node.port}"
        return any(
            first <= number <= last and f"{primary[0].decode()}:{primary[1]}" == mine
            for first, last, primary, *_ in client.execute_command("CLUSTER SLOTS")
        )


def test_rows_are_read_and_written_while_their_slot_moves(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """In every state of a moving slot (ASK, TRYAGAIN, MOVED) reads are right and writes land, a key on either side."""
    with cluster(tmp_path, replicas=0) as made:
        store = store_at(made.url)
        number = slot(online_key("0123abcd", b"k0"))
        same = [f"k{n}" for n in range(200_000) if slot(online_key("0123abcd", b"k%d" % n)) == number][:4]
        columns = [pa.chunked_array([same])]

        def put(values: list[int], run: int) -> int:
            features, times = pa.table({"gusts": pa.array(values, pa.int64())}), pa.chunked_array([pa.array([NOON] * 4, TIME)])
            return store.write(version(), columns, features, times, run=run, now=NOON)

        def get() -> Any:
            [rows] = store.read([(version(), columns)], now=NOON)
            return rows.features[0].to_pylist()

        assert put([1, 2, 3, 4], 1) == 4
        assert get() == [1, 2, 3, 4]
        complete = move_slot(made, number, keys=[online_key("0123abcd", key.encode()) for key in same[:2]])
        assert get() == [1, 2, 3, 4]
        assert put([5, 6, 7, 8], 2) == 4
        assert get() == [5, 6, 7, 8]
        complete()
        assert get() == [5, 6, 7, 8]
        assert put([9, 9, 9, 9], 3) == 4
        assert get() == [9, 9, 9, 9]


def observed(store: OnlineStore, count: int, until: threading.Event) -> tuple[list[str], threading.Thread]:
    """Read on and on in a thread; gives what was wrong, and the thread."""
    wrong: list[str] = []

    def look() -> None:
        newest = 0
        while not until.is_set():
            try:
                values = read(store, count)
            except OnlineStoreError as reason:
                if not reason.is_retryable:
                    wrong.append(str(reason))
                continue
            if not all(value is not None and value >= 1 for value in values):
                wrong.append(f"{values}")
            newest = max(newest, *(value or 0 for value in values))

    thread = threading.Thread(target=look)
    thread.start()
    return wrong, thread


def fail_over(url: str, kill: Callable[[], object], store_at: Callable[[str], OnlineStore]) -> None:
    """Kill a primary under reads and writes, and check what comes of it."""
    store, other = store_at(url), store_at(url)
    count, end = 50, threading.Event()
    write(store, count, 1, 1)
    time.sleep(0.3)  # the replicas have it then
    wrong, reader = observed(other, count, end)
    try:
        kill()
        died, value = time.monotonic(), 1
        while time.monotonic() < died + 20:
            with suppress(OnlineStoreError):
                write(store, count, value + 1, value + 1)
                break
        assert read(store, count) == [2] * count
    finally:
        end.set()
        reader.join()
    assert wrong == []


def test_a_cluster_that_lost_a_primary_goes_on(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """After kill -9 of a primary what was replicated is read, nothing wrong ever is, and writes go on with its replica."""
    with cluster(tmp_path, timeout_ms=1000) as made:
        fail_over(made.url, made.nodes[0].kill, store_at)


def test_a_replica_takes_over_by_its_sentinels(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """After kill -9 of the primary the Sentinels name another, and reads and writes follow."""
    with watched(tmp_path) as made:
        fail_over(made.url, made.primary().kill, store_at)


def test_a_load_over_a_failover_is_refused(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """A primary that failed over may have lost what it had taken: the load is not completed, and the next run repeats it."""
    with watched(tmp_path) as made:
        store = store_at(made.url)
        features = pa.table({"gusts": pa.array([1], pa.int64())})

        def load(run: int, between: Callable[[], object]) -> None:
            with store.load(version(), run=run, now=NOON) as loading:
                loading.write(names(1), features, TIMES)
                between()
                loading.write([pa.chunked_array([["later"]])], features, TIMES)
                loading.finish()

        with pytest.raises(OnlineStoreError, match="failed over") as error:
            load(1, lambda: _switch(made))
        assert error.value.is_retryable
        assert store.loaded_run(version()) is None
        load(2, lambda: None)
        assert store.loaded_run(version()) == 2


def _switch(made: Watched) -> None:
    before = made.primary()
    before.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(redis.RedisError, StopIteration):
            if made.primary() is not before:
                return
        time.sleep(0.1)
