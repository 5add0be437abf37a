"""Requests at a constant rate over a few connections; latency counts from when a request was due, so a stall hides nothing.

`python -m benchmarks.paced URL MEDIA_TYPE FOLDER RATE KEY` sends the bodies of a folder in turn, and prints percentiles as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

CONNECTIONS, SECONDS, WARM = 32, 4.0, 1.0


class _Connection(asyncio.Protocol):
    """One request at a time; what is read is an answer when its announced length is there."""

    def __init__(self, free: deque[_Connection], taken: list[tuple[float, float]]) -> None:
        self._free, self._taken = free, taken
        self._read, self._due = b"", 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._free.append(self)

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(head)
        self._read = b""
        self._taken.append((self._due, time.perf_counter() - self._due))
        self._free.append(self)


def _requests(url: str, media_type: str, folder: Path, key: str) -> list[bytes]:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    requests = []
    for file in sorted(folder.glob("[0-9]*")):
        body = file.read_bytes()
        lines = [
            f"POST {target} HTTP/1.1",
            f"Host: {parts.netloc}",
            f"Content-Type: {media_type}",
            f"Authorization: Bearer {key}",
            f"Content-Length: {len(body)}",
        ]
        head = "\r\n".join([*lines, "", ""])
        requests.append(head.encode() + body)
    return requests


async def _run(url: str, requests: list[bytes], rate: float) -> dict[str, float]:
    parts, free, taken = urlsplit(url), deque[_Connection](), list[tuple[float, float]]()
    loop = asyncio.get_running_loop()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: _Connection(free, taken), parts.hostname, parts.port)
    begun, sent, waiting = time.perf_counter(), 0, deque[float]()
    while (now := time.perf_counter()) < begun + SECONDS:
        while begun + sent / rate <= now:
            waiting.append(begun + sent / rate)
            sent += 1
        while waiting and free:
            free.popleft().send(requests[sent % len(requests)], waiting.popleft())
        await asyncio.sleep(0)
    await asyncio.sleep(0.2)
    found = np.array([latency for due, latency in taken if due > begun + WARM]) * 1e3
    percentiles = {f"p{each:g}": round(float(np.percentile(found, each)), 3) for each in (50, 90, 99, 99.9)}
    return {"rate": rate, **percentiles, "unanswered": sent - len(taken)}


if __name__ == "__main__":
    uvloop.install()
    target, kind, bodies, speed, secret = sys.argv[1:]
    print(json.dumps(asyncio.run(_run(target, _requests(target, kind, Path(bodies), secret), float(speed)))))
