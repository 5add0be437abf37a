from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from featurestore import FeatureStore
from featurestore.errors import OnlineStoreError, SettingsError
from featurestore.online.keys import online_key
from featurestore.online.store import OnlineStore
from featurestore.settings import load_settings
from tests.conftest import HOUR, NOON, TIME, Repo
from tests.servers import HOST, Topologies, server, tls_options
from tests.versions import version

KEYS = [pa.chunked_array([["EWR", "JFK"]])]
ROWS = pa.table({"gusts": pa.array([1, 2], pa.int64())})
TIMES = pa.chunked_array([pa.array([NOON, NOON], TIME)])


@pytest.fixture
def store_at(make_repo: Callable[..., Repo]) -> Iterator[Callable[[str], OnlineStore]]:
    """Make online stores by URL."""
    folder, made = make_repo().folder, []

    def make(url: str) -> OnlineStore:
        (folder / "featurestore.toml").write_text(f'project = "test"\n[online]\nurl = "{url}"\ntimeout_ms = 1000\n')
        made.append(OnlineStore(load_settings(folder)))
        return made[-1]

    yield make
    for store in made:
        store.close()


def load(store: OnlineStore, run: int) -> None:
    """Load two rows as a run does."""
    with store.load(version(), run=run, now=NOON) as loading:
        loading.write(KEYS, ROWS, TIMES)
        loading.finish()


def write(store: OnlineStore, run: int = 1) -> int:
    """Write two rows."""
    return store.write(version(), KEYS, ROWS, TIMES, run=run, now=NOON)


def values(store: OnlineStore) -> list[Any]:
    """Read them."""
    [rows] = store.read([(version(), KEYS)], now=NOON)
    found: list[Any] = rows.features[0].to_pylist()
    return found


def repo_at(repo: Repo, url: str) -> FeatureStore:
    """Return the weather's store on a server of its own, applied."""
    (repo.folder / "featurestore.toml").write_text(f'project = "test"\n[online]\nurl = "{url}"\n')
    store = repo.open()
    store.apply()
    repo.now += HOUR
    return store


def temperatures(store: FeatureStore) -> Any:
    """Look both airports up."""
    return store.get_online_features({"origin": ["EWR", "JFK"]}, "flight_weather").to_dict()["airport_weather__temperature"]


def test_a_full_server_is_named_and_the_run_goes_on_later(weather_repo: Repo, tmp_path: Path) -> None:
    """At maxmemory a run fails with what to do; its offline part stays, and the next run loads what is missing."""
    with server(tmp_path / "servers", "--maxmemory", "1") as made:
        store = repo_at(weather_repo, f"redis://{HOST}:{made.port}")
        with pytest.raises(OnlineStoreError, match=r"is out of memory \(.*\); raise its maxmemory, then run again"):
            store.materialize()
        with redis.Redis(HOST, made.port) as raw:
            raw.config_set("maxmemory", "0")
        [report] = store.sync()

        assert (report.online_full, report.online_written) == (True, 2)
        assert temperatures(store) == [21.0, None]


