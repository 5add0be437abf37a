"""Window aggregations, T6. This docstring is their specification.

With `T = floor(t - delay, refresh)`, without refresh `T = t - delay`, the value at `t` is the function over the entity's events
with `T - w < event time <= T` that were known at `T`, in T4's order. Nulls are ignored; a window without values gives 0 for
`count`, `count_distinct` and `sum`, null for the rest; `stddev` is the sample's and null for one value. NaN is a value that sorts
above all and equals itself; `sum`, `mean` and `stddev` propagate it. Of floats, `sum` is the float next to the true sum, `mean`
that divided by the number of values, `stddev` as in `exact.py`. `min` and `max` put -0.0 below 0.0, `count_distinct` takes them
for one.

Where visible time follows event time, a window is a range of a group's rows, and its ends are binary searches. Every function
(`functions.py`) answers a range in a time that does not depend on its length, so a hot key costs what any other does.

Under `visible_from="created_time"` a range can hold rows that were not known yet. Ranges that do are written out row by row,
without them, behind the others; the same functions answer.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.aggregations import Aggregation
from featurestore.clock import duration_micros, duration_text
from featurestore.definitions import FeatureView
from featurestore.errors import OfflineStoreError
from featurestore.offline.buckets import Bucket
from featurestore.offline.functions import Column, extremes
from featurestore.offline.timeline import Ticks, Timeline

__all__ = ["window_columns"]

_MOST_WRITTEN = 4_000_000

Integers = npt.NDArray[np.int64]


def window_columns(
    view: FeatureView, bucket: Bucket, timeline: Timeline, group: Integers, instants: Integers, features: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """Return some features of an aggregated view for rows that are present: their groups, and the ticks of their times.

    Raises:
        OfflineStoreError: a sum of integers exceeds int64.

    """
    wanted = [
        (aggregation, window, name)
        for aggregation in view.aggregations
        for window, name in zip(aggregation.windows, aggregation.feature_names, strict=True)
        if name in features
    ]
    windows = sorted({window for _, window, _ in wanted})
    if bucket.is_reordered:
        search = _EventSearch(view, bucket)
        parts = [search.ranges(group[rows], instants[rows], windows) for rows in search.cut(group, instants, windows)]
    else:
        parts = [_ranges(Ticks(view), timeline, bucket.groups, group, instants, windows)]
    columns = [_evaluated(view, bucket, wanted, ranges) for ranges in parts]
    return {name: pa.chunked_array([each[name] for each in columns]) for _, _, name in wanted}


@dataclass(frozen=True)
class _Ranges:
    """Where windows lie: positions in a bucket, one after the other, and for each window the ranges `[start, end)` of them.

    `bounds` cut the positions into stretches that hold one key each.
    """

    positions: Integers
    bounds: Integers
    of: dict[dt.timedelta, tuple[Integers, Integers]]


def _evaluated(
    view: FeatureView, bucket: Bucket, wanted: Sequence[tuple[Aggregation, dt.timedelta, str]], ranges: _Ranges
) -> dict[str, pa.Array]:
    inputs = {field.name: field for aggregation, _, _ in wanted if (field := aggregation.input) is not None}
    found: dict[str, pa.Array] = {}
    for aggregation, window, name in wanted:
        if aggregation.input is None:
            starts, ends = ranges.of[window]
            found[name] = pa.array(ends - starts)
    for field in inputs.values():
        # One column after the other, so that never more than one is in memory.
        values = bucket.take([field.name], ranges.positions)[field.name].cast(field.type.arrow).combine_chunks()
        array = pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) and values.num_chunks else values
        column = Column(array if isinstance(array, pa.Array) else pa.nulls(0, field.type.arrow), field.type, ranges.bounds)
        for aggregation, group in itertools.groupby(wanted, key=itemgetter(0)):
            if aggregation.input != field:
                continue
            own = [(window, name) for _, window, name in group]
            values = column.evaluate(aggregation, [ranges.of[window] for window, _ in own])
            for window, name in own:
                try:
                    found[name] = next(values)
                except OverflowError:
                    raise OfflineStoreError(
                        f"view {view.name!r}: {aggregation.part!r} over {duration_text(window)} exceeds int64; sum floats instead: "
                        f'sql="CAST({aggregation.column} AS DOUBLE)"'
                    ) from None
    return found


def _ranges(
    ticks: Ticks, timeline: Timeline, groups: Integers, group: Integers, instants: Integers, windows: Sequence[dt.timedelta]
) -> _Ranges:
    """Return the ranges where visible time follows event time, over the rows that the longest window covers."""
    ends = timeline.until(group, instants)
    starts = {window: timeline.until(group, instants - duration_micros(window) // ticks.length) for window in windows}
    size = int(groups[-1]) + 1
    is_covered = np.cumsum(np.bincount(starts[windows[-1]], minlength=size) - np.bincount(ends, minlength=size))[:-1] > 0
    place = np.concatenate([[0], np.cumsum(is_covered)])
    of = {window: (place[each], place[ends]) for window, each in starts.items()}
    return _Ranges(np.flatnonzero(is_covered), place[groups], of)


class _EventSearch:
    """Where windows lie in a bucket whose visible times do not follow the event times."""

    def __init__(self, view: FeatureView, bucket: Bucket) -> None:
        self._ticks = Ticks(view)
        self._groups = bucket.groups
        number = np.repeat(np.arange(len(bucket.groups) - 1), np.diff(bucket.groups))
        events = bucket.times("__event_time")
        self._order = np.lexsort((bucket.times("__seq"), bucket.times("__created_time"), events, number))
        self._known = self._ticks.of_visible(bucket.times("__visible_time"))[self._order]
        self._timeline = Timeline(bucket.groups, self._ticks.of_events(events[self._order]))

    def _range(self, group: Integers, instants: Integers, window: dt.timedelta) -> tuple[Integers, Integers]:
        length = duration_micros(window) // self._ticks.length
        return self._timeline.until(group, instants - length), self._timeline.until(group, instants)

    def cut(self, group: Integers, instants: Integers, windows: Sequence[dt.timedelta]) -> list[slice]:
        """Cut the rows so that what has to be written out for each part stays within memory."""
        lengths = np.zeros(len(group), dtype=np.int64)
        for window in windows:
            starts, ends = self._range(group, instants, window)
            lengths += ends - starts
        number = np.cumsum(lengths) // _MOST_WRITTEN
        cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(group)]
        return [slice(first, last) for first, last in itertools.pairwise(cuts)]

    def ranges(self, group: Integers, instants: Integers, windows: Sequence[dt.timedelta]) -> _Ranges:
        """Return the ranges over all rows in the order of events, and behind them those without rows not known yet."""
        sequence, bounds, length = [np.arange(len(self._order))], [self._groups[:-1]], len(self._order)
        of: dict[dt.timedelta, tuple[Integers, Integers]] = {}
        for window in windows:
            starts, ends = self._range(group, instants, window)
            rows = np.flatnonzero((ends > starts) & (extremes(self._known, [(starts, ends)], np.maximum)[0] > instants))
            lengths = (ends - starts)[rows]
            offsets = np.cumsum(lengths) - lengths
            places = np.repeat(starts[rows] - offsets, lengths) + np.arange(int(lengths.sum()))
            owner = np.repeat(np.arange(len(rows)), lengths)
            is_known = self._known[places] <= instants[rows][owner]
            kept = np.bincount(owner[is_known], minlength=len(rows))
            firsts = length + np.cumsum(kept) - kept
            starts[rows], ends[rows] = firsts, firsts + kept
            sequence.append(places[is_known])
            bounds.append(firsts)
            length += int(kept.sum())
            of[window] = (starts, ends)
        # Groups and ranges that are empty share a bound with the next, which does no harm.
        return _Ranges(self._order[np.concatenate(sequence)], np.append(np.concatenate(bounds), length), of)
