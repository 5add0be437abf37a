"""Training queries, each in a process of its own, so that lookups keep the event loop, the interpreter lock and the processor.

A process is forked from one that has the library loaded and nothing else (multiprocessing's fork server), which takes a few
milliseconds. It stands back (`priority.py`), reads its request from a file and sends its answer through a socket that holds little,
so it computes no faster than the client reads. It is killed when the client goes away, and ends by itself when the server does.
`server.training_processes` run at once, which share `offline.memory_limit` with the jobs (`jobs.py`); `server.training_queue` more
wait; others are told to come again.

What a process sends are frames: a letter, the length of what follows in four bytes, and that. `H` is the head of the response as
JSON (status, headers, and what the log should say), `C` a chunk of its body, `E` its end, `X` a traceback instead of the rest.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import BinaryIO

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from featurestore import FeatureStore
from featurestore.errors import OfflineStoreError
from featurestore_server.problems import ProblemError
from featurestore_server.slots import Slots
from featurestore_server.training_process import FRAME, Origin, Work, run

__all__ = ["Computed", "LostProcessError", "Processes", "frames"]

_LOGGER = logging.getLogger("featurestore_server")
_PRELOADED = ["featurestore.store", "featurestore_server.queries"]
_WRITTEN_BYTES = 1_048_576
_READ_BYTES = 262_144
_BUSY_SECONDS = "5"


class LostProcessError(Exception):
    """A process ended before its answer did."""


@dataclass
class Processes:
    """The processes of a service: how many run and wait."""

    store: FeatureStore
    at_once: int
    queue: int
    _slots: Slots = field(init=False)

    def __post_init__(self) -> None:
        self._slots = Slots(self.at_once)

    @asynccontextmanager
    async def started(self, work: Work, folder: Path) -> AsyncIterator[asyncio.StreamReader]:
        """Run work in a process of its own, once there is room; gives what it sends.

        Raises:
            ProblemError: too many wait already.

        """
        if self._slots.is_full and self._slots.waiting >= self.queue:
            detail = "as many training queries as can be are computed and waiting; come again, or send it as a training-set job"
            raise ProblemError("busy", detail, headers={"Retry-After": _BUSY_SECONDS})
        await self._slots.take()
        try:
            async with self._process(work, folder) as reader:
                yield reader
        finally:
            self._slots.give()

    @asynccontextmanager
    async def _process(self, work: Work, folder: Path) -> AsyncIterator[asyncio.StreamReader]:
        ours, theirs = socket.socketpair()
        settings = self.store.settings.server
        origin = Origin.of(self.store, shared_by=settings.training_processes + settings.training_jobs)
        process = _context().Process(target=run, args=(work, origin, theirs, str(folder)), daemon=True)
        try:
            with theirs:
                await asyncio.to_thread(process.start)
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_READ_BYTES)
            try:
                yield reader
            finally:
                writer.close()
        finally:
            ours.close()
            if process.pid is not None:
                process.kill()
                asyncio.get_running_loop().run_in_executor(None, _reap, process)


def _reap(process: ForkServerProcess) -> None:
    process.join()
    process.close()


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


# Requests


class Computed(Response):
    """The response of a process that is given what a request sends, as the file `body` of a folder of its own."""

    def __init__(self, processes: Processes, work: Work) -> None:
        super().__init__()
        self._processes, self._work = processes, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive the request, and send the response as it is computed; all ends when the client goes away."""
        async with _spooled(receive, self._processes.store.settings.temp_folder) as folder:
            tasks = [asyncio.ensure_future(self._relay(folder, scope, send)), asyncio.ensure_future(_disconnected(receive))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                relayed, _ = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(relayed, BaseException) and not isinstance(relayed, asyncio.CancelledError):
            raise relayed

    async def _relay(self, folder: Path, scope: Scope, send: Send) -> None:
        async with self._processes.started(self._work, folder) as reader:
            received = frames(reader)
            _, content = await anext(received)
            head = orjson.loads(content)
            if head["log"]:
                _LOGGER.warning("%s %s: %s", scope["method"], scope["path"], head["log"])
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head["headers"]]
            await send({"type": "http.response.start", "status": head["status"], "headers": headers})
            async for letter, content in received:
                await send({"type": "http.response.body", "body": content, "more_body": letter != b"E"})
                await asyncio.sleep(0)  # neither step waits while there is more: lookups have their turn between two chunks


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    """Give what a process sends, to its end.

    Raises:
        LostProcessError: it ended before, or says that it failed.

    """
    letter = b""
    while letter != b"E":
        try:
            letter, length = FRAME.unpack(await reader.readexactly(FRAME.size))
            content = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionResetError) as reason:
            raise LostProcessError("the process ended before its answer did") from reason
        if letter == b"X":
            raise LostProcessError(content.decode(errors="replace"))
        yield letter, content


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def _spooled(receive: Receive, temp_folder: Path | None) -> AsyncIterator[Path]:
    """Receive a body into the file `body` of a new folder, never holding more than a part of it; the folder ends with the block.

    Raises:
        OfflineStoreError: it cannot be kept.

    """
    folder: Path | None = None
    try:
        try:
            folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="featurestore-request-", dir=temp_folder))
            await _keep(receive, folder / "body")
        except OSError as reason:
            raise OfflineStoreError(f"cannot keep the body of the request: {reason}") from reason
        yield folder
    finally:
        if folder is not None:
            asyncio.get_running_loop().run_in_executor(None, functools.partial(shutil.rmtree, folder, ignore_errors=True))


async def _keep(receive: Receive, path: Path) -> None:
    with path.open("wb") as file:
        held, is_whole = bytearray(), False
        while not is_whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            held += message.get("body", b"")
            is_whole = not message.get("more_body")
            if len(held) >= _WRITTEN_BYTES or is_whole:
                await asyncio.to_thread(_write, file, bytes(held))
                held.clear()


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
