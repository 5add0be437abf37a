from __future__ import annotations

import datetime as dt
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import redis

from featurestore import Entity, FeatureService, FeatureStore, FeatureView, FileSource
from featurestore.errors import InputError, NotFoundError, OnlineStoreError, SettingsError
from featurestore.online import embedded
from featurestore.online.connection import connect
from featurestore.online.keys import online_key
from featurestore.online.store import OnlineStore, Status
from featurestore.registry.state import Version
from featurestore.settings import load_settings
from featurestore.types import Array, Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType
from tests.conftest import HOUR, NOON, TIME, Repo, at

DAY_MS = 24 * 3_600_000
PRESENT, NOT_FOUND, OUTSIDE = Status.PRESENT, Status.NOT_FOUND, Status.OUTSIDE_MAX_AGE
Row = tuple[Status, Any, dt.datetime | None]
Keys = dict[str, list[Any]]


def version(uid: str = "0123abcd", *, ttl: str | None = None, **changes: Any) -> Version:
    """Return a version of a view with one key and one feature, some of it changed."""
    declared: dict[str, Any] = {
        "entities": [Entity("airport", join_keys={"origin": String})],
        "source": FileSource("weather", path="weather.parquet", event_time="observed_at"),
        "fields": {"gusts": Int64},
    }
    view = FeatureView("weather", ttl=ttl, **(declared | changes))
    return Version(1, uid, 1, "", view, "serving", 0, None, -1, None)


@dataclass
class Online:
    """An online store, and a connection of its own that looks at what is in place."""

    store: OnlineStore
    raw: redis.Redis

    def write(self, to: Version, rows: Mapping[str, int | None], *, run: int, event: int = NOON, now: int = NOON) -> int:
        """Write rows by key."""
        features = pa.table({"gusts": pa.array(list(rows.values()), pa.int64())})
        event_times = pa.chunked_array([pa.array([event] * len(rows), TIME)])
        return self.store.write(to, [pa.chunked_array([list(rows)])], features, event_times, run=run, now=now)

    def delete(self, of: Version, *keys: str, run: int) -> int:
        """Delete rows by key."""
        return self.store.delete(of, [pa.chunked_array([list(keys)])], run=run)

    def read(self, of: Version, *keys: str | None, now: int = NOON) -> list[Row]:
        """Return status, value and event time of each key."""
        [rows] = self.store.read([(of, [pa.chunked_array([pa.array(keys, pa.string())])])], now=now)
        return list(
            zip(map(Status, rows.statuses.tolist()), rows.features[0].to_pylist(), rows.event_times.to_pylist(), strict=True)
        )

    def values(self, of: Version, *keys: str) -> list[Any]:
        """Return the values of some keys, null where there is none."""
        return [value for _, value, _ in self.read(of, *keys)]

    def bytes_of(self, of: Version, key: str) -> bytes | None:
        """Return what stands in the server for a key."""
        stored: Any = self.raw.get(online_key(of.uid, key.encode()))
        return stored if stored is None else bytes(stored)

    def lives(self, of: Version, key: str) -> int:
        """Return for how many milliseconds a row lives on: -1 forever, -2 not at all."""
        left: Any = self.raw.pttl(online_key(of.uid, key.encode()))
        return int(left)


