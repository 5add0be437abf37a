"""The code of on-demand views: which it is, the copies that are kept of it, and how it is loaded (T10).

The registry holds no code: of each function it has the file, its name in it, and a hash.

    hash    SHA-256, its first 32 hexadecimal digits, of the canonical JSON of [path, text] of every repo file that the function
            reaches: its own, the files that this one imports relatively, what those import, and the `__init__.py` of their
            folders, by path. The text is without comments and blank lines, so a change of those is none. Of the function's own
            file these are left out as well: arguments of `on_demand_feature_view` and docstrings below it, which describe, and
            definitions and names imported by `from` that no code of the file uses: they are inputs, or for others. Installed
            packages and files of other kinds are not part of it.
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
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from featurestore.definitions import KINDS, OnDemandFeatureView
from featurestore.errors import CodeError, ConflictError
from featurestore.fields import Code
from featurestore.loading import Loading, module_files
from featurestore.registry.selection import Computed
from featurestore.specs import canonical_json

__all__ = ["Functions", "code_faults", "code_hash", "copy_name", "keep_copy", "reference", "remove_copies"]

_DECORATOR = "on_demand_feature_view"
_DEFINITIONS = ({kind.__name__ for kind in KINDS} | {"RequestSource", "alias"}) - {"OnDemandFeatureView"}
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
    texts = [
        [str(each.relative_to(root)), _text(each.read_bytes(), _unused(each) if each == root / file else ())]
        for each in _reached(root, file)
    ]
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
    reached: set[Path] = set()
    frontier = [root / file]
    while frontier:
        path = frontier.pop()
        if path in reached:
            continue
        unused = _unused(path) if not reached else ()
        reached.add(path)
        module = names[path]
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        imports = [node for node in ast.walk(_parsed(path)) if isinstance(node, ast.ImportFrom) and node.level]
        used = [node for node in imports if _lines(node) not in unused]
        targets = {*_parents(package), *(target for node in used for target in _imported(node, package))}
        frontier += [files[target] for target in targets if target in files]
    return reached


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


def _lines(node: ast.stmt | ast.expr) -> tuple[int, int]:
    return node.lineno, node.end_lineno or node.lineno


def _parents(package: str) -> Iterator[str]:
    while package:
        yield package
        package = package.rpartition(".")[0]
    yield ""


def _imported(node: ast.ImportFrom, package: str) -> Iterator[str]:
    """Give the names of modules that a relative import may mean."""
    parents = package.split(".") if package else []
    target = ".".join([*parents[: len(parents) + 1 - node.level], *filter(None, [node.module])])
    yield from _parents(target)
    yield from (f"{target}.{alias.name}".lstrip(".") for alias in node.names)


def _unused(path: Path) -> set[tuple[int, int]]:
    """Return the lines of a file that its functions do not depend on: definitions and names that no code of it uses."""
    statements = _parsed(path).body
    left = [each for each in statements if _is_definition(each) or _is_import_of_names(each)]
    used = set().union(*(_used(each) for each in statements if each not in left))
    while found := [each for each in left if used & _bound(each)]:
        left = [each for each in left if each not in found]
        used |= set().union(*(_used(each) for each in found))
    nodes: list[ast.stmt | ast.expr] = [*left, *(part for each in statements for part in _described(each))]
    starts = [line for each in statements for line in {each.lineno, each.end_lineno}]  # a line may hold several
    return {_lines(node) for node in nodes if all(starts.count(line) < 2 for line in _lines(node))}  # noqa: PLR2004


def _is_definition(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return False
    name = ast.unparse(node.value.func).rpartition(".")[2]
    return name in _DEFINITIONS and all(isinstance(target, ast.Name) for target in node.targets)


def _is_import_of_names(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module != "__future__" and all(each.name != "*" for each in node.names)


def _decorators(node: ast.stmt) -> list[ast.expr]:
    given = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return [each for each in given if isinstance(each, ast.Call) and ast.unparse(each.func).rpartition(".")[2] == _DECORATOR]


def _described(node: ast.stmt) -> list[ast.stmt | ast.expr]:
    """Return what the registry holds of an on-demand view beside its code: the decorator's arguments and the docstring."""
    calls = _decorators(node)
    has_docstring = isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None and len(node.body) > 1
    return [*calls, *(node.body[:1] if calls and has_docstring else [])]  # type: ignore[attr-defined]


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {each.asname or each.name for each in node.names}
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}


def _used(node: ast.AST) -> set[str]:
    """Return the names that a statement uses other than in arguments of the decorator, which say inputs and are no code."""
    skipped = _decorators(node) if isinstance(node, ast.stmt) else []
    found = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else set()
    return found.union(*(_used(each) for each in ast.iter_child_nodes(node) if each not in skipped))


def _text(source: bytes, unused: Iterable[tuple[int, int]]) -> str:
    """Return a source without comments, blank lines and lines that are not used."""
    text = io.TextIOWrapper(io.BytesIO(source), encoding=tokenize.detect_encoding(io.BytesIO(source).readline)[0]).read()
    lines: list[str | None] = list(text.splitlines(keepends=True))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row - 1] = token.line[:column].rstrip() + "\n" if token.line[:column].strip() else None
        elif token.type == tokenize.NL and not token.line.strip():
            lines[row - 1] = None
    for first, last in unused:
        lines[first - 1 : last] = [None] * (last - first + 1)
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
        os.utime(target)
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


def remove_copies(state: Path, needed: Iterable[str], *, kept_seconds: float) -> None:
    """Remove the copies that are not needed, and were not for so many seconds: an apply under way may be about to need one."""
    kept = set(needed)
    for each in _copies(state).glob("*"):
        with suppress(OSError):
            if each.name not in kept and each.stat().st_mtime <= time.time() - kept_seconds:
                shutil.rmtree(each)


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
                if loading.faults or not callable(function):
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
