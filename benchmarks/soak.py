"""A long run at a steady rate: `python -m benchmarks.soak --repo DIR --body FILE --seconds 600 --rate 5000`.

Starts the service of a repo, finds by `--share` of its greatest rate how fast to ask unless `--rate` says so, and asks for what
the file holds. Each slice's requests, errors, latencies and memory are a line. The last line says how far memory drifted from the
second slice to the last, and how the greatest rate compares with that of a server just started, measured in turn: what the
machine itself does in ten minutes would else count as ours. It ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from collections import deque
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvloop

from benchmarks.servers import Server, served

PATH, CONNECTIONS, SECONDS, PAIRS = "/v1/online-features", 32, 3, 7


class _Connection(asyncio.Protocol):
    """One connection, which answers one request after the other."""

    def __init__(self, load: _Load) -> None:
        self._load, self._buffer, self.due = load, b"", 0.0
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Take part."""
        self.transport = transport
        self._load.idle.append(self)

    def connection_lost(self, _: Exception | None) -> None:
        """Count what should not happen before the end."""
        self._load.errors += not self._load.is_over

    def data_received(self, data: bytes) -> None:
        """Take an answer, if it is whole."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = re.search(rb"content-length: (\d+)", head)
        if length is None or len(body) < int(length[1]):
            return
        self._buffer = b""
        self._load.errors += not head.startswith(b"HTTP/1.1 200")
        self._load.latencies.append(time.perf_counter() - self.due)
        self._load.take(self)


class _Load:
    """Requests that are due at fixed times. A latency begins when its request was due, so one that has to wait counts in full."""

    def __init__(self, request: bytes) -> None:
        self.request, self.errors, self.is_over = request, 0, False
        self.latencies: list[float] = []
        self.idle: deque[_Connection] = deque()
        self._due: deque[float] = deque()

    def take(self, connection: _Connection) -> None:
        """Give a connection its next request, or let it wait."""
        if self._due:
            self._send(connection, self._due.popleft())
        else:
            self.idle.append(connection)

    def _send(self, connection: _Connection, due: float) -> None:
        connection.due = due
        connection.transport.write(self.request)

    async def run(self, rate: float, seconds: float) -> None:
        """Ask at a rate for some seconds; a rate of zero is as fast as it goes."""
        begun, sent = time.perf_counter(), 0
        while (now := time.perf_counter()) < begun + seconds:
            target = int((now - begun) * rate) if rate else sent + len(self.idle)
            for number in range(sent, target):
                due = begun + number / rate if rate else now
                if self.idle:
                    self._send(self.idle.popleft(), due)
                else:
                    self._due.append(due)
            sent = target
            await asyncio.sleep(0.0005 if rate else 0)
        while self._due and time.perf_counter() < begun + seconds + 10:  # noqa: ASYNC110 (a load generator looks at the clock)
            await asyncio.sleep(0.01)


def _memory(pid: int) -> float:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1000


async def _connected(url: str, body: bytes) -> _Load:
    """Return a load over connections to a server."""
    host, port = httpx.URL(url).host, httpx.URL(url).port or 80
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    load = _Load(head.encode() + body)
    for _ in range(CONNECTIONS):
        await asyncio.get_running_loop().create_connection(lambda: _Connection(load), host, port)
    return load


async def _greatest(load: _Load) -> float:
    load.latencies = []
    await load.run(0, SECONDS)
    return len(load.latencies) / SECONDS


async def _soak(options: argparse.Namespace) -> int:
    body = options.body.read_bytes().strip()
    with _served(options) as server:
        load = await _connected(server.url, body)
        rate = options.rate or options.share * await _greatest(load)
        print(json.dumps({"rate_per_s": round(rate)}), flush=True)
        memory, left = [], options.seconds
        while left > 0:
            load.latencies = []
            length = min(options.slice, left)
            await load.run(rate, length)
            left -= length
            p50, p99 = np.quantile(load.latencies, [0.5, 0.99]) * 1000
            memory.append(_memory(server.pid))
            line = {"requests": len(load.latencies), "errors": load.errors, "p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}
            print(json.dumps(line | {"memory_mb": round(memory[-1], 1)}), flush=True)
        load.is_over = True  # while the other server starts, this one ends connections that nobody uses
        with _served(options) as fresh:
            other = await _connected(fresh.url, body)
            await _greatest(other)
            again = await _connected(server.url, body)
            pairs = [(await _greatest(again), await _greatest(other)) for _ in range(PAIRS)]
            errors = load.errors + again.errors + other.errors
            again.is_over = other.is_over = True
    ratios = [one / two for one, two in pairs]
    last = {
        "memory_drift": round(memory[-1] / memory[min(1, len(memory) - 1)] - 1, 4),
        "greatest_per_s": [round(statistics.median(side)) for side in zip(*pairs, strict=True)],
        "of_a_fresh_server": round(statistics.median(ratios), 2),
        "least_and_greatest": [round(min(ratios), 2), round(max(ratios), 2)],
        "errors": errors,
    }
    print(json.dumps(last), flush=True)
    return int(errors > 0)


def _served(options: argparse.Namespace) -> AbstractContextManager[Server]:
    return served("featurestore_server", "--repo", str(Path(options.repo).resolve()), "--port", "0", "--json")


def main() -> int:
    """Run it; 1 if any answer was not a 200."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--repo", required=True, help="a repo that is applied and materialized")
    parser.add_argument("--body", required=True, type=Path, help="a file with the JSON of a lookup")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--slice", type=float, default=60, help="seconds that one line is about")
    parser.add_argument("--rate", type=float, default=0, help="requests per second")
    parser.add_argument("--share", type=float, default=0.7, help="of the greatest rate, where no rate is given")
    options = parser.parse_args()
    return uvloop.run(_soak(options))


if __name__ == "__main__":
    sys.exit(main())
