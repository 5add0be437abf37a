"""The documents are executed: every block runs, and what follows it as text is what it prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore.online import embedded
from featurestore.settings import Settings
from tests.conftest import CHECKOUT

DOCUMENTS = ("README.md", "docs/start.md", "docs/point-in-time.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


@dataclass
class _Reader:
    """Somebody who types what a document says, in one shell."""

    folder: Path
    environment: dict[str, str]

    def shell(self, text: str) -> str:
        """Run shell commands, stay in the folder that they end in, and return what the last one printed."""
        output = ""
        for line in text.splitlines():
            output, _, place = self._run(["bash", "-ec", f"{line}\necho; pwd"]).rstrip().rpartition("\n")
            self.folder = Path(place)
        return output

    def python(self, text: str) -> str:
        """Run a Python program."""
        return self._run([sys.executable, "-c", text])

    def http(self, text: str) -> None:
        """Send a request, and compare the answer with the one that stands below it."""
        request, answer = text.split("\n\n")
        line, body = request.split("\n", 1)
        method, path = line.split()
        from featurestore_server.app import create_app

        with FeatureStore(self.folder) as store, TestClient(create_app(store)) as client:
            assert client.request(method, path, json=json.loads(body)).json() == json.loads(answer)

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[_Reader]:
    """A reader in an empty folder; the embedded servers that they start end with the test."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    yield _Reader(tmp_path, os.environ | {"PATH": path, "COLUMNS": "200"})
    for state in tmp_path.rglob(".featurestore/online"):
        embedded.stop(state)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_runs_and_prints_what_the_document_says(document: str, reader: _Reader) -> None:
    """A reader who types the document block by block sees what it shows."""
    output = ""
    for language, text in BLOCK.findall((CHECKOUT / document).read_text("utf-8")):
        if language == "sh" and text.startswith("make "):
            _check_targets(text)
        elif language == "sh":
            output = reader.shell(text)
        elif language == "python":
            output = reader.python(text)
        elif language == "http":
            reader.http(text)
        else:
            assert language == "text"
            assert _lines(output) == _lines(text)


def _check_targets(text: str) -> None:
    """`make demo` and `make test` are what CI runs, so here they need only exist."""
    makefile = (CHECKOUT / "Makefile").read_text()
    for line in text.splitlines():
        assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("document", [*DOCUMENTS, "docs/online.md", "docs/sizing.md", "benchmarks/README.md"])
def test_links_lead_somewhere(document: str) -> None:
    """A relative link names a file of the repository."""
    for target in LINK.findall((CHECKOUT / document).read_text("utf-8")):
        assert ((CHECKOUT / document).parent / target).exists(), target


def test_every_setting_is_documented_with_its_default() -> None:
    """The table in docs/start.md is the settings, no more and no fewer."""
    rows = re.findall(r"^\| `([\w.]+)` \| *(.*?) *\|", (CHECKOUT / "docs/start.md").read_text("utf-8"), re.MULTILINE)
    expected = {}
    for name, field in Settings.model_fields.items():
        if name == "root":
            continue
        section = getattr(field.annotation, "model_fields", None)
        if section is None:
            expected[name] = "" if field.is_required() else "the clock"
        else:
            expected |= {f"{name}.{each}": f"`{inner.default}`" for each, inner in section.items()}
    assert dict(rows) == expected


@pytest.mark.parametrize("document", ["README.md", "benchmarks/README.md"])
def test_the_scoreboard_shows_the_last_results(document: str) -> None:
    """The table is rendered from the results file, so it can show nothing that was not measured."""
    results = json.loads((CHECKOUT / "benchmarks/results/latest.json").read_text("utf-8"))
    rendered = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--render"], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
    ).stdout  # fmt: skip
    text = (CHECKOUT / document).read_text("utf-8")
    shown = text.partition("<!-- scoreboard -->\n")[2].partition("<!-- /scoreboard -->")[0]
    assert shown == rendered
    assert all(row["what"] in shown for row in results["rows"])
