"""FeatureStore: the whole library behind one object. Its methods assemble; what they assemble lives in the modules below."""

from __future__ import annotations

import datetime as dt
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from featurestore.clock import Clock, duration_micros, parse_duration, parse_instant
from featurestore.definitions import FeatureService, PushSource
from featurestore.erasure import Erasure, Manifest
from featurestore.errors import InputError
from featurestore.functions import Functions, keep_copy
from featurestore.lock import GivenLock, Lock, check_lock, lock_of, read_lock, write_lock
from featurestore.lookups import Lookups
from featurestore.materialize import Progress, Report, offline_table
from featurestore.offline.manifests import read_manifest
from featurestore.offline.session import configure
from featurestore.offline.stored_sets import StoredSets
from featurestore.offline.tables import Snapshot
from featurestore.offline.training import Availability, Incomplete, TrainingSet
from featurestore.online import embedded
from featurestore.online.sizing import Usage, usages
from featurestore.online.store import OnlineStore
from featurestore.online.vectors import FeatureVectors
from featurestore.parity.findings import Parity
from featurestore.parity.logged import LogProgress, LogVerification
from featurestore.parity.verification import Verification, VerifyProgress
from featurestore.push import Pushing, Receipt
from featurestore.push_file import push_file
from featurestore.registry.plan import Plan, make_plan
from featurestore.registry.pushes import LogState
from featurestore.registry.registry import Registry
from featurestore.registry.selection import Selection
from featurestore.registry.state import Applied, Rollback, Run, Tombstones, Version
from featurestore.repo import load_repo
from featurestore.retirement import KEPT_MICROS, Removal, remove_code, remove_retired
from featurestore.runs import ViewRuns
from featurestore.serving_log.matching import LoggedTrainingSet, ServedLog
from featurestore.serving_log.writer import ServingLog
from featurestore.settings import Settings, load_settings, redacted
from featurestore.sizing import Estimate, estimates
from featurestore.training import TrainingSets

__all__ = ["FeatureStore"]

Features = str | FeatureService | Sequence[str]
"""What is asked for: a feature service, its name, or a list of `"view:feature"`."""

Moment = dt.datetime | str | int
"""An instant: a datetime (a naive one is UTC), an ISO 8601 text, or microseconds."""