@pytest.fixture
def online(online_url: str, make_repo: Callable[..., Repo], monkeypatch: pytest.MonkeyPatch) -> Iterator[Online]:
    """An online store of each kind, empty."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    settings = load_settings(make_repo().folder)
    made = Online(OnlineStore(settings), connect(settings))
    made.raw.flushall()
    yield made
    made.store.close()
    made.raw.close()
    if online_url == "embedded":
        embedded.stop(settings.state / "online")


# Rows


def test_what_is_written_is_read(online: Online) -> None:
    """Rows come back with their values and event times, in the order asked for, as often as asked for."""
    online.write(version(), {"EWR": 2**53 + 1, "JFK": None}, run=1, event=NOON - HOUR)

    assert online.read(version(), "JFK", "EWR", "LGA", "EWR") == [
        (PRESENT, None, at(NOON - HOUR)),
        (PRESENT, 2**53 + 1, at(NOON - HOUR)),
        (NOT_FOUND, None, None),
        (PRESENT, 2**53 + 1, at(NOON - HOUR)),
    ]
    assert online.read(version()) == []


ALL_TYPES: dict[str, tuple[ValueType, list[Any]]] = {
    "a": (Bool, [True, None]),
    "b": (Int32, [-1, None]),
    "c": (Int64, [2**63 - 1, None]),
    "d": (Float32, [0.5, None]),
    "e": (Float64, [-0.0, None]),
    "f": (String, ["é\0", ""]),
    "g": (Bytes, [b"\xff\r\n", b""]),
    "h": (Date, [dt.date(2013, 6, 1), None]),
    "i": (Timestamp, [at(NOON + 1), None]),
    "j": (Array(String), [["a", None], []]),
    "k": (Array(Float32), [[0.5], None]),
}


def test_values_of_every_type_pass_the_server(online: Online) -> None:
    """Features of every type, and keys of several types, come back in their declared Arrow types."""
    keys = {"date": Date, "number": Int32, "name": Bytes}
    fields = {name: type_ for name, (type_, _) in ALL_TYPES.items()}
    of = version(entities=[Entity("many", join_keys=keys)], fields=fields)
    columns = [
        pa.chunked_array([pa.array([dt.date(2013, 6, 1)] * 2, pa.date32())]),
        pa.chunked_array([pa.array([1, 256], pa.int32())]),
        pa.chunked_array([pa.array([b"\0{}\r\n", b""], pa.binary())]),
    ]
    features = pa.table({name: pa.array(values, type_.arrow) for name, (type_, values) in ALL_TYPES.items()})
    online.store.write(of, columns, features, pa.chunked_array([pa.array([NOON, NOON + 1], TIME)]), run=1, now=NOON)
    [rows] = online.store.read([(of, columns)], now=NOON)

    assert [column.type for column in rows.features] == [type_.arrow for type_ in fields.values()]
    assert [column.to_pylist() for column in rows.features] == [values for _, values in ALL_TYPES.values()]
    assert rows.event_times.to_pylist() == [at(NOON), at(NOON + 1)]


def test_the_bytes_are_in_their_place(online: Online) -> None:
    """What stands in the server is the specified row under the specified key, and nothing else."""
    online.write(version(), {"EWR": 7}, run=2**40 + 3, event=1)
    online.delete(version(), "JFK", run=4)
    online.store.mark_loaded(version(), run=5)

    assert {key: online.raw.get(key) for key in online.raw.keys("*")} == {
        b"0123abcd{21y}EWR": bytes.fromhex("01 0100000000000000 0300000000010000 00 0700000000000000"),
        online_key("0123abcd", b"JFK"): bytes.fromhex("00 0000000000000080 0400000000000000"),
        b"0123abcd:loaded": b"5",
    }


def test_several_versions_are_read_at_once(online: Online) -> None:
    """One read answers for several views, each with rows and types of its own."""
    one, other = version("aaaaaaaa"), version("bbbbbbbb", ttl="1h")
    online.write(one, {"EWR": 1}, run=1)
    online.write(other, {"JFK": 2}, run=1, event=NOON - 2 * HOUR)
    keys = [pa.chunked_array([["EWR", "JFK"]])]
    answers = online.store.read([(one, keys), (other, keys), (one, [pa.chunked_array([["EWR"]])])], now=NOON)

    assert [answer.features[0].to_pylist() for answer in answers] == [[1, None], [None, None], [1]]
    assert [answer.statuses.tolist() for answer in answers] == [[PRESENT, NOT_FOUND], [NOT_FOUND, OUTSIDE], [PRESENT]]


def test_two_versions_do_not_meet(online: Online) -> None:
    """Versions have key spaces of their own: what one writes, deletes, sweeps, counts, marks or drops, the other keeps."""
    one, other = version("aaaaaaaa"), version("aaaaaaab")
    for each in (one, other):
        online.write(each, {"EWR": 1, "JFK": 2, "LGA": 3}, run=1)
        online.store.mark_loaded(each, run=1)
    online.write(one, {"EWR": 9}, run=2)
    online.delete(one, "JFK", run=2)
    assert online.store.sweep(one, run=2) == 1
    online.store.mark_loaded(one, run=2)

    assert online.values(one, "EWR", "JFK", "LGA") == [9, None, None]
    assert online.values(other, "EWR", "JFK", "LGA") == [1, 2, 3]
    assert (online.store.count(one), online.store.count(other)) == (1, 3)
    assert (online.store.loaded_run(one), online.store.loaded_run(other)) == (2, 1)

    assert online.store.drop(one) == 3
    assert (online.store.loaded_run(one), online.store.loaded_run(other)) == (None, 1)
    assert online.values(other, "EWR", "JFK", "LGA") == [1, 2, 3]
    assert online.raw.dbsize() == 4


def test_composite_keys_do_not_meet(online: Online) -> None:
    """(1, 11) and (11, 1), and ("a", "bc") and ("ab", "c"), are different entities."""
    for uid, type_, one, other in [("aaaaaaaa", Int64, (1, 11), (11, 1)), ("bbbbbbbb", String, ("a", "bc"), ("ab", "c"))]:
        of = version(uid, entities=[Entity("pair", join_keys={"x": type_, "y": type_})])
        columns = [pa.chunked_array([pa.array(pair, type_.arrow)]) for pair in zip(one, other, strict=True)]
        written = pa.table({"gusts": pa.array([1, 2], pa.int64())})
        online.store.write(of, columns, written, pa.chunked_array([pa.array([NOON] * 2, TIME)]), run=1, now=NOON)
        [rows] = online.store.read([(of, columns)], now=NOON)
        assert rows.features[0].to_pylist() == [1, 2]
        assert online.raw.dbsize() == 2
        online.raw.flushall()


# Who wins (T8)

ORDERS = [
    # the runs that write, one after the other; the run whose row stays
    ([5, 4], 5),
    ([5, 5], 5),
    ([5, 6], 6),
    ([1, 3, 2], 3),
    ([2**31, 2**31 - 1], 2**31),
    ([2**31 - 1, 2**31], 2**31),
    ([2**32 - 1, 2**32], 2**32),
    ([2**32, 2**32 - 1], 2**32),
    ([2**32 - 1, 1], 2**32 - 1),
    ([2**32 + 1, 2**32], 2**32 + 1),
    ([2**33 + 1, 2**32 + 2], 2**33 + 1),
    ([2**53, 2**53 + 1], 2**53 + 1),
    ([2**53 + 1, 2**53], 2**53 + 1),
    ([2**60 + 2, 2**60 + 1, 2**60 + 3, 2**60], 2**60 + 3),
    ([2**63 - 1, 2**63 - 2], 2**63 - 1),
]


def test_the_server_keeps_the_row_of_the_highest_order(online: Online) -> None:
    """A row replaces what is stored if its order is not lower, whatever the bits of the orders."""
    for number, (runs, highest) in enumerate(ORDERS):
        key = f"k{number}"
        written = [online.write(version(), {key: place}, run=run) for place, run in enumerate(runs)]
        stored = online.bytes_of(version(), key)

        assert stored is not None
        assert int.from_bytes(stored[9:17], "little") == highest, runs
        assert written == [run == max(runs[: place + 1]) for place, run in enumerate(runs)], runs


def test_an_equal_order_replaces(online: Online) -> None:
    """A run that is repeated writes what it now says."""
    assert [online.write(version(), {"EWR": value}, run=5) for value in (1, 2)] == [1, 1]
    assert online.values(version(), "EWR") == [2]


def test_each_row_of_a_batch_is_decided_by_itself(online: Online) -> None:
    """In one write some rows win and others lose, and the answer counts those that won."""
    online.write(version(), {f"k{number}": 1 for number in range(0, 1200, 2)}, run=7)

    assert online.write(version(), {f"k{number}": 2 for number in range(1200)}, run=6) == 600
    assert online.values(version(), *(f"k{number}" for number in range(1200))) == [1, 2] * 600


def test_the_event_time_does_not_decide(online: Online) -> None:
    """In batch views only the run counts: a correction may make an entity's latest row an older one."""
    online.write(version(), {"EWR": 1}, run=1, event=NOON)
    online.write(version(), {"EWR": 2}, run=2, event=NOON - HOUR)

    assert online.read(version(), "EWR") == [(PRESENT, 2, at(NOON - HOUR))]


