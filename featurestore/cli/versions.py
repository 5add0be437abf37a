"""The commands about versions: rollback, prune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from featurestore.cli.invocation import Invocation
from featurestore.cli.rendering import counted, grid
from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    from featurestore.registry.state import Rollback
    from featurestore.retirement import Removal

__all__ = ["prune", "rollback"]

View = Annotated[str, typer.Argument(metavar="VIEW", help="The feature view.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")]
Now = Annotated[bool, typer.Option("--now", metavar="", help="Remove what was replaced within the last hour too.")]


def rollback(call: Invocation, view: View, yes: Yes = False) -> None:
    """Let the version of a view that served before serve again.

    What took over together with the present version goes back with it, and a second rollback returns to it. Change the definitions
    back as well: the next apply makes serve what they say.

    Example: featurestore rollback machine_health
    """
    if call.can_ask and not yes and not call.is_confirmed(f"Let the version of {view} before the present one serve again?"):
        raise FeatureStoreError("nothing was rolled back")
    with call.store() as store:
        done = store.rollback(view)
    record = {
        "versions": [{"view": name, "from": before, "to": after} for name, (before, after) in done.versions.items()],
        "objects": [{"kind": kind, "name": name} for kind, name in done.objects],
    }
    call.answer(record, _rollback_lines(call, done))


def _rollback_lines(call: Invocation, done: Rollback) -> Iterator[str]:
    for name, (before, after) in done.versions.items():
        yield f"{name} v{after} serves again instead of v{before}."
    for kind, name in done.objects:
        yield f"{kind} {name} means again what it meant."
    yield f"\nChange the definitions back too; {call.line('plan')} shows how they differ now."


def prune(call: Invocation, now: Now = False) -> None:
    """Remove what versions left that no rollback can reach.

    Every materialize does so bit by bit; this removes all of it. What was replaced within the last hour is kept unless --now is
    given, since lookups and training reads that began before may still use it.

    Example: featurestore prune
    """
    with call.store() as store:
        removals = store.prune(now=now)
    record = [
        {"view": each.view, "version": each.version, "online_rows": each.online_rows, "is_complete": each.is_complete}
        for each in removals
    ]
    call.answer(record, _removal_parts(removals))


def _removal_parts(removals: Sequence[Removal]) -> Iterator[RenderableType]:
    if not removals:
        yield "Nothing to remove."
        return
    yield grid(["view", "version", "online rows"], [[each.view, each.version, each.online_rows] for each in removals])
    yield f"{counted(len(removals), 'version')} removed."
