"""The HTTP service: its answers are the Python API's, and whatever goes wrong is a problem that says what and where."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from featurestore import FeatureStore, errors
from featurestore.errors import FeatureStoreError, InputError
from featurestore.types import Int64, Timestamp
from featurestore_server import contract
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW, JSON, PARQUET, PROBLEM, PROBLEMS
from featurestore_server.negotiation import accepted_type
from featurestore_server.problems import ProblemError, handle_errors
from featurestore_server.tables import encoded
from featurestore_server.values import from_json, has_json_form, to_json, untyped_from_json
from tests.conftest import HOUR, NOON, TIME, Repo, at

# The library drops the temporary folder of a streamed spine with the training set, which Python calls implicit.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")

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


def write_repo(folder: Path, online: str = "embedded") -> Repo:
    """Write the repo of this file."""
    folder.mkdir()
    (folder / "featurestore.toml").write_text(f'project = "shop"\nnow = "2013-06-01T12:00:00Z"\nonline.url = "{online}"\n')
    repo = Repo(folder)
    repo.define(DEFINITIONS)
    repo.write("readings.parquet", READINGS)
    types = {"name": pa.string(), "blob": pa.binary(), "day": pa.date32(), "moment": TIME, "number": pa.int32(), "flag": pa.bool_()}
    repo.write("notes.parquet", {name: pa.array([THING[name]], type_) for name, type_ in types.items()} | {"note": ["found"]})
    return repo


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A materialized store; its online server ends with the module."""
    repo = write_repo(tmp_path_factory.mktemp("server") / "repo")
    with FeatureStore(repo.folder) as store:
        try:
            store.apply()
            store.materialize()
            yield store
        finally:
            store.stop()


@pytest.fixture(scope="module")
def client(store: FeatureStore) -> Iterator[TestClient]:
    """A client of the application in this process."""
    with TestClient(create_app(store)) as client:
        yield client


def look_up(client: TestClient, entities: Any, **members: Any) -> Any:
    """Return the JSON of an online answer."""
    response = client.post(ONLINE, json={"entities": entities, **members})
    assert response.status_code == 200, response.text
    return response.json()


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


# Online values


def test_every_type_in_json(client: TestClient) -> None:
    """Each type has its JSON form; integers are exact, NaN and infinities are texts, and null is only what is absent."""
    answer = look_up(client, {"user_id": [BIG, BIG - 1, -5, 7]}, feature_service="everything")

    assert answer == {"features": {f"every_type__{name}": values for name, values in ROWS_IN_JSON.items()}}


def test_json_is_the_python_api_s_answer(store: FeatureStore, client: TestClient) -> None:
    """What `get_online_features` returns is what HTTP returns, in the contract's forms of the declared types."""
    users = [7, BIG, 12345, BIG, None]
    vectors = store.get_online_features({"user_id": users}, "everything")
    expected = {name: to_json(vectors.columns[name]) for name in vectors.features}

    assert look_up(client, {"user_id": users}, feature_service="everything")["features"] == expected


def test_features_come_in_the_service_s_order(client: TestClient) -> None:
    """Features are those asked for, in that order, by service or by list."""
    wanted = ["every_type:large", "friend:double", "every_type:flag"]
    answer = look_up(client, {"user_id": [BIG], "friend_id": [BIG - 1]}, features=wanted)

    assert list(answer["features"].items()) == [
        ("every_type__large", [-(2**63)]),
        ("friend__double", ["-Infinity"]),
        ("every_type__flag", [True]),
    ]


def test_metadata_says_what_became_of_each_row(client: TestClient) -> None:
    """Per view: PRESENT, NOT_FOUND or OUTSIDE_MAX_AGE, and the event time, which an expired row has too."""
    answer = look_up(client, {"user_id": [BIG, -5, 12345, None], "friend_id": [7, 7, 7, -5]}, feature_service="pair", metadata=True)

    assert answer["metadata"] == {
        "every_type": {
            "status": ["PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND", "NOT_FOUND"],
            "event_time": ["2013-06-01T11:00:00Z", "2013-05-30T12:00:00Z", None, None],
        },
        "friend": {
            "status": ["PRESENT", "PRESENT", "PRESENT", "OUTSIDE_MAX_AGE"],
            "event_time": [*["2013-06-01T11:00:00Z"] * 3, "2013-05-30T12:00:00Z"],
        },
    }
    assert answer["features"]["every_type__large"] == [-(2**63), None, None, None]


def test_keys_of_every_type(client: TestClient) -> None:
    """JSON keys are read by their declared types: base64, dates, timestamps of any offset, and so on."""
    near_miss = {"name": "a", "blob": "AGI=", "day": "2013-06-02", "moment": "2013-05-01T10:30:00Z", "number": 3, "flag": True}
    misses = [THING_IN_JSON | {name: value} for name, value in near_miss.items()]
    rows = [THING_IN_JSON, *misses]
    answer = look_up(client, {name: [row[name] for row in rows] for name in THING_IN_JSON}, features=["thing_notes:note"])

    assert answer["features"]["thing_notes__note"] == ["found", *[None] * len(misses)]


def test_arrow_keys_of_every_type(client: TestClient) -> None:
    """Arrow keys may have any type that holds only values of the declared one."""
    columns = {name: [value, None] for name, value in THING.items()}
    wider = {"name": pa.large_string(), "blob": pa.large_binary(), "moment": pa.timestamp("ns", "Asia/Tokyo"), "number": pa.int8()}
    for types in ({}, wider):
        table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
        response = client.post(
            ONLINE,
            content=as_stream(table),
            params={"features": "thing_notes:note"},
            headers={"Content-Type": ARROW, "Accept": JSON},
        )
        assert response.json() == {"features": {"thing_notes__note": ["found", None]}}


def test_no_entities_no_rows(client: TestClient) -> None:
    """Empty columns are answered by empty columns."""
    answer = look_up(client, {"user_id": []}, features=["every_type:large"], metadata=True)

    assert answer["features"] == {"every_type__large": []}
    assert answer["metadata"]["every_type"] == {"status": [], "event_time": []}


def test_nothing_in_an_answer_needs_more_than_its_own_bytes(client: TestClient) -> None:
    """Integers beyond 2**53 stand in the body with all their digits."""
    response = client.post(ONLINE, json={"features": ["every_type:large"], "entities": {"user_id": [BIG - 1]}})

    assert response.headers["content-type"] == JSON
    assert response.content == b'{"features":{"every_type__large":[9223372036854775807]}}'


