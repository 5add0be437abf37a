"""Why a key of a push view differs. Its rows are in the log, and each server says until which arrival it has all of them.

In this order, the first that holds:

    write outside the store   what is stored is no row of this version; or no push has a row of its key, event and created time with
                              these values; or the row is gone although the server has all pushes
    TTL                       the row is gone, and its TTL has passed
    stale materialization     the server does not say that it has all pushes, and has an earlier one of the key, or none
    version not flipped       the row is what another version of the view gives
    unknown                   none of these
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurestore.clock import duration_micros, instant_text
from featurestore.errors import OfflineStoreError
from featurestore.offline.session import identifier, parquet, session
from featurestore.offline.tables import Snapshot
from featurestore.parity.causes import Explained, Suspects
from featurestore.parity.comparison import Bools, differing
from featurestore.parity.findings import Cause
from featurestore.parity.served import FOREIGN, NOTHING, ROW
from featurestore.parity.sides import Integers, disagreement, offline_side, online_side
from featurestore.registry.state import Version

__all__ = ["PushWitnesses", "explain_pushed"]

_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class PushWitnesses:
    """What is known of a push view: its rows until a sealed arrival, and until which the servers have all (none: one forgot).

    `others` are the view's other versions, with their rows.
    """

    version: Version
    snapshot: Snapshot
    until: int
    written_until: int | None
    others: tuple[tuple[Version, Snapshot], ...]
    now: int

    @property
    def behind(self) -> str | None:
        """Say that the servers do not have all pushes; none if they do."""
        if self.written_until is None:
            return "the online store does not say how far its pushes go: it lost rows, or never had them"
        last = max((file.last for file in self.snapshot.files), default=self.written_until)
        if self.written_until >= min(last, self.until):
            return None
        return f"the online store has the pushes until {instant_text(self.written_until)}, the log has later ones"


def explain_pushed(witnesses: PushWitnesses, suspects: Suspects) -> list[Explained | None]:
    """Return the cause of each difference and what shows it."""
    is_logged = _is_logged(witnesses, suspects).tolist()
    others = [(version.number, _is_of(version, snapshot, suspects, witnesses.until)) for version, snapshot in witnesses.others]
    explained: list[Explained | None] = []
    for place, state in enumerate(suspects.online.states.tolist()):
        if state == FOREIGN:
            explained.append((Cause.WRITE_OUTSIDE, "what is stored under the key is no row of this version's format"))
        elif state == ROW and not is_logged[place]:
            explained.append(_unlogged(witnesses, [number for number, is_of in others if is_of[place]]))
        elif state == NOTHING:
            explained.append(_gone(witnesses, int(suspects.offline.event_times[place])))
        elif witnesses.behind is not None:
            explained.append((Cause.STALE, witnesses.behind))
        else:
            explained.append((Cause.UNKNOWN, "the row was pushed, and a later push should have replaced it"))
    return explained


def _unlogged(witnesses: PushWitnesses, of: list[int]) -> Explained:
    if of:
        return Cause.NOT_FLIPPED, f"the row is what version {of[0]} gives, and the name means version {witnesses.version.number}"
    return Cause.WRITE_OUTSIDE, "no push has a row of this key, event time and created time with these values"


def _gone(witnesses: PushWitnesses, event_time: int) -> Explained:
    ttl = witnesses.version.view.ttl
    passed = event_time + duration_micros(ttl)
    if ttl is not None and passed < witnesses.now:
        return Cause.TTL, f"the TTL passed at {instant_text(passed)}, and the server has collected the row"
    if witnesses.behind is not None:
        return Cause.STALE, witnesses.behind
    return Cause.WRITE_OUTSIDE, "the row is gone, though the server says that it has all pushes: something removed or evicted it"


def _is_logged(witnesses: PushWitnesses, suspects: Suspects) -> Bools:
    """Return which stored rows stand in the log as they are: the same key, times and values."""
    view, count = witnesses.version.view, len(suspects.is_late)
    found = np.zeros(count, dtype=bool)
    if not witnesses.snapshot.files:
        return found
    names = [key.name for key in view.join_keys]
    times = [pa.array(each, pa.int64()).cast(_TIME) for each in (_within(suspects.online.event_times), suspects.online.orders)]
    asked = pa.table(
        [*suspects.keys, *times, pa.array(np.arange(count))], names=[*names, "__event_time", "__created_time", "__place"]
    )
    files = parquet(file.path for file in witnesses.snapshot.files)
    same = ", ".join([*map(identifier, names), "__event_time", "__created_time"])
    listed = ", ".join(map(identifier, view.feature_names))
    with session(OfflineStoreError, f"the rows of view {view.name!r}") as connection:
        connection.register("asked", asked)
        query = f"SELECT __place, {listed} FROM {files} AS held JOIN asked USING ({same})"
        table = connection.sql(query).to_arrow_table()
    places = np.asarray(table["__place"].combine_chunks()).astype(np.int64)
    stored = suspects.online.features.take(pa.array(places))
    is_same = np.ones(len(places), dtype=bool)
    for field in view.features:
        is_same &= ~differing(table[field.name].cast(field.type.arrow), stored[field.name], field.type)
    found[places[is_same]] = True
    return found


def _within(event_times: Integers) -> Integers:
    """Return event times that Arrow and DuckDB can hold; what is beyond stands in no log."""
    return np.where(np.abs(event_times) < 2**61, event_times, 0)


def _is_of(version: Version, snapshot: Snapshot, suspects: Suspects, until: int) -> Bools:
    side = offline_side(version.view, snapshot, suspects.keys, until, ttl=False)
    return ~disagreement(version.view, online_side(suspects.online, 0, None), side).any
