from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from fastapi import FastAPI
from starlette.responses import Response
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.contract import ARROW
from featurestore_server.problems import handle_errors
from featurestore_server.processes import Computed, Processes
from featurestore_server.slots import Slots
from tests.conftest import NOON, TIME, at
from tests.servers import is_alive
from tests.service import BIG, HISTORICAL, ONLINE, SPINE, as_stream, problem, request_of, serving

ROWS = 300_000
QUERY = {"feature_service": "everything"}
SENT = {"Content-Type": ARROW}


@pytest.fixture(scope="module")
def large() -> bytes:
    """A spine whose answer is some hundred megabytes, which no socket holds."""
    return as_stream(
        pa.table({"user_id": [BIG] * ROWS, "event_timestamp": pa.array([at(NOON)] * ROWS, TIME), "pad": ["x" * 200] * ROWS})
    )


@pytest.fixture
def served(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A server that computes one training query at a time and lets none wait: its process id and its URL."""
    monkeypatch.setenv("FEATURESTORE_SERVER__TRAINING_PROCESSES", "1")
    monkeypatch.setenv("FEATURESTORE_SERVER__TRAINING_QUEUE", "0")
    monkeypatch.setenv("FEATURESTORE_OFFLINE__TEMP_DIRECTORY", str(tmp_path))
    with serving(store.settings.root, "--json") as (process, line):
        yield process.pid, json.loads(line)["url"]


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def _workers(server: int) -> list[int]:
    """Return the processes that compute: the children of the one that they are forked from."""
    return [worker for child in _children(server) for worker in _children(child)]


def _resident(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _wait_for(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.02)
    raise AssertionError(is_so)


def test_an_answer_waits_for_its_reader_and_ends_with_it(served: tuple[int, str], large: bytes, tmp_path: Path) -> None:
    """A client that stops reading stops the computation, not lookups: others are told to come again, and all ends with it."""
    server, url = served
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.post(HISTORICAL, **request_of(SPINE, ARROW, **QUERY)).status_code == 200
        before = _resident(server)
        with client.stream("POST", HISTORICAL, content=large, params=QUERY, headers=SENT) as response:
            assert response.status_code == 200
            time.sleep(0.5)
            [worker] = _workers(server)
            assert _resident(server) - before < 50_000_000
            busy = httpx.post(url + HISTORICAL, **request_of(SPINE, ARROW, **QUERY), timeout=60)
            lookup = httpx.post(url + ONLINE, json={**QUERY, "entities": {"user_id": [BIG]}}, timeout=60)
            assert os.getpriority(os.PRIO_PROCESS, worker) > os.getpriority(os.PRIO_PROCESS, server)
            _wait_for(lambda: len(list(tmp_path.iterdir())) == 1)  # that of the refused one goes a moment after its answer
        _wait_for(lambda: not _workers(server))
        _wait_for(lambda: not list(tmp_path.iterdir()))
        again = client.post(HISTORICAL, **request_of(SPINE, ARROW, **QUERY))

    problem(busy, 503, "busy")
    assert busy.headers["retry-after"] == "5"
    assert (lookup.status_code, again.status_code) == (200, 200)


def test_a_client_that_goes_away_before_the_answer_begins(served: tuple[int, str], large: bytes) -> None:
    """The process of a query ends with the connection, whatever it computes at that moment."""
    server, url = served
    with httpx.Client(base_url=url, timeout=httpx.Timeout(60, read=0.001)) as client, pytest.raises(httpx.ReadTimeout):
        client.post(HISTORICAL, content=large, params=QUERY, headers=SENT)

    _wait_for(lambda: not _workers(server))


def test_a_whole_answer_is_larger_than_what_the_server_holds(served: tuple[int, str], large: bytes) -> None:
    """A large answer is read to its end while the server's own memory stays."""
    server, url = served
    with httpx.Client(base_url=url, timeout=60) as client:
        client.post(HISTORICAL, **request_of(SPINE, ARROW, **QUERY))
        before, most, size = _resident(server), 0, 0
        with client.stream("POST", HISTORICAL, content=large, params=QUERY, headers=SENT) as response:
            for chunk in response.iter_raw():
                size += len(chunk)
                most = max(most, _resident(server)) if size % 7 == 0 else most

    assert size > 90_000_000
    assert most - before < 50_000_000


def test_a_process_that_is_killed_cuts_its_answer_off(served: tuple[int, str], large: bytes) -> None:
    """A client never takes a part for the whole: the connection breaks, and the service goes on."""
    server, url = served
    with httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", HISTORICAL, content=large, params=QUERY, headers=SENT) as response:
            assert response.status_code == 200
            [worker] = _workers(server)
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()
        assert client.post(HISTORICAL, **request_of(SPINE, ARROW, **QUERY)).status_code == 200


def test_processes_end_with_a_server_that_is_killed(served: tuple[int, str], large: bytes, tmp_path: Path) -> None:
    """After kill -9 of the server nothing computes for nobody, and nothing of the request is left on the disk."""
    server, url = served
    with httpx.stream("POST", url + HISTORICAL, content=large, params=QUERY, headers=SENT, timeout=60) as response:
        assert response.status_code == 200
        [worker] = _workers(server)
        os.kill(server, signal.SIGKILL)
        _wait_for(lambda: not is_alive(worker))
    _wait_for(lambda: not list(tmp_path.iterdir()))


def test_a_body_that_does_not_fit_on_the_disk(store: FeatureStore) -> None:
    """It is never cut off and taken for the client's fault: the answer is a 5xx, and the log says why."""
    with serving(store.settings.root, "--json") as (process, line):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (500_000, 500_000))
        table = SPINE.append_column("pad", pa.array(["x" * 150_000] * len(SPINE)))
        response = httpx.post(json.loads(line)["url"] + HISTORICAL, **request_of(table, ARROW, **QUERY), timeout=60)
        process.terminate()
        _, log = process.communicate(timeout=60)

    assert "cannot" in problem(response, 500, "offline-store")["detail"]
    assert f"POST {HISTORICAL}: cannot keep the body of the request: [Errno 27] File too large" in log


