"""The documents are executed: every block runs, and what follows it as text is what it prints."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import featurestore
from featurestore import FeatureStore, cli, errors
from featurestore.cli.commands import _COMMANDS
from featurestore.online import embedded
from featurestore.settings import Settings
from featurestore_server.app import create_app
from featurestore_server.contract import PROBLEMS
from tests.conftest import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "tools"))
reference = importlib.import_module("reference")
sys.path.pop(0)

PAGES = sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "docs").rglob("*.md"))
REFERENCE = [page for page in PAGES if page.startswith("docs/reference/")]
BENCHMARKS = "benchmarks/README.md"
DOCUMENTS = ["README.md", *(page for page in PAGES if page not in REFERENCE)]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


@dataclass
class _Reader:
    """Somebody who types what a document says, in one shell."""

    folder: Path
    environment: dict[str, str]
    is_quick: bool = False

    def shell(self, text: str) -> str:
        """Run shell commands, stay in the folder that they end in, and return what the last one printed."""
        output = ""
        for line in text.splitlines():
            if self.is_quick and line.startswith("featurestore ") and not set(line) & set("|>$"):
                output = self._in_process(shlex.split(line)[1:])
                continue
            output, _, place = self._run(["bash", "-ec", f"{line}\necho; pwd"]).rstrip().rpartition("\n")
            self.folder = Path(place)
        return output

    def _in_process(self, arguments: list[str]) -> str:
        """Run a command line as `featurestore` does, without the second that a process of its own takes."""
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            assert cli.main(arguments) == 0
        return printed.getvalue()

    def python(self, text: str) -> str:
        """Run a Python program, or the tests that it has."""
        if "\ndef test_" in text:
            (self.folder / "test_of_the_document.py").write_text(text)
            return self._run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_of_the_document.py"])
        return self._run([sys.executable, "-c", text])

    def http(self, text: str) -> None:
        """Send a request, and compare the answer with the one that stands below it."""
        request, answer = text.split("\n\n")
        line, body = request.split("\n", 1)
        method, path = line.split()
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
    for served in tmp_path.rglob("served.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(served.read_text()), signal.SIGKILL)
    for state in tmp_path.rglob(".featurestore/online"):
        embedded.stop(state)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_runs_and_prints_what_the_document_says(document: str, reader: _Reader) -> None:
    """A reader who types the document block by block sees what it shows."""
    output, reader.is_quick = "", "/" in document.removeprefix("docs/")  # README and start are typed, each command a process
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


@pytest.mark.parametrize("document", [*DOCUMENTS, *REFERENCE, "docs/online.md", "docs/sizing.md", "benchmarks/README.md"])
def test_links_lead_somewhere(document: str) -> None:
    """A relative link names a file of the repository."""
    for target in LINK.findall((CHECKOUT / document).read_text("utf-8")):
        assert ((CHECKOUT / document).parent / target).exists(), target


def test_every_setting_is_documented_with_its_default() -> None:
    """The table in docs/start.md is the settings, no more and no fewer."""
    rows = re.findall(r"^\| `([\w.]+)` \| *(.*?) *\|", (CHECKOUT / "docs/start.md").read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == _settings()


COMPUTED = {"memory_limit": "the half of the machine's", "threads": "the machine's", "temp_directory": "the system's"}


def _settings() -> dict[str, str]:
    """Return each setting and its default, as a document shows it."""
    expected = {}
    for name, field in Settings.model_fields.items():
        if name == "root":
            continue
        section = getattr(field.annotation, "model_fields", None)
        if section is None:
            expected[name] = "" if field.is_required() else "the clock"
        else:
            stated = {
                each: f"`{inner.default}`" if inner.default is not None else COMPUTED[each] for each, inner in section.items()
            }
            expected |= {f"{name}.{each}": default for each, default in stated.items()}
    return expected


@pytest.mark.parametrize("page", sorted(reference.pages()))
def test_the_reference_says_what_the_code_says(page: str) -> None:
    """Each page is what the generator makes of the code; if it is not: python tools/reference.py."""
    assert (CHECKOUT / "docs/reference" / page).read_text("utf-8") == reference.pages()[page]


def test_every_command_setting_route_and_error_is_in_the_reference() -> None:
    """What the code has is counted apart from the generator: commands, settings, routes, error codes, problems, public names."""
    text = {page: (CHECKOUT / "docs/reference" / page).read_text("utf-8") for page in reference.pages()}
    commands = [name for functions in _COMMANDS.values() for name in functions]
    assert re.findall(r"^### featurestore (.+)$", text["cli.md"], re.MULTILINE) == commands
    for path in create_app(FeatureStore(CHECKOUT / "definitions")).openapi()["paths"]:
        route = re.sub(r"/(entities|sources|on-demand-feature-views|feature-views|aliases|feature-services)\b", "/<kind>", path)
        route = re.sub("{(.+?)}", r"<\1>", route)
        assert route in text["http.md"], path
    codes = {getattr(errors, name).code for name in errors.__all__ if hasattr(getattr(errors, name), "code")}
    assert set(re.findall(r"^\| `([\w-]+)`", text["errors.md"], re.MULTILINE)) == codes
    assert set(re.findall(r"^\| `([\w-]+)`", text["http.md"], re.MULTILINE)) == set(PROBLEMS)
    assert set(re.findall(r"^## (\w+)$", text["python.md"], re.MULTILINE)) == set(featurestore.__all__)
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \|", text["settings.md"], re.MULTILINE)
    assert [(name, default.replace("(required)", "")) for name, default in rows] == list(_settings().items())


def test_every_page_is_found_from_the_index() -> None:
    """docs/README.md links to each page."""
    links = {str(Path("docs") / link) for link in LINK.findall((CHECKOUT / "docs/README.md").read_text("utf-8"))}
    assert links == set(PAGES) - {"docs/README.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/concepts/")])
def test_each_rule_has_tests_that_carry_its_name(page: str) -> None:
    """A concept page begins with its rule's number, which tests name in what they state."""
    number = int(re.fullmatch(r"docs/concepts/t(\d\d)-[\w-]+\.md", page)[1])  # type: ignore[index]
    assert (CHECKOUT / page).read_text("utf-8").startswith(f"# T{number}: ")
    tests = [path.read_text("utf-8") for path in (CHECKOUT / "tests").glob("test_*.py") if path.name != "test_docs.py"]
    assert any(re.search(rf'"""[^"]*\bT{number}\b', text) for text in tests)


