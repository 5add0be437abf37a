from __future__ import annotations

import json
import random
import struct

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from featurestore_server.contract import ARROW, JSON, PARQUET, PROBLEM
from featurestore_server.values import to_json
from tests.conftest import NOON, TIME, at
from tests.service import BIG, HISTORICAL, ONLINE, SPINE, THING_IN_JSON, as_parquet, as_stream, problem, request_of


@pytest.mark.parametrize("route", [ONLINE, HISTORICAL])
@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        pytest.param(b"", {"Content-Type": JSON}, 400, "malformed", id="empty"),
        pytest.param(b"{", {"Content-Type": JSON}, 400, "malformed", id="cut"),
        pytest.param(b'{"a": NaN}', {"Content-Type": JSON}, 400, "malformed", id="NaN"),
        pytest.param(b'{"a": 1e999}', {"Content-Type": JSON}, 400, "malformed", id="infinite"),
        pytest.param(b'"\\ud800"', {"Content-Type": JSON}, 400, "malformed", id="half a character"),
        pytest.param(b'"\xff"', {"Content-Type": JSON}, 400, "malformed", id="not UTF-8"),
        pytest.param(b"[" * 100_000, {"Content-Type": JSON}, 400, "malformed", id="deep"),
        pytest.param(b"{}", {}, 415, "unsupported-media-type", id="no type"),
        pytest.param(b"{}", {"Content-Type": "text/plain"}, 415, "unsupported-media-type", id="text"),
        pytest.param(b"{}", {"Content-Type": f"{JSON}; charset=latin-1"}, 415, "unsupported-media-type", id="latin-1"),
        pytest.param(b"{}", {"Content-Type": JSON, "Content-Encoding": "gzip"}, 415, "unsupported-media-type", id="gzip"),
        pytest.param(b"{}", {"Content-Type": JSON, "Accept": "text/csv"}, 406, "not-acceptable", id="accept csv"),
        pytest.param(b"{}", {"Content-Type": JSON, "Accept": "*/*;q=0"}, 406, "not-acceptable", id="accept nothing"),
        pytest.param(b"", {"Content-Type": ARROW}, 400, "malformed", id="no Arrow"),
        pytest.param(b"ARROW1\0\0" * 9, {"Content-Type": ARROW}, 400, "malformed", id="bad Arrow"),
        pytest.param(as_stream(SPINE)[:-300], {"Content-Type": ARROW}, 400, "malformed", id="cut Arrow"),
    ],
)
def test_what_is_wrong_with_a_body(
    client: TestClient, route: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    """A body that is not what it claims, or is of a type that is not understood, is a problem; 415 says what would be."""
    query = {"features": "every_type:large"} if headers.get("Content-Type") == ARROW else {}
    response = client.post(route, content=content, headers=headers, params=query)

    problem(response, status, code)
    if status == 415:
        assert response.headers["accept-post"].startswith(f"{JSON}, {ARROW}")


def test_crafted_arrow_is_refused(client: TestClient) -> None:
    """Offsets that point outside their buffer and texts that are no UTF-8 are found before anything follows them."""
    table = pa.table({"user_id": [1], "event_timestamp": pa.array([at(NOON)], TIME), "x": ["a" * 1234]})
    request = request_of(table, ARROW, features="every_type:large")
    offsets, text = struct.pack("<ii", 0, 1234), b"aaaa"
    for part, crafted in (
        (offsets, struct.pack("<ii", 0, 10**6)),
        (offsets, struct.pack("<ii", -(10**6), 1234)),
        (text, b"\xff" * 4),
    ):
        assert part in request["content"]
        content = request["content"].replace(part, crafted, 1)
        problem(client.post(HISTORICAL, **request | {"content": content}), 400, "malformed")


def test_mutated_requests_never_break_the_service(client: TestClient) -> None:
    """Bytes flipped, cut, doubled or moved anywhere in a request give an answer or a problem of the client's, never a 5xx."""
    seeded = random.Random(2013)
    asked = {"features": ["every_type:large", "thing_notes:note"], "metadata": True}
    online = json.dumps(
        asked | {"entities": {**{name: [value] for name, value in THING_IN_JSON.items()}, "user_id": [BIG]}}
    ).encode()
    spine = json.dumps({"features": ["every_type:large"], "entities": {name: to_json(SPINE[name]) for name in SPINE.column_names}})
    query = {"features": "every_type:large"}
    cases: list[tuple[str, str, bytes, dict[str, str], int]] = [
        (ONLINE, JSON, online, {}, 150),
        (HISTORICAL, JSON, spine.encode(), {}, 30),
        (ONLINE, ARROW, as_stream(pa.table({"user_id": [BIG, None]})), query, 150),
        (HISTORICAL, ARROW, as_stream(SPINE), query, 40),
        (HISTORICAL, PARQUET, as_parquet(SPINE), query, 30),
    ]
    for route, type_, body, parameters, count in cases:
        assert client.post(route, content=body, params=parameters, headers={"Content-Type": type_}).status_code == 200
        for _ in range(count):
            content = mutated(body, seeded)
            response = client.post(route, content=content, params=parameters, headers={"Content-Type": type_})
            assert response.status_code < 500, (route, type_, content, response.text)
            assert response.status_code == 200 or response.headers["content-type"] == PROBLEM


def mutated(body: bytes, seeded: random.Random) -> bytes:
    """Return a body with one to three faults."""
    content = bytearray(body)
    for _ in range(seeded.randint(1, 3)):
        place = seeded.randrange(len(content)) if content else 0
        end = min(len(content), place + seeded.choice([1, 4, 40]))
        match seeded.randrange(5):
            case 0:
                content[place:end] = bytes(each ^ (1 << seeded.randrange(8)) for each in content[place:end])
            case 1:
                del content[place:end]
            case 2:
                content[place:place] = content[place:end]
            case 3:
                content[place:end] = seeded.choice(
                    [b"null", b"[]", b"{}", b"-1", b'"', b"1e400", b"\xff\xff\xff\x7f", b"99999999999999999999"]
                )
            case _:
                del content[place:]
    return bytes(content)
