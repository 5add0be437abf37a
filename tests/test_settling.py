from __future__ import annotations

from typing import Any

import pytest

from featurestore.errors import NotFoundError
from featurestore.registry.registry import Registry
from featurestore.registry.selection import select
from featurestore.registry.settling import ObjectState, settle
from featurestore.registry.state import Coverage, Loaded, Version
from featurestore.types import Int64
from tests.conftest import HOUR, NOON
from tests.registries import airport, apply, made, reasons, service, states, view


def run(registry: Registry, name: str, until: int = NOON, *, load: bool = True) -> None:
    """Record a run on the newest version of a view, as `materialize` does: covered until an instant, and loaded or not."""
    version = registry.applied().versions_of(name)[-1]
    number = registry.start_run(version, None, until, now=until)
    registry.cover(version, Coverage(0, until), number, number)
    registry.finish_run(version, number, now=until, report={}, loaded=Loaded(number, number, until) if load else None)


def serving(registry: Registry) -> list[str]:
    """Return the versions that names mean now."""
    return [f"{version.view.name}{version.number}" for version in registry.serving().versions]


def stated(kind: str, name: str, spec: Any, before: Any) -> ObjectState:
    """Return an object with what was applied last and what its name means now."""
    return ObjectState(kind, name, spec, before)


def of(*members: str) -> dict[str, Any]:
    """Return the reference spec of a service with whole views."""
    return {"features": [{"view": member, "features": None} for member in members]}


def known(name: str, *, is_new: bool = False) -> ObjectState:
    """Return the object of a view that has a new spec, or none yet."""
    return stated("feature view", name, {"n": 2}, None if is_new else {"n": 1})


def asked(name: str, now: Any, before: Any = None) -> ObjectState:
    """Return the object of a service."""
    return stated("feature service", name, now, before)


