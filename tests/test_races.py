from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import OnlineStoreError
from featurestore.online.frames import command
from featurestore.online.keys import fence, online_key
from featurestore.online.rows import NO_EVENT_TIME
from featurestore.online.store import OnlineStore
from featurestore.settings import Settings, load_settings
from tests.conftest import NOON, TIME, Repo
from tests.servers import HOST, Process, server
from tests.versions import version


@pytest.fixture
def serving(make_repo: Callable[..., Repo]) -> Iterator[tuple[Process, Settings]]:
    """A server of its own, and the settings of a repo that uses it."""
    repo = make_repo()
    with server(repo.folder / "servers") as made:
        (repo.folder / "featurestore.toml").write_text(f'project = "test"\n[online]\nurl = "redis://{HOST}:{made.port}"\n')
        yield made, load_settings(repo.folder)


@pytest.fixture
def store(serving: tuple[Process, Settings]) -> Iterator[OnlineStore]:
    """An online store on it."""
    made = OnlineStore(serving[1])
    yield made
    made.close()


def instants(values: list[int]) -> pa.ChunkedArray:
    """Return microseconds as a column of times."""
    return pa.chunked_array([pa.array(values, pa.int64()).cast(TIME)])


def push(to: OnlineStore, names: list[str], values: list[int], events: list[int], created: list[int]) -> int:
    """Push rows."""
    rows = pa.table({"gusts": pa.array(values, pa.int64())})
    return to.push(version(), [pa.chunked_array([names])], rows, instants(events), instants(created), now=NOON)


def read(store: OnlineStore, names: list[str]) -> list[Any]:
    """Read values."""
    [rows] = store.read([(version(), [pa.chunked_array([names])])], now=NOON)
    values: list[Any] = rows.features[0].to_pylist()
    return values


# Push views: the greatest (event time, created time) stays

EDGES = [NO_EVENT_TIME, -(2**32) - 1, -(2**32), -(2**31), -1, 0, 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1]


def test_a_pushed_row_replaces_what_is_not_greater(store: OnlineStore) -> None:
    """(event time, created time) decides as tuples compare, whatever the signs and bits; equality replaces."""
    pairs = list(itertools.product(EDGES, EDGES))
    chosen = random.Random(1).sample(list(itertools.product(range(len(pairs)), repeat=2)), 3000)
    chosen += [(place, place) for place in range(len(pairs))]
    names = [f"k{number}" for number in range(len(chosen))]
    for place, values in ((0, [1] * len(chosen)), (1, [2] * len(chosen))):
        events, created = zip(*[pairs[pair[place]] for pair in chosen], strict=True)
        push(store, names, values, list(events), list(created))
    expected = [2 if pairs[later] >= pairs[earlier] else 1 for earlier, later in chosen]

    assert read(store, names) == expected


def test_the_rows_of_one_push_are_decided_in_turn(store: OnlineStore) -> None:
    """A push may hold an entity several times: the greatest row stays, and the count says how many were not lower in their turn."""
    assert push(store, ["a", "a", "a", "b"], [1, 2, 3, 4], [5, 7, 6, 1], [0, 0, 0, 0]) == 3
    assert push(store, ["a", "a"], [8, 9], [7, 7], [1, 0]) == 1
    assert read(store, ["a", "b"]) == [8, 4]


