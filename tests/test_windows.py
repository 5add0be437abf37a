from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import Aggregation, Entity, FeatureView, FileSource
from featurestore.offline.asked import Asked as AskedRows
from featurestore.offline.point_in_time import values_at
from featurestore.offline.tables import Snapshot
from featurestore.testing import oracle
from featurestore.types import Bool, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType
from tests.histories import (
    FIRST,
    LAST,
    UTC_TIME,
    History,
    Interval,
    Row,
    histories,
    materialize,
    moment,
    set_bucket_rows,
    write_files,
)

FLOATS = [0.0, -0.0, 1.0, 0.1, -0.1, 1e16, -1e16, 2.0**-60, 5e-324, 1e300, math.nan, math.inf, -math.inf, None]
VALUES: dict[ValueType, list[Any]] = {
    Float64: FLOATS,
    Float32: [0.0, -0.0, 1.5, -2.25, 2.0**-20, math.nan, math.inf, None],
    Int64: [0, 1, -1, 2**53 + 1, -(2**53), 7, None],
    Int32: [0, 1, -1, 2**31 - 1, -(2**31), None],
    String: ["", "a", "ab", "b", "é", "\U0001f600", None],
    Bool: [True, False, None],
    Date: [dt.date(1969, 12, 31), dt.date(2013, 6, 1), None],
    Timestamp: [moment(-1), moment(0), moment(1_370_044_800_000_001), None],
}
FUNCTIONS = ["count", "count_distinct", "sum", "mean", "stddev", "min", "max", "first", "last", "last_n"]


def micros(length: int) -> dt.timedelta:
    """Return a duration of so many microseconds."""
    return dt.timedelta(microseconds=length)


