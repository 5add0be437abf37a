"""Leases: runs on one view version exclude each other, by a lock that is freed when its process ends, however it ends.

With an SQLite registry the lock is the kernel's (flock), on a file in a folder `<database>.leases` beside it. With PostgreSQL,
which several machines can share, it is an advisory lock of a session on a connection of its own, and the server frees it with that.
A holder that lost its connection unnoticed is kept from recording anything by the registry, where a later run has closed its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from featurestore.errors import RegistryError, RunInProgressError
from featurestore.registry.database import Database

__all__ = ["advisory_holder", "advisory_lease", "advisory_turn", "holder", "lease", "turn"]

# Whoever looks who holds a lease has it for a moment, and must not be taken for a holder.
_ATTEMPTS = 3
_ATTEMPT_SECONDS = 0.01

_TURN_SECONDS = 0.0002
_LONGEST_TURN_SECONDS = 0.005

_ADVISORY_HOLDER = sa.text("""
    SELECT a.application_name, to_char(a.query_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.classid::bigint = :high AND l.objid::bigint = :low
""")


@contextmanager
def lease(folder: Path, name: str, what: str, *, makes_folder: bool = True) -> Iterator[None]:
    """Hold the lease of a name, `what` being its name for people.

    Raises:
        RegistryError: the lock's file cannot be made.
        RunInProgressError: another process, or another thread of this one, holds it; says which and since when.

    """
    try:
        if makes_folder:
            folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as reason:
        raise RegistryError(f"cannot make the lock for {what} in {folder}: {reason}") from reason
    try:
        if not _locked(file):
            raise _refusal(what, _written(file))
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}".encode(), 0)
        yield
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_ATTEMPT_SECONDS)
        else:
            return True
    return False


@contextmanager
def turn(folder: Path, name: str, seconds: float) -> Iterator[bool]:
    """Wait for one's turn at a name, of which each lasts a moment; gives whether it came within so many seconds."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / f"{name}.turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as reason:
        raise RegistryError(f"cannot make the lock {name!r} in {folder}: {reason}") from reason
    try:
        yield _waited(lambda: _taken(file), seconds)
    finally:
        os.close(file)


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _waited(attempt: Callable[[], bool], seconds: float) -> bool:
    deadline, pause = time.monotonic() + seconds, _TURN_SECONDS
    while not attempt():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_TURN_SECONDS)
    return True


def holder(folder: Path, name: str) -> str | None:
    """Say who holds the lease of a name; none if it is free."""
    try:
        file = os.open(folder / f"{name}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as reason:
        raise RegistryError(f"cannot look at the locks in {folder}: {reason}") from reason
    try:
        # Shared, so that those who only look do not take each other for one.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _written(file)
    else:
        return None
    finally:
        os.close(file)


def _written(file: int) -> str:
    return os.pread(file, 200, 0).decode(errors="replace") or "a process that just began"


@contextmanager
def advisory_lease(database: Database, name: str, what: str) -> Iterator[None]:
    """Hold the lease of a name on PostgreSQL; raises as `lease` does."""
    with database.session() as connection:
        if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(_key(name)))).scalar_one():
            raise _refusal(what, _session_of(connection, name) or "a session that just ended")
        try:
            yield
        finally:
            # The server notices the end of a session a moment later, and the next run may be there by then.
            with suppress(SQLAlchemyError):
                connection.execute(sa.select(sa.func.pg_advisory_unlock(_key(name))))


def advisory_holder(database: Database, name: str) -> str | None:
    """Say who holds the lease of a name on PostgreSQL; none if it is free."""
    with database.transaction() as connection:
        return _session_of(connection, name)


@contextmanager
def advisory_turn(database: Database, name: str, seconds: float) -> Iterator[bool]:
    """Wait for one's turn at a name on PostgreSQL, as `turn` does; it ends with the transaction, and that with its process."""
    with database.transaction() as connection:
        attempt = sa.select(sa.func.pg_try_advisory_xact_lock(_key(name)))
        yield _waited(lambda: bool(connection.execute(attempt).scalar_one()), seconds)


def _session_of(connection: sa.Connection, name: str) -> str | None:
    key = _key(name) % 2**64
    found = connection.execute(_ADVISORY_HOLDER, {"high": key >> 32, "low": key & 0xFFFFFFFF}).first()
    return None if found is None else f"{found[0] or 'another session'} since {found[1]}"


def _key(name: str) -> int:
    """Return the 64 bits that stand for a name among the advisory locks of its database."""
    return int.from_bytes(hashlib.blake2b(f"featurestore lease {name}".encode(), digest_size=8).digest(), "little", signed=True)


def _refusal(what: str, by: str) -> RunInProgressError:
    return RunInProgressError(f"{what} is being materialized by {by}; wait until it ends, or end it")
