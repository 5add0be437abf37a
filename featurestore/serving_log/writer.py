"""Writing the serving log beside lookups: a lookup puts its answer into a queue, and a thread does the rest.

A request is logged whole or not at all, which chance decides for each anew: the log is a fair picture of the traffic, and no
entity is favoured or left out. A lookup that is logged costs one lock and appends to a few lists; the thread turns these into
columns, in pieces so small that they hold no lookup up, and so large that there are few. The queue is bounded: when it is full,
rows are dropped and counted, never waited for.

What is queued is written every `flush_seconds` and when the store is closed. A process that is killed loses that much, and leaves
no torn file.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa

from featurestore.errors import FeatureStoreError
from featurestore.online.fetching import Found
from featurestore.online.vectors import FeatureVectors, Request
from featurestore.registry.state import Tombstones
from featurestore.serving_log.batches import Gathered, batch_of, header_of
from featurestore.serving_log.layout import LogHeader, locked, trim, write
from featurestore.settings import Settings

__all__ = ["LogCounts", "ServingLog"]

_LOGGER = logging.getLogger("featurestore")
_POLL_SECONDS = 0.25
_PIECE_ROWS = 1024
"""About how many rows become columns at a time, while lookups wait for the interpreter."""
_YIELD_SECONDS = 0.001
_CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class LogCounts:
    """How many rows were logged, dropped, and wait to be written, since the store was opened."""

    logged: int
    dropped: int
    queued: int


class ServingLog:
    """Logs what one store serves. Threads and event loops may share it; its own thread starts with the first row."""

    def __init__(self, settings: Settings, tombstones: Callable[[], Tombstones]) -> None:
        """Take what gives the erased keys, which are asked for before each file."""
        self._settings, self._folder, self._tombstones = settings.serving_log, settings.serving_log_folder, tombstones
        self._sample, self._most = self._settings.sample, self._settings.queue_rows
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._queue: list[Gathered] = []
        self._open: dict[tuple[int, bool], Gathered] = {}  # those in the queue that have room, by plan and form
        self._held = self._dropped = self._logged = self._told = 0
        self._pending: dict[tuple[str, str], tuple[LogHeader, list[pa.Table]]] = {}
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def offer(self, request: Request, found: Found, vectors: FeatureVectors, now: int) -> None:
        """Log a request that was answered from what was found if chance chooses it and the queue has room. Never waits."""
        if self._sample < 1 and random.random() >= self._sample:  # noqa: S311 (a sample, no secret)
            return
        rows = request.rows
        with self._lock:
            if self._held + rows > self._most:
                self._dropped += rows
                return
            self._held += rows
            gathered = self._open.get((id(request.plan), request.is_plain)) or self._begin(request)
            gathered.add(request, found, vectors, now)
            if gathered.rows >= _PIECE_ROWS:
                del self._open[id(request.plan), request.is_plain]
        if self._thread is None or not self._thread.is_alive():  # a forked process has to start its own
            self._start()

    def _begin(self, request: Request) -> Gathered:
        gathered = self._open[id(request.plan), request.is_plain] = Gathered(request.plan, is_plain=request.is_plain)
        self._queue.append(gathered)
        return gathered

    @property
    def counts(self) -> LogCounts:
        """How many rows were logged, dropped, and wait."""
        with self._lock:
            return LogCounts(self._logged, self._dropped, self._held)

    def flush(self) -> None:
        """Write all that is queued."""
        with self._writing:
            self._drain(is_due=True)
            self._write()

    def close(self) -> None:
        """Write what is queued, and end the thread; a store that is used again starts it anew."""
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            self._ending.set()
            thread.join(_CLOSE_SECONDS)
        if self._queue or self._pending:
            self.flush()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._ending = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._ending,), name="serving log", daemon=True)
                self._thread.start()

    def _run(self, ending: threading.Event) -> None:
        due = time.monotonic() + self._settings.flush_seconds
        while not ending.wait(_POLL_SECONDS):
            with self._writing:
                is_due = time.monotonic() >= due or self._held > self._most // 2
                self._drain(is_due=is_due)
                if is_due:
                    self._write()
                    due = time.monotonic() + self._settings.flush_seconds
        self.flush()

    def _drain(self, *, is_due: bool) -> None:
        """Turn what is queued into columns, in the order in which it came; if nothing is due, only once a piece is full."""
        with self._lock:
            if not is_due and len(self._queue) == len(self._open):
                return
            taken, self._queue = self._queue, []
            self._open.clear()
        for gathered in taken:
            self._keep(gathered)

    def _keep(self, gathered: Gathered) -> None:
        header = header_of(gathered.plan.selection, self._sample)
        _, batches = self._pending.setdefault((header.service, header.fingerprint), (header, []))
        batches += self._columns(gathered)
        time.sleep(_YIELD_SECONDS)

    def _columns(self, gathered: Gathered) -> list[pa.Table]:
        try:
            return [batch_of(gathered)]
        except FeatureStoreError as reason:  # one of them nobody could read
            if len(gathered.ends) > 1:
                return [batch for each in gathered.singles() for batch in self._columns(each)]
            self._lose(gathered.rows, reason)
            return []

    def _lose(self, rows: int, reason: Exception) -> None:
        _LOGGER.warning("the serving log loses %d rows: %s", rows, reason)
        with self._lock:
            self._held -= rows
            self._dropped += rows

    def _write(self) -> None:
        pending, self._pending = self._pending, {}
        for header, batches in pending.values():
            if batches:
                self._write_file(header, pa.concat_tables(batches))
        if pending:
            with suppress(OSError):
                trim(self._folder, self._settings.most_bytes)

    def _write_file(self, header: LogHeader, table: pa.Table) -> None:
        dropped = self.counts.dropped
        try:
            with locked(self._folder, alone=False):
                written = write(self._folder, replace(header, dropped=dropped - self._told), table, self._tombstones())
        except (FeatureStoreError, OSError) as reason:
            self._lose(len(table), reason)
            return
        with self._lock:
            self._held -= len(table)
            self._logged += written
        if written:
            self._told = dropped
