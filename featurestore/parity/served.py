"""What the online store holds for some keys, taken apart: rows, deletions, what is no row of the view, and nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import OnlineStoreError
from featurestore.online.rows import HEADER_BYTES, NO_EVENT_TIME, RowCodec, is_deleted
from featurestore.online.store import OnlineStore, keys_of, rows_of
from featurestore.registry.state import Version

__all__ = ["DELETED", "FOREIGN", "NOTHING", "ROW", "Served", "served"]

NOTHING, ROW, DELETED, FOREIGN = 0, 1, 2, 3
_ASKED_AT_ONCE = 1_000
_LONGEST_PAUSE_SECONDS = 0.05

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Served:
    """What is stored for each key, a row each: `states`, the `orders` of headers (of rows and deletions), event times, features.

    Event times are microseconds, the least int64 for none; features are null where the state is not ROW.
    """

    states: npt.NDArray[np.uint8]
    orders: Integers
    event_times: Integers
    features: pa.Table

    def is_present(self, at: int, ttl: int | None) -> npt.NDArray[np.bool_]:
        """Return which keys had a value at an instant: a row that the TTL lets stand."""
        is_row: npt.NDArray[np.bool_] = self.states == ROW
        return is_row if ttl is None else is_row & (at - self.event_times <= ttl)

    def take(self, places: Integers) -> Served:
        """Return some keys."""
        return Served(self.states[places], self.orders[places], self.event_times[places], self.features.take(pa.array(places)))


def served(online: OnlineStore, version: Version, keys: Sequence[pa.ChunkedArray]) -> Served:
    """Return what the online store holds for keys without nulls; it is left alone after each part for as long as that took."""
    names, stored = keys_of(version).names(keys), []
    for first in range(0, len(names), _ASKED_AT_ONCE):
        began = time.perf_counter()
        stored += online.fetch(names[first : first + _ASKED_AT_ONCE])
        if len(names) > _ASKED_AT_ONCE:
            time.sleep(min(time.perf_counter() - began, _LONGEST_PAUSE_SECONDS))
    return _taken_apart(rows_of(version), stored)


def _taken_apart(codec: RowCodec, stored: Sequence[bytes | None]) -> Served:
    states = np.zeros(len(stored), np.uint8)
    orders, event_times = np.zeros(len(stored), np.int64), np.full(len(stored), NO_EVENT_TIME)
    places, rows = [], []
    for place, row in enumerate(stored):
        if row is None:
            continue
        if is_deleted(row):
            states[place], orders[place] = DELETED, int.from_bytes(row[9:HEADER_BYTES], "little", signed=True)
        else:
            states[place] = FOREIGN
            places.append(place)
            rows.append(row)
    good, parts = [], []
    for first, last in _readable(codec, rows, 0, len(rows)):
        columns, times = codec.decode(rows[first:last])
        mine = np.array(places[first:last], dtype=np.int64)
        states[mine], event_times[mine] = ROW, times
        orders[mine] = [int.from_bytes(row[9:HEADER_BYTES], "little", signed=True) for row in rows[first:last]]
        good.append(mine)
        parts.append(pa.table(columns, names=[field.name for field in codec.fields]))
    return Served(states, orders, event_times, _spread(codec, np.concatenate([*good, np.zeros(0, np.int64)]), parts, len(stored)))


def _readable(codec: RowCodec, rows: Sequence[bytes], first: int, last: int) -> list[tuple[int, int]]:
    """Return the stretches of rows that can be decoded: in halves where they cannot, since one bad row spoils its batch."""
    if first == last:
        return []
    try:
        codec.decode(rows[first:last])
    except OnlineStoreError:
        if last - first == 1:
            return []
        middle = (first + last) // 2
        return [*_readable(codec, rows, first, middle), *_readable(codec, rows, middle, last)]
    return [(first, last)]


def _spread(codec: RowCodec, places: Integers, parts: Sequence[pa.Table], count: int) -> pa.Table:
    schema = pa.schema([(field.name, field.type.arrow) for field in codec.fields])
    found = pa.concat_tables([table.cast(schema) for table in parts]) if parts else schema.empty_table()
    source = np.full(count, -1, dtype=np.int64)
    source[places] = np.arange(len(places))
    if len(places) == count and np.array_equal(places, np.arange(count)):
        return found
    return found.take(pa.array(source, mask=source < 0))