@pytest.mark.parametrize(("sent", "wanted"), [(JSON, ARROW), (ARROW, JSON), (ARROW, ARROW)])
def test_online_arrow_in_each_direction(store: FeatureStore, client: TestClient, sent: str, wanted: str) -> None:
    """Arrow answers hold the columns of the Python API in their declared types; requests and answers mix freely."""
    users = [BIG, -5, None, BIG - 1]
    vectors = store.get_online_features({"user_id": users}, "everything")
    if sent == JSON:
        request: dict[str, Any] = {"json": {"feature_service": "everything", "entities": {"user_id": users}}}
    else:
        table = pa.table({"user_id": pa.array(users, pa.int64())})
        request = {"content": as_stream(table), "params": {"feature_service": "everything"}, "headers": {"Content-Type": ARROW}}
    request["headers"] = request.get("headers", {}) | {"Accept": wanted}
    response = client.post(ONLINE, **request)

    assert (response.status_code, response.headers["content-type"]) == (200, wanted)
    expected = vectors.columns.select(vectors.features)
    if wanted == JSON:
        assert response.json()["features"] == {name: to_json(expected[name]) for name in vectors.features}
    else:
        answer = of_bytes(response.content, ARROW)
        assert answer.schema == expected.schema
        assert repr(answer.to_pydict()) == repr(expected.to_pydict())


def test_arrow_metadata_is_in_columns_of_its_own(client: TestClient) -> None:
    """With metadata each view adds a status and an event time, under names that no feature can have."""
    table = pa.table({"user_id": [BIG, -5], "friend_id": pa.array([1, 1], pa.int16())})
    query = [("features", "every_type:large"), ("features", "friend:large"), ("metadata", "true")]
    response = client.post(ONLINE, content=as_stream(table), params=query, headers={"Content-Type": ARROW})

    answer = of_bytes(response.content, ARROW)
    assert answer.column_names == [
        "every_type__large", "friend__large",
        "__every_type__status", "__every_type__event_time", "__friend__status", "__friend__event_time",
    ]  # fmt: skip
    assert answer["__every_type__status"].to_pylist() == ["PRESENT", "OUTSIDE_MAX_AGE"]
    assert answer["__every_type__event_time"].to_pylist() == [at(NOON - HOUR), at(NOON - 2 * DAY)]
    assert answer["__friend__event_time"].type == TIME


# Training sets

SPINE = pa.table(
    {
        "label": pa.array([1.5, None, math.nan, math.inf, 0.0]),
        "user_id": pa.array([BIG, BIG - 1, BIG, None, -5], pa.int64()),
        "event_timestamp": pa.array([at(NOON), at(NOON), at(NOON - 3 * HOUR), at(NOON), at(NOON - DAY + 1)], TIME),
        "order": pa.array(["b", "a", "a", None, "c"]),
    }
)


def request_of(spine: pa.Table, type_: str, **parameters: Any) -> dict[str, Any]:
    """Return the arguments of a request that sends a spine as one of the three types."""
    if type_ == JSON:
        return {"json": {"entities": {name: to_json(spine[name]) for name in spine.column_names}, **parameters}}
    content = as_stream(spine) if type_ == ARROW else as_parquet(spine)
    return {"content": content, "params": parameters, "headers": {"Content-Type": type_}}


@pytest.mark.parametrize("wanted", [JSON, ARROW, PARQUET])
@pytest.mark.parametrize("sent", [JSON, ARROW, PARQUET])
def test_training_sets_in_each_direction(store: FeatureStore, client: TestClient, sent: str, wanted: str) -> None:
    """Whatever the types of request and answer, the rows are the Python API's: the spine's, in order, with its features."""
    expected = store.get_historical_features(SPINE, "everything").to_arrow()
    request = request_of(SPINE, sent, feature_service="everything")
    request["headers"] = request.get("headers", {}) | {"Accept": wanted}
    response = client.post(HISTORICAL, **request)

    assert (response.status_code, response.headers["content-type"]) == (200, wanted), response.text
    if wanted == JSON:
        columns = {name: to_json(expected[name]) for name in expected.column_names}
        spine = {name: columns.pop(name) for name in SPINE.column_names}
        assert response.json() == {"entities": spine, "features": columns}
    else:
        answer = of_bytes(response.content, wanted)
        assert answer.schema.remove_metadata() == expected.schema
        assert repr(answer.to_pydict()) == repr(expected.to_pydict())


def test_training_values(client: TestClient) -> None:
    """A row sees what was visible at its time: the value at noon, none before it, none beyond the TTL, none for a null key."""
    response = client.post(HISTORICAL, **request_of(SPINE, JSON, features=["every_type:large"]))

    assert response.json() == {
        "entities": {
            "label": [1.5, None, "NaN", "Infinity", 0.0],
            "user_id": [BIG, BIG - 1, BIG, None, -5],
            "event_timestamp": [
                "2013-06-01T12:00:00Z", "2013-06-01T12:00:00Z", "2013-06-01T09:00:00Z", "2013-06-01T12:00:00Z",
                "2013-05-31T12:00:00.000001Z",
            ],
            "order": ["b", "a", "a", None, "c"],
        },
        "features": {"every_type__large": [-(2**63), 2**63 - 1, None, None, None]},
    }  # fmt: skip


@pytest.mark.parametrize("accept", [None, "*/*", "image/png, */*;q=0.1"])
@pytest.mark.parametrize("sent", [JSON, ARROW, PARQUET])
def test_the_answer_has_the_request_s_type_if_nothing_is_asked_for(client: TestClient, sent: str, accept: str | None) -> None:
    """Without a preference what was sent comes back."""
    request = request_of(SPINE, sent, feature_service="everything")
    request["headers"] = request.get("headers", {}) | {"Accept": accept or ""}

    assert client.post(HISTORICAL, **request).headers["content-type"] == sent


def test_any_column_of_a_spine_comes_back(client: TestClient) -> None:
    """Arrow and Parquet answers leave columns of any type untouched; JSON has a form for most of them."""
    kept = {
        "nanos": pa.array([1, 10**9], pa.timestamp("ns")),
        "price": pa.array(["1.50", None]).cast(pa.decimal128(5, 2)),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "pair": pa.array([{"x": 1, "y": [b"a"]}, None]),
        "clock": pa.array([1, None], pa.time64("us")),
        "plain": pa.array([2**64 - 1, 0], pa.uint64()),
    }
    spine = pa.table({"user_id": [BIG, 7], "at": pa.array([at(NOON)] * 2, TIME), **kept})
    request = request_of(spine, ARROW, features="every_type:flag", timestamp_column="at")

    answer = of_bytes(client.post(HISTORICAL, **request).content, ARROW)
    assert answer.select(spine.column_names) == spine
    request["headers"]["Accept"] = JSON
    assert client.post(HISTORICAL, **request).json()["entities"] == {
        "user_id": [BIG, 7],
        "at": ["2013-06-01T12:00:00Z"] * 2,
        "nanos": ["1970-01-01T00:00:00.000000001Z", "1970-01-01T00:00:01Z"],
        "price": ["1.50", None],
        "kind": ["a", "b"],
        "pair": [{"x": 1, "y": ["YQ=="]}, None],
        "clock": ["00:00:00.000001", None],
        "plain": [2**64 - 1, 0],
    }


