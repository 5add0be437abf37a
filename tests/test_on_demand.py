from __future__ import annotations

import asyncio
import datetime as dt
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from featurestore import FeatureStore
from featurestore.definitions import Field
from featurestore.errors import InputError, OnDemandError, SpineError
from featurestore.on_demand import Evaluation
from featurestore.registry.selection import Computed, Selection
from featurestore.types import (
    Array,
    Bool,
    Bytes,
    Date,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
    ValueType,
)
from tests.conftest import HOUR, NOON, TIME, Repo, at
from tests.service import BIG

# --- one function, evaluated by itself -------------------------------------------------------------------------------


def evaluation(function: Any, inputs: Mapping[str, ValueType], fields: Mapping[str, ValueType], mode: str = "numpy") -> Evaluation:
    """Return the evaluation of one on-demand view `v` over request columns."""
    spec = {
        "name": "v", "inputs": [], "fields": [{"name": name, "type": str(type_)} for name, type_ in fields.items()], "mode": mode,
        "code": {"file": "v.py", "function": "v", "hash": "", "copy": ""},
    }  # fmt: skip
    computed = Computed(spec, tuple((name, name) for name in inputs))
    selection = Selection("s", (), tuple(f"v__{name}" for name in fields), (computed,), dict(inputs))
    return Evaluation(selection, lambda _: function)


def outcome(function: Any, inputs: Mapping[str, pa.Array], types: Mapping[str, ValueType], **fields: ValueType) -> Any:
    """Return what a numpy function gives for Arrow columns, as lists by feature; of an error its text."""
    rows = len(next(iter(inputs.values())))
    try:
        found = evaluation(function, types, fields).arrow(inputs, rows)
    except OnDemandError as reason:
        return str(reason)
    assert {name: column.type for name, column in found.items()} == {f"v__{name}": type_.arrow for name, type_ in fields.items()}
    return {name.removeprefix("v__"): column.to_pylist() for name, column in found.items()}


VALUES: dict[str, tuple[ValueType, list[Any], str]] = {
    "flag": (Bool, [True, False], "bool"),
    "small": (Int32, [-(2**31), 2**31 - 1], "int32"),
    "large": (Int64, [-(2**63), BIG], "int64"),
    "single": (Float32, [0.10000000149011612, math.inf], "float32"),
    "double": (Float64, [-0.0, 0.1], "float64"),
    "text": (String, ["ä", ""], "object"),
    "blob": (Bytes, [b"\x00\xff", b""], "object"),
    "day": (Date, [dt.date(1, 1, 1), dt.date(2013, 6, 1)], "datetime64[D]"),
    "moment": (
        Timestamp,
        [dt.datetime(2013, 5, 1, 10, 30, 0, 123456, dt.UTC), dt.datetime(1, 1, 1, tzinfo=dt.UTC)],
        "datetime64[us]",
    ),
    "vector": (Array(Float32), [[0.5, -1.0], []], "object"),
    "days": (Array(Date), [[dt.date(1, 1, 1), dt.date(2013, 6, 1)], []], "object"),
    "moments": (Array(Timestamp), [[dt.datetime(2013, 5, 1, 10, 30, 0, 123456, dt.UTC)], []], "object"),
    "words": (Array(String), [["a", "ä"], [""]], "object"),
}


@pytest.mark.parametrize("mode", ["numpy", "arrow"])
@pytest.mark.parametrize("name", VALUES)
def test_t09_every_type_passes_through_a_function_unchanged(name: str, mode: str) -> None:
    """A column comes in the dtype of its declared type whatever its values, and goes out as it came; null stays null."""
    type_, values, dtype = VALUES[name]
    seen: list[str] = []

    def same(inputs: Any) -> Any:
        column = inputs["x"]
        seen.append(str(column.dtype) if mode == "numpy" else str(column.type))
        return {"y": column}

    made = evaluation(same, {"x": type_}, {"y": type_}, mode)
    for given in (values, [values[0], None, values[1]], [None], []):
        column = pa.array(given, type_.arrow)
        found = made.arrow({"x": pa.chunked_array([column])}, len(given))["v__y"]
        assert found.type == type_.arrow
        assert found.equals(column)
    # Without rows, or without one that has no null, a numpy function is not called; without rows, no function is.
    assert seen == [dtype] * 2 if mode == "numpy" else seen == [str(type_.arrow)] * 3


