"""What must not happen while versions, loads and registries move: serving never goes back in time, and never says nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import ConflictError, IncompleteError, OnlineStoreError, RunInProgressError, SpineError
from featurestore.offline.point_in_time import Wanted, values_of
from featurestore.online import embedded
from tests.conftest import HOUR, NOON, TIME, Repo, at
from tests.contents import temperatures

MORE = """
gate = Entity("gate", join_keys={"gate": String})
gates = FileSource("gates", path="gates.parquet")
gate_facts = FeatureView("gate_facts", entities=[gate], source=gates, fields={"width": Float64}, online=False)
"""


def _change(repo: Repo, before: str, after: str) -> None:
    file = repo.folder / "definitions.py"
    file.write_text(file.read_text().replace(before, after))


def _observe(repo: Repo, *rows: tuple[str, int, float]) -> None:
    columns = {
        "origin": [origin for origin, _, _ in rows],
        "observed_at": pa.array([at(time) for _, time, _ in rows], TIME),
        "temperature": [temperature for _, _, temperature in rows],
        "gusts": pa.nulls(len(rows), pa.int64()),
    }
    repo.write("weather.parquet", columns)


def test_a_candidate_whose_last_load_failed_does_not_take_over(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """T11: a candidate is ready when its newest table is loaded, not when some older one was."""
    weather_repo.define(MORE, "gates.py")
    weather_repo.write("gates.parquet", {"gate": ["A1"], "width": [3.5]})
    _observe(weather_repo, ("EWR", NOON - 3 * HOUR, 10.0), ("EWR", NOON - HOUR, 20.0))
    store = weather_repo.open()
    store.apply()
    store.materialize()
    _change(weather_repo, 'ttl="6h"', 'ttl="5h"')
    store.apply()
    store.materialize(["airport_weather"], end=at(NOON - 2 * HOUR))
    with monkeypatch.context() as patch:
        patch.setattr("featurestore.online.store.OnlineLoad.write", _failing)
        with pytest.raises(Exception, match="gone"):
            store.materialize(["airport_weather"])
    store.materialize(["gate_facts"])
    assert temperatures(store, "EWR") == [20.0]
    assert [version.state for version in store.applied().versions_of("airport_weather")] == ["serving", "candidate"]
    store.materialize()
    assert temperatures(store, "EWR") == [20.0]
    assert [version.state for version in store.applied().versions_of("airport_weather")] == ["replaced", "serving"]


def _failing(*_: Any, **__: Any) -> int:
    raise OnlineStoreError("gone")


def test_a_registry_restored_from_a_copy_numbers_its_runs_above_those_online(
    weather_repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T8: a row is replaced if its order is not lower, so a run's number has to exceed every run that wrote rows."""
    registry = weather_repo.folder / ".featurestore" / "registry.db"
    monkeypatch.setenv("FEATURESTORE_REGISTRY__URL", "sqlite:///.featurestore/registry.db")  # a file, which is copied
    copy = weather_repo.folder / "copy.db"
    store = weather_repo.open()
    store.apply()
    store.materialize()
    _copy(registry, copy)
    for _ in range(3):
        store.materialize(start=at(NOON - 10 * HOUR))
    store.close()
    _copy(copy, registry)
    _observe(weather_repo, ("EWR", NOON - HOUR, -4.0))
    again = weather_repo.open()
    [report] = again.materialize(start=at(NOON - 10 * HOUR))
    assert (report.run, report.online_full, report.online_written) == (5, True, 1)
    assert temperatures(again, "EWR") == [-4.0]
    assert all(view.is_equal for view in again.verify(keys=None).views)


def _copy(source: Path, target: Path) -> None:
    with sqlite3.connect(source) as one, sqlite3.connect(target) as other:
        one.backup(other)
    one.close()
    other.close()


