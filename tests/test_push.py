"""T3, T4 and T8 for what is pushed: visible as it arrives, the same online and in training, whatever else happens meanwhile."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.errors import IncompleteError, InputError, NotFoundError
from tests.conftest import HOUR, NOON, TIME, Repo, at

DEFINITIONS = """
aircraft = Entity("aircraft", join_keys={{"tail": String}})
crew = PushSource("crew", fields={{"tail": String, "rested": Bool, "hours": Int64}}, event_time="at", created_time={created})
crew_state = FeatureView("crew_state", entities=[aircraft], source=crew, ttl={ttl}, fields={{"rested": Bool, "hours": Int64}})
crew_minutes = FeatureView(
    "crew_minutes", entities=[aircraft], source=crew, fields={{"minutes": Int64}},
    sql='SELECT upper(tail) AS tail, "at", {also} hours * 60 AS minutes FROM crew WHERE hours >= 0',
)
crew_of = FeatureService("crew_of", features=[crew_state, crew_minutes])
"""


def define(repo: Repo, *, created: bool = True, ttl: str | None = None) -> FeatureStore:
    """Define and apply a push source and two views on it, one with SQL of its own."""
    repo.define(DEFINITIONS.format(created='"written"' if created else None, ttl=repr(ttl), also="written," if created else ""))
    store = repo.open()
    store.apply()
    return store


def crew(
    tail: str | None, hours: int | None, seconds: int = 0, written: int | None = None, rested: bool | None = True
) -> dict[str, Any]:
    """Return a row whose event lies so many seconds after noon; `written` likewise."""
    created = None if written is None else at(NOON + written * 1_000_000)
    return {"tail": tail, "rested": rested, "hours": hours, "at": at(NOON + seconds * 1_000_000), "written": created}


def spine(tails: Sequence[str | None], times: Sequence[int]) -> pa.Table:
    """Return a spine of aircraft and instants."""
    return pa.table({"tail": pa.array(tails, pa.string()), "event_timestamp": pa.array(map(at, times), TIME)})


def online(store: FeatureStore, tails: Sequence[str], service: str = "crew_of") -> list[tuple[Any, ...]]:
    """Return the features of aircraft online, a tuple for each."""
    found = store.get_online_features({"tail": list(tails)}, service).to_dict()
    return list(zip(*(found[name] for name in found if name != "tail"), strict=True))


def trained(store: FeatureStore, tails: Sequence[str | None], times: Sequence[int], **options: Any) -> list[tuple[Any, ...]]:
    """Return the features of aircraft at instants, a tuple for each."""
    found = store.get_historical_features(spine(tails, times), "crew_of", **options).to_dict()
    return list(zip(*(found[name] for name in found if "__" in name), strict=True))


@dataclass
class Naive:
    """The contract read naively: every row that was pushed, with its arrival, in the order in which it was pushed."""

    rows: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    ttl: dt.timedelta | None = None

    def state(self, tail: str, t: int) -> tuple[Any, Any]:
        """Return `rested` and `hours` of an aircraft at an instant."""
        seen = [(row["at"], row["written"] or at(arrival), seq, row) for seq, (arrival, row) in enumerate(self.rows)]
        mine = [each for each in seen if each[3]["tail"] == tail and self.rows[each[2]][0] <= t]
        if not mine:
            return None, None
        best = max(mine, key=lambda each: each[:3])[3]
        if self.ttl is not None and at(t) - best["at"] > self.ttl:
            return None, None
        return best["rested"], best["hours"]

    def minutes(self, tail: str, t: int) -> int | None:
        """Return `minutes` of an aircraft, whose SQL writes its tail in capitals and leaves rows without hours out."""
        kept: list[tuple[int, Mapping[str, Any]]] = [
            (arrival, {**row, "tail": row["tail"].upper()}) for arrival, row in self.rows if row["hours"] is not None
        ]
        hours = Naive(kept).state(tail, t)[1]
        return None if hours is None else hours * 60

    def __call__(self, tail: str, t: int) -> tuple[Any, ...]:
        """Return all features of an aircraft at an instant."""
        return (*self.state(tail, t), self.minutes(tail, t))


@pytest.mark.parametrize("seed", range(4))
def test_training_and_online_equal_the_naive_reading(repo: Repo, seed: int) -> None:
    """Shuffled events, ties, created times and runs in between: every instant is answered as the contract says, both ways."""
    chance = random.Random(seed)
    ttl = chance.choice([None, "3s"])
    store, naive = define(repo, ttl=ttl), Naive(ttl=ttl and dt.timedelta(seconds=3))  # type: ignore[arg-type]
    tails, number = ["A", "B", "a"], 0
    for _ in range(14):
        repo.now += chance.choice([0, 1, 700_000, 2_000_000])
        rows = []
        for _ in range(chance.choice([1, 1, 2, 7])):
            number += 1
            seconds = chance.choice([-2, -1, 0, 0, 1])
            rows.append(
                crew(chance.choice(tails), chance.choice([number, number, None]), seconds, chance.choice([None, None, -1, 0, 1]))
            )
        receipt = store.push("crew", rows)
        naive.rows += [(receipt.arrival, row) for row in rows]
        repo.now = max(repo.now, receipt.arrival)
        if chance.random() < 0.3:
            store.materialize()
        elif chance.random() < 0.2:
            store.sync(full=chance.random() < 0.5)

        assert online(store, tails) == [naive(tail, repo.now) for tail in tails]

    moments = sorted({arrival + offset for arrival, _ in naive.rows for offset in (-1, 0, 1)} - {repo.now + 1})
    pairs = [(tail, t) for tail in tails for t in moments]
    assert trained(store, *zip(*pairs, strict=True)) == [naive(tail, t) for tail, t in pairs]
    assert all(each.is_equal and each.compared for each in store.verify(keys=None).views)


def test_a_row_is_visible_from_its_arrival_on(repo: Repo) -> None:
    """The event lies an hour back and still counts only from the microsecond of the arrival on."""
    store = define(repo)
    arrival = store.push("crew", [crew("A", 5, -3600)]).arrival

    assert arrival == NOON
    assert trained(store, ["A", "A", "A"], [NOON - HOUR, NOON - 1, NOON]) == [(None,) * 3, (None,) * 3, (True, 5, 300)]


def test_arrivals_increase_although_the_clock_stands_or_goes_back(repo: Repo) -> None:
    """The store gives arrivals, each greater than the one before."""
    store = define(repo)
    arrivals = [store.push("crew", [crew("A", 1, -7200)]).arrival]
    for now in (NOON, NOON, NOON - HOUR, NOON + 5):
        repo.now = now
        arrivals.append(store.push("crew", [crew("A", 1, -7200)]).arrival)

    assert arrivals == [NOON, NOON + 1, NOON + 2, NOON + 3, NOON + 5]


def test_what_is_complete_stays_as_it_was_answered(repo: Repo) -> None:
    """A training read makes the present final: what is pushed in the same microsecond arrives after it."""
    store = define(repo)
    before = trained(store, ["A"], [NOON])
    receipt = store.push("crew", [crew("A", 1)])

    assert receipt.arrival == NOON + 1
    assert trained(store, ["A"], [NOON]) == before == [(None, None, None)]


def test_an_instant_that_is_still_to_come_is_incomplete(repo: Repo) -> None:
    """A push view is complete until now, and no further; `stale` and `null` say what becomes of the rest."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])

    with pytest.raises(IncompleteError, match="pushes that are still to come"):
        trained(store, ["A"], [NOON + 1])
    assert trained(store, ["A"], [NOON + 1], incomplete="stale") == [(True, 1, 60)]
    assert trained(store, ["A"], [NOON + 1], incomplete="null") == [(None, None, None)]