@pytest.mark.parametrize("name", VALUES)
def test_t09_plain_values_and_arrow_columns_are_one(name: str) -> None:
    """What a lookup passes as plain lists gives what a training set passes as Arrow, and null is null in both."""
    type_, values, _ = VALUES[name]
    made = evaluation(lambda inputs: {"y": inputs["x"]}, {"x": type_}, {"y": type_})
    column = pa.array([values[0], None, values[1]], type_.arrow)
    stored = {"Date": pa.int32(), "Timestamp": pa.int64()}.get((type_.item or type_).name)
    plain = column.cast(type_.arrow if stored is None else pa.list_(stored) if type_.item else stored).to_pylist()

    assert made.as_plain(made.evaluated({"x": plain}, 3)) == {"v__y": plain}
    assert made.as_plain(made.evaluated({"x": column}, 3)) == {"v__y": plain}
    assert made.arrow({"x": plain}, 3)["v__y"].equals(column)


def test_t09_rows_with_a_null_in_any_input_are_not_passed() -> None:
    """In numpy mode a function sees only rows without nulls; the others are null, and NaN is no null."""
    passed: list[Any] = []

    def function(inputs: Any) -> Any:
        passed.append({name: column.tolist() for name, column in inputs.items()})
        return {"y": inputs["a"] + inputs["b"]}

    columns = {"a": pa.array([1, None, 3, None, 5]), "b": pa.array([0.5, 0.5, None, None, math.nan])}
    found = outcome(function, columns, {"a": Int64, "b": Float64}, y=Float64)

    assert passed[0]["a"] == [1, 5]
    assert found["y"][:4] == [1.5, None, None, None]
    assert math.isnan(found["y"][4])


def test_t09_an_array_that_holds_a_null_is_one_in_numpy_and_itself_in_arrow() -> None:
    """Numpy has no null inside an array, so such a row is not passed; Arrow has one."""
    column = pa.array([[1.0, None], [2.0]], pa.list_(pa.float64()))
    numpy = evaluation(lambda inputs: {"y": np.array([len(each) for each in inputs["x"]])}, {"x": Array(Float64)}, {"y": Int64})
    arrow = evaluation(lambda inputs: {"y": pc.list_value_length(inputs["x"])}, {"x": Array(Float64)}, {"y": Int64}, "arrow")

    assert numpy.arrow({"x": column}, 2)["v__y"].to_pylist() == [None, 1]
    assert arrow.arrow({"x": column}, 2)["v__y"].to_pylist() == [2, 1]


def test_t09_arrow_functions_decide_about_nulls() -> None:
    """In arrow mode all rows are passed, and a function may make a value of a null, or a null of a value."""
    made = evaluation(
        lambda inputs: {"y": pc.if_else(pc.is_null(inputs["x"]), 0, pc.if_else(pc.equal(inputs["x"], 1), None, inputs["x"]))},
        {"x": Int64}, {"y": Int64}, "arrow",
    )  # fmt: skip

    assert made.arrow({"x": pa.array([1, None, 3])}, 3)["v__y"].to_pylist() == [None, 0, 3]


X = {"x": pa.array([1, 2, 3])}
WORDS = pa.array(["a", "b", "c"])


