"""The row about lookups beside a training query: both on one server, in processes of their own."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import Bench, keys_and_times
from benchmarks.rows import Rows, row_of
from benchmarks.servers import served
from benchmarks.serving import BODIES, JSON, PATH, Load

__all__ = ["INTERFERENCE_ROWS"]

RATE = 500
LEAST_ROWS = 2_700_000  # which take longer than a second of lookups beside them


def lookup_during_training(bench: Bench, repetitions: int) -> Rows:
    """Compare the p99 of paced lookups while a training query of as many rows as the table runs on the server with that without."""
    spine = bench.folder / "long_spine.parquet"
    rows = max(bench.sizes.rows, LEAST_ROWS * bench.sizes.seconds)
    pq.write_table(pa.table(keys_and_times(np.random.default_rng(7), rows, bench.sizes.keys, "event_timestamp")), spine)
    users = np.random.default_rng(8).integers(0, bench.sizes.keys, BODIES).tolist()
    bodies = [json.dumps({"feature_service": "model", "entities": {"user_id": [user]}}).encode() for user in users]
    load = Load(PATH, JSON, bench.folder / "beside_training", bench.sizes.seconds).write(bodies)

    def p99(url: str) -> float:
        return load.latency(url, RATE)["p99"] * 1e3

    pairs = []
    with served("featurestore_server", "--repo", str(bench.folder), "--port", "0", "--json") as service:
        p99(service.url)
        for _ in range(repetitions):
            with _training(service.url, spine) as is_running:
                during = p99(service.url)
                if not is_running():
                    raise AssertionError("the training query ended before the lookups did: give it more rows")
            pairs.append((during, p99(service.url)))
    what = f"p99 of {RATE} HTTP lookups a second while a training query of {rows:,} rows runs, 1 worker"
    return [row_of("lookup_during_training", what, "µs", "the same without a training query (floor)", pairs)]


@contextmanager
def _training(url: str, spine: Path) -> Iterator[Callable[[], bool]]:
    """Have a training set computed and read it, in another process; gives what says whether that goes on."""
    code = "import sys; from benchmarks.interference import read_training_set; read_training_set(*sys.argv[1:])"
    command = [sys.executable, "-c", code, url, str(spine)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # the server has the spine, and computes
        time.sleep(0.5)
        yield lambda: process.poll() is None
    finally:
        process.kill()
        process.wait()
        time.sleep(0.5)


def read_training_set(url: str, spine: str) -> None:
    """Send a spine, say so, and read what comes."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)
    headers = {"Content-Type": "application/vnd.apache.parquet", "Accept": "application/vnd.apache.arrow.stream"}
    with Path(spine).open("rb") as file:
        connection.request("POST", "/v1/historical-features?feature_service=model", file, headers)
    print("sent", flush=True)
    answer, place = connection.getresponse(), bytearray(1 << 20)
    if answer.status != 200:
        raise AssertionError(answer.read())
    while answer.readinto(place):
        pass


INTERFERENCE_ROWS: dict[str, Callable[..., Rows]] = {"lookup_during_training": lookup_during_training}