def test_an_older_event_never_overwrites_a_newer_one(repo: Repo) -> None:
    """Online keeps the greatest (event time, created time); of equal ones, what arrived last."""
    store = define(repo)
    for hours, seconds, written in [(1, 0, 5), (2, -9, 9), (3, 0, 4), (4, 0, 5)]:
        store.push("crew", [crew("A", hours, seconds, written)])

    assert online(store, ["A"]) == [(True, 4, 240)]


def test_of_one_push_the_last_of_equal_rows_counts(repo: Repo) -> None:
    """Rows of one push that tie are decided by their place in it, online, in the log and in the table."""
    store = define(repo)
    store.push("crew", [crew("A", hours, 0, 0) for hours in range(300)])
    before = online(store, ["A"]), trained(store, ["A"], [NOON])
    store.materialize()
    store.sync(full=True)

    assert before == ([(True, 299, 17940)], [(True, 299, 17940)])
    assert (online(store, ["A"]), trained(store, ["A"], [NOON])) == before


def test_a_manifest_makes_the_training_set_again(repo: Repo) -> None:
    """What came from the log then comes from it again, although it has been folded and more has been pushed."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    store.materialize()
    repo.now += 10
    store.push("crew", [crew("A", 2)])
    asked, path = spine(["A", "A"], [NOON, NOON + 10]), repo.folder / "training.parquet"
    first = store.get_historical_features(asked, "crew_of")
    first.to_parquet(path)
    repo.now += 10
    store.push("crew", [crew("A", 3, 0, -5)])
    store.materialize()

    again = store.get_historical_features(asked, "crew_of", as_of_manifest=path)

    assert again.to_arrow().equals(first.to_arrow())
    assert again.to_dict()["crew_state__hours"] == [1, 2]


def test_rows_may_come_in_many_forms(repo: Repo) -> None:
    """Arrow, pandas, Polars, columns and rows are the same rows; created times may be left out."""
    store = define(repo)
    columns: dict[str, list[Any]] = {"tail": ["A"], "rested": [False], "hours": [7], "at": [at(NOON)]}
    table = pa.table(columns)
    forms: list[Any] = [columns, [{name: values[0] for name, values in columns.items()}], table, table.to_batches()[0]]
    forms += [table.to_reader(), pd.DataFrame(columns), pl.from_arrow(table)]
    forms.append(table.set_column(0, "tail", table["tail"].dictionary_encode()))
    forms.append(table.set_column(3, "at", pa.array([NOON * 1000 + 999], pa.int64()).cast(pa.timestamp("ns"))))
    for place, form in enumerate(forms):
        repo.now = NOON + place
        assert store.push("crew", form).rows == 1

    assert trained(store, ["A"] * len(forms), [NOON + place for place in range(len(forms))]) == [(False, 7, 420)] * len(forms)
    assert store.registry.pushes.state("crew").rows == len(forms)


GOOD = {"tail": "A", "rested": True, "hours": 1, "at": at(NOON)}

BAD: list[tuple[Any, str]] = [
    ([], "there are no rows to push"),
    (pa.table({}), "there are no rows to push"),
    ({"tail": [], "rested": [], "hours": [], "at": []}, "there are no rows to push"),
    ([{**GOOD, "hour": 1}], "no column 'hour'; did you mean 'hours'"),
    ([{name: GOOD[name] for name in ("tail", "rested", "at")}], "column 'hours' is missing"),
    ([GOOD, {"tail": "B", "rested": True, "at": at(NOON)}], "row 1 lacks column 'hours'"),
    ([{**GOOD, "hours": "1"}], "column 'hours' is string, but it is declared Int64"),
    ([{**GOOD, "hours": 1.5}], "column 'hours' is double, but it is declared Int64"),
    ([{**GOOD, "hours": True}], "column 'hours' is bool, but it is declared Int64"),
    ([{**GOOD, "hours": 2**63}], "column 'hours' holds a value that is no Int64"),
    ([GOOD, {**GOOD, "hours": "x"}], "column 'hours' holds a value that is no Int64"),
    ([{**GOOD, "rested": 1}], "column 'rested' is int64, but it is declared Bool"),
    ([{**GOOD, "at": "2013-06-01"}], "column 'at' is string, but it is declared Timestamp"),
    ([{**GOOD, "at": 5}], "column 'at' is int64, but it is declared Timestamp"),
    ([GOOD, {**GOOD, "at": None}], "row 1: 'at' is null"),
    ([GOOD, GOOD, {**GOOD, "tail": None}], "row 2: 'tail' is null"),
    ([{**GOOD, "at": at(NOON + 60_000_001)}], "row 0: 'at' lies in the future: it is 2013-06-01T12:00:00Z now"),
    ({"tail": ["A"], "rested": [True, False], "hours": [1], "at": [at(NOON)]}, "columns differ in length"),
    ({"tail": "A", "rested": True, "hours": 1, "at": at(NOON)}, "column 'tail' needs a list of values"),
    ("rows.parquet", "a str is no rows"),
    (7, "a int is no rows"),
    ([GOOD, 7], "row 1 is no mapping"),
    (pa.table([pa.array([1]), pa.array([2])], ["hours", "hours"]), "more than one column 'hours'"),
    (
        pa.table({"tail": ["\x00"], "rested": [None], "hours": [2**62], "at": pa.array([2**62], pa.timestamp("s"))}),
        "'at' holds a value",
    ),
    (
        pa.table({"tail": ["A"], "rested": [None], "hours": [None], "at": pa.array([-(2**62)], pa.timestamp("us"))}),
        "before the year 1",
    ),
]


def test_what_does_not_fit_is_refused_as_a_whole(repo: Repo) -> None:
    """One clear error, and nothing is written: not in the log, not online."""
    store = define(repo)
    for rows, message in BAD:
        with pytest.raises(InputError, match=message):
            store.push("crew", rows)

    assert store.registry.pushes.state("crew").rows == 0
    assert online(store, ["A"]) == [(None, None, None)]


def test_one_minute_of_the_future_is_tolerated(repo: Repo) -> None:
    """Clocks differ; an event time of up to a minute from now is taken."""
    store = define(repo)
    store.push("crew", [crew("A", 1, 60)])

    assert online(store, ["A"]) == [(True, 1, 60)]


def test_an_event_after_its_arrival_lives_as_long_as_others(repo: Repo) -> None:
    """T4: within the tolerated minute the event is younger than its arrival, and its TTL counts from the event, both ways."""
    store = define(repo, ttl="1h")
    store.push("crew", [crew("A", 1, 30)])
    for _ in range(2):
        for age, expected in ((HOUR, (True, 1)), (HOUR + 1, (None, None))):
            repo.now = NOON + 30_000_000 + age
            assert trained(store, ["A"], [repo.now])[0][:2] == online(store, ["A"])[0][:2] == expected
        store.materialize()  # the second time out of the table


def test_sql_that_fails_on_a_row_refuses_the_push(repo: Repo) -> None:
    """What a view that serves cannot compute never gets into the log, where it would stop every run."""
    store = define(repo)

    with pytest.raises(InputError, match="the SQL of view 'crew_minutes' fails"):
        store.push("crew", [crew("A", 2**62)])

    assert store.registry.pushes.state("crew").rows == 0


def test_only_applied_push_sources_take_rows(weather_repo: Repo) -> None:
    """Other names are told apart: one that reads files, and one that there is not."""
    store = weather_repo.open()
    store.apply()

    with pytest.raises(InputError, match="'weather' reads files"):
        store.push("weather", [GOOD])
    with pytest.raises(NotFoundError, match="no push source 'crew'"):
        store.push("crew", [GOOD])


def test_no_created_time_means_the_arrival(repo: Repo) -> None:
    """Of two rows of one event time, what arrived later counts, also where the source has no created time at all."""
    store = define(repo, created=False)
    for hours in (5, 4):
        store.push("crew", [{"tail": "A", "rested": True, "hours": hours, "at": at(NOON)}])

    assert online(store, ["A"]) == trained(store, ["A"], [NOON + 1], incomplete="stale") == [(True, 4, 240)]
