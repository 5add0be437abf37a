"""Real servers of every topology, each in a folder of its own: they end with the block that started them."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from featurestore.online import embedded

HOST = "127.0.0.1"
Client = Any
"""redis-py's client of a server or of a cluster: it looks at what is in place, independent of our own connections."""


def free_port() -> int:
    """Return a port that nobody listens on, nor gets who asks for any; the cluster's bus port above it is free, too."""
    while True:
        port = secrets.choice(range(11_000, 22_000))  # Linux gives those from 32,768 on to whoever asks for any
        with socket.socket() as one, socket.socket() as bus, suppress(OSError):
            one.bind((HOST, port))
            bus.bind((HOST, port + 10_000))
            return port


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that nobody waits for may stay as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it goes while it is read
        return False


@dataclass
class Process:
    """A server process that listens on a port."""

    port: int
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(500):
            try:
                socket.create_connection((HOST, self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise TimeoutError(self.command)

    def kill(self) -> None:
        """End it as kill -9 does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def program(name: str = "valkey-server") -> str:
    """Return the path of a server program: the embedded one, or one of the PATH."""
    return str(embedded._binary()) if name == "valkey-server" else str(shutil.which(name))


@contextmanager
def server(
    folder: Path, *options: str, of: str = "valkey-server", port: int | None = None, has_tls: bool = False
) -> Iterator[Process]:
    """Start one server on a port."""
    port = port or free_port()
    home = folder / str(port)
    home.mkdir(parents=True, exist_ok=True)
    ports = ["--port", "0", "--tls-port", str(port)] if has_tls else ["--port", str(port)]
    given = [*ports, "--bind", HOST, "--dir", str(home), "--save", "", *options]
    made = Process(port, [program(of), *given])
    made.start()
    try:
        yield made
    finally:
        made.stop()


# TLS


def make_certificates(folder: Path) -> None:
    """Make a CA, a certificate for 127.0.0.1, and one for a client, as strict as Python 3.13 and newer want them."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S607

    own = ["-subj", "/CN=CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *own, "-keyout", "ca.key", "-out", "ca.crt")
    for name in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signing)


def tls_settings(certificates: Path) -> list[str]:
    """Return the options of a server that speaks TLS, to its peers too, and wants client certificates; the port is missing."""
    files = (("cert", "server.crt"), ("key", "server.key"), ("ca-cert", "ca.crt"))
    given = [(f"--tls-{kind}-file", str(certificates / name)) for kind, name in files]
    return ["--tls-auth-clients", "yes", "--tls-replication", "yes", *(part for pair in given for part in pair)]


@contextmanager
def tls_server(folder: Path) -> Iterator[tuple[int, Path]]:
    """Start a server that speaks only TLS and wants client certificates; gives its port and the folder of certificates."""
    certificates = folder / "certificates"
    make_certificates(certificates)
    with server(folder, *tls_settings(certificates), of="redis-server", has_tls=True) as made:
        yield made.port, certificates


def tls_options(certificates: Path) -> str:
    """Return the options of a URL that make its client trust the CA and show its own certificate."""
    files = (("ssl_ca_certs", "ca.crt"), ("ssl_certfile", "client.crt"), ("ssl_keyfile", "client.key"))
    return "?" + "&".join(f"{option}={certificates / name}" for option, name in files)


# Sentinel


@dataclass
class Watched:
    """A primary, its replica, and the Sentinels that watch them."""

    servers: list[Process]
    sentinels: list[Process]
    certificates: Path | None = None

    @property
    def url(self) -> str:
        """The URL of the online store."""
        addresses = ",".join(f"{HOST}:{each.port}" for each in self.sentinels)
        if self.certificates is not None:
            return f"rediss+sentinel://{addresses}/features{tls_options(self.certificates)}"
        return f"redis+sentinel://{addresses}/features"

    def client(self, server: Process) -> Client:
        """Return a client of a server or a Sentinel."""
        return client_of(server, self.certificates)

    def primary(self) -> Process:
        """Return the server that the Sentinels name."""
        with self.client(self.sentinels[0]) as sentinel:
            reply: Any = sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "features")
        return next(each for each in self.servers if each.port == int(reply[1]))


@contextmanager
def watched(folder: Path, certificates: Path | None = None) -> Iterator[Watched]:
    """Start a primary, a replica and three Sentinels that let it take over after a second; with certificates all over TLS."""
    tls = tls_settings(certificates) if certificates is not None else []
    of, has_tls = ("redis-server", True) if tls else ("valkey-server", False)
    with ExitStack() as stack:
        primary = stack.enter_context(server(folder, *tls, of=of, has_tls=has_tls))
        following = ["--replicaof", f"{HOST} {primary.port}", "--repl-diskless-sync-delay", "0"]
        replica = stack.enter_context(server(folder, *following, *tls, of=of, has_tls=has_tls))
        made = Watched([primary, replica], [], certificates)
        for _ in range(3):
            port = free_port()
            settings = folder / f"sentinel{port}.conf"
            settings.write_text(
                f"{'port 0' if tls else f'port {port}'}\nbind {HOST}\ndir {folder}\n"
                + (f"tls-port {port}\n" if tls else "")
                + "".join(f"{option.removeprefix('--')} {value}\n" for option, value in zip(tls[::2], tls[1::2], strict=True))
                + f"sentinel monitor features {HOST} {primary.port} 2\n"
                "sentinel down-after-milliseconds features 1000\nsentinel failover-timeout features 3000\n"
            )
            process = Process(port, [program(of), str(settings), "--sentinel"])
            process.start()
            stack.callback(process.stop)
            made.sentinels.append(process)
        _wait(lambda: has_replica(made.client(primary)))
        _wait(lambda: all(_knows_all(made.client(each)) for each in made.sentinels))
        yield made


def client_of(process: Process, certificates: Path | None = None) -> Client:
    """Return a client of a server, over TLS where there are certificates."""
    secure = f"rediss://{HOST}:{process.port}{tls_options(certificates)}" if certificates else None
    return redis.Redis.from_url(secure or f"redis://{HOST}:{process.port}")


def has_replica(client: Client, *, caught_up: bool = False) -> bool:
    """Whether a primary has a replica, and one that has taken all that it wrote."""
    with client:
        found = client.info("replication")
        is_there = bool(found.get("connected_slaves")) and found["slave0"]["state"] == "online"
        return is_there and (not caught_up or found["slave0"]["offset"] == found["master_repl_offset"])


def _knows_all(client: Client) -> bool:
    with client:
        state = client.sentinel_masters()["features"]
        return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2)


