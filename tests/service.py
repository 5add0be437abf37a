"""The HTTP service's repo, a client of it in this process, and requests and answers in each of the three types."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW, JSON, PROBLEM, PROBLEMS
from featurestore_server.values import to_json
from tests.conftest import HOUR, NOON, TIME, Repo, at

BIG = 2**53 + 1
DAY = 24 * HOUR
ONLINE, HISTORICAL = "/v1/online-features", "/v1/historical-features"

DEFINITIONS = """
user = Entity("user", join_keys={"user_id": Int64}, tags={"team": "growth"})
readings = FileSource("readings", path="readings.parquet", event_time="at")
every_type = FeatureView(
    "every_type", entities=[user], source=readings, ttl="1d",
    fields=[
        Field("flag", Bool), Field("small", Int32), Field("large", Int64), Field("single", Float32), Field("double", Float64),
        Field("text", String), Field("blob", Bytes), Field("day", Date), Field("moment", Timestamp),
        Field("vector", Array(Float64)), Field("words", Array(String)),
    ],
)
thing = Entity(
    "thing", join_keys={"name": String, "blob": Bytes, "day": Date, "moment": Timestamp, "number": Int32, "flag": Bool}
)
notes = FileSource("notes", path="notes.parquet")
thing_notes = FeatureView("thing_notes", entities=[thing], source=notes, fields=[Field("note", String)])
friend = every_type.alias("friend", join_keys={"user_id": "friend_id"})
offline_only = FeatureView("offline_only", entities=[user], source=readings, fields=[Field("small", Int32)], online=False)

everything = FeatureService("everything", features=[every_type])
pair = FeatureService("pair", features=[every_type[["large", "double"]], friend[["large"]]])
"""

MOMENT = dt.datetime(2013, 5, 1, 10, 30, 0, 123456, dt.UTC)

# Users: BIG has values that JSON could lose, BIG - 1 is the same double as BIG, -5 is two days old, 7 has nothing but nulls.
READINGS: dict[str, Any] = {
    "user_id": [BIG, BIG - 1, -5, 7],
    "at": pa.array([at(NOON - HOUR), at(NOON - 2 * HOUR), at(NOON - 2 * DAY), at(NOON - HOUR)], TIME),
    "flag": [True, False, True, None],
    "small": pa.array([-(2**31), 2**31 - 1, 0, None], pa.int32()),
    "large": pa.array([-(2**63), 2**63 - 1, BIG, None], pa.int64()),
    "single": pa.array([0.1, math.nan, 1.0, None], pa.float32()),
    "double": [math.inf, -math.inf, 0.1, None],
    "text": ["NaN", 'ä"\\\n\x01', "", None],
    "blob": pa.array([b"\x00\xff", b"", b"x", None], pa.binary()),
    "day": pa.array([dt.date(2013, 6, 1), dt.date(1, 1, 1), dt.date(9999, 12, 31), None], pa.date32()),
    "moment": pa.array([MOMENT, dt.datetime(1969, 12, 31, 23, 59, 59, tzinfo=dt.UTC), MOMENT, None], TIME),
    "vector": pa.array([[1.5, math.nan, None], [], [2.0], None], pa.list_(pa.float64())),
    "words": pa.array([["a", None, ""], [], ["b"], None], pa.list_(pa.string())),
}
ROWS_IN_JSON: dict[str, list[Any]] = {
    "flag": [True, False, None, None],
    "small": [-(2**31), 2**31 - 1, None, None],
    "large": [-(2**63), 2**63 - 1, None, None],
    "single": [0.10000000149011612, "NaN", None, None],
    "double": ["Infinity", "-Infinity", None, None],
    "text": ["NaN", 'ä"\\\n\x01', None, None],
    "blob": ["AP8=", "", None, None],
    "day": ["2013-06-01", "0001-01-01", None, None],
    "moment": ["2013-05-01T10:30:00.123456Z", "1969-12-31T23:59:59Z", None, None],
    "vector": [[1.5, "NaN", None], [], None, None],
    "words": [["a", None, ""], [], None, None],
}
THING = {"name": "ä", "blob": b"\x00a", "day": dt.date(2013, 6, 1), "moment": MOMENT, "number": -3, "flag": False}
THING_IN_JSON = {
    "name": "ä",
    "blob": "AGE=",
    "day": "2013-06-01",
    "moment": "2013-05-01T12:30:00.123456+02:00",
    "number": -3,
    "flag": False,
}

USERS = {"user_id": [1]}

SPINE = pa.table(
    {
        "label": pa.array([1.5, None, math.nan, math.inf, 0.0]),
        "user_id": pa.array([BIG, BIG - 1, BIG, None, -5], pa.int64()),
        "event_timestamp": pa.array([at(NOON), at(NOON), at(NOON - 3 * HOUR), at(NOON), at(NOON - DAY + 1)], TIME),
        "order": pa.array(["b", "a", "a", None, "c"]),
    }
)


def write_repo(folder: Path, online: str = "embedded") -> Repo:
    """Write the repo that the service serves."""
    folder.mkdir()
    (folder / "featurestore.toml").write_text(f'project = "shop"\nnow = "2013-06-01T12:00:00Z"\nonline.url = "{online}"\n')
    repo = Repo(folder)
    repo.define(DEFINITIONS)
    repo.write("readings.parquet", READINGS)
    types = {"name": pa.string(), "blob": pa.binary(), "day": pa.date32(), "moment": TIME, "number": pa.int32(), "flag": pa.bool_()}
    repo.write("notes.parquet", {name: pa.array([THING[name]], type_) for name, type_ in types.items()} | {"note": ["found"]})
    return repo


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A materialized store; its online server ends with the session."""
    repo = write_repo(tmp_path_factory.mktemp("server") / "repo")
    with FeatureStore(repo.folder) as store:
        try:
            store.apply()
            store.materialize()
            yield store
        finally:
            store.stop()


