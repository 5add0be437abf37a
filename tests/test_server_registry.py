from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from tests.conftest import NOON, WEATHER, Repo
from tests.service import ended, problem, write_repo


def test_overview(client: TestClient) -> None:
    """Everything that is applied, by name."""
    assert client.get("/v1/registry").json() == {
        "project": "shop",
        "revision": 1,
        "entities": ["thing", "user"],
        "sources": ["notes", "readings"],
        "feature_views": ["every_type", "offline_only", "thing_notes"],
        "aliases": ["friend"],
        "on_demand_feature_views": [],
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


def test_versions_say_what_they_wait_for_and_where_a_rollback_leads(weather_repo: Repo) -> None:
    """T11 over HTTP: each state is shown, a candidate with its needs; a service that waits is a 409 that says for what."""
    store = weather_repo.open()
    for ttl in ("4h", "5h", "6h"):
        weather_repo.define(WEATHER.replace('ttl="6h"', f'ttl="{ttl}"'))
        store.apply()
        store.materialize()
    store.prune(now=True)
    more = 'later = FeatureService("later", features=[airport_weather])\n'
    weather_repo.define(WEATHER.replace('ttl="6h"', 'ttl="7h"') + more)
    store.apply()
    client = TestClient(create_app(store))
    versions = client.get("/v1/registry/versions").json()["versions"]
    assert [(each["version"], each["state"], each["is_rollback"], each["waits_for"]) for each in versions] == [
        (1, "removed", False, []),
        (2, "replaced", True, []),
        (3, "serving", False, []),
        (4, "candidate", False, ["airport_weather v4: materialization until 2013-06-01T12:00:00Z"]),
    ]
    assert client.get("/v1/registry/feature-views/airport_weather").json()["versions"] == versions
    response = client.post("/v1/online-features", json={"feature_service": "later", "entities": {"origin": ["EWR"]}})
    found = problem(response, 409, "pending")
    assert found["name"] == "later"
    assert found["detail"].endswith("waits for airport_weather v4: materialization until 2013-06-01T12:00:00Z")
    store.materialize()
    assert client.post(
        "/v1/online-features", json={"feature_service": "flight_weather", "entities": {"origin": ["EWR"]}}
    ).is_success
