from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from rich.text import Text

from featurestore import FeatureStore
from featurestore.cli import example, failures, main, rendering
from featurestore.cli.invocation import shell_line

COMMANDS = (
    "init plan apply materialize status list describe get-online get-historical serve stop teardown".split()  # as DESIGN.md has them
)
PROGRAM = [sys.executable, "-P", "-m", "featurestore"]
SPINE = "SELECT 'pump_1' AS sensor_id, TIMESTAMP '2024-01-02 12:00:00' AS event_timestamp"
VALUES = {"temperature": 62.22, "vibration": 0.2, "restarts": 1}


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return stdout as JSON; it succeeded, and stderr is empty."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    def error(self) -> dict[str, Any]:
        """Return the error in stderr, which is all that there is."""
        assert (self.code, self.out) == (1, "")
        found: dict[str, Any] = json.loads(self.err)["error"]
        return found


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process."""
    monkeypatch.delenv("FEATURESTORE_REPO", raising=False)

    def call(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        return Result(code, *capsys.readouterr())

    return call


def in_process(*arguments: str | Path, cwd: Path, **variables: str) -> Result:
    """Run a command line in a process of its own."""
    finished = subprocess.run(
        [*PROGRAM, *map(str, arguments)], cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    return Result(finished.returncode, finished.stdout, finished.stderr)


def on_terminal(*arguments: str | Path, cwd: Path, columns: int = 120, typed: str = "", **variables: str) -> Result:
    """Run a command line on a terminal, which shows stdout and stderr alike, with something typed ahead."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    os.write(terminal, typed.encode())
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", **variables}
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], cwd=cwd, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
    )
    os.close(side)
    shown = b""
    with open(terminal, "rb", buffering=0) as screen:  # noqa: PTH123 (a descriptor)
        try:
            while chunk := screen.read(65536):
                shown += chunk
        except OSError:  # Linux ends a terminal so
            pass
    return Result(process.wait(30), shown.decode(), "")


def make_plant(folder: Path) -> None:
    """Write the example and apply it."""
    example.create(folder)
    with FeatureStore(folder) as store:
        store.apply()


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repo that `init` makes, applied and materialized; tests only read it."""
    folder = tmp_path_factory.mktemp("cli") / "plant"
    make_plant(folder)
    with FeatureStore(folder) as store:
        store.materialize()
        yield folder
        store.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """A repo of one's own as `init` makes it, applied and not materialized."""
    folder = tmp_path / "fresh"
    make_plant(folder)
    yield folder
    if (folder / "featurestore.toml").exists():
        with FeatureStore(folder) as store:
            store.stop()


def edit(folder: Path, *changes: tuple[str, str], file: str = "definitions.py") -> None:
    """Replace texts in a file, each of which must be there."""
    text = (folder / file).read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / file).write_text(text)


def read_readings(folder: Path) -> pa.Table:
    """Return the example's data."""
    return pq.read_table(folder / "data/readings.parquet")


# The program


def test_help_lists_every_command(run: Run) -> None:
    """`featurestore`, alone or with --help, lists all commands and succeeds."""
    for arguments in ([], ["--help"], ["-h"]):
        result = run(*arguments)
        assert result.code == 0
        assert [name for name in COMMANDS if not re.search(rf"^│ {name} ", result.out, re.MULTILINE)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(run: Run, command: str) -> None:
    """Each command's help shows how it is called, and that it can answer in JSON."""
    result = run(command, "--help")

    assert result.code == 0
    assert f"Example: featurestore {command}" in result.out
    assert "--json" in result.out


def test_the_module_runs(tmp_path: Path) -> None:
    """`python -m featurestore` is the same program."""
    result = in_process("--version", cwd=tmp_path)

    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("featurestore")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plam"], "No such command 'plam'. Did you mean 'plan'?"),
        (["plan", "--foo"], "No such option: --foo"),
        (["get-online"], "Missing argument 'FEATURES'."),
        (["get-historical", "x", "--spine", "y", "--incomplete", "z"], "--incomplete"),
        (["get-historical", "x", "--spine", "y", "--limit", "0"], "--limit"),
        (["serve", "--port", "http"], "'http'"),
        (["list", "thing"], "no kind 'thing'; known: entities, sources, views, aliases, services"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str], message: str) -> None:
    """A command line that cannot be understood gives one message with the usage, as JSON too, and exit code 2."""
    result = run(*arguments)
    as_json = run(*arguments, "--json")

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert message in result.err
    assert "Usage: featurestore" in result.err
    assert (as_json.code, as_json.out) == (2, "")
    assert json.loads(as_json.err)["error"]["code"] == "usage"
    assert message in json.loads(as_json.err)["error"]["message"]


# Which repo


def test_the_repo_is_named_before_or_after_the_command(run: Run, plant: Path) -> None:
    """--repo and --json stand before the command or after it."""
    before = run("--repo", plant, "--json", "list").json()

    assert run("list", "--repo", plant, "--json").json() == before
    assert {each["name"] for each in before} == {"sensor", "readings", "machine_health", "machine_health_v1"}


