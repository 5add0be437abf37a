from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from featurestore import FeatureStore
from featurestore.cli import example, failures
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


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_keeps_no_command_from_what_it_does(tmp_path: Path, unbuffered: str) -> None:
    """`apply | head` applies, whenever the reader leaves."""
    folder = tmp_path / "pumps"
    example.create(folder)
    reader, writer = os.pipe()
    os.close(reader)

    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [*PROGRAM, "apply", "--yes"]
    ended = subprocess.run(command, cwd=folder, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False)

    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")
    with FeatureStore(folder) as store:
        assert store.applied().versions


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_told_from_a_full_store(fresh: Path, unbuffered: str) -> None:
    """What cannot be written is named, and that the command did what it had to do."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [*PROGRAM, "keys", "create", "checkout", "--role", "read-online"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, cwd=fresh, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    lost = "what the command had to do is done, and its answer is lost"
    assert ended.stderr == f"error: standard output cannot be written: No space left on device; {lost}\n"
    assert ended.returncode == 1
    with FeatureStore(fresh) as store:
        assert [key.name for key in store.registry.api_keys.all()] == ["checkout"]


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_go_nowhere(fresh: Path, closed: str) -> None:
    """A command without them works all the same, and nothing is written into a file that got the number of one."""
    command = shlex.join([*PROGRAM, "keys", "create", "checkout", "--role", "read-online"])

    ended = subprocess.run(["/bin/sh", "-c", f"{command} {closed}"], cwd=fresh, capture_output=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    with FeatureStore(fresh) as store:
        assert [key.name for key in store.registry.api_keys.all()] == ["checkout"]


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


EARLY = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupts:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from featurestore.cli import main
raise SystemExit(main(["plan"]))
"""


@pytest.mark.parametrize("module", ["pydantic", "typer", "featurestore.cli.doctor", "featurestore.store"])
def test_ctrl_c_while_modules_are_imported_is_one_word_too(fresh: Path, module: str) -> None:
    """The first second of a command is no exception, in which it imports what it needs."""
    command = [sys.executable, "-P", "-c", EARLY, module]

    ended = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


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
