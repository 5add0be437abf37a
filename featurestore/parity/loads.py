"""Why what was served at a time is not what training sees at it: by the loads on record. This docstring is the list of causes.

In this order, the first that holds; **then** is the last load that was readable at the request's time, or else one beside it:

    stale materialization     what was served is what the table has at the watermark of then: what became visible after it, by its
                              declared refresh and delay, was not readable yet
    late rows                 what was served is what the table had then, at that watermark: rows at or below it came or were
                              corrected later
    version not flipped       what was served is what another version of the view gives at the request's time
    write outside the store   no load wrote what was served
    unknown                   no load is on record from before the request, or the table that it read is gone

Of push views, which nobody loads:

    stale materialization     what was served is what had been pushed a minute before the request; or an earlier push of the key
                              has it, and the later ones had not been written online
    write outside the store   no push by then has a row of the key with what was served
    unknown                   nothing was served, though something had been pushed more than a minute before
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurestore.clock import instant_text
from featurestore.errors import OfflineStoreError
from featurestore.offline.session import identifier, parquet, session
from featurestore.offline.tables import Snapshot
from featurestore.online.status import Status
from featurestore.parity.comparison import Bools
from featurestore.parity.findings import Cause
from featurestore.parity.moments import Integers, Moments, differences, trained
from featurestore.registry.state import LoadRecord, Version

__all__ = ["Explained", "Loads"]

_READABLE_AFTER = 60_000_000

Explained = tuple[Cause, str]


@dataclass(frozen=True)
class Loads:
    """The loads of a version, oldest first, and the view's other versions that have a table.

    `present` is what training reads; `snapshot` reads a version's table as of a table version.
    """

    version: Version
    records: Sequence[LoadRecord]
    others: Sequence[Version]
    present: Snapshot
    snapshot: Callable[[Version, int], Snapshot]

    def explain(self, keys: Sequence[pa.ChunkedArray], times: Integers, served: Moments) -> list[Explained]:
        """Return the cause of each row that differs, and what shows it."""
        if self.version.view.is_pushed:
            return self._of_pushes(keys, times, served)
        readable = np.array([each.readable_at for each in self.records], dtype=np.int64)
        then = np.searchsorted(readable, times, "right") - 1
        found: list[Explained] = [(Cause.UNKNOWN, "no load is on record from before the request")] * len(times)
        # Rows of a load can be read before all of them can, and the clocks of those who serve and who load may differ.
        for step in (0, 1, -1):
            is_open = np.array([cause in (Cause.UNKNOWN, Cause.WRITE_OUTSIDE) for cause, _ in found])
            for number in np.unique(then[is_open] + step).tolist():
                if not 0 <= number < len(self.records):
                    continue
                places = np.flatnonzero(is_open & (then + step == number))
                own = [key.take(pa.array(places)) for key in keys]
                causes = self._of_load(number, own, times[places], served.take(places))
                for place, cause in zip(places.tolist(), causes, strict=True):
                    if step == 0 or cause[0] not in (Cause.UNKNOWN, Cause.WRITE_OUTSIDE):
                        found[place] = cause
        return found

    def _of_pushes(self, keys: Sequence[pa.ChunkedArray], times: Integers, served: Moments) -> list[Explained]:
        """Explain rows of a push view: what is pushed is loaded by nobody, and readable soon after it is acknowledged."""
        found: list[Explained] = [(Cause.UNKNOWN, "a row had been pushed more than a minute before, and nothing was served")] * len(
            times
        )
        is_row = served.statuses != Status.NOT_FOUND
        self._settle(found, is_row, Cause.WRITE_OUTSIDE, "no push by then has a row of the key with what was served")
        earlier = "it is what an earlier push gave: later ones had not been written online"
        self._settle(found, is_row & self._is_pushed(keys, times, served), Cause.STALE, earlier)
        wanted = trained(self.version.view, self.present, keys, served.features.column_names, times, until=times - _READABLE_AFTER)
        late = "it is what had been pushed a minute before: a later push was not readable yet"
        self._settle(found, self._is_same(wanted, times, served), Cause.STALE, late)
        return found

    def _is_pushed(self, keys: Sequence[pa.ChunkedArray], times: Integers, served: Moments) -> Bools:
        """Return which rows a push had by then: the same key, event time and values."""
        view, found = self.version.view, np.zeros(len(times), dtype=bool)
        if not self.present.files:
            return found
        names, features = [key.name for key in view.join_keys], served.features.column_names
        asked = [*keys, _instants(served.event_times), _instants(times), pa.array(np.arange(len(times)))]
        same = " AND ".join(f"held.{identifier(name)} = asked.{identifier(name)}" for name in [*names, "__event_time"])
        listed = ", ".join(["__place", *(f"held.{identifier(name)}" for name in features)])
        files = parquet(file.path for file in self.present.files)
        with session(OfflineStoreError, f"the rows of view {view.name!r}") as connection:
            connection.register("asked", pa.table(asked, names=[*names, "__event_time", "__at", "__place"]))
            query = f"SELECT {listed} FROM {files} AS held JOIN asked ON {same} AND held.__visible_time <= asked.__at"
            held = connection.sql(query).to_arrow_table()
        places = np.asarray(held["__place"].combine_chunks()).astype(np.int64)
        wanted = Moments(served.statuses[places], served.event_times[places], held.select(features).cast(served.features.schema))
        is_same = ~np.logical_or.reduce([*differences(view, served.take(places), wanted, times[places]).values()])
        found[places[is_same]] = True
        return found

    def _of_load(self, number: int, keys: Sequence[pa.ChunkedArray], times: Integers, served: Moments) -> list[Explained]:
        load = self.records[number]
        until = np.full(len(times), load.until)
        outside = f"run {load.run} had loaded all up to {instant_text(load.until)} by then, and wrote something else"
        found: list[Explained] = [(Cause.WRITE_OUTSIDE, outside)] * len(times)
        for other in self.others:
            if other.view.feature_names == self.version.view.feature_names:
                text = f"it is what version {other.number} gives, and version {self.version.number} was asked for"
                self._settle(found, self._is_of(other, other.table_version, keys, times, served, None), Cause.NOT_FLIPPED, text)
        before = self._is_of(self.version, load.table_version, keys, times, served, until)
        late = f"run {load.run} had loaded it: rows visible by {instant_text(load.until)} came or were corrected later"
        self._settle(found, before, Cause.LATE_ROWS, late)
        if before is None:
            gone = np.array([cause is Cause.WRITE_OUTSIDE for cause, _ in found])
            self._settle(found, gone, Cause.UNKNOWN, f"the table that run {load.run} had loaded is gone")
        present = self._is_of(self.version, self.version.table_version, keys, times, served, until)
        self._settle(found, present, Cause.STALE, self._staleness(number))
        return found

    def _staleness(self, number: int) -> str:
        load = self.records[number]
        behind = f"serving had what was visible by {instant_text(load.until)}, loaded by run {load.run}"
        if number + 1 == len(self.records):
            return f"{behind}; no load has followed"
        later = self.records[number + 1]
        return f"{behind}; what followed was readable at {instant_text(later.readable_at)}, by run {later.run}"

    def _is_of(
        self,
        version: Version,
        table_version: int,
        keys: Sequence[pa.ChunkedArray],
        times: Integers,
        served: Moments,
        until: Integers | None,
    ) -> Bools | None:
        """Return which rows are what a table gives; none if it is gone."""
        names = served.features.column_names
        try:
            wanted = trained(version.view, self.snapshot(version, table_version), keys, names, times, until=until)
        except OfflineStoreError:
            return None
        return self._is_same(wanted, times, served)

    def _is_same(self, wanted: Moments, times: Integers, served: Moments) -> Bools:
        is_same: Bools = ~np.logical_or.reduce([*differences(self.version.view, served, wanted, times).values()])
        return is_same

    @staticmethod
    def _settle(found: list[Explained], places: Bools | None, cause: Cause, evidence: str) -> None:
        for place in np.flatnonzero(places).tolist() if places is not None else ():
            found[place] = cause, evidence


def _instants(times: Integers) -> pa.Array:
    """Return times as instants; what is beyond those that a table can hold is null, and equals none."""
    return pa.array(times, pa.int64(), mask=np.abs(times) >= 2**61).cast(pa.timestamp("us", "UTC"))
