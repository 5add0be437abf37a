"""The command that locks a feature service: lock."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.invocation import Invocation
from featurestore.cli.rendering import counted
from featurestore.cli.serving import Features, features_named

__all__ = ["lock"]

LockOutput = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the lock, beside the model.")]


def lock(call: Invocation, features: Features, output: LockOutput) -> None:
    """Write down what a feature service is made of, so that a model is never served anything else.

    Lookups that name the lock, or its fingerprint, are refused when what is served differs, and told in what.

    Example: featurestore lock machine_health_v1 -o model/features.lock
    """
    with call.store() as store:
        made = store.lock(features_named(features), output)
    record = {"path": str(output), "fingerprint": made.fingerprint, "features": len(made.columns)}
    parts = [counted(len(made.views or ()), "view"), counted(len(made.on_demand or ()), "on-demand view")]
    call.answer(
        record, [f"{counted(len(made.columns), 'feature')} of {' and '.join(parts)} locked in {output}: {made.fingerprint}"]
    )
