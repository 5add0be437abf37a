from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore import FeatureService, FeatureStore
from featurestore.errors import IncompleteError, InputError, NotFoundError, OnlineStoreError
from featurestore.online.rows import NO_EVENT_TIME, deleted_row
from featurestore.online.store import Status, rows_of
from featurestore.online.vectors import FeatureVectors, LookupPlan
from tests.conftest import HOUR, NOON, TIME, Repo, at

PRESENT, NOT_FOUND, OUTSIDE = Status.PRESENT, Status.NOT_FOUND, Status.OUTSIDE_MAX_AGE
Keys = dict[str, list[Any]]

DEFINITIONS = """
airport = Entity("airport", join_keys={"origin": String})
flight = Entity("flight", join_keys={"carrier": String, "number": Int64})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
numbers = FileSource("numbers", path="numbers.parquet")
airport_weather = FeatureView(
    "airport_weather", entities=[airport], source=weather, refresh="1h", ttl="2h",
    fields={"temperature": Float64, "gusts": Int64},
)
there = airport_weather.alias("there", join_keys={"origin": "destination"})
seats = FeatureView("seats", entities=[flight], source=numbers, fields={"rows": Int32})
hidden = FeatureView("hidden", entities=[airport], source=weather, fields={"gusts": Int64}, online=False)
kind = Entity("kind", join_keys={"a": Int32, "b": Date, "c": Timestamp, "d": Bool, "e": Bytes})
kinds = FeatureView("kinds", entities=[kind], source=FileSource("kinds", path="kinds.parquet"), fields={"n": Int64})
trip = FeatureService("trip", features=[there["gusts"], seats, airport_weather, there["temperature"]])
"""


KIND: Keys = {"a": [2**31 - 1], "b": [dt.date(2013, 6, 1)], "c": [at(NOON)], "d": [True], "e": [b"\xff"]}
KIND_TYPES = [pa.int32(), pa.date32(), TIME, pa.bool_(), pa.binary()]


@pytest.fixture
def applied(repo: Repo) -> FeatureStore:
    """A store with definitions that are applied; nothing is loaded, and no server runs."""
    repo.define(DEFINITIONS)
    repo.write(
        "weather.parquet",
        {
            "origin": ["EWR", "JFK"],
            "observed_at": pa.array([at(NOON - HOUR), at(NOON - 3 * HOUR)], TIME),
            "temperature": [20.5, 30.5],
            "gusts": pa.array([None, 7], pa.int64()),
        },
    )
    repo.write("numbers.parquet", {"carrier": ["UA", "AA"], "number": [1, 2], "rows": pa.array([30, 40], pa.int32())})
    columns = [pa.array(values, type_) for values, type_ in zip(KIND.values(), KIND_TYPES, strict=True)]
    repo.write("kinds.parquet", dict(zip(KIND, columns, strict=True)) | {"n": [1]})
    store = repo.open()
    store.apply()
    return store


@pytest.fixture
def store(applied: FeatureStore) -> FeatureStore:
    """A store with weather, loaded at noon, and static seats of flights."""
    applied.materialize()
    return applied


def test_vectors_have_the_keys_and_then_the_features_of_the_service(store: FeatureStore) -> None:
    """Columns are the request's keys, then the features in the service's order; each row says per view what became of it (T8)."""
    asked: Keys = {
        "number": [1, 2, None],
        "origin": ["EWR", "JFK", "EWR"],
        "carrier": ["UA", "UA", "UA"],
        "destination": ["LGA", None, "EWR"],
    }
    vectors = store.get_online_features(asked, "trip")

    assert vectors.to_dict() == {
        "destination": ["LGA", None, "EWR"],
        "carrier": ["UA", "UA", "UA"],
        "number": [1, 2, None],
        "origin": ["EWR", "JFK", "EWR"],
        "there__gusts": [None, None, None],
        "seats__rows": [30, None, None],
        "airport_weather__temperature": [20.5, None, 20.5],
        "airport_weather__gusts": [None, None, None],
        "there__temperature": [None, None, 20.5],
    }
    assert list(vectors.to_arrow().column_names) == list(vectors.to_dict())
    assert [str(type_) for type_ in vectors.to_arrow().schema.types] == [
        "string",
        "string",
        "int64",
        "string",
        "int64",
        "int32",
        "double",
        "int64",
        "double",
    ]
    assert vectors.statuses == {
        "there": [NOT_FOUND, NOT_FOUND, PRESENT],
        "seats": [PRESENT, NOT_FOUND, NOT_FOUND],
        "airport_weather": [PRESENT, OUTSIDE, PRESENT],
    }
    assert {name: column.to_pylist() for name, column in vectors.event_times.items()} == {
        "there": [None, None, at(NOON - HOUR)],
        "seats": [None, None, None],
        "airport_weather": [at(NOON - HOUR), at(NOON - 3 * HOUR), at(NOON - HOUR)],
    }
    assert vectors.features == tuple(vectors.to_arrow().column_names[4:])