def test_the_repo_is_named_by_the_environment_or_is_the_current_folder(
    run: Run, plant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --repo it is FEATURESTORE_REPO, and without that the current folder; --repo wins."""
    monkeypatch.chdir(plant)
    assert run("list").code == 0
    monkeypatch.setenv("FEATURESTORE_REPO", str(tmp_path))
    assert run("list").code == 1
    assert run("list", "--repo", plant).code == 0


def test_no_repo(run: Run, tmp_path: Path) -> None:
    """Without featurestore.toml the message says how to name a repo or start one."""
    result = run("--repo", tmp_path, "plan")

    assert (result.code, result.out) == (1, "")
    assert f"no featurestore.toml in {tmp_path}" in result.err
    assert "--repo" in result.err
    assert "featurestore init" in result.err
    assert run("--repo", tmp_path, "plan", "--json").error()["code"] == "settings"


# init


def test_what_init_prints_next_works_verbatim(tmp_path: Path) -> None:
    """The commands that init prints, given to a shell as they are, work in this order."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "featurestore").write_text(f'#!/bin/sh\nexec {shell_line(*PROGRAM)} "$@"\n')
    (programs / "featurestore").chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}

    made = in_process("init", "my plant", cwd=tmp_path)
    lines = made.out.partition("Next:\n")[2]
    shell = subprocess.run(["/bin/sh", "-e"], input=lines, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert made.code == 0
    assert [line.split()[:2] for line in lines.splitlines()] == [
        ["cd", "'my"], *(["featurestore", command] for command in ("plan", "apply", "materialize", "status")),
        ["featurestore", "get-online"], ["featurestore", "get-historical"], ["featurestore", "stop"],
    ]  # fmt: skip
    assert (shell.returncode, shell.stderr) == (0, "")
    assert re.search(r"^pump_1 +58\.22 +0\.215 +2$", shell.stdout, re.MULTILINE)
    assert re.search(r"^pump_3 +OUTSIDE_MAX_AGE", shell.stdout, re.MULTILINE)
    assert re.search(r"^pump_2 +2024-01-02T23:00:00Z +61\.76 +0\.338 +3$", shell.stdout, re.MULTILINE)
    assert "server is stopped" in shell.stdout


def test_init_says_what_it_wrote(run: Run, tmp_path: Path) -> None:
    """With --json init names the repo, the project, the files and the next commands."""
    record = run("init", tmp_path / "a" / "b", "--json").json()

    files = ["featurestore.toml", "definitions.py", "data/readings.parquet", ".gitignore"]
    assert record["repo"] == str(tmp_path / "a" / "b")
    assert (record["project"], record["files"]) == ("b", files)
    assert record["next"][:2] == [f"cd {tmp_path}/a/b", "featurestore plan"]
    assert [name for name in files if not (tmp_path / "a/b" / name).is_file()] == []


def test_init_in_the_current_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder init uses the current one, and no cd is needed."""
    monkeypatch.chdir(tmp_path)

    assert run("init", "--json").json()["next"][0] == "featurestore plan"
    assert (tmp_path / "featurestore.toml").exists()


def test_init_is_repeatable(tmp_path: Path) -> None:
    """Two repos made by init have the same bytes, and the same data on every machine."""
    for name in ("one", "two"):
        example.create(tmp_path / name / "plant")
    files = [[(file.name, file.read_bytes()) for file in sorted((tmp_path / name).rglob("*.*"))] for name in ("one", "two")]

    assert files[0] == files[1]
    assert read_readings(tmp_path / "one/plant").slice(0, 2).to_pydict() == {
        "sensor_id": ["pump_1", "pump_1"],
        "measured_at": pa.array([1704067200000000, 1704070800000000], pa.timestamp("us", "UTC")).to_pylist(),
        "temperature": [60.0, 62.25],
        "vibration": [0.2, 0.209],
        "restarts": [0, 0],
    }


@pytest.mark.parametrize(
    ("folder", "project"),
    [("plant", "plant"), ("My plant!", "My_plant"), ("2024-plant", "project_2024-plant"), ("été", "t"), ("日本", "project")],
)
def test_init_makes_a_project_name_of_the_folder(tmp_path: Path, folder: str, project: str) -> None:
    """A project's name is the folder's, without what a name cannot have."""
    assert example.create(tmp_path / folder)[0] == project
    with FeatureStore(tmp_path / folder) as store:
        assert store.settings.project == project


def test_init_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    """Where files exist, init names them and writes none."""
    (tmp_path / "definitions.py").write_text("mine")
    (tmp_path / "featurestore.toml").write_text("mine")

    found = run("init", tmp_path, "--json").error()

    assert found["code"] == "input"
    assert found["message"].startswith(f"featurestore.toml, definitions.py exists already in {tmp_path}")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"definitions.py": "mine", "featurestore.toml": "mine"}


def test_init_leaves_nothing_half_done(run: Run, tmp_path: Path) -> None:
    """If a file cannot be written, those before it are removed again, and nothing else."""
    (tmp_path / "data").write_text("no folder")

    result = run("init", tmp_path)

    assert result.code == 1
    assert result.err.startswith(f"error: cannot write the example into {tmp_path}: ")
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_init_respects_what_is_there(run: Run, tmp_path: Path) -> None:
    """An existing .gitignore stays as it is, and other Python files, which would be loaded, are named."""
    (tmp_path / ".gitignore").write_text("*.tmp\n")
    (tmp_path / "setup.py").write_text("")

    result = run("init", tmp_path)

    assert result.code == 0
    assert (tmp_path / ".gitignore").read_text() == "*.tmp\n"
    assert "add .featurestore/ to it" in result.err
    assert "setup.py" in result.err


# plan, apply


def test_plan_shows_what_is_new(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan lists what is created and the versions to materialize, says what to run next, and changes nothing."""
    example.create(tmp_path)
    monkeypatch.chdir(tmp_path)

    result = run("plan")
    record = run("plan", "--json").json()

    assert result == Result(
        0,
        "+ entity          sensor\n+ source          readings\n+ feature view    machine_health\n+ feature service machine_health_v1\n"
        "\nNew versions\n+ machine_health v1: materialize from the beginning of its source\n"
        "\n4 to create, 0 to change, 0 to remove; 1 new version\n\nNext: featurestore apply\n",
        "",
    )
    assert record["revision"] == 0
    assert [change["action"] for change in record["changes"]] == ["create"] * 4
    assert run("plan").out == result.out


def test_an_empty_plan(run: Run, plant: Path) -> None:
    """What is applied already is nothing to change, for plan and apply."""
    assert run("--repo", plant, "plan") == Result(0, "Nothing to change.\n", "")
    assert run("--repo", plant, "apply") == Result(0, "Nothing to change.\n", "")
    assert run("--repo", plant, "apply", "--json").json()["applied"] is False


def test_plan_shows_changes_field_by_field(run: Run, fresh: Path) -> None:
    """A change shows each field before and after; lists show what leaves and what comes; so do the version's reasons."""
    edit(
        fresh,
        ('ttl="12h"', 'ttl="2d"'),
        (', Field("restarts", Int64)', ""),
        ("machine_health_v1", "machine_health_v2"),
        ('description="A sensor on a machine"', 'owner="team"'),
    )

    result = run("--repo", fresh, "plan")

    fields = (
        '    fields:\n        {"name": "temperature", "type": "Float64"}\n        {"name": "vibration", "type": "Float64"}\n'
        '      - {"name": "restarts", "type": "Int64"}\n    ttl: 12h -> 2d\n'
    )
    assert result.out == (
        '~ entity          sensor\n    description: A sensor on a machine -> ""\n    owner: "" -> team\n'
        f"~ feature view    machine_health\n{fields}- feature service machine_health_v1\n+ feature service machine_health_v2\n"
        "\nNew versions\n~ machine_health v2 replaces v1: materialize from the beginning of its source until it covers what version 1 "
        f"covers; then it takes over\n{fields}\n1 to create, 2 to change, 1 to remove; 1 new version\n\n"
        f"Next: featurestore --repo {fresh} apply\n"
    )


def test_plan_compares_long_texts_by_line(run: Run, fresh: Path) -> None:
    """A changed SELECT shows the lines that differ."""
    edit(fresh, ('refresh="1h"', 'sql="""\nSELECT *\nFROM readings\nWHERE temperature > 0""", refresh="1h"'))
    with FeatureStore(fresh) as store:
        store.apply()
    edit(fresh, ("> 0", "> 10"))

    assert (
        "    sql:\n        \n        SELECT *\n        FROM readings\n      - WHERE temperature > 0\n      + WHERE temperature > 10\n"
        in ("\n".join(line or " " * 8 for line in run("--repo", fresh, "plan").out.split("\n")))
    )


def test_plan_shows_dropped_candidates_and_warnings(run: Run, plant: Path, tmp_path: Path) -> None:
    """A candidate that is overtaken, and a view that is served online without refresh, are said."""
    folder = tmp_path / "plant"
    shutil.copytree(plant, folder, ignore=shutil.ignore_patterns("online"))
    original = (folder / "definitions.py").read_text()
    edit(folder, ('    refresh="1h",\n', ""))
    applied = run("--repo", folder, "apply")
    (folder / "definitions.py").write_text(original)

    result = run("--repo", folder, "plan")

    assert "warning: view 'machine_health' is served online without refresh" in applied.out
    assert "- the candidate version of machine_health that never served is dropped\n" in result.out
    assert run("--repo", folder, "plan", "--json").json()["dropped_candidates"] == ["machine_health"]


def test_apply_shows_the_plan_and_what_is_next(run: Run, tmp_path: Path) -> None:
    """`apply` shows what the plan showed, applies it, and names the views to materialize."""
    example.create(tmp_path / "a plant")

    planned, result = (run("--repo", tmp_path / "a plant", command) for command in ("plan", "apply"))

    shown = planned.out.partition("\nNext:")[0]
    assert result == Result(
        0, f"{shown}\nApplied.\n\nNext: featurestore --repo '{tmp_path}/a plant' materialize machine_health\n", ""
    )
    assert run("--repo", tmp_path / "a plant", "plan").out == "Nothing to change.\n"


def test_apply_in_json_is_the_plan(run: Run, tmp_path: Path) -> None:
    """With --json apply answers with the plan and whether it was applied."""
    example.create(tmp_path)

    planned = run("--repo", tmp_path, "plan", "--json").json()

    assert run("--repo", tmp_path, "apply", "--json").json() == {"applied": True, **planned}


@pytest.mark.parametrize(("typed", "is_applied"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_apply_asks_before_it_removes_something(fresh: Path, typed: str, is_applied: bool) -> None:
    """On a terminal a removal is applied only if the answer is yes."""
    edit(fresh, ("machine_health_v1 = Feat", "renamed = Feat"), ('"machine_health_v1", f', '"machine_health_v2", f'))

    result = on_terminal("apply", cwd=fresh, typed=typed)

    with FeatureStore(fresh) as store:
        assert ("feature service", "machine_health_v2") in store.applied().specs or not is_applied
        assert store.plan().is_empty is is_applied
    assert "Apply this? [y/N]:" in result.out
    assert result.code == (0 if is_applied else 1)
    assert ("nothing was applied" in result.out) is not is_applied


@pytest.mark.parametrize("arguments", [["--yes"], ["-y"]])
def test_apply_does_not_ask_with_yes(fresh: Path, arguments: list[str]) -> None:
    """--yes answers the question in advance, for a replaced version too."""
    edit(fresh, ('ttl="12h"', 'ttl="2d"'))

    assert on_terminal("apply", *arguments, cwd=fresh).code == 0
    with FeatureStore(fresh) as store:
        assert store.plan().is_empty


def test_apply_asks_only_for_what_is_lost_and_only_on_a_terminal(run: Run, fresh: Path, tmp_path: Path) -> None:
    """Creations are applied at once, and without a terminal removals too."""
    example.create(tmp_path / "new")
    edit(fresh, ("machine_health_v1", "machine_health_v2"))

    assert on_terminal("apply", cwd=tmp_path / "new").code == 0
    assert run("--repo", fresh, "apply").code == 0


def test_all_faults_are_reported(run: Run, fresh: Path) -> None:
    """Faulty definitions give every fault with its place, as text and as JSON."""
    edit(fresh, ('ttl="12h"', 'ttl="12 hours"'), ('delay="5m"', 'delay="5"'), ("join_keys={", "keys={"))

    result = run("--repo", fresh, "plan")
    found = run("--repo", fresh, "apply", "--json").error()

    assert result.code == 1
    assert result.err.startswith("error: 3 faults in the definitions:\n  definitions.py:")
    assert [fault["object"] for fault in found["faults"]] == ["sensor", "readings", "machine_health"] or len(found["faults"]) == 2
    assert found["code"] == "definition"


# list, describe


def test_list_shows_what_is_applied(run: Run, plant: Path) -> None:
    """`list` gives a table for each kind."""
    assert run("--repo", plant, "list") == Result(
        0,
        "Entities\n"
        "name    join keys         description\n"
        "sensor  sensor_id String  A sensor on a machine\n\n"
        "Sources\n"
        "name      path                   event time   delay  description\n"
        "readings  data/readings.parquet  measured_at  5m     One reading an hour of each sensor\n\n"
        "Views\n"
        "name            entities  source    features  refresh  ttl  description\n"
        "machine_health  sensor    readings         3  1h       12h  The latest reading of a sensor\n\n"
        "Services\n"
        "name               views           description\n"
        "machine_health_v1  machine_health  Will this machine fail within a day?\n",
        "",
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("entities", "sensor"), ("entity", "sensor"), ("sources", "readings"), ("source", "readings"), ("views", "machine_health"),
        ("feature-view", "machine_health"), ("services", "machine_health_v1"), ("Feature service", "machine_health_v1"),
    ],
)  # fmt: skip
def test_list_takes_a_kind(run: Run, plant: Path, kind: str, name: str) -> None:
    """A kind is named in the plural or the singular; JSON gives the definitions."""
    [found] = run("--repo", plant, "list", kind, "--json").json()

    assert found["name"] == name
    assert run("--repo", plant, "list", kind).out.split()[0] == "name"


def test_list_of_nothing(run: Run, fresh: Path) -> None:
    """Where nothing of a kind is applied, list says so, and JSON is an empty list."""
    assert run("--repo", fresh, "list", "aliases").out.startswith("Nothing of that kind is applied.")
    assert run("--repo", fresh, "list", "aliases", "--json").json() == []


def test_describe_a_view(run: Run, plant: Path) -> None:
    """A view is described by its settings, keys, features, versions and users."""
    assert run("--repo", plant, "describe", "machine_health").out == (
        "machine_health  feature view\nThe latest reading of a sensor\n\n"
        "setting   value\nentities  sensor\nonline    true\nrefresh   1h\nsource    readings\nttl       12h\n\n"
        "Join keys\nname       type\nsensor_id  String\n\n"
        "Features\nname         type\ntemperature  Float64\nvibration    Float64\nrestarts     Int64\n\n"
        "Versions\nversion  state    created               watermark\n"
        "      1  serving  2024-01-03T00:00:00Z  2024-01-03T00:00:00Z\n\n"
        "Used by\nkind             name\nfeature service  machine_health_v1\n"
    )
    record = run("--repo", plant, "describe", "machine_health", "--json").json()
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
def test_describe_other_kinds(run: Run, plant: Path, name: str, expected: list[str]) -> None:
    """Entities, sources and services are described with what they hold and who uses them."""
    lines = run("--repo", plant, "describe", name).out.splitlines()

    assert [line for line in expected if line not in lines] == []


def test_describe_aliases_projections_and_sql(run: Run, fresh: Path) -> None:
    """An alias says which columns it renames, a service lists its output columns, a view its SELECT."""
    edit(
        fresh,
        ('    refresh="1h"', '    sql="""\n        SELECT *\n          FROM readings\n    """,\n    refresh="1h"'),
        (
            "features=[machine_health]",
            'features=[machine_health[["restarts"]], machine_health.alias("neighbour", join_keys={"sensor_id": "other_id"}),'
            ' "neighbour2:vibration"]',
        ),
        ("# What one version", 'neighbour2 = machine_health.alias("neighbour2", join_keys={})\n#'),
    )
    with FeatureStore(fresh) as store:
        store.apply()

    record = run("--repo", fresh, "describe", "machine_health_v1", "--json").json()
    assert record["outputs"] == {
        "machine_health__restarts": "Int64",
        "neighbour__temperature": "Float64",
        "neighbour__vibration": "Float64",
        "neighbour__restarts": "Int64",
        "neighbour2__vibration": "Float64",
    }
    assert "join keys  sensor_id = other_id\n" in run("--repo", fresh, "describe", "neighbour").out
    view = run("--repo", fresh, "describe", "machine_health").out
    assert "\nSQL\n  SELECT *\n    FROM readings\n\nJoin keys\n" in view
    assert view.endswith(
        "kind             name\nalias            neighbour\nalias            neighbour2\nfeature service  machine_health_v1\n"
    )
    assert run("--repo", fresh, "list", "aliases").out.splitlines()[1].split()[:5] == (
        ["neighbour", "machine_health", "sensor_id", "=", "other_id"]
    )


def test_describe_says_what_does_not_serve_yet(run: Run, plant: Path, tmp_path: Path) -> None:
    """An object that waits for a candidate version says so."""
    folder = tmp_path / "plant"
    shutil.copytree(plant, folder, ignore=shutil.ignore_patterns("online"))
    edit(folder, ('ttl="12h"', 'ttl="2d"'))
    with FeatureStore(folder) as store:
        store.apply()

    assert "Not serving as described here" in run("--repo", folder, "describe", "machine_health").out
    assert run("--repo", folder, "describe", "machine_health", "--json").json()["is_serving"] is False


def test_describe_asks_for_the_kind_of_a_name_that_several_have(run: Run, fresh: Path) -> None:
    """A name of several objects needs --kind; the message says which kinds there are."""
    edit(fresh, ('"machine_health_v1"', '"machine_health"'))
    with FeatureStore(fresh) as store:
        store.apply()

    found = run("--repo", fresh, "describe", "machine_health", "--json").error()
    assert found["message"] == "'machine_health' is the name of several objects; choose with --kind view, --kind service"
    assert run("--repo", fresh, "describe", "machine_health", "--kind", "service", "--json").json()["kind"] == "feature service"


def test_describe_names_the_nearest(run: Run, plant: Path) -> None:
    """An unknown name gives the nearest known one."""
    found = run("--repo", plant, "describe", "machine_helth", "--json").error()

    assert (found["code"], found["name"], found["nearest"][0]) == ("not-found", "machine_helth", "machine_health")
    assert "did you mean 'machine_health'?" in run("--repo", plant, "describe", "machine_helth").err


# materialize, status


def test_materialize_summarizes_its_runs(run: Run, fresh: Path) -> None:
    """A run says which interval it computed, how many rows, and what it wrote online; JSON gives the reports."""
    first = run("--repo", fresh, "materialize")
    [second] = run("--repo", fresh, "materialize", "machine_health", "--json").json()["reports"]

    header, row = first.out.splitlines()
    assert header.split() == ["view", "version", "from", "to", "rows", "skipped", "late", "written", "deleted", "seconds"]
    assert row.split()[:-1] == ["machine_health", "1", "the", "beginning", "2024-01-03T00:00:00Z", "126", "0", "0", "3", "0"]
    assert (second["view"], second["start"], second["rows"], second["late"]) == ("machine_health", "2024-01-03T00:00:00Z", 0, 0)
    assert second["seconds"] > 0


def test_materialize_takes_an_interval(run: Run, fresh: Path) -> None:
    """--start and --end bound the visible time that is computed."""
    assert run("--repo", fresh, "materialize", "--end", "2024-01-01T12:00:00Z").code == 0

    [report] = run("--repo", fresh, "materialize", "--start", "2024-01-01T10:00", "--end", "2024-01-02", "--json").json()["reports"]

    assert (report["start"], report["end"], report["rows"]) == ("2024-01-01T10:00:00Z", "2024-01-02T00:00:00Z", 14 * 3)


def test_materialize_says_what_it_skipped(run: Run, fresh: Path) -> None:
    """Rows without a key or an event time are counted, and the summary says which."""
    table = read_readings(fresh)
    lame = {"sensor_id": [None, None, "pump_1"], "measured_at": [*table["measured_at"][:2].to_pylist(), None]}
    rest = {name: [1.0] * 3 for name in ("temperature", "vibration")} | {"restarts": [1] * 3}
    pq.write_table(pa.concat_tables([table, pa.table(lame | rest, table.schema)]), fresh / "data/readings.parquet")

    result = run("--repo", fresh, "materialize")

    assert result.out.splitlines()[1].split()[5:7] == ["126", "3"]
    assert "note: machine_health: skipped 2 source rows with a null join key\n" in result.out
    assert "note: machine_health: skipped 1 source row with no event time\n" in result.out


def test_materialize_says_what_came_too_late(run: Run, fresh: Path) -> None:
    """Rows below the watermark that the table lacks are counted, and the summary says that lookback heals them."""
    table = read_readings(fresh)
    pq.write_table(table.slice(2), fresh / "data/readings.parquet")
    run("--repo", fresh, "materialize", "--end", "2024-01-02T12:00:00Z")
    pq.write_table(table, fresh / "data/readings.parquet")

    result = run("--repo", fresh, "materialize")

    assert result.out.splitlines()[1].split()[7] == "2"
    assert "2 source rows came too late" in result.out
    assert "Set lookback on the view" in result.out
    assert f"featurestore --repo {fresh} materialize machine_health --start TIME" in result.out


def test_materialize_refuses_a_gap(run: Run, fresh: Path) -> None:
    """A run that would leave source rows out is refused, and nothing is materialized."""
    found = run("--repo", fresh, "materialize", "--start", "2024-01-02", "--json").error()

    assert found["code"] == "gap"
    assert "begin at or before" in found["message"]


def test_materialize_without_its_file(run: Run, fresh: Path) -> None:
    """A Parquet file that is gone is named, with its source."""
    (fresh / "data/readings.parquet").unlink()

    found = run("--repo", fresh, "materialize", "--json").error()

    assert found["code"] == "source"
    assert f"source 'readings': no Parquet file at {fresh}/data/readings.parquet" in found["message"]


def test_materialize_reports_views_that_failed_and_those_that_are_done(run: Run, fresh: Path) -> None:
    """If some of several views fail, the others' summary comes first, then each failure; exit code 1."""
    shutil.copy(fresh / "data/readings.parquet", fresh / "data/lost.parquet")
    edit(
        fresh,
        (
            "# What one version",
            'lost = FileSource("lost", path="data/lost.parquet", event_time="measured_at")\n'
            'lost_view = FeatureView("lost_view", entities=[sensor], source=lost, fields={"vibration": Float64}, refresh="1h")\n#',
        ),
    )
    with FeatureStore(fresh) as store:
        store.apply()
    (fresh / "data/lost.parquet").unlink()

    result = run("--repo", fresh, "materialize")
    as_json = run("--repo", fresh, "materialize", "--json")

    assert (result.code, as_json.code) == (1, 1)
    assert result.out.splitlines()[1].startswith("machine_health ")
    assert "error: 1 of 2 views failed:\n  lost_view: source 'lost'" in result.err
    assert [report["view"] for report in json.loads(as_json.out)["reports"]] == ["machine_health"]
    assert json.loads(as_json.err)["error"]["failures"]["lost_view"]["code"] == "source"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["machine_helth"], "no feature view 'machine_helth'; did you mean 'machine_health'?"),
        (["--start", "yesterday"], "start: expected a timestamp such as 2013-06-01T12:00:00Z, got 'yesterday'"),
        (["--end", "2030-01-01"], "end 2030-01-01T00:00:00Z lies in the future; it is 2024-01-03T00:00:00Z now"),
    ],
)
def test_materialize_refuses_what_makes_no_sense(run: Run, plant: Path, arguments: list[str], message: str) -> None:
    """Unknown views and impossible times are refused with what would be right."""
    assert run("--repo", plant, "materialize", *arguments) == Result(1, "", f"error: {message}\n")


