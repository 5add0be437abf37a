"""From a service, or a list of `"view:feature"`, to the versions, keys and columns that answer it: the same offline and online."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from featurestore.definitions import Field
from featurestore.errors import InputError, NotFoundError, PendingError
from featurestore.fields import Code
from featurestore.registry.settling import view_name
from featurestore.registry.state import Applied, Version
from featurestore.specs import canonical_json, from_spec, on_demand_fingerprint
from featurestore.types import ValueType

__all__ = ["Computed", "Lookup", "Selection", "lookup_of", "select", "selection_of"]


_ON_DEMAND = "on-demand feature view"
_ROLES = ("feature view", "alias", _ON_DEMAND)


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
class Computed:
    """An on-demand view and the columns that its inputs come from: other features as `view__feature`, or request columns."""

    spec: Mapping[str, Any]
    inputs: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The view's name."""
        return str(self.spec["name"])

    @property
    def mode(self) -> str:
        """What the function takes: `numpy` or `arrow`."""
        return str(self.spec["mode"])

    @property
    def fields(self) -> tuple[Field, ...]:
        """The features and their types."""
        return _fields(self.spec["fields"])

    @property
    def code(self) -> Code:
        """Where the function is, and which it is."""
        return from_spec(Code, self.spec["code"])

    @property
    def fingerprint(self) -> str:
        """A hash of what the view says of its values."""
        return on_demand_fingerprint(self.spec)

    def column(self, feature: str) -> str:
        """Return the output column of a feature."""
        return f"{self.name}__{feature}"


@dataclass(frozen=True)
class Selection:
    """What a service asks for: its lookups, and the output columns in the service's order.

    `computed` are the on-demand views, each after those that it takes features of; what they take from views is among the lookups,
    what they take from the request is in `request`.
    """

    name: str
    lookups: tuple[Lookup, ...]
    columns: tuple[str, ...]
    computed: tuple[Computed, ...] = ()
    request: Mapping[str, ValueType] = field(default_factory=dict)
    is_list: bool = False

    @property
    def wanted(self) -> str | tuple[str, ...]:
        """What was asked for: a feature service's name, or a list of `"view:feature"`."""
        return tuple(name.replace("__", ":") for name in self.columns) if self.is_list else self.name

    @property
    def keys(self) -> dict[str, ValueType]:
        """The key columns and their types, in the order in which the lookups need them."""
        return {
            column: key.type
            for lookup in self.lookups
            for column, key in zip(lookup.key_columns, lookup.version.view.join_keys, strict=True)
        }

    @property
    def needed(self) -> dict[str, ValueType]:
        """The columns of a request and their types: the keys, then those that only on-demand views take."""
        return {**self.keys, **self.request}

    def fingerprint(self) -> str:
        """Return a hash of the columns, their types and the versions and code that give them: equal ones give equal values."""
        given = [[each.name, each.version.fingerprint, each.key_columns, each.features] for each in self.lookups]
        columns = [[name, str(type_)] for name, type_ in self.types().items()]
        computed = [[[each.name, each.fingerprint] for each in self.computed]] if self.computed else []
        return hashlib.sha256(canonical_json([given, columns, *computed]).encode()).hexdigest()[:32]

    def types(self) -> dict[str, ValueType]:
        """Return the type of each output column."""
        found = self.all_types()
        return {column: found[column] for column in self.columns}

    def all_types(self) -> dict[str, ValueType]:
        """Return the type of each feature column, those that are only inputs included."""
        found = {lookup.column(field.name): field.type for lookup in self.lookups for field in lookup.version.view.features}
        return found | {each.column(field.name): field.type for each in self.computed for field in each.fields}


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
    return replace(_selection(serving, "features", wanted), is_list=True)


def _selection(serving: Applied, name: str, members: Iterable[str | Mapping[str, Any]]) -> Selection:
    needs = _Needs(lambda view: lookup_of(serving, view), lambda view: serving.specs.get((_ON_DEMAND, view)))
    columns: list[str] = []
    for member in members:
        if isinstance(member, str) and ":" not in member:
            raise InputError(f"{member!r} is not of the form 'view:feature'", name=member)
        view = view_name(member)
        for feature in needs.features(member):
            column = f"{view}__{feature}"
            if column in columns:
                raise InputError(f"feature '{view}:{feature}' is asked for twice", name=f"{view}:{feature}")
            columns.append(column)
            needs.add(view, feature)
    return needs.selection(name, columns)


