"""The rows about the HTTP service: lookups under load from another process, beside Feast's server and one that does nothing."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.data import Bench
from benchmarks.feast import NAME as FEAST
from benchmarks.feast import feast_served
from benchmarks.online import five_views
from benchmarks.rows import Rows, row_of
from benchmarks.servers import ROOT, Server, served
from featurestore import FeatureStore
from featurestore.online.frames import mget
from featurestore.online.links import Link
from featurestore.online.vectors import LookupPlan

__all__ = ["SERVING_ROWS", "Load"]

CONNECTIONS, BODIES, PACED = 32, 100, 3
FEAST_SECONDS = 3  # in which it gives some answer
PATH, FEAST_PATH = "/v1/online-features", "/get-online-features"
JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
EMPTY = "empty ASGI server (floor)"
READS = "reading the rows alone, over a Unix socket (floor)"


def _service(bench: Bench, *options: str, **variables: str) -> AbstractContextManager[Server]:
    root = str(five_views(bench).settings.root)
    return served("featurestore_server", "--repo", root, "--port", "0", "--json", *options, **variables)


@cache
def _one_worker(bench: Bench) -> Server:
    """Return the server of most rows, which ends with the bench."""
    return bench.ending.enter_context(_service(bench))


@cache
def _empty_server(bench: Bench) -> Server:
    return bench.ending.enter_context(served("benchmarks.empty_server"))


@dataclass(frozen=True)
class Load:
    """What is asked of a server: bodies in turn, each in a file."""

    path: str
    media_type: str
    folder: Path
    seconds: int
    connections: int = CONNECTIONS
    key: str = ""

    def write(self, bodies: list[bytes]) -> Load:
        """Write what is sent, and the script that makes wrk send it."""
        self.folder.mkdir(exist_ok=True)
        for number, body in enumerate(bodies):
            (self.folder / str(number)).write_bytes(body)
        self.script.write_text(
            f"""
            local requests, number = {{}}, 0
            function init()
                for place = 0, {len(bodies) - 1} do
                    local file = io.open("{self.folder}/" .. place, "rb")
                    local headers = {{["Content-Type"] = "{self.media_type}", ["Authorization"] = "Bearer {self.key}"}}
                    requests[place] = wrk.format("POST", "{self.path}", headers, file:read("*a"))
                    file:close()
                end
            end
            function request() number = (number + 1) % {len(bodies)}; return requests[number] end
            """,
            "utf-8",
        )
        return self

    @property
    def script(self) -> Path:
        """The script of wrk."""
        return self.folder / "load.lua"

    def rate(self, url: str) -> float:
        """Return the answers per second; all of them have to be good."""
        wrk = shutil.which("wrk")
        if wrk is None:
            raise SystemExit("wrk is not on the PATH: apt-get install wrk")
        command = [wrk, "-t1", f"-c{self.connections}", f"-d{self.seconds}s", "--timeout", "60s", "-s", str(self.script), url]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in shown or "Socket errors" in shown:
            raise AssertionError(shown)
        match = re.search(r"Requests/sec:\s*([0-9.]+)", shown)
        assert match, shown
        return float(match[1])

    def latency(self, url: str, rate: float) -> dict[str, float]:
        """Return percentiles in milliseconds at a constant rate, from when each request was due."""
        command = [
            sys.executable,
            "-m",
            "benchmarks.paced",
            url + self.path,
            self.media_type,
            str(self.folder),
            f"{rate:.1f}",
            str(self.seconds),
            self.key,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found: dict[str, float] = json.loads(done.stdout)
        return found


class Reads:
    """The rows of the same lookups read by a client that does nothing with them, over as many connections as the load has."""

    def __init__(self, store: FeatureStore, service: str, users: np.ndarray, connections: int, seconds: int) -> None:
        plan = LookupPlan(store.selection(service), store.functions.of)
        layout, self.lookups = store.online.topology.layout(), len(plan.lookups)
        self.payloads = [self._commands(plan, each) for each in users]
        self.seconds = seconds
        self.links = [Link(layout.endpoints[0], store.online.topology.access) for _ in range(connections)]

    @staticmethod
    def _commands(plan: LookupPlan, users: np.ndarray) -> bytes:
        names = plan.request({"user_id": pa.array(users)}).names
        return b"".join(
            [mget([name for name in names[place : place + len(users)] if name]) for place in range(0, len(names), len(users))]
        )

    def rate(self, _: str) -> float:
        """Return how many lookups' rows come per second."""
        begun = time.perf_counter()
        for number, payload in enumerate(itertools.cycle(self.payloads)):
            link = self.links[number % len(self.links)]
            if number >= len(self.links):
                link.receive(self.lookups)
            if time.perf_counter() > begun + self.seconds:
                break
            link.send(payload)
        for place in range(1, len(self.links)):
            self.links[(number + place) % len(self.links)].receive(self.lookups)
        return number / (time.perf_counter() - begun)