SERVED = of("a")
SETTLED: list[tuple[str, list[ObjectState], list[Version], list[str], list[str]]] = [
    # case, objects, versions; what is promoted, what objects change their meaning
    ("nothing", [], [], [], []),
    ("a first version serves at once", [known("a", is_new=True)], [made("a", "candidate")], ["a1"], ["a"]),
    (
        "so do a new service and its new views",
        [known("a", is_new=True), known("b", is_new=True), asked("s", of("a", "b"))],
        [made("a", "candidate"), made("b", "candidate")],
        ["a1", "b1"],
        ["a", "b", "s"],
    ),
    (
        "a change of what has never served is there at once",
        [known("a"), asked("s", SERVED, SERVED)],
        [made("a", "serving"), made("a", "candidate", 2)],
        ["a2"],
        ["a"],
    ),
    (
        "a change of what pushes have fed waits, though no run has covered it",
        [known("a")],
        [made("a", "serving", pushed=True), made("a", "candidate", 2, pushed=True)],
        [],
        [],
    ),
    ("a candidate without coverage waits", [known("a")], [made("a", "serving", covered=10), made("a", "candidate", 2)], [], []),
    ("one that is behind waits", [known("a")], [made("a", "serving", covered=10), made("a", "candidate", 2, covered=9)], [], []),
    (
        "one that is not loaded waits",
        [known("a")],
        [made("a", "serving", covered=10), made("a", "candidate", 2, covered=10, loaded=False)],
        [],
        [],
    ),
    (
        "one that covers and is loaded takes over",
        [known("a")],
        [made("a", "serving", covered=10), made("a", "candidate", 2, covered=10)],
        ["a2"],
        ["a"],
    ),
    (
        "a view that is not online needs no load",
        [known("a")],
        [made("a", "serving", covered=10), made("a", "candidate", 2, covered=10, loaded=False, online=False)],
        ["a2"],
        ["a"],
    ),
    (
        "two candidates of a service wait for each other",
        [known("a"), known("b"), asked("s", of("a", "b"), of("a", "b"))],
        [
            made("a", "serving", covered=10),
            made("b", "serving", covered=10),
            made("a", "candidate", 2, covered=10),
            made("b", "candidate", 2),
        ],
        [],
        [],
    ),
    (
        "and flip together",
        [known("a"), known("b"), asked("s", of("a", "b"), of("a", "b"))],
        [
            made("a", "serving", covered=10),
            made("b", "serving", covered=10),
            made("a", "candidate", 2, covered=10),
            made("b", "candidate", 2, covered=11),
        ],
        ["a2", "b2"],
        ["a", "b"],
    ),
    (
        "unconnected candidates do not wait for each other",
        [known("a"), known("b"), asked("s", of("a"), of("a")), asked("t", of("b"), of("b"))],
        [
            made("a", "serving", covered=10),
            made("b", "serving", covered=10),
            made("a", "candidate", 2, covered=10),
            made("b", "candidate", 2),
        ],
        ["a2"],
        ["a"],
    ),
    (
        "services connect through what they share",
        [
            known("a"),
            known("c"),
            stated("feature view", "b", 1, 1),
            asked("s", of("a", "b"), of("a", "b")),
            asked("t", of("b", "c"), of("b", "c")),
        ],
        [
            made("a", "serving", covered=10),
            made("b", "serving", covered=10),
            made("c", "serving", covered=10),
            made("a", "candidate", 2, covered=10),
            made("c", "candidate", 2),
        ],
        [],
        [],
    ),
    (
        "aliases connect too",
        [known("a"), known("b"), stated("alias", "x", {"view": "a"}, {"view": "a"}), asked("s", of("x", "b"), of("x", "b"))],
        [
            made("a", "serving", covered=10),
            made("b", "serving", covered=10),
            made("a", "candidate", 2, covered=10),
            made("b", "candidate", 2),
        ],
        [],
        [],
    ),
    (
        "a service's new list waits for the candidate that it needs",
        [known("a"), asked("s", {"features": ["a:new"]}, {"features": ["a:old"]})],
        [made("a", "serving", covered=10), made("a", "candidate", 2, covered=5)],
        [],
        [],
    ),
    (
        "and flips with it",
        [known("a"), asked("s", {"features": ["a:new"]}, {"features": ["a:old"]})],
        [made("a", "serving", covered=10), made("a", "candidate", 2, covered=10)],
        ["a2"],
        ["a", "s"],
    ),
    (
        "an alias's new columns flip with the candidate",
        [known("a"), stated("alias", "x", {"view": "a", "n": 2}, {"view": "a", "n": 1}), asked("s", of("x"), of("x"))],
        [made("a", "serving", covered=10), made("a", "candidate", 2, covered=10)],
        ["a2"],
        ["a", "x"],
    ),
    (
        "a new view of a service that is served waits until it has rows",
        [known("b", is_new=True), stated("feature view", "a", 1, 1), asked("s", of("a", "b"), of("a"))],
        [made("a", "serving", covered=10), made("b", "candidate")],
        [],
        [],
    ),
    (
        "and joins it then",
        [known("b", is_new=True), stated("feature view", "a", 1, 1), asked("s", of("a", "b"), of("a"))],
        [made("a", "serving", covered=10), made("b", "candidate", covered=3)],
        ["b1"],
        ["b", "s"],
    ),
    (
        "a service that only shrinks flips at once",
        [stated("feature view", "a", 1, 1), stated("feature view", "b", 1, 1), asked("s", of("a"), of("a", "b"))],
        [made("a", "serving", covered=10), made("b", "serving", covered=10)],
        [],
        ["s"],
    ),
    (
        "a new service over what serves is there at once",
        [stated("feature view", "a", 1, 1), asked("s", of("a"))],
        [made("a", "serving", covered=10)],
        [],
        ["s"],
    ),
    (
        "a removed view and its service are gone at once",
        [stated("feature view", "a", None, 1), asked("s", None, of("a"))],
        [made("a", "serving", covered=10)],
        [],
        ["a", "s"],
    ),
    (
        "replaced and dropped versions count for nothing",
        [known("a")],
        [
            made("a", "replaced", 1, covered=99),
            made("a", "dropped", 2),
            made("a", "serving", 3, covered=10),
            made("a", "candidate", 4, covered=10),
        ],
        ["a4"],
        ["a"],
    ),
]


@pytest.mark.parametrize(("objects", "versions", "promoted", "settled"), [pytest.param(*rest, id=name) for name, *rest in SETTLED])
def test_settling(objects: list[ObjectState], versions: list[Version], promoted: list[str], settled: list[str]) -> None:
    """Connected candidates take over together with services and aliases, once all of them cover what is served and are loaded."""
    settlement = settle(objects, versions)

    assert sorted(version.uid for version in settlement.promoted) == promoted
    assert sorted(each.name for each in settlement.objects) == settled


