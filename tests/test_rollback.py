"""T11: the version that served before serves again, with all that took over together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from featurestore.errors import NotFoundError, PendingError, RegistryError, RollbackError
from featurestore.registry.plan import make_plan
from featurestore.registry.registry import Registry
from featurestore.registry.selection import select
from featurestore.registry.state import Coverage, Loaded
from featurestore.types import Float64, Int64
from tests.conftest import HOUR, NOON
from tests.registries import apply, parts, service, states, view


def run(registry: Registry, name: str, number: int, until: int = NOON, *, load: bool = True) -> None:
    """Record a run on a version of a view, as `materialize` does: covered until an instant, and loaded or not."""
    version = registry.applied().versions_of(name)[number - 1]
    run = registry.start_run(version, None, until, now=until)
    registry.cover(version, Coverage(0, until), run, run)
    registry.finish_run(version, run, now=until, report={}, loaded=Loaded(run, run, until) if load else None)


def changed_twice(registry: Registry) -> None:
    """Apply three versions of view a, each covered until noon, of which the last serves."""
    for number, ttl in enumerate(("5h", "6h", "7h"), 1):
        apply(registry, service("s", view("a", ttl=ttl)))
        run(registry, "a", number)


def ttl(registry: Registry) -> Any:
    """Return the ttl that view a's name means."""
    serving = registry.serving()
    [version] = serving.versions_of("a")
    assert serving.specs["feature view", "a"]["ttl"] == f"{version.view.ttl.seconds // 3600}h" if version.view.ttl else None
    return serving.specs["feature view", "a"]["ttl"]


def test_the_version_that_served_before_serves_again(registry: Registry) -> None:
    """A rollback exchanges the serving version and the one before it; a second one returns."""
    changed_twice(registry)
    assert [version.is_rollback for version in registry.applied().versions] == [False, True, False]

    done = registry.rollback("a", now=NOON)
    assert done.versions == {"a": (3, 2)}
    assert states(registry, "a") == ["a1 replaced", "a2 serving", "a3 replaced"]
    assert ttl(registry) == "6h"
    assert [version.is_rollback for version in registry.applied().versions] == [False, False, True]

    assert registry.rollback("a", now=NOON).versions == {"a": (2, 3)}
    assert states(registry, "a") == ["a1 replaced", "a2 replaced", "a3 serving"]
    assert ttl(registry) == "7h"


def test_a_rollback_is_in_the_history_and_moves_the_registry(registry: Registry) -> None:
    """It has a revision of its own, so a plan that was made before is refused; history says what it changed."""
    changed_twice(registry)
    plan = make_plan(registry.applied(), parts(view("b"), service("s", view("a", ttl="7h"))))
    revision = registry.applied().revision
    registry.rollback("a", now=NOON + 5)
    [record] = [each for each in registry.history() if each["action"] == "rollback"]
    assert (record["revision"], record["applied_at"], record["name"]) == (revision + 1, NOON + 5, "a")
    assert record["fields"][-1] == {"field": "version", "before": 3, "after": 2}
    with pytest.raises(RegistryError, match="plan again"):
        registry.apply(plan, now=NOON)


def test_what_took_over_together_goes_back_together(registry: Registry) -> None:
    """Two views, a service's list and an alias that changed together are what they were, in one transaction; others stay."""
    one, two, apart = view("a"), view("b"), view("c")
    apply(registry, service("s", one, two.alias("x", join_keys={"origin": "from"})), service("t", apart))
    for name in "abc":
        run(registry, name, 1)
    before = {name: select(registry.serving(), name).columns for name in "st"}
    one, two, apart = view("a", fields={"gusts": Int64}), view("b", ttl="6h"), view("c", ttl="6h")
    apply(registry, service("s", two.alias("x", join_keys={"origin": "to"})["gusts"], one), service("t", apart))
    for name in "abc":
        run(registry, name, 2)
    assert select(registry.serving(), "s").columns == ("x__gusts", "a__gusts")

    done = registry.rollback("b", now=NOON)
    assert done.versions == {"a": (2, 1), "b": (2, 1)}
    assert done.objects == (("alias", "x"), ("feature service", "s"))
    selection = select(registry.serving(), "s")
    assert selection.columns == before["s"]
    assert [lookup.key_columns for lookup in selection.lookups] == [("origin",), ("from",)]
    assert states(registry, "a", "b", "c") == [
        "a1 serving", "a2 replaced", "b1 serving", "b2 replaced", "c1 replaced", "c2 serving",
    ]  # fmt: skip


def test_a_later_takeover_of_the_same_service_goes_back_too(registry: Registry) -> None:
    """A service's list was made for the versions of its time, so a change of it after the takeover is taken back with it."""
    apply(registry, service("s", view("a"), view("b")["gusts"]))
    run(registry, "a", 1)
    run(registry, "b", 1)
    apply(registry, service("s", view("a", ttl="6h")["gusts"], view("b")["gusts"]))
    run(registry, "a", 2)
    apply(registry, service("s", view("a", ttl="6h")["gusts"], view("b", ttl="6h")["temperature"]))
    run(registry, "b", 2)
    assert registry.rollback("a", now=NOON).versions == {"a": (2, 1), "b": (2, 1)}
    assert select(registry.serving(), "s").columns == ("a__temperature", "a__gusts", "b__gusts")


