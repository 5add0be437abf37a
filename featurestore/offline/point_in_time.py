"""The point-in-time rule: which row of a key is visible at a time. This docstring is its specification.

**T2** A row is visible at `t` if and only if its visible time is `<= t`.
**T4** The value at `t` is that of the key's visible row with the greatest `(event time, created time, seq)`, a null created time
first. With a TTL it is absent if `t - event time > ttl`; at equality it is still there.

Training evaluates this function at past times, the online load at the watermark, parity checks at any time: there is no other.

How it is computed. A table's rows are sorted by key hash (see `tables.py`), so a range of hashes is a range of row groups in every
file. The keys asked for are sorted by their hash too and both sides are cut into the same **buckets**, each small enough for
memory. In a bucket the rows of one key form a **group**, ordered by visible time. The visible rows of a group at `t` are a prefix,
whose length is a binary search, done for all rows asked for at once. If visible time follows event time, the last row of the prefix
is the answer; if not (`visible_from="created_time"`), it is the prefix's greatest by `(event, created, seq)`, a running
maximum of ranks.

Keys that differ may share a hash. So groups are made of equal *keys*, and what is found by hash is compared with the key asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.clock import duration_micros, to_micros
from featurestore.definitions import FeatureView
from featurestore.errors import OfflineStoreError
from featurestore.offline.keys import key_hash
from featurestore.offline.tables import HIDDEN, Snapshot, table_schema

__all__ = ["EVENT_TIME", "Values", "values_at"]

EVENT_TIME = "__event_time"
_BUCKET_ROWS = 2_000_000
_ABSENT = -1
_LEAST = -(2**63)
_ORDER = ("__visible_time", EVENT_TIME, "__created_time", "__seq")
_PLAIN = ("__visible_time", "__key_hash")

Integers = npt.NDArray[np.int64]


def values_at(
    view: FeatureView,
    snapshot: Snapshot,
    keys: Sequence[pa.ChunkedArray],
    times: Integers,
    features: Sequence[str],
    *,
    ttl: bool = True,
) -> Values:
    """Return the view's values for each (key, time): one row for each row asked for, in the same order.

    `keys` are the join key columns in the view's order and declared types; a null in any of them gives absent values. `times` are
    microseconds, shape (rows,). `ttl=False` leaves expired values in.

    Raises:
        OfflineStoreError: a file of the snapshot cannot be read.

    """
    asked = _Asked.sorted_by_hash(keys, times)
    columns = [*features, EVENT_TIME]
    found = [_bucket_values(view, snapshot, part, columns, ttl=ttl) for part in asked.buckets(snapshot.rows)]
    # Rows with null keys were left out of the buckets; they stand behind all others here, with nothing in them.
    whole = table_schema(view)
    schema = pa.schema([whole.field(name) for name in columns])
    nothing = pa.table([pa.nulls(asked.unkeyed, field.type) for field in schema], names=columns)
    gathered = pa.concat_tables([*(part for part, _ in found), nothing])
    present = np.concatenate([*(is_present for _, is_present in found), np.zeros(asked.unkeyed, dtype=bool)])
    restored = gathered.take(pa.array(asked.restoring))
    return Values(restored.select(list(features)), restored[EVENT_TIME], present[asked.restoring])


@dataclass(frozen=True)
class Values:
    """The values of some (key, time) pairs, a row each. Where `present` is false all else is null."""

    features: pa.Table
    event_times: pa.ChunkedArray
    present: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Asked:
    """Keys and times asked for, sorted by key hash. `restoring` brings sorted rows into the order asked for."""

    hashes: Integers
    keys: list[pa.ChunkedArray]
    times: Integers
    restoring: Integers
    unkeyed: int

    @staticmethod
    def sorted_by_hash(keys: Sequence[pa.ChunkedArray], times: Integers) -> _Asked:
        present = np.ones(len(times), dtype=bool)
        for key in keys:
            if key.null_count:
                present &= pc.is_valid(key).to_numpy()
        rows = np.flatnonzero(present)
        kept = [key.take(pa.array(rows)) if len(rows) < len(times) else key for key in keys]
        hashes = key_hash(kept)
        order = np.argsort(hashes, kind="stable")
        restoring = np.empty(len(times), dtype=np.int64)
        restoring[rows[order]] = np.arange(len(rows))
        restoring[~present] = np.arange(len(rows), len(times))
        taken = [key.take(pa.array(order)) for key in kept]
        return _Asked(hashes[order], taken, times[rows[order]], restoring, len(times) - len(rows))

    def buckets(self, table_rows: int) -> Iterator[_Asked]:
        """Cut into as many ranges of hashes as keep a table of so many rows within memory; empty ones are left out."""
        bits = max(0, (table_rows // _BUCKET_ROWS).bit_length())
        bounds = np.linspace(-(2**63), 2**63, 2**bits, endpoint=False)[1:].astype(np.int64)
        cuts = [0, *np.searchsorted(self.hashes, bounds).tolist(), len(self.hashes)]
        for first, last in itertools.pairwise(cuts):
            if first < last:
                keys = [key.slice(first, last - first) for key in self.keys]
                yield _Asked(self.hashes[first:last], keys, self.times[first:last], self.restoring[:0], 0)


def _bucket_values(
    view: FeatureView, snapshot: Snapshot, asked: _Asked, columns: list[str], *, ttl: bool
) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    names = [key.name for key in view.join_keys]
    is_reordered = view.source.visible_from == "created_time"
    rows = _read(view, snapshot, asked, [*names, *HIDDEN, *columns[:-1]] if is_reordered else [*names, *_PLAIN, *columns])
    rows, groups = _grouped(rows, names)
    group = _find_groups(rows, groups, asked, names)
    last = _last_visible(_int64(rows["__visible_time"]), groups, group, asked.times)
    if is_reordered:
        last = _chosen(_running_latest(rows, groups), last)
    if ttl and view.ttl is not None:
        age = asked.times - _chosen(_int64(rows[EVENT_TIME]), last)
        last = np.where(age > duration_micros(view.ttl), _ABSENT, last)
    present = last != _ABSENT
    return rows.select(columns).take(pa.array(last, mask=~present)), present


def _read(view: FeatureView, snapshot: Snapshot, asked: _Asked, columns: list[str]) -> pa.Table:
    """Read the rows that the keys and times asked for can touch, slab after slab."""
    columns = list(dict.fromkeys(columns))
    latest = int(asked.times.max())
    parts = [_read_file(file.path, asked.hashes, latest, columns) for file in snapshot.files if file.first <= latest]
    empty = table_schema(view).empty_table().select(columns)
    return pa.concat_tables([empty, *parts], promote_options="permissive").combine_chunks()


def _read_file(path: Path, hashes: Integers, latest: int, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            groups = [number for number in range(file.num_row_groups) if _is_touched(file, number, hashes, latest)]
            rows = file.read_row_groups(groups, columns=columns)
    except (OSError, pa.ArrowException) as reason:
        raise OfflineStoreError(f"cannot read {path}: {reason}") from reason
    stored = _int64(rows["__key_hash"])
    first, last = np.searchsorted(stored, hashes[0], "left"), np.searchsorted(stored, hashes[-1], "right")
    return rows.slice(first, last - first)


def _is_touched(file: pq.ParquetFile, number: int, hashes: Integers, latest: int) -> bool:
    group = file.metadata.row_group(number)
    for index in range(group.num_columns):
        column = group.column(index)
        statistics = column.statistics
        if statistics is None or not statistics.has_min_max:
            continue
        if column.path_in_schema == "__visible_time" and to_micros(statistics.min) > latest:
            return False
        if column.path_in_schema == "__key_hash":
            first = np.searchsorted(hashes, statistics.min, "left")
            if first == np.searchsorted(hashes, statistics.max, "right"):
                return False
    return True


def _grouped(rows: pa.Table, names: list[str]) -> tuple[pa.Table, Integers]:
    """Return the rows with each key's together, in the order of visible time, and the bounds of the groups."""
    hashes = _int64(rows["__key_hash"])
    if np.any(hashes[1:] < hashes[:-1]):
        # Files are slabs of visible time, one after the other: a stable sort keeps that order within each hash.
        rows = rows.take(pa.array(np.argsort(hashes, kind="stable")))
    is_new_hash, is_new_key = _changes(rows, ["__key_hash"]), _changes(rows, names)
    if np.any(is_new_key & ~is_new_hash):
        # Keys collide: their rows may alternate from slab to slab, so the keys themselves have to sort them.
        codes = [rows[name].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False) for name in names]
        times = [_int64(rows[name]) for name in _ORDER if name in rows.column_names]
        rows = rows.take(pa.array(np.lexsort((*reversed(times), *codes, _int64(rows["__key_hash"])))))
        is_new_hash, is_new_key = _changes(rows, ["__key_hash"]), _changes(rows, names)
    return rows, np.append(np.flatnonzero(is_new_hash | is_new_key), len(rows))


