from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import orjson
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW, JSON
from tests.service import HISTORICAL, ONLINE, SPINE, as_stream, problem, request_of

Limited = Callable[..., TestClient]
LOOKUP = {"feature_service": "everything", "entities": {"user_id": [1, 2, 3]}}


@pytest.fixture
def limited(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Limited]:
    """Makes clients of a service with a setting of its own."""
    with ExitStack() as stack:

        def make(setting: str, value: int) -> TestClient:
            monkeypatch.setenv(f"FEATURESTORE_SERVER__{setting.upper()}", str(value))
            return TestClient(create_app(stack.enter_context(FeatureStore(store.settings.root))))

        yield make


def beyond(response: Any, setting: str, limit: int) -> str:
    """Return the detail of a refusal, which names the limit."""
    found = problem(response, 413, "too-large")
    assert (found["name"], found["limit"]) == (f"server.{setting}", limit)
    assert f"server.{setting} is {limit}" in found["detail"]
    return str(found["detail"])


@pytest.mark.parametrize("in_parts", [False, True])
def test_the_largest_body(limited: Limited, in_parts: bool) -> None:
    """A body of as many bytes as max_body_bytes is read, one more is refused, whether it says its length or comes in parts."""
    body = orjson.dumps(LOOKUP)
    client = limited("max_body_bytes", len(body))

    def send(content: bytes, path: str = ONLINE) -> Any:
        parts: Any = (content[place : place + 7] for place in range(0, len(content), 7)) if in_parts else content
        return client.post(path, content=parts, headers={"Content-Type": JSON})

    assert send(body).status_code == 200
    beyond(send(body + b" "), "max_body_bytes", len(body))
    beyond(send(body + b" ", "/v1/registry"), "max_body_bytes", len(body)) if not in_parts else None


@pytest.mark.parametrize("in_parts", [False, True])
def test_the_largest_table(limited: Limited, in_parts: bool) -> None:
    """Spines have a limit of their own, max_table_bytes."""
    body = as_stream(SPINE)

    def send(client: TestClient) -> Any:
        parts: Any = (body[place : place + 99] for place in range(0, len(body), 99)) if in_parts else body
        headers = {"Content-Type": ARROW}
        return client.post(HISTORICAL, content=parts, params={"feature_service": "everything"}, headers=headers)

    assert send(limited("max_table_bytes", len(body))).status_code == 200
    beyond(send(limited("max_table_bytes", len(body) - 1)), "max_table_bytes", len(body) - 1)


def test_a_body_that_lies_about_its_length_is_cut_where_the_limit_is(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body without end is refused once it is beyond the limit, whatever its Content-Length says; the rest is not kept."""
    monkeypatch.setenv("FEATURESTORE_SERVER__MAX_BODY_BYTES", "1000")
    for path in (ONLINE, "/v1/registry"):
        received = 0
        sent: list[Any] = []

        async def receive() -> Any:
            nonlocal received
            received += 100
            return {"type": "http.request", "body": b" " * 100, "more_body": True}

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        headers = [(b"content-type", JSON.encode()), (b"content-length", b"10")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers, "root_path": ""}
        with FeatureStore(store.settings.root) as limited:
            asyncio.run(create_app(limited)(scope, receive, send))
        if path == ONLINE:
            assert (sent[0]["status"], received) == (413, 1100)


def test_the_most_entities(limited: Limited) -> None:
    """max_rows entities are looked up, one more is refused, in JSON and as Arrow, before anything is asked of the online store."""
    assert limited("max_rows", 3).post(ONLINE, json=LOOKUP).status_code == 200
    client = limited("max_rows", 2)
    headers, wanted = {"Content-Type": ARROW}, {"feature_service": "everything"}

    assert beyond(client.post(ONLINE, json=LOOKUP), "max_rows", 2).startswith("3 entities")
    table = as_stream(pa.table({"user_id": [1, 2, 3]}))
    beyond(client.post(ONLINE, content=table, params=wanted, headers=headers), "max_rows", 2)
    beyond(client.post(ONLINE, json=LOOKUP | {"entities": {"no_key": [1, 2, 3]}}), "max_rows", 2)


def test_the_most_features(limited: Limited) -> None:
    """max_features of a list or a service are answered, one more is refused, online and historical."""
    assert limited("max_features", 11).post(ONLINE, json=LOOKUP).status_code == 200
    client = limited("max_features", 10)
    listed = {"features": ["every_type:flag"] * 11, "entities": {"user_id": [1]}}

    assert beyond(client.post(ONLINE, json=LOOKUP), "max_features", 10).startswith("11 features")
    beyond(client.post(ONLINE, json=listed), "max_features", 10)
    beyond(client.post(HISTORICAL, **request_of(SPINE, JSON, feature_service="everything")), "max_features", 10)


@pytest.mark.parametrize("path", [ONLINE, HISTORICAL])
@pytest.mark.parametrize(
    "body",
    [
        {"feature_service": "everything", "entities": {"user_id": [[[[[1]]]]]}},
        {"feature_service": "everything", "entities": {"user_id": [{"a": {"b": {"c": 1}}}]}},
        {"what": [[[[[[]]]]]]},
        [[[[[[[]]]]]]],
    ],
)
def test_the_deepest_nesting(limited: Limited, path: str, body: Any) -> None:
    """JSON nested deeper than max_nesting is refused as such; one that is as deep is judged by what it says."""
    beyond(limited("max_nesting", 4).post(path, json=body), "max_nesting", 4)
    response = limited("max_nesting", 8).post(path, json=body)
    assert response.status_code == 422


def test_nesting_beyond_all_measure(client: TestClient) -> None:
    """A body of nothing but brackets is a 4xx, not a crash."""
    for body in (b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 50_000):
        problem(client.post(ONLINE, content=body, headers={"Content-Type": JSON}), 400, "malformed")


@contextmanager
def silent_redis() -> Iterator[str]:
    """Give the URL of a server that takes commands and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"


def test_the_longest_time(limited: Limited, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not begin within request_timeout_ms is a 503 with Retry-After that names the limit."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__TIMEOUT_MS", "500")
    with silent_redis() as url:
        monkeypatch.setenv("FEATURESTORE_ONLINE__URL", url)
        with limited("request_timeout_ms", 100) as client:
            late = client.post(ONLINE, json=LOOKUP)
    found = problem(late, 503, "too-slow")

    assert (found["name"], found["limit"], late.headers["retry-after"]) == ("server.request_timeout_ms", 100, "1")


@pytest.mark.parametrize("path", [ONLINE, HISTORICAL])
def test_a_body_that_does_not_come(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A client that stops in the middle of its body holds a request for as long as the limit says, and no longer."""
    monkeypatch.setenv("FEATURESTORE_SERVER__REQUEST_TIMEOUT_MS", "100")
    monkeypatch.setenv("FEATURESTORE_SERVER__TRAINING_TIMEOUT_MS", "100")
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", JSON.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers, "root_path": ""}
    with FeatureStore(store.settings.root) as limited:
        asyncio.run(create_app(limited)(scope, receive, send))

    assert (sent[0]["status"], orjson.loads(sent[1]["body"])["type"]) == (503, "/problems/too-slow")
