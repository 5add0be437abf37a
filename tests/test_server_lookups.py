from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import orjson
import pyarrow as pa
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW, JSON
from tests.conftest import WEATHER, Repo
from tests.service import BIG, ONLINE, ROWS_IN_JSON, USERS, ended, of_bytes, problem

EVERYTHING = {"feature_service": "everything", "entities": {"user_id": [BIG]}}
ASKED = {"feature_service": "flight_weather", "entities": {"origin": ["EWR"]}}


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what is to come in a few seconds."""
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_lookups_go_on_without_the_registry(weather_repo: Repo, caplog: pytest.LogCaptureFixture) -> None:
    """A registry that is lost is looked for in the background; meanwhile names mean what they did, and the log says so."""
    with ended(weather_repo.open()) as store:
        store.apply()
        store.materialize()
        with TestClient(create_app(store)) as client:
            expected = client.post(ONLINE, json=ASKED).json()
            assert expected["features"]["airport_weather__temperature"] == [21.0]
            lost = store.registry
            (weather_repo.folder / "lost.db").write_bytes(b"no database" * 100)
            gone = store.settings.registry.model_copy(update={"url": f"sqlite:///{weather_repo.folder}/lost.db"})
            store.settings, store._registry = store.settings.model_copy(update={"registry": gone}), None
            until(lambda: client.post(ONLINE, json=ASKED).json() == expected and "said last" in caplog.text)
            answers = [client.post(ONLINE, json=ASKED) for _ in range(20)]
            unknown = client.post(ONLINE, json=ASKED | {"feature_service": "flight_wether"})
        lost.close()

    assert [answer.json() for answer in answers] == [expected] * 20
    assert problem(unknown, 404, "not-found")["nearest"] == ["flight_weather"]
    assert {record.levelno for record in caplog.records if "said last" in record.getMessage()} == {logging.WARNING}


def test_what_is_applied_elsewhere_is_served_soon(weather_repo: Repo) -> None:
    """A service that another process applies is known a moment later, and lookups that were compiled before go on."""
    with ended(weather_repo.open()) as store:
        store.apply()
        store.materialize()
        with TestClient(create_app(store)) as client:
            new = ASKED | {"feature_service": "gusts"}
            problem(client.post(ONLINE, json=new), 404, "not-found")
            weather_repo.define(WEATHER + 'gusts = FeatureService("gusts", features=[airport_weather[["gusts"]]])\n')
            with FeatureStore(weather_repo.folder) as elsewhere:
                elsewhere.apply()
            until(lambda: client.post(ONLINE, json=new).status_code == 200)

            assert client.post(ONLINE, json=new).json() == {"features": {"airport_weather__gusts": [2**53 + 1]}}
            assert client.post(ONLINE, json=ASKED).status_code == 200


def test_a_silent_online_store_is_a_503(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes commands and never answers costs its time-out, and leaves a 503 with Retry-After."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("FEATURESTORE_ONLINE__URL", f"redis://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("FEATURESTORE_ONLINE__TIMEOUT_MS", "100")
        with FeatureStore(store.settings.root) as cut_off, TestClient(create_app(cut_off)) as client:
            lookup = client.post(ONLINE, json={"feature_service": "everything", "entities": USERS})

    problem(lookup, 503, "online-store")
    assert int(lookup.headers["retry-after"]) > 0


def test_many_entities_are_answered_as_few_are(client: TestClient) -> None:
    """A body that is too large to be read on the event loop has the same answers, row by row."""
    users = [BIG, BIG - 1, -5, 7, None, 12345] * 5_000
    few = client.post(ONLINE, json={"feature_service": "everything", "entities": {"user_id": users[:6]}, "metadata": True}).json()
    many = client.post(ONLINE, json={"feature_service": "everything", "entities": {"user_id": users}, "metadata": True}).json()

    assert many["features"] == {name: values * 5_000 for name, values in few["features"].items()}
    metadata = few["metadata"]["every_type"]
    assert many["metadata"]["every_type"] == {name: values * 5_000 for name, values in metadata.items()}


def test_a_feature_list_is_not_a_service(client: TestClient) -> None:
    """A list of features and a service of the same name are two questions; null members are as if they were absent."""
    asked = {"features": ["everything"], "feature_service": None, "entities": {"user_id": [BIG]}}

    assert problem(client.post(ONLINE, json=asked), 422, "input")["name"] == "everything"
    answer = client.post(ONLINE, json=EVERYTHING | {"features": None})
    assert answer.json() == {"features": {f"every_type__{name}": values[:1] for name, values in ROWS_IN_JSON.items()}}


def test_several_accept_headers_are_one_list(client: TestClient) -> None:
    """Accept may come in several lines, and the most wanted of all of them is what comes."""
    headers = [("Content-Type", JSON), ("Accept", "text/csv"), ("Accept", f"{ARROW}, {JSON};q=0.5")]
    response = client.post(ONLINE, content=orjson.dumps(EVERYTHING), headers=headers)

    assert of_bytes(response.content, ARROW)["every_type__large"].equals(pa.chunked_array([[-(2**63)]]))


def test_under_a_prefix_it_answers_the_same(store: FeatureStore, client: TestClient) -> None:
    """An application that is mounted in another one answers as it does alone."""
    mounted = TestClient(Starlette(routes=[Mount("/features", create_app(store))]))

    assert mounted.post(f"/features{ONLINE}", json=EVERYTHING).json() == client.post(ONLINE, json=EVERYTHING).json()
    problem(mounted.post(f"/features{ONLINE}", json={}), 422, "input")


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_body_in_parts(store: FeatureStore, is_gone: bool) -> None:
    """A body is read to its end, however it is cut; a client that has gone before it gets nothing."""
    body = orjson.dumps(EVERYTHING)
    end = {"type": "http.disconnect"} if is_gone else {"type": "http.request", "body": body[20:]}
    messages: list[Any] = [{"type": "http.request", "body": body[:20], "more_body": True}, end]
    sent: list[Any] = []
    scope = {"type": "http", "method": "POST", "path": ONLINE, "query_string": b"", "headers": [(b"content-type", JSON.encode())]}

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(create_app(store)(scope, receive, send))

    assert [message.get("status") for message in sent] == ([] if is_gone else [200, None])
