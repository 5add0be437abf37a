"""The commands, and how one of them is run.

Each command is parse, one call of the library, render. This file assembles them; every group of commands has a file of its own, and
what all share is in three: `invocation.py` (which repo, and how to answer), `rendering.py` (tables and JSON), `failures.py` (errors
and exit codes). Whatever is heavy is imported inside the commands, so `featurestore --help` loads none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.catalog import describe, list_objects
from featurestore.cli.definitions import apply, init, plan
from featurestore.cli.doctor import doctor
from featurestore.cli.erasing import delete_entities
from featurestore.cli.failures import guarded
from featurestore.cli.invocation import Debug, Invocation, Json, exposed
from featurestore.cli.keys import create_key, list_keys, revoke_key
from featurestore.cli.lifecycle import stop, teardown
from featurestore.cli.locking import lock
from featurestore.cli.pushing import push
from featurestore.cli.running import compact, materialize, sync
from featurestore.cli.serving import get_online, serve
from featurestore.cli.status import status
from featurestore.cli.training import get_historical
from featurestore.cli.verifying import verify
from featurestore.cli.versions import prune, rollback

__all__ = ["run"]

_COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Definitions": {"init": init, "plan": plan, "apply": apply, "list": list_objects, "describe": describe},
    "Running": {
        "materialize": materialize,
        "push": push,
        "sync": sync,
        "compact": compact,
        "status": status,
        "verify": verify,
        "rollback": rollback,
        "doctor": doctor,
    },
    "Features": {"get-online": get_online, "get-historical": get_historical, "lock": lock, "serve": serve},
    "API keys": {"keys create": create_key, "keys list": list_keys, "keys revoke": revoke_key},
    "Ending": {"compact": compact, "delete-entities": delete_entities, "prune": prune, "stop": stop, "teardown": teardown},
}

_GROUPS = {"keys": "The API keys of the HTTP service: create, list, revoke."}
"""What commands of two words have in common, by the first of them."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; `featurestore.cli.main` says which there are."""
    given = list(arguments)
    program = "fs" if Path(sys.argv[0]).name == "fs" else "featurestore"
    command = typer.main.get_command(_app())
    return guarded(
        lambda: command.main(given or ["--help"], prog_name=program, standalone_mode=False),
        as_json="--json" in given,
        debug="--debug" in given,
    )


def _app() -> typer.Typer:
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.callback()(_global_options)
    groups = {"": app}
    for panel, functions in _COMMANDS.items():
        for name, function in functions.items():
            group, _, short = name.rpartition(" ")
            if group not in groups:
                groups[group] = typer.Typer(help=_GROUPS[group])
                app.add_typer(groups[group], name=group, rich_help_panel=panel)
            groups[group].command(short, rich_help_panel=panel)(exposed(function))
    return app


def _show_version(is_wanted: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version

    if is_wanted:
        try:
            typer.echo(f"featurestore {version('featurestore')}")
        except PackageNotFoundError:
            typer.echo("featurestore, not installed")
        raise typer.Exit


def _global_options(
    context: typer.Context,
    repo: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", envvar="FEATURESTORE_REPO", help="The folder with featurestore.toml; by default the current one."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
    version: Annotated[  # noqa: ARG001 (its callback acts)
        bool, typer.Option("--version", metavar="", is_eager=True, callback=_show_version, help="Show the version and leave.")
    ] = False,
) -> None:
    """A feature store whose training sets and online lookups agree.

    Example: featurestore init my_repo
    """  # noqa: D401 (it describes the program)
    context.obj = Invocation(repo or Path(), as_json, debug)
