from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.commands import COLUMNS, SPINE, Result, Run, readings


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
