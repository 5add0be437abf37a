"""Serving and training agree, whatever happened before: the counts of `verify`, and which keys it takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.errors import InputError, NotFoundError
from featurestore.offline.keys import key_hash
from featurestore.online import embedded
from featurestore.online.keys import key_codec
from featurestore.parity.findings import Cause, Kind
from featurestore.types import Bool, Bytes, Date, Int32, Int64, String, Timestamp
from tests.conftest import CHECKOUT, HOUR, NOON, TIME, Repo, at
from tests.servers import Topologies

DAY = 24 * HOUR
DECEMBER_28 = 1_388_188_800_000_000  # 2013-12-28T00:00:00Z


@pytest.fixture
def flights(tmp_path: Path) -> Iterator[Path]:
    """The flights example, in a folder of its own."""
    folder = tmp_path / "flights"
    shutil.copytree(CHECKOUT / "definitions", folder, ignore=shutil.ignore_patterns(".featurestore", "__pycache__"))
    yield folder
    embedded.stop(folder / ".featurestore/online")


def outcome(store: FeatureStore) -> list[tuple[int, int, int]]:
    """Return how many keys of all views are different, missing and extra, and check that every view was compared."""
    found = store.verify(keys=None)
    assert [view.skipped for view in found.views] == [None] * len(found.views)
    assert all(view.compared for view in found.views)
    return sorted({(view.different, view.missing_online, view.extra_online) for view in found.views})


def test_all_flights_agree_through_runs_restarts_and_erasure(flights: Path) -> None:
    """Every key of every view of the example: after the first run, an incremental one, a restart of all, and an erasure."""
    now = DECEMBER_28
    with FeatureStore(flights, clock=lambda: now) as store:
        store.apply()
        store.materialize()
        assert outcome(store) == [(0, 0, 0)]
        now += 6 * HOUR
        store.materialize()
        assert outcome(store) == [(0, 0, 0)]
        store.stop()
    with FeatureStore(flights, clock=lambda: now) as store:
        assert outcome(store) == [(0, 0, 0)]
        store.delete_entities("aircraft", {"tail_number": ["N14228", "N24211"]})
        assert outcome(store) == [(0, 0, 0)]
        now += 40 * DAY  # beyond every TTL
        assert outcome(store) == [(0, 0, 0)]
        assert [view.view for view in store.verify(service="departure_delay_v1", keys=5).views][:2] == [
            "airport_weather", "aircraft_facts",
        ]  # fmt: skip


def observations(repo: Repo, *rows: tuple[str, int, float]) -> None:
    """Write the weather: airport, time and temperature of each observation."""
    origins, times, temperatures = zip(*rows, strict=True)
    observed = pa.array([at(time) for time in times], TIME)
    gusts = pa.array([1] * len(rows), pa.int64())
    repo.write("weather.parquet", {"origin": origins, "observed_at": observed, "temperature": temperatures, "gusts": gusts})


def test_a_late_file_is_healed_by_lookback(weather_repo: Repo) -> None:
    """A view with lookback has nothing to say after the run that follows a late file."""
    definitions = weather_repo.folder / "definitions.py"
    definitions.write_text(definitions.read_text().replace('ttl="6h"', 'ttl="6h", lookback="1d"'))
    rows = [("EWR", NOON - 3 * HOUR, 20.0), ("JFK", NOON - 2 * HOUR, 10.0)]
    observations(weather_repo, *rows)
    store = weather_repo.open()
    store.apply()
    store.materialize()
    observations(weather_repo, *rows, ("EWR", NOON - 2 * HOUR, 21.0), ("LGA", NOON - 2 * HOUR, 5.0))
    assert outcome(store) == [(1, 1, 0)]
    weather_repo.now += HOUR
    store.materialize()
    assert outcome(store) == [(0, 0, 0)]


def test_a_version_change_and_its_rollback_leave_nothing_to_say(weather_repo: Repo) -> None:
    """Compared is what the name means: the old version until the new one takes over, then that, and after a rollback the old."""
    definitions = weather_repo.folder / "definitions.py"
    store = weather_repo.open()
    store.apply()
    store.materialize()
    definitions.write_text(definitions.read_text().replace('ttl="6h"', 'ttl="5h"'))
    store.apply()
    [view] = store.verify().views
    assert (view.version, view.is_equal, view.notes[-1][:40]) == (1, True, "a newer version is applied and waits for")
    weather_repo.now += HOUR
    store.materialize()
    assert (outcome(store), store.verify().views[0].version) == ([(0, 0, 0)], 2)
    store.rollback("airport_weather")
    assert (outcome(store), store.verify().views[0].version) == ([(0, 0, 0)], 1)


def test_retracted_rows_and_static_snapshots_agree(repo: Repo) -> None:
    """A key that a later snapshot no longer has is deleted online, and absent on both sides."""
    repo.define(
        'airport = Entity("airport", join_keys={"origin": String})\n'
        'runways = FileSource("runways", path="runways.parquet")\n'
        'facts = FeatureView("facts", entities=[airport], source=runways, fields=[Field("length", Int64)])\n'
    )
    repo.write("runways.parquet", {"origin": ["EWR", "JFK"], "length": [1, 2]})
    store = repo.open()
    store.apply()
    store.materialize()
    assert outcome(store) == [(0, 0, 0)]
    repo.write("runways.parquet", {"origin": ["EWR"], "length": [3]})
    store.materialize()
    [view] = store.verify(keys=None).views
    assert (view.compared, view.equal) == (2, 2)


ALL_TYPES = """
thing = Entity("thing", join_keys={"i": Int64, "s": String, "b": Bytes, "d": Date, "o": Bool, "t": Timestamp, "n": Int32})
things = FileSource("things", path="things.parquet", event_time="at")
view = FeatureView("view", entities=[thing], source=things, fields=[
    Field("bool", Bool), Field("int32", Int32), Field("int64", Int64), Field("float32", Float32), Field("float64", Float64),
    Field("string", String), Field("bytes", Bytes), Field("date", Date), Field("timestamp", Timestamp),
    Field("floats", Array(Float64)), Field("strings", Array(String)), Field("ints", Array(Int32)),
])
"""
KEY = {
    "i": pa.array([2**62, -1, 0]), "s": ["a'\0\"", "", "ключ"], "b": [b"", b"\xff{}", b"{"],
    "d": pa.array([0, -1, 20000], pa.date32()), "o": [True, False, True], "t": pa.array([0, -1, NOON], TIME),
    "n": pa.array([1, -(2**31), 0], pa.int32()),
}  # fmt: skip
VALUES = {
    "bool": pa.array([True, None, False]),
    "int32": pa.array([1, None, -1], pa.int32()),
    "int64": pa.array([2**53 + 1, None, 0]),
    "float32": pa.array([0.5, None, float("nan")], pa.float32()),
    "float64": pa.array([float("nan"), None, -0.0]),
    "string": pa.array(["<b>\u202e", None, ""]),
    "bytes": pa.array([b"\0\xff", None, b""]),
    "date": pa.array([1, None, 2], pa.date32()),
    "timestamp": pa.array([1, None, 2], TIME),
    "floats": pa.array([[float("nan"), None], None, []], pa.list_(pa.float64())),
    "strings": pa.array([["", None, "x"], None, []]),
    "ints": pa.array([[1, None], None, [3]], pa.list_(pa.int32())),
}
OTHERS: dict[str, Any] = {
    "bool": False, "int32": 2, "int64": 2**53, "float32": 0.25, "float64": 0.0, "string": "x", "bytes": b"\0", "date": None,
    "timestamp": 2, "floats": [float("nan"), 0.0], "strings": ["", "x"], "ints": [1],
}  # fmt: skip


def test_keys_and_values_of_every_type_are_compared(repo: Repo) -> None:
    """Of all types of keys and features none differs; a feature that is changed online is the one that is reported."""
    repo.define(ALL_TYPES)
    table = pa.table(KEY | VALUES | {"at": pa.array([at(NOON - HOUR)] * 3, TIME)})
    repo.write("things.parquet", table)
    store = repo.open()
    store.apply()
    store.materialize()
    assert outcome(store) == [(0, 0, 0)]
    [version] = store.applied().versions
    first = table.slice(0, 1)
    keys = [first[name].cast(key.type.arrow) for name, key in zip(KEY, version.view.join_keys, strict=True)]
    for field in version.view.features:
        place = list(VALUES).index(field.name)
        changed = first.select(list(VALUES)).set_column(place, field.name, pa.array([OTHERS[field.name]], field.type.arrow))
        store.online.write(version, keys, changed, first["at"], run=1, now=NOON)
        [view] = store.verify(keys=None).views
        assert [each.feature for each in view.features if each.different] == [field.name]
        assert [(each.compared, each.equal + each.different) for each in view.features] == [(3, 3)] * 12
        [example] = view.examples
        assert list(example.values) == [field.name]
        expected = ["NaN", 0.0] if field.name == "floats" else field.type.to_json(changed[field.name][0].as_py())
        assert example.values[field.name][0] == expected
        assert (example.key["s"], example.key["i"], example.cause) == ("a'\0\"", 2**62, Cause.WRITE_OUTSIDE)


def test_stored_keys_become_columns_again() -> None:
    """Keys of every type come back as what they were; keys that are cut, longer, mistagged or no text are left out."""
    types = (Int64, String, Bytes, Date, Bool, Timestamp, Int32)
    codec = key_codec("0123abcd", types)
    columns = [pa.chunked_array([pa.array(values, type_.arrow)]) for values, type_ in zip(KEY.values(), types, strict=True)]
    names = [name for name in codec.names(columns) if name is not None]
    bad = [
        names[0][:-1],
        names[0] + b"x",
        names[0].replace(b"{", b"{x", 1),
        b"0123abcd{AAA}",
        names[0][:9] + b"AAA" + names[0][12:],
    ]
    found, places = codec.columns([*bad, *names])
    assert places == [5, 6, 7]
    assert [column.to_pylist() for column in found] == [column.to_pylist() for column in columns]
    alone = key_codec("0123abcd", (String,))
    [text] = alone.names([pa.chunked_array([["é"]])])
    assert text is not None
    assert alone.columns([text[:-1]])[1] == []


def things(repo: Repo, count: int) -> FeatureStore:
    """Return a store with so many things, materialized."""
    repo.define(
        'thing = Entity("thing", join_keys={"id": Int64})\n'
        'source = FileSource("source", path="things.parquet", event_time="at")\n'
        'view = FeatureView("view", entities=[thing], source=source, fields=[Field("n", Int64)])\n'
    )
    times = pa.array([at(NOON - HOUR)] * count, TIME)
    repo.write("things.parquet", {"id": list(range(count)), "n": list(range(count)), "at": times})
    store = repo.open()
    store.apply()
    store.materialize()
    return store


def overwrite(store: FeatureStore, *ids: int) -> None:
    """Write another value for some things, as no run did."""
    [version] = store.applied().versions
    keys, times = [pa.chunked_array([list(ids)])], pa.chunked_array([pa.array([at(NOON - HOUR)] * len(ids), TIME)])
    store.online.write(version, keys, pa.table({"n": [-1] * len(ids)}), times, run=99, now=NOON)


def test_a_sample_is_the_keys_with_the_least_hashes_and_what_is_among_them(repo: Repo) -> None:
    """It is the same each time; a row that only the online store has is among it if its hash is."""
    store = things(repo, 400)
    order = np.argsort(key_hash([pa.chunked_array([list(range(400))])])).tolist()
    assert [store.verify(keys=50).compared for _ in range(2)] == [50, 50]
    overwrite(store, order[0], order[49], order[50], order[399])
    found = store.verify(keys=50)
    assert [(view.compared, view.different) for view in found.views] == [(50, 2)]
    assert {each.key["id"] for each in found.views[0].examples} == {order[0], order[49]}
    assert store.verify(keys=None).differences == 4

    strangers = np.arange(1000, 3000)
    hashes = key_hash([pa.chunked_array([strangers])])
    limit = key_hash([pa.chunked_array([[order[49]]])])[0]
    among = int((hashes <= limit).sum())
    overwrite(store, *strangers.tolist())
    [view] = store.verify(keys=50).views
    assert 0 < among < 2000
    assert (view.compared, view.extra_online) == (50 + among, among)
    [view] = store.verify(keys=None).views
    assert (view.compared, view.different, view.extra_online) == (2400, 4, 2000)


def test_many_keys_are_compared_some_at_a_time(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found does not depend on how the keys are cut."""
    store = things(repo, 5000)
    overwrite(store, *range(0, 5000, 7))
    whole = store.verify(keys=None).to_dict()
    monkeypatch.setattr("featurestore.parity.verification._BYTES", 1)
    assert store.verify(keys=None).to_dict() == whole
    assert whole["views"][0]["different"] == len(range(0, 5000, 7))