@pytest.mark.parametrize(
    ("given", "type_", "expected"),
    [
        (np.array([1, 2, 3], np.int8), Int64, [1, 2, 3]),
        (np.array([1, 2, 3], np.uint64), Int32, [1, 2, 3]),
        ([1, None, 3], Int64, [1, None, 3]),
        (np.array([0.1, 1e300, -0.0]), Float32, [np.float32(0.1).item(), math.inf, -0.0]),
        (np.array([0.5, 1, 2], np.float16), Float64, [0.5, 1.0, 2.0]),
        (np.array([1, 2, 3]), Float64, [1.0, 2.0, 3.0]),
        (np.ma.MaskedArray([1.5, 2.5, 3.5], [False, True, False]), Float64, [1.5, None, 3.5]),
        (np.array(["a", "bc", ""]), String, ["a", "bc", ""]),
        (np.array(["a", None, "c"], object), String, ["a", None, "c"]),
        (np.array([b"a", b"bc", b"d"]), Bytes, [b"a", b"bc", b"d"]),
        (np.array(["2013-06-01", "NaT", "2013-06-02"], "M8[D]"), Date, [dt.date(2013, 6, 1), None, dt.date(2013, 6, 2)]),
        (np.array(["2013-06-01T12"] * 3, "M8[s]"), Timestamp, [dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC)] * 3),
        (np.array([[1, 2], [3, 4], [5, 6]]), Array(Float32), [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        ([np.array([1]), [], None], Array(Int64), [[1], [], None]),
        (
            np.array([["2013-06-01"], ["2013-06-02"], ["NaT"]], "M8[D]"),
            Array(Date),
            [[dt.date(2013, 6, 1)], [dt.date(2013, 6, 2)], None],
        ),
        ([[np.datetime64("2013-06-01")], [dt.date(2013, 6, 1)], None], Array(Date), [[dt.date(2013, 6, 1)]] * 2 + [None]),
        (np.array([["2013-06-01T12"]] * 3, "M8[h]"), Array(Timestamp), [[dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC)]] * 3),
        (pa.chunked_array([["a"], ["b", None]]), String, ["a", "b", None]),
        (WORDS.dictionary_encode(), String, ["a", "b", "c"]),
        (pa.nulls(3), Timestamp, [None] * 3),
    ],
)
def test_t09_what_is_returned_is_brought_to_the_declared_type(given: Any, type_: ValueType, expected: list[Any]) -> None:
    """What holds the values of the declared type is cast to it, from numpy, lists and Arrow."""
    assert outcome(lambda _: {"y": given}, X, {"x": Int64}, y=type_) == {"y": expected}


@pytest.mark.parametrize(
    ("given", "type_", "message"),
    [
        (np.array([1.0, 2.0, 3.0]), Int64, "feature 'y': returned an array of float64; the view declares Int64"),
        (np.array([1, 2, 3]), Bool, "feature 'y': returned an array of int64; the view declares Bool"),
        (np.array([True, False, True]), Float64, "feature 'y': returned an array of bool; the view declares Float64"),
        (["a", "b", "c"], Float64, "feature 'y': returned a column of string; the view declares Float64"),
        (np.array(["2013-06-01T12"] * 3, "M8[h]"), Date, "the view declares Date"),
        (np.array([["2013-06-01T12"]] * 3, "M8[h]"), Array(Date), "the view declares Array(Date)"),
        (np.array([1.0, 2.0]), Float64, "feature 'y': returned 2 values for 3 rows"),
        (pa.array([1.0] * 4), Float64, "feature 'y': returned 4 values for 3 rows"),
        (2.0, Float64, "feature 'y': returned a single float; a column with a value for each row is needed"),
        (np.float64(2), Float64, "feature 'y': returned a single float64; a column with a value for each row is needed"),
        ("abc", String, "feature 'y': returned a single str; a column with a value for each row is needed"),
        (np.zeros((3, 2)), Float64, "feature 'y': returned what is no column of Float64: "),
        ([1, "a", 2], Int64, "feature 'y': returned what is no column of Int64: "),
    ],
)
def test_t09_what_is_not_of_the_declared_type_is_an_error(given: Any, type_: ValueType, message: str) -> None:
    """A wrong type or length is an error that names view and feature."""
    found = outcome(lambda _: {"y": given}, X, {"x": Int64}, y=type_)

    assert found.startswith("on-demand view 'v', ")
    assert message in found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "on-demand view 'v': returned no column; the view declares 'y'"),
        ({"z": X["x"], "y": X["x"]}, "on-demand view 'v': returned 'z', 'y'; the view declares 'y'"),
        (X["x"], "on-demand view 'v': returned a Int64Array; a mapping of columns is needed"),
        (None, "on-demand view 'v': returned a NoneType; a mapping of columns is needed"),
    ],
)
def test_t09_what_is_returned_has_the_declared_names(given: Any, message: str) -> None:
    """A column too few or too many, or no columns at all, is an error that says what is declared."""
    assert outcome(lambda _: given, X, {"x": Int64}, y=Int64) == message