def test_a_column_without_a_json_form_is_named(client: TestClient) -> None:
    """A duration has no JSON form: the problem names the column before anything is computed."""
    spine = SPINE.append_column("took", pa.array([1] * 5, pa.duration("s")))
    request = request_of(spine, ARROW, features="every_type:flag")
    request["headers"]["Accept"] = JSON

    assert problem(client.post(HISTORICAL, **request), 422, "input")["name"] == "took"


def test_a_column_without_a_parquet_form_is_refused(client: TestClient) -> None:
    """A type that Parquet cannot hold is a problem with its status, not a broken file."""
    spine = SPINE.append_column("odd", pa.array([None] * 5, pa.month_day_nano_interval()))
    request = request_of(spine, ARROW, features="every_type:flag")
    request["headers"]["Accept"] = PARQUET

    assert problem(client.post(HISTORICAL, **request), 422, "input")["name"] == "odd"


def test_a_value_without_a_parquet_form_is_refused(client: TestClient) -> None:
    """So is a value: Parquet has no seconds, and in milliseconds this one is too large."""
    spine = SPINE.append_column("far", pa.array([2**60] * 5, pa.timestamp("s")))
    request = request_of(spine, ARROW, features="every_type:flag")
    request["headers"]["Accept"] = PARQUET

    problem(client.post(HISTORICAL, **request), 422, "input")


def test_a_spine_of_many_batches(store: FeatureStore, client: TestClient) -> None:
    """A spine that comes in many batches is answered in full and in order; its small batches become few row groups."""
    count = 5_000
    spine = pa.table(
        {"user_id": [BIG, 7] * (count // 2), "event_timestamp": pa.array([at(NOON)] * count, TIME), "row": range(count)}
    )
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, spine.schema) as writer:
        writer.write_table(spine, max_chunksize=100)
    expected = store.get_historical_features(spine, ["every_type:large"]).to_arrow()
    for type_ in (ARROW, PARQUET, JSON):
        response = client.post(
            HISTORICAL,
            content=sink.getvalue(),
            params={"features": "every_type:large"},
            headers={"Content-Type": ARROW, "Accept": type_},
        )
        if type_ == JSON:
            assert response.json()["features"]["every_type__large"] == expected["every_type__large"].to_pylist()
            assert response.json()["entities"]["row"] == list(range(count))
        else:
            assert of_bytes(response.content, type_).equals(expected)
        if type_ == PARQUET:
            assert pq.ParquetFile(io.BytesIO(response.content)).num_row_groups == 1


@pytest.mark.parametrize("type_", [JSON, ARROW, PARQUET])
def test_a_spine_without_rows(client: TestClient, type_: str) -> None:
    """No rows are answered by no rows, with all columns."""
    response = client.post(HISTORICAL, **request_of(SPINE.slice(0, 0), type_, feature_service="everything"))

    assert response.status_code == 200
    if type_ == JSON:
        assert response.json()["features"] == {f"every_type__{name}": [] for name in ROWS_IN_JSON}
    else:
        assert of_bytes(response.content, type_).num_rows == 0
        assert of_bytes(response.content, type_).num_columns == SPINE.num_columns + len(ROWS_IN_JSON)


def test_incomplete_rows(client: TestClient) -> None:
    """Rows beyond the watermark are a 409 that names view and watermark; `incomplete` opts in to stale values or nulls."""
    spine = pa.table({"user_id": [BIG], "event_timestamp": pa.array([at(NOON + 1)], TIME)})
    answers = {
        incomplete: client.post(HISTORICAL, **request_of(spine, JSON, features=["every_type:large"], incomplete=incomplete))
        for incomplete in ("error", "stale", "null")
    }

    detail = problem(answers["error"], 409, "incomplete")["detail"]
    assert "'every_type'" in detail
    assert "2013-06-01T12:00:00Z" in detail
    assert answers["stale"].json()["features"] == {"every_type__large": [-(2**63)]}
    assert answers["null"].json()["features"] == {"every_type__large": [None]}


@pytest.mark.parametrize("text", ["SELECT 1", "notes.parquet", "/etc/passwd"])
def test_a_spine_is_never_sql_or_a_path(store: FeatureStore, client: TestClient, text: str) -> None:
    """No text of a request reaches the library as a spine, whatever type it claims to have."""
    path = str(store.settings.root / text) if text.endswith(".parquet") else text
    query = {"features": "every_type:large"}
    for type_ in (ARROW, PARQUET):
        response = client.post(HISTORICAL, content=path.encode(), params=query, headers={"Content-Type": type_})
        problem(response, 400, "malformed")
    problem(client.post(HISTORICAL, json={"features": ["every_type:large"], "entities": path}), 422, "input")
    problem(client.post(HISTORICAL, json=path), 422, "input")


# What is refused

USERS = {"user_id": [1]}
JSON_FAULTS: list[tuple[str, Any, int, str, str | None, str | None]] = [
    ("unknown service", {"feature_service": "evrything", "entities": USERS}, 404, "not-found", "evrything", "everything"),
    ("unknown view", {"features": ["every_typ:flag"], "entities": USERS}, 404, "not-found", "every_typ", "every_type"),
    ("unknown feature", {"features": ["every_type:larg"], "entities": USERS}, 404, "not-found", "larg", "large"),
    ("unknown key", {"features": ["every_type:large"], "entities": {"usr_id": [1]}}, 422, "input", "usr_id", "user_id"),
    ("missing key", {"features": ["friend:large"], "entities": {}}, 422, "input", "friend_id", ""),
    ("one key too many", {"features": ["every_type:large"], "entities": USERS | {"x": [1]}}, 422, "input", "x", ""),
    (
        "lengths differ",
        {"feature_service": "pair", "entities": {"user_id": [1], "friend_id": [1, 2]}},
        422, "input", "friend_id", None,
    ),
    ("text for Int64", {"features": ["every_type:large"], "entities": {"user_id": ["1"]}}, 422, "input", "user_id", None),
    ("1.0 for Int64", {"features": ["every_type:large"], "entities": {"user_id": [1.0]}}, 422, "input", "user_id", None),
    ("true for Int64", {"features": ["every_type:large"], "entities": {"user_id": [True]}}, 422, "input", "user_id", None),
    ("beyond Int64", {"features": ["every_type:large"], "entities": {"user_id": [2**63]}}, 422, "input", "user_id", None),
    ("beyond any integer", {"features": ["every_type:large"], "entities": {"user_id": [2**64]}}, 422, "input", "user_id", None),
    ("array for Int64", {"features": ["every_type:large"], "entities": {"user_id": [[1]]}}, 422, "input", "user_id", None),
    ("object for Int64", {"features": ["every_type:large"], "entities": {"user_id": [{}]}}, 422, "input", "user_id", None),
    ("number for a column", {"features": ["every_type:large"], "entities": {"user_id": 1}}, 422, "input", "entities.user_id", None),
    ("array for entities", {"features": ["every_type:large"], "entities": [1]}, 422, "input", "entities", None),
    ("no entities", {"features": ["every_type:large"]}, 422, "input", "entities", None),
    ("service and features", {"feature_service": "pair", "features": ["a:b"], "entities": USERS}, 422, "input", None, None),
    ("neither", {"entities": USERS}, 422, "input", None, None),
    ("no features", {"features": [], "entities": USERS}, 422, "input", None, None),
    ("no view:feature", {"features": ["large"], "entities": USERS}, 422, "input", "large", None),
    ("number for a feature", {"features": [1], "entities": USERS}, 422, "input", "features.0", None),
    ("feature twice", {"features": ["every_type:flag"] * 2, "entities": USERS}, 422, "input", "every_type:flag", None),
    (
        "unknown member",
        {"feature_service": "pair", "entites": USERS},
        422, "input", "entites", "entities",
    ),
    ("text for metadata", {"feature_service": "pair", "entities": USERS, "metadata": "true"}, 422, "input", "metadata", None),
    ("not served online", {"features": ["offline_only:small"], "entities": USERS}, 422, "input", "offline_only", None),
    ("no object", [1], 422, "input", None, None),
    ("null", None, 422, "input", None, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "code", "name", "nearest"), [pytest.param(*each[1:], id=each[0]) for each in JSON_FAULTS]
)
def test_what_is_wrong_with_an_online_request(
    client: TestClient, body: Any, status: int, code: str, name: str | None, nearest: str | None
) -> None:
    """A faulty request is a problem with a stable type, the offending name and the known names nearest to it."""
    found = problem(client.post(ONLINE, content=json.dumps(body), headers={"Content-Type": JSON}), status, code)

    assert found.get("name") == name
    if nearest is not None:
        assert [*found["nearest"], ""][0] == nearest


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("name", [5]),
        ("name", [None, b"x".hex(), 5.0]),
        ("blob", ["not base64"]),
        ("blob", ["YQ"]),
        ("blob", ["ä"]),
        ("day", ["2013-02-30"]),
        ("day", [15000]),
        ("moment", ["yesterday"]),
        ("moment", [1370088000]),
        ("moment", ["9999-12-31T23:59:59-14:00"]),
        ("moment", ["0001-01-01T00:00:00+14:00"]),
        ("number", [2**31]),
        ("flag", [0]),
        ("flag", ["true"]),
    ],
)
def test_a_value_of_a_wrong_type_names_its_key(client: TestClient, name: str, values: list[Any]) -> None:
    """A value that its key's type does not have is refused, never converted; the problem names the key."""
    entities = {each: [value] * len(values) for each, value in THING_IN_JSON.items()} | {name: values}
    response = client.post(ONLINE, json={"features": ["thing_notes:note"], "entities": entities})

    assert problem(response, 422, "input")["name"] == name


