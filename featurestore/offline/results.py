"""Gathering answers: buckets give them in the order of hashes, whoever asked wants them in the order asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.definitions import Field
from featurestore.types import ValueType

__all__ = ["Results"]

Integers = npt.NDArray[np.int64]
Column = Any
"""An Arrow array or chunked array."""

_NO_TIME = -(2**63)
_STORAGE = {"Date": pa.int32(), "Timestamp": pa.int64()}


class Results:
    """Columns of `count` rows, which are filled by many threads, each with rows of its own; what nobody fills is null."""

    def __init__(self, fields: Sequence[Field], count: int) -> None:
        self._columns = {field.name: (_Fixed if field.type.is_fixed_width else _Variable)(field.type, count) for field in fields}
        self._times = np.full(count, _NO_TIME)
        self.present = np.zeros(count, dtype=bool)

    def put(self, rows: Integers, columns: Mapping[str, Column], event_times: Integers) -> None:
        """Set rows, by number, in all columns; event times are microseconds, the least int64 for none."""
        self.present[rows] = True
        self._times[rows] = event_times
        for name, column in self._columns.items():
            column.put(rows, columns[name])

    def table(self) -> pa.Table:
        """Return the columns as a table."""
        return pa.table({name: column.finish() for name, column in self._columns.items()})

    def event_times(self) -> pa.Array:
        """Return the event times, null where there is none."""
        return pa.array(self._times, mask=self._times == _NO_TIME).cast(pa.timestamp("us", "UTC"))


class _Fixed:
    """A column of fixed width: one array, written in place."""

    def __init__(self, type_: ValueType, count: int) -> None:
        self._type = type_
        self._storage = _STORAGE.get(type_.name, type_.arrow)
        self._values: npt.NDArray[Any] = np.zeros(count, dtype=type_.numpy)
        self._valid = np.zeros(count, dtype=bool)

    def put(self, rows: Integers, column: Column) -> None:
        # Of the declared type first: a file's own may be narrower or of another unit, and would be misread.
        stored = column.cast(self._type.arrow).cast(self._storage)
        if stored.null_count:
            self._valid[rows] = np.asarray(pc.is_valid(stored))
            stored = pc.fill_null(stored, pa.scalar(0).cast(stored.type))
        else:
            self._valid[rows] = True
        self._values[rows] = np.asarray(stored)

    def finish(self) -> pa.Array:
        mask = None if self._valid.all() else ~self._valid
        return pa.array(self._values, type=self._storage, mask=mask).cast(self._type.arrow)


class _Variable:
    """A column of variable width: the parts as they came, and where each row has gone."""

    def __init__(self, type_: ValueType, count: int) -> None:
        self._type = type_
        self._count = count
        self._parts: list[tuple[Integers, Column]] = []

    def put(self, rows: Integers, column: Column) -> None:
        self._parts.append((rows, column.cast(self._type.arrow)))

    def finish(self) -> Column:
        places, filled = np.full(self._count, -1, dtype=np.int64), 0
        for rows, column in self._parts:
            places[rows] = np.arange(filled, filled + len(column))
            filled += len(column)
        chunks = [
            chunk for _, column in self._parts for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])
        ]
        return pa.chunked_array(chunks, self._type.arrow).take(pa.array(places, mask=places < 0))
