"""Reading tables bucket by bucket: a bucket is a range of key hashes, and in every file a range of row groups.

The row groups that what is asked for can touch are cut into buckets of so many rows that the work on one stays in the processor's
caches, and a few of them in memory. A bucket's rows are sorted by key hash and visible time (files are slabs of visible time, one
after the other, so a stable sort by hash does it), and the rows of one key are a **group**.

Keys that differ may share a hash. So groups are made of equal *keys*, and what is found by hash is compared with the key asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.definitions import FeatureView
from featurestore.errors import OfflineStoreError
from featurestore.offline.asked import Asked, bounds
from featurestore.offline.keys import encoded
from featurestore.offline.tables import DataFile, Footer, table_schema
from featurestore.types import Bytes, String

__all__ = ["LEAST", "Bucket", "buckets", "int64"]

_ABSENT = -1
LEAST = -(2**63)
_ROWS = 262_144
_ROWS_OF_A_FILE = 65_536
_MOST_ROWS = 2_097_152
_ROWS_AT_ONCE = 65_536  # read of a bucket: memory that is used again at once is not asked of the system
_ORDER = ("__visible_time", "__event_time", "__created_time", "__seq")

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Some row groups of a file, by number."""

    file: DataFile
    footer: Footer
    groups: Integers

    def only(self, is_kept: npt.NDArray[np.bool_]) -> Part:
        """Return some of them."""
        return Part(self.file, self.footer, self.groups[is_kept])

    @property
    def rows(self) -> Integers:
        """How many rows each of them has."""
        return self.footer.rows[self.groups]

    @property
    def least(self) -> Integers:
        """The least key hash of each of them."""
        return self.footer.least[self.groups]

    @property
    def greatest(self) -> Integers:
        """The greatest key hash of each of them."""
        return self.footer.greatest[self.groups]


def buckets(view: FeatureView, files: Sequence[DataFile], asked: Asked) -> Iterator[tuple[Bucket, Asked]]:
    """Cut what is asked for, and the row groups of files that it can touch, into buckets; unread so far, in the order of hashes."""
    parts = [part for file in files if len((part := _touched(file, asked.hashes)).groups)]
    cuts = _cuts(parts)
    firsts = np.searchsorted(asked.hashes, cuts)
    lasts = np.append(firsts[1:], len(asked.hashes))
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        if first < last:
            own = asked.between(first, last)
            low, high = own.hashes[0], own.hashes[-1]
            held = (part.only((part.least <= high) & (part.greatest >= low)) for part in parts)
            yield Bucket(view, [part for part in held if len(part.groups)]), own


def _touched(file: DataFile, hashes: Integers) -> Part:
    whole = Part(file, footer := file.footer(), np.arange(len(footer.rows)))
    return whole.only(np.searchsorted(hashes, whole.least, "left") < np.searchsorted(hashes, whole.greatest, "right"))


def _cuts(parts: Sequence[Part]) -> Integers:
    """Return the first hash of each bucket; the more files, the more rows, since each file gives some that are not wanted."""
    target = min(_MOST_ROWS, max(_ROWS, _ROWS_OF_A_FILE * len(parts)))
    if not parts:
        return np.array([LEAST])
    least = np.concatenate([part.least for part in parts])
    order = np.argsort(least, kind="stable")
    number = np.cumsum(np.concatenate([part.rows for part in parts])[order]) // target
    begins = np.flatnonzero(np.diff(number)) + 1
    return np.unique(np.concatenate([[LEAST], least[order][begins]]))