@pytest.mark.parametrize(
    ("body", "status", "code", "name"),
    [
        pytest.param({"features": ["nothing:x"], "entities": {}}, 404, "not-found", "nothing", id="unknown view"),
        pytest.param({"entities": {}}, 422, "input", None, id="nothing asked for"),
        pytest.param({"entities": {"event_timestamp": []}}, 422, "spine", "user_id", id="no key column"),
        pytest.param({"entities": {"user_id": []}}, 422, "spine", "event_timestamp", id="no timestamp column"),
        pytest.param({"entities": {"user_id": [1], "event_timestamp": [None]}}, 422, "spine", "event_timestamp", id="null time"),
        pytest.param({"entities": {"user_id": [1], "event_timestamp": [1]}}, 422, "input", "event_timestamp", id="time as number"),
        pytest.param({"entities": {"user_id": ["a"], "event_timestamp": []}}, 422, "input", "event_timestamp", id="lengths differ"),
        pytest.param({"entities": {"user_id": [1.5], "event_timestamp": ["2013-01-01"]}}, 422, "input", "user_id", id="wrong key"),
        pytest.param(
            {"entities": {"user_id": [], "event_timestamp": [], "x": [], "every_type__large": []}},
            422, "spine", "every_type__large", id="a feature's name",
        ),
        pytest.param({"entities": {"user_id": []}, "timestamp_column": "at"}, 422, "spine", "at", id="no such timestamp column"),
        pytest.param({"entities": {"user_id": []}, "incomplete": "ignore"}, 422, "input", "incomplete", id="incomplete"),
        pytest.param(
            {"entities": {"user_id": [1], "event_timestamp": ["2013-01-01"], "x": [{}]}}, 422, "input", "x", id="objects"
        ),
        pytest.param(
            {"entities": {"user_id": [1, 1], "event_timestamp": ["2013-01-01"] * 2, "x": [1, "a"]}}, 422, "input", "x", id="mixed"
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_spine(client: TestClient, body: dict[str, Any], status: int, code: str, name: str | None) -> None:
    """A faulty spine is a problem that names the column."""
    asks = "nothing" not in str(body) and body != {"entities": {}}
    response = client.post(HISTORICAL, json=({"features": ["every_type:large"]} if asks else {}) | body)

    assert problem(response, status, code).get("name") == name


@pytest.mark.parametrize("route", [ONLINE, HISTORICAL])
@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        pytest.param(b"", {"Content-Type": JSON}, 400, "malformed", id="empty"),
        pytest.param(b"{", {"Content-Type": JSON}, 400, "malformed", id="cut"),
        pytest.param(b'{"a": NaN}', {"Content-Type": JSON}, 400, "malformed", id="NaN"),
        pytest.param(b'{"a": 1e999}', {"Content-Type": JSON}, 400, "malformed", id="infinite"),
        pytest.param(b'"\\ud800"', {"Content-Type": JSON}, 400, "malformed", id="half a character"),
        pytest.param(b'"\xff"', {"Content-Type": JSON}, 400, "malformed", id="not UTF-8"),
        pytest.param(b"[" * 100_000, {"Content-Type": JSON}, 400, "malformed", id="deep"),
        pytest.param(b"{}", {}, 415, "unsupported-media-type", id="no type"),
        pytest.param(b"{}", {"Content-Type": "text/plain"}, 415, "unsupported-media-type", id="text"),
        pytest.param(b"{}", {"Content-Type": f"{JSON}; charset=latin-1"}, 415, "unsupported-media-type", id="latin-1"),
        pytest.param(b"{}", {"Content-Type": JSON, "Content-Encoding": "gzip"}, 415, "unsupported-media-type", id="gzip"),
        pytest.param(b"{}", {"Content-Type": JSON, "Accept": "text/csv"}, 406, "not-acceptable", id="accept csv"),
        pytest.param(b"{}", {"Content-Type": JSON, "Accept": "*/*;q=0"}, 406, "not-acceptable", id="accept nothing"),
        pytest.param(b"", {"Content-Type": ARROW}, 400, "malformed", id="no Arrow"),
        pytest.param(b"ARROW1\0\0" * 9, {"Content-Type": ARROW}, 400, "malformed", id="bad Arrow"),
        pytest.param(as_stream(SPINE)[:-300], {"Content-Type": ARROW}, 400, "malformed", id="cut Arrow"),
    ],
)
def test_what_is_wrong_with_a_body(
    client: TestClient, route: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    """A body that is not what it claims, or is of a type that is not understood, is a problem; 415 says what would be."""
    query = {"features": "every_type:large"} if headers.get("Content-Type") == ARROW else {}
    response = client.post(route, content=content, headers=headers, params=query)

    problem(response, status, code)
    if status == 415:
        assert response.headers["accept-post"].startswith(f"{JSON}, {ARROW}")


def test_crafted_arrow_is_refused(client: TestClient) -> None:
    """Offsets that point outside their buffer and texts that are no UTF-8 are found before anything follows them."""
    table = pa.table({"user_id": [1], "event_timestamp": pa.array([at(NOON)], TIME), "x": ["a" * 1234]})
    request = request_of(table, ARROW, features="every_type:large")
    offsets, text = struct.pack("<ii", 0, 1234), b"aaaa"
    for part, crafted in (
        (offsets, struct.pack("<ii", 0, 10**6)),
        (offsets, struct.pack("<ii", -(10**6), 1234)),
        (text, b"\xff" * 4),
    ):
        assert part in request["content"]
        content = request["content"].replace(part, crafted, 1)
        problem(client.post(HISTORICAL, **request | {"content": content}), 400, "malformed")


@pytest.mark.parametrize(
    ("query", "name", "nearest"),
    [
        pytest.param({}, None, None, id="nothing asked for"),
        pytest.param({"feature_service": "pair", "features": "a:b"}, None, None, id="both"),
        pytest.param({"feature_service": ["pair", "everything"]}, "feature_service", None, id="twice"),
        pytest.param({"feature_service": "everything", "metadat": "true"}, "metadat", ["metadata"], id="unknown"),
        pytest.param({"feature_service": "everything", "metadata": "perhaps"}, "metadata", None, id="no boolean"),
    ],
)
def test_what_is_wrong_with_a_query(client: TestClient, query: Any, name: str | None, nearest: list[str] | None) -> None:
    """Parameters of an Arrow request are checked as the members of a JSON body are."""
    body = as_stream(pa.table({"user_id": [1]}))
    found = problem(client.post(ONLINE, content=body, params=query, headers={"Content-Type": ARROW}), 422, "input")

    assert (found.get("name"), found.get("nearest")) == (name, nearest)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        pytest.param(pa.table({"user_id": ["a"]}), "user_id", id="wrong type"),
        pytest.param(pa.table({"user_id": pa.array([2**63], pa.uint64())}), "user_id", id="too large"),
        pytest.param(pa.table({"other": [1]}), "other", id="unknown key"),
        pytest.param(pa.table([[1], [1]], names=["user_id", "user_id"]), "user_id", id="twice"),
    ],
)
def test_what_is_wrong_with_an_arrow_table(client: TestClient, table: pa.Table, name: str) -> None:
    """Arrow keys need their declared types; the problem names the column."""
    response = client.post(
        ONLINE, content=as_stream(table), params={"features": "every_type:large"}, headers={"Content-Type": ARROW}
    )

    assert problem(response, 422, "input")["name"] == name


