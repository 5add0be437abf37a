"""Reading and writing rows of the online store.

Writes are decided inside the server (T8): a row replaces what is stored if its order, the number of its run, is not lower. A
deletion is an empty row with its order that expires after a while, so that nothing a killed run left in a socket comes back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis

from featurestore.clock import duration_micros
from featurestore.errors import OnlineStoreError
from featurestore.online.connection import connect, translated
from featurestore.online.embedded import ensure_running, is_running
from featurestore.online.keys import key_bytes, marker, online_key, pattern
from featurestore.online.rows import HEADER_BYTES, NO_EVENT_TIME, RowCodec, deleted_row, is_deleted
from featurestore.registry.state import Version
from featurestore.settings import Settings

__all__ = ["OnlineRows", "OnlineStore", "Status"]

_BATCH = 500
_DELETED_FOR_MS = 24 * 3600 * 1000
_PAUSE_SECONDS = 0.01
_KEPT_BEYOND_TTL_MS = 24 * 3600 * 1000

# KEYS: rows' keys. ARGV: the low and high half of the order, then for each key its row and the milliseconds it lives (0: forever).
# An order is compared in halves since a Lua number is a double, which holds 53 bits of it.
_WRITE = """
local low, high = tonumber(ARGV[1]), tonumber(ARGV[2])
local written = 0
for i, key in ipairs(KEYS) do
  local stored = redis.call('GETRANGE', key, 0, 16)
  local newer = false
  if #stored == 17 and string.byte(stored) <= 1 then
    local stored_low, stored_high = struct.unpack('<I4I4', stored, 10)
    newer = stored_high > high or (stored_high == high and stored_low > low)
  end
  if not newer then
    local lives = ARGV[2 * i + 2]
    if lives == '0' then redis.call('SET', key, ARGV[2 * i + 1])
    else redis.call('SET', key, ARGV[2 * i + 1], 'PX', lives) end
    written = written + 1
  end
