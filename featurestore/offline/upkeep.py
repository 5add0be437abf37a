"""Keeping tables: small files become large ones, files that nothing needs are removed, and the erased is written out of all.

The caller holds the lease of the table's version.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from featurestore.errors import OfflineStoreError
from featurestore.offline.session import identifier, parquet, session
from featurestore.offline.tables import DataFile, OfflineTable, Snapshot, write_file

__all__ = ["compact", "data_files", "discard_unnamed", "erase", "has_many_files", "vacuum"]

_SLAB_ROWS = 5_000_000
_MANY_FILES = 64
_READABLE_MS = 3_600_000
"""How long the files of a version that was replaced are kept for reads that have begun."""


def has_many_files(snapshot: Snapshot) -> bool:
    """Whether a table has so many small files that they should be put together."""
    return len(snapshot.files) >= _MANY_FILES and sum(1 for _ in _groups(snapshot)) > 0


def compact(table: OfflineTable, *, run: int) -> tuple[Snapshot, int]:
    """Put neighbouring small files together, in one transaction; the rows stay as they are. Returns the number of files replaced.

    Raises:
        OfflineStoreError: a file cannot be read or written; nothing has changed.

    """
    try:
        delta = table.open()
        groups = list(_groups(table.files_of(delta)))
        with session(OfflineStoreError, table.trouble) as connection:
            added = [file for group in groups for file in _merged(table, connection, group)]
        if groups:
            table.commit(delta, [file for group in groups for file in group], added, run, is_new=False)
    except (DeltaError, OSError, pa.ArrowException) as reason:
        raise OfflineStoreError(f"{table.trouble}: {reason}") from reason
    return table.snapshot(), sum(map(len, groups))


def _groups(snapshot: Snapshot) -> Iterator[list[DataFile]]:
    """Cut the files into neighbours of about a slab's rows; those that are nearly one already stay alone."""
    group: list[DataFile] = []
    for file in snapshot.files:
        if group and sum(each.rows for each in group) + file.rows > _SLAB_ROWS:
            if len(group) > 1:
                yield group
            group = []
        group.append(file)
    if len(group) > 1:
        yield group


def _merged(table: OfflineTable, connection: duckdb.DuckDBPyConnection, files: Iterable[DataFile]) -> list[DataFile]:
    keys = ", ".join(identifier(key.name) for key in table.view.join_keys)
    order = f"__key_hash, {keys}, __visible_time, __event_time, __created_time NULLS FIRST, __seq"
    source = parquet(file.path for file in files)
    return table.copy(connection, f"SELECT * FROM {source} ORDER BY {order}", source)


def vacuum(table: OfflineTable, versions: set[int], *, kept_ms: int = _READABLE_MS) -> int:
    """Remove the files that belong to none of these table versions, nor to one that was current in the last hour.

    Returns how many were removed. Reading another version fails from then on.

    Raises:
        OfflineStoreError: the table cannot be read, or a file cannot be removed.

    """
    try:
        if not DeltaTable.is_deltatable(str(table.folder)):
            return 0
        retained = versions | _recent(DeltaTable(str(table.folder)), kept_ms)
        needed = {file.path for version in retained for file in table.snapshot(version).files}
        removed = [path for path in data_files(table) if path not in needed]
        for path in removed:
            path.unlink()
    except (DeltaError, OSError) as reason:
        raise OfflineStoreError(f"{table.trouble}: {reason}") from reason
    return len(removed)


def _recent(table: DeltaTable, kept_ms: int) -> set[int]:
    """Return the newest version, and those that were the newest not long ago."""
    since = time.time_ns() // 1_000_000 - kept_ms
    found, replaced_at = set(), None
    for commit in table.history():  # the newest first
        if replaced_at is None or replaced_at >= since:
            found.add(int(commit["version"]))
        replaced_at = int(commit["timestamp"])
    return found


