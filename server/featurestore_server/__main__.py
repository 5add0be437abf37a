"""Run the HTTP service: `python -m featurestore_server --repo DIR`.

As long as nobody needs a key it listens only where no other machine can reach it.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError, RegistryError, SettingsError
from featurestore_server.app import create_app

__all__ = ["main"]

_LOGGER = logging.getLogger("featurestore_server")
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
        _check_tls(options.tls_cert, options.tls_key)
        with FeatureStore(options.repo) as store:
            family, address = _resolved(options.host, options.port)
            is_local = ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
            if not is_local and not options.insecure:
                _check_keys(store, options.host)
            with _listen(options, family, address) as listener:
                _serve(store, listener, options, is_open=is_local or options.insecure)
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
    parser.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate chain, in PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, if that is in a file of its own")
    parser.add_argument("--insecure", action="store_true", help="let everyone in who reaches it, as long as there is no API key")
    parser.add_argument("--json", action="store_true", help="announce the URL as one line of JSON")
    parser.add_argument("--debug", action="store_true", help="log requests, and show a traceback if it cannot serve")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535")
    return int(text)


def _check_tls(certificate: str | None, key: str | None) -> None:
    """Raise OSError unless TLS can be served with these files, or is not wanted."""
    if key and not certificate:
        raise OSError("--tls-key needs --tls-cert, the certificate that it belongs to")
    if certificate:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        except OSError as reason:
            named = " and ".join(filter(None, [certificate, key]))
            raise OSError(f"cannot serve TLS with {named}: {reason.strerror or reason}") from reason


def _check_keys(store: FeatureStore, host: str) -> None:
    """Refuse to serve other machines without keys. A registry that does not answer now is asked by each request."""
    try:
        has_keys = bool(store.registry.api_keys.all())
    except RegistryError as reason:
        _LOGGER.warning("no request is let in until the registry answers: %s", reason)
        return
    if not has_keys:
        raise SettingsError(
            f"{host} can be reached by other machines, and there is no API key: create one with `featurestore keys create`, "
            "or let everyone in with --insecure"
        )


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as reason:
        raise _no_address(host, port, reason) from reason
    return family, address


def _listen(options: argparse.Namespace, family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    try:
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as reason:
        raise _no_address(options.host, options.port, reason) from reason


def _no_address(host: str, port: int, reason: OSError) -> OSError:
    why = os.strerror(reason.errno) if reason.errno and reason.errno > 0 else reason.strerror
    return OSError(f"cannot listen on {host}:{port}: {why}; choose another --host or --port")


def _serve(store: FeatureStore, listener: socket.socket, options: argparse.Namespace, *, is_open: bool) -> None:
    host, port = listener.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"{'https' if options.tls_cert else 'http'}://{place}"
    announcement = f"featurestore serves {store.settings.project} on {url} (docs at /docs)"
    config = uvicorn.Config(
        create_app(store, is_open=is_open),
        loop="uvloop",
        http="httptools",
        ws="none",
        log_level="debug" if options.debug else "warning",
        access_log=options.debug,
        backlog=_BACKLOG,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=store.settings.server.grace_seconds,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
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
