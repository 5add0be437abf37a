"""From pushed rows to view rows: what a view makes of the columns of its push source, from a log or from what has just come in.

The columns are those of `sources.py`; the visible time is the arrival, and a row without a created time has its arrival for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.definitions import FeatureView, PushSource
from featurestore.errors import InputError, OfflineStoreError, SourceError
from featurestore.offline.asked import bounds
from featurestore.offline.buckets import int64
from featurestore.offline.erased import is_kept
from featurestore.offline.keys import encoded
from featurestore.offline.push_log import ARRIVAL, SEQ, arrived
from featurestore.offline.session import identifier, session
from featurestore.offline.sources import SourceColumns, ViewRows, describe_sql, over, selected_columns, view_faults
from featurestore.registry.state import Tombstones

__all__ = ["KeyedRows", "erased_places", "latest", "latest_sql", "prepared", "pushed_rows", "source_columns"]

_HIDDEN = ("__file_seq", ARRIVAL)
_TIME = pa.timestamp("us", "UTC")


def source_columns(view: FeatureView) -> dict[str, str]:
    """Return the columns of a view's push source and their DuckDB types."""
    assert isinstance(view.source, PushSource)
    return {name: type_.sql for name, type_ in view.source.columns.items()}


def pushed_rows(view: FeatureView, scan: str) -> ViewRows:
    """Return the query that makes a view's rows of a scan of its push source; the scan gives `__file_seq` and `__arrival` as well.

    Raises:
        SourceError: the source's columns do not give what the view declares.

    """
    given = _given(view)
    columns = [*selected_columns(view, given), "__file_seq AS __seq", ARRIVAL]
    rows = f"SELECT {', '.join(columns)} FROM {over(view, scan, _HIDDEN)}"
    created = f"coalesce(__created_time, {ARRIVAL}) AS __created_time"
    visible = f"CASE WHEN __event_time IS NOT NULL THEN {ARRIVAL} END AS __visible_time"
    return ViewRows(view, f"(SELECT * EXCLUDE ({ARRIVAL}) REPLACE ({created}), {visible} FROM ({rows}))", "__seq")


@lru_cache(maxsize=256)
def _given(view: FeatureView) -> SourceColumns:
    """Return the columns that a view takes its own from, those of its SQL where it has one."""
    nowhere = Path()  # a push source has no files
    columns: SourceColumns = {name: (type_,) for name, type_ in source_columns(view).items()}
    if faults := view_faults(view, nowhere, columns):
        raise SourceError(f"view {view.name!r} cannot be read: {'; '.join(message for _, message in faults)}")
    return columns if view.sql is None else describe_sql(view, nowhere, columns)


@dataclass(frozen=True)
class KeyedRows:
    """Rows of a push view as columns: keys, features, `__event_time`, `__created_time`, `__seq`."""

    view: FeatureView
    table: pa.Table

    @property
    def keys(self) -> list[pa.ChunkedArray]:
        """The join keys."""
        return [self.table[key.name] for key in self.view.join_keys]

    @property
    def features(self) -> pa.Table:
        """The features."""
        return self.table.select(list(self.view.feature_names))

    @property
    def event_times(self) -> pa.ChunkedArray:
        """When each became true."""
        return self.table["__event_time"]

    @property
    def created_times(self) -> pa.ChunkedArray:
        """When each was written."""
        return self.table["__created_time"]

    def arrived(self, arrival: int, kept: pa.Array | None) -> KeyedRows:
        """Return the rows of a push that has its arrival now, and of which some places were kept."""
        table = self.table if kept is None else self.table.filter(pc.is_in(self.table[SEQ], kept))
        place = table.schema.get_field_index("__created_time")
        filled = pc.fill_null(table["__created_time"], pa.scalar(arrival, pa.int64()).cast(_TIME))
        return latest(KeyedRows(self.view, table.set_column(place, "__created_time", filled)))


