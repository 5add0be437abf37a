"""One spine in all its kinds, and what training answers to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import FeatureStore
from tests.conftest import HOUR, NOON, TIME, WEATHER, Repo

SERVICE = "flight_weather"
TEMPERATURE, GUSTS = "airport_weather__temperature", "airport_weather__gusts"


def offline_weather(repo: Repo) -> FeatureStore:
    """Return a store with the weather of `conftest.py`, materialized until noon; nothing of it is served online."""
    repo.define(WEATHER.replace('ttl="6h"', 'ttl="6h", online=False'))
    store = repo.open()
    store.apply()
    store.materialize()
    return store


def spine(*rows: tuple[str | None, int]) -> pa.Table:
    """Return a spine of airports and instants."""
    times = [instant for _, instant in rows]
    columns = {"origin": pa.array([key for key, _ in rows], pa.string()), "event_timestamp": pa.array(times, pa.int64()).cast(TIME)}
    return pa.table(columns)


def features(store: FeatureStore, of: Any, **options: Any) -> list[tuple[float | None, int | None]]:
    """Return temperature and gusts of each row."""
    result = store.get_historical_features(of, SERVICE, **options).to_arrow()
    return list(zip(result[TEMPERATURE].to_pylist(), result[GUSTS].to_pylist(), strict=True))


ASKED = spine(("EWR", NOON), ("JFK", NOON), (None, NOON), ("EWR", NOON - HOUR), ("EWR", NOON), ("LGA", NOON))
ANSWER = [(21.0, 2**53 + 1), (None, None), (None, None), (None, None), (21.0, 2**53 + 1), (None, None)]


def parquet(table: pa.Table, folder: Path) -> Path:
    """Write a spine as a Parquet file."""
    pq.write_table(table, folder / "spine.parquet")
    return folder / "spine.parquet"


KINDS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "Arrow table": lambda table, _: table,
    "Arrow table in chunks": lambda table, _: pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1)]),
    "record batch": lambda table, _: table.to_batches()[0],
    "record batch reader": lambda table, _: table.to_reader(2),
    "pandas": lambda table, _: table.to_pandas(),
    "Polars": lambda table, _: pl.from_arrow(table),
    "DuckDB relation": lambda table, _: duckdb.from_arrow(table),
    "Path": parquet,
    "path as text": lambda table, folder: str(parquet(table, folder)),
    "SQL": lambda table, folder: f"SELECT * FROM '{parquet(table, folder)}'",
    "SQL from": lambda table, folder: f"\n FROM '{parquet(table, folder)}'",
    "SQL with": lambda table, folder: f"WITH s AS (FROM '{parquet(table, folder)}') SELECT * FROM s",
}
