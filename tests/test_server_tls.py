from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from featurestore import FeatureStore
from tests.servers import make_certificates
from tests.service import BIG, ONLINE, USERS, serving
from tests.test_server_process import run


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and a certificate for 127.0.0.1 that it signed."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


def test_https(store: FeatureStore, certificates: Path) -> None:
    """With a certificate it speaks TLS 1.2 or newer and nothing else, and tells browsers to stay with it."""
    files = ["--tls-cert", str(certificates / "server.crt"), "--tls-key", str(certificates / "server.key")]
    with serving(store.settings.root, "--json", *files) as (_, line):
        url = json.loads(line)["url"]
        trusted = ssl.create_default_context(cafile=certificates / "ca.crt")
        with httpx.Client(base_url=url, verify=trusted) as client:
            answer = client.post(ONLINE, json={"feature_service": "everything", "entities": {"user_id": [BIG]}})
            health = client.get("/healthz")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/healthz", verify=ssl.create_default_context())
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http") + "/healthz")

    assert url.startswith("https://127.0.0.1:")
    assert answer.json()["features"]["every_type__large"] == [-(2**63)]
    for response in (answer, health):
        assert response.headers["strict-transport-security"] == "max-age=31536000"


def test_files_that_are_no_certificate(store: FeatureStore, certificates: Path, tmp_path: Path) -> None:
    """A missing file, one that is no PEM, a key of another certificate and a key alone are one line on stderr, and exit code 1."""
    (tmp_path / "text").write_text("no certificate")
    repo, chain = str(store.settings.root), str(certificates / "server.crt")
    cases = [
        (["--tls-cert", str(tmp_path / "none")], "cannot serve TLS with .*none: No such file or directory"),
        (["--tls-cert", str(tmp_path / "text")], "cannot serve TLS with .*text: "),
        (
            ["--tls-cert", chain, "--tls-key", str(certificates / "client.key")],
            "cannot serve TLS with .*server.crt and .*client.key: ",
        ),
        (["--tls-key", chain], "--tls-key needs --tls-cert"),
    ]
    for options, message in cases:
        ended = run("--repo", repo, "--port", "0", *options)
        assert ended.returncode == 1
        assert re.fullmatch(f"featurestore: {message}.*\n", ended.stderr)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 (what must be refused)
def test_other_machines_are_not_served_without_keys(store: FeatureStore, host: str) -> None:
    """Without a key it refuses every address but the loopback, and says what to do; --insecure serves it all the same."""
    ended = run("--repo", str(store.settings.root), "--host", host, "--port", "0")

    assert ended.returncode == 1
    assert ended.stderr == (
        f"featurestore: {host} can be reached by other machines, and there is no API key: create one with "
        "`featurestore keys create`, or let everyone in with --insecure\n"
    )
    with serving(store.settings.root, "--host", host, "--insecure", "--json") as (_, line):
        port = json.loads(line)["url"].rpartition(":")[2]
        local = "127.0.0.1" if host == "0.0.0.0" else "[::1]"  # noqa: S104
        lookup = {"feature_service": "everything", "entities": USERS}
        assert httpx.post(f"http://{local}:{port}{ONLINE}", json=lookup).status_code == 200


def test_serve_hands_its_options_on(store: FeatureStore) -> None:
    """`featurestore serve` takes the same options, so its refusals are the server's."""
    command = [sys.executable, "-m", "featurestore", "--repo", str(store.settings.root), "serve", "--port", "0"]
    refused = subprocess.run(
        [*command, "--host", "0.0.0.0"], capture_output=True, text=True, env=os.environ, timeout=60, check=False  # noqa: S104
    )  # fmt: skip
    no_key = subprocess.run([*command, "--tls-key", "x"], capture_output=True, text=True, timeout=60, check=False)

    assert (refused.returncode, no_key.returncode) == (1, 1)
    assert "there is no API key" in refused.stderr
    assert "--tls-key needs --tls-cert" in no_key.stderr
