"""T14 for what is pushed: erased from the log, the table and online; nothing brings it back, and a lift lets pushes in again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from featurestore.errors import RunInProgressError
from featurestore.online.store import OnlineStore
from featurestore.settings import load_settings
from tests.conftest import NOON, Repo
from tests.test_push import DEFINITIONS, crew, define, online, trained

SECRET = "SECRETTAIL"


def everything(repo: Repo) -> Iterator[tuple[str, bytes]]:
    """Give all that the repo holds, and where, decoded where it is packed: files, rows of tables and logs, rows of the registry."""
    for path in (repo.folder / ".featurestore").rglob("*"):
        if path.is_file() and "online" not in path.parts:  # a deleted row's key stays there for a day
            yield path.name, path.read_bytes()
            if path.suffix == ".parquet":
                yield path.name, repr(pq.read_table(path).to_pylist()).encode()
    engine = sa.create_engine(load_settings(repo.folder).registry_url)
    with closing(engine.connect()) as connection:
        for table in sa.inspect(connection).get_table_names():
            for row in connection.exec_driver_sql(f'SELECT * FROM "{table}"'):
                yield table, b" ".join(bytes(each) if isinstance(each, bytes) else repr(each).encode() for each in row)
    engine.dispose()


def test_erased_rows_are_nowhere(repo: Repo) -> None:
    """In the registry, in files of the log, in tables, online: everywhere the rows of others stay, and these are gone."""
    store = define(repo)
    for hours in range(3):
        store.push("crew", [crew(SECRET, hours, -hours), crew("A", hours, -hours)])
        store.materialize()
    store.push("crew", [crew(SECRET, 9), crew("A", 9), crew("B", 9)])
    assert SECRET.encode() in b"".join(content for _, content in everything(repo))

    manifest = store.delete_entities("aircraft", {"tail": [SECRET]})
    store.online.close()
    repo.open().stop()

    assert manifest.pushed_rows == 4
    assert not [place for place, content in everything(repo) if SECRET.encode() in content]
    assert online(store, [SECRET, "A", "B"]) == [(None,) * 3, (True, 9, 540), (True, 9, 540)]
    assert trained(store, [SECRET, "A"], [NOON + 5] * 2, incomplete="stale") == [(None,) * 3, (True, 9, 540)]


def test_pushes_of_erased_keys_are_not_taken(repo: Repo) -> None:
    """Rows of erased keys are left out and counted, also where a view's SQL makes the key; a full load brings nothing back."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    store.delete_entities("aircraft", {"tail": ["A"]})

    receipt = store.push("crew", [crew("A", 2), crew("B", 2), crew("a", 2)])
    store.materialize()
    store.sync(full=True)

    assert (receipt.rows, receipt.erased) == (1, 2)
    assert online(store, ["A", "B"]) == [(None,) * 3, (True, 2, 120)]
    assert store.registry.pushes.state("crew").rows == 2


