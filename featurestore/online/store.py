"""Reading and writing rows of the online store, whatever servers it has.

Writes are decided inside the server (T8, `scripts.py`). A deletion is an empty row with its order that expires after a while, so
that nothing a killed run left in a socket comes back. `loading.py` has the writes of runs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis

from featurestore.clock import duration_micros
from featurestore.definitions import FeatureView, Field
from featurestore.online.answers import OnlineRows
from featurestore.online.cursors import Cursors, advance, cursors, put_cursors
from featurestore.online.delivery import Delivery, parcels
from featurestore.online.failures import translated
from featurestore.online.fetching import Found
from featurestore.online.keys import KeyBlock, KeyCodec, cursor, fence, key_codec, marker, pattern
from featurestore.online.loading import DELETED_FOR_MS, Load, loaded_run, scanned
from featurestore.online.packed import PackedRows
from featurestore.online.reading import Reader
from featurestore.online.rows import NO_EVENT_TIME, RowCodec, codec_of, deleted_row, erased_row
from featurestore.online.status import Status
from featurestore.online.topology import Topology
from featurestore.registry.state import Version
from featurestore.settings import Settings

__all__ = ["OnlineLoad", "OnlineRows", "OnlineStore", "Status", "features_of", "features_of_view", "keys_of", "rows_of", "ttl_of"]

_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.05
_SCANNED = 1_000
_KEPT_BEYOND_TTL_MS = 24 * 3600 * 1000


def features_of_view(view: FeatureView) -> tuple[Field, ...]:
    """Return the features that the rows of a view hold, in their order."""
    return view.features


def features_of(version: Version) -> tuple[Field, ...]:
    """Return the features that the rows of a version hold, in their order."""
    return features_of_view(version.view)


def rows_of(version: Version) -> RowCodec:
    """Return the codec of a version's rows."""
    return codec_of(features_of(version))


def keys_of(version: Version) -> KeyCodec:
    """Return the codec of a version's keys."""
    return key_codec(version.uid, tuple(key.type for key in version.view.join_keys))


def ttl_of(version: Version) -> int | None:
    """Return the TTL of a version in microseconds, none where rows stay."""
    return None if version.view.ttl is None else duration_micros(version.view.ttl)


