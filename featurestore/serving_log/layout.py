"""The serving log on disk. This docstring is its specification.

    <serving_log.path>/
        lock                             held (flock) shared while a file is written, alone while files are rewritten by an erasure
        <service>/<fingerprint>/         what was asked for (`features` for a list of features), and what gave the values
            <time>-<random>.parquet      the time of the first request, as 20130601T120000000000Z

Each file is complete or absent: it is written under a name that begins with a dot, synced, and renamed. A row is one entity of one
request; rows of a request follow each other. Columns:

    __requested_at                       timestamp[us, UTC]: the present by which the request was answered
    <column>                             the key columns and request columns, in their declared types
    <view>__<feature>                    the values served, in their declared types, in the service's order
    __<view>__status                     string: PRESENT, NOT_FOUND or OUTSIDE_MAX_AGE, of each view or alias that was looked up
    __<view>__event_time                 timestamp[us, UTC]: null where nothing was found, and in static views

The file's metadata has JSON under `featurestore.serving_log`:

    format       1
    library      the version of featurestore that wrote it
    service      the service's name, or `features`
    fingerprint  that of the selection: columns, types, view versions, code
    columns      the feature columns, in order
    keys         the type of each key and request column
    lookups      of each view or alias: name, view, version (its uid), join_keys (which column stands for which), features
    on_demand    the specs of on-demand views, in the order in which they are computed
    sample       the share of requests that was logged
    dropped      rows that this process could not log since its file before, as its queue was full or its disk failed
"""

from __future__ import annotations

import fcntl
import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from featurestore.clock import from_micros
from featurestore.definitions import Field
from featurestore.errors import OfflineStoreError
from featurestore.offline.erased import is_row_kept
from featurestore.offline.session import session
from featurestore.registry.state import Tombstones
from featurestore.types import ValueType

__all__ = [
    "REQUESTED_AT", "LogFile", "LogHeader", "LoggedLookup", "event_time_column", "locked", "log_files", "rewrite", "status_column",
    "trim", "write",
]  # fmt: skip

REQUESTED_AT = "__requested_at"
UTC_TIME = pa.timestamp("us", "UTC")
_FORMAT = 1
_ABANDONED_SECONDS = 3600
_METADATA = b"featurestore.serving_log"


def status_column(view: str) -> str:
    """Return the name of the column that has a view's statuses."""
    return f"__{view}__status"


def event_time_column(view: str) -> str:
    """Return the name of the column that has a view's event times."""
    return f"__{view}__event_time"


@dataclass(frozen=True)
class LoggedLookup:
    """One view or alias that was looked up: `join_keys` says which column stood for which join key."""

    name: str
    view: str
    version: str
    join_keys: dict[str, str]
    features: tuple[str, ...]


@dataclass(frozen=True)
class LogHeader:
    """What a file says of itself."""

    library: str
    service: str
    fingerprint: str
    columns: tuple[str, ...]
    keys: dict[str, str]
    lookups: tuple[LoggedLookup, ...]
    sample: float
    on_demand: tuple[dict[str, Any], ...] = ()
    dropped: int = 0
    format: int = _FORMAT

    def is_kept(self, tombstones: Tombstones) -> str | None:
        """Return the SQL condition that a row is of no erased key; none if nothing of its keys is erased."""
        types = _TYPES.validate_python(self.keys)
        conditions = {
            is_row_kept({key: Field(column, types[column]) for key, column in lookup.join_keys.items()}, tombstones)
            for lookup in self.lookups
        }
        return " AND ".join(sorted(filter(None, conditions))) or None


_TYPES, _HEADER = TypeAdapter(dict[str, ValueType]), TypeAdapter(LogHeader)


@dataclass(frozen=True)
class LogFile:
    """One file of the log."""

    path: Path
    header: LogHeader
    rows: int

    def read(self, tombstones: Tombstones) -> pa.Table | None:
        """Return its rows but those of erased keys; none if the file has gone since it was listed.

        Raises:
            OfflineStoreError: it cannot be read.

        """
        try:
            table = pq.read_table(self.path, partitioning=None)
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException) as reason:
            raise OfflineStoreError(f"the serving log's file {self.path} cannot be read: {reason}") from reason
        return _without_erased(table, self.header, tombstones)


