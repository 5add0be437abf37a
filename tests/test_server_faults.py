"""A service under load while what is behind it stops, comes back or changes."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from featurestore import FeatureStore
from tests.conftest import WEATHER, Repo
from tests.servers import server
from tests.service import ONLINE, ended, serving
from tests.test_server_lookups import until

LOOKUP = {"feature_service": "flight_weather", "entities": {"origin": ["EWR"]}}
LONGEST_SECONDS = 10.0
"""What server.request_timeout_ms allows by default."""

FOUND = {"airport_weather__temperature": [21.0], "airport_weather__gusts": [2**53 + 1]}


class Load:
    """Clients that ask for the same all the time, each over a connection of its own, and what they were answered."""

    def __init__(self, url: str) -> None:
        self.answers: list[httpx.Response] = []
        self.failures: list[str] = []
        self._url, self._is_over = url, False
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as client:
            while not self._is_over:
                try:
                    self.answers.append(client.post(ONLINE, json=LOOKUP))
                    time.sleep(0.25 * (self.answers[-1].status_code == 503))  # nobody reads the log, which has a line for each
                except httpx.HTTPError as reason:
                    self.failures.append(repr(reason))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask until the end of the block."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over = True
            for thread in self._threads:
                thread.join()

    def seen(self, status: int) -> int:
        """Return how many answers had a status so far."""
        return sum(answer.status_code == status for answer in self.answers)


def wrong(answer: httpx.Response) -> Any:
    """Return what is wrong with an answer: it is right, or it is a problem that says when to come again."""
    if answer.status_code == 200:
        return None if answer.json()["features"] == FOUND else answer.text
    is_told = answer.status_code == 503 and answer.json()["type"] == "/problems/online-store" and "retry-after" in answer.headers
    return None if is_told else (answer.status_code, answer.text)


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "frozen"])
def test_an_online_store_that_stops_and_comes_back(weather_repo: Repo, tmp_path: Path, is_killed: bool) -> None:
    """While Redis is gone lookups are 503s with Retry-After, never a wrong value, a hang or a lost connection; then all is well."""
    with server(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as redis:
        text = (
            f'project = "test"\nnow = "2013-06-01T12:00:00Z"\n[online]\nurl = "redis://127.0.0.1:{redis.port}"\ntimeout_ms = 500\n'
        )
        (weather_repo.folder / "featurestore.toml").write_text(text)
        with FeatureStore(weather_repo.folder) as store:
            store.apply()
            store.materialize()
        with serving(weather_repo.folder, "--json") as (_, line):
            url = json.loads(line)["url"]
            load = Load(url)
            with load.running():
                until(lambda: load.seen(200) > 20)
                redis.kill() if is_killed else redis.signal(signal.SIGSTOP)
                until(lambda: load.seen(503) > 8)
                assert httpx.get(f"{url}/readyz", timeout=30).status_code == 503
                redis.start() if is_killed else redis.signal(signal.SIGCONT)
                before = load.seen(200)
                until(lambda: load.seen(200) > before + 50)
            assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200

    assert load.failures == []
    assert [found for answer in load.answers if (found := wrong(answer))] == []
    assert all(answer.status_code == 200 for answer in load.answers[-20:])
    assert max(answer.elapsed.total_seconds() for answer in load.answers) < LONGEST_SECONDS


def test_what_changes_under_load_drops_no_request(weather_repo: Repo) -> None:
    """Applies that add services and make new versions, and the runs that let these take over, cost no request its answer."""
    (weather_repo.folder / "featurestore.toml").write_text('project = "test"\nnow = "2013-06-01T12:00:00Z"\n')
    with ended(FeatureStore(weather_repo.folder)) as store:
        store.apply()
        store.materialize()
        with serving(weather_repo.folder, "--json") as (_, line):
            url = json.loads(line)["url"]
            load = Load(url)
            with load.running():
                for number in range(3):
                    changed = WEATHER.replace('ttl="6h"', f'ttl="{7 + number}h"')
                    weather_repo.define(changed + f'more_{number} = FeatureService("more_{number}", features=[airport_weather])\n')
                    store.apply()
                    store.materialize()
                    asked = LOOKUP | {"feature_service": f"more_{number}"}
                    until(lambda asked=asked: httpx.post(f"{url}{ONLINE}", json=asked, timeout=30).status_code == 200)  # type: ignore[misc]
                    time.sleep(0.2)

    assert load.failures == []
    assert {answer.status_code for answer in load.answers} == {200}
    assert [answer.text for answer in load.answers if answer.json()["features"] != FOUND] == []
    assert len(load.answers) > 100
