"""Why a key differs: each cause is named by evidence, and where there is none, the cause is unknown. This docstring is their list.

In this order, the first that holds:

    write outside the store   what is stored is no row of this version; or its header names a run that the version never had; or it
                              names a run that, going by the table which that run loaded, wrote something else; or a row is gone
                              although the server's marker says that nothing was lost, and the store itself never removes a row
                              without leaving an empty one
    late rows                 the source has rows at or below the watermark, new or corrected, that the table lacks; with them the
                              value is another
    changed code              the same, but the source's files are those that the last run read, and that found no late rows in
                              them: the same files give other values than they gave
    TTL                       the row is gone, and its TTL has passed since the watermark: serving is right to have nothing
    stale materialization     the marker is missing or names another run than the registry does, and the row is what an earlier run
                              wrote; or a run ended before its load was complete; or the table has changed since it was loaded
    version not flipped       the row is what another version of the view gives
    unknown                   none of these
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurestore.clock import duration_micros, instant_text
from featurestore.definitions import FeatureView
from featurestore.errors import OfflineStoreError
from featurestore.offline.tables import Snapshot
from featurestore.parity.comparison import Bools
from featurestore.parity.findings import Cause
from featurestore.parity.served import FOREIGN, NOTHING, ROW, Served
from featurestore.parity.sides import Integers, Side, disagreement, offline_side, online_side
from featurestore.registry.state import Loaded, LoadRecord, Version

__all__ = ["Explained", "Suspects", "Witnesses", "explain", "is_alike"]

Explained = tuple[Cause, str]
Keys = Sequence[pa.ChunkedArray]


@dataclass(frozen=True)
class Witnesses:
    """What is known of a version besides its rows.

    `marker` is the run that the server names, `states` and `loads` what the registry knows of the version's runs, `others` the
    view's other versions that have a table; `snapshot` reads a version's table. `code` is the evidence that the code has changed,
    where the source's files have not.
    """

    version: Version
    loaded: Loaded
    marker: int | None
    states: dict[int, str]
    loads: dict[int, LoadRecord]
    others: tuple[Version, ...]
    now: int
    snapshot: Callable[[Version, int], Snapshot]
    code: str | None

    @property
    def has_lost(self) -> str | None:
        """Say that the server is not the one that the last load has completed on; none if it is."""
        if self.marker == self.loaded.run:
            return None
        named = "none" if self.marker is None else f"run {self.marker}"
        return f"the online store names {named} as its last load, the registry run {self.loaded.run}"

    @property
    def has_moved(self) -> str | None:
        """Say that the table has changed since it was loaded; none if it has not."""
        if self.loaded.table_version == self.version.table_version:
            return None
        return f"the table has changed since run {self.loaded.run} loaded it, and no load has followed"


@dataclass(frozen=True)
class Suspects:
    """Keys that differ: what is stored, what the table gives, and what it would give with late rows (`offline`)."""

    keys: Keys
    online: Served
    table: Side
    offline: Side
    is_late: Bools

    def take(self, places: Integers) -> Suspects:
        """Return some of them."""
        keys = [key.take(pa.array(places)) for key in self.keys]
        return Suspects(keys, self.online.take(places), self.table.take(places), self.offline.take(places), self.is_late[places])


def explain(witnesses: Witnesses, suspects: Suspects) -> list[Explained | None]:
    """Return the cause of each difference and what shows it; none where a run under way has written what it gives."""
    found: list[Explained | None] = [None] * len(suspects.is_late)
    settled = np.zeros(len(found), dtype=bool)

    def settle(places: Integers, causes: Sequence[Explained | None]) -> None:
        settled[places] = True
        for place, cause in zip(places.tolist(), causes, strict=True):
            found[place] = cause

    states = suspects.online.states
    foreign = np.flatnonzero(states == FOREIGN)
    settle(foreign, [(Cause.WRITE_OUTSIDE, "what is stored under the key is no row of this version's format")] * len(foreign))
    late = np.flatnonzero(~settled & suspects.is_late & ~_differs(witnesses, suspects.online, suspects.table))
    settle(late, [_late(witnesses)] * len(late))
    for place in np.flatnonzero(~settled & (states == NOTHING)).tolist():
        settle(np.array([place]), [_gone(witnesses, suspects, place)])
    for order in np.unique(suspects.online.orders[~settled]).tolist():
        places = np.flatnonzero(~settled & (suspects.online.orders == order))
        settle(places, _stored(witnesses, suspects.take(places), order))
    return found


def _differs(witnesses: Witnesses, online: Served, side: Side) -> Bools:
    """Return where what serving gives at the watermark is not what a side has."""
    view = witnesses.version.view
    ttl = None if view.ttl is None else duration_micros(view.ttl)
    return disagreement(view, online_side(online, witnesses.loaded.until, ttl), side).any


def _late(witnesses: Witnesses) -> Explained:
    if witnesses.code is not None:
        return Cause.CHANGED_CODE, witnesses.code
    until = instant_text(witnesses.loaded.until)
    return Cause.LATE_ROWS, f"the source has rows, visible by {until}, that the table lacks: they came or were corrected later"


def _gone(witnesses: Witnesses, suspects: Suspects, place: int) -> Explained:
    """Explain why nothing is stored where there should be a row."""
    ttl, event_time = witnesses.version.view.ttl, int(suspects.offline.event_times[place])
    if ttl is not None and event_time + duration_micros(ttl) < witnesses.now:
        passed = instant_text(event_time + duration_micros(ttl))
        return Cause.TTL, f"the TTL passed at {passed}, and the server has collected the row"
    if witnesses.has_lost:
        return Cause.STALE, f"{witnesses.has_lost}: it lost rows"
    if witnesses.has_moved and not _loaded_side(witnesses, suspects.take(np.array([place]))).present[0]:
        return Cause.STALE, witnesses.has_moved
    held = f"the row is gone, though the server's marker says that it holds all of run {witnesses.loaded.run}"
    return Cause.WRITE_OUTSIDE, f"{held}: something else removed it, or the server evicted it"


def _loaded_side(witnesses: Witnesses, suspects: Suspects) -> Side:
    """Return what the last completed load read."""
    loaded = witnesses.loaded
    return _at(witnesses, suspects, loaded.table_version, loaded.until)


def _at(witnesses: Witnesses, suspects: Suspects, table_version: int, until: int) -> Side:
    """Return what a run stored: the table's values, the TTL left aside; of a table that is vacuumed, what its successor has."""
    version = witnesses.version
    for each in (table_version, version.table_version):
        try:
            return offline_side(version.view, witnesses.snapshot(version, each), suspects.keys, until, ttl=False)
        except OfflineStoreError:
            if each == version.table_version:
                raise
    raise AssertionError


