"""Materialization: source rows into offline tables, and from there the online row of every key that they touch (T7, T8).

A run works on an interval `(start, end]` of visible time of one view version and holds the version's lease. It replaces the
interval chunk by chunk; each chunk is one transaction of the table and one update of the coverage, so a run that was killed goes on
where it stopped. Then it writes online what the table says at the watermark for every key that changed since the last completed
load: the same function that training evaluates at past times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.clock import Clock, duration_micros, instant_text, to_micros
from featurestore.errors import ConflictError, GapError, InputError, OnlineStoreError, SourceError
from featurestore.offline.arrivals import arrivals, source_stamp
from featurestore.offline.asked import Asked
from featurestore.offline.erased import without_erased
from featurestore.offline.late import count_late_rows
from featurestore.offline.manifests import pinned
from featurestore.offline.point_in_time import values_at
from featurestore.offline.session import session
from featurestore.offline.sources import BEGINNING, ViewRows, view_rows
from featurestore.offline.survey import Survey, find_duplicate_key, survey
from featurestore.offline.tables import OfflineTable, Snapshot
from featurestore.offline.touched import LastLoad, touched_keys
from featurestore.offline.upkeep import compact, discard_unnamed, has_many_files, vacuum
from featurestore.online.store import OnlineStore
from featurestore.push import FIRST, Pushing
from featurestore.registry.registry import Registry
from featurestore.registry.state import Coverage, Loaded, LoadRecord, Version
from featurestore.settings import Settings

__all__ = ["Materialization", "Progress", "Report", "Step", "offline_table"]

_CHUNK_ROWS = 20_000_000
_BYTES_OF_A_VALUE = 50
"""What a value takes while a chunk is sorted; beyond its memory DuckDB sorts on disk, which is slower."""
_LOAD_ROWS = 100_000
_LOAD_BYTES = 100_000_000
_STATIC = (BEGINNING - 1, BEGINNING)


@dataclass(frozen=True)
class Step:
    """How far a run is: rows done of rows to do, in its `offline` or its `online` phase."""

    view: str
    phase: str
    done: int
    total: int


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class Report:
    """What one run did. `start` and `end` bound the visible time that it replaced; counts are rows, or files where they say so."""

    view: str
    version: int
    run: int
    start: int | None
    end: int
    rows: int = 0
    chunks: int = 0
    null_keys: int = 0
    null_times: int = 0
    late: int = 0
    online_written: int = 0
    online_deleted: int = 0
    online_full: bool = False
    compacted: int = 0
    """How many small files were put together."""
    vacuumed: int = 0
    """How many files were removed."""
    error: str | None = None
    """Why a version that is kept for rollback could not be fed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return asdict(self) | {
            "start": None if self.start is None else instant_text(self.start),
            "end": instant_text(self.end),
        }


def offline_table(settings: Settings, version: Version) -> OfflineTable:
    """Return the table of a version, in the folder that is its alone."""
    return OfflineTable(settings.offline_folder / version.view.name / f"v{version.number}-{version.uid}", version.view)


@dataclass(frozen=True)
class Materialization:
    """Runs views of one repo."""

    settings: Settings
    registry: Registry
    online: OnlineStore
    clock: Clock
    max_rate: float | None = None
    """How many rows per second a run may write online; none: as many as those who read let it."""

    def run(self, version: Version, start: int | None, end: int | None, progress: Progress, now: int | None = None) -> Report:
        """Materialize one version over `(start, end]`, by default from its watermark to `now`, by default the present.

        Raises:
            RunInProgressError: another run holds the version.
            GapError: the interval would leave out source rows between the watermark and its start.
            SourceError, OfflineStoreError, OnlineStoreError: what was committed until then stays and is covered.

        """
        with self.registry.lease(version):
            present = self.registry.version(version.id)
            if present.state in ("removing", "removed"):
                raise ConflictError(f"version {version.number} of view {version.view.name!r} has been removed; run again")
            return _Run(self, present, progress, now).execute(start, end)

    def sync(self, version: Version, *, full: bool, progress: Progress) -> Report:
        """Load one version online out of its table: all keys if `full` or if the server lost them, else those that changed.

        Raises:
            RunInProgressError: another run holds the version.
            OfflineStoreError, OnlineStoreError: the next run loads what this one did not.

        """
        with self.registry.lease(version):
            return _Run(self, self.registry.version(version.id), progress, None).sync(full=full)

    def compact(self, version: Version, *, is_vacuum: bool) -> Report:
        """Put the small files of one version's table together, and with `is_vacuum` remove those that nothing needs any more.

        Raises:
            RunInProgressError: another run holds the version.
            OfflineStoreError: a file cannot be read, written or removed.

        """
        with self.registry.lease(version):
            return _Run(self, self.registry.version(version.id), lambda _: None, None).compact(is_vacuum=is_vacuum)


