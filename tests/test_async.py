from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop

from featurestore import FeatureStore, lookups
from featurestore.errors import IncompleteError, InputError, NotFoundError, OnlineStoreError
from featurestore.online.frames import command
from featurestore.online.multiplexed import Multiplexed, MultiplexedLinks
from featurestore.online.store import keys_of
from featurestore.online.topology import Access, Endpoint
from tests.conftest import Repo
from tests.servers import server

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on a loop of each kind."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main)

    return run


@pytest.fixture
def store(weather_repo: Repo) -> FeatureStore:
    """The weather, materialized."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    return store


Runner = Callable[[Coroutine[Any, Any, Any]], Any]


def test_both_paths_give_the_same(store: FeatureStore, run: Runner) -> None:
    """The asynchronous lookup takes the same arguments, gives the same vectors and raises the same errors."""
    keys = {"origin": ["JFK", None, "EWR", "LGA", "EWR"]}

    async def main() -> None:
        async with store:
            vectors = await store.get_online_features_async(keys, "flight_weather")
            same = store.get_online_features(keys, "flight_weather")
            assert vectors.to_arrow().equals(same.to_arrow())
            assert vectors.to_dict() == same.to_dict() == vectors.to_arrow().to_pydict()
            assert vectors.statuses == same.statuses
            assert vectors.event_times["airport_weather"].equals(same.event_times["airport_weather"])
            assert vectors.plain_features()["airport_weather__temperature"] == [None, None, 21.0, None, 21.0]
            with pytest.raises(NotFoundError):
                await store.get_online_features_async(keys, "flight_wether")
            with pytest.raises(InputError):
                await store.get_online_features_async({"origin": "JFK"}, "flight_weather")

    run(main())


def test_nothing_is_read_on_the_loop(store: FeatureStore, run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Registry and lock files are read, and lookups compiled, by other threads; what is known already takes none."""
    store.lock("flight_weather", tmp_path / "features.lock")
    threads: list[threading.Thread] = []
    for name in ("select", "read_lock", "check_lock"):
        there = getattr(lookups, name)

        def watched(*given: Any, there: Callable[..., Any] = there) -> Any:
            threads.append(threading.current_thread())
            return there(*given)

        monkeypatch.setattr(lookups, name, watched)

    async def main() -> None:
        async with store:
            for _ in range(3):
                await store.get_online_features_async({"origin": ["EWR"]}, "flight_weather", lock=tmp_path / "features.lock")

    run(main())
    assert threads
    assert threading.current_thread() not in threads


def test_many_tasks_get_their_own_answers(store: FeatureStore, run: Runner) -> None:
    """Tasks that share the connection get what they asked for, whatever the others ask and whoever is cancelled."""
    expected = {"EWR": 21.0, "JFK": None, "LGA": None}

    async def ask(number: int) -> None:
        names = [list(expected)[(number + step) % 3] for step in range(number % 5)]
        answer = (await store.get_online_features_async({"origin": names}, "flight_weather")).to_dict()
        assert answer["airport_weather__temperature"] == [expected[name] for name in names]
        assert answer["origin"] == names

    async def main() -> None:
        async with store:
            for _ in range(3):
                tasks = [asyncio.create_task(ask(number)) for number in range(300)]
                await asyncio.sleep(0)
                for task in tasks[::7]:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                wrong = [each for each in done if each is not None and not isinstance(each, asyncio.CancelledError)]
                assert wrong == []

    run(main())


def test_reads_of_one_turn_are_few_commands(store: FeatureStore, run: Runner) -> None:
    """Tasks that read at once share a command; who asks for many keys has its own, and who is cancelled costs nobody anything."""
    [loaded] = [each for each in store.applied().versions if each.view.name == "airport_weather"]
    here, away = keys_of(loaded).plain([["EWR", "nowhere"]]) or []
    row = store.online.fetch([here])[0]

    async def main() -> None:
        async with store:
            read = store.online.fetch_async
            await read([here])
            before = calls()
            cancelled = asyncio.create_task(read([here]))
            tasks = [asyncio.create_task(read([here, away, here][: 1 + number % 3])) for number in range(16)]
            large = asyncio.create_task(read([away] * 499 + [here]))
            await asyncio.sleep(0)
            cancelled.cancel()
            assert await asyncio.gather(*tasks) == [[row, None, row][: 1 + number % 3] for number in range(16)]
            assert await large == [None] * 499 + [row]
            assert calls() - before == 2
            assert store.online.connections() == ({"open": 1, "opening": 0, "failed": 0}, 0)

    def calls() -> int:
        found: Any = store.online._client.info("commandstats")
        return int(found["cmdstat_mget"]["calls"])

    run(main())


