"""Late rows: what a source has in an interval that is covered, and the table lacks (T7). Corrections in place are among them.

Months whose checksums agree on both sides are not compared row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.clock import BEGINNING, LAST
from featurestore.errors import SourceError
from featurestore.offline.session import identifier, literal, parquet, session
from featurestore.offline.sources import ViewRows
from featurestore.offline.tables import OfflineTable, Snapshot

__all__ = ["LateRows", "count_late_rows", "find_late_rows"]

_MONTH = 30 * 86_400_000_000
_VISIBLE = "epoch_us(__visible_time)"

Interval = tuple[int, int]


def count_late_rows(
    connection: duckdb.DuckDBPyConnection, rows: ViewRows, snapshot: Snapshot, covered: Interval, replaced: Interval
) -> int:
    """Count the source's rows in the covered interval, outside the one just replaced, that the table lacks."""
    lacking = _lacking(connection, rows, snapshot, f"{_within(covered)} AND NOT ({_within(replaced)})")
    if lacking is None:
        return 0
    found = connection.execute(f"SELECT count(*) FROM {lacking}").fetchone()
    assert found is not None
    return int(found[0])


def _lacking(connection: duckdb.DuckDBPyConnection, rows: ViewRows, snapshot: Snapshot, where: str) -> str | None:
    """Return the source's rows under a condition that the table lacks, ready to stand in a FROM clause; none if there are none."""
    view = rows.view
    columns = [key.name for key in view.join_keys] + ["__event_time", "__created_time", "__visible_time"]
    listed = ", ".join(map(identifier, [*columns, *(field.name for field in view.stored)]))
    source = f"SELECT {listed} FROM {rows.sql} WHERE {rows.keys_present} AND {where}"
    files = [file.path for file in snapshot.files]
    table = f"SELECT {listed} FROM {parquet(files)} WHERE {where}" if files else f"{source} AND false"
    checksums = [
        set(connection.execute(f"SELECT {_VISIBLE} // {_MONTH}, count(*), sum(hash({listed})) FROM ({side}) GROUP BY 1").fetchall())
        for side in (source, table)
    ]
    differing = {month for month, *_ in checksums[0] - checksums[1]}
    if not differing:
        return None
    months = f"{_VISIBLE} // {_MONTH} IN ({', '.join(map(str, sorted(differing)))})"
    return f"(SELECT {listed} FROM ({source}) WHERE {months} EXCEPT ALL SELECT {listed} FROM ({table}) WHERE {months})"


@dataclass(frozen=True)
class LateRows:
    """Which keys have late rows at which visible times: a Parquet file of these, and how many rows it stands for."""

    rows: ViewRows
    snapshot: Snapshot
    path: Path
    count: int

    @property
    def keys(self) -> str:
        """The keys, ready to stand in a FROM clause; more than once where a key has late rows at several times."""
        return parquet([self.path])

    def healed(self, keys: pa.Table, folder: Path) -> Snapshot:
        """Return the table of some keys as a run over the late rows would leave it: at their times, what the source has.

        Raises:
            SourceError: the source cannot be read.

        """
        view = self.rows.view
        names = [identifier(key.name) for key in view.join_keys]
        asked = folder / "asked.parquet"
        pq.write_table(keys, asked)
        at, among = ", ".join([*names, "__visible_time"]), ", ".join(names)
        late = f"(SELECT * FROM {self.keys} AS pairs SEMI JOIN {parquet([asked])} AS asked USING ({among})) AS late"
        columns = ", ".join(identifier(field.name) for field in OfflineTable(folder, view).schema if field.name != "__key_hash")
        healed = f"SELECT {columns} FROM {self.rows.sql} AS source SEMI JOIN {late} USING ({at})"
        if self.snapshot.files:
            files = parquet(file.path for file in self.snapshot.files)
            held = f"(SELECT * FROM {files} AS files SEMI JOIN {parquet([asked])} AS asked USING ({among})) AS held"
            healed += f" UNION ALL SELECT {columns} FROM {held} ANTI JOIN {late} USING ({at})"
        rows = ViewRows(view, f"({healed})", "__seq")
        return OfflineTable(folder / "healed", view).replace(BEGINNING - 1, LAST, rows, run=0)[0]


def find_late_rows(rows: ViewRows, snapshot: Snapshot, covered: Interval, path: Path) -> LateRows | None:
    """Write the keys and visible times of late rows of the covered interval to a file; none if there are none.

    Raises:
        SourceError: the source cannot be read.

    """
    at = ", ".join([*(identifier(key.name) for key in rows.view.join_keys), "__visible_time"])
    with session(SourceError, rows.what) as connection:
        lacking = _lacking(connection, rows, snapshot, _within(covered))
        if lacking is None:
            return None
        pairs = f"SELECT {at}, count(*) AS __rows FROM {lacking} GROUP BY {at}"
        connection.execute(f"COPY ({pairs}) TO {literal(str(path))} (FORMAT parquet)")
        found = connection.execute(f"SELECT coalesce(sum(__rows), 0) FROM {parquet([path])}").fetchone()
    assert found is not None
    return LateRows(rows, snapshot, path, int(found[0])) if found[0] else None


def _within(interval: Interval) -> str:
    return f"({_VISIBLE} > {interval[0]} AND {_VISIBLE} <= {interval[1]})"