def _changes(rows: pa.Table, names: list[str]) -> npt.NDArray[np.bool_]:
    """Say for each row whether it differs from the one before in any of the columns; the first one does."""
    changes = np.ones(len(rows), dtype=bool)
    if len(rows) > 1:
        pairs = ((rows[name].slice(1), rows[name].slice(0, len(rows) - 1)) for name in names)
        changes[1:] = np.logical_or.reduce([pc.not_equal(one, other).to_numpy() for one, other in pairs])
    return changes


def _find_groups(rows: pa.Table, groups: Integers, asked: _Asked, names: list[str]) -> Integers:
    """Return the group of each key asked for, `_ABSENT` where there is none."""
    starts = groups[:-1]
    hashes = _int64(rows["__key_hash"])[starts]
    candidate = np.searchsorted(hashes, asked.hashes, "left")
    found = np.full(len(candidate), _ABSENT, dtype=np.int64)
    pending = np.arange(len(candidate))
    while len(pending):
        pending = pending[candidate[pending] < len(starts)]
        pending = pending[hashes[candidate[pending]] == asked.hashes[pending]]
        if not len(pending):
            break
        stored, wanted = pa.array(starts[candidate[pending]]), pa.array(pending)
        pairs = zip((rows[name].take(stored) for name in names), (key.take(wanted) for key in asked.keys), strict=True)
        is_same = np.logical_and.reduce([pc.equal(one, other).to_numpy() for one, other in pairs])
        found[pending[is_same]] = candidate[pending[is_same]]
        # What differs has met a colliding key: the next group of the same hash may be the one.
        pending = pending[~is_same]
        candidate[pending] += 1
    return found


