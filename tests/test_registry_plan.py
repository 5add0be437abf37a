from __future__ import annotations

import json
from typing import Any

import pytest

from featurestore import Entity, FileSource
from featurestore.registry.plan import Plan, make_plan
from featurestore.registry.registry import Registry
from featurestore.types import Float64, Int64, String
from tests.registries import apply, parts, reasons, runways, service, view


def changed(plan: Plan) -> list[tuple[str, str, str]]:
    """Return what a plan changes: action, kind and name."""
    return [(change.action, change.kind, change.name) for change in plan.changes]


def test_the_first_plan_creates_everything_in_order(registry: Registry) -> None:
    """A plan lists creations by kind, from what others refer to up to services, and the first version of each view."""
    there = view("a").alias("there", join_keys={"origin": "destination"})
    plan = make_plan(registry.applied(), parts(service("s", there, view("b")), view("a")))

    assert changed(plan) == [
        ("create", "entity", "airport"),
        ("create", "source", "weather"),
        ("create", "feature view", "a"),
        ("create", "feature view", "b"),
        ("create", "alias", "there"),
        ("create", "feature service", "s"),
    ]
    assert sorted((new.view.name, new.number, new.replaces, new.reasons) for new in plan.new_versions) == [
        ("a", 1, None, ()),
        ("b", 1, None, ()),
    ]


def test_a_plan_of_what_is_applied_is_empty(registry: Registry) -> None:
    """Applying the same definitions again changes nothing, and says so before."""
    apply(registry, service("s", view("a")))

    assert apply(registry, service("s", view("a"))).is_empty
    assert registry.applied().revision == 1


CHANGES: list[tuple[dict[str, Any], list[tuple[str, Any, Any]], bool]] = [
    # the view's change; the fields of the plan; whether the version is new
    ({"ttl": "6h"}, [("ttl", None, "6h")], True),
    ({"refresh": "1h"}, [("refresh", None, "1h")], True),
    ({"history_start": "2013-01-01"}, [("history_start", None, "2013-01-01T00:00:00Z")], True),
    ({"sql": "SELECT * FROM weather"}, [("sql", None, "SELECT * FROM weather")], True),
    (
        {"fields": {"temperature": Float64}},
        [
            (
                "fields",
                [{"name": "temperature", "type": "Float64"}, {"name": "gusts", "type": "Int64"}],
                [{"name": "temperature", "type": "Float64"}],
            )
        ],
        True,
    ),
    ({"description": "hourly"}, [("description", "", "hourly")], False),
    ({"owner": "ops"}, [("owner", "", "ops")], False),
    ({"tags": {"a": "b"}}, [("tags", [], [["a", "b"]])], False),
    ({"online": False}, [("online", True, False)], False),
    ({"lookback": "1d"}, [("lookback", None, "1d")], False),
]


@pytest.mark.parametrize(
    ("change", "fields", "is_new"), CHANGES, ids=lambda each: next(iter(each)) if isinstance(each, dict) else ""
)
def test_a_plan_names_the_fields_that_change(
    registry: Registry, change: dict[str, Any], fields: list[tuple[str, Any, Any]], is_new: bool
) -> None:
    """A changed view is shown field by field, and has a new version if values change, not if it is only described anew (T11)."""
    apply(registry, view("a"))
    plan = make_plan(registry.applied(), parts(view("a", **change)))

    assert changed(plan) == [("change", "feature view", "a")]
    assert [(each.field, each.before, each.after) for each in plan.changes[0].fields] == fields
    assert len(plan.new_versions) == is_new
    if is_new:
        assert reasons(plan) == fields
        assert (plan.new_versions[0].number, plan.new_versions[0].replaces) == (2, 1)


SOURCES: list[tuple[dict[str, Any], list[tuple[str, Any, Any]], bool]] = [
    ({"path": "other.parquet"}, [("path", "weather.parquet", "other.parquet")], True),
    ({"delay": "10m"}, [("delay", None, "10m")], True),
    ({"created_time": "made"}, [("created_time", None, "made")], True),
    ({"description": "hourly"}, [("description", "", "hourly")], False),
]


@pytest.mark.parametrize(
    ("change", "fields", "is_new"), SOURCES, ids=lambda each: next(iter(each)) if isinstance(each, dict) else ""
)
def test_a_changed_source_makes_new_versions_of_its_views(
    registry: Registry, change: dict[str, Any], fields: list[tuple[str, Any, Any]], is_new: bool
) -> None:
    """A source's change is shown once, at the source; each view over it has a new version for it, if values change."""
    source = FileSource("weather", **({"path": "weather.parquet", "event_time": "observed_at"} | change))
    apply(registry, view("a"), view("b"))
    plan = make_plan(registry.applied(), parts(view("a", source=source), view("b", source=source)))

    assert changed(plan) == [("change", "source", "weather")]
    assert [(each.field, each.before, each.after) for each in plan.changes[0].fields] == fields
    assert [new.view.name for new in plan.new_versions] == (["a", "b"] if is_new else [])
    for new in plan.new_versions:
        assert [(each.field, each.before, each.after) for each in new.reasons] == [
            (f"source.{name}", *rest) for name, *rest in fields
        ]