def _without_erased(table: pa.Table, header: LogHeader, tombstones: Tombstones) -> pa.Table:
    condition = header.is_kept(tombstones)
    if condition is None or not len(table):
        return table
    with session(OfflineStoreError, "the serving log") as connection:
        connection.register("logged", table)
        kept = connection.sql(f"SELECT {condition} AS is_kept FROM logged").to_arrow_table()["is_kept"]
    return table.filter(kept)


def log_files(folder: Path, service: str | None = None) -> list[LogFile]:
    """Return the files of the log, or of one service, oldest first.

    Raises:
        OfflineStoreError: a file cannot be read, or is of a newer release.

    """
    found = []
    for path in sorted(folder.glob(f"{service or '*'}/*/[!.]*.parquet"), key=lambda path: (path.name, path)):
        try:
            metadata = pq.read_metadata(path)
            header = _HEADER.validate_python(orjson.loads(metadata.metadata[_METADATA]))
        except FileNotFoundError:  # retention removed it
            continue
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, ValidationError) as reason:
            raise OfflineStoreError(f"{path} is no file of a serving log that this release reads: {reason!r}") from reason
        found.append(LogFile(path, header, metadata.num_rows))
    return found


@contextmanager
def locked(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold the log's lock: shared to add a file, alone to rewrite what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def write(folder: Path, header: LogHeader, table: pa.Table, tombstones: Tombstones) -> int:
    """Add a file of what was served but to erased keys, under the lock; returns how many rows it has, and 0 if there is none.

    Raises:
        OfflineStoreError: it cannot be written; nothing is left of it.

    """
    kept = _without_erased(table, header, tombstones)
    if not len(kept):
        return 0
    first = from_micros(kept[REQUESTED_AT][0].cast(pa.int64()).as_py())
    name = f"{first:%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(6)}.parquet"
    _write(folder / header.service / header.fingerprint / name, header, kept)
    return len(kept)


def _write(path: Path, header: LogHeader, table: pa.Table) -> None:
    partial = path.with_name(f".{path.name}.partial")
    schema = table.schema.with_metadata({_METADATA: orjson.dumps(asdict(header))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            pq.write_table(table.cast(schema), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, pa.ArrowException) as reason:
        partial.unlink(missing_ok=True)
        raise OfflineStoreError(f"the serving log's file {path} cannot be written: {reason}") from reason


def rewrite(folder: Path, tombstones: Tombstones) -> int:
    """Write files anew without the rows of erased keys; returns how many rows there were.

    Raises:
        OfflineStoreError: a file cannot be read or written; what was not done is done when it is called again.

    """
    if not folder.exists():
        return 0
    erased = 0
    with locked(folder, alone=True):
        _remove_partials(folder, math.inf)  # nobody writes now
        for file in log_files(folder):
            kept = file.read(tombstones)
            if kept is None or len(kept) == file.rows:
                continue
            erased += file.rows - len(kept)
            if len(kept):
                _write(file.path, file.header, kept)
            else:
                file.path.unlink(missing_ok=True)
    return erased


def _remove_partials(folder: Path, before: float) -> None:
    for partial in folder.glob("*/*/.*.partial"):
        with suppress(FileNotFoundError):
            if partial.stat().st_mtime < before:
                partial.unlink()


def trim(folder: Path, most_bytes: int) -> int:
    """Remove the oldest files until the log takes at most so many bytes, and what killed processes left; returns how many files."""
    _remove_partials(folder, time.time() - _ABANDONED_SECONDS)
    sizes: dict[Path, int] = {}
    for path in sorted(folder.glob("*/*/[!.]*.parquet"), key=lambda path: path.name):
        try:
            sizes[path] = path.stat().st_size
        except FileNotFoundError:  # another process trims it as well
            continue
    total, removed = sum(sizes.values()), 0
    for path, size in sizes.items():
        if total <= most_bytes:
            break
        path.unlink(missing_ok=True)
        total, removed = total - size, removed + 1
    return removed
