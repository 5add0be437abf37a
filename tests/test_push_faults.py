"""Pushes that are cut off, that come at the same time, that are sent again, and the versions that come and go meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from featurestore import FeatureStore
from featurestore.errors import DefinitionError, InputError, OnlineStoreError
from featurestore.online.store import OnlineStore
from tests.conftest import NOON, Repo
from tests.test_push import DEFINITIONS, crew, define, online, trained

KILLED = """
import datetime as dt, os, signal, sys
from featurestore import FeatureStore
from featurestore.online.store import OnlineStore

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(OnlineStore, sys.argv[2], killed)
with FeatureStore(sys.argv[1], clock=lambda: int(sys.argv[3])) as store:
    at = dt.datetime.fromisoformat("2013-06-01T12:00:00Z")
    store.push("crew", [{"tail": "A", "rested": True, "hours": 7, "at": at}], idempotency_key="k")
"""

MANY = """
import datetime as dt, json, sys
from featurestore import FeatureStore

at = dt.datetime.fromisoformat("2013-06-01T12:00:00Z")
arrivals = []
with FeatureStore(sys.argv[1]) as store:
    for number in range(int(sys.argv[3])):
        row = {"tail": "A", "rested": True, "hours": 1000 * int(sys.argv[2]) + number, "at": at, "written": at}
        arrivals.append(store.push("crew", [row]).arrival)
print(json.dumps(arrivals))
"""


def run(text: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """Start a process that runs some Python."""
    given = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.Popen(given, stdout=subprocess.PIPE, env={**os.environ, "PYTHONSAFEPATH": "1"})


@pytest.mark.parametrize("moment", ["push", "advance"])
@pytest.mark.parametrize("healer", ["push", "materialize", "sync", "retry"])
def test_a_push_that_was_killed_before_it_was_online_is_replayed(repo: Repo, moment: str, healer: str) -> None:
    """Killed before it was online, or in the midst of that: it is logged once, and whoever comes next writes it."""
    store = define(repo)
    store.push("crew", [crew("B", 1)])
    with run(KILLED, repo.folder, moment, NOON + 5) as process:
        assert process.wait(60) == -signal.SIGKILL
    repo.now = NOON + 10
    before = online(store, ["A"]), trained(store, ["A"], [repo.now])
    heals: dict[str, Callable[[], object]] = {
        "push": lambda: store.push("crew", [crew("B", 2)]),
        "materialize": store.materialize,
        "sync": store.sync,
        "retry": lambda: store.push("crew", [{"tail": "A", "rested": True, "hours": 7, "at": crew("A", 7)["at"]}], "k"),
    }
    heals[healer]()

    assert before == ([(None,) * 3] if moment == "push" else [(True, 7, None)], [(True, 7, 420)])
    assert online(store, ["A"]) == [(True, 7, 420)]
    assert store.registry.pushes.state("crew").rows == (3 if healer == "push" else 2)


def test_processes_that_push_at_once(repo: Repo) -> None:
    """Arrivals increase strictly over all processes, no row is lost, and of rows that tie the last arrival is online."""
    define(repo)
    processes = [run(MANY, repo.folder, number, 25) for number in (1, 2)]
    arrivals = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    store = FeatureStore(repo.folder)
    repo.stores.append(store)
    merged = sorted([(arrival, number) for number, each in enumerate(arrivals, 1) for arrival in each])

    assert all(each == sorted(each) for each in arrivals)
    assert len({arrival for arrival, _ in merged}) == 50
    last, number = merged[-1]
    hours = 1000 * number + arrivals[number - 1].index(last)
    assert online(store, ["A"]) == [(True, hours, hours * 60)]
    assert [pushed.arrival for pushed in store.registry.pushes.since("crew", 0)[1]] == [arrival for arrival, _ in merged]
    store.materialize()
    assert online(store, ["A"]) == [(True, hours, hours * 60)]


def test_retries_at_once_are_one_push(repo: Repo) -> None:
    """Eight threads send the same push: it is logged once, and all have the same answer."""
    store = define(repo)
    store.push("crew", [crew("B", 1)])
    receipts: list[Any] = []
    threads = [threading.Thread(target=lambda: receipts.append(store.push("crew", [crew("A", 1)], "key"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(receipts) == 8
    assert set(receipts) == {receipts[0]}
    assert store.registry.pushes.state("crew").rows == 2


def test_a_key_belongs_to_its_rows(repo: Repo) -> None:
    """A key of other rows is refused; its push stays answerable after the log was folded, until a week is over."""
    store = define(repo)
    first = store.push("crew", [crew("A", 1)], "key")
    store.materialize()
    with pytest.raises(InputError, match="the idempotency key 'key' was used for a push of other rows"):
        store.push("crew", [crew("A", 2)], "key")
    repo.now += 6 * 86_400_000_000
    store.materialize()
    assert store.push("crew", [crew("A", 1)], "key") == first
    repo.now += 2 * 86_400_000_000
    store.materialize()

    assert store.push("crew", [crew("A", 1)], "key").arrival > repo.now


def test_an_online_store_that_is_away_loses_no_push(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an online store pushes are taken, and say that they are not online; ties are in the order of arrival afterwards."""
    store = define(repo)
    with monkeypatch.context() as patch:
        patch.setattr(OnlineStore, "pushed_until", _away)
        receipts = [store.push("crew", [crew("A", hours, 0, 0)]) for hours in range(3)]
        with pytest.raises(OnlineStoreError):
            store.materialize(["crew_state"])
    assert [receipt.is_online for receipt in receipts] == [False] * 3
    assert trained(store, ["A"], [NOON + 2], incomplete="stale") == [(True, 2, 120)]

    assert store.push("crew", [crew("B", 1)]).is_online
    assert online(store, ["A", "B"]) == [(True, 2, 120), (True, 1, 60)]


