from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from featurestore import FeatureStore
from featurestore.cli.invocation import shell_line
from tests.commands import Run, in_process

COMMANDS = ["init", "plan", "apply", "materialize", "status", "list", "describe", "get-online", "get-historical"]
COMMANDS += ["serve", "stop", "teardown"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(run: Run, arguments: list[str]) -> None:
    """`featurestore`, alone or with --help, lists all commands and succeeds."""
    result = run(*arguments)

    assert result.code == 0
    assert [name for name in COMMANDS if not re.search(rf"\b{name}  ", result.out)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(run: Run, command: str) -> None:
    """Each command's help shows how it is called, and that it can answer in JSON."""
    result = run(command, "--help")

    assert result.code == 0
    assert f"Example: featurestore {command}" in result.out
    assert "--json" in result.out


def test_the_module_runs(tmp_path: Path) -> None:
    """`python -m featurestore` is the same program."""
    assert re.fullmatch("featurestore.*\n", in_process("--version", cwd=tmp_path).out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plam"], "'plam'"),
        (["plan", "--foo"], "--foo"),
        (["get-online"], "Missing argument 'FEATURES'"),
        (["get-online", "x", "-k", "a"], "--key 'a' is not of the form NAME=VALUE"),
        (["get-historical", "x", "--spine", "y", "--incomplete", "z"], "--incomplete"),
        (["get-historical", "x", "--spine", "y", "--limit", "0"], "--limit"),
        (["serve", "--port", "http"], "--port"),
        (["list", "thing"], "no kind 'thing'; known: entities, sources, views, aliases, on-demand-views, services"),
    ],
)
def test_wrong_usage_exits_with_2(ask: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    """A command line that cannot be understood gives one message with the usage, as JSON too, and exit code 2."""
    monkeypatch.setattr(FeatureStore, "selection", lambda *_: type("Selection", (), {"needed": {}}))
    result, as_json = ask(*arguments), ask(*arguments, "--json")

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert message in result.err
    assert "Usage: featurestore" in result.err
    assert (as_json.code, as_json.out) == (2, "")
    assert json.loads(as_json.err)["error"]["code"] == "usage"
    assert message in json.loads(as_json.err)["error"]["message"]


# Which repo


def test_the_repo_is_named_before_or_after_the_command(run: Run, plant: Path) -> None:
    """--repo and --json stand before the command or after it."""
    before = run("--repo", plant, "--json", "list").json()

    assert run("list", "--repo", plant, "--json").json() == before
    assert [each["name"] for each in before] == ["sensor", "readings", "machine_health", "machine_health_v1"]


def test_the_repo_is_that_of_the_environment_or_the_current_folder(
    run: Run, plant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --repo it is FEATURESTORE_REPO, and without that the current folder; --repo wins."""
    monkeypatch.chdir(plant)
    assert run("list").code == 0
    monkeypatch.setenv("FEATURESTORE_REPO", str(tmp_path))
    assert run("list").code == 1
    assert run("list", "--repo", plant).code == 0


def test_no_repo(run: Run, tmp_path: Path) -> None:
    """Without featurestore.toml the message says how to name a repo or start one."""
    result = run("plan", repo=tmp_path)

    assert (result.code, result.out) == (1, "")
    assert f"no featurestore.toml in {tmp_path}" in result.err
    assert "--repo" in result.err
    assert "featurestore init" in result.err
    assert run("plan", "--json", repo=tmp_path).error()["code"] == "settings"


# Next commands


@pytest.mark.parametrize("words", [["a b", "c"], ["it's"], ['"', "'"], ["$HOME 'x'"], ["`x` '"], ["\\'"], ["!'"]])
def test_shell_lines(words: list[str]) -> None:
    """A shell reads from a line the words that it was made of."""
    line = shell_line("printf", r"%s\n", *words)

    assert subprocess.run(["/bin/sh", "-c", line], check=True, capture_output=True, text=True).stdout.splitlines() == words