def discard_unnamed(table: OfflineTable) -> int:
    """Remove files that no version names, as a process leaves that was killed before its commit; returns how many.

    The caller holds the lease, so nobody is about to name one.
    """
    try:
        named = {
            action["add"]["path"]
            for log in table.folder.glob("_delta_log/*.json")
            for line in log.read_bytes().splitlines()
            if "add" in (action := orjson.loads(line))
        }
        unnamed = [path for path in table.folder.glob("*.parquet*") if path.name not in named]
        for path in unnamed:
            path.unlink()
    except (OSError, orjson.JSONDecodeError) as reason:
        raise OfflineStoreError(f"{table.trouble}: {reason}") from reason
    return len(unnamed)


def data_files(table: OfflineTable) -> list[Path]:
    """Return every data file that is there, those of older versions included."""
    return sorted(table.folder.glob("*.parquet"))


def erase(table: OfflineTable, keep: str, *, run: int) -> tuple[Snapshot, int, int]:
    """Remove the rows for which a SQL condition is false from every version that is retained.

    The newest version gets a successor. Files of older ones are written anew under their names, and the log is told their new
    sizes. Returns the new snapshot, how many rows the newest version lost, and how many files were written.

    Raises:
        OfflineStoreError: a file cannot be read or written; what is done is done, and the rest is done by the next call.

    """
    try:
        with session(OfflineStoreError, table.trouble) as connection:
            delta = table.open()
            current = table.files_of(delta).files
            touched = [(file, count) for file in current if (count := _count(connection, file.path, f"NOT ({keep})"))]
            added = [new for file, _ in touched for new in table.copy(connection, *_kept(file.path, keep))]
            if touched:
                table.commit(delta, [file for file, _ in touched], added, run)
            snapshot = table.snapshot()
            older = set(data_files(table)) - {file.path for file in snapshot.files}
            rewritten = [path for path in sorted(older) if _count(connection, path, f"NOT ({keep})")]
            for path in rewritten:
                new = path.with_name(f"{path.name}.writing")
                write_file(connection, *_kept(path, keep), new)
                new.replace(path)
        _correct_log(table.folder)
    except (DeltaError, OSError, pa.ArrowException) as reason:
        raise OfflineStoreError(f"{table.trouble}: {reason}") from reason
    return snapshot, sum(count for _, count in touched), len(added) + len(rewritten)


def _kept(path: Path, keep: str) -> tuple[str, str]:
    """Return the query of a file's rows for which a condition is true, and what it reads."""
    source = parquet([path])
    return f"SELECT * FROM {source} WHERE {keep}", source


def _correct_log(folder: Path) -> None:
    """Let the log have the sizes of files that were written anew; checkpoints, which repeat it, are left out from then on."""
    log = folder / "_delta_log"
    for file in sorted(log.glob("*.json")):
        actions = [orjson.loads(line) for line in file.read_bytes().splitlines()]
        corrected = [_correct(folder, action) for action in actions]
        if any(corrected):
            new = file.with_name(f"{file.name}.writing")
            new.write_bytes(b"\n".join(map(orjson.dumps, actions)) + b"\n")
            for checkpoint in (log / "_last_checkpoint", *log.glob("*.checkpoint*")):
                checkpoint.unlink(missing_ok=True)
            new.replace(file)


def _correct(folder: Path, action: dict[str, Any]) -> bool:
    entry = action.get("add") or action.get("remove")
    path = folder / entry["path"] if entry else None
    if entry is None or path is None or not path.exists() or entry.get("size") in (None, path.stat().st_size):
        return False
    entry["size"] = path.stat().st_size
    if entry.get("stats"):
        stats = orjson.loads(entry["stats"]) | {"numRecords": pq.read_metadata(path).num_rows}
        entry["stats"] = orjson.dumps(stats).decode()
    return True


def _count(connection: duckdb.DuckDBPyConnection, path: Path, condition: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {parquet([path])} WHERE {condition}").fetchall()[0][0])
