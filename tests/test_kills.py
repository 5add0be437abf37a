"""SIGKILL at any moment: whoever runs next gets what nobody had disturbed, without a repair.

`--kills=100` is the long run; the suite has fewer.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from featurestore import FeatureStore
from featurestore.errors import ConflictError, FeatureStoreError, RollbackError, RunInProgressError, RunsFailedError
from featurestore.online import embedded
from tests.conftest import NOON
from tests.kills import Killer, Moment, Weather, change, contents, unnamed_files

FILL = ["apply", "materialize"]

MOMENTS: list[tuple[list[str], Moment]] = [
    (["apply"], ("featurestore.registry.registry:Registry.apply", "before", 1)),
    (["apply"], ("featurestore.registry.registry:_add_version", "after", 1)),
    (["apply"], ("featurestore.registry.registry:settle_now", "after", 1)),
    (["apply"], ("featurestore.registry.registry:Registry.apply", "after", 1)),
    (FILL, ("featurestore.registry.registry:Registry.start_run", "after", 1)),
    (FILL, ("featurestore.offline.tables:OfflineTable.copy", "after", 1)),
    (FILL, ("featurestore.offline.tables:OfflineTable.copy", "after", 4)),
    (FILL, ("featurestore.offline.tables:OfflineTable.commit", "before", 2)),
    (FILL, ("featurestore.offline.tables:OfflineTable.commit", "after", 2)),
    (FILL, ("featurestore.registry.registry:Registry.cover", "after", 2)),
    (FILL, ("featurestore.online.store:OnlineLoad.write", "before", 1)),
    (FILL, ("featurestore.online.store:OnlineLoad.write", "after", 2)),
    (FILL, ("featurestore.online.store:OnlineLoad.delete", "before", 1)),
    (FILL, ("featurestore.online.store:OnlineLoad.sweep", "before", 1)),
    (FILL, ("featurestore.online.store:OnlineLoad.finish", "before", 1)),
    (FILL, ("featurestore.online.store:OnlineLoad.finish", "after", 3)),
    (FILL, ("featurestore.registry.registry:Registry.finish_run", "after", 1)),
    (FILL, ("featurestore.registry.registry:settle_now", "before", 3)),
    (FILL, ("featurestore.retirement:_remove", "before", 1)),
    ([*FILL, "rollback 2"], ("featurestore.registry.takeover:set_state", "after", 2)),
    ([*FILL, "rollback 2"], ("featurestore.registry.registry:Registry.rollback", "after", 1)),
]


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """One warm process for all."""
    with Killer() as started:
        yield started


def assert_equal(killed: Weather, other: dict[str, Any]) -> None:
    """A repo holds what another does, and no file that nobody names."""
    one = contents(killed)
    assert one.keys() == other.keys()
    for part in one:
        assert one[part] == other[part], part
    assert unnamed_files(killed.folder) == []


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Weather:
    """A repo in its second version, whose sources and definitions have moved on to a third; its server is stopped."""
    repo = Weather(tmp_path_factory.mktemp("kills") / "changed")
    for hours in (4, 5):
        repo.move_on(hours=hours)
        change(repo.folder, repo.now, FILL)
    repo.move_on(hours=6)
    repo.stop()
    return repo


@pytest.fixture
def repo(changed: Weather, tmp_path: Path) -> Iterator[Weather]:
    """A copy of it whose server runs."""
    copy = changed.copied(tmp_path / "repo")
    embedded.ensure_running(copy.folder / ".featurestore/online")
    yield copy
    copy.stop()


@pytest.fixture(scope="module")
def undisturbed(changed: Weather) -> Callable[[list[str]], dict[str, Any]]:
    """What it holds after some steps that nobody disturbed."""

    @cache
    def after(*steps: str) -> dict[str, Any]:
        repo = changed.copied(changed.folder.with_name(" ".join(steps)))
        change(repo.folder, repo.now, list(steps))
        held = contents(repo)
        repo.stop()
        return held

    return lambda steps: after(*steps)


@pytest.mark.parametrize(("steps", "moment"), MOMENTS, ids=lambda each: ":".join(map(str, each)) if isinstance(each, tuple) else "")
def test_a_kill_at_a_chosen_moment_changes_no_result(
    killer: Killer, repo: Weather, undisturbed: Callable[[list[str]], dict[str, Any]], steps: list[str], moment: Moment
) -> None:
    """Before and after each step of apply, run, load, takeover and rollback: run again, and it is as if nothing had happened."""
    assert os.WTERMSIG(killer.run(repo.folder, repo.now, steps, moment=moment)) == signal.SIGKILL
    change(repo.folder, repo.now, steps)
    assert_equal(repo, undisturbed(steps))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_random_kills_change_no_result(killer: Killer, tmp_path: Path, request: pytest.FixtureRequest, database: str) -> None:
    """Through one life of a repo, with changes, corrections and rollbacks: each step killed at a random moment, then run again."""
    kills, seed = request.config.getoption("--kills"), request.config.getoption("--kill-seed")
    print(f"--kill-seed={seed}")  # noqa: T201 (to do it again)
    registries = ["sqlite:///.featurestore/registry.db"] * 2
    if database == "postgresql":
        registries = [request.getfixturevalue("make_postgres_url")() for _ in range(2)]
    repos = [Weather(tmp_path / name, registry=url) for name, url in zip(("killed", "clean"), registries, strict=True)]
    try:
        _kill_through_a_life(killer, *repos, kills=kills, draw=random.Random(seed))
    finally:
        for repo in repos:
            repo.stop()


def _kill_through_a_life(killer: Killer, killed: Weather, clean: Weather, *, kills: int, draw: random.Random) -> None:
    done, number, repos = 0, 0, (killed, clean)
    while done < kills:
        number += 1
        hours = draw.choice([None, 3 + number])
        steps = [*FILL, *draw.choice([[], ["again"]])]
        for repo in repos:
            repo.move_on(hours=hours)
        if number > 2 and draw.random() < 0.3:
            with FeatureStore(clean.folder, clock=lambda: clean.now) as store:
                kept = [each.number for each in store.applied().versions_of("airport_weather") if each.is_rollback]
            # The definitions are ahead of a version that is rolled back to, and the next apply would return to them.
            steps = ["materialize", *(f"rollback {each}" for each in kept)] if hours is None else steps
        if draw.random() < 0.3:
            steps = [*steps, f"erase A{draw.randrange(150)}"]
        began = time.monotonic()
        change(clean.folder, clean.now, steps)
        took = time.monotonic() - began
        for _ in range(draw.choice([1, 1, 2])):
            done += killer.run(killed.folder, killed.now, steps, delay=draw.uniform(0, took)) == signal.SIGKILL
        _change_when_free(killed, steps)
        assert_equal(killed, contents(clean))


def _change_when_free(repo: Weather, steps: list[str]) -> None:
    """Do what was killed, once the lease is free: a database server notices the end of a session a moment later."""
    for _ in range(100):
        try:
            change(repo.folder, repo.now, steps)
        except (RunInProgressError, RunsFailedError) as error:
            if isinstance(error, RunsFailedError) and not all(
                isinstance(each, RunInProgressError) for each in error.failures.values()
            ):
                raise
            time.sleep(0.05)
        else:
            return
    pytest.fail("the lease of a killed process is not freed")


# Two of everything


@pytest.mark.parametrize("steps", [(["materialize"], ["materialize"]), (["apply"], ["apply"]), (["materialize"], ["apply"]),
                                   (["materialize"], ["rollback 1"]), (["apply"], ["rollback 1"])])  # fmt: skip
def test_two_at_once_end_as_one_after_the_other(killer: Killer, repo: Weather, steps: tuple[list[str], list[str]]) -> None:
    """Two processes at once: each is done, or refused with a clear error and done when it is run again; the result is the same."""
    ended: list[int] = []
    threads = []
    with Killer() as other:
        for runner, each in ((killer, steps[0]), (other, steps[1])):
            thread = threading.Thread(target=lambda runner=runner, each=each: ended.append(runner.run(repo.folder, repo.now, each)))
            threads.append(thread)
            thread.start()
        for thread in threads:
            thread.join(100)
    assert len(ended) == 2
    refused: tuple[type[FeatureStoreError], ...] = (ConflictError, RunInProgressError, RollbackError)
    for each in (*steps, FILL):
        with suppress(*refused):
            change(repo.folder, repo.now, each)
    with FeatureStore(repo.folder, clock=lambda: repo.now) as store:
        assert all(view.is_equal for view in store.verify(keys=None).views)
        serving = [each for each in store.applied().versions if each.state == "serving"]
        assert sorted(each.view.name for each in serving) == ["airport_gates", "airport_weather"]
        assert {each.coverage.end for each in serving if each.coverage} == {repo.now}
    assert unnamed_files(repo.folder) == []


def test_two_rollbacks_at_once_are_two_rollbacks(repo: Weather) -> None:
    """Each is one transaction, so two return to where they began, and none is half done."""
    start, answers = threading.Barrier(2), []

    def roll() -> None:
        with FeatureStore(repo.folder, clock=lambda: NOON) as store:
            start.wait()
            answers.append(dict(store.rollback("airport_weather").versions))

    threads = [threading.Thread(target=roll) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answer["airport_weather"] for answer in answers) == [(1, 2), (2, 1)]
    with FeatureStore(repo.folder) as store:
        assert [each.state for each in store.applied().versions_of("airport_weather")] == ["replaced", "serving"]
