"""Searching in time: how many rows of a group lie at or before an instant, for many groups and instants at once.

Rows are counted in **ticks** of the view's refresh after its delay (microseconds without refresh): what is known up to a refresh
boundary becomes visible together, so T2's inequality is one of whole ticks. Group and tick become one integer, in which the rows
are sorted, and one binary search over it answers for all groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featurestore.clock import duration_micros
from featurestore.definitions import FeatureView

__all__ = ["Ticks", "Timeline"]

Integers = npt.NDArray[np.int64]
_LARGEST = 2**62


class Ticks:
    """How a view counts time."""

    def __init__(self, view: FeatureView) -> None:
        self._delay = duration_micros(view.source.delay)
        self.length = duration_micros(view.refresh) or 1

    def of_visible(self, visible: Integers) -> Integers:
        """Return the ticks of visible times `ceil(known, refresh) + delay`, which are whole."""
        return (visible - self._delay) // self.length

    def of_events(self, events: Integers) -> Integers:
        """Return the ticks from which event times lie in a window: rounded up."""
        return -(-events // self.length)

    def of_asked(self, times: Integers) -> Integers:
        """Return the ticks `floor(t - delay, refresh)` of times that are asked for."""
        return (times - self._delay) // self.length


class Timeline:
    """Rows of groups in the order of their ticks; group `i` is `[groups[i], groups[i + 1])`."""

    def __init__(self, groups: Integers, ticks: Integers) -> None:
        self._groups = groups
        self._ranks: Integers | None = None
        self._first = int(ticks.min()) if len(ticks) else 0
        span = int(ticks.max()) - self._first if len(ticks) else 0
        if (span + 2) * len(groups) > _LARGEST:
            # Too wide for one integer: ranks stand for the ticks.
            self._ranks = np.unique(ticks)
            ticks, self._first, span = np.searchsorted(self._ranks, ticks), 0, len(self._ranks) - 1
        self._width = span + 2
        self._sorted = np.repeat(np.arange(len(groups) - 1) * self._width + (1 - self._first), np.diff(groups))
        self._sorted += ticks

    def until(self, group: Integers, ticks: Integers) -> Integers:
        """Return the position after the last row of each group with a tick at or before that given.

        That is the group's start where there is none, and 0 for a group that is absent (-1).
        """
        if self._ranks is not None:
            ticks = np.searchsorted(self._ranks, ticks, "right") - 1
        offset = np.clip(ticks - self._first + 1, 0, self._width - 1)
        found = np.searchsorted(self._sorted, group * self._width + offset, "right")
        return np.where(group < 0, 0, found)
