"""The Python files of a folder, loaded by path as modules of a private package, never through `sys.path`.

They may import each other relatively (`from .entities import aircraft`). Each top-level statement is run by itself, so a faulty one
hides no other: what only fails because an earlier one did is not reported.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import dataclasses
import importlib.abc
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from featurestore.definitions import KINDS
from featurestore.errors import Fault, known_names

__all__ = ["Loading", "module_files"]

_SKIPPED = {"__pycache__", "node_modules", "venv"}
_NUMBERS = itertools.count()


def module_files(root: Path) -> dict[str, Path]:
    """Return the Python files of a folder, by the names of their modules: `sub.views`; that of its own `__init__.py` is empty."""
    found = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if any(part.startswith(".") or part in _SKIPPED for part in parts):
            continue
        # A dot in a name would mean a package; such a file can be loaded, only not imported by another.
        names = [part.replace(".", "_dot_") for part in (parts[:-1] if parts[-1] == "__init__" else parts)]
        found[".".join(names)] = file
    return found


@dataclass
class Loading(importlib.abc.MetaPathFinder):
    """Loads the files of a folder as modules of one private package, which nothing else can import."""

    root: Path
    package: str = field(default_factory=lambda: f"_featurestore_repo_{next(_NUMBERS)}")
    faults: list[Fault] = field(default_factory=list)
    made: dict[int, tuple[Any, str]] = field(default_factory=dict)
    """Objects by their id, with the file and line that made them; holding them keeps an id from being given again."""
    dropped: list[tuple[Any, str, str]] = field(default_factory=list)
    """Definitions that no variable holds any more, with the file and line that made them, and what happened to each."""
    lost: set[str] = field(default_factory=set)
    """Names of definitions that failed."""
    files: dict[str, Path] = field(default_factory=dict)
    """The file of each module."""

    def run(self) -> dict[str, ModuleType]:
        """Load all files; returns their modules by the path of the file."""
        return self._load(module_files(self.root))

    def run_one(self, file: str) -> ModuleType:
        """Load one file, and those that it imports."""
        name = next(name for name, each in module_files(self.root).items() if each == self.root / file)
        return self._load({name: self.root / file})[file]

    def _load(self, wanted: Mapping[str, Path]) -> dict[str, ModuleType]:
        package = ModuleType(self.package)
        package.__path__ = [str(self.root)]
        sys.modules[self.package] = package
        self.files = {f"{self.package}.{name}".rstrip("."): file for name, file in module_files(self.root).items()}
        sys.meta_path.insert(0, self)
        try:
            found = {file: importlib.import_module(f"{self.package}.{name}".rstrip(".")) for name, file in wanted.items()}
        finally:
            sys.meta_path.remove(self)
            for name in [name for name in sys.modules if name.split(".")[0] == self.package]:
                del sys.modules[name]
        return {str(file.relative_to(self.root)): module for file, module in found.items()}

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002, D102 (the protocol's)
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
    loading: Loading

    def exec_module(self, module: ModuleType) -> None:
        file, loading = str(self.file.relative_to(self.loading.root)), self.loading
        try:
            tree = ast.parse(self.file.read_bytes(), str(self.file))
        except (OSError, SyntaxError, ValueError) as reason:
            loading.faults.append(Fault(file, "", "", f"cannot be read: {reason}"))
            module.__dict__["__getattr__"] = _lost_attribute
            return
        flags = _future_flags(tree)
        module.__dict__["__builtins__"] = _BUILTINS
        for statement in tree.body:
            names = set(_assigned(statement))
            before = {name: module.__dict__[name] for name in names & module.__dict__.keys()}
            is_built_on_lost = any(module.__dict__.get(name) is _LOST for name in _used(statement))
            try:
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                    code = compile(ast.Expression(statement.value), str(self.file), "eval", flags, dont_inherit=True)
                    value = eval(code, module.__dict__)  # noqa: S307 (definitions are the user's own code)
                    self._note(value, f"{file}:{statement.lineno}", "it is assigned to nothing; give it a variable")
                else:
                    code = compile(ast.Module([statement], []), str(self.file), "exec", flags, dont_inherit=True)
                    exec(code, module.__dict__)  # noqa: S102 (the same)
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
            for name, value in before.items():
                if not any(module.__dict__.get(name, value) is each for each in (value, _LOST)):
                    _, place = loading.made.get(id(value), (None, file))
                    what = f"its variable {name!r} is assigned again in line {statement.lineno}; give it one of its own"
                    self._note(value, place, what)

    def _note(self, value: Any, place: str, what: str) -> None:
        if isinstance(value, tuple(KINDS)):
            self.loading.dropped.append((value, place, what))


def _print(*values: Any, file: Any = None, **options: Any) -> None:
    """Print to stderr by default: stdout is the answer's of the command that loads definitions, which may have to be JSON."""
    print(*values, file=sys.stderr if file is None else file, **options)


_BUILTINS = vars(builtins) | {"print": _print}


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
    """Return the name in `x = Kind("name", …)`, or that of a decorated function."""
    if isinstance(statement, ast.FunctionDef):
        return statement.name if statement.decorator_list else None
    for node in ast.walk(statement):
        if (
            isinstance(node, ast.Call)
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            return node.args[0].value
    return None
