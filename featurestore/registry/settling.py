"""T11: when candidates take over. Pure functions of what is applied.

A change that alters values makes a candidate version. Until it is ready, names mean what they meant: the serving version, and the
service's, alias's and on-demand view's serving spec. Candidates that services and on-demand views connect take over together, with
these and aliases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.clock import instant_text
from featurestore.registry.state import Version

__all__ = ["ObjectState", "Settlement", "Takeover", "lacks", "settle", "waiting"]

Node = tuple[str, str]

_VIEW, _ALIAS, _ON_DEMAND, _SERVICE = "feature view", "alias", "on-demand feature view", "feature service"


@dataclass(frozen=True)
class ObjectState:
    """A registry object: the spec applied last (none: removed) and the spec that its name means now (none: not yet)."""

    kind: str
    name: str
    spec: Mapping[str, Any] | None
    serving: Mapping[str, Any] | None

    @property
    def is_pending(self) -> bool:
        """Whether the name does not mean yet what was applied last."""
        return self.spec != self.serving


@dataclass(frozen=True)
class Takeover:
    """What takes over together: candidates, pending objects, and what the candidates still need (nothing: it can happen now)."""

    candidates: tuple[Version, ...]
    objects: tuple[ObjectState, ...]
    needs: tuple[str, ...]

    @property
    def nodes(self) -> set[Node]:
        """The (kind, name) of all that waits for it."""
        return {(each.kind, each.name) for each in self.objects} | {(_VIEW, each.view.name) for each in self.candidates}


@dataclass(frozen=True)
class Settlement:
    """What may take over now, each takeover by itself."""

    takeovers: tuple[Takeover, ...]

    @property
    def promoted(self) -> tuple[Version, ...]:
        """The candidates that serve from now on."""
        return tuple(version for takeover in self.takeovers for version in takeover.candidates)

    @property
    def objects(self) -> tuple[ObjectState, ...]:
        """The objects whose names mean from now on what was applied last."""
        return tuple(each for takeover in self.takeovers for each in takeover.objects)


def settle(objects: Iterable[ObjectState], versions: Iterable[Version]) -> Settlement:
    """Say which candidates and pending objects take over now: every connected group whose candidates are all ready."""
    return Settlement(tuple(each for each in _takeovers(objects, versions) if not each.needs))


def waiting(objects: Iterable[ObjectState], versions: Iterable[Version]) -> dict[Node, tuple[str, ...]]:
    """Say for each candidate and each pending object what its takeover still needs: `airport_weather v2: its online load`."""
    return {node: each.needs for each in _takeovers(objects, versions) if each.needs for node in sorted(each.nodes)}


def _takeovers(objects: Iterable[ObjectState], versions: Iterable[Version]) -> Iterator[Takeover]:
    known = {(each.kind, each.name): each for each in objects}
    versions = tuple(versions)
    serving = {version.view.name: version for version in versions if version.state == "serving"}
    candidates = {(_VIEW, version.view.name): version for version in versions if version.state == "candidate"}
    for group in _groups(known, {*known, *candidates}):
        held = tuple(candidates[node] for node in sorted(group) if node in candidates)
        is_served = any(known[node].serving for node in group if node in known and node[0] == _SERVICE)
        needs = tuple(
            f"{version.view.name} v{version.number}: {need}"
            for version in held
            for need in _needs(version, serving.get(version.view.name), is_served=is_served)
        )
        pending = tuple(known[node] for node in group if node in known and known[node].is_pending)
        if held or pending:
            yield Takeover(held, pending, needs)


def _needs(candidate: Version, serving: Version | None, *, is_served: bool) -> Iterator[str]:
    if serving is None and not is_served:
        return  # a first version that no serving service waits for disturbs nothing
    if serving is not None and serving.coverage is None and not serving.view.is_pushed:
        return  # what it replaces has never served a row
    yield from lacks(candidate, serving)


def lacks(version: Version, serving: Version | None) -> Iterator[str]:
    """Say what a version needs before it may serve instead of another: nothing, its materialization, its online load."""
    if version.view.is_pushed:
        # From its first load on it is fed by every push, as what serves is.
        if version.coverage is None:
            yield "materialization"
        elif version.view.online and version.loaded is None:
            yield "its online load"
    elif version.coverage is None or (serving and serving.coverage and version.coverage.end < serving.coverage.end):
        until = f" until {instant_text(serving.coverage.end)}" if serving and serving.coverage else ""
        yield f"materialization{until}"
    # A load of an older table would take serving back in time.
    elif version.view.online and (version.loaded is None or version.loaded.table_version != version.table_version):
        yield "its online load"


def _groups(known: Mapping[Node, ObjectState], nodes: set[Node]) -> Iterator[list[Node]]:
    """Cut the nodes into groups connected by services and aliases, through what they were and what they will be."""
    edges: dict[Node, set[Node]] = {node: set() for node in sorted(nodes)}
    for node in nodes & known.keys():
        for target in _targets(known[node]):
            if target in edges:
                edges[node].add(target)
                edges[target].add(node)
    while edges:
        frontier, group = [next(iter(edges))], []
        while frontier:
            node = frontier.pop()
            if node in edges:
                group.append(node)
                frontier += edges.pop(node)
        yield group


def _targets(each: ObjectState) -> Iterator[Node]:
    for spec in (each.spec, each.serving):
        if spec is not None and each.kind == _ALIAS:
            yield (_VIEW, spec["view"])
        elif spec is not None and each.kind in (_SERVICE, _ON_DEMAND):
            for member in spec["features" if each.kind == _SERVICE else "inputs"]:
                if isinstance(member, str) or "view" in member:
                    yield from ((kind, view_name(member)) for kind in (_VIEW, _ALIAS, _ON_DEMAND))


def view_name(member: str | Mapping[str, Any]) -> str:
    """Return the view or alias that a member of a service, or an input, names in a reference spec."""
    return member.partition(":")[0] if isinstance(member, str) else str(member["view"])
