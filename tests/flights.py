"""Queries over the data of the flights example."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from tests.conftest import CHECKOUT

__all__ = ["SOURCE", "query"]

SOURCE = CHECKOUT / "definitions/data/flights.parquet"


def query(text: str) -> pa.Table:
    """Return what SQL gives, in a session whose time zone is UTC."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return pa.Table.from_batches(connection.sql(text).to_arrow_reader())