@pytest.fixture(scope="module")
def rendered() -> str:
    """Return the tables and curves as they are made of the results of the last full runs."""
    command = [sys.executable, "-m", "benchmarks", "--render"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True, env=environment)
    return done.stdout


@pytest.mark.parametrize(("document", "mark"), [("README.md", "scoreboard"), (BENCHMARKS, "scoreboard"), (BENCHMARKS, "curves")])
def test_the_scoreboard_shows_the_last_results(document: str, mark: str, rendered: str) -> None:
    """The tables are rendered from the results files, so they can show nothing that was not measured."""
    text = (CHECKOUT / document).read_text("utf-8")
    shown = text.partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- /{mark} -->")[0]
    assert shown
    assert shown in rendered


def test_the_scoreboard_shows_all_rows() -> None:
    """What is worse for us is shown, too, and every curve."""
    text = (CHECKOUT / BENCHMARKS).read_text("utf-8")
    results = json.loads((CHECKOUT / "benchmarks/results/latest.json").read_text("utf-8"))
    assert all(row["what"] in text for row in results["rows"])
    curves = {point["curve"] for point in json.loads((CHECKOUT / "benchmarks/results/scaling.json").read_text("utf-8"))["points"]}
    assert all(f"`{curve}`" in text for curve in curves)


def test_the_curves_show_the_last_results(rendered: str) -> None:
    """The pictures are drawn from the results file, each of them is shown, and none is left of an older run."""
    pictures = sorted((CHECKOUT / "benchmarks/results").glob("*.svg"))
    text = (CHECKOUT / BENCHMARKS).read_text("utf-8")
    assert len(pictures) == rendered.count("<svg") == text.count(".svg)")
    for picture in pictures:
        assert picture.read_text("utf-8") in rendered
        assert f"(results/{picture.name})" in text
