"""The log of a push source: every row that was ever pushed, as it was. This docstring is the format's specification.

A push whose rows are in no file yet stands in the registry (`registry/pushes.py`) with its **payload**: an Arrow IPC stream of the
push source's columns as they were declared then, in the order of the rows. With its arrival and its first `seq` beside it, the row
at place `i` has

    __arrival    timestamp[us, UTC]  when the push arrived: the visible time of all its rows (T3)
    __seq        int64               its first `seq` + i: the last tie-break of T4

From time to time payloads are **folded** into Parquet files `<first>_<last>_<random>.parquet` in the folder `_pushed/<source>` of
the offline store, where `first` and `last` are arrivals in microseconds. A file has the same columns, then these two, and its rows
are in the order of `__seq`. A file counts when the registry names it; it is synced to disk before. Files whose columns differ
belong to declarations of different times: what a file lacks is null.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import OfflineStoreError
from featurestore.offline.session import identifier, parquet
from featurestore.registry.pushes import LogFile, Pushed

__all__ = ["PushLog", "arrived", "decoded", "encoded", "together"]

ARRIVAL, SEQ = "__arrival", "__seq"
_TIME = pa.timestamp("us", "UTC")
_FOLDER = "_pushed"
_COMPRESSED_ROWS = 100
_FILE_ROWS = 1_000_000
_GROUP_ROWS = 100_000
_MANY_FILES = 32
_READABLE_SECONDS = 3600
"""How long a file that is not named any more is kept for reads that have begun."""


def encoded(rows: pa.Table) -> bytes:
    """Return the payload of a push."""
    options = pa.ipc.IpcWriteOptions(compression="lz4" if len(rows) >= _COMPRESSED_ROWS else None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def decoded(push: Pushed) -> pa.Table:
    """Return the rows of a push, with their arrival and `seq`."""
    return arrived(pa.ipc.open_stream(push.payload).read_all(), push.arrival, push.first_seq)


def arrived(rows: pa.Table, arrival: int | None, first_seq: int) -> pa.Table:
    """Return rows with their arrival and `seq` beside them."""
    stamps = pa.array([arrival], pa.int64()).cast(_TIME).take(pa.array(np.zeros(len(rows), np.int64)))
    numbers = pa.array(np.arange(first_seq, first_seq + len(rows)))
    return rows.append_column(ARRIVAL, stamps).append_column(SEQ, numbers)


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables of declarations of different times as one: what a table lacks is null."""
    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as reason:
        raise OfflineStoreError(f"rows that were pushed at different times do not fit together: {reason}") from reason