@pytest.fixture(scope="session")
def client(store: FeatureStore) -> Iterator[TestClient]:
    """A client of the application in this process."""
    with TestClient(create_app(store)) as client:
        yield client


@contextmanager
def serving(repo: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the service on a free port, which ends within a second; gives the process and the line that it printed."""
    command = [sys.executable, "-P", "-m", "featurestore_server", "--repo", str(repo), "--port", "0", *options]
    environment = {"FEATURESTORE_SERVER__GRACE_SECONDS": "1", **os.environ}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate(timeout=20)


@pytest.fixture(scope="session")
def remote(store: FeatureStore) -> Iterator[str]:
    """The URL of a server process over the same store."""
    with serving(store.settings.root, "--json") as (_, line):
        yield json.loads(line)["url"]


@contextmanager
def ended(store: FeatureStore) -> Iterator[FeatureStore]:
    """Close a store, and end the server that it may have started."""
    try:
        with store:
            yield store
    finally:
        store.stop()


def request_of(spine: pa.Table, type_: str, **parameters: Any) -> dict[str, Any]:
    """Return the arguments of a request that sends a spine as one of the three types."""
    if type_ == JSON:
        return {"json": {"entities": {name: to_json(spine[name]) for name in spine.column_names}, **parameters}}
    content = as_stream(spine) if type_ == ARROW else as_parquet(spine)
    return {"content": content, "params": parameters, "headers": {"Content-Type": type_}}


def as_stream(table: pa.Table) -> bytes:
    """Return a table as an Arrow stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def as_parquet(table: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def of_bytes(content: bytes, type_: str) -> pa.Table:
    """Return the table in an answer."""
    return pa.ipc.open_stream(content).read_all() if type_ == ARROW else pq.read_table(io.BytesIO(content))


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """Return a problem, which has the status and code, and whatever a problem must have."""
    assert response.headers["content-type"] == PROBLEM
    found: dict[str, Any] = response.json()
    assert (response.status_code, found["status"], found["type"]) == (status, status, f"/problems/{code}"), found
    assert found["title"] == PROBLEMS[code].title
    assert found["detail"]
    return found
