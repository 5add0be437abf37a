"""One process that serves: it takes connections from a socket until it is told to end, and then finishes what it has begun."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from featurestore import FeatureStore
from featurestore_server import logs
from featurestore_server.app import create_app
from featurestore_server.metrics import Metrics
from featurestore_server.shortcut import protocol_of
from featurestore_server.tracing import spans_wanted

__all__ = ["Service", "on_signal", "serve"]

BACKLOG = 2048
_THREADS_SECONDS = 0.5
_SWITCH_SECONDS = 0.0005
"""How long the event loop waits for a thread that computes: it does so a few times in each request. Python's own is 5 ms."""


@dataclass(frozen=True)
class Service:
    """What is served, and how: one for all workers. `is_open`: without any API key requests need none."""

    repo: str
    is_open: bool
    certificate: str | None = None
    key: str | None = None
    debug: bool = False


class _Server(uvicorn.Server):
    """A server that says so once it listens, and ends when its supervisor has."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None], supervisor: int | None) -> None:
        super().__init__(config)
        self._begun, self._supervisor = begun, supervisor

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            # All that was imported and compiled stays: a collection that looks through it would stop every request for 50 ms.
            gc.collect()
            gc.freeze()
            self._begun()
            if self._supervisor is not None:
                asyncio.get_running_loop().add_reader(self._supervisor, self.end)

    def end(self, *_: object) -> None:
        """Serve no more. Uvicorn has the signals while it serves, and raises them again when it is done."""
        if self._supervisor is not None and self.started:
            asyncio.get_running_loop().remove_reader(self._supervisor)
        self.should_exit = True


def serve(
    service: Service,
    listener: socket.socket,
    begun: Callable[[], None],
    *,
    worker: int = 0,
    shared: Path | None = None,
    supervisor: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until `supervisor`, a pipe, is closed at its other end. Calls `begun` once it answers."""
    logs.configure(level=logging.DEBUG if service.debug else logging.WARNING)
    sys.setswitchinterval(_SWITCH_SECONDS)
    with FeatureStore(service.repo) as store:
        app = create_app(store, is_open=service.is_open, metrics=Metrics(worker, shared), spans=spans_wanted())
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=protocol_of(app.state.online, is_short=not store.settings.server.cors_origins),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            backlog=BACKLOG,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=store.settings.server.grace_seconds,
            ssl_certfile=service.certificate,
            ssl_keyfile=service.key,
        )
        config.load()
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        server = _Server(config, begun, supervisor)
        on_signal(server.end)
        server.run([listener])
        _end_threads()


def on_signal(handler: Callable[..., object]) -> None:
    """Let SIGTERM and SIGINT call a handler."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _end_threads() -> None:
    """End now if requests that were cut off still compute: Python would wait for their threads, however long they take."""
    deadline = time.monotonic() + _THREADS_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                os._exit(0)
