from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.text import Text

from featurestore import FeatureStore
from featurestore.cli import example, failures, main, rendering
from featurestore.cli.invocation import shell_line

COMMANDS = ["init", "plan", "apply", "materialize", "status", "list", "describe", "get-online", "get-historical"]
COMMANDS += ["serve", "stop", "teardown"]
PROGRAM = [sys.executable, "-P", "-m", "featurestore"]
SPINE = "SELECT 'pump_1' AS sensor_id, TIMESTAMP '2024-01-02 12:00:00' AS event_timestamp"
COLUMNS = ["machine_health__temperature", "machine_health__vibration", "machine_health__restarts"]


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str = ""

    def json(self) -> Any:
        """Return stdout as JSON; the command succeeded, and stderr is empty."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    def error(self) -> dict[str, Any]:
        """Return the error in stderr, which is all that the command wrote."""
        assert (self.code, self.out) == (1, "")
        found: dict[str, Any] = json.loads(self.err)["error"]
        return found


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process, on the repo of a folder if one is given."""
    monkeypatch.delenv("FEATURESTORE_REPO", raising=False)

    def call(*arguments: str | Path, repo: Path | None = None) -> Result:
        capsys.readouterr()
        code = main([*([] if repo is None else ["--repo", str(repo)]), *map(str, arguments)])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def ask(run: Run, plant: Path) -> Run:
    """Run a command line on the repo that tests only read."""
    return lambda *arguments: run(*arguments, repo=plant)


def in_process(*arguments: str | Path, cwd: Path, **variables: str) -> Result:
    """Run a command line in a process of its own."""
    command = [*PROGRAM, *map(str, arguments)]
    ended = subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False)
    return Result(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process on a terminal, where stdout and stderr are one, with something typed ahead."""
    for name in ("NO_COLOR", "FORCE_COLOR", "FEATURESTORE_REPO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def call(*arguments: str | Path, repo: Path, columns: int = 120, typed: str = "") -> Result:
        screen, side = pty.openpty()
        os.write(screen, typed.encode())
        with ThreadPoolExecutor() as reader, monkeypatch.context() as patch:
            shown = reader.submit(lambda: b"".join(iter(lambda: _read(screen), b"")))
            with os.fdopen(os.dup(side)) as keyboard, os.fdopen(side, "w") as output:
                patch.setenv("COLUMNS", str(columns))
                patch.setattr(sys, "stdin", keyboard)
                patch.setattr(sys, "stdout", output)
                patch.setattr(sys, "stderr", output)
                code = main(["--repo", str(repo), *map(str, arguments)])
            return Result(code, shown.result(30).decode())

    return call


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 65536)
    except OSError:  # so Linux says that nobody is left on the other side
        os.close(screen)
        return b""


def make_repo(folder: Path) -> Path:
    """Write the example and apply it."""
    example.create(folder)
    apply(folder)
    return folder


def apply(folder: Path, *changes: tuple[str, str]) -> None:
    """Apply a repo's definitions, some texts replaced in them before."""
    edit(folder, *changes)
    with FeatureStore(folder) as store:
        store.apply()


def edit(folder: Path, *changes: tuple[str, str]) -> None:
    """Replace texts in a repo's definitions, each of which must be there."""
    text = (folder / "definitions.py").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / "definitions.py").write_text(text)


def readings(folder: Path) -> pa.Table:
    """Return the example's data."""
    return pq.read_table(folder / "data/readings.parquet")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repo that `init` makes, applied and materialized; tests only read it."""
    folder = make_repo(tmp_path_factory.mktemp("cli") / "plant")
    with FeatureStore(folder) as store:
        store.materialize()
        yield folder
        store.stop()


@pytest.fixture
def copied(plant: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that repo, whose online store is empty."""
    folder = shutil.copytree(plant, tmp_path / "copied", ignore=shutil.ignore_patterns("online"))
    yield folder
    with FeatureStore(folder) as store:
        store.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """A repo as `init` makes it, applied and not materialized."""
    folder = make_repo(tmp_path / "fresh")
    yield folder
    with FeatureStore(folder) as store:
        store.stop()


