from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.errors import NotFoundError, OnlineStoreError
from featurestore.online.keys import online_key
from featurestore.online.store import OnlineStore
from featurestore.parity.findings import Cause, Kind, ViewParity
from featurestore.testing import Throwaway
from tests.commands import Run
from tests.conftest import HOUR, NOON, TIME, Repo, at
from tests.logged import GUSTS, SERVICE, feel, labels, look_up
from tests.test_push import crew, define
from tests.test_verify_causes import DOUBLED, client_of


def verified(store: FeatureStore, **options: Any) -> tuple[ViewParity, ...]:
    """Write the log, and hold it against training."""
    assert store.serving_log is not None
    store.serving_log.flush()
    return store.verify_log(**options).views


def observed(origin: str, time: int, temperature: float | None, gusts: int | None = 1) -> dict[str, Any]:
    """Return one observation."""
    return {"origin": origin, "observed_at": at(time), "temperature": temperature, "gusts": gusts}


def test_what_was_served_is_what_training_sees_at_the_times_of_the_requests(logged_weather: Throwaway) -> None:
    """Present, absent, null-keyed and expired rows agree, request by request, when views are materialized as they declare."""
    look_up(logged_weather, "EWR", None, "JFK", "LGA")
    logged_weather.clock.advance("10m")  # the observation of 11:30 has become visible
    logged_weather.store.materialize()
    assert look_up(logged_weather, "EWR", "JFK")[GUSTS] == [2**53 + 1, 7]
    logged_weather.clock.advance("5h")  # EWR's is of 11:00, and the TTL is six hours
    logged_weather.store.materialize()
    assert look_up(logged_weather, "EWR", "JFK")[GUSTS] == [None, 7]
    [view] = verified(logged_weather.store)
    assert (view.view, view.version, view.compared, view.equal, view.differences) == ("airport_weather", 1, 8, 8, 0)
    assert view.features_compared == ("temperature", "gusts")
    assert (view.examples, view.notes) == ([], [])


def test_a_value_overwritten_by_hand_is_found(logged_weather: Throwaway) -> None:
    """A write outside the store is a difference with both values, and named: no load wrote what was served."""
    store = logged_weather.store
    [version] = store.applied().versions_of("airport_weather")
    row = pa.table({"temperature": [99.0], "gusts": pa.array([2**53 + 1], pa.int64())})
    times = pa.chunked_array([pa.array([at(NOON - HOUR)], TIME)])
    look_up(logged_weather, "EWR")
    store.online.write(version, [pa.chunked_array([["EWR"]])], row, times, run=10**6, now=NOON)
    look_up(logged_weather, "EWR")
    [view] = verified(store)
    assert (view.compared, view.equal, view.different, view.missing_online, view.extra_online) == (2, 1, 1, 0, 0)
    [example] = view.examples
    assert (example.kind, example.cause) == (Kind.DIFFERENT, Cause.WRITE_OUTSIDE)
    assert example.key == {"requested_at": "2013-06-01T12:00:00Z", "origin": "EWR"}
    assert example.values == {"temperature": (99.0, 21.0)}