def test_settling_does_not_depend_on_the_order(registry: Registry) -> None:
    """The same objects and versions settle in the same way in whatever order they come."""
    for _, objects, versions, promoted, settled in SETTLED:
        settlement = settle(reversed(objects), list(reversed(versions)))
        assert sorted(version.uid for version in settlement.promoted) == promoted
        assert sorted(each.name for each in settlement.objects) == settled


def test_a_first_version_serves_before_it_has_rows(registry: Registry) -> None:
    """What is new is there at once: nothing has served before."""
    apply(registry, service("s", view("a"), view("b")))

    assert states(registry, "a", "b") == ["a1 serving", "b1 serving"]
    assert select(registry.serving(), "s").columns == ("a__temperature", "a__gusts", "b__temperature", "b__gusts")


def test_a_changed_view_stays_until_its_candidate_is_ready(registry: Registry) -> None:
    """A name means the serving version until the candidate covers as much and is loaded; then the old one is kept as replaced."""
    apply(registry, service("s", view("a")))
    run(registry, "a", NOON)
    apply(registry, service("s", view("a", fields={"gusts": Int64})))
    seen = [(states(registry, "a"), select(registry.serving(), "s").columns)]
    for until, load in [(NOON - 1, True), (NOON, False), (NOON, True)]:
        run(registry, "a", until, load=load)
        seen.append((states(registry, "a"), select(registry.serving(), "s").columns))

    waiting = (["a1 serving", "a2 candidate"], ("a__temperature", "a__gusts"))
    assert seen[0] == seen[1] == waiting
    assert seen[3] == (["a1 replaced", "a2 serving"], ("a__gusts",))


def test_a_load_that_does_not_cover_does_not_promote(registry: Registry) -> None:
    """A candidate that was loaded once and covers later is ready only by both; a failed run settles nothing."""
    apply(registry, view("a"))
    run(registry, "a", NOON)
    apply(registry, view("a", ttl="6h"))
    version = registry.applied().versions[-1]
    number = registry.start_run(version, None, NOON, now=NOON)
    registry.cover(version, Coverage(0, NOON), 1, number)
    registry.finish_run(version, number, now=NOON, report={}, loaded=Loaded(number, 1, NOON), error="the disk is full")

    assert states(registry, "a") == ["a1 serving", "a2 candidate"]


def test_candidates_that_a_service_connects_flip_with_its_list_and_alias(registry: Registry) -> None:
    """Two views, an alias and a service that change together change their meaning together, in one transaction."""
    one, two = view("a"), view("b")
    apply(registry, service("s", one, two.alias("x", join_keys={"origin": "from"})))
    run(registry, "a")
    run(registry, "b")
    one, two = view("a", fields={"gusts": Int64}), view("b", ttl="6h")
    apply(registry, service("s", two.alias("x", join_keys={"origin": "to"})["gusts"], one))
    before = select(registry.serving(), "s")
    run(registry, "a")
    between = select(registry.serving(), "s")
    run(registry, "b")
    after = select(registry.serving(), "s")

    assert before == between
    assert (before.columns, list(before.keys)) == (("a__temperature", "a__gusts", "x__temperature", "x__gusts"), ["origin", "from"])
    assert (after.columns, list(after.keys)) == (("x__gusts", "a__gusts"), ["to", "origin"])
    assert [lookup.version.number for lookup in after.lookups] == [2, 2]
    assert states(registry, "a", "b") == ["a1 replaced", "a2 serving", "b1 replaced", "b2 serving"]


def test_a_later_apply_absorbs_a_candidate_that_has_not_flipped(registry: Registry) -> None:
    """A candidate that waits keeps what it has, and flips with the candidates that later applies add to its group."""
    apply(registry, service("s", view("a"), view("b")))
    run(registry, "a")
    run(registry, "b")
    apply(registry, service("s", view("a", ttl="6h"), view("b")))
    apply(registry, service("s", view("a", ttl="6h"), view("b", ttl="6h")))
    assert states(registry, "a", "b") == ["a1 serving", "a2 candidate", "b1 serving", "b2 candidate"]
    run(registry, "a")
    assert serving(registry) == ["a1", "b1"]
    run(registry, "b")

    assert serving(registry) == ["a2", "b2"]


