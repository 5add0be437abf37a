from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from featurestore import Aggregation, Entity, FeatureView, Field, FileSource
from featurestore.repo import load_repo
from featurestore.specs import canonical_json, fingerprint, from_spec, to_spec
from featurestore.types import Array, Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType
from tests.repo_files import BASIS, Fill, faults, write_repo

plane = Entity("plane", join_keys={"tail": String})
flights = FileSource("flights", path="flights.parquet", event_time="departed_at")


def view(*aggregations: Aggregation, **changes: Any) -> FeatureView:
    """Return a view of these aggregations, some of it changed."""
    declared: dict[str, Any] = {"entities": [plane], "source": flights, "aggregations": aggregations}
    return FeatureView("delays", **(declared | changes))


def over(function: str, column: str = "delay", **changes: Any) -> Aggregation:
    """Return an aggregation of a float column over a day, some of it changed."""
    declared: dict[str, Any] = {"windows": ["1d"], "type": None if column == "*" else Float64}
    return Aggregation(column, function, **(declared | changes))


# Names and types

NAMED = [
    (over("mean", windows=["1d", "7d", "90m"]), ["delay_mean_1d", "delay_mean_7d", "delay_mean_90m"]),
    (over("count", "*", windows=["24h"]), ["count_1d"]),
    (over("last_n", n=5, windows=["7d"]), ["delay_last_5_7d"]),
    (over("count_distinct", "dest"), ["dest_count_distinct_1d"]),
    (over("sum", name="lost", windows=["1h", "1w"]), ["lost_1h", "lost_7d"]),
    (over("mean", windows=[dt.timedelta(seconds=90)]), ["delay_mean_90s"]),
]


@pytest.mark.parametrize(("aggregation", "names"), NAMED, ids=lambda each: str(each) if isinstance(each, list) else "")
def test_features_are_named_by_column_function_and_window(aggregation: Aggregation, names: list[str]) -> None:
    """Each window gives a feature; `name` stands in place of column and function."""
    assert list(aggregation.feature_names) == names
    assert [field.name for field in view(aggregation).features] == names


SCALARS = [Int32, Int64, Float32, Float64, String, Bool, Bytes, Date, Timestamp]
RESULTS: list[tuple[str, ValueType, ValueType]] = [
    *[(function, each, Int64) for function in ("count", "count_distinct") for each in SCALARS],
    *[(function, each, Float64) for function in ("mean", "stddev") for each in (Int32, Int64, Float32, Float64)],
    *[("sum", each, Int64) for each in (Int32, Int64)],
    *[("sum", each, Float64) for each in (Float32, Float64)],
    *[(function, each, each) for function in ("min", "max", "first", "last") for each in SCALARS],
    *[("last_n", each, Array(each)) for each in SCALARS],
    ("count", Array(Int64), Int64),
    ("first", Array(Int64), Array(Int64)),
    ("last", Array(Int64), Array(Int64)),
]


@pytest.mark.parametrize(("function", "given", "result"), RESULTS, ids=str)
def test_the_type_of_a_feature_follows_function_and_column(function: str, given: ValueType, result: ValueType) -> None:
    """Counts are Int64, means Float64, sums as wide as they can be; the others give the column's type."""
    made = over(function, type=given, n=3 if function == "last_n" else None)

    assert made.features == (Field(made.feature_names[0], result),)


# Refusals

