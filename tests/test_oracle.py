from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest

from featurestore import Aggregation, Entity, FeatureView, Field, FileSource
from featurestore.testing import oracle
from featurestore.types import Float64, Int64, String

AIRPORT = Entity("airport", join_keys={"origin": String})
ROUTE = Entity("route", join_keys={"origin": String, "destination": String})


def at(time: str) -> dt.datetime:
    """Return a time of 2013-06-01."""
    return dt.datetime.fromisoformat(f"2013-06-01T{time}+00:00")


def t(time: str) -> int:
    """Return it in microseconds."""
    return oracle.instant(at(time))


def row(n: Any, event: str | None, written: str | None = None, origin: str | None = "EWR") -> dict[str, Any]:
    """Return a source row."""
    return {"origin": origin, "n": n, "at": event and at(event), "written": written and at(written)}


def view(source: dict[str, Any] | None = None, **options: Any) -> FeatureView:
    """Return a view of `n`, or of aggregations of it."""
    fields = () if "aggregations" in options else (Field("n", Int64),)
    made = FileSource("s", path="s.parquet", **{"event_time": "at"} | (source or {}))
    return FeatureView("v", entities=[AIRPORT], source=made, fields=fields, **options)


CREATED = {"created_time": "written"}
LATE = {**CREATED, "visible_from": "created_time"}
POINTS: dict[str, tuple[FeatureView, list[dict[str, Any]], str, int | None]] = {
    "T2: a row is visible at its visible time": (view(), [row(1, "10:00:00")], "10:00:00", 1),
    "T2: and not a microsecond before": (view(), [row(1, "10:00:00.000001")], "10:00:00", None),
    "T3: the delay moves it on": (view({"delay": "5m"}), [row(1, "10:00:00")], "10:04:59.999999", None),
    "T3: by just so much": (view({"delay": "5m"}), [row(1, "10:00:00")], "10:05:00", 1),
    "T3: a refresh rounds up": (view(refresh="1h"), [row(1, "10:00:00.000001")], "10:59:59", None),
    "T3: what is on the boundary stays": (view(refresh="1h"), [row(1, "10:00:00")], "10:00:00", 1),
    "T3: the delay comes after the boundary": (view({"delay": "5m"}, refresh="1h"), [row(1, "09:30:00")], "10:04:59", None),
    "T3: created time counts where the source says so": (view(LATE), [row(1, "10:00:00", "11:00:00")], "10:59:59", None),
    "T3: but not where it is before the event": (view(LATE), [row(1, "10:00:00", "09:00:00")], "10:00:00", 1),
    "T3: a null created time counts as the event": (view(LATE), [row(1, "10:00:00")], "10:00:00", 1),
    "T4: the latest event": (view(), [row(2, "10:00:00"), row(1, "09:00:00")], "12:00:00", 2),
    "T4: then the latest created": (
        view(CREATED), [row(2, "10:00:00", "10:02:00"), row(1, "10:00:00", "10:01:00")], "12:00:00", 2,
    ),
    "T4: a null created time sorts first": (view(CREATED), [row(2, "10:00:00", "10:00:00"), row(1, "10:00:00")], "12:00:00", 2),
    "T4: then the last in the file": (view(), [row(1, "10:00:00"), row(2, "10:00:00")], "12:00:00", 2),
    "T4: of the right key": (view(), [row(1, "10:00:00"), row(2, "11:00:00", origin="JFK")], "12:00:00", 1),
    "T4: at the TTL it is still there": (view(ttl="1h"), [row(1, "10:00:00")], "11:00:00", 1),
    "T4: beyond it is absent": (view(ttl="1h"), [row(1, "10:00:00")], "11:00:00.000001", None),
    "T7: history_start": (view(history_start=at("10:00:00")), [row(1, "10:00:00")], "12:00:00", None),
}  # fmt: skip


@pytest.mark.parametrize("case", POINTS)
def test_point_in_time_values_are_those_worked_out_by_hand(case: str) -> None:
    """T2 to T4 and T7: each rule at its boundary, worked out by hand."""
    of, rows, time, expected = POINTS[case]
    found = oracle.value_at(of, rows, ("EWR",), t(time))
    assert found == (None if expected is None else {"n": expected})


