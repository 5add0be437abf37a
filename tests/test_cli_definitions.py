from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from featurestore import FeatureStore
from featurestore.cli import example
from featurestore.cli.invocation import shell_line
from tests.commands import NEW_TTL, PROGRAM, Result, Run, apply, edit, in_process, readings

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


def test_plan_shows_what_is_new(run: Run, tmp_path: Path) -> None:
    """A plan lists what is created and the versions to materialize, says what to run next, and changes nothing."""
    example.create(tmp_path)

    result, record = run("plan", repo=tmp_path), run("plan", "--json", repo=tmp_path).json()

    memory = "machine_health v1 online: about 3 keys of 42 bytes, 420 B\n"
    assert result == Result(0, f"{CREATED}{memory}\nNext: featurestore --repo {tmp_path} apply\n")
    assert record["online_memory"] == [{"view": "machine_health", "version": 1, "keys": 3, "row_bytes": 42.0, "memory_bytes": 420}]
    assert (record["revision"], [change["action"] for change in record["changes"]]) == (0, ["create"] * 4)
    assert run("plan", repo=tmp_path) == result


def test_what_definitions_print_is_no_part_of_the_answer(run: Run, fresh: Path) -> None:
    """A `print` that somebody looks for a fault with goes to stderr, also that of a function of theirs, so JSON can be read."""
    text = (fresh / "definitions.py").read_text()
    (fresh / "definitions.py").write_text(text + "\ndef seen():\n    print('here', 1, sep=':')\n\nseen()\n")

    result = run("plan", "--json", repo=fresh)

    assert (result.code, result.err) == (0, "here:1\n")
    assert json.loads(result.out)["changes"] == []


def test_an_empty_plan(ask: Run) -> None:
    """What is applied already is nothing to change, for plan and apply."""
    assert ask("plan") == Result(0, "Nothing to change.\n")
    assert ask("apply") == Result(0, "Nothing to change.\n")
    assert ask("apply", "--json").json()["applied"] is False


def test_plan_shows_changes_field_by_field(run: Run, fresh: Path) -> None:
    """A change shows each field before and after, and of lists what leaves and what comes; so do the version's reasons."""
    edit(fresh, NEW_TTL, NEW_NAME, (', Field("restarts", Int64)', ""), ('description="A sensor on a machine"', 'owner="team"'))

    memory = "machine_health v2 online: about 3 keys of 34 bytes, 420 B\n"
    assert run("plan", repo=fresh) == Result(0, f"{CHANGED}{memory}\nNext: featurestore --repo {fresh} apply\n")


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
    del planned["online_memory"]

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
