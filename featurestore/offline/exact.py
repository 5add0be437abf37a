"""Exact sums over any range of a sequence, each in constant time: what makes float aggregates pure (T6).

A float is a whole number of some power of two, so it is a fixed-point number: **digits** to the base 2**32, the digit at place `k`
counting units of 2**(32 k). Adding digits is adding integers, which is exact in any order, so a prefix sum gives every range. The
sum of a range is rounded once, to nearest, ties to even: it is the float next to the true sum (`math.fsum`), whatever lies outside
the range and however the work was cut. Only places that the values reach are kept.

The sample variance is `(n sum(x^2) - sum(x)^2) / (n (n - 1))`; its numerator is computed in digits too, so nothing cancels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ExactSums"]

_BITS = 32
_MASK = (1 << _BITS) - 1
_LARGEST_STEP = 1000
_LARGE = 2.0**900
_NEAR = 26  # places at most, whose digits are within the bounds that _LARGE sets
_FAR = 38  # places, an even number, by which numbers beyond them are moved to where floats are precise

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Digits = dict[int, Integers]
"""Numbers by the place of their digits: an array for each place, all of one shape."""


class ExactSums:
    """Sums over ranges `[start, end)` of int64 or float64 values, shape (values,)."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._special: list[Integers] = []
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            self._special = [_prefix(kind) for kind in (np.isnan(values), values == np.inf, values == -np.inf)]
            values = np.where(np.isfinite(values), values, 0.0)
        is_float = values.dtype.kind == "f"
        self._magnitudes = _float_digits(np.abs(values)) if is_float else _integer_digits(values)
        is_negative = values < 0
        signed = {place: np.where(is_negative, -digit, digit) for place, digit in self._magnitudes.items()}
        self._sums = {place: _prefix(digit) for place, digit in signed.items()}
        self._squares: Digits | None = None

    def integers(self, starts: Integers, ends: Integers) -> tuple[Integers, Booleans]:
        """Return the sums of int64 values, and which of them int64 cannot hold."""
        digits = _carried(_between(self._sums, starts, ends))
        low, high, top = digits[0], digits[1], digits[2]
        return (high << _BITS) | low, top != -(high >> (_BITS - 1))

    def sums(self, starts: Integers, ends: Integers) -> Floats:
        """Return the sums, each the float nearest to the true one; NaN and infinities propagate as in IEEE 754."""
        sums = _rounded(_carried(_between(self._sums, starts, ends)), len(starts))
        if not self._special:
            return sums
        is_nan, is_up, is_down = (prefix[ends] > prefix[starts] for prefix in self._special)
        infinite = np.where(is_up, np.inf, np.where(is_down, -np.inf, sums))
        return np.where(is_nan | (is_up & is_down), np.nan, infinite)

    def deviations(self, starts: Integers, ends: Integers) -> Floats:
        """Return the sample standard deviations, NaN where there are not two values or where one is NaN or infinite."""
        if self._squares is None:
            self._squares = {place: _prefix(digit) for place, digit in _carried(_squared(self._magnitudes)).items()}
        counts = ends - starts
        _, sums = _absolute(_carried(_between(self._sums, starts, ends)))
        squares = _carried(_between(self._squares, starts, ends))
        numerator = {place: digit * counts for place, digit in squares.items()}
        for place, digit in _squared(sums).items():
            numerator[place] = numerator[place] - digit if place in numerator else -digit
        deviations = _roots(_carried(numerator), counts * (counts - 1.0))
        for prefix in self._special:
            deviations[prefix[ends] > prefix[starts]] = np.nan
        return deviations


def _prefix(values: npt.NDArray[np.integer | np.bool_]) -> Integers:
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _between(prefixes: Digits, starts: Integers, ends: Integers) -> Digits:
    return {place: prefix[ends] - prefix[starts] for place, prefix in prefixes.items()}


def _integer_digits(values: Integers) -> Digits:
    magnitudes = np.abs(values).view(np.uint64)  # that of the least int64 is right as an unsigned number
    return {0: (magnitudes & _MASK).astype(np.int64), 1: (magnitudes >> _BITS).astype(np.int64)}