def test_t13_a_static_row_is_visible_always_and_a_duplicate_key_is_refused() -> None:
    """A source without event time answers at any time, and has one row for each key."""
    static = FeatureView("v", entities=[AIRPORT], source=FileSource("s", path="s.parquet"), fields=[Field("n", Int64)])
    rows = [{"origin": "EWR", "n": 1}]
    assert oracle.value_at(static, rows, ("EWR",), -1) == {"n": 1}
    with pytest.raises(ValueError, match="duplicate"):
        oracle.value_at(static, rows * 2, ("EWR",), 0)


def test_t05_a_training_set_keeps_the_rows_of_its_spine() -> None:
    """Same count and order, duplicates kept, own columns untouched; a null key and an unknown one give nulls."""
    members = [oracle.Member("w", view(), [row(7, "10:00:00")], ("from",), ("n",))]
    asked = [("EWR", "11:00:00"), (None, "11:00:00"), ("EWR", "11:00:00"), ("LGA", "11:00:00"), ("EWR", "09:00:00")]
    spine = [{"from": key, "event_timestamp": at(time), "label": place % 3} for place, (key, time) in enumerate(asked)]
    found = oracle.training_set(members, spine)
    assert [each.pop("w__n") for each in found] == [7, None, 7, None, None]
    assert found == spine


def test_t05_composite_keys_are_compared_column_by_column() -> None:
    """("a", "bc") is not ("ab", "c")."""
    of = FeatureView("v", entities=[ROUTE], source=FileSource("s", path="s.parquet", event_time="at"), fields=[Field("n", Int64)])
    rows = [{"origin": "a", "destination": "bc", "n": 1, "at": at("10:00:00")}]
    assert oracle.value_at(of, rows, ("ab", "c"), t("12:00:00")) is None
    assert oracle.value_at(of, rows, ("a", "bc"), t("12:00:00")) == {"n": 1}


EVENTS = [row(1.0, "08:00:00"), row(None, "09:30:00"), row(4.0, "10:00:00"), row(2.0, "09:00:00"), row(8.0, "10:30:00")]
AGGREGATES = {
    "count": (2, 0), "sum": (6.0, 0), "mean": (3.0, None), "min": (2.0, None), "max": (4.0, None), "stddev": (math.sqrt(2), None),
    "first": (2.0, None), "last": (4.0, None), "count_distinct": (2, 0),
}  # fmt: skip


@pytest.mark.parametrize("function", AGGREGATES)
def test_t06_aggregates_are_those_worked_out_by_hand(function: str) -> None:
    """With a refresh of an hour, at 10:59 the window of two hours is (08:00, 10:00]: 2, null and 4; that of none is empty."""
    aggregation = Aggregation("n", function, ["2h"], type=Float64)
    of = view(refresh="1h", aggregations=[aggregation])
    full, empty = AGGREGATES[function]
    [name] = aggregation.feature_names
    assert oracle.value_at(of, EVENTS, ("EWR",), t("10:59:00")) == {name: full}
    assert oracle.value_at(of, EVENTS, ("EWR",), t("13:00:00")) == {name: empty}
    assert oracle.value_at(of, EVENTS, ("EWR",), t("07:59:00")) is None


def test_t06_last_n_star_nan_and_known_times() -> None:
    """last_n is oldest first without nulls, `*` counts events, NaN is above all, a late row is in no window before it is known."""
    several = [Aggregation("n", "last_n", ["3h"], n=2, type=Float64), Aggregation("*", "count", ["3h"])]
    assert oracle.value_at(view(aggregations=several), EVENTS, ("EWR",), t("10:45:00")) == {
        "n_last_2_3h": [4.0, 8.0], "count_3h": 5,
    }  # fmt: skip
    top = view(aggregations=[Aggregation("n", "max", ["1h"], type=Float64)])
    found = oracle.value_at(top, [row(math.nan, "10:00:00"), row(math.inf, "10:01:00")], ("EWR",), t("10:30:00"))
    assert found is not None
    assert math.isnan(found["n_max_1h"])
    late = view(LATE, aggregations=[Aggregation("n", "sum", ["2h"], type=Float64)])
    rows = [row(1.0, "10:00:00", "10:00:00"), row(2.0, "10:10:00", "10:40:00")]
    assert [oracle.value_at(late, rows, ("EWR",), t(time)) for time in ("10:39:59", "10:40:00")] == [
        {"n_sum_2h": 1.0}, {"n_sum_2h": 3.0},
    ]  # fmt: skip
