from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis

from featurestore import Entity, FileSource
from featurestore.errors import OnlineStoreError
from featurestore.online import embedded
from featurestore.online.keys import online_key
from featurestore.online.scripts import WRITE
from featurestore.online.store import OnlineLoad, OnlineStore, Status
from featurestore.registry.state import Version
from featurestore.settings import load_settings
from featurestore.types import Array, Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType
from tests.conftest import HOUR, NOON, TIME, Repo, at
from tests.servers import Client, Topologies
from tests.versions import version

DAY_MS = 24 * 3_600_000
PRESENT, NOT_FOUND, OUTSIDE = Status.PRESENT, Status.NOT_FOUND, Status.OUTSIDE_MAX_AGE
Row = tuple[Status, Any, dt.datetime | None]


@dataclass
class Online:
    """An online store, and a connection of its own that looks at what is in place."""

    store: OnlineStore
    raw: Client

    def write(self, to: Version, rows: Mapping[str, int | None], *, run: int, event: int = NOON, now: int = NOON) -> int:
        """Write rows by key."""
        features = pa.table({"gusts": pa.array(list(rows.values()), pa.int64())})
        event_times = pa.chunked_array([pa.array([event] * len(rows), TIME)])
        return self.store.write(to, [pa.chunked_array([list(rows)])], features, event_times, run=run, now=now)

    def delete(self, of: Version, *keys: str, run: int) -> int:
        """Delete rows by key."""
        return self.store.delete(of, [pa.chunked_array([list(keys)])], run=run)

    def load(
        self,
        to: Version,
        rows: Mapping[str, int | None] | None = None,
        *,
        run: int,
        deletes: Sequence[str] = (),
        sweeps: bool = False,
    ) -> OnlineLoad:
        """Load rows and deletions as a run does."""
        values = list((rows or {}).values())
        with self.store.load(to, run=run, now=NOON) as load:
            features, times = (
                pa.table({"gusts": pa.array(values, pa.int64())}),
                pa.chunked_array([pa.array([NOON] * len(values), TIME)]),
            )
            load.write([pa.chunked_array([pa.array(rows or [], pa.string())])], features, times)
            load.delete([pa.chunked_array([pa.array(deletes, pa.string())])])
            if sweeps:
                load.sweep()
            load.finish()
        return load

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
def online(
    online_url: str, topologies: Topologies, make_repo: Callable[..., Repo], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Online]:
    """An online store of each kind, empty."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", online_url)
    settings = load_settings(make_repo().folder)
    kind, state = (
        next((kind for kind, (url, _) in topologies.started.items() if url == online_url), None),
        settings.state / "online",
    )
    raw = topologies.raw(kind) if kind else _raw(online_url, state)
    made = Online(OnlineStore(settings), raw)
    made.raw.flushall()
    yield made
    made.store.close()
    if kind is None:
        made.raw.close()
    if online_url == "embedded":
        embedded.stop(state)


def _raw(url: str, state: Path) -> Client:
    return redis.Redis(unix_socket_path=str(embedded.ensure_running(state))) if url == "embedded" else redis.Redis.from_url(url)


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
    online.load(version(), run=2**41)

    stored = {key: online.raw.get(key) for key in online.raw.keys("*")}
    marks = {key: stored.pop(key) for key in list(stored) if b":" in key}
    assert stored == {
        b"0123abcd{21y}EWR": bytes.fromhex("01 0100000000000000 0300000000010000 00 0700000000000000"),
        online_key("0123abcd", b"JFK"): bytes.fromhex("00 0000000000000080 0400000000000000"),
    }
    on_cluster = {f"0123abcd:{kind}{{{tag}}}".encode() for kind in ("loaded", "writing") for tag in ("FTG", "DLH", "Alw")}
    assert set(marks) in ({b"0123abcd:loaded", b"0123abcd:writing"}, on_cluster)
    assert set(marks.values()) == {b"2199023255552"}


def test_the_asynchronous_path_reads_the_same(online: Online) -> None:
    """Over every topology both paths give the same bytes, of many keys and of none."""
    online.write(version(), {f"k{number}": number for number in range(0, 3000, 2)}, run=1)
    names = [None, *(online_key("0123abcd", b"k%d" % number) for number in range(3000)), None]

    async def main() -> None:
        found = await asyncio.gather(online.store.fetch_async(names), online.store.fetch_async(names[:5]))
        assert found[0] == online.store.fetch(names)
        assert found[1] == found[0][:5]
        assert sum(value is not None for value in found[0]) == 1500
        assert await online.store.fetch_async([None]) == [None]
        await online.store.aclose()

    asyncio.run(main())


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
        online.load(each, {"EWR": 1, "JFK": 2, "LGA": 3}, run=1)
    load = online.load(one, {"EWR": 9}, deletes=["JFK"], run=2, sweeps=True)
    assert (load.written, load.deleted) == (1, 2)

    assert online.values(one, "EWR", "JFK", "LGA") == [9, None, None]
    assert online.values(other, "EWR", "JFK", "LGA") == [1, 2, 3]
    assert (online.store.count(one), online.store.count(other)) == (1, 3)
    assert (online.store.loaded_run(one), online.store.loaded_run(other)) == (2, 1)

    assert online.store.drop(one) == 3
    assert (online.store.loaded_run(one), online.store.loaded_run(other)) == (None, 1)
    assert online.values(other, "EWR", "JFK", "LGA") == [1, 2, 3]
    assert len([key for key in online.raw.keys("*") if b":" not in key]) == 3


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

    assert online.load(version(), run=2**32, sweeps=True).deleted == 5_600
    assert online.store.count(version()) == 2
    assert online.values(version(), "same", "newer", "old0", "old5599", "deleted later") == [2, 3, None, None, None]
    assert online.bytes_of(version(), "old7") == bytes.fromhex("00 0000000000000080 0000000001000000")
    assert 0 < online.lives(version(), "old7") <= DAY_MS
    assert online.bytes_of(version(), "deleted later") == bytes.fromhex("00 0000000000000080 0100000001000000")


def test_the_marker_tells_of_the_last_load_and_is_lost_with_the_rows(online: Online) -> None:
    """The marker names the run of the last completed load; a server that lost its rows has none."""
    seen = [online.store.loaded_run(version())]
    for run in (7, 2**53 + 1):
        online.load(version(), run=run)
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
    with pytest.raises(
        OnlineStoreError,
        match=r"the online store .* holds a key of ours that is no row \(FOREIGN 0123abcd\{...\}JFK WRONGTYPE.*remove it \(DEL\)",
    ):
        online.write(version(), {"EWR": 1, "JFK": 5}, run=3)


def test_what_stands_before_a_foreign_key_is_written(online: Online) -> None:
    """One script writes many rows up to the one whose key is of another type, however many it puts into one command."""
    order, names = (5).to_bytes(8, "little"), [f"t{{x}}{number}" for number in range(1_200)]
    online.raw.lpush(names[1_100], "x")
    with pytest.raises(redis.ResponseError, match=r"FOREIGN t\{x\}1100 WRONGTYPE"):
        online.raw.eval(WRITE, len(names), *names, order, b"", *(name.encode() for name in names))

    assert [online.raw.get(name) for name in names[:1_100]] == [name.encode() for name in names[:1_100]]
    assert not any(online.raw.exists(name) for name in names[1_101:])


def test_the_last_row_of_a_key_stays_whatever_its_life(online: Online) -> None:
    """A script that gets a key twice leaves what came last, where the rows live for ever, for a while, or one each."""
    order = (5).to_bytes(8, "little")
    for first, last in itertools.product((0, 60_000), repeat=2):
        lives = np.array([first, 0, last]).tobytes()
        assert online.raw.eval(WRITE, 3, "t{x}", "u{x}", "t{x}", order, lives, b"first", b"other", b"last") == 3

        assert online.raw.get("t{x}") == b"last"
        assert (online.raw.pttl("t{x}") > 0) == (last > 0)


def test_a_marker_of_another_program_is_an_error(online: Online) -> None:
    """A marker that holds no number is foreign, and no number is made of it."""
    online.load(version(), run=1)
    for key in online.raw.keys("0123abcd:loaded*"):
        online.raw.set(key, "yesterday")
    with pytest.raises(OnlineStoreError):
        online.store.loaded_run(version())