def prepared(view: FeatureView, rows: pa.Table, *, first: int = 0) -> KeyedRows:
    """Return what a view makes of rows of its push source that have no arrival yet: `__seq` is their place.

    Messages count the rows from `first`, as those of `taken_in` do.

    Raises:
        InputError: the view's SQL fails on them, or gives a null key.

    """
    rows = _as_declared(view, rows)
    table = _plain(view, rows) if view.sql is None else _by_sql(view, rows)
    for key in view.join_keys:
        if table[key.name].null_count:
            place = table[SEQ].filter(pc.is_null(table[key.name]))[0].as_py()
            raise InputError(f"row {first + place}: join key {key.name!r} of view {view.name!r} is null", name=key.name)
    return KeyedRows(view, table)


def _as_declared(view: FeatureView, rows: pa.Table) -> pa.Table:
    """Return rows with the columns that the push source had when the view was defined: those that are gone since are null."""
    assert isinstance(view.source, PushSource)
    for name, type_ in view.source.columns.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), type_.arrow))
    return rows


def _plain(view: FeatureView, rows: pa.Table) -> pa.Table:
    source = view.source
    columns = {field.name: rows[field.name].cast(field.type.arrow) for field in (*view.join_keys, *view.fields)}
    created = pa.nulls(len(rows), _TIME) if source.created_time is None else rows[source.created_time]
    times = {"__event_time": rows[source.event_time], "__created_time": created}
    return pa.table(columns | times | {SEQ: pa.array(np.arange(len(rows)))})


def _by_sql(view: FeatureView, rows: pa.Table) -> pa.Table:
    columns = [key.name for key in view.join_keys] + list(view.feature_names) + ["__event_time", "__created_time", SEQ]
    scan = f"SELECT * EXCLUDE ({SEQ}), {SEQ} AS __file_seq FROM pushed"
    query = pushed_rows(view, scan)
    with session(InputError, f"the SQL of view {view.name!r} fails on what is pushed") as connection:
        connection.register("pushed", arrived(rows, None, 0))
        listed = ", ".join(map(identifier, columns))
        found = connection.sql(f"SELECT {listed} FROM {query.sql} WHERE __event_time IS NOT NULL").to_arrow_table()
    types = {field.name: field.type.arrow for field in (*view.join_keys, *view.fields)}
    types |= {"__event_time": _TIME, "__created_time": _TIME, SEQ: pa.int64()}
    return found.cast(pa.schema(list(types.items())))


def erased_places(rows: KeyedRows, tombstones: Tombstones) -> set[int]:
    """Return the `seq` of rows whose keys are erased (T14)."""
    kept = is_kept(rows.view, tombstones)
    if kept is None:
        return set()
    with session(OfflineStoreError, f"rows of view {rows.view.name!r}") as connection:
        connection.register("pushed", rows.table)
        return {row[0] for row in connection.execute(f"SELECT {SEQ} FROM pushed WHERE NOT ({kept})").fetchall()}


def latest(rows: KeyedRows) -> KeyedRows:
    """Return the row of each key that T4 prefers: the greatest `(event time, created time, seq)`."""
    count = len(rows.table)
    if count < 2:  # noqa: PLR2004 (what has an order)
        return rows
    codes = [encoded(key).codes for key in rows.keys]
    order = np.lexsort((int64(rows.table[SEQ]), int64(rows.created_times), int64(rows.event_times), *codes))
    ends = bounds(count, [column[order] for column in codes])[1:] - 1
    return rows if len(ends) == count else replace(rows, table=rows.table.take(pa.array(order[ends])))


def latest_sql(rows: ViewRows, columns: Sequence[str]) -> str:
    """Return the query for the same over a view's rows in a log."""
    keys = ", ".join(identifier(key.name) for key in rows.view.join_keys)
    order = "__event_time DESC, __created_time DESC, __seq DESC"
    best = f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {order}) = 1"
    present = f"{rows.keys_present} AND __visible_time IS NOT NULL"
    return f"SELECT {', '.join(map(identifier, columns))} FROM {rows.sql} WHERE {present} {best}"
