"""What a lookup in one view found: a status for each row asked for, and features that are decoded when they are first wanted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.online.rows import NO_EVENT_TIME, Placed, RowCodec, is_deleted
from featurestore.online.status import Status

__all__ = ["OnlineRows"]


class OnlineRows:
    """The answer to a lookup in one view: a row for each key asked for, null where the status is not PRESENT.

    Headers are checked at once; OnlineStoreError where features are read that contradict themselves.
    """

    def __init__(self, codec: RowCodec, ttl: int | None, values: Sequence[bytes | None], now: int | Sequence[int]) -> None:
        """Take the stored values, the TTL in microseconds, and the present, or that of each row."""
        stored = [value for value in values if value is not None] if None in values else cast("Sequence[bytes]", values)
        is_each_whole = codec.is_each_whole(stored)
        if not is_each_whole:
            stored = [value for value in stored if not is_deleted(value)]
        self._codec, self._values, self._is_each_whole = codec, values, is_each_whole
        self._batch = codec.open(stored, is_checked=is_each_whole)
        self._is_empty, self._is_whole = not stored, len(stored) == len(values)
        self._old = None if ttl is None else self._too_old(ttl, now)

    def _too_old(self, ttl: int, now: int | Sequence[int]) -> list[bool] | None:
        """Return which of the rows that are stored are older than the TTL, none if none is."""
        times = self._batch.event_times
        if isinstance(now, int):
            oldest = now - ttl
            return None if min(times, default=oldest) >= oldest else [time < oldest for time in times]
        old = [time < each - ttl for time, each in zip(times, itertools.compress(now, self._is_found), strict=True)]
        return old if True in old else None

    @cached_property
    def _is_found(self) -> list[bool]:
        if self._is_each_whole:
            return [value is not None for value in self._values]
        return [value is not None and not is_deleted(value) for value in self._values]

    @cached_property
    def status_list(self) -> list[Status]:
        """The status of each row."""
        if self._is_whole and self._old is None:
            return [Status.PRESENT] * len(self._values)
        present, outside = Status.PRESENT, Status.OUTSIDE_MAX_AGE
        old = itertools.repeat(None) if self._old is None else iter(self._old)
        return [(outside if next(old) else present) if is_there else Status.NOT_FOUND for is_there in self._is_found]

    @property
    def statuses(self) -> npt.NDArray[np.uint8]:
        """The status of each row, shape (rows,)."""
        return np.array(self.status_list, dtype=np.uint8)

    @cached_property
    def _places(self) -> Placed:
        """Where each row stands among those that are stored, and which of them are."""
        found = np.array(self._is_found, dtype=bool)
        return np.maximum(np.cumsum(found) - 1, 0), found

    @cached_property
    def _placed(self) -> Placed | None:
        """Where each row stands among those that are stored, and which are null; none if all are there."""
        if self._is_whole and self._old is None:
            return None
        places, found = self._places
        absent = ~found
        if self._old is not None:
            absent[found] = self._old
        return places, absent

    @cached_property
    def features(self) -> list[pa.Array]:
        """The features as columns of their declared Arrow types."""
        if self._is_empty:
            return [pa.nulls(len(self._values), field.type.arrow) for field in self._codec.fields]
        if self._placed is None or self._codec.is_fixed_width:
            return self._batch.columns(self._placed)
        places, absent = self._placed
        return [column.take(pa.array(places, mask=absent)) for column in self._batch.columns()]

    @cached_property
    def plain(self) -> list[list[Any]]:
        """The features as lists by column; dates are days and timestamps microseconds since 1970."""
        columns = self._batch.plain()
        if self._old is not None:
            columns = [[None if is_old else value for value, is_old in zip(column, self._old, strict=True)] for column in columns]
        if self._is_whole:
            return columns
        filled = []
        for column in columns:
            values = iter(column)
            filled.append([next(values) if is_there else None for is_there in self._is_found])
        return filled

    def arrays(self) -> list[npt.NDArray[Any] | list[Any]] | None:
        """Return the features as `RowBatch.arrays` does, NaN or None where a row is null; lists where none is stored."""
        if self._is_empty and self._codec.is_numeric:
            return [[None] * len(self._values) for _ in self._codec.fields]
        return self._batch.arrays(self._placed) if self._codec.has_arrays(len(self._values)) else None

    @cached_property
    def event_times(self) -> pa.Array:
        """The event time of each row that was found, those too old included; null in static views."""
        times = np.array(self._batch.event_times, dtype=np.int64)
        timed = pa.array(times, mask=times == NO_EVENT_TIME).cast(pa.timestamp("us", "UTC"))
        if self._is_whole:
            return timed
        places, found = self._places
        return timed.take(pa.array(places, mask=~found))
