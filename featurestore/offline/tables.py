"""Offline tables: one Delta table per view version. This docstring is the layout's specification.

Columns, in this order:

    <join keys>      declared types, never null
    __event_time     timestamp[us, UTC]; null in static tables
    __created_time   timestamp[us, UTC]; null where the source does not say
    __visible_time   timestamp[us, UTC]; when serving could first have returned the row (T3)
    __seq            int64; file and row order, the last tie-break of T4
    __key_hash       int64; see `keys.py`, whose algorithm the table names as `featurestore.keyHash`
    <features>       declared types; in an aggregated view the columns that its aggregations need

Files are **slabs of visible time**: the intervals of visible time of any two files are disjoint, and a file's name states its own
as `<first>_<last>_<random>.parquet`, in microseconds. How long a slab is follows from the number of rows, as the writer chooses.
Within a file rows are sorted by (__key_hash, join keys, __visible_time, __event_time, __created_time nulls first, __seq), so the
rows of one key lie together and those of any range of hashes form a range of row groups. Row groups are small: what few keys ask
for is then little to read.

An interval `(start, end]` of visible time is replaced by one Delta transaction that removes the files inside it, cuts those across
its bounds, and adds the new rows. It carries the run's number as application transaction and is never retried: a writer that
read an older version than the newest fails.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from featurestore.clock import from_micros, to_micros
from featurestore.definitions import FeatureView
from featurestore.errors import OfflineStoreError, SourceError
from featurestore.offline.keys import ALGORITHM, key_hash
from featurestore.offline.session import identifier, literal, parquet, session
from featurestore.offline.sources import ViewRows

__all__ = ["DataFile", "Footer", "OfflineTable", "Snapshot", "table_schema", "write_file"]

_GROUP_ROWS = 8192
_BATCH_ROWS = 8 * _GROUP_ROWS
_FOOTERS = 512
_SAMPLED_ROW_GROUPS = 8
_TIME = pa.timestamp("us", "UTC")
_DICTIONARIES = (pa.string(), pa.binary())
_VISIBLE = "__visible_time"
_CHANGED = "the files have changed while they were read; run again"
_NEVER_NULL = ("__visible_time", "__seq", "__key_hash")
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
            *(pa.field(field.name, field.type.arrow) for field in view.stored),
        ]
    )


Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Footer:
    """What a file says of its row groups: how many rows each has, and its least and greatest key hash.

    `stamp` tells it from that of another file of the same name: an erasure writes files anew.
    """

    stamp: tuple[int, ...]
    metadata: pq.FileMetaData
    rows: Integers
    least: Integers
    greatest: Integers


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table and the visible times, both inclusive, that it holds."""

    path: Path
    first: int
    last: int
    rows: int

    def footer(self) -> Footer:
        """Return the file's footer; OfflineStoreError if it cannot be read."""
        try:
            return _footer(self.path, self.stamp())
        except (OSError, pa.ArrowException) as reason:
            raise OfflineStoreError(f"cannot read {self.path}: {reason}") from reason

    def stamp(self) -> tuple[int, ...]:
        """Return what changes when the file is written anew."""
        status = self.path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(_FOOTERS)
def _footer(path: Path, stamp: tuple[int, ...]) -> Footer:
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    hashes = [group.column(_column(metadata, "__key_hash")).statistics for group in groups]
    columns = ([group.num_rows for group in groups], [each.min for each in hashes], [each.max for each in hashes])
    return Footer(stamp, metadata, *(np.array(column, dtype=np.int64) for column in columns))


def _column(metadata: pq.FileMetaData, name: str) -> int:
    paths = (metadata.schema.column(index).path for index in range(metadata.num_columns))
    return next(index for index, path in enumerate(paths) if path == name)


@dataclass(frozen=True)
class Snapshot:
    """A table at one version: its files in the order of their visible times."""

    version: int
    files: tuple[DataFile, ...] = ()
    covered_until: int | None = None
    """Of a push view, where its table ends: files of later arrivals are not the table's, but made of the log to be read once."""

    @property
    def rows(self) -> int:
        """How many rows the table holds at this version."""
        return sum(file.rows for file in self.files)

    def bytes_per_row(self, columns: Sequence[str]) -> int:
        """Estimate how many bytes a row of these columns takes, from what some row groups of each file say; at least 1."""
        return max([1, *(_bytes_per_row(file.footer().metadata, columns) for file in self.files)])