def test_a_deletion_is_an_empty_row_that_expires(online: Online) -> None:
    """A deletion leaves its order behind for about a day, so that nothing older comes back."""
    online.write(version(), {"EWR": 1}, run=5)
    assert online.delete(version(), "EWR", "JFK", run=6) == 2

    assert online.read(version(), "EWR", "JFK") == [(NOT_FOUND, None, None)] * 2
    assert (
        online.bytes_of(version(), "EWR")
        == online.bytes_of(version(), "JFK")
        == bytes.fromhex("00 0000000000000080 0600000000000000")
    )
    assert all(DAY_MS - 60_000 < online.lives(version(), key) <= DAY_MS for key in ("EWR", "JFK"))
    assert online.store.count(version()) == 0


def test_an_older_row_does_not_revive_what_is_deleted(online: Online) -> None:
    """What a killed run left in a socket arrives after the deletion and stays without effect; a newer row is there for good."""
    online.write(version(), {"EWR": 1}, run=5)
    online.delete(version(), "EWR", run=6)

    assert online.write(version(), {"EWR": 2}, run=5) == 0
    assert online.values(version(), "EWR") == [None]
    assert online.write(version(), {"EWR": 3}, run=7) == 1
    assert (online.values(version(), "EWR"), online.lives(version(), "EWR")) == ([3], -1)


def test_an_older_deletion_deletes_nothing(online: Online) -> None:
    """A deletion of an older run loses against a row, and a row that stays does not expire."""
    online.write(version(), {"EWR": 1}, run=5)

    assert online.delete(version(), "EWR", run=4) == 0
    assert (online.values(version(), "EWR"), online.lives(version(), "EWR")) == ([1], -1)


