"""From a service, or a list of `"view:feature"`, to the versions, keys and columns that answer it: the same offline and online."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.errors import InputError, NotFoundError, PendingError
from featurestore.registry.settling import view_name
from featurestore.registry.state import Applied, Version
from featurestore.specs import canonical_json
from featurestore.types import ValueType

__all__ = ["Lookup", "Selection", "select"]


_ROLES = ("feature view", "alias")


@dataclass(frozen=True)
class Lookup:
    """Some features of a view in one role: `name` is the view's or the alias's, `key_columns` stand for its join keys."""

    name: str
    version: Version
    key_columns: tuple[str, ...]
    features: tuple[str, ...]

    def column(self, feature: str) -> str:
        """Return the output column of a feature."""
        return f"{self.name}__{feature}"


@dataclass(frozen=True)
class Selection:
    """What a service asks for: its lookups, and the output columns in the service's order."""

    name: str
    lookups: tuple[Lookup, ...]
    columns: tuple[str, ...]

    @property
    def keys(self) -> dict[str, ValueType]:
        """The request columns and their types, in the order in which the lookups need them."""
        return {
            column: key.type
            for lookup in self.lookups
            for column, key in zip(lookup.key_columns, lookup.version.view.join_keys, strict=True)
        }

    def fingerprint(self) -> str:
        """Return a hash of the columns, their types and the versions that give them: equal ones give equal values."""
        given = [[each.name, each.version.fingerprint, each.key_columns, each.features] for each in self.lookups]
        columns = [[name, str(type_)] for name, type_ in self.types().items()]
        return hashlib.sha256(canonical_json([given, columns]).encode()).hexdigest()[:32]

    def types(self) -> dict[str, ValueType]:
        """Return the type of each output column."""
        found = {lookup.column(field.name): field.type for lookup in self.lookups for field in lookup.version.view.features}
        return {column: found[column] for column in self.columns}


def select(serving: Applied, wanted: str | Sequence[str]) -> Selection:
    """Resolve the name of a feature service, or a list of `"view:feature"`, against what names mean now.

    Raises:
        NotFoundError: no such service, view or feature.
        PendingError: the service or view waits for candidates.
        InputError: a list that is empty, names a feature twice, or is not of the form `view:feature`; or views whose keys clash.

    """
    if isinstance(wanted, str):
        services = _names(serving, "feature service")
        if wanted not in services:
            raise _unknown(serving, ["feature service"], wanted, services)
        members: Sequence[Any] = serving.specs["feature service", wanted]["features"]
        return _selection(serving, wanted, members)
    if not wanted:
        raise InputError("no features asked for: name a feature service, or features as 'view:feature'")
    return _selection(serving, "features", wanted)


def _selection(serving: Applied, name: str, members: Iterable[str | Mapping[str, Any]]) -> Selection:
    chosen: dict[str, list[str]] = {}
    columns: list[str] = []
    for member in members:
        if isinstance(member, str) and ":" not in member:
            raise InputError(f"{member!r} is not of the form 'view:feature'", name=member)
        view = view_name(member)
        for feature in _features(member, _lookup(serving, view).features):
            column = f"{view}__{feature}"
            if column in columns:
                raise InputError(f"feature '{view}:{feature}' is asked for twice", name=f"{view}:{feature}")
            columns.append(column)
            chosen.setdefault(view, []).append(feature)
    lookups = []
    for view, features in chosen.items():
        whole = _lookup(serving, view)
        lookups.append(Lookup(view, whole.version, whole.key_columns, tuple(features)))
    selection = Selection(name, tuple(lookups), tuple(columns))
    _check_keys(selection)
    return selection


def _features(member: str | Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    view = view_name(member)
    if isinstance(member, str):
        names: Sequence[str] = [member.partition(":")[2]]
    else:
        names = member["features"] or known
    for name in names:
        if name not in known:
            raise NotFoundError(f"feature of view {view!r} named", name, known)
        yield name


def _lookup(serving: Applied, name: str) -> Lookup:
    """Return the lookup of all features of a view or an alias."""
    renamed: Mapping[str, str] = {}
    view = name
    alias = serving.specs.get(("alias", name))
    if alias is not None:
        view, renamed = alias["view"], dict(alias["join_keys"])
    versions = serving.versions_of(view)
    if not versions:
        raise _unknown(serving, _ROLES, name, [*_names(serving, "feature view"), *_names(serving, "alias")])
    version = versions[-1]
    keys = tuple(renamed.get(key.name, key.name) for key in version.view.join_keys)
    return Lookup(name, version, keys, version.view.feature_names)


def _unknown(serving: Applied, kinds: Sequence[str], name: str, known: Sequence[str]) -> NotFoundError | PendingError:
    for kind in kinds:
        if (kind, name) in serving.waiting:
            return PendingError(kind, name, serving.waiting[kind, name])
    return NotFoundError(kinds[0], name, known)


def _names(serving: Applied, kind: str) -> list[str]:
    return [name for each, name in serving.specs if each == kind]


def _check_keys(selection: Selection) -> None:
    seen: dict[str, tuple[ValueType, str]] = {}
    for lookup in selection.lookups:
        for column, key in zip(lookup.key_columns, lookup.version.view.join_keys, strict=True):
            type_, first = seen.setdefault(column, (key.type, lookup.name))
            if type_ != key.type:
                raise InputError(
                    f"key column {column!r} is {type_} in {first!r} and {key.type} in {lookup.name!r}; rename one with an alias",
                    name=column,
                )