TTL = 2 * HOUR
STORED = [
    # event time, temperature and gusts that are stored (none: no row; one text: a row that was deleted), status
    (None, None, NOT_FOUND),
    (None, "deleted", NOT_FOUND),
    (NOON, (20.5, 7), PRESENT),
    (NOON, (None, 7), PRESENT),
    (NOON, (None, None), PRESENT),
    (NOON - TTL, (float("inf"), -1), PRESENT),
    (NOON - TTL - 1, (20.5, 7), OUTSIDE),
    (NOON - TTL - 1, (None, 7), OUTSIDE),
    (NOON + HOUR, (1.5, 2), PRESENT),
]


@pytest.mark.parametrize("entities", [1, 2, 30])
@pytest.mark.parametrize(("event_time", "values", "status"), STORED)
def test_one_entity_is_answered_as_many_are(
    store: FeatureStore, event_time: int | None, values: Any, status: Status, entities: int
) -> None:
    """Whatever is stored: values, nulls, a deleted row, none, one as old as the TTL and one older, beside a row that is there."""
    plan = LookupPlan(store.selection("trip"), store.functions.of)
    weather, seats, _ = (rows_of(lookup.version) for lookup in sorted(plan.lookups, key=lambda each: each.name))
    stored: bytes | None = None
    if values == "deleted":
        stored = deleted_row(5)
    elif values is not None:
        columns = {"temperature": pa.array(values[:1], pa.float64()), "gusts": pa.array(values[1:], pa.int64())}
        [stored] = weather.encode(pa.table(columns), np.array([event_time], np.int64), 5)
    [seat] = seats.encode(pa.table({"rows": pa.array([30], pa.int32())}), np.array([NO_EVENT_TIME], np.int64), 5)
    of = {"airport_weather": stored, "seats": seat, "there": None}
    found = [row for lookup in plan.lookups for row in [of[lookup.name]] * entities]
    asked = plan.request(
        {"number": [1] * entities, "carrier": ["UA"] * entities, "origin": ["EWR"] * entities, "destination": ["X"] * entities}
    )

    temperature, gusts = values if status == PRESENT else (None, None)
    expected = {
        "airport_weather__temperature": temperature,
        "airport_weather__gusts": gusts,
        "seats__rows": 30,
        "there__gusts": None,
        "there__temperature": None,
    }
    vectors = plan.answer(asked, found, now=NOON)
    plain = vectors.plain_features()
    assert list(plain) == list(vectors.features)
    assert plain == {name: [expected[name]] * entities for name in vectors.features}
    assert {name: column for name, column in vectors.to_dict().items() if name in plain} == plain
    assert {name: vectors.to_arrow()[name].to_pylist() for name in plain} == plain
    assert vectors.statuses == {
        "airport_weather": [status] * entities,
        "seats": [PRESENT] * entities,
        "there": [NOT_FOUND] * entities,
    }
    times = [at(event_time) if event_time is not None else None] * entities
    assert vectors.event_times["airport_weather"].to_pylist() == times


@pytest.mark.parametrize("event_time", [NOON, NOON - TTL - 1])
@pytest.mark.parametrize("damage", [lambda row: row[:-1], lambda row: row + b"x", lambda row: b"\2" + row[1:], lambda _: b""])
def test_a_foreign_row_is_refused_at_once(store: FeatureStore, damage: Callable[[bytes], bytes], event_time: int) -> None:
    """However old it seems to be, and whether one or many are asked for."""
    plan = LookupPlan(store.selection(["airport_weather:temperature", "airport_weather:gusts"]), store.functions.of)
    columns = {"temperature": pa.array([20.5]), "gusts": pa.array([7])}
    [row] = rows_of(plan.lookups[0].version).encode(pa.table(columns), np.array([event_time], np.int64), 5)
    for entities in (1, 30):
        asked = plan.request({"origin": ["EWR"] * entities})
        with pytest.raises(OnlineStoreError, match="load the view again"):
            plan.answer(asked, [damage(row)] * entities, now=NOON)


@pytest.mark.parametrize("entities", [1, 2, 30])
def test_a_row_that_contradicts_itself_is_refused(repo: Repo, store: FeatureStore, entities: int) -> None:
    """A text that ends before it says is an error whenever its features are read, in each form."""
    repo.write("words.parquet", {"origin": ["EWR"], "word": ["windy"]})
    repo.define(
        DEFINITIONS
        + """
words = FeatureView("words", entities=[airport], source=FileSource("words", path="words.parquet"), fields={"word": String})
"""
    )
    store.apply()
    store.materialize()
    plan = LookupPlan(store.selection(["words:word"]), store.functions.of)
    [row] = rows_of(plan.lookups[0].version).encode(pa.table({"word": ["windy"]}), np.array([NOON], np.int64), 5)
    for read in (FeatureVectors.plain_features, FeatureVectors.to_dict, FeatureVectors.to_arrow):
        asked = plan.request({"origin": ["EWR"] * entities})
        assert list(read(plan.answer(asked, [row] * entities, now=NOON))) != []
        with pytest.raises(OnlineStoreError, match="'word'; load the view again"):
            read(plan.answer(asked, [row[:-1]] * entities, now=NOON))


