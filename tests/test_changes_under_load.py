"""T11: while definitions change and are rolled back, every answer is wholly of one version, in every thread and every process."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from featurestore import FeatureStore
from tests.conftest import HOUR, NOON, TIME, Repo, at
from tests.service import HISTORICAL, ONLINE, serving

AIRPORTS = [f"A{number}" for number in range(40)]
COLUMNS = {
    1: ("one__mark", "two__mark"),
    2: ("two__mark", "one__mark", "one__extra"),
    3: ("one__extra", "one__mark", "two__mark"),
}
"""The service's columns in each version of the definitions; a version's marks are its number."""

DEFINITIONS = """
airport = Entity("airport", join_keys={{"origin": String}})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
one = FeatureView("one", entities=[airport], source=weather, refresh="1h",
                  sql="SELECT origin, observed_at, {mark} AS mark, {mark} AS extra FROM weather", fields={one})
two = FeatureView("two", entities=[airport], source=weather, refresh="1h",
                  sql="SELECT origin, observed_at, {mark} AS mark FROM weather", fields={{"mark": Int64}})
marks = FeatureService("marks", features={features})
"""

SPINE = pa.table({"origin": AIRPORTS, "event_timestamp": pa.array([at(NOON)] * len(AIRPORTS), TIME)})


def define(repo: Repo, mark: int) -> None:
    """Define version `mark`: both views give it in every row, and the service lists its columns in its own order."""
    one = '{"mark": Int64, "extra": Int64}' if mark > 1 else '{"mark": Int64}'
    features = json.dumps([column.replace("__", ":") for column in COLUMNS[mark]])
    repo.define(DEFINITIONS.format(mark=mark, one=one, features=features))


def version_of(answer: dict[str, list[Any]]) -> int:
    """Return the one version that an answer is of; fails if it is of several, or of none."""
    marks = {value for column, values in answer.items() if "__" in column for value in values}
    [mark] = marks
    assert tuple(column for column in answer if "__" in column) == COLUMNS[mark], answer.keys()
    assert {len(values) for values in answer.values()} == {len(AIRPORTS)}
    return int(mark)


PROCESS = """
import sys, json
sys.path.append(sys.argv[2])
from featurestore import FeatureStore
from tests.test_changes_under_load import AIRPORTS, SPINE, version_of
from tests.conftest import NOON
with FeatureStore(sys.argv[1], clock=lambda: NOON) as store:
    seen = []
    print("ready", flush=True)
    import threading
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
    while not ended.is_set():
        seen.append(version_of(store.get_online_features({"origin": AIRPORTS}, "marks").to_dict()))
        seen.append(version_of(store.get_historical_features(SPINE, "marks").to_dict()))
print(json.dumps(seen))
"""


@pytest.fixture
def repo_of_marks(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """A repo with version 1 applied and materialized."""
    monkeypatch.setenv("FEATURESTORE_NOW", at(NOON).isoformat())
    repo.write("weather.parquet", {"origin": AIRPORTS, "observed_at": pa.array([at(NOON - HOUR)] * len(AIRPORTS), TIME)})
    define(repo, 1)
    store = repo.open()
    store.apply()
    store.materialize()
    return repo


def askers(store: FeatureStore, client: httpx.Client) -> list[Callable[[], dict[str, list[Any]]]]:
    """Return the ways to ask: lookups and training sets, through the library and over HTTP."""
    entities = {"origin": AIRPORTS}
    spine = {"origin": AIRPORTS, "event_timestamp": [at(NOON).isoformat()] * len(AIRPORTS)}

    def post(route: str, columns: dict[str, Any]) -> dict[str, list[Any]]:
        response = client.post(route, json={"feature_service": "marks", "entities": columns})
        assert response.status_code == 200, response.text
        found: dict[str, list[Any]] = response.json()["features"]
        return found

    return [
        lambda: store.get_online_features(entities, "marks").to_dict(),
        lambda: store.get_historical_features(SPINE, "marks").to_dict(),
        lambda: post(ONLINE, entities),
        lambda: post(HISTORICAL, spine),
    ]


@pytest.fixture
def reader(repo_of_marks: Repo) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that looks up and trains until it is told to end, and then says what it saw."""
    command = [sys.executable, "-c", PROCESS, str(repo_of_marks.folder), str(Path(__file__).parents[1])]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate(timeout=30)


def test_every_answer_is_wholly_of_one_version(repo_of_marks: Repo, reader: subprocess.Popen[str]) -> None:
    """Two changes of two views and a service's list, two rollbacks and a change back, under lookups and training reads."""
    repo, ended = repo_of_marks, threading.Event()
    changing = repo.open()
    with serving(repo.folder, "--json") as (_, line), httpx.Client(base_url=json.loads(line)["url"], timeout=30) as client:
        reading = repo.open()
        seen: list[list[int]] = [[] for _ in askers(reading, client)]

        def ask(place: int) -> None:
            asker = askers(reading, client)[place]
            while not ended.is_set():
                seen[place].append(version_of(asker()))

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, place) for place in [*range(len(seen)), 0, 1]]
            try:
                for mark in _changes(repo, changing):
                    _wait_until_all_see(mark, seen, asked)
            finally:
                ended.set()
            for each in asked:
                each.result(60)
        output, _ = reader.communicate("\n", timeout=60)
    seen.append(json.loads(output))
    for place, marks in enumerate(seen):
        assert set(marks) == {1, 2, 3}, place


def _changes(repo: Repo, store: FeatureStore) -> Iterator[int]:
    """Change what serves, and give the version that serves then; the one before all changes first."""
    yield 1
    for mark in (2, 3):
        define(repo, mark)
        store.apply()
        store.materialize(["two"])
        store.materialize()
        yield mark
    for mark in (2, 3, 2):
        assert len(store.rollback("one").versions) == 2
        yield mark
    store.apply()  # the definitions still say 3, and its versions are kept
    yield 3


def _wait_until_all_see(mark: int, seen: list[list[int]], asked: list[Any]) -> None:
    """Wait until every asker has got an answer of a version; what names mean is read anew within a second."""
    begun = [len(marks) for marks in seen]
    for _ in range(600):
        assert not any(each.done() for each in asked), next(each for each in asked if each.done()).result()
        if all(mark in marks[start:] for marks, start in zip(seen, begun, strict=True)):
            return
        time.sleep(0.05)
    pytest.fail(f"version {mark} is not seen: {[list(map(list, itertools.groupby(marks))) for marks in seen]}")
