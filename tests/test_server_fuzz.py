"""The HTTP service under generated requests: those that its OpenAPI document allows, those that it does not, and broken bodies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW, JSON, PARQUET, PROBLEM
from tests.service import BIG, HISTORICAL, ONLINE, SPINE, as_parquet, as_stream

TRAINING_SETS = "/v1/training-sets"


def some(count: int) -> settings:
    """Return how many requests to make: the same in each run."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def excluded() -> list[Any]:
    """Return the check that does not hold here: a schema cannot say which names there are, so what it allows may be refused."""
    load_all_checks()
    return [CHECKS.get_one("positive_data_acceptance")]


@pytest.mark.parametrize(("mode", "count"), [(GenerationMode.POSITIVE, 6), (GenerationMode.NEGATIVE, 4)])
def test_the_service_keeps_its_contract(store: FeatureStore, mode: GenerationMode, count: int) -> None:
    """Whatever is sent, no answer is a 5xx, and status, type, headers and body are those of the OpenAPI document."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(store))
    seen = set()
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        requests = operation.as_strategy(generation_mode=mode)

        @some(count)
        @given(case=requests)
        def validate(case: Case[Any]) -> None:
            seen.add(case.operation.path)
            case.call_and_validate(excluded_checks=excluded())

        with suppress(Unsatisfiable):  # a request without parameters cannot be wrong
            validate()

    assert {ONLINE, HISTORICAL, TRAINING_SETS} <= seen


# Bodies


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)

ENTITIES: dict[str, Any] = {"user_id": [BIG]}
VALID: dict[str, Any] = {"features": ["every_type:large"], "entities": ENTITIES}
KINDS = {"features": list, "entities": dict, "metadata": bool, "timestamp_column": str, "incomplete": str, "feature_service": str}


@st.composite
def faulty(draw: Callable[..., Any], members: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """Return a request with one fault, and the name that the problem has to have."""
    match draw(st.sampled_from(["unknown", "kind", "missing", "key", "extra key", "no such view"])):
        case "unknown":
            name = draw(st.text(min_size=1).filter(lambda text: text not in KINDS))
            return {**VALID, name: draw(values)}, name
        case "kind":
            name = draw(st.sampled_from(members))
            others = {key: value for key, value in VALID.items() if name != "feature_service" or key != "features"}
            wrong = draw(values.filter(lambda value: not isinstance(value, KINDS[name]) and value is not None))
            return {**others, name: wrong}, name
        case "missing":
            return {"features": VALID["features"]}, "entities"
        case "key":
            wrong = draw(
                values.filter(lambda value: value is not None and (type(value) is not int or not -(2**63) <= value < 2**63))
            )
            return {**VALID, "entities": {**ENTITIES, "user_id": [wrong]}}, "user_id"
        case "extra key":
            name = draw(st.text(min_size=1).filter(lambda text: text not in ("user_id", "event_timestamp")))
            return {**VALID, "entities": {**ENTITIES, name: [{}]}}, name
        case _:
            name = draw(st.from_regex(r"[a-z]{1,9}", fullmatch=True).filter(lambda text: text != "friend"))
            return {**VALID, "features": [f"{name}:x"]}, name


@pytest.mark.parametrize(
    ("route", "members", "count"),
    [
        (ONLINE, ("features", "feature_service", "entities", "metadata"), 200),
        (HISTORICAL, ("features", "feature_service", "entities", "timestamp_column", "incomplete"), 30),
        (TRAINING_SETS, ("features", "feature_service", "entities", "timestamp_column", "incomplete"), 15),
    ],
)
def test_a_problem_names_what_is_wrong(client: TestClient, route: str, members: tuple[str, ...], count: int) -> None:
    """One fault in an otherwise good body is a 4xx problem whose name is that of the faulty member, column or view."""
    spine = {} if route == ONLINE else {"event_timestamp": ["2013-06-01T12:00:00Z"]}

    @some(count)
    @given(request=faulty(members))
    def refused(request: tuple[dict[str, Any], str]) -> None:
        body, name = request
        if isinstance(body.get("entities"), dict):
            body = body | {"entities": spine | body["entities"]}
        response = client.post(route, json=body)
        found = response.json()
        assert 400 <= response.status_code < 500, (body, found)
        assert response.headers["content-type"] == PROBLEM
        assert name in (found["name"], found["name"].partition(".")[0]), (body, found)
        assert found["detail"]

    refused()


WHOLE = {JSON: b'{"features": ["every_type:large"], "entities": {}}', ARROW: as_stream(SPINE), PARQUET: as_parquet(SPINE)}


@pytest.mark.parametrize(("route", "count"), [(ONLINE, 200), (HISTORICAL, 20), (TRAINING_SETS, 20)])
def test_bytes_that_are_no_request(client: TestClient, route: str, count: int) -> None:
    """Bytes that are not what their Content-Type says are a 4xx problem that says so, whatever they are."""

    @some(count)
    @given(type_=st.sampled_from([JSON, ARROW, PARQUET]), noise=st.binary(max_size=200), place=st.integers(0, 4000))
    def refused(type_: str, noise: bytes, place: int) -> None:
        whole = WHOLE[type_]
        content = noise if place > len(whole) else whole[:place] + noise
        query = {} if type_ == JSON else {"features": "every_type:large"}
        response = client.post(route, content=content, params=query, headers={"Content-Type": type_})
        if response.status_code in (200, 202):  # what was cut off was not needed, as the end of a stream
            assert type_ == ARROW
            return
        assert 400 <= response.status_code < 500, (content, response.text)
        assert response.headers["content-type"] == PROBLEM
        assert response.json()["detail"]

    refused()