def test_t09_an_error_names_the_row_that_it_is_of() -> None:
    """A value that does not fit, or an exception, is traced to the first row that has it alone; rows left out as null count."""
    columns = {"x": pa.array([1, None, 3, 2**40, 5])}
    too_large = outcome(lambda inputs: {"y": inputs["x"]}, columns, {"x": Int64}, y=Int32)

    def picky(inputs: Any) -> Any:
        return {"y": np.array([{1: 1, 3: 3, 5: 5}[value] for value in inputs["x"].tolist()])}

    assert too_large.startswith("on-demand view 'v', feature 'y', row 3: returned a value that Int32 cannot hold: ")
    assert outcome(picky, columns, {"x": Int64}, y=Int64) == f"on-demand view 'v', row 3: KeyError: {2**40}"
    with pytest.raises(OnDemandError) as error:
        evaluation(picky, {"x": Int64}, {"y": Int64}).arrow(columns, 5, first_row=100)
    assert (error.value.name, error.value.feature, error.value.row) == ("v", None, 103)
    assert isinstance(error.value.__cause__, KeyError)


def test_t09_an_error_of_all_rows_names_none() -> None:
    """A mistake in the function is not blamed on the first row."""
    assert outcome(lambda inputs: {"y": inputs["z"]}, X, {"x": Int64}, y=Int64) == "on-demand view 'v': KeyError: 'z'"


def test_t09_inputs_cannot_be_written_to() -> None:
    """A function that changes its inputs in place would change them for others: numpy refuses it."""

    def function(inputs: Any) -> Any:
        inputs["x"] += 1
        return {"y": inputs["x"]}

    expected = "on-demand view 'v': ValueError: output array is read-only"
    assert outcome(function, {"x": pa.array([1, None])}, {"x": Int64}, y=Int64) == expected
    with pytest.raises(OnDemandError, match="read-only"):
        evaluation(function, {"x": Int64}, {"y": Int64}).evaluated({"x": [1]}, 1)


def test_t09_infinity_and_nan_are_values_and_no_warnings() -> None:
    """A division by zero gives what IEEE 754 says, whatever numpy is told to do elsewhere."""
    with np.errstate(all="raise"):
        found = outcome(
            lambda inputs: {"y": inputs["x"] / inputs["z"]},
            {"x": pa.array([1.0, 0.0]), "z": pa.array([0.0, 0.0])}, {"x": Float64, "z": Float64}, y=Float64,
        )  # fmt: skip

    assert found["y"][0] == math.inf
    assert math.isnan(found["y"][1])


# --- in a repo -------------------------------------------------------------------------------------------------------

DEFINITIONS = """
import numpy as np
import pyarrow.compute as pc

airport = Entity("airport", join_keys={"airport": String})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at", delay="10m")
conditions = FeatureView(
    "conditions", entities=[airport], source=weather, refresh="1h", ttl="6h", fields={"temperature": Float64, "wind": Float64},
)
landings = FileSource("landings", path="weather.parquet", event_time="observed_at")
gusts = FeatureView(
    "gusts", entities=[airport], source=landings, refresh="1h", aggregations=[Aggregation("wind", "max", ["1d"], name="gust")],
)
there = conditions.alias("there", join_keys={"airport": "destination"})
flight = RequestSource("flight", {"distance": Float64, "scheduled_at": Timestamp, "carrier": String})


@on_demand_feature_view(inputs=[there[["temperature"]]], fields={"there_temperature": Float64})
def renamed(inputs):
    return {"there_temperature": inputs["temperature"]}


@on_demand_feature_view(
    inputs=[conditions, "renamed:there_temperature", gusts, flight],
    fields=[Field("exposure", Float64), Field("warmer", Bool), Field("hour", Int32), Field("code", String)],
)
def exposure(inputs):
    hours = (inputs["scheduled_at"] - inputs["scheduled_at"].astype("M8[D]")) // np.timedelta64(1, "h")
    return {
        "exposure": np.exp(inputs["wind"] / 10) * inputs["distance"] ** 0.5 + np.sin(inputs["gust_1d"]),
        "warmer": inputs["there_temperature"] > inputs["temperature"],
        "hour": hours.astype("i4"),
        "code": np.array([text[:1] for text in inputs["carrier"].tolist()], object),
    }


@on_demand_feature_view(inputs=[exposure[["exposure"]], "gusts:gust_1d"], fields={"filled": Float64}, mode="arrow")
def filled(inputs):
    return {"filled": pc.coalesce(inputs["exposure"], inputs["gust_1d"], -1.0)}


flights = FeatureService("flights", features=[conditions[["wind"]], exposure, filled])
only_request = FeatureService("only_request", features=["distance_only:miles"])


@on_demand_feature_view(inputs=[RequestSource("trip", {"distance": Float64})], fields={"miles": Float64})
def distance_only(inputs):
    return {"miles": inputs["distance"] / 1.609344}
"""