def test_views_that_are_not_online_are_skipped_and_say_why(weather_repo: Repo) -> None:
    """They are listed, with the reason; names that are not known are errors."""
    definitions = weather_repo.folder / "definitions.py"
    store = weather_repo.open()
    store.apply()
    [view] = store.verify().views
    assert (view.skipped, view.compared, view.is_equal) == ("never loaded online", 0, True)
    definitions.write_text(definitions.read_text().replace('ttl="6h"', 'ttl="6h", online=False'))
    store.apply()
    store.materialize()
    assert [view.skipped for view in store.verify().views] == ["not served online (online=False)"]
    with pytest.raises(NotFoundError, match="airport_wether"):
        store.verify(["airport_wether"])
    with pytest.raises(InputError, match="not both"):
        store.verify(["airport_weather"], service="flight_weather")


def test_a_cluster_is_compared_node_by_node(make_repo: Callable[..., Repo], topologies: Topologies) -> None:
    """Rows on all primaries are read, and extra ones found wherever they are."""
    store = things(make_repo(settings=f'[online]\nurl = "{topologies.url("cluster")}"\n'), 200)
    assert outcome(store) == [(0, 0, 0)]
    overwrite(store, 0, *range(1000, 1050))
    [view] = store.verify(keys=None).views
    assert (view.different, view.extra_online) == (1, 50)
    assert {each.kind for each in view.examples} == {Kind.DIFFERENT, Kind.EXTRA} or view.causes == {Cause.WRITE_OUTSIDE: 51}
