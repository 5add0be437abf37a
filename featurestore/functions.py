"""The code of on-demand views: which it is, the copies that are kept of it, and how it is loaded (T10).

The registry holds no code: of each function it has the file, its name in it, and a hash.

    hash    SHA-256, its first 32 hexadecimal digits, of the canonical JSON of [path, text] of every repo file that the function
            reaches: its own, the files that this one imports relatively, what those import, and the `__init__.py` of their folders,
            by path. The text is without comments and blank lines, so a change of those is none. What the function's own file
            imports for nothing but the arguments of `on_demand_feature_view` (the views that are inputs) is not reached.
            Installed packages and files of other kinds are not part of it.
    copy    `code/<name>/` in the state folder: the Python files of the definitions folder, as `apply` found them. The name is
            SHA-256, its first 32 hexadecimal digits, of the canonical JSON of [path, SHA-256 of the bytes] of each, by path.

A function is loaded from its copy, or from the definitions folder itself where that has the same code; never if the hash differs.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import shutil
import threading
import time
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from featurestore.definitions import OnDemandFeatureView
from featurestore.errors import CodeError, ConflictError
from featurestore.fields import Code
from featurestore.loading import Loading, module_files
from featurestore.registry.selection import Computed
from featurestore.specs import canonical_json

__all__ = ["Functions", "code_faults", "code_hash", "copy_name", "keep_copy", "reference", "remove_copies"]

_DECORATOR = "on_demand_feature_view"
_RETRY_SECONDS = 1.0

Function = Callable[[Any], Any]


def reference(view: OnDemandFeatureView, root: Path, loading: Loading, modules: Mapping[str, ModuleType]) -> Code:
    """Return where the function of a view is, and which it is; ValueError says why it cannot be found again."""
    function, name = view.function, view.function.__qualname__
    path = loading.files.get(getattr(function, "__module__", ""))
    if path is None:
        raise ValueError(f"function {name!r} is not defined in this repo; define one here that calls it")
    file = str(path.relative_to(root))
    if _named(modules[file], name) is not function:
        raise ValueError(f"function {name!r} must stand at the top level of {file} under its own name, to be found there again")
    return Code(file, name, code_hash(root, file), copy_name(root))


def _named(module: ModuleType, name: str) -> Any:
    found = module.__dict__.get(name)
    return found.function if isinstance(found, OnDemandFeatureView) else found


# Which code


def code_hash(root: Path, file: str) -> str:
    """Return the hash of the code that functions of a file reach."""
    texts = [[str(each.relative_to(root)), _without_comments(each.read_bytes())] for each in _reached(root, file)]
    return hashlib.sha256(canonical_json(sorted(texts)).encode()).hexdigest()[:32]


def code_faults(root: Path, file: str) -> list[str]:
    """Say where the code that functions of a file reach imports repo modules too late: inside a function, when it is called."""
    faults = []
    for each in sorted(_reached(root, file)):
        for function in ast.walk(ast.parse(each.read_bytes())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = [node.lineno for node in ast.walk(function) if isinstance(node, ast.ImportFrom) and node.level]
                faults += [
                    f"{each.relative_to(root)}:{line} imports inside a function; move it to the top of the file" for line in lines
                ]
    return list(dict.fromkeys(faults))


def _reached(root: Path, file: str) -> set[Path]:
    files = module_files(root)
    names = {path: name for name, path in files.items()}
    start = root / file
    reached: set[Path] = set()
    frontier = [start]
    while frontier:
        path = frontier.pop()
        if path in reached:
            continue
        reached.add(path)
        module = names[path]
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        tree = ast.parse(path.read_bytes(), str(path))
        used = _used(tree) if path == start else None
        targets = {*_imported(tree, package, used), *_parents(package)}
        frontier += [files[target] for target in targets if target in files]
    return reached


def _parents(package: str) -> Iterator[str]:
    while package:
        yield package
        package = package.rpartition(".")[0]
    yield ""


def _imported(tree: ast.Module, package: str, used: set[str] | None) -> Iterator[str]:
    """Give the names of modules that relative imports may mean; only those for names that are used, where these are given."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        names = [alias.name for alias in node.names if used is None or alias.name == "*" or (alias.asname or alias.name) in used]
        if names:
            parents = package.split(".") if package else []
            target = ".".join([*parents[: len(parents) + 1 - node.level], *filter(None, [node.module])])
            yield from _parents(target)
            yield from (f"{target}.{name}".lstrip(".") for name in names)


