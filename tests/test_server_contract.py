from __future__ import annotations

import json
import re

from starlette.testclient import TestClient

from featurestore_server import contract
from featurestore_server.contract import ARROW, JSON, PROBLEM
from tests.service import ONLINE


def test_openapi_is_complete(client: TestClient) -> None:
    """Each route is documented with its answers and problems, the hot one with examples, and every reference leads somewhere."""
    schema = client.get("/openapi.json").json()

    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)))
    assert references <= schema["components"]["schemas"].keys()
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            [done] = [code for code in operation["responses"] if code.startswith("2")]
            assert operation["responses"][done]["content"], path
            assert list(operation["responses"]["500"]["content"]) == [PROBLEM], path
    hot = schema["paths"][ONLINE]["post"]
    assert set(hot["requestBody"]["content"]) == set(hot["responses"]["200"]["content"]) == {JSON, ARROW}
    assert {parameter["name"] for parameter in hot["parameters"]} == {
        "feature_service",
        "features",
        "metadata",
        contract.LOCK_HEADER,
    }
    assert {"400", "404", "406", "415", "422", "500", "503"} <= hot["responses"].keys()
    for example in hot["requestBody"]["content"][JSON]["examples"].values():
        contract.OnlineRequest.model_validate(example["value"], strict=True)
    assert client.get("/docs").status_code == 200


def test_the_contract_names_every_route(client: TestClient) -> None:
    """The contract's docstring is its specification, so every path stands in it."""
    documented = contract.__doc__ or ""
    for path in client.get("/openapi.json").json()["paths"]:
        kinds = "entities|sources|feature-views|aliases|on-demand-feature-views|feature-services"
        shown = re.sub(rf"/v1/registry/({kinds})", "/v1/registry/<kind>", path)
        shown = re.sub("{(.+?)}", r"<\1>", shown)
        assert f" {shown} " in documented, path
