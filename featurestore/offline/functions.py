"""Aggregate functions over ranges of one column: every range in a time that does not depend on its length (`windows.py`, T6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.aggregations import Aggregation
from featurestore.offline.exact import ExactSums
from featurestore.types import Float32, Float64, Int32, Int64, ValueType

__all__ = ["Column", "extremes"]

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Range = tuple[Integers, Integers]
Pick = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.int64]]

_NAN_BITS = 0x7FF8000000000000
_SIGNLESS = 0x7FFFFFFFFFFFFFFF


class Column:
    """A column's values in order, nulls left out. `bounds` are where the groups begin, and the number of rows at the end."""

    def __init__(self, values: pa.Array, type_: ValueType, bounds: Integers) -> None:
        self._type = type_
        self._places: Integers | None = None
        if values.null_count:
            is_valid = np.asarray(pc.is_valid(values))
            self._places = np.concatenate([[0], np.cumsum(is_valid)])
            values, bounds = values.filter(pa.array(is_valid)), self._places[bounds]
        self._values = values
        self._bounds = bounds
        self._sums: dict[tuple[int, int], Floats] = {}

    def evaluate(self, aggregation: Aggregation, windows: Sequence[Range]) -> Iterator[pa.Array]:
        """Give an aggregation's values, window after window: one for each range of rows `[start, end)` of a window.

        Raises:
            OverflowError: a sum of integers exceeds int64.

        """
        places = self._places
        ranges = [(starts, ends) if places is None else (places[starts], places[ends]) for starts, ends in windows]
        function = aggregation.function
        if function in ("min", "max"):
            keys, restore = self._sortable
            found = extremes(keys, ranges, np.minimum if function == "min" else np.maximum)
            yield from (restore(each, starts == ends) for each, (starts, ends) in zip(found, ranges, strict=True))
            return
        given = () if aggregation.n is None else (aggregation.n,)
        for (start, end), (starts, ends) in zip(windows, ranges, strict=True):
            if function == "mean" or (function == "sum" and not self._is_integer):
                window = (id(start), id(end))  # the caller holds both as long as it asks
                if window not in self._sums:
                    self._sums[window] = self._exact.sums(starts, ends)
                sums = self._sums[window]
                yield pa.array(sums) if function == "sum" else _means(sums, ends - starts)
            else:
                yield getattr(self, f"_{function}")(starts, ends, *given)

    def _count(self, starts: Integers, ends: Integers) -> pa.Array:
        return pa.array(ends - starts)

    def _sum(self, starts: Integers, ends: Integers) -> pa.Array:
        sums, is_beyond = self._exact.integers(starts, ends)
        if is_beyond.any():
            raise OverflowError
        return pa.array(sums)

    def _stddev(self, starts: Integers, ends: Integers) -> pa.Array:
        return pa.array(self._exact.deviations(starts, ends), mask=ends - starts < 2)  # noqa: PLR2004 (the sample's needs two)

    def _first(self, starts: Integers, ends: Integers) -> pa.Array:
        return self._values.take(pa.array(starts, mask=starts == ends))

    def _last(self, starts: Integers, ends: Integers) -> pa.Array:
        return self._values.take(pa.array(ends - 1, mask=starts == ends))

    def _last_n(self, starts: Integers, ends: Integers, n: int) -> pa.Array:
        firsts = np.maximum(starts, ends - n)
        lengths = ends - firsts
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(firsts - offsets[:-1], lengths) + np.arange(offsets[-1])
        items = self._values.take(pa.array(places))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, mask=pa.array(lengths == 0))

    def _count_distinct(self, starts: Integers, ends: Integers) -> pa.Array:
        first = np.repeat(self._bounds[:-1], np.diff(self._bounds))
        # Counted from the group's start; 0 for a value that is new in its group.
        before = np.maximum(_previous(self._identities) + 1 - first, 0)
        own = np.append(first, 0)[np.where(starts < ends, starts, -1)]
        return pa.array(_count_at_most(before, starts - own, starts, ends))

    @cached_property
    def _exact(self) -> ExactSums:
        kind = np.int64 if self._is_integer else np.float64
        return ExactSums(np.asarray(self._values).astype(kind, copy=False))

    @cached_property
    def _sortable(self) -> tuple[Integers, Callable[[Integers, npt.NDArray[np.bool_]], pa.Array]]:
        """Return integers that order as the values do, and what turns chosen ones back into values."""
        if self._type in (Float32, Float64):
            return _sortable_floats(self._floats), lambda keys, mask: pa.array(_floats_again(keys), mask=mask)
        if self._is_text:
            encoded = self._values.dictionary_encode()
            ranks = pc.rank(encoded.dictionary, tiebreaker="first").to_numpy().astype(np.int64) - 1
            texts = encoded.dictionary.take(pc.sort_indices(encoded.dictionary))
            return ranks[np.asarray(encoded.indices)], lambda keys, mask: texts.take(pa.array(keys, mask=mask))
        return self._integers, lambda keys, mask: pa.array(keys, mask=mask).cast(self._integer_type).cast(self._type.arrow)

    @property
    def _identities(self) -> Integers:
        """Integers that are equal where the values are."""
        if self._type in (Float32, Float64):
            return _sortable_floats(self._floats + 0.0)  # -0.0 becomes 0.0
        if self._is_text:
            return np.asarray(self._values.dictionary_encode().indices).astype(np.int64)
        return self._integers

    @property
    def _is_integer(self) -> bool:
        return self._type in (Int32, Int64)

    @property
    def _is_text(self) -> bool:
        return not self._type.is_fixed_width

    @property
    def _floats(self) -> npt.NDArray[np.float64]:
        return np.asarray(self._values).astype(np.float64, copy=False)

    @property
    def _integer_type(self) -> pa.DataType:
        return pa.int32() if self._type.name in ("Date", "Int32") else pa.int64()

    @property
    def _integers(self) -> Integers:
        return np.asarray(self._values.cast(self._integer_type)).astype(np.int64, copy=False)