def test_the_reasons_of_a_version_are_those_that_alter_values(registry: Registry) -> None:
    """A description that changes along is a change, but no reason for the new version."""
    apply(registry, view("a"))

    assert reasons(make_plan(registry.applied(), parts(view("a", ttl="6h", description="hourly", lookback="1d")))) == [
        ("ttl", None, "6h")
    ]


def test_a_changed_key_makes_a_new_version(registry: Registry) -> None:
    """A join key's type is part of the values; an entity's name is not."""
    apply(registry, view("a"))
    other = view("a", entities=[Entity("airport", join_keys={"origin": Int64})])
    renamed = view("a", entities=[Entity("place", join_keys={"origin": String})])

    assert [new.number for new in make_plan(registry.applied(), parts(other)).new_versions] == [2]
    assert make_plan(registry.applied(), parts(renamed)).new_versions == ()
    assert changed(make_plan(registry.applied(), parts(renamed))) == [
        ("remove", "entity", "airport"),
        ("create", "entity", "place"),
        ("change", "feature view", "a"),
    ]


def test_a_plan_shows_changes_of_services_and_aliases(registry: Registry) -> None:
    """A service's list and an alias's columns are compared as references, by name."""
    there = view("a").alias("there", join_keys={"origin": "destination"})
    apply(registry, service("s", view("a"), there))
    plan = make_plan(registry.applied(), parts(service("s", there["gusts"]), there, view("a", description="new")))

    assert [(change.name, change.fields[0].field) for change in plan.changes] == [("a", "description"), ("s", "features")]
    assert plan.changes[1].fields[0].before == [{"features": None, "view": "a"}, {"features": None, "view": "there"}]
    assert plan.changes[1].fields[0].after == [{"features": ["gusts"], "view": "there"}]
    assert plan.new_versions == ()


def test_a_plan_shows_removals(registry: Registry) -> None:
    """What is applied and no longer defined is removed."""
    apply(registry, service("s", view("a")), view("b"))

    assert changed(make_plan(registry.applied(), parts(view("b")))) == [
        ("remove", "feature view", "a"),
        ("remove", "feature service", "s"),
    ]


def test_a_plan_says_what_a_version_asks_for(registry: Registry) -> None:
    """A new version comes with the materialization that it needs."""
    apply(registry, view("a"))
    first = make_plan(
        registry.applied(), parts(view("a"), view("b"), view("c", history_start="2013-01-01"), view("d", source=runways))
    )
    second = make_plan(registry.applied(), parts(view("a", ttl="6h")))

    assert {new.view.name: new.materialization for new in (*first.new_versions, *second.new_versions)} == {
        "a": "from the beginning of its source until it covers what version 1 covers; then it takes over",
        "b": "from the beginning of its source",
        "c": "from 2013-01-01 00:00Z",
        "d": "a snapshot of its source",
    }


def test_a_plan_warns_of_views_served_without_refresh(registry: Registry) -> None:
    """A batch view that is served online without refresh makes training see rows at once: the plan warns, and only then."""
    plan = make_plan(
        registry.applied(),
        parts(view("a"), view("b", refresh="1h"), view("c", online=False), view("d", source=runways)),
    )

    [warning] = plan.warnings
    assert warning.startswith("view 'a' is served online without refresh: training sees its rows at once, ")


def test_a_plan_is_json(registry: Registry) -> None:
    """A plan's dictionary can be written as JSON and holds all of it."""
    apply(registry, service("s", view("a")))
    plan = make_plan(registry.applied(), parts(view("a", ttl="6h")))

    assert json.loads(json.dumps(plan.to_dict())) == {
        "revision": 1,
        "changes": [
            {
                "action": "change",
                "kind": "feature view",
                "name": "a",
                "fields": [{"field": "ttl", "before": None, "after": "6h"}],
            },
            {"action": "remove", "kind": "feature service", "name": "s", "fields": []},
        ],
        "new_versions": [
            {
                "view": "a",
                "number": 2,
                "replaces": 1,
                "reasons": [{"field": "ttl", "before": None, "after": "6h"}],
                "materialization": "from the beginning of its source until it covers what version 1 covers; then it takes over",
                "is_resumed": False,
            }
        ],
        "new_code": [],
        "dropped_candidates": [],
        "candidates": [],
        "warnings": list(plan.warnings),
    }
