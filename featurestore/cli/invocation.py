"""What every command shares: the options `--repo`, `--json` and `--debug`, before the command's name or after it."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from featurestore.cli.rendering import OutputError, show, show_json

if TYPE_CHECKING:
    from featurestore.store import FeatureStore

__all__ = ["Debug", "Invocation", "Json", "exposed", "shell_line"]

_REPO_HELP = "The folder with featurestore.toml; by default the current one."
Repo = Annotated[Path | None, typer.Option(metavar="DIR", help=_REPO_HELP)]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Answer in JSON, errors included.")]
Debug = Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")]


@dataclass(frozen=True)
class Invocation:
    """Which repo a command works on, and how it answers."""

    repo: Path
    as_json: bool
    debug: bool

    def store(self) -> FeatureStore:
        """Open the repo's store; the caller closes it."""
        from featurestore.store import FeatureStore

        return FeatureStore(self.repo)

    def answer(self, record: Any, parts: Iterable[RenderableType]) -> None:
        """Write the record as JSON, or else the parts, which a generator makes only then."""
        if self.as_json:
            show_json(record)
        else:
            show(parts)

    def announce(self, parts: Iterable[RenderableType]) -> None:
        """Write parts ahead of what the command does, which it does even if nobody can read them."""
        with suppress(BrokenPipeError, OutputError, SystemExit):  # the last is rich's, where colours are forced into a pipe
            show(parts)

    def line(self, *words: str) -> str:
        """Return a command line for the same repo, ready to be typed."""
        repo = [] if self.repo == Path() else ["--repo", str(self.repo)]
        return shell_line("featurestore", *repo, *words)

    @property
    def can_ask(self) -> bool:
        """Whether somebody is there to answer a question; JSON is for programs."""
        return not self.as_json and sys.stdin.isatty() and sys.stderr.isatty()

    def is_confirmed(self, question: str) -> bool:
        """Ask on the terminal, so that stdout stays the answer's."""
        return typer.confirm(question, err=True)


def shell_line(*words: str) -> str:
    """Join words into a line for the shell; what holds apostrophes, as SQL does, is put in double quotes where that is safe."""
    return " ".join(f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word) for word in words)


def exposed(function: Callable[..., None]) -> Callable[..., None]:
    """Return what typer shall call: the command with the shared options added to its own."""

    def run(context: typer.Context, repo: Path | None, as_json: bool, debug: bool, **own: Any) -> None:
        outer: Invocation = context.obj
        function(Invocation(repo or outer.repo, as_json or outer.as_json, debug or outer.debug), **own)

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    context = _keyword("context", typer.Context)
    shared = [_keyword("repo", Repo, None), _keyword("as_json", Json, False), _keyword("debug", Debug, False)]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (context, *own, *shared)]
    # Typer reads the options from these two.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__doc__ = function.__doc__
    return run


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
