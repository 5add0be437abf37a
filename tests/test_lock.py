from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore, lookups
from featurestore.errors import InputError, LockError
from featurestore_server.app import create_app
from tests.conftest import NOON, TIME, Repo, at
from tests.service import HISTORICAL, ONLINE, problem

VIEWS = """
airport = Entity("airport", join_keys={"origin": String})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
conditions = FeatureView("conditions", entities=[airport], source=weather, ttl="6h", fields={"wind": Float64, "rain": Float64})
unused = FeatureView("unused", entities=[airport], source=weather, fields={"wind": Float64})

@on_demand_feature_view(inputs=[conditions[["rain"]], RequestSource("r", {"x": Float64})], fields={"y": Float64, "z": Float64})
def scaled(inputs):
    return {"y": inputs["rain"] * inputs["x"], "z": inputs["x"]}

model = FeatureService("model", features=["conditions:wind", "scaled:y"])
other = FeatureService("other", features=[unused])
"""
ASKED: dict[str, list[Any]] = {"origin": ["EWR"], "x": [2.0]}
NEVER = "0" * 32


@pytest.fixture
def locked(repo: Repo) -> tuple[Repo, FeatureStore, Path]:
    """A repo whose service is locked in a file."""
    repo.define(VIEWS)
    repo.write("weather.parquet", {"origin": ["EWR"], "observed_at": pa.array([at(NOON - 1)], TIME), "wind": [5.0], "rain": [1.5]})
    store = repo.open()
    store.apply()
    store.materialize()
    path = repo.folder / "model" / "features.lock"
    store.lock("model", path)
    return repo, store, path


def change(repo: Repo, store: FeatureStore, *changes: tuple[str, str]) -> None:
    """Change the definitions, apply and materialize them."""
    text = VIEWS
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    repo.define(text)
    store.apply()
    store.materialize()


def spine() -> pa.Table:
    """Return a spine that asks what the lookups ask."""
    return pa.table(ASKED | {"event_timestamp": pa.array([at(NOON)], TIME)})


def test_a_lock_says_all_that_determines_the_features(locked: tuple[Repo, FeatureStore, Path]) -> None:
    """Columns with types and order, views with what their values come from, on-demand views with the hash of their code."""
    _, store, path = locked
    lock = json.loads(path.read_text())
    selection = store.selection("model")

    assert (lock["features"], lock["fingerprint"]) == ("model", selection.fingerprint())
    assert lock["columns"] == [["conditions__wind", "Float64"], ["scaled__y", "Float64"]]
    assert list(lock["views"]) == ["conditions"]
    assert lock["views"]["conditions"]["values"]["ttl"] == "6h"
    assert lock["on_demand"]["scaled"]["code"] == {
        name: value for name, value in selection.computed[0].spec["code"].items() if name != "copy"
    }


def test_features_that_were_locked_are_served(locked: tuple[Repo, FeatureStore, Path]) -> None:
    """By the file or by the fingerprint, online and in training; and after changes of what is not among them."""
    repo, store, path = locked
    fingerprint = json.loads(path.read_text())["fingerprint"]
    described = ('"conditions", entities', '"conditions", description="Weather", entities')
    change(repo, store, ('"unused", entities', '"unused", ttl="1h", entities'), described)
    for lock in (path, str(path), fingerprint):
        assert store.get_online_features(ASKED, "model", lock=lock).to_dict()["scaled__y"] == [3.0]
        assert store.get_historical_features(spine(), "model", lock=lock).to_dict()["scaled__y"] == [3.0]


CHANGES = [
    ([('ttl="6h"', 'ttl="5h"')], ["ttl of view conditions: 6h -> 5h"]),
    ([('* inputs["x"]', '+ inputs["x"]')], ["the code of on-demand view scaled is another"]),
    ([('"conditions:wind", "scaled:y"', '"scaled:y", "conditions:wind"')], ["the features have another order"]),
    ([('"scaled:y"]', '"scaled:z"]')], ["feature scaled__y is gone", "feature scaled__z is new"]),
    ([('ttl="6h"', 'ttl="5h"'), ('* inputs["x"]', '+ inputs["x"]')], ["ttl of view", "the code of on-demand view scaled"]),
]


@pytest.mark.parametrize(("changes", "expected"), CHANGES)
@pytest.mark.parametrize("by", ["file", "fingerprint"])
def test_other_features_are_refused_with_what_differs(
    locked: tuple[Repo, FeatureStore, Path], changes: list[tuple[str, str]], expected: list[str], by: str
) -> None:
    """Nothing is answered from other definitions; a fingerprint alone is traced to what it stood for."""
    repo, store, path = locked
    lock: str | Path = path if by == "file" else json.loads(path.read_text())["fingerprint"]
    change(repo, store, *changes)
    errors = []
    for ask in (
        lambda: store.get_online_features(ASKED, "model", lock=lock),
        lambda: store.get_historical_features(spine(), "model", lock=lock),
    ):
        with pytest.raises(LockError, match="feature service 'model' is not what its lock was made of: ") as error:
            ask()
        errors.append(error.value)

    assert errors[0].differences == errors[1].differences
    assert len(expected) == len(errors[0].differences)
    assert all(found.startswith(text) for found, text in zip(errors[0].differences, expected, strict=True))
    assert store.get_online_features(ASKED, "model")


