"""The head of the push logs in SQL: arrivals, what a retry is answered with, and the rows that are in no file yet.

A push is one transaction of the registry's one writer, and acknowledged after its commit (SQLite: with its file synced to disk;
PostgreSQL: as its server commits). In it the push takes its arrival, `max(now, sealed + 1)`, so arrivals of a source increase
strictly whatever the clocks of those who push say, and its rows take the next numbers `seq`. It also looks at the **token** of what
the push was prepared for: the versions and the tombstones as they were read. If an apply, a takeover or an erasure came in between,
nothing is logged, and the push is prepared anew.

**Sealing** an instant makes what is visible until then final: no later push arrives at or before it. Training reads and runs seal
the present before they read.

**Folding** moves rows into a file (`offline/push_log.py`), which counts once it is named here, in the transaction in which the
rows go. A push with an idempotency key stays without its rows for `KEPT_KEYS_MICROS`, so that a retry gets its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from featurestore.clock import BEGINNING
from featurestore.errors import InputError
from featurestore.registry.database import Database
from featurestore.registry.schema import meta, push_files, push_sources, pushes, tombstones

__all__ = ["KEPT_KEYS_MICROS", "LogFile", "LogState", "Logged", "Pushed", "Pushes", "Token"]

KEPT_KEYS_MICROS = 7 * 86_400_000_000

Token = tuple[int, int, int]
"""What changes with every apply, takeover and erasure."""


@dataclass(frozen=True)
class Logged:
    """A push that is in the log. `previous` is the arrival of the one before; `is_new`: this call has logged it."""

    arrival: int
    first_seq: int
    rows: int
    previous: int | None
    is_new: bool


@dataclass(frozen=True)
class Pushed:
    """The rows of one push that are in no file yet."""

    arrival: int
    first_seq: int
    rows: int
    payload: bytes


@dataclass(frozen=True)
class LogFile:
    """A file of a log, and the arrivals that it holds, both inclusive."""

    name: str
    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class LogState:
    """Where a log stands: all instants are arrivals, `rows` were ever pushed, `waiting` of them are in no file yet."""

    sealed: int
    last_push: int | None
    rows: int
    folded: int | None
    files: tuple[LogFile, ...]
    waiting: int


class Pushes:
    """The logs of all push sources of one registry."""

    def __init__(self, database: Database) -> None:
        self._transaction = database.transaction

    def token(self) -> Token:
        """Return the token of what a push is prepared for."""
        with self._transaction() as connection:
            return _token(connection)

    def append(
        self, source: str, rows: int, payload: bytes, token: Token, *, key: str | None = None, digest: str | None = None, now: int
    ) -> Logged | None:
        """Log a push, and return it; one with the same key returns the first, none where the token is of the past.

        Raises:
            InputError: the key was used for a push of other rows.

        """
        with self._transaction(write=True) as connection:
            state = connection.execute(sa.select(push_sources).where(push_sources.c.source == source)).first()
            if key is not None and (known := _known(connection, source, key, digest)) is not None:
                return known
            if _token(connection) != token:
                return None
            previous, first = (None, 0) if state is None else (state.last_push, state.rows)
            arrival = now if state is None else max(now, state.sealed + 1)
            moved = {"sealed": arrival, "last_push": arrival, "rows": first + rows}
            _move(connection, source, moved, is_new=state is None)
            entry = {"arrival": arrival, "first_seq": first, "rows": rows, "payload": payload}
            connection.execute(pushes.insert().values(source=source, idempotency_key=key, digest=digest, **entry))
            return Logged(arrival, first, rows, previous, is_new=True)

    def find(self, source: str, key: str, digest: str) -> Logged | None:
        """Return the push that was logged with a key; InputError if it was one of other rows."""
        with self._transaction() as connection:
            return _known(connection, source, key, digest)

    def seal(self, source: str, now: int) -> int:
        """Make all until the present, and until the last push, final; returns that instant."""
        with self._transaction(write=True) as connection:
            sealed = connection.execute(
                sa.select(push_sources.c.sealed).where(push_sources.c.source == source)
            ).scalar_one_or_none()
            if sealed is not None and sealed >= now:
                return int(sealed)
            moved = {"sealed": now} | ({} if sealed is not None else {"rows": 0})
            _move(connection, source, moved, is_new=sealed is None)
            return now

    def state(self, source: str) -> LogState:
        """Return where the log of a source stands."""
        with self._transaction() as connection:
            return _state(connection, source)

    def sources(self) -> list[str]:
        """Return the sources that have a log."""
        with self._transaction() as connection:
            return list(connection.execute(sa.select(push_sources.c.source).order_by(push_sources.c.source)).scalars())

    def since(self, source: str, after: int) -> tuple[LogState, list[Pushed]]:
        """Return where a log stands, and its pushes after an arrival whose rows are in no file, in the order of arrival."""
        with self._transaction() as connection:
            return _state(connection, source), list(_waiting(connection, source, after))

    # Folding

    def waiting(self, source: str, until: int) -> Iterator[Pushed]:
        """Give the pushes until an arrival whose rows are in no file, in the order of arrival, one at a time."""
        after = BEGINNING - 1
        while True:
            with self._transaction() as connection:
                found = next(_waiting(connection, source, after, until), None)
            if found is None:
                return
            yield found
            after = found.arrival

    def fold(self, source: str, until: int, files: Sequence[LogFile], *, now: int) -> None:
        """Name the files that hold all rows until an arrival that were in none, and let go of these."""
        with self._transaction(write=True) as connection:
            for file in files:
                connection.execute(push_files.insert().values(source=source, **vars(file)))
            mine = pushes.c.source == source
            connection.execute(sa.update(pushes).where(mine, pushes.c.arrival <= until).values(payload=None))
            is_over = pushes.c.idempotency_key.is_(None) | (pushes.c.arrival < now - KEPT_KEYS_MICROS)
            connection.execute(sa.delete(pushes).where(mine, pushes.c.payload.is_(None), is_over))
            connection.execute(sa.update(push_sources).where(push_sources.c.source == source).values(folded=until))

    def replace_files(self, source: str, old: Sequence[str], new: Sequence[LogFile]) -> None:
        """Name other files in the place of some."""
        with self._transaction(write=True) as connection:
            connection.execute(sa.delete(push_files).where(push_files.c.source == source, push_files.c.name.in_(old)))
            for file in new:
                connection.execute(push_files.insert().values(source=source, **vars(file)))

    def rewrite(self, source: str, push: Pushed, payload: bytes) -> None:
        """Put other rows in the place of those of a push."""
        is_it = (pushes.c.source == source) & (pushes.c.arrival == push.arrival)
        with self._transaction(write=True) as connection:
            connection.execute(sa.update(pushes).where(is_it).values(payload=payload))

    def forget(self, source: str) -> None:
        """Remove the log of a source, but not its files."""
        with self._transaction(write=True) as connection:
            for table in (pushes, push_files, push_sources):
                connection.execute(sa.delete(table).where(table.c.source == source))


def _token(connection: sa.Connection) -> Token:
    buried = sa.select(sa.func.max(tombstones.c.id)).scalar_subquery()
    lifted = sa.select(sa.func.count()).where(tombstones.c.lifted_at.is_not(None)).scalar_subquery()
    row = connection.execute(sa.select(meta.c.revision, buried, lifted)).one()
    return row[0], row[1] or 0, row[2]


def _known(connection: sa.Connection, source: str, key: str, digest: str | None) -> Logged | None:
    row = connection.execute(sa.select(pushes).where(pushes.c.source == source, pushes.c.idempotency_key == key)).first()
    if row is None:
        return None
    if row.digest != digest:
        raise InputError(
            f"the idempotency key {key!r} was used for a push of other rows; give each push a key of its own", name=key
        )
    return Logged(row.arrival, row.first_seq, row.rows, None, is_new=False)


def _move(connection: sa.Connection, source: str, values: dict[str, Any], *, is_new: bool) -> None:
    if is_new:
        connection.execute(push_sources.insert().values(source=source, **values))
    else:
        connection.execute(sa.update(push_sources).where(push_sources.c.source == source).values(values))


def _state(connection: sa.Connection, source: str) -> LogState:
    state = connection.execute(sa.select(push_sources).where(push_sources.c.source == source)).first()
    files = connection.execute(sa.select(push_files).where(push_files.c.source == source).order_by(push_files.c.first)).all()
    named = tuple(LogFile(file.name, file.first, file.last, file.rows) for file in files)
    if state is None:
        return LogState(BEGINNING - 1, None, 0, None, named, 0)
    held = sa.select(sa.func.coalesce(sa.func.sum(pushes.c.rows), 0)).where(
        pushes.c.source == source, pushes.c.arrival > (BEGINNING - 1 if state.folded is None else state.folded)
    )
    return LogState(state.sealed, state.last_push, state.rows, state.folded, named, int(connection.execute(held).scalar_one()))


def _waiting(connection: sa.Connection, source: str, after: int, until: int | None = None) -> Iterator[Pushed]:
    columns = (pushes.c.arrival, pushes.c.first_seq, pushes.c.rows, pushes.c.payload)
    query = sa.select(*columns).where(pushes.c.source == source, pushes.c.arrival > after, pushes.c.payload.is_not(None))
    if until is not None:
        query = query.where(pushes.c.arrival <= until).limit(1)
    for row in connection.execute(query.order_by(pushes.c.arrival)):
        yield Pushed(row.arrival, row.first_seq, row.rows, bytes(row.payload))
