"""The command that erases entities: delete-entities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from featurestore.cli.invocation import Invocation
from featurestore.cli.rendering import counted, grid
from featurestore.cli.serving import Keys, key_columns
from featurestore.errors import FeatureStoreError, InputError, NotFoundError

if TYPE_CHECKING:
    from featurestore.erasure import Manifest
    from featurestore.store import FeatureStore
    from featurestore.types import ValueType

__all__ = ["delete_entities"]

EntityName = Annotated[str, typer.Argument(metavar="ENTITY", help="The entity, as it is applied.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")]
Lift = Annotated[bool, typer.Option("--lift", metavar="", help="Let later runs read their rows again; nothing is brought back.")]


def delete_entities(call: Invocation, entity: EntityName, key: Keys = None, yes: Yes = False, lift: Lift = False) -> None:
    """Erase entities: online at once, from every retained version of every table, and for every later run.

    Sources stay as they are. The answer has hashes and counts, never keys.

    Example: featurestore delete-entities sensor -k sensor_id=pump_3 --yes
    """
    with call.store() as store:
        keys = key_columns(key or (), _types(store, entity))
        if lift:
            lifted = store.restore_entities(entity, keys)
            call.answer({"lifted": lifted}, [f"{counted(lifted, 'tombstone')} lifted; run the intervals of their rows again."])
            return
        count = max(map(len, keys.values()), default=0)
        if not yes and not call.can_ask:
            raise InputError(f"delete-entities erases {counted(count, entity)} for good; if that is meant, say so with --yes")
        if not yes and not call.is_confirmed(f"Erase {counted(count, entity)} for good?"):
            raise FeatureStoreError("nothing was erased")
        manifest = store.delete_entities(entity, keys)
    call.answer(manifest.to_dict(), _parts(manifest))


def _types(store: FeatureStore, entity: str) -> dict[str, ValueType]:
    from featurestore.definitions import Entity
    from featurestore.specs import from_spec

    specs = store.applied().specs
    if ("entity", entity) not in specs:
        raise NotFoundError("entity", entity, [name for kind, name in specs if kind == "entity"])
    return {each.name: each.type for each in from_spec(Entity, specs["entity", entity]).join_keys}


def _parts(manifest: Manifest) -> Iterator[RenderableType]:
    if manifest.versions:
        rows = [[each.view, each.version, each.online_rows, each.rows, each.files] for each in manifest.versions]
        yield grid(["view", "version", "online", "rows", "files written anew"], rows)
    if manifest.serving_log_rows:
        yield f"{counted(manifest.serving_log_rows, 'row')} of the serving log erased."
    if manifest.pushed_rows:
        yield f"{counted(manifest.pushed_rows, 'row')} of what was pushed erased."
    asked = counted(len(manifest.digests), manifest.entity)
    if any(each.online_rows or each.rows or each.files for each in manifest.versions) or _elsewhere(manifest):
        yield f"{asked} erased. The sources are yours to erase."
    else:
        yield f"Nothing had a row of {asked}; later runs and pushes take none. The sources are yours to erase."
    if manifest.training_sets:
        yield f"{counted(len(manifest.training_sets), 'stored training set')} written anew."
    if not manifest.is_log_compacted:
        yield "The online server did not compact its log, which may hold old rows: see to that there."


def _elsewhere(manifest: Manifest) -> bool:
    """Whether something was erased that is no version's."""
    return bool(manifest.serving_log_rows or manifest.pushed_rows or manifest.training_sets)
