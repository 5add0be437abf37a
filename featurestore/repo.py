"""A folder of definitions, loaded and checked: every fault of it at once, each with its file, object and field.

The folder's Python files are loaded by path as modules of a private package, never through `sys.path`; they may import each other
relatively (`from .entities import aircraft`). Each top-level statement is run by itself, so a faulty one hides no other: what
only fails because an earlier one did is not reported.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pydantic import ValidationError

from featurestore.definitions import KINDS, Alias, Definition, FeatureService, FeatureView, FileSource, Projection
from featurestore.errors import DefinitionError, Fault, SourceError, known_names
from featurestore.offline.sources import describe, view_faults
from featurestore.types import ValueType

__all__ = ["load_repo"]

_SKIPPED = {"__pycache__", "node_modules", "venv"}
_NUMBERS = itertools.count()


def load_repo(root: Path) -> list[Definition]:
    """Return the definitions of a repo, checked against each other and against their sources.

    Raises:
        DefinitionError: with every fault found.

    """
    loading = _Loading(root, f"_featurestore_repo_{next(_NUMBERS)}")
    found = loading.run()
    faults = [*loading.faults, *_faults(found, root)]
    if not found and not faults:
        faults = [Fault(str(root), "", "", "no definitions: no Python file here defines a feature view")]
    if faults:
        raise DefinitionError(faults)
    return [definition for definition, _ in found]


Found = list[tuple[Definition, str]]
"""Definitions, each with the file, and where it is known the line, that made it."""


# Loading


@dataclass
class _Loading(importlib.abc.MetaPathFinder):
    """Loads the files of a folder as modules of one private package."""

    root: Path
    package: str
    faults: list[Fault] = field(default_factory=list)
    places: dict[int, str] = field(default_factory=dict)
    """Where objects were made, as file and line, by their id."""

    def run(self) -> Found:
        package = ModuleType(self.package)
        package.__path__ = [str(self.root)]
        sys.modules[self.package] = package
        sys.meta_path.insert(0, self)
        try:
            modules = {file: importlib.import_module(name) for file, name in self._modules()}
        finally:
            sys.meta_path.remove(self)
        return _collect({str(file.relative_to(self.root)): module for file, module in modules.items()}, self.places)

    def _modules(self) -> Iterator[tuple[Path, str]]:
        for file in sorted(self.root.rglob("*.py")):
            parts = file.relative_to(self.root).with_suffix("").parts
            if not any(part.startswith(".") or part in _SKIPPED for part in parts):
                yield file, ".".join([self.package, *(parts[:-1] if parts[-1] == "__init__" else parts)])

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002 (the protocol's)
        if not fullname.startswith(self.package + "."):
            return None
        place = self.root.joinpath(*fullname.split(".")[1:])
        for file, is_package in ((place.with_suffix(".py"), False), (place / "__init__.py", True)):
            if file.is_file():
                loader = _StatementLoader(fullname, str(file), self)
                return importlib.util.spec_from_file_location(
                    fullname, file, loader=loader, submodule_search_locations=[str(place)] if is_package else None
                )
        return ModuleSpec(fullname, None, is_package=True) if place.is_dir() else None


class _StatementLoader(importlib.abc.Loader):
    """Runs a file statement by statement, and goes on after one that fails."""

    def __init__(self, name: str, path: str, loading: _Loading) -> None:
        self.name, self.path, self.loading = name, path, loading

    def exec_module(self, module: ModuleType) -> None:
        file = str(Path(self.path).relative_to(self.loading.root))
        try:
            tree = ast.parse(Path(self.path).read_bytes(), self.path)
        except (OSError, SyntaxError, ValueError) as reason:
            self.loading.faults.append(Fault(file, "", "", f"cannot be read: {reason}"))
            return
        missing: set[str] = set()
        for statement in tree.body:
            names = set(_assigned(statement))
            try:
                exec(compile(ast.Module([statement], []), self.path, "exec"), module.__dict__)  # noqa: S102 (definitions are the user's own code)
            except Exception as reason:  # noqa: BLE001 (whatever the user's code raises is a fault of theirs)
                if not _used(statement) & missing:
                    self.loading.faults += _statement_faults(file, statement, names, reason)
                missing |= names
                # Another file that imports the name gets this stand-in, which fails on use, rather than an import error of its own.
                module.__dict__.update(dict.fromkeys(names, _MISSING))
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                for name in names & module.__dict__.keys():
                    self.loading.places.setdefault(id(module.__dict__[name]), f"{file}:{statement.lineno}")


class _Missing:
    """Stands for an object whose definition failed: whatever is built on it fails quietly, since the cause is reported."""

    def __getattr__(self, name: str) -> Any:
        raise _MissingError

    def __getitem__(self, name: Any) -> Any:
        raise _MissingError


class _MissingError(Exception):
    """Something is built on a definition that failed."""


_MISSING = _Missing()


def _assigned(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)


def _used(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _statement_faults(file: str, statement: ast.stmt, names: set[str], reason: Exception) -> list[Fault]:
    place, name = f"{file}:{statement.lineno}", ", ".join(sorted(names))
    if isinstance(reason, _MissingError):
        return []
    if isinstance(reason, ValidationError):
        errors = reason.errors(include_url=False)
        if any(isinstance(part, _Missing) for error in errors for part in _values(error["input"])):
            return []
        name = _declared_name(statement) or name
        faults = {}
        for error in errors:
            location = ".".join(str(part) for part in error["loc"] if not (isinstance(part, str) and part[:1].isupper()))
            faults[location, error["msg"]] = Fault(place, name, location, error["msg"].removeprefix("Value error, "))
        return list(faults.values())
    return [Fault(place, name, "", f"{type(reason).__name__}: {reason}")]


def _values(given: Any) -> Iterator[Any]:
    if isinstance(given, _Missing):
        yield given
    elif isinstance(given, list | tuple):
        for each in given:
            yield from _values(each)
    elif hasattr(given, "kwargs"):
        yield from _values([*(given.args or ()), *(given.kwargs or {}).values()])
    else:
        yield given


def _declared_name(statement: ast.stmt) -> str | None:
    """Return the name in `x = Kind("name", …)`."""
    for node in ast.walk(statement):
        if (
            isinstance(node, ast.Call)
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            return node.args[0].value
    return None


# Collecting


def _collect(modules: dict[str, ModuleType], places: dict[int, str]) -> Found:
    """Return the definitions that modules hold, and what those refer to; equal ones once."""
    found: dict[Definition, str] = {}
    for file, module in modules.items():
        for value in vars(module).values():
            for definition in _reachable(value):
                place = places.get(id(definition), file)
                if definition not in found or id(definition) in places:
                    found[definition] = place
    return list(found.items())


def _reachable(value: Any) -> Iterator[Definition]:
    if isinstance(value, Projection):
        yield from _reachable(value.view)
    elif isinstance(value, tuple(KINDS)):
        definition = cast("Definition", value)
        yield definition
        if isinstance(value, FeatureView):
            for part in (*value.entities, value.source):
                yield from _reachable(part)
        elif isinstance(value, Alias):
            yield from _reachable(value.view)
        elif isinstance(value, FeatureService):
            for member in value.features:
                yield from _reachable(member)


# Checking


def _faults(found: Found, root: Path) -> Iterator[Fault]:
    yield from _name_faults(found)
    yield from _source_faults(found, root)
    for definition, file in found:
        if isinstance(definition, FeatureService):
            yield from (Fault(file, definition.name, "features", message) for message in _service_faults(definition, found))


def _name_faults(found: Found) -> Iterator[Fault]:
    first: dict[tuple[str, str], str] = {}
    for definition, file in found:
        # Views and aliases share one space of names, since both name output columns.
        kind = KINDS[FeatureView if isinstance(definition, Alias) else type(definition)]
        if (kind, definition.name) in first:
            other = first[kind, definition.name]
            yield Fault(file, definition.name, "name", f"another {kind} in {other} has the same name and is not the same")
        first.setdefault((kind, definition.name), file)


def _source_faults(found: Found, root: Path) -> Iterator[Fault]:
    columns = {}
    for definition, file in found:
        if isinstance(definition, FileSource):
            try:
                columns[definition] = describe(definition, root)
            except SourceError as reason:
                yield Fault(file, definition.name, "path", str(reason))
    for definition, file in found:
        if isinstance(definition, FeatureView) and definition.source in columns:
            for where, message in view_faults(definition, root, columns[definition.source]):
                yield Fault(file, definition.name, where, message)


def _service_faults(service: FeatureService, found: Found) -> Iterator[str]:
    roles = {each.name: each for each, _ in found if isinstance(each, FeatureView | Alias)}
    columns: set[str] = set()
    keys: dict[str, tuple[ValueType, str]] = {}
    for member in service.features:
        name, _, feature = member.partition(":") if isinstance(member, str) else (_role(member).name, "", "")
        role = roles.get(name)
        if role is None:
            yield f"no feature view or alias {name!r}; {known_names(name, roles)}"
            continue
        view = role.view if isinstance(role, Alias) else role
        known = [each.name for each in view.fields]
        wanted = [feature] if isinstance(member, str) else member.features if isinstance(member, Projection) else known
        for each in wanted:
            if each not in known:
                yield f"view {name!r} has no feature {each!r} (written as 'view:feature'); {known_names(each, known)}"
            elif f"{name}__{each}" in columns:
                yield f"output column '{name}__{each}' is there twice"
            columns.add(f"{name}__{each}")
        key_columns = role.key_columns if isinstance(role, Alias) else [key.name for key in view.join_keys]
        for column, key in zip(key_columns, view.join_keys, strict=True):
            type_, other = keys.setdefault(column, (key.type, name))
            if type_ != key.type:
                yield f"key column {column!r} is {type_} in {other!r} and {key.type} in {name!r}; rename one with an alias"


def _role(member: FeatureView | Alias | Projection) -> FeatureView | Alias:
    return member.view if isinstance(member, Projection) else member
