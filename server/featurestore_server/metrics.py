"""Counters, histograms and gauges, and their Prometheus text (exposition format 0.0.4).

Counted by hand: a request costs a `bisect` and three additions, a fraction of what a general client of Prometheus takes. Each
worker counts for itself. Several workers keep what they counted in a shared folder, a file for each, written once a second and at
each scrape; whichever worker is scraped adds them up. A worker that replaces a dead one goes on counting where that was.

    featurestore_requests_total               counter, by route, service and status
    featurestore_request_seconds              histogram, by route and service
    featurestore_requests_in_flight           gauge, by worker
    featurestore_view_behind_seconds          gauge, by view: from its watermark to now
    featurestore_registry_look_age_seconds    gauge, by worker: since the registry last said what names mean
    featurestore_registry_connections         gauge, by worker and state (busy, idle): of the pool
    featurestore_online_connections           gauge, by worker and state (open, opening, failed): to servers of the online store
    featurestore_online_waiting               gauge, by worker: commands whose reply is not there yet
    featurestore_serving_log_rows_total       counter, by worker and outcome (written, dropped): rows of the log of lookups
    featurestore_serving_log_waiting          gauge, by worker: its rows that wait
    process_resident_memory_bytes, process_cpu_seconds_total, process_open_fds    by worker
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

__all__ = ["BOUNDS", "CONTENT_TYPE", "Metrics", "Series"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""The upper bounds of the histogram's buckets, in seconds; the last bucket has none."""

Labels = tuple[tuple[str, str], ...]
Gauges = list[tuple[str, Labels, float]]

_HELP = {
    "featurestore_requests_total": ("counter", "Requests that were answered."),
    "featurestore_request_seconds": ("histogram", "From a request's head to its answer's end."),
    "featurestore_requests_in_flight": ("gauge", "Requests that are being answered."),
    "featurestore_view_behind_seconds": ("gauge", "From a view's watermark to now."),
    "featurestore_registry_look_age_seconds": ("gauge", "Since the registry last said what names mean."),
    "featurestore_registry_connections": ("gauge", "Connections to the registry's database."),
    "featurestore_online_connections": ("gauge", "Connections to servers of the online store."),
    "featurestore_online_waiting": ("gauge", "Commands to the online store whose reply is not there yet."),
    "featurestore_serving_log_rows_total": ("counter", "Rows of the serving log that were written, or dropped."),
    "featurestore_serving_log_waiting": ("gauge", "Rows that wait to be written to the serving log."),
    "process_resident_memory_bytes": ("gauge", "Resident memory."),
    "process_cpu_seconds_total": ("counter", "User and system CPU time."),
    "process_open_fds": ("gauge", "Open file descriptors."),
}
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Series:
    """What was counted of one route and service."""

    __slots__ = ("buckets", "route", "seconds", "service", "statuses")

    def __init__(self, route: str, service: str) -> None:
        self.route, self.service = route, service
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        self.statuses: dict[int, int] = {}

    def count(self, status: int, seconds: float) -> None:
        """Count one answer."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def add(self, buckets: Iterable[int], seconds: float, statuses: Mapping[Any, int]) -> None:
        """Add what another has counted."""
        self.buckets = [one + other for one, other in zip(self.buckets, buckets, strict=True)]
        self.seconds += seconds
        for status, number in statuses.items():
            self.statuses[int(status)] = self.statuses.get(int(status), 0) + number


class Metrics:
    """What one worker has counted. `folder` is shared by the workers of a service, none if it is alone."""

    def __init__(self, worker: int = 0, folder: Path | None = None) -> None:
        self.worker, self._folder = worker, folder
        self.in_flight = 0
        self._saving = threading.Lock()
        self._series: dict[tuple[str, str], Series] = {}
        if folder is not None and (before := _read(self._file(worker))) is not None:
            _sum(self._series, before)

    def series(self, route: str, service: str = "") -> Series:
        """Return the counters of a route and a service; a service's name must be one that exists."""
        found = self._series.get((route, service))
        if found is None:
            found = self._series[route, service] = Series(route, service)
        return found

    @property
    def is_shared(self) -> bool:
        """Whether there are other workers."""
        return self._folder is not None

    def _file(self, worker: int) -> Path:
        assert self._folder is not None
        return self._folder / f"worker-{worker}.json"

    def save(self, gauges: Gauges) -> None:
        """Let the other workers know what was counted."""
        if self._folder is None:
            return
        counted = [
            [*key, each.buckets, each.seconds, {str(s): n for s, n in each.statuses.copy().items()}]
            for key, each in self._series.copy().items()  # whose other threads go on
        ]
        file = self._file(self.worker)
        new = file.with_suffix(".new")
        with self._saving:
            new.write_bytes(orjson.dumps({"series": counted, "gauges": gauges}))
            new.replace(file)

    def text(self, own: Gauges, shared: Gauges) -> str:
        """Return all that the service counted, in Prometheus' text form; `own` gauges are the worker's, `shared` everyone's."""
        series: dict[tuple[str, str], Series] = {}
        _sum(series, {"series": [[*key, each.buckets, each.seconds, each.statuses] for key, each in self._series.copy().items()]})
        gauges = [*shared, *own]
        if self._folder is not None:
            self.save(own)
            for file in sorted(self._folder.glob("worker-*.json")):
                if file != self._file(self.worker) and (other := _read(file)) is not None:
                    _sum(series, other)
                    gauges += [(name, tuple(map(tuple, labels)), value) for name, labels, value in other["gauges"]]
        return "".join(_lines(series, gauges))

    def own(self) -> Gauges:
        """Return the gauges of this process."""
        worker = (("worker", str(self.worker)),)
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        times = os.times()
        return [
            ("featurestore_requests_in_flight", worker, self.in_flight),
            ("process_resident_memory_bytes", worker, pages * _PAGE_BYTES),
            ("process_cpu_seconds_total", worker, times.user + times.system),
            ("process_open_fds", worker, sum(1 for _ in Path("/proc/self/fd").iterdir())),
        ]


