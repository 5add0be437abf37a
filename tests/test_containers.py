"""What can be tested of the containers where there is no Docker: their form, and that the commands in them exist."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]

from featurestore.cli import commands as cli
from featurestore.settings import Settings
from tests.conftest import CHECKOUT

DOCKERFILE = (CHECKOUT / "server/Dockerfile").read_text("utf-8")
COMPOSE = (CHECKOUT / "compose.yaml").read_text("utf-8")


def instructions(name: str) -> list[str]:
    """Return what follows an instruction of the Dockerfile, lines that go on joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^{name} (.+)$", joined, re.MULTILINE)


def commands() -> list[list[str]]:
    """Return every command line of ours that the files hold."""
    [default] = instructions("CMD")
    typed = re.findall(r"docker compose run --rm featurestore (.+)", COMPOSE)
    return [json.loads(default), *map(shlex.split, typed)]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_the_commands_exist(arguments: list[str]) -> None:
    """Each command line parses: the command is there, and so are its options."""
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["featurestore"]
    command: Any = typer.main.get_command(cli._app())
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    context = command.make_context("featurestore", arguments)

    assert context.params


def test_the_image_copies_what_there_is() -> None:
    """What the build copies is in the repository, and it installs extras that the package has."""
    copied = [each.split()[:-1] for each in instructions("COPY") if not each.startswith("--from")]
    extras = re.findall(r"\.\[([\w,]+)\]", DOCKERFILE)[0].split(",")

    assert all((CHECKOUT / name).exists() for names in copied for name in names)
    assert all(f"\n{extra} = [" in (CHECKOUT / "pyproject.toml").read_text() for extra in extras)
    assert "USER featurestore" in DOCKERFILE


def test_the_services_fit_together() -> None:
    """The file is YAML; what a service depends on is there and says when it is healthy; the variables are settings that exist."""
    parsed = yaml.safe_load(COMPOSE)
    services, ours = parsed["services"], parsed["services"]["featurestore"]

    assert set(services) == {"featurestore", "redis", "postgres"}
    assert all("healthcheck" in services[name] for name in ours["depends_on"])
    for variable in ours["environment"]:
        section, name = variable.removeprefix("FEATURESTORE_").lower().split("__")
        assert name in Settings.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    hosts = re.findall(r"[@/](redis|postgres)\b[:/]", " ".join(ours["environment"].values()))
    assert set(hosts) == {"redis", "postgres"}
    named = {volume.partition(":")[0] for each in services.values() for volume in each.get("volumes", [])}
    assert {name for name in named if not name.startswith(".")} == set(parsed["volumes"])
    assert (CHECKOUT / ours["build"]["dockerfile"]).exists()
