"""DuckDB sessions: the one place that opens them, so every query runs in UTC and every driver error has one translation."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import duckdb

from featurestore.errors import FeatureStoreError

__all__ = ["configure", "identifier", "literal", "parquet", "session"]

_LOGGER = logging.getLogger("featurestore")
_OPENING = threading.Lock()


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """Return the process's one database: opening another costs as much as a small query, and would have memory of its own."""
    return duckdb.connect(config={"autoinstall_known_extensions": "false"})


_limits: dict[str, str] = {}
_in_force: dict[str, str] = {}


def configure(*, memory_bytes: int, threads: int, temp_folder: Path | None) -> None:
    """Bound the process's one database, from the next session on. Once it has spilled, its temporary folder stays where it is."""
    with _OPENING:
        _limits.update(memory_limit=f"{memory_bytes}B", threads=str(threads))
        if temp_folder is not None:
            _limits["temp_directory"] = str(temp_folder)


@contextmanager
def session(error: type[FeatureStoreError], what: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB session in UTC; its errors leave as `error`, introduced by `what`."""
    try:
        with _OPENING:
            connection = _database().cursor()
            if _limits != _in_force:
                _limit(connection)
    except duckdb.Error as reason:
        raise error(f"{what}: {reason}") from reason
    try:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection
    except (duckdb.Error, RuntimeError) as reason:
        # DuckDB turns Ctrl-C into an error of its own, and a Python one that it met into its text.
        if "KeyboardInterrupt" in str(reason) or "Query interrupted" in str(reason):
            raise KeyboardInterrupt from reason
        if isinstance(reason, RuntimeError) and not isinstance(reason, duckdb.Error):
            raise
        raise error(f"{what}: {reason}") from reason
    finally:
        connection.close()


def _limit(connection: duckdb.DuckDBPyConnection) -> None:
    for name, value in _limits.items():
        if _in_force.get(name) == value:
            continue
        try:
            connection.execute(f"SET GLOBAL {name} = {literal(value)}")
        except duckdb.NotImplementedException as reason:  # it has spilled, into the folder of a store before
            _LOGGER.warning("offline.%s = %s has no effect in this process: %s", name, value, reason)
        _in_force[name] = value


def identifier(name: str) -> str:
    """Quote a name for DuckDB."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for DuckDB."""
    return "'" + text.replace("'", "''") + "'"


def parquet(files: Iterable[str | Path]) -> str:
    """Return files as a DuckDB table. Their names are no patterns, their folders no columns, and a column's types may differ."""
    names = (literal(re.sub(r"([*?\[])", r"[\1]", str(file))) for file in files)
    return f"read_parquet([{', '.join(names)}], union_by_name = true, hive_partitioning = false)"