def _used(tree: ast.AST) -> set[str]:
    """Return the names that a file uses other than in arguments of the decorator, which say inputs and are no code."""
    if isinstance(tree, ast.Call) and ast.unparse(tree.func).rpartition(".")[2] == _DECORATOR:
        return set()
    found = {tree.id} if isinstance(tree, ast.Name) else set()
    return found.union(*(_used(node) for node in ast.iter_child_nodes(tree)))


def _without_comments(source: bytes) -> str:
    text = io.TextIOWrapper(io.BytesIO(source), encoding=tokenize.detect_encoding(io.BytesIO(source).readline)[0]).read()
    lines: list[str | None] = list(text.splitlines(keepends=True))
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            row, column = token.start
            if token.type == tokenize.COMMENT:
                lines[row - 1] = token.line[:column].rstrip() + "\n" if token.line[:column].strip() else None
            elif token.type == tokenize.NL and not token.line.strip():
                lines[row - 1] = None
    except (tokenize.TokenError, SyntaxError):
        return text
    return "".join(line for line in lines if line is not None)


# Copies


def copy_name(root: Path) -> str:
    """Return the name of a copy of the Python files that a folder has now."""
    return _copy_name({str(file.relative_to(root)): file.read_bytes() for file in module_files(root).values()})


def _copy_name(contents: Mapping[str, bytes]) -> str:
    digests = [[path, hashlib.sha256(contents[path]).hexdigest()] for path in sorted(contents)]
    return hashlib.sha256(canonical_json(digests).encode()).hexdigest()[:32]


def keep_copy(root: Path, state: Path, name: str) -> None:
    """Keep a copy of a folder's Python files under the name that they had when they were planned.

    Raises:
        ConflictError: they have changed since.

    """
    target = _copies(state) / name
    if target.is_dir():
        return
    contents = {str(file.relative_to(root)): file.read_bytes() for file in module_files(root).values()}
    if _copy_name(contents) != name:
        raise ConflictError("the definitions have changed since this plan was made; plan again and apply that")
    partial = target.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}.partial")
    for path, content in contents.items():
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        (partial / path).write_bytes(content)
    try:
        partial.replace(target)
    except OSError:  # another process has kept the same meanwhile
        if not target.is_dir():
            raise
        shutil.rmtree(partial)


def remove_copies(state: Path, needed: Iterable[str]) -> list[str]:
    """Remove the copies that are not needed; returns their names."""
    kept = set(needed)
    found = [each for each in _copies(state).glob("*") if each.name not in kept and not each.name.startswith(".")]
    for each in found:
        shutil.rmtree(each, ignore_errors=True)
    return sorted(each.name for each in found)


def _copies(state: Path) -> Path:
    return state / "code"


# Loading


class Functions:
    """The functions of on-demand views, each loaded once; threads may share it."""

    def __init__(self, root: Path, state: Path) -> None:
        self._root, self._state = root, state
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, str, str], Function] = {}
        self._failed: dict[tuple[str, str, str], tuple[float, CodeError]] = {}

    def of(self, computed: Computed) -> Function:
        """Return the function of an on-demand view of a selection; CodeError if it cannot be had."""
        return self.load(computed.name, computed.code)

    def load(self, view: str, code: Code) -> Function:
        """Return the function of an on-demand view, the same object each time.

        Raises:
            CodeError: no copy of it is there, or it cannot be loaded.

        """
        key = (code.file, code.function, code.hash)
        with self._lock:
            function = self._loaded.get(key)
            if function is not None:
                return function
            failed_at, failure = self._failed.get(key, (0.0, None))
            if failure is not None and time.monotonic() - failed_at < _RETRY_SECONDS:
                raise failure
            try:
                function = self._loaded[key] = self._load(view, code)
            except CodeError as reason:
                self._failed[key] = time.monotonic(), reason
                raise
            return function

    def _load(self, view: str, code: Code) -> Function:
        for folder in (_copies(self._state) / code.copy, self._root):
            if _has(folder, code):
                loading = Loading(folder)
                module = loading.run_one(code.file)
                function = _named(module, code.function)
                if not callable(function):
                    why = f": {loading.faults[0]}" if loading.faults else ""
                    raise CodeError(f"the code of on-demand view {view!r} in {folder / code.file} cannot be loaded{why}", name=view)
                loaded: Function = function
                return loaded
        raise CodeError(
            f"the code of on-demand view {view!r} ({code.file}, {code.function}, hash {code.hash[:12]}) is not there: no copy of "
            f"it is kept in {_copies(self._state)}, and the definitions are others now; apply them, or bring back {code.copy}",
            name=view,
        )


def _has(folder: Path, code: Code) -> bool:
    try:
        return (folder / code.file).is_file() and code_hash(folder, code.file) == code.hash
    except (OSError, SyntaxError, ValueError):
        return False