def test_a_late_replay_brings_nothing_back(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was on its way online when its key was erased, and comes after the deletion, loses against it."""
    store = define(repo)
    late: list[tuple[object, ...]] = []
    push = OnlineStore.push

    def keep(self: OnlineStore, *given: object, **more: object) -> int:
        late.append((given, more))
        return push(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(OnlineStore, "push", keep)
    store.push("crew", [crew("A", 1, 60)])
    store.delete_entities("aircraft", {"tail": ["A"]})
    for given, more in late:
        push(store.online, *given, **more)  # type: ignore[arg-type, misc]

    assert online(store, ["A"]) == [(None,) * 3]


def test_while_pushes_are_being_written_all_else_is_erased(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes pushes online holds the erasure of these up, and of nothing else; done again, it is complete."""
    monkeypatch.setattr("featurestore.push_erasure._SECONDS", 0.1)
    store = define(repo)
    files = 'noted = FileSource("noted", path="noted.parquet")\nnotes = FeatureView("notes", entities=[aircraft], source=noted, '
    repo.define(DEFINITIONS.format(created='"written"', ttl=None, also="written,") + files + "fields={'note': String})\n")
    repo.write("noted.parquet", {"tail": ["A", "B"], "note": ["a", "b"]})
    store.apply()
    store.materialize()
    store.push("crew", [crew("A", 1), crew("B", 1)])

    with store._pushing.turn("crew", 1), pytest.raises(RunInProgressError, match=r"everywhere; .*'crew'"):
        store.delete_entities("aircraft", {"tail": ["A"]})
    assert store.get_online_features({"tail": ["A", "B"]}, ["notes:note"]).to_dict()["notes__note"] == [None, "b"]
    manifest = store.delete_entities("aircraft", {"tail": ["A"]})

    assert manifest.pushed_rows == 1
    assert online(store, ["A", "B"]) == [(None,) * 3, (True, 1, 60)]


def test_a_candidate_whose_sql_fails_holds_no_erasure_up(repo: Repo) -> None:
    """It has no rows of what it cannot read, and is named in the manifest with none."""
    store = define(repo)
    store.push("crew", [crew("A", 1), crew("B", 1)])
    store.materialize()
    text = DEFINITIONS.format(created='"written"', ttl=None, also="written,")
    repo.define(text.replace("hours >= 0", "CAST(tail AS BIGINT) >= 0"))
    store.apply()
    manifest = store.delete_entities("aircraft", {"tail": ["A"]})

    assert manifest.pushed_rows == 1
    assert {(each.view, each.version) for each in manifest.versions} >= {("crew_minutes", 1), ("crew_minutes", 2)}
    assert online(store, ["A", "B"]) == [(None,) * 3, (True, 1, 60)]


def test_a_lift_lets_pushes_in_again(repo: Repo) -> None:
    """After a lift a push counts at once, even one of an event long before; what was erased does not come back."""
    store = define(repo)
    store.push("crew", [crew("A", 1)])
    store.delete_entities("aircraft", {"tail": ["A"]})
    store.restore_entities("aircraft", {"tail": ["A"]})
    before = online(store, ["A"])
    store.push("crew", [crew("A", 2, -3600)])

    assert before == [(None,) * 3]
    assert online(store, ["A"]) == [(True, 2, 120)]


def test_a_lift_elsewhere_is_known_to_the_next_push(repo: Repo) -> None:
    """A store that has pushed before looks anew at what is erased once another has lifted it."""
    store, other = define(repo), repo.open()
    store.push("crew", [crew("A", 1)])
    store.delete_entities("aircraft", {"tail": ["A"]})
    before = store.push("crew", [crew("A", 2)])
    other.restore_entities("aircraft", {"tail": ["A"]})
    after = store.push("crew", [crew("A", 3)])

    assert [(receipt.rows, receipt.erased) for receipt in (before, after)] == [(0, 1), (1, 0)]
    assert online(store, ["A"]) == [(True, 3, 180)]


def test_a_retry_is_answered_as_the_first_was_whatever_is_erased_meanwhile(repo: Repo) -> None:
    """A receipt says how many rows its push left out, not how many a push would leave out now."""
    store, other = define(repo), repo.open()
    rows = [crew("A", 1), crew("B", 1)]
    first = store.push("crew", rows, "key")
    store.delete_entities("aircraft", {"tail": ["A"]})

    assert (first.rows, first.erased) == (2, 0)
    assert store.push("crew", rows, "key") == other.push("crew", rows, "key") == first


def test_all_places_are_looked_at(repo: Repo) -> None:
    """The search of these tests sees a key that is there: in the registry, in files of the log and of the table."""
    store = define(repo)
    store.push("crew", [crew(SECRET, 1)])
    logged = {place for place, content in everything(repo) if SECRET.encode() in content}
    store.materialize()
    kept = {place for place, content in everything(repo) if SECRET.encode() in content}

    assert "pushes" in logged
    assert any(place.endswith(".parquet") for place in kept)
