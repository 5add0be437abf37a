from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.contract import ARROW, JSON
from featurestore_server.values import to_json
from tests.conftest import HOUR, NOON, TIME, at
from tests.service import BIG, DAY, ONLINE, ROWS_IN_JSON, THING, THING_IN_JSON, USERS, as_stream, of_bytes, problem


def look_up(client: TestClient, entities: Any, **members: Any) -> Any:
    """Return the JSON of an online answer."""
    response = client.post(ONLINE, json={"entities": entities, **members})
    assert response.status_code == 200, response.text
    return response.json()


# Values


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


# What is refused

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