def test_a_sweep_deletes_exactly_what_is_older(online: Online) -> None:
    """After a full load all rows of older runs go, however many; those of the run and of newer ones stay."""
    online.write(version(), {f"old{number}": 1 for number in range(5_600)}, run=2**32 - 1)
    online.write(version(), {"same": 2}, run=2**32)
    online.write(version(), {"newer": 3}, run=2**32 + 1)
    online.delete(version(), "deleted later", run=2**32 + 1)

    assert online.store.sweep(version(), run=2**32) == 5_600
    assert online.store.count(version()) == 2
    assert online.values(version(), "same", "newer", "old0", "old5599", "deleted later") == [2, 3, None, None, None]
    assert online.bytes_of(version(), "old7") == bytes.fromhex("00 0000000000000080 0000000001000000")
    assert 0 < online.lives(version(), "old7") <= DAY_MS
    assert online.bytes_of(version(), "deleted later") == bytes.fromhex("00 0000000000000080 0100000001000000")


def test_the_marker_tells_of_the_last_load_and_is_lost_with_the_rows(online: Online) -> None:
    """The marker names the run of the last completed load; a server that lost its rows has none."""
    seen = [online.store.loaded_run(version())]
    for run in (7, 2**53 + 1):
        online.store.mark_loaded(version(), run=run)
        seen.append(online.store.loaded_run(version()))
    online.raw.flushall()

    assert [*seen, online.store.loaded_run(version())] == [None, 7, 2**53 + 1, None]


# Age


def test_a_ttl_is_enforced_when_a_row_is_read(online: Online) -> None:
    """At equality a value is still there; one microsecond later its status says that it is not, and its time how old it is (T4)."""
    online.write(version(ttl="6h"), {"EWR": 7}, run=1, event=NOON - 6 * HOUR)
    present, outside = (PRESENT, 7, at(NOON - 6 * HOUR)), (OUTSIDE, None, at(NOON - 6 * HOUR))

    assert online.read(version(ttl="6h"), "EWR", now=NOON) == [present]
    assert online.read(version(ttl="6h"), "EWR", now=NOON + 1) == [outside]
    assert online.read(version(ttl="6h"), "EWR", now=NOON - 6 * HOUR) == [present]
    assert online.read(version(ttl=None), "EWR", now=NOON + 10**15) == [present]


def test_expiry_collects_what_the_ttl_has_hidden_a_day_before(online: Online) -> None:
    """A row of a view with TTL expires a day after it is too old; one of a view without TTL never does."""
    fresh, old, plain = version("aaaaaaaa", ttl="6h"), version("bbbbbbbb", ttl="6h"), version("cccccccc")
    online.write(fresh, {"EWR": 7}, run=1, event=NOON - HOUR)
    online.write(old, {"EWR": 7}, run=1, event=NOON - 1000 * HOUR)
    online.write(plain, {"EWR": 7}, run=1, event=NOON - 1000 * HOUR)

    assert DAY_MS + 5 * 3_600_000 - 60_000 < online.lives(fresh, "EWR") <= DAY_MS + 5 * 3_600_000
    assert DAY_MS - 60_000 < online.lives(old, "EWR") <= DAY_MS
    assert online.lives(plain, "EWR") == -1
    assert online.read(old, "EWR") == [(OUTSIDE, None, at(NOON - 1000 * HOUR))]


def test_static_rows_have_no_event_time(online: Online) -> None:
    """A row of a static view is present for good, and says no time."""
    static = version(source=FileSource("runways", path="runways.parquet"))
    features = pa.table({"gusts": pa.array([7], pa.int64())})
    online.store.write(static, [pa.chunked_array([["EWR"]])], features, pa.chunked_array([pa.nulls(1, TIME)]), run=1, now=NOON)

    assert online.read(static, "EWR", now=2**62) == [(PRESENT, 7, None)]


# What is not ours


def test_a_foreign_value_is_an_error_and_never_a_value(online: Online) -> None:
    """Bytes of another program under our key are refused, also beside good rows."""
    online.write(version(), {"EWR": 1}, run=1)
    for foreign in (
        b"",
        b"x",
        b"hello",
        b"x" * 17,
        b"x" * 26,
        b"x" * 1000,
        b"\x01" + bytes(16),
        b"\x01" + bytes(40),
        b"\0" + bytes(20),
    ):
        online.raw.set(online_key("0123abcd", b"JFK"), foreign)
        with pytest.raises(OnlineStoreError, match="load the view again"):
            online.read(version(), "EWR", "JFK")


def test_loading_again_replaces_a_foreign_value(online: Online) -> None:
    """The error says to load the view again, and that repairs it, whatever the foreign bytes are."""
    for foreign in (b"hello", b"x" * 26, b"\xff" * 100):
        online.raw.set(online_key("0123abcd", b"JFK"), foreign)

        assert online.write(version(), {"JFK": 5}, run=3) == 1, foreign
        assert online.values(version(), "JFK") == [5]