Make = Callable[[], Any]
REFUSED: list[tuple[str, Make, str]] = [
    *[
        (f"{function} of {each}", partial(over, function, type=each), f"{function} needs numbers, and column 'delay' is {each}")
        for function in ("sum", "mean", "stddev")
        for each in (String, Bool, Timestamp, Array(Int64))
    ],
    *[
        (f"{function} of arrays", partial(over, function, type=Array(Int64)), f"{function} cannot take arrays, and column 'delay'")
        for function in ("min", "max", "count_distinct")
    ],
    ("last_n of arrays", lambda: over("last_n", n=1, type=Array(Int64)), "last_n cannot take arrays, and column 'delay'"),
    ("last_n without n", lambda: over("last_n"), "last_n needs n, the number of values"),
    ("n elsewhere", lambda: over("last", n=2), "n is for last_n, not last"),
    ("n of nothing", lambda: over("last_n", n=0), "greater than or equal to 1"),
    (
        "sum of events",
        lambda: over("sum", "*"),
        "column '*' is the event itself: it can be counted, and has no sql and no type (sum)",
    ),
    ("events with sql", lambda: over("count", "*", sql="1"), "column '*' is the event itself"),
    ("unknown function", lambda: over("meen"), "no function 'meen'; did you mean 'mean'?"),
    ("no window", lambda: over("sum", windows=[]), "an aggregation needs at least one window"),
    ("window twice", lambda: over("sum", windows=["24h", "1d"]), "window '1d' is named twice"),
    ("no name for it", lambda: over("sum", "Late minutes"), "'Late minutes_sum_1d' is no name"),
    (
        "window and refresh",
        lambda: view(over("sum", windows=["90m"]), refresh="1h"),
        "window 90m of aggregation 'delay_sum' is no multiple of refresh 1h",
    ),
    (
        "fields and aggregations",
        lambda: view(over("sum"), fields={"delay": Float64}),
        "a feature view needs fields or aggregations, not both",
    ),
    ("neither", view, "a feature view needs fields or aggregations"),
    (
        "static",
        lambda: view(over("sum"), source=FileSource("planes", path="planes.parquet")),
        "aggregations needs an event_time, and source 'planes' is static",
    ),
    ("feature twice", lambda: view(over("sum"), over("sum")), "feature 'delay_sum_1d' is named twice"),
    ("join key", lambda: view(over("count", "tail")), "aggregation 'tail_count': 'tail' is a join key, the same in all rows"),
    (
        "two columns of one name",
        lambda: view(over("sum"), over("mean", sql="delay / 60")),
        "aggregation 'delay_mean': 'delay' stands for two different columns; give one another column name",
    ),
    (
        "two conditions of one name",
        lambda: view(over("sum", where="delay > 0"), over("sum", where="delay < 0", windows=["7d"])),
        "aggregation 'delay_sum': 'delay_sum' stands for two different columns; give one another name",
    ),
]


@pytest.mark.parametrize(("make", "message"), [pytest.param(make, message, id=name) for name, make, message in REFUSED])
def test_an_aggregation_refuses_what_it_can_see_by_itself(make: Make, message: str) -> None:
    """What is wrong with an aggregation or its view is refused when it is made, in words that say what is right."""
    with pytest.raises(ValidationError, match=re.escape(message)):
        make()


# Values and what is stored


def test_durations_of_windows_are_equal_by_length() -> None:
    """`24h` and `1d` are one window: equal definitions, JSON and fingerprints."""
    one, other = view(over("sum", windows=["24h"])), view(over("sum", windows=[dt.timedelta(days=1)]))

    assert (one, hash(one), fingerprint(one)) == (other, hash(other), fingerprint(other))
    assert canonical_json(to_spec(one)) == canonical_json(to_spec(other))


@pytest.mark.parametrize("aggregation", [each for each, _ in NAMED], ids=lambda each: each.part)
def test_json_keeps_aggregations(aggregation: Aggregation) -> None:
    """What the registry keeps gives the same view again."""
    made = view(aggregation)

    assert from_spec(FeatureView, to_spec(made)) == made


ALTERED = [
    over("sum", windows=["7d"]),
    over("mean", name="delay_sum"),
    over("sum", sql="delay"),
    over("sum", where="true"),
    over("sum", type=Float32),
]


def test_what_alters_an_aggregation_alters_the_fingerprint() -> None:
    """Function, window, expression, condition and type each make another version (T11)."""
    assert len({fingerprint(view(each)) for each in [over("sum"), *ALTERED]}) == len(ALTERED) + 1