def test_a_push_after_many_that_were_missed_writes_its_own(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much for a push is left to a run, and the receipt says so; its own rows are online at once."""
    store = define(repo)
    with monkeypatch.context() as patch:
        patch.setattr(OnlineStore, "pushed_until", _away)
        for hours in range(3):
            store.push("crew", [crew("A", hours)])
    monkeypatch.setattr("featurestore.push._REPLAYED_ROWS", 1)

    assert not store.push("crew", [crew("B", 5)]).is_online
    assert online(store, ["A", "B"]) == [(None,) * 3, (True, 5, 300)]
    store.materialize()
    assert online(store, ["A", "B"]) == [(True, 2, 120), (True, 5, 300)]


def _away(*_: Any) -> Any:
    raise OnlineStoreError("the online store is away")


@pytest.mark.parametrize("heal", ["push", "materialize", "sync"])
def test_a_server_that_lost_its_rows_gets_them_again(repo: Repo, heal: str) -> None:
    """The cursor is lost with the rows, so whoever comes next writes all that was ever pushed, from files and log."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    store.materialize()
    store.push("crew", [crew("B", 2)])
    store.online._client.flushall()
    heals: dict[str, Callable[[], object]] = {"materialize": store.materialize, "sync": store.sync}
    heals.get(heal, lambda: store.push("crew", [crew("C", 3)]))()

    assert online(store, ["A", "B"]) == [(True, 1, 60), (True, 2, 120)]


CHANGED = DEFINITIONS.replace("hours * 60 AS minutes", "hours * 60 + 1 AS minutes")


def test_a_new_version_applies_its_sql_to_the_log(repo: Repo) -> None:
    """Until it is loaded the old version serves; pushes feed both; after the takeover the whole log is answered by the new SQL."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    store.materialize()
    store.push("crew", [crew("B", 2)])
    repo.define(CHANGED.format(created='"written"', ttl="None", also="written,"))
    store.apply()
    store.push("crew", [crew("C", 3)])
    before = online(store, ["A", "B", "C"]), trained(store, ["A"], [NOON])
    store.materialize(["crew_minutes"])
    repo.now += 5_000_000
    after = online(repo.open(), ["A", "B", "C"]), trained(store, ["A"], [NOON])
    store.push("crew", [crew("A", 9)])
    store.rollback("crew_minutes")

    assert [row[2] for row in before[0]] == [60, 120, 180]
    assert [row[2] for row in after[0]] == [61, 121, 181]
    assert (before[1], after[1]) == ([(True, 1, 60)], [(True, 1, 61)])
    assert [row[2] for row in online(store, ["A", "B", "C"])] == [540, 120, 180]


def test_a_candidate_whose_sql_fails_stops_no_push(repo: Repo) -> None:
    """A new version that cannot compute what is pushed waits; what serves goes on."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    store.materialize()
    faulty = DEFINITIONS.replace("hours * 60 AS minutes", "(hours * 4611686018427387904) AS minutes")
    repo.define(faulty.format(created='"written"', ttl="None", also="written,"))
    store.apply()

    assert store.push("crew", [crew("A", 5)]).is_online
    assert online(store, ["A"]) == [(True, 5, 300)]


def test_a_new_view_has_what_was_pushed_before(repo: Repo) -> None:
    """T8: it serves at once, so what is in the log already is written online when it is applied."""
    store = define(repo)
    store.push("crew", [crew("A", 1), crew("B", 2)])
    view = 'late = FeatureView("late", entities=[aircraft], source=crew, fields={"hours": Int64})\n'
    repo.define(DEFINITIONS.format(created='"written"', ttl="None", also="written,") + view)
    store.apply()

    found = store.get_online_features({"tail": ["A", "B", "C"]}, ["late:hours"]).to_dict()
    assert found["late__hours"] == [1, 2, None]


def test_a_process_that_runs_takes_rows_of_a_source_that_has_changed(repo: Repo) -> None:
    """T8: another process applies a source with one more column, or one less; whoever has pushed before takes such rows, too."""
    store, other = define(repo), repo.open()
    store.push("crew", [crew("A", 1)])
    for more in ({"pilot": "P"}, {}, {"pilot": None}):
        columns = ', "pilot": String' if more else ""
        repo.define(
            f"""
aircraft = Entity("aircraft", join_keys={{"tail": String}})
crew = PushSource("crew", fields={{"tail": String, "hours": Int64{columns}}}, event_time="at", created_time="written")
crew_state = FeatureView("crew_state", entities=[aircraft], source=crew, fields={{"hours": Int64}})
crew_of = FeatureService("crew_of", features=[crew_state])
"""
        )
        other.apply()
        row = {name: value for name, value in crew("A", 5).items() if name != "rested"} | more
        assert store.push("crew", [row]).rows == 1
        with pytest.raises(InputError, match="rested"):
            store.push("crew", [crew("A", 6)])


def test_a_field_that_is_added_is_null_before(repo: Repo) -> None:
    """The log keeps rows as they were declared when they came: a new column of them is null in what came before."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    store.materialize(["crew_state"])
    repo.define(
        """
aircraft = Entity("aircraft", join_keys={"tail": String})
crew = PushSource("crew", fields={"tail": String, "hours": Int64, "pilot": String}, event_time="at", created_time="written")
crew_state = FeatureView("crew_state", entities=[aircraft], source=crew, fields={"hours": Int64, "pilot": String})
crew_of = FeatureService("crew_of", features=[crew_state])
"""
    )
    store.apply()
    store.materialize()
    repo.now += 5_000_000
    store = repo.open()
    store.push("crew", [{"tail": "B", "hours": 2, "pilot": "Amelia", "at": crew("B", 2)["at"]}])

    assert online(store, ["A", "B"]) == [(1, None), (2, "Amelia")]
    assert trained(store, ["A", "B"], [repo.now] * 2) == [(1, None), (2, "Amelia")]


def test_many_small_files_become_one(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding often leaves small files, which are put together; the rows and their order stay."""
    monkeypatch.setattr("featurestore.offline.push_log._MANY_FILES", 4)
    store = define(repo)
    for hours in range(6):
        repo.now += 1
        store.push("crew", [crew("A", hours, -hours)])
        store.materialize(["crew_state"])
    files = store.registry.pushes.state("crew").files
    store.sync(full=True)

    assert len(files) < 4
    assert sum(file.rows for file in files) == 6
    assert online(store, ["A"]) == [(True, 0, 0)]


def test_files_that_were_replaced_are_kept_for_reads_that_have_begun(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """However old a file is, it stays for an hour from when another took its place."""
    monkeypatch.setattr("featurestore.offline.push_log._MANY_FILES", 2)
    store = define(repo)
    folder = store.settings.offline_folder / "_pushed" / "crew"
    store.push("crew", [crew("A", 1)])
    store.materialize(["crew_state"])
    [replaced] = folder.glob("*.parquet")
    os.utime(replaced, (0, 0))
    store.push("crew", [crew("A", 2)])
    store.materialize(["crew_state"])

    assert [file.rows for file in store.push_logs()["crew"].files] == [2]
    assert replaced.name not in [file.name for file in store.push_logs()["crew"].files]
    assert replaced.exists()


def test_what_waits_is_what_no_file_holds(repo: Repo) -> None:
    """A push whose key is kept for retries waits no more once its rows are in a file."""
    store = define(repo)
    store.push("crew", [crew("A", 1)], "key")
    before = store.push_logs()["crew"].waiting
    store.materialize(["crew_state"])
    after = store.push_logs()["crew"].waiting
    store.push("crew", [crew("A", 2), crew("B", 2)])

    assert [before, after, store.push_logs()["crew"].waiting] == [1, 0, 2]


def test_many_pushes_fold_the_log_by_themselves(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry keeps few pushes, also where no run comes: one of many brings them into a file, and nothing changes."""
    monkeypatch.setattr("featurestore.push._FOLDED_PUSHES", 2)
    store = define(repo)
    receipts = [store.push("crew", [crew("A", hours)]) for hours in range(4)]
    log = store.push_logs()["crew"]

    assert (log.folded, log.waiting, [file.rows for file in log.files]) == (receipts[2].arrival, 1, [3])
    assert online(store, ["A"]) == [(True, 3, 180)]


def test_a_column_keeps_its_type(repo: Repo) -> None:
    """What was pushed has the old type, so a plan that changes it is refused, and names the column."""
    store = define(repo)
    other = DEFINITIONS.replace('"hours": Int64}}, event_time', '"hours": Int32}}, event_time')
    repo.define(other.format(created='"written"', ttl="None", also="written,"))

    with pytest.raises(DefinitionError, match="column 'hours' was Int64 in rows that were pushed"):
        store.plan()