def _bytes_per_row(metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    step = max(1, metadata.num_row_groups // _SAMPLED_ROW_GROUPS)
    groups = [metadata.row_group(number) for number in range(0, metadata.num_row_groups, step)]
    stored = [group.column(index) for group in groups for index in range(metadata.num_columns)]
    size = sum(each.total_uncompressed_size for each in stored if each.path_in_schema.split(".")[0] in columns)
    return size // max(1, sum(group.num_rows for group in groups))


def write_file(connection: duckdb.DuckDBPyConnection, query: str, source: str, path: Path) -> None:
    """Write what a query gives of a source's rows, in its order, to a Parquet file. It streams: what is sorted is held once.

    Arrow's writer takes half the time of DuckDB's own `COPY` for row groups as small as these, and does only what readers use:
    numbers have no dictionaries, features no statistics. Columns that are never null in the source are said to be so, which
    makes them a quarter faster to read; should one be null after all, writing fails.
    """
    present = {*_NEVER_NULL, *_never_null(connection, source)}
    reader = connection.sql(query).to_arrow_reader(_BATCH_ROWS)
    schema = pa.schema([field.with_nullable(field.name not in present) for field in reader.schema])
    with pq.ParquetWriter(
        path,
        schema,
        compression="lz4",
        use_dictionary=[field.name for field in schema if field.type in _DICTIONARIES],
        write_statistics=list(HIDDEN),
        store_schema=False,
    ) as writer:
        for batch in reader:
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema), row_group_size=_GROUP_ROWS)


