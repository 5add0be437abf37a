from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.contract import ARROW, JSON
from featurestore_server.shortcut import MOST_HEAD_BYTES
from tests.service import BIG, ONLINE, serving
from tests.test_server_metrics import count, parsed

EVERYTHING = {"feature_service": "everything", "entities": {"user_id": [BIG, BIG - 1, -5, 7, 12345]}}


@pytest.fixture(scope="module")
def port(store: FeatureStore) -> Iterator[int]:
    """The port of a service in a process of its own."""
    with serving(store.settings.root, "--json") as (_, line):
        yield int(json.loads(line)["url"].rpartition(":")[2])


def head(body: bytes, **headers: str) -> bytes:
    """Return the head of a lookup."""
    given = {"Host": "x", "Content-Type": JSON, "Content-Length": str(len(body))} | headers
    return f"POST {ONLINE} HTTP/1.1\r\n".encode() + b"".join(f"{k}: {v}\r\n".encode() for k, v in given.items()) + b"\r\n"


def request(asked: Any, **headers: str) -> bytes:
    """Return a lookup as it goes over the wire."""
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    return head(body, **headers) + body


def exchange(port: int, *parts: bytes, count: int = 1) -> list[tuple[int, dict[str, str], bytes]]:
    """Send parts, a moment between them, and return so many answers: status, headers and body."""
    answers = []
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        for number, part in enumerate(parts):
            time.sleep(0.08 * bool(number))
            connection.sendall(part)
        file = connection.makefile("rb")
        for _ in range(count):
            status = int(file.readline().split()[1])
            headers = dict(line.decode().rstrip().split(": ", 1) for line in iter(file.readline, b"\r\n"))
            answers.append((status, headers, file.read(int(headers["content-length"]))))
    return answers


def test_both_ways_give_the_same_answer(port: int, client: TestClient) -> None:
    """The short way answers what the application answers, byte for byte, in JSON and as Arrow, with metadata and without."""
    for asked in (EVERYTHING, EVERYTHING | {"metadata": True}, {"features": ["every_type:text"], "entities": {"user_id": [BIG]}}):
        for accept in (JSON, ARROW):
            [(status, headers, body)] = exchange(port, request(asked, Accept=accept))
            expected = client.post(ONLINE, json=asked, headers={"Accept": accept})
            assert (status, headers["content-type"]) == (200, accept)
            assert body == expected.content
            names = {name for name in headers if name not in ("date", "x-request-id")}
            assert names == {name for name in expected.headers if name != "x-request-id"}


@pytest.mark.parametrize(
    ("asked", "headers", "expected"),
    [
        ({"feature_service": "everythin", "entities": {"user_id": [1]}}, {}, 404),
        ({"feature_service": "everything", "entities": {"user_id": ["1"]}}, {}, 422),
        ({"feature_service": "everything", "entities": {}}, {}, 422),
        ({"feature_service": "everything", "entities": {"user_id": [None]}}, {}, 200),
        ({"feature_service": "everything", "entities": {"user_id": []}}, {}, 200),
        (b"{", {}, 400),
        (b"", {}, 400),
        (EVERYTHING, {"Content-Type": "text/plain"}, 415),
        (EVERYTHING, {"Accept": "text/html"}, 406),
        (EVERYTHING, {"Content-Encoding": "gzip"}, 415),
        (EVERYTHING, {"Feature-Service-Fingerprint": ""}, 422),
    ],
)
def test_what_the_short_way_does_not_take_goes_the_long_one(
    port: int, client: TestClient, asked: Any, headers: dict[str, str], expected: int
) -> None:
    """Refusals and rare forms have the application's own answer."""
    [(status, _, body)] = exchange(port, request(asked, **headers))
    content = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    long = client.post(ONLINE, content=content, headers={"Content-Type": JSON} | headers)

    assert (status, json.loads(body)) == (expected, long.json())
    assert long.status_code == expected


