"""How many may be at something at once. Waiting takes no thread, and those who wait may be on different event loops."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future

__all__ = ["Slots"]


class Slots:
    """So many slots, taken in the order of asking."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether who comes now has to wait."""
        return self._free == 0

    async def take(self) -> None:
        """Take a slot, once there is one."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            with self._lock:
                is_given = turn not in self._waiting
                if not is_given:
                    self._waiting.remove(turn)
            if is_given:
                self.give()
            raise

    def give(self) -> None:
        """Give a slot back, to whoever waits longest."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            turn = self._waiting.popleft()
        if turn.set_running_or_notify_cancel():
            turn.set_result(None)
