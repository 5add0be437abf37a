"""T11: when candidates take over. Pure functions of what is applied.

A change that alters values makes a candidate version. Until it is ready, names mean what they meant: the serving version, and the
service's and alias's serving spec. Candidates that services connect take over together, with the services' lists and aliases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.registry.state import Version

__all__ = ["ObjectState", "Settlement", "settle"]

_VIEW, _ALIAS, _SERVICE = "feature view", "alias", "feature service"


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
class Settlement:
    """What may take over now."""

    promoted: tuple[Version, ...]
    objects: tuple[ObjectState, ...]


def settle(objects: Iterable[ObjectState], versions: Iterable[Version]) -> Settlement:
    """Say which candidates and pending objects take over now: every connected group whose candidates are all ready."""
    known = {(each.kind, each.name): each for each in objects}
    serving = {version.view.name: version for version in versions if version.state == "serving"}
    candidates = {(_VIEW, version.view.name): version for version in versions if version.state == "candidate"}
    promoted: list[Version] = []
    settled: list[ObjectState] = []
    for group in _groups(known, {*known, *candidates}):
        held = [candidates[node] for node in group if node in candidates]
        is_served = any(known[node].serving for node in group if node[0] == _SERVICE)
        if all(_is_ready(candidate, serving.get(candidate.view.name), is_served=is_served) for candidate in held):
            promoted += held
            settled += [known[node] for node in group if node in known and known[node].is_pending]
    return Settlement(tuple(promoted), tuple(settled))


def _is_ready(candidate: Version, serving: Version | None, *, is_served: bool) -> bool:
    if serving is None and not is_served:
        return True  # a first version that no serving service waits for disturbs nothing
    if serving is not None and serving.coverage is None:
        return True  # what it replaces has never served a row
    if candidate.coverage is None or (serving and serving.coverage and candidate.coverage.end < serving.coverage.end):
        return False
    # A load of an older table would take serving back in time.
    is_loaded = candidate.loaded is not None and candidate.loaded.table_version == candidate.table_version
    return is_loaded or not candidate.view.online


Node = tuple[str, str]


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
        elif spec is not None and each.kind == _SERVICE:
            for member in spec["features"]:
                yield from ((kind, view_name(member)) for kind in (_VIEW, _ALIAS))


def view_name(member: str | Mapping[str, Any]) -> str:
    """Return the view or alias that a member of a service's reference spec names."""
    return member.partition(":")[0] if isinstance(member, str) else str(member["view"])
