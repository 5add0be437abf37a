from __future__ import annotations

import asyncio
import datetime as dt
import math
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore.online.vectors import LookupPlan
from featurestore_server import plans
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW, JSON, PARQUET
from featurestore_server.values import to_json
from tests.conftest import NOON, TIME, Repo, at
from tests.service import HISTORICAL, ONLINE, as_parquet, as_stream, of_bytes, problem

DEFINITIONS = """
import numpy as np

airport = Entity("airport", join_keys={"origin": String})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
conditions = FeatureView("conditions", entities=[airport], source=weather, fields={"wind": Float64})
request = RequestSource(
    "request",
    {
        "distance": Float64, "single": Float32, "seats": Int64, "small": Int32, "flag": Bool, "text": String, "blob": Bytes,
        "day": Date, "moment": Timestamp, "vector": Array(Float64), "words": Array(String),
    },
)


@on_demand_feature_view(
    inputs=[conditions, request],
    fields={
        "exposure": Float64, "single": Float32, "seats": Int64, "small": Int32, "flag": Bool, "text": String, "blob": Bytes,
        "day": Date, "moment": Timestamp, "vector": Array(Float64), "words": Array(String),
    },
)
def flight(inputs):
    if (inputs["distance"] == 13).any():
        raise ValueError("unlucky")
    found = {name: column for name, column in inputs.items() if name not in ("distance", "wind")}
    return {"exposure": inputs["wind"] / inputs["distance"], **found}


everything = FeatureService("everything", features=[conditions, flight])
plain = FeatureService("plain", features=[conditions])
"""