def test_a_value_of_another_type_is_never_read(online: Online) -> None:
    """A list under our key gives no value when it is read, and an error that names the store when it is written."""
    online.raw.lpush(online_key("0123abcd", b"JFK"), "x")

    assert online.read(version(), "JFK")[0][1] is None
    with pytest.raises(OnlineStoreError, match=r"the online store .* refused: .*WRONGTYPE"):
        online.write(version(), {"EWR": 1, "JFK": 5}, run=3)


def test_a_marker_of_another_program_is_an_error(online: Online) -> None:
    """A marker that holds no number is foreign, and no number is made of it."""
    online.raw.set("0123abcd:loaded", "yesterday")
    with pytest.raises(OnlineStoreError):
        online.store.loaded_run(version())


# When the store does not answer


@dataclass
class Server:
    """A server with a password, on a port of its own."""

    port: int
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Start a server on TCP that asks for the password `hunter2`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    options = f"--port {port} --bind 127.0.0.1 --requirepass hunter2 --save".split()
    started = Server(port, subprocess.Popen([embedded._binary(), *options, "", "--dir", tmp_path], stdout=subprocess.DEVNULL))
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.02)
    yield started
    started.stop()


@pytest.fixture
def store_at(make_repo: Callable[..., Repo]) -> Iterator[Callable[[str], OnlineStore]]:
    """Make online stores by URL."""
    folder, made = make_repo().folder, []

    def make(url: str) -> OnlineStore:
        (folder / "featurestore.toml").write_text(f'project = "test"\n[online]\nurl = "{url}"\ntimeout_ms = 1000\n')
        made.append(OnlineStore(load_settings(folder)))
        return made[-1]

    yield make
    for store in made:
        store.close()


def uses(store: OnlineStore) -> list[Callable[[], Any]]:
    """Return every way to use a store."""
    keys = [pa.chunked_array([["EWR"]])]
    features, event_times = pa.table({"gusts": pa.array([1], pa.int64())}), pa.chunked_array([pa.array([NOON], TIME)])
    return [
        store.ping,
        lambda: store.read([(version(), keys)], now=NOON),
        lambda: store.write(version(), keys, features, event_times, run=1, now=NOON),
        lambda: store.delete(version(), keys, run=1),
        lambda: store.sweep(version(), run=1),
        lambda: store.loaded_run(version()),
        lambda: store.mark_loaded(version(), run=1),
        lambda: store.count(version()),
        lambda: store.drop(version()),
    ]


def test_a_store_that_is_gone_is_named_without_its_password(server: Server, store_at: Callable[[str], OnlineStore]) -> None:
    """Once the server has ended every call is an OnlineStoreError with the URL, the password left out."""
    store = store_at(f"redis://:hunter2@127.0.0.1:{server.port}/0")
    for use in uses(store):
        use()
    server.stop()
    for use in uses(store):
        with pytest.raises(OnlineStoreError) as error:
            use()
        assert f"the online store redis://:***@127.0.0.1:{server.port}/0 " in str(error.value)
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("login", ["", ":hunter3@", "me:hunter3@"])
def test_a_wrong_password_is_an_error_without_it(server: Server, store_at: Callable[[str], OnlineStore], login: str) -> None:
    """A server that refuses the login is named with its reason, without the password that was tried."""
    for use in uses(store_at(f"redis://{login}127.0.0.1:{server.port}/0")):
        with pytest.raises(OnlineStoreError) as error:
            use()
        assert "password" in str(error.value).lower() or "auth" in str(error.value).lower()
        assert "hunter" not in str(error.value)


def test_a_full_store_says_so(server: Server, store_at: Callable[[str], OnlineStore]) -> None:
    """A server at its limit of memory refuses writes with an error that says what to do, and goes on answering reads."""
    store = store_at(f"redis://:hunter2@127.0.0.1:{server.port}/0")
    with redis.Redis(port=server.port, password="hunter2") as raw:
        raw.config_set("maxmemory", "1")
    ping, read, write, delete, *_ = uses(store)

    for refused in (write, delete):
        with pytest.raises(OnlineStoreError, match=r"is out of memory .* raise its maxmemory, then run again"):
            refused()
    ping()
    read()


