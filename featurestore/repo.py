"""A folder of definitions, loaded and checked: every fault of it at once, each with its file, object and field.

The folder's Python files are loaded by path as modules of a private package, never through `sys.path`; they may import each other
relatively (`from .entities import aircraft`). Each top-level statement is run by itself, so a faulty one hides no other: what
only fails because an earlier one did is not reported.
"""

from __future__ import annotations
import __future__

import ast
import dataclasses
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
from featurestore.offline.sources import describe, resolved, view_faults
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
    faults = [*loading.faults, *_faults(found, root, loading.lost)]
    if not found and not faults:
        faults = [Fault(str(root), "", "", "no definitions: no Python file here defines a feature view")]
    if faults:
        raise DefinitionError(faults)
    return [resolved(each, root)[0] if isinstance(each, FeatureView) else each for each, _ in found]


Found = list[tuple[Definition, str]]
"""Definitions, each with the file, and where it is known the line, that made it."""


# Loading


@dataclass
class _Loading(importlib.abc.MetaPathFinder):
    """Loads the files of a folder as modules of one private package."""

    root: Path
    package: str
    faults: list[Fault] = field(default_factory=list)
    made: dict[int, tuple[Any, str]] = field(default_factory=dict)
    """Objects by their id, with the file and line that made them; holding them keeps an id from being given again."""
    lost: set[str] = field(default_factory=set)
    """Names of definitions that failed."""
    files: dict[str, Path] = field(default_factory=dict)
    """The file of each module."""

    def run(self) -> Found:
        package = ModuleType(self.package)
        package.__path__ = [str(self.root)]
        sys.modules[self.package] = package
        self.files = dict(self._modules())
        sys.meta_path.insert(0, self)
        try:
            modules = {file: importlib.import_module(name) for name, file in self.files.items()}
        finally:
            sys.meta_path.remove(self)
            for name in [name for name in sys.modules if name.split(".")[0] == self.package]:
                del sys.modules[name]
        return _collect({str(file.relative_to(self.root)): module for file, module in modules.items()}, self.made)

    def _modules(self) -> Iterator[tuple[str, Path]]:
        for file in sorted(self.root.rglob("*.py")):
            parts = file.relative_to(self.root).with_suffix("").parts
            if any(part.startswith(".") or part in _SKIPPED for part in parts):
                continue
            # A dot in a name would mean a package; such a file can be loaded, only not imported by another.
            names = [part.replace(".", "_dot_") for part in (parts[:-1] if parts[-1] == "__init__" else parts)]
            yield ".".join([self.package, *names]), file

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002 (the protocol's)
        if not fullname.startswith(self.package + "."):
            return None
        is_package = any(name.startswith(fullname + ".") for name in self.files)
        if fullname not in self.files:
            return ModuleSpec(fullname, None, is_package=True) if is_package else None
        file = self.files[fullname]
        folders = [str(file.parent)] if is_package or file.name == "__init__.py" else None
        loader = _StatementLoader(file, self)
        return importlib.util.spec_from_file_location(fullname, file, loader=loader, submodule_search_locations=folders)


@dataclass
class _StatementLoader(importlib.abc.Loader):
    """Runs a file statement by statement, and goes on after one that fails."""

    file: Path
    loading: _Loading

    def exec_module(self, module: ModuleType) -> None:
        file, loading = str(self.file.relative_to(self.loading.root)), self.loading
        try:
            tree = ast.parse(self.file.read_bytes(), str(self.file))
        except (OSError, SyntaxError, ValueError) as reason:
            loading.faults.append(Fault(file, "", "", f"cannot be read: {reason}"))
            module.__dict__["__getattr__"] = _lost_attribute
            return
        flags = _future_flags(tree)
        for statement in tree.body:
            names = set(_assigned(statement))
            is_built_on_lost = any(module.__dict__.get(name) is _LOST for name in _used(statement))
            try:
                code = compile(ast.Module([statement], []), str(self.file), "exec", flags, dont_inherit=True)
                exec(code, module.__dict__)  # noqa: S102 (definitions are the user's own code)
            except (Exception, SystemExit) as reason:  # noqa: BLE001 (whatever the user's code raises is a fault of theirs)
                if isinstance(reason, ValidationError) or not is_built_on_lost:
                    loading.faults += _statement_faults(file, statement, names, reason)
                loading.lost |= {name for name in (_declared_name(statement),) if name}
                # Another file that imports the name gets this stand-in, rather than an import error of its own.
                module.__dict__.update(dict.fromkeys(names, _LOST))
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                for name in names & module.__dict__.keys():
                    made = module.__dict__[name]
                    loading.made.setdefault(id(made), (made, f"{file}:{statement.lineno}"))


def _future_flags(tree: ast.Module) -> int:
    """Return the compiler flags of a file's own `from __future__` imports; the library's must not reach into it."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    features = [getattr(__future__, alias.name, None) for node in imports for alias in node.names]
    return sum({feature.compiler_flag for feature in features if feature is not None})


def _lost_attribute(name: str) -> Any:
    """Stand for every name of a file that could not be read."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _LOST


class _Lost:
    """Stands for an object whose definition failed: whatever fails because it is built on it is not reported."""


_LOST = _Lost()


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


def _statement_faults(file: str, statement: ast.stmt, names: set[str], reason: BaseException) -> list[Fault]:
    place, name = f"{file}:{statement.lineno}", ", ".join(sorted(names))
    if not isinstance(reason, ValidationError):
        return [Fault(place, name, "", f"{type(reason).__name__}: {reason}")]
    faults: dict[str, Fault] = {}
    for error in reason.errors(include_url=False):
        if any(isinstance(part, _Lost) for part in _values(error["input"])):
            continue
        location = _location(error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "unexpected_keyword_argument":
            message = f"there is no such argument; {known_names(str(error['loc'][-1]), _arguments(statement))}"
        if location in faults:  # a member that is none of several kinds: one fault, not one for each kind
            message = "this is none of what can stand here"
        faults[location] = Fault(place, _declared_name(statement) or name, location, message)
    return list(faults.values())


def _arguments(statement: ast.stmt) -> list[str]:
    """Return the arguments of the definition that a statement makes."""
    called = {node.func.id for node in ast.walk(statement) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    kinds = [kind for kind in KINDS if kind.__name__ in called]
    return [each.name for kind in kinds for each in dataclasses.fields(kind)]


def _location(parts: tuple[int | str, ...]) -> str:
    """Return the field that pydantic's location names: `features.1`; the kinds that it tried for it are left out."""
    if parts[:1] == (0,):
        return "name"
    return ".".join(str(part) for part in parts[: 2 if len(parts) > 1 and isinstance(parts[1], int) else 1])


def _values(given: Any) -> Iterator[Any]:
    if isinstance(given, _Lost):
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
        elif isinstance(value, FeatureService):
            for member in value.features:
                yield from _reachable(member)


# Checking


def _faults(found: Found, root: Path, lost: set[str]) -> Iterator[Fault]:
    yield from _name_faults(found)
    yield from _source_faults(found, root)
    for definition, file in found:
        if isinstance(definition, FeatureService):
            yield from (Fault(file, definition.name, "features", message) for message in _service_faults(definition, found, lost))


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
        if isinstance(definition, FeatureView):
            for where, message in view_faults(definition, root, columns.get(definition.source)):
                yield Fault(file, definition.name, where, message)


def _service_faults(service: FeatureService, found: Found, lost: set[str]) -> Iterator[str]:
    roles = {each.name: each for each, _ in found if isinstance(each, FeatureView | Alias)}
    columns: set[str] = set()
    keys: dict[str, tuple[ValueType, str]] = {}
    for member in service.features:
        name, _, feature = member.partition(":") if isinstance(member, str) else (_role(member).name, "", "")
        role = roles.get(name)
        if role is None and name in lost:
            continue
        if role is None:
            yield f"no feature view or alias {name!r}; {known_names(name, roles)}"
            continue
        view = role.view if isinstance(role, Alias) else role
        known = view.feature_names
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