def test_a_candidate_that_changes_again_is_dropped_for_the_next(registry: Registry) -> None:
    """A second change before the first has taken over makes the next version; the overtaken one never serves."""
    apply(registry, service("s", view("a")))
    run(registry, "a")
    apply(registry, service("s", view("a", ttl="6h")))
    plan = apply(registry, service("s", view("a", ttl="7h")))

    assert plan.dropped_candidates == ("a",)
    assert (plan.new_versions[0].number, plan.new_versions[0].replaces) == (3, 1)
    assert reasons(plan) == [("ttl", None, "7h")]
    assert states(registry, "a") == ["a1 serving", "a2 dropped", "a3 candidate"]


def test_reverting_a_definition_drops_its_candidate(registry: Registry) -> None:
    """The definition that serves is enough: no third version, and the service means what it meant."""
    apply(registry, service("s", view("a")))
    run(registry, "a")
    apply(registry, service("s", view("a", fields={"gusts": Int64})))
    plan = apply(registry, service("s", view("a")))

    assert (plan.new_versions, plan.dropped_candidates) == ((), ("a",))
    assert states(registry, "a") == ["a1 serving", "a2 dropped"]
    assert select(registry.serving(), "s").columns == ("a__temperature", "a__gusts")
    assert apply(registry, service("s", view("a"))).is_empty


def test_going_back_to_the_version_that_is_kept_takes_it_up_again(registry: Registry) -> None:
    """The version that served before is kept up to date for rollback, so the same definition later is that version."""
    apply(registry, view("a"))
    run(registry, "a")
    apply(registry, view("a", ttl="6h"))
    run(registry, "a")
    plan = apply(registry, view("a"))

    assert [(new.number, new.replaces, new.is_resumed) for new in plan.new_versions] == [(1, 2, True)]
    assert states(registry, "a") == ["a1 serving", "a2 replaced"]


def test_going_back_further_is_a_new_version(registry: Registry) -> None:
    """What no rollback reaches any more is not kept up to date; the same definition later is a version of its own."""
    for ttl in ("5h", "6h", "7h", "5h"):
        apply(registry, view("a", ttl=ttl))
        run(registry, "a")

    assert states(registry, "a") == ["a1 replaced", "a2 replaced", "a3 replaced", "a4 serving"]


def test_removing_a_view_and_its_service_ends_both_at_once(registry: Registry) -> None:
    """A removed name means nothing at once; the version stays as replaced, a waiting candidate is dropped."""
    apply(registry, service("s", view("a")), view("b"))
    run(registry, "a")
    apply(registry, service("s", view("a", ttl="6h")), view("b"))
    apply(registry, view("b"))

    assert states(registry, "a", "b") == ["a1 replaced", "a2 dropped", "b1 serving"]
    assert serving(registry) == ["b1"]
    with pytest.raises(NotFoundError, match="no feature service 's'; there is none yet"):
        select(registry.serving(), "s")
    with pytest.raises(NotFoundError, match="no feature view 'a'"):
        select(registry.serving(), ["a:gusts"])


def test_a_view_that_comes_back_gets_the_next_number(registry: Registry) -> None:
    """Numbers and uids of versions are never used again."""
    apply(registry, view("a"))
    apply(registry, airport)
    apply(registry, view("a"))

    assert states(registry, "a") == ["a1 replaced", "a2 serving"]
    assert len({version.uid for version in registry.applied().versions}) == 2


def test_a_service_whose_list_only_shrinks_flips_at_once(registry: Registry) -> None:
    """Asking for less needs no run."""
    apply(registry, service("s", view("a"), view("b")))
    run(registry, "a")
    run(registry, "b")
    apply(registry, service("s", view("b")["gusts"]), view("a"))

    assert select(registry.serving(), "s").columns == ("b__gusts",)


def test_a_view_that_joins_a_served_service_is_awaited(registry: Registry) -> None:
    """A service that serves gets a new view's columns when that has rows, not before."""
    apply(registry, service("s", view("a")))
    run(registry, "a")
    apply(registry, service("s", view("a"), view("b")))
    before = select(registry.serving(), "s").columns
    run(registry, "b", NOON - HOUR)

    assert before == ("a__temperature", "a__gusts")
    assert select(registry.serving(), "s").columns == ("a__temperature", "a__gusts", "b__temperature", "b__gusts")