def test_a_server_that_hangs_is_given_up(store_at: Callable[[str], OnlineStore]) -> None:
    """A server that takes connections and answers nothing is an error within `timeout_ms`, not a wait for ever."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        store = store_at(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        began = time.monotonic()
        with pytest.raises(OnlineStoreError, match="does not answer"):
            store.ping()
        assert time.monotonic() - began < 8


def test_a_null_key_is_not_asked_for(store_at: Callable[[str], OnlineStore]) -> None:
    """A row with a null in its key is NOT_FOUND without a round trip: here there is nobody to ask."""
    store = store_at("redis://127.0.0.1:1/0")
    pair = version(entities=[Entity("pair", join_keys={"x": String, "y": Int64})])
    columns = [pa.chunked_array([["a", None, None]]), pa.chunked_array([pa.array([None, 1, None], pa.int64())])]
    [rows] = store.read([(pair, columns)], now=NOON)

    assert rows.statuses.tolist() == [NOT_FOUND] * 3
    assert rows.features[0].to_pylist() == rows.event_times.to_pylist() == [None] * 3


UNSUPPORTED = [
    "http://127.0.0.1",
    "memcached://me:hunter2@127.0.0.1",
    "redis+cluster://127.0.0.1",
    "",
    "Embedded",
    "redis://127.0.0.1:port",
]


@pytest.mark.parametrize("url", UNSUPPORTED)
def test_a_url_that_is_not_supported_is_a_settings_error(store_at: Callable[[str], OnlineStore], url: str) -> None:
    """Any other URL is refused when it is first used, by the setting's name."""
    with pytest.raises(SettingsError, match=r"online\.url '") as error:
        store_at(url).ping()

    assert "hunter2" not in str(error.value)


# Lookups by name

DEFINITIONS = """
airport = Entity("airport", join_keys={"origin": String})
flight = Entity("flight", join_keys={"carrier": String, "number": Int64})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
numbers = FileSource("numbers", path="numbers.parquet")
airport_weather = FeatureView(
    "airport_weather", entities=[airport], source=weather, refresh="1h", ttl="2h",
    fields={"temperature": Float64, "gusts": Int64},
)
there = airport_weather.alias("there", join_keys={"origin": "destination"})
seats = FeatureView("seats", entities=[flight], source=numbers, fields={"rows": Int32})
hidden = FeatureView("hidden", entities=[airport], source=weather, fields={"gusts": Int64}, online=False)
kind = Entity("kind", join_keys={"a": Int32, "b": Date, "c": Timestamp, "d": Bool, "e": Bytes})
kinds = FeatureView("kinds", entities=[kind], source=FileSource("kinds", path="kinds.parquet"), fields={"n": Int64})
trip = FeatureService("trip", features=[there["gusts"], seats, airport_weather, there["temperature"]])
"""


KIND: Keys = {"a": [2**31 - 1], "b": [dt.date(2013, 6, 1)], "c": [at(NOON)], "d": [True], "e": [b"\xff"]}
KIND_TYPES = [pa.int32(), pa.date32(), TIME, pa.bool_(), pa.binary()]


@pytest.fixture
def applied(repo: Repo) -> FeatureStore:
    """A store with definitions that are applied; nothing is loaded, and no server runs."""
    repo.define(DEFINITIONS)
    repo.write(
        "weather.parquet",
        {
            "origin": ["EWR", "JFK"],
            "observed_at": pa.array([at(NOON - HOUR), at(NOON - 3 * HOUR)], TIME),
            "temperature": [20.5, 30.5],
            "gusts": pa.array([None, 7], pa.int64()),
        },
    )
    repo.write("numbers.parquet", {"carrier": ["UA", "AA"], "number": [1, 2], "rows": pa.array([30, 40], pa.int32())})
    columns = [pa.array(values, type_) for values, type_ in zip(KIND.values(), KIND_TYPES, strict=True)]
    repo.write("kinds.parquet", dict(zip(KIND, columns, strict=True)) | {"n": [1]})
    store = repo.open()
    store.apply()
    return store


@pytest.fixture
def store(applied: FeatureStore) -> FeatureStore:
    """A store with weather, loaded at noon, and static seats of flights."""
    applied.materialize()
    return applied


def test_vectors_have_the_keys_and_then_the_features_of_the_service(store: FeatureStore) -> None:
    """Columns are the request's keys, then the features in the service's order; each row says per view what became of it (T8)."""
    asked: Keys = {
        "number": [1, 2, None],
        "origin": ["EWR", "JFK", "EWR"],
        "carrier": ["UA", "UA", "UA"],
        "destination": ["LGA", None, "EWR"],
    }
    vectors = store.get_online_features(asked, "trip")

    assert vectors.to_dict() == {
        "destination": ["LGA", None, "EWR"],
        "carrier": ["UA", "UA", "UA"],
        "number": [1, 2, None],
        "origin": ["EWR", "JFK", "EWR"],
        "there__gusts": [None, None, None],
        "seats__rows": [30, None, None],
        "airport_weather__temperature": [20.5, None, 20.5],
        "airport_weather__gusts": [None, None, None],
        "there__temperature": [None, None, 20.5],
    }
    assert list(vectors.to_arrow().column_names) == list(vectors.to_dict())
    assert [str(type_) for type_ in vectors.to_arrow().schema.types] == [
        "string",
        "string",
        "int64",
        "string",
        "int64",
        "int32",
        "double",
        "int64",
        "double",
    ]
    assert vectors.statuses == {
        "there": [NOT_FOUND, NOT_FOUND, PRESENT],
        "seats": [PRESENT, NOT_FOUND, NOT_FOUND],
        "airport_weather": [PRESENT, OUTSIDE, PRESENT],
    }
    assert {name: column.to_pylist() for name, column in vectors.event_times.items()} == {
        "there": [None, None, at(NOON - HOUR)],
        "seats": [None, None, None],
        "airport_weather": [at(NOON - HOUR), at(NOON - 3 * HOUR), at(NOON - HOUR)],
    }
    assert vectors.features == tuple(vectors.to_arrow().column_names[4:])


