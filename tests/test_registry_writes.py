"""Who reads the registry again and again reads all of it only if it was written to: every write but those of pushes is counted."""

from __future__ import annotations

from typing import Any

import pytest

from featurestore import lookups
from featurestore.registry.registry import Registry
from featurestore.registry.state import Coverage, Loaded
from featurestore_server import plans
from featurestore_server.metrics import Metrics
from featurestore_server.plans import Plans
from tests.conftest import NOON, Repo
from tests.databases import Open
from tests.registries import apply, service, view
from tests.service import ended


def read(registry: Registry) -> Any:
    """Return all that lookups go by."""
    return registry.serving(), registry.api_keys.all()


def test_every_write_that_lookups_go_by_is_counted(registry: Registry) -> None:
    """The number grows with each, by whatever method; reads leave it as it is."""
    seen = [registry.writes()]

    def is_counted() -> None:
        known = read(registry)
        seen.append(registry.writes())
        assert seen[-1] > seen[-2]
        assert (read(registry), registry.writes()) == (known, seen[-1])

    apply(registry, view("a"), service("s", view("a")))
    is_counted()
    [version] = registry.applied().versions
    run = registry.start_run(version, None, NOON, now=NOON)
    is_counted()
    registry.cover(version, Coverage(0, NOON), 7, run)
    is_counted()
    registry.finish_run(version, run, now=NOON, report={}, loaded=Loaded(run, 7, NOON))
    is_counted()
    apply(registry, view("a", ttl="6h"))
    is_counted()
    candidate = registry.applied().versions[-1]
    run = registry.start_run(candidate, None, NOON, now=NOON)
    registry.cover(candidate, Coverage(0, NOON), 1, run)
    registry.finish_run(candidate, run, now=NOON, report={}, loaded=Loaded(run, 1, NOON))  # it takes over
    is_counted()
    registry.rollback("a", now=NOON)
    is_counted()
    registry.api_keys.create("k", ["admin"], now=NOON)
    is_counted()
    registry.api_keys.revoke("k", now=NOON)
    is_counted()
    registry.mark_removing(version)
    is_counted()
    registry.mark_removed(version)
    is_counted()
    registry.erasures.bury(["origin"], ["00"], now=NOON)
    is_counted()


def test_a_write_of_another_process_is_counted(open_registry: Open) -> None:
    """Both see one number."""
    one, other = open_registry(), open_registry()
    before = one.writes()
    apply(other, view("a"))
    assert one.writes() == other.writes() > before


def test_a_write_that_fails_is_not_counted(registry: Registry) -> None:
    """What is taken back was never written."""
    before = registry.writes()
    with pytest.raises(ZeroDivisionError), registry._transaction(write=True):
        _ = 1 // 0
    assert registry.writes() == before


def test_pushes_are_not_counted(registry: Registry) -> None:
    """However many there are, nobody reads for them what names mean."""
    apply(registry, view("a"))
    before = registry.writes()
    registry.pushes.append("p", 1, b"", registry.pushes.token(), now=NOON)
    registry.pushes.seal("p", NOON + 5)
    assert registry.writes() == before


def test_a_registry_in_the_place_of_another_is_another(open_registry: Open) -> None:
    """One that was dropped and made anew by the same steps has another number."""
    seen = set()
    for _ in range(2):
        registry = open_registry()
        apply(registry, view("a"))
        seen.add(registry.writes())
        registry.drop()
    assert len(seen) == 2


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Registry]:
    """Each reading of what names mean."""
    found: list[Registry] = []
    original = Registry.serving

    def serving(self: Registry) -> Any:
        found.append(self)
        return original(self)

    monkeypatch.setattr(Registry, "serving", serving)
    return found


def test_lookups_read_again_what_was_written(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch, reads: list[Registry]) -> None:
    """The Python API looks at each lookup here; it reads, and compiles, only after a write."""
    monkeypatch.setattr(lookups, "_SERVING_SECONDS", 0.0)
    with ended(weather_repo.open()) as store:
        store.apply()
        store.materialize()
        store.get_online_features({"origin": ["EWR"]}, "flight_weather")
        plan, before = store._lookups.plan("flight_weather"), len(reads)
        for _ in range(3):
            store.get_online_features({"origin": ["EWR"]}, "flight_weather")
        assert (len(reads), store._lookups.plan("flight_weather")) == (before, plan)

        store.registry.api_keys.create("k", ["admin"], now=NOON)
        store.get_online_features({"origin": ["EWR"]}, "flight_weather")
        assert len(reads) == before + 1

        monkeypatch.setattr(lookups, "READ_SECONDS", 0.0)  # a minute is over
        store.get_online_features({"origin": ["EWR"]}, "flight_weather")
        assert len(reads) == before + 2


def test_a_server_reads_again_what_was_written(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch, reads: list[Registry]) -> None:
    """Its looks at a registry that nobody wrote to read nothing more; after a write, and after a minute, they do."""
    with ended(weather_repo.open()) as store:
        store.apply()
        served = Plans(store, Metrics(0, None))
        served.be_warm()
        known, before = served.last, len(reads)
        assert known is not None

        def look() -> Any:
            served._look().result()
            return served.last

        assert look() is look() is known
        assert len(reads) == before

        store.registry.api_keys.create("k", ["admin"], now=NOON)
        again = look()
        assert ([key.name for key in again.keys], len(reads), again.plans is known.plans) == (["k"], before + 1, True)

        monkeypatch.setattr(plans, "READ_SECONDS", 0.0)  # a minute is over
        assert look().plans is known.plans
        assert len(reads) == before + 2
