from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import Result, Run, apply, readings


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


def test_compact_puts_files_together(run: Run, fresh: Path) -> None:
    """`compact` says how many files it has put together and removed; JSON gives the reports, and an unknown view is refused."""
    for hours in range(1, 4):
        assert run("materialize", "--end", f"2024-01-01T0{hours}:00:00Z", repo=fresh).code == 0

    [report] = run("compact", "--vacuum", "--json", repo=fresh).json()["reports"]
    assert (report["view"], report["compacted"], report["vacuumed"]) == ("machine_health", 3, 0)
    assert run("compact", repo=fresh).code == 0
    refused = run("compact", "--views", "machine", repo=fresh)
    assert (refused.code, "machine_health" in refused.err) == (1, True)