def _means(sums: Floats, counts: Integers) -> pa.Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return pa.array(sums / counts, mask=counts == 0)


def extremes(values: Integers, ranges: Sequence[Range], pick: Pick) -> list[Integers]:
    """Return the least or greatest value of many ranges at once, as `pick` chooses of two; 0 for an empty one.

    Two overlapping ranges of a power of two cover any range, so one table for each power is enough, which all of them share.
    """
    found = [np.zeros(len(starts), dtype=np.int64) for starts, _ in ranges]
    powers = [np.frexp((ends - starts).astype(np.float64))[1] - 1 for starts, ends in ranges]
    table = values
    for power in range(max((int(each.max(initial=-1)) for each in powers), default=-1) + 1):
        length = 1 << power
        for result, own, (starts, ends) in zip(found, powers, ranges, strict=True):
            rows = np.flatnonzero(own == power)
            result[rows] = pick(table[starts[rows]], table[ends[rows] - length])
        table = pick(table[:-length], table[length:])
    return found


def _sortable_floats(values: npt.NDArray[np.float64]) -> Integers:
    """Return integers that order as IEEE 754's total order does, all NaN being one and above all."""
    bits = np.where(np.isnan(values), np.int64(_NAN_BITS), values.view(np.int64))
    return bits ^ ((bits >> 63) & _SIGNLESS)


def _floats_again(keys: Integers) -> npt.NDArray[np.float64]:
    return (keys ^ ((keys >> 63) & _SIGNLESS)).view(np.float64)


def _previous(identities: Integers) -> Integers:
    """Return where each value stood before, -1 for nowhere."""
    order = np.argsort(identities, kind="stable")
    previous = np.full(len(order), -1, dtype=np.int64)
    is_again = identities[order[1:]] == identities[order[:-1]]
    previous[order[1:][is_again]] = order[:-1][is_again]
    return previous


def _count_at_most(values: Integers, limits: Integers, starts: Integers, ends: Integers) -> Integers:
    """Count in each range the values that are at most its limit, bit by bit from the highest: a wavelet matrix.

    Claude, Navarro, Ordóñez: The wavelet matrix (2015).
    """
    bits = int(values.max(initial=0)).bit_length()
    below = np.minimum(limits, (1 << bits) - 1) + 1
    counts = np.where(below >> bits, ends - starts, 0)
    for bit in reversed(range(bits)):
        is_set = (values >> bit) & 1
        zeros = np.concatenate([[0], np.cumsum(1 - is_set)])
        is_above = (below >> bit) & 1
        counts += np.where((is_above == 1) & (below >> bits == 0), zeros[ends] - zeros[starts], 0)
        starts, ends = (np.where(is_above, each - zeros[each] + zeros[-1], zeros[each]) for each in (starts, ends))
        values = np.concatenate([values[is_set == 0], values[is_set == 1]])
    return counts