def test_a_service_can_be_asked_by_name_by_definition_or_as_a_list(store: FeatureStore) -> None:
    """A service, its name and the list of its features give the same vectors."""
    asked: Keys = {"origin": ["EWR"], "destination": ["EWR"], "carrier": ["UA"], "number": [1]}
    listed = ["there:gusts", "seats:rows", "airport_weather:temperature", "airport_weather:gusts", "there:temperature"]
    by_name = store.get_online_features(asked, "trip").to_dict()

    assert store.get_online_features(asked, FeatureService("trip", features=["any:thing"])).to_dict() == by_name
    assert store.get_online_features(asked, listed).to_dict() == by_name


COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "numpy": np.array,
    "numpy objects": lambda values: np.array(values, dtype=object),
    "Arrow": pa.array,
    "Arrow chunks": lambda values: pa.chunked_array([values[:1], values[1:]]),
    "pandas": lambda values: pd.Series(values, index=range(5, 5 + len(values))),
    "Polars": pl.Series,
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in COLUMNS.items()])
def test_key_values_may_be_any_kind_of_column(store: FeatureStore, make: Callable[[list[Any]], Any]) -> None:
    """Lists, tuples, numpy and Arrow arrays, pandas and Polars series are columns of keys alike."""
    asked = {"carrier": make(["AA", "UA", "UA"]), "number": make([2, 1, 2])}

    assert store.get_online_features(asked, ["seats:rows"]).to_dict() == {
        "carrier": ["AA", "UA", "UA"],
        "number": [2, 1, 2],
        "seats__rows": [40, 30, None],
    }


def test_no_entities_give_no_vectors(store: FeatureStore) -> None:
    """An empty request has an empty answer of the right types."""
    vectors = store.get_online_features({"carrier": [], "number": []}, ["seats:rows"])

    assert vectors.to_arrow().schema == pa.schema([("carrier", pa.string()), ("number", pa.int64()), ("seats__rows", pa.int32())])
    assert (len(vectors.to_arrow()), vectors.statuses) == (0, {"seats": []})


def test_vectors_as_a_pandas_frame(store: FeatureStore) -> None:
    """A frame of vectors has their columns in the same order."""
    frame = store.get_online_features({"carrier": ["UA"], "number": [1]}, ["seats:rows"]).to_pandas()

    assert frame.to_dict("list") == {"carrier": ["UA"], "number": [1], "seats__rows": [30]}


def test_timestamps_as_keys_are_utc(repo: Repo) -> None:
    """A naive key is UTC, an aware one is converted, online as offline (T1)."""
    repo.define("""
moment = Entity("moment", join_keys={"at": Timestamp})
marks = FileSource("marks", path="marks.parquet")
view = FeatureView("view", entities=[moment], source=marks, fields={"n": Int64})
""")
    repo.write("marks.parquet", {"at": pa.array([at(NOON)], TIME), "n": [1]})
    store = repo.open()
    store.apply()
    store.materialize()
    zone = dt.timezone(dt.timedelta(hours=2))
    noons = [dt.datetime(2013, 6, 1, 12), at(NOON), dt.datetime(2013, 6, 1, 14, tzinfo=zone), dt.datetime(2013, 6, 1, 14)]  # noqa: DTZ001

    assert store.get_online_features({"at": noons}, ["view:n"]).to_dict()["view__n"] == [1, 1, 1, None]


KEYS: Keys = {"carrier": ["UA"], "number": [1]}
INPUT_ERRORS: list[tuple[str, Mapping[str, Any], str, str | None]] = [
    # case, the keys, the message, the offender
    ("missing", {"carrier": ["UA"]}, "key 'number' is missing; the keys are 'carrier', 'number'", "number"),
    ("none at all", {}, "key 'carrier' is missing; the keys are 'carrier', 'number'", "carrier"),
    ("unknown", KEYS | {"numbr": [1]}, "'numbr' is no key of the features asked for; did you mean 'number'?", "numbr"),
    ("of another view", KEYS | {"x": ["EWR"]}, "'x' is no key of the features asked for; known: 'carrier', 'number'", "x"),
    ("of another length", KEYS | {"number": [1, 2]}, "key columns differ in length: 'carrier' has 1, 'number' has 2", None),
    ("a text", KEYS | {"carrier": "UA"}, "key 'carrier' needs a list of values, one for each row; got str", "carrier"),
    ("bytes", KEYS | {"carrier": b"UA"}, "key 'carrier' needs a list of values, one for each row; got bytes", "carrier"),
    ("a number", KEYS | {"number": 1}, "key 'number' needs a list of values, one for each row; got int", "number"),
    ("null", KEYS | {"number": None}, "key 'number' needs a list of values, one for each row; got NoneType", "number"),
    (
        "a generator",
        KEYS | {"number": iter([1])},
        "key 'number' needs a list of values, one for each row; got list_iterator",
        "number",
    ),
]


