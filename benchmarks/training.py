"""Rows of training sets: point-in-time joins and windows, beside other libraries, Feast, SQL written by hand, and themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.data import FEATURES, SPAN, START, Bench, keys_and_times
from benchmarks.feast import NAME as FEAST
from benchmarks.feast import feast
from benchmarks.rows import Cost, Rows, compare, duckdb_session
from featurestore import FeatureStore

__all__ = ["TRAINING_ROWS", "by_hand", "windows_by_hand"]

HOT_SHARE = 0.1
DEFINITIONS = f"""
from featurestore import Aggregation, Entity, FeatureService, FeatureView, FileSource
from featurestore.types import Float64, Int64, String

user = Entity("user", join_keys={{"user_id": Int64}})
person = Entity("person", join_keys={{"user_id": String}})
events = FileSource("events", path="events.parquet", event_time="happened_at")
skewed = FileSource("skewed", path="skewed.parquet", event_time="happened_at")
named = FileSource("named", path="named.parquet", event_time="happened_at")
fields = {{f"f{{number}}": Float64 for number in range({FEATURES})}}


def plain(name, entity=user, source=events):
    return FeatureView(name, entities=[entity], source=source, refresh="1h", online=False, fields=fields)


def windows(name, lengths, source=events):
    functions = [Aggregation("f0", function, lengths) for function in ("count", "sum", "mean", "max")]
    return FeatureView(name, entities=[user], source=source, refresh="1h", online=False, aggregations=functions)


