"""Looking at a source before a run: how many rows it has where, and what will be skipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb

from featurestore.errors import SourceError
from featurestore.offline.session import identifier
from featurestore.offline.sources import ViewRows

__all__ = ["Survey", "find_duplicate_key", "survey"]

_DAY = 86_400_000_000
_VISIBLE = "epoch_us(__visible_time)"


@dataclass(frozen=True)
class Survey:
    """What a source holds for an interval: its rows by day of visible time, and what the run will skip."""

    days: tuple[tuple[int, int], ...]
    null_keys: int
    null_times: int
    gap_rows: int

    @property
    def rows(self) -> int:
        """How many rows the interval will have."""
        return sum(count for _, count in self.days)

    def chunks(self, start: int, end: int, rows: int) -> Iterator[tuple[int, int]]:
        """Cut `(start, end]` between days into intervals of about so many rows."""
        first, held = start, 0
        for day, count in self.days[:-1]:
            held += count
            boundary = (day + 1) * _DAY - 1
            if held >= rows and first < boundary < end:
                yield first, boundary
                first, held = boundary, 0
        yield first, end


def survey(connection: duckdb.DuckDBPyConnection, rows: ViewRows, interval: tuple[int, int], gap: tuple[int, int]) -> Survey:
    """Count the source's rows in an interval of visible time, and in one that the run would leave uncovered."""
    query = f"""
        SELECT {_VISIBLE} // {_DAY},
               count(*) FILTER ({rows.keys_present} AND {rows.visible_within(*interval)}),
               count(*) FILTER (NOT ({rows.keys_present}) AND {rows.visible_within(*interval)}),
               count(*) FILTER (__visible_time IS NULL),
               count(*) FILTER ({rows.keys_present} AND {rows.visible_within(*gap)})
        FROM {rows.sql} GROUP BY 1 ORDER BY 1"""
    found = connection.execute(query).fetchall()
    days = tuple((row[0], row[1]) for row in found if row[1])
    return Survey(days, sum(row[2] for row in found), sum(row[3] for row in found), sum(row[4] for row in found))


def find_duplicate_key(connection: duckdb.DuckDBPyConnection, rows: ViewRows) -> None:
    """Raise SourceError if a key stands in more than one row, which a static view cannot have (T13)."""
    keys = ", ".join(identifier(key.name) for key in rows.view.join_keys)
    query = (
        f"SELECT count(*), {keys} FROM {rows.sql} WHERE {rows.keys_present} GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1"
    )
    found = connection.sql(query).to_arrow_table().to_pylist()
    if found:
        count, *key = found[0].values()
        named = ", ".join(f"{name.name}={value!r}" for name, value in zip(rows.view.join_keys, key, strict=True))
        raise SourceError(
            f"view {rows.view.name!r}: source {rows.view.source.name!r} is static, but {named} stands in {count} rows; "
            "make its keys unique, or give it an event_time"
        )