def test_a_read_only_replica_is_named(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """Writes to a replica fail with what to do; reads of it work."""
    with server(tmp_path) as primary, server(tmp_path, "--replicaof", f"{HOST} {primary.port}") as replica:
        with redis.Redis(HOST, replica.port) as raw:
            while raw.info("replication")["master_link_status"] != "up":
                pass
        write(store_at(f"redis://{HOST}:{primary.port}"))
        store = store_at(f"redis://{HOST}:{replica.port}")
        for use in (lambda: write(store), lambda: load(store, 2)):
            with pytest.raises(OnlineStoreError, match=r"is a read-only replica \(.*\); let online.url name the primary"):
                use()
        with redis.Redis(HOST, primary.port) as raw:
            assert raw.wait(1, 5000) == 1
        assert values(store) == [1, 2]


def test_a_script_that_was_flushed_is_loaded_again(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """SCRIPT FLUSH between and in the middle of writes changes nothing."""
    with server(tmp_path) as made, redis.Redis(HOST, made.port) as raw:
        store = store_at(f"redis://{HOST}:{made.port}")
        for run in range(1, 4):
            raw.script_flush()
            assert write(store, run) == 2
        with store.load(version(), run=10, now=NOON) as loading:
            for _ in range(20):
                raw.script_flush()
                loading.write(KEYS, ROWS, TIMES)
            loading.finish()

        assert loading.written == 40
        assert values(store) == [1, 2]


def test_a_lost_connection_is_replaced_in_the_middle_of_a_load(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """Connections that are cut again and again, ever less often, lose no row of a load, and none is counted twice."""
    count, end = 30_000, threading.Event()
    keys = [pa.chunked_array([[f"k{number}" for number in range(count)]])]
    rows, times = pa.table({"gusts": pa.array(range(count), pa.int64())}), pa.chunked_array([pa.array([NOON] * count, TIME)])
    with server(tmp_path) as made, redis.Redis(HOST, made.port) as raw:
        store = store_at(f"redis://{HOST}:{made.port}")

        def cut() -> None:
            pause = 0.02
            while not end.wait(pause):
                raw.client_kill_filter(_type="normal", skipme=True)
                pause *= 1.2  # a slow machine gets on in the end

        for run in (1, 2):  # the first load is plain, the second is not
            end.clear()
            with store.load(version(), run=run, now=NOON) as loading:
                thread = threading.Thread(target=cut)
                thread.start()
                try:
                    loading.write(keys, rows, times)
                    loading.flush()
                finally:
                    end.set()
                    thread.join()
                loading.finish()
            assert loading.written == count
        [found] = store.read([(version(), keys)], now=NOON)

        assert found.features[0].to_pylist() == list(range(count))


def test_a_key_of_another_type_is_named(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """A list of another program under our key: reads find nothing, a write names the key and what to do, and then it works."""
    with server(tmp_path) as made, redis.Redis(HOST, made.port) as raw:
        store = store_at(f"redis://{HOST}:{made.port}")
        key = online_key("0123abcd", b"JFK")
        raw.lpush(key, "x")

        assert values(store) == [None, None]
        for use in (lambda: write(store), lambda: load(store, 3)):
            with pytest.raises(OnlineStoreError, match=r"holds a key of ours that is no row \(.*JFK.*remove it \(DEL\)"):
                use()
        raw.delete(key)
        load(store, 4)
        assert values(store) == [1, 2]


def test_a_restarted_server_ends_a_load(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """A server that lost what it had acknowledged in the middle of a load: the load is not completed, and says so."""
    with server(tmp_path) as made:
        store = store_at(f"redis://{HOST}:{made.port}")
        loads = store.load(version(), run=1, now=NOON)
        with pytest.raises(OnlineStoreError, match="restarted") as error, loads as loading:  # noqa: PT012 (it is a whole load)
            loading.write(KEYS, ROWS, TIMES)
            loading.flush()
            made.kill()
            made.start()
            loading.write([pa.chunked_array([["LGA", "ORD"]])], ROWS, TIMES)
            loading.finish()
        assert error.value.is_retryable
        assert store.loaded_run(version()) is None
        load(store, 2)
        assert values(store) == [1, 2]


# Who may not come in


def test_a_user_without_permission_is_told_so(tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """An ACL that lacks a command is an error that says where the commands are listed."""
    with server(tmp_path) as made:
        admin: Any = redis.Redis(HOST, made.port)
        admin.execute_command(
            "ACL",
            "SETUSER",
            "reader",
            "on",
            ">secret",
            "~*",
            "+get",
            "+mget",
            "+info",
        )
        store = store_at(f"redis://reader:secret@{HOST}:{made.port}")

        assert values(store) == [None, None]
        for use in (lambda: write(store), lambda: load(store, 1)):
            with pytest.raises(OnlineStoreError, match=r"does not let this user do it \(.*\); docs/online.md lists") as error:
                use()
            assert "secret" not in str(error.value)
        admin.close()


@pytest.fixture
def tls(topologies: Topologies) -> tuple[str, Path]:
    """The address of a server that speaks TLS, and the folder of its certificates."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not on the PATH, and the embedded one has no TLS")
    url = topologies.url("tls")
    return url.removeprefix("rediss://").partition("?")[0], topologies.folder / "certificates"


def test_tls_that_does_not_fit_is_named(tls: tuple[str, Path], store_at: Callable[[str], OnlineStore]) -> None:
    """No CA, no client certificate, a name that is not the certificate's: each is an error about TLS, reading and writing."""
    address, files = tls
    without = f"?ssl_ca_certs={files / 'ca.crt'}"
    elsewhere = address.replace(HOST, "localhost") + tls_options(files)
    for url in (f"rediss://{address}", f"rediss://{address}{without}", f"rediss://{elsewhere}"):
        store = store_at(url)
        for use in (lambda store=store: values(store), lambda store=store: write(store)):
            with pytest.raises(OnlineStoreError, match="agree on TLS"):
                use()
    unchecked = store_at(f"rediss://{elsewhere}&ssl_check_hostname=false")
    write(unchecked)
    assert values(unchecked) == [1, 2]


def test_plain_and_tls_do_not_meet(tls: tuple[str, Path], tmp_path: Path, store_at: Callable[[str], OnlineStore]) -> None:
    """A plain client of a TLS server, and the other way round, is an error that names the store."""
    address, files = tls
    with server(tmp_path) as made:
        for url in (f"redis://{address}", f"rediss://{HOST}:{made.port}{tls_options(files)}"):
            with pytest.raises(OnlineStoreError, match=r"the online store rediss?://127.0.0.1:\d+"):
                values(store_at(url))


def test_certificates_that_cannot_be_read_are_a_settings_error(store_at: Callable[[str], OnlineStore]) -> None:
    """A file that is missing is named when the store is first used."""
    with pytest.raises(SettingsError, match=r"the certificates in .*nowhere\.pem cannot be used"):
        store_at("rediss://127.0.0.1:1?ssl_ca_certs=nowhere.pem").ping()


# Who is too old


@contextmanager
def older(port: int, replaced: bytes, by: bytes) -> Iterator[int]:
    """Stand before a server and make it say another version; gives the port."""
    assert len(replaced) == len(by)
    listener = socket.create_server((HOST, 0))

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with source, target:
            while content := source.recv(1 << 16):
                target.sendall(content.replace(replaced, by))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection((HOST, port))
            for pair in ((client, upstream), (upstream.dup(), client.dup())):
                threading.Thread(target=pass_on, args=pair, daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


OLD = [
    ("redis-server", b"redis_version:7.0.15", b"redis_version:6.0.16", "is Redis 6.0.16; 6.2 or newer is needed"),
    ("redis-server", b"redis_version:7.0.15", b"redis_version:6.2.16", ""),
]


@pytest.mark.parametrize(("program", "replaced", "by", "message"), OLD)
def test_a_server_too_old_is_refused(
    tmp_path: Path, store_at: Callable[[str], OnlineStore], program: str, replaced: bytes, by: bytes, message: str
) -> None:
    """A server older than Redis 6.2 is refused when it is first used, by its version."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on the PATH")
    with server(tmp_path, of=program) as made, redis.Redis(HOST, made.port) as raw:
        found = f"redis_version:{raw.info('server')['redis_version']}".encode()
        same_length = by + b" " * (len(found) - len(by)) if len(by) <= len(found) else by[: len(found)]
        with older(made.port, found, same_length) as port:
            store = store_at(f"redis://{HOST}:{port}")
            if message:
                with pytest.raises(OnlineStoreError, match=message):
                    values(store)
            else:
                assert values(store) == [None, None]
            store.close()
