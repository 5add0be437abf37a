from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import Alias, Entity, FeatureService, FeatureView, FileSource
from featurestore.definitions import Definition, Projection
from featurestore.errors import (
    ConflictError,
    InputError,
    MissingDependencyError,
    NotFoundError,
    RegistryError,
    RunInProgressError,
)
from featurestore.registry.lease import lease
from featurestore.registry.plan import Plan, make_plan
from featurestore.registry.registry import Registry
from featurestore.registry.selection import select
from featurestore.registry.settling import ObjectState, settle
from featurestore.registry.state import Coverage, Loaded, Version
from featurestore.types import Float64, Int64, String
from tests.conftest import HOUR, NOON, TIME, WEATHER, Repo, at

Open = Callable[..., Registry]

airport = Entity("airport", join_keys={"origin": String})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
runways = FileSource("runways", path="runways.parquet")


def view(name: str, **changes: Any) -> FeatureView:
    """Return a view over the weather, some of it changed."""
    declared: dict[str, Any] = {"entities": [airport], "source": weather, "fields": {"temperature": Float64, "gusts": Int64}}
    return FeatureView(name, **(declared | changes))


def service(name: str, *members: Any) -> FeatureService:
    """Return a service of some members."""
    return FeatureService(name, features=members)


def parts(*definitions: Definition) -> list[Definition]:
    """Return definitions with the entities, sources, views and aliases that they refer to: what a repo would hold."""
    found: dict[tuple[type, str], Definition] = {}
    for each in definitions:
        referred: Sequence[Any] = ()
        if isinstance(each, FeatureView):
            referred = (*each.entities, each.source)
        elif isinstance(each, FeatureService):
            referred = [member.view if isinstance(member, Projection) else member for member in each.features]
        elif isinstance(each, Alias):
            referred = (each.view,)
        for part in (*(parts(*(one for one in referred if not isinstance(one, str)))), each):
            found[type(part), part.name] = part
    return list(found.values())


@pytest.fixture
def open_registry(tmp_path: Path) -> Iterator[Open]:
    """Open the registry of a project, in one file."""
    opened: list[Registry] = []

    def open_one(project: str = "test", file: Path | None = None) -> Registry:
        opened.append(Registry(f"sqlite:///{file or tmp_path / 'registry.db'}", project, "sqlite:///registry.db"))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def registry(open_registry: Open) -> Registry:
    """One registry in a new file."""
    return open_registry()


def apply(registry: Registry, *definitions: Definition, now: int = NOON) -> Plan:
    """Plan and apply definitions with all they refer to."""
    plan = make_plan(registry.applied(), parts(*definitions))
    if not plan.is_empty:
        registry.apply(plan, now=now)
    return plan


def run(registry: Registry, name: str, until: int = NOON, *, load: bool = True) -> None:
    """Record a run on the newest version of a view, as `materialize` does: covered until an instant, and loaded or not."""
    version = registry.applied().versions_of(name)[-1]
    number = registry.start_run(version, None, until, now=until)
    registry.cover(version, Coverage(0, until), number)
    registry.finish_run(version, number, now=until, report={}, loaded=Loaded(number, number) if load else None)


def states(registry: Registry, *views: str) -> list[str]:
    """Return the states of all versions of some views, oldest first, by view."""
    return [f"{name}{version.number} {version.state}" for name in views for version in registry.applied().versions_of(name)]


def serving(registry: Registry) -> list[str]:
    """Return the versions that names mean now."""
    return [f"{version.view.name}{version.number}" for version in registry.serving().versions]


# Plans


def changed(plan: Plan) -> list[tuple[str, str, str]]:
    """Return what a plan changes: action, kind and name."""
    return [(change.action, change.kind, change.name) for change in plan.changes]


def reasons(plan: Plan) -> list[tuple[str, Any, Any]]:
    """Return why a plan's one new version is one."""
    [new] = plan.new_versions
    return [(reason.field, reason.before, reason.after) for reason in new.reasons]


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
            }
        ],
        "dropped_candidates": [],
        "warnings": list(plan.warnings),
    }


# Apply


