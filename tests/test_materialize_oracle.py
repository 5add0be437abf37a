from __future__ import annotations

import datetime as dt
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore import Aggregation, Entity, FeatureStore, FeatureView, FileSource
from featurestore.definitions import FeatureView as View
from featurestore.online import embedded
from featurestore.online.store import Status
from featurestore.testing.oracle import Row, row_at, value_at, visible_time, windows_at
from featurestore.types import Int64
from tests.conftest import HOUR, NOON, TIME, at

Rows = list[dict[str, Any]]

KEYS = ("a", "b", "c")
OFFSETS = [-HOUR, -1, 0, 1, HOUR // 2, HOUR, HOUR + 1, 2 * HOUR, 3 * HOUR, 5 * HOUR]

source_row = st.fixed_dictionaries(
    {
        "key": st.sampled_from(KEYS),
        "at": st.sampled_from(OFFSETS).map(lambda offset: at(NOON + offset)),
        "made": st.one_of(st.none(), st.sampled_from(OFFSETS).map(lambda offset: at(NOON + offset))),
        "value": st.one_of(st.none(), st.integers(0, 9), st.just(2**53 + 1)),
    }
)
change = st.one_of(
    st.tuples(st.just("add"), st.lists(source_row, max_size=4)),
    st.tuples(st.just("correct"), st.integers(0, 50)),
    st.tuples(st.just("retract"), st.integers(0, 50)),
)
run_step = st.tuples(
    st.lists(change, max_size=3),
    st.sampled_from([0, 1, HOUR // 2, HOUR, 2 * HOUR]),  # how far the clock moves on
    st.one_of(st.none(), st.tuples(st.sampled_from(OFFSETS), st.sampled_from(OFFSETS))),  # an old interval to run again
)

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "refresh and delay": ({"delay": "10m"}, {"refresh": "1h"}),
    "created time": ({"created_time": "made"}, {"refresh": "1h", "ttl": "2h"}),
    "visible from created time": ({"created_time": "made", "visible_from": "created_time"}, {"refresh": "30m"}),
    "lookback": ({}, {"lookback": "1h"}),
    "history start": ({}, {"history_start": at(NOON)}),
    "windows": ({}, {}),
    "windows, refresh, delay and ttl": ({"delay": "10m"}, {"refresh": "1h", "ttl": "4h"}),
    "windows of late rows": ({"created_time": "made", "visible_from": "created_time"}, {"refresh": "30m"}),
}
AGGREGATIONS = [
    Aggregation("*", "count", ["1h", "3h"]),
    Aggregation("value", "sum", ["1h", "2h"], type=Int64),
    Aggregation("value", "last_n", ["5h"], n=2, type=Int64),
]
AGGREGATIONS_TEXT = """[
    Aggregation("*", "count", ["1h", "3h"]), Aggregation("value", "sum", ["1h", "2h"]), Aggregation("value", "last_n", ["5h"], n=2),
]"""


def _view(variant: str) -> View:
    source, view = VARIANTS[variant]
    return FeatureView(
        "readings",
        entities=[Entity("thing", join_keys={"key": "String"})],  # type: ignore[dict-item]  # names of types are read too
        source=FileSource("readings_source", path="rows.parquet", event_time="at", **source),
        fields={} if variant.startswith("windows") else {"value": Int64},
        aggregations=AGGREGATIONS if variant.startswith("windows") else [],
        **view,
    )


def _write(folder: Path, rows: Rows) -> None:
    schema = pa.schema([("key", pa.string()), ("at", TIME), ("made", TIME), ("value", pa.int64())])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "rows.parquet")


def _changed(rows: Rows, changes: list[tuple[str, Any]]) -> Rows:
    rows = [dict(row) for row in rows]
    for kind, what in changes:
        if kind == "add":
            rows += what
        elif rows and kind == "correct":
            rows[what % len(rows)] = rows[what % len(rows)] | {"value": what}
        elif rows:
            del rows[what % len(rows)]
    return rows


def _within(view: View, row: Row, start: int | None, end: int) -> bool:
    visible = visible_time(view, row)
    assert visible is not None
    return (start is None or visible > start) and visible <= end


class _Model:
    """What the table holds, kept as T7 says: each run replaces its interval by what the source has then."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.rows: list[Row] = []

    def run(self, source: Rows, start: int | None, end: int) -> None:
        kept = [row for row in self.rows if not _within(self.view, row, start, end)]
        self.rows = kept + [row for row in source if _within(self.view, row, start, end)]

    def late(self, source: Rows, watermark: int) -> int:
        def values(rows: list[Row]) -> Counter[Any]:
            history = self.view.history_start
            start = None if history is None else (history - at(0)) // dt.timedelta(microseconds=1)
            names = ["key", "at", "value", *(["made"] if self.view.source.created_time else [])]
            return Counter(tuple(row[name] for name in names) for row in rows if _within(self.view, row, start, watermark))

        return (values(list(source)) - values(self.rows)).total()


@pytest.mark.parametrize("variant", VARIANTS)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(run_step, min_size=1, max_size=4))
def test_after_every_run_online_and_offline_equal_the_oracle_at_the_watermark(variant: str, steps: list[Any]) -> None:
    """Late rows, corrections, retractions and re-runs of old intervals: online is T4 at the watermark, for every key."""
    view = _view(variant)
    model, clock = _Model(view), [NOON]
    source: Rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "featurestore.toml").write_text('project = "test"')
        _write(folder, source)
        (folder / "views.py").write_text(_definition(variant))
        store = FeatureStore(folder, clock=lambda: clock[0])
        try:
            store.apply()
            assert store.applied().versions[0].view == view
            for changes, advance, again in steps:
                source = _changed(source, changes)
                _write(folder, source)
                clock[0] += advance
                _run_and_compare(store, model, source, clock[0], None)
                if again is not None and NOON + min(again) < NOON + max(again) <= clock[0]:
                    _run_and_compare(store, model, source, clock[0], (NOON + min(again), NOON + max(again)))
        finally:
            store.close()
            embedded.stop(folder / ".featurestore" / "online")


def _definition(variant: str) -> str:
    source, view = VARIANTS[variant]
    options = "".join(f", {name}={str(value)!r}" for name, value in view.items())
    sources = "".join(f", {name}={value!r}" for name, value in source.items())
    features = f"aggregations={AGGREGATIONS_TEXT}" if variant.startswith("windows") else 'fields={"value": Int64}'
    return f"""
from featurestore import *
from featurestore.types import *
thing = Entity("thing", join_keys={{"key": String}})
source = FileSource("readings_source", path="rows.parquet", event_time="at"{sources})
readings = FeatureView("readings", entities=[thing], source=source, {features}{options})
"""


def _run_and_compare(store: FeatureStore, model: _Model, source: Rows, now: int, interval: tuple[int, int] | None) -> None:
    [version] = store.applied().versions
    watermark, view = version.watermark, version.view
    history = None if view.history_start is None else (view.history_start - at(0)) // dt.timedelta(microseconds=1)
    if interval is None:
        lookback = 0 if view.lookback is None else view.lookback // dt.timedelta(microseconds=1)
        start = history if watermark is None else watermark - lookback
        [report] = store.materialize()
        start, end = start if history is None or start is None else max(start, history), now
    else:
        start, end = interval
        [report] = store.materialize(start=start, end=end)
        start = start if history is None else max(start, history)
    if start is None or start < end:
        model.run(source, start, end)
    [version] = store.applied().versions
    assert version.watermark == max(end, watermark or end)
    assert report.late == (0 if watermark is None else model.late(source, watermark))
    expected = {key: row_at(view, model.rows, (key,), version.watermark) for key in KEYS}
    [rows] = store.online.read([(version, [pa.chunked_array([list(KEYS)])])], now=version.watermark)
    served = pa.table(dict(zip(view.feature_names, rows.features, strict=True))).to_pylist()
    assert served == [_values(view, model.rows, key, version.watermark) for key in KEYS]
    assert rows.event_times.filter(pa.array(rows.statuses == Status.PRESENT)).to_pylist() == [
        row["at"] for row in expected.values() if row
    ]
    assert [status == Status.PRESENT for status in rows.statuses] == [row is not None for row in expected.values()]
    spine = pa.table({"key": list(KEYS) * len(OFFSETS), "event_timestamp": np.repeat([NOON + each for each in OFFSETS], len(KEYS))})
    spine = spine.set_column(1, "event_timestamp", spine["event_timestamp"].cast(TIME))
    wanted = [f"readings:{name}" for name in view.feature_names]
    trained = store.get_historical_features(spine, wanted, incomplete="stale").to_arrow()
    trained = trained.rename_columns([name.removeprefix("readings__") for name in trained.column_names]).select(view.feature_names)
    assert trained.to_pylist() == [_values(view, model.rows, key, NOON + each) for each in OFFSETS for key in KEYS]


def _values(view: View, rows: Sequence[Row], key: str, t: int) -> dict[str, Any]:
    """Return the features of a key at `t` as the oracle says, all null where there is nothing."""
    found = (windows_at if view.aggregations else value_at)(view, rows, (key,), t)
    return found or dict.fromkeys(view.feature_names)
