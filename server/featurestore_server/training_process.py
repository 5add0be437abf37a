"""What a process for training does: it opens the store, works, and sends what comes of it (`processes.py` has the frames)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError
from featurestore_server.priority import stand_back
from featurestore_server.problems import ProblemError, problem_of

__all__ = ["FRAME", "Origin", "Outlet", "Work", "run"]

FRAME = struct.Struct("!cI")
_CHUNK_BYTES = 131_072
_LEAST_MEMORY_MB = 256
_PREFIX = "FEATURESTORE_"
_SERVER_FAULT = 500


@dataclass(frozen=True)
class Origin:
    """The repo that a process opens, with the service's present and variables, and the memory that it may take."""

    repo: str
    now: int
    variables: dict[str, str]
    memory_bytes: int

    @staticmethod
    def of(store: FeatureStore, *, shared_by: int) -> Origin:
        """Return that of a store, whose memory so many processes share."""
        variables = {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)}
        return Origin(str(store.settings.root), store.clock(), variables, store.settings.offline.memory_bytes // shared_by)

    @contextmanager
    def opened(self) -> Iterator[FeatureStore]:
        """Open the store in this process, which may be older than the variables."""
        for name in [name for name in os.environ if name.startswith(_PREFIX)]:
            del os.environ[name]
        memory = {f"{_PREFIX}OFFLINE__MEMORY_LIMIT": f"{max(_LEAST_MEMORY_MB, self.memory_bytes // 1_000_000)}MB"}
        os.environ.update(self.variables | memory)
        with FeatureStore(self.repo, clock=lambda: self.now) as store:
            yield store


class Outlet:
    """Where a process sends its response. It waits while nobody reads."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def begin(self, status: int, headers: Iterable[tuple[str, str]], log: str | None = None) -> None:
        """Send the head of the response; `log` is for the service's log."""
        self._send(b"H", orjson.dumps({"status": status, "headers": list(headers), "log": log}))

    def write(self, chunk: bytes) -> None:
        """Send a part of the body."""
        view = memoryview(chunk)
        for first in range(0, len(view), _CHUNK_BYTES):
            self._send(b"C", view[first : first + _CHUNK_BYTES])

    def end(self) -> None:
        """Say that this was all."""
        self._send(b"E", b"")

    def fail(self, text: str) -> None:
        """Say that there is no end; the text is for the service's log."""
        self._send(b"X", text.encode())

    def _send(self, letter: bytes, content: bytes | memoryview) -> None:
        self._channel.sendall(FRAME.pack(letter, len(content)))
        if len(content):
            self._channel.sendall(content)


Work = Callable[[FeatureStore, Path, Outlet], Any]
"""What a process is to do, given the store and the folder of the request; it can be pickled."""


def run(work: Work, origin: Origin, channel: socket.socket, folder: str) -> None:
    """Do the work and end. An error of the store is a response like another."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stand_back()
    tempfile.tempdir = folder
    threading.Thread(target=_end_with_the_service, args=(channel, folder), daemon=True).start()
    outlet = Outlet(channel)
    try:
        with origin.opened() as store:
            _answer(work, store, Path(folder), outlet)
    except (BrokenPipeError, ConnectionResetError):  # the service has gone, and nobody is left to clean up
        shutil.rmtree(folder, ignore_errors=True)
    except Exception:  # noqa: BLE001 (the service logs it)
        outlet.fail(traceback.format_exc())


def _answer(work: Work, store: FeatureStore, folder: Path, outlet: Outlet) -> None:
    try:
        work(store, folder, outlet)
    except (ProblemError, FeatureStoreError) as error:
        response = error.response() if isinstance(error, ProblemError) else problem_of(error)
        log = str(error) if response.status_code >= _SERVER_FAULT else None
        outlet.begin(response.status_code, response.headers.items(), log)
        outlet.write(bytes(response.body))
    outlet.end()


def _end_with_the_service(channel: socket.socket, folder: str) -> None:
    """End the process when the service has gone, whatever it does."""
    channel.recv(1)  # the service sends nothing
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
