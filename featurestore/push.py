"""Pushes: rows are taken in, logged, written online, folded into files, and read again (T3, T4, T8).

The log is the truth. A push is acknowledged once it is there; what was not written online then, as the server was away or the
process was killed in between, is written by whoever comes next: a push, a materialization, a sync. Writes of one source go online
one push after the other, in the order of arrival, since rows that tie on event and created time are decided by that alone. How far
they are each online server says itself (`online/cursors.py`), so a server that lost rows has also lost that it had them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from featurestore.clock import BEGINNING, Clock
from featurestore.definitions import PushSource
from featurestore.errors import (
    ConflictError,
    FeatureStoreError,
    InputError,
    NotFoundError,
    OnlineStoreError,
    RunInProgressError,
    SourceError,
)
from featurestore.offline.erased import without_erased
from featurestore.offline.intake import digest, taken_in
from featurestore.offline.push_log import PushLog, decoded, encoded, together
from featurestore.offline.pushed import KeyedRows, erased_places, latest_sql, prepared, pushed_rows, source_columns
from featurestore.offline.session import session
from featurestore.offline.sources import ViewRows
from featurestore.online.store import OnlineStore
from featurestore.receipt import Receipt
from featurestore.registry.pushes import Logged, LogState, Token
from featurestore.registry.registry import Registry
from featurestore.registry.state import Tombstones, Version
from featurestore.settings import Settings
from featurestore.specs import from_spec

__all__ = ["FIRST", "Pushing", "Receipt"]

FIRST = BEGINNING - 1
_ATTEMPTS = 100
_REPLAYED_ROWS = 100_000
"""How many rows a push writes online for others; more are left to a materialization or a sync."""

_FOLDED_ROWS = 500_000
_FOLDED_PUSHES = 5_000
_FOLDING_SECONDS = 600.0
_BATCH_ROWS = 100_000


@dataclass(frozen=True)
class _Feed:
    """What a push source feeds, as of a token."""

    source: PushSource
    token: Token
    versions: tuple[Version, ...]
    tombstones: Tombstones

    @property
    def keys(self) -> list[str]:
        """The columns that are join keys as they are."""
        views = [version.view for version in self.versions if version.state == "serving" and version.view.sql is None]
        return [key.name for view in views for key in view.join_keys if key.name in self.source.columns]


@dataclass(frozen=True)
class _Own:
    """A push that is logged, and what each version makes of it."""

    logged: Logged
    rows: Mapping[str, KeyedRows]


class Pushing:
    """The pushes of one repo. Threads may share it."""

    def __init__(self, settings: Settings, registry: Registry, online: OnlineStore, clock: Clock) -> None:
        self.settings, self.registry, self.online, self.clock = settings, registry, online, clock
        self._feeds: dict[str, _Feed] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._unfolded: dict[str, tuple[int, int]] = {}

    def push(self, source: str, rows: Any, idempotency_key: str | None = None) -> Receipt:
        """Log rows and write them online; `FeatureStore.push` says what can go wrong."""
        if isinstance(rows, pa.RecordBatchReader):
            rows = rows.read_all()  # they may be needed twice
        for _ in range(_ATTEMPTS):
            feed, table, ready, kept = self._taken_in(source, rows)
            logged = self._logged(feed, table if kept is None else table.take(kept), table, idempotency_key)
            if logged is not None:
                break
            self._feeds.pop(source, None)
        else:
            raise ConflictError(f"push source {source!r}: definitions change again and again; nothing was pushed")
        erased = 0 if kept is None else len(table) - len(kept)
        own = _Own(logged, {uid: each.arrived(logged.arrival, kept) for uid, each in ready.items()}) if logged.is_new else None
        is_online = self._is_delivered(feed, own)
        self._fold_if_much(source, logged)
        return Receipt(source, logged.arrival, logged.rows, erased if logged.is_new else len(table) - logged.rows, is_online)

    def check(self, source: str, rows: pa.Table, first: int) -> None:
        """Raise InputError if the rows could not be pushed; it counts them from `first`."""
        self._taken_in(source, rows, first)

    def _taken_in(self, source: str, rows: Any, first: int = 0) -> tuple[_Feed, pa.Table, dict[str, KeyedRows], pa.Array | None]:
        """Return rows as the table that is logged, what each version makes of them, and which are kept, by which definitions."""
        feed = self._feed(source)
        try:
            return _read(feed, rows, first, now=self.clock())
        except (InputError, SourceError):
            if self.registry.pushes.token() == feed.token:
                raise
        return _read(self._feed(source, anew=True), rows, first, now=self.clock())  # somebody has applied others meanwhile

    def begin(self, source: str) -> None:
        """Write online what versions that are new lack of what was pushed before them, as far as that is no run's business."""
        if self.registry.pushes.state(source).last_push is not None:
            self._is_delivered(self._feed(source, anew=True), None)

    def _logged(self, feed: _Feed, kept: pa.Table, given: pa.Table, key: str | None) -> Logged | None:
        hashed = None if key is None else digest(given)
        with self._lock(feed.source.name):  # in turn, as the database's own waiting is done by sleeping
            return self.registry.pushes.append(
                feed.source.name, len(kept), encoded(kept), feed.token, key=key, digest=hashed, now=self.clock()
            )

    def _lock(self, source: str) -> threading.Lock:
        return self._locks.setdefault(source, threading.Lock())

    def _feed(self, source: str, *, anew: bool = False) -> _Feed:
        feed = None if anew else self._feeds.get(source)
        if feed is None:
            token = self.registry.pushes.token()  # before what it stands for
            feed = self._feeds[source] = _Feed(
                self.source(source), token, tuple(self._versions(source)), self.registry.erasures.tombstones()
            )
        return feed

    def source(self, name: str) -> PushSource:
        """Return a push source as it was applied last."""
        specs = {each: spec for (kind, each), spec in self.registry.applied().specs.items() if kind == "source"}
        if name in specs and "path" in specs[name]:
            raise InputError(f"source {name!r} reads files; rows are pushed to a PushSource", name=name)
        if name not in specs:
            raise NotFoundError("push source", name, [each for each, spec in specs.items() if "path" not in spec])
        return from_spec(PushSource, specs[name])

    def _versions(self, source: str) -> Iterator[Version]:
        """Give the versions that a push source feeds, those that serve first."""
        fed = [version for version in self.registry.applied().versions if version.is_fed and version.view.is_pushed]
        fed.sort(key=lambda version: version.state != "serving")
        return (version for version in fed if version.view.source.name == source)

    # Online

    def _is_delivered(self, feed: _Feed, own: _Own | None) -> bool:
        try:
            return self.deliver(feed.source.name, feed, own)
        except FeatureStoreError:  # it is logged, and will be delivered
            return False

    def deliver(self, source: str, feed: _Feed | None = None, own: _Own | None = None) -> bool:
        """Write online what is logged and was not; returns whether all versions that serve have everything.

        Raises:
            OnlineStoreError: the online store does not answer.

        """
        with self.turn(source, self.settings.online.timeout_ms / 1000) as is_mine:
            if not is_mine:
                return False
            if feed is None or own is None or self.registry.pushes.token() != feed.token:
                # An erasure or an apply came in between: what is in the log now is what counts.
                feed, own = self._feed(source, anew=True), None
            done = [
                self._bring(version, feed, own) or version.state != "serving" for version in feed.versions if version.view.online
            ]
            return all(done)

    @contextmanager
    def turn(self, source: str, seconds: float) -> Iterator[bool]:
        """Wait for one's turn to write pushes of a source online, in all processes; gives whether it came."""
        lock = self._lock(f"{source} online")
        if not lock.acquire(timeout=seconds):
            yield False
            return
        try:
            with self.registry.turn(f"push-{source}", seconds) as is_mine:
                yield is_mine
        finally:
            lock.release()

    def _bring(self, version: Version, feed: _Feed, own: _Own | None) -> bool:
        """Write to one version what it lacks; whoever calls has the turn."""
        before = self.online.pushed_until(version)
        if own is not None:
            rows, logged = own.rows.get(version.uid), own.logged
            if before.until is not None and before.until >= logged.arrival:
                return True
            if rows is not None and (logged.previous is None or (before.until is not None and before.until >= logged.previous)):
                self._write(rows, version)
                return self.online.advance(version, before, logged.arrival)
        try:
            return self._replay(version, feed, own)
        except SourceError:
            if version.state == "serving":
                raise
            return False  # a candidate whose SQL fails on what is pushed disturbs nobody

    def _replay(self, version: Version, feed: _Feed, own: _Own | None) -> bool:
        """Write what was pushed since the cursor; if that is too much, just a push of one's own."""
        before = self.online.pushed_until(version)
        after = FIRST if before.until is None else before.until
        state, waiting = self.registry.pushes.since(feed.source.name, after)
        if state.last_push is None or after >= state.last_push:
            return True
        missed = sum(file.rows for file in state.files if file.last > after)
        if missed + sum(push.rows for push in waiting) > _REPLAYED_ROWS:
            if own is not None and version.uid in own.rows:
                self._write(own.rows[version.uid], version)
            return False
        rest = together([decoded(push) for push in waiting]) if waiting else None
        for rows in self._latest(version, state, (after, state.last_push), feed.tombstones, rest):
            self._write(rows, version)
        return self.online.advance(version, before, state.last_push)

    def _write(self, rows: KeyedRows, version: Version) -> None:
        if len(rows.table):
            self.online.push(version, rows.keys, rows.features, rows.event_times, rows.created_times, now=self.clock())

    def latest(self, version: Version, within: tuple[int, int]) -> Iterator[KeyedRows]:
        """Give the latest row of each key among those in the log's files with `start < arrival <= end`, some at a time."""
        state = self.registry.pushes.state(version.view.source.name)
        return self._latest(version, state, within, self.registry.erasures.tombstones(), None)

    def _latest(
        self, version: Version, state: LogState, within: tuple[int, int], tombstones: Tombstones, rest: pa.Table | None
    ) -> Iterator[KeyedRows]:
        view = version.view
        columns = [key.name for key in view.join_keys] + list(view.feature_names) + ["__event_time", "__created_time", "__seq"]
        with session(SourceError, f"view {view.name!r}, source {view.source.name!r}") as connection:
            named = None
            if rest is not None:
                connection.register("pushed_rest", rest)
                named = ("pushed_rest", rest.column_names)
            rows = without_erased(self.rows_of(version, state, within, named), tombstones)
            types = {each.name: each.type.arrow for each in (*view.join_keys, *view.fields)}
            for batch in connection.sql(latest_sql(rows, columns)).to_arrow_reader(_BATCH_ROWS):
                table = pa.Table.from_batches([batch])
                yield KeyedRows(
                    view, table.cast(pa.schema([(name, types.get(name, table.schema.field(name).type)) for name in columns]))
                )

    def catch_up(self, version: Version, until: int, *, run: int) -> None:
        """Record that a run has loaded all pushes until an instant, and write again what came after.

        Raises:
            OnlineStoreError: a server has lost the run's load in the meantime, or does not answer.

        """
        source = version.view.source.name
        with self.turn(source, _FOLDING_SECONDS) as is_mine:
            if not is_mine:
                raise RunInProgressError(f"pushes of source {source!r} are being written online by another process; try again")
            self.online.reset(version, until)
            if self.online.loaded_run(version) != run:
                self.online.reset(version, None)
                raise OnlineStoreError(
                    "a server of the online store has lost its rows during the load; run again", is_retryable=True
                )
            self._replay(version, self._feed(source, anew=True), None)

    # The log

    def rows_in(self, source: str, within: tuple[int, int]) -> int:
        """Return about how many rows the log's files have with `start < arrival <= end`: what files hold that have some."""
        files = self.registry.pushes.state(source).files
        return sum(file.rows for file in files if file.last > within[0] and file.first <= within[1])

    def log(self, source: str) -> PushLog:
        """Return the files of a source's log."""
        return PushLog.of(self.settings.offline_folder, source)

    def rows(self, version: Version, within: tuple[int, int]) -> ViewRows:
        """Return a version's rows with `start < arrival <= end` in the files of the log; `fold` brings all there."""
        return self.rows_of(version, self.registry.pushes.state(version.view.source.name), within, None)

    def rows_of(
        self, version: Version, state: LogState, within: tuple[int, int], rest: tuple[str, Sequence[str]] | None
    ) -> ViewRows:
        """Return a version's rows of an interval of arrivals, out of a log as it stood, and a table of rows that are in no file."""
        log = self.log(version.view.source.name)
        return pushed_rows(version.view, log.scan(source_columns(version.view), state.files, within, rest))

    def fold(self, source: str, seconds: float = _FOLDING_SECONDS) -> int:
        """Bring all that is logged until now into files; returns the instant until which that is final.

        Raises:
            RunInProgressError: another process has been folding for so many seconds.

        """
        with self.folding(source, seconds):
            return self.fold_now(source)

    def fold_now(self, source: str) -> int:
        """Do the same for who keeps others from changing the files already."""
        until = self.registry.pushes.seal(source, self.clock())
        log, pushes = self.log(source), self.registry.pushes
        pushes.fold(source, until, log.write(map(decoded, pushes.waiting(source, until))), now=self.clock())
        files = pushes.state(source).files
        for group in log.groups(files):
            pushes.replace_files(source, [file.name for file in group], log.write(log.read(group)))
            log.retire(group)
        log.discard(pushes.state(source).files)
        self._unfolded.pop(source, None)
        return until

    def forget_unused(self) -> list[str]:
        """Remove the logs of push sources that are not applied, and of which no version has rows; returns their names."""
        applied = self.registry.applied()
        used = {each.view.source.name for each in applied.versions if each.view.is_pushed and each.state != "removed"}
        used |= {name for kind, name in applied.specs if kind == "source"}
        unused = [source for source in self.registry.pushes.sources() if source not in used]
        for source in unused:
            self.forget(source)
        return unused

    def forget(self, source: str) -> None:
        """Remove the log of a push source."""
        self.registry.pushes.forget(source)
        self.log(source).remove()

    @contextmanager
    def folding(self, source: str, seconds: float = _FOLDING_SECONDS) -> Iterator[None]:
        """Keep others from changing the files of a log."""
        with self.registry.turn(f"fold-{source}", seconds) as is_mine:
            if not is_mine:
                raise RunInProgressError(f"the log of push source {source!r} is being folded by another process; try again")
            yield

    def _fold_if_much(self, source: str, logged: Logged) -> None:
        rows, pushes = self._unfolded.get(source, (0, 0))
        self._unfolded[source] = rows, pushes = rows + logged.rows, pushes + 1
        if rows > _FOLDED_ROWS or pushes > _FOLDED_PUSHES:
            self._unfolded.pop(source, None)
            try:
                self.fold(source, 0.0)
            except FeatureStoreError:  # the push is done; the next one or a materialization folds
                return


def _read(feed: _Feed, rows: Any, first: int, *, now: int) -> tuple[_Feed, pa.Table, dict[str, KeyedRows], pa.Array | None]:
    table = taken_in(feed.source, rows, keys=feed.keys, now=now, first=first)
    return feed, table, *_prepared(feed, table, first)


def _prepared(feed: _Feed, table: pa.Table, first: int) -> tuple[dict[str, KeyedRows], pa.Array | None]:
    """Return what each version makes of rows, and which places are kept, none if all are."""
    ready: dict[str, KeyedRows] = {}
    for version in feed.versions:
        try:
            ready[version.uid] = prepared(version.view, table, first=first)
        except (InputError, SourceError):
            if version.state == "serving":
                raise
    erased = {place for rows in ready.values() for place in erased_places(rows, feed.tombstones)}
    return ready, pa.array([place for place in range(len(table)) if place not in erased], pa.int64()) if erased else None