def _is_of(witnesses: Witnesses, suspects: Suspects, side: Side) -> Bools:
    """Return where what is stored is what a side has: the same row, or an empty one where the side has none."""
    stored = online_side(suspects.online, 0, None)
    return ~disagreement(witnesses.version.view, stored, side).any


def _stored(witnesses: Witnesses, suspects: Suspects, order: int) -> list[Explained | None]:
    """Explain rows and deletions whose headers name one run."""
    status, load = witnesses.states.get(order), witnesses.loads.get(order)
    count = len(suspects.is_late)
    if status is None:
        return _others(witnesses, suspects, f"its header names run {order}, which is none of this version's", is_outside=True)
    if load is not None:
        is_genuine = _is_of(witnesses, suspects, _at(witnesses, suspects, load.table_version, load.until))
        wrote = _others(witnesses, suspects, f"its header names run {order}, which wrote something else", is_outside=True)
        kept = _kept(witnesses, order)
        return [kept if is_it else other for is_it, other in zip(is_genuine.tolist(), wrote, strict=True)]
    if order > witnesses.loaded.run and witnesses.version.watermark is not None:
        newest = _at(witnesses, suspects, witnesses.version.table_version, witnesses.version.watermark)
        is_newest = _is_of(witnesses, suspects, newest).tolist()
        ended = Cause.STALE, f"run {order} wrote it, and ended before its load was complete"
        ahead = None if status == "running" else ended
        unknown = _others(witnesses, suspects, f"run {order}, whose load was never completed, is said to have written it")
        return [ahead if is_it else other for is_it, other in zip(is_newest, unknown, strict=True)]
    if witnesses.has_lost:
        return [(Cause.STALE, f"{witnesses.has_lost}: it lost what came after run {order}")] * count
    if witnesses.has_moved:
        is_loaded = _is_of(witnesses, suspects, _loaded_side(witnesses, suspects)).tolist()
        others = _others(witnesses, suspects, f"run {order} left no record of its load")
        moved = Cause.STALE, witnesses.has_moved
        return [moved if is_it else other for is_it, other in zip(is_loaded, others, strict=True)]
    return _others(witnesses, suspects, f"run {order} left no record of its load")


def _kept(witnesses: Witnesses, order: int) -> Explained:
    """Explain a row that the run which its header names did write."""
    if witnesses.has_lost:
        return Cause.STALE, f"{witnesses.has_lost}; the row is what run {order} wrote"
    if witnesses.has_moved:
        return Cause.STALE, witnesses.has_moved
    return Cause.UNKNOWN, f"the row is what run {order} wrote; a later run should have replaced it"


def _others(witnesses: Witnesses, suspects: Suspects, evidence: str, *, is_outside: bool = False) -> list[Explained | None]:
    """Say of which other version rows are, or else that something wrote outside of the store, or that it is unknown."""
    explained: list[Explained | None] = [(Cause.WRITE_OUTSIDE if is_outside else Cause.UNKNOWN, evidence)] * len(suspects.is_late)
    for other in witnesses.others:
        is_of = _is_of_other(witnesses, suspects, other) & (suspects.online.states == ROW)
        for place in np.flatnonzero(is_of).tolist():
            text = f"the row is what version {other.number} gives, and the name means version {witnesses.version.number}"
            explained[place] = Cause.NOT_FLIPPED, text
    return explained


def is_alike(one: FeatureView, other: FeatureView) -> bool:
    """Whether two views have the same features and types of keys, so that a row of one may be one of the other."""
    return one.features == other.features and [key.type for key in one.join_keys] == [key.type for key in other.join_keys]


def _is_of_other(witnesses: Witnesses, suspects: Suspects, other: Version) -> Bools:
    view = witnesses.version.view
    none = np.zeros(len(suspects.is_late), dtype=bool)
    if not is_alike(other.view, view) or other.watermark is None:
        return none
    until = other.watermark if other.loaded is None else other.loaded.until
    try:
        side = offline_side(other.view, witnesses.snapshot(other, other.table_version), suspects.keys, until, ttl=False)
    except OfflineStoreError:
        return none
    return _is_of(witnesses, suspects, side)
