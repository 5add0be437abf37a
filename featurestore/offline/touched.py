"""Which keys an online load has to write: those whose value can differ from what the last completed load wrote (T8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from featurestore.clock import BEGINNING, LAST, duration_micros, floor
from featurestore.definitions import FeatureView
from featurestore.errors import OfflineStoreError
from featurestore.offline.session import identifier, parquet, session
from featurestore.offline.tables import Snapshot

__all__ = ["LastLoad", "touched_keys"]


@dataclass(frozen=True)
class LastLoad:
    """The last completed load: the table that it read, and the watermark at which it evaluated it (or an earlier instant)."""

    snapshot: Snapshot
    watermark: int


def touched_keys(
    view: FeatureView, snapshot: Snapshot, watermark: int, last: LastLoad | None, batch: int
) -> Iterator[list[pa.ChunkedArray]]:
    """Give the distinct keys to load, about so many at a time, in the order of their hashes: few row groups for each batch.

    Without a last load these are all. Otherwise they are those of files that came or went since, and those of which an event has
    left a window.

    Raises:
        OfflineStoreError: a file cannot be read.

    """
    files = {file.path for file in snapshot.files}
    changed = files if last is None else files ^ {file.path for file in last.snapshot.files}
    parts = [parquet(sorted(changed))] if changed else []
    if last is not None:
        parts += _leaving(view, snapshot, last.watermark, watermark)
    if not parts:
        return
    columns = ", ".join(identifier(key.name) for key in view.join_keys)
    rows = " UNION ALL ".join(f"SELECT __key_hash, {columns} FROM {part}" for part in parts)
    query = f"SELECT {columns} FROM ({rows}) GROUP BY __key_hash, {columns} ORDER BY __key_hash"
    with session(OfflineStoreError, f"the table of view {view.name!r}") as connection:
        for found in connection.sql(query).to_arrow_reader(batch):
            table = pa.Table.from_batches([found])
            yield [table[key.name].cast(key.type.arrow) for key in view.join_keys]


def _leaving(view: FeatureView, snapshot: Snapshot, before: int, now: int) -> Sequence[str]:
    """Return the rows whose events lie in a window that ends with `before` and in none of that length that ends `now`."""
    delay, refresh = duration_micros(view.source.delay), duration_micros(view.refresh)
    ends = [floor(watermark - delay, refresh) for watermark in (before, now)]
    lengths = sorted({duration_micros(window) for each in view.aggregations for window in each.windows})
    spans = [(max(ends[0] - length, BEGINNING), min(ends[1] - length, LAST)) for length in lengths]
    spans = [(first, last) for first, last in spans if first < last]
    # A row is visible no earlier than its event, and files name the visible times that they hold.
    paths = [file.path for file in snapshot.files if spans and file.last > spans[-1][0]]
    if not paths:
        return []
    left = " OR ".join(
        f"__event_time > make_timestamptz({first}) AND __event_time <= make_timestamptz({last})" for first, last in spans
    )
    return [f"{parquet(paths)} WHERE {left}"]