def test_what_fails_unexpectedly_in_a_process(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    """A bug there is a problem that tells nothing, and a traceback in the service's log."""
    app = FastAPI()
    handle_errors(app)

    @app.post("/bug")
    async def bug() -> Response:
        return Computed(Processes(store, 1, 0), len)  # type: ignore[arg-type]  # it takes one argument, and is called with three

    problem(TestClient(app).post("/bug"), 500, "internal")
    [record] = [each for each in caplog.records if each.name == "featurestore_server"]
    assert record.exc_info is not None
    assert "TypeError: len() takes exactly one argument (3 given)" in str(record.exc_info[1])


def test_slots_are_given_in_turn_across_event_loops() -> None:
    """Who waits longest is next, whichever event loop it waits on; who goes away while waiting keeps nothing."""
    slots, order = Slots(1), []
    asyncio.run(slots.take())

    def wait(name: str) -> None:
        async def taken() -> None:
            await slots.take()
            order.append(name)
            slots.give()

        asyncio.run(taken())

    def is_waited_for_by(count: int) -> Callable[[], bool]:
        return lambda: slots.waiting == count

    async def gone() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slots.take(), 0.01)

    threads = []
    for number, name in enumerate("abc", 1):
        threads.append(threading.Thread(target=wait, args=(name,)))
        threads[-1].start()
        _wait_for(is_waited_for_by(number))
    asyncio.run(gone())
    assert (slots.waiting, slots.is_full) == (3, True)
    slots.give()
    for thread in threads:
        thread.join(10)

    assert order == ["a", "b", "c"]
    assert (slots.waiting, slots.is_full) == (0, False)


def test_who_goes_away_in_the_turn_in_which_it_got_a_slot_gives_it_to_the_next() -> None:
    """A slot that was given to a task that is cancelled before it runs again is not lost."""
    slots = Slots(1)

    async def main() -> None:
        await slots.take()
        waiting = asyncio.create_task(slots.take())
        await asyncio.sleep(0)
        slots.give()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not slots.is_full
        await slots.take()

    asyncio.run(main())