views = [plain(f"view{{number}}") for number in range(5)]
texts = FeatureService("texts", features=[plain("texts_view", person, named)])
one = FeatureService("one", features=views[:1])
five = FeatureService("five", features=views)
windows_3 = FeatureService("windows_3", features=[windows("w3", ["1d", "7d", "30d"])])
windows_30 = FeatureService("windows_30", features=[windows("w30", [f"{{days}}d" for days in range(1, 31)])])
windows_skew = FeatureService("windows_skew", features=[windows("wskew", ["1d", "7d", "30d"], skewed)])
"""


@cache
def _store(bench: Bench) -> FeatureStore:
    """Return a store of a repo beside the bench's, with the views of this module materialized once for all rows."""
    folder = bench.folder / "training"
    folder.mkdir()
    (folder / "featurestore.toml").write_text('project = "training"\n')
    (folder / "definitions.py").write_text(DEFINITIONS)
    for name in ("events.parquet", "spine.parquet"):
        (folder / name).symlink_to(bench.folder / name)
    random = np.random.default_rng(7)
    for name, source, time in (("skewed", bench.events, "happened_at"), ("skewed_spine", bench.spine, "event_timestamp")):
        table = pq.read_table(source, columns=["user_id", time, *(["f0"] if time == "happened_at" else [])])
        users = np.where(random.random(len(table)) < HOT_SHARE, 7, table["user_id"].to_numpy())
        pq.write_table(table.set_column(0, "user_id", pa.array(users)), folder / f"{name}.parquet")
    texts = pa.array([f"user-{number:08d}" for number in range(bench.sizes.keys)])
    for name, source in (("named", bench.events), ("named_spine", bench.spine)):
        table = pq.read_table(source)
        pq.write_table(table.set_column(0, "user_id", texts.take(table["user_id"])), folder / f"{name}.parquet")
    keys, week = random.integers(0, bench.sizes.keys, 100), START + 60 * SPAN // 90
    narrow = keys_and_times(random, 1_000, 100, "event_timestamp", first=week, span=7 * SPAN // 90)
    pq.write_table(pa.table({**narrow, "user_id": keys[narrow["user_id"].to_numpy()]}), folder / "narrow.parquet")
    store = FeatureStore(folder)
    store.apply()
    store.materialize()
    return store


def _training(bench: Bench, spine: str, service: str) -> Callable[[], pa.Table]:
    store = _store(bench)
    return lambda: store.get_historical_features(store.settings.root / f"{spine}.parquet", service).to_arrow()


_ASOF = "SELECT s.*, {names} FROM '{spine}' s ASOF LEFT JOIN {events} e ON s.user_id = e.user_id AND s.event_timestamp >= e.{time}"
_ORDER = [("user_id", "ascending"), ("event_timestamp", "ascending")]
_NAMES = ", ".join(f"e.f{number} AS view0__f{number}" for number in range(FEATURES))


def by_hand(bench: Bench) -> str:
    """Return the simplest join that gives each spine row the newest event."""
    return _ASOF.format(names=_NAMES, spine=bench.spine, events=f"'{bench.events}'", time="happened_at")


def rounded_by_hand(bench: Bench) -> str:
    """Return the join that gives our values: the view is visible from the next full hour on."""
    visible = "time_bucket(INTERVAL 1 hour, happened_at + INTERVAL 1 hour - INTERVAL 1 microsecond)"
    latest = "row_number() OVER (PARTITION BY user_id, visible ORDER BY happened_at DESC) = 1"
    rounded = f"(SELECT *, {visible} AS visible FROM '{bench.events}' QUALIFY {latest})"
    return _ASOF.format(names=_NAMES, spine=bench.spine, events=rounded, time="visible")


def pit_1view(bench: Bench, repetitions: int) -> Rows:
    """Compare a point-in-time training set with DuckDB's ASOF join by hand, Polars, pandas and Feast, all over the raw Parquet."""
    connection, ours = duckdb_session(), _training(bench, "spine", "one")
    query, simple = rounded_by_hand(bench), by_hand(bench)
    mine = ours()
    if not mine.sort_by(_ORDER).equals(connection.sql(query).to_arrow_table().cast(mine.schema).sort_by(_ORDER)):
        raise AssertionError("the training set differs from the hand-written join")
    exact = connection.sql(simple).to_arrow_table().sort_by(_ORDER)
    for name, other in (("Polars", _polars(bench).to_arrow()), ("pandas", pa.Table.from_pandas(_pandas(bench)))):
        if not exact["view0__f3"].combine_chunks().equals(other.sort_by(_ORDER)["f3"].combine_chunks()):
            raise AssertionError(f"{name} gives other values than the simple join")
    what = f"point-in-time join, {bench.sizes.rows:,} rows x {FEATURES} features, spine of {bench.sizes.spine:,}"
    peers = {
        "DuckDB ASOF by hand": lambda: connection.sql(simple).to_arrow_table(),
        "Polars join_asof": lambda: _polars(bench),
        "pandas merge_asof": lambda: _pandas(bench),
        FEAST: lambda: _feast(bench, bench.spine),
    }
    rows = compare("pit_1view", what, ours, peers, repetitions)
    _check_feast(bench, exact, ["f3"])
    return rows


def _polars(bench: Bench) -> pl.DataFrame:
    events = pl.scan_parquet(bench.events).sort("happened_at")
    spine = pl.scan_parquet(bench.spine).sort("event_timestamp")
    joined = spine.join_asof(events, left_on="event_timestamp", right_on="happened_at", by="user_id", check_sortedness=False)
    return joined.collect()


def _pandas(bench: Bench) -> pd.DataFrame:
    events = pd.read_parquet(bench.events).sort_values("happened_at")
    spine = pd.read_parquet(bench.spine).sort_values("event_timestamp")
    return pd.merge_asof(spine, events, left_on="event_timestamp", right_on="happened_at", by="user_id")


def _feast(bench: Bench, spine: Path, views: int = 1) -> Cost:
    return feast(bench).cost("pit", spine=str(spine), views=views, target=str(_target(bench)))


def _check_feast(bench: Bench, exact: pa.Table, columns: list[str]) -> None:
    """Check that its file holds, in each of these columns, what the simple join gives."""
    theirs, expected = pq.read_table(_target(bench)).sort_by(_ORDER), exact.sort_by(_ORDER)["view0__f3"].combine_chunks()
    if not all(expected.equals(theirs[column].combine_chunks()) for column in columns):
        raise AssertionError("Feast gives other values than the simple join")


def _target(bench: Bench) -> Path:
    return bench.folder / "feast.parquet"


def pit_strings(bench: Bench, repetitions: int) -> Rows:
    """Compare string keys with integer keys."""
    ours, peer = _training(bench, "named_spine", "texts"), _training(bench, "spine", "one")
    return compare("pit_strings", "point-in-time join, string keys", ours, {"ours, integer keys": peer}, repetitions)


def pit_5views(bench: Bench, repetitions: int) -> Rows:
    """Compare a service of five views with one of one, and with Feast."""
    ours, peer = _training(bench, "spine", "five"), _training(bench, "spine", "one")
    what = f"point-in-time join of 5 views x {FEATURES} features"
    theirs = {"ours, 1 view": peer, FEAST: lambda: _feast(bench, bench.spine, views=5)}
    rows = compare("pit_5views", what, ours, theirs, repetitions)
    if not any(row.error for row in rows):
        _check_feast(bench, duckdb_session().sql(by_hand(bench)).to_arrow_table(), ["activity__f3", "activity4__f3"])
    return rows


def pit_narrow_spine(bench: Bench, repetitions: int) -> Rows:
    """Compare a spine of few keys and one week with the full one, and with Feast."""
    ours, full = _training(bench, "narrow", "one"), _training(bench, "spine", "one")
    narrow = _store(bench).settings.root / "narrow.parquet"
    what = "point-in-time join, spine of 1,000 rows, 100 keys, one week"
    return compare("pit_narrow_spine", what, ours, {"ours, full spine": full, FEAST: lambda: _feast(bench, narrow)}, repetitions)


SPANS = (("1d", "1 day"), ("7d", "7 day"), ("30d", "30 day"))


def windows_by_hand(bench: Bench) -> str:
    """Return the join of each spine row with its events of 30 days, and aggregates filtered by window."""
    columns = ", ".join(
        f"{function}(f0) FILTER (happened_at > t - INTERVAL {length}) AS w3__f0_{name}_{span}"
        for function, name in (("count", "count"), ("sum", "sum"), ("avg", "mean"), ("max", "max"))
        for span, length in SPANS
    )
    return f"""
        WITH s AS (SELECT *, row_number() OVER () AS n, time_bucket(INTERVAL 1 hour, event_timestamp) AS t FROM '{bench.spine}')
        SELECT any_value(s.user_id) AS user_id, any_value(event_timestamp) AS event_timestamp, {columns}
        FROM s LEFT JOIN '{bench.events}' e
        ON s.user_id = e.user_id AND e.happened_at <= t AND e.happened_at > t - INTERVAL 30 day GROUP BY n ORDER BY n"""


def windows_3(bench: Bench, repetitions: int) -> Rows:
    """Compare windows of 1, 7 and 30 days with the hand-written join and filtered aggregates."""
    connection, ours, query = duckdb_session(), _training(bench, "spine", "windows_3"), windows_by_hand(bench)
    mine, theirs = ours(), connection.sql(query).to_arrow_table()
    for span, _ in SPANS:
        if not mine[f"w3__f0_max_{span}"].combine_chunks().equals(theirs[f"w3__f0_max_{span}"].combine_chunks()):
            raise AssertionError("the windows differ from the hand-written join")
        difference = pc.max(pc.abs(pc.subtract(mine[f"w3__f0_mean_{span}"], theirs[f"w3__f0_mean_{span}"]))).as_py()
        if difference > 1e-12:
            raise AssertionError(f"means differ by {difference}")
    what = f"windows 1d, 7d, 30d x (count, sum, mean, max), {bench.sizes.rows:,} events, spine of {bench.sizes.spine:,}"
    return compare("windows_3", what, ours, {"DuckDB join by hand": lambda: connection.sql(query).to_arrow_table()}, repetitions)


def windows_30(bench: Bench, repetitions: int) -> Rows:
    """Compare 30 windows with 3."""
    ours, peer = _training(bench, "spine", "windows_30"), _training(bench, "spine", "windows_3")
    return compare("windows_30", "30 windows x 4 functions", ours, {"ours, 3 windows": peer}, repetitions)


def windows_skew(bench: Bench, repetitions: int) -> Rows:
    """Compare windows where one key has a tenth of all events and of the spine with the uniform case."""
    ours, peer = _training(bench, "skewed_spine", "windows_skew"), _training(bench, "spine", "windows_3")
    what = "windows, one key with 10 % of events and spine"
    return compare("windows_skew", what, ours, {"ours, uniform": peer}, repetitions)


TRAINING_ROWS: dict[str, Callable[..., Rows]] = {
    "pit_1view": pit_1view,
    "pit_strings": pit_strings,
    "pit_5views": pit_5views,
    "pit_narrow_spine": pit_narrow_spine,
    "windows_3": windows_3,
    "windows_30": windows_30,
    "windows_skew": windows_skew,
}