@st.composite
def aggregated(draw: st.DrawFn, *, is_reordered: bool | None = None) -> History:
    """Draw a history as for plain views, one column of each type, and aggregations of it over windows of odd lengths."""
    history = draw(histories(is_reordered=is_reordered))
    plain = history.view
    refresh = 1 if plain.refresh is None else plain.refresh // micros(1)
    lengths = st.lists(
        st.sampled_from([1, 2, 3, 10, 11, 20, 3_600_000_000, 86_400_000_001, 10**15]), min_size=1, max_size=3, unique=True
    )
    chosen = draw(st.lists(st.sampled_from([*VALUES]), min_size=1, max_size=3, unique=True))
    aggregations = [Aggregation("*", "count", [micros(refresh)])]
    for type_ in chosen:
        allowed = (
            FUNCTIONS
            if type_ in (Float64, Float32, Int64, Int32)
            else [each for each in FUNCTIONS if each not in ("sum", "mean", "stddev")]
        )
        for function in draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=4, unique=True)):
            windows = sorted({micros(min(length, 10**18 // refresh) * refresh) for length in draw(lengths)})
            n = draw(st.integers(1, 3)) if function == "last_n" else None
            aggregations.append(Aggregation(f"c_{type_}", function, windows, type=type_, n=n))
    for file in history.files:
        for row in file:
            row.update({f"c_{type_}": draw(st.sampled_from(VALUES[type_])) for type_ in chosen})
    view = dataclasses.replace(cast("Any", plain), fields=(), aggregations=tuple(aggregations))
    return History(view, history.files, history.keys)


def write(root: Path, history: History) -> None:
    """Write the files of a history."""
    view = history.view
    columns = [*((key.name, key.type.arrow) for key in view.join_keys), *((each.name, each.type.arrow) for each in view.stored)]
    schema = pa.schema([*columns, ("landed", UTC_TIME), ("written", UTC_TIME)])
    (root / "landings").mkdir()
    for number, rows in enumerate(history.files):
        named = [{name: row.get(name) for name in schema.names} for row in rows]
        pq.write_table(pa.Table.from_pylist(named, schema=schema), root / "landings" / f"{number:02}.parquet")


def asked_of(history: History) -> list[tuple[tuple[Any, ...], int]]:
    """Return each key at every time where an event enters or leaves a window, and a microsecond beside it."""
    view = history.view
    delay = 0 if view.source.delay is None else view.source.delay // micros(1)
    windows = {window // micros(1) for each in view.aggregations for window in each.windows}
    visible = history.visible_times
    edges = {*visible, *(v + window for v in visible for window in windows)}
    edges |= {oracle.instant(row["landed"]) + delay + window for row in history.rows if row["landed"] for window in windows}
    ttl = 0 if view.ttl is None else view.ttl // micros(1)
    edges |= {oracle.instant(row["landed"]) + ttl for row in history.rows if row["landed"]}
    times = sorted(t for edge in edges for offset in (-1, 0, 1) if FIRST < (t := edge + offset) < LAST)
    pairs = [(key, t) for key in history.keys for t in times or [0]]
    generator = random.Random(len(pairs))
    return generator.sample(pairs, min(len(pairs), 250))


def evaluate(
    history: History, snapshot: Snapshot, asked: Sequence[tuple[tuple[Any, ...], int]], **options: Any
) -> list[Row | None]:
    """Return the values of the view, None where absent."""
    view = history.view
    keys = [
        pa.chunked_array([pa.array([key[number] for key, _ in asked], type=field.type.arrow)])
        for number, field in enumerate(view.join_keys)
    ]
    times = np.array([t for _, t in asked], dtype=np.int64)
    values = values_at(view, snapshot, AskedRows.of(keys, times), view.feature_names, **options)
    assert [(column.name, column.type) for column in values.features.schema] == [(f.name, f.type.arrow) for f in view.features]
    rows = values.features.to_pylist()
    assert all(set(row.values()) == {None} for row, is_present in zip(rows, values.present, strict=True) if not is_present)
    return [row if is_present else None for row, is_present in zip(rows, values.present, strict=True)]


def same(name: str, one: Any, other: Any) -> bool:
    """Say whether two values are the same, to the bit; a deviation may be off by rounding."""
    if isinstance(one, float) and isinstance(other, float):
        if "stddev" in name:
            return math.isclose(one, other, rel_tol=1e-14, abs_tol=0) or (math.isnan(one) and math.isnan(other))
        return (math.isnan(one) and math.isnan(other)) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same("", *pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def differences(history: History, snapshot: Snapshot, asked: Sequence[tuple[tuple[Any, ...], int]]) -> list[Any]:
    """Return what differs from the oracle."""
    found = evaluate(history, snapshot, asked)
    wrong: list[Any] = []
    for (key, t), answer in zip(asked, found, strict=True):
        wanted = oracle.windows_at(history.view, history.rows, key, t)
        if answer is None or wanted is None:
            wrong += [] if answer == wanted else [(key, t, answer, wanted)]
        else:
            wrong += [(key, t, name, answer[name], wanted[name]) for name in wanted if not same(name, answer[name], wanted[name])]
    return wrong


def materialized(history: History, folder: str, intervals: Sequence[Interval] = ((FIRST, LAST),)) -> Snapshot:
    """Write a history's files and materialize them."""
    write(Path(folder), history)
    return materialize(history.view, Path(folder), intervals)


@given(aggregated())
@settings(max_examples=60, deadline=None)
def test_t06_windows_are_those_of_the_oracle(history: History) -> None:
    """Every function over every window, at every boundary and a microsecond beside it, is what a naive reading of T6 gives."""
    with tempfile.TemporaryDirectory() as folder:
        snapshot = materialized(history, folder)
        assert differences(history, snapshot, asked_of(history)) == []


@given(aggregated(is_reordered=True))
@settings(max_examples=40, deadline=None)
def test_t06_late_rows_count_from_when_they_were_known(history: History) -> None:
    """Under `visible_from="created_time"` a window holds the events that were known at its end, whatever was known later."""
    with tempfile.TemporaryDirectory() as folder:
        snapshot = materialized(history, folder)
        assert differences(history, snapshot, asked_of(history)) == []


@given(aggregated(), st.integers(1, 3), st.sampled_from([1, 2, 5]))
@settings(max_examples=60, deadline=None)
def test_t06_bits_do_not_depend_on_how_the_work_is_cut(history: History, cuts: int, bucket_rows: int) -> None:
    """One table file or several, buckets of any size, one thread or two, one row at a time or all: the values are identical."""
    visible = history.visible_times
    middle = sorted({visible[len(visible) * number // (cuts + 1)] for number in range(1, cuts + 1)} if visible else set())
    bounds = [FIRST, *middle, LAST]
    asked = asked_of(history)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as several:
        whole = evaluate(history, materialized(history, one), asked)
        snapshot = materialized(history, several, list(itertools.pairwise(bounds)))
        with pytest.MonkeyPatch.context() as patch:
            set_bucket_rows(patch, bucket_rows)
            parts = evaluate(history, snapshot, asked, threads=2)
        singly = [evaluate(history, snapshot, [each])[0] for each in asked[:10]]
    assert repr(parts) == repr(whole)
    assert repr(singly) == repr(whole[:10])


@given(histories(), st.data())
@settings(max_examples=40, deadline=None)
def test_t06_expressions_and_conditions_choose_the_values(history: History, data: st.DataObject) -> None:
    """With `sql` and `where` the value of an event is the expression's where the condition is true, and null elsewhere."""
    for file in history.files:
        for row in file:
            row["c"] = data.draw(st.sampled_from([None, -3, 0, 1, 5]))
    refresh = history.view.refresh or micros(1)
    windows = [refresh, refresh * 10]
    doubled = [
        Aggregation("c", function, windows, sql="c * 2", where="c <> 1", type=Int64, name=f"doubled_{function}", n=n)
        for function, n in (("sum", None), ("count", None), ("max", None), ("last_n", 2))
    ]
    positive = Aggregation("*", "count", windows, where="c > 0", name="positive")
    view = dataclasses.replace(cast("Any", history.view), fields=(), aggregations=(*doubled, positive))
    columns = [
        *((key.name, key.type.arrow) for key in view.join_keys),
        ("c", pa.int64()),
        ("landed", UTC_TIME),
        ("written", UTC_TIME),
    ]
    meant = [
        row
        | dict.fromkeys((each.input.name for each in doubled if each.input), None if row["c"] in (None, 1) else row["c"] * 2)
        | dict.fromkeys([positive.stored_name], True if row["c"] is not None and row["c"] > 0 else None)
        for row in history.rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_files(
            Path(folder), pa.schema(columns), [[{name: row.get(name) for name, _ in columns} for row in f] for f in history.files]
        )
        snapshot = materialize(view, Path(folder))
        asked = asked_of(History(view, history.files, history.keys))
        found = evaluate(History(view, history.files, history.keys), snapshot, asked)
    wanted = [oracle.windows_at(view, meant, key, t) for key, t in asked]
    assert found == wanted


def test_t06_a_hot_key_is_right_among_others(tmp_path: Path) -> None:
    """One key with nine tenths of the events, over many row groups and buckets, has the windows of a naive count."""
    rows, day = 30_000, 86_400_000_000
    generator = np.random.default_rng(6)
    landed = np.sort(generator.integers(0, 90 * day, rows))
    tails = np.where(generator.random(rows) < 0.9, 7, generator.integers(0, 1000, rows))
    source = FileSource("landings", path="landings", event_time="landed")
    counted = Aggregation("c", "count", [micros(day), micros(30 * day)], type=Int64)
    aggregations = (counted, Aggregation("c", "sum", [micros(30 * day)], type=Int64))
    plain = FeatureView("v", entities=[Entity("e", join_keys={"tail": Int64})], source=source, fields={"c": Int64})
    view = dataclasses.replace(cast("Any", plain), fields=(), aggregations=aggregations)
    values = generator.integers(-5, 6, rows)
    (tmp_path / "landings").mkdir()
    table = pa.table({"tail": tails, "c": values, "landed": pa.array(landed).cast(UTC_TIME)})
    pq.write_table(table, tmp_path / "landings" / "0.parquet")
    asked = [
        ((int(key),), int(t)) for key, t in zip([7] * 20 + tails[:20].tolist(), generator.integers(0, 90 * day, 40), strict=True)
    ]
    history = History(view, [], [])
    snapshot = materialize(view, tmp_path)
    for threads in (1, 3):
        for ((key,), t), answer in zip(asked, evaluate(history, snapshot, asked, threads=threads), strict=True):
            of_key = (tails == key) & (landed <= t)
            month = of_key & (landed > t - 30 * day)
            wanted = [int((of_key & (landed > t - day)).sum()), int(month.sum()), int(values[month].sum())]
            assert (list(answer.values()) if answer else None) == (wanted if of_key.any() else None)
