"""What a lookup in one view found: a status for each row asked for, and features that are decoded when they are first wanted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.online.rows import HEADER_BYTES, NO_EVENT_TIME, RowCodec, is_deleted
from featurestore.online.status import Status

__all__ = ["OnlineRows"]


class OnlineRows:
    """The answer to a lookup in one view: a row for each key asked for, null where the status is not PRESENT.

    Headers are checked at once; OnlineStoreError where features are read that contradict themselves.
    """

    def __init__(self, codec: RowCodec, ttl: int | None, values: Sequence[bytes | None], now: int | Sequence[int]) -> None:
        """Take the stored values, the TTL in microseconds, and the present, or that of each row."""
        is_each_whole = codec.is_each_whole(values)
        is_found = [
            is_each_whole or (value is not None and (len(value) > HEADER_BYTES or not is_deleted(value))) for value in values
        ]
        self._is_whole = all(is_found)
        self._is_found = is_found
        stored = values if self._is_whole else [value for value, is_there in zip(values, is_found, strict=True) if is_there]
        self._batch = codec.open(cast("Sequence[bytes]", stored), is_checked=is_each_whole)
        self.status_list = [Status.PRESENT] * len(values)
        if not self._is_whole:
            self.status_list = [Status.PRESENT if is_there else Status.NOT_FOUND for is_there in is_found]
        if ttl is not None:
            self._hide_old([now - ttl] * len(values) if isinstance(now, int) else [each - ttl for each in now])

    def _hide_old(self, oldest: Sequence[int]) -> None:
        places = (place for place, is_there in enumerate(self._is_found) if is_there)
        for place, time in zip(places, self._batch.event_times, strict=True):
            if time < oldest[place]:
                self.status_list[place] = Status.OUTSIDE_MAX_AGE

    @property
    def statuses(self) -> npt.NDArray[np.uint8]:
        """The status of each row, shape (rows,)."""
        return np.array(self.status_list, dtype=np.uint8)

    @cached_property
    def features(self) -> list[pa.Array]:
        """The features as columns of their declared Arrow types."""
        columns = self._batch.columns()
        if not any(self.status_list):
            return columns
        places = self._places([status == Status.PRESENT for status in self.status_list])
        return [column.take(places) for column in columns]

    @cached_property
    def plain(self) -> list[list[Any]]:
        """The features as lists by column; dates are days and timestamps microseconds since 1970."""
        columns = self._batch.plain()
        if not any(self.status_list):
            return columns
        filled = []
        for column in columns:
            values = iter(column)
            filled.append([next(values) if is_there else None for is_there in self._is_found])
        for place, status in enumerate(self.status_list):
            if status == Status.OUTSIDE_MAX_AGE:
                for column in filled:
                    column[place] = None
        return filled

    def arrays(self) -> list[npt.NDArray[Any]] | None:
        """Return the features as arrays, none unless all are numbers or booleans, finite and not null."""
        return None if any(self.status_list) else self._batch.arrays()

    @cached_property
    def event_times(self) -> pa.Array:
        """The event time of each row that was found, those too old included; null in static views."""
        times = np.array(self._batch.event_times, dtype=np.int64)
        timed = pa.array(times, mask=times == NO_EVENT_TIME).cast(pa.timestamp("us", "UTC"))
        return timed if self._is_whole else timed.take(self._places(self._is_found))

    def _places(self, is_wanted: Sequence[bool]) -> pa.Array:
        """Return where each row stands among those that are stored, null for those that are not wanted."""
        return pa.array(np.cumsum(self._is_found) - 1, mask=~np.array(is_wanted, dtype=bool))