def test_a_json_request_has_no_query(client: TestClient) -> None:
    """A parameter in the query of a JSON request would be ignored, so it is refused."""
    response = client.post(f"{ONLINE}?metadata=true", json={"feature_service": "everything", "entities": USERS})

    assert problem(response, 422, "input")["name"] == "metadata"


def test_all_faults_of_a_body_are_listed(client: TestClient) -> None:
    """One answer names everything that is wrong with the members of a body."""
    response = client.post(ONLINE, json={"feature_service": 1, "entities": {"a": 1, "b": 2}})

    assert [fault["name"] for fault in problem(response, 422, "input")["errors"]] == ["feature_service", "entities.a", "entities.b"]


def test_unknown_routes_and_methods(client: TestClient) -> None:
    """A path or method that no route has is a problem too; it says which route is near, and what is allowed."""
    assert problem(client.post("/v1/online-feature"), 404, "no-route")["nearest"][0] == ONLINE
    response = client.get(ONLINE)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_mutated_requests_never_break_the_service(client: TestClient) -> None:
    """Bytes flipped, cut, doubled or moved anywhere in a request give an answer or a problem of the client's, never a 5xx."""
    seeded = random.Random(2013)
    asked = {"features": ["every_type:large", "thing_notes:note"], "metadata": True}
    online = json.dumps(
        asked | {"entities": {**{name: [value] for name, value in THING_IN_JSON.items()}, "user_id": [BIG]}}
    ).encode()
    spine = json.dumps({"features": ["every_type:large"], "entities": {name: to_json(SPINE[name]) for name in SPINE.column_names}})
    query = {"features": "every_type:large"}
    cases: list[tuple[str, str, bytes, dict[str, str], int]] = [
        (ONLINE, JSON, online, {}, 150),
        (HISTORICAL, JSON, spine.encode(), {}, 100),
        (ONLINE, ARROW, as_stream(pa.table({"user_id": [BIG, None]})), query, 150),
        (HISTORICAL, ARROW, as_stream(SPINE), query, 150),
        (HISTORICAL, PARQUET, as_parquet(SPINE), query, 100),
    ]
    for route, type_, body, parameters, count in cases:
        assert client.post(route, content=body, params=parameters, headers={"Content-Type": type_}).status_code == 200
        for _ in range(count):
            content = mutated(body, seeded)
            response = client.post(route, content=content, params=parameters, headers={"Content-Type": type_})
            assert response.status_code < 500, (route, type_, content, response.text)
            assert response.status_code == 200 or response.headers["content-type"] == PROBLEM


