"""Measured availability: a row is visible at `t` if and only if its recorded readable time is `<= t`, against a naive reading."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.availability import availability
from featurestore.definitions import FeatureView
from featurestore.errors import IncompleteError, InputError, OfflineStoreError
from featurestore.offline.arrivals import LEVELS
from featurestore.registry.state import LoadRecord
from featurestore.testing import oracle
from tests.commands import Run
from tests.conftest import HOUR, NOON, TIME, Repo, at

MINUTE = 60_000_000
PLAIN = """
airport = Entity("airport", join_keys={{"origin": String}})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at", created_time="written", delay="10m")
view = FeatureView("view", entities=[airport], source=weather, refresh="1h", {more} fields=[Field("n", Int64)])
"""
WINDOWS = PLAIN.replace(
    'fields=[Field("n", Int64)]', 'aggregations=[Aggregation("n", "sum", ["3h"]), Aggregation("n", "last", ["1d"])]'
)


@dataclass
class History:
    """A source that grows, and the loads of its rows: when each was readable, until where it went, and how much there was then."""

    repo: Repo
    view: FeatureView
    rows: list[dict[str, Any]] = field(default_factory=list)
    loads: list[tuple[int, int, int]] = field(default_factory=list)

    def observe(self, origin: str, event: int, written: int | None = None) -> None:
        """Let the source have one more row; its value is its number."""
        created = None if written is None else at(written)
        self.rows.append({"origin": origin, "n": len(self.rows), "observed_at": at(event), "written": created})
        schema = pa.schema([("origin", pa.string()), ("n", pa.int64()), ("observed_at", TIME), ("written", TIME)])
        self.repo.write("weather.parquet", pa.Table.from_pylist(self.rows, schema=schema))

    def load(self, store: FeatureStore, until: int) -> None:
        """Materialize until an instant, at present."""
        store.materialize(end=at(until))
        self.loads.append((self.repo.now, until, len(self.rows)))

    def readable_at(self, number: int) -> int | None:
        """Return the recorded readable time of a row: of the first load that had it, at or below its watermark."""
        visible = oracle.visible_time(self.view, self.rows[number])
        assert visible is not None
        return next((now for now, until, count in self.loads if number < count and visible <= until), None)

    def plain(self, origin: str, t: int) -> int | None:
        """Return the value of a key at `t`: among the rows that were readable by then the greatest, unless it is too old."""
        seen = [
            (row["observed_at"], row["written"] is not None, row["written"], number)
            for number, row in enumerate(self.rows)
            if row["origin"] == origin and (readable := self.readable_at(number)) is not None and readable <= t
        ]
        if not seen:
            return None
        event, *_, number = max(seen, key=lambda each: (each[0], each[1], each[2] or each[0], each[3]))
        is_old = self.view.ttl is not None and at(t) - event > self.view.ttl
        return None if is_old else number

    def windows(self, origin: str, t: int) -> tuple[Any, Any]:
        """Return the features of a key at `t`: those at the watermark of the last load that was readable, of what it had."""
        done = [(until, count) for now, until, count in self.loads if now <= t]
        if not done:
            return None, None
        until, count = done[-1]
        rows = [row | {each.input.name: row["n"] for each in self.view.aggregations if each.input} for row in self.rows[:count]]
        found = oracle.windows_at(self.view, rows, (origin,), until)
        return (None, None) if found is None else tuple(found.values())


def history(repo: Repo, text: str, more: str) -> tuple[FeatureStore, History]:
    """Define a view; return its store and an empty history."""
    repo.define(text.format(more=more))
    first = History(repo, view=None)  # type: ignore[arg-type]
    first.observe("EWR", NOON - 30 * HOUR)
    store = repo.open()
    store.apply()
    [version] = store.applied().versions
    first.view = version.view
    return store, first


def asked(store: FeatureStore, keys: list[str], times: list[int], **options: Any) -> list[tuple[Any, ...]]:
    """Return the features of keys at times by measured availability."""
    spine = pa.table({"origin": keys, "event_timestamp": pa.array(map(at, times), TIME)})
    features = [f"view:{name}" for name in store.applied().versions[-1].view.feature_names]
    found = store.get_historical_features(spine, features, availability="measured", **options).to_dict()
    return list(zip(*(found[name] for name in found if "__" in name), strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("text", "more"), [(PLAIN, 'lookback="30d", ttl="6h",'), (PLAIN, 'lookback="30d",'), (WINDOWS, 'lookback="30d",')]
)
def test_rows_are_visible_from_their_recorded_readable_time_on(repo: Repo, text: str, more: str, seed: int) -> None:
    """Late and corrected rows, loads that come late, at every boundary: a row counts from when a load made it readable."""
    chance = random.Random(seed)
    store, known = history(repo, text, more)
    for _ in range(7):
        for _ in range(chance.randint(0, 4)):
            event = repo.now - chance.randint(0, 5 * 60) * MINUTE
            known.observe(chance.choice(["EWR", "JFK"]), event, chance.choice([None, event, event + MINUTE]))
        known.load(store, repo.now - chance.choice([0, 0, 20, 90]) * MINUTE)
        repo.now += chance.randint(10, 150) * MINUTE
    moments = {moment for now, until, _ in known.loads for moment in (now - 1, now, now + 1, until)}
    moments |= {now + 6 * HOUR + offset for now, _, _ in known.loads for offset in (-1, 0)} | {repo.now}
    pairs = [(key, t) for key in ("EWR", "JFK", "LGA") for t in sorted(moments) if t <= repo.now]
    chance.shuffle(pairs)
    found = asked(store, [key for key, _ in pairs], [t for _, t in pairs])
    assert found == [known.windows(*pair) if text is WINDOWS else (known.plain(*pair),) for pair in pairs]


def test_what_is_declared_and_what_was_measured_differ_where_loads_are_late(repo: Repo) -> None:
    """At 12:30 a row of 11:00 is declared visible since 11:10; it was readable when the run of 13:00 had loaded it."""
    store, known = history(repo, PLAIN, "")
    known.load(store, NOON - 2 * HOUR)
    known.observe("EWR", NOON - HOUR)
    repo.now = NOON + HOUR
    known.load(store, repo.now)
    times = [NOON + HOUR // 2, repo.now - 1, repo.now]
    spine = pa.table({"origin": ["EWR"] * 3, "event_timestamp": pa.array(map(at, times), TIME)})
    assert store.get_historical_features(spine, ["view:n"]).to_dict()["view__n"] == [1, 1, 1]
    assert asked(store, ["EWR"] * 3, times) == [(0,), (0,), (1,)]


def test_a_clock_that_was_set_back_does_not_make_what_was_readable_unreadable(repo: Repo) -> None:
    """A load that says it was readable before the one that it followed counts from that one on."""
    store, known = history(repo, PLAIN, "")
    known.load(store, NOON - 2 * HOUR)
    known.observe("EWR", NOON - 150 * MINUTE)
    repo.now = NOON - HOUR
    known.load(store, repo.now)
    repo.now = NOON
    assert asked(store, ["EWR"] * 3, [NOON - HOUR, NOON - 1, NOON]) == [(None,), (None,), (1,)]


def test_what_is_measured_is_complete_until_now(repo: Repo) -> None:
    """A load to come is readable later, so rows until now are complete, and none beyond."""
    store, known = history(repo, PLAIN, "")
    known.load(store, NOON - HOUR)
    repo.now += 2 * HOUR
    assert asked(store, ["EWR"], [repo.now]) == [(0,)]
    with pytest.raises(IncompleteError, match="1 of 1 rows are later"):
        asked(store, ["EWR"], [repo.now + 1])
    assert asked(store, ["EWR"] * 2, [repo.now, repo.now + 1], incomplete="null") == [(0,), (None,)]
    assert asked(store, [], []) == []


def test_views_without_a_record_are_refused(repo: Repo) -> None:
    """Nothing was measured of a view that was never loaded, nor of one that is not online."""
    store, known = history(repo, PLAIN, "")
    with pytest.raises(InputError, match="has no load on record yet"):
        asked(store, ["EWR"], [NOON])
    with pytest.raises(InputError, match="availability='guessed' is not known"):
        store.get_historical_features(pa.table({}), ["view:n"], availability="guessed")  # type: ignore[arg-type]
    repo.define(PLAIN.format(more="online=False,"))
    store.apply()
    known.load(store, NOON)
    with pytest.raises(InputError, match="is not served online"):
        asked(store, ["EWR"], [NOON])


def test_a_measured_training_set_is_made_again_from_its_manifest(repo: Repo, tmp_path: Path) -> None:
    """Loads that came later do not count; what was vacuumed is named."""
    store, known = history(repo, PLAIN, 'lookback="30d",')
    known.load(store, NOON)
    repo.now += HOUR
    known.observe("EWR", NOON - 29 * HOUR)
    known.load(store, repo.now)
    spine = pa.table({"origin": ["EWR"] * 2, "event_timestamp": pa.array([at(NOON), at(repo.now)], TIME)})
    made = store.get_historical_features(spine, ["view:n"], availability="measured")
    made.to_parquet(tmp_path / "training.parquet")
    repo.now += HOUR
    known.observe("EWR", NOON - 28 * HOUR)
    known.load(store, repo.now)
    again = store.get_historical_features(spine, ["view:n"], as_of_manifest=tmp_path / "training.parquet")
    assert again.to_dict()["view__n"] == made.to_dict()["view__n"] == [0, 1]
    needed = {file.path for version in store.applied().versions for file in store.snapshot(version).files}
    for path in repo.folder.rglob("offline/**/*.parquet"):
        if path not in needed:
            path.unlink()
    assert asked(store, ["EWR"], [repo.now]) == [(2,)]
    with pytest.raises(OfflineStoreError, match="vacuumed; ask for later rows"):
        asked(store, ["EWR"], [NOON])


def test_the_record_says_how_old_rows_were(repo: Repo) -> None:
    """Ages run from the event to when the row was readable; rows that were visible before the version was made do not count."""
    store, known = history(repo, PLAIN, "")
    known.load(store, NOON)
    repo.now = NOON + 4 * HOUR
    for minutes in (60, 90, 120):
        known.observe("EWR", NOON + minutes * MINUTE)
    known.load(store, repo.now)
    [version] = store.applied().versions
    first, second = store.registry.loads(version)
    assert (first.rows, first.ages, first.readable_at, first.until) == (0, (), NOON, NOON)
    assert (second.rows, second.readable_at, second.is_rewrite) == (3, repo.now, False)
    found = availability(version.view, [first, second])
    assert found is not None
    assert (found.p50, found.p99, found.rows) == (150 * MINUTE, 180 * MINUTE, 3)
    assert (found.declared, found.is_optimistic) == (70 * MINUTE, True)


def test_quantiles_of_many_loads_count_their_rows() -> None:
    """A load of 990 rows weighs more than one of 10; a quantile is never less than the true one."""
    view = FeatureView.__new__(FeatureView)
    for name, value in (("refresh", dt.timedelta(hours=1)), ("source", _Source())):
        object.__setattr__(view, name, value)
    quick = LoadRecord(1, 0, 0, 0, False, 990, (MINUTE,) * len(LEVELS), 0, None)
    slow = LoadRecord(2, 0, 0, 0, False, 10, (5 * HOUR,) * len(LEVELS), 0, None)
    found = availability(view, [quick, slow])
    assert found is not None
    assert (found.p50, found.p99, found.is_optimistic) == (MINUTE, MINUTE, False)
    found = availability(view, [quick, slow, slow])
    assert found is not None
    assert (found.p99, found.is_optimistic) == (5 * HOUR, True)


class _Source:
    delay = dt.timedelta(minutes=10)


def test_status_warns_of_an_optimistic_declaration(run: Run, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` shows what is declared beside p50 and p99, and says what an optimistic declaration means for training."""
    store, known = history(repo, PLAIN, "")
    known.load(store, NOON)
    known.observe("EWR", NOON + HOUR)
    repo.now = NOON + 4 * HOUR
    known.load(store, repo.now)
    monkeypatch.setenv("FEATURESTORE_NOW", "2013-06-01T16:00:00Z")
    [view] = run("status", "--json", repo=repo.folder).json()["views"]
    assert view["availability"] == {
        "declared_seconds": 4200.0, "p50_seconds": 10800.0, "p99_seconds": 10800.0, "rows": 1, "is_optimistic": True,
    }  # fmt: skip
    shown = run("status", repo=repo.folder).out
    assert "warning: view v1: refresh + delay say that rows are readable after 1h 10m, one in a hundred takes 3h or more" in shown


def test_the_command_trains_by_what_was_measured(run: Run, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """`get-historical --availability measured` gives what the Python API gives."""
    store, known = history(repo, PLAIN, "")
    known.load(store, NOON)
    monkeypatch.setenv("FEATURESTORE_NOW", "2013-06-01T12:00:00Z")
    spine = "SELECT 'EWR' AS origin, unnest([TIMESTAMP '2013-06-01 11:59:59', TIMESTAMP '2013-06-01 12:00:00']) AS event_timestamp"
    rows = run("get-historical", "view:n", "--spine", spine, "--availability", "measured", "--json", repo=repo.folder).json()[
        "rows"
    ]
    assert [row["view__n"] for row in rows] == [None, 0]
