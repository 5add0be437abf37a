"""Processes that are killed while they change a repo, and repos that are compared with others that never lost one.

A warm process forks one child for each change, so a child begins at once and the kill meets the change, not the imports.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import FeatureStore
from featurestore.online import embedded
from featurestore.registry.state import Version
from tests.conftest import HOUR, NOON, TIME, at

PARENT = """
import importlib, json, os, signal, sys
import featurestore.materialize
from featurestore import FeatureStore
from tests.kills import change

def die_at(moment):
    place, when, count = moment
    module, _, name = place.partition(":")
    owner = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    function, left = getattr(owner, name), [count]
    def wrapped(*given, **named):
        left[0] -= 1
        if left[0] == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = function(*given, **named)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(owner, name, wrapped)

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if job["moment"]:
                die_at(job["moment"])
            change(job["folder"], job["now"], job["steps"])
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""

DEFINITIONS = """
from featurestore import *
from featurestore.types import *

airport = Entity("airport", join_keys={{"origin": String}})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at", created_time="written_at", delay="10m")
gates = FileSource("gates", path="gates.parquet")
airport_weather = FeatureView("airport_weather", entities=[airport], source=weather, refresh="1h", ttl="{hours}h",
                              fields={{"temperature": Float64, "gusts": Int64}})
airport_gates = FeatureView("airport_gates", entities=[airport], source=gates, fields={{"gates": Int64}})
flight = FeatureService("flight", features=[airport_weather, airport_gates])
"""

Moment = tuple[str, str, int]


def change(folder: str | Path, now: int, steps: list[str]) -> None:
    """Do some steps on a repo: what the child does, and whoever comes after it was killed. Chunks are small, so there are many."""
    chunks = mock.patch.multiple("featurestore.materialize", _CHUNK_ROWS=400, _LOAD_ROWS=100)
    with chunks, FeatureStore(folder, clock=lambda: now) as store:
        for step in steps:
            if step == "apply":
                store.apply()
            elif step == "materialize":
                store.materialize()
            elif step == "again":
                store.materialize(["airport_weather"], start=at(now - 9 * HOUR))
            elif step.startswith("erase"):
                store.delete_entities("airport", {"origin": [step.removeprefix("erase ")]})
            elif step.startswith("rollback"):
                serving = [each for each in store.applied().versions_of("airport_weather") if each.state == "serving"]
                if serving[0].number != int(step.removeprefix("rollback ")):
                    store.rollback("airport_weather")


class Killer:
    """The warm process. Use it with `with`."""

    def __enter__(self) -> Self:
        """Start it."""
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
        environment.pop("PYTHONSAFEPATH", None)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, **pipes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End it."""
        self._process.communicate(timeout=60)

    def run(self, folder: Path, now: int, steps: list[str], *, delay: float | None = None, moment: Moment | None = None) -> int:
        """Do steps in a child, killed after a delay or at a moment if it gets there; returns its wait status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"folder": str(folder), "now": now, "steps": steps, "moment": moment}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if delay is not None:
            time.sleep(delay)
            with suppress(ProcessLookupError):  # it may have ended
                os.kill(child, signal.SIGKILL)
        return int(self._process.stdout.readline())


@dataclass
class Weather:
    """A repo whose source and definitions move on, the same for all repos of one seed."""

    folder: Path
    seed: int = 0
    now: int = NOON
    hours: int = 4
    registry: str = "sqlite:///.featurestore/registry.db"

    def __post_init__(self) -> None:
        """Make the folder, with nothing applied yet, unless there is one."""
        if self.folder.exists():
            return
        self.folder.mkdir(parents=True)
        (self.folder / "featurestore.toml").write_text(f'project = "kills"\nregistry.url = "{self.registry}"\n')
        embedded.ensure_running(self.folder / ".featurestore/online")
        self.write()

    def copied(self, folder: Path) -> Weather:
        """Return a copy in another folder; its server has been stopped."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)

    def move_on(self, *, hours: int | None = None) -> None:
        """Go on by two hours: new rows, corrections and retractions; and maybe another definition."""
        self.now += 2 * HOUR
        self.hours = hours or self.hours
        self.write()

    def write(self) -> None:
        """Write definitions and sources as of now."""
        (self.folder / "definitions.py").write_text(DEFINITIONS.format(hours=self.hours))
        draw = random.Random(f"{self.seed} {self.now}")
        count = 1500
        times = sorted(draw.randrange(NOON - 30 * HOUR, self.now) for _ in range(count))
        columns = {
            "origin": [f"A{draw.randrange(150)}" for _ in range(count)],
            "observed_at": pa.array(times, pa.int64()).cast(TIME),
            "written_at": pa.array([draw.choice([None, each + draw.randrange(HOUR)]) for each in times], pa.int64()).cast(TIME),
            "temperature": [draw.choice([None, draw.random(), float("nan")]) for _ in range(count)],
            "gusts": pa.array([draw.choice([None, draw.randrange(2**60)]) for _ in range(count)], pa.int64()),
        }
        pq.write_table(pa.table(columns), self.folder / "weather.parquet")
        gates = {f"A{draw.randrange(200)}": draw.randrange(9) for _ in range(100)}
        pq.write_table(pa.table({"origin": list(gates), "gates": list(gates.values())}), self.folder / "gates.parquet")

    def stop(self) -> None:
        """End its server."""
        embedded.stop(self.folder / ".featurestore/online")


def contents(repo: Weather) -> dict[str, Any]:
    """Return all that a repo holds of each version that is fed, byte for byte: state, coverage, offline rows, online rows.

    Left out is what cannot be equal: random ids of versions, and the numbers of runs, which grow with each that was killed.
    """
    with FeatureStore(repo.folder, clock=lambda: repo.now) as store:
        applied = store.applied()
        held: dict[str, Any] = {"waiting": applied.waiting, "serving": store.registry.serving().specs, "specs": applied.specs}
        for version in applied.versions:
            name = f"{version.view.name} v{version.number}"
            held[f"{name} state"] = version.state, version.is_rollback
            if version.is_fed:
                held[f"{name} coverage"] = version.coverage
                held[f"{name} offline"] = _offline(store, version)
                held[f"{name} online"] = _online(store, version)
        return held


def _offline(store: FeatureStore, version: Version) -> list[Any]:
    files = store.snapshot(version).files
    rows = [row for file in files for row in pq.read_table(file.path).to_pylist()]
    return sorted(repr(sorted(row.items())) for row in rows)


def _online(store: FeatureStore, version: Version) -> dict[bytes, bytes]:
    client = store.online._client
    keys = sorted(client.scan_iter(match=f"{version.uid}{{*", count=1000))
    rows = dict(zip(keys, client.mget(keys), strict=True)) if keys else {}
    # A row is its format, event time and run (8 bytes each), then its values; a deleted one begins with a zero.
    return {key.removeprefix(version.uid.encode()): row[:9] + row[17:] for key, row in rows.items() if row and row[0]}


def unnamed_files(repo: Path) -> list[Path]:
    """Return the files of a repo's tables that no version of a table names."""
    found = []
    for folder in (repo / ".featurestore/offline").glob("*/v*"):
        logs = [json.loads(line) for log in folder.glob("_delta_log/*.json") for line in log.read_text().splitlines()]
        named = {action["add"]["path"] for action in logs if "add" in action}
        found += [path for path in folder.glob("*.parquet*") if path.name not in named]
    return found