def mutated(body: bytes, seeded: random.Random) -> bytes:
    """Return a body with one to three faults."""
    content = bytearray(body)
    for _ in range(seeded.randint(1, 3)):
        place = seeded.randrange(len(content)) if content else 0
        end = min(len(content), place + seeded.choice([1, 4, 40]))
        match seeded.randrange(5):
            case 0:
                content[place:end] = bytes(each ^ (1 << seeded.randrange(8)) for each in content[place:end])
            case 1:
                del content[place:end]
            case 2:
                content[place:place] = content[place:end]
            case 3:
                content[place:end] = seeded.choice(
                    [b"null", b"[]", b"{}", b"-1", b'"', b"1e400", b"\xff\xff\xff\x7f", b"99999999999999999999"]
                )
            case _:
                del content[place:]
    return bytes(content)


# Problems


def test_every_error_of_the_library_is_a_problem() -> None:
    """Each error class has a status and a title of its own in the contract."""
    classes = [getattr(errors, name) for name in errors.__all__]
    codes = {each.code for each in classes if isinstance(each, type) and issubclass(each, FeatureStoreError)}

    assert codes <= PROBLEMS.keys()


def test_unexpected_errors_tell_nothing_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A bug is a 500 problem without the exception's text, which the log has with its traceback."""
    app = FastAPI()
    handle_errors(app)

    @app.get("/bug")
    def bug() -> None:
        raise ZeroDivisionError("secret")

    response = TestClient(app).get("/bug")

    assert "secret" not in response.text
    assert problem(response, 500, "internal")["title"]
    [record] = [each for each in caplog.records if each.name == "featurestore_server"]
    assert record.getMessage() == "GET /bug failed"
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1])


def test_a_response_that_has_begun_is_cut_off() -> None:
    """What fails after the first byte ends the response without its end, so no client takes a part for the whole."""
    app = FastAPI()
    handle_errors(app)

    def chunks() -> Iterator[bytes]:
        yield b"part"
        raise ZeroDivisionError

    @app.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse(chunks())

    with pytest.raises(ZeroDivisionError):
        TestClient(app).get("/stream")


@pytest.mark.parametrize("type_", [ARROW, PARQUET])
def test_a_training_set_that_fails_half_way_has_no_end(type_: str) -> None:
    """Chunks that were made before a failure are no complete stream or file."""
    table = pa.table({"a": list(range(20_000))})

    def batches() -> Iterator[pa.RecordBatch]:
        yield from table.to_batches()
        raise ZeroDivisionError

    sent = b""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 (what was made before the failure is the point)
        for chunk in encoded(type_, table.schema, batches(), ["a"]):
            sent += chunk

    assert sent
    if type_ == PARQUET:
        with pytest.raises(pa.ArrowInvalid):
            of_bytes(sent, PARQUET)
    else:
        assert not sent.endswith(b"\xff\xff\xff\xff\0\0\0\0")


def test_a_table_that_is_lost_is_found_before_the_first_byte(tmp_path: Path) -> None:
    """If the offline tables cannot be read the answer is a 500 problem, in all types."""
    with ended(FeatureStore(write_repo(tmp_path / "repo").folder)) as store:
        store.apply()
        store.materialize(["every_type"])
        for file in (store.settings.offline_folder / "every_type").rglob("*.parquet"):
            file.unlink()
        client = TestClient(create_app(store))
        for type_ in (JSON, ARROW, PARQUET):
            request = request_of(SPINE, JSON, feature_service="everything") | {"headers": {"Accept": type_}}
            problem(client.post(HISTORICAL, **request), 500, "offline-store")


@contextmanager
def ended(store: FeatureStore) -> Iterator[FeatureStore]:
    """Close a store, and end the server that it may have started."""
    try:
        with store:
            yield store
    finally:
        store.stop()


# Stores that do not answer


def test_an_online_store_that_does_not_answer(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis lookups are a 503 with Retry-After and the service is not ready; training goes on, the process is healthy."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://:secret@127.0.0.1:1")
    with FeatureStore(store.settings.root) as cut_off, TestClient(create_app(cut_off)) as client:
        lookup = client.post(ONLINE, json={"feature_service": "everything", "entities": USERS})
        ready = client.get("/readyz")
        health = client.get("/healthz")
        training = client.post(HISTORICAL, **request_of(SPINE, JSON, feature_service="everything"))

    problem(lookup, 503, "online-store")
    assert int(lookup.headers["retry-after"]) > 0
    assert "secret" not in lookup.text
    checks = problem(ready, 503, "not-ready")["checks"]
    assert checks["registry"] == "ok"
    assert "127.0.0.1:1" in checks["online-store"]
    assert health.status_code == training.status_code == 200


def test_a_registry_that_does_not_answer(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a registry requests are a 503 and the service is not ready; the check that failed is named."""
    (tmp_path / "registry.db").write_bytes(b"no database" * 100)
    monkeypatch.setenv("FEATURESTORE_REGISTRY__URL", f"sqlite:///{tmp_path}/registry.db")
    with FeatureStore(store.settings.root) as cut_off, TestClient(create_app(cut_off)) as client:
        lookup = client.post(ONLINE, json={"feature_service": "everything", "entities": USERS})
        ready = client.get("/readyz")

    problem(lookup, 503, "registry")
    assert int(lookup.headers["retry-after"]) > 0
    assert problem(ready, 503, "not-ready")["name"] == "registry"


def test_readiness_asks_what_is_wired(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The online store counts if a view is served from it, and not otherwise."""
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "checks": {"registry": "ok", "online-store": "ok"}}
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://127.0.0.1:1")
    with FeatureStore(write_repo(tmp_path / "repo").folder) as empty:
        assert TestClient(create_app(empty)).get("/readyz").json() == {"status": "ready", "checks": {"registry": "ok"}}


# The registry


def test_overview(client: TestClient) -> None:
    """Everything that is applied, by name."""
    assert client.get("/v1/registry").json() == {
        "project": "shop",
        "revision": 1,
        "entities": ["thing", "user"],
        "sources": ["notes", "readings"],
        "feature_views": ["every_type", "offline_only", "thing_notes"],
        "aliases": ["friend"],
        "feature_services": ["everything", "pair"],
    }


