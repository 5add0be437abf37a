from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from featurestore import FeatureStore
from featurestore_server.contract import JSON
from tests.servers import is_alive
from tests.service import ONLINE, USERS, serving
from tests.test_server_lookups import until
from tests.test_server_process import run

LOOKUP = {"feature_service": "everything", "entities": USERS}


def children(process: subprocess.Popen[str]) -> set[int]:
    """Return the processes that a process has started."""
    return set(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


@pytest.fixture(scope="module")
def team(store: FeatureStore) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service of two workers, and its URL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_SERVER__GRACE_SECONDS", "10")
        with serving(store.settings.root, "--workers", "2", "--json") as (process, line):
            yield process, json.loads(line)["url"]


def test_a_worker_that_dies_is_replaced(team: tuple[subprocess.Popen[str], str]) -> None:
    """While one of two is killed and comes back, every new connection is answered; what was counted goes on."""
    process, url = team
    before = children(process)
    assert len(before) == 2
    for _ in range(20):
        assert httpx.post(f"{url}{ONLINE}", json=LOOKUP, timeout=30).status_code == 200
    _wait_until_saved(url, 20)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(children(process)) == 2 and min(before) not in children(process))
    for _ in range(20):
        assert httpx.post(f"{url}{ONLINE}", json=LOOKUP, timeout=30).status_code == 200
    _wait_until_saved(url, 40)


def _wait_until_saved(url: str, count: int) -> None:
    """Wait until what both have counted is shared: each does so once a second, and whoever is asked for metrics at once."""
    counted = f'featurestore_requests_total{{route="{ONLINE}",service="everything",status="200"}} {count}\n'
    until(lambda: counted in httpx.get(f"{url}/metrics", timeout=30).text)


def test_workers_finish_what_they_have_begun(team: tuple[subprocess.Popen[str], str]) -> None:
    """SIGTERM while a request is half sent: it is answered when the rest comes, no new connection is, and all end with 0."""
    process, url = team
    workers = children(process)
    body = json.dumps(LOOKUP).encode()
    head = f"POST {ONLINE} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as connection:
        connection.sendall(head + body[:10])
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.sendall(body[10:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    out, err = process.communicate(timeout=20)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in answer
    assert (process.returncode, out) == (0, "")
    assert [json.loads(line)["message"].partition("(")[0] for line in err.splitlines()] in ([], ["worker 0 "], ["worker 1 "])
    assert not [pid for pid in workers if is_alive(pid)]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_workers_end_with_their_parent(store: FeatureStore) -> None:
    """A parent that is killed leaves no worker behind."""
    with serving(store.settings.root, "--workers", "2", "--json") as (process, _):
        workers = children(process)
        process.kill()
        until(lambda: not any(map(is_alive, workers)))
    assert len(workers) == 2


def test_one_process_finishes_what_it_has_begun(store: FeatureStore) -> None:
    """Requests under way at SIGTERM get whole answers, and nobody who was let in is cut off."""
    statuses: list[int | str] = []
    stop = threading.Event()
    with serving(store.settings.root, "--json") as (process, line):
        url = json.loads(line)["url"]

        def ask() -> None:
            while not stop.is_set():
                try:
                    statuses.append(httpx.post(f"{url}{ONLINE}", json=LOOKUP, timeout=30).status_code)
                except (httpx.ConnectError, httpx.ReadError):
                    pass  # what the system has queued when the socket closes was not let in: it is reset
                except httpx.RemoteProtocolError as reason:
                    # Nor was what reaches a connection that was idle when it was closed; an answer that is cut off says otherwise.
                    statuses.extend([] if str(reason).startswith("Server disconnected without sending") else [str(reason)])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        stop.set()
        for thread in threads:
            thread.join()

    assert process.returncode == 0
    assert set(statuses) == {200}


def test_workers_that_cannot_start(store: FeatureStore) -> None:
    """A number of workers that is none is wrong usage; a fault that each of them would have is found before they start."""
    repo = str(store.settings.root)

    assert run("--repo", repo, "--workers", "0").returncode == 2
    refused = run("--repo", repo, "--workers", "2", "--host", "0.0.0.0")  # noqa: S104 (what must be refused)
    assert (refused.returncode, "there is no API key" in refused.stderr) == (1, True)
