"""`featurestore push`, and what other commands say of push sources."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.commands import Run
from tests.conftest import NOON, TIME, Repo, at
from tests.test_push import define

ROWS = {"tail": ["A", "B"], "rested": [True, None], "hours": [1, 2], "at": pa.array([at(NOON)] * 2, TIME)}


@pytest.fixture
def pushed(repo: Repo) -> Path:
    """The folder of a repo with a push source, applied, and a file of rows."""
    define(repo)
    repo.write("rows.parquet", ROWS)
    return repo.folder


def test_push_takes_the_rows_of_a_file(run: Run, pushed: Path) -> None:
    """All rows are pushed; with the key of an earlier push nothing is, and the answer is the same."""
    first = run("push", "crew", pushed / "rows.parquet", "--idempotency-key", "k", "--json", repo=pushed).json()
    again = run("push", "crew", pushed / "rows.parquet", "--idempotency-key", "k", "--json", repo=pushed).json()
    shown = run("push", "crew", pushed / "rows.parquet", repo=pushed)
    online = run("get-online", "crew_of", "-k", "tail=A", "--json", repo=pushed).json()

    assert (first["rows"], first["erased"], [each["online"] for each in first["pushes"]]) == (2, 0, [True])
    assert again == first
    assert (shown.code, shown.out) == (0, "2 rows pushed to crew.\n")
    assert online["features"]["crew_state__hours"] == [1]


def test_a_long_file_is_checked_before_it_is_pushed_in_parts(
    run: Run, repo: Repo, pushed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the last part keeps all of the file out; without it the parts are pushed one after the other."""
    monkeypatch.setattr("featurestore.push_file._BATCH_ROWS", 2)
    table = pa.table(ROWS)
    repo.write("long.parquet", pa.concat_tables([table, table, table.slice(1)]))
    repo.write("faulty.parquet", pa.concat_tables([table, table.set_column(0, "tail", pa.array(["A", None]))]))
    repo.write(
        "future.parquet", pa.concat_tables([table, table.set_column(3, "at", pa.array([at(NOON), at(NOON + 10**17)], TIME))])
    )

    refused = run("push", "crew", pushed / "faulty.parquet", "--json", repo=pushed).error()
    early = run("push", "crew", pushed / "future.parquet", "--json", repo=pushed).error()
    done = run("push", "crew", pushed / "long.parquet", "--json", repo=pushed).json()

    assert "row 3: 'tail' is null" in refused["message"]  # of the file
    assert "row 3: 'at' lies in the future" in early["message"]
    assert ([each["rows"] for each in done["pushes"]], done["rows"]) == ([2, 2, 1], 5)
    assert repo.open().registry.pushes.state("crew").rows == 5


def test_files_and_sources_that_there_are_not(run: Run, pushed: Path) -> None:
    """One clear error names what is not there."""
    assert "cannot read" in run("push", "crew", pushed / "none.parquet", repo=pushed).err
    assert "no push source 'crow'; did you mean 'crew'?" in run("push", "crow", pushed / "rows.parquet", repo=pushed).err


def test_push_sources_are_listed_and_described(run: Run, pushed: Path) -> None:
    """A push source is a source among others, with its columns, its log and the views that it feeds; status has its log."""
    run("push", "crew", pushed / "rows.parquet", repo=pushed)
    listed = run("list", "sources", repo=pushed).out
    described = run("describe", "crew", "--kind", "source", repo=pushed).out
    status = run("status", "--json", repo=pushed).json()

    assert "pushed" in listed
    assert "hours" in described
    assert "crew_minutes" in described
    assert status["push_sources"][0]["source"] == "crew"
    assert (status["push_sources"][0]["rows"], status["push_sources"][0]["rows_not_folded"]) == (2, 2)
    assert {each["online"] for each in status["views"]} == {"pushed"}
    assert not any(each["is_overdue"] for each in status["views"])
    assert "crew" in run("status", repo=pushed).out


def test_doctor_finds_push_views_well(run: Run, pushed: Path) -> None:
    """A push view that no run has folded yet is no fault."""
    run("push", "crew", pushed / "rows.parquet", repo=pushed)
    findings = run("doctor", "--json", repo=pushed)

    assert "not materialized" not in findings.out
    assert "lost rows" not in findings.out


def test_prune_and_teardown_remove_logs(run: Run, repo: Repo, pushed: Path) -> None:
    """The log of a push source that is not applied any more goes with the last version that it fed; teardown leaves none."""
    run("push", "crew", pushed / "rows.parquet", repo=pushed)
    run("materialize", repo=pushed)
    log = pushed / ".featurestore" / "offline" / "_pushed" / "crew"
    assert list(log.glob("*.parquet"))
    repo.define('aircraft = Entity("aircraft", join_keys={"tail": String})\n')
    run("apply", "--yes", repo=pushed)
    assert list(log.glob("*.parquet"))
    run("prune", "--now", repo=pushed)

    assert not log.exists()
    assert repo.open().registry.pushes.sources() == []
