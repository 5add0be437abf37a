"""How fast a load may go: at full speed on a server that nobody reads, gently on one that serves, or at the rate that is set.

Every `_LOOK_SECONDS` a watcher compares how often each server has answered GET and MGET. Where somebody reads, one small command
of the load is under way at a time, and after it the server is left alone for a multiple of the time that the command took: a slow
server, or a busy machine, is asked for less. A lookup then waits for a few rows at most, and mostly for none. That goes on until
nobody has read for `_QUIET_SECONDS`, since who reads may pause, or not get to it on a busy machine. A rate that is set takes the
place of all that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

__all__ = ["Throttle"]

_LOOK_SECONDS = 0.1
_FIRST_LOOK_SECONDS = 0.03
_READS_PER_LOOK = 3
_QUIET_SECONDS = 1.0
_REST = 2.0
_ROWS, _GENTLE_ROWS = 64, 8
_LONGEST_REST = 0.05


class Throttle:
    """The pace of one load; its workers share it. `max_rate` is in rows per second."""

    def __init__(self, clients: Sequence[redis.Redis], max_rate: float | None = None) -> None:
        self._clients, self._max_rate = clients, max_rate
        self._is_serving = True  # until looked at twice
        self._one_at_a_time, self._lock, self._end = threading.Lock(), threading.Lock(), threading.Event()
        self._next_at = time.monotonic()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def frame_rows(self) -> int:
        """How many rows one command should write: while it does, the server answers nobody else."""
        return _GENTLE_ROWS if self._is_serving and self._max_rate is None else _ROWS

    def close(self) -> None:
        """End the watcher."""
        self._end.set()
        self._watcher.join()

    @contextmanager
    def turn(self, few: int) -> Iterator[bool]:
        """Wait for a turn to send what there is; where the answer is true, only the `few` rows of one command."""
        if self._max_rate is not None:
            self._keep_rate(few, self._max_rate)
            yield True
        elif not self._is_serving:
            yield False
        else:
            with self._one_at_a_time:
                began = time.perf_counter()
                yield True
                time.sleep(min(_REST * (time.perf_counter() - began), _LONGEST_REST))

    def _keep_rate(self, rows: int, rate: float) -> None:
        with self._lock:
            now = time.monotonic()
            begins = max(self._next_at, now)
            self._next_at = begins + rows / rate
        self._end.wait(max(0.0, begins - now))

    def _watch(self) -> None:
        before: list[int] | None = None
        pause, serves_until = _FIRST_LOOK_SECONDS, 0.0
        while True:
            try:
                after = [_reads(client) for client in self._clients]
            except redis.RedisError:
                before = None  # whoever writes will say what is wrong
            else:
                if before is not None:
                    if any(late - early > _READS_PER_LOOK for early, late in zip(before, after, strict=True)):
                        serves_until = time.monotonic() + _QUIET_SECONDS
                    self._is_serving = time.monotonic() < serves_until
                before = after
            if self._end.wait(pause):
                return
            pause = _LOOK_SECONDS


def _reads(client: redis.Redis) -> int:
    found: dict[str, Any] = client.info("commandstats")
    return sum(int(found.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("get", "mget"))