class Bucket:
    """The rows of a view's table in a range of key hashes. Columns are read when they are needed; to be closed then.

    Positions count the rows in sorted order, in which group `i` is `[groups[i], groups[i + 1])`.
    """

    def __init__(self, view: FeatureView, parts: Sequence[Part]) -> None:
        self._view = view
        self._parts = parts
        self._names = [key.name for key in view.join_keys]
        self.is_reordered = view.source.visible_from != "event_time"
        none = np.zeros(0, np.int64)
        self._groups = np.concatenate([none, *(part.groups for part in parts)])
        self._part_of = np.repeat(np.arange(len(parts)), [len(part.groups) for part in parts])
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate([none, *(part.rows for part in parts)]))])
        self._opened: dict[int, pq.ParquetFile] = {}

    def close(self) -> None:
        """Close the files."""
        while self._opened:
            self._opened.popitem()[1].close()

    @cached_property
    def _index(self) -> tuple[pa.Table, Integers | None, Integers, Integers]:
        """Return the columns that say where a row belongs, the order that sorts them if they are not, hashes, and groups."""
        times = _ORDER if self.is_reordered else _ORDER[:1]
        rows = self._read([*self._names, "__key_hash", *times], np.arange(len(self._groups)))
        hashes, codes = int64(rows["__key_hash"]), [encoded(rows[name]).codes for name in self._names]
        order = None
        if np.any(hashes[1:] < hashes[:-1]):
            order = np.argsort(hashes, kind="stable")
            hashes, codes = hashes[order], [column[order] for column in codes]
        groups = bounds(len(hashes), codes)
        starts = hashes[groups[:-1]]
        if np.any(starts[1:] == starts[:-1]):
            # Keys collide: their rows may alternate from slab to slab, so the keys themselves have to sort them.
            known = [int64(rows[name]) if order is None else int64(rows[name])[order] for name in times]
            again = np.lexsort((*reversed(known), *codes, hashes))
            order = again if order is None else order[again]
            hashes, codes = hashes[again], [column[again] for column in codes]
            groups = bounds(len(hashes), codes)
        return rows, order, hashes, groups

    @property
    def groups(self) -> Integers:
        """The bounds of the groups."""
        return self._index[3]

    def keys(self) -> list[pa.ChunkedArray]:
        """Return the key columns of the groups."""
        rows, order, _, groups = self._index
        firsts = pa.array(groups[:-1] if order is None else order[groups[:-1]])
        return [rows[key.name].take(firsts).cast(key.type.arrow) for key in self._view.join_keys]

    def times(self, name: str) -> Integers:
        """Return a column of the index in sorted order, as integers; null is the least, which is where T4 sorts it."""
        rows, order, _, _ = self._index
        values = int64(rows[name])
        return values if order is None else values[order]

    def find(self, asked: Asked) -> Integers:
        """Return the group of each row asked for, `_ABSENT` where there is none."""
        _, _, hashes, groups = self._index
        starts, keys = hashes[groups[:-1]], self.keys()
        wanted = asked.hashes[asked.runs[:-1]]
        candidate = np.searchsorted(starts, wanted, "left")
        found = np.full(len(wanted), _ABSENT, dtype=np.int64)
        pending = np.arange(len(wanted))
        while len(pending):
            pending = pending[candidate[pending] < len(starts)]
            pending = pending[starts[candidate[pending]] == wanted[pending]]
            if not len(pending):
                break
            stored, given = pa.array(candidate[pending]), pa.array(pending)
            pairs = ((key.take(stored), other.take(given)) for key, other in zip(keys, asked.keys, strict=True))
            is_same = np.logical_and.reduce([pc.equal(one, other).to_numpy() for one, other in pairs])
            found[pending[is_same]] = candidate[pending[is_same]]
            # What differs has met a colliding key: the next group of the same hash may be the one.
            pending = pending[~is_same]
            candidate[pending] += 1
        return np.repeat(found, np.diff(asked.runs))

    def take(self, columns: Sequence[str], positions: Integers) -> pa.Table:
        """Return some rows of some columns; only the row groups that hold them are read, a few at a time."""
        if not columns or not len(positions):
            return table_schema(self._view).empty_table().select(list(columns))
        _, order, _, _ = self._index
        places = positions if order is None else order[positions]
        again = None
        if np.any(places[1:] < places[:-1]):  # as where files hold rows of the same keys
            by_place = np.argsort(places)
            again, places = np.empty_like(by_place), places[by_place]
            again[by_place] = np.arange(len(by_place))
        counts = np.diff(np.searchsorted(places, self._starts))
        used = np.flatnonzero(counts)
        lengths, ends = np.diff(self._starts)[used], np.cumsum(counts[used])
        offsets = np.cumsum(lengths) - lengths
        # Where the rows are if nothing but the row groups used is read.
        places = places + np.repeat(offsets - self._starts[used], counts[used])
        cuts = np.flatnonzero(np.diff(offsets // _ROWS_AT_ONCE, prepend=-1))
        taken = []
        for first, last in itertools.pairwise([*cuts.tolist(), len(used)]):
            rows = places[ends[first] - counts[used[first]] : ends[last - 1]] - offsets[first]
            taken.append(pc.take(self._read(columns, used[first:last]), pa.array(rows), boundscheck=False))
        found = pa.concat_tables(taken, promote_options="permissive")
        return found if again is None else found.take(pa.array(again))

    def _read(self, columns: Sequence[str], used: Integers) -> pa.Table:
        """Read columns of the row groups used, counted over all parts."""
        wanted = list(dict.fromkeys(columns))
        if not len(used):
            return table_schema(self._view).empty_table().select(wanted)
        begins = np.flatnonzero(np.diff(self._part_of[used], prepend=-1))
        tables = [
            self._read_groups(int(self._part_of[used[first]]), self._groups[used[first:last]].tolist(), wanted)
            for first, last in itertools.pairwise([*begins.tolist(), len(used)])
        ]
        return pa.concat_tables(tables, promote_options="permissive")

    def _read_groups(self, number: int, groups: list[int], columns: list[str]) -> pa.Table:
        part = self._parts[number]
        path = part.file.path
        try:
            if number not in self._opened:
                # The keys of a table repeat: texts are compared and hashed once for each, not for each row.
                texts = [key.name for key in self._view.join_keys if key.type in (String, Bytes)]
                # To buffer ahead hands each row group over to another thread and back, which takes longer than to read it.
                self._opened[number] = pq.ParquetFile(path, metadata=part.footer.metadata, read_dictionary=texts, pre_buffer=False)
            table = self._opened[number].read_row_groups(groups, columns=columns, use_threads=False)
            is_changed = part.file.stamp() != part.footer.stamp
        except (OSError, pa.ArrowException) as reason:
            raise OfflineStoreError(f"cannot read {path}: {reason}") from reason
        if is_changed:
            raise OfflineStoreError(f"{path} was written anew while it was read, as by an erasure; read again")
        return table


def int64(column: pa.ChunkedArray) -> Integers:
    """Return a column of integers or times as int64; null is the least, which is where T4 sorts it."""
    integers = pc.fill_null(column.cast(pa.int64()), LEAST) if column.null_count else column.cast(pa.int64())
    array: Integers = integers.to_numpy()
    return array