def test_a_stale_view_is_found_and_says_when_the_rows_came(logged_weather: Throwaway) -> None:
    """A run that came later than refresh and delay declare: training sees rows that serving did not have yet."""
    logged_weather.clock.set(NOON + HOUR // 2)  # JFK's observation is visible since 12:10, and nobody has run
    look_up(logged_weather, "EWR", "JFK")
    logged_weather.clock.set(NOON + HOUR)
    logged_weather.store.materialize()
    [view] = verified(logged_weather.store)
    assert (view.compared, view.equal, view.missing_online) == (2, 1, 1)
    [example] = view.examples
    assert (example.kind, example.cause) == (Kind.MISSING, Cause.STALE)
    assert "2013-06-01T12:00:00Z" in example.evidence
    assert "2013-06-01T13:00:00Z" in example.evidence
    assert example.values == {"temperature": (None, None), "gusts": (None, 7), "status": ("NOT_FOUND", "PRESENT")}


def test_rows_that_came_late_are_found(logged_weather: Throwaway) -> None:
    """Training has a correction that serving did not have: the rows below the watermark of then have changed."""
    look_up(logged_weather, "EWR")
    rows = pq.read_table(logged_weather.folder / "weather.parquet").to_pylist()
    logged_weather.write("weather.parquet", [{**row, "temperature": 5.0} if row["origin"] == "EWR" else row for row in rows])
    logged_weather.store.materialize(start=NOON - 3 * HOUR)
    look_up(logged_weather, "EWR")
    [view] = verified(logged_weather.store)
    assert (view.compared, view.equal, view.different) == (2, 1, 1)
    [example] = view.examples
    assert example.cause == Cause.LATE_ROWS
    assert example.values == {"temperature": (21.0, 5.0)}


def test_a_row_of_another_version_is_named_as_that(logged_weather: Throwaway) -> None:
    """What was served in the name of the new version is what the version before gives: who wrote it had not flipped."""
    store, file = logged_weather.store, logged_weather.folder / "definitions.py"
    file.write_text(file.read_text().replace('ttl="6h",', f'ttl="6h", sql="{DOUBLED}",'))
    store.apply()
    store.materialize()
    [version] = [each for each in store.applied().versions_of("airport_weather") if each.state == "serving"]
    look_up(logged_weather, "EWR")
    row = pa.table({"temperature": [21.0], "gusts": pa.array([2**53 + 1], pa.int64())})
    times = pa.chunked_array([pa.array([at(NOON - HOUR)], TIME)])
    store.online.write(version, [pa.chunked_array([["EWR"]])], row, times, run=10**6, now=NOON)
    look_up(logged_weather, "EWR")
    [view] = verified(store)
    assert (view.version, view.compared, view.equal, view.different) == (2, 2, 1, 1)
    [example] = view.examples
    assert (example.cause, example.values) == (Cause.NOT_FLIPPED, {"temperature": (21.0, 42.0)})
    assert example.evidence == "it is what version 1 gives, and version 2 was asked for"


def pushed_log(repo: Repo) -> FeatureStore:
    """Return a store with push views that logs all lookups; one aircraft has been pushed at noon."""
    with (repo.folder / "featurestore.toml").open("a") as file:
        file.write("\n[serving_log]\nsample = 1.0\nflush_seconds = 3600.0\n")
    store = define(repo, ttl="1h")
    store.push("crew", [crew("A", 1)])
    return store


def served_crew(store: FeatureStore) -> None:
    """Look the aircraft up."""
    store.get_online_features({"tail": ["A"]}, ["crew_state:hours"])


@pytest.mark.parametrize(("seconds", "evidence"), [(30, "had been pushed a minute before"), (300, "an earlier push gave")])
def test_pushes_that_were_not_online_yet_are_stale(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, seconds: int, evidence: str
) -> None:
    """Training sees a push from its arrival on; a lookup that had the one before is stale, a moment later or many."""
    store = pushed_log(repo)
    served_crew(store)
    repo.now += 120_000_000
    with monkeypatch.context() as patch:
        patch.setattr(OnlineStore, "push", _away)
        assert not store.push("crew", [crew("A", 2, 10)]).is_online
    repo.now += seconds * 1_000_000
    served_crew(store)
    store.sync()
    served_crew(store)
    [view] = verified(store)
    assert (view.compared, view.equal, view.different) == (3, 2, 1)
    [example] = view.examples
    assert (example.cause, example.values["hours"]) == (Cause.STALE, (1, 2))
    assert evidence in example.evidence


def _away(*_: Any, **__: Any) -> int:
    raise OnlineStoreError("gone", is_retryable=True)


def test_what_nobody_pushed_is_found_in_the_log(repo: Repo) -> None:
    """A value that stands in no push is a write outside the store; of a row that is gone nobody can say who removed it."""
    store = pushed_log(repo)
    [version] = [each for each in store.applied().versions if each.view.name == "crew_state"]
    client, key = client_of(store), online_key(version.uid, b"A")
    row = client.get(key)
    client.set(key, row[:-1] + b"\x01")
    repo.now += 120_000_000
    served_crew(store)
    client.delete(key)
    served_crew(store)
    [view] = verified(store)
    assert [(example.kind, example.cause) for example in view.examples] == [
        (Kind.DIFFERENT, Cause.WRITE_OUTSIDE), (Kind.MISSING, Cause.UNKNOWN),
    ]  # fmt: skip


def test_rows_beyond_the_watermark_are_counted_and_not_compared(logged_weather: Throwaway) -> None:
    """What training cannot see in full yet is no difference, and not passed over in silence."""
    logged_weather.clock.set(NOON + HOUR)
    look_up(logged_weather, "EWR", "JFK")
    [view] = verified(logged_weather.store)
    assert (view.compared, view.differences) == (0, 0)
    [note] = view.notes
    assert note.startswith("2 rows are later than what is materialized")


def test_each_row_is_held_against_the_version_that_served_it(logged_weather: Throwaway) -> None:
    """After a change of a view the log of the version before is still compared with that version."""
    look_up(logged_weather, "EWR")
    file = logged_weather.folder / "definitions.py"
    file.write_text(file.read_text().replace('ttl="6h"', 'ttl="30m"'))
    logged_weather.store.apply()
    logged_weather.store.materialize()
    assert look_up(logged_weather, "EWR")[GUSTS] == [None]
    views = verified(logged_weather.store)
    assert sorted((view.version, view.compared, view.equal) for view in views) == [(1, 1, 1), (2, 1, 1)]


def test_rows_that_the_log_had_to_drop_are_told(logged_weather: Throwaway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log with holes says how many rows it lacks."""
    log = logged_weather.store.serving_log
    assert log is not None
    monkeypatch.setattr(log, "_most", 2)
    with log._writing:
        look_up(logged_weather, "EWR", "JFK")
        look_up(logged_weather, "EWR", "JFK", "LGA")
    [view] = verified(logged_weather.store)
    assert (view.compared, view.notes) == (2, ["the log lacks 3 rows, which it had to drop"])


def test_a_part_of_the_log_can_be_compared(logged_weather: Throwaway) -> None:
    """By service, and by the times of requests, `(start, end]`."""
    for minutes in range(4):
        logged_weather.clock.set(NOON + minutes * 60_000_000)
        look_up(logged_weather, "EWR")
    logged_weather.store.get_online_features({"origin": ["EWR"]}, ["airport_weather:gusts"])
    assert [view.compared for view in verified(logged_weather.store)] == [5]
    assert [view.compared for view in verified(logged_weather.store, service=SERVICE)] == [4]
    part = verified(logged_weather.store, start=at(NOON), end="2013-06-01T12:02:00Z")
    assert [view.compared for view in part] == [2]
    with pytest.raises(NotFoundError, match="nobody"):
        logged_weather.store.verify_log(service="nobody")


def test_on_demand_features_are_computed_anew_from_what_training_sees(comfort: Throwaway) -> None:
    """Request columns are logged; the function is applied to them and to the values of the requests' times."""
    assert feel(comfort.store, ["EWR", "EWR", "JFK"], [2.0, None, 3.0]) == [42.0, None, None]
    view, computed = verified(comfort.store)
    assert (view.view, view.compared, view.equal, view.features_compared) == ("airport_weather", 3, 3, ("gusts",))
    assert (computed.view, computed.compared, computed.equal, computed.features_compared) == ("comfort", 3, 3, ("warmth",))
    found = comfort.store.training_set_from_log("comfortable", labels(("EWR", NOON, 1)).append_column("distance", pa.array([2.0])))
    assert found.to_dict()["comfort__warmth"] == [42.0]


def test_changed_on_demand_code_is_found(comfort: Throwaway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that runs other code than is on record gives other values of the very inputs that it served."""
    with monkeypatch.context() as patch:
        patch.setattr(
            comfort.store.functions, "of", lambda _: lambda inputs: {"warmth": inputs["temperature"] + inputs["distance"]}
        )
        assert feel(comfort.store, ["EWR"], [2.0]) == [23.0]
    view, computed = verified(comfort.store)
    assert view.equal == 1
    [example] = computed.examples
    assert (example.cause, example.values) == (Cause.CHANGED_CODE, {"warmth": (23.0, 42.0)})
    assert example.key == {"requested_at": "2013-06-01T12:00:00Z", "origin": "EWR", "distance": 2.0}


def test_an_on_demand_feature_of_stale_inputs_points_to_them(comfort: Throwaway) -> None:
    """Where the inputs differ, their view has the cause."""
    weather = [observed("EWR", NOON - HOUR // 2, 10.0)]
    comfort.write("weather.parquet", pq.read_table(comfort.folder / "weather.parquet").to_pylist() + weather)
    comfort.clock.advance("30m")
    assert feel(comfort.store, ["EWR"], [2.0]) == [42.0]  # 20.0 since 12:10, if somebody had run
    comfort.store.materialize()
    view, computed = verified(comfort.store)
    assert [each.cause for each in view.examples] == [Cause.STALE]
    [example] = computed.examples
    assert example.values == {"warmth": (42.0, 20.0)}
    assert "inputs" in example.evidence


# The command


def test_the_command_compares_the_log_and_fails_on_skew(logged_weather: Throwaway, run: Run) -> None:
    """`verify --from-log` answers as `verify` does, in tables and JSON, and its exit code is 1 above the threshold."""
    look_up(logged_weather, "EWR")
    logged_weather.clock.set(NOON + HOUR // 2)
    look_up(logged_weather, "EWR", "JFK")
    logged_weather.clock.set(NOON + HOUR)
    logged_weather.store.materialize()
    logged_weather.store.close()
    result = run("verify", "--from-log", "--json", repo=logged_weather.folder)
    found = orjson.loads(result.out)
    assert (result.code, found["what"], found["compared"], found["differences"]) == (1, "logged row", 3, 1)
    assert found["views"][0]["causes"] == {"stale materialization": 1}
    assert found["views"][0]["examples"][0]["key"] == {"requested_at": "2013-06-01T12:30:00Z", "origin": "JFK"}
    shown = run(
        "verify", "--from-log", "--threshold", "1", "--html", logged_weather.folder / "skew.html", repo=logged_weather.folder
    )
    assert shown.code == 0
    assert "3 logged rows, 6 values compared: 1 of them differs" in shown.out
    assert "1 of 3 logged rows differ" in (logged_weather.folder / "skew.html").read_text()
    agreed = run("verify", "--from-log", "--end", "2013-06-01T12:00:00Z", "--service", SERVICE, repo=logged_weather.folder)
    assert (agreed.code, "1 logged row, 2 values compared: serving and training agree" in agreed.out) == (0, True)


@pytest.mark.parametrize("wrong", [["airport_weather", "--from-log"], ["--start", "2013-06-01"]])
def test_the_command_says_what_goes_together(logged_weather: Throwaway, run: Run, wrong: list[str]) -> None:
    """The log is of services, not of views, and only it has times of requests."""
    result = run("verify", *wrong, repo=logged_weather.folder)
    assert (result.code, result.out) == (1, "")
    assert "--service" in result.err or "--from-log" in result.err