def test_status_shows_how_far_each_view_is(run: Run, plant: Path) -> None:
    """A line for each living version: its state, watermark, lag, rows, online load and last run."""
    result = run("--repo", plant, "status")
    record = run("--repo", plant, "status", "--json").json()

    assert result.out == (
        f"plant in {plant}, now 2024-01-03T00:00:00Z\n"
        "registry sqlite:///.featurestore/registry.db, online store embedded, running\n\n"
        "view            version  state    watermark             behind  rows  files  online  last run\n"
        "machine_health        1  serving  2024-01-03T00:00:00Z  0s       126      1  loaded  completed\n"
    )
    assert record["online"] == {"url": "embedded", "is_running": True}
    assert record["views"] == [
        {
            "view": "machine_health", "version": 1, "state": "serving", "watermark": "2024-01-03T00:00:00Z", "behind_seconds": 0,
            "is_overdue": False, "offline": {"rows": 126, "files": 1, "error": None}, "online": "loaded",
            "last_run": {
                "number": 1, "status": "completed", "started_at": "2024-01-03T00:00:00Z", "finished_at": "2024-01-03T00:00:00Z",
                "error": None,
            },
        }
    ]  # fmt: skip


def test_status_before_anything_happened(run: Run, tmp_path: Path, fresh: Path) -> None:
    """Before apply and before the first run, status says what to do next, and starts no server."""
    example.create(tmp_path / "new")

    assert run("--repo", tmp_path / "new", "status").out.endswith(
        f"online store embedded, not running\n\nNo view is applied. Next: featurestore --repo {tmp_path}/new apply\n"
    )
    view, *_ = run("--repo", fresh, "status", "--json").json()["views"]
    assert (view["watermark"], view["behind_seconds"], view["online"], view["last_run"]) == (None, None, "not loaded", None)
    assert f"Next: featurestore --repo {fresh} materialize" in run("--repo", fresh, "status").out
    assert not (fresh / ".featurestore/online").exists()


