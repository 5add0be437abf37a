"""T14 where definitions have changed: entities whose key columns are shared or renamed, views that were online once."""

from __future__ import annotations

import pyarrow as pa
import pytest

from featurestore import FeatureStore
from tests.conftest import HOUR, NOON, TIME, Repo, at


def test_entities_that_share_their_key_columns(repo: Repo) -> None:
    """Their keys are one to erasures, which `plan` says; one of another type is no obstacle."""
    repo.define("""
user = Entity("user", join_keys={"id": Int64})
shop = Entity("shop", join_keys={"id": Int64})
tag = Entity("tag", join_keys={"id": String})
ages = FeatureView("ages", entities=[user], source=FileSource("a", path="a.parquet"), fields={"x": Int64})
sizes = FeatureView("sizes", entities=[shop], source=FileSource("s", path="a.parquet"), fields={"x": Int64})
tags = FeatureView("tags", entities=[tag], source=FileSource("t", path="t.parquet"), fields={"x": Int64})
""")
    repo.write("a.parquet", {"id": [5, 6], "x": [1, 2]})
    repo.write("t.parquet", {"id": ["5", "6", "x"], "x": [1, 2, 3]})
    store = repo.open()
    shared = "entities 'shop' and 'tag' and 'user' have the same join keys (id): what is erased of one (T14) is erased of all"
    assert store.plan().warnings == (shared,)
    store.apply()
    store.materialize()
    manifest = store.delete_entities("user", {"id": [5]})

    assert {(each.view, each.online_rows, each.rows) for each in manifest.versions} == {
        ("ages", 1, 1), ("sizes", 1, 1), ("tags", 1, 1)
    }  # fmt: skip
    assert store.get_online_features({"id": [5, 6]}, ["ages:x", "sizes:x"]).to_dict() == {
        "id": [5, 6], "ages__x": [None, 2], "sizes__x": [None, 2],
    }  # fmt: skip
    assert store.get_online_features({"id": ["5", "6", "x"]}, ["tags:x"]).to_dict()["tags__x"] == [None, 2, 3]


RENAMED = """
user = Entity("user", join_keys={{"{user}": Int64}})
shop = Entity("shop", join_keys={{"shop_id": Int64}})
source = FileSource("source", path="s.parquet", event_time="at")
bought = FeatureView(
    "bought", entities=[user, shop], source=source, fields={{"x": Int64}},
    sql='SELECT user_id AS {user}, shop_id, "at", x FROM source',
)
service = FeatureService("service", features=[bought])
"""


def written(repo: Repo) -> FeatureStore:
    """Write three rows of two users, and return a store of the repo."""
    times = pa.array([at(NOON - HOUR)] * 3, TIME)
    repo.write("s.parquet", {"user_id": [1, 2, 1], "shop_id": [1, 1, 2], "at": times, "x": [11, 21, 12]})
    return repo.open()


@pytest.fixture
def renamed(repo: Repo) -> FeatureStore:
    """A view of users and shops, of which a candidate waits that calls the user's key by another name."""
    store = written(repo)
    for name in ("user_id", "uid"):
        repo.define(RENAMED.format(user=name))
        store.apply()
        if name == "user_id":
            store.materialize()
    return store


def bought(store: FeatureStore, name: str) -> list[int | None]:
    """Return what is served of the three rows of `renamed`, by the user's key of that name."""
    found = store.get_online_features({name: [1, 2, 1], "shop_id": [1, 1, 2]}, "service").to_dict()
    return list(found["bought__x"])


def test_a_key_column_that_is_renamed_is_erased_by_all_its_names(renamed: FeatureStore) -> None:
    """The version that still serves knows it by the name before, and so does what a rollback brings back."""
    manifest = renamed.delete_entities("user", {"uid": [1]})
    assert bought(renamed, "user_id") == [None, 21, None]
    renamed.materialize()
    assert bought(renamed, "uid") == [None, 21, None]
    renamed.rollback("bought")
    renamed.materialize(start=at(NOON - 9 * HOUR))

    assert [(each.version, each.online_rows, each.rows) for each in manifest.versions] == [(1, 2, 2), (2, 0, 0)]
    assert bought(renamed, "user_id") == [None, 21, None]
    assert renamed.restore_entities("user", {"uid": [1]}) == 1
    renamed.materialize(start=at(NOON - 9 * HOUR))
    assert bought(renamed, "user_id") == [11, 21, 12]


def test_tombstones_follow_a_key_column_that_is_renamed(repo: Repo) -> None:
    """What was erased before the key had its name is not read by its new one either."""
    store = written(repo)
    for name in ("user_id", "uid", "customer"):
        repo.define(RENAMED.format(user=name))
        store.apply()
        store.materialize()
        if name == "user_id":
            store.delete_entities("user", {"user_id": [1]})
        assert bought(store, name) == [None, 21, None]