def test_a_column_is_stored_once_for_all_functions() -> None:
    """The table holds each column once, and one more for each condition; events themselves need none."""
    made = view(
        over("sum"),
        over("mean", windows=["7d"]),
        over("count", "*"),
        over("max", where="delay > 0", name="late"),
        over("count", "*", where="delay > 0", name="lates"),
    )

    assert made.stored == (Field("delay", Float64), Field("late", Float64), Field("lates", Bool))


# In a repo


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Write files of Python into a repo that has the weather as Parquet, and return its folder."""
    return partial(write_repo, tmp_path / "repo")


def declared(arguments: str) -> str:
    """Return a file with a view over the weather that has one aggregation."""
    return f'{BASIS}v = FeatureView("v", entities=[airport], source=weather, aggregations=[Aggregation({arguments})])\n'


def test_types_come_from_the_source(fill: Fill) -> None:
    """A column's type need not be declared: that of the source, or of the expression, stands in its place."""
    more = 'Aggregation("warm", "last", ["1d"], sql="temperature > 20"), Aggregation("both", "last", ["1d"], sql="[gusts, 1]"'
    text = declared(f'"gusts", "sum", ["1d"]), {more}')

    [loaded] = [each for each in load_repo(fill(views=text)) if isinstance(each, FeatureView)]

    assert loaded.features == (Field("gusts_sum_1d", Int64), Field("warm_last_1d", Bool), Field("both_last_1d", Array(Int64)))


FAULTY = [
    ('"gusts", "sum", ["1d"], where="gusts"', "gusts_sum"),
    ('"gusts", "sum", ["1d"], where="gust > 1"', "gusts_sum"),
    ('"gusts", "sum", ["1d"], where="gusts >"', "gusts_sum"),
    ('"gusts", "sum", ["1d"], where="sum(gusts) OVER () > 1"', "gusts_sum"),
    ('"gusts", "sum", ["1d"], where="gusts > (SELECT 1)"', "gusts_sum"),
    ('"gusts", "sum", ["1d"], where="observed_at < now()"', "gusts_sum"),
    ('"twice", "sum", ["1d"], sql="gusts, gusts"', "twice_sum"),
    ('"gust", "sum", ["1d"]', "gust_sum"),
    ('"place", "sum", ["1d"], sql="origin"', "place_sum"),
    ('"sky", "max", ["1d"]', "sky_max"),
]


@pytest.mark.parametrize(("arguments", "part"), FAULTY, ids=lambda each: str(each)[:60])
def test_a_fault_names_file_view_and_aggregation(fill: Fill, arguments: str, part: str) -> None:
    """What the source or its SQL refuses is one fault that says where it stands."""
    [fault] = faults(fill(views=declared(arguments)))

    assert fault.startswith(f"views.py:5: v.aggregations: aggregation {part!r}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('"gust", "sum", ["1d"]', "no column 'gust'; did you mean 'gusts'?"),
        ('"gusts", "sum", ["1d"], where="gust > 1"', "its where: no column 'gust'; did you mean 'gusts'?"),
        ('"gusts", "sum", ["1d"], where="gusts"', "its where is BIGINT, and a condition is BOOLEAN"),
        ('"twice", "sum", ["1d"], sql="gusts, gusts"', "its sql gives 2 values, and one is needed"),
        ('"none", "last", ["1d"], sql="NULL"', "column 'none' holds nothing but nulls, so its type has to be given"),
        ('"none", "last", ["1d"], sql="[NULL]"', "column 'none' holds nothing but nulls, so its type has to be given"),
        ('"both", "max", ["1d"], sql="[gusts, 1]"', "max cannot take arrays, and column 'both' is Array(Int64)"),
        (
            '"both", "last", ["1d"], sql="[[gusts]]"',
            "column 'both' is BIGINT[][], which no type holds without loss; CAST it in its sql",
        ),
    ],
)
def test_a_fault_is_said_in_our_words(fill: Fill, arguments: str, message: str) -> None:
    """An unknown column is named with the nearest known one, and what is no single value or no condition is called so."""
    [fault] = faults(fill(views=declared(arguments)))

    assert fault.endswith(message)