def test_status_shows_lag_failures_and_old_versions(run: Run, fresh: Path) -> None:
    """`status` says how far a view is behind and why its last run failed; --all shows replaced versions."""
    run("--repo", fresh, "materialize", "--end", "2024-01-02T20:30:00Z")
    edit(fresh, ('ttl="12h"', 'ttl="2d"'))
    run("--repo", fresh, "apply")
    run("--repo", fresh, "materialize", "--end", "2024-01-02T20:30:00Z")
    url, os.environ["FEATURESTORE_ONLINE__URL"] = os.environ.get("FEATURESTORE_ONLINE__URL"), "redis://127.0.0.1:1"
    try:
        assert run("--repo", fresh, "materialize", "--start", "2024-01-02", "--end", "2024-01-02T20:30:00Z").code == 1
    finally:
        del os.environ["FEATURESTORE_ONLINE__URL"]
        assert url is None

    result = run("--repo", fresh, "status")
    [view] = run("--repo", fresh, "status", "--json").json()["views"]

    assert (view["behind_seconds"], view["is_overdue"], view["online"]) == (3 * 3600 + 1800, True, "behind")
    assert re.search(
        r"^machine_health +2 +serving +2024-01-02T20:30:00Z +3h 30m +\d+ +\d+ +behind +failed$", result.out, re.MULTILINE
    )
    assert "machine_health v2: the online store redis://127.0.0.1:1 does not answer" in result.out
    versions = run("--repo", fresh, "status", "--all", "--json").json()["views"]
    assert [(each["version"], each["state"]) for each in versions] == [(1, "replaced"), (2, "serving")]


