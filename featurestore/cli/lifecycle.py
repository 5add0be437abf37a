"""The commands that end something: stop, teardown."""

from __future__ import annotations

from typing import Annotated

import typer

from featurestore.cli.invocation import Invocation
from featurestore.errors import FeatureStoreError, InputError

__all__ = ["stop", "teardown"]

Yes = Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")]


def stop(call: Invocation) -> None:
    """Stop the embedded online server; its rows are kept.

    The next command that needs it starts it again.

    Example: featurestore stop
    """
    with call.store() as store:
        url, is_stopped = store.settings.online.url, store.stop()
    said = "The embedded online server is stopped; its rows are kept." if is_stopped else "No embedded online server was running."
    if url != "embedded" and not is_stopped:
        said += " The online store of this repo is a server of your own, which goes on."
    call.answer({"stopped": is_stopped}, [said])


def teardown(call: Invocation, yes: Yes = False) -> None:
    """Remove all that the repo made; definitions and sources stay.

    Online rows, offline tables, registry and state are gone then.

    Example: featurestore teardown --yes
    """
    with call.store() as store:
        what = f"all tables, online rows and the registry of project {store.settings.project!r} in {store.settings.root}"
        if not yes and not call.can_ask:
            raise InputError(f"teardown removes {what}; if that is meant, say so with --yes")
        if not yes and not call.is_confirmed(f"Remove {what}?"):
            raise FeatureStoreError("nothing was removed")
        store.teardown()
        call.answer({"removed": True, "project": store.settings.project}, [f"Removed {what}."])
