"""The point-in-time rule: which row of a key is visible at a time. This docstring is its specification.

**T2** A row is visible at `t` if and only if its visible time is `<= t`.
**T4** The value at `t` is that of the key's visible row with the greatest `(event time, created time, seq)`, a null created time
first. With a TTL it is absent if `t - event time > ttl`; at equality it is still there.
**T6** A value of an aggregated view is there under the same condition; then it is that of its windows (`windows.py`).

Training evaluates this function at past times, the online load at the watermark, parity checks at any time: there is no other.

How it is computed. What is asked for and the table's rows are cut into the same buckets of key hashes (`buckets.py`). In a bucket
the rows of one key form a group, ordered by visible time. The visible rows of a group at `t` are a prefix, whose length is a binary
search (`timeline.py`). If visible time follows event time, the last row of the prefix is the answer; if not
(`visible_from="created_time"`), it is the prefix's greatest by `(event, created, seq)`, a running maximum of ranks. Only the rows
that are chosen are read in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.clock import duration_micros
from featurestore.definitions import FeatureView
from featurestore.offline.asked import Asked
from featurestore.offline.buckets import LEAST, Bucket, buckets, int64
from featurestore.offline.results import Each, Results
from featurestore.offline.tables import DataFile, Snapshot
from featurestore.offline.timeline import Ticks, Timeline
from featurestore.offline.windows import window_columns
from featurestore.types import Timestamp

__all__ = ["Values", "Wanted", "values_at", "values_of"]

_EVENT_TIME = "__event_time"
_ABSENT = -1

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Values:
    """The values of some (key, time) pairs, a row each. Where `present` is false all else is null.

    `event_times` are those of the rows that T4 chooses, all null where they were not asked for.
    """

    features: pa.Table
    event_times: pa.Array
    present: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a view: some features for each (key, time) asked for. `ttl=False` leaves expired values in."""

    view: FeatureView
    snapshot: Snapshot
    asked: Asked
    features: Sequence[str]
    ttl: bool = True
    event_times: bool = True


def values_at(
    view: FeatureView,
    snapshot: Snapshot,
    asked: Asked,
    features: Sequence[str],
    *,
    ttl: bool = True,
    event_times: bool = True,
    threads: int = 1,
) -> Values:
    """Return the view's values for each (key, time) asked for: one row each, in the same order.

    A null in a key gives absent values.

    Raises:
        OfflineStoreError: a file of the snapshot cannot be read, or a sum exceeds int64.

    """
    [values] = values_of([Wanted(view, snapshot, asked, features, ttl, event_times)], threads=threads)
    return values


def values_of(wanted: Sequence[Wanted], *, threads: int) -> Iterator[Values]:
    """Return the same of several views, one after the other; the threads go on with the next while one is put together."""
    if threads == 1:
        for each in wanted:
            results = _results(each)
            for bucket, part in _buckets(each):
                _evaluate(each, results, bucket, part)
            yield _finished(each, results)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun = []
        for each in wanted:
            results = _results(each)
            begun.append((each, results, [pool.submit(_evaluate, each, results, *work) for work in _buckets(each)]))
        try:
            for each, results, futures in begun:
                for future in futures:
                    future.result()
                yield _finished(each, results, pool.map)
        finally:
            pool.shutdown(cancel_futures=True)


def _results(wanted: Wanted) -> Results:
    types = {field.name: field.type for field in wanted.view.features}
    times = {_EVENT_TIME: Timestamp} if wanted.event_times else {}
    return Results({name: types[name] for name in wanted.features} | times, wanted.asked)


def _finished(wanted: Wanted, results: Results, each: Each = map) -> Values:
    table = results.table(each)
    times = table[_EVENT_TIME].combine_chunks() if wanted.event_times else pa.nulls(len(table), Timestamp.arrow)
    return Values(table.select(list(wanted.features)), times, results.present)


def _lifetime(wanted: Wanted) -> int | None:
    return duration_micros(wanted.view.ttl) if wanted.ttl and wanted.view.ttl is not None else None


def _buckets(wanted: Wanted) -> Iterator[tuple[Bucket, Asked]]:
    files = _files(wanted.view, wanted.snapshot, wanted.asked, _lifetime(wanted))
    return buckets(wanted.view, files, wanted.asked)


def _evaluate(wanted: Wanted, results: Results, bucket: Bucket, part: Asked) -> None:
    with closing(bucket):
        found, columns = _found(wanted, bucket, part)
    if len(found):
        results.put(part.first + found, columns)


def _found(wanted: Wanted, bucket: Bucket, part: Asked) -> tuple[Integers, dict[str, pa.ChunkedArray]]:
    """Return which of the rows asked for have a value, and the columns of these."""
    view, lifetime, ticks = wanted.view, _lifetime(wanted), Ticks(wanted.view)
    taken = [] if view.aggregations else list(wanted.features)
    if wanted.event_times or lifetime is not None:
        taken.append(_EVENT_TIME)
    group, instants = bucket.find(part), ticks.of_asked(part.times)
    timeline = Timeline(bucket.groups, ticks.of_visible(bucket.times("__visible_time")))
    last = _last_visible(bucket, timeline, group, instants)
    found = np.flatnonzero(last != _ABSENT)
    rows = bucket.take(taken, last[found])
    if lifetime is not None:
        is_alive = part.times[found] - int64(rows[_EVENT_TIME]) <= lifetime
        rows, found = rows.filter(pa.array(is_alive)), found[is_alive]
    columns = {name: rows[name] for name in taken}
    if view.aggregations and len(found):
        columns |= window_columns(view, bucket, timeline, group[found], instants[found], wanted.features)
    return found, columns


def _files(view: FeatureView, snapshot: Snapshot, asked: Asked, lifetime: int | None) -> list[DataFile]:
    """Return the files that can hold what is visible at the times asked for, and not expired.

    A pushed event may lie after its arrival, and a view's SQL may move it anywhere, so nothing follows from when it was visible.
    """
    if not len(asked.times):
        return []
    first, last = int(asked.times.min()), int(asked.times.max())
    # An expired row makes an aggregated value absent as well, but a window may count older rows than the TTL lets stand.
    oldest = LEAST if lifetime is None or view.aggregations or view.is_pushed else first - lifetime
    return [file for file in snapshot.files if file.first <= last and file.last >= oldest]


def _last_visible(bucket: Bucket, timeline: Timeline, group: Integers, instants: Integers) -> Integers:
    """Return the position of the row that T4 chooses, `_ABSENT` where nothing is visible."""
    ends = timeline.until(group, instants)
    last = np.where(ends > np.append(bucket.groups, 0)[group], ends - 1, _ABSENT)
    if bucket.is_reordered and len(bucket.groups) > 1:
        last = np.where(last == _ABSENT, _ABSENT, _running_latest(bucket)[last])
    return last


def _running_latest(bucket: Bucket) -> Integers:
    """Return for each row the greatest by `(event, created, seq)` among it and those before it in its group."""
    number = np.repeat(np.arange(len(bucket.groups) - 1), np.diff(bucket.groups))
    order = np.lexsort((bucket.times("__seq"), bucket.times("__created_time"), bucket.times(_EVENT_TIME), number))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    # The group is the first key of the order, so every rank of a group exceeds those of the groups before: no reset is needed.
    latest: Integers = order[np.maximum.accumulate(rank)]
    return latest
