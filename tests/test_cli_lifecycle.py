from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Result, Run


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


def test_delete_entities_says_where_nothing_had_them(run: Run, fresh: Path) -> None:
    """A key that no table has, as a misspelt one, is not said to be erased; its tombstone is there, and can be lifted."""
    run("materialize", repo=fresh)
    arguments = ["delete-entities", "sensor", "-k", "sensor_id=pump_99"]

    result = run(*arguments, "--yes", repo=fresh)

    said = "Nothing had a row of 1 sensor; later runs and pushes take none. The sources are yours to erase.\n"
    assert (result.code, result.out.endswith(said)) == (0, True)
    assert run(*arguments, "--lift", repo=fresh).out.startswith("1 tombstone lifted")


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


def test_teardown_leaves_no_folder_of_a_view(run: Run, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the offline store is no folder of the repo's own, the folders of views go too, unless others have something there."""
    monkeypatch.setenv("FEATURESTORE_OFFLINE__PATH", str(tmp_path / "shared"))
    run("materialize", repo=fresh)
    assert (tmp_path / "shared/machine_health").exists()
    (tmp_path / "shared/of_another").mkdir()

    assert run("teardown", "--yes", repo=fresh).code == 0

    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["of_another"]


@pytest.mark.parametrize(("answer", "is_removed"), [("y\n", True), ("n\n", False)])
def test_teardown_asks_on_a_terminal(on_terminal: Run, fresh: Path, answer: str, is_removed: bool) -> None:
    """On a terminal teardown asks, and does what the answer is."""
    result = on_terminal("teardown", repo=fresh, typed=answer)

    assert "the registry of project 'fresh'" in result.out
    assert result.code == (0 if is_removed else 1)
    assert (fresh / ".featurestore").exists() is not is_removed
