from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.contract import JSON
from tests.conftest import NOON, TIME, at
from tests.service import BIG, HISTORICAL, ONLINE, problem, request_of


def test_unknown_routes_and_methods(client: TestClient) -> None:
    """A path or method that no route has is a problem too; it says which route is near, and what is allowed."""
    assert problem(client.post("/v1/online-feature"), 404, "no-route")["nearest"][0] == ONLINE
    response = client.get(ONLINE)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("method", "path"), [("POST", ONLINE), ("GET", "/v1/registry"), ("GET", "/v1/training-sets/x"), ("GET", "/docs")]
)
def test_a_slash_at_the_end_is_another_path(client: TestClient, method: str, path: str) -> None:
    """It is no route, and nobody is sent to where a Host header says."""
    response = client.request(method, f"{path}/", json={}, headers={"Host": "evil.example"}, follow_redirects=False)

    problem(response, 404, "no-route")
    assert "location" not in response.headers


def test_concurrent_requests(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that meet in a store which has opened nothing yet each get the answers to their own questions."""
    monkeypatch.setenv("FEATURESTORE_SERVER__TRAINING_QUEUE", "16")  # as many as may come at once
    rows = {BIG: -(2**63), BIG - 1: 2**63 - 1, 7: None, 99: None}
    users = list(rows) * 5
    with FeatureStore(store.settings.root) as fresh:
        client = TestClient(create_app(fresh))

        def ask(number: int) -> bool:
            asked = users[number:] + users[:number]
            expected = [rows[user] for user in asked]
            if number % 20 == 0:
                spine = pa.table({"user_id": asked, "event_timestamp": pa.array([at(NOON)] * len(asked), TIME)})
                response = client.post(HISTORICAL, **request_of(spine, JSON, features=["every_type:large"]))
            elif number % 4 == 1:
                return bool(client.get("/v1/registry/freshness").json()["feature_views"])
            else:
                response = client.post(ONLINE, json={"features": ["every_type:large"], "entities": {"user_id": asked}})
            return response.json()["features"]["every_type__large"] == expected

        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(ask, [number % len(users) for number in range(200)]))
