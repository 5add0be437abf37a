"""Gathering answers: buckets give them in the order of hashes, whoever asked wants them in the order asked."""

from __future__ import annotations

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
Each = Callable[..., Iterable[Any]]

_ABSENT = -1


class Results:
    """Columns of what is asked for, in parts as threads bring them; what nobody brings is null.

    A part says which rows it has, by their places in the order of hashes. All are put together at the end, in the order asked for.
    """

    def __init__(self, types: Mapping[str, ValueType], asked: Asked) -> None:
        self._types = {name: type_.arrow for name, type_ in types.items()}
        self._asked = asked
        self._parts: list[tuple[Integers, list[pa.ChunkedArray]]] = []

    def put(self, rows: Integers, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> None:
        """Add rows, by their places in the order of hashes."""
        # Of the declared types: a file's own may be narrower or of another unit.
        cast = [columns[name].cast(type_) for name, type_ in self._types.items()]
        self._parts.append((rows, [pa.chunked_array([column]) if isinstance(column, pa.Array) else column for column in cast]))

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which rows are there, in the order asked for; to be asked for once all are."""
        return self._places != _ABSENT

    def table(self, each: Each = map) -> pa.Table:
        """Return the columns as a table, in the order asked for, once; `each` is `map`, or that of a pool of threads."""
        present = self.present
        validity = None if present.all() else pa.array(present).buffers()[1]
        places = pa.array(self._places, mask=None if validity is None else ~present)
        somewhere = pa.array(np.maximum(self._places, 0))

        def finished(number: int, type_: pa.DataType) -> pa.Array | pa.ChunkedArray:
            column = pa.chunked_array([chunk for _, columns in self._parts for chunk in columns[number].chunks], type_)
            if validity is None or column.null_count or not len(column) or not pa.types.is_primitive(type_):
                return pc.take(column, places, boundscheck=False)
            # Arrow takes twice as long where a place is null, so what is absent is marked afterwards.
            taken = pc.take(pa.concat_arrays(column.chunks), somewhere, boundscheck=False)
            return pa.Array.from_buffers(type_, len(taken), [validity, taken.buffers()[1]])

        columns = each(finished, range(len(self._types)), self._types.values())
        table = pa.table(dict(zip(self._types, columns, strict=True)))
        self._parts.clear()
        return table

    @cached_property
    def _places(self) -> Integers:
        """Where each row asked for is among the rows of all parts, one after the other."""
        # One more place than there are rows: rows with a null in their key are looked for there, where nothing is.
        places = np.full(len(self._asked.rows) + 1, _ABSENT)
        filled = 0
        for rows, _ in self._parts:
            places[rows] = np.arange(filled, filled := filled + len(rows))
        return places[self._asked.places]
