"""T11 in SQL: candidates take over, are recorded as they do, and a rollback takes that back; inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from featurestore.errors import InputError, NotFoundError, RollbackError
from featurestore.registry.records import ON_DEMAND, VIEW, all_objects, all_versions, loads, write_object
from featurestore.registry.schema import objects, takeovers, versions
from featurestore.registry.selection import Selection, select
from featurestore.registry.settling import ObjectState, Takeover, lacks, settle
from featurestore.registry.state import Applied, Rollback, Version
from featurestore.specs import canonical_json, on_demand_fingerprint

__all__ = ["find_selection", "needed_copies", "restore", "settle_now"]


def settle_now(connection: sa.Connection, *, now: int) -> bool:
    """Let what is ready take over; returns whether anything did."""
    known = all_versions(connection)
    serving = {version.view.name: version for version in known if version.state == "serving"}
    settlement = settle(all_objects(connection), known)
    for number, takeover in enumerate(settlement.takeovers, _next_takeover(connection)):
        for version in takeover.candidates:
            _retire(connection, version.view.name, now)
            set_state(connection, version.id, "serving", None)
        for each in takeover.objects:
            is_it = (objects.c.kind == each.kind) & (objects.c.name == each.name)
            if each.spec is None:
                connection.execute(sa.delete(objects).where(is_it))
                if each.kind == VIEW:
                    _retire(connection, each.name, now)
            else:
                connection.execute(sa.update(objects).where(is_it).values(serving=canonical_json(each.spec)))
        _record(connection, number, _moves(takeover, serving))
    return bool(settlement.takeovers)


def set_state(connection: sa.Connection, version_id: int, state: str, retired_at: int | None) -> None:
    """Set the state of a version."""
    values = {"state": state, "retired_at": retired_at}
    connection.execute(sa.update(versions).where(versions.c.id == version_id).values(values))


def _retire(connection: sa.Connection, view: str, now: int) -> None:
    is_it = (versions.c.view == view) & (versions.c.state == "serving")
    connection.execute(sa.update(versions).where(is_it).values(state="replaced", retired_at=now))


# What is recorded


@dataclass(frozen=True)
class _Move:
    """What a name meant before and after: its spec, and of a view the id of its version."""

    kind: str
    name: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    version_before: int | None = None
    version_after: int | None = None


def _moves(takeover: Takeover, serving: Mapping[str, Version]) -> Iterator[_Move]:
    promoted = {version.view.name: version.id for version in takeover.candidates}
    moved = {(each.kind, each.name): each for each in takeover.objects}
    for kind, name in sorted(takeover.nodes):
        each = moved.get((kind, name))
        before, after = (None, None) if each is None else (each.serving, each.spec)
        if kind != VIEW:
            yield _Move(kind, name, before, after)
            continue
        served = serving[name].id if name in serving else None
        is_removed = each is not None and each.spec is None
        yield _Move(kind, name, before, after, served, None if is_removed else promoted.get(name, served))


def _record(connection: sa.Connection, takeover: int, moves: Iterable[_Move]) -> None:
    for move in moves:
        values = vars(move) | {each: None if (spec := getattr(move, each)) is None else canonical_json(spec) for each in _SPECS}
        connection.execute(takeovers.insert().values(takeover=takeover, **values))


_SPECS = ("before", "after")


def _next_takeover(connection: sa.Connection) -> int:
    return (connection.execute(sa.select(sa.func.max(takeovers.c.takeover))).scalar_one() or 0) + 1


# The way back


def restore(connection: sa.Connection, view: str, *, now: int) -> tuple[Rollback, list[dict[str, Any]]]:
    """Let the version of a view that served before serve again, with what took over together with the one that serves.

    Returns what was done, and what history keeps of it.

    Raises:
        NotFoundError: no view of that name serves.
        RollbackError: no version served before, or one that would serve again is not ready, or a service could not be answered.

    """
    known = {version.id: version for version in all_versions(connection)}
    serving = {version.view.name: version for version in known.values() if version.state == "serving"}
    states = all_objects(connection)
    computed = {each.name for each in states if each.kind == ON_DEMAND and each.serving}
    if view not in serving and view not in computed:
        raise NotFoundError("feature view that serves", view, [*serving, *computed])
    undone = _undone(connection, (ON_DEMAND if view in computed else VIEW, view))
    before = {name: version for (kind, name), (_, version) in undone.items() if kind == VIEW}
    back = {name: known[id_] for name, id_ in before.items() if id_ is not None and name in serving and serving[name].id != id_}
    for name, version in back.items():
        _check_ready(version, serving[name])
    # What began with the takeover stays, and so does what has been removed since: a rollback takes no name away and gives none.
    live = {(each.kind, each.name) for each in states if each.serving}
    specs = {node: spec for node, (spec, _) in undone.items() if spec is not None and node in live}
    _check_services(states, known, back, specs)
    moves = []
    for each in states:
        node = (each.kind, each.name)
        is_back = each.kind == VIEW and each.name in back
        if node not in specs and not is_back:
            continue
        spec = specs.get(node, each.serving)
        # What was applied after it and still waits keeps waiting.
        pending = {} if each.is_pending else {"spec": spec}
        write_object(connection, each.kind, each.name, serving=spec, **pending)
        ids = (serving[each.name].id, back[each.name].id) if is_back else (None, None)
        moves.append(_Move(each.kind, each.name, each.serving, spec, *ids))
    for name, version in back.items():
        _retire(connection, name, now)
        set_state(connection, version.id, "serving", None)
    _record(connection, _next_takeover(connection), moves)
    numbers = {name: (serving[name].number, version.number) for name, version in back.items()}
    others = tuple((move.kind, move.name) for move in moves if move.kind != VIEW)
    return Rollback(numbers, others), [_history(move, numbers) for move in moves]


def _undone(connection: sa.Connection, node: tuple[str, str]) -> dict[tuple[str, str], tuple[Any, int | None]]:
    """Return what names mean if the last takeover of a view, and all later ones that moved the same names, had not happened."""
    rows = connection.execute(sa.select(takeovers).order_by(takeovers.c.id)).all()
    moved = [row for row in rows if (row.kind, row.name) == node and _version_in(row, "before") != _version_in(row, "after")]
    if not moved or _version_in(moved[-1], "before") is None:
        kind, name = node
        raise RollbackError(f"{kind} {name!r} has no version that served before the one that serves", name=name)
    first = moved[-1].takeover
    later: dict[int, list[Any]] = {}
    for row in rows:
        if row.takeover >= first:
            later.setdefault(row.takeover, []).append(row)
    touched: dict[tuple[str, str], tuple[Any, int | None]] = {}
    for takeover in sorted(later):
        group = later[takeover]
        if takeover == first or any((row.kind, row.name) in touched for row in group):
            for row in group:
                touched.setdefault((row.kind, row.name), (loads(row.before), row.version_before))
    return touched


def _version_in(row: Any, moment: str) -> int | str | None:
    """Return what tells the version of a view before or after a takeover: its id, or the fingerprint of an on-demand view."""
    if row.kind == VIEW:
        version: int | None = getattr(row, f"version_{moment}")
        return version
    spec = loads(getattr(row, moment))
    return None if spec is None else on_demand_fingerprint(spec)


def needed_copies(connection: sa.Connection) -> set[str]:
    """Return the kept copies of code that on-demand views need, as applied, as they serve, and as a rollback can restore them."""
    states = all_objects(connection)
    specs = [spec for each in states if each.kind == ON_DEMAND for spec in (each.spec, each.serving) if spec]
    for node in [(each.kind, each.name) for each in states if each.kind in (VIEW, ON_DEMAND)]:
        with suppress(RollbackError):
            undone = _undone(connection, node).items()
            specs += [spec for (kind, _), (spec, _) in undone if kind == ON_DEMAND and spec]
    return {spec["code"]["copy"] for spec in specs}


def find_selection(connection: sa.Connection, selection: Selection, fingerprint: str) -> Selection | None:
    """Return what a selection's name meant when it had a fingerprint, the last time that it did; none if it never had."""
    for then in _past(connection):
        with suppress(NotFoundError, InputError):
            found = select(then, selection.wanted)
            if found.fingerprint() == fingerprint:
                return found
    return None