def _key(bench: Bench) -> str:
    return (five_views(bench).settings.root / "key").read_text("utf-8")


def _loads(bench: Bench, name: str, service: str, entities: int) -> tuple[Load, Load]:
    """Return the same lookups in our words and in Feast's."""
    users = np.random.default_rng(6).integers(0, bench.sizes.keys, (BODIES, entities)).tolist()
    bodies = [json.dumps({"feature_service": service, "entities": {"user_id": each}}).encode() for each in users]
    ours = Load(PATH, JSON, bench.folder / name, bench.sizes.seconds, key=_key(bench)).write(bodies)
    named = [json.dumps({**json.loads(body), "full_feature_names": True}).encode() for body in bodies]
    return ours, Load(FEAST_PATH, JSON, bench.folder / f"{name}_feast", max(FEAST_SECONDS, bench.sizes.seconds)).write(named)


def _compared(
    name: str, what: str, loads: Mapping[str, tuple[Server | None, Load | Reads]], repetitions: int, *, paced: bool = True
) -> Rows:
    """Measure the first of some servers under their loads in turn with the others."""
    (mine, (server, load)), *others = loads.items()
    assert mine == "ours"
    for each, _ in loads.values():
        if each is not None:
            each.forget_peak()
    _run(server, load)
    pairs: dict[str, list[tuple[_Run, _Run]]] = {peer: [] for peer, _ in others}
    for _ in range(repetitions):
        _wait_until_idle(other for _, (other, _) in others)
        own = _run(server, load)
        for peer, (other, theirs) in others:
            pairs[peer].append((own, _run(other, theirs)))
    rows = []
    for peer, (other, _) in others:
        row = row_of(name, what, "per s", peer, [(one.rate, two.rate) for one, two in pairs[peer]], is_rate=True)
        if server is not None and other is not None:
            one, two = (statistics.median(each.processor for each in side) for side in zip(*pairs[peer], strict=True))
            row = replace(row, processor=(one, two), memory=(server.memory(), other.memory()))
        rows.append(row)
    if paced:  # beside the first peer, which is the floor: what its percentiles are the generator and the machine have added
        [_, (floor, theirs)] = others[0]
        _wait_until_idle(other for _, (other, _) in others)
        rate, times = rows[0].ours / 2, min(PACED, repetitions)
        runs = [(_latency(server, load, rate), _latency(floor, theirs, rate)) for _ in range(times)]
        own_runs, floor_runs = zip(*runs, strict=True)
        latency = {name: statistics.median(run[name] for run in own_runs) for name in own_runs[0]}
        floors = {name: statistics.median(run[name] for run in floor_runs) for name in floor_runs[0] if name[0] == "p"}
        rows[0] = replace(rows[0], latency=latency | {f"floor_{name}": each for name, each in floors.items()})
    return rows


