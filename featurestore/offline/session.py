"""DuckDB sessions: the one place that opens them, so every query runs in UTC and every driver error has one translation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from featurestore.errors import FeatureStoreError

__all__ = ["identifier", "literal", "session"]


@contextmanager
def session(error: type[FeatureStoreError], what: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB session in UTC; its errors leave as `error`, introduced by `what`."""
    connection = duckdb.connect()
    try:
        connection.execute("SET TimeZone = 'UTC'; SET autoinstall_known_extensions = false")
        yield connection
    except duckdb.Error as reason:
        raise error(f"{what}: {reason}") from reason
    finally:
        connection.close()


def identifier(name: str) -> str:
    """Quote a name for DuckDB."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for DuckDB."""
    return "'" + text.replace("'", "''") + "'"
