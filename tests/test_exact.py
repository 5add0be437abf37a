from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.offline.exact import ExactSums

EDGES = [0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, 1e-300, 0.1, -0.1, 1.0, 2.0**53, 1e16, -1e16, 1.7976931348623157e308]
finite = st.one_of(st.sampled_from(EDGES), st.floats(allow_nan=False, allow_infinity=False))
special = st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf]))
moderate = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, 1e16, -1e16]),
    st.floats(1e-100, 1e100),
    st.floats(-1e100, -1e-100),
)
integers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 2**63 - 1, -(2**63), 2**32, -(2**32)]))

LEAST, MOST = -(2**63), 2**63 - 1


def ranges(count: int) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
    """Return every range of so many values, empty ones and the whole included: as pairs, and as starts and ends."""
    pairs = [(start, end) for start in range(count + 1) for end in range(start, count + 1)]
    starts, ends = np.array(pairs, dtype=np.int64).T
    return pairs, starts, ends


def nearest(exact: Fraction) -> float:
    """Return the float next to a fraction; infinity beyond the largest."""
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def summed(values: Sequence[float]) -> float:
    """Return the sum, as fractions and the rules of IEEE 754 give it."""
    if not all(map(math.isfinite, values)):
        return sum(value for value in values if not math.isfinite(value))
    return nearest(sum(map(Fraction, values), Fraction(0)))


def same(one: float, other: float) -> bool:
    """Whether two floats are equal, NaN to NaN."""
    return one == other or (math.isnan(one) and math.isnan(other))


@settings(max_examples=300, deadline=None)
@given(st.lists(special, max_size=9))
def test_a_float_sum_is_the_float_next_to_the_true_one(values: list[float]) -> None:
    """Every range, over the whole range of doubles, sums to the rounded sum of fractions; NaN and infinities propagate."""
    pairs, starts, ends = ranges(len(values))

    found = ExactSums(np.array(values, dtype=np.float64)).sums(starts, ends)

    expected = [summed(values[start:end]) for start, end in pairs]
    assert all(map(same, found.tolist(), expected)), (pairs, found, expected)


def test_a_small_value_counts_beside_a_large_one() -> None:
    """1e16 that comes and goes leaves 1e-300 as it was, as in `math.fsum`; the smallest value decides a tie."""
    values = [1e16, 1e-300, -1e16, 2.0**53, 1.0, 5e-324]
    sums = ExactSums(np.array(values))

    assert sums.sums(np.array([0, 3, 3]), np.array([3, 5, 6])).tolist() == [
        math.fsum(values[:3]),
        math.fsum(values[3:5]),
        math.fsum(values[3:]),
    ]
    assert math.fsum(values[3:5]) != math.fsum(values[3:])


@pytest.mark.parametrize("values", [[], [0.0], [-0.0], [-0.0, -0.0], [1.5, -1.5]], ids=str)
def test_a_sum_of_nothing_is_positive_zero(values: list[float]) -> None:
    """No values, zeros of either sign and values that cancel sum to 0.0, never to -0.0."""
    found = ExactSums(np.array(values, dtype=np.float64)).sums(np.array([0]), np.array([len(values)]))

    assert found.view(np.int64).tolist() == [0]


@settings(max_examples=300, deadline=None)
@given(st.lists(integers, max_size=9))
def test_an_integer_sum_is_exact_or_flagged(values: list[int]) -> None:
    """Every range of int64 sums as Python's integers do, and the flag is set exactly where int64 cannot hold the sum."""
    pairs, starts, ends = ranges(len(values))

    found, overflows = ExactSums(np.array(values, dtype=np.int64)).integers(starts, ends)

    expected = [sum(values[start:end]) for start, end in pairs]
    assert overflows.tolist() == [not LEAST <= value <= MOST for value in expected]
    held = ~overflows
    assert found[held].tolist() == [value for value in expected if LEAST <= value <= MOST]


@settings(max_examples=200, deadline=None)
@given(st.lists(integers, max_size=9))
def test_integers_as_floats_are_rounded_once(values: list[int]) -> None:
    """What a mean divides is the float next to the true sum, beyond int64 too."""
    pairs, starts, ends = ranges(len(values))

    found = ExactSums(np.array(values, dtype=np.int64)).sums(starts, ends)

    assert found.tolist() == [float(sum(values[start:end])) for start, end in pairs]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(moderate, max_size=8), st.lists(integers, max_size=8)))
def test_a_deviation_is_that_of_the_fractions(values: list[float] | list[int]) -> None:
    """Every range has the sample deviation that fractions give, within three roundings; NaN below two values."""
    pairs, starts, ends = ranges(len(values))
    kind = np.int64 if values and isinstance(values[0], int) else np.float64

    found = ExactSums(np.array(values, dtype=kind)).deviations(starts, ends).tolist()

    for (start, end), deviation in zip(pairs, found, strict=True):
        exact, count = list(map(Fraction, values[start:end])), end - start
        if count < 2:
            assert math.isnan(deviation)
            continue
        mean = sum(exact, Fraction(0)) / count
        variance = sum(((value - mean) ** 2 for value in exact), Fraction(0)) / (count - 1)
        assert abs(deviation - math.sqrt(variance)) <= 3 * math.ulp(math.sqrt(variance)), (start, end)


@given(finite.filter(lambda value: abs(value) < 1e150), st.integers(2, 50))
@settings(deadline=None)
def test_equal_values_do_not_deviate(value: float, count: int) -> None:
    """The deviation of one value many times is 0.0 exactly: nothing cancels."""
    assert ExactSums(np.full(count, value)).deviations(np.array([0]), np.array([count])).tolist() == [0.0]


@settings(max_examples=200, deadline=None)
@given(st.lists(special, max_size=5), st.lists(special, max_size=5), st.lists(special, max_size=5))
def test_values_outside_a_range_never_matter(before: list[float], inside: list[float], after: list[float]) -> None:
    """Sum and deviation of a range have the same bits alone and amid any other values, NaN and infinities too."""
    alone, amid = ExactSums(np.array(inside, dtype=np.float64)), ExactSums(np.array(before + inside + after, dtype=np.float64))
    whole = np.array([0]), np.array([len(inside)])
    part = whole[0] + len(before), whole[1] + len(before)

    for method in ("sums", "deviations"):
        one, other = getattr(alone, method)(*whole), getattr(amid, method)(*part)
        assert np.array_equal(one, other, equal_nan=True), method