class OnlineStore:
    """The online store of one repo. Connects when first used; threads and tasks may share it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._expires = settings.now is None  # a fixed present never reaches an expiry
        self._connecting = threading.Lock()
        self._connected: tuple[Topology, Reader] | None = None
        self._idle: list[tuple[int, Delivery]] = []

    @property
    def _parts(self) -> tuple[Topology, Reader]:
        if self._connected is None:
            with self._connecting:
                if self._connected is None:
                    topology = Topology(self.settings)
                    self._connected = topology, Reader(self.settings, topology)
        return self._connected

    @property
    def topology(self) -> Topology:
        """The servers."""
        return self._parts[0]

    @property
    def _reader(self) -> Reader:
        return self._parts[1]

    @property
    def _client(self) -> redis.Redis:
        with translated(self.settings):
            return self.topology.client(self.topology.layout().endpoints[0])

    def close(self) -> None:
        """Close the connections; the server goes on. Those of event loops that have ended are closed with their loop."""
        while self._idle:
            self._idle.pop()[1].close()
        if self._connected is not None:
            for each in self._connected:
                each.close()

    async def aclose(self) -> None:
        """Close the connections, those of the running event loop included."""
        if self._connected is not None:
            await self._connected[1].aclose()
        self.close()

    def ping(self) -> None:
        """Raise OnlineStoreError unless every server answers."""
        with translated(self.settings):
            for endpoint in self.topology.layout().endpoints:
                self.topology.client(endpoint).ping()

    def server(self) -> dict[str, Any]:
        """Return what the server says of itself (INFO), and its present in microseconds as `time`."""
        with translated(self.settings):
            seconds, micros = self._client.time()
            return {**self._client.info(), "time": seconds * 1_000_000 + micros}

    # Reading

    def read(self, wanted: Sequence[tuple[Version, Sequence[pa.ChunkedArray]]], *, now: int) -> list[OnlineRows]:
        """Return the rows of all (version, key columns) in one round trip for each server; TTL is enforced as of `now`.

        Key columns have the declared types; a row with a null in one of them is NOT_FOUND.
        """
        names = [keys_of(version).names(columns) for version, columns in wanted]
        found = iter(self.fetch([name for each in names for name in each]))
        answers = [[next(found) for _ in each] for each in names]
        return [
            OnlineRows(rows_of(version), ttl_of(version), values, now) for (version, _), values in zip(wanted, answers, strict=True)
        ]

    def fetch(self, names: Sequence[bytes | None]) -> Found:
        """Return what is stored under each key, none where nothing is or where there is no key."""
        return self._reader.fetch(names)

    def fetch_async(self, names: Sequence[bytes | None]) -> Coroutine[Any, Any, Found]:
        """Return the same as `fetch`, over this event loop's connection to each server."""
        return self._reader.fetch_async(names)

    def fetch_soon(self, names: Sequence[bytes | None], done: Callable[[Found | None], None]) -> bool:
        """Ask on the running event loop without waiting, and call `done` with what `fetch` returns; false if it cannot be so.

        That is the common case: one server, an open connection with room, no more keys than one command reads. `done` gets none if
        it failed, and `fetch_async` has to try again.
        """
        return self._connected is not None and self._reader.fetch_soon(names, done)

    def connections(self) -> tuple[dict[str, int], int]:
        """Return how many connections the running event loop has by state, and how many commands wait for replies on them."""
        return ({}, 0) if self._connected is None else self._reader.connections()

    # Writing

    def write(
        self,
        version: Version,
        keys: Sequence[pa.ChunkedArray],
        features: pa.Table,
        event_times: pa.ChunkedArray,
        *,
        run: int,
        now: int,
    ) -> int:
        """Write rows as the run of that number, which is not a load; returns how many were not older than what is stored."""
        with self._delivery() as put:
            return sum(put(*each, run) for each in self._packed(version, keys, features, event_times, run, now))

    def push(
        self,
        version: Version,
        keys: Sequence[pa.ChunkedArray],
        features: pa.Table,
        event_times: pa.ChunkedArray,
        created_times: pa.ChunkedArray,
        *,
        now: int,
    ) -> int:
        """Write rows of a push view; returns how many were not lower in (event time, created time) than what is stored (T8)."""
        orders = created_times.cast(pa.int64()).to_numpy()
        with self._delivery() as put:
            return sum(put(*each, None) for each in self._packed(version, keys, features, event_times, orders, now))

    def delete(self, version: Version, keys: Sequence[pa.ChunkedArray], *, run: int) -> int:
        """Delete rows as the run of that number; returns how many were not newer. What is pushed stays deleted until `release`."""
        with self._delivery() as put:
            if version.view.is_pushed:
                return sum(put(block, erased_row(), DELETED_FOR_MS, None) for block in keys_of(version).blocks(keys))
            return sum(put(block, deleted_row(run), DELETED_FOR_MS, run) for block in keys_of(version).blocks(keys))

    def release(self, version: Version) -> None:
        """Remove what stands for deleted rows of a push view, so that pushes are taken again."""
        with translated(self.settings):
            for endpoint in self.topology.layout().endpoints:
                client = self.topology.client(endpoint)
                for keys in scanned(client, version.uid):
                    heads = zip(keys, _each(client, "GETRANGE", keys, 0, 0), strict=True)
                    _each(client, "UNLINK", [key for key, head in heads if head == b"\0"])

    def pushed_until(self, version: Version) -> Cursors:
        """Return how far the pushes of a version have been written."""
        with translated(self.settings):
            return cursors(self.topology, version.uid)

    def advance(self, version: Version, before: Cursors, arrival: int) -> bool:
        """Record that all pushes until an arrival have been written, unless a server has lost what it had before."""
        with translated(self.settings):
            return advance(self.topology, version.uid, before, arrival)

    def reset(self, version: Version, arrival: int | None) -> None:
        """Record that all pushes until an arrival have been written, as a completed load has; with none, that nothing is known."""
        with translated(self.settings):
            put_cursors(self.topology, version.uid, arrival)

    @contextmanager
    def _delivery(self) -> Iterator[Callable[..., int]]:
        with translated(self.settings):
            topology = self.topology
            owner, delivery = self._idle.pop() if self._idle else (0, None)
            if delivery is None or owner != os.getpid():  # a child process has its parent's, and must not use them
                delivery = Delivery(topology, topology.patience)

            def put(block: KeyBlock, rows: PackedRows | bytes, lives: npt.NDArray[np.int64] | int, order: int | None) -> int:
                return delivery.deliver(list(parcels(block, rows, order, lives, is_cluster=topology.is_cluster)))

            try:
                yield put
            except BaseException:
                delivery.close()
                raise
            self._idle.append((os.getpid(), delivery))

    @contextmanager
    def load(self, version: Version, *, run: int, now: int, max_rate: float | None = None) -> Iterator[OnlineLoad]:
        """Write as a run that holds the version's lease; `OnlineLoad.finish` completes it. `max_rate` is in rows per second."""
        with translated(self.settings):
            load = Load(self.topology, version.uid, run, max_rate, is_pushed=version.view.is_pushed)
            try:
                yield OnlineLoad(self, version, load, run, now)
            finally:
                load.close()

    def _packed(
        self,
        version: Version,
        keys: Sequence[pa.ChunkedArray],
        features: pa.Table,
        event_times: pa.ChunkedArray,
        order: int | npt.NDArray[np.int64],
        now: int,
    ) -> Iterator[tuple[KeyBlock, PackedRows, npt.NDArray[np.int64] | int]]:
        """Give keys, rows and the milliseconds that they live, those with keys of one length at a time."""
        times = event_times.cast(pa.int64()).fill_null(NO_EVENT_TIME).to_numpy()
        rows = rows_of(version).pack(features, times, order)
        lives = self._lives(version, times, now)
        blocks = list(keys_of(version).blocks(keys))
        for block in blocks:
            if len(blocks) == 1:
                yield block, rows, lives
            else:
                yield block, rows.take(block.rows), lives if isinstance(lives, int) else lives[block.rows]

    def _lives(self, version: Version, event_times: npt.NDArray[np.int64], now: int) -> npt.NDArray[np.int64] | int:
        """Return for how many milliseconds each row is kept: expiry only collects what the TTL has made invisible before."""
        ttl = ttl_of(version)
        if ttl is None or not self._expires:
            return 0
        lives: npt.NDArray[np.int64] = np.maximum((event_times + ttl - now) // 1000, 0) + _KEPT_BEYOND_TTL_MS
        return lives

    # What there is

    def loaded_run(self, version: Version) -> int | None:
        """Return the run whose load the store holds in full; none if there is no marker, as on a server that lost its data."""
        with translated(self.settings):
            return loaded_run(self.topology, version.uid)

    def drop(self, version: Version, *, limit: int | None = None) -> int:
        """Remove the rows of a version, no faster than is good for those who look others up; returns how many.

        With a `limit` it stops once so many are gone: the version has more.
        """
        dropped = 0
        with translated(self.settings):
            layout = self.topology.layout()
            for endpoint in layout.endpoints:
                client, first_slot = self.topology.client(endpoint), layout.first_slot(endpoint)
                client.delete(*(mark(version.uid, first_slot) for mark in (marker, fence, cursor)))
                for keys in scanned(client, version.uid):
                    part = keys if limit is None else keys[: limit - dropped]
                    dropped += sum(_each(client, "UNLINK", part))
                    if dropped == limit:
                        return dropped
                    time.sleep(_PAUSE_SECONDS)
        return dropped

    def keys(self, version: Version) -> Iterator[list[bytes]]:
        """Give the keys under which a version has rows, deleted ones included, some at a time and some of them twice.

        After each part the server is left alone for as long as it took, so it is asked for half of its time at most.
        """
        with translated(self.settings):
            for endpoint in self.topology.layout().endpoints:
                client: Any = self.topology.client(endpoint)
                cursor = -1
                while cursor:
                    began = time.perf_counter()
                    cursor, page = client.scan(max(cursor, 0), match=pattern(version.uid), count=_SCANNED)
                    time.sleep(min(time.perf_counter() - began, _LONGEST_PAUSE_SECONDS))
                    if page:
                        yield page

    def compact(self) -> None:
        """Let the servers write their append-only files anew, so that these hold no row that is not there any more."""
        with translated(self.settings):
            for endpoint in self.topology.layout().endpoints:
                self.topology.client(endpoint).bgrewriteaof()

    def count(self, version: Version) -> int:
        """Count the rows that a version has, deleted ones left out."""
        present = 0
        with translated(self.settings):
            for endpoint in self.topology.layout().endpoints:
                client = self.topology.client(endpoint)
                for keys in scanned(client, version.uid):
                    present += sum(bool(head) and head[:1] != b"\0" for head in _each(client, "GETRANGE", keys, 0, 0))
        return present


class OnlineLoad:
    """The load of one run: rows and deletions go on their way, `finish` waits for them and completes the load."""

    def __init__(self, store: OnlineStore, version: Version, load: Load, run: int, now: int) -> None:
        self._store, self._version, self._load, self._run, self._now = store, version, load, run, now

    @property
    def written(self) -> int:
        """How many rows were written and acknowledged so far."""
        return self._load.written

    @property
    def deleted(self) -> int:
        """How many rows were deleted and acknowledged so far."""
        return self._load.deleted

    def write(
        self,
        keys: Sequence[pa.ChunkedArray],
        features: pa.Table,
        event_times: pa.ChunkedArray,
        created_times: pa.ChunkedArray | None = None,
    ) -> None:
        """Write rows, those of a push view with their created times; waits while too many are on their way."""
        order = self._run if created_times is None else created_times.cast(pa.int64()).to_numpy()
        for each in self._store._packed(self._version, keys, features, event_times, order, self._now):  # noqa: SLF001
            self._load.write(*each)

    def delete(self, keys: Sequence[pa.ChunkedArray]) -> None:
        """Delete rows."""
        for block in keys_of(self._version).blocks(keys):
            self._load.delete(block)

    def sweep(self) -> None:
        """Delete every row that is older than the run, which has written all that should be there."""
        self._load.sweep()

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged."""
        self._load.flush()

    def finish(self) -> None:
        """Wait until all is acknowledged, and record that the run has loaded all it had to."""
        self._load.finish()


def _each(client: redis.Redis, command: str, keys: Sequence[bytes], *more: int) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.execute_command(command, key, *more)  # type: ignore[no-untyped-call]
    return pipeline.execute()
