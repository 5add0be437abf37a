"""Where rows are: from `online.url` to the endpoints that own them, found anew when they move.

    embedded                                   the private server of the repo
    redis://[user:password@]host[:port][/db]   one server; rediss:// with TLS
    unix://[user:password@]/path[?db=n]        one server on its socket
    redis+sentinel://[…@]host[:port][,…]/service[/db]   the primary that the Sentinels name
    redis+cluster://[…@]host[:port][,…]        a cluster, found through any of these nodes

rediss+sentinel:// and rediss+cluster:// are the same with TLS. `?ssl_ca_certs=`, `ssl_certfile=`, `ssl_keyfile=` (paths, relative
to the repo), `ssl_cert_reqs=none|optional|required` and `ssl_check_hostname=false` say how TLS is checked. redis-py reads the URLs
and asks Sentinels and clusters who is there.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from featurestore.errors import OnlineStoreError, SettingsError
from featurestore.online.embedded import ensure_running, is_running
from featurestore.online.keys import SLOTS
from featurestore.settings import Settings, redacted

__all__ = ["Access", "Endpoint", "Layout", "Topology"]

_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_OPTIONS = ("db", *_TLS_OPTIONS)
_SENTINEL_PORT = 26379
_REDISCOVER_SECONDS = 0.05
_OLDEST = {"redis_version": (6, 2), "valkey_version": (7, 2)}


@dataclass(frozen=True)
class Endpoint:
    """Where one server listens: a host and port, or the path of a socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Access:
    """How to log in, the same everywhere. `options` are redis-py's."""

    timeout: float
    options: Mapping[str, Any] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None

    def greeting(self, name: str = "") -> list[list[bytes]]:
        """Return the commands that open a connection."""
        commands = []
        user, password = self.options.get("username"), self.options.get("password")
        if password is not None:
            commands.append([b"AUTH", *([user.encode()] if user else []), password.encode()])
        if self.options.get("db"):
            commands.append([b"SELECT", b"%d" % self.options["db"]])
        if name:
            commands.append([b"CLIENT", b"SETNAME", name.encode()])
        return commands


@dataclass(frozen=True)
class Layout:
    """The primaries, and on a cluster which of them owns each slot: an index into `endpoints`, shape (16384,)."""

    endpoints: tuple[Endpoint, ...]
    owners: npt.NDArray[np.int16] | None = None

    def first_slot(self, endpoint: Endpoint) -> int | None:
        """Return the first slot that an endpoint owns; none where there are no slots."""
        if self.owners is None:
            return None
        return int(np.argmax(self.owners == self.endpoints.index(endpoint)))


