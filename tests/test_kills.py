"""SIGKILL at any moment: whoever runs next gets what nobody had disturbed, without a repair.

`--kills=100` is the long run; the suite has fewer.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from featurestore import FeatureStore
from featurestore.errors import ConflictError, FeatureStoreError, RollbackError, RunInProgressError
from tests.conftest import NOON
from tests.kills import Killer, Moment, Weather, change, contents, unnamed_files

FILL = ["apply", "materialize"]

MOMENTS: list[tuple[list[str], Moment]] = [
    (["apply"], ("featurestore.registry.registry:Registry.apply", "before", 1)),
    (["apply"], ("featurestore.registry.registry:_add_version", "after", 1)),
    (["apply"], ("featurestore.registry.registry:settle_now", "after", 1)),
    (["apply"], ("featurestore.registry.registry:Registry.apply", "after", 1)),
    (FILL, ("featurestore.registry.registry:Registry.start_run", "after", 1)),
    (FILL, ("featurestore.offline.tables:OfflineTable._copy", "after", 1)),
    (FILL, ("featurestore.offline.tables:OfflineTable._copy", "after", 4)),
    (FILL, ("featurestore.offline.tables:OfflineTable._commit", "before", 2)),
    (FILL, ("featurestore.offline.tables:OfflineTable._commit", "after", 2)),
    (FILL, ("featurestore.registry.registry:Registry.cover", "after", 2)),
    (FILL, ("featurestore.online.store:OnlineStore.write", "before", 1)),
    (FILL, ("featurestore.online.store:OnlineStore.write", "after", 2)),
    (FILL, ("featurestore.online.store:OnlineStore.delete", "before", 1)),
    (FILL, ("featurestore.online.store:OnlineStore.sweep", "before", 1)),
    (FILL, ("featurestore.online.store:OnlineStore.mark_loaded", "before", 1)),
    (FILL, ("featurestore.online.store:OnlineStore.mark_loaded", "after", 3)),
    (FILL, ("featurestore.registry.registry:Registry.finish_run", "after", 1)),
    (FILL, ("featurestore.registry.registry:settle_now", "before", 3)),
    (FILL, ("featurestore.retirement:_remove", "before", 1)),
    ([*FILL, "rollback 1"], ("featurestore.registry.takeover:set_state", "after", 2)),
    ([*FILL, "rollback 1"], ("featurestore.registry.registry:Registry.rollback", "after", 1)),
]


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """One warm process for all."""
    with Killer() as started:
        yield started


@pytest.fixture
def repos(tmp_path: Path) -> Iterator[tuple[Weather, Weather]]:
    """Two repos with the same definitions and sources: one loses processes, the other never does."""
    pair = Weather(tmp_path / "killed"), Weather(tmp_path / "clean")
    yield pair
    for repo in pair:
        repo.stop()


def assert_equal(killed: Weather, clean: Weather) -> None:
    """Both hold the same, and the killed one no file that nobody names."""
    one, other = contents(killed), contents(clean)
    assert one.keys() == other.keys()
    for part in one:
        assert one[part] == other[part], part
    assert unnamed_files(killed.folder) == []


@pytest.mark.parametrize(("steps", "moment"), MOMENTS, ids=lambda each: ":".join(map(str, each)) if isinstance(each, tuple) else "")
def test_a_kill_at_a_chosen_moment_changes_no_result(
    killer: Killer, repos: tuple[Weather, Weather], steps: list[str], moment: Moment
) -> None:
    """Before and after each step of apply, run, load, takeover and rollback: run again, and it is as if nothing had happened."""
    killed, clean = repos
    for hours in (4, 5):
        for repo in repos:
            repo.move_on(hours=hours)
            change(repo.folder, repo.now, FILL)
    for repo in repos:
        repo.move_on(hours=6)
    steps = [step.replace("rollback 1", "rollback 2") for step in steps]
    change(clean.folder, clean.now, steps)
    assert os.WTERMSIG(killer.run(killed.folder, killed.now, steps, moment=moment)) == signal.SIGKILL
    change(killed.folder, killed.now, steps)
    assert_equal(killed, clean)


@pytest.mark.timeout(3600)
def test_random_kills_change_no_result(
    killer: Killer, repos: tuple[Weather, Weather], request: pytest.FixtureRequest, record_property: Any
) -> None:
    """Through one life of a repo, with changes, corrections and rollbacks: each step killed at a random moment, then run again."""
    killed, clean = repos
    kills = request.config.getoption("--kills")
    seed = request.config.getoption("--kill-seed")
    draw, done, number = random.Random(seed), 0, 0
    print(f"--kill-seed={seed}")  # noqa: T201 (to do it again)
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
        began = time.monotonic()
        change(clean.folder, clean.now, steps)
        took = time.monotonic() - began
        for _ in range(draw.choice([1, 1, 2])):
            done += killer.run(killed.folder, killed.now, steps, delay=draw.uniform(0, took)) == signal.SIGKILL
        change(killed.folder, killed.now, steps)
        assert_equal(killed, clean)
    record_property("kills", done)


# Two of everything


@pytest.mark.parametrize("steps", [(["materialize"], ["materialize"]), (["apply"], ["apply"]), (["materialize"], ["apply"]),
                                   (["materialize"], ["rollback 1"]), (["apply"], ["rollback 1"])])  # fmt: skip
def test_two_at_once_end_as_one_after_the_other(
    killer: Killer, repos: tuple[Weather, Weather], steps: tuple[list[str], list[str]]
) -> None:
    """Two processes at once: each is done, or refused with a clear error and done when it is run again; the result is the same."""
    both, _ = repos
    for hours in (4, 5):
        both.move_on(hours=hours)
        change(both.folder, both.now, FILL)
    (both.folder / "definitions.py").write_text((both.folder / "definitions.py").read_text().replace('"5h"', '"7h"'))
    ended: list[int] = []
    threads = []
    with Killer() as other:
        for runner, each in ((killer, steps[0]), (other, steps[1])):
            thread = threading.Thread(target=lambda runner=runner, each=each: ended.append(runner.run(both.folder, both.now, each)))
            threads.append(thread)
            thread.start()
        for thread in threads:
            thread.join(100)
    assert len(ended) == 2
    refused: tuple[type[FeatureStoreError], ...] = (ConflictError, RunInProgressError, RollbackError)
    for each in (*steps, FILL):
        with suppress(*refused):
            change(both.folder, both.now, each)
    with FeatureStore(both.folder, clock=lambda: both.now) as store:
        assert all(view.is_equal for view in store.check_parity())
        serving = [each for each in store.applied().versions if each.state == "serving"]
        assert sorted(each.view.name for each in serving) == ["airport_gates", "airport_weather"]
        assert {each.coverage.end for each in serving if each.coverage} == {both.now}
    assert unnamed_files(both.folder) == []


def test_two_rollbacks_at_once_are_two_rollbacks(repos: tuple[Weather, Weather]) -> None:
    """Each is one transaction, so two return to where they began, and none is half done."""
    repo, _ = repos
    for hours in (4, 5):
        repo.move_on(hours=hours)
        change(repo.folder, repo.now, FILL)
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