def _float_digits(magnitudes: Floats) -> Digits:
    digits: Digits = {}
    rest = magnitudes
    while peak := float(rest.max(initial=0.0)):
        place = (math.frexp(peak)[1] - 1) // _BITS
        part = np.floor(_scaled(rest, -_BITS * place))
        rest = rest - _scaled(part, _BITS * place)
        digits[place] = part.astype(np.int64)
    return digits


def _scaled(values: Floats, exponent: int) -> Floats:
    """Return `values * 2**exponent`, in steps as one factor alone can lie beyond the floats."""
    with np.errstate(over="ignore"):
        while exponent:
            step = max(-_LARGEST_STEP, min(_LARGEST_STEP, exponent))
            values, exponent = values * math.ldexp(1.0, step), exponent - step
    return values


def _carried(digits: Digits) -> Digits:
    """Return the same numbers with every digit in [0, 2**32), but for the sign in one more place at the top."""
    carried: Digits = {}
    if digits:
        carry = np.zeros_like(next(iter(digits.values())))
        for place in range(min(digits), max(digits) + 1):
            total = digits[place] + carry if place in digits else carry
            carried[place] = total & _MASK
            carry = total >> _BITS
        carried[max(digits) + 1] = carry
    return carried


def _absolute(carried: Digits) -> tuple[Booleans, Digits]:
    """Return which numbers are negative, and the magnitudes of all."""
    is_negative = carried[max(carried)] < 0 if carried else np.zeros(0, dtype=bool)
    if not is_negative.any():
        return is_negative, carried
    return is_negative, _carried({place: np.where(is_negative, -digit, digit) for place, digit in carried.items()})


def _squared(magnitudes: Digits) -> Digits:
    """Return the squares of numbers whose digits are in [0, 2**32), not carried."""
    squares: Digits = {}
    places = sorted(magnitudes)
    for index, one in enumerate(places):
        for other in places[index:]:
            product = magnitudes[one].astype(np.uint64) * magnitudes[other].astype(np.uint64)
            times = 1 if one == other else 2
            for place, part in ((one + other, product & _MASK), (one + other + 1, product >> _BITS)):
                squares[place] = squares.get(place, 0) + times * part.astype(np.int64)
    return squares


def _roots(numerators: Digits, denominators: Floats) -> Floats:
    """Return the roots of quotients, also of those that are beyond the floats while their root is not."""
    plain = _rounded(numerators, len(denominators))
    with np.errstate(invalid="ignore", divide="ignore"):
        roots = np.sqrt(plain / denominators)
        for shift, is_far in ((-_FAR, plain > _LARGE), (_FAR, plain < 1 / _LARGE)):
            if is_far.any() and any(place * -shift > _FAR * _NEAR for place in numerators):
                moved = _rounded({place + shift: digit for place, digit in numerators.items()}, len(denominators))
                roots = np.where(is_far, _scaled(np.sqrt(moved / denominators), -shift * _BITS // 2), roots)
    return roots


def _rounded(carried: Digits, count: int) -> Floats:
    """Return numbers as floats, rounded to nearest, ties to even."""
    high, low, is_cut = np.zeros(count), np.zeros(count), np.zeros(count, dtype=bool)
    is_negative, magnitudes = _absolute(carried)
    with np.errstate(invalid="ignore", over="ignore"):
        for place in sorted(magnitudes, reverse=True):
            digit = magnitudes[place]
            value = _scaled(digit.astype(np.float64), _BITS * place)
            is_exact = low == 0
            total = high + value
            is_cut |= ~is_exact & (digit != 0)
            low = np.where(is_exact, value - (total - high), low)
            high = np.where(is_exact, total, high)
        # A tie was rounded to even before all digits were seen: what lies beyond it decides.
        above = high + 2 * low
        high = np.where(is_cut & (low > 0) & (above - high == 2 * low), above, high)
    return np.where(is_negative, -high, high) if len(is_negative) else high