class Topology:
    """The servers of one online store. Found when first asked for, and again by `rediscover`; threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._layout: Layout | None = None
        self._found_at = 0.0
        self._clients: dict[Endpoint, redis.Redis] = {}
        self._checked: set[Endpoint] = set()
        self._seeds: list[Endpoint] = []
        self._service = ""
        url = settings.online.url
        self.kind = "embedded" if url == "embedded" else "single"
        if url == "embedded":
            self.access = Access(settings.online.timeout_ms / 1000)
        else:
            self._read_url(url)

    def _read_url(self, url: str) -> None:
        shown = redacted(url)
        scheme = url.partition("://")[0]
        if scheme not in _SCHEMES or "://" not in url:
            known = ", ".join(["embedded", *(f"{each}://…" for each in _SCHEMES)])
            raise SettingsError(f"online.url {shown!r} is not supported; known: {known}")
        plain, _, kind = scheme.partition("+")
        self.kind = kind or "single"
        try:
            hosts = _hosts(url)
            options = dict(parse_url(_single_url(url, plain, hosts[0])))  # type: ignore[no-untyped-call]
            options.pop("connection_class", None)
            if plain != "unix":
                self._service, database = _path(url, self.kind)
                options["db"] = int(database or options.get("db", 0))
            self._seeds = [_endpoint(host, _SENTINEL_PORT if self.kind == "sentinel" else 6379) for host in hosts]
        except ValueError as reason:
            raise SettingsError(f"online.url {shown!r}: {reason}") from None
        if self.kind == "sentinel" and not self._service:
            raise SettingsError(f"online.url {shown!r} names no service: redis+sentinel://host:26379/service")
        if path := options.pop("path", ""):
            self._seeds = [Endpoint(path=path)]
        for name in ("host", "port"):
            options.pop(name, None)
        if unknown := sorted(set(options) - {*_OPTIONS, "username", "password"}):
            raise SettingsError(f"online.url {shown!r}: unknown option {unknown[0]!r}; known: {', '.join(_OPTIONS)}")
        if self.kind == "cluster" and options.get("db"):
            raise SettingsError(f"online.url {shown!r}: a cluster has only database 0")
        tls = _context(options, self._settings.root, shown) if plain == "rediss" else None
        self.access = Access(self._settings.online.timeout_ms / 1000, options, tls)

    @property
    def is_cluster(self) -> bool:
        """Whether keys are spread over nodes by slot."""
        return self.kind == "cluster"

    @property
    def can_move(self) -> bool:
        """Whether another server takes over when one fails, so that waiting for it makes sense."""
        return self.kind in ("cluster", "sentinel")

    @property
    def patience(self) -> float:
        """For how many seconds a failure is taken to pass."""
        return self.access.timeout if self.can_move else 0.0

    @property
    def known(self) -> Layout | None:
        """Who is there, as found last; none where nobody has looked."""
        return self._layout

    def layout(self) -> Layout:
        """Return who is there, as found last."""
        if (layout := self._layout) is not None:
            return layout
        return self.rediscover()

    def rediscover(self, since: Layout | None = None) -> Layout:
        """Find out who is there now. Of several who ask at once because `since` was wrong, one looks."""
        with self._lock:
            is_fresh = time.monotonic() - self._found_at < _REDISCOVER_SECONDS
            if self._layout is None or (since is self._layout and not is_fresh):
                layout = self._discover()
                for endpoint in {*layout.endpoints} - self._checked:
                    self._check_version(endpoint)
                self._layout, self._found_at = layout, time.monotonic()
            return self._layout

    def revive(self) -> bool:
        """Start the embedded server if none runs; whether it was started. It was stopped, or it died; every command starts it."""
        state = self._settings.state / "online"
        if self.kind != "embedded" or is_running(state):
            return False
        with self._lock:
            self._layout = None
            self.layout()
        return True

    def client(self, endpoint: Endpoint) -> redis.Redis:
        """Return redis-py's client of one server, for what is not about rows."""
        with self._lock:
            if endpoint not in self._clients:
                self._clients[endpoint] = self._connected(endpoint)
            return self._clients[endpoint]

    def close(self) -> None:
        """Close the clients, and forget who is there."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()
            self._layout = None

    # Finding

    def _discover(self) -> Layout:
        if self.kind == "embedded":
            return Layout((Endpoint(path=str(ensure_running(self._settings.state / "online"))),))
        if self.kind == "sentinel":
            return Layout((self._primary(),))
        return self._cluster() if self.kind == "cluster" else Layout(tuple(self._seeds))

    def _primary(self) -> Endpoint:
        seeds = [(seed.host, seed.port) for seed in self._seeds]
        options = {"socket_timeout": self.access.timeout, **self._tls_options()}
        finder = Sentinel(seeds, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        try:
            host, port = finder.discover_master(self._service)  # type: ignore[no-untyped-call]
        except MasterNotFoundError:  # it lists the attributes of each client
            asked = ", ".join(map(str, self._seeds))
            raise redis.ConnectionError(f"no Sentinel names a primary of {self._service!r}; asked: {asked}") from None
        finally:
            for sentinel in finder.sentinels:
                sentinel.close()
        return Endpoint(host, int(port))

    def _cluster(self) -> Layout:
        known = self._layout.endpoints if self._layout else ()
        failure: redis.RedisError | None = None
        for seed in [*known, *self._seeds]:
            try:
                return _cluster_layout(_slots_of(self.client(seed)), seed)
            except (redis.ConnectionError, redis.TimeoutError) as reason:
                failure = reason
        raise failure or redis.ConnectionError("no node was named")

    def _connected(self, endpoint: Endpoint) -> redis.Redis:
        options: dict[str, Any] = {key: value for key, value in self.access.options.items() if not key.startswith("ssl_")}
        options |= {"socket_timeout": self.access.timeout, "retry": Retry(NoBackoff(), 1), "protocol": 2}
        if endpoint.path:
            return redis.Redis(unix_socket_path=endpoint.path, **options)
        options |= {"socket_connect_timeout": self.access.timeout, **self._tls_options()}
        return redis.Redis(host=endpoint.host, port=endpoint.port, **options)

    def _tls_options(self) -> dict[str, Any]:
        if self.access.tls is None:
            return {}
        return {"ssl": True, **{key: value for key, value in self.access.options.items() if key.startswith("ssl_")}}

    def _check_version(self, endpoint: Endpoint) -> None:
        try:
            found = self.client(endpoint).info("server")
        except (redis.ConnectionError, redis.TimeoutError):
            if self.is_cluster:
                return  # the others serve meanwhile; whoever asks this one is told
            raise
        for name, oldest in _OLDEST.items():  # a Valkey says the Redis version that it is compatible with, too
            if "valkey_version" in found and name == "redis_version":
                continue
            if name in found and tuple(map(int, str(found[name]).split(".")[:2])) < oldest:
                program, needed = name.partition("_")[0].capitalize(), ".".join(map(str, oldest))
                raise OnlineStoreError(f"the online store {endpoint} is {program} {found[name]}; {needed} or newer is needed")
        self._checked.add(endpoint)


def _path(url: str, kind: str) -> tuple[str, str]:
    """Return the service and the database that a URL's path names, either of which may be empty."""
    path = urlsplit(url).path.strip("/")
    service, _, database = path.partition("/") if kind == "sentinel" else ("", "", path)
    if database and not database.isdecimal():
        raise ValueError("its path ends in no number of a database")  # redis-py takes it for 0
    return service, database


