from __future__ import annotations

from pathlib import Path

from tests.commands import NEW_TTL, Run, apply

ANOTHER_TTL = ('ttl="2d"', 'ttl="3d"')


def _two_versions(run: Run, repo: Path) -> None:
    assert run("materialize", repo=repo).code == 0
    apply(repo, NEW_TTL)
    assert run("materialize", repo=repo).code == 0


def test_rollback_says_what_serves_again(run: Run, fresh: Path) -> None:
    """The version before serves again; plan then shows that the definitions are ahead."""
    _two_versions(run, fresh)
    result = run("rollback", "machine_health", repo=fresh)

    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "machine_health v1 serves again instead of v2.\n\n"
        f"Change the definitions back too; featurestore --repo {fresh} plan shows how they differ now.\n"
    )
    plan = run("plan", repo=fresh).out
    assert "~ feature view    machine_health\n    ttl: 12h -> 2d\n" in plan
    assert "~ machine_health v2, kept for rollback, replaces v1: at once, or when it has what it lacks" in plan
    record = run("rollback", "machine_health", "--json", repo=fresh).json()
    assert record == {"versions": [{"view": "machine_health", "from": 1, "to": 2}], "objects": []}


def test_rollback_asks_on_a_terminal(on_terminal: Run, run: Run, fresh: Path) -> None:
    """Without --yes somebody at a terminal is asked, and a no changes nothing."""
    _two_versions(run, fresh)
    refused = on_terminal("rollback", "machine_health", repo=fresh, typed="n\n")

    assert refused.code == 1
    assert "nothing was rolled back" in refused.out
    assert run("status", "--json", repo=fresh).json()["views"][1]["state"] == "serving"
    assert on_terminal("rollback", "machine_health", repo=fresh, typed="y\n").code == 0


def test_rollback_without_a_version_before_is_one_error(run: Run, fresh: Path) -> None:
    """The error has its own code and names the view."""
    error = run("rollback", "machine_health", "--json", repo=fresh).error()

    assert (error["code"], error["name"]) == ("rollback", "machine_health")


def test_prune_says_what_it_removed(run: Run, fresh: Path) -> None:
    """What no rollback reaches is removed, the last hour's only with --now."""
    _two_versions(run, fresh)
    apply(fresh, ANOTHER_TTL)
    assert run("materialize", repo=fresh).code == 0

    assert run("prune", repo=fresh).out == "Nothing to remove.\n"
    [removed] = run("prune", "--now", "--json", repo=fresh).json()
    assert removed == {"view": "machine_health", "version": 1, "online_rows": 3, "is_complete": True}
    assert run("prune", "--now", repo=fresh).out == "Nothing to remove.\n"
    states = [view["state"] for view in run("status", "--all", "--json", repo=fresh).json()["views"]]
    assert states == ["removed", "replaced", "serving"]


def test_status_and_plan_say_what_a_candidate_waits_for(run: Run, fresh: Path) -> None:
    """A candidate's needs are in both, and a service that waits for it is pending."""
    assert run("materialize", repo=fresh).code == 0
    apply(fresh, NEW_TTL)
    needs = "materialization until 2024-01-03T00:00:00Z"

    assert f"Candidates\n  machine_health v2 waits for {needs}\n" in run("plan", repo=fresh).out
    assert f"machine_health v2: to take over, it waits for {needs}\n" in run("status", repo=fresh).out
    serving, candidate = run("status", "--json", repo=fresh).json()["views"]
    assert (serving["needs"], candidate["needs"]) == ([], [f"machine_health v2: {needs}"])
