"""The registry's database: its connections and transactions, and the one place where the driver's errors become ours.

    SQLite        a file; a writer takes the file's lock at its beginning, a reader sees the state of its first statement
    PostgreSQL    a server that several machines can share; a writer takes an advisory lock at its beginning, and a reader
                  runs in REPEATABLE READ, so that both see what they would on SQLite

So there is one writer at a time, and it reads nothing that another is about to change.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from featurestore.errors import MissingDependencyError, RegistryError

__all__ = ["Database"]

_WRITER = 0x6665_6174_7265_0001
"""The advisory lock of whoever writes a registry; in PostgreSQL such locks belong to one database."""

# A server notices within a minute that a machine is gone, and frees its locks; one that only lost its process, at once.
_KEEPALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}


class Database:
    """An engine and its transactions. `shown_url` stands for the URL in messages."""

    def __init__(self, url: str, shown_url: str) -> None:
        self.shown_url = shown_url
        self._engine = _engine(url, shown_url)
        # Sessions are held for hours, and must not wait for each other in a pool.
        self._sessions = sa.create_engine(self._engine.url, poolclass=sa.NullPool) if self.is_postgresql else self._engine

    @property
    def is_postgresql(self) -> bool:
        """Whether this is PostgreSQL rather than SQLite."""
        return self._engine.dialect.name == "postgresql"

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database; none if it has none."""
        name = self._engine.url.database
        return None if self.is_postgresql or not name or name == ":memory:" else Path(name)

    def connections(self) -> dict[str, int]:
        """Return how many connections of the pool are at work, and how many wait for some."""
        pool = self._engine.pool
        return {"busy": pool.checkedout(), "idle": pool.checkedin()} if isinstance(pool, sa.QueuePool) else {}

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[sa.Connection]:
        """Give a connection in a transaction, which is committed at the end and rolled back after an error."""
        with self.translated(), self._engine.connect() as opened:
            connection = opened.execution_options(is_write=write)
            if self.is_postgresql:
                connection.execution_options(isolation_level="READ COMMITTED" if write else "REPEATABLE READ")
            with connection.begin():
                if self.is_postgresql and write:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER)))
                yield connection

    @contextmanager
    def session(self) -> Iterator[sa.Connection]:
        """Give a connection of its own that is closed at the end: what its session holds ends with it, or with its process."""
        with self.translated(), self._sessions.connect() as opened:
            connection = opened.execution_options(isolation_level="AUTOCOMMIT")
            for name, value in _KEEPALIVE.items():
                connection.exec_driver_sql(f"SET {name} = {value}")
            yield connection

    def shred(self, table: str) -> None:
        """Let what was deleted from a table leave the disk, as far as the database can now: what still reads it holds it."""
        if self.is_postgresql:
            with self.session() as connection:
                connection.exec_driver_sql(f"VACUUM {table}")
            return
        with self.translated():
            opened = self._engine.raw_connection()
            try:
                opened.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                opened.close()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Let the driver's errors leave as RegistryError that names the registry."""
        try:
            yield
        except SQLAlchemyError as reason:
            cause = " ".join(str(getattr(reason, "orig", None) or reason).split())
            raise RegistryError(f"the registry {self.shown_url} failed: {cause}") from reason


def _engine(url: str, shown_url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "postgresql":
            return _postgresql(parsed)
        if parsed.get_backend_name() != "sqlite":
            raise RegistryError(f"cannot open the registry {shown_url}: it must be a sqlite or postgresql URL")
        engine = sa.create_engine(parsed)
        if engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    except ModuleNotFoundError as reason:
        if url.startswith("postgres"):
            raise MissingDependencyError("psycopg", "postgres", "a PostgreSQL registry") from reason
        raise RegistryError(f"cannot open the registry {shown_url}: {reason}") from reason
    except (SQLAlchemyError, OSError, TypeError) as reason:
        raise RegistryError(f"cannot open the registry {shown_url}: {reason}") from reason
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _postgresql(url: sa.URL) -> sa.Engine:
    defaults = {"connect_timeout": "10", "application_name": _session_name()}
    url = url.update_query_dict({name: value for name, value in defaults.items() if name not in url.query})
    # A server that was restarted is asked again; a session that it closed is not taken for one.
    return sa.create_engine(url, pool_pre_ping=True)


def _session_name() -> str:
    """Name the session after its process, so that whoever waits for a lease knows for whom."""
    return f"process {os.getpid()} on {socket.gethostname()}"[:63]


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy, not the driver, begins transactions: the driver would begin them late and as readers.
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 20000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")  # pushed rows are here for a while, and may have to be erased


def _begin_sqlite(connection: sa.Connection) -> None:
    # A reader that turns writer half-way fails where another wrote in between; a writer says so at the start and waits.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options()["is_write"] else "BEGIN")