ROWS: dict[str, list[Any]] = {
    "origin": ["EWR", "EWR", "XXX"],
    "distance": [4, 0.0, 1.5],
    "single": [0.1, "NaN", 1.0],
    "seats": [2**53 + 1, -1, 0],
    "small": [-(2**31), 1, 2],
    "flag": [True, False, True],
    "text": ["ä\n", "", "x"],
    "blob": ["AP8=", "", ""],
    "day": ["2013-06-01", "0001-01-01", "2013-06-01"],
    "moment": ["2013-05-01T12:30:00.123456+02:00", "1969-12-31T23:59:59", "2013-05-01T10:30:00Z"],
    "vector": [[1.5, "Infinity"], [], [1]],
    "words": [["a", ""], [], ["b"]],
}
EXPECTED: dict[str, list[Any]] = {
    "conditions__wind": [10.0, 10.0, None],
    "flight__exposure": [2.5, "Infinity", None],
    "flight__single": [float(np.float32(0.1)), "NaN", None],
    "flight__seats": [2**53 + 1, -1, None],
    "flight__small": [-(2**31), 1, None],
    "flight__flag": [True, False, None],
    "flight__text": ["ä\n", "", None],
    "flight__blob": ["AP8=", "", None],
    "flight__day": ["2013-06-01", "0001-01-01", None],
    "flight__moment": ["2013-05-01T10:30:00.123456Z", "1969-12-31T23:59:59Z", None],
    "flight__vector": [[1.5, "Infinity"], [], None],
    "flight__words": [["a", ""], [], None],
}
TYPED = {
    "origin": pa.array(ROWS["origin"]),
    "distance": pa.array([4.0, 0.0, 1.5]),
    "single": pa.array([0.1, math.nan, 1.0], pa.float32()),
    "seats": pa.array(ROWS["seats"]),
    "small": pa.array(ROWS["small"], pa.int32()),
    "flag": pa.array(ROWS["flag"]),
    "text": pa.array(ROWS["text"], pa.large_string()),
    "blob": pa.array([b"\x00\xff", b"", b""]),
    "day": pa.array([dt.date(2013, 6, 1), dt.date(1, 1, 1), dt.date(2013, 6, 1)]),
    "moment": pa.array(["2013-05-01T10:30:00.123456", "1969-12-31T23:59:59", "2013-05-01"]).cast(pa.timestamp("us")),
    "vector": pa.array([[1.5, math.inf], [], [1.0]]),
    "words": pa.array([["a", ""], [], ["b"]]),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A materialized store with an on-demand view of every type."""
    folder = tmp_path_factory.mktemp("on_demand") / "repo"
    folder.mkdir()
    (folder / "featurestore.toml").write_text('project = "flights"\nnow = "2013-06-01T12:00:00Z"\n')
    repo = Repo(folder)
    repo.define(DEFINITIONS)
    repo.write("weather.parquet", {"origin": ["EWR"], "observed_at": pa.array([at(NOON - 1)], TIME), "wind": [10.0]})
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize()
        yield store
        store.stop()


@pytest.fixture(scope="module")
def http(served: FeatureStore) -> Iterator[TestClient]:
    """A client of its service."""
    with TestClient(create_app(served), raise_server_exceptions=False) as client:
        yield client


def online(http: TestClient, entities: Any, service: str = "everything") -> Any:
    """Return the JSON of an answer."""
    return http.post(ONLINE, json={"feature_service": service, "entities": entities})


def test_t09_request_columns_of_every_type_in_json(http: TestClient) -> None:
    """Request columns stand beside the keys, in the contract's forms of their types, and so do the features."""
    answer = online(http, ROWS)

    assert answer.status_code == 200, answer.text
    assert answer.json()["features"] == EXPECTED


def test_t09_request_columns_of_every_type_in_arrow(http: TestClient) -> None:
    """An Arrow request has them as columns, and the answer is the JSON's."""
    answer = http.post(
        f"{ONLINE}?feature_service=everything", content=as_stream(pa.table(TYPED)), headers={"Content-Type": ARROW, "Accept": JSON}
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["features"] == EXPECTED


@pytest.mark.parametrize("type_", [JSON, ARROW, PARQUET])
def test_t09_training_sets_over_http_are_what_lookups_are(http: TestClient, type_: str) -> None:
    """A spine has the request columns in the same forms, and gives the same features."""
    times = ["2013-06-01T12:00:00Z"] * 3
    if type_ == JSON:
        body = {"feature_service": "everything", "entities": ROWS | {"event_timestamp": times}}
        answer = http.post(f"{HISTORICAL}", json=body | {"incomplete": "stale"})
    else:
        spine = pa.table(TYPED | {"event_timestamp": pa.array([at(NOON)] * 3, TIME)})
        content = as_stream(spine) if type_ == ARROW else as_parquet(spine)
        headers = {"Content-Type": type_, "Accept": JSON}
        answer = http.post(f"{HISTORICAL}?feature_service=everything&incomplete=stale", content=content, headers=headers)

    assert answer.status_code == 200, answer.text
    assert answer.json()["features"] == EXPECTED


def test_t09_the_python_api_gives_the_same(served: FeatureStore, http: TestClient) -> None:
    """An Arrow answer is the table of `get_online_features`, by few plain values and by columns alike."""
    answer = http.post(f"{ONLINE}?feature_service=everything", content=as_stream(pa.table(TYPED)), headers={"Content-Type": ARROW})
    vectors = served.get_online_features(TYPED, "everything")

    local, remote = vectors.to_arrow().select(list(EXPECTED)), of_bytes(answer.content, ARROW)
    assert remote.schema.equals(local.schema)
    assert {name: to_json(remote[name]) for name in EXPECTED} == {name: to_json(local[name]) for name in EXPECTED} == EXPECTED


ONE = {name: values[:1] for name, values in ROWS.items()}


@pytest.mark.parametrize(
    ("change", "detail", "name"),
    [
        (
            {"distance": None},
            "request column 'distance' is missing; the keys are 'origin', the request columns are 'distance', ",
            "distance",
        ),
        ({"origin": None}, "key 'origin' is missing; ", "origin"),
        ({"distanc": [1]}, "'distanc' is no key of the features asked for; ", "distanc"),
        ({"distance": ["4"]}, "column 'distance' is Float64; its value 0, '4', is none", "distance"),
        ({"distance": [True]}, "column 'distance' is Float64; its value 0, True, is none", "distance"),
        ({"distance": [2**53 + 1]}, "column 'distance' holds a value that is no Float64: ", "distance"),
        ({"seats": [1.0]}, "column 'seats' is Int64; its value 0, 1.0, is none", "seats"),
        ({"small": [2**31]}, "column 'small' holds a value that is no Int32: ", "small"),
        (
            {"moment": ["noon"]},
            "column 'moment' is Timestamp (such as '2013-06-01T12:00:00Z'); its value 0, 'noon', is none",
            "moment",
        ),
        ({"vector": [[1.0, "x"]]}, "column 'vector' is Array(Float64); its value 0, [1.0, 'x'], is none", "vector"),
        ({"distance": [1.0, 2.0]}, "columns differ in length: ", "distance"),
    ],
)
def test_t09_what_is_wrong_with_a_request_column_is_said(http: TestClient, change: dict[str, Any], detail: str, name: str) -> None:
    """A request column is read strictly by its type; what is wrong is a 422 that names it."""
    answer = online(http, {key: value for key, value in (ONE | change).items() if value is not None})
    found = problem(answer, 422, "input")

    assert found["detail"].startswith(detail)
    assert found["name"] == name


def test_t09_a_function_that_fails_is_a_problem_that_names_the_view(http: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """It is the server's fault: the client learns which view, the log says what and of which row."""
    rows = {name: values[:1] * 2 for name, values in ROWS.items()} | {"distance": [1.0, 13.0]}
    found = problem(online(http, rows), 500, "on-demand")

    assert found["name"] == "flight"
    assert "on-demand view 'flight', row 1: ValueError: unlucky" in caplog.text


def test_code_is_not_imported_on_the_event_loop(served: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no service has is compiled when it is first asked for: definitions may take long, and other lookups do not wait."""
    compiled = []

    def watched(*given: Any) -> LookupPlan:
        compiled.append(asyncio._get_running_loop())
        return LookupPlan(*given)

    monkeypatch.setattr(plans, "LookupPlan", watched)
    with TestClient(create_app(served)) as client:
        found = client.post(ONLINE, json={"features": ["flight:seats"], "entities": ROWS})
    assert found.json()["features"] == {"flight__seats": EXPECTED["flight__seats"]}
    assert compiled == [None] * 3  # those of the services, and this one


def test_t10_a_service_without_its_code_is_refused_and_others_answer(served: FeatureStore) -> None:
    """A server that cannot load a view's code refuses the services that need it, by name, and goes on with the others."""
    root, code = served.settings.root, served.settings.state / "code"
    file = root / "definitions.py"
    text = file.read_text()
    shutil.move(code, root / "moved")
    file.write_text(text.replace("unlucky", "unhappy"))
    try:
        with FeatureStore(root) as store, TestClient(create_app(store), raise_server_exceptions=False) as client:
            found = problem(online(client, ONE), 500, "code")
            assert found["name"] == "flight"
            assert online(client, {"origin": ["EWR"]}, "plain").json() == {"features": {"conditions__wind": [10.0]}}
    finally:
        file.write_text(text)
        shutil.move(root / "moved", code)


def test_the_registry_routes_show_on_demand_views(http: TestClient) -> None:
    """On-demand views are listed with their inputs and code, and a service says which request columns it takes."""
    view = http.get("/v1/registry/on-demand-feature-views/flight").json()
    service = http.get("/v1/registry/feature-services/everything").json()

    assert http.get("/v1/registry").json()["on_demand_feature_views"] == ["flight"]
    assert (view["mode"], view["code"]["function"], len(view["fields"])) == ("numpy", "flight", 11)
    assert service["keys"] == {"origin": "String"}
    assert list(service["request"].items())[:2] == [("distance", "Float64"), ("single", "Float32")]
    assert list(service["columns"]) == list(EXPECTED)