class _Run:
    """One run of one version, under its lease."""

    def __init__(self, parent: Materialization, version: Version, progress: Progress, now: int | None) -> None:
        self.settings, self.registry, self.online = parent.settings, parent.registry, parent.online
        self.version = version
        self.view = version.view
        self.table = offline_table(parent.settings, version)
        self.clock, self.max_rate = parent.clock, parent.max_rate
        self.pushing = Pushing(parent.settings, parent.registry, parent.online, parent.clock)
        self.now = self.clock() if now is None else now
        self.progress = progress
        self.run = 0
        self.record: LoadRecord | None = None
        self.source: str | None = None

    def execute(self, start: int | None, end: int | None, *, full: bool = False) -> Report:
        if self.view.is_pushed:
            self.now = self.pushing.fold(self.view.source.name)
        interval = _STATIC if self.view.is_static else self._interval(start, end)
        pushed = (min(interval[0], self._covered_until), interval[1])
        until = self.now if self.view.is_static else interval[1]
        beginning = None if interval[0] < BEGINNING else interval[0]
        try:
            self.source = source_stamp(self.view.source, self.settings.root)
            source = self._rows(pushed) if self.view.is_pushed else view_rows(self.view, self.settings.root)
            found = self._survey(without_erased(source, self.registry.erasures.tombstones()), interval)
        except SourceError as reason:
            self._record_failure(beginning, until, reason)
            raise
        if self.registry.was_killed(self.version):
            discard_unnamed(self.table)
        run = self.registry.start_run(self.version, beginning, until, now=self.clock(), above=self._last_run_online())
        self.run = run
        # Read after the run has its number: an erasure deletes online by a greater one, or stands here.
        self.tombstones = self.registry.erasures.tombstones()
        rows = without_erased(source, self.tombstones)
        report = Report(
            self.view.name, self.version.number, run, beginning, until, null_keys=found.null_keys, null_times=found.null_times
        )
        return self._finished(
            report, lambda: self._tidied(*self._load_online(self._write_offline(rows, interval, found, report), full=full))
        )

    def _record_failure(self, beginning: int | None, until: int, reason: SourceError) -> None:
        """Record a run that ended before it had begun, so that whoever asks why the view falls behind is told."""
        if self.registry.was_killed(self.version):
            return  # the next run has to see that
        run = self.registry.start_run(self.version, beginning, until, now=self.clock())
        report = Report(self.view.name, self.version.number, run, beginning, until)
        self.registry.finish_run(self.version, run, now=self.clock(), report=report.to_dict(), error=str(reason))

    def sync(self, *, full: bool) -> Report:
        """Load what the table holds at the watermark; what was pushed, out of its log."""
        if self.view.is_pushed:
            return self.execute(None, None, full=full)
        assert self.version.watermark is not None
        at = self.now if self.view.is_static else self.version.watermark
        run = self.registry.start_run(self.version, at, at, now=self.now, above=self._last_run_online())
        report = Report(self.view.name, self.version.number, run, at, at)
        return self._finished(report, lambda: self._load_online(report, full=full))

    def compact(self, *, is_vacuum: bool) -> Report:
        """Compact the table, and vacuum it."""
        assert self.version.coverage is not None
        at = self.version.coverage.end
        self.run = self.registry.start_run(self.version, at, at, now=self.now, above=self._last_run_online())
        report = Report(self.view.name, self.version.number, self.run, at, at)
        return self._finished(report, lambda: self._vacuumed(*self._compacted(report, None), is_vacuum=is_vacuum))

    def _tidied(self, report: Report, loaded: Loaded | None) -> tuple[Report, Loaded | None]:
        if self.version.coverage is None or not has_many_files(self._snapshot()):
            return report, loaded
        return self._compacted(report, loaded)

    def _compacted(self, report: Report, loaded: Loaded | None) -> tuple[Report, Loaded | None]:
        """Compact the table; a load of what it held is one of what it holds."""
        assert self.version.coverage is not None
        before, loaded = self.version.table_version, loaded or self.version.loaded
        snapshot, files = compact(self.table, run=report.run)
        self._cover(self.version.coverage.end, snapshot)
        if loaded is not None and loaded.table_version == before:
            loaded = replace(loaded, table_version=snapshot.version)
        return replace(report, compacted=files), loaded

    def _vacuumed(self, report: Report, loaded: Loaded | None, *, is_vacuum: bool) -> tuple[Report, Loaded | None]:
        if not is_vacuum:
            return report, loaded
        needed = {self.version.table_version, *pinned(self.settings.offline_folder).get(self.version.uid, ())}
        needed |= {each.table_version for each in (loaded, self.version.loaded) if each is not None}
        return replace(report, vacuumed=vacuum(self.table, needed)), loaded

    def _finished(self, report: Report, work: Callable[[], tuple[Report, Loaded | None]]) -> Report:
        """Do the work of a run that has begun, and record how it ended."""
        run = report.run
        try:
            report, loaded = work()
        except BaseException as reason:
            error = str(reason) or type(reason).__name__
            self.registry.finish_run(self.version, run, now=self.clock(), report=report.to_dict(), error=error)
            raise
        record = self.record
        if record is not None and loaded is not None:
            record = replace(record, table_version=loaded.table_version)
        self.registry.finish_run(self.version, run, now=self.clock(), report=report.to_dict(), loaded=loaded, record=record)
        return report

    def _last_run_online(self) -> int:
        """Return the run that the online store names, which a registry restored from a copy may not know of any more."""
        if not self.view.online:
            return 0
        try:
            return self.online.loaded_run(self.version) or 0
        except OnlineStoreError:
            return 0  # the offline part can be done; the online part will say what is wrong

    # The interval

    @property
    def _history_start(self) -> int:
        return BEGINNING - 1 if self.view.history_start is None else to_micros(self.view.history_start)

    @property
    def _covered_until(self) -> int:
        """Where coverage ends, or where it will begin."""
        watermark = self.version.watermark
        return self._history_start if watermark is None else watermark

    def _interval(self, start: int | None, end: int | None) -> tuple[int, int]:
        last = self.now if end is None else end
        if self.version.state == "candidate" and self.version.coverage is None:
            start = None  # a run that heals what serves gives the candidate its first rows, from its beginning
        first = self._covered_until - duration_micros(self.view.lookback) if start is None else start
        if start is not None and start >= last:
            raise InputError(f"start {instant_text(start)} is not before end {instant_text(last)}", name="start")
        first = max(first, self._history_start)
        return first, max(first, last)

    def _survey(self, rows: ViewRows, interval: tuple[int, int]) -> Survey:
        gap = (self._covered_until, max(self._covered_until, interval[0]))
        with session(SourceError, self._source) as connection:
            if self.view.is_static:
                find_duplicate_key(connection, rows)
                return survey(connection, rows, interval, (0, 0))
            found = survey(connection, rows, interval, gap)
        if found.gap_rows:
            covered = instant_text(_shown(gap[0]))
            raise GapError(
                f"view {self.view.name!r} is covered until {covered}: a run from {instant_text(gap[1])} would leave out "
                f"{found.gap_rows} source rows that become visible in between; begin at or before {covered}"
                + ("" if self.version.coverage else ", or set the view's history_start")
            )
        return found

    # Offline

    def _write_offline(self, rows: ViewRows, interval: tuple[int, int], found: Survey, report: Report) -> Report:
        before = self.version
        if interval[0] < interval[1]:
            memory = self.settings.offline.memory_bytes // (_BYTES_OF_A_VALUE * len(self.table.schema))
            for first, last in found.chunks(*interval, min(_CHUNK_ROWS, memory)):
                snapshot, count = self._replace((first, last), report, found.rows)
                report = replace(report, rows=report.rows + count, chunks=report.chunks + 1)
                self._cover(max(self._covered_until, last), snapshot)
        if self.view.is_static or (self.version.coverage is None and interval[1] <= self.now):
            self._cover(self.now if self.view.is_static else interval[1], self.table.snapshot())
        elif before.coverage is not None and not self.view.is_pushed:  # nothing comes late to a log
            with session(SourceError, self._source) as connection:
                covered = (before.coverage.start, before.coverage.end)
                late = count_late_rows(connection, rows, self._snapshot(), covered, interval)
            report = replace(report, late=late)
        return report

    def _replace(self, chunk: tuple[int, int], report: Report, total: int) -> tuple[Snapshot, int]:
        rows = without_erased(self._rows(chunk), self.tombstones)
        snapshot, count = self.table.replace(*chunk, rows, run=report.run)
        self.progress(Step(self.view.name, "offline", report.rows + count, max(total, report.rows + count)))
        return snapshot, count

    def _rows(self, within: tuple[int, int]) -> ViewRows:
        return self.pushing.rows(self.version, within) if self.view.is_pushed else view_rows(self.view, self.settings.root, within)

    @property
    def _source(self) -> str:
        return f"view {self.view.name!r}, source {self.view.source.name!r}"

    def _cover(self, end: int, snapshot: Snapshot) -> None:
        self.registry.cover(self.version, Coverage(self._history_start, end), snapshot.version, self.run)
        self.version = self.registry.version(self.version.id)

    def _snapshot(self) -> Snapshot:
        return self.table.snapshot(self.version.table_version)

    # Online

    def _load_online(self, report: Report, *, full: bool = False) -> tuple[Report, Loaded | None]:
        watermark = self.version.watermark
        if not self.view.online or watermark is None:
            return report, None
        snapshot, loaded = self._snapshot(), self.version.loaded
        if self.view.is_pushed:
            return self._load_pushed(report, full=full), Loaded(report.run, snapshot.version, watermark)
        last = None
        # A marker that is missing or not the registry's says that the server lost rows, or was never told of all.
        if not full and loaded is not None and self.online.loaded_run(self.version) == loaded.run:
            last = LastLoad(self.table.snapshot(loaded.table_version), loaded.until)
        batch = max(1_000, min(_LOAD_ROWS, _LOAD_BYTES // snapshot.bytes_per_row([field.name for field in self.view.stored])))
        with self.online.load(self.version, run=report.run, now=self.now, max_rate=self.max_rate) as load:
            done, most = 0, snapshot.rows if last is None else 0  # a key has a row or more
            for keys in touched_keys(self.view, snapshot, watermark, last, batch):
                asked = Asked.of(keys, np.full(len(keys[0]), watermark))
                values = values_at(self.view, snapshot, asked, self.view.feature_names, ttl=False, threads=self.settings.threads)
                present, absent = pa.array(values.present), pa.array(~values.present)
                kept = [key.filter(present) for key in keys]
                load.write(kept, values.features.filter(present), values.event_times.filter(present))
                load.delete([key.filter(absent) for key in keys])
                done += len(keys[0])
                self.progress(Step(self.view.name, "online", done, max(most, done)))
            if last is None:
                load.sweep()
            load.finish()
        report = replace(report, online_written=load.written, online_deleted=load.deleted, online_full=last is None)
        self.record = self._recorded(report, snapshot, watermark, self.clock())
        return report, Loaded(report.run, snapshot.version, watermark)

    def _recorded(self, report: Report, snapshot: Snapshot, watermark: int, readable_at: int) -> LoadRecord:
        """Return the record of the load that was just completed."""
        loaded, made_at = self.version.loaded, self.version.created_at
        before, until = Snapshot(-1), BEGINNING - 1
        if loaded is not None:
            before, until = self.table.snapshot(loaded.table_version), loaded.until
        new = arrivals(self.view, before, snapshot, watermark=until, made_at=made_at, readable_at=readable_at)
        return LoadRecord(
            report.run, snapshot.version, watermark, readable_at, new.is_rewrite, new.rows, new.ages, report.late, self.source
        )

    def _load_pushed(self, report: Report, *, full: bool) -> Report:
        """Write the latest row of each key that was pushed since the cursor: the same as each push by itself would."""
        assert self.version.coverage is not None
        cursor, end = self.online.pushed_until(self.version).until, self.version.coverage.end
        start = FIRST if full or cursor is None else cursor
        total = self.pushing.rows_in(self.view.source.name, (start, end))
        is_loading = full or total > 0 or cursor is None
        if is_loading:
            with self.online.load(self.version, run=report.run, now=self.now, max_rate=self.max_rate) as load:
                for rows in self.pushing.latest(self.version, (start, end)):
                    load.write(rows.keys, rows.features, rows.event_times, rows.created_times)
                    self.progress(Step(self.view.name, "online", load.written, max(total, load.written)))
                load.finish()
            self.pushing.catch_up(self.version, end, run=report.run)
            report = replace(report, online_written=load.written, online_full=start == FIRST)
        else:
            self.pushing.deliver(self.view.source.name)
        return report


def _shown(instant: int) -> int | None:
    return None if instant < BEGINNING else instant