@pytest.mark.parametrize(("keys", "message", "name"), [pytest.param(*rest, id=case) for case, *rest in INPUT_ERRORS])
def test_a_malformed_request_names_the_offender(
    applied: FeatureStore, keys: Mapping[str, Any], message: str, name: str | None
) -> None:
    """A key that is missing, unknown, of another length or no list is an InputError that names it."""
    with pytest.raises(InputError) as error:
        applied.get_online_features(keys, ["seats:rows"])

    assert (str(error.value), error.value.name) == (message, name)


WRONG: list[tuple[str, Any]] = [
    ("number", ["1"]),
    ("number", [[1]]),
    ("number", [2**63]),
    ("number", [True]),
    ("number", [1.5]),
    ("number", [1.0]),
    ("number", [Decimal("1.5")]),
    ("number", np.array([1.5])),
    ("number", np.array([True])),
    ("number", np.array(["1"])),
    ("number", pa.array([1.0])),
    ("number", pa.array([True])),
    ("number", pa.array(["1"])),
    ("number", pd.Series([1.5])),
    ("number", np.array(1)),
    ("number", np.array([[1]])),
    ("carrier", [1]),
    ("carrier", [None, 1]),
    ("carrier", [b"UA"]),
    ("carrier", pa.array([1])),
    ("carrier", pa.array([b"UA"])),
    ("carrier", ["\ud800"]),
    ("a", [2**31]),
    ("a", pa.array([2**31])),
    ("b", [dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC)]),
    ("b", [5]),
    ("b", ["2013-06-01"]),
    ("c", [5]),
    ("c", ["2013-06-01"]),
    ("c", [dt.date(2013, 6, 1)]),
    ("d", [1]),
    ("d", ["true"]),
    ("e", ["a"]),
]


@pytest.mark.parametrize(
    ("key", "values"), WRONG, ids=lambda each: each if isinstance(each, str) else f"{type(each).__name__} {each}"
)
def test_a_key_of_a_wrong_type_is_refused(applied: FeatureStore, key: str, values: Sequence[Any]) -> None:
    """A value that is none of the key's type is an InputError: no other entity is looked up instead."""
    keys, features = (KIND, ["kinds:n"]) if key in KIND else (KEYS, ["seats:rows"])
    with pytest.raises(InputError) as error:
        applied.get_online_features({**keys, key: values}, features)

    assert error.value.name == key


def test_a_key_of_each_type_finds_its_entity(store: FeatureStore) -> None:
    """Keys of every type take values of their own."""
    assert store.get_online_features(KIND, ["kinds:n"]).to_dict() == {**KIND, "kinds__n": [1]}


def test_a_view_that_is_not_online_is_refused(applied: FeatureStore) -> None:
    """`online=False` keeps a view out of the online store, and a lookup says so."""
    with pytest.raises(InputError, match=r"feature view 'hidden' is not served online \(online=False\)") as error:
        applied.get_online_features({"origin": ["EWR"]}, ["hidden:gusts"])

    assert error.value.name == "hidden"


@pytest.mark.parametrize(("features", "nearest"), [("trips", "trip"), (["seat:rows"], "seats"), (["seats:row"], "rows")])
def test_an_unknown_name_is_answered_with_the_nearest(applied: FeatureStore, features: Any, nearest: str) -> None:
    """A service, view or feature that is not there is an error with the nearest that is."""
    with pytest.raises(NotFoundError, match=f"did you mean '{nearest}'\\?"):
        applied.get_online_features(KEYS, features)


def test_before_anything_is_loaded_a_lookup_is_an_error(repo: Repo, store: FeatureStore) -> None:
    """A view without a run has no values to find, which is no NOT_FOUND; one without an apply has no name."""
    repo.define(DEFINITIONS + 'more = FeatureView("more", entities=[airport], source=weather, fields={"gusts": Int64})')
    with pytest.raises(NotFoundError, match="no feature view 'more'"):
        store.get_online_features({"origin": ["EWR"]}, ["more:gusts"])
    store.apply()

    with pytest.raises(IncompleteError, match="'more' is not loaded online yet; materialize it"):
        store.get_online_features({"origin": ["EWR"]}, ["more:gusts"])
