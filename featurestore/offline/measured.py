"""Training by measured availability: what serving could have returned, by the record of loads. This docstring is the rule.

The record says of each completed online load when it was readable, at which watermark it evaluated the table, and at which version.

**A row is visible at `t` if and only if its recorded readable time is `<= t`**: that of the first load whose table held the row, at
or below that load's watermark. It takes the place of the declared visible time in T2 and T3; the rest is as always. So the value at
`t` is T4 and T6 at the watermark of the last load that was readable at `t`, in the table that it read, the TTL counted to `t`: what
a lookup at `t` answered. Before the first load on record nothing was readable. Static views follow the same rule, against T13;
pushed rows are visible from their arrival on, which is recorded anyhow.

Loads whose tables differ only in rows beyond their watermarks share a table, that of the last of them: an **era**, which ends where
rows came late, were corrected or went. So what is computed is one training set for each era that is asked for, mostly one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.clock import BEGINNING, duration_micros, instant_text
from featurestore.definitions import FeatureView
from featurestore.errors import OfflineStoreError
from featurestore.offline.asked import Asked
from featurestore.offline.point_in_time import values_at
from featurestore.offline.tables import Snapshot
from featurestore.registry.state import LoadRecord

__all__ = ["Measured"]

Integers = npt.NDArray[np.int64]
_NEVER = BEGINNING - 1


@dataclass(frozen=True)
class Measured:
    """The record of one version, oldest load first: from when each was readable, its watermark, the place of its era's table."""

    view: FeatureView
    readable_at: Integers
    until: Integers
    era: Integers
    tables: tuple[Snapshot, ...]

    @staticmethod
    def of(view: FeatureView, loads: Sequence[LoadRecord], snapshot: Callable[[int], Snapshot]) -> Measured:
        """Return the record of loads, of which there is one at least; `snapshot` reads a version of the table."""
        era = np.cumsum([each.is_rewrite and place > 0 for place, each in enumerate(loads)])
        lasts = np.append(np.flatnonzero(np.diff(era)), len(loads) - 1)
        # A clock that was set back does not make what was readable unreadable.
        readable_at = np.maximum.accumulate(np.array([each.readable_at for each in loads], dtype=np.int64))
        until = np.array([each.until for each in loads], dtype=np.int64)
        tables = tuple(snapshot(loads[last].table_version) for last in lasts.tolist())
        return Measured(view, readable_at, until, era, tables)

    def values(self, keys: Sequence[pa.ChunkedArray], times: Integers, features: Sequence[str], *, threads: int = 1) -> pa.Table:
        """Return the features of each (key, time), a row each in the same order, null where nothing was readable.

        Raises:
            OfflineStoreError: a table that an answer needs cannot be read, or has been vacuumed.

        """
        load = np.searchsorted(self.readable_at, times, "right") - 1
        era = np.where(load < 0, -1, self.era[load])
        parts, places = [], []
        for number in np.unique(era).tolist():
            rows = np.flatnonzero(era == number)
            until = self.until[load[rows]] if number >= 0 else np.full(len(rows), _NEVER)
            table = self.tables[max(number, 0)] if number >= 0 else Snapshot(-1)
            self._check(number, table)
            parts.append(self._era([key.take(pa.array(rows)) for key in keys], until, times[rows], table, features, threads))
            places.append(rows)
        order = np.empty(len(times), dtype=np.int64)
        order[np.concatenate([*places, np.zeros(0, np.int64)])] = np.arange(len(times))
        if not parts:
            parts = [self._era(list(keys), times, times, Snapshot(-1), features, threads)]
        return parts[0] if len(parts) == 1 else pa.concat_tables(parts).take(pa.array(order))

    def _check(self, number: int, table: Snapshot) -> None:
        if any(not file.path.exists() for file in table.files):
            ends = int(self.readable_at[np.flatnonzero(self.era == number)[-1]])
            raise OfflineStoreError(
                f"view {self.view.name!r}: what was readable at {instant_text(ends)} and before stood in a table version that has "
                "been vacuumed; ask for later rows, or with availability='declared'"
            )

    def _era(
        self,
        keys: Sequence[pa.ChunkedArray],
        until: Integers,
        times: Integers,
        table: Snapshot,
        features: Sequence[str],
        threads: int,
    ) -> pa.Table:
        ttl = self.view.ttl
        found = values_at(
            self.view, table, Asked.of(keys, until), features, ttl=False, event_times=ttl is not None, threads=threads
        )
        if ttl is None:
            return found.features
        events = np.asarray(found.event_times.cast(pa.int64()).fill_null(_NEVER))
        is_alive = times - events <= duration_micros(ttl)
        kept = pa.array(np.arange(len(times)), mask=~is_alive)
        return found.features if is_alive.all() else found.features.take(kept)