def test_a_plan_made_before_another_apply_is_refused(registry: Registry) -> None:
    """The second of two plans of one revision is refused, and nothing of it is applied."""
    one = make_plan(registry.applied(), parts(view("a")))
    other = make_plan(registry.applied(), parts(view("b"), service("s", view("b"))))
    registry.apply(one, now=NOON)
    before = registry.applied(), registry.history()

    with pytest.raises(ConflictError, match="the registry has changed since this plan was made; plan again and apply that"):
        registry.apply(other, now=NOON)
    assert (registry.applied(), registry.history()) == before


def test_a_plan_cannot_be_applied_twice(registry: Registry) -> None:
    """A plan belongs to one revision."""
    plan = apply(registry, view("a"))

    with pytest.raises(ConflictError):
        registry.apply(plan, now=NOON)
    assert states(registry, "a") == ["a1 serving"]


def test_of_concurrent_applies_one_succeeds(open_registry: Open) -> None:
    """Of four threads that apply different plans of one revision at once, one does, and the others change nothing."""
    registries = [open_registry() for _ in range(4)]
    plans = [make_plan(each.applied(), parts(view(f"v{number}"))) for number, each in enumerate(registries)]
    start, applied, refused = threading.Barrier(4), [], []

    def attempt(number: int) -> None:
        start.wait()
        try:
            registries[number].apply(plans[number], now=NOON)
            applied.append(f"v{number}")
        except ConflictError:
            refused.append(f"v{number}")

    threads = [threading.Thread(target=attempt, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert (len(applied), len(refused)) == (1, 3)
    assert registries[0].applied().revision == 1
    assert [name for kind, name in registries[0].applied().specs if kind == "feature view"] == applied
    assert [version.view.name for version in registries[0].applied().versions] == applied


def test_an_apply_that_fails_half_way_changes_nothing(registry: Registry) -> None:
    """`apply` is one transaction: where its last statement fails, none of it is there."""
    apply(registry, view("a"))
    plan = make_plan(registry.applied(), parts(view("a", description="new"), view("b")))
    clashing = replace(plan, new_versions=(replace(plan.new_versions[0], view=view("a"), number=1),))
    before = registry.applied(), registry.history()

    with pytest.raises(RegistryError, match="UNIQUE constraint failed"):
        registry.apply(clashing, now=NOON)
    assert (registry.applied(), registry.history()) == before


def test_history_tells_who_changed_what_and_when(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change ever applied is kept, with its revision, time, user and fields, removals included."""
    monkeypatch.setenv("LOGNAME", "ann")
    apply(registry, view("a"), now=NOON)
    monkeypatch.setenv("LOGNAME", "bob")
    apply(registry, view("a", ttl="6h"), now=NOON + 1)
    apply(registry, airport, now=NOON + 2)

    columns = ["revision", "applied_at", "applied_by", "action", "kind", "name", "fields"]
    assert [[each[column] for column in columns] for each in registry.history()] == [
        [1, NOON, "ann", "create", "entity", "airport", []],
        [1, NOON, "ann", "create", "source", "weather", []],
        [1, NOON, "ann", "create", "feature view", "a", []],
        [2, NOON + 1, "bob", "change", "feature view", "a", [{"field": "ttl", "before": None, "after": "6h"}]],
        [3, NOON + 2, "bob", "remove", "source", "weather", []],
        [3, NOON + 2, "bob", "remove", "feature view", "a", []],
    ]


NAMELESS = """
import os, sys
from featurestore import Entity
from featurestore.registry.plan import make_plan
from featurestore.registry.registry import Registry
from featurestore.types import Int64
registry = Registry("sqlite:///" + sys.argv[1], "test", "")
plan = make_plan(registry.applied(), [Entity("a", join_keys={"k": Int64})])
os.setuid(65431)
registry.apply(plan, now=0)
print(registry.history()[0]["applied_by"])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_name_can_apply(tmp_path: Path) -> None:
    """A container may run as a number that no user has; then the history holds the number."""
    tmp_path.chmod(0o777)
    file = tmp_path / "registry.db"
    variables = {name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    file.touch()
    file.chmod(0o666)
    made = subprocess.run([sys.executable, "-c", NAMELESS, str(file)], env=variables, capture_output=True, text=True, check=False)

    assert made.stderr == ""
    assert "65431" in made.stdout


# Whose registry it is


def test_a_registry_is_found_again(open_registry: Open) -> None:
    """What is applied is there for whoever opens the registry next."""
    first = open_registry()
    apply(first, service("s", view("a")))
    first.close()

    assert open_registry().applied() == first.applied()


def test_the_registry_of_another_project_is_refused(open_registry: Open) -> None:
    """Two projects cannot share a registry, and the message names both."""
    apply(open_registry("one"), view("a"))

    with pytest.raises(
        RegistryError, match=r"the registry sqlite:///registry\.db belongs to project 'one', not 'two': give each project its own"
    ):
        open_registry("two")
    assert states(open_registry("one"), "a") == ["a1 serving"]


def test_a_registry_with_a_newer_schema_is_refused(open_registry: Open, tmp_path: Path) -> None:
    """What a newer release wrote is not read by this one, and is left as it is."""
    apply(open_registry(), view("a"))
    with closing(sqlite3.connect(tmp_path / "registry.db")) as file:
        file.execute("UPDATE meta SET schema_version = 2")
        file.commit()

    with pytest.raises(
        RegistryError,
        match=r"the registry sqlite:///registry\.db has schema 2, this release reads 1: use the release that wrote it",
    ):
        open_registry()


def test_a_file_that_is_no_registry_is_refused(open_registry: Open, tmp_path: Path) -> None:
    """A file of another kind is a registry error, not the driver's."""
    (tmp_path / "notes.txt").write_text("no database" * 100)

    with pytest.raises(RegistryError, match=r"the registry sqlite:///registry\.db failed: file is not a database"):
        open_registry(file=tmp_path / "notes.txt")


def test_a_folder_that_cannot_be_made_is_a_registry_error(open_registry: Open, tmp_path: Path) -> None:
    """A registry below a file, or below a folder that cannot be written, is a registry error, not the system's."""
    (tmp_path / "file").touch()

    with pytest.raises(RegistryError):
        open_registry(file=tmp_path / "file" / "registry.db")


@pytest.mark.skipif(importlib.util.find_spec("psycopg") is not None, reason="psycopg is installed")
def test_a_missing_driver_names_its_extra() -> None:
    """A PostgreSQL registry without the driver says which extra brings it."""
    with pytest.raises(MissingDependencyError, match=r"pip install 'featurestore\[postgres\]'"):
        Registry("postgresql+psycopg://me@127.0.0.1:1/fs", "test", "postgresql+psycopg://me@127.0.0.1:1/fs")


def test_a_dropped_registry_is_gone(open_registry: Open) -> None:
    """After `drop` the next one to open the registry finds it empty."""
    registry = open_registry()
    apply(registry, view("a"))
    registry.drop()

    again = open_registry("other")
    assert (again.applied().revision, again.applied().specs, again.applied().versions) == (0, {}, ())


# Runs


def test_runs_are_numbered_upward_whatever_became_of_them(registry: Registry) -> None:
    """A run's number is never used again, so it can order online rows; the newest run comes first."""
    apply(registry, view("a"), view("b"))
    one, other = registry.applied().versions
    for version in (one, other, one):
        number = registry.start_run(version, None, NOON, now=NOON)
        registry.finish_run(version, number, now=NOON + 1, report={"rows": number}, error="full disk" if number == 2 else None)

    assert [(run.number, run.view, run.version, run.status, run.error, run.report) for run in registry.runs()] == [
        (3, "a", 1, "completed", None, {"rows": 3}),
        (2, "b", 1, "failed", "full disk", {"rows": 2}),
        (1, "a", 1, "completed", None, {"rows": 1}),
    ]
    assert [run.number for run in registry.runs(2)] == [3, 2]


def test_the_next_run_closes_one_that_was_killed(registry: Registry) -> None:
    """A run that is still open when the next one on its version begins was killed; runs of other versions are left alone."""
    apply(registry, view("a"), view("b"))
    one, other = registry.applied().versions
    registry.start_run(one, None, NOON, now=NOON)
    registry.start_run(other, None, NOON, now=NOON)
    registry.start_run(one, 5, NOON, now=NOON + 7)

    assert [(run.number, run.status, run.error, run.start, run.finished_at) for run in registry.runs()] == [
        (3, "running", None, 5, None),
        (2, "running", None, None, None),
        (1, "failed", "the process ended during the run", None, NOON + 7),
    ]


def test_coverage_and_load_are_kept_with_the_version(registry: Registry) -> None:
    """`cover` and a completed load are what the version says from then on; a failed run loads nothing."""
    apply(registry, view("a"))
    [version] = registry.applied().versions
    assert (version.coverage, version.watermark, version.loaded, version.table_version) == (None, None, None, -1)

    registry.cover(version, Coverage(-5, NOON), 3)
    number = registry.start_run(version, None, NOON, now=NOON)
    registry.finish_run(version, number, now=NOON, report={}, loaded=Loaded(number, 3))
    again = registry.version(version.id)

    assert (again.coverage, again.watermark, again.loaded, again.table_version) == (Coverage(-5, NOON), NOON, Loaded(1, 3), 3)


COMPLETE = [
    # refresh, delay, watermark, complete until
    (None, None, NOON, NOON),
    (None, "10m", NOON, NOON),
    ("1h", None, NOON, NOON + HOUR - 1),
    ("1h", None, NOON - 1, NOON - 1),
    ("1h", "10m", NOON, NOON + HOUR // 6 - 1),
    ("1h", "10m", NOON + HOUR // 6, NOON + HOUR // 6 + HOUR - 1),
    ("1h", "10m", NOON + HOUR // 6 - 1, NOON + HOUR // 6 - 1),
    ("1d", "36h", NOON, NOON + 24 * HOUR - 1),
]


@pytest.mark.parametrize(("refresh", "delay", "watermark", "until"), COMPLETE)
def test_completeness_follows_refresh_and_delay(refresh: str | None, delay: str | None, watermark: int, until: int) -> None:
    """A row at `t` is complete if `floor(t - delay, refresh) + delay <= watermark`, without refresh if `t <= watermark` (T7)."""
    source = FileSource("weather", path="w", event_time="at", delay=delay)
    version = made("a", "serving", covered=watermark)
    version = replace(version, view=view("a", source=source, refresh=refresh))
    length, late = ((HOUR if refresh == "1h" else 24 * HOUR), {None: 0, "10m": HOUR // 6, "36h": 36 * HOUR}[delay])

    def is_complete(t: int) -> bool:
        return t <= watermark if refresh is None else (t - late) // length * length + late <= watermark

    assert version.complete_until() == until
    assert (is_complete(until), is_complete(until + 1)) == (True, False)


# Settling (T11): candidates, serving and replaced versions


def made(
    name: str, state: str, number: int = 1, *, covered: int | None = None, loaded: bool = True, online: bool = True
) -> Version:
    """Return a version of a view: covered until an instant, or never materialized."""
    coverage = None if covered is None else Coverage(0, covered)
    load = Loaded(1, 1) if loaded and covered is not None else None
    return Version(number, f"{name}{number}", number, "", view(name, online=online), state, 0, coverage, 0, load)


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
    registry.cover(version, Coverage(0, NOON), 1)
    registry.finish_run(version, number, now=NOON, report={}, loaded=Loaded(number, 1), error="the disk is full")

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


def test_going_back_to_what_has_been_replaced_is_a_new_version(registry: Registry) -> None:
    """A replaced version stays for rollback; the same definition later is a version of its own, since sources have moved on."""
    apply(registry, view("a"))
    run(registry, "a")
    apply(registry, view("a", ttl="6h"))
    run(registry, "a")
    apply(registry, view("a"))

    assert states(registry, "a") == ["a1 replaced", "a2 serving", "a3 candidate"]


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


def test_a_lookback_that_is_applied_heals_at_the_next_run(weather_repo: Repo) -> None:
    """A changed lookback makes no new version, and the next run of the version there is goes back by it (T7, T11)."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    weather_repo.define(WEATHER.replace('ttl="6h"', 'ttl="6h", lookback="1d"'))
    assert store.apply().new_versions == ()
    late = {"origin": ["JFK"], "observed_at": pa.array([at(NOON - HOUR)], TIME), "temperature": [9.5], "gusts": [3]}
    weather_repo.write("weather.parquet", late)
    [report] = store.materialize()

    assert (report.start, report.rows, report.late) == (NOON - 24 * HOUR, 1, 0)


def test_a_view_that_is_put_online_is_loaded_at_the_next_run(weather_repo: Repo) -> None:
    """`online=True` makes no new version; the next run of the version there is loads it, and lookups answer (T11)."""
    weather_repo.define(WEATHER.replace('ttl="6h"', 'ttl="6h", online=False'))
    store = weather_repo.open()
    store.apply()
    store.materialize()
    weather_repo.define(WEATHER)
    assert store.apply().new_versions == ()
    weather_repo.now += HOUR
    [report] = store.materialize()

    assert report.online_written == 2
    assert store.get_online_features({"origin": ["EWR"]}, "flight_weather").to_dict()["airport_weather__temperature"] == [21.0]


# Leases

HOLDER = """
import sys, time
from pathlib import Path
from featurestore.registry.lease import lease
with lease(Path(sys.argv[1]), "uid", "view 'a'"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_holder_of_a_lease_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    """A lease names the process that has it, and is free as soon as that process ends, even by SIGKILL."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunInProgressError) as error, lease(tmp_path, "uid", "view 'a'"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)

    assert str(error.value).startswith(f"view 'a' is being materialized by process {holder.pid} since 20")
    assert str(error.value).endswith("Z; wait until it ends, or end it")
    with lease(tmp_path, "uid", "view 'a'"):
        pass


def test_a_thread_does_not_share_the_lease_of_another(tmp_path: Path) -> None:
    """Two holders in one process exclude each other too; another name is another lease; it is free again after its end."""
    with lease(tmp_path, "uid", "view 'a'"):
        with lease(tmp_path, "other", "view 'b'"):
            pass
        with (
            pytest.raises(RunInProgressError, match=f"view 'a' is being materialized by process {os.getpid()} since "),
            lease(tmp_path, "uid", "view 'a'"),
        ):
            pass
    with lease(tmp_path, "uid", "view 'a'"), pytest.raises(RunInProgressError), lease(tmp_path, "uid", "view 'a'"):
        pass


def test_an_error_inside_frees_the_lease(tmp_path: Path) -> None:
    """A run that fails gives its lease back."""
    with pytest.raises(ZeroDivisionError), lease(tmp_path, "uid", "view 'a'"):
        raise ZeroDivisionError
    with lease(tmp_path, "uid", "view 'a'"):
        pass


def test_a_folder_without_room_for_leases_is_a_registry_error(tmp_path: Path) -> None:
    """Where no lock can be made, the error names the folder."""
    (tmp_path / "file").touch()

    with pytest.raises(RegistryError, match="cannot make the lock for view 'a' in "), lease(tmp_path / "file", "uid", "view 'a'"):
        pass


# Selection


@pytest.fixture
def applied(registry: Registry) -> Registry:
    """A registry with two views, an alias and three services."""
    one, two = view("a"), view("b", fields={"rain": Float64})
    there = one.alias("there", join_keys={"origin": "destination"})
    apply(
        registry,
        service("whole", two, one),
        service("mixed", one["gusts"], two, "there:temperature", one["temperature"], there["gusts"]),
        service("twisted", there),
        view("n", entities=[Entity("number", join_keys={"destination": Int64})]),
    )
    return registry


SELECTED: list[tuple[str | list[str], list[str], dict[str, Any], list[tuple[str, str, list[str]]]]] = [
    # what is wanted; columns; keys; lookups as name, view, features
    (
        "whole",
        ["b__rain", "a__temperature", "a__gusts"],
        {"origin": String},
        [("b", "b", ["rain"]), ("a", "a", ["temperature", "gusts"])],
    ),
    (
        "mixed",
        ["a__gusts", "b__rain", "there__temperature", "a__temperature", "there__gusts"],
        {"origin": String, "destination": String},
        [("a", "a", ["gusts", "temperature"]), ("b", "b", ["rain"]), ("there", "a", ["temperature", "gusts"])],
    ),
    ("twisted", ["there__temperature", "there__gusts"], {"destination": String}, [("there", "a", ["temperature", "gusts"])]),
    (
        ["there:gusts", "a:gusts"],
        ["there__gusts", "a__gusts"],
        {"destination": String, "origin": String},
        [("there", "a", ["gusts"]), ("a", "a", ["gusts"])],
    ),
]


@pytest.mark.parametrize(("wanted", "columns", "keys", "lookups"), SELECTED, ids=str)
def test_a_selection_keeps_the_order_asked_for(
    applied: Registry, wanted: str | list[str], columns: list[str], keys: dict[str, Any], lookups: list[tuple[str, str, list[str]]]
) -> None:
    """Columns are in the service's order even where views interleave; each view or alias is looked up once."""
    selection = select(applied.serving(), wanted)

    assert list(selection.columns) == columns
    assert list(selection.keys.items()) == list(keys.items())
    assert [(each.name, each.version.view.name, list(each.features)) for each in selection.lookups] == lookups
    assert list(selection.types()) == columns


def test_a_selection_knows_the_types_of_its_columns(applied: Registry) -> None:
    """Types are those that the views declare."""
    assert select(applied.serving(), "mixed").types() == {
        "a__gusts": Int64,
        "b__rain": Float64,
        "there__temperature": Float64,
        "a__temperature": Float64,
        "there__gusts": Int64,
    }


UNKNOWN: list[tuple[str | list[str], str]] = [
    ("whol", "no feature service 'whol'; did you mean 'whole'?"),
    ("zzz", "no feature service 'zzz'; known: 'mixed', 'twisted', 'whole'"),
    ("a", "no feature service 'a'; known: 'mixed', 'twisted', 'whole'"),
    (["ther:gusts"], "no feature view 'ther'; did you mean 'there'?"),
    (["zzz:gusts"], "no feature view 'zzz'; known: 'a', 'b', 'n', 'there'"),
    (["a:gust"], "no feature of view 'a' named 'gust'; did you mean 'gusts'?"),
    (["there:rain"], "no feature of view 'there' named 'rain'; known: 'gusts', 'temperature'"),
    (["a:gusts", "b:rein"], "no feature of view 'b' named 'rein'; did you mean 'rain'?"),
    (["a:"], "no feature of view 'a' named ''; known: 'gusts', 'temperature'"),
]


@pytest.mark.parametrize(("wanted", "message"), UNKNOWN, ids=str)
def test_an_unknown_name_is_answered_with_the_nearest(applied: Registry, wanted: str | list[str], message: str) -> None:
    """A name that nothing has is an error that says which are there, the nearest first."""
    with pytest.raises(NotFoundError) as error:
        select(applied.serving(), wanted)

    assert str(error.value) == message


MALFORMED: list[tuple[list[str], str]] = [
    ([], "no features asked for: name a feature service, or features as 'view:feature'"),
    (["a"], "'a' is not of the form 'view:feature'"),
    (["a__gusts"], "'a__gusts' is not of the form 'view:feature'"),
    (["a:gusts", "b:rain", "a:gusts"], "feature 'a:gusts' is asked for twice"),
    (
        ["there:gusts", "n:gusts"],
        "key column 'destination' is String in 'there' and Int64 in 'n'; rename one with an alias",
    ),
]


@pytest.mark.parametrize(("wanted", "message"), MALFORMED, ids=str)
def test_a_malformed_list_is_refused(applied: Registry, wanted: list[str], message: str) -> None:
    """An empty list, a name without feature, a feature twice and keys that clash are input errors, which name the offender."""
    with pytest.raises(InputError) as error:
        select(applied.serving(), wanted)

    assert str(error.value) == message
