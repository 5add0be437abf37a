from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from featurestore import Entity
from featurestore.errors import OnlineStoreError, SettingsError
from featurestore.online.links import Links
from featurestore.online.store import OnlineStore, Status
from featurestore.online.topology import Access, Endpoint
from featurestore.settings import load_settings
from featurestore.types import Int64, String
from tests.conftest import NOON, TIME, Repo
from tests.servers import Process, server
from tests.versions import version

NOT_FOUND = Status.NOT_FOUND


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Process]:
    """A server that asks for the password `hunter2`."""
    with server(tmp_path, "--requirepass", "hunter2") as started:
        yield started


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


def uses(store: OnlineStore) -> list[Callable[[], Any]]:
    """Return every way to use a store."""
    keys = [pa.chunked_array([["EWR"]])]
    features, event_times = pa.table({"gusts": pa.array([1], pa.int64())}), pa.chunked_array([pa.array([NOON], TIME)])
    return [
        store.ping,
        lambda: store.read([(version(), keys)], now=NOON),
        lambda: store.write(version(), keys, features, event_times, run=1, now=NOON),
        lambda: store.delete(version(), keys, run=1),
        lambda: _load(store, keys, features, event_times),
        lambda: store.loaded_run(version()),
        lambda: store.count(version()),
        lambda: store.drop(version()),
    ]


def _load(store: OnlineStore, *rows: Any) -> None:
    with store.load(version(), run=1, now=NOON) as load:
        load.write(*rows)
        load.sweep()
        load.finish()


def test_a_store_that_is_gone_is_named_without_its_password(guarded: Process, store_at: Callable[[str], OnlineStore]) -> None:
    """Once the server has ended every call is an OnlineStoreError with the URL, the password left out."""
    store = store_at(f"redis://:hunter2@127.0.0.1:{guarded.port}/0")
    for use in uses(store):
        use()
    guarded.stop()
    for use in uses(store):
        with pytest.raises(OnlineStoreError) as error:
            use()
        assert f"the online store redis://:***@127.0.0.1:{guarded.port}/0 " in str(error.value)
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("login", ["", ":hunter3@", "me:hunter3@"])
def test_a_wrong_password_is_an_error_without_it(guarded: Process, store_at: Callable[[str], OnlineStore], login: str) -> None:
    """A server that refuses the login is named with its reason, without the password that was tried."""
    for use in uses(store_at(f"redis://{login}127.0.0.1:{guarded.port}/0")):
        with pytest.raises(OnlineStoreError) as error:
            use()
        assert "password" in str(error.value).lower() or "auth" in str(error.value).lower()
        assert "hunter" not in str(error.value)


def test_a_full_store_says_so(guarded: Process, store_at: Callable[[str], OnlineStore]) -> None:
    """A server at its limit of memory refuses writes with an error that says what to do, and goes on answering reads."""
    store = store_at(f"redis://:hunter2@127.0.0.1:{guarded.port}/0")
    with redis.Redis(port=guarded.port, password="hunter2") as raw:
        raw.config_set("maxmemory", "1")
    ping, read, write, delete, *_ = uses(store)

    for refused in (write, delete):
        with pytest.raises(OnlineStoreError, match=r"is out of memory .* raise its maxmemory, then run again"):
            refused()
    ping()
    read()


def test_a_server_that_hangs_is_given_up(store_at: Callable[[str], OnlineStore]) -> None:
    """A server that takes connections and answers nothing is an error within `timeout_ms`, not a wait for ever."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        store = store_at(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        began = time.monotonic()
        with pytest.raises(OnlineStoreError, match="does not answer"):
            store.ping()
        assert time.monotonic() - began < 8


def test_few_connections_stay_idle(tmp_path: Path) -> None:
    """Of the connections that many threads had at once eight are kept for the next, and the others end."""
    with server(tmp_path) as started:
        links = Links(Access(5.0))
        used = [links.take(Endpoint("127.0.0.1", started.port)) for _ in range(20)]
        for link in used:
            links.give_back(link)
        kept = [link for link in used if not link.is_closed]
        links.close()

    assert len(kept) == 8
    assert all(link.is_closed for link in used)


def test_a_null_key_is_not_asked_for(store_at: Callable[[str], OnlineStore]) -> None:
    """A row with a null in its key is NOT_FOUND without a round trip: here there is nobody to ask."""
    store = store_at("redis://127.0.0.1:1/0")
    pair = version(entities=[Entity("pair", join_keys={"x": String, "y": Int64})])
    columns = [pa.chunked_array([["a", None, None]]), pa.chunked_array([pa.array([None, 1, None], pa.int64())])]
    [rows] = store.read([(pair, columns)], now=NOON)

    assert rows.statuses.tolist() == [NOT_FOUND] * 3
    assert rows.features[0].to_pylist() == rows.event_times.to_pylist() == [None] * 3


UNSUPPORTED = [
    "http://127.0.0.1",
    "memcached://me:hunter2@127.0.0.1",
    "redis+ring://127.0.0.1",
    "redis://127.0.0.1?socket_timeout=1",
    "redis+sentinel://127.0.0.1",
    "redis://127.0.0.1/abc",
    "rediss://127.0.0.1/0/1",
    "redis+cluster://127.0.0.1/a",
    "redis+sentinel://127.0.0.1/service/x",
    "redis+sentinel://127.0.0.1/service/0/1",
    "redis+cluster://127.0.0.1/1",
    "rediss://127.0.0.1?ssl_cert_reqs=maybe",
    "rediss://127.0.0.1?ssl_ca_certs=nowhere.pem",
    "Embedded",
    "redis://127.0.0.1:port",
]


def test_sentinels_that_do_not_answer_are_named_in_a_few_words(store_at: Callable[[str], OnlineStore]) -> None:
    """The message has who was asked for what, and no object of the driver."""
    with pytest.raises(OnlineStoreError) as error:
        store_at("redis+sentinel://me:hunter2@127.0.0.1:1,127.0.0.1:2/features").ping()

    assert "(no Sentinel names a primary of 'features'; asked: 127.0.0.1:1, 127.0.0.1:2)" in str(error.value)
    assert "<" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("url", UNSUPPORTED)
def test_a_url_that_is_not_supported_is_a_settings_error(store_at: Callable[[str], OnlineStore], url: str) -> None:
    """Any other URL is refused when it is first used, by the setting's name."""
    with pytest.raises(SettingsError, match=r"online\.url '") as error:
        store_at(url).ping()

    assert "hunter2" not in str(error.value)
