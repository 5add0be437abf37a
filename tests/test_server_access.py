from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW
from tests.conftest import HOUR, NOON, TIME, WEATHER, Repo, at
from tests.service import HISTORICAL, ONLINE, as_stream, problem

ROLES = ("read-online", "read-offline", "write", "admin")
WEATHER_ROWS: dict[str, Any] = {
    "origin": ["EWR"],
    "observed_at": pa.array([at(NOON - HOUR)], TIME),
    "temperature": [21.0],
    "gusts": pa.array([7], pa.int64()),
}
SECOND = 'gusts = FeatureService("gusts", features=[airport_weather[["gusts"]]])\n'
LOOKUP = {"feature_service": "flight_weather", "entities": {"origin": ["EWR"]}}
TRAINING = {"feature_service": "flight_weather", "entities": {"origin": ["EWR"], "event_timestamp": ["2013-06-01T11:30:00Z"]}}


@dataclass
class Guarded:
    """A service that needs keys, and their texts by name."""

    store: FeatureStore
    client: TestClient
    keys: dict[str, str]

    def ask(self, key: str | None, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Send a request with the key of that name."""
        given = headers | ({} if key is None else {"Authorization": f"Bearer {self.keys[key]}"})
        return self.client.request(method, path, json=body, headers=given)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A materialized store with a key of each role, and one that is restricted."""
    folder = tmp_path_factory.mktemp("guarded") / "repo"
    folder.mkdir()
    (folder / "featurestore.toml").write_text('project = "guarded"\nnow = "2013-06-01T12:00:00Z"\n')
    repo = Repo(folder)
    repo.define(WEATHER + SECOND)
    repo.write("weather.parquet", WEATHER_ROWS)
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize()
        keys = {role: store.registry.api_keys.create(role, [role], now=NOON)[1] for role in ROLES}
        both = ["read-online", "read-offline"]
        keys["restricted"] = store.registry.api_keys.create("restricted", both, ["gusts"], now=NOON)[1]
        with TestClient(create_app(store)) as client:
            yield Guarded(store, client, keys)
        store.stop()


NEEDED = {
    "/v1/online-features": {"read-online"},
    "/v1/historical-features": {"read-offline"},
    "/v1/training-sets": {"read-offline"},
    "/v1/push": {"write"},
    "/v1/registry": {"read-online", "read-offline", "write"},
    "/metrics": {"read-online", "read-offline", "write"},
}
OPEN = {"/healthz", "/readyz", "/openapi.json", "/docs"}


def test_each_role_reaches_its_routes_and_no_others(guarded: Guarded) -> None:
    """On every route there is: without a key 401, with a role that is not enough 403, with one that is an answer; admin all."""
    paths: dict[str, Any] = guarded.client.get("/openapi.json").json()["paths"]
    reached = []
    for path, operations in paths.items():
        if path in OPEN:
            continue
        [needed] = [roles for prefix, roles in NEEDED.items() if path == prefix or path.startswith(f"{prefix}/")]
        for method in operations:
            sent = path.replace("{", "").replace("}", "")
            problem(guarded.ask(None, method, sent, {}), 401, "unauthorized")
            for role in ROLES:
                response = guarded.ask(role, method, sent, {})
                is_refused = response.status_code in (401, 403)
                assert is_refused == (role not in needed | {"admin"}), (method, path, role, response.text)
                if is_refused:
                    assert problem(response, 403, "forbidden")["name"] in needed
                reached.append((path, role))
    assert len(reached) >= 4 * len(paths.keys() - OPEN)


@pytest.mark.parametrize("path", sorted(OPEN))
def test_what_is_open_needs_no_key(guarded: Guarded, path: str) -> None:
    """Health, readiness and the contract are for whoever probes."""
    assert guarded.ask(None, "GET", path).status_code == 200


def test_paths_that_no_route_has_need_the_highest_role(guarded: Guarded) -> None:
    """What is not known is nobody's business but the administrator's."""
    problem(guarded.ask(None, "GET", "/v1/nothing"), 401, "unauthorized")
    problem(guarded.ask("write", "GET", "/v1/online-featuresx"), 403, "forbidden")
    problem(guarded.ask("admin", "GET", "/v1/nothing"), 404, "no-route")


def test_a_key_answers_with_what_it_may_read(guarded: Guarded) -> None:
    """The values behind a key are those without keys."""
    answer = guarded.ask("read-online", "POST", ONLINE, LOOKUP).json()
    training = guarded.ask("read-offline", "POST", HISTORICAL, TRAINING).json()

    assert answer == {"features": {"airport_weather__temperature": [21.0], "airport_weather__gusts": [7]}}
    assert training["features"]["airport_weather__gusts"] == [7]


@pytest.mark.parametrize(("path", "body"), [(ONLINE, LOOKUP), (HISTORICAL, TRAINING)])
def test_a_restricted_key_reads_its_services(guarded: Guarded, path: str, body: dict[str, Any]) -> None:
    """It reads its own service by name; another service, or the same features as a list, is a 403 that names what it may read."""
    lists = {"features": ["airport_weather:gusts"], "entities": body["entities"]}

    assert guarded.ask("restricted", "POST", path, body | {"feature_service": "gusts"}).status_code == 200
    refused = problem(guarded.ask("restricted", "POST", path, body), 403, "forbidden")
    assert (refused["name"], refused["detail"].endswith("it may read gusts")) == ("flight_weather", True)
    assert problem(guarded.ask("restricted", "POST", path, lists), 403, "forbidden")["name"] == "features"
    arrow = pa.table({"origin": ["EWR"], "event_timestamp": pa.array([at(NOON - HOUR)], TIME)})
    arrow = arrow if path == HISTORICAL else arrow.select(["origin"])
    headers = {"Content-Type": ARROW, "Authorization": f"Bearer {guarded.keys['restricted']}"}
    wanted = {"feature_service": "flight_weather"}
    problem(guarded.client.post(path, content=as_stream(arrow), params=wanted, headers=headers), 403, "forbidden")


def test_a_restricted_key_sees_only_its_services_in_the_registry(guarded: Guarded) -> None:
    """Of the registry a restricted key gets the pages of its own services."""
    assert guarded.ask("restricted", "GET", "/v1/registry/feature-services/gusts").json()["name"] == "gusts"
    for path in ("", "/freshness", "/feature-services", "/feature-services/flight_weather", "/feature-views/airport_weather"):
        problem(guarded.ask("restricted", "GET", f"/v1/registry{path}"), 403, "forbidden")


@pytest.mark.parametrize(
    "authorization",
    [
        "", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer {key} {key}", "Bearer fsk_", "Bearer {other}",
        "Bearer fsk_{id}_", "Bearer \xff\xfe", "Bearer " + "x" * 30_000,
    ],
)  # fmt: skip
def test_what_is_no_key_in_force(guarded: Guarded, authorization: str) -> None:
    """Anything but the whole text of a key in force is a 401 that says how to authenticate, on the hot route and the others."""
    key = guarded.keys["admin"]
    other = f"{key[:17]}{guarded.keys['write'][17:]}"  # the id of one with the secret of another
    value = authorization.format(key=key, other=other, id=key[4:16]).encode("latin-1")

    for method, path in (("POST", ONLINE), ("GET", "/v1/registry")):
        response = guarded.client.request(method, path, json=LOOKUP, headers={b"Authorization": value})
        problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == 'Bearer realm="featurestore"'


def test_the_scheme_is_read_in_any_case(guarded: Guarded) -> None:
    """`bearer` is `Bearer` (RFC 9110), and space around the text means nothing."""
    response = guarded.client.post(ONLINE, json=LOOKUP, headers={"Authorization": f"bearer   {guarded.keys['read-online']} "})

    assert response.status_code == 200


def test_a_revocation_takes_effect_soon(guarded: Guarded) -> None:
    """A key that is revoked elsewhere is refused within the six seconds that are promised; the others stay."""
    keys = guarded.store.registry.api_keys
    _, guarded.keys["leaver"] = keys.create("leaver", ["read-online"], now=NOON)
    wait_for(lambda: guarded.ask("leaver", "POST", ONLINE, LOOKUP).status_code == 200)
    with FeatureStore(guarded.store.settings.root) as elsewhere:
        elsewhere.registry.api_keys.revoke("leaver", now=NOON)

    wait_for(lambda: guarded.ask("leaver", "POST", ONLINE, LOOKUP).status_code == 401)
    assert guarded.ask("read-online", "POST", ONLINE, LOOKUP).status_code == 200


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait as long as the contract says that a revocation takes."""
    deadline = time.monotonic() + 6
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_keys_hold_while_the_registry_is_gone(guarded: Guarded) -> None:
    """Keys are known beside the requests: with the registry gone a good key goes on, a bad one is refused."""
    store = guarded.store
    with FeatureStore(store.settings.root) as apart, TestClient(create_app(apart)) as client:
        headers = {"Authorization": f"Bearer {guarded.keys['read-online']}"}
        assert client.post(ONLINE, json=LOOKUP, headers=headers).status_code == 200
        lost = apart.registry
        (store.settings.root / "lost.db").write_bytes(b"no database" * 100)
        gone = store.settings.registry.model_copy(update={"url": f"sqlite:///{store.settings.root}/lost.db"})
        apart.settings, apart._registry = apart.settings.model_copy(update={"registry": gone}), None
        time.sleep(1.2)  # the next request looks at the registry
        answers = [client.post(ONLINE, json=LOOKUP, headers=headers).status_code for _ in range(20)]
        refused = client.post(ONLINE, json=LOOKUP)
        lost.close()

    assert answers == [200] * 20
    problem(refused, 401, "unauthorized")


def test_a_service_that_others_reach_is_closed_without_keys(weather_repo: Repo) -> None:
    """Without a key a service on this machine is open, another says how to make one; revoking the last key opens nothing."""
    with FeatureStore(weather_repo.folder) as store:
        store.apply()
        assert TestClient(create_app(store)).get("/v1/registry").status_code == 200
        closed = TestClient(create_app(store, is_open=False))
        assert "featurestore keys create" in problem(closed.get("/v1/registry"), 401, "unauthorized")["detail"]
        problem(closed.post(ONLINE, json=LOOKUP), 401, "unauthorized")
        store.registry.api_keys.create("last", ["admin"], now=NOON)
        store.registry.api_keys.revoke("last", now=NOON)
        problem(TestClient(create_app(store)).get("/v1/registry"), 401, "unauthorized")


def test_a_registry_that_was_never_read_lets_nobody_in(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that does not know the keys yet answers 503, with a key and without."""
    lost = guarded.store.settings.root / "never.db"
    lost.write_bytes(b"no database" * 100)
    monkeypatch.setenv("FEATURESTORE_REGISTRY__URL", f"sqlite:///{lost}")
    with FeatureStore(guarded.store.settings.root) as store:
        client = TestClient(create_app(store))
        for key in ("", f"Bearer {guarded.keys['admin']}"):
            problem(client.get("/v1/registry", headers={"Authorization": key}), 503, "registry")
            problem(client.post(ONLINE, json=LOOKUP, headers={"Authorization": key}), 503, "registry")
        assert client.get("/healthz").status_code == 200


# Headers


@pytest.mark.parametrize("path", [ONLINE, "/v1/registry", "/docs", "/nothing"])
def test_answers_carry_security_headers(client: TestClient, path: str) -> None:
    """Nothing is sniffed or kept by a cache, pages are not framed, and no other origin is let in."""
    response = client.post(path, json=LOOKUP, headers={"Origin": "https://evil.example"})
    page = client.get("/docs", headers={"Origin": "https://evil.example"})

    assert (response.headers["x-content-type-options"], response.headers["cache-control"]) == ("nosniff", "no-store")
    assert page.headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in response.headers.keys() | page.headers.keys()
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options(path, headers=asked).headers


def test_origins_that_are_let_in(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of the origins in server.cors_origins may call the service, those of others not."""
    monkeypatch.setenv("FEATURESTORE_SERVER__CORS_ORIGINS", '["https://a.example"]')
    with FeatureStore(store.settings.root) as shared:
        client = TestClient(create_app(shared))
        for origin, expected in (("https://a.example", "https://a.example"), ("https://b.example", None)):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization"}
            assert client.options(ONLINE, headers=asked).headers.get("access-control-allow-origin") == expected
            response = client.post(ONLINE, json=LOOKUP, headers={"Origin": origin})
            assert response.headers.get("access-control-allow-origin") == expected
        names = "accept, authorization, content-type, feature-service-fingerprint, idempotency-key, x-request-id"
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": names}
        assert client.options(ONLINE, headers=asked).status_code == 200
        exposed = client.post(ONLINE, json=LOOKUP, headers={"Origin": "https://a.example"}).headers["access-control-expose-headers"]
        assert set(exposed.split(", ")) == {"X-Request-Id", "Retry-After", "Location"}


@pytest.mark.parametrize("path", [ONLINE, "/v1/registry", "/healthz"])
@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("7f3a", True), ("a/b.c:d=", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("a b", False), ('"},{"', False),
     ("ä", False)],
)  # fmt: skip
def test_request_ids(client: TestClient, path: str, given: str, is_kept: bool) -> None:
    """A client's request id comes back if a log can hold it as it is; else, and without one, a new one of its own."""
    headers = {b"X-Request-Id": given.encode("latin-1")}
    ids = [client.post(path, json=LOOKUP, headers=headers).headers["x-request-id"] for _ in range(2)]

    if is_kept:
        assert ids == [given, given]
    else:
        assert len({*ids, given}) == 3
    assert client.post(path, json=LOOKUP).headers["x-request-id"]
