"""The rows of the scoreboard: what is ours, what it is compared with, and that both give the same answer."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks.data import FEATURES, Bench
from featurestore import FeatureStore
from featurestore.online.keys import key_bytes, online_key
from featurestore.types import Int64

__all__ = ["ROWS", "Row", "duckdb_session", "times"]

BATCH = 1_000


@dataclass(frozen=True)
class Row:
    """One measured comparison. `ratio` says how many times better ours is; against a floor it is the share of it that we reach."""

    name: str
    what: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    spread: tuple[float, float]


def pit_1view(bench: Bench, repetitions: int) -> Row:
    """Compare a point-in-time training set with DuckDB's ASOF join over the raw Parquet, written by hand."""
    connection = duckdb_session()
    names = ", ".join(f"e.f{number} AS activity__f{number}" for number in range(FEATURES))
    # The view is visible from the next full hour on, so the hand-written join has to round up, too.
    visible = "time_bucket(INTERVAL 1 hour, happened_at + INTERVAL 1 hour - INTERVAL 1 microsecond)"
    latest = "row_number() OVER (PARTITION BY user_id, visible ORDER BY happened_at DESC) = 1"
    query = f"""
        SELECT s.*, {names} FROM '{bench.spine}' s
        ASOF LEFT JOIN (SELECT *, {visible} AS visible FROM '{bench.events}' QUALIFY {latest}) e
        ON s.user_id = e.user_id AND s.event_timestamp >= e.visible"""
    simple = f"""
        SELECT s.*, {names} FROM '{bench.spine}' s
        ASOF LEFT JOIN '{bench.events}' e ON s.user_id = e.user_id AND s.event_timestamp >= e.happened_at"""

    def ours() -> pa.Table:
        return bench.store.get_historical_features(bench.spine, "model").to_arrow()

    order = [("user_id", "ascending"), ("event_timestamp", "ascending")]
    if not ours().sort_by(order).equals(connection.sql(query).to_arrow_table().cast(ours().schema).sort_by(order)):
        raise AssertionError("the training set differs from the hand-written join")
    what = f"point-in-time join, {bench.sizes.rows:,} rows x {FEATURES} features, spine of {bench.sizes.spine:,}"
    return times("pit_1view", what, "DuckDB ASOF by hand", ours, lambda: connection.sql(simple).to_arrow_table(), repetitions)


def materialize(bench: Bench, repetitions: int) -> Row:
    """Compare a first materialization, online load included, with DuckDB writing the same rows sorted."""
    connection = duckdb_session()
    folder = bench.folder / "again"

    def ours() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bench.folder, folder, ignore=shutil.ignore_patterns(".featurestore", "*.parquet", "again"))
        (folder / "events.parquet").symlink_to(bench.events)
        with FeatureStore(folder) as store:
            store.apply()
            store.materialize()
            store.teardown()

    target = bench.folder / "sorted.parquet"
    copy = f"COPY (SELECT * FROM '{bench.events}' ORDER BY user_id, happened_at) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
    what = f"materialize {bench.sizes.rows:,} rows x {FEATURES} features, {bench.sizes.keys:,} keys online"
    return times("materialize", what, "DuckDB COPY … ORDER BY (floor)", ours, lambda: connection.execute(copy), repetitions)


def online_python(bench: Bench, repetitions: int) -> Row:
    """Compare one-key lookups through the Python API with a bare GET of the same row."""
    [version] = bench.store.applied().versions
    users = np.random.default_rng(1).integers(0, bench.sizes.keys, BATCH).tolist()
    keys = [online_key(version.uid, key) for key in key_bytes([pa.chunked_array([users])], [Int64])]
    client = bench.store.online._client  # noqa: SLF001 (the floor is the bare driver on the same connection)

    def ours() -> None:
        for user in users:
            bench.store.get_online_features({"user_id": [user]}, "model")

    def floor() -> None:
        for key in keys:
            client.get(key)

    return _rates(
        "online_python_1x10", "lookups of 1 key x 10 features, Python API", "bare GET (floor)", ours, floor, BATCH, repetitions
    )


def bulk_load(bench: Bench, repetitions: int) -> Row:
    """Compare a full online load, rows computed at the watermark included, with plain pipelined SETs of the finished rows."""
    [version] = bench.store.applied().versions
    client = bench.store.online._client  # noqa: SLF001
    keys = list(client.scan_iter(match=f"{version.uid}{{*", count=1000))
    rows = dict(zip(keys, client.mget(keys), strict=True))

    def ours() -> None:
        client.flushall()
        [report] = bench.store.materialize()
        assert report.online_written == len(keys)

    def floor() -> None:
        client.flushall()
        pipeline = client.pipeline(transaction=False)
        for number, (key, row) in enumerate(rows.items()):
            pipeline.set(key, row)
            if number % BATCH == 0:
                pipeline.execute()
        pipeline.execute()

    row = _rates(
        "bulk_load",
        "keys loaded online, a lost server rebuilt",
        "pipelined SET of ready rows (floor)",
        ours,
        floor,
        len(keys),
        repetitions,
    )
    bench.store.materialize()
    return row


ROWS: dict[str, Callable[..., Row]] = {
    "pit_1view": pit_1view,
    "materialize": materialize,
    "online_python_1x10": online_python,
    "bulk_load": bulk_load,
}


def duckdb_session() -> duckdb.DuckDBPyConnection:
    """Open a DuckDB of its own, in UTC."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _measure(ours: Callable[[], object], peer: Callable[[], object], repetitions: int) -> list[tuple[float, float]]:
    """Run both in turn after one run each that is not counted; returns the pairs of seconds."""
    pairs = [(_seconds(ours), _seconds(peer)) for _ in range(repetitions + 1)]
    return pairs[1:]


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def times(name: str, what: str, peer_name: str, ours: Callable[[], object], peer: Callable[[], object], repetitions: int) -> Row:
    """Measure both in turn, as seconds; the ratio says how many times faster ours is."""
    pairs = _measure(ours, peer, repetitions)
    ratios = [theirs / mine for mine, theirs in pairs]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(name, what, "s", mine, theirs, peer_name, statistics.median(ratios), (min(ratios), max(ratios)))


def _rates(
    name: str, what: str, peer_name: str, ours: Callable[[], object], peer: Callable[[], object], count: int, repetitions: int
) -> Row:
    row = times(name, what, peer_name, ours, peer, repetitions)
    return Row(name, what, "per s", count / row.ours, count / row.peer, peer_name, row.ratio, row.spread)
