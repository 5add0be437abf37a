from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
ROOTS = {"featurestore": CHECKOUT, "featurestore_server": CHECKOUT / "server"}

LAYERS = (  # lowest first
    "featurestore.errors",
    "featurestore.clock",
    "featurestore.types",
    "featurestore.parquet_file",
    "featurestore.fields",
    "featurestore.aggregations",
    "featurestore.sources",
    "featurestore.definitions",
    "featurestore.specs",
    "featurestore.settings",
    "featurestore.receipt",
    "featurestore.registry",
    "featurestore.lock",
    "featurestore.columns",
    "featurestore.on_demand",
    "featurestore.offline",
    "featurestore.online",
    "featurestore.loading",
    "featurestore.functions",
    "featurestore.repo",
    "featurestore.sizing",
    "featurestore.push",
    "featurestore.push_tail",
    "featurestore.push_file",
    "featurestore.push_erasure",
    "featurestore.materialize",
    "featurestore.availability",
    "featurestore.serving_log",
    "featurestore.erasure",
    "featurestore.retirement",
    "featurestore.runs",
    "featurestore.training",
    "featurestore.parity",
    "featurestore.doctor",
    "featurestore.lookups",
    "featurestore.store",
    "featurestore.testing",
    "featurestore.client",
    "featurestore.cli",
    "featurestore",
    "featurestore_server",
)


def _module_files() -> dict[str, Path]:
    files = {}
    for package, folder in ROOTS.items():
        for file in sorted((folder / package).rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


MODULES = _module_files()


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that can run, those inside functions included."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    children = node.orelse if isinstance(node, ast.If) and _is_type_checking(node.test) else ast.iter_child_nodes(node)
    for child in children:
        yield from _import_statements(child)


def _origin(statement: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """Return the absolute name that follows `from`."""
    if not statement.level:
        return statement.module or ""
    parents = module.split(".")
    kept = parents[: len(parents) - statement.level + is_package]
    return ".".join([*kept, *filter(None, [statement.module])])


def _imported(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Return the absolute names that a module imports; `from a import b` counts as `a.b`."""
    names = set()
    for statement in _import_statements(ast.parse(source)):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        else:
            origin = _origin(statement, module, is_package=is_package)
            names |= {f"{origin}.{alias.name}" for alias in statement.names}
    return names


def _own_module(name: str) -> str | None:
    """Return the module of ours that holds a name: the longest part of it, from the left, that is one."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def _graph() -> dict[str, set[str]]:
    graph = {}
    for module, file in MODULES.items():
        names = _imported(file.read_text(), module, is_package=file.name == "__init__.py")
        graph[module] = {found for found in map(_own_module, names) if found} - {module}
    return graph


def _layer(module: str) -> int:
    """Return the place in LAYERS: the server's as a whole, a library module's by its first two names."""
    package, *names = module.split(".")
    is_on_top = package != "featurestore" or names in ([], ["__main__"])
    return LAYERS.index(package if is_on_top else f"{package}.{names[0]}")


def test_every_module_has_a_layer() -> None:
    """A new module of the library needs a place in LAYERS."""
    assert "featurestore.errors" in MODULES
    library = {".".join(module.split(".")[:2]) for module in MODULES if module.startswith("featurestore.")}

    assert library - {"featurestore.__main__"} - set(LAYERS) == set()


def test_imports_point_downward() -> None:
    """No module imports one of a higher layer, function-local imports included, and none the package root."""
    upward = [
        f"{module} imports {imported}"
        for module, imports in _graph().items()
        for imported in sorted(imports)
        if _layer(imported) > _layer(module)
    ]

    assert upward == []


def test_imports_have_no_cycle() -> None:
    """The graph of modules is acyclic, inside a layer too."""
    try:
        TopologicalSorter(_graph()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import featurestore.errors", {"featurestore.errors"}),
        ("def f():\n    from featurestore.clock import floor", {"featurestore.clock.floor"}),
        ("from . import keys", {"featurestore.online.keys"}),
        ("from .keys import tag", {"featurestore.online.keys.tag"}),
        ("from ..types import Int64", {"featurestore.types.Int64"}),
        ("if TYPE_CHECKING:\n    import pyarrow", set()),
        ("if typing.TYPE_CHECKING:\n    import a\nelse:\n    import b", {"b"}),
        ("try:\n    import a\nexcept ImportError:\n    import b", {"a", "b"}),
    ],
)
def test_every_import_that_can_run_counts(source: str, expected: set[str]) -> None:
    """Imports count wherever they stand, except under TYPE_CHECKING; relative ones are resolved."""
    assert _imported(source, "featurestore.online.rows") == expected


def test_a_package_resolves_relative_imports_from_itself() -> None:
    """In a package's `__init__`, one dot is the package itself."""
    assert _imported("from .rows import encode", "featurestore.online", is_package=True) == {"featurestore.online.rows.encode"}
