"""One view at the times of requests: as the log has it, and as training sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import duration_micros
from featurestore.definitions import FeatureView
from featurestore.offline.asked import Asked
from featurestore.offline.point_in_time import values_at
from featurestore.offline.tables import Snapshot
from featurestore.online.rows import NO_EVENT_TIME
from featurestore.online.status import Status
from featurestore.parity.comparison import Bools, differing
from featurestore.serving_log.layout import LoggedLookup, event_time_column, status_column

__all__ = ["EVENT_TIME", "STATUS", "Moments", "differences", "logged", "trained"]

EVENT_TIME, STATUS = "event time", "status"
"""Stand among the features for what a lookup says of the row besides."""

_COLLECTED_AFTER = 24 * 3_600_000_000
"""How long after its TTL a row may be collected at the earliest, in microseconds."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Moments:
    """Values of a view, a row for each request: statuses, event times in microseconds (of what is there), features."""

    statuses: npt.NDArray[np.int8]
    event_times: Integers
    features: pa.Table

    @property
    def present(self) -> Bools:
        """Which rows have a value."""
        is_present: Bools = self.statuses == Status.PRESENT
        return is_present

    def take(self, places: Integers) -> Moments:
        """Return some rows."""
        return Moments(self.statuses[places], self.event_times[places], self.features.take(pa.array(places)))


def logged(table: pa.Table, lookup: LoggedLookup) -> Moments:
    """Return what the log says of a view."""
    names = pa.array([status.name for status in Status])
    statuses = pc.index_in(table[status_column(lookup.name)], names)
    times = table[event_time_column(lookup.name)].cast(pa.int64()).fill_null(NO_EVENT_TIME)
    columns = {name: f"{lookup.name}__{name}" for name in lookup.features}  # what is only an input of others is not logged
    features = pa.table({name: table[column] for name, column in columns.items() if column in table.column_names})
    return Moments(np.asarray(statuses).astype(np.int8), np.asarray(times), features)


def trained(
    view: FeatureView,
    snapshot: Snapshot,
    keys: Sequence[pa.ChunkedArray],
    features: Sequence[str],
    times: Integers,
    *,
    until: Integers | None = None,
    threads: int = 1,
) -> Moments:
    """Return what a table gives for keys at their times; with `until` only what is visible by then, the TTL counted to the times.

    Raises:
        OfflineStoreError: a file cannot be read.

    """
    asked = Asked.of(keys, times if until is None else np.minimum(until, times))
    found = values_at(view, snapshot, asked, features, ttl=False, threads=threads)
    events = np.asarray(found.event_times.cast(pa.int64()).fill_null(NO_EVENT_TIME))
    statuses = np.where(found.present, Status.PRESENT, Status.NOT_FOUND).astype(np.int8)
    if view.ttl is not None:
        is_expired = found.present & (times - np.where(found.present, events, times) > duration_micros(view.ttl))
        statuses[is_expired] = Status.OUTSIDE_MAX_AGE
    return Moments(statuses, events, found.features)


def differences(view: FeatureView, served: Moments, wanted: Moments, times: Integers) -> dict[str, Bools]:
    """Return which rows differ, shape (rows,), by feature; in the status where a value is missing on one side."""
    both = served.present & wanted.present
    types = {field.name: field.type for field in view.features}
    found = {
        name: differing(served.features[name], wanted.features[name], types[name]) & both for name in served.features.column_names
    }
    if not view.is_static:
        found[EVENT_TIME] = (served.event_times != wanted.event_times) & both
    is_collected = np.zeros(len(times), dtype=bool)
    if view.ttl is not None:
        age = times - np.where(wanted.statuses == Status.OUTSIDE_MAX_AGE, wanted.event_times, times)
        is_collected = (served.statuses == Status.NOT_FOUND) & (age > duration_micros(view.ttl) + _COLLECTED_AFTER)
    found[STATUS] = (served.statuses != wanted.statuses) & ~is_collected
    return found