AIRPORTS = ["EWR", "JFK", "LGA"]


@pytest.fixture(scope="module")
def weather() -> dict[str, Any]:
    """Hourly weather of two days at two airports, with nulls; the third has none."""
    random = np.random.default_rng(9)
    hours = [NOON - hour * HOUR - HOUR // 2 for hour in range(48)]
    rows = [(airport, hour) for hour in hours for airport in AIRPORTS[:2]]
    return {
        "airport": [airport for airport, _ in rows],
        "observed_at": [hour for _, hour in rows],
        "temperature": [None if random.random() < 0.2 else float(random.normal(15, 8)) for _ in rows],
        "wind": [None if random.random() < 0.2 else float(random.exponential(10)) for _ in rows],
    }


@pytest.fixture
def flights(repo: Repo, weather: dict[str, Any]) -> Iterator[FeatureStore]:
    """A materialized store with on-demand views."""
    repo.define(DEFINITIONS)
    times = pa.array([at(time) for time in weather["observed_at"]], TIME)
    repo.write("weather.parquet", weather | {"observed_at": times})
    store = repo.open()
    store.apply()
    store.materialize()
    yield store
    store.stop()


def asked(rows: int, seed: int) -> dict[str, list[Any]]:
    """Return flights, some with a null somewhere."""
    random = np.random.default_rng(seed)

    def some(values: Sequence[Any]) -> list[Any]:
        return [None if random.random() < 0.1 else values[int(random.integers(len(values)))] for _ in range(rows)]

    scheduled = [dt.datetime(2013, 6, 1, hour, 59, 59, 999_999, dt.UTC) for hour in range(24)]
    distances = random.gamma(2.0, 400.0, 50).tolist()
    return {
        "airport": some(AIRPORTS), "destination": some(AIRPORTS), "distance": some(distances), "scheduled_at": some(scheduled),
        "carrier": some(["UA", "ü", "AA"]),
    }  # fmt: skip


def expected_row(weather: Mapping[str, Any], row: Mapping[str, Any], t: int) -> dict[str, Any]:
    """Compute a row's features naively, value by value: T4, T6 and then the functions' formulas."""
    boundary = t // HOUR * HOUR

    def latest(airport: str | None) -> dict[str, Any]:
        late = (t - 10 * HOUR // 60) // HOUR * HOUR  # ceil(e, 1h) + 10m <= t
        seen = [
            (time, temperature, wind)
            for place, time, temperature, wind in zip(*weather.values(), strict=True)
            if place == airport and time <= late
        ]
        if not seen or t - max(seen)[0] > 6 * HOUR:
            return {"temperature": None, "wind": None}
        return dict(zip(("temperature", "wind"), max(seen, key=lambda each: each[0])[1:], strict=True))

    here, there = latest(row["airport"]), latest(row["destination"])
    winds = [
        wind
        for place, time, _, wind in zip(*weather.values(), strict=True)
        if place == row["airport"] and boundary - 24 * HOUR < time <= boundary and wind is not None
    ]
    gust = max(winds) if winds else None
    inputs = [*here.values(), there["temperature"], gust, row["distance"], row["scheduled_at"], row["carrier"]]
    found = {"conditions__wind": here["wind"]}
    if None in inputs:
        exposure = dict.fromkeys(["exposure", "warmer", "hour", "code"])
    else:
        exposure = {
            # numpy's own exp, sqrt and sin, one value at a time: libm may differ in the last bit.
            "exposure": (
                np.exp(np.array([here["wind"] / 10])) * np.array([row["distance"]]) ** 0.5 + np.sin(np.array([gust]))
            ).item(),
            "warmer": there["temperature"] > here["temperature"],
            "hour": row["scheduled_at"].hour,
            "code": row["carrier"][0],
        }
    found |= {f"exposure__{name}": value for name, value in exposure.items()}
    value = exposure["exposure"]
    found["filled__filled"] = value if value is not None else gust if gust is not None else -1.0
    return found


def bits(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return values with floats as their bits."""
    return {
        name: [struct.pack("<d", value) if isinstance(value, float) else value for value in values]
        for name, values in columns.items()
    }


def test_t09_online_and_offline_equal_an_independent_oracle_bit_for_bit(flights: FeatureStore, weather: dict[str, Any]) -> None:
    """T9: a lookup, a training set at the same time and a naive computation agree in every bit, nulls included."""
    request = asked(200, seed=1)
    rows = [dict(zip(request, values, strict=True)) for values in zip(*request.values(), strict=True)]
    wanted = [expected_row(weather, row, NOON) for row in rows]
    expected = bits({name: [row[name] for row in wanted] for name in wanted[0]})
    spine = pa.table({**request, "event_timestamp": pa.array([at(NOON)] * 200, TIME)})

    vectors = flights.get_online_features(request, "flights")
    online, training = vectors.to_dict(), flights.get_historical_features(spine, "flights").to_dict()

    assert list(online) == [*request, *expected]
    assert bits({name: online[name] for name in expected}) == expected
    assert bits({name: training[name] for name in expected}) == expected
    assert {name: training[name] for name in request} == request
    assert bits(vectors.plain_features()) == expected
    nulls = sum(value is None for value in expected["exposure__exposure"])
    assert 0 < nulls < 200


def test_t09_past_rows_are_computed_from_past_values(flights: FeatureStore, weather: dict[str, Any]) -> None:
    """A training row takes its inputs as of its own time."""
    request = asked(300, seed=2)
    times = [NOON - int(minutes) * 60_000_000 for minutes in np.random.default_rng(3).integers(0, 3000, 300)]
    spine = pa.table({**request, "event_timestamp": pa.array(list(map(at, times)), TIME)})
    rows = [dict(zip(request, values, strict=True)) for values in zip(*request.values(), strict=True)]
    wanted = [expected_row(weather, row, time) for row, time in zip(rows, times, strict=True)]
    training = flights.get_historical_features(spine, "flights").to_dict()

    assert bits({name: training[name] for name in wanted[0]}) == bits({name: [row[name] for row in wanted] for name in wanted[0]})


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_t09_values_do_not_depend_on_how_rows_are_batched(flights: FeatureStore, batch: int) -> None:
    """Batches of 1, of 7 and of all rows give the same bits: by few plain values, and by Arrow columns."""
    request = asked(300, seed=4)
    whole = flights.get_online_features(request, "flights").to_arrow()
    parts = [
        flights.get_online_features({name: values[first : first + batch] for name, values in request.items()}, "flights").to_arrow()
        for first in range(0, 300, batch)
    ]
    spine = whole.select(list(request)).append_column("event_timestamp", pa.array([at(NOON)] * 300, TIME))
    slices = [
        flights.get_historical_features(spine.slice(first, batch), "flights").to_arrow().drop(["event_timestamp"])
        for first in range(0, 300, max(batch, 7))
    ]

    assert bits(pa.concat_tables(parts).to_pydict()) == bits(whole.to_pydict())
    if batch > 1:  # one table is read for each
        assert bits(pa.concat_tables(slices).to_pydict()) == bits(whole.to_pydict())


def test_t09_asynchronous_lookups_give_the_same(flights: FeatureStore) -> None:
    """`get_online_features_async` evaluates the same functions."""
    request = asked(5, seed=5)

    async def look_up() -> dict[str, list[Any]]:
        found = await flights.get_online_features_async(request, "flights")
        await flights.online.aclose()
        return found.to_dict()

    assert asyncio.run(look_up()) == flights.get_online_features(request, "flights").to_dict()


def test_t09_online_and_offline_call_the_same_function_object(flights: FeatureStore) -> None:
    """A store has one function object for a piece of code, whoever asks."""
    selection = flights.selection("flights")

    assert [each.name for each in selection.computed] == ["renamed", "exposure", "filled"]
    assert flights.functions.of(selection.computed[1]) is flights.functions.of(flights.selection(["exposure:hour"]).computed[-1])


def test_t09_features_of_on_demand_views_can_be_asked_for_by_name(flights: FeatureStore) -> None:
    """`"view:feature"` names one; its inputs need not be asked for, and are not in the answer."""
    request = {name: values[:1] for name, values in asked(1, seed=6).items()}
    found = flights.get_online_features(request, ["exposure:hour", "conditions:wind"])

    assert found.to_arrow().column_names == [*request, "exposure__hour", "conditions__wind"]
    assert found.to_pandas().dtypes["exposure__hour"] == "Int32"


def test_t09_a_service_may_need_nothing_but_request_columns(flights: FeatureStore) -> None:
    """Without a view among the inputs there is no key: the request's columns say how many rows there are."""
    found = flights.get_online_features({"distance": [1.609344, None]}, "only_request")
    spine = pa.table({"distance": [1.609344], "event_timestamp": pa.array([at(NOON)], TIME)})

    assert found.to_dict() == {"distance": [1.609344, None], "distance_only__miles": [1.0, None]}
    assert flights.get_historical_features(spine, "only_request").to_dict()["distance_only__miles"] == [1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"distance": None},
            "request column 'distance' is missing; the keys are 'airport', 'destination', the request columns are ",
        ),
        ({"airport": None}, "key 'airport' is missing; "),
        ({"distnce": [1.0]}, "'distnce' is no key of the features asked for; did you mean 'distance'?"),
        ({"distance": ["far"]}, "request column 'distance' is string, but it is declared Float64; cast it"),
        ({"distance": [2**53 + 1]}, "request column 'distance' holds a value that Float64 cannot"),
        ({"distance": [True]}, "request column 'distance' is bool, but it is declared Float64; cast it"),
        ({"distance": [1.0, 2.0]}, "request columns differ in length: "),
        ({"distance": 1.0}, "request column 'distance' needs a list of values, one for each row; got float"),
        (
            {"scheduled_at": [dt.date(2013, 6, 1)]},
            "request column 'scheduled_at' is date32[day], but it is declared Timestamp; cast it",
        ),
        ({"carrier": [1]}, "request column 'carrier' is int64, but it is declared String; cast it"),
    ],
)
def test_t09_request_columns_are_checked(flights: FeatureStore, change: dict[str, Any], message: str) -> None:
    """A request column is needed beside the keys, of its declared type and of their length; so is the spine's column."""
    request: dict[str, Any] = {
        "airport": ["EWR"], "destination": ["JFK"], "distance": [5.0], "scheduled_at": [at(NOON)], "carrier": ["UA"],
    }  # fmt: skip
    given = {name: value for name, value in (request | change).items() if value is not None}
    with pytest.raises(InputError) as error:
        flights.get_online_features(given, "flights")
    assert str(error.value).startswith(message)

    if "no key" not in message and "length" not in message and "list of values" not in message:
        spine = pa.table({**given, "event_timestamp": pa.array([at(NOON)], TIME)})
        with pytest.raises(SpineError, match=next(iter(change))):
            flights.get_historical_features(spine, "flights").to_arrow()