@pytest.mark.parametrize("kind", ["entities", "sources", "feature-views", "aliases", "feature-services"])
def test_each_definition_by_name(client: TestClient, kind: str) -> None:
    """A kind's route lists its definitions; each has a route of its own that shows the same; an unknown one says what is near."""
    [(key, listed)] = client.get(f"/v1/registry/{kind}").json().items()

    assert key == kind.replace("-", "_")
    assert [each["name"] for each in listed] == client.get("/v1/registry").json()[key]
    assert [client.get(f"/v1/registry/{kind}/{each['name']}").json() for each in listed] == listed
    name = listed[0]["name"]
    found = problem(client.get(f"/v1/registry/{kind}/{name}x"), 404, "not-found")
    assert (found["name"], found["nearest"][0]) == (f"{name}x", name)


def test_definitions_say_what_a_client_needs(client: TestClient) -> None:
    """An entity has its keys, an alias its renaming, a view its versions, a service the keys to send and the columns to expect."""
    assert client.get("/v1/registry/entities/user").json() == {
        "name": "user",
        "join_keys": [{"name": "user_id", "type": "Int64"}],
        "description": "",
        "owner": "",
        "tags": {"team": "growth"},
    }
    assert client.get("/v1/registry/aliases/friend").json()["join_keys"] == {"user_id": "friend_id"}
    view = client.get("/v1/registry/feature-views/every_type").json()
    assert (view["entities"], view["source"], view["ttl"]) == (["user"], "readings", "1d")
    assert [(each["version"], each["state"]) for each in view["versions"]] == [(1, "serving")]
    service = client.get("/v1/registry/feature-services/pair").json()
    assert service["keys"] == {"user_id": "Int64", "friend_id": "Int64"}
    assert service["columns"] == {"every_type__large": "Int64", "every_type__double": "Float64", "friend__large": "Int64"}


def test_versions_runs_and_freshness(store: FeatureStore, client: TestClient) -> None:
    """Versions say what is covered and loaded, runs what was done, freshness how far behind now each watermark is."""
    [version] = client.get("/v1/registry/versions?view=every_type").json()["versions"]
    assert version["watermark"] == "2013-06-01T12:00:00Z"
    assert version["coverage_start"] is None
    [run] = client.get("/v1/registry/runs?view=every_type").json()["runs"]
    assert (run["status"], run["report"]["rows"], run["run"]) == ("completed", 4, version["online_run"])
    assert len(client.get("/v1/registry/runs?limit=2").json()["runs"]) == 2
    problem(client.get("/v1/registry/runs?limit=0"), 422, "input")
    problem(client.get("/v1/registry/versions?view=every_typ"), 404, "not-found")
    later = FeatureStore(store.settings.root, clock=lambda: NOON + 90_500_000)
    with later:
        freshness = TestClient(create_app(later)).get("/v1/registry/freshness").json()
    assert freshness["now"] == "2013-06-01T12:01:30.500000Z"
    assert {each["view"]: each["seconds_behind"] for each in freshness["feature_views"]} == {
        "every_type": 90.5, "offline_only": 90.5, "thing_notes": 90.5,
    }  # fmt: skip


def test_what_was_never_materialized_has_no_watermark(tmp_path: Path) -> None:
    """Before the first run there is no watermark, no coverage and no table version, and lookups find nothing."""
    with ended(FeatureStore(write_repo(tmp_path / "repo").folder)) as store:
        store.apply()
        client = TestClient(create_app(store))
        versions = client.get("/v1/registry/versions").json()["versions"]
        freshness = client.get("/v1/registry/freshness").json()["feature_views"]
        service = client.get("/v1/registry/feature-services/everything").json()

    assert {(each["watermark"], each["coverage_start"], each["table_version"]) for each in versions} == {(None, None, None)}
    assert {(each["watermark"], each["seconds_behind"]) for each in freshness} == {(None, None)}
    assert set(service) >= {"keys", "columns"}


# The contract


def test_openapi_is_complete(client: TestClient) -> None:
    """Each route is documented with its answers and problems, the hot one with examples, and every reference leads somewhere."""
    schema = client.get("/openapi.json").json()

    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)))
    assert references <= schema["components"]["schemas"].keys()
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["responses"]["200"]["content"], path
            assert list(operation["responses"]["500"]["content"]) == [PROBLEM], path
    hot = schema["paths"][ONLINE]["post"]
    assert set(hot["requestBody"]["content"]) == set(hot["responses"]["200"]["content"]) == {JSON, ARROW}
    assert {parameter["name"] for parameter in hot["parameters"]} == {"feature_service", "features", "metadata"}
    assert {"400", "404", "406", "415", "422", "500", "503"} <= hot["responses"].keys()
    for example in hot["requestBody"]["content"][JSON]["examples"].values():
        contract.OnlineRequest.model_validate(example["value"], strict=True)
    assert client.get("/docs").status_code == 200


