"""`POST /v1/push/{source}`: what it takes, what it answers, and that a retry changes nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW, JSON
from tests.conftest import NOON, TIME, Repo, at
from tests.test_push import define, online

COLUMNS = {"tail": ["A"], "rested": [True], "hours": [5], "at": ["2013-06-01T12:00:00Z"]}
RECEIPT = {"source": "crew", "arrival": "2013-06-01T12:00:00Z", "rows": 1, "erased": 0, "online": True}


@pytest.fixture
def served(repo: Repo) -> Iterator[tuple[FeatureStore, TestClient]]:
    """A store and a client of its service, which is in this process."""
    store = define(repo)
    with TestClient(create_app(store)) as client:
        yield store, client


def test_rows_in_json(served: tuple[FeatureStore, TestClient]) -> None:
    """Columns of JSON values; the answer says when they arrived, and lookups see them."""
    store, client = served
    answer = client.post("/v1/push/crew", json={"columns": COLUMNS})

    assert (answer.status_code, answer.json()) == (200, RECEIPT)
    assert online(store, ["A"]) == [(True, 5, 300)]


def test_rows_in_arrow(served: tuple[FeatureStore, TestClient]) -> None:
    """The same columns as an Arrow stream."""
    store, client = served
    table = pa.table({**COLUMNS, "at": pa.array([at(NOON)], TIME)})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    answer = client.post("/v1/push/crew", content=sink.getvalue(), headers={"Content-Type": ARROW})

    assert (answer.status_code, answer.json()) == (200, RECEIPT)
    assert online(store, ["A"]) == [(True, 5, 300)]


def test_a_retry_changes_nothing(served: tuple[FeatureStore, TestClient]) -> None:
    """A push with the key of an earlier one has its answer; with the key and other rows it is refused."""
    store, client = served
    headers = {"Idempotency-Key": "a-1"}
    first, again = (client.post("/v1/push/crew", json={"columns": COLUMNS}, headers=headers) for _ in range(2))
    other = client.post("/v1/push/crew", json={"columns": {**COLUMNS, "hours": [6]}}, headers=headers)

    assert first.json() == again.json() == RECEIPT
    assert (other.status_code, other.json()["name"]) == (422, "a-1")
    assert store.registry.pushes.state("crew").rows == 1


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        ({"columns": {**COLUMNS, "hours": ["5"]}}, 422, "hours"),
        ({"columns": {**COLUMNS, "at": [5]}}, 422, "at"),
        ({"columns": {**COLUMNS, "at": ["2013-06-01T13:00:00Z"]}}, 422, "at"),
        ({"columns": {**COLUMNS, "tail": [None]}}, 422, "tail"),
        ({"columns": {**COLUMNS, "hour": [1]}}, 422, "hour"),
        ({"columns": {"tail": ["A"]}}, 422, "rested"),
        ({"columns": {**COLUMNS, "hours": [2**63]}}, 422, "hours"),
        ({"columns": {}}, 422, None),
        ({"rows": []}, 422, "rows"),
        ([], 422, None),
    ],
)
def test_what_does_not_fit_is_a_problem(served: tuple[FeatureStore, TestClient], body: Any, status: int, name: str | None) -> None:
    """One problem that names the column; nothing is logged."""
    store, client = served
    answer = client.post("/v1/push/crew", json=body)

    assert (answer.status_code, answer.json().get("name")) == (status, name), answer.json()
    assert store.registry.pushes.state("crew").rows == 0


def test_requests_that_are_no_push(served: tuple[FeatureStore, TestClient]) -> None:
    """Sources that there are not, bodies of other types, keys that cannot be, and queries are told apart."""
    _, client = served
    known = client.post("/v1/push/crow", json={"columns": COLUMNS})
    assert (known.status_code, known.json()["nearest"]) == (404, ["crew"])
    assert client.post("/v1/push/crew", content=b"{", headers={"Content-Type": JSON}).status_code == 400
    assert client.post("/v1/push/crew", content=b"x", headers={"Content-Type": ARROW}).status_code == 400
    assert client.post("/v1/push/crew", content=b"x", headers={"Content-Type": "text/csv"}).status_code == 415
    assert client.post("/v1/push/crew", json={"columns": COLUMNS}, headers={"Accept": ARROW}).status_code == 406
    assert client.post("/v1/push/crew", json={"columns": COLUMNS}, headers={"Idempotency-Key": "a b"}).status_code == 422
    assert client.post("/v1/push/crew?a=1", json={"columns": COLUMNS}).status_code == 422


def test_values_of_every_type(repo: Repo) -> None:
    """What JSON cannot say plainly comes in the forms that lookups give it in."""
    fields = "{name: type_ for name, type_ in zip('xyvn', [Float64, Float32, Array(Float64), Int64])}"
    repo.define(
        'thing = Entity("thing", join_keys={"key": Bytes})\n'
        f'things = PushSource("things", fields={{"key": Bytes, **{fields}}}, event_time="at")\n'
        f'seen = FeatureView("seen", entities=[thing], source=things, fields={fields})\n'
    )
    store = repo.open()
    store.apply()
    key, features = base64.b64encode(b"\x00\xff").decode(), ["seen:x", "seen:y", "seen:v", "seen:n"]
    values: dict[str, list[Any]] = {"x": ["Infinity"], "y": [0.10000000149011612], "v": [[1.5, None, "NaN"]], "n": [-(2**63)]}
    with TestClient(create_app(store)) as client:
        columns = {"key": [key], **values, "at": ["2013-06-01T14:00:00.5+02:00"]}
        assert client.post("/v1/push/things", json={"columns": columns}).status_code == 200
        answer = client.post("/v1/online-features", json={"features": features, "entities": {"key": [key]}})

    assert answer.json()["features"] == {f"seen__{name}": column for name, column in values.items()}
