"""Command lines run in this process, on a terminal or in a process of their own, and the repos of `init` that they run on."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.cli import example, main

PROGRAM = [sys.executable, "-P", "-m", "featurestore"]
SPINE = "SELECT 'pump_1' AS sensor_id, TIMESTAMP '2024-01-02 12:00:00' AS event_timestamp"
COLUMNS = ["machine_health__temperature", "machine_health__vibration", "machine_health__restarts"]
NEW_TTL = ('ttl="12h"', 'ttl="2d"')


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str = ""

    def json(self) -> Any:
        """Return stdout as JSON; the command succeeded, and stderr is empty."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    def error(self) -> dict[str, Any]:
        """Return the error in stderr, which is all that the command wrote."""
        assert (self.code, self.out) == (1, "")
        found: dict[str, Any] = json.loads(self.err)["error"]
        return found


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process, on the repo of a folder if one is given."""
    monkeypatch.delenv("FEATURESTORE_REPO", raising=False)

    def call(*arguments: str | Path, repo: Path | None = None) -> Result:
        capsys.readouterr()
        code = main([*([] if repo is None else ["--repo", str(repo)]), *map(str, arguments)])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def ask(run: Run, plant: Path) -> Run:
    """Run a command line on the repo that tests only read."""
    return lambda *arguments: run(*arguments, repo=plant)


def in_process(*arguments: str | Path, cwd: Path, **variables: str) -> Result:
    """Run a command line in a process of its own."""
    command = [*PROGRAM, *map(str, arguments)]
    ended = subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False)
    return Result(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process on a terminal, where stdout and stderr are one, with something typed ahead."""
    for name in ("NO_COLOR", "FORCE_COLOR", "FEATURESTORE_REPO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def call(*arguments: str | Path, repo: Path, columns: int = 120, typed: str = "") -> Result:
        screen, side = pty.openpty()
        os.write(screen, typed.encode())
        with ThreadPoolExecutor() as reader, monkeypatch.context() as patch:
            shown = reader.submit(lambda: b"".join(iter(lambda: _read(screen), b"")))
            with os.fdopen(os.dup(side)) as keyboard, os.fdopen(side, "w") as output:
                patch.setenv("COLUMNS", str(columns))
                patch.setattr(sys, "stdin", keyboard)
                patch.setattr(sys, "stdout", output)
                patch.setattr(sys, "stderr", output)
                code = main(["--repo", str(repo), *map(str, arguments)])
            return Result(code, shown.result(30).decode())

    return call


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 65536)
    except OSError:  # so Linux says that nobody is left on the other side
        os.close(screen)
        return b""


def make_repo(folder: Path) -> Path:
    """Write the example and apply it."""
    example.create(folder)
    apply(folder)
    return folder


def apply(folder: Path, *changes: tuple[str, str]) -> None:
    """Apply a repo's definitions, some texts replaced in them before."""
    edit(folder, *changes)
    with FeatureStore(folder) as store:
        store.apply()


def edit(folder: Path, *changes: tuple[str, str]) -> None:
    """Replace texts in a repo's definitions, each of which must be there."""
    text = (folder / "definitions.py").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / "definitions.py").write_text(text)


def readings(folder: Path) -> pa.Table:
    """Return the example's data."""
    return pq.read_table(folder / "data/readings.parquet")


@pytest.fixture(scope="session")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repo that `init` makes, applied and materialized; tests only read it."""
    folder = make_repo(tmp_path_factory.mktemp("cli") / "plant")
    with FeatureStore(folder) as store:
        store.materialize()
        yield folder
        store.stop()


@pytest.fixture
def copied(plant: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that repo, whose online store is empty."""
    folder = shutil.copytree(plant, tmp_path / "copied", ignore=shutil.ignore_patterns("online"))
    yield folder
    with FeatureStore(folder) as store:
        store.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """A repo as `init` makes it, applied and not materialized."""
    folder = make_repo(tmp_path / "fresh")
    yield folder
    with FeatureStore(folder) as store:
        store.stop()
