from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from featurestore import FeatureStore
from featurestore.cli import failures
from tests.commands import PROGRAM, SPINE, Result, Run


def test_unexpected_errors_are_one_line(ask: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a bug ends as one line; --debug shows where it is."""
    monkeypatch.setattr(FeatureStore, "applied", lambda _: 1 / 0)

    result, debugged = ask("list"), ask("list", "--debug")

    assert result == Result(1, "", "error: unexpected ZeroDivisionError: division by zero (--debug shows where)\n")
    assert ask("list", "--json").error()["code"] == "internal"
    assert debugged.err.startswith("Traceback")
    assert debugged.err.endswith(result.err)


def test_debug_shows_the_traceback_of_any_error(run: Run, tmp_path: Path) -> None:
    """--debug, before the command too, shows where an expected error comes from."""
    assert run("--debug", "plan", repo=tmp_path).err.startswith("Traceback")
    assert "Traceback" not in run("plan", repo=tmp_path).err


@pytest.mark.parametrize("arguments", [["list", "--json"], ["--help"]])
def test_a_closed_pipe_ends_quietly(plant: Path, arguments: list[str]) -> None:
    """If nobody reads stdout any more, nothing is complained about."""
    reader, writer = os.pipe()
    os.close(reader)

    ended = subprocess.run([*PROGRAM, *arguments], cwd=plant, stdout=writer, stderr=subprocess.PIPE, check=False)

    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_ctrl_c_is_one_word(plant: Path, tmp_path: Path) -> None:
    """A command that is interrupted says so in one word, with exit code 130."""
    endless = SPINE + " FROM range(100_000_000_000)"
    command = [*PROGRAM, "get-historical", "machine_health_v1", "--spine", endless]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=plant, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("featurestore-spine-*/*")) and process.poll() is None:
        time.sleep(0.01)

    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=30) == ("", "interrupted\n")
    assert process.returncode == 130


@pytest.mark.parametrize("disguise", [KeyboardInterrupt, RuntimeError("Query interrupted")])
def test_an_interrupt_in_disguise_is_one_too(capsys: pytest.CaptureFixture[str], disguise: Any) -> None:
    """An error that Ctrl-C became on its way is reported as the interrupt that it is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored

    def interrupted() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise disguise from None

    assert failures.guarded(interrupted, as_json=False, debug=False) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
