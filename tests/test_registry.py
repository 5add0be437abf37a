from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from featurestore import FileSource
from featurestore.definitions import Definition
from featurestore.errors import ConflictError, MissingDependencyError, RegistryError
from featurestore.registry.plan import make_plan
from featurestore.registry.registry import Registry
from featurestore.registry.schema import SCHEMA_VERSION
from featurestore.registry.state import Coverage, Loaded
from featurestore.specs import to_reference_spec
from tests.conftest import HOUR, NOON
from tests.databases import Open
from tests.registries import airport, apply, made, parts, service, states, view


def execute(url: str, *statements: str) -> None:
    """Change a database behind the registry's back."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


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

    with pytest.raises(RegistryError, match=r"UNIQUE constraint failed|violates unique constraint"):
        registry.apply(clashing, now=NOON)
    assert (registry.applied(), registry.history()) == before


def test_history_tells_who_changed_what_and_when(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change ever applied is kept, with its revision, time, user and fields; of what is made or removed, the whole spec."""
    monkeypatch.setenv("LOGNAME", "ann")
    apply(registry, view("a"), now=NOON)
    monkeypatch.setenv("LOGNAME", "bob")
    apply(registry, view("a", ttl="6h"), now=NOON + 1)
    apply(registry, airport, now=NOON + 2)

    def whole(before: Definition | None, after: Definition | None) -> list[dict[str, Any]]:
        specs = [None if each is None else to_reference_spec(each) for each in (before, after)]
        return [{"field": "", "before": specs[0], "after": specs[1]}]

    old, new = view("a"), view("a", ttl="6h")
    columns = ["revision", "applied_at", "applied_by", "action", "kind", "name", "fields"]
    assert [[each[column] for column in columns] for each in registry.history()] == [
        [1, NOON, "ann", "create", "entity", "airport", whole(None, airport)],
        [1, NOON, "ann", "create", "source", "weather", whole(None, old.source)],
        [1, NOON, "ann", "create", "feature view", "a", whole(None, old)],
        [2, NOON + 1, "bob", "change", "feature view", "a", [{"field": "ttl", "before": None, "after": "6h"}]],
        [3, NOON + 2, "bob", "remove", "source", "weather", whole(old.source, None)],
        [3, NOON + 2, "bob", "remove", "feature view", "a", whole(new, None)],
    ]


NAMELESS = """
import os, sys
from featurestore import Entity
from featurestore.registry.plan import make_plan
from featurestore.registry.registry import Registry
from featurestore.specs import to_reference_spec
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
    """T10: what is applied is data, and is there for whoever opens the registry next."""
    first = open_registry()
    apply(first, service("s", view("a")))
    first.close()

    assert open_registry().applied() == first.applied()


def test_the_registry_of_another_project_is_refused(open_registry: Open) -> None:
    """Two projects cannot share a registry, and the message names both."""
    apply(open_registry("one"), view("a"))

    with pytest.raises(
        RegistryError, match=r"the registry the-registry belongs to project 'one', not 'two': give each project its own"
    ):
        open_registry("two")
    assert states(open_registry("one"), "a") == ["a1 serving"]


def test_a_registry_with_a_newer_schema_is_refused(open_registry: Open, database_url: str) -> None:
    """What a newer release wrote is not read by this one, and is left as it is."""
    apply(open_registry(), view("a"))
    execute(database_url, "UPDATE meta SET schema_version = 99")

    with pytest.raises(
        RegistryError,
        match=rf"the registry the-registry has schema 99, this release reads {SCHEMA_VERSION}: use the release that wrote it",
    ):
        open_registry()
    execute(database_url, f"UPDATE meta SET schema_version = {SCHEMA_VERSION}")
    assert states(open_registry(), "a") == ["a1 serving"]


def test_a_file_that_is_no_registry_is_refused(tmp_path: Path) -> None:
    """A file of another kind is a registry error, not the driver's."""
    (tmp_path / "notes.txt").write_text("no database" * 100)

    with pytest.raises(RegistryError, match=r"the registry the-registry failed: file is not a database"):
        Registry(f"sqlite:///{tmp_path}/notes.txt", "test", "the-registry")


def test_a_folder_that_cannot_be_made_is_a_registry_error(tmp_path: Path) -> None:
    """A registry below a file, or below a folder that cannot be written, is a registry error, not the system's."""
    (tmp_path / "file").touch()

    with pytest.raises(RegistryError):
        Registry(f"sqlite:///{tmp_path}/file/registry.db", "test", "the-registry")


@pytest.mark.parametrize("url", ["mysql://me@127.0.0.1/fs", "nonsense", "sqlite+nonsense:///a.db", "redis://127.0.0.1"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    """What is neither SQLite nor PostgreSQL is a registry error that names the URL as it is shown."""
    with pytest.raises(RegistryError, match="cannot open the registry the-registry: "):
        Registry(url, "test", "the-registry")


def test_a_server_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    """A PostgreSQL that is not there is a registry error of one line, without the password."""
    with pytest.raises(RegistryError, match="the registry the-registry failed: ") as error:
        Registry(f"postgresql://me:secret@/fs?host={tmp_path}", "test", "the-registry")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_driver_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostgreSQL registry without the driver says which extra brings it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'featurestore\[postgres\]'"):
        Registry("postgresql+psycopg://me@127.0.0.1:1/fs", "test", "postgresql+psycopg://me@127.0.0.1:1/fs")


def test_a_dropped_registry_is_gone(open_registry: Open) -> None:
    """After `drop` the next one to open the registry finds it empty."""
    registry = open_registry()
    apply(registry, view("a"))
    with registry.lease(registry.applied().versions[0]):
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

    number = registry.start_run(version, None, NOON, now=NOON)
    registry.cover(version, Coverage(-5, NOON), 3, number)
    registry.finish_run(version, number, now=NOON, report={}, loaded=Loaded(number, 3, NOON))
    again = registry.version(version.id)

    assert (again.coverage, again.watermark, again.loaded, again.table_version) == (Coverage(-5, NOON), NOON, Loaded(1, 3, NOON), 3)


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