# Cluster


@dataclass
class Cluster:
    """Nodes of one cluster: primaries first, then a replica of each."""

    nodes: list[Process] = field(default_factory=list)
    certificates: Path | None = None

    @property
    def url(self) -> str:
        """The URL of the online store."""
        addresses = ",".join(f"{HOST}:{each.port}" for each in self.nodes[:2])
        return (
            f"rediss+cluster://{addresses}{tls_options(self.certificates)}" if self.certificates else f"redis+cluster://{addresses}"
        )

    def client(self, node: Process) -> Client:
        """Return a client of one node."""
        return client_of(node, self.certificates)

    def primaries(self) -> list[Process]:
        """Return the nodes that own slots."""
        return [each for each in self.nodes if each.process and each.process.poll() is None and self._role(each) == "master"]

    def _role(self, node: Process) -> str:
        with self.client(node) as client:
            return str(client.info("replication")["role"])


@contextmanager
def cluster(
    folder: Path, primaries: int = 3, replicas: int = 1, timeout_ms: int = 2000, certificates: Path | None = None
) -> Iterator[Cluster]:
    """Start a cluster, formed through redis-py; with certificates all over TLS."""
    options = f"--cluster-enabled yes --cluster-node-timeout {timeout_ms} --repl-diskless-sync-delay 0 --appendonly no".split()
    of, has_tls = "valkey-server", False
    if certificates is not None:
        of, has_tls, options = "redis-server", True, [*options, "--tls-cluster", "yes", *tls_settings(certificates)]
    with ExitStack() as stack:
        made = Cluster([], certificates)
        for _ in range(primaries * (1 + replicas)):
            made.nodes.append(stack.enter_context(server(folder, *options, of=of, has_tls=has_tls)))
        _form(made, primaries)
        yield made