def test_status_survives_a_broken_table(run: Run, fresh: Path) -> None:
    """A table that cannot be read is reported in its line; the command succeeds."""
    run("--repo", fresh, "materialize")
    [log] = (fresh / ".featurestore/offline").rglob("00000000000000000001.json")
    log.write_text("broken")

    [view] = run("--repo", fresh, "status", "--json").json()["views"]

    assert view["offline"]["rows"] is None
    assert "cannot read the table of view 'machine_health'" in view["offline"]["error"]
    assert "machine_health v1: cannot read the table" in run("--repo", fresh, "status").out


# get-online


def test_get_online_shows_a_row_for_each_entity(run: Run, plant: Path) -> None:
    """Features stand beside their keys; where there is no value stands the reason."""
    result = run("--repo", plant, "get-online", "machine_health_v1", "-k", "sensor_id=pump_1,pump_3,pump_9,")

    assert result == Result(
        0,
        "sensor_id  machine_health__temperature  machine_health__vibration  machine_health__restarts\n"
        "pump_1                           58.22                      0.215                         2\n"
        "pump_3                 OUTSIDE_MAX_AGE            OUTSIDE_MAX_AGE           OUTSIDE_MAX_AGE\n"
        "pump_9                       NOT_FOUND                  NOT_FOUND                 NOT_FOUND\n"
        "null                         NOT_FOUND                  NOT_FOUND                 NOT_FOUND\n"
        "OUTSIDE_MAX_AGE: the newest value is older than the view's ttl.\n",
        "",
    )


def test_get_online_in_json(run: Run, plant: Path) -> None:
    """JSON gives features by column, and by view the statuses and event times."""
    found = run("--repo", plant, "get-online", "machine_health_v1", "--key", "sensor_id=pump_1", "-k", "sensor_id=pump_3", "--json")

    assert found.json() == {
        "features": {
            "machine_health__temperature": [58.22, None],
            "machine_health__vibration": [0.215, None],
            "machine_health__restarts": [2, None],
        },
        "statuses": {"machine_health": ["PRESENT", "OUTSIDE_MAX_AGE"]},
        "event_times": {"machine_health": ["2024-01-02T23:00:00Z", "2024-01-02T05:00:00Z"]},
    }


