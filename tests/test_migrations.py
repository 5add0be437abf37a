from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from featurestore.errors import RegistryError
from featurestore.registry import migrations
from featurestore.registry.schema import SCHEMA_VERSION, metadata
from featurestore.registry.state import Coverage, Loaded
from tests.conftest import NOON
from tests.databases import Open
from tests.registries import apply, service, states, view

FIRST_RELEASE = (Path(__file__).parent / "schema1.sql").read_text("utf-8")
"""What the first release wrote: view a with a replaced, a serving and a candidate version, service s, two runs."""


def write_first(url: str) -> None:
    """Write the first release's database; on PostgreSQL its numbers were given by sequences."""
    engine = sa.create_engine(url)
    is_postgresql = engine.dialect.name == "postgresql"
    text = FIRST_RELEASE
    if is_postgresql:
        text = re.sub(r"id INTEGER NOT NULL( PRIMARY KEY AUTOINCREMENT)?", r"id SERIAL NOT NULL\1", text).replace(
            " AUTOINCREMENT", ""
        )
        text += "".join(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), 50);\n" for name in ("changes", "versions", "runs"))
    with engine.begin() as connection:
        for statement in text.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement.replace("%", "%%") if is_postgresql else statement)
    engine.dispose()


def read(url: str, query: str) -> list[tuple[Any, ...]]:
    """Read a database behind the registry's back."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.exec_driver_sql(query)]
    engine.dispose()
    return rows


def test_a_registry_of_the_first_release_is_brought_here_with_all_it_holds(open_registry: Open, database_url: str) -> None:
    """Versions, coverage, loads, runs and history are what they were; its candidate takes over, and that can be taken back."""
    write_first(database_url)
    registry = open_registry()

    assert states(registry, "a") == ["a1 replaced", "a2 serving", "a3 candidate"]
    one, two, three = registry.applied().versions
    assert (two.uid, two.coverage, two.loaded) == ("1a1b2c3d", Coverage(-62135596800000001, NOON), Loaded(2, 2, NOON))
    assert (one.is_rollback, registry.applied().revision, registry.serving().specs["feature view", "a"]["ttl"]) == (False, 4, "6h")
    assert [(run.number, run.version, run.status) for run in registry.runs()] == [(2, 2, "completed"), (1, 1, "completed")]
    assert [change["applied_by"] for change in registry.history()] == ["ann"] * 6

    run = registry.start_run(three, None, NOON, now=NOON)
    registry.cover(three, Coverage(0, NOON), 7, run)
    registry.finish_run(three, run, now=NOON, report={}, loaded=Loaded(run, 7, NOON))
    assert states(registry, "a") == ["a1 replaced", "a2 replaced", "a3 serving"]
    registry.rollback("a", now=NOON)
    assert states(registry, "a") == ["a1 replaced", "a2 serving", "a3 replaced"]
    before = registry.writes()
    apply(registry, service("s", view("a")))
    assert registry.writes() > before


def test_the_steps_lead_to_the_schema_that_a_new_database_has(open_registry: Open, database_url: str) -> None:
    """Alembic finds no difference between a migrated database and the tables as declared, and both say which schema they have."""
    write_first(database_url)
    open_registry()
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        assert (
            compare_metadata(MigrationContext.configure(connection, opts={"version_table": "featurestore_alembic"}), metadata) == []
        )
    engine.dispose()
    assert read(database_url, "SELECT schema_version FROM meta") == [(SCHEMA_VERSION,)]
    assert read(database_url, "SELECT version_num FROM featurestore_alembic") == [(str(SCHEMA_VERSION),)]


def test_a_new_database_is_where_the_steps_end(open_registry: Open, database_url: str) -> None:
    """A new database needs no step: Alembic's own table names the last one."""
    open_registry()
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert read(database_url, "SELECT version_num FROM featurestore_alembic") == [(script.get_current_head(),)]
    assert [step.revision for step in script.walk_revisions()] == [str(number) for number in range(SCHEMA_VERSION, 0, -1)]


def test_a_migration_that_fails_leaves_the_database_as_it_was(open_registry: Open, database_url: str) -> None:
    """All steps are one transaction: where the last statement fails, the first did not happen."""
    write_first(database_url)
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE takeovers (mine TEXT)")
    engine.dispose()

    with pytest.raises(RegistryError, match=r"the registry the-registry failed: .*takeovers"):
        open_registry()
    assert read(database_url, "SELECT schema_version FROM meta") == [(1,)]
    engine = sa.create_engine(database_url)
    inspected = sa.inspect(engine)
    assert not inspected.has_table("featurestore_alembic")
    assert "retired_at" not in {column["name"] for column in inspected.get_columns("versions")}
    engine.dispose()


def test_the_record_of_an_application_that_shares_the_database_is_left_alone(open_registry: Open, database_url: str) -> None:
    """Alembic's table of another application is not ours: it is neither read nor written."""
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('theirs')")
    engine.dispose()
    write_first(database_url)
    apply(open_registry(), view("b"))
    assert read(database_url, "SELECT version_num FROM alembic_version") == [("theirs",)]


def test_whoever_opens_an_old_registry_at_once_finds_it_migrated(open_registry: Open, database_url: str) -> None:
    """Of several that open it one takes the steps, and the others wait for it."""
    write_first(database_url)
    start, opened = threading.Barrier(3), []

    def open_one() -> None:
        start.wait()
        opened.append(states(open_registry(), "a"))

    threads = [threading.Thread(target=open_one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert opened == [["a1 replaced", "a2 serving", "a3 candidate"]] * 3


def test_a_registry_that_is_not_behind_does_not_load_alembic(open_registry: Open, database_url: str) -> None:
    """Opening, planning and applying stay as quick as they were: Alembic is for databases that are behind."""
    open_registry()
    code = (
        "import sys; from featurestore.registry.registry import Registry\n"
        "Registry(sys.argv[1], 'test', 'x').applied(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, database_url], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