def _form(made: Cluster, primaries: int) -> None:
    clients = [made.client(each) for each in made.nodes]
    for client in clients[1:]:
        client.cluster("MEET", HOST, made.nodes[0].port)
    for number, client in enumerate(clients[:primaries]):
        first, last = number * 16384 // primaries, (number + 1) * 16384 // primaries - 1
        client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
    _wait(lambda: all(len(client.cluster("NODES")) == len(clients) for client in clients))
    ids = [_text(client.cluster("MYID")) for client in clients]
    for number, client in enumerate(clients[primaries:]):
        client.cluster("REPLICATE", ids[number % primaries])
    _wait(lambda: all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients))
    if len(clients) > primaries:
        _wait(lambda: all(has_replica(made.client(each)) for each in made.nodes[:primaries]))
    for client in clients:
        client.close()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _wait(is_so: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(redis.RedisError, KeyError):
            if is_so():
                return
        time.sleep(0.05)
    raise TimeoutError(is_so)


class _WholeCluster(redis.RedisCluster):
    """redis-py's client of a cluster, which looks at all primaries where a plain one looks at its server."""

    def keys(self, pattern: Any = "*", **options: Any) -> Any:
        return super().keys(pattern, target_nodes=redis.RedisCluster.PRIMARIES, **options)

    def dbsize(self, **options: Any) -> Any:
        return super().dbsize(target_nodes=redis.RedisCluster.PRIMARIES, **options)


@dataclass
class Topologies:
    """One online store of each kind, started when it is first asked for."""

    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)
    started: dict[str, tuple[str, Client]] = field(default_factory=dict)

    def url(self, kind: str) -> str:
        """Return the URL of the online store of a kind."""
        if kind not in self.started:
            self.started[kind] = getattr(self, f"_{kind.replace('-', '_')}")()
            self.stack.callback(self.started[kind][1].close)
        return self.started[kind][0]

    def raw(self, kind: str) -> Client:
        """Return redis-py's own client of it."""
        self.url(kind)
        return self.started[kind][1]

    def _redis_server(self) -> tuple[str, Client]:
        made = self.stack.enter_context(server(self.folder, of="redis-server"))
        return f"redis://{HOST}:{made.port}/0", redis.Redis(HOST, made.port)

    def _unix(self) -> tuple[str, Client]:
        path = f"/tmp/fs-{free_port()}.sock"  # noqa: S108 (a socket's path must be short)
        self.stack.enter_context(server(self.folder, "--unixsocket", path))
        return f"unix://{path}?db=1", redis.Redis(unix_socket_path=path, db=1)

    def _acl(self) -> tuple[str, Client]:
        """Start a server whose user may do what docs/online.md says, and no more."""
        made = self.stack.enter_context(server(self.folder, "--requirepass", "root"))
        client: Any = redis.Redis(HOST, made.port, password="root")
        client.execute_command("ACL", "SETUSER", "features", "on", ">hunter2", "~*", *ACL)
        return f"redis://features:hunter2@{HOST}:{made.port}", client

    def _tls(self) -> tuple[str, Client]:
        port, files = self.stack.enter_context(tls_server(self.folder))
        url = f"rediss://{HOST}:{port}{tls_options(files)}"
        return url, redis.Redis.from_url(url)

    def _sentinel(self) -> tuple[str, Client]:
        made = self.stack.enter_context(watched(self.folder))
        return made.url, made.client(made.primary())

    def _sentinel_tls(self) -> tuple[str, Client]:
        made = self.stack.enter_context(watched(self.folder, self._certificates()))
        return made.url, made.client(made.primary())

    def _cluster(self) -> tuple[str, Client]:
        made = self.stack.enter_context(cluster(self.folder))
        return made.url, _WholeCluster(HOST, made.nodes[0].port)

    def _cluster_tls(self) -> tuple[str, Client]:
        files = self._certificates()
        made = self.stack.enter_context(cluster(self.folder, certificates=files))
        return made.url, _WholeCluster.from_url(f"rediss://{HOST}:{made.nodes[0].port}{tls_options(files)}")

    def _certificates(self) -> Path:
        folder = self.folder / "peers"
        if not folder.exists():
            make_certificates(folder)
        return folder


_COMMANDS = """get mget getrange set mset del unlink scan dbsize strlen memory|usage evalsha script|load info ping select
    client|setname client|list client|kill"""
ACL = [f"+{name}" for name in _COMMANDS.split()]
"""What the online store needs to be allowed; docs/online.md says the same."""
