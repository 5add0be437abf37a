"""Reads of one key, a thousand a second at random moments, straight from the online server: what a load beside them costs.

`python -m benchmarks.paced_reads SOCKET KEY SECONDS` says that it reads, and then prints the p99 of the answers in microseconds.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from featurestore.online.frames import mget
from featurestore.online.links import Link
from featurestore.online.topology import Access, Endpoint

RATE, WARMING = 1000, 300


def _run(path: str, name: bytes, seconds: float) -> float:
    link, asked, random = Link(Endpoint(path=path), Access(5.0)), mget([name]), np.random.default_rng(5)
    taken: list[float] = []
    print("reading", flush=True)
    for _ in range(WARMING):  # a load that begins now has seen then that somebody reads
        time.sleep(1 / RATE)
        link.exchange(asked, 1)
    due = time.perf_counter()
    end = due + seconds
    while (now := time.perf_counter()) < end:
        time.sleep(max(0.0, due - now))
        due = max(due, now) + random.exponential(1 / RATE)
        began = time.perf_counter()
        link.exchange(asked, 1)
        taken.append(time.perf_counter() - began)
    link.close()
    return float(np.percentile(taken, 99)) * 1e6


if __name__ == "__main__":
    socket, key, length = sys.argv[1:]
    print(_run(socket, bytes.fromhex(key), float(length)))
