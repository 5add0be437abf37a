"""What a lookup in one view found: a status for each row asked for, and features that are decoded when they are first wanted."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.online.rows import NO_EVENT_TIME, RowCodec, is_deleted

__all__ = ["OnlineRows", "Status"]


class Status(IntEnum):
    """What became of one row of a lookup."""

    PRESENT = 0
    NOT_FOUND = 1
    OUTSIDE_MAX_AGE = 2


class OnlineRows:
    """The answer to a lookup in one view: a row for each key asked for, null where the status is not PRESENT.

    Headers are checked at once; OnlineStoreError where features are read that contradict themselves.
    """

    def __init__(self, codec: RowCodec, ttl: int | None, values: Sequence[bytes | None], now: int) -> None:
        """Take the stored values, and the TTL and the present in microseconds."""
        self._codec = codec
        rows = [None if value is None or is_deleted(value) else value for value in values]
        stored = [row for row in rows if row is not None]
        self._times = codec.event_times(stored)
        times = iter(self._times)
        self.status_list = (
            [
                Status.NOT_FOUND if row is None else Status.OUTSIDE_MAX_AGE if now - next(times) > ttl else Status.PRESENT
                for row in rows
            ]
            if ttl is not None
            else [Status.NOT_FOUND if row is None else Status.PRESENT for row in rows]
        )
        self._stored = stored
        self._rows = rows

    @cached_property
    def _present(self) -> list[bytes]:
        return [row for row, status in zip(self._rows, self.status_list, strict=True) if row is not None and not status]

    @property
    def _is_whole(self) -> bool:
        return len(self._present) == len(self._rows)

    @property
    def statuses(self) -> npt.NDArray[np.uint8]:
        """The status of each row, shape (rows,)."""
        return np.array(self.status_list, dtype=np.uint8)

    @cached_property
    def features(self) -> list[pa.Array]:
        """The features as columns of their declared Arrow types."""
        columns, _ = self._codec.decode(self._present)
        if self._is_whole:
            return columns
        places = _places([status == Status.PRESENT for status in self.status_list])
        return [column.take(places) for column in columns]

    @cached_property
    def plain(self) -> list[list[Any]]:
        """The features as lists by column; dates are days and timestamps microseconds since 1970."""
        columns = self._codec.decode_plain(self._present)
        if self._is_whole:
            return columns
        if not self._present:
            return [[None] * len(self._rows) for _ in columns]
        filled = []
        for column in columns:
            values = iter(column)
            filled.append([next(values) if status == Status.PRESENT else None for status in self.status_list])
        return filled

    @cached_property
    def event_times(self) -> pa.Array:
        """The event time of each row that was found, those too old included; null in static views."""
        times = np.array(self._times, dtype=np.int64)
        timed = pa.array(times, mask=times == NO_EVENT_TIME).cast(pa.timestamp("us", "UTC"))
        return timed if len(self._stored) == len(self._rows) else timed.take(_places([row is not None for row in self._rows]))


def _places(is_there: Sequence[bool]) -> pa.Array:
    """Return where each row stands among those that are there, null for the others."""
    there = np.array(is_there, dtype=bool)
    return pa.array(np.cumsum(there) - 1, mask=~there)
