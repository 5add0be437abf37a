"""Planning: what `apply` would change. Pure functions of the applied state and the definitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from featurestore.definitions import KINDS, Definition, FeatureView, OnDemandFeatureView, PushSource
from featurestore.errors import DefinitionError, Fault
from featurestore.registry.state import Applied, Version
from featurestore.specs import METADATA, fingerprint, to_reference_spec, value_spec

__all__ = ["Change", "FieldChange", "NewVersion", "Plan", "Waiting", "make_plan"]

_KIND_ORDER = tuple(KINDS.values())


@dataclass(frozen=True)
class FieldChange:
    """One field of a definition and its JSON value before and after."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Change:
    """One definition that is created, changed or removed."""

    action: str
    kind: str
    name: str
    fields: tuple[FieldChange, ...] = ()
    spec: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class NewVersion:
    """A new version of a feature view, why it is one, and the materialization that it asks for."""

    view: FeatureView
    number: int
    reasons: tuple[FieldChange, ...]
    replaces: int | None
    materialization: str
    is_resumed: bool = False
    """Whether it was kept for rollback, and so is there already."""


@dataclass(frozen=True)
class Waiting:
    """A candidate that has not taken over, and what its takeover needs: itself, and the candidates that it is connected with."""

    view: str
    number: int
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What `apply` would do to the registry as it was at `revision`."""

    revision: int
    changes: tuple[Change, ...]
    new_versions: tuple[NewVersion, ...]
    dropped_candidates: tuple[str, ...]
    warnings: tuple[str, ...]
    views: tuple[FeatureView, ...]
    """The views as defined, for versions whose values stay and whose other settings may have changed."""
    waiting: tuple[Waiting, ...] = ()
    """The candidates of earlier applies that this one keeps, with what they still need."""

    @property
    def new_code(self) -> tuple[str, ...]:
        """The on-demand views whose values change: their inputs, fields, mode or code."""
        changed = [change for change in self.changes if change.action == "change" and change.kind == KINDS[OnDemandFeatureView]]
        return tuple(change.name for change in changed if any(field.field not in METADATA for field in change.fields))

    @property
    def copies(self) -> set[str]:
        """The copies of the definitions that have to be kept for the on-demand views which it creates or changes."""
        return {str(code["copy"]) for change in self.changes if (code := (change.spec or {}).get("code"))}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to apply."""
        return not (self.changes or self.new_versions or self.dropped_candidates)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return {
            "revision": self.revision,
            "changes": [
                {
                    "action": change.action,
                    "kind": change.kind,
                    "name": change.name,
                    "fields": [asdict(field) for field in change.fields],
                }
                for change in self.changes
            ],
            "new_versions": [
                {
                    "view": new.view.name,
                    "number": new.number,
                    "replaces": new.replaces,
                    "reasons": [asdict(field) for field in new.reasons],
                    "materialization": new.materialization,
                    "is_resumed": new.is_resumed,
                }
                for new in self.new_versions
            ],
            "new_code": list(self.new_code),
            "dropped_candidates": list(self.dropped_candidates),
            "candidates": [asdict(each) | {"needs": list(each.needs)} for each in self.waiting],
            "warnings": list(self.warnings),
        }


def make_plan(applied: Applied, definitions: Sequence[Definition]) -> Plan:
    """Compare definitions with what is applied; DefinitionError for a change that what was pushed before does not allow."""
    wanted = {(KINDS[type(each)], each.name): each for each in definitions}
    if faults := list(_pushed_faults(applied, wanted)):
        raise DefinitionError(faults)
    changes = sorted(_changes(applied, wanted), key=lambda change: (_KIND_ORDER.index(change.kind), change.name))
    views = [each for each in definitions if isinstance(each, FeatureView)]
    new_versions = tuple(new for view in views if (new := _new_version(view, applied.versions_of(view.name))))
    dropped = tuple(_dropped(applied, views))
    kept = tuple(_kept(applied, dropped))
    return Plan(applied.revision, tuple(changes), new_versions, dropped, tuple(_warnings(views)), tuple(views), kept)


