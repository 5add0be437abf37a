"""A folder of definitions, loaded (`loading.py`) and checked: every fault of it at once, each with its file, object and field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from featurestore.aggregations import ALL
from featurestore.definitions import (
    KINDS,
    Alias,
    Definition,
    FeatureService,
    FeatureView,
    FileSource,
    OnDemandFeatureView,
    OnDemandInput,
    Projection,
    PushSource,
    RequestSource,
)
from featurestore.errors import DefinitionError, Fault, SourceError, known_names
from featurestore.fields import check_cases
from featurestore.functions import code_faults, reference
from featurestore.loading import Loading
from featurestore.offline.sources import describe, resolved, view_faults
from featurestore.types import ValueType

__all__ = ["load_repo"]

Found = list[tuple[Definition, str]]
"""Definitions, each with the file, and where it is known the line, that made it."""


def load_repo(root: Path) -> list[Definition]:
    """Return the definitions of a repo, checked against each other and against their sources.

    Raises:
        DefinitionError: with every fault found.

    """
    loading = Loading(root)
    modules = loading.run()
    found = _collect(modules, loading.made)
    faults = [*loading.faults, *_dropped_faults(found, loading), *_faults(found, root, loading.lost)]
    if not found and not faults:
        faults = [Fault(str(root), "", "", "no definitions: no Python file here defines a feature view")]
    definitions: list[Definition] = []
    for each, file in found:
        if isinstance(each, OnDemandFeatureView):
            try:
                code = reference(each, root, loading, modules)
                faults += [Fault(file, each.name, "function", message) for message in code_faults(root, code.file)]
                definitions.append(dataclasses.replace(cast("Any", each), code=code))
            except ValueError as reason:
                faults.append(Fault(file, each.name, "function", str(reason)))
        elif not faults:
            definitions.append(resolved(each, root)[0] if isinstance(each, FeatureView) else each)
    if faults:
        raise DefinitionError(faults)
    return definitions


# Collecting


def _collect(modules: dict[str, ModuleType], made: dict[int, tuple[Any, str]]) -> Found:
    """Return the definitions that modules hold, and what those refer to; equal ones once."""
    found: dict[Definition, str] = {}
    for file, module in modules.items():
        for value in vars(module).values():
            for definition in _reachable(value):
                _, place = made.get(id(definition), (None, file))
                if definition not in found or id(definition) in made:
                    found[definition] = place
    return list(found.items())


def _reachable(value: Any) -> Iterator[Definition]:
    if isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _reachable(each)
    elif isinstance(value, Projection):
        yield from _reachable(value.view)
    elif isinstance(value, tuple(KINDS)):
        definition = cast("Definition", value)
        yield definition
        if isinstance(value, FeatureView):
            for part in (*value.entities, value.source):
                yield from _reachable(part)
        elif isinstance(value, Alias):
            yield from _reachable(value.view)
        elif isinstance(value, FeatureService | OnDemandFeatureView):
            for member in value.features if isinstance(value, FeatureService) else value.inputs:
                yield from _reachable(member)


# Checking


def _dropped_faults(found: Found, loading: Loading) -> Iterator[Fault]:
    """Say which definitions no variable holds, nor another definition; one that was refined under its name is none of them."""
    held = {(type(each), each.name) for each, _ in found}
    for definition, place, what in loading.dropped:
        if (type(definition), definition.name) not in held:
            yield Fault(place, definition.name, "", f"nothing holds it: {what}")


def _faults(found: Found, root: Path, lost: set[str]) -> Iterator[Fault]:
    yield from _name_faults(found)
    yield from _source_faults(found, root)
    roles: Roles = {each.name: each for each, _ in found if isinstance(each, FeatureView | Alias | OnDemandFeatureView)}
    for definition, file in found:
        if isinstance(definition, OnDemandFeatureView):
            yield from (Fault(file, definition.name, "inputs", message) for message in _input_faults(definition, roles, lost))
        elif isinstance(definition, FeatureService):
            yield from (Fault(file, definition.name, "features", message) for message in _service_faults(definition, roles, lost))


def _name_faults(found: Found) -> Iterator[Fault]:
    first: dict[tuple[str, str], str] = {}
    for definition, file in found:
        # Views of all kinds and aliases share one space of names, since all name output columns.
        kind = KINDS[FeatureView if isinstance(definition, Alias | OnDemandFeatureView) else type(definition)]
        if (kind, definition.name) in first:
            other = first[kind, definition.name]
            yield Fault(file, definition.name, "name", f"another {kind} in {other} has the same name and is not the same")
        first.setdefault((kind, definition.name), file)


def _source_faults(found: Found, root: Path) -> Iterator[Fault]:
    columns = {}
    for definition, file in found:
        if isinstance(definition, FileSource | PushSource):
            try:
                columns[definition] = describe(definition, root)
            except SourceError as reason:
                yield Fault(file, definition.name, "path", str(reason))
    for definition, file in found:
        if isinstance(definition, FeatureView):
            try:  # here, and not where it is made: a registry may hold one that was applied before this was looked at
                check_cases(_columns(definition))
            except ValueError as reason:
                yield Fault(file, definition.name, "aggregations" if definition.aggregations else "fields", str(reason))
                continue
            for where, message in view_faults(definition, root, columns.get(definition.source)):
                yield Fault(file, definition.name, where, message)


def _columns(view: FeatureView) -> list[str]:
    """Return the join keys of a view, and the columns that its table stores."""
    names = [each.stored_name for each in view.aggregations if each.column != ALL or each.where is not None]
    return [*(key.name for key in view.join_keys), *(field.name for field in view.fields), *names]


Role = FeatureView | Alias | OnDemandFeatureView
Roles = Mapping[str, Role]


def _service_faults(service: FeatureService, roles: Roles, lost: set[str]) -> Iterator[str]:
    columns: set[str] = set()
    needed: dict[str, tuple[ValueType, str]] = {}
    for member in service.features:
        try:
            role, features = _member(member, roles, lost)
        except ValueError as reason:
            yield str(reason)
            continue
        for each in features if role else ():
            if f"{_name(member)}__{each}" in columns:
                yield f"output column '{_name(member)}__{each}' is there twice"
            columns.add(f"{_name(member)}__{each}")
        yield from _column_faults(_name(member), roles, needed, set())


def _member(member: OnDemandInput, roles: Roles, lost: set[str]) -> tuple[Role | None, Sequence[str]]:
    """Return the view or alias that is named, none if its definition failed, and the features; ValueError for unknown ones."""
    name = _name(member)
    role = roles.get(name)
    if role is None and name in lost:
        return None, ()
    if role is None:
        raise ValueError(f"no feature view or alias {name!r}; {known_names(name, roles)}")
    known = (role.view if isinstance(role, Alias) else role).feature_names
    if isinstance(member, str):
        feature = member.partition(":")[2]
        if feature not in known:
            raise ValueError(f"view {name!r} has no feature {feature!r} (written as 'view:feature'); {known_names(feature, known)}")
        return role, [feature]
    return role, member.features if isinstance(member, Projection) else known


def _name(member: OnDemandInput) -> str:
    if isinstance(member, str):
        return member.partition(":")[0]
    return (member.view if isinstance(member, Projection) else member).name


def _input_faults(view: OnDemandFeatureView, roles: Roles, lost: set[str]) -> Iterator[str]:
    for each in view.inputs:
        if not isinstance(each, RequestSource):
            try:
                _member(each, roles, lost)
            except ValueError as reason:
                yield str(reason)
    if cycle := _cycle(view, roles):
        yield f"the inputs form a cycle: {' <- '.join(cycle)}"
    else:
        yield from _column_faults(view.name, roles, {}, set())


def _cycle(view: OnDemandFeatureView, roles: Roles) -> list[str]:
    """Return the way from a view through its inputs to itself; nothing if there is none."""
    ways = [[view.name]]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        role = roles.get(way[-1])
        for each in role.inputs if isinstance(role, OnDemandFeatureView) else ():
            name = "" if isinstance(each, RequestSource) else _name(each)
            if name == view.name:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def _column_faults(name: str, roles: Roles, needed: dict[str, tuple[ValueType, str]], seen: set[str]) -> Iterator[str]:
    """Say which columns a view needs of a request with another type than others do, its inputs' views included."""
    role = roles.get(name)
    if role is None or name in seen:
        return
    seen.add(name)
    if isinstance(role, OnDemandFeatureView):
        for each in role.inputs:
            if isinstance(each, RequestSource):
                yield from _type_faults([(field.name, field.type) for field in each.fields], each.name, needed)
            else:
                yield from _column_faults(_name(each), roles, needed, seen)
        return
    keys = (role.view if isinstance(role, Alias) else role).join_keys
    columns = role.key_columns if isinstance(role, Alias) else [key.name for key in keys]
    yield from _type_faults([(column, key.type) for column, key in zip(columns, keys, strict=True)], name, needed)


def _type_faults(columns: Sequence[tuple[str, ValueType]], name: str, needed: dict[str, tuple[ValueType, str]]) -> Iterator[str]:
    for column, type_ in columns:
        known, other = needed.setdefault(column, (type_, name))
        if type_ != known:
            yield f"key column {column!r} is {known} in {other!r} and {type_} in {name!r}; rename one with an alias"