def test_the_largest_body(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body beyond max_body_bytes is refused, however small that is, in the application's own words."""
    content = json.dumps(EVERYTHING).encode()
    monkeypatch.setenv("FEATURESTORE_SERVER__MAX_BODY_BYTES", str(len(content)))
    with serving(store.settings.root, "--json") as (_, line):
        limited = int(json.loads(line)["url"].rpartition(":")[2])
        [largest], [beyond] = exchange(limited, request(content)), exchange(limited, request(content + b" "))

    assert (largest[0], beyond[0]) == (200, 413)
    assert json.loads(beyond[2])["name"] == "server.max_body_bytes"


def test_requests_that_come_in_one_go_are_answered_in_their_order(port: int) -> None:
    """Pipelined requests, good and bad, on the hot route and others, have their answers in order on one connection."""
    users = [BIG, BIG - 1, 7]
    lookups = [
        request({"feature_service": "everything", "entities": {"user_id": [user]}}, **{"X-Request-Id": str(user)}) for user in users
    ]
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: health\r\n\r\n"
    unknown = request(EVERYTHING | {"feature_service": "none"}, **{"X-Request-Id": "none"})
    sent = [lookups[0], lookups[1], health, unknown, lookups[2], health, lookups[0]]
    answers = exchange(port, b"".join(sent), count=len(sent))

    ids = [headers["x-request-id"] for _, headers, _ in answers]
    assert ids == [str(BIG), str(BIG - 1), "health", "none", "7", "health", str(BIG)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 404, 200, 200, 200]
    large = [json.loads(body)["features"]["every_type__large"] for _, headers, body in answers if headers["x-request-id"].isdigit()]
    assert large == [[-(2**63)], [2**63 - 1], [None], [-(2**63)]]


@pytest.mark.parametrize("cut", [10, 60, -30, -1])
def test_a_request_in_pieces(port: int, cut: int) -> None:
    """Wherever a request is cut and however late the rest comes, it is answered, and the connection goes on."""
    whole = request(EVERYTHING)
    body = json.dumps(EVERYTHING).encode()
    late, in_time = exchange(port, whole[:cut], whole[cut:] + whole, count=2)
    [apart] = exchange(port, head(body), body)

    assert late[0] == in_time[0] == apart[0] == 200
    assert late[2] == in_time[2] == apart[2]


def test_the_head_of_a_request_comes_with_a_large_body_before_it(port: int) -> None:
    """A head is measured by its own bytes, not by those of the message whose end came with its beginning."""
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    large = request(json.dumps(EVERYTHING).encode() + b" " * 2 * MOST_HEAD_BYTES)
    parts = [health[20:] + large + health[:20]] * 10  # in how few reads one comes is the kernel's choice
    answers = exchange(port, health[:20], *parts, health[20:], count=21)

    assert [status for status, _, _ in answers] == [200] * 21


def test_what_is_no_http(port: int) -> None:
    """Garbage and a head without end are refused as problems, and the connection ends; the service goes on."""
    endless = b"GET /healthz HTTP/1.1\r\nX: " + b"a" * (MOST_HEAD_BYTES + 1000)
    many = b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * (MOST_HEAD_BYTES // 5)
    for sent, expected, code in ((b"\0\1\2\r\n\r\n", 400, "malformed"), (endless, 413, "too-large"), (many, 413, "too-large")):
        [(status, headers, body)] = exchange(port, sent)
        assert (status, json.loads(body)["type"], headers["connection"]) == (expected, f"/problems/{code}", "close")
    assert exchange(port, request(EVERYTHING))[0][0] == 200


def test_what_is_no_http_is_counted_and_logged(store: FeatureStore) -> None:
    """Its refusals have an id, which the log has too, and count as answers of no route."""
    endless = b"GET /healthz?x HTTP/1.1\r\nX-Request-Id: mine\r\nX: " + b"a" * (MOST_HEAD_BYTES + 1000)
    with serving(store.settings.root, "--json") as (process, line):
        url = json.loads(line)["url"]
        place = int(url.rpartition(":")[2])
        answers = [exchange(place, sent)[0] for sent in (b"\0\1\2\r\n\r\n", endless)]
        samples = parsed(httpx.get(f"{url}/metrics", timeout=60).text)
        process.terminate()
        _, log = process.communicate(timeout=60)
    lines = [each for each in map(json.loads, log.splitlines()) if each["logger"] == "featurestore_server.requests"]
    ids = [headers["x-request-id"] for _, headers, _ in answers]

    assert ids[1] == "mine"
    assert (count(samples, "other", "", 400), count(samples, "other", "", 413)) == (1, 1)
    assert [(each["method"], each["path"], each["status"], each["request_id"]) for each in lines] == [
        ("-", "-", 400, ids[0]),
        ("GET", "/healthz", 413, ids[1]),
    ]


@pytest.mark.parametrize(
    "extra",
    [
        {"Expect": "100-continue"}, {"Connection": "close"}, {"Content-Length": "-1"}, {"Content-Length": "x"},
        {"Transfer-Encoding": "chunked"}, {"Upgrade": "websocket", "Connection": "Upgrade"},
    ],
)  # fmt: skip
def test_unusual_heads(port: int, extra: dict[str, str]) -> None:
    """Heads that ask for more than a lookup are answered by the rules of HTTP: never a 5xx, never silence."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(head(b"{}", **extra) + b"{}")
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 100"))
    assert b"HTTP/1.1 5" not in answer


def test_a_client_that_goes_away(port: int) -> None:
    """A client that closes right after its request harms nobody."""
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(request(EVERYTHING))
    assert exchange(port, request(EVERYTHING))[0][0] == 200