def _changes(applied: Applied, wanted: Mapping[tuple[str, str], Definition]) -> Iterator[Change]:
    for (kind, name), definition in wanted.items():
        spec = to_reference_spec(definition)
        before = applied.specs.get((kind, name))
        if before is None:
            yield Change("create", kind, name, spec=spec)
        # The same code may be in other copies of the folder: the one that is kept will do.
        elif fields := tuple(each for each in difference(before, spec) if each.field != "code.copy"):
            yield Change("change", kind, name, fields, spec)
    for kind, name in applied.specs:
        if (kind, name) not in wanted:
            yield Change("remove", kind, name)


def _pushed_faults(applied: Applied, wanted: Mapping[tuple[str, str], Definition]) -> Iterator[Fault]:
    """Name the columns of push sources whose type is another than that of the rows in their log."""
    for node, definition in wanted.items():
        before = applied.specs.get(node, {})
        known = {field["name"]: field["type"] for field in before.get("fields", ())}
        if isinstance(definition, PushSource):
            for field in definition.fields:
                if known.get(field.name, str(field.type)) != str(field.type):
                    was = f"column {field.name!r} was {known[field.name]} in rows that were pushed"
                    message = f"{was}; give one of {field.type} another name"
                    yield Fault("", definition.name, "fields", message)


def difference(before: Any, after: Any, path: str = "") -> Iterator[FieldChange]:
    """List the fields in which two specs differ, nested ones as `source.delay`; lists are compared whole."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for field in dict.fromkeys([*before, *after]):
            yield from difference(before.get(field), after.get(field), f"{path}.{field}" if path else field)
    elif before != after:
        yield FieldChange(path, before, after)


def _new_version(view: FeatureView, versions: Sequence[Version]) -> NewVersion | None:
    living = [version for version in versions if version.state in ("candidate", "serving")]
    if any(version.fingerprint == fingerprint(view) for version in living):
        return None
    serving = next((version for version in living if version.state == "serving"), None)
    number = max((version.number for version in versions), default=0) + 1
    reasons = tuple(difference(value_spec(serving.view), value_spec(view))) if serving else ()
    replaces = serving.number if serving else None
    for version in versions:
        if version.is_rollback and version.fingerprint == fingerprint(view):
            return NewVersion(view, version.number, reasons, replaces, "what it lacks, as it was kept", is_resumed=True)
    return NewVersion(view, number, reasons, replaces, _materialization(view, serving))


def _materialization(view: FeatureView, serving: Version | None) -> str:
    if view.is_static:
        return "a snapshot of its source"
    if view.is_pushed:
        return f"from the log of {view.source.name!r}" + ("; then it takes over" if serving else "")
    start = f"from {view.history_start:%Y-%m-%d %H:%M}Z" if view.history_start else "from the beginning of its source"
    until = " until it covers what version " + str(serving.number) + " covers; then it takes over" if serving else ""
    return start + until


def _dropped(applied: Applied, views: Sequence[FeatureView]) -> Iterator[str]:
    """Name the views whose candidate a later definition has overtaken."""
    wanted = {view.name: fingerprint(view) for view in views}
    for version in applied.versions:
        if version.state == "candidate" and wanted.get(version.view.name) != version.fingerprint:
            yield version.view.name


def _kept(applied: Applied, dropped: Sequence[str]) -> Iterator[Waiting]:
    for version in applied.versions:
        if version.state == "candidate" and version.view.name not in dropped:
            yield Waiting(version.view.name, version.number, applied.waiting.get(("feature view", version.view.name), ()))


def _warnings(views: Sequence[FeatureView]) -> Iterator[str]:
    for view in views:
        if view.online and not view.is_static and not view.is_pushed and view.refresh is None:
            yield (
                f"view {view.name!r} is served online without refresh: training sees its rows at once, "
                "serving only after the next run; declare how often you materialize it"
            )
    named: dict[tuple[str, ...], set[str]] = {}
    for entity in (entity for view in views for entity in view.entities):
        named.setdefault(tuple(key.name for key in entity.join_keys), set()).add(entity.name)
    for keys, entities in named.items():
        if len(entities) > 1:
            listed = " and ".join(map(repr, sorted(entities)))
            yield f"entities {listed} have the same join keys ({', '.join(keys)}): what is erased of one (T14) is erased of all"