def _wait_until_idle(servers: Iterable[Server | None]) -> None:
    """Let servers finish what clients that are gone have asked for: Feast's goes on for seconds, on the cores that ours needs."""
    for server in servers:
        used = -1.0
        while server is not None and server.processor() > used + 0.02:
            used = server.processor()
            time.sleep(0.2)


@dataclass(frozen=True)
class _Run:
    """Answers per second, and seconds of the server's processor for 1,000 of them."""

    rate: float
    processor: float


def _run(server: Server | None, load: Load | Reads) -> _Run:
    if server is None:
        return _Run(load.rate(""), 0)
    before = server.processor()
    rate = load.rate(server.url)
    assert isinstance(load, Load)
    return _Run(rate, (server.processor() - before) / (rate * load.seconds) * 1000)


def _latency(server: Server | None, load: Load | Reads, rate: float) -> dict[str, float]:
    assert server is not None
    assert isinstance(load, Load)
    return load.latency(server.url, rate)


def _lookups(name: str, bench: Bench, repetitions: int, entities: int, features: int) -> Rows:
    service = "model" if features == 10 else "model_50"
    ours, theirs = _loads(bench, name, service, entities)
    own, other = _one_worker(bench), feast_served(bench)
    _check_same(own.url, ours, other.url, theirs)
    what = f"HTTP lookups of {entities} x {features} features, 1 worker, {CONNECTIONS} connections"
    loads = {"ours": (own, ours), EMPTY: (_empty_server(bench), ours), FEAST: (other, theirs)}
    return _compared(name, what, loads, repetitions)


def _check_same(url: str, ours: Load, other: str, theirs: Load) -> None:
    mine = _answer(url, ours)["features"]["v0__f7"]
    found = _answer(other, theirs)
    place = found["metadata"]["feature_names"].index("v0__f7")
    if mine != found["results"][place]["values"]:
        raise AssertionError("Feast's server gives other values than ours")


def _answer(url: str, load: Load) -> Any:
    body, headers = (load.folder / "0").read_bytes(), {"Content-Type": load.media_type, "Authorization": f"Bearer {load.key}"}
    request = urllib.request.Request(url + load.path, body, headers)  # noqa: S310 (our own loopback address)
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        return json.loads(answer.read())


def online_1x10(bench: Bench, repetitions: int) -> Rows:
    """Compare lookups of one entity over HTTP."""
    return _lookups("online_1x10", bench, repetitions, 1, 10)


def online_100x10(bench: Bench, repetitions: int) -> Rows:
    """Compare lookups of 100 entities over HTTP."""
    return _lookups("online_100x10", bench, repetitions, 100, 10)


def online_1x50(bench: Bench, repetitions: int) -> Rows:
    """Compare lookups of one entity and five views over HTTP."""
    return _lookups("online_1x50", bench, repetitions, 1, 50)


def online_100x50(bench: Bench, repetitions: int) -> Rows:
    """Compare lookups of 100 entities and five views over HTTP."""
    return _lookups("online_100x50", bench, repetitions, 100, 50)


def online_1000x50_arrow(bench: Bench, repetitions: int) -> Rows:
    """Compare lookups of 1,000 entities and five views as Arrow with JSON, mere reads, and Feast, which has JSON alone."""
    users = np.random.default_rng(6).integers(0, bench.sizes.keys, (10, 1000))
    # As few connections as keep the server busy: Feast takes seconds for one answer.
    json_load, theirs = (replace(each, connections=2) for each in _loads(bench, "json_1000", "model_50", 1000))
    asked = Load(f"{PATH}?feature_service=model_50", ARROW, bench.folder / "arrow_1000", bench.sizes.seconds, 2, _key(bench))
    ours = asked.write([_arrow(each) for each in users])
    own, reads = _one_worker(bench), Reads(five_views(bench), "model_50", users, 2, bench.sizes.seconds)
    what = "HTTP lookups of 1,000 x 50 features as Arrow, 1 worker, 2 connections"
    loads: dict[str, tuple[Server | None, Load | Reads]]
    loads = {"ours": (own, ours), "ours, JSON": (own, json_load), READS: (None, reads), FEAST: (feast_served(bench), theirs)}
    return _compared("online_1000x50_arrow", what, loads, repetitions, paced=False)


