from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from featurestore.cli import rendering
from tests.commands import COLUMNS, SPINE, Run, in_process


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