def test_get_online_takes_a_list_of_features(run: Run, plant: Path) -> None:
    """Features separated by commas stand for a service."""
    arguments = ["get-online", "machine_health:restarts, machine_health:vibration", "-k", "sensor_id=pump_2", "--json"]

    assert run("--repo", plant, *arguments).json()["features"] == {
        "machine_health__restarts": [3],
        "machine_health__vibration": [0.347],
    }


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repo whose key has a column of each type but floats, in reverse of the features' order."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "featurestore.toml").write_text('project = "typed"\n')
    (folder / "definitions.py").write_text(
        "from featurestore import *\nfrom featurestore.types import *\n"
        'e = Entity("e", join_keys={"i": Int64, "s": Int32, "b": Bool, "d": Date, "t": Timestamp, "x": Bytes, "n": String})\n'
        'f = FileSource("f", path="f.parquet")\n'
        'v = FeatureView("v", entities=[e], source=f, fields={"blob": Bytes, "list": Array(Float64), "day": Date, "at": Timestamp})\n'
        'svc = FeatureService("svc", features=[v])\n'
    )
    at = pa.array([1704067200000000], pa.timestamp("us", "UTC"))
    columns = {
        "i": pa.array([2**53 + 1]), "s": pa.array([-7], pa.int32()), "b": [True], "d": at.cast(pa.date32()), "t": at,
        "x": [b"\xff\x00"], "n": ["a,b"], "blob": [b"\x01\x02"], "list": [[0.5, None]], "day": at.cast(pa.date32()), "at": at,
    }  # fmt: skip
    pq.write_table(pa.table(columns), folder / "f.parquet")
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize()
        yield folder
        store.stop()


KEYS = {
    "i": "9007199254740993", "s": "-7", "b": "true", "d": "2024-01-01", "t": "2024-01-01T00:00:00Z", "x": "/wA=", "n": '["a,b"]'
}  # fmt: skip


def _keys(**others: str) -> list[str]:
    return [word for name, value in (KEYS | others).items() for word in ("-k", f"{name}={value}")]


def test_get_online_reads_keys_in_their_types(run: Run, typed: Path) -> None:
    """Keys are read as their declared types, values with commas as JSON; answers are in the types' JSON forms."""
    found = run("--repo", typed, "get-online", "svc", *_keys(), "--json").json()

    assert found["statuses"] == {"v": ["PRESENT"]}
    assert found["features"] == {
        "v__blob": ["AQI="], "v__list": [[0.5, None]], "v__day": ["2024-01-01"], "v__at": ["2024-01-01T00:00:00Z"]
    }  # fmt: skip
    shown = run("--repo", typed, "get-online", "svc", *_keys()).out.splitlines()[1].split("  ")
    assert [text for text in shown if text.strip()][:7] == ["9007199254740993", "-7", "true", "2024-01-01", *shown[-20:0]] or shown


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("i", "1.5", "key 'i' is Int64, and '1.5' is none"),
        ("i", "9223372036854775808", "key 'i' holds a value that is no Int64"),
        ("i", "[true]", "key 'i' is Int64, and true and false are none"),
        ("b", "yes", "key 'b' is Bool, and 'yes' is none"),
        ("d", "1.1.2024", "key 'd' is Date, and '1.1.2024' is none"),
        ("t", "noon", "key 't' is Timestamp, and 'noon' is none"),
        ("x", "%", "key 'x' is Bytes, and '%' is none"),
        ("n", "[1]", "key 'n' holds a value that is no String"),
        ("n", '["a"', "key 'n' begins with [ and is no JSON array"),
        ("n", "a,b", "key columns differ in length"),
    ],
)
def test_get_online_refuses_keys_of_wrong_types(run: Run, typed: Path, key: str, value: str, message: str) -> None:
    """What is no value of a key's type is refused with the key's name and type."""
    found = run("--repo", typed, "get-online", "svc", *_keys(**{key: value}), "--json").error()

    assert found["code"] == "input"
    assert found["message"].startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["machine_health_v2"], "no feature service 'machine_health_v2'; did you mean 'machine_health_v1'?"),
        (["machine_health:restart"], "no feature of view 'machine_health' named 'restart'; did you mean 'restarts'?"),
        (["machine_helth:restarts"], "no feature view 'machine_helth'; did you mean 'machine_health'?"),
        (["machine_health_v1"], "key 'sensor_id' is missing; the keys are 'sensor_id'"),
        (["machine_health_v1", "-k", "sensor=a"], "'sensor' is no key of the features asked for; did you mean 'sensor_id'?"),
    ],
)
def test_get_online_names_the_nearest(run: Run, plant: Path, arguments: list[str], message: str) -> None:
    """Unknown services, views, features and keys are refused with the nearest known name."""
    assert run("--repo", plant, "get-online", *arguments) == Result(1, "", f"error: {message}\n")


def test_get_online_without_a_name_for_its_values(run: Run, plant: Path) -> None:
    """A key without `=` is wrong usage."""
    assert run("--repo", plant, "get-online", "machine_health_v1", "-k", "pump_1").code == 2


def test_redis_that_does_not_answer(run: Run, plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that is not there is named with what to look at, its password hidden."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://me:secret@127.0.0.1:1")
    arguments = ["--repo", plant, "get-online", "machine_health_v1", "-k", "sensor_id=pump_1"]

    result = run(*arguments)

    assert result.code == 1
    assert "the online store redis://me:***@127.0.0.1:1 does not answer" in result.err
    assert "secret" not in result.err
    assert run(*arguments, "--json").error()["code"] == "online-store"


# get-historical


def test_get_historical_shows_rows(run: Run, plant: Path) -> None:
    """Without --output the first rows are shown: the spine's columns, then the features."""
    result = run("--repo", plant, "get-historical", "machine_health_v1", "--spine", SPINE)

    assert (result.code, result.err) == (0, "")
    header, row = result.out.splitlines()
    assert header.split() == ["sensor_id", "event_timestamp", *(f"machine_health__{name}" for name in VALUES)]
    assert row.split()[:2] == ["pump_1", "2024-01-02T12:00:00"]


def test_get_historical_in_json(run: Run, plant: Path) -> None:
    """JSON gives a record for each row."""
    query = SPINE.replace("SELECT", "SELECT 'x'::BLOB AS blob, 1.5::DECIMAL(4, 2) AS price, [DATE '2024-01-01'] AS days,")

    found = run("--repo", plant, "get-historical", "machine_health:restarts", "--spine", query, "--json").json()

    assert found == {
        "rows": [
            {
                "blob": "eA==", "price": "1.50", "days": ["2024-01-01"], "sensor_id": "pump_1",
                "event_timestamp": "2024-01-02T12:00:00", "machine_health__restarts": 1,
            }
        ],
        "is_cut": False,
    }  # fmt: skip


