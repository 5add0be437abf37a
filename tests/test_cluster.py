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
from tests.servers import Client, Cluster, Process, Topologies, Watched, cluster, has_replica, watched
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


class Ongoing(threading.Thread):
    """Does something on and on. Keeps when that last succeeded, and what was wrong: errors that do not say to try again."""

    def __init__(self, step: Callable[[], str | None]) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.last_at = 0.0
        self._step, self._end = step, threading.Event()
        self.start()

    def run(self) -> None:
        """Go on until the end; a step returns what is wrong."""
        while not self._end.is_set():
            try:
                wrong = self._step()
            except OnlineStoreError as reason:
                if reason.is_retryable:
                    continue
                wrong = str(reason)
            self.last_at = time.monotonic()
            if wrong:
                self.wrong.append(wrong)

    def end(self) -> None:
        """End it."""
        self._end.set()
        self.join()


RECOVERY_SECONDS = 5.0
"""Far more than it takes, two pauses of a quarter of a second: this machine may stall, and a client that hangs takes longer."""


def fail_over(
    url: str, kill: Callable[[], object], is_taken_over: Callable[[], bool], store_at: Callable[[str], OnlineStore]
) -> None:
    """Kill a primary under reads and writes, and check what comes of it; the value 1 is there and replicated."""
    count, looking, putting = 50, store_at(url), store_at(url)
    tried = acknowledged = 1

    def look() -> str | None:
        values = read(looking, count)
        return None if all(value is not None and 1 <= value <= tried for value in values) else f"{values}"

    def put() -> None:
        nonlocal tried, acknowledged
        tried += 1
        write(putting, count, tried, tried)
        acknowledged = tried

    deadline = time.monotonic() + 90  # a Sentinel that was stalled does nothing for half a minute

    def wait_for(is_so: Callable[[], bool]) -> float:
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return time.monotonic()

    both = [Ongoing(look), Ongoing(put)]
    try:
        time.sleep(0.3)
        kill()
        taken_over = wait_for(is_taken_over)
        recovered = wait_for(lambda: min(each.last_at for each in both) > taken_over)
    finally:
        for each in both:
            each.end()
    assert [each.wrong for each in both] == [[], []]
    assert recovered - taken_over < RECOVERY_SECONDS
    assert read(looking, count) == [acknowledged] * count


def test_a_cluster_that_lost_a_primary_goes_on(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """After kill -9 of a primary what was replicated is read, nothing wrong ever is, and its replica serves soon."""
    with cluster(tmp_path, timeout_ms=1000) as made:
        write(store_at(made.url), 50, 1, 1)
        await_replicas(made.client, made.nodes[:3])

        def is_taken_over() -> bool:
            with suppress(redis.RedisError):
                states = [client_info(made.client(each)) for each in made.nodes[1:]]
                return len(made.primaries()) == 3 and states == ["ok"] * 5
            return False

        fail_over(made.url, made.nodes[0].kill, is_taken_over, store_at)


def client_info(client: Client) -> str:
    """Return what a node says of its cluster."""
    with client:
        return str(client.cluster("INFO")["cluster_state"])


def test_a_replica_takes_over_by_its_sentinels(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """After kill -9 of the primary the Sentinels name another, and reads and writes follow soon."""
    with watched(tmp_path) as made:
        write(store_at(made.url), 50, 1, 1)
        first = made.primary()
        await_replicas(made.client, [first])

        def is_taken_over() -> bool:
            with suppress(redis.RedisError, StopIteration):
                return made.primary() is not first
            return False

        fail_over(made.url, first.kill, is_taken_over, store_at)


def await_replicas(client: Callable[[Process], Client], primaries: list[Process]) -> None:
    """Wait until the replicas have what was written."""
    deadline = time.monotonic() + 10
    while not all(has_replica(client(each), caught_up=True) for each in primaries):
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with suppress(redis.RedisError, StopIteration):
            if made.primary() is not before:
                return
        time.sleep(0.1)
    raise TimeoutError("no Sentinel names another primary")
