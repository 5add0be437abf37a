from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.logs import _Lines
from tests.service import ONLINE, USERS, serving

LOOKUP = {"feature_service": "everything", "entities": USERS}


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the log as the process would write it."""
    return [json.loads(_Lines().format(record)) for record in caplog.records]


def test_a_request_that_fails_leaves_a_line_with_its_id(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """The line of a failed request has method, path, status, seconds and the id of the answer; others leave none."""
    with caplog.at_level(logging.INFO, "featurestore_server.requests"):
        failed = client.post(ONLINE, json=LOOKUP | {"feature_service": "none"}, headers={"X-Request-Id": "one"})
        lost = client.get("/nothing", headers={"X-Request-Id": "two"})
        client.post(ONLINE, json=LOOKUP)
        client.get("/healthz")
    found = [line for line in lines(caplog) if line["logger"] == "featurestore_server.requests"]

    assert (failed.headers["x-request-id"], lost.headers["x-request-id"]) == ("one", "two")
    assert [(line["request_id"], line["method"], line["path"], line["status"]) for line in found] == [
        ("one", "POST", ONLINE, 404),
        ("two", "GET", "/nothing", 404),
    ]
    assert all(0 < line["seconds"] < 60 and line["time"].endswith("Z") and line["level"] == "info" for line in found)


def test_all_requests_can_leave_a_line(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With log_requests = "all" those that succeed leave one too."""
    monkeypatch.setenv("FEATURESTORE_SERVER__LOG_REQUESTS", "all")
    caplog.set_level(logging.INFO, "featurestore_server.requests")
    with FeatureStore(store.settings.root) as talkative, TestClient(create_app(talkative)) as client:
        client.post(ONLINE, json=LOOKUP)
        client.get("/healthz")
    found = [(line["path"], line["status"]) for line in lines(caplog) if line["logger"] == "featurestore_server.requests"]

    assert found == [(ONLINE, 200), ("/healthz", 200)]


@pytest.mark.parametrize("path", [ONLINE, "/readyz"])
def test_what_is_wrong_inside_is_logged_under_the_request_s_id(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The reason that an answer keeps to itself stands in the log under the id that the answer has."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://127.0.0.1:1")
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(_Lines())
    logger = logging.getLogger("featurestore_server")
    logger.addHandler(handler)
    try:
        with FeatureStore(store.settings.root) as cut_off, TestClient(create_app(cut_off)) as client:
            client.request("POST" if path == ONLINE else "GET", path, json=LOOKUP, headers={"X-Request-Id": "mine"})
    finally:
        logger.removeHandler(handler)
    found = map(json.loads, written.getvalue().splitlines())

    assert [line for line in found if "127.0.0.1:1" in line["message"] and line.get("request_id") == "mine"]


def test_the_process_writes_json_lines(store: FeatureStore) -> None:
    """Every line of stderr is one JSON object, whatever clients send."""
    with serving(store.settings.root, "--json") as (process, line):
        url = json.loads(line)["url"]
        httpx.post(f"{url}{ONLINE}", content=b"\xff\n{", headers={"Content-Type": "application/json"})
        httpx.get(f'{url}/a"%0Ab')
        process.terminate()
        _, err = process.communicate(timeout=20)
    found = [json.loads(each) for each in err.splitlines()]

    assert [(each["path"], each["status"]) for each in found] == [(ONLINE, 400), ('/a"\nb', 404)]


def test_the_log_s_tracebacks_are_in_their_line() -> None:
    """An exception is a member of its line, so that a reader of lines gets it whole."""
    code = """
import logging
from featurestore_server import logs
logs.configure(level=logging.WARNING)
try: 1 / 0
except ZeroDivisionError: logging.getLogger("x").exception("it\\nfailed")
"""
    command = [sys.executable, "-P", "-c", code]
    err = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.home()).stderr
    [line] = map(json.loads, err.splitlines())

    assert (line["message"], line["level"]) == ("it\nfailed", "error")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")
