"""Values of some keys as one side gives them, and where two sides disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.definitions import FeatureView
from featurestore.offline.asked import Asked
from featurestore.offline.point_in_time import values_at
from featurestore.offline.tables import Snapshot
from featurestore.online.rows import NO_EVENT_TIME
from featurestore.parity.comparison import Bools, differing
from featurestore.parity.served import Served

__all__ = ["EVENT_TIME", "Disagreement", "Side", "disagreement", "offline_side", "online_side"]

EVENT_TIME = "event time"
"""Stands among the features for the event time of the row, which the TTL and the metadata of a lookup go by."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """Values of some keys, a row each: where `present` is false, the rest says nothing. Event times are microseconds."""

    present: Bools
    event_times: Integers
    features: pa.Table

    def take(self, places: Integers) -> Side:
        """Return some keys."""
        return Side(self.present[places], self.event_times[places], self.features.take(pa.array(places)))

    def replaced(self, places: Integers, other: Side) -> Side:
        """Return the same with some keys as the other side has them, in that order."""
        source = np.arange(len(self.present))
        source[places] = len(self.present) + np.arange(len(places))
        both = pa.concat_tables([self.features, other.features])
        present = np.concatenate([self.present, other.present])
        times = np.concatenate([self.event_times, other.event_times])
        return Side(present[source], times[source], both.take(pa.array(source)))


def offline_side(
    view: FeatureView, snapshot: Snapshot, keys: Sequence[pa.ChunkedArray], at: int, *, ttl: bool = True, threads: int = 1
) -> Side:
    """Return what a table gives for keys at an instant.

    Raises:
        OfflineStoreError: a file cannot be read.

    """
    asked = Asked.of(keys, np.full(len(keys[0]), at))
    found = values_at(view, snapshot, asked, view.feature_names, ttl=ttl, threads=threads)
    times = found.event_times.cast(pa.int64()).fill_null(NO_EVENT_TIME)
    return Side(found.present, np.asarray(times), found.features)


def online_side(found: Served, at: int, ttl: int | None) -> Side:
    """Return what serving gives at an instant, or with no TTL what is stored."""
    return Side(found.is_present(at, ttl), found.event_times, found.features)


@dataclass(frozen=True)
class Disagreement:
    """Where two sides disagree, shape (keys,) each: who is missing or extra on the first, and which features differ on both."""

    missing: Bools
    extra: Bools
    features: dict[str, Bools]

    @property
    def different(self) -> Bools:
        """Which keys have values on both sides that differ."""
        none = np.zeros(len(self.missing), dtype=bool)
        found: Bools = np.logical_or.reduce([none, *self.features.values()])
        return found

    @property
    def any(self) -> Bools:
        """Which keys differ in any way."""
        return self.missing | self.extra | self.different


def disagreement(view: FeatureView, one: Side, other: Side) -> Disagreement:
    """Compare two sides of a view."""
    both = one.present & other.present
    columns = {
        field.name: differing(one.features[field.name], other.features[field.name], field.type) & both for field in view.features
    }
    if not view.is_static:
        columns[EVENT_TIME] = (one.event_times != other.event_times) & both
    return Disagreement(~one.present & other.present, one.present & ~other.present, columns)
