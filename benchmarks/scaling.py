"""How cost grows with size: `python -m benchmarks --scale`. Each size runs in a process of its own, whose peak memory is read.

Rows: training sets of a spine of a tenth of the rows, keys a hundredth, under a memory limit of 4 GB; what does not end in five
minutes has failed at that size. Keys: one row for each key, loaded online and looked up. Batches and views: lookups
through the Python API.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.data import Bench, Sizes, make_repo
from benchmarks.rows import memory_of
from benchmarks.servers import empty

__all__ = ["ROW_SIZES", "Point", "measure"]

ROW_SIZES = (1_000_000, 10_000_000, 100_000_000)
KEY_SIZES = (100_000, 1_000_000, 10_000_000)
BATCHES = (1, 10, 100, 1000)
LIMIT = '[offline]\nmemory_limit = "4GB"\n'
LIMIT_SECONDS = 300
LOOKUPS = 2_000


@dataclass(frozen=True)
class Point:
    """One point of a curve. `memory` is the peak of the process in bytes, where it is known."""

    curve: str
    who: str
    size: int
    value: float | None
    unit: str
    memory: int | None = None
    error: str | None = None


def measure(largest: int) -> list[Point]:
    """Measure all curves, up to so many rows."""
    points: list[Point] = []
    for kind, sizes in (("rows", ROW_SIZES), ("keys", KEY_SIZES), ("batches", KEY_SIZES[:1])):
        for size in sizes:
            if size <= largest:
                print(f"measuring {kind} {size:,} …", file=sys.stderr)
                points += _measured(kind, size)
    return points


def _measured(kind: str, size: int) -> Iterator[Point]:
    command = [sys.executable, "-m", "benchmarks.scaling", kind, str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", file=sys.stderr)
            yield Point(**json.loads(line))
    if process.returncode:
        yield Point(kind, "ours", size, None, "", error=f"ended with code {process.returncode}")


# Rows


def _rows(bench: Bench) -> Iterator[Point]:
    from benchmarks.training import by_hand, windows_by_hand

    size, store = bench.sizes.rows, bench.store
    materialized = _peak()
    yield Point("materialize", "ours", size, float(bench.prepared), "s", materialized)
    for curve, service, query in (("pit_1view", "model", by_hand(bench)), ("windows_3", "windows_3", windows_by_hand(bench))):
        target = bench.folder / f"{curve}.parquet"
        began = time.perf_counter()
        store.get_historical_features(bench.spine, service).to_parquet(target)
        yield Point(curve, "ours", size, time.perf_counter() - began, "s", _peak())
        yield _limited(curve, query, size, str(target))


def _limited(curve: str, query: str, size: int, target: str) -> Point:
    """Let DuckDB do the same under the same limit, in a process that ends when its time is over."""
    answers: multiprocessing.Queue[tuple[float | None, int, str | None]] = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=_by_hand, args=(query, target, answers))
    process.start()
    process.join(LIMIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return Point(curve, "DuckDB by hand", size, None, "s", error=f"not done after {LIMIT_SECONDS} s")
    value, memory, error = answers.get(timeout=10)
    return Point(curve, "DuckDB by hand", size, value, "s", memory, error)


def _by_hand(query: str, target: str, answers: multiprocessing.Queue[tuple[float | None, int, str | None]]) -> None:
    from benchmarks.rows import duckdb_session

    connection = duckdb_session()
    connection.execute("SET memory_limit = '4GB'")
    connection.execute(f"SET temp_directory = '{target}.spilled'")  # goes with the data, also if this process is ended
    connection.execute("SET enable_progress_bar = false")  # it would stand among the answers
    began = time.perf_counter()
    try:
        connection.execute(f"COPY ({query}) TO '{target}.hand' (FORMAT parquet, COMPRESSION zstd)")
        answers.put((time.perf_counter() - began, _peak(), None))
    except Exception as reason:  # noqa: BLE001 (that it fails is the result)
        answers.put((None, _peak(), f"{type(reason).__name__}: {str(reason).splitlines()[0]}"))


def _peak() -> int:
    return memory_of("VmHWM")


# Keys, batches and views


def _keys(bench: Bench) -> Iterator[Point]:
    size, client = bench.sizes.keys, bench.store.online._client  # noqa: SLF001 (its memory is what is asked for)
    empty(client)
    began = time.perf_counter()
    [report] = bench.store.sync(["activity"])
    yield Point("bulk_load", "ours", size, report.online_written / (time.perf_counter() - began), "rows per s", _peak())
    used: int = client.info("memory")["used_memory"]
    yield Point("bytes_per_key", "ours", size, used / report.online_written, "bytes")
    yield Point("lookups", "ours", size, _microseconds(bench, 1), "µs")


def _batches(bench: Bench) -> Iterator[Point]:
    for batch in BATCHES:
        yield Point("batches", "ours", batch, _microseconds(bench, batch), "µs")
    for views in (1, 2, 5):
        yield Point("views", "ours", views, _microseconds(bench, 1, f"model_{views}"), "µs")


def _microseconds(bench: Bench, batch: int, service: str = "model") -> float:
    """Return the mean of a lookup through the Python API."""
    count = max(20, LOOKUPS // batch)
    users = np.random.default_rng(9).integers(0, bench.sizes.keys, (count + 10, batch)).tolist()
    for each in users[:10]:
        bench.store.get_online_features({"user_id": each}, service).to_dict()
    began = time.perf_counter()
    for each in users[10:]:
        bench.store.get_online_features({"user_id": each}, service).to_dict()
    return (time.perf_counter() - began) / count * 1e6


KINDS: dict[str, tuple[Callable[[Bench], Iterator[Point]], str]] = {
    "rows": (
        _rows,
        """
functions = [Aggregation("f0", function, ["1d", "7d", "30d"]) for function in ("count", "sum", "mean", "max")]
w3 = FeatureView("w3", entities=[user], source=events, refresh="1h", online=False, aggregations=functions)
windows_3 = FeatureService("windows_3", features=[w3])
""",
    ),
    "keys": (_keys, ""),
    "batches": (
        _batches,
        """
more = [
    FeatureView(f"v{number}", entities=[user], source=events, refresh="1h", fields={f"f{place}": Float64 for place in range(10)})
    for number in range(5)
]
services = [FeatureService(f"model_{count}", features=more[:count]) for count in (1, 2, 5)]
""",
    ),
}


def main(kind: str, size: str) -> None:
    """Print the points of one size, one a line."""
    rows = int(size)
    sizes = Sizes(rows, rows // 100, rows // 10) if kind == "rows" else Sizes(rows, rows, 1_000)
    evaluate, more = KINDS[kind]
    with (
        tempfile.TemporaryDirectory(prefix="featurestore-benchmarks-") as folder,
        make_repo(Path(folder), sizes, settings=LIMIT, more=more, is_online=kind != "rows") as bench,
    ):
        for point in evaluate(bench):
            print(json.dumps(asdict(point)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