def selection_of(
    wanted: str | tuple[str, ...],
    columns: Sequence[str],
    lookups: Mapping[str, Lookup],
    on_demand: Sequence[Mapping[str, Any]],
) -> Selection:
    """Return the selection of given output columns, lookups and specs of on-demand views, each after those that it takes from."""
    needs = _Needs(lookups.__getitem__, {spec["name"]: spec for spec in on_demand}.get)
    for column in columns:
        needs.add(*column.split("__"))
    found = needs.selection(wanted if isinstance(wanted, str) else "features", columns)
    return replace(found, lookups=tuple(lookups.values()), is_list=not isinstance(wanted, str))


class _Needs:
    """What features need: lookups, on-demand views and request columns, through any number of on-demand views."""

    def __init__(self, lookup: Callable[[str], Lookup], on_demand: Callable[[str], Mapping[str, Any] | None]) -> None:
        """Take what gives the lookup of all features of a view or alias, and the spec of an on-demand view, none for others."""
        self._lookup, self._on_demand = lookup, on_demand
        self._chosen: dict[str, list[str]] = {}
        self._computed: dict[str, Computed] = {}
        self._request: dict[str, ValueType] = {}
        self._sources: dict[str, str] = {}

    def features(self, member: str | Mapping[str, Any]) -> list[str]:
        """Return the features that a member of a service, or an input, names; NotFoundError if there is one that is not known."""
        view = view_name(member)
        spec = self._on_demand(view)
        known = self._lookup(view).features if spec is None else tuple(each["name"] for each in spec["fields"])
        wanted = [member.partition(":")[2]] if isinstance(member, str) else list(member["features"] or known)
        for name in wanted:
            if name not in known:
                raise NotFoundError(f"feature of view {view!r} named", name, known)
        return wanted

    def add(self, view: str, feature: str) -> None:
        """Need a feature."""
        spec = self._on_demand(view)
        if spec is None:
            features = self._chosen.setdefault(view, [])
            if feature not in features:
                features.append(feature)
        elif view not in self._computed:
            inputs = [pair for each in spec["inputs"] for pair in self._input(each)]
            self._computed[view] = Computed(spec, tuple(inputs))

    def _input(self, given: str | Mapping[str, Any]) -> list[tuple[str, str]]:
        """Need an input of an on-demand view; returns the names of its columns, and where they come from."""
        if isinstance(given, str) or "view" in given:
            view, features = view_name(given), self.features(given)
            for feature in features:
                self.add(view, feature)
            return [(feature, f"{view}__{feature}") for feature in features]
        for each in _fields(given["fields"]):
            self._request.setdefault(each.name, each.type)
            self._sources.setdefault(each.name, given["request"])
            _check_type(each.name, each.type, given["request"], self._request[each.name], self._sources[each.name])
        return [(each["name"], each["name"]) for each in given["fields"]]

    def selection(self, name: str, columns: Sequence[str]) -> Selection:
        """Return what is needed for output columns; InputError where two need a request's column in different types."""
        lookups = []
        for view, features in self._chosen.items():
            whole = self._lookup(view)
            lookups.append(Lookup(view, whole.version, whole.key_columns, tuple(features)))
        seen = {column: (type_, self._sources[column]) for column, type_ in self._request.items()}
        for lookup in lookups:
            for column, key in zip(lookup.key_columns, lookup.version.view.join_keys, strict=True):
                _check_type(column, key.type, lookup.name, *seen.setdefault(column, (key.type, lookup.name)))
        return Selection(name, tuple(lookups), tuple(columns), tuple(self._computed.values()), self._request)


def _check_type(column: str, type_: ValueType, where: str, known: ValueType, other: str) -> None:
    if type_ != known:
        raise InputError(
            f"key column {column!r} is {known} in {other!r} and {type_} in {where!r}; rename one with an alias", name=column
        )


def _fields(spec: Sequence[Mapping[str, Any]]) -> tuple[Field, ...]:
    return tuple(from_spec(Field, each) for each in spec)


def lookup_of(serving: Applied, name: str) -> Lookup:
    """Return the lookup of all features of a view or an alias.

    Raises:
        NotFoundError: no such view or alias.
        PendingError: it waits for candidates.

    """
    renamed: Mapping[str, str] = {}
    view = name
    alias = serving.specs.get(("alias", name))
    if alias is not None:
        view, renamed = alias["view"], dict(alias["join_keys"])
    versions = serving.versions_of(view)
    if not versions:
        raise _unknown(serving, _ROLES, name, [known for kind in _ROLES for known in _names(serving, kind)])
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
