"""Declared against measured availability: how old rows were when they could be read online, going by the record of loads.

A view declares that a row is readable at most `refresh + delay` after it is known. Where it takes longer, the declaration is
optimistic, and training, which believes it, sees rows earlier than serving did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.clock import duration_micros
from featurestore.definitions import FeatureView
from featurestore.offline.arrivals import LEVELS
from featurestore.registry.state import LoadRecord

__all__ = ["Availability", "availability"]

_LOADS = 200
"""How many of the last loads count: what was long ago says little of today."""


@dataclass(frozen=True)
class Availability:
    """The declared bound, and the measured quantiles of so many `rows`, in microseconds; quantiles are at most so much."""

    declared: int
    p50: int
    p99: int
    rows: int

    @property
    def is_optimistic(self) -> bool:
        """Whether one row in a hundred is readable later than declared."""
        return self.p99 > self.declared


def availability(view: FeatureView, loads: Sequence[LoadRecord]) -> Availability | None:
    """Return what the last loads of a version measured; none if they brought no row that was made visible since it exists."""
    ages: list[tuple[int, float]] = []
    for load in [each for each in loads if each.rows][-_LOADS:]:
        shares = [level - below for level, below in zip(LEVELS, (0.0, *LEVELS), strict=False)]
        ages += [(age, share * load.rows) for age, share in zip(load.ages, shares, strict=True)]
    if not ages:
        return None
    declared = duration_micros(view.refresh) + duration_micros(view.source.delay)
    rows = sum(load.rows for load in [each for each in loads if each.rows][-_LOADS:])
    return Availability(declared, _quantile(ages, 0.5), _quantile(ages, 0.99), rows)


def _quantile(ages: Sequence[tuple[int, float]], level: float) -> int:
    """Return the least age that so large a part of all rows does not exceed."""
    ordered = sorted(ages)
    wanted = level * sum(weight for _, weight in ordered) * (1 - 1e-9)
    below = 0.0
    for age, weight in ordered:
        below += weight
        if below >= wanted:
            return age
    return ordered[-1][0]
