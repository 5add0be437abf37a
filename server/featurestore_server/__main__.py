"""Run the HTTP service: `python -m featurestore_server --repo DIR`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

import uvicorn

from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError
from featurestore_server.app import create_app

__all__ = ["main"]

_GRACE_SECONDS = 1
_THREADS_SECONDS = 0.5
_BACKLOG = 2048


class _Server(uvicorn.Server):
    """A server that says so once it listens."""

    def __init__(self, config: uvicorn.Config, announcement: str) -> None:
        super().__init__(config)
        self.announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            print(self.announcement, flush=True)  # noqa: T201 (the line that whoever started us waits for)

    def end(self, *_: object) -> None:
        """Serve no more. Uvicorn has the signals while it serves, and raises them again when it is done."""
        self.should_exit = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then return 0. 1: it cannot serve, and stderr says why. 2: the command line is wrong."""
    options = _parser().parse_args(arguments)
    _on_signal(lambda *_: sys.exit(0))
    try:
        with FeatureStore(options.repo) as store, _listen(options.host, options.port) as listener:
            _serve(store, listener, options)
    except (FeatureStoreError, OSError) as reason:
        if options.debug:
            raise
        print(f"featurestore: {reason}", file=sys.stderr)  # noqa: T201 (a command's error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("featurestore_server", description="Serve a feature store over HTTP.")
    default = os.environ.get("FEATURESTORE_REPO", ".")
    parser.add_argument("--repo", metavar="DIR", default=default, help="the folder of featurestore.toml (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="the port to listen on, 0 for a free one (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="announce the URL as one line of JSON")
    parser.add_argument("--debug", action="store_true", help="log requests, and show a traceback if it cannot serve")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535")
    return int(text)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as reason:
        why = os.strerror(reason.errno) if reason.errno and reason.errno > 0 else reason.strerror
        raise OSError(f"cannot listen on {host}:{port}: {why}; choose another --host or --port") from reason


def _serve(store: FeatureStore, listener: socket.socket, options: argparse.Namespace) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    announcement = f"featurestore serves {store.settings.project} on {url} (docs at /docs)"
    config = uvicorn.Config(
        create_app(store),
        loop="uvloop",
        http="httptools",
        log_level="debug" if options.debug else "warning",
        access_log=options.debug,
        backlog=_BACKLOG,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config, json.dumps({"url": url}) if options.json else announcement)
    _on_signal(server.end)
    server.run([listener])
    _end_threads()


def _on_signal(handler: Callable[..., object]) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
