from __future__ import annotations

import re
from pathlib import Path

import pytest

from featurestore.cli import example
from tests.commands import NEW_TTL, Run, apply


def test_status_shows_how_far_each_view_is(ask: Run, plant: Path) -> None:
    """A line for each living version: its state, watermark, lag, rows, online load and last run."""
    record = ask("status", "--json").json()
    memory = record["views"][0]["online_rows"]["memory_bytes"]  # which depends on the server's allocator

    assert 3 * 42 < memory < 500
    assert ask("status").out == (
        f"plant in {plant}, now 2024-01-03T00:00:00Z\n"
        "registry sqlite:///.featurestore/registry.db, online store embedded, running\n\n"
        "view            version  state    watermark             behind  rows  files  online  last run\n"
        "machine_health        1  serving  2024-01-03T00:00:00Z  0s       126      1  loaded  completed\n\n"
        "online rows     version  keys  bytes per row  memory\n"
        f"machine_health        1  3              42.0  {memory} B\n"
    )
    [view] = record["views"]
    assert record["online"] == {"url": "embedded", "is_running": True, "error": None}
    assert (view["view"], view["version"], view["state"], view["online"]) == ("machine_health", 1, "serving", "loaded")
    assert (view["watermark"], view["behind_seconds"], view["is_overdue"]) == ("2024-01-03T00:00:00Z", 0, False)
    assert view["offline"] == {"rows": 126, "files": 1, "error": None}
    assert view["online_rows"] == {"keys": 3, "row_bytes": 42.0, "memory_bytes": memory, "is_exact": True}
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
    kept, view = run("status", "--json", repo=fresh).json()["views"]
    versions = run("status", "--all", "--json", repo=fresh).json()["views"]

    assert (view["behind_seconds"], view["is_overdue"], view["online"]) == (3 * 3600 + 1800, True, "behind")
    assert re.search(r"^machine_health +2 +serving +2024-01-02T20:30:00Z +3h 30m +\d+ +\d+ +behind +failed$", result, re.MULTILINE)
    assert "machine_health v2: the online store redis://127.0.0.1:1 does not answer" in result
    assert (kept["version"], kept["state"], kept["is_rollback"], kept["needs"]) == (1, "replaced", True, ["its online load"])
    assert "machine_health v1: to serve again, it waits for its online load" in result
    assert [(each["version"], each["state"]) for each in versions] == [(1, "replaced"), (2, "serving")]


def test_status_without_the_online_store(run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it does not answer is said in the place of its rows; the command succeeds."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://127.0.0.1:1")
    found = run("status", repo=copied)
    record = run("status", "--json", repo=copied).json()

    assert (found.code, record["views"][0]["online_rows"]) == (0, None)
    assert "no online rows: the online store redis://127.0.0.1:1 does not answer" in found.out
    assert record["online"]["error"].startswith("the online store redis://127.0.0.1:1 does not answer")


def test_status_survives_a_broken_table(run: Run, copied: Path) -> None:
    """A table that cannot be read is reported; the command succeeds."""
    for log in (copied / ".featurestore/offline").rglob("_delta_log/*.json"):
        log.write_text("broken")

    [view] = run("status", "--json", repo=copied).json()["views"]

    assert view["offline"]["rows"] is None
    assert "cannot read the table of view 'machine_health'" in view["offline"]["error"]
    assert "machine_health v1: cannot read the table" in run("status", repo=copied).out