def test_the_contract_names_every_route(client: TestClient) -> None:
    """The contract's docstring is its specification, so every path stands in it."""
    documented = contract.__doc__ or ""
    for path in client.get("/openapi.json").json()["paths"]:
        shown = re.sub(r"/v1/registry/(entities|sources|feature-views|aliases|feature-services)", "/v1/registry/<kind>", path)
        assert f" {shown.replace('{name}', '<name>')} " in documented, path


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "a/b"),
        ("", "a/b"),
        ("*/*", "a/b"),
        ("x/y", "x/y"),
        ("X/Y", "x/y"),
        ("x/*", "x/y"),
        ("a/b;q=0.1, x/y", "x/y"),
        ("a/b;q=0.1, */*", "x/y"),
        ("*/*, a/b;q=0", "x/y"),
        ("x/y;q=0.5, a/b; charset=utf-8; q=0.6", "a/b"),
        ("x/y, a/b", "a/b"),
        ("x/y;q=high", "x/y"),
        ("text/html", None),
        ("a/b;q=0", None),
    ],
)
def test_negotiation(accept: str | None, expected: str | None) -> None:
    """The most wanted of the types offered is chosen, the first of several; the most specific range decides on each."""
    if expected is None:
        with pytest.raises(ProblemError):
            accepted_type(accept, ["a/b", "x/y"])
    else:
        assert accepted_type(accept, ["a/b", "x/y"]) == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([0, None, 2**63 - 1], TIME), ["1970-01-01T00:00:00Z", None, "294247-01-10T04:00:54.775807Z"]),
        (pa.array([5], pa.timestamp("ms", "Europe/Berlin")), ["1970-01-01T00:00:00.005Z"]),
        (pa.array([2**31 - 1, None], pa.date32()), ["5881580-07-11", None]),
        (pa.array([1.0, -0.0, math.nan, None]), [1.0, -0.0, "NaN", None]),
        (pa.array([[1, 2], None, [5, 6]], pa.list_(pa.int64(), 2)).slice(1), [None, [5, 6]]),
        (pa.array([[1.0], [2.0, math.inf], None]).slice(1, 1), [[2.0, "Infinity"]]),
        (pa.array([{"a": 1}, None]), [{"a": 1}, None]),
        (pa.array(["x", None]).dictionary_encode(), ["x", None]),
        (pa.nulls(2), [None, None]),
        (pa.chunked_array([], pa.int64()), []),
    ],
)
def test_columns_to_json(column: pa.Array, expected: list[Any]) -> None:
    """Columns become lists; slices, nulls and times of any year included."""
    assert has_json_form(column.type)
    assert repr(to_json(column)) == repr(expected)


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([1, None, -(2**63)], pa.int64()),
        ([2**64 - 1], pa.uint64()),
        ([1, 1.5, "NaN", "-Infinity", None], pa.float64()),
        (["NaN", None], pa.string()),
        ([True, None], pa.bool_()),
        ([None, None], pa.null()),
        ([], pa.null()),
        ([[1, 2], None, []], pa.list_(pa.int64())),
        ([[0.5, "NaN"], ["Infinity"]], pa.list_(pa.float64())),
    ],
)
def test_columns_without_a_declared_type(values: list[Any], type_: pa.DataType) -> None:
    """A column of a spine takes the type of its values, and its JSON is what was sent."""
    column = untyped_from_json("x", values)

    assert column.type == type_
    assert to_json(column) == values


@pytest.mark.parametrize("values", [[1, "a"], [1, True], [{}], [[1], 1], [BIG, 0.5], [2**64 - 1, -1], [[1, "a"]]])
def test_columns_of_several_kinds_are_refused(values: list[Any]) -> None:
    """Values of several kinds, or that one type cannot hold exactly, are no column."""
    with pytest.raises(InputError, match="'x'"):
        untyped_from_json("x", values)


def test_declared_columns_are_exact() -> None:
    """Declared types take their JSON forms and nothing else."""
    assert from_json("x", Int64, [BIG, None]).to_pylist() == [BIG, None]
    assert from_json("x", Timestamp, ["2013-06-01T14:00:00+02:00", "2013-06-01 12:00"]).to_pylist() == [at(NOON), at(NOON)]
    with pytest.raises(InputError, match="its value 1, '2', is none"):
        from_json("x", Int64, [1, "2"])


# Many requests at once


def test_concurrent_requests(store: FeatureStore) -> None:
    """Threads that meet in a store which has opened nothing yet each get the answers to their own questions."""
    rows = {BIG: -(2**63), BIG - 1: 2**63 - 1, 7: None, 99: None}
    users = list(rows) * 5
    with FeatureStore(store.settings.root) as fresh:
        client = TestClient(create_app(fresh))

        def ask(number: int) -> bool:
            asked = users[number:] + users[:number]
            expected = [rows[user] for user in asked]
            if number % 4 == 0:
                spine = pa.table({"user_id": asked, "event_timestamp": pa.array([at(NOON)] * len(asked), TIME)})
                response = client.post(HISTORICAL, **request_of(spine, JSON, features=["every_type:large"]))
            elif number % 4 == 1:
                return bool(client.get("/v1/registry/freshness").json()["feature_views"])
            else:
                response = client.post(ONLINE, json={"features": ["every_type:large"], "entities": {"user_id": asked}})
            return response.json()["features"]["every_type__large"] == expected

        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(ask, [number % len(users) for number in range(200)]))


# The process


@contextmanager
def serving(repo: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the service on a free port; gives the process and the line that it printed."""
    command = [sys.executable, "-m", "featurestore_server", "--repo", str(repo), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_the_process_serves_until_sigterm(store: FeatureStore) -> None:
    """It announces its URL once it answers, serves over a real connection, and SIGTERM ends it with code 0 in a moment."""
    with serving(store.settings.root, "--json") as (process, line):
        url = json.loads(line)["url"]
        with httpx.Client(base_url=url) as client:
            assert client.get("/readyz").json()["status"] == "ready"
            request = {"feature_service": "everything", "entities": {"user_id": [BIG]}}
            features = client.post(ONLINE, json=request).json()["features"]
            with client.stream("POST", HISTORICAL, **request_of(SPINE, ARROW, feature_service="everything")) as response:
                training = of_bytes(response.read(), ARROW)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)  # with a connection that is still open
            out, err = process.communicate(timeout=20)

    assert features == {f"every_type__{name}": values[:1] for name, values in ROWS_IN_JSON.items()}
    assert training.num_rows == SPINE.num_rows
    assert (process.returncode, out, err) == (0, "", "")
    assert time.monotonic() - begun < 4


def test_the_process_says_what_it_serves(store: FeatureStore) -> None:
    """Without --json a line for people names project and URL; SIGINT ends it with code 0, and a half-sent request is told so."""
    with serving(store.settings.root) as (process, line):
        match = re.fullmatch(r"featurestore serves shop on http://127\.0\.0\.1:(\d+) \(docs at /docs\)\n", line)
        assert match
        with socket.create_connection(("127.0.0.1", int(match[1])), 10) as connection:
            connection.sendall(
                f"POST {ONLINE} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: 99\r\n\r\n{{".encode()
            )
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            answer = connection.recv(10_000)
        _, err = process.communicate(timeout=20)

    assert process.returncode == 0
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"/problems/not-ready" in answer
    assert "Traceback" not in err


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Return how a service that cannot start ended."""
    return subprocess.run(
        [sys.executable, "-m", "featurestore_server", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_what_keeps_the_process_from_serving(store: FeatureStore, tmp_path: Path) -> None:
    """A port in use and a folder without settings are one line on stderr and exit code 1; --debug adds the traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        in_use = run("--repo", str(store.settings.root), "--port", port)
    no_repo = run("--repo", str(tmp_path))
    debug = run("--repo", str(tmp_path), "--debug")

    assert (in_use.returncode, no_repo.returncode) == (1, 1)
    assert re.fullmatch(rf"featurestore: cannot listen on 127\.0\.0\.1:{port}: Address already in use; .*\n", in_use.stderr)
    assert re.fullmatch(r"featurestore: no featurestore\.toml in .*\n", no_repo.stderr)
    assert "Traceback" in debug.stderr