def test_a_stopped_server_is_started_and_a_dead_connection_replaced(store: FeatureStore, run: Runner) -> None:
    """A lookup finds its way when the embedded server was stopped, or when its connections were cut."""

    async def value() -> Any:
        vectors = await store.get_online_features_async({"origin": ["EWR"]}, "flight_weather")
        return vectors.to_dict()["airport_weather__temperature"]

    async def main() -> None:
        async with store:
            assert await value() == [21.0]
            store.online._client.client_kill_filter(_type="normal", skipme=True)
            assert await asyncio.gather(*[value() for _ in range(20)]) == [[21.0]] * 20
            store.stop()
            assert await asyncio.gather(*[value() for _ in range(20)]) == [[21.0]] * 20

    run(main())


def test_before_it_is_loaded_a_view_is_incomplete(weather_repo: Repo, run: Runner) -> None:
    """A view without a run is an error, as in the blocking call."""
    store = weather_repo.open()
    store.apply()

    async def main() -> None:
        async with store:
            with pytest.raises(IncompleteError):
                await store.get_online_features_async({"origin": ["EWR"]}, "flight_weather")

    run(main())


# The connection


@asynccontextmanager
async def links(endpoint: Endpoint, seconds: float = 5.0) -> AsyncIterator[MultiplexedLinks]:
    """Give the connections to a server, closed at the end."""
    made = MultiplexedLinks(Access(seconds))
    try:
        yield made
    finally:
        await made.aclose()


def test_commands_of_one_turn_share_the_connection(tmp_path: Path, run: Runner) -> None:
    """A thousand tasks are one connection to the server, and each gets the reply to its own command."""
    with server(tmp_path) as made:

        async def main() -> None:
            async with links(Endpoint("127.0.0.1", made.port)) as shared:
                endpoint = Endpoint("127.0.0.1", made.port)
                texts = [b"%d" % number for number in range(1000)]
                replies = await asyncio.gather(*[shared.exchange(endpoint, command(b"ECHO", text), 1) for text in texts])
                assert replies == [[text] for text in texts]
                with redis.Redis(port=made.port) as raw:
                    assert len([each for each in raw.client_list() if each["cmd"] == "echo"]) == 1

        run(main())


def test_more_than_it_takes_at_once_waits(tmp_path: Path, run: Runner) -> None:
    """Back-pressure: 20,000 commands with large replies all get their answers, although few may be under way."""
    with server(tmp_path) as made:

        async def main() -> None:
            endpoint = Endpoint("127.0.0.1", made.port)
            async with links(endpoint, 30) as shared:
                large = b"x" * 2000
                asked = command(b"ECHO", large)
                replies = await asyncio.gather(*[shared.exchange(endpoint, asked, 1) for _ in range(20_000)])
                assert replies == [[large]] * 20_000

        run(main())