def test_pushers_that_race_leave_the_greatest(serving: tuple[Process, Settings], pytestconfig: pytest.Config) -> None:
    """Two pushers with shuffled times on the same keys: for each key the greatest (event time, created time) is there.

    `--pushes=1000000` is the long run; the suite has fewer.
    """
    count = pytestconfig.getoption("--pushes") // 2
    keys = count // 100
    shuffled = np.random.default_rng(5)
    pushes = [
        (shuffled.integers(0, keys, count), shuffled.integers(0, 50, count), shuffled.integers(0, 50, count)) for _ in range(2)
    ]

    def race(number: int) -> None:
        own = OnlineStore(serving[1])
        names, events, created = pushes[number]
        for first in range(0, count, 500):
            part = slice(first, first + 500)
            values = (events[part] * 1000 + created[part]).tolist()
            push(own, [f"k{name}" for name in names[part]], values, events[part].tolist(), created[part].tolist())
        own.close()

    threads = [threading.Thread(target=race, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    greatest: dict[str, tuple[int, int]] = {}
    for names, events, created in pushes:
        for name, event, at in zip(names.tolist(), events.tolist(), created.tolist(), strict=True):
            greatest[f"k{name}"] = max(greatest.get(f"k{name}", (0, 0)), (event, at))

    looking = OnlineStore(serving[1])
    assert read(looking, list(greatest)) == [event * 1000 + at for event, at in greatest.values()]
    looking.close()


# Runs: nothing of a killed one comes back


def load(store: OnlineStore, run: int, rows: dict[str, int], deletes: list[str] | None = None, *, sweeps: bool = False) -> None:
    """Load rows as a run does."""
    with store.load(version(), run=run, now=NOON) as loading:
        features = pa.table({"gusts": pa.array(list(rows.values()), pa.int64())})
        loading.write([pa.chunked_array([pa.array(rows, pa.string())])], features, instants([NOON] * len(rows)))
        loading.delete([pa.chunked_array([pa.array(deletes or [], pa.string())])])
        if sweeps:
            loading.sweep()
        loading.finish()


@pytest.mark.parametrize("round_", range(5))
def test_writes_that_a_killed_run_left_in_a_socket_do_not_come_back(
    serving: tuple[Process, Settings], store: OnlineStore, round_: int
) -> None:
    """A killed first load has plain writes under way when the next run begins: the next run's rows and deletions stay."""
    made, _ = serving
    assert made.process is not None
    store.ping()
    zombie = socket.create_connection((HOST, made.port))
    zombie.sendall(command(b"CLIENT", b"SETNAME", b"featurestore:0123abcd:1") + command(b"SET", fence("0123abcd").encode(), b"1"))
    assert zombie.recv(100)
    names = [f"k{number}" for number in range(20)]
    old = bytes.fromhex("01 0000000000000000 0100000000000000 00") + (1).to_bytes(8, "little")
    pairs = [part for name in names for part in (online_key("0123abcd", name.encode()), old)]
    os.kill(made.process.pid, signal.SIGSTOP)
    newer = threading.Thread(target=load, args=(store, 2, {"k0": 2, "k1": 2}, ["k2"]), kwargs={"sweeps": True})
    if round_ % 2:
        newer.start()
        time.sleep(0.05)
    zombie.sendall(command(b"MSET", *pairs) * 200)
    if not round_ % 2:
        newer.start()
    os.kill(made.process.pid, signal.SIGCONT)
    newer.join()

    assert read(store, names) == [2, 2, *[None] * 18]
    with zombie, suppress(ConnectionResetError):
        zombie.settimeout(5)
        while zombie.recv(1 << 16):  # what was answered before its connection was ended
            pass
    assert read(store, names) == [2, 2, *[None] * 18]


def test_a_run_that_was_overtaken_gives_up(store: OnlineStore, serving: tuple[Process, Settings]) -> None:
    """A run that was believed dead and goes on writes nothing once a newer one has begun."""
    with store.load(version(), run=1, now=NOON) as zombie:
        features = pa.table({"gusts": pa.array([1], pa.int64())})
        zombie.write([pa.chunked_array([["a"]])], features, instants([NOON]))
        other = OnlineStore(serving[1])
        load(other, 2, {"a": 2, "b": 2})
        with pytest.raises(OnlineStoreError, match="run 2 has taken over from run 1"):  # noqa: PT012 (whichever write meets the fence)
            for name in ("a", "b", "c"):
                zombie.write([pa.chunked_array([[name]])], features, instants([NOON]))
            zombie.finish()

    assert read(other, ["a", "b", "c"]) == [2, 2, None]
    with pytest.raises(OnlineStoreError, match="run 2 has begun to write to the online store; this is run 1"):
        load(other, 1, {"a": 1})
    assert other.loaded_run(version()) == 2
    other.close()


KILLED = """
import sys, pyarrow as pa
from pathlib import Path
from featurestore.online.store import OnlineStore
from featurestore.settings import load_settings
sys.path.insert(0, sys.argv[2])
from tests.conftest import NOON, TIME
from tests.versions import version
store = OnlineStore(load_settings(Path(sys.argv[1])))
count = 400_000
keys = [pa.chunked_array([[f"k{number}" for number in range(count)]])]
features = pa.table({"gusts": pa.array([1] * count, pa.int64())})
times = pa.chunked_array([pa.array([NOON] * count, TIME)])
print("ready", flush=True)
with store.load(version(), run=1, now=NOON) as load:
    load.write(keys, features, times)
    load.finish()
"""


@pytest.mark.parametrize("after", [0.02, 0.3])
def test_a_killed_first_load_is_followed_by_another(serving: tuple[Process, Settings], store: OnlineStore, after: float) -> None:
    """After kill -9 in the middle of a load and a newer run that has fewer keys, the newer run's rows are all there is."""
    from tests.conftest import CHECKOUT

    arguments = [sys.executable, "-c", KILLED, str(serving[1].root), str(CHECKOUT)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(after)
        process.kill()
        load(store, 2, {f"k{number}": 2 for number in range(0, 1000, 2)}, sweeps=True)

    assert read(store, [f"k{number}" for number in range(1000)]) == [2, None] * 500
    assert store.count(version()) == 500
    assert store.loaded_run(version()) == 2
