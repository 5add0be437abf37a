"""Erasure of what was pushed (T14): rows go from the log, raw as they are there, and from the online store.

It works on a log of which all is in files, and after the tombstones are recorded: what is pushed from then on leaves rows of erased
keys out, and a push that was prepared before is prepared anew (`registry/pushes.py`). Online rows are deleted in the turn of those
who write pushes, so no row that is on its way comes after; what a killed process left in a socket meets a deletion that is newer
than all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import OfflineStoreError, RunInProgressError, SourceError
from featurestore.offline.erased import is_kept
from featurestore.offline.push_log import SEQ
from featurestore.offline.session import identifier, session
from featurestore.push import FIRST, Pushing
from featurestore.registry.pushes import LogFile
from featurestore.registry.state import Tombstones, Version

__all__ = ["erase_pushed"]

_SECONDS = 600.0


def erase_pushed(
    pushing: Pushing, source: str, held: Sequence[Version], tombstones: Tombstones, given: Mapping[str, Sequence[pa.ChunkedArray]]
) -> tuple[int, dict[str, int]]:
    """Erase what tombstones say from the log of a source, and from the online rows of the versions that it feeds.

    `given` has the erased keys of versions, by uid, whose join keys are those of the erased entity. Returns how many rows of the
    log are gone, and of how many keys the online rows of each version.

    Raises:
        RunInProgressError: another process keeps the log, or the online rows, for too long; do it again.

    """
    with pushing.folding(source):
        until = pushing.fold_now(source)
        gone: set[int] = set()
        deleted: dict[str, int] = {}
        with pushing.turn(source, _SECONDS) as is_mine:
            if not is_mine:
                raise RunInProgressError(f"pushes of source {source!r} are being written online by another process; do it again")
            for version in held:
                try:
                    seqs, keys = _erased(pushing, version, tombstones, until)
                except (OfflineStoreError, SourceError):
                    if version.state == "serving":
                        raise
                    continue  # its SQL fails on what was pushed, so it has no rows of it
                gone |= seqs
                is_online = pushing.registry.erasures.may_be_online(version)
                deleted[version.uid] = len(keys[0]) if is_online else 0
                for columns in (keys, given.get(version.uid)) if is_online else ():
                    if columns is not None:
                        pushing.online.delete(version, columns, run=0)
        rows = _rewrite(pushing, source, gone)
        pushing.registry.shred()
        return rows, deleted


def _erased(pushing: Pushing, version: Version, tombstones: Tombstones, until: int) -> tuple[set[int], list[pa.ChunkedArray]]:
    """Return the `seq` of the rows of a version whose keys are erased, and these keys."""
    view = version.view
    kept = is_kept(view, tombstones) or "true"
    names = ", ".join(identifier(key.name) for key in view.join_keys)
    query = f"SELECT __seq, {names} FROM {pushing.rows(version, (FIRST, until)).sql} WHERE NOT ({kept})"
    with session(OfflineStoreError, f"the log of push source {view.source.name!r}") as connection:
        found = connection.sql(query).to_arrow_table()
    distinct = found.group_by([key.name for key in view.join_keys]).aggregate([])
    whole = [distinct[key.name].cast(key.type.arrow) for key in view.join_keys]
    is_whole = pa.chunked_array([pa.repeat(pa.scalar(value=True), len(distinct))])
    for column in whole:
        is_whole = pc.and_(is_whole, pc.is_valid(column))
    return set(found["__seq"].to_pylist()), [column.filter(is_whole) for column in whole]


def _rewrite(pushing: Pushing, source: str, gone: set[int]) -> int:
    """Write the files anew that have rows of these numbers; returns how many rows are gone."""
    log, pushes, lost = pushing.log(source), pushing.registry.pushes, 0
    numbers = pa.array(sorted(gone), pa.int64())
    for file in pushes.state(source).files if gone else ():
        found = sum(pc.sum(pc.is_in(table[SEQ], numbers)).as_py() or 0 for table in log.read([file]))
        if found:
            new: list[LogFile] = log.write(log.read([file], lambda table: table.filter(pc.invert(pc.is_in(table[SEQ], numbers)))))
            pushes.replace_files(source, [file.name], new)
            lost += found
    log.discard(pushes.state(source).files, kept_seconds=-1)  # older forms of the files have the rows as well
    return lost