def _read(file: Path) -> Any:
    try:
        return orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None


def _sum(series: dict[tuple[str, str], Series], counted: Any) -> None:
    for route, service, buckets, seconds, statuses in counted["series"]:
        series.setdefault((route, service), Series(route, service)).add(buckets, seconds, statuses)


def _lines(series: Mapping[tuple[str, str], Series], gauges: Gauges) -> Iterator[str]:
    yield from _head("featurestore_requests_total")
    for (route, service), each in sorted(series.items()):
        for status, number in sorted(each.statuses.items()):
            of = (("route", route), ("service", service), ("status", str(status)))
            yield _line("featurestore_requests_total", of, number)
    yield from _head("featurestore_request_seconds")
    for (route, service), each in sorted(series.items()):
        yield from _histogram((("route", route), ("service", service)), each)
    for name in dict.fromkeys(name for name, _, _ in gauges):
        yield from _head(name)
        for labels, value in sorted((labels, value) for each, labels, value in gauges if each == name):
            yield _line(name, labels, value)


def _histogram(labels: Labels, series: Series) -> Iterator[str]:
    total = 0
    for bound, number in zip((*map(repr, BOUNDS), "+Inf"), series.buckets, strict=True):
        total += number
        yield _line("featurestore_request_seconds_bucket", (*labels, ("le", bound)), total)
    yield _line("featurestore_request_seconds_sum", labels, series.seconds)
    yield _line("featurestore_request_seconds_count", labels, total)


def _head(name: str) -> Iterator[str]:
    kind, text = _HELP[name]
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _line(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{shown}}} {value!r}\n" if shown else f"{name} {value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


now = time.perf_counter
"""The clock of latencies, in seconds."""