def _hosts(url: str) -> list[str]:
    address = urlsplit(url).netloc.rpartition("@")[2]
    return [host for host in address.split(",") if host] or [""]


def _single_url(url: str, scheme: str, host: str) -> str:
    """Return the URL with one host, as redis-py reads it; a sentinel's path names no database."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    path = "" if "sentinel" in parts.scheme else parts.path
    return f"{scheme}://{login}{at}{host}{path}" + (f"?{parts.query}" if parts.query else "")


def _endpoint(host: str, default_port: int) -> Endpoint:
    parts = urlsplit(f"//{host}")
    return Endpoint(parts.hostname or "localhost", parts.port or default_port)


def _context(options: dict[str, Any], root: Path, shown: str) -> ssl.SSLContext:
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in options:
            options[name] = str(root / options[name])
    is_hostname_checked = str(options.get("ssl_check_hostname", True)).lower() in ("true", "1", "yes")
    options["ssl_check_hostname"] = is_hostname_checked
    requirement = options.setdefault("ssl_cert_reqs", "required")
    levels = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
    if requirement not in levels:
        raise SettingsError(f"online.url {shown!r}: ssl_cert_reqs is {requirement!r}; known: {', '.join(levels)}")
    if requirement == "none":
        options["ssl_check_hostname"] = is_hostname_checked = False
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        context.check_hostname = is_hostname_checked
        context.verify_mode = levels[requirement]
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as reason:  # ssl's own errors are OSErrors, too
        files = ", ".join(options[name] for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if name in options)
        raise SettingsError(f"online.url {shown!r}: the certificates in {files} cannot be used: {reason}") from None
    return context


def _slots_of(client: Any) -> Any:
    return client.execute_command("CLUSTER SLOTS")


def _cluster_layout(reply: Any, seed: Endpoint) -> Layout:
    """Read the answer to CLUSTER SLOTS: lists of first slot, last slot, primary, replicas; a node is host, port and more."""
    endpoints: list[Endpoint] = []
    owners = np.zeros(SLOTS, np.int16)  # a slot without an owner is asked for somewhere, and the answer says what is wrong
    for first, last, (host, port, *_), *_ in reply:
        endpoint = Endpoint((host or b"").decode() or seed.host, int(port))
        if endpoint not in endpoints:
            endpoints.append(endpoint)
        owners[int(first) : int(last) + 1] = endpoints.index(endpoint)
    if not endpoints:
        raise redis.ConnectionError(f"the cluster that {seed} belongs to has given no slots to its nodes")
    return Layout(tuple(endpoints), owners)