# The program


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(run: Run, arguments: list[str]) -> None:
    """`featurestore`, alone or with --help, lists all commands and succeeds."""
    result = run(*arguments)

    assert result.code == 0
    assert [name for name in COMMANDS if not re.search(rf"\b{name}  ", result.out)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(run: Run, command: str) -> None:
    """Each command's help shows how it is called, and that it can answer in JSON."""
    result = run(command, "--help")

    assert result.code == 0
    assert f"Example: featurestore {command}" in result.out
    assert "--json" in result.out


def test_the_module_runs(tmp_path: Path) -> None:
    """`python -m featurestore` is the same program."""
    assert re.fullmatch("featurestore.*\n", in_process("--version", cwd=tmp_path).out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plam"], "'plam'"),
        (["plan", "--foo"], "--foo"),
        (["get-online"], "Missing argument 'FEATURES'"),
        (["get-online", "x", "-k", "a"], "--key 'a' is not of the form NAME=VALUE"),
        (["get-historical", "x", "--spine", "y", "--incomplete", "z"], "--incomplete"),
        (["get-historical", "x", "--spine", "y", "--limit", "0"], "--limit"),
        (["serve", "--port", "http"], "--port"),
        (["list", "thing"], "no kind 'thing'; known: entities, sources, views, aliases, services"),
    ],
)
def test_wrong_usage_exits_with_2(ask: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    """A command line that cannot be understood gives one message with the usage, as JSON too, and exit code 2."""
    monkeypatch.setattr(FeatureStore, "selection", lambda *_: type("Selection", (), {"keys": {}}))
    result, as_json = ask(*arguments), ask(*arguments, "--json")

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
    assert [each["name"] for each in before] == ["sensor", "readings", "machine_health", "machine_health_v1"]


def test_the_repo_is_that_of_the_environment_or_the_current_folder(
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
    result = run("plan", repo=tmp_path)

    assert (result.code, result.out) == (1, "")
    assert f"no featurestore.toml in {tmp_path}" in result.err
    assert "--repo" in result.err
    assert "featurestore init" in result.err
    assert run("plan", "--json", repo=tmp_path).error()["code"] == "settings"


# init


def test_what_init_prints_next_works_verbatim(tmp_path: Path) -> None:
    """The commands that init prints, given to a shell as they are, work in this order."""
    program = tmp_path / "bin" / "featurestore"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shell_line(*PROGRAM)} "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    made = in_process("init", "my plant", cwd=tmp_path)
    lines = made.out.partition("Next:\n")[2]
    shell = subprocess.run(
        ["/bin/sh", "-e"], input=lines, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert made.code == 0
    expected = ["plan", "apply", "materialize", "status", "get-online", "get-historical", "stop"]
    assert [line.split()[1] for line in lines.splitlines()] == ["'my", *expected]
    assert (shell.returncode, shell.stderr) == (0, "")
    assert re.search(r"^pump_1 +58\.22 +0\.215 +2$", shell.stdout, re.MULTILINE)
    assert re.search(r"^pump_3 +OUTSIDE_MAX_AGE", shell.stdout, re.MULTILINE)
    assert re.search(r"^pump_2 +2024-01-02T23:00:00Z +61\.76 +0\.338 +3$", shell.stdout, re.MULTILINE)
    assert shell.stdout.endswith("The embedded online server is stopped; its rows are kept.\n")


def test_init_says_what_it_wrote(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json init names the repo, the project, the files and the next commands; in the current folder these need no cd."""
    files = ["featurestore.toml", "definitions.py", "data/readings.parquet", ".gitignore"]
    record = run("init", tmp_path / "a" / "b", "--json").json()
    monkeypatch.chdir(tmp_path)

    assert (record["repo"], record["project"], record["files"]) == (str(tmp_path / "a" / "b"), "b", files)
    assert record["next"][:2] == [f"cd {tmp_path}/a/b", "featurestore plan"]
    assert [name for name in files if not (tmp_path / "a" / "b" / name).is_file()] == []
    assert run("init", repo=tmp_path / "c").out.partition("Next:\n")[2].startswith(f"  cd {tmp_path}/c\n  featurestore plan\n")
    assert run("init").out.partition("Next:\n")[2].startswith("  featurestore plan\n")


def test_init_is_repeatable(tmp_path: Path) -> None:
    """Two repos made by init have the same bytes, and the same data on every machine."""
    for name in ("one", "two"):
        example.create(tmp_path / name / "plant")
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.*")} for name in ("one", "two"))

    assert one == two
    assert readings(tmp_path / "one/plant").drop_columns("measured_at").slice(0, 2).to_pydict() == {
        "sensor_id": ["pump_1", "pump_1"], "temperature": [60.0, 62.25], "vibration": [0.2, 0.209], "restarts": [0, 0]
    }  # fmt: skip


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
    mine = {"definitions.py": "mine", "featurestore.toml": "mine"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)

    found = run("init", tmp_path, "--json").error()

    assert found["code"] == "input"
    assert found["message"].startswith(f"featurestore.toml, definitions.py exist already in {tmp_path}")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == mine


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
    (tmp_path / ".venv").mkdir()
    for name in ("setup.py", "tools.py", "a.py", "b.py", "c.py", ".venv/d.py"):
        (tmp_path / name).touch()

    result = run("init", tmp_path)

    assert result.code == 0
    assert (tmp_path / ".gitignore").read_text() == "*.tmp\n"
    assert "note: .gitignore was there and is left as it is; add .featurestore/ to it\n" in result.out
    assert "will be loaded as definitions too: a.py, b.py, c.py and 2 more\n" in result.out


# plan, apply

CREATED = """\
+ entity          sensor
+ source          readings
+ feature view    machine_health
+ feature service machine_health_v1

New versions
+ machine_health v1: materialize from the beginning of its source

4 to create, 0 to change, 0 to remove; 1 new version
"""
CHANGED = """\
~ entity          sensor
    description: A sensor on a machine -> ""
    owner: "" -> team
~ feature view    machine_health
    fields:
        {"name": "temperature", "type": "Float64"}
        {"name": "vibration", "type": "Float64"}
      - {"name": "restarts", "type": "Int64"}
    ttl: 12h -> 2d
- feature service machine_health_v1
+ feature service machine_health_v2

New versions
~ machine_health v2 replaces v1: materialize from the beginning of its source until it covers what version 1 covers; then it takes \
over
    fields:
        {"name": "temperature", "type": "Float64"}
        {"name": "vibration", "type": "Float64"}
      - {"name": "restarts", "type": "Int64"}
    ttl: 12h -> 2d

1 to create, 2 to change, 1 to remove; 1 new version
"""
NEW_NAME = ('"machine_health_v1"', '"machine_health_v2"')
NEW_TTL = ('ttl="12h"', 'ttl="2d"')


def test_plan_shows_what_is_new(run: Run, tmp_path: Path) -> None:
    """A plan lists what is created and the versions to materialize, says what to run next, and changes nothing."""
    example.create(tmp_path)

    result, record = run("plan", repo=tmp_path), run("plan", "--json", repo=tmp_path).json()

    assert result == Result(0, f"{CREATED}\nNext: featurestore --repo {tmp_path} apply\n")
    assert (record["revision"], [change["action"] for change in record["changes"]]) == (0, ["create"] * 4)
    assert run("plan", repo=tmp_path) == result


def test_an_empty_plan(ask: Run) -> None:
    """What is applied already is nothing to change, for plan and apply."""
    assert ask("plan") == Result(0, "Nothing to change.\n")
    assert ask("apply") == Result(0, "Nothing to change.\n")
    assert ask("apply", "--json").json()["applied"] is False


def test_plan_shows_changes_field_by_field(run: Run, fresh: Path) -> None:
    """A change shows each field before and after, and of lists what leaves and what comes; so do the version's reasons."""
    edit(fresh, NEW_TTL, NEW_NAME, (', Field("restarts", Int64)', ""), ('description="A sensor on a machine"', 'owner="team"'))

    assert run("plan", repo=fresh) == Result(0, f"{CHANGED}\nNext: featurestore --repo {fresh} apply\n")


def test_plan_compares_long_texts_by_line(run: Run, fresh: Path) -> None:
    """A changed SELECT shows the lines that differ."""
    apply(fresh, ('refresh="1h"', 'sql="""SELECT *\nFROM readings\nWHERE temperature > 0""", refresh="1h"'))
    edit(fresh, ("> 0", "> 10"))

    shown = "    sql:\n        SELECT *\n        FROM readings\n      - WHERE temperature > 0\n      + WHERE temperature > 10\n"
    assert shown in run("plan", repo=fresh).out


def test_plan_shows_dropped_candidates_and_warnings(run: Run, copied: Path) -> None:
    """A view that is served online without refresh is warned of, and a candidate that is overtaken is named."""
    edit(copied, ('    refresh="1h",\n', ""))
    assert "warning: view 'machine_health' is served online without refresh" in run("apply", repo=copied).out
    edit(copied, ('    ttl="12h"', '    refresh="1h",\n    ttl="12h"'))

    assert "- the candidate version of machine_health that never served is dropped\n" in run("plan", repo=copied).out
    assert run("plan", "--json", repo=copied).json()["dropped_candidates"] == ["machine_health"]


def test_apply_shows_the_plan_and_what_is_next(run: Run, tmp_path: Path) -> None:
    """`apply` shows what the plan showed, applies it, and names the views to materialize."""
    folder = tmp_path / "a plant"
    example.create(folder)

    result = run("apply", repo=folder)

    assert result == Result(0, f"{CREATED}\nApplied.\n\nNext: featurestore --repo '{folder}' materialize machine_health\n")
    assert run("plan", repo=folder).out == "Nothing to change.\n"


def test_apply_in_json_is_the_plan(run: Run, tmp_path: Path) -> None:
    """With --json apply answers with the plan and whether it was applied."""
    example.create(tmp_path)

    planned = run("plan", "--json", repo=tmp_path).json()

    assert run("apply", "--json", repo=tmp_path).json() == {"applied": True, **planned}


@pytest.mark.parametrize("change", [NEW_NAME, NEW_TTL])
@pytest.mark.parametrize(("typed", "is_applied"), [("y\n", True), ("\n", False)])
def test_apply_asks_before_it_removes_or_replaces(
    on_terminal: Run, fresh: Path, change: tuple[str, str], typed: str, is_applied: bool
) -> None:
    """On a terminal a removal or a replaced version is applied only if the answer is yes."""
    edit(fresh, change)

    result = on_terminal("apply", repo=fresh, typed=typed)

    assert "Apply this? [y/N]:" in result.out
    assert result.code == (0 if is_applied else 1)
    assert ("nothing was applied" in result.out) is not is_applied
    with FeatureStore(fresh) as store:
        assert store.plan().is_empty is is_applied


def test_apply_asks_only_where_it_must(on_terminal: Run, run: Run, fresh: Path, tmp_path: Path) -> None:
    """Creations, --yes, --json, and a command without a terminal are applied without a question."""
    example.create(tmp_path / "new")
    assert on_terminal("apply", repo=tmp_path / "new").code == 0
    edit(fresh, NEW_NAME)
    assert on_terminal("apply", "--yes", repo=fresh).code == 0
    edit(fresh, ("machine_health_v2", "machine_health_v3"))
    assert on_terminal("apply", "--json", repo=fresh).code == 0
    edit(fresh, ("machine_health_v3", "machine_health_v4"))
    assert run("apply", repo=fresh).code == 0


def test_all_faults_are_reported(run: Run, fresh: Path) -> None:
    """Faulty definitions give every fault with its place, as text and as JSON."""
    edit(fresh, ('delay="5m"', 'delay="5"'), ("join_keys={", "keys={"))

    result, found = run("plan", repo=fresh), run("apply", "--json", repo=fresh).error()

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: 3 faults in the definitions:\n  definitions.py:")
    assert found["code"] == "definition"
    assert [fault["object"] for fault in found["faults"]] == ["sensor", "sensor", "readings"]


# list, describe

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


# materialize, status


def test_materialize_summarizes_its_runs(run: Run, fresh: Path) -> None:
    """A run says which interval it computed, how many rows, and what it wrote online; JSON gives the reports."""
    first = run("materialize", repo=fresh)
    [second] = run("materialize", "machine_health", "--json", repo=fresh).json()["reports"]

    header, row = first.out.splitlines()
    assert header.split() == ["view", "version", "from", "to", "rows", "skipped", "late", "written", "deleted", "seconds"]
    assert row.split()[:-1] == ["machine_health", "1", "the", "beginning", "2024-01-03T00:00:00Z", "126", "0", "0", "3", "0"]
    assert (second["view"], second["start"], second["rows"], second["late"]) == ("machine_health", "2024-01-03T00:00:00Z", 0, 0)
    assert second["seconds"] > 0


def test_materialize_takes_an_interval(run: Run, fresh: Path) -> None:
    """--start and --end bound the visible time that is computed."""
    assert run("materialize", "--end", "2024-01-01T12:00:00Z", repo=fresh).code == 0

    interval = ["--start", "2024-01-01T10:00", "--end", "2024-01-02"]
    [report] = run("materialize", *interval, "--json", repo=fresh).json()["reports"]

    assert (report["start"], report["end"], report["rows"]) == ("2024-01-01T10:00:00Z", "2024-01-02T00:00:00Z", 14 * 3)


def test_materialize_says_what_it_skipped(run: Run, fresh: Path) -> None:
    """Rows without a key or an event time are counted, and the summary says which."""
    table = readings(fresh)
    lame = table.slice(0, 3).to_pydict()
    lame["sensor_id"][:2] = [None, None]
    lame["measured_at"][2] = None
    pq.write_table(pa.concat_tables([table, pa.table(lame, table.schema)]), fresh / "data/readings.parquet")

    result = run("materialize", repo=fresh)

    assert result.out.splitlines()[1].split()[5:7] == ["126", "3"]
    assert "note: machine_health: skipped 2 source rows with a null join key\n" in result.out
    assert "note: machine_health: skipped 1 source row with no event time\n" in result.out


def test_materialize_says_what_came_too_late(run: Run, fresh: Path) -> None:
    """Rows below the watermark that the table lacks are counted, and the summary says that lookback heals them."""
    table = readings(fresh)
    pq.write_table(table.slice(2), fresh / "data/readings.parquet")
    run("materialize", "--end", "2024-01-02T12:00:00Z", repo=fresh)
    pq.write_table(table, fresh / "data/readings.parquet")

    result = run("materialize", repo=fresh)

    assert result.out.splitlines()[1].split()[6] == "2"
    assert "2 source rows came too late" in result.out
    assert "Set lookback on the view" in result.out
    assert f"featurestore --repo {fresh} materialize machine_health --start TIME" in result.out


def test_materialize_refuses_a_gap(run: Run, fresh: Path) -> None:
    """A run that would leave source rows out is refused."""
    found = run("materialize", "--start", "2024-01-02", "--json", repo=fresh).error()

    assert found["code"] == "gap"
    assert "begin at or before" in found["message"]


def test_materialize_without_its_file(run: Run, fresh: Path) -> None:
    """A Parquet file that is gone is named, with its source."""
    (fresh / "data/readings.parquet").unlink()

    found = run("materialize", "--json", repo=fresh).error()

    assert found["code"] == "source"
    assert f"source 'readings': no Parquet file at {fresh}/data/readings.parquet" in found["message"]


LOST = """\
lost = FileSource("lost", path="data/lost.parquet", event_time="measured_at")
lost_view = FeatureView("lost_view", entities=[sensor], source=lost, fields={"vibration": Float64}, refresh="1h")
# What one version"""


def test_materialize_reports_what_failed_and_what_is_done(run: Run, fresh: Path) -> None:
    """If some of several views fail, the others' summary comes first, then each failure; exit code 1."""
    shutil.copy(fresh / "data/readings.parquet", fresh / "data/lost.parquet")
    apply(fresh, ("# What one version", LOST))
    (fresh / "data/lost.parquet").unlink()

    result, as_json = run("materialize", repo=fresh), run("materialize", "--json", repo=fresh)

    assert (result.code, as_json.code) == (1, 1)
    assert result.out.splitlines()[1].startswith("machine_health ")
    assert result.err.startswith("error: 1 of 2 views failed:\n  lost_view: source 'lost'")
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
def test_materialize_refuses_what_makes_no_sense(ask: Run, arguments: list[str], message: str) -> None:
    """Unknown views and impossible times are refused with what would be right."""
    assert ask("materialize", *arguments) == Result(1, "", f"error: {message}\n")


def test_status_shows_how_far_each_view_is(ask: Run, plant: Path) -> None:
    """A line for each living version: its state, watermark, lag, rows, online load and last run."""
    record = ask("status", "--json").json()

    assert ask("status").out == (
        f"plant in {plant}, now 2024-01-03T00:00:00Z\n"
        "registry sqlite:///.featurestore/registry.db, online store embedded, running\n\n"
        "view            version  state    watermark             behind  rows  files  online  last run\n"
        "machine_health        1  serving  2024-01-03T00:00:00Z  0s       126      1  loaded  completed\n"
    )
    [view] = record["views"]
    assert record["online"] == {"url": "embedded", "is_running": True}
    assert (view["view"], view["version"], view["state"], view["online"]) == ("machine_health", 1, "serving", "loaded")
    assert (view["watermark"], view["behind_seconds"], view["is_overdue"]) == ("2024-01-03T00:00:00Z", 0, False)
    assert view["offline"] == {"rows": 126, "files": 1, "error": None}
    assert (view["last_run"]["number"], view["last_run"]["status"], view["last_run"]["error"]) == (1, "completed", None)


def test_status_before_anything_happened(run: Run, tmp_path: Path, fresh: Path) -> None:
    """Before apply and before the first run, status says what to do next, and starts no server."""
    example.create(tmp_path / "new")
    [view] = run("status", "--json", repo=fresh).json()["views"]

    assert run("status", repo=tmp_path / "new").out.endswith(
        f"embedded, not running\n\nNo view is applied. Next: featurestore --repo {tmp_path}/new apply\n"
    )
    assert (view["watermark"], view["behind_seconds"], view["online"], view["last_run"]) == (None, None, "not loaded", None)
    assert run("status", repo=fresh).out.endswith(f"Next: featurestore --repo {fresh} materialize\n")
    assert not (fresh / ".featurestore/online").exists()


def test_status_shows_lag_failures_and_old_versions(run: Run, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` says how far a view is behind and why its last run failed; --all shows replaced versions."""
    until = ["materialize", "--end", "2024-01-02T20:30:00Z"]
    assert run(*until, repo=fresh).code == 0
    apply(fresh, NEW_TTL)
    assert run(*until, repo=fresh).code == 0
    with monkeypatch.context() as patch:
        patch.setenv("FEATURESTORE_ONLINE__URL", "redis://127.0.0.1:1")
        assert run(*until, "--start", "2024-01-02", repo=fresh).code == 1

    result = run("status", repo=fresh).out
    [view] = run("status", "--json", repo=fresh).json()["views"]
    versions = run("status", "--all", "--json", repo=fresh).json()["views"]

    assert (view["behind_seconds"], view["is_overdue"], view["online"]) == (3 * 3600 + 1800, True, "behind")
    assert re.search(r"^machine_health +2 +serving +2024-01-02T20:30:00Z +3h 30m +\d+ +\d+ +behind +failed$", result, re.MULTILINE)
    assert "machine_health v2: the online store redis://127.0.0.1:1 does not answer" in result
    assert [(each["version"], each["state"]) for each in versions] == [(1, "replaced"), (2, "serving")]


def test_status_survives_a_broken_table(run: Run, copied: Path) -> None:
    """A table that cannot be read is reported; the command succeeds."""
    for log in (copied / ".featurestore/offline").rglob("_delta_log/*.json"):
        log.write_text("broken")

    [view] = run("status", "--json", repo=copied).json()["views"]

    assert view["offline"]["rows"] is None
    assert "cannot read the table of view 'machine_health'" in view["offline"]["error"]
    assert "machine_health v1: cannot read the table" in run("status", repo=copied).out


# get-online

LOOKED_UP = """\
sensor_id  machine_health__temperature  machine_health__vibration  machine_health__restarts
pump_1     58.22                        0.215                      2
pump_3     OUTSIDE_MAX_AGE              OUTSIDE_MAX_AGE            OUTSIDE_MAX_AGE
pump_9     NOT_FOUND                    NOT_FOUND                  NOT_FOUND
null       NOT_FOUND                    NOT_FOUND                  NOT_FOUND
OUTSIDE_MAX_AGE: the newest value is older than the view's ttl.
"""


def test_get_online_shows_a_row_for_each_entity(ask: Run) -> None:
    """Features stand beside their keys; where there is no value stands the reason."""
    shown = ask("get-online", "machine_health_v1", "-k", "sensor_id=pump_1,pump_3,pump_9,").out

    assert [line.split() for line in shown.splitlines()] == [line.split() for line in LOOKED_UP.splitlines()]


def test_get_online_in_json(ask: Run) -> None:
    """JSON gives features by column, and by view the statuses and event times."""
    found = ask("get-online", "machine_health_v1", "--key", "sensor_id=pump_1", "-k", "sensor_id=pump_3", "--json")

    assert found.json() == {
        "features": dict(zip(COLUMNS, ([58.22, None], [0.215, None], [2, None]), strict=True)),
        "statuses": {"machine_health": ["PRESENT", "OUTSIDE_MAX_AGE"]},
        "event_times": {"machine_health": ["2024-01-02T23:00:00Z", "2024-01-02T05:00:00Z"]},
    }


def test_get_online_takes_a_list_of_features(ask: Run) -> None:
    """Features separated by commas stand for a service."""
    found = ask("get-online", "machine_health:restarts, machine_health:vibration", "-k", "sensor_id=pump_2", "--json").json()

    assert found["features"] == {"machine_health__restarts": [3], "machine_health__vibration": [0.347]}


TYPED = """\
from featurestore import *
from featurestore.types import *

e = Entity("e", join_keys={"i": Int64, "s": Int32, "b": Bool, "d": Date, "t": Timestamp, "x": Bytes, "n": String})
f = FileSource("f", path="f.parquet")
features = {"blob": Bytes, "list": Array(Float64), "day": Date, "at": Timestamp}
svc = FeatureService("svc", features=[FeatureView("v", entities=[e], source=f, fields=features)])
"""
KEYS = {
    "i": "9007199254740993",
    "s": "-7",
    "b": "true",
    "d": "2024-01-01",
    "t": "2024-01-01T00:00:00Z",
    "x": "/wA=",
    "n": '["a,b"]',
}


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repo whose key has a column of each type that a key can have."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "featurestore.toml").write_text('project = "typed"\n')
    (folder / "definitions.py").write_text(TYPED)
    at = pa.array([1704067200000000], pa.timestamp("us", "UTC"))
    keys = {"i": [2**53 + 1], "s": pa.array([-7], pa.int32()), "b": [True], "d": at.cast(pa.date32()), "t": at, "x": [b"\xff\x00"]}
    features = {"n": ["a,b"], "blob": [b"\x01\x02"], "list": [[0.5, None]], "day": at.cast(pa.date32()), "at": at}
    pq.write_table(pa.table(keys | features), folder / "f.parquet")
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize()
        yield folder
        store.stop()


def key_options(**others: str) -> list[str]:
    """Return the options that ask for the one row, some keys replaced."""
    return [word for name, value in (KEYS | others).items() for word in ("-k", f"{name}={value}")]


def test_get_online_reads_keys_in_their_types(run: Run, typed: Path) -> None:
    """Keys are read as their declared types, values with commas as JSON; answers are in the types' JSON forms."""
    found = run("get-online", "svc", *key_options(), "--json", repo=typed).json()

    assert found["statuses"] == {"v": ["PRESENT"]}
    assert found["features"] == {
        "v__blob": ["AQI="], "v__list": [[0.5, None]], "v__day": ["2024-01-01"], "v__at": ["2024-01-01T00:00:00Z"]
    }  # fmt: skip
    shown = run("get-online", "svc", *key_options(), repo=typed).out.splitlines()[1]
    assert shown.split() == [*list(KEYS.values())[:-1], "a,b", "AQI=", "[0.5,", "null]", "2024-01-01", "2024-01-01T00:00:00Z"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("i", "1.5", "key 'i' is Int64, and '1.5' is none"),
        ("i", "9223372036854775808", "key 'i' holds a value that is no Int64"),
        ("i", "[true]", "key 'i' is Int64, and True is none"),
        ("i", "007", "key 'i' is Int64, and '007' is none"),
        ("b", "yes", "key 'b' is Bool, and 'yes' is none"),
        ("d", "1.1.2024", "key 'd' is Date, and '1.1.2024' is none"),
        ("t", "noon", "key 't' is Timestamp, and 'noon' is none"),
        ("x", "%", "key 'x' is Bytes, and '%' is none"),
        ("n", "[1]", "key 'n' is String, and 1 is none"),
        ("n", '["a"', "key 'n' begins with [ and is no JSON array"),
        ("n", "a,b", "key columns differ in length"),
    ],
)
def test_get_online_refuses_keys_of_wrong_types(run: Run, typed: Path, key: str, value: str, message: str) -> None:
    """What is no value of a key's type is refused with the key's name and type."""
    found = run("get-online", "svc", *key_options(**{key: value}), "--json", repo=typed).error()

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
def test_get_online_names_the_nearest(ask: Run, arguments: list[str], message: str) -> None:
    """Unknown services, views, features and keys are refused with the nearest known name."""
    assert ask("get-online", *arguments) == Result(1, "", f"error: {message}\n")


def test_redis_that_does_not_answer(ask: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that is not there is named with what to look at, its password hidden."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://me:secret@127.0.0.1:1")
    arguments = ["get-online", "machine_health_v1", "-k", "sensor_id=pump_1"]

    result = ask(*arguments)

    assert result.code == 1
    assert "the online store redis://me:***@127.0.0.1:1 does not answer" in result.err
    assert "secret" not in result.err
    assert ask(*arguments, "--json").error()["code"] == "online-store"


# get-historical


def test_get_historical_shows_rows(ask: Run) -> None:
    """Without --output the first rows are shown: the spine's columns, then the features."""
    result = ask("get-historical", "machine_health_v1", "--spine", SPINE)

    header, row = result.out.splitlines()
    assert (result.code, result.err) == (0, "")
    assert header.split() == ["sensor_id", "event_timestamp", *COLUMNS]
    assert row.split() == ["pump_1", "2024-01-02T12:00:00", "62.25", "0.209", "1"]


def test_get_historical_in_json(ask: Run) -> None:
    """JSON gives a record for each row, in which any Arrow type has a JSON form."""
    query = SPINE.replace("SELECT", "SELECT 'x'::BLOB AS blob, 1.5::DECIMAL(4, 2) AS price, [DATE '2024-01-01'] AS days,")

    found = ask("get-historical", "machine_health:restarts", "--spine", query, "--json").json()

    spine = {
        "blob": "eA==",
        "price": "1.50",
        "days": ["2024-01-01"],
        "sensor_id": "pump_1",
        "event_timestamp": "2024-01-02T12:00:00",
    }
    assert found == {"rows": [spine | {"machine_health__restarts": 1}], "is_cut": False}


def test_get_historical_shows_as_many_rows_as_asked_for(ask: Run) -> None:
    """--limit cuts what is shown, and the output says so; the default is 20."""
    arguments = ["get-historical", "machine_health_v1", "--spine", f"{SPINE} FROM range(25)"]
    whole = ask(*arguments, "--limit", "25", "--json").json()

    assert len(ask(*arguments, "--json").json()["rows"]) == 20
    assert "These are the first 20 rows; --limit shows more" in ask(*arguments).out
    assert (len(whole["rows"]), whole["is_cut"]) == (25, False)


def test_get_historical_of_no_rows(ask: Run) -> None:
    """A spine without rows is no error."""
    arguments = ["get-historical", "machine_health_v1", "--spine", f"{SPINE} WHERE false"]

    assert ask(*arguments) == Result(0, "The spine has no rows.\n")
    assert ask(*arguments, "--json").json() == {"rows": [], "is_cut": False}


def test_get_historical_writes_parquet(ask: Run, plant: Path, tmp_path: Path) -> None:
    """With --output all rows go to a Parquet file, here from a Parquet spine with a timestamp column of another name."""
    spine = readings(plant).select(["sensor_id", "measured_at"])
    pq.write_table(spine, tmp_path / "spine.parquet")
    arguments = ["get-historical", "machine_health_v1", "--spine", tmp_path / "spine.parquet", "--timestamp-column", "measured_at"]

    result = ask(*arguments, "-o", tmp_path / "a.parquet")
    record = ask(*arguments, "--output", tmp_path / "b.parquet", "--json").json()

    written = pq.read_table(tmp_path / "a.parquet")
    assert result == Result(0, f"126 rows of 5 columns in {tmp_path}/a.parquet\n")
    assert written.select(spine.column_names).equals(spine)
    assert written.equals(pq.read_table(tmp_path / "b.parquet"))
    assert (record["rows"], record["columns"]) == (126, written.column_names)
    assert set(record["table_versions"]) == {"machine_health"}


@pytest.mark.parametrize(("incomplete", "temperature"), [("stale", 58.22), ("null", None)])
def test_get_historical_beyond_the_watermark(ask: Run, incomplete: str, temperature: float | None) -> None:
    """Rows beyond what is materialized are an error unless --incomplete says what to do with them."""
    spine = SPINE.replace("2024-01-02 12:00", "2024-01-03 01:05")
    arguments = ["get-historical", "machine_health:temperature", "--spine", spine, "--json"]

    assert ask(*arguments).error()["code"] == "incomplete"
    [row] = ask(*arguments, "--incomplete", incomplete).json()["rows"]
    assert row["machine_health__temperature"] == temperature


@pytest.mark.parametrize(
    ("spine", "message"),
    [
        ("nowhere.parquet", "no spine at nowhere.parquet"),
        ("SELECT 1 AS x", "the spine has no timestamp column 'event_timestamp'; known: 'x'"),
        ("SELECT nonsense", "the spine's SQL: "),
        (SPINE.replace("'pump_1'", "1"), "key column 'sensor_id' is int32, but the key is declared String"),
    ],
)
def test_get_historical_refuses_a_spine(ask: Run, spine: str, message: str) -> None:
    """A spine that cannot be read, or lacks a column, is refused with the reason."""
    found = ask("get-historical", "machine_health_v1", "--spine", spine, "--json").error()

    assert found["code"] == "spine"
    assert found["message"].startswith(message)


def test_get_historical_into_no_folder(ask: Run, tmp_path: Path) -> None:
    """A file that cannot be written is named."""
    output = tmp_path / "nowhere" / "a.parquet"

    assert ask("get-historical", "machine_health_v1", "--spine", SPINE, "-o", output).err.startswith(
        f"error: cannot write {output}"
    )


# serve, stop, teardown


def test_serve_becomes_the_server(plant: Path, tmp_path: Path) -> None:
    """`serve` replaces itself by the server's module, which gets the options, and no module of the repo."""
    package = tmp_path / "featurestore_server"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import os, sys; print(os.getcwd(), *sys.argv[1:], sys.flags.safe_path)")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    result = in_process("serve", "--port", "8123", "--json", "--debug", cwd=plant, PYTHONPATH=paths)

    assert result == Result(0, f"{plant} --repo . --host 127.0.0.1 --port 8123 --json --debug True\n")


@pytest.mark.parametrize("missing", ["featurestore_server", "fastapi", "uvicorn"])
def test_serve_without_its_packages(ask: Run, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without the server or what it needs, serve says what to install."""
    monkeypatch.setattr("featurestore.cli.serving.find_spec", lambda name: None if name == missing else object())

    found = ask("serve", "--json").error()

    assert found["code"] == "missing-dependency"
    assert found["message"].endswith("pip install 'featurestore[server]'")


def test_serve_checks_the_repo_first(run: Run, tmp_path: Path) -> None:
    """`serve` without a repo fails as every command does."""
    assert run("serve", "--json", repo=tmp_path).error()["code"] == "settings"


def test_stop_ends_the_server_and_keeps_its_rows(run: Run, fresh: Path) -> None:
    """`stop` ends the embedded server once; the next lookup starts it again, with its rows."""
    run("materialize", repo=fresh)

    assert run("stop", repo=fresh) == Result(0, "The embedded online server is stopped; its rows are kept.\n")
    assert run("stop", "--json", repo=fresh).json() == {"stopped": False}
    assert run("stop", repo=fresh).out == "No embedded online server was running.\n"
    found = run("get-online", "machine_health_v1", "-k", "sensor_id=pump_1", "--json", repo=fresh).json()
    assert found["statuses"] == {"machine_health": ["PRESENT"]}
    assert run("stop", "--json", repo=fresh).json() == {"stopped": True}


def test_stop_leaves_a_server_of_ones_own(run: Run, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that the settings name is not ours to stop."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://127.0.0.1:1")

    assert "a server of your own, which goes on" in run("stop", repo=fresh).out


def test_teardown_needs_a_yes(run: Run, fresh: Path) -> None:
    """Without a terminal teardown wants --yes; with it everything made is gone, and definitions and data stay."""
    run("materialize", repo=fresh)

    refused = run("teardown", repo=fresh)

    assert (refused.code, refused.out) == (1, "")
    assert refused.err.endswith("say so with --yes\n")
    assert (fresh / ".featurestore").exists()
    assert run("teardown", "--yes", "--json", repo=fresh).json() == {"removed": True, "project": "fresh"}
    assert sorted(file.name for file in fresh.iterdir()) == [".gitignore", "data", "definitions.py", "featurestore.toml"]
    assert run("stop", "--json", repo=fresh).json() == {"stopped": False}


@pytest.mark.parametrize(("answer", "is_removed"), [("y\n", True), ("n\n", False)])
def test_teardown_asks_on_a_terminal(on_terminal: Run, fresh: Path, answer: str, is_removed: bool) -> None:
    """On a terminal teardown asks, and does what the answer is."""
    result = on_terminal("teardown", repo=fresh, typed=answer)

    assert "the registry of project 'fresh'" in result.out
    assert result.code == (0 if is_removed else 1)
    assert (fresh / ".featurestore").exists() is not is_removed


# How it looks


def test_a_terminal_gets_colours(on_terminal: Run, monkeypatch: pytest.MonkeyPatch, plant: Path) -> None:
    """Colours are for terminals, unless NO_COLOR is set."""
    colour = re.compile("\x1b\\[[0-9;]*3[0-7]m")

    assert colour.search(on_terminal("status", repo=plant).out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(on_terminal("status", repo=plant).out)


def test_a_pipe_gets_plain_and_whole_lines(plant: Path) -> None:
    """Piped output has no colours, is not cut whatever width is set, and has no blanks at its lines' ends."""
    result = in_process("get-online", "machine_health_v1", "-k", "sensor_id=pump_1", cwd=plant, COLUMNS="20", TERM="xterm")

    assert result.out.splitlines()[0].split() == ["sensor_id", *COLUMNS]
    assert "\x1b" not in result.out
    assert [line for line in result.out.splitlines() if line != line.rstrip()] == []


def test_a_narrow_terminal_turns_tables(on_terminal: Run, plant: Path) -> None:
    """What does not fit a terminal's width is shown with a line for each column."""
    shown = on_terminal("get-online", "machine_health_v1", "-k", "sensor_id=pump_1,pump_2,pump_3", repo=plant, columns=50).out
    plain = [" ".join(line.split()) for line in re.sub("\x1b\\[[0-9;]*m", "", shown).splitlines()]

    assert plain[:9] == [
        "sensor_id pump_1 pump_2",
        "machine_health__temperature 58.22 63.87",
        "machine_health__vibration 0.215 0.347",
        "machine_health__restarts 2 3",
        "",
        "sensor_id pump_3",
        "machine_health__temperature OUTSIDE_MAX_AGE",
        "machine_health__vibration OUTSIDE_MAX_AGE",
        "machine_health__restarts OUTSIDE_MAX_AGE",
    ]


def test_progress_is_shown_on_a_terminal_only(run: Run, on_terminal: Run, fresh: Path, tmp_path: Path) -> None:
    """On a terminal, runs and training sets show rows by view and phase while they go; piped, stderr stays empty."""
    materialized = on_terminal("materialize", repo=fresh).out
    built = on_terminal("get-historical", "machine_health_v1", "--spine", SPINE, "-o", tmp_path / "a.parquet", repo=fresh).out

    assert re.search("machine_health offline.*126 of 126 rows", materialized)
    assert re.search("machine_health online.*3 of 3 rows", materialized)
    assert re.search("training set.*1 of 1 rows", built)
    assert run("materialize", repo=fresh).err == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (1, "1"), (0.1, "0.1"), ("a b", "a b"), ("", "''"), ("é", "é"), (["a", None], '["a", null]'),
     ("\x1b[31m\n", r"'\x1b[31m\n'"), (Text("x"), "x")],
)  # fmt: skip
def test_cells(value: Any, text: str) -> None:
    """A cell shows a JSON value; what could move the cursor is escaped."""
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


@pytest.mark.parametrize("words", [["a b", "c"], ["it's"], ['"', "'"], ["$HOME 'x'"], ["`x` '"], ["\\'"], ["!'"]])
def test_shell_lines(words: list[str]) -> None:
    """A shell reads from a line the words that it was made of."""
    line = shell_line("printf", r"%s\n", *words)

    assert subprocess.run(["/bin/sh", "-c", line], check=True, capture_output=True, text=True).stdout.splitlines() == words


# How it ends


def test_unexpected_errors_are_one_line(ask: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a bug ends as one line; --debug shows where it is."""
    monkeypatch.setattr(FeatureStore, "applied", lambda _: 1 / 0)

    result, debugged = ask("list"), ask("list", "--debug")

    assert result == Result(1, "", "error: unexpected ZeroDivisionError: division by zero (--debug shows where)\n")
    assert ask("list", "--json").error()["code"] == "internal"
    assert debugged.err.startswith("Traceback")
    assert debugged.err.endswith(result.err)


def test_debug_shows_the_traceback_of_any_error(run: Run, tmp_path: Path) -> None:
    """--debug, before the command too, shows where an expected error comes from."""
    assert run("--debug", "plan", repo=tmp_path).err.startswith("Traceback")
    assert "Traceback" not in run("plan", repo=tmp_path).err


@pytest.mark.parametrize("arguments", [["list", "--json"], ["--help"]])
def test_a_closed_pipe_ends_quietly(plant: Path, arguments: list[str]) -> None:
    """If nobody reads stdout any more, nothing is complained about."""
    reader, writer = os.pipe()
    os.close(reader)

    ended = subprocess.run([*PROGRAM, *arguments], cwd=plant, stdout=writer, stderr=subprocess.PIPE, check=False)

    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_ctrl_c_is_one_word(plant: Path, tmp_path: Path) -> None:
    """A command that is interrupted says so in one word, with exit code 130."""
    endless = SPINE + " FROM range(100_000_000_000)"
    command = [*PROGRAM, "get-historical", "machine_health_v1", "--spine", endless]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=plant, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise disguise from None

    assert failures.guarded(interrupted, as_json=False, debug=False) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
