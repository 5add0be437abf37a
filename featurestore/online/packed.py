"""Many rows one after the other, before they are cut into commands."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.online.tails import Bytes1D, Integers, lengths_of, positions

__all__ = ["PackedRows", "joined"]


@dataclass(frozen=True)
class PackedRows:
    """Rows one after the other: their bytes, and the length of each."""

    content: Bytes1D
    lengths: Integers

    @property
    def matrix(self) -> npt.NDArray[np.uint8] | None:
        """The bytes as one line for each row, shape (rows, length); none where lengths differ."""
        if not len(self.lengths):
            return None
        length = int(self.lengths[0])
        return self.content.reshape(-1, length) if (self.lengths == length).all() else None

    def take(self, places: Integers) -> PackedRows:
        """Return some of the rows."""
        lengths = self.lengths[places]
        if (matrix := self.matrix) is not None:
            return PackedRows(matrix[places].reshape(-1), lengths)
        starts = np.cumsum(self.lengths) - self.lengths
        return PackedRows(self.content[positions(starts[places], lengths)], lengths)

    def to_list(self) -> list[bytes]:
        """Return each row."""
        blob = self.content.tobytes()
        bounds = itertools.pairwise([0, *np.cumsum(self.lengths).tolist()])
        return [blob[first:last] for first, last in bounds]


def joined(records: npt.NDArray[Any], tail_lengths: Integers, tails: Sequence[pa.Array]) -> PackedRows:
    """Return rows out of what all have, shape (rows,), and the values of each tail."""
    count, width = len(records), records.dtype.itemsize
    fixed = records.view(np.uint8).reshape(count, width)
    lengths = tail_lengths + width
    if not tails:
        return PackedRows(fixed.reshape(-1), lengths)
    content = np.empty(int(lengths.sum()), dtype=np.uint8)
    sizes = [lengths_of(values) for values in tails]
    if count and all((each == each[0]).all() for each in sizes):  # as in embeddings: one line for each row
        lines = content.reshape(count, -1)
        lines[:, :width] = fixed
        first = width
        for size, values in zip(sizes, tails, strict=True):
            lines[:, first : first + size[0]] = _content(values).reshape(count, -1)
            first += int(size[0])
        return PackedRows(content, lengths)
    starts = np.cumsum(lengths) - lengths
    content[starts[:, None] + np.arange(width)] = fixed
    begins = starts + width
    for size, values in zip(sizes, tails, strict=True):
        content[positions(begins, size)] = _content(values)
        begins = begins + size
    return PackedRows(content, lengths)


def _content(values: pa.Array) -> Bytes1D:
    """Return the bytes of all values of a large binary column without nulls."""
    _, offsets, content = values.buffers()
    bounds = np.frombuffer(offsets, "<i8")[values.offset : values.offset + len(values) + 1]
    joined = np.frombuffer(content, np.uint8) if content is not None else np.zeros(0, np.uint8)
    return joined[bounds[0] : bounds[-1]]