@dataclass(frozen=True)
class PushLog:
    """The files of one push source's log."""

    source: str
    folder: Path

    @staticmethod
    def of(offline_folder: Path, source: str) -> PushLog:
        """Return the log of a source."""
        return PushLog(source, offline_folder / _FOLDER / source)

    def paths(self, files: Iterable[LogFile]) -> list[Path]:
        """Return the paths of files."""
        return [self.folder / file.name for file in files]

    def write(self, tables: Iterable[pa.Table]) -> list[LogFile]:
        """Write rows in their order to files that nothing names yet, one after the other where columns change.

        Raises:
            OfflineStoreError: a file cannot be written.

        """
        written: list[LogFile] = []
        try:
            for schema, same in _by_schema(tables):
                self.folder.mkdir(parents=True, exist_ok=True)
                if (file := self._write(schema, same)) is not None:
                    written.append(file)
            if written:
                _sync(self.folder)
        except (OSError, pa.ArrowException) as reason:
            raise OfflineStoreError(f"cannot write the log of push source {self.source!r} at {self.folder}: {reason}") from reason
        return written

    def _write(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> LogFile | None:
        unnamed = self.folder / f"{uuid.uuid4().hex[:16]}.parquet.writing"
        rows, bounds = 0, list[int]()
        with pq.ParquetWriter(unnamed, schema, compression="zstd") as writer:
            for table in _in_groups(tables):
                ends = table[ARRIVAL].cast(pa.int64())
                bounds += [ends[0].as_py(), ends[-1].as_py()]
                rows += len(table)
                writer.write_table(table, row_group_size=_GROUP_ROWS)
        if not rows:
            unnamed.unlink()
            return None
        _sync(unnamed)
        name = f"{bounds[0]}_{bounds[-1]}_{unnamed.name.removesuffix('.writing')}"
        unnamed.rename(self.folder / name)
        return LogFile(name, bounds[0], bounds[-1], rows)

    def groups(self, files: Sequence[LogFile]) -> Iterator[list[LogFile]]:
        """Give neighbouring small files that should be one, if there are many."""
        if len(files) < _MANY_FILES:
            return
        group: list[LogFile] = []
        for file in files:
            if group and sum(each.rows for each in group) + file.rows > _FILE_ROWS:
                if len(group) > 1:
                    yield group
                group = []
            group.append(file)
        if len(group) > 1:
            yield group

    def read(self, files: Iterable[LogFile], keep: Callable[[pa.Table], pa.Table] = lambda table: table) -> Iterator[pa.Table]:
        """Give the rows of files in order, some at a time."""
        for path in self.paths(files):
            try:
                with pq.ParquetFile(path) as opened:
                    for group in range(opened.num_row_groups):
                        yield keep(opened.read_row_group(group))
            except (OSError, pa.ArrowException) as reason:
                raise OfflineStoreError(f"cannot read {path}: {reason}") from reason

    def scan(
        self,
        columns: Mapping[str, str],
        files: Sequence[LogFile],
        within: tuple[int, int],
        rest: tuple[str, Sequence[str]] | None = None,
    ) -> str:
        """Return the SQL that reads columns of DuckDB types of all rows with `start < arrival <= end`, with `__file_seq`.

        `rest` is a table of rows that are in no file, and its columns. What is not there is null.
        """
        start, end = within
        parts = []
        if held := [file for file in files if file.last > start and file.first <= end]:
            paths = self.paths(held)
            parts.append((parquet(paths), self._names(paths)))
        if rest is not None:
            parts.append((rest[0], set(rest[1])))
        selects = [_select(table, columns, known, within) for table, known in parts]
        nothing = _select("(SELECT NULL::BIGINT AS __seq, NULL::TIMESTAMPTZ AS __arrival)", columns, set(), within)
        return " UNION ALL ".join(selects or [nothing])

    def _names(self, paths: Sequence[Path]) -> set[str]:
        try:
            return {name for path in paths for name in pq.read_schema(path).names}
        except (OSError, pa.ArrowException) as reason:
            raise OfflineStoreError(f"cannot read the log of push source {self.source!r}: {reason}") from reason

    def retire(self, files: Iterable[LogFile]) -> None:
        """Note that files are not named any more from now on."""
        for path in self.paths(files):
            with suppress(OSError):
                os.utime(path)

    def discard(self, named: Iterable[LogFile], *, kept_seconds: float = _READABLE_SECONDS) -> int:
        """Remove files that are not named, and were not within some time; returns how many."""
        names, removed = {file.name for file in named}, 0
        for path in self.folder.glob("*.parquet*"):
            with suppress(OSError):
                if path.name not in names and time.time() - path.stat().st_mtime > kept_seconds:
                    path.unlink()
                    removed += 1
        return removed

    def remove(self) -> None:
        """Remove all files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _by_schema(tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Schema, Iterator[pa.Table]]]:
    waiting = iter(tables)
    held = next(waiting, None)
    while held is not None:
        schema, following = held.schema, list[pa.Table]()

        def same(first: pa.Table, schema: pa.Schema, following: list[pa.Table]) -> Iterator[pa.Table]:
            yield first
            for table in waiting:
                if not table.schema.equals(schema):
                    following.append(table)
                    return
                yield table

        yield schema, same(held, schema, following)
        held = following[0] if following else None


def _in_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Put small tables together, so that each push is no row group of its own."""
    held, rows = list[pa.Table](), 0
    for table in tables:
        held.append(table)
        rows += len(table)
        if rows >= _GROUP_ROWS:
            yield pa.concat_tables(held)
            held, rows = [], 0
    if rows:
        yield pa.concat_tables(held)


def _select(table: str, columns: Mapping[str, str], known: set[str], within: tuple[int, int]) -> str:
    given = [identifier(name) if name in known else f"NULL::{type_} AS {identifier(name)}" for name, type_ in columns.items()]
    visible = f"epoch_us({ARRIVAL}) > {within[0]} AND epoch_us({ARRIVAL}) <= {within[1]}"
    return f"SELECT {', '.join(given)}, {SEQ} AS __file_seq, {ARRIVAL} FROM {table} WHERE {visible}"


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