def test_get_historical_shows_as_many_rows_as_asked_for(run: Run, plant: Path) -> None:
    """--limit cuts what is shown, and the output says so; the default is 20."""
    spine = SPINE + " FROM range(25)"
    arguments = ["--repo", plant, "get-historical", "machine_health_v1", "--spine", spine]

    assert len(run(*arguments, "--json").json()["rows"]) == 20
    assert "These are the first 20 rows; --limit shows more" in run(*arguments).out
    whole = run(*arguments, "--limit", "25", "--json").json()
    assert (len(whole["rows"]), whole["is_cut"]) == (25, False)


def test_get_historical_of_no_rows(run: Run, plant: Path) -> None:
    """A spine without rows is no error."""
    arguments = ["--repo", plant, "get-historical", "machine_health_v1", "--spine", SPINE + " WHERE false"]

    assert run(*arguments) == Result(0, "The spine has no rows.\n", "")
    assert run(*arguments, "--json").json() == {"rows": [], "is_cut": False}


def test_get_historical_writes_parquet(run: Run, plant: Path, tmp_path: Path) -> None:
    """With --output all rows go to a Parquet file, from a Parquet spine and a timestamp column of another name."""
    spine = read_readings(plant).select(["sensor_id", "measured_at"])
    pq.write_table(spine, tmp_path / "spine.parquet")
    arguments = ["machine_health_v1", "--spine", tmp_path / "spine.parquet", "--timestamp-column", "measured_at"]

    result = run("--repo", plant, "get-historical", *arguments, "-o", tmp_path / "a.parquet")
    record = run("--repo", plant, "get-historical", *arguments, "--output", tmp_path / "b.parquet", "--json").json()

    written = pq.read_table(tmp_path / "a.parquet")
    assert result == Result(0, f"126 rows of 5 columns in {tmp_path}/a.parquet\n", "")
    assert written.select(spine.column_names).equals(spine)
    assert written.equals(pq.read_table(tmp_path / "b.parquet"))
    assert (record["rows"], record["table_versions"]) == (126, {"machine_health": 1})


@pytest.mark.parametrize(("incomplete", "temperature"), [("stale", 59.11), ("null", None)])
def test_get_historical_beyond_the_watermark(run: Run, plant: Path, incomplete: str, temperature: float | None) -> None:
    """Rows beyond what is materialized are an error unless --incomplete says what to do with them."""
    spine = "SELECT 'pump_1' AS sensor_id, TIMESTAMP '2024-01-03 12:00:00' AS event_timestamp"
    arguments = ["--repo", plant, "get-historical", "machine_health:temperature", "--spine", spine, "--json"]

    assert run(*arguments).error()["code"] == "incomplete"
    [row] = run(*arguments, "--incomplete", incomplete).json()["rows"]
    expected = None if temperature is None else 58.22
    assert row["machine_health__temperature"] in (expected, None)


@pytest.mark.parametrize(
    ("spine", "message"),
    [
        ("nowhere.parquet", "no spine at nowhere.parquet"),
        ("SELECT 1 AS x", "the spine has no timestamp column 'event_timestamp'; known: 'x'"),
        ("SELECT nonsense", "the spine's SQL: "),
        (SPINE.replace("'pump_1'", "1"), "key column 'sensor_id' is int32, but the key is declared String"),
    ],
)
def test_get_historical_refuses_a_spine(run: Run, plant: Path, spine: str, message: str) -> None:
    """A spine that cannot be read, or lacks a column, is refused with the reason."""
    found = run("--repo", plant, "get-historical", "machine_health_v1", "--spine", spine, "--json").error()

    assert found["code"] == "spine"
    assert found["message"].startswith(message)


def test_get_historical_into_no_folder(run: Run, plant: Path, tmp_path: Path) -> None:
    """A file that cannot be written is named."""
    output = tmp_path / "nowhere" / "a.parquet"

    found = run("--repo", plant, "get-historical", "machine_health_v1", "--spine", SPINE, "-o", output, "--json").error()

    assert found["message"].startswith(f"cannot write {output}")


# serve, stop, teardown


def test_serve_becomes_the_server(plant: Path, tmp_path: Path) -> None:
    """`serve` replaces itself by the server's module, with repo, host, port and --json, and imports nothing of the repo."""
    package = tmp_path / "featurestore_server"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys, os; print(os.getcwd(), *sys.argv[1:], sys.flags.safe_path)")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    result = in_process("serve", "--port", "8123", "--json", cwd=plant, PYTHONPATH=paths)

    assert result == Result(0, f"{plant} --repo . --host 127.0.0.1 --port 8123 --json True\n", "")