def test_more_reads_than_it_takes_at_once_are_turned_away(tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-pressure: while so many wait there is no room for another read, and once they have their answers there is."""
    monkeypatch.setattr("featurestore.online.multiplexed._MOST_WAITING", 4)
    with server(tmp_path) as made:

        async def main() -> None:
            endpoint = Endpoint("127.0.0.1", made.port)
            async with links(endpoint) as shared:
                await shared.exchange(endpoint, command(b"SET", b"k", b"v"), 1)
                link = shared.ready(endpoint)
                assert link is not None
                answers: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(6)]
                assert [link.read([b"k"], each.set_result) for each in answers[:5]] == [True] * 4 + [False]
                assert await asyncio.gather(*answers[:4]) == [[b"v"]] * 4
                assert link.read([b"k"], answers[5].set_result)
                assert await answers[5] == [b"v"]
                assert not answers[4].done()

        run(main())


def test_a_silent_server_times_out(run: Runner) -> None:
    """Who waits on a server that takes everything and says nothing gets a time-out; the connection is not used again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint("127.0.0.1", listener.getsockname()[1])

        async def main() -> None:
            async with links(endpoint, 0.3) as shared:
                for _ in range(2):
                    tasks = [shared.exchange(endpoint, command(b"PING"), 1) for _ in range(3)]
                    failures = await asyncio.gather(*tasks, return_exceptions=True)
                    assert [type(each) for each in failures] == [redis.TimeoutError] * 3

        run(main())


def test_replies_of_a_dead_connection_reach_nobody(run: Runner) -> None:
    """A server that dies in the middle of a reply fails those who wait; the next command gets the reply of a new connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    endpoint = Endpoint("127.0.0.1", listener.getsockname()[1])

    def serve() -> None:
        first, _ = listener.accept()
        first.recv(1000)
        first.sendall(b"$5\r\nfir")
        first.close()
        second, _ = listener.accept()
        second.recv(1000)
        second.sendall(b"$6\r\nsecond\r\n")
        second.recv(1000)
        second.close()

    thread = threading.Thread(target=serve)
    thread.start()

    async def main() -> None:
        async with links(endpoint) as shared:
            failures = await asyncio.gather(
                *[shared.exchange(endpoint, command(b"A"), 1) for _ in range(2)], return_exceptions=True
            )
            assert [type(each) for each in failures] == [redis.ConnectionError] * 2
            assert await shared.exchange(endpoint, command(b"B"), 1) == [b"second"]

    with listener:
        run(main())
    thread.join()


def test_a_server_that_is_gone_is_not_stormed(run: Runner) -> None:
    """Attempts to connect come with pauses in between: those in a pause fail at once with the failure of the last attempt."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    attempts = 0

    async def main() -> None:
        nonlocal attempts
        endpoint = Endpoint("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        connect = loop.create_connection

        async def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal attempts
            attempts += 1
            return await connect(*arguments, **options)

        shared = MultiplexedLinks(Access(1.0))
        with pytest.MonkeyPatch.context() as patch:
            if isinstance(loop, asyncio.BaseEventLoop):
                patch.setattr(loop, "create_connection", counted)
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                with pytest.raises(redis.ConnectionError):
                    await shared.exchange(endpoint, command(b"PING"), 1)
                await asyncio.sleep(0)
        await shared.aclose()

    run(main())
    assert attempts < 100


def test_a_garbled_reply_ends_the_connection(run: Runner) -> None:
    """Bytes that are not the protocol are an error for who waits, and nothing else is read from that connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint("127.0.0.1", listener.getsockname()[1])

        def serve() -> None:
            with listener.accept()[0] as taken:
                taken.recv(1000)
                taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                taken.recv(1000)

        thread = threading.Thread(target=serve)
        thread.start()

        async def main() -> None:
            async with links(endpoint) as shared:
                with pytest.raises(redis.ConnectionError, match="does not speak the protocol"):
                    await shared.exchange(endpoint, command(b"PING"), 1)

        run(main())
        thread.join()


def test_an_error_names_the_store(make_repo: Callable[..., Repo], run: Runner) -> None:
    """What the driver raises leaves the asynchronous path as the store's own error, too."""
    repo = make_repo(settings='[online]\nurl = "redis://127.0.0.1:1"\n')
    store = repo.open()

    async def main() -> None:
        async with store:
            with pytest.raises(OnlineStoreError, match=r"the online store redis://127\.0\.0\.1:1 does not answer") as error:
                await store.online.fetch_async([b"k"])
            assert error.value.is_retryable

    run(main())


def test_a_connection_that_was_closed_fails_its_waiters(run: Runner) -> None:
    """Closing a connection is an error for who waits on it, and does not leave them waiting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        async def main() -> None:
            loop = asyncio.get_running_loop()
            endpoint = Endpoint("127.0.0.1", port)
            _, link = await loop.create_connection(lambda: Multiplexed(endpoint, 5), "127.0.0.1", port)
            waiting = asyncio.create_task(link.exchange(command(b"PING"), 1))
            await asyncio.sleep(0)
            link.close()
            with pytest.raises(redis.ConnectionError, match="was closed"):
                await waiting

        run(main())
