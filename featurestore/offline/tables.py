"""Offline tables: one Delta table per view version. This docstring is the layout's specification.

Columns, in this order:

    <join keys>      declared types, never null
    __event_time     timestamp[us, UTC]; null in static tables
    __created_time   timestamp[us, UTC]; null where the source does not say
    __visible_time   timestamp[us, UTC]; when serving could first have returned the row (T3)
    __seq            int64; file and row order, the last tie-break of T4
    __key_hash       int64; see `keys.py`, whose algorithm the table names as `featurestore.keyHash`
    <features>       declared types

Files are **slabs of visible time**: the intervals of visible time of any two files are disjoint, and a file's name states its own
as `<first>_<last>_<random>.parquet`, in microseconds. How long a slab is follows from the number of rows, as the writer chooses.
Within a file rows are sorted by (__key_hash, join keys, __visible_time, __event_time, __created_time nulls first, __seq), so the
rows of one key lie together and those of any range of hashes form a range of row groups.

An interval `(start, end]` of visible time is replaced by one Delta transaction that removes the files inside it, cuts those across
its bounds, and adds the new rows. It carries the run's number as application transaction and is never retried: a writer that
read an older version than the newest fails.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from featurestore.clock import from_micros
from featurestore.definitions import FeatureView
from featurestore.errors import OfflineStoreError
from featurestore.offline.keys import ALGORITHM, key_hash
from featurestore.offline.session import identifier, literal, parquet, session

__all__ = ["DataFile", "OfflineTable", "Snapshot", "table_schema"]

_TIME = pa.timestamp("us", "UTC")
HIDDEN = ("__event_time", "__created_time", "__visible_time", "__seq", "__key_hash")


def table_schema(view: FeatureView) -> pa.Schema:
    """Return the Arrow schema of a view's table."""
    times = [pa.field(name, _TIME) for name in HIDDEN[:3]]
    return pa.schema(
        [
            *(pa.field(key.name, key.type.arrow, nullable=False) for key in view.join_keys),
            *times,
            pa.field("__seq", pa.int64(), nullable=False),
            pa.field("__key_hash", pa.int64(), nullable=False),
            *(pa.field(field.name, field.type.arrow) for field in view.fields),
        ]
    )


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table and the visible times, both inclusive, that it holds."""

    path: Path
    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Snapshot:
    """A table at one version: its files in the order of their visible times."""

    version: int
    files: tuple[DataFile, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows the table holds at this version."""
        return sum(file.rows for file in self.files)

    def bytes_per_row(self, columns: Sequence[str]) -> int:
        """Estimate how many bytes a row of these columns takes, from what the files say; at least 1."""
        largest = 1
        for file in self.files:
            try:
                groups = pq.read_metadata(file.path)
            except (OSError, pa.ArrowException) as reason:
                raise OfflineStoreError(f"cannot read {file.path}: {reason}") from reason
            parts = [groups.row_group(number) for number in range(groups.num_row_groups)]
            stored = [part.column(index) for part in parts for index in range(part.num_columns)]
            size = sum(each.total_uncompressed_size for each in stored if each.path_in_schema.split(".")[0] in columns)
            largest = max(largest, size // max(1, file.rows))
        return largest


class OfflineTable:
    """The Delta table of one view version, in a folder of its own."""

    def __init__(self, folder: Path, view: FeatureView) -> None:
        self.folder = folder
        self.view = view
        self.schema = table_schema(view)

    def snapshot(self, version: int | None = None) -> Snapshot:
        """Return the table at a version, the newest without one. Before the first commit it is version -1 and empty."""
        try:
            if version == -1 or not DeltaTable.is_deltatable(str(self.folder)):
                return Snapshot(-1)
            return self._snapshot(DeltaTable(str(self.folder), version=version))
        except (DeltaError, OSError) as reason:
            raise OfflineStoreError(f"cannot read the table of view {self.view.name!r} at {self.folder}: {reason}") from reason

    def _snapshot(self, table: DeltaTable) -> Snapshot:
        actions = pa.table(table.get_add_actions(flatten=True)).select(["path", "num_records"]).to_pylist()
        files = [self._file(action["path"], action["num_records"]) for action in actions]
        return Snapshot(table.version(), tuple(sorted(files, key=lambda file: file.first)))

    def _file(self, name: str, rows: int) -> DataFile:
        first, last, _ = name.split("_", 2)
        return DataFile(self.folder / name, int(first), int(last), rows)

    def replace(self, start: int, end: int, rows: pa.RecordBatchReader, *, run: int) -> tuple[Snapshot, int]:
        """Replace the rows with `start < visible time <= end` by `rows`, in one transaction.

        `rows` has the table's columns except `__key_hash`, in any order of rows, all inside the interval. Returns the new snapshot
        and how many rows the interval now has.

        Raises:
            OfflineStoreError: the rows cannot be written, or another writer has committed in between; nothing has changed.

        """
        before: list[Path] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob("*.writing"):
                leftover.unlink()
            before = list(self.folder.glob("*.parquet"))
            return self._replace(start, end, rows, run)
        except (DeltaError, OSError) as reason:
            self._discard_since(before)
            raise OfflineStoreError(f"{self._trouble}: {reason}") from reason
        except BaseException:
            self._discard_since(before)
            raise

    def _replace(self, start: int, end: int, rows: pa.RecordBatchReader, run: int) -> tuple[Snapshot, int]:
        table = self._open_or_create()
        touched = [file for file in self._snapshot(table).files if file.last > start and file.first <= end]
        with session(OfflineStoreError, self._trouble) as connection:
            added = self._write_sorted(connection, rows)
            rests = [rest for file in touched for rest in self._write_rest(connection, file, start, end)]
        if touched or added:
            self._commit(table, touched, [*added, *rests], run)
        return self.snapshot(), sum(file.rows for file in added)

    def _discard_since(self, before: Sequence[Path]) -> None:
        """Remove the files of a transaction that failed; runs exclude each other, so whatever is new is its own."""
        committed = {file.path for file in self.snapshot().files}
        for path in self.folder.glob("*.parquet*"):
            if path not in before and path not in committed:
                path.unlink(missing_ok=True)

    def discard_unnamed(self) -> int:
        """Remove files that no version names, as a process leaves that was killed before its commit; returns how many.

        The caller holds the lease, so nobody is about to name one.
        """
        try:
            named = {
                action["add"]["path"]
                for log in self.folder.glob("_delta_log/*.json")
                for line in log.read_bytes().splitlines()
                if "add" in (action := orjson.loads(line))
            }
            unnamed = [path for path in self.folder.glob("*.parquet*") if path.name not in named]
            for path in unnamed:
                path.unlink()
        except (OSError, orjson.JSONDecodeError) as reason:
            raise OfflineStoreError(f"{self._trouble}: {reason}") from reason
        return len(unnamed)

    def data_files(self) -> list[Path]:
        """Return every data file that is there, those of older versions included."""
        return sorted(self.folder.glob("*.parquet"))

    def erase(self, keep: str, *, run: int) -> tuple[Snapshot, int, int]:
        """Remove the rows for which a SQL condition is false from every version that is retained.

        The newest version gets a successor. Files of older ones are written anew under their names, and the log is told their new
        sizes. Returns the new snapshot, how many rows the newest version lost, and how many files were written.

        Raises:
            OfflineStoreError: a file cannot be read or written; what is done is done, and the rest is done by the next call.

        """
        try:
            with session(OfflineStoreError, self._trouble) as connection:
                table = self._open_or_create()
                current = self._snapshot(table).files
                touched = [(file, count) for file in current if (count := _count(connection, file.path, f"NOT ({keep})"))]
                query = "SELECT * FROM {} WHERE " + keep
                added = [new for file, _ in touched for new in self._copy(connection, query.format(parquet([file.path])))]
                if touched:
                    self._commit(table, [file for file, _ in touched], added, run)
                snapshot = self.snapshot()
                older = set(self.data_files()) - {file.path for file in snapshot.files}
                rewritten = [path for path in sorted(older) if _count(connection, path, f"NOT ({keep})")]
                for path in rewritten:
                    new = path.with_name(f"{path.name}.writing")
                    connection.execute(
                        f"COPY ({query.format(parquet([path]))}) TO {literal(str(new))} (FORMAT parquet, COMPRESSION zstd)"
                    )
                    new.replace(path)
            self._correct_log()
        except (DeltaError, OSError, pa.ArrowException) as reason:
            raise OfflineStoreError(f"{self._trouble}: {reason}") from reason
        return snapshot, sum(count for _, count in touched), len(added) + len(rewritten)

    def _correct_log(self) -> None:
        """Let the log have the sizes of files that were written anew; checkpoints, which repeat it, are left out from then on."""
        log = self.folder / "_delta_log"
        for file in sorted(log.glob("*.json")):
            actions = [orjson.loads(line) for line in file.read_bytes().splitlines()]
            corrected = [self._correct(action) for action in actions]
            if any(corrected):
                new = file.with_name(f"{file.name}.writing")
                new.write_bytes(b"\n".join(map(orjson.dumps, actions)) + b"\n")
                for checkpoint in (log / "_last_checkpoint", *log.glob("*.checkpoint*")):
                    checkpoint.unlink(missing_ok=True)
                new.replace(file)

    def _correct(self, action: dict[str, Any]) -> bool:
        entry = action.get("add") or action.get("remove")
        path = self.folder / entry["path"] if entry else None
        if entry is None or path is None or not path.exists() or entry.get("size") in (None, path.stat().st_size):
            return False
        entry["size"] = path.stat().st_size
        if entry.get("stats"):
            stats = orjson.loads(entry["stats"]) | {"numRecords": pq.read_metadata(path).num_rows}
            entry["stats"] = orjson.dumps(stats).decode()
        return True

    @property
    def _trouble(self) -> str:
        return f"cannot write the table of view {self.view.name!r} at {self.folder}"

    def _open_or_create(self) -> DeltaTable:
        if DeltaTable.is_deltatable(str(self.folder)):
            return DeltaTable(str(self.folder))
        # `enableExpiredLogCleanup`: a training set names the versions that it read, so none may be forgotten behind our back.
        configuration = {"delta.enableExpiredLogCleanup": "false", "featurestore.keyHash": ALGORITHM}
        return DeltaTable.create(
            str(self.folder),
            schema=Schema.from_arrow(self.schema),
            name=self.view.name,
            configuration=configuration,
            raise_if_key_not_exists=False,
        )

    def _write_sorted(self, connection: duckdb.DuckDBPyConnection, rows: pa.RecordBatchReader) -> list[DataFile]:
        columns = ", ".join(identifier(field.name) for field in self.schema)
        keys = ", ".join(identifier(key.name) for key in self.view.join_keys)
        order = f"__key_hash, {keys}, __visible_time, __event_time, __created_time NULLS FIRST, __seq"
        connection.register("new_rows", self._with_hash(rows))
        return self._copy(connection, f"SELECT {columns} FROM new_rows ORDER BY {order}")

    def _with_hash(self, rows: pa.RecordBatchReader) -> pa.RecordBatchReader:
        schema = rows.schema.append(pa.field("__key_hash", pa.int64()))
        batches = (
            pa.RecordBatch.from_arrays(
                [*batch.columns, pa.array(key_hash([batch.column(key.name) for key in self.view.join_keys]))], schema=schema
            )
            for batch in rows
        )
        return pa.RecordBatchReader.from_batches(schema, batches)

    def _write_rest(self, connection: duckdb.DuckDBPyConnection, file: DataFile, start: int, end: int) -> Iterator[DataFile]:
        """Write again what a file holds before and after the interval; a filter over one file keeps its order."""
        if file.first <= start:
            yield from self._copy(connection, f"SELECT * FROM {parquet([file.path])} WHERE epoch_us(__visible_time) <= {start}")
        if file.last > end:
            yield from self._copy(connection, f"SELECT * FROM {parquet([file.path])} WHERE epoch_us(__visible_time) > {end}")

    def _copy(self, connection: duckdb.DuckDBPyConnection, query: str) -> list[DataFile]:
        unnamed = self.folder / f"{uuid.uuid4().hex[:16]}.parquet.writing"
        connection.execute(f"COPY ({query}) TO {literal(str(unnamed))} (FORMAT parquet, COMPRESSION zstd)")
        bounds = "min(epoch_us(__visible_time)), max(epoch_us(__visible_time)), count(*)"
        first, last, rows = connection.execute(f"SELECT {bounds} FROM {parquet([unnamed])}").fetchall()[0]
        if not rows:
            unnamed.unlink()
            return []
        named = unnamed.with_name(f"{first}_{last}_{unnamed.name.removesuffix('.writing')}")
        unnamed.rename(named)
        return [DataFile(named, first, last, rows)]

    def _commit(self, table: DeltaTable, removed: Sequence[DataFile], added: Sequence[DataFile], run: int) -> None:
        now = time.time_ns() // 1_000_000
        actions: list[AddAction | RemoveAction] = [_add(file, now) for file in added]
        actions += [
            RemoveAction(file.path.name, data_change=True, deletion_timestamp=now, size=file.path.stat().st_size)
            for file in removed
        ]
        table.create_write_transaction(
            actions,
            mode="append",
            schema=table.schema(),
            commit_properties=CommitProperties(
                max_commit_retries=0, app_transactions=[Transaction("featurestore", run)], custom_metadata={"run": str(run)}
            ),
        )


def _count(connection: duckdb.DuckDBPyConnection, path: Path, condition: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {parquet([path])} WHERE {condition}").fetchall()[0][0])


def _add(file: DataFile, now: int) -> AddAction:
    stats = {
        "numRecords": file.rows,
        "minValues": {"__visible_time": _stamp(file.first)},
        "maxValues": {"__visible_time": _stamp(file.last)},
    }
    return AddAction(
        path=file.path.name,
        size=file.path.stat().st_size,
        partition_values={},
        modification_time=now,
        data_change=True,
        stats=orjson.dumps(stats).decode(),
    )


def _stamp(instant: int) -> str:
    return from_micros(instant).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