def _last_visible(visible: Integers, groups: Integers, group: Integers, times: Integers) -> Integers:
    """Return for each row asked for the last one of its group with `visible <= time` (T2), searching in all groups at once."""
    bounds = np.append(groups, groups[-1])  # an absent group, -1, is the empty one at the end
    low, high = bounds[group].copy(), bounds[np.where(group == _ABSENT, _ABSENT, group + 1)]
    first = low.copy()
    searching = np.flatnonzero(low < high)
    while len(searching):
        middle = (low[searching] + high[searching]) >> 1
        is_visible = visible[middle] <= times[searching]
        low[searching] = np.where(is_visible, middle + 1, low[searching])
        high[searching] = np.where(is_visible, high[searching], middle)
        searching = searching[low[searching] < high[searching]]
    return np.where(low > first, low - 1, _ABSENT)


def _running_latest(rows: pa.Table, groups: Integers) -> Integers:
    """Return for each row the greatest by `(event, created, seq)` among it and those before it in its group."""
    number = np.repeat(np.arange(len(groups) - 1), np.diff(groups))
    order = np.lexsort((_int64(rows["__seq"]), _int64(rows["__created_time"]), _int64(rows[EVENT_TIME]), number))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    # The group is the first key of the order, so every rank of a group exceeds those of the groups before: no reset is needed.
    latest: Integers = order[np.maximum.accumulate(rank)]
    return latest


def _chosen(values: Integers, rows: Integers) -> Integers:
    """Return `values[rows]`, `_ABSENT` where the row is."""
    result = np.full(len(rows), _ABSENT, dtype=np.int64)
    present = rows != _ABSENT
    result[present] = values[rows[present]]
    return result


def _int64(column: pa.ChunkedArray) -> Integers:
    """Return a column of integers or times as int64; null is the least, which is where T4 sorts it."""
    integers = pc.fill_null(column.cast(pa.int64()), _LEAST) if column.null_count else column.cast(pa.int64())
    array: Integers = integers.to_numpy()
    return array