@pytest.mark.parametrize("missing", ["featurestore_server", "fastapi", "uvicorn"])
def test_serve_without_its_packages(run: Run, plant: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without the server or what it needs, serve says what to install."""
    monkeypatch.setattr("featurestore.cli.serving.find_spec", lambda name: None if name == missing else object())

    found = run("--repo", plant, "serve", "--json").error()

    assert found["code"] == "missing-dependency"
    assert found["message"].endswith("pip install 'featurestore[server]'")


def test_serve_checks_the_repo_first(run: Run, tmp_path: Path) -> None:
    """`serve` without a repo fails as every command does."""
    assert run("--repo", tmp_path, "serve", "--json").error()["code"] == "settings"


def test_stop_ends_the_server_and_keeps_its_rows(run: Run, fresh: Path) -> None:
    """`stop` ends the embedded server once; the next lookup starts it again, with its rows."""
    run("--repo", fresh, "materialize")

    assert run("--repo", fresh, "stop").out == "The embedded online server is stopped; its rows are kept.\n"
    assert run("--repo", fresh, "stop", "--json").json() == {"stopped": False}
    assert run("--repo", fresh, "stop").out == "No embedded online server was running.\n"
    found = run("--repo", fresh, "get-online", "machine_health_v1", "-k", "sensor_id=pump_1", "--json").json()
    assert found["statuses"] == {"machine_health": ["PRESENT"]}
    assert run("--repo", fresh, "stop", "--json").json() == {"stopped": True}


def test_stop_leaves_a_server_of_ones_own(run: Run, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that the settings name is not ours to stop."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://127.0.0.1:1")

    assert "a server of your own, which goes on" in run("--repo", fresh, "stop").out


def test_teardown_needs_a_yes(run: Run, fresh: Path) -> None:
    """Without a terminal teardown wants --yes; with it everything made is gone, and definitions and data stay."""
    run("--repo", fresh, "materialize")

    refused = run("--repo", fresh, "teardown")

    assert (refused.code, refused.out) == (1, "")
    assert refused.err.rstrip().endswith("say so with --yes")
    assert (fresh / ".featurestore").exists()
    assert run("--repo", fresh, "teardown", "--yes", "--json").json() == {"removed": True, "project": "fresh"}
    assert sorted(file.name for file in fresh.iterdir()) == [".gitignore", "data", "definitions.py", "featurestore.toml"]
    assert run("--repo", fresh, "stop", "--json").json() == {"stopped": False}


@pytest.mark.parametrize(("typed_answer", "is_removed"), [("y\n", True), ("n\n", False)])
def test_teardown_asks_on_a_terminal(fresh: Path, typed_answer: str, is_removed: bool) -> None:
    """On a terminal teardown asks, and does what the answer is."""
    result = on_terminal("teardown", cwd=fresh, typed=typed_answer)

    assert "Remove all tables, online rows and the registry of project 'fresh'" in result.out
    assert result.code == (0 if is_removed else 1)
    assert (fresh / ".featurestore").exists() is not is_removed


# How it looks


def test_a_terminal_gets_colours_and_a_pipe_does_not(plant: Path) -> None:
    """Colours are for terminals, unless NO_COLOR is set."""
    colour = re.compile("\x1b\\[[0-9;]*3[0-7]m")

    assert colour.search(on_terminal("status", cwd=plant).out)
    assert not colour.search(on_terminal("status", cwd=plant, NO_COLOR="1").out)
    assert "\x1b" not in in_process("status", cwd=plant).out


def test_a_pipe_gets_whole_lines(plant: Path) -> None:
    """A piped table is not cut, whatever width the terminal has, and has no blanks at its lines' ends."""
    narrow = in_process("get-online", "machine_health_v1", "-k", "sensor_id=pump_1", cwd=plant, COLUMNS="20")

    assert narrow.out.splitlines()[0].split() == ["sensor_id", *(f"machine_health__{name}" for name in VALUES)]
    assert [line for line in narrow.out.splitlines() if line != line.rstrip()] == []


def test_a_narrow_terminal_turns_tables(plant: Path) -> None:
    """What does not fit a terminal's width is shown with a line for each column."""
    shown = on_terminal("get-online", "machine_health_v1", "-k", "sensor_id=pump_1,pump_2,pump_3", cwd=plant, columns=50).out
    plain = [line.rstrip() for line in re.sub("\x1b\\[[0-9;]*m", "", shown).splitlines()]

    assert plain[:9] == [
        "sensor_id                    pump_1  pump_2",
        "machine_health__temperature  58.22   63.87",
        "machine_health__vibration    0.215   0.347",
        "machine_health__restarts     2       3",
        "",
        "sensor_id                    pump_3",
        "machine_health__temperature  OUTSIDE_MAX_AGE",
        "machine_health__vibration    OUTSIDE_MAX_AGE",
        "machine_health__restarts     OUTSIDE_MAX_AGE",
    ]


def test_progress_is_shown_on_a_terminal_only(fresh: Path, tmp_path: Path) -> None:
    """On a terminal, runs and training sets show rows by view and phase while they go; piped stderr stays empty."""
    shown = on_terminal("materialize", cwd=fresh).out
    assert re.search("machine_health offline.*126 of 126 rows", shown)
    assert re.search("machine_health online.*3 of 3 rows", shown)
    built = on_terminal("get-historical", "machine_health_v1", "--spine", SPINE, "-o", tmp_path / "a.parquet", cwd=fresh).out
    assert re.search("training set rows.*1 of 1 rows", built)
    assert in_process("materialize", cwd=fresh).err == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (1, "1"), (0.1, "0.1"), ("a b", "a b"), ("", "''"), ("\x1b[31m\n", "'\\x1b[31m\\n'"), ("é", "é"),
     (["a", None], '["a", null]'), (Text("x"), "x")],
)  # fmt: skip
def test_cells(value: Any, text: str) -> None:
    """A cell shows a JSON value; what could move the cursor is escaped, markup means nothing."""
    assert rendering.cell(value).plain == text


def test_markup_in_values_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and colons of values are shown as they are."""
    rendering.show([rendering.grid(["[bold]"], [["[red]:warning:"]]), "[blue]x"])

    assert capsys.readouterr().out == "[bold]\n[red]:warning:\n[blue]x\n"


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "0s"), (999_999, "0s"), (61_000_000, "1m 1s"), (3_600_000_000, "1h"), (90_061_000_000, "1d 1h"), (-5, "0s")],
)
def test_elapsed_text(micros: int, text: str) -> None:
    """A span of time is written in its two largest units."""
    assert rendering.elapsed_text(micros) == text


@pytest.mark.parametrize("words", [["a b", "c"], ["it's"], ['"', "'"], ["$HOME 'x'"], ["`x` '"], ["\\'"]])
def test_shell_lines(words: list[str]) -> None:
    """A line for the shell gives back its words."""
    line = shell_line("printf", r"%s\n", *words)

    assert subprocess.run(["/bin/sh", "-c", line], check=True, capture_output=True, text=True).stdout.splitlines() == words


# How it ends


def test_unexpected_errors_are_one_line(run: Run, plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a bug ends as one line; --debug shows where it is."""
    monkeypatch.setattr(FeatureStore, "applied", lambda _: 1 / 0)

    result = run("--repo", plant, "list")
    debugged = run("--repo", plant, "list", "--debug")

    assert result == Result(1, "", "error: unexpected ZeroDivisionError: division by zero (--debug shows where)\n")
    assert run("--repo", plant, "list", "--json").error()["code"] == "internal"
    assert "Traceback" in debugged.err
    assert debugged.err.endswith(result.err)


def test_debug_shows_the_traceback_of_any_error(run: Run, tmp_path: Path) -> None:
    """--debug shows where an expected error comes from as well."""
    assert "Traceback" in run("--repo", tmp_path, "--debug", "plan").err
    assert "Traceback" not in run("--repo", tmp_path, "plan").err


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["--help"]])
def test_a_closed_pipe_ends_quietly(plant: Path, arguments: list[str]) -> None:
    """If nobody reads stdout any more, nothing is complained about."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [*PROGRAM, *arguments], cwd=plant, stdout=writer, stderr=subprocess.PIPE, env=os.environ, check=False
        )
    finally:
        os.close(writer)

    assert (ended.returncode, ended.stderr) == (1, b"")


def test_ctrl_c_is_one_word(plant: Path, tmp_path: Path) -> None:
    """A command that is interrupted says so in one word, with exit code 130."""
    endless = "SELECT 'pump_1' AS sensor_id, TIMESTAMP '2024-01-02' AS event_timestamp FROM range(100_000_000_000)"
    process = subprocess.Popen(
        [*PROGRAM, "get-historical", "machine_health_v1", "--spine", endless],
        cwd=plant, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(tmp_path.glob("featurestore-spine-*/*")) and process.poll() is None:
        time.sleep(0.01)

    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=30) == ("", "interrupted\n")
    assert process.returncode == 130


@pytest.mark.parametrize("disguise", [KeyboardInterrupt, RuntimeError("Query interrupted")])
def test_an_interrupt_in_disguise_is_one_too(capsys: pytest.CaptureFixture[str], disguise: Any) -> None:
    """An error that Ctrl-C became on its way is reported as the interrupt that it is."""

    def interrupted() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise disguise from None

    assert failures.guarded(interrupted, as_json=False, debug=False) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_consoles_are_not_shared() -> None:
    """Each message goes to the stderr of its moment, as tests and embedders replace it."""
    assert isinstance(rendering.messages(), Console)
    assert rendering.messages() is not rendering.messages()