def test_a_plan_made_before_a_takeover_is_refused(weather_repo: Repo) -> None:
    """A run that lets a candidate take over moves the registry, so what was planned before is planned again."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    _change(weather_repo, 'ttl="6h"', 'ttl="5h"')
    store.apply()
    _change(weather_repo, 'ttl="5h"', 'ttl="6h"')
    plan = store.plan()
    assert plan.dropped_candidates == ("airport_weather",)
    store.materialize()
    with pytest.raises(ConflictError, match="plan again"):
        store.apply(plan)
    assert [(new.number, new.is_resumed) for new in store.apply().new_versions] == [(1, True)]


def test_a_view_put_online_is_an_error_until_it_is_loaded(weather_repo: Repo) -> None:
    """A lookup says that there is nothing to look up yet; NOT_FOUND would be taken for an unknown entity."""
    _change(weather_repo, 'ttl="6h"', 'ttl="6h", online=False')
    store = weather_repo.open()
    store.apply()
    store.materialize()
    _change(weather_repo, ", online=False", "")
    store.apply()
    with pytest.raises(IncompleteError, match="'airport_weather' is not loaded online yet; materialize it"):
        temperatures(store, "EWR")
    store.materialize()
    assert temperatures(store, "EWR") == [21.0]


def test_vectors_keep_an_int64_beside_a_null_in_pandas(weather_repo: Repo) -> None:
    """T5 holds for lookups as it does for training sets."""
    weather_repo.now += HOUR
    store = weather_repo.open()
    store.apply()
    store.materialize()
    frame = store.get_online_features({"origin": ["EWR", "XXX"]}, "flight_weather").to_pandas()
    assert frame["airport_weather__gusts"].tolist()[0] == 2**53 + 1
    assert str(frame["airport_weather__gusts"].dtype) == "Int64"


def test_a_run_that_heals_gives_a_pending_candidate_its_first_rows(weather_repo: Repo) -> None:
    """An interval asked for to heal what serves is no gap for the candidate, which begins at its beginning."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    _change(weather_repo, 'ttl="6h"', 'ttl="5h"')
    store.apply()
    served, candidate = store.materialize(start=at(NOON - HOUR))
    assert (served.start, candidate.start) == (NOON - HOUR, None)
    assert [version.state for version in store.applied().versions] == ["replaced", "serving"]


def test_a_lookup_starts_an_embedded_server_that_was_stopped(weather_repo: Repo) -> None:
    """Whoever needs the server starts it, a process that is already running included; its rows are there."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    assert temperatures(store, "EWR") == [21.0]
    embedded.stop(weather_repo.folder / ".featurestore" / "online")
    assert temperatures(store, "EWR") == [21.0]


def test_a_damaged_spine_is_named(weather_repo: Repo, tmp_path: Path) -> None:
    """Pages that cannot be read are the spine's fault, not the result's."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    columns = {"origin": [f"A{each}" for each in range(5000)], "event_timestamp": pa.array([at(NOON)] * 5000, TIME)}
    weather_repo.write("spine.parquet", columns)
    spine = weather_repo.folder / "spine.parquet"
    content = bytearray(spine.read_bytes())
    content[10:4000] = b"\x55" * 3990
    spine.write_bytes(content)
    with pytest.raises(SpineError, match=r"spine\.parquet cannot be read as Parquet"):
        store.get_historical_features(spine, "flight_weather").to_parquet(tmp_path / "result.parquet")
    assert not (tmp_path / "result.parquet").exists()


def test_teardown_waits_for_no_run_and_removes_nothing_under_one(weather_repo: Repo) -> None:
    """A view that is being materialized keeps what it has; the error names it."""
    store = weather_repo.open()
    store.apply()
    store.materialize()
    [version] = store.applied().versions
    with (
        store.registry.lease(version),
        pytest.raises(RunInProgressError),
    ):
        store.teardown()
    assert temperatures(store, "EWR") == [21.0]


def test_a_result_larger_than_an_arrow_column_comes_in_parts(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that Arrow cannot hold is halved until it can; the rows keep their order."""
    store = weather_repo.open()
    store.apply()
    store.materialize()

    def overflowing(wanted: Sequence[Wanted], **options: Any) -> Any:
        if any(each.asked.count > 2 for each in wanted):
            raise pa.ArrowInvalid("Take operation overflowed binary array capacity")
        return values_of(wanted, **options)

    monkeypatch.setattr("featurestore.offline.training.values_of", overflowing)
    origins = ["EWR", "XXX", "EWR", "JFK", "EWR"]
    spine = pa.table({"origin": origins, "event_timestamp": pa.array([at(NOON)] * 5, TIME)})
    result = store.get_historical_features(spine, ["airport_weather:temperature"]).to_dict()
    assert result["origin"] == origins
    assert result["airport_weather__temperature"] == [21.0, None, 21.0, None, 21.0]