def test_a_service_can_be_asked_by_name_by_definition_or_as_a_list(store: FeatureStore) -> None:
    """A service, its name and the list of its features give the same vectors."""
    asked: Keys = {"origin": ["EWR"], "destination": ["EWR"], "carrier": ["UA"], "number": [1]}
    listed = ["there:gusts", "seats:rows", "airport_weather:temperature", "airport_weather:gusts", "there:temperature"]
    by_name = store.get_online_features(asked, "trip").to_dict()

    assert store.get_online_features(asked, FeatureService("trip", features=["any:thing"])).to_dict() == by_name
    assert store.get_online_features(asked, listed).to_dict() == by_name


COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "numpy": np.array,
    "numpy objects": lambda values: np.array(values, dtype=object),
    "Arrow": pa.array,
    "Arrow chunks": lambda values: pa.chunked_array([values[:1], values[1:]]),
    "pandas": lambda values: pd.Series(values, index=range(5, 5 + len(values))),
    "Polars": pl.Series,
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in COLUMNS.items()])
def test_key_values_may_be_any_kind_of_column(store: FeatureStore, make: Callable[[list[Any]], Any]) -> None:
    """Lists, tuples, numpy and Arrow arrays, pandas and Polars series are columns of keys alike."""
    asked = {"carrier": make(["AA", "UA", "UA"]), "number": make([2, 1, 2])}

    assert store.get_online_features(asked, ["seats:rows"]).to_dict() == {
        "carrier": ["AA", "UA", "UA"],
        "number": [2, 1, 2],
        "seats__rows": [40, 30, None],
    }


def test_no_entities_give_no_vectors(store: FeatureStore) -> None:
    """An empty request has an empty answer of the right types."""
    vectors = store.get_online_features({"carrier": [], "number": []}, ["seats:rows"])

    assert vectors.to_arrow().schema == pa.schema([("carrier", pa.string()), ("number", pa.int64()), ("seats__rows", pa.int32())])
    assert (len(vectors.to_arrow()), vectors.statuses) == (0, {"seats": []})


def test_vectors_as_a_pandas_frame(store: FeatureStore) -> None:
    """A frame of vectors has their columns in the same order."""
    frame = store.get_online_features({"carrier": ["UA"], "number": [1]}, ["seats:rows"]).to_pandas()

    assert frame.to_dict("list") == {"carrier": ["UA"], "number": [1], "seats__rows": [30]}


def test_timestamps_as_keys_are_utc(repo: Repo) -> None:
    """A naive key is UTC, an aware one is converted, online as offline (T1)."""
    repo.define("""
moment = Entity("moment", join_keys={"at": Timestamp})
marks = FileSource("marks", path="marks.parquet")
view = FeatureView("view", entities=[moment], source=marks, fields={"n": Int64})
""")
    repo.write("marks.parquet", {"at": pa.array([at(NOON)], TIME), "n": [1]})
    store = repo.open()
    store.apply()
    store.materialize()
    zone = dt.timezone(dt.timedelta(hours=2))
    noons = [dt.datetime(2013, 6, 1, 12), at(NOON), dt.datetime(2013, 6, 1, 14, tzinfo=zone), dt.datetime(2013, 6, 1, 14)]  # noqa: DTZ001

    assert store.get_online_features({"at": noons}, ["view:n"]).to_dict()["view__n"] == [1, 1, 1, None]


KEYS: Keys = {"carrier": ["UA"], "number": [1]}
INPUT_ERRORS: list[tuple[str, Mapping[str, Any], str, str | None]] = [
    # case, the keys, the message, the offender
    ("missing", {"carrier": ["UA"]}, "key 'number' is missing; the keys are 'carrier', 'number'", "number"),
    ("none at all", {}, "key 'carrier' is missing; the keys are 'carrier', 'number'", "carrier"),
    ("unknown", KEYS | {"numbr": [1]}, "'numbr' is no key of the features asked for; did you mean 'number'?", "numbr"),
    ("of another view", KEYS | {"x": ["EWR"]}, "'x' is no key of the features asked for; known: 'carrier', 'number'", "x"),
    ("of another length", KEYS | {"number": [1, 2]}, "key columns differ in length: 'carrier' has 1, 'number' has 2", None),
    ("a text", KEYS | {"carrier": "UA"}, "key 'carrier' needs a list of values, one for each row; got str", "carrier"),
    ("bytes", KEYS | {"carrier": b"UA"}, "key 'carrier' needs a list of values, one for each row; got bytes", "carrier"),
    ("a number", KEYS | {"number": 1}, "key 'number' needs a list of values, one for each row; got int", "number"),
    ("null", KEYS | {"number": None}, "key 'number' needs a list of values, one for each row; got NoneType", "number"),
    (
        "a generator",
        KEYS | {"number": iter([1])},
        "key 'number' needs a list of values, one for each row; got list_iterator",
        "number",
    ),
]