def test_a_takeover_of_another_view_alone_stays(registry: Registry) -> None:
    """Where the service's list did not change, the other view's later version stays."""
    apply(registry, service("s", view("a"), view("b")))
    run(registry, "a", 1)
    run(registry, "b", 1)
    apply(registry, service("s", view("a", ttl="6h"), view("b")))
    run(registry, "a", 2)
    apply(registry, service("s", view("a", ttl="6h"), view("b", ttl="6h")))
    run(registry, "b", 2)
    assert registry.rollback("a", now=NOON).versions == {"a": (2, 1)}
    assert states(registry, "b") == ["b1 replaced", "b2 serving"]


NOT_READY = [
    (NOON - HOUR, True, r"it needs materialization until 2013-06-01T12:00:00Z; run featurestore materialize a, then try again"),
    (NOON, False, r"it needs its online load; run featurestore materialize a"),
]


@pytest.mark.parametrize(("until", "is_loaded", "message"), NOT_READY)
def test_a_version_that_is_behind_is_refused(registry: Registry, until: int, is_loaded: bool, message: str) -> None:
    """What would serve again covers what is served and is loaded; else nothing changes, and the error says what to do."""
    apply(registry, view("a"))
    run(registry, "a", 1, until - 1)
    apply(registry, view("a", ttl="6h"))
    run(registry, "a", 2, NOON)
    run(registry, "a", 1, until, load=is_loaded)
    before = registry.applied()
    with pytest.raises(RollbackError, match=message):
        registry.rollback("a", now=NOON)
    assert registry.applied() == before
    run(registry, "a", 1, NOON)
    registry.rollback("a", now=NOON)


def test_a_view_without_a_version_before_is_refused(registry: Registry) -> None:
    """A first version has nothing to go back to; a view that does not serve is not found."""
    apply(registry, view("a"))
    run(registry, "a", 1)
    with pytest.raises(RollbackError, match="'a' has no version that served before"):
        registry.rollback("a", now=NOON)
    with pytest.raises(NotFoundError, match="did you mean 'a'"):
        registry.rollback("aa", now=NOON)


def test_a_service_that_could_not_be_answered_stands_against_it(registry: Registry) -> None:
    """A service that asks for what the version before does not have is named, and nothing changes."""
    apply(registry, service("s", view("a", fields={"gusts": Int64})))
    run(registry, "a", 1)
    wide = view("a", fields={"gusts": Int64, "temperature": Float64})
    apply(registry, service("s", wide["gusts"]))
    run(registry, "a", 2)
    apply(registry, service("s", wide["gusts"]), service("t", wide["temperature"]))
    before = registry.applied()
    with pytest.raises(
        RollbackError, match=r"service 't' could not be answered after this rollback .*'temperature'.*change it first"
    ):
        registry.rollback("a", now=NOON)
    assert registry.applied() == before


def test_what_waits_keeps_waiting(registry: Registry) -> None:
    """A candidate stays one through a rollback, and takes over when it is ready."""
    changed_twice(registry)
    apply(registry, service("s", view("a", ttl="8h")))
    registry.rollback("a", now=NOON)
    assert states(registry, "a") == ["a1 replaced", "a2 serving", "a3 replaced", "a4 candidate"]
    run(registry, "a", 4)
    assert states(registry, "a") == ["a1 replaced", "a2 replaced", "a3 replaced", "a4 serving"]
    assert ttl(registry) == "8h"
    assert registry.rollback("a", now=NOON).versions == {"a": (4, 2)}


def test_the_next_apply_of_the_definitions_returns_to_them(registry: Registry) -> None:
    """The registry says what serves, the folder what is wanted: a plan shows the difference, and resumes the kept version."""
    changed_twice(registry)
    registry.rollback("a", now=NOON)
    plan = apply(registry, service("s", view("a", ttl="7h")))
    assert [(new.number, new.replaces, new.is_resumed) for new in plan.new_versions] == [(3, 2, True)]
    assert [(change.action, change.name) for change in plan.changes] == [("change", "a")]
    assert states(registry, "a") == ["a1 replaced", "a2 replaced", "a3 serving"]


def test_a_plan_says_which_candidates_wait_and_for_what(registry: Registry) -> None:
    """Each candidate of an earlier apply is listed with what its takeover needs, what it is connected with included."""
    one, two = view("a"), view("b")
    apply(registry, service("s", one, two))
    run(registry, "a", 1)
    run(registry, "b", 1)
    one, two = view("a", ttl="6h"), view("b", ttl="6h")
    apply(registry, service("s", one, two))
    run(registry, "a", 2, load=False)
    plan = make_plan(registry.applied(), parts(service("s", one, two)))
    needs = ("a v2: its online load", "b v2: materialization until 2013-06-01T12:00:00Z")
    assert [(each.view, each.number, each.needs) for each in plan.waiting] == [("a", 2, needs), ("b", 2, needs)]
    assert plan.is_empty
    assert json.loads(json.dumps(plan.to_dict()))["candidates"][0] == {"view": "a", "number": 2, "needs": list(needs)}


def test_a_service_that_waits_is_pending_rather_than_unknown(registry: Registry) -> None:
    """A name that is applied and waits for a candidate says so, and what the candidate needs."""
    apply(registry, service("s", view("a")))
    run(registry, "a", 1)
    apply(registry, service("s", view("a", ttl="6h")), service("t", view("a", ttl="6h"), view("b")))
    for wanted in ("t", ["b:gusts"]):
        with pytest.raises(PendingError, match=r"is pending: it is applied, and waits for a v2: materialization until 2013"):
            select(registry.serving(), wanted)
    with pytest.raises(NotFoundError):
        select(registry.serving(), "u")