def test_a_name_that_a_key_column_had_may_be_anothers_now(repo: Repo) -> None:
    """An entity that has taken it is not erased with the one that had it, which is erased from its own versions all the same."""
    text = """
driver = Entity("driver", join_keys={{"{key}": Int64}})
rows = FileSource("rows", path="r.parquet", event_time="at")
drives = FeatureView("drives", entities=[driver], source=rows, fields={{"x": Int64}}, sql='SELECT id AS {key}, "at", x FROM rows')
"""
    repo.write("r.parquet", {"id": [7, 8], "at": pa.array([at(NOON - HOUR)] * 2, TIME), "x": [1, 2]})
    store = repo.open()
    for key in ("id", "driver_id"):
        repo.define(text.format(key=key))
        store.apply()
        store.materialize()
    car = 'car = Entity("car", join_keys={"id": Int64})\n'
    parked = 'parked = FeatureView("parked", entities=[car], source=rows, fields={"x": Int64})\n'
    repo.define(text.format(key="driver_id") + car + parked)
    store.apply()
    store.materialize()
    manifest = store.delete_entities("driver", {"driver_id": [7]})
    store.materialize(start=at(NOON - 9 * HOUR))

    assert [(each.view, each.version, each.rows) for each in manifest.versions] == [("drives", 1, 1), ("drives", 2, 1)]
    assert store.get_online_features({"id": [7, 8]}, ["parked:x"]).to_dict()["parked__x"] == [1, 2]
    assert store.get_online_features({"driver_id": [7, 8]}, ["drives:x"]).to_dict()["drives__x"] == [None, 2]


OFFLINE_FOR_A_WHILE = """
user = Entity("user", join_keys={{"id": String}})
kept = FeatureView(
    "kept", entities=[user], source=FileSource("k", path="k.parquet", event_time="at"), fields={{"x": Int64}}, online={online}
)
pushed = PushSource("pushed", fields={{"id": String, "y": Int64}}, event_time="at")
noted = FeatureView("noted", entities=[user], source=pushed, fields={{"y": Int64}}, online={online})
both = FeatureService("both", features=[kept, noted])
"""


@pytest.fixture
def online_once(repo: Repo) -> FeatureStore:
    """Two views that are served online for now, one of files and one of pushes, materialized."""
    repo.write("k.parquet", {"id": ["a", "b"], "at": pa.array([at(NOON - HOUR)] * 2, TIME), "x": [1, 2]})
    repo.define(OFFLINE_FOR_A_WHILE.format(online=True))
    store = repo.open()
    store.apply()
    store.materialize()
    return store


def test_what_was_online_once_is_erased_there(repo: Repo, online_once: FeatureStore) -> None:
    """A view that is taken out of the online store leaves its rows there; those of an erased entity do not come back with it."""
    store = online_once
    store.push("pushed", {"id": ["a", "b"], "y": [5, 6], "at": [at(NOON - HOUR)] * 2})
    repo.define(OFFLINE_FOR_A_WHILE.format(online=False))
    store.apply()
    repo.now += HOUR
    manifest = store.delete_entities("user", {"id": ["a"]})
    repo.define(OFFLINE_FOR_A_WHILE.format(online=True))
    store.apply()

    assert {(each.view, each.online_rows) for each in manifest.versions} == {("kept", 1), ("noted", 1)}
    for _ in range(2):
        found = store.get_online_features({"id": ["a", "b"]}, "both").to_dict()
        assert found == {"id": ["a", "b"], "kept__x": [None, 2], "noted__y": [None, 6]}
        repo.now += HOUR
        store.materialize()


def test_what_a_removed_view_left_online_is_erased_there(repo: Repo, online_once: FeatureStore) -> None:
    """A view that was removed, and came back to be served offline alone, has its rows of before erased, too."""
    store = online_once
    text = OFFLINE_FOR_A_WHILE.format(online=False)
    repo.define("\n".join(line for line in text.splitlines() if not line.startswith("both")).replace("kept", "other"))
    store.apply()
    repo.define(text)
    store.apply()
    manifest = store.delete_entities("user", {"id": ["a"]})

    assert next((each.version, each.online_rows) for each in manifest.versions if each.view == "kept") == (1, 1)


def test_what_is_restored_while_it_is_offline_can_be_pushed_again(repo: Repo, online_once: FeatureStore) -> None:
    """A lift takes the deletions back that the erasure wrote, whether the view is served online at that moment or not."""
    store = online_once
    store.push("pushed", {"id": ["a"], "y": [5], "at": [at(NOON - HOUR)]})
    repo.define(OFFLINE_FOR_A_WHILE.format(online=False))
    store.apply()
    store.delete_entities("user", {"id": ["a"]})
    assert store.restore_entities("user", {"id": ["a"]}) == 1
    repo.define(OFFLINE_FOR_A_WHILE.format(online=True))
    store.apply()
    store.push("pushed", {"id": ["a"], "y": [7], "at": [at(NOON)]})

    assert store.get_online_features({"id": ["a"]}, ["noted:y"]).to_dict()["noted__y"] == [7]
