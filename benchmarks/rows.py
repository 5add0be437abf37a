"""What a row of the scoreboard is, and how it is measured: ours and its peers in turn, several times, in one run."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

__all__ = ["Cost", "Row", "Rows", "compare", "duckdb_session", "measured", "memory_of", "row_of"]

SLOW_SECONDS, VERY_SLOW_SECONDS, QUICK_SECONDS = 15.0, 100.0, 1.0
"""A peer that takes longer is run once after its first run, or not again, as no warming would change it; its row says how often.
Where nothing is repeated, a second is long."""

Rows = list["Row"]
Call = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds, seconds of processor over all threads, and bytes that the process grew by at its peak."""

    seconds: float
    processor: float
    memory: int


@dataclass(frozen=True)
class Row:
    """One measured comparison. `ratio` says how many times better ours is; against a floor it is the share of it that we reach.

    `ours` and `peer` are medians of `runs` runs, `spread` is the least and the greatest ratio of runs side by side. `processor`
    and `memory` are pairs of ours and peer: seconds of processor, of a server for 1,000 answers, and the bytes that the process
    grew by at its peak, of a server all that it had. A peer that failed has its `error` instead.
    """

    name: str
    what: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    spread: tuple[float, float] | None
    runs: int = 0
    processor: tuple[float, float] | None = None
    memory: tuple[int, int] | None = None
    latency: Mapping[str, float] | None = None
    error: str | None = None


def compare(name: str, what: str, ours: Call, peers: Mapping[str, Call], repetitions: int, *, count: int | None = None) -> Rows:
    """Measure ours and its peers in turn, after one run each that is not counted unless it was very slow; a row for each peer.

    A peer that is a method of another process returns the Cost of its own measurement. With `count` the row is a rate.
    """
    mine, warm, failed = [measured(ours)], dict[str, Cost](), dict[str, str]()
    for peer, call in peers.items():
        try:
            warm[peer] = measured(call)
        except Exception as reason:  # noqa: BLE001 (that it fails is the result)
            failed[peer] = f"{type(reason).__name__}: {reason}"
    theirs: dict[str, list[tuple[Cost, Cost]]] = {peer: [] for peer in warm}
    limit = VERY_SLOW_SECONDS if repetitions > 1 else QUICK_SECONDS
    for repetition in range(repetitions):
        for peer in warm:
            first = warm[peer]
            if repetition < (1 if first.seconds > SLOW_SECONDS else repetitions):
                mine.append(measured(ours))
                theirs[peer].append((mine[-1], first if first.seconds > limit else measured(peers[peer])))
    took = mine[0].seconds if count is None else count / mine[0].seconds
    unit = "s" if count is None else "per s"
    rows = [Row(name, what, unit, took, None, peer, None, None, 1, error=error) for peer, error in failed.items()]
    for peer, pairs in theirs.items():
        seconds = [(one.seconds, other.seconds) for one, other in pairs]
        row = row_of(name, what, "s", peer, seconds)
        middle = [statistics.median(each.processor for each in side) for side in zip(*pairs, strict=True)]
        peak = max(each.memory for each in mine), max(each.memory for each in (warm[peer], *(other for _, other in pairs)))
        row = replace(row, processor=(middle[0], middle[1]), memory=peak)
        if count is not None:
            assert row.peer is not None
            row = replace(row, unit="per s", ours=count / row.ours, peer=count / row.peer)
        rows.append(row)
    return rows


def row_of(name: str, what: str, unit: str, peer: str, pairs: Sequence[tuple[float, float]], *, is_rate: bool = False) -> Row:
    """Return the row of pairs of ours and the peer's, which were measured side by side."""
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [one / other if is_rate else other / one for one, other in pairs]
    return Row(name, what, unit, mine, theirs, peer, statistics.median(ratios), (min(ratios), max(ratios)), len(pairs))


def measured(call: Call) -> Cost:
    """Run something, and return what it cost; a call that measured itself returns its Cost."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew
    before, processor, began = memory_of("VmRSS"), _processor(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    if isinstance(result, Cost):
        return result
    return Cost(seconds, _processor() - processor, max(0, memory_of("VmHWM") - before))


def _processor() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def memory_of(name: str) -> int:
    """Return what Linux says of this process's memory under a name, in bytes."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def duckdb_session() -> duckdb.DuckDBPyConnection:
    """Open a DuckDB of its own, in UTC."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection
