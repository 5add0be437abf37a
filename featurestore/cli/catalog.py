"""The commands that show what is applied: list, describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from featurestore.cli.invocation import Invocation
from featurestore.cli.rendering import NOTHING, grid, time_text
from featurestore.clock import instant_text
from featurestore.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from featurestore.registry.state import Applied, Version

__all__ = ["describe", "list_objects"]

_KINDS = {
    "entities": "entity",
    "sources": "source",
    "views": "feature view",
    "aliases": "alias",
    "on-demand-views": "on-demand feature view",
    "services": "feature service",
}
_SINGULAR = {plural: plural.removesuffix("s") for plural in _KINDS} | {"entities": "entity", "aliases": "alias"}

KindArgument = Annotated[str | None, typer.Argument(metavar="KIND", help=f"One of {', '.join(_KINDS)}; by default all.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What was applied under this name.")]
KindOption = Annotated[str | None, typer.Option(metavar="KIND", help="Its kind, where several objects share the name.")]


def list_objects(call: Invocation, kind: KindArgument = None) -> None:
    """List what is applied.

    Example: featurestore list views
    """
    with call.store() as store:
        applied = store.applied()
    kinds = list(_KINDS.values()) if kind is None else [_kind(kind)]
    found = {each: {name: spec for (other, name), spec in sorted(applied.specs.items()) if other == each} for each in kinds}
    record = [{"kind": each, "name": name, **spec} for each, specs in found.items() for name, spec in specs.items()]
    call.answer(record, _tables(found) if record else [f"Nothing of that kind is applied. Next: {call.line('apply')}"])


def describe(call: Invocation, name: NameArgument, kind: KindOption = None) -> None:
    """Describe one applied object, and where it is used.

    Example: featurestore describe machine_health
    """
    with call.store() as store:
        applied, serving = store.applied(), store.registry.serving()
    found = _find(applied, serving, name, None if kind is None else _kind(kind))
    call.answer(found.record(), found.parts())


def _kind(given: str) -> str:
    word = given.lower().replace(" ", "-").replace("feature-", "")
    for plural, kind in _KINDS.items():
        if word in (plural, _SINGULAR[plural]):
            return kind
    raise typer.BadParameter(f"no kind {given!r}; known: {', '.join(_KINDS)}")


def _find(applied: Applied, serving: Applied, name: str, kind: str | None) -> _Object:
    kinds = [each for each, other in applied.specs if other == name and kind in (None, each)]
    if not kinds:
        raise NotFoundError(kind or "applied object", name, [other for each, other in applied.specs if kind in (None, each)])
    if len(kinds) > 1:
        choices = ", ".join(f"--kind {_SINGULAR[plural]}" for plural, each in _KINDS.items() if each in kinds)
        raise InputError(f"{name!r} is the name of several objects; choose with {choices}", name=name)
    return _Object(applied, serving, kinds[0], name)


# Lists


def _tables(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[RenderableType]:
    titled = sum(map(bool, found.values())) > 1
    gap = ""
    for kind, specs in found.items():
        if specs:
            if titled:
                plural = next(plural for plural, each in _KINDS.items() if each == kind)
                yield Text(f"{gap}{plural.capitalize()}", "bold")
                gap = "\n"
            yield grid(["name", *_COLUMNS[kind], "description"], [_row(name, kind, spec) for name, spec in specs.items()])


def _row(name: str, kind: str, spec: Mapping[str, Any]) -> list[Any]:
    return [name, *(_text(column(spec)) for column in _COLUMNS[kind].values()), _text(spec["description"])]


_COLUMNS: dict[str, dict[str, Any]] = {
    "entity": {"join keys": lambda spec: _typed(spec["join_keys"])},
    "source": {
        "path": lambda spec: spec.get("path", "pushed"),
        "event time": lambda spec: spec.get("event_time") or "static",
        "delay": lambda spec: spec.get("delay"),
    },
    "feature view": {
        "entities": lambda spec: ", ".join(spec["entities"]),
        "source": lambda spec: spec["source"],
        "features": lambda spec: len(spec["fields"]),
        "refresh": lambda spec: spec["refresh"],
        "ttl": lambda spec: spec["ttl"],
    },
    "alias": {
        "view": lambda spec: spec["view"],
        "join keys": lambda spec: ", ".join(f"{key} = {column}" for key, column in spec["join_keys"]),
    },
    "on-demand feature view": {
        "inputs": lambda spec: ", ".join(dict.fromkeys(map(_input_name, spec["inputs"]))),
        "features": lambda spec: len(spec["fields"]),
        "mode": lambda spec: spec["mode"],
        "code": lambda spec: f"{spec['code']['file']}:{spec['code']['function']}",
    },
    "feature service": {"views": lambda spec: ", ".join(dict.fromkeys(map(_member_name, spec["features"])))},
}


def _text(value: Any) -> Any:
    return NOTHING if value in (None, "") else value


def _typed(fields: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(f"{field['name']} {field['type']}" for field in fields)


def _member_name(member: str | Mapping[str, Any]) -> str:
    return member.partition(":")[0] if isinstance(member, str) else str(member["view"])


def _input_name(given: str | Mapping[str, Any]) -> str:
    """Say what an input of an on-demand view is: a view's name, or the request with its columns."""
    if isinstance(given, str) or "view" in given:
        return _member_name(given)
    return f"request ({', '.join(field['name'] for field in given['fields'])})"


# One object


@dataclass(frozen=True)
class _Object:
    """One applied object, in the midst of the others."""

    applied: Applied
    serving: Applied
    kind: str
    name: str

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.applied.specs[self.kind, self.name]

    @property
    def is_serving(self) -> bool:
        """Whether the name means this already; a candidate version can keep it from that (T11)."""
        return self.serving.specs.get((self.kind, self.name)) == self.spec

    def record(self) -> dict[str, Any]:
        """Return the object as JSON-ready data."""
        record = {"kind": self.kind, "name": self.name, **self.spec, "is_serving": self.is_serving, "used_by": self._used_by()}
        if self.kind == "feature view":
            record["versions"] = [_version_record(version) for version in self.applied.versions_of(self.name)]
        if self.kind == "feature service":
            record["outputs"] = dict(self._outputs())
        return record

    def parts(self) -> Iterator[RenderableType]:
        """Give the object for people: its settings, its columns, its versions, its users."""
        yield Text.assemble((self.name, "bold"), f"  {self.kind}")
        if self.spec["description"]:
            yield Text(self.spec["description"])
        if not self.is_serving:
            yield Text("Not serving as described here before new versions are materialized: featurestore materialize", "yellow")
        settings = [(name.replace("_", " "), value) for name, value in self._settings() if value not in (None, "", [])]
        if settings:
            yield ""
            yield grid(["setting", "value"], settings)
        if self.spec.get("sql"):
            yield Text("\nSQL", "bold")
            yield indent(cleandoc(self.spec["sql"]), "  ")
        for title, headers, rows in self._tables():
            if rows:
                yield Text(f"\n{title}", "bold")
                yield grid(headers, rows)

    def _settings(self) -> Iterator[tuple[str, Any]]:
        for name, value in self.spec.items():
            if name == "tags":
                yield name, ", ".join(f"{tag}={each}" for tag, each in value)
            elif name == "entities":
                yield name, ", ".join(value)
            elif name == "inputs":
                yield name, ", ".join(map(_input_text, value))
            elif name == "code":
                yield name, f"{value['file']}:{value['function']}, hash {value['hash']}"
            elif self.kind == "alias" and name == "join_keys":
                yield name, ", ".join(f"{key} = {column}" for key, column in value)
            elif name not in ("name", "description", "fields", "join_keys", "features", "sql"):
                yield name, value

    def _tables(self) -> Iterator[tuple[str, list[str], list[Sequence[Any]]]]:
        yield "Join keys", ["name", "type"], list(self._keys())
        title = "Columns" if self.kind == "source" else "Features"
        yield title, ["name", "type"], [(field["name"], field["type"]) for field in self.spec.get("fields", ())]
        if self.kind == "feature service":
            yield "Output columns", ["name", "type"], list(self._outputs())
        if self.kind == "feature view":
            headers = ["version", "state", "created", "watermark"]
            yield "Versions", headers, [_version_row(version) for version in self.applied.versions_of(self.name)]
        yield "Used by", ["kind", "name"], [(user["kind"], user["name"]) for user in self._used_by()]

    def _keys(self) -> Iterator[tuple[str, str]]:
        entities = [self.spec] if self.kind == "entity" else self._entities()
        for entity in entities:
            yield from ((key["name"], key["type"]) for key in entity["join_keys"])

    def _entities(self) -> list[Mapping[str, Any]]:
        return [self.applied.specs["entity", name] for name in self.spec.get("entities", ())]

    def _outputs(self) -> Iterator[tuple[str, str]]:
        for member in self.spec["features"]:
            role = _member_name(member)
            types = self._feature_types(role)
            names = [member.partition(":")[2]] if isinstance(member, str) else member["features"] or list(types)
            yield from ((f"{role}__{name}", types[name]) for name in names)

    def _feature_types(self, role: str) -> dict[str, str]:
        on_demand = self.applied.specs.get(("on-demand feature view", role))
        if on_demand is not None:
            return {field["name"]: field["type"] for field in on_demand["fields"]}
        alias = self.applied.specs.get(("alias", role))
        view = self.applied.specs["feature view", role if alias is None else alias["view"]]
        return {field["name"]: field["type"] for field in view["fields"]}

    def _used_by(self) -> list[dict[str, str]]:
        users = []
        for (kind, name), spec in sorted(self.applied.specs.items()):
            if (self.kind, self.name) in _uses(kind, spec):
                users.append({"kind": kind, "name": name})
        return users


def _input_text(given: str | Mapping[str, Any]) -> str:
    """Say which columns an input of an on-demand view gives."""
    if isinstance(given, str) or "view" not in given:
        return given if isinstance(given, str) else _input_name(given)
    return f"{given['view']} ({', '.join(given['features'])})" if given["features"] else str(given["view"])


def _uses(kind: str, spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name what an object refers to; a service's members may be views or aliases."""
    if kind == "feature view":
        return [("source", spec["source"]), *(("entity", name) for name in spec["entities"])]
    if kind == "alias":
        return [("feature view", spec["view"])]
    if kind in ("feature service", "on-demand feature view"):
        members = [each for each in spec.get("features") or spec["inputs"] if isinstance(each, str) or "view" in each]
        roles = ("feature view", "alias", "on-demand feature view")
        return [(role, _member_name(member)) for member in members for role in roles]
    return []


def _version_record(version: Version) -> dict[str, Any]:
    coverage = version.coverage
    return {
        "number": version.number,
        "state": version.state,
        "fingerprint": version.fingerprint,
        "created_at": instant_text(version.created_at),
        "watermark": None if coverage is None else instant_text(coverage.end),
    }


def _version_row(version: Version) -> list[Any]:
    watermark = NOTHING if version.watermark is None else time_text(version.watermark)
    return [version.number, version.state, time_text(version.created_at), watermark]
