"""The rows about the HTTP service: lookups under load from another process, against a server that does nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from benchmarks.data import FEATURES, Bench
from benchmarks.rows import Row

__all__ = ["SERVING_ROWS"]

CONNECTIONS, SECONDS, BODIES = 32, 3, 100
PATH = "/v1/online-features"


@contextmanager
def _served(*command: str, **variables: str) -> Iterator[str]:
    """Run a server that prints its URL, and end it."""
    root = Path(__file__).parents[1]
    environment = os.environ | variables
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(20)


def _script(bench: Bench, entities: int) -> str:
    """Return what wrk sends in turn: lookups of different entities."""
    users = np.random.default_rng(6).integers(0, bench.sizes.keys, (BODIES, entities)).tolist()
    bodies = [json.dumps({"feature_service": "model", "entities": {"user_id": each}}) for each in users]
    table = ",".join(f"[==[{body}]==]" for body in bodies)
    return f"""
        local bodies, requests, number = {{{table}}}, {{}}, 0
        function init()
            for place, body in ipairs(bodies) do
                requests[place] = wrk.format("POST", "{PATH}", {{["Content-Type"] = "application/json"}}, body)
            end
        end
        function request() number = number % {BODIES} + 1; return requests[number] end
    """


def _rate(url: str, script: Path) -> float:
    """Return the answers per second that one worker gives; all of them have to be good."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk is not on the PATH: apt-get install wrk")
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(script), url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in shown or "Socket errors" in shown:
        raise AssertionError(shown)
    match = re.search(r"Requests/sec:\s*([0-9.]+)", shown)
    assert match, shown
    return float(match[1])


def _lookups(name: str, bench: Bench, repetitions: int, entities: int) -> Row:
    what = f"HTTP lookups of {entities} x {FEATURES} features, 1 worker, {CONNECTIONS} connections"
    with _service(bench) as service, _served("benchmarks.empty_server") as empty:
        return _compared(name, what, bench, entities, (service, empty), "empty ASGI server (floor)", repetitions)


def _service(bench: Bench, **variables: str) -> AbstractContextManager[str]:
    return _served("featurestore_server", "--repo", str(bench.folder), "--port", "0", "--json", **variables)


def _compared(name: str, what: str, bench: Bench, entities: int, urls: tuple[str, str], peer: str, repetitions: int) -> Row:
    script = bench.folder / f"{name}.lua"
    script.write_text(_script(bench, entities))
    pairs = [(_rate(urls[0], script), _rate(urls[1], script)) for _ in range(repetitions + 1)][1:]
    mine, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [one / other for one, other in pairs]
    return Row(name, what, "per s", mine, floor, peer, statistics.median(ratios), (min(ratios), max(ratios)))


def online_1x10(bench: Bench, repetitions: int) -> Row:
    """Compare lookups of one entity over HTTP with an empty server."""
    return _lookups("online_1x10", bench, repetitions, 1)


def online_100x10(bench: Bench, repetitions: int) -> Row:
    """Compare lookups of 100 entities over HTTP with an empty server."""
    return _lookups("online_100x10", bench, repetitions, 100)


def serving_log(bench: Bench, repetitions: int) -> Row:
    """Compare lookups over HTTP of which a tenth is logged with those of which none is."""
    what = f"HTTP lookups of 1 x {FEATURES} features, a tenth of them in the serving log"
    settings = {"FEATURESTORE_SERVING_LOG__SAMPLE": "0.1", "FEATURESTORE_SERVING_LOG__FLUSH_SECONDS": "1"}
    with _service(bench, **settings) as logging, _service(bench) as plain:
        return _compared("serving_log", what, bench, 1, (logging, plain), "without the log", repetitions)


SERVING_ROWS: dict[str, Callable[..., Row]] = {
    "online_1x10": online_1x10,
    "online_100x10": online_100x10,
    "serving_log": serving_log,
}
