from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from featurestore import FeatureStore
from featurestore_server.contract import ARROW, JSON
from tests.service import BIG, HISTORICAL, ONLINE, ROWS_IN_JSON, SPINE, of_bytes, request_of, serving


def test_the_process_serves_until_sigterm(store: FeatureStore) -> None:
    """It announces its URL once it answers, serves over a real connection, and SIGTERM ends it with code 0 in a moment."""
    with serving(store.settings.root, "--json") as (process, line):
        url = json.loads(line)["url"]
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.get("/readyz").json()["status"] == "ready"
            request = {"feature_service": "everything", "entities": {"user_id": [BIG]}}
            features = client.post(ONLINE, json=request).json()["features"]
            with client.stream("POST", HISTORICAL, **request_of(SPINE, ARROW, feature_service="everything")) as response:
                training = of_bytes(response.read(), ARROW)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)  # with a connection that is still open
            out, err = process.communicate(timeout=20)

    assert features == {f"every_type__{name}": values[:1] for name, values in ROWS_IN_JSON.items()}
    assert training.num_rows == SPINE.num_rows
    assert (process.returncode, out, err) == (0, "", "")
    assert time.monotonic() - begun < 9  # the grace is ten seconds, and nothing is under way


def test_the_process_says_what_it_serves(store: FeatureStore) -> None:
    """Without --json a line for people names project and URL; SIGINT ends it with code 0, and a half-sent request is told so."""
    with serving(store.settings.root) as (process, line):
        match = re.fullmatch(r"featurestore serves shop on http://127\.0\.0\.1:(\d+) \(docs at /docs\)\n", line)
        assert match
        with socket.create_connection(("127.0.0.1", int(match[1])), 10) as connection:
            connection.sendall(
                f"POST {ONLINE} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: 99\r\n\r\n{{".encode()
            )
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            answer = b"".join(iter(lambda: connection.recv(10_000), b""))  # head and body may come one after the other
        _, err = process.communicate(timeout=20)

    assert process.returncode == 0
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"/problems/not-ready" in answer
    assert "Traceback" not in err


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Return how a service that cannot start ended."""
    return subprocess.run(
        [sys.executable, "-m", "featurestore_server", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_what_keeps_the_process_from_serving(store: FeatureStore, tmp_path: Path) -> None:
    """A port in use and a folder without settings are one line on stderr and exit code 1; --json and --debug are heeded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        in_use = run("--repo", str(store.settings.root), "--port", port)
        as_json = run("--repo", str(store.settings.root), "--port", port, "--json")
    no_repo = run("--repo", str(tmp_path))
    debug = run("--repo", str(tmp_path), "--debug")

    assert (in_use.returncode, no_repo.returncode) == (1, 1)
    assert re.fullmatch(rf"featurestore: cannot listen on 127\.0\.0\.1:{port}: Address already in use; .*\n", in_use.stderr)
    assert json.loads(as_json.stderr)["error"] == {"code": "error", "message": in_use.stderr.removeprefix("featurestore: ").strip()}
    assert re.fullmatch(r"featurestore: no featurestore\.toml in .*\n", no_repo.stderr)
    assert "Traceback" in debug.stderr
