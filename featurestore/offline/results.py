"""Gathering answers: buckets give them in the order of hashes, whoever asked wants them in the order asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.offline.asked import Asked
from featurestore.types import ValueType

__all__ = ["Each", "Results"]

Integers = npt.NDArray[np.int64]
Places = Integers | slice
Column = Any
"""An Arrow array or chunked array."""

Each = Callable[..., Iterable[Any]]

_STORAGE = {"Date": pa.int32(), "Timestamp": pa.int64()}


class Results:
    """Columns of what is asked for, filled by many threads, each with rows of its own; what nobody fills is null.

    They are filled in the order of hashes, so that each thread writes into a place of its own, and brought into the order asked for
    once, at the end.
    """

    def __init__(self, types: Mapping[str, ValueType], asked: Asked) -> None:
        # One more place than there are rows: rows with a null in their key are brought from there, where nothing is.
        places = len(asked.rows) + 1
        self._columns = {name: (_Fixed if type_.is_fixed_width else _Variable)(type_, places) for name, type_ in types.items()}
        self._present = np.zeros(places, dtype=bool)
        self._order = asked.places

    def put(self, rows: Places, columns: Mapping[str, Column]) -> None:
        """Set rows, by their places in the order of hashes."""
        self._present[rows] = True
        for name, column in self._columns.items():
            column.put(rows, columns[name])

    @cached_property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which rows were set, in the order asked for; to be asked for once all are."""
        return self._present[self._order]

    def table(self, each: Each = map) -> pa.Table:
        """Return the columns as a table, in the order asked for; `each` is `map`, or that of a pool of threads."""
        absent = ~self.present
        mask = absent if absent.any() else None
        columns = each(lambda column: column.finish(self._order, mask), self._columns.values())
        return pa.table(dict(zip(self._columns, columns, strict=True)))


class _Fixed:
    """A column of fixed width: one array, written in place."""

    def __init__(self, type_: ValueType, places: int) -> None:
        self._type = type_
        self._storage = _STORAGE.get(type_.name, type_.arrow)
        self._values: npt.NDArray[Any] = np.zeros(places, dtype=type_.numpy)
        self._nulls: npt.NDArray[np.bool_] | None = None  # made by the first part that has some
        self._making = threading.Lock()

    def put(self, rows: Places, column: Column) -> None:
        # Of the declared type first: a file's own may be narrower or of another unit, and would be misread.
        stored = column.cast(self._type.arrow).cast(self._storage)
        if stored.null_count:
            with self._making:
                if self._nulls is None:
                    self._nulls = np.zeros(len(self._values), dtype=bool)
            self._nulls[rows] = np.asarray(pc.is_null(stored))
            stored = pc.fill_null(stored, pa.scalar(0).cast(stored.type))
        self._values[rows] = np.asarray(stored)

    def finish(self, order: Integers, absent: npt.NDArray[np.bool_] | None) -> pa.Array:
        mask = absent
        if self._nulls is not None:
            mask = self._nulls[order] if absent is None else self._nulls[order] | absent
        return pa.array(self._values.take(order), type=self._storage, mask=mask).cast(self._type.arrow)


class _Variable:
    """A column of variable width: the parts as they came, and where each row has gone."""

    def __init__(self, type_: ValueType, places: int) -> None:
        self._type, self._places = type_, places
        self._parts: list[tuple[Places, Column]] = []

    def put(self, rows: Places, column: Column) -> None:
        self._parts.append((rows, column.cast(self._type.arrow)))

    def finish(self, order: Integers, _: npt.NDArray[np.bool_] | None) -> Column:
        places, filled = np.full(self._places, -1, dtype=np.int64), 0
        for rows, column in self._parts:
            places[rows] = np.arange(filled, filled + len(column))
            filled += len(column)
        chunked = [column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column]) for _, column in self._parts]
        chunks = [chunk for column in chunked for chunk in column.chunks]
        wanted = places[order]
        return pa.chunked_array(chunks, self._type.arrow).take(pa.array(wanted, mask=wanted < 0))