def test_a_rollback_serves_what_was_locked_again(locked: tuple[Repo, FeatureStore, Path]) -> None:
    """A lock holds what features are, not when they were applied."""
    repo, store, path = locked
    change(repo, store, ('* inputs["x"]', '+ inputs["x"]'))
    store.rollback("scaled")

    assert store.get_online_features(ASKED, "model", lock=path).to_dict()["scaled__y"] == [3.0]


def test_what_is_no_lock_is_an_input_error(locked: tuple[Repo, FeatureStore, Path], tmp_path: Path) -> None:
    """A missing file, another file, another service's lock and a fingerprint that never was are told apart."""
    _, store, path = locked
    wrong = tmp_path / "wrong.lock"
    wrong.write_text("{}")
    for lock, message in ((tmp_path / "none", "no lock at"), (wrong, "is no lock that this release reads")):
        with pytest.raises(InputError, match=message):
            store.get_online_features(ASKED, "model", lock=lock)
    with pytest.raises(LockError, match=r"'model' has never had the fingerprint 0{32} here"):
        store.get_online_features(ASKED, "model", lock=NEVER)
    with pytest.raises(LockError, match="the lock is of 'model'"):
        store.get_online_features({"origin": ["EWR"]}, "other", lock=path)


def test_a_lock_file_is_read_again(locked: tuple[Repo, FeatureStore, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has changed or gone is noticed with the next look at the registry, though nobody has written to that."""
    _, store, path = locked
    store.get_online_features(ASKED, "model", lock=path)
    monkeypatch.setattr(lookups, "_SERVING_SECONDS", 0.0)
    path.write_text("{}")
    with pytest.raises(InputError, match="is no lock that this release reads"):
        store.get_online_features(ASKED, "model", lock=path)


def test_http_refuses_with_409_and_says_what_differs(locked: tuple[Repo, FeatureStore, Path]) -> None:
    """The header carries the fingerprint; the problem lists the differences, online and historical."""
    repo, store, path = locked
    fingerprint = json.loads(path.read_text())["fingerprint"]
    online = {"feature_service": "model", "entities": ASKED}
    historical = online | {"entities": ASKED | {"event_timestamp": ["2013-06-01T12:00:00Z"]}}
    clock = f'\nnow = "{at(NOON).isoformat()}"\n'
    settings = repo.folder / "featurestore.toml"
    settings.write_text(settings.read_text() + clock)

    def post(route: str, body: Any, given: str) -> Any:
        return client.post(route, json=body, headers={"Feature-Service-Fingerprint": given})

    with FeatureStore(repo.folder) as serving, TestClient(create_app(serving)) as client:
        assert post(ONLINE, online, fingerprint).json()["features"]["scaled__y"] == [3.0]
        assert post(HISTORICAL, historical, fingerprint).json()["features"]["scaled__y"] == [3.0]
        assert client.get("/v1/registry/feature-services/model").json()["fingerprint"] == fingerprint
        for given in ("../etc", ""):
            assert problem(post(ONLINE, online, given), 422, "input")["name"] == "Feature-Service-Fingerprint"
            assert problem(post(HISTORICAL, historical, given), 422, "input")["name"] == "Feature-Service-Fingerprint"
        assert "never had" in problem(post(ONLINE, online, NEVER), 409, "lock")["detail"]
    change(repo, store, ('ttl="6h"', 'ttl="5h"'))
    with FeatureStore(repo.folder) as serving, TestClient(create_app(serving)) as client:
        for found in (post(ONLINE, online, fingerprint), post(HISTORICAL, historical, fingerprint)):
            refused = problem(found, 409, "lock")
            assert (refused["name"], refused["differences"]) == ("model", ["ttl of view conditions: 6h -> 5h"])
        assert client.post(ONLINE, json=online).status_code == 200


def test_the_command_writes_a_lock_and_others_take_it(locked: tuple[Repo, FeatureStore, Path]) -> None:
    """`featurestore lock` writes the file, says the fingerprint, and `get-online --lock` refuses with exit code 1."""
    repo, store, path = locked

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "featurestore", "--repo", str(repo.folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    file = repo.folder / "again.lock"
    made = json.loads(run("lock", "model", "-o", str(file), "--json").stdout)
    assert made == {"path": str(file), "fingerprint": store.selection("model").fingerprint(), "features": 2}
    assert file.read_text() == path.read_text()
    change(repo, store, ('ttl="6h"', 'ttl="5h"'))
    refused = run("get-online", "model", "-k", "origin=EWR", "-k", "x=2", "--lock", str(file))
    assert refused.returncode == 1
    assert "ttl of view conditions: 6h -> 5h" in refused.stderr