def _never_null(connection: duckdb.DuckDBPyConnection, source: str) -> set[str]:
    """Return the columns of which DuckDB's statistics say that they hold no null."""
    names = connection.sql(f"SELECT * FROM {source}").columns
    columns = ", ".join(f"stats({identifier(name)}).has_null" for name in names)
    found = connection.execute(f"SELECT {columns} FROM {source} LIMIT 1").fetchall()
    return {name for row in found for name, has_null in zip(names, row, strict=True) if has_null is False}


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
            return self.files_of(DeltaTable(str(self.folder), version=version))
        except (DeltaError, OSError) as reason:
            raise OfflineStoreError(f"cannot read the table of view {self.view.name!r} at {self.folder}: {reason}") from reason

    def files_of(self, table: DeltaTable) -> Snapshot:
        """Return a loaded Delta table as a snapshot."""
        actions = pa.table(table.get_add_actions(flatten=True)).select(["path", "num_records"]).to_pylist()
        files = [self._file(action["path"], action["num_records"]) for action in actions]
        return Snapshot(table.version(), tuple(sorted(files, key=lambda file: file.first)))

    def _file(self, name: str, rows: int) -> DataFile:
        first, last, _ = name.split("_", 2)
        return DataFile(self.folder / name, int(first), int(last), rows)

    def replace(self, start: int, end: int, rows: ViewRows, *, run: int) -> tuple[Snapshot, int]:
        """Replace the rows with `start < visible time <= end` by those of the source, in one transaction.

        Returns the new snapshot and how many rows the interval now has.

        Raises:
            SourceError: the rows cannot be read; nothing has changed.
            OfflineStoreError: they cannot be written, or another writer has committed in between; nothing has changed.

        """
        before: list[Path] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob("*.writing"):
                leftover.unlink()
            before = list(self.folder.glob("*.parquet"))
            return self._replace(start, end, rows, run)
        except (DeltaError, OSError, pa.ArrowException) as reason:
            self._discard_since(before)
            raise OfflineStoreError(f"{self.trouble}: {reason}") from reason
        except BaseException:
            self._discard_since(before)
            raise

    def _replace(self, start: int, end: int, rows: ViewRows, run: int) -> tuple[Snapshot, int]:
        table = self.open()
        touched = [file for file in self.files_of(table).files if file.last > start and file.first <= end]
        added = self.write_sorted(rows, start, end)
        with session(OfflineStoreError, self.trouble) as connection:
            rests = [rest for file in touched for rest in self._write_rest(connection, file, start, end)]
        if touched or added:
            self.commit(table, touched, [*added, *rests], run)
        return self.snapshot(), sum(file.rows for file in added)

    def _discard_since(self, before: Sequence[Path]) -> None:
        """Remove the files of a transaction that failed; runs exclude each other, so whatever is new is its own."""
        committed = {file.path for file in self.snapshot().files}
        for path in self.folder.glob("*.parquet*"):
            if path not in before and path not in committed:
                path.unlink(missing_ok=True)

    @property
    def trouble(self) -> str:
        """How errors of writing begin."""
        return f"cannot write the table of view {self.view.name!r} at {self.folder}"

    def open(self) -> DeltaTable:
        """Return the Delta table, made if need be."""
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

    def write_sorted(self, rows: ViewRows, start: int, end: int) -> list[DataFile]:
        """Write a source's rows of an interval in the table's order, which DuckDB does in one query; no version names the files."""
        names = self.schema.names
        keys = ", ".join(identifier(key.name) for key in self.view.join_keys)
        selected = rows.within(start, end)
        with session(SourceError, rows.what) as connection:
            hashes = self._key_hashes(connection.sql(f"SELECT DISTINCT {keys} FROM {selected}").to_arrow_table())
            connection.register("key_hashes", hashes)
            order = self._order(rows, has_collisions=pc.count_distinct(hashes["__key_hash"]).as_py() < len(hashes))
            # What can be computed afterwards is not carried through the sort.
            earlier = {"__seq": rows.seq, "__key_hash": f"coalesce(__key_hash, error({literal(_CHANGED)}))"}
            carried = ", ".join(
                f"{earlier.get(name, identifier(name))} AS {identifier(name)}"
                for name in names
                if name != _VISIBLE or rows.visible == _VISIBLE
            )
            ordered = f"SELECT {carried} FROM {selected} LEFT JOIN key_hashes USING ({keys}) ORDER BY {order}"
            later = {"__seq": "CAST(__seq AS BIGINT)", _VISIBLE: rows.visible}
            columns = ", ".join(f"{later.get(name, identifier(name))} AS {identifier(name)}" for name in names)
            return self.copy(connection, f"SELECT {columns} FROM ({ordered})", selected)

    def _key_hashes(self, keys: pa.Table) -> pa.Table:
        return keys.append_column(
            "__key_hash", pa.array(key_hash([keys[key.name].cast(key.type.arrow) for key in self.view.join_keys]))
        )

    def _order(self, rows: ViewRows, *, has_collisions: bool) -> str:
        """Return the table's order, without what cannot matter here: a shorter sort key is much faster to sort by."""
        order = ["__key_hash"]
        if has_collisions:
            order += [identifier(key.name) for key in self.view.join_keys]
        if self.view.source.visible_from != "event_time":
            order.append("__visible_time")
        if not self.view.is_static:
            order.append("__event_time")
        if self.view.is_pushed or self.view.source.created_time is not None:
            order.append("__created_time NULLS FIRST")
        return ", ".join([*order, rows.seq])

    def _write_rest(self, connection: duckdb.DuckDBPyConnection, file: DataFile, start: int, end: int) -> Iterator[DataFile]:
        """Write again what a file holds before and after the interval; a filter over one file keeps its order."""
        source = parquet([file.path])
        if file.first <= start:
            yield from self.copy(connection, f"SELECT * FROM {source} WHERE epoch_us(__visible_time) <= {start}", source)
        if file.last > end:
            yield from self.copy(connection, f"SELECT * FROM {source} WHERE epoch_us(__visible_time) > {end}", source)

    def copy(self, connection: duckdb.DuckDBPyConnection, query: str, source: str) -> list[DataFile]:
        """Write what a query gives of a source's rows, in its order, to a file that no version names yet; if empty, to none."""
        unnamed = self.folder / f"{uuid.uuid4().hex[:16]}.parquet.writing"
        write_file(connection, query, source, unnamed)
        metadata = pq.read_metadata(unnamed)
        if not metadata.num_rows:
            unnamed.unlink()
            return []
        visible = _column(metadata, "__visible_time")
        bounds = [metadata.row_group(number).column(visible).statistics for number in range(metadata.num_row_groups)]
        first, last = min(to_micros(each.min) for each in bounds), max(to_micros(each.max) for each in bounds)
        named = unnamed.with_name(f"{first}_{last}_{unnamed.name.removesuffix('.writing')}")
        unnamed.rename(named)
        return [DataFile(named, first, last, metadata.num_rows)]

    def commit(
        self, table: DeltaTable, removed: Sequence[DataFile], added: Sequence[DataFile], run: int, *, is_new: bool = True
    ) -> None:
        """Replace files by others in one transaction; `is_new` says whether the rows change, or only where they are."""
        now = time.time_ns() // 1_000_000
        actions: list[AddAction | RemoveAction] = [_add(file, now, is_new=is_new) for file in added]
        actions += [
            RemoveAction(file.path.name, data_change=is_new, deletion_timestamp=now, size=file.path.stat().st_size)
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


def _add(file: DataFile, now: int, *, is_new: bool) -> AddAction:
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
        data_change=is_new,
        stats=orjson.dumps(stats).decode(),
    )


def _stamp(instant: int) -> str:
    return from_micros(instant).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
