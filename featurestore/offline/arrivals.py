"""What is new in a table since the last load, and how old it was when it could be read: what a load leaves on record.

A row is **new** if the table that was loaded before does not hold it. Its **age** is the time from when it was known (its event
time, or the later created time where the source says `visible_from="created_time"`) until it was readable online. Rows that became
visible before the version was made say nothing of how late rows are, and are left out. A load keeps the quantiles `LEVELS` of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.definitions import FeatureView, FileSource, PushSource
from featurestore.errors import OfflineStoreError, SourceError
from featurestore.offline.files import source_files
from featurestore.offline.session import identifier, parquet, session
from featurestore.offline.tables import DataFile, Snapshot

__all__ = ["LEVELS", "Arrivals", "arrivals", "source_stamp"]

LEVELS = (*(step / 20 for step in range(1, 20)), 0.99, 1.0)
"""Which quantiles of the ages are kept."""

_VISIBLE = "epoch_us(__visible_time)"


@dataclass(frozen=True)
class Arrivals:
    """What a load brought: new rows, their ages, and `is_rewrite`: whether what was below the earlier watermark changed."""

    is_rewrite: bool
    rows: int
    ages: tuple[int, ...]


def arrivals(view: FeatureView, before: Snapshot, after: Snapshot, *, watermark: int, made_at: int, readable_at: int) -> Arrivals:
    """Compare the table that was loaded before, which was evaluated at `watermark`, with the one that is readable now.

    Raises:
        OfflineStoreError: a file cannot be read.

    """
    added, removed = (_without(*each) for each in ((after, before), (before, after)))
    with session(OfflineStoreError, f"the table of view {view.name!r}") as connection:
        rows, gone = _rows(view, added, removed), _rows(view, removed, added)
        is_rewrite = any(file.first <= watermark for file in (*added, *removed)) and any(
            connection.execute(f"SELECT 1 FROM {each} WHERE {_VISIBLE} <= {watermark} LIMIT 1").fetchone()
            for each in (rows, gone)
            if each is not None
        )
        if rows is None or view.is_static or all(file.last <= made_at for file in added):
            return Arrivals(is_rewrite, 0, ())
        known = "epoch_us(__event_time)"
        if view.source.visible_from == "created_time":
            known = f"greatest({known}, coalesce(epoch_us(__created_time), {known}))"
        found = connection.execute(
            f"SELECT count(*), quantile_disc({readable_at} - {known}, {list(LEVELS)}) FROM {rows} WHERE {_VISIBLE} > {made_at}"
        ).fetchone()
        assert found is not None
        return Arrivals(is_rewrite, found[0], tuple(found[1] or ()))


def _without(files: Snapshot, others: Snapshot) -> list[DataFile]:
    known = {file.path for file in others.files}
    return [file for file in files.files if file.path not in known]


def _rows(view: FeatureView, files: Sequence[DataFile], others: Sequence[DataFile]) -> str | None:
    """Return the rows of files that others do not hold, ready to stand in a FROM clause."""
    if not files:
        return None
    # Not `__seq`, which says where a row stood in its source: that may change while the row does not.
    columns = [*(key.name for key in view.join_keys), "__event_time", "__created_time", "__visible_time"]
    listed = ", ".join(map(identifier, [*columns, *(field.name for field in view.stored)]))
    mine = f"SELECT {listed} FROM {parquet(file.path for file in files)}"
    if not others:
        return f"({mine})"
    return f"({mine} EXCEPT ALL SELECT {listed} FROM {parquet(file.path for file in others)})"


def source_stamp(source: FileSource | PushSource, root: Path) -> str | None:
    """Return what changes when a file of a source comes, goes or is written anew: names, sizes and times; pushes have none."""
    if isinstance(source, PushSource):
        return None
    try:
        stamps = [
            (name, status.st_size, status.st_mtime_ns) for name in source_files(source, root) if (status := Path(name).stat())
        ]
    except OSError as reason:
        raise SourceError(f"source {source.name!r} ({source.path}): {reason}") from reason
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:32]
