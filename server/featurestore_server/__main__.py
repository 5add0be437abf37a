"""Run the HTTP service: `python -m featurestore_server --repo DIR`.

As long as nobody needs a key it listens only where no other machine can reach it.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError, RegistryError, SettingsError
from featurestore_server.supervisor import supervise
from featurestore_server.worker import BACKLOG, Service, on_signal, serve

__all__ = ["main"]

_LOGGER = logging.getLogger("featurestore_server")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then return 0. 1: it cannot serve, and stderr says why. 2: the command line is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    on_signal(lambda *_: sys.exit(0))
    try:
        if options.worker is not None:
            return _work(options)
        return _begin(options, given)
    except (FeatureStoreError, OSError) as reason:
        if options.debug:
            raise
        code = reason.code if isinstance(reason, FeatureStoreError) else FeatureStoreError.code
        record = {"error": {"code": code, "message": str(reason)}}  # as the command line writes errors
        print(json.dumps(record) if options.json else f"featurestore: {reason}", file=sys.stderr)  # noqa: T201 (a command's error)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("featurestore_server", description="Serve a feature store over HTTP.")
    default = os.environ.get("FEATURESTORE_REPO", ".")
    parser.add_argument("--repo", metavar="DIR", default=default, help="the folder of featurestore.toml (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="the port to listen on, 0 for a free one (default: %(default)s)")
    parser.add_argument("--workers", type=_count, default=1, help="how many processes serve (default: %(default)s)")
    parser.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate chain, in PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, if that is in a file of its own")
    parser.add_argument("--insecure", action="store_true", help="let everyone in who reaches it, as long as there is no API key")
    parser.add_argument("--json", action="store_true", help="write the URL, or what is wrong, as one line of JSON")
    parser.add_argument("--debug", action="store_true", help="log everything, and show a traceback if it cannot serve")
    for name in ("--worker", "--descriptors", "--shared"):  # what a supervisor tells its workers
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:  # noqa: PLR2004 (more processes than any machine has use for)
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers: from 1 to 256")
    return int(text)


def _begin(options: argparse.Namespace, given: Sequence[str]) -> int:
    _check_tls(options.tls_cert, options.tls_key)
    with FeatureStore(options.repo) as store:
        family, address = _resolved(options.host, options.port)
        is_open = options.insecure or _is_local(address)
        if not is_open:
            _check_keys(store, options.host)
        settings = store.settings
    with _listen(options, family, address) as listener:
        announce = _announcement(settings.project, listener, options)
        if options.workers > 1:
            return supervise(given, options.workers, listener, announce, settings.server.grace_seconds)
        serve(_service(options, is_open=is_open), listener, announce)
    return 0


def _work(options: argparse.Namespace) -> int:
    """Serve as one of several."""
    descriptor, supervisor = map(int, options.descriptors.split(","))
    with socket.socket(fileno=descriptor) as listener:
        service = _service(options, is_open=options.insecure or _is_local(listener.getsockname()))
        begun = lambda: print("serving", flush=True)  # noqa: E731, T201 (what the supervisor waits for)
        serve(service, listener, begun, worker=int(options.worker), shared=Path(options.shared), supervisor=supervisor)
    return 0


def _service(options: argparse.Namespace, *, is_open: bool) -> Service:
    return Service(options.repo, is_open, options.tls_cert, options.tls_key, options.debug)


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


def _is_local(address: tuple[Any, ...]) -> bool:
    return ipaddress.ip_address(address[0].partition("%")[0]).is_loopback


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
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as reason:
        raise _no_address(options.host, options.port, reason) from reason


def _no_address(host: str, port: int, reason: OSError) -> OSError:
    why = os.strerror(reason.errno) if reason.errno and reason.errno > 0 else reason.strerror
    return OSError(f"cannot listen on {host}:{port}: {why}; choose another --host or --port")


def _announcement(project: str, listener: socket.socket, options: argparse.Namespace) -> Callable[[], None]:
    """Return what says on stdout where it serves: the line that whoever started us waits for."""
    host, port = listener.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"{'https' if options.tls_cert else 'http'}://{place}"
    line = json.dumps({"url": url}) if options.json else f"featurestore serves {project} on {url} (docs at /docs)"
    return lambda: print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
