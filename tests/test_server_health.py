from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.contract import JSON
from tests.service import HISTORICAL, ONLINE, SPINE, USERS, problem, request_of, write_repo


def test_an_online_store_that_does_not_answer(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without Redis lookups are a 503 with Retry-After and the service is not ready; training goes on, the process is healthy.

    Where it should be is in the log, and in no answer.
    """
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
    assert checks["online-store"] == "failed"
    assert "127.0.0.1" not in ready.text + lookup.text
    assert caplog.text.count("redis://:***@127.0.0.1:1") >= 2
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
    assert client.get("/readyz").json() == {"status": "ready", "checks": {"registry": "ok", "online-store": "ok", "plans": "ok"}}
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://127.0.0.1:1")
    with FeatureStore(write_repo(tmp_path / "repo").folder) as empty:
        assert TestClient(create_app(empty)).get("/readyz").json() == {
            "status": "ready",
            "checks": {"registry": "ok", "plans": "ok"},
        }