class FeatureStore:
    """A feature store over one repo of definitions. Use it with `with`, or close it.

    `repo` is the folder that holds `featurestore.toml`, or settings that are loaded already. `clock` gives the present in
    microseconds; by default the repo's settings do. `serving_log` logs what is served, none unless the settings ask for it.
    """

    def __init__(self, repo: str | Path | Settings = ".", *, clock: Clock | None = None) -> None:
        self.settings = repo if isinstance(repo, Settings) else load_settings(Path(repo))
        self.clock = clock or self.settings.clock
        self.online = OnlineStore(self.settings)
        self.serving_log = ServingLog(self.settings, self._tombstones) if self.settings.serving_log.sample else None
        self._registry: Registry | None = None
        self._opening = threading.Lock()
        self.functions = Functions(self.settings.root, self.settings.state)
        self._lookups = Lookups(lambda: self.registry, self.online, self.functions, self.serving_log, self.clock)
        limits = self.settings.offline
        configure(memory_bytes=limits.memory_bytes, threads=self.settings.threads, temp_folder=self.settings.temp_folder)

    @property
    def registry(self) -> Registry:
        """The registry, opened when first used, by whichever thread comes first."""
        with self._opening:
            if self._registry is None:
                shown = redacted(self.settings.registry.url)
                self._registry = Registry(self.settings.registry_url, self.settings.project, shown)
            return self._registry

    def _tombstones(self) -> Tombstones:
        return self.registry.erasures.tombstones()

    def close(self) -> None:
        """Close connections, and write what waits for the serving log. The embedded online server goes on until `stop`."""
        if self.serving_log is not None:
            self.serving_log.close()
        self.online.close()
        if self._registry is not None:
            self._registry.close()

    async def aclose(self) -> None:
        """Close connections, those of the running event loop included."""
        await self.online.aclose()
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Definitions

    def plan(self) -> Plan:
        """Return what `apply` would change; DefinitionError lists every fault of the definitions."""
        return make_plan(self.registry.applied(), load_repo(self.settings.root))

    def apply(self, plan: Plan | None = None) -> Plan:
        """Apply a plan, by default the present one, in one transaction; ConflictError if the registry moved since it was made."""
        plan = plan or self.plan()
        if not plan.is_empty:
            for name in plan.copies:
                keep_copy(self.settings.root, self.settings.state, name)
            self.registry.apply(plan, now=self.clock())
            self._lookups.forget()
            for source in dict.fromkeys(new.view.source.name for new in plan.new_versions if new.view.is_pushed):
                self._pushing.begin(source)
        return plan

    def rollback(self, view: str) -> Rollback:
        """Let the version of a view that served before serve again, with all that took over together with the present one (T11).

        The view may be an on-demand view.

        The present version is kept, and a second rollback returns to it. So does the next `apply` of definitions that still say so.

        Raises:
            NotFoundError: no view of that name serves.
            RollbackError: there is no version before, it is not ready, or a service could not be answered; nothing has changed.

        """
        done = self.registry.rollback(view, now=self.clock())
        self._lookups.forget()
        return done

    def estimate(self, plan: Plan) -> list[Estimate]:
        """Return the online memory that the new versions of a plan will need, estimated from their sources."""
        return estimates(plan, self.settings.root)

    # Materialization

    def materialize(
        self,
        views: Sequence[str] | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        max_rate: float | None = None,
        progress: Progress = lambda _: None,
        on_report: Callable[[Report], None] = lambda _: None,
    ) -> list[Report]:
        """Materialize views, by default all, from their watermark to now, or over `(start, end]` of visible time.

        A view that fails does not keep the others from running. Versions that are kept for rollback are fed too; where that fails,
        their report has the error. At the end, some of what retired versions left is removed. `max_rate` bounds the rows written
        online per second.

        Raises:
            RunsFailedError: some of several views failed. Where one view was asked for, its own error is raised.

        """
        interval = (_instant(start, "start"), _instant(end, "end"))
        with self._running() as runs:
            return runs.materialize(views, *interval, max_rate=max_rate, progress=progress, on_report=on_report)

    def sync(
        self,
        views: Sequence[str] | None = None,
        *,
        full: bool = False,
        max_rate: float | None = None,
        progress: Progress = lambda _: None,
        on_report: Callable[[Report], None] = lambda _: None,
    ) -> list[Report]:
        """Rebuild the online rows of views, by default all, out of the offline tables alone, while serving goes on.

        What has changed since the last completed load is written, or every key where the server lost its rows or with `full`.
        Sources are not read.

        Raises:
            InputError: a view that was named has nothing to load: `online=False`, or it was never materialized.
            RunsFailedError: some of several views failed. Where one view was asked for, its own error is raised.

        """
        with self._running() as runs:
            return runs.sync(views, full=full, max_rate=max_rate, progress=progress, on_report=on_report)

    def compact(
        self, views: Sequence[str] | None = None, *, vacuum: bool = False, on_report: Callable[[Report], None] = lambda _: None
    ) -> list[Report]:
        """Put the small files of views' tables together, by default all; runs do so by themselves when there are many.

        With `vacuum`, files go that belong to no table version which is current, was so within the last hour, or is named by the
        manifest of a training set whose file is still there.

        Raises:
            RunsFailedError: some of several views failed. Where one view was asked for, its own error is raised.

        """
        with self._running() as runs:
            return runs.compact(views, is_vacuum=vacuum, on_report=on_report)

    @contextmanager
    def _running(self) -> Iterator[ViewRuns]:
        try:
            yield ViewRuns(self.settings, self.registry, self.online, self.clock)
        finally:
            self._lookups.forget()  # a run may have let a candidate take over

    # Pushing

    def push(self, source: str, rows: Any, idempotency_key: str | None = None) -> Receipt:
        """Push rows of a push source: they are logged durably, written online, and visible to training from now on (T3).

        `rows` may be an Arrow table, a pandas or Polars frame, a dict of columns, or a list of dicts, in the source's columns.
        Either all rows are taken or none. A push with the key of an earlier one, of the last week, changes nothing and has its
        answer.

        Raises:
            NotFoundError: no such push source is applied.
            InputError: the rows do not fit the source, or the key was used for others; nothing was pushed.
            RegistryError: the log cannot be written; nothing was pushed.

        """
        return self._pushing.push(source, rows, idempotency_key)

    def push_file(self, source: str, path: str | Path, idempotency_key: str | None = None) -> list[Receipt]:
        """Push the rows of a Parquet file as `push` does; a long file is checked as a whole, and then pushed in parts."""
        return push_file(self._pushing, source, Path(path), idempotency_key)

    def push_source(self, name: str) -> PushSource:
        """Return a push source as it is applied; NotFoundError if there is none of that name."""
        return self._pushing.source(name)

    @cached_property
    def _pushing(self) -> Pushing:
        return Pushing(self.settings, self.registry, self.online, self.clock)

    def delete_entities(self, entity: str, keys: Mapping[str, Sequence[Any]]) -> Manifest:
        """Erase entities, given by one list of values for each join key: `{"tail_number": ["N14228"]}` (T14).

        Their rows disappear online at once and from every retained version of every table whose keys contain them, and no later run
        brings them back. The sources are yours to erase. Returns hashes and counts, never keys.

        Raises:
            NotFoundError: no such entity is applied.
            InputError: a key column is missing, unknown, of another length, of a wrong type or holds a null.
            RunInProgressError: a view is being materialized, so its tables are not done; do it again when that has ended.

        """
        return self._erasure.erase(entity, keys, now=self.clock())

    def restore_entities(self, entity: str, keys: Mapping[str, Sequence[Any]]) -> int:
        """Lift the tombstones of entities; runs read their rows again from then on. Returns how many there were."""
        return self._erasure.lift(entity, keys, now=self.clock())

    @property
    def _erasure(self) -> Erasure:
        return Erasure(self.settings, self.registry, self.online, self._pushing)

    def prune(self, *, now: bool = False) -> list[Removal]:
        """Remove what replaced and dropped versions left that no rollback can reach; the last hour's are kept unless `now` is set.

        With `now`, lookups and training reads that began before the last takeover fail if they still use what is removed.
        """
        kept = 0 if now else KEPT_MICROS
        before = self.clock() - kept
        remove_code(self.settings, self.registry, kept_seconds=kept / 1e6)
        removed = list(remove_retired(self.settings, self.registry, self.online, before=before))
        self._pushing.forget_unused()
        return removed

    # Training

    def get_historical_features(
        self,
        spine: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        incomplete: Incomplete = "error",
        availability: Availability = "declared",
        as_of_manifest: str | Path | Mapping[str, Any] | None = None,
        lock: GivenLock | None = None,
    ) -> TrainingSet:
        """Return the features of each spine row as of its timestamp; nothing is computed until the result is read.

        `spine` may be an Arrow table, a pandas or Polars frame, a DuckDB relation, a path to Parquet, or SQL text. `incomplete`
        says what happens to rows beyond a view's watermark: `"error"`, `"stale"` (answer from what is there) or `"null"`.
        `availability="measured"` goes by the record of loads instead of by declared visible times: each row sees what a lookup at
        its time could have returned, nothing before the first load of the view's present version.
        `as_of_manifest` makes a training set again as it was when `to_parquet` wrote it: its manifest, or the path to either.
        `lock` is the path of a lock, or a fingerprint, that the features have to have.

        Raises:
            NotFoundError: no such service, view or feature.
            SpineError: the spine lacks a key or timestamp column, or one has a wrong type.
            IncompleteError: rows lie beyond what is materialized.
            InputError: there is no manifest, or it is of another spine or other features.
            LockError: the features are not what the lock was made of.
            OnDemandError: an on-demand function fails, when the result is read, or its code cannot be loaded (CodeError).

        """
        made = TrainingSets(self.settings, self.registry, self.functions, self._pushing)
        wanted, now = _wanted(features), self.clock()
        asked = wanted if isinstance(wanted, str) else tuple(wanted)
        if as_of_manifest is not None:
            training = made.remake(read_manifest(as_of_manifest), spine, asked, now=now)
        else:
            training = made.make(spine, asked, timestamp_column, incomplete, availability, now=now)
        if lock is not None:
            check_lock(training.selection, read_lock(lock), self.registry.find_selection)
        return training

    def training_set_from_log(
        self,
        service: str | FeatureService,
        labels: Any,
        *,
        on: Sequence[str] | None = None,
        timestamp_column: str = "event_timestamp",
        tolerance: dt.timedelta | str = "0s",
        fingerprint: str | None = None,
    ) -> LoggedTrainingSet:
        """Return labels with the features as they were served, for those labels whose request the serving log has.

        `labels` is a table in any form that a spine has, with the time of its request in `timestamp_column`. A label belongs to the
        last request, with the same values in the columns `on`, at its time or at most `tolerance` before. By default `on` is the
        keys, and what labels have of a request's other columns. Without a `fingerprint` the log is read of what the service means
        now.

        Raises:
            NotFoundError: no such service, or the log has nothing of it with this fingerprint.
            InputError: `on` names a column that requests do not have, or the tolerance is no duration.
            SpineError: the labels lack a column, or one has a wrong type.
            OfflineStoreError: the log cannot be read.

        """
        if self.serving_log is not None:
            self.serving_log.flush()
        name = service if isinstance(service, str) else service.name
        wanted = fingerprint or self.selection(name).fingerprint()
        log = ServedLog(self.settings.serving_log_folder, name, wanted, self._tombstones())
        return log.training_set(labels, on, timestamp_column, _duration(tolerance, "tolerance"))

    @property
    def training_sets(self) -> StoredSets:
        """The training sets that the HTTP service computes as jobs and keeps in the offline store."""
        return StoredSets(self.settings.offline_folder)

    # Serving

    def get_online_features(
        self, entities: Mapping[str, Sequence[Any]], features: Features, *, lock: GivenLock | None = None
    ) -> FeatureVectors:
        """Return the feature vectors of some entities: `{"tail_number": ["N14228", …], …}`, one value for each row.

        Columns that on-demand views take of the request stand beside the keys; these views are evaluated when the result is read.
        `lock` is the path of a lock, or a fingerprint, that the features have to have.

        Raises:
            NotFoundError: no such service, view or feature.
            InputError: a key or a request column is missing, unknown, of another length or of a wrong type.
            LockError: the features are not what the lock was made of.
            OnlineStoreError: the online store does not answer.
            OnDemandError: an on-demand function fails, when the result is read, or its code cannot be loaded (CodeError).

        """
        return self._lookups.fetch(entities, _wanted(features), lock)

    async def get_online_features_async(
        self, entities: Mapping[str, Sequence[Any]], features: Features, *, lock: GivenLock | None = None
    ) -> FeatureVectors:
        """Return the same as `get_online_features`: all tasks of an event loop share one connection to each server.

        Close the store with `await store.aclose()` then, or use it with `async with`.
        """
        return await self._lookups.fetch_async(entities, _wanted(features), lock)

    def lock(self, features: Features, path: str | Path) -> Lock:
        """Write what a service or a list of features is made of to a lock file, which lookups may name; returns it."""
        made = lock_of(self.selection(features))
        write_lock(made, Path(path))
        return made

    def selection(self, features: Features) -> Selection:
        """Return what a service or list of features asks for: its keys, columns and types."""
        return self._lookups.plan(_wanted(features)).selection

    # Looking at it

    def verify(
        self,
        views: Sequence[str] | None = None,
        *,
        service: str | None = None,
        keys: int | None = 1000,
        progress: VerifyProgress = lambda _view, _keys: None,
    ) -> Parity:
        """Compare what is served with what training sees, bit for bit, and say why where they differ.

        Compared are views or aliases, by default all, or those of a feature service: `keys` keys of each, the same ones each time,
        or with `keys=None` all; each at the watermark of its last completed load. The server is asked for half its time.

        Raises:
            NotFoundError: no such view, alias or service.
            OnlineStoreError: the online store does not answer.

        """
        verification = Verification(self.settings, self.registry, self.online, self.clock, self._pushing)
        return verification.verify(views, service, keys=keys, progress=progress)

    def verify_log(
        self,
        service: str | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        progress: LogProgress = lambda _service, _rows: None,
    ) -> Parity:
        """Compare what was served, as the serving log has it, with what training sees at the times of the requests, bit for bit.

        Compared are the logged requests of a service, by default of all, in `(start, end]`; each view with the version that served,
        and why where they differ. What this store serves and has not written yet is written first.

        Raises:
            NotFoundError: the log has nothing of the service.
            OfflineStoreError: the log or a table cannot be read.

        """
        if self.serving_log is not None:
            self.serving_log.flush()
        interval = _instant(start, "start"), _instant(end, "end")
        comparison = LogVerification(self.settings, self.registry, self.functions, self._pushing, progress)
        return comparison.verify(service, *interval, now=self.clock())

    def applied(self) -> Applied:
        """Return the specs applied last, by (kind, name), and every version of every view."""
        return self.registry.applied()

    def push_logs(self) -> dict[str, LogState]:
        """Return where the log of each push source stands to which rows were pushed."""
        return {source: self.registry.pushes.state(source) for source in self.registry.pushes.sources()}

    def runs(self, limit: int = 50) -> list[Run]:
        """Return the newest runs, newest first."""
        return self.registry.runs(limit)

    def snapshot(self, version: Version) -> Snapshot:
        """Return the files and rows of a version's table, as its coverage knows it."""
        return offline_table(self.settings, version).snapshot(version.table_version)

    def usage(self, versions: Sequence[Version]) -> dict[str, Usage]:
        """Return the keys and memory of versions in the online store, by uid; OnlineStoreError if it does not answer."""
        return usages(self.online, [version.uid for version in versions])

    # Ending it

    def stop(self) -> bool:
        """Stop the embedded online server; its rows are kept. False if none ran."""
        self.online.close()
        return embedded.stop(self.settings.state / "online")

    def teardown(self) -> None:
        """Remove everything that the repo made: online rows, offline tables, registry and state. Definitions and sources stay.

        Raises:
            RunInProgressError: a view is being materialized; nothing is removed.

        """
        versions = [version for version in self.registry.applied().versions if version.state != "removed"]
        with ExitStack() as leases:
            for version in versions:  # no run may go on over what is removed
                leases.enter_context(self.registry.lease(version))
            for source in self.registry.pushes.sources():
                self._pushing.forget(source)
            if self.settings.online.url != "embedded":
                for version in versions:
                    self.online.drop(version)
            self.close()
            self.stop()
            for version in versions:
                folder = offline_table(self.settings, version).folder
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # another registry may have tables of a view of this name
                    folder.parent.rmdir()
            shutil.rmtree(self.training_sets.folder, ignore_errors=True)
            self.registry.drop()
            shutil.rmtree(self.settings.serving_log_folder, ignore_errors=True)
            shutil.rmtree(self.settings.state, ignore_errors=True)


def _wanted(features: Features) -> str | list[str]:
    if isinstance(features, str):
        return features
    return features.name if isinstance(features, FeatureService) else list(features)


def _instant(moment: Moment | None, name: str) -> int | None:
    try:
        return None if moment is None else parse_instant(moment)
    except ValueError as reason:
        raise InputError(f"{name}: {reason}", name=name) from None


def _duration(duration: dt.timedelta | str, name: str) -> int:
    try:
        return duration_micros(parse_duration(duration))
    except ValueError as reason:
        raise InputError(f"{name}: {reason}", name=name) from None