def test_t09_integers_of_a_request_may_be_whole_floats_where_floats_are_declared(flights: FeatureStore) -> None:
    """The integer 5 is the number 5.0, in plain lists as in Arrow."""
    columns: list[Any] = [[5], [5.0], pa.array([5], pa.int32()), np.array([5.0], np.float32)]
    for distance in columns:
        assert flights.get_online_features({"distance": distance}, "only_request").to_dict()["distance_only__miles"] == [
            5 / 1.609344
        ]


def test_t09_an_error_in_a_training_set_names_the_spine_s_row(flights: FeatureStore, repo: Repo) -> None:
    """A row that the function cannot do is named by its place in the spine."""
    repo.define(
        DEFINITIONS.replace(
            'return {"miles": inputs["distance"] / 1.609344}',
            'return {"miles": [1 / each for each in inputs["distance"].tolist()]}',
        )
    )
    flights.apply()
    spine = pa.table({"distance": [1.0, None, 0.0, 4.0], "event_timestamp": pa.array([at(NOON)] * 4, TIME)})

    with pytest.raises(OnDemandError, match=r"on-demand view 'distance_only', row 2: ZeroDivisionError: float division by zero"):
        flights.get_historical_features(spine, "only_request").to_arrow()
    with pytest.raises(OnDemandError, match=r"on-demand view 'distance_only': ZeroDivisionError"):
        flights.get_online_features({"distance": [0.0]}, "only_request").to_dict()


def test_t09_fields_are_declared_with_their_types() -> None:
    """The declaration keeps fields as such, and the function can be called as it is."""
    from featurestore import RequestSource, on_demand_feature_view

    @on_demand_feature_view(inputs=[RequestSource("r", {"x": Int64})], fields={"y": Int64})
    def double(inputs: Any) -> Any:
        """Twice as much."""
        return {"y": inputs["x"] * 2}

    assert (double.name, double.description) == ("double", "Twice as much.")
    assert double.fields == (Field("y", Int64),)
    assert double({"x": 4}) == {"y": 8}
