"""Requests at a constant rate over a few connections; latency counts from when a request was due, so a stall hides nothing.

`python -m benchmarks.paced URL MEDIA_TYPE FOLDER RATE SECONDS KEY` sends the bodies of a folder in turn, and prints percentiles as
JSON; a third of that time goes by before it counts.
Between two moments it sleeps: one that spins would take a core from the server and its online store, and measure that.
"""

from __future__ import annotations

import ctypes
import json
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

CONNECTIONS, PATIENCE = 32, 5.0
_PR_SET_TIMERSLACK = 29
_MOST_BYTES = 1 << 20


class _Connection:
    """One request at a time; what is read is an answer when its announced length is there."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due, self._parts, self._left = 0.0, list[bytes](), 0

    def send(self, request: bytes, due: float) -> None:
        """Ask."""
        self.due, self._parts, self._left = due, [], 0
        self.socket.sendall(request)

    def is_answered(self) -> bool:
        """Take what is there; whether the answer is whole."""
        self._parts.append(self.socket.recv(_MOST_BYTES))
        if self._left:
            self._left -= len(self._parts[-1])
            return not self._left
        head, found, body = b"".join(self._parts).partition(b"\r\n\r\n")
        if not found:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(head)
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        self._left = length - len(body)
        return not self._left


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


def _run(url: str, requests: list[bytes], rate: float, seconds: float) -> dict[str, float]:
    parts = urlsplit(url)
    free = deque(_Connection((parts.hostname or "", parts.port or 80)) for _ in range(CONNECTIONS))
    by_number = {each.socket.fileno(): each for each in free}
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # else Linux may wake a sleeper 50 µs late
    taken: list[tuple[float, float]] = []
    begun, sent, waiting = time.perf_counter(), 0, deque[float]()
    counted = begun + seconds / 3
    end = counted + seconds
    while (now := time.perf_counter()) < end or (len(taken) < sent and now < end + PATIENCE):
        while (due := begun + sent / rate) <= now and due < end:
            waiting.append(due)
            sent += 1
        while waiting and free:
            free.popleft().send(requests[sent % len(requests)], waiting.popleft())
        readable, _, _ = select.select(list(by_number), [], [], max(0.0, min(due, end) - time.perf_counter()))
        for number in readable:
            connection = by_number[number]
            if connection.is_answered():
                taken.append((connection.due, time.perf_counter() - connection.due))
                free.append(connection)
    found = np.array([latency for due, latency in taken if due > counted]) * 1e3
    percentiles = {f"p{each:g}": round(float(np.percentile(found, each)), 3) for each in (50, 90, 99, 99.9)}
    return {"rate": rate, **percentiles, "unanswered": sent - len(taken)}


if __name__ == "__main__":
    target, kind, bodies, speed, length, secret = sys.argv[1:]
    print(json.dumps(_run(target, _requests(target, kind, Path(bodies), secret), float(speed), float(length))))