def _past(connection: sa.Connection) -> Iterator[Applied]:
    """Give what names meant before each takeover, the last one first."""
    known = {version.id: version for version in all_versions(connection)}
    serving: dict[str, Version | None] = {version.view.name: version for version in known.values() if version.state == "serving"}
    specs = {(each.kind, each.name): each.serving for each in all_objects(connection) if each.serving}
    rows = connection.execute(sa.select(takeovers).order_by(takeovers.c.takeover.desc())).all()
    for _, group in groupby(rows, lambda row: row.takeover):
        for row in group:
            if row.before != row.after:
                specs[row.kind, row.name] = loads(row.before)
            if row.kind == VIEW and row.version_before != row.version_after:
                serving[row.name] = known.get(row.version_before)
        versions = tuple(version for version in serving.values() if version is not None)
        yield Applied(0, {node: spec for node, spec in specs.items() if spec is not None}, versions)


def _check_ready(version: Version, serving: Version | None) -> None:
    name = version.view.name
    if not version.is_rollback:
        raise RollbackError(f"feature view {name!r} v{version.number} is not kept for rollback any more", name=name)
    if needs := list(lacks(version, serving)):
        raise RollbackError(
            f"feature view {name!r} v{version.number} is not ready to serve again: it needs {', '.join(needs)}; "
            f"run featurestore materialize {name}, then try again",
            name=name,
        )


def _check_services(
    states: Sequence[ObjectState], known: Mapping[int, Version], back: dict[str, Version], specs: dict[tuple[str, str], Any]
) -> None:
    """Refuse a rollback after which a service could not be answered, now or when what waits takes over."""
    meant = {(each.kind, each.name): each.serving for each in states if each.serving} | specs
    pending = {(each.kind, each.name): each.spec for each in states if each.is_pending}
    wanted = {node: spec for node, spec in (meant | pending).items() if spec}
    serving = {version.view.name: version for version in known.values() if version.state == "serving"} | back
    waiting = {version.view.name: version for version in known.values() if version.state == "candidate"}
    for names, used in ((meant, serving), (wanted, serving | waiting)):
        then = Applied(0, names, tuple(replace(version, state="serving") for version in used.values()))
        for kind, name in names:
            if kind == "feature service":
                try:
                    select(then, name)
                except (NotFoundError, InputError) as reason:
                    raise RollbackError(
                        f"feature service {name!r} could not be answered after this rollback ({reason}); change it first", name=name
                    ) from reason


def _history(move: _Move, numbers: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    fields: list[dict[str, Any]] = []
    if move.before != move.after:
        fields.append({"field": "", "before": move.before, "after": move.after})
    if move.kind == VIEW:
        before, after = numbers.get(move.name, (None, None))
        fields.append({"field": "version", "before": before, "after": after})
    return {"kind": move.kind, "name": move.name, "action": "rollback", "fields": canonical_json(fields)}
