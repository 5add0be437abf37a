"""Several processes that serve on one socket, and the parent that keeps them running.

A worker that dies is replaced, after a pause that grows while its successors die young; connections that wait meanwhile are taken
by the others. SIGTERM and SIGINT end all: each worker takes no more connections and finishes the requests that it has begun, for
`server.grace_seconds` at most. Workers end by themselves when the parent is gone.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from featurestore_server import logs
from featurestore_server.worker import on_signal

__all__ = ["supervise"]

_LOGGER = logging.getLogger("featurestore_server")
_YOUNG_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_AFTER_GRACE_SECONDS = 3.0


class _Worker:
    """One place among the workers, and the process that fills it."""

    def __init__(self, number: int, command: Sequence[str], descriptors: Sequence[int]) -> None:
        self.number, self._command, self._descriptors = number, command, descriptors
        self._pause, self._next_at, self._started_at = 0.0, 0.0, 0.0
        self.start()

    def start(self) -> None:
        """Start a process. A session of its own keeps a terminal's Ctrl-C for the parent, which hands it on once."""
        self._started_at = time.monotonic()
        self.process = subprocess.Popen(
            [*self._command, "--worker", str(self.number)],
            stdout=subprocess.PIPE,
            pass_fds=self._descriptors,
            start_new_session=True,
        )

    def restart_if_dead(self) -> None:
        """Start another one where the process has died, once the pause is over."""
        code, now = self.process.poll(), time.monotonic()
        if code is None:
            return
        if not self._next_at:
            is_young = now - self._started_at < _YOUNG_SECONDS
            self._pause = min(2 * self._pause + 0.5, _LONGEST_PAUSE_SECONDS) if is_young and self._pause else 0.1
            self._next_at = now + self._pause
            _LOGGER.error("worker %d (process %d) ended with %d; another one follows", self.number, self.process.pid, code)
        if now >= self._next_at:
            self._next_at = 0.0
            self.close()
            self.start()

    def close(self) -> None:
        """Close the pipe of a process that has ended."""
        assert self.process.stdout is not None
        self.process.stdout.close()


def supervise(arguments: Sequence[str], workers: int, listener: socket.socket, begun: Callable[[], None], grace: float) -> int:
    """Serve with several workers until a signal; returns the exit code. `arguments` are those of one worker, but for its number."""
    logs.configure(level=logging.WARNING)
    is_ending = False

    def end(*_: object) -> None:
        nonlocal is_ending
        is_ending = True

    on_signal(end)
    alive, kept = os.pipe()
    with tempfile.TemporaryDirectory(prefix="featurestore-workers-") as shared:
        descriptors = (listener.fileno(), alive)
        given = ["--descriptors", f"{listener.fileno()},{alive}", "--shared", shared]
        command = [sys.executable, "-P", "-m", "featurestore_server", *arguments, *given]
        team = [_Worker(number, command, descriptors) for number in range(workers)]
        try:
            if not _have_begun(team, lambda: is_ending):
                return 0 if is_ending else 1
            begun()
            while not is_ending:
                time.sleep(_LOOK_SECONDS)
                for worker in team:
                    worker.restart_if_dead()
            return 0
        finally:
            os.close(kept)
            _end(team, grace)


def _have_begun(team: Sequence[_Worker], is_ending: Callable[[], bool]) -> bool:
    """Wait until each worker says that it answers; false if one ends before, or all shall."""
    with selectors.DefaultSelector() as selector:
        for worker in team:
            assert worker.process.stdout is not None
            selector.register(worker.process.stdout, selectors.EVENT_READ)
        while selector.get_map() and not is_ending():
            for key, _ in selector.select(_LOOK_SECONDS):
                if not os.read(key.fd, 4096):
                    return False
                selector.unregister(key.fileobj)
    return not is_ending()


def _end(team: Sequence[_Worker], grace: float) -> None:
    for worker in team:
        worker.process.terminate()
    deadline = time.monotonic() + grace + _AFTER_GRACE_SECONDS
    for worker in team:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.close()