def _arrow(users: np.ndarray) -> bytes:
    table, sink = pa.table({"user_id": users}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def online_2_workers(bench: Bench, repetitions: int) -> Rows:
    """Compare two workers with one; the load generator takes its share of the two cores."""
    ours, _ = _loads(bench, "workers", "model_50", 100)
    with _service(bench, "--workers", "2") as two:
        what = f"HTTP lookups of 100 x 50 features, 2 workers, {CONNECTIONS} connections"
        loads = {"ours": (two, ours), "ours, 1 worker": (_one_worker(bench), ours)}
        return _compared("online_2_workers", what, loads, repetitions, paced=False)


def serving_log(bench: Bench, repetitions: int) -> Rows:
    """Compare lookups of which a tenth is logged with those of which none is."""
    ours = replace(_loads(bench, "logged", "model", 1)[0], seconds=2 * bench.sizes.seconds)
    # Twelve times as often as by default, so that each run holds its share of writing.
    settings = {"FEATURESTORE_SERVING_LOG__SAMPLE": "0.1", "FEATURESTORE_SERVING_LOG__FLUSH_SECONDS": str(ours.seconds - 1)}
    with _service(bench, **settings) as logging, _service(bench) as plain:
        what = "HTTP lookups of 1 x 10 features, a tenth of them in the serving log"
        loads = {"ours": (logging, ours), "ours, without the log": (plain, ours)}
        return _compared("serving_log", what, loads, repetitions, paced=False)


def push_to_read(bench: Bench, _: int) -> Rows:
    """Compare the time from a push to the first lookup that sees it, through both Python APIs."""
    from benchmarks.feast import feast

    folder, count = bench.folder / "pushed", 50
    folder.mkdir(exist_ok=True)
    online = bench.store.online.topology.layout().endpoints[0].path
    (folder / "featurestore.toml").write_text(f'project = "pushed"\nonline.url = "unix://{online}"\n', "utf-8")
    (folder / "definitions.py").write_text(PUSHED, "utf-8")
    random = np.random.default_rng(8)
    rows = [{"user_id": user, **{f"f{place}": random.random() for place in range(10)}} for user in range(count)]
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize()
        taken = []
        for row in rows:
            began = time.perf_counter()
            store.push("clicks", [{**row, "at": dt.datetime.now(dt.UTC)}])
            while store.get_online_features({"user_id": [row["user_id"]]}, "model").to_dict()["live__f0"] != [row["f0"]]:
                pass
            taken.append(time.perf_counter() - began)
    theirs = feast(bench).cost("push", rows=rows).seconds / count
    mine = float(np.mean(taken))
    what = f"from a push of one row to the lookup that sees it, mean of {count}"
    return [row_of("push_to_read", what, "ms", FEAST, [(mine * 1e3, theirs * 1e3)])]


PUSHED = """
from featurestore import Entity, FeatureService, FeatureView, Field, PushSource
from featurestore.types import Float64, Int64

user = Entity("user", join_keys={"user_id": Int64})
columns = {"user_id": Int64, **{f"f{place}": Float64 for place in range(10)}}
clicks = PushSource("clicks", fields=columns, event_time="at")
live = FeatureView("live", entities=[user], source=clicks, fields={f"f{place}": Float64 for place in range(10)})
model = FeatureService("model", features=[live])
"""

SERVING_ROWS: dict[str, Callable[..., Rows]] = {
    "online_1x10": online_1x10,
    "online_100x10": online_100x10,
    "online_1x50": online_1x50,
    "online_100x50": online_100x50,
    "online_1000x50_arrow": online_1000x50_arrow,
    "online_2_workers": online_2_workers,
    "serving_log": serving_log,
    "push_to_read": push_to_read,
}
