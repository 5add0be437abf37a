from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.contract import ARROW, JSON, PARQUET
from featurestore_server.values import to_json
from tests.conftest import NOON, TIME, at
from tests.service import BIG, HISTORICAL, ROWS_IN_JSON, SPINE, of_bytes, problem, request_of


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


# What is refused


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
