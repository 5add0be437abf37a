from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import NEW_TTL, Result, Run, apply

LISTED = """\
Entities
name    join keys         description
sensor  sensor_id String  A sensor on a machine

Sources
name      path                   event time   delay  description
readings  data/readings.parquet  measured_at  5m     One reading an hour of each sensor

Views
name            entities  source    features  refresh  ttl  description
machine_health  sensor    readings         3  1h       12h  The latest reading of a sensor

Services
name               views           description
machine_health_v1  machine_health  Will this machine fail within a day?
"""

DESCRIBED = """\
machine_health  feature view
The latest reading of a sensor

setting   value
entities  sensor
online    true
refresh   1h
source    readings
ttl       12h

Join keys
name       type
sensor_id  String

Features
name         type
temperature  Float64
vibration    Float64
restarts     Int64

Versions
version  state    created               watermark
      1  serving  2024-01-03T00:00:00Z  2024-01-03T00:00:00Z

Used by
kind             name
feature service  machine_health_v1
"""


def test_list_shows_what_is_applied(ask: Run) -> None:
    """`list` gives a table for each kind."""
    assert ask("list") == Result(0, LISTED)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("entities", "sensor"), ("entity", "sensor"), ("source", "readings"), ("views", "machine_health"),
     ("feature-view", "machine_health"), ("Feature service", "machine_health_v1")],
)  # fmt: skip
def test_list_takes_a_kind(ask: Run, kind: str, name: str) -> None:
    """A kind is named in the plural or the singular; JSON gives the definitions."""
    [found] = ask("list", kind, "--json").json()

    assert found["name"] == name
    assert ask("list", kind).out.split()[0] == "name"


def test_list_of_nothing(ask: Run) -> None:
    """Where nothing of a kind is applied, list says so, and JSON is an empty list."""
    assert ask("list", "aliases").out.startswith("Nothing of that kind is applied.")
    assert ask("list", "aliases", "--json").json() == []


def test_describe_a_view(ask: Run) -> None:
    """A view is described by its settings, keys, features, versions and users."""
    record = ask("describe", "machine_health", "--json").json()

    assert ask("describe", "machine_health") == Result(0, DESCRIBED)
    assert (record["kind"], record["source"], record["is_serving"]) == ("feature view", "readings", True)
    assert record["used_by"] == [{"kind": "feature service", "name": "machine_health_v1"}]
    assert [(version["number"], version["watermark"]) for version in record["versions"]] == [(1, "2024-01-03T00:00:00Z")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sensor", ["sensor  entity", "sensor_id  String", "feature view  machine_health"]),
        ("readings", ["readings  source", "event time    measured_at", "feature view  machine_health"]),
        ("machine_health_v1", ["machine_health_v1  feature service", "machine_health__restarts     Int64"]),
    ],
)
def test_describe_other_kinds(ask: Run, name: str, expected: list[str]) -> None:
    """Entities, sources and services are described with what they hold and who uses them."""
    assert [line for line in expected if line not in ask("describe", name).out.splitlines()] == []


def test_describe_aliases_projections_and_sql(run: Run, fresh: Path) -> None:
    """An alias says which columns it renames, a service lists its output columns, a view its SELECT."""
    features = (
        '[machine_health[["restarts"]], machine_health.alias("other", join_keys={"sensor_id": "other_id"}), "same:vibration"]'
    )
    sql = 'sql="""\n        SELECT *\n          FROM readings\n    """'
    alias = ("# What one version", 'same = machine_health.alias("same", join_keys={})\n#')
    apply(fresh, ("[machine_health]", features), ('refresh="1h"', f'{sql}, refresh="1h"'), alias)

    view, other = run("describe", "machine_health", repo=fresh).out, run("describe", "other", repo=fresh).out
    outputs = run("describe", "machine_health_v1", "--json", repo=fresh).json()["outputs"]

    assert "\nSQL\n  SELECT *\n    FROM readings\n\nJoin keys\n" in view
    assert [line.split()[-1] for line in view.splitlines()[-3:]] == ["other", "same", "machine_health_v1"]
    assert "join keys  sensor_id = other_id\n" in other
    assert outputs == {
        "machine_health__restarts": "Int64", "other__temperature": "Float64", "other__vibration": "Float64",
        "other__restarts": "Int64", "same__vibration": "Float64",
    }  # fmt: skip
    assert run("list", "aliases", repo=fresh).out.splitlines()[1].split()[:3] == ["other", "machine_health", "sensor_id"]


def test_describe_says_what_does_not_serve_yet(run: Run, copied: Path) -> None:
    """An object that waits for a candidate version says so."""
    apply(copied, NEW_TTL)

    assert "Not serving as described here" in run("describe", "machine_health", repo=copied).out
    assert run("describe", "machine_health", "--json", repo=copied).json()["is_serving"] is False


def test_describe_asks_for_the_kind_of_a_name_that_several_have(run: Run, fresh: Path) -> None:
    """A name of several objects needs --kind; the message says which kinds there are."""
    apply(fresh, ('"machine_health_v1"', '"machine_health"'))

    found = run("describe", "machine_health", "--json", repo=fresh).error()
    chosen = run("describe", "machine_health", "--kind", "service", "--json", repo=fresh).json()

    assert found["message"] == "'machine_health' is the name of several objects; choose with --kind view, --kind service"
    assert chosen["kind"] == "feature service"


def test_describe_names_the_nearest(ask: Run) -> None:
    """An unknown name gives the nearest known one."""
    found = ask("describe", "machine_helth", "--json").error()

    assert (found["code"], found["name"], found["nearest"][0]) == ("not-found", "machine_helth", "machine_health")
    assert "did you mean 'machine_health'?" in ask("describe", "machine_helth").err