end
return written
"""


class Status(IntEnum):
    """What became of one row of a lookup."""

    PRESENT = 0
    NOT_FOUND = 1
    OUTSIDE_MAX_AGE = 2


@dataclass(frozen=True)
class OnlineRows:
    """The answer to a lookup in one view: a row for each key asked for, null where the status is not PRESENT.

    `event_times` are null in static views and where nothing was found; a row outside its maximum age says how old it is.
    """

    features: list[pa.Array]
    event_times: pa.Array
    statuses: npt.NDArray[np.uint8]


class OnlineStore:
    """The online store of one repo. Connects when first used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connected: redis.Redis | None = None
        self._connecting = threading.Lock()
        self._expires = settings.now is None  # a fixed present never reaches an expiry

    @property
    def _client(self) -> redis.Redis:
        with self._connecting:
            if self._connected is None:
                self._connected = connect(self._settings)
            return self._connected

    def close(self) -> None:
        """Close the connections; the server goes on."""
        if self._connected is not None:
            self._connected.close()

    def ping(self) -> None:
        """Raise OnlineStoreError unless the store answers."""
        with translated(self._settings):
            self._client.ping()

    def server(self) -> dict[str, Any]:
        """Return what the server says of itself (INFO), and its present in microseconds as `time`."""
        with translated(self._settings):
            seconds, micros = self._client.time()
            return {**self._client.info(), "time": seconds * 1_000_000 + micros}

    # Reading

    def read(self, wanted: Sequence[tuple[Version, Sequence[pa.ChunkedArray]]], *, now: int) -> list[OnlineRows]:
        """Return the rows of all (version, key columns) in one round trip; TTL is enforced as of `now`.

        Key columns have the declared types; a row with a null in one of them is NOT_FOUND.
        """
        keys = [_request_keys(version, columns) for version, columns in wanted]
        asked = [key for each in keys for key in each if key is not None]
        found = iter(self._rows(asked) if asked else [])
        answers = [[next(found) if key is not None else None for key in each] for each in keys]
        return [_decode(version, rows, now) for (version, _), rows in zip(wanted, answers, strict=True)]

    def _rows(self, keys: Sequence[bytes]) -> list[bytes | None]:
        try:
            with translated(self._settings):
                return self._pipelined([("MGET", *keys)])[0]
        except OnlineStoreError:
            state = self._settings.state / "online"
            if self._settings.online.url != "embedded" or is_running(state):
                raise
        ensure_running(state)  # it was stopped, or it died; like every command, a lookup starts it on demand
        with translated(self._settings):
            return self._pipelined([("MGET", *keys)])[0]

    # Writing

    def loaded_run(self, version: Version) -> int | None:
        """Return the run whose load the store holds in full; none if there is no marker, as on a server that lost its data."""
        with translated(self._settings):
            value = self._client.get(marker(version.uid))
        if value is None:
            return None
        if not isinstance(value, bytes) or not value.isdigit():
            raise OnlineStoreError(f"the online store's key {marker(version.uid)!r} is not ours: remove it, then run again")
        return int(value)

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
        """Write rows as the run of that number; returns how many were not older than what is stored."""
        times = event_times.cast(pa.int64()).fill_null(NO_EVENT_TIME).to_numpy()
        rows = RowCodec(version.view.fields).encode(features, times, run)
        names = key_bytes(keys, [key.type for key in version.view.join_keys])
        return self._put(version, names, rows, self._lives(version, times, now), run)

    def delete(self, version: Version, keys: Sequence[pa.ChunkedArray], *, run: int) -> int:
        """Delete rows as the run of that number; returns how many were not newer."""
        names = key_bytes(keys, [key.type for key in version.view.join_keys])
        return self._put(version, names, [deleted_row(run)] * len(names), [_DELETED_FOR_MS] * len(names), run)

    def sweep(self, version: Version, *, run: int) -> int:
        """Delete every row that is older than the run, which has just written all that should be there."""
        swept = 0
        with translated(self._settings):
            for batch in self._scan(version):
                heads = self._pipelined(("GETRANGE", key, 0, HEADER_BYTES - 1) for key in batch)
                old = [
                    key for key, head in zip(batch, heads, strict=True) if int.from_bytes(head[9:17], "little", signed=True) < run
                ]
                swept += self._put_keys(old, [deleted_row(run)] * len(old), [_DELETED_FOR_MS] * len(old), run)
        return swept

    def mark_loaded(self, version: Version, *, run: int) -> None:
        """Record that the run has loaded all it had to."""
        with translated(self._settings):
            self._client.set(marker(version.uid), run)

    def drop(self, version: Version, *, limit: int | None = None) -> int:
        """Remove the rows of a version, no faster than is good for those who look others up; returns how many.

        With a `limit` it stops once so many are gone: the version has more.
        """
        dropped = 0
        with translated(self._settings):
            self._client.delete(marker(version.uid))
            for batch in self._scan(version):
                part = batch if limit is None else batch[: limit - dropped]
                dropped += int(self._client.unlink(*part))
                if dropped == limit:
                    break
                time.sleep(_PAUSE_SECONDS)
        return dropped

    def compact(self) -> None:
        """Let the server write its append-only file anew, so that it holds no row that is not there any more."""
        with translated(self._settings):
            self._client.bgrewriteaof()

    def count(self, version: Version) -> int:
        """Count the rows that a version has, deleted ones left out."""
        present = 0
        with translated(self._settings):
            for batch in self._scan(version):
                present += sum(head[:1] != b"\0" for head in self._pipelined(("GETRANGE", key, 0, 0) for key in batch) if head)
        return present

    def _put(self, version: Version, keys: Sequence[bytes], rows: Sequence[bytes], lives: Sequence[int], run: int) -> int:
        with translated(self._settings):
            return self._put_keys([online_key(version.uid, key) for key in keys], rows, lives, run)

    def _put_keys(self, keys: Sequence[bytes], rows: Sequence[bytes], lives: Sequence[int], run: int) -> int:
        commands: list[tuple[Any, ...]] = []
        for first in range(0, len(keys), _BATCH):
            part = keys[first : first + _BATCH]
            arguments: list[bytes | int] = [run & 0xFFFFFFFF, run >> 32]
            for row, life in zip(rows[first : first + _BATCH], lives[first : first + _BATCH], strict=True):
                arguments += (row, life)
            commands.append(("EVAL", _WRITE, len(part), *part, *arguments))
        return sum(self._pipelined(commands))

    def _pipelined(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        return pipeline.execute()

    def _scan(self, version: Version) -> Iterator[list[bytes]]:
        batch: list[bytes] = []
        for key in self._client.scan_iter(match=pattern(version.uid), count=1000):
            batch.append(key)
            if len(batch) >= 10 * _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def _lives(self, version: Version, event_times: npt.NDArray[np.int64], now: int) -> list[int]:
        """Return for how many milliseconds each row is kept: expiry only collects what the TTL has made invisible before."""
        if version.view.ttl is None or not self._expires:
            return [0] * len(event_times)
        left = (event_times + duration_micros(version.view.ttl) - now) // 1000
        lives: list[int] = (np.maximum(left, 0) + _KEPT_BEYOND_TTL_MS).tolist()
        return lives


def _request_keys(version: Version, columns: Sequence[pa.ChunkedArray]) -> list[bytes | None]:
    present = np.logical_and.reduce([column.is_valid().to_numpy() for column in columns])
    rows = np.flatnonzero(present)
    kept = [column.take(pa.array(rows)) for column in columns]
    keys: list[bytes | None] = [None] * len(present)
    for row, key in zip(rows.tolist(), key_bytes(kept, [key.type for key in version.view.join_keys]), strict=True):
        keys[row] = online_key(version.uid, key)
    return keys


def _decode(version: Version, rows: Sequence[bytes | None], now: int) -> OnlineRows:
    stored = np.array([row is not None and not is_deleted(row) for row in rows], dtype=bool)
    kept = [row for row, is_stored in zip(rows, stored, strict=True) if row is not None and is_stored]
    columns, times = RowCodec(version.view.fields).decode(kept)
    statuses = np.full(len(rows), Status.NOT_FOUND, dtype=np.uint8)
    statuses[stored] = Status.PRESENT
    if version.view.ttl is not None:
        statuses[stored] = np.where(now - times > duration_micros(version.view.ttl), Status.OUTSIDE_MAX_AGE, Status.PRESENT)
    place = np.cumsum(stored) - 1
    features = [column.take(pa.array(place, mask=statuses != Status.PRESENT)) for column in columns]
    timed = pa.array(times, mask=times == NO_EVENT_TIME).cast(pa.timestamp("us", "UTC"))
    return OnlineRows(features, timed.take(pa.array(place, mask=~stored)), statuses)
