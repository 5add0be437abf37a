"""A long run at a steady rate: `python -m benchmarks.soak --repo DIR --body FILE --seconds 600 --rate 5000`.

Starts the service of a repo, finds by `--share` of its greatest rate how fast to ask unless `--rate` says so, and asks for what the
file holds. Each slice's requests, errors, latencies and memory are a line; the last line says how far memory and p99 drifted from
the second slice to the last. It ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvloop

PATH = "/v1/online-features"


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


async def _soak(url: str, pid: int, body: bytes, options: argparse.Namespace) -> int:
    host, port = httpx.URL(url).host, httpx.URL(url).port or 80
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    load = _Load(head.encode() + body)
    loop = asyncio.get_running_loop()
    for _ in range(32):
        await loop.create_connection(lambda: _Connection(load), host, port)
    await load.run(0, 3)
    greatest = len(load.latencies) / 3
    rate = options.rate or options.share * greatest
    print(json.dumps({"greatest_per_s": round(greatest), "rate_per_s": round(rate)}), flush=True)
    slices, left = [], options.seconds
    while left > 0:
        load.latencies = []
        length = min(options.slice, left)
        await load.run(rate, length)
        left -= length
        p50, p99 = np.quantile(load.latencies, [0.5, 0.99]) * 1000
        slices.append((_memory(pid), p99))
        line = {"requests": len(load.latencies), "errors": load.errors, "p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}
        print(json.dumps(line | {"memory_mb": round(slices[-1][0], 1)}), flush=True)
    load.is_over = True
    first, last = slices[min(1, len(slices) - 1)], slices[-1]
    drift = {"memory_drift": round(last[0] / first[0] - 1, 4), "p99_drift": round(last[1] / first[1] - 1, 2), "errors": load.errors}
    print(json.dumps(drift), flush=True)
    return int(load.errors > 0)


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
    command = [sys.executable, "-m", "featurestore_server", "--repo", options.repo, "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        return uvloop.run(_soak(url, process.pid, options.body.read_bytes().strip(), options))
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    sys.exit(main())
