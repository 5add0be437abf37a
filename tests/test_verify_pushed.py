"""Push views are compared as of now: table, log and online store, and each cause is named by what the log and the server say."""

from __future__ import annotations

from typing import Any

import pytest

from featurestore import FeatureStore
from featurestore.errors import OnlineStoreError
from featurestore.online.keys import online_key
from featurestore.online.store import OnlineStore
from featurestore.parity.findings import Cause, Kind, ViewParity
from featurestore.registry.state import Version
from tests.conftest import HOUR, NOON, Repo
from tests.test_push import crew, define
from tests.test_verify_causes import client_of


def state_of(store: FeatureStore) -> ViewParity:
    """Verify all keys of the view without SQL."""
    [view] = store.verify(["crew_state"], keys=None).views
    return view


def version_of(store: FeatureStore) -> Version:
    """Return the version of that view."""
    [version] = [each for each in store.applied().versions if each.view.name == "crew_state" and each.state == "serving"]
    return version


def key_of(store: FeatureStore, tail: str) -> bytes:
    """Return the key of an aircraft's row."""
    return online_key(version_of(store).uid, tail.encode())


def found(view: ViewParity) -> list[tuple[Any, Kind, Cause]]:
    """Return the aircraft, the kind and the cause of each difference."""
    return [(each.key.get("tail"), each.kind, each.cause) for each in view.examples]


def test_pushes_agree_before_and_after_they_are_folded(repo: Repo) -> None:
    """A push is compared at once, with the rest of the log behind the table; so it is after runs, a restart and an erasure."""
    store = define(repo, ttl="1h")
    store.push("crew", [crew("A", 1), crew("B", 2, -60)])
    views = store.verify(keys=None).views
    assert [(view.compared, view.differences, view.skipped) for view in views] == [(2, 0, None)] * 2
    store.materialize()
    store.push("crew", [crew("A", 3, 5), crew("C", None)])
    assert [(view.compared, view.differences) for view in store.verify(keys=None).views] == [(3, 0), (2, 0)]
    store.stop()
    assert [view.differences for view in repo.open().verify(keys=None).views] == [0, 0]
    store.delete_entities("aircraft", {"tail": ["A"]})
    assert [view.differences for view in store.verify(keys=None).views] == [0, 0]
    repo.now += 3 * HOUR
    assert [view.differences for view in store.verify(keys=None).views] == [0, 0]


def test_a_lost_server_is_stale(repo: Repo) -> None:
    """The server does not say any more how far its pushes go."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    client_of(store).flushall()
    assert found(state_of(store)) == [("A", Kind.MISSING, Cause.STALE)]
    store.sync()
    assert found(state_of(store)) == []


def test_pushes_that_are_not_online_yet_are_stale(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged and not written is named as that, and the next sync writes it."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    with monkeypatch.context() as patch:
        patch.setattr(OnlineStore, "push", _away)
        assert not store.push("crew", [crew("A", 2, 10)]).is_online
    view = state_of(store)
    assert found(view) == [("A", Kind.DIFFERENT, Cause.STALE)]
    assert view.examples[0].evidence.startswith("the online store has the pushes until 2013-06-01T12:00:00Z, the log has later")
    store.sync()
    assert found(state_of(store)) == []


def _away(*_: Any, **__: Any) -> int:
    raise OnlineStoreError("gone", is_retryable=True)


def test_what_was_never_pushed_is_a_write_outside_the_store(repo: Repo) -> None:
    """A value overwritten by hand stands in no push; nor does a row of a key that was never pushed."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    client = client_of(store)
    row = client.get(key_of(store, "A"))
    client.set(key_of(store, "A"), row[:-1] + b"\x01")
    client.set(key_of(store, "Z"), row)
    assert sorted(found(state_of(store))) == [
        ("A", Kind.DIFFERENT, Cause.WRITE_OUTSIDE), ("Z", Kind.EXTRA, Cause.WRITE_OUTSIDE),
    ]  # fmt: skip
    client.set(key_of(store, "A"), b"no row")
    client.delete(key_of(store, "Z"))
    assert found(state_of(store)) == [("A", Kind.MISSING, Cause.WRITE_OUTSIDE)]


def test_a_row_that_is_gone_is_missed_until_its_ttl_has_passed(repo: Repo) -> None:
    """Before, something removed it; after, the server may have collected it, which is no failure."""
    store = define(repo, ttl="1h")
    store.push("crew", [crew("A", 1)])
    client_of(store).delete(key_of(store, "A"))
    assert found(state_of(store)) == [("A", Kind.MISSING, Cause.WRITE_OUTSIDE)]
    repo.now = NOON + HOUR + 1_000_000
    assert state_of(store).is_equal


def test_an_older_push_put_back_is_unknown(repo: Repo) -> None:
    """The row was pushed, the server has all pushes, and still an earlier one stands there."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    row = client_of(store).get(key_of(store, "A"))
    store.push("crew", [crew("A", 2, 10)])
    client_of(store).set(key_of(store, "A"), row)
    assert found(state_of(store)) == [("A", Kind.DIFFERENT, Cause.UNKNOWN)]


def test_a_row_of_another_version_is_named_as_that(repo: Repo) -> None:
    """Under the serving version's key stands what the version before gives of the same push."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    [before] = [each for each in store.applied().versions if each.view.name == "crew_minutes"]
    definitions = repo.folder / "definitions.py"
    definitions.write_text(definitions.read_text().replace("hours * 60", "hours * 61"))
    store.apply()
    store.materialize()
    [version] = [each for each in store.registry.serving().versions if each.view.name == "crew_minutes"]
    client = client_of(store)
    client.set(online_key(version.uid, b"A"), client.get(online_key(before.uid, b"A")))
    [view] = store.verify(["crew_minutes"], keys=None).views
    assert found(view) == [("A", Kind.DIFFERENT, Cause.NOT_FLIPPED)]
    assert (view.examples[0].values, view.version) == ({"minutes": (60, 61)}, 2)
    assert view.examples[0].evidence == "the row is what version 1 gives, and the name means version 2"


def test_pushes_that_come_in_between_are_no_difference(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was pushed after the log was sealed is compared anew, with the push."""
    store = define(repo)
    store.push("crew", [crew("A", 1), crew("B", 1)])
    other, fetch = repo.open(), OnlineStore.fetch
    pushed: list[bool] = []

    def pushing(online: OnlineStore, names: Any) -> Any:
        if not pushed:
            pushed.append(True)
            other.push("crew", [crew("A", 2, 10)])
        return fetch(online, names)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineStore, "fetch", pushing)
        view = state_of(store)
    assert (view.compared, view.differences, pushed) == (2, 0, [True])