@pytest.mark.parametrize(("keys", "message", "name"), [pytest.param(*rest, id=case) for case, *rest in INPUT_ERRORS])
def test_a_malformed_request_names_the_offender(
    applied: FeatureStore, keys: Mapping[str, Any], message: str, name: str | None
) -> None:
    """A key that is missing, unknown, of another length or no list is an InputError that names it."""
    with pytest.raises(InputError) as error:
        applied.get_online_features(keys, ["seats:rows"])

    assert (str(error.value), error.value.name) == (message, name)


WRONG: list[tuple[str, Any]] = [
    ("number", ["1"]),
    ("number", [[1]]),
    ("number", [2**63]),
    ("number", [True]),
    ("number", [1.5]),
    ("number", [1.0]),
    ("number", [Decimal("1.5")]),
    ("number", np.array([1.5])),
    ("number", np.array([True])),
    ("number", np.array(["1"])),
    ("number", pa.array([1.0])),
    ("number", pa.array([True])),
    ("number", pa.array(["1"])),
    ("number", pd.Series([1.5])),
    ("number", np.array(1)),
    ("number", np.array([[1]])),
    ("carrier", [1]),
    ("carrier", [None, 1]),
    ("carrier", [b"UA"]),
    ("carrier", pa.array([1])),
    ("carrier", pa.array([b"UA"])),
    ("carrier", ["\ud800"]),
    ("a", [2**31]),
    ("a", pa.array([2**31])),
    ("b", [dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC)]),
    ("b", [5]),
    ("b", ["2013-06-01"]),
    ("c", [5]),
    ("c", ["2013-06-01"]),
    ("c", [dt.date(2013, 6, 1)]),
    ("d", [1]),
    ("d", ["true"]),
    ("e", ["a"]),
]


@pytest.mark.parametrize(
    ("key", "values"), WRONG, ids=lambda each: each if isinstance(each, str) else f"{type(each).__name__} {each}"
)
def test_a_key_of_a_wrong_type_is_refused(applied: FeatureStore, key: str, values: Sequence[Any]) -> None:
    """A value that is none of the key's type is an InputError: no other entity is looked up instead."""
    keys, features = (KIND, ["kinds:n"]) if key in KIND else (KEYS, ["seats:rows"])
    with pytest.raises(InputError) as error:
        applied.get_online_features({**keys, key: values}, features)

    assert error.value.name == key


def test_a_key_of_each_type_finds_its_entity(store: FeatureStore) -> None:
    """Keys of every type take values of their own."""
    assert store.get_online_features(KIND, ["kinds:n"]).to_dict() == {**KIND, "kinds__n": [1]}


def test_a_view_that_is_not_online_is_refused(applied: FeatureStore) -> None:
    """`online=False` keeps a view out of the online store, and a lookup says so."""
    with pytest.raises(InputError, match=r"feature view 'hidden' is not served online \(online=False\)") as error:
        applied.get_online_features({"origin": ["EWR"]}, ["hidden:gusts"])

    assert error.value.name == "hidden"


@pytest.mark.parametrize(("features", "nearest"), [("trips", "trip"), (["seat:rows"], "seats"), (["seats:row"], "rows")])
def test_an_unknown_name_is_answered_with_the_nearest(applied: FeatureStore, features: Any, nearest: str) -> None:
    """A service, view or feature that is not there is an error with the nearest that is."""
    with pytest.raises(NotFoundError, match=f"did you mean '{nearest}'\\?"):
        applied.get_online_features(KEYS, features)


def test_before_anything_is_loaded_nothing_is_found(repo: Repo, store: FeatureStore) -> None:
    """A view without a run answers NOT_FOUND for every key; one without an apply has no names."""
    repo.define(DEFINITIONS + 'more = FeatureView("more", entities=[airport], source=weather, fields={"gusts": Int64})')
    with pytest.raises(NotFoundError, match="no feature view 'more'"):
        store.get_online_features({"origin": ["EWR"]}, ["more:gusts"])
    store.apply()

    assert store.get_online_features({"origin": ["EWR"]}, ["more:gusts"]).statuses == {"more": [NOT_FOUND]}
