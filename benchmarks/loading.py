"""The rows about writing: tables, online rows, and what both cost, beside bare drivers, DuckDB and Feast."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import redis

from benchmarks.data import FEATURES, START, Bench
from benchmarks.feast import NAME as FEAST
from benchmarks.feast import feast
from benchmarks.online import five_views, path_of, version_of
from benchmarks.rows import Cost, Rows, compare, duckdb_session, measured, row_of
from benchmarks.servers import empty
from featurestore import FeatureStore
from featurestore.online.store import OnlineStore, keys_of
from featurestore.settings import Settings
from tests.servers import cluster, server

__all__ = ["LOADING_ROWS"]

BATCH = 1_000


# Offline


def materialize_offline(bench: Bench, repetitions: int) -> Rows:
    """Compare a first materialization without an online store with DuckDB writing the same rows sorted: what the layout costs."""
    folder = bench.folder / "offline"
    definitions = (bench.folder / "definitions.py").read_text("utf-8").replace('refresh="1h",', 'refresh="1h", online=False,')

    def ours() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "featurestore.toml").write_text('project = "offline"\n', "utf-8")
        (folder / "definitions.py").write_text(definitions, "utf-8")
        (folder / "events.parquet").symlink_to(bench.events)
        with FeatureStore(folder) as store:
            store.apply()
            store.materialize()

    what = f"materialize {bench.sizes.rows:,} rows x {FEATURES} features, offline alone"
    peers = {"DuckDB COPY … ORDER BY (floor)": lambda: _copy_sorted(bench)}
    return compare("materialize_offline", what, ours, peers, repetitions)


def offline_bytes(bench: Bench, _: int) -> Rows:
    """Compare the size of a table with that of its source, and with the same rows as DuckDB compresses them best."""
    [version] = bench.store.applied().versions
    ours = float(sum(file.stat().st_size for file in bench.store.settings.offline_folder.rglob("*.parquet")))
    rows = bench.store.snapshot(version).rows
    what = f"bytes on disk of a row of {FEATURES} Float64, key and times"
    if not _sorted(bench).exists():
        _copy_sorted(bench)
    source, packed = (float(file.stat().st_size) for file in (bench.events, _sorted(bench)))
    pairs = {"the source's Parquet (snappy), which Feast reads": source, "DuckDB, sorted (zstd)": packed}
    return [row_of("offline_bytes", what, "bytes", peer, [(ours / rows, size / rows)]) for peer, size in pairs.items()]


def _copy_sorted(bench: Bench) -> None:
    _sorted(bench).unlink(missing_ok=True)  # a file that is written over is flushed to the disk when it is closed
    rows = f"SELECT * FROM '{bench.events}' ORDER BY user_id, happened_at"
    duckdb_session().execute(f"COPY ({rows}) TO '{_sorted(bench)}' (FORMAT parquet, COMPRESSION zstd)")


def _sorted(bench: Bench) -> Path:
    return bench.folder / "sorted.parquet"


# Online


def _table(count: int) -> tuple[pa.ChunkedArray, pa.Table, pa.ChunkedArray]:
    random = np.random.default_rng(4)
    instants = pa.array(START + np.arange(count)).cast(pa.timestamp("us", "UTC"))
    features = pa.table({f"f{number}": random.random(count) for number in range(FEATURES)})
    return pa.chunked_array([random.permutation(count)]), features, pa.chunked_array([instants])


def _loads(name: str, what: str, bench: Bench, repetitions: int, *, is_fresh: bool) -> Rows:
    """Load rows out of Arrow into an empty server of the same kind, or over rows that are there; other servers are peers."""
    store, count = bench.store.online, bench.sizes.rows // 10
    version = version_of(bench)
    keys, features, instants = _table(count)
    names = keys_of(version).names([keys])
    ready = list(zip(names, [b"r" * (19 + 8 * FEATURES)] * count, strict=True))
    runs = itertools.count(1)

    def timed(call: Callable[[], None], into: OnlineStore) -> Cost:
        for endpoint in into.topology.layout().endpoints if is_fresh else ():
            empty(into.topology.client(endpoint))
        return measured(call)

    def load(into: OnlineStore) -> None:
        run = next(runs)
        with into.load(replace(version, uid=f"bench{run if is_fresh else 0:03}"), run=run, now=START) as load:
            for first in range(0, count, 100_000):
                key, rows, at = (each.slice(first, 100_000) for each in (keys, features, instants))
                load.write([key], rows, at)
            load.finish()
        assert load.written == count

    def floor() -> None:
        pipeline = store._client.pipeline(transaction=False)  # noqa: SLF001 (the floor is the bare driver)
        for number, (key, row) in enumerate(ready):
            pipeline.set(key or b"", row)
            if number % 1000 == 0:
                pipeline.execute()
        pipeline.execute()

    with _others(bench) as others:
        peers = {"redis-py pipelined SET of ready rows": partial(timed, floor, store)}
        peers |= {f"ours, into {other}": partial(timed, partial(load, into), into) for other, into in others.items()}
        rows = compare(name, what, partial(timed, partial(load, store), store), peers, repetitions, count=count)
    empty(store._client)  # noqa: SLF001 (to drop a million rows as gently as for those who read takes minutes)
    _restore(bench)
    return rows


@contextmanager
def _others(bench: Bench) -> Iterator[dict[str, OnlineStore]]:
    """Give the online stores of other servers on this machine."""
    folder = bench.folder / "others"
    with ExitStack() as stack:
        urls = {"a cluster of 3 nodes": stack.enter_context(cluster(folder, replicas=0)).url}
        if shutil.which("redis-server"):
            urls["redis-server"] = f"redis://127.0.0.1:{stack.enter_context(server(folder, of='redis-server')).port}"
        stores = {name: OnlineStore(_elsewhere(bench.store.settings, url)) for name, url in urls.items()}
        for store in stores.values():
            stack.callback(store.close)
        yield stores


def _elsewhere(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"online": settings.online.model_copy(update={"url": url})})


def load_fresh(bench: Bench, repetitions: int) -> Rows:
    """Compare the first load of a version, encoding from Arrow included, with redis-py."""
    return _loads("load_fresh", "rows loaded out of Arrow, a fresh version", bench, repetitions, is_fresh=True)


def load_conditional(bench: Bench, repetitions: int) -> Rows:
    """Compare a conditional load over rows that are there with redis-py, which compares nothing."""
    return _loads(
        "load_conditional", "rows loaded out of Arrow, each compared with what is stored", bench, repetitions, is_fresh=False
    )


def latency(bench: Bench, repetitions: int) -> Rows:
    """Compare the p99 of paced lookups during a load at the default pace with those without a load, and at full speed."""
    store, version, count = bench.store.online, replace(version_of(bench), uid="benchmar"), 100_000
    keys, features, instants = _table(count)
    name = (keys_of(version_of(bench)).plain([[1]]) or [b""])[0]
    run = 0

    @contextmanager
    def reading() -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "benchmarks.paced_reads", path_of(store), (name or b"").hex(), str(bench.sizes.seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()  # it reads
            yield reader

    def p99(during: Callable[[subprocess.Popen[str]], object]) -> float:
        with reading() as reader:
            during(reader)
            return float(reader.communicate()[0])

    def load(reader: subprocess.Popen[str], max_rate: float | None = None) -> None:
        nonlocal run
        while reader.poll() is None:
            run += 1
            with store.load(version, run=run, now=START, max_rate=max_rate) as loading:
                for first in range(0, count, 1_000):
                    key, rows, at = (each.slice(first, 1_000) for each in (keys, features, instants))
                    loading.write([key], rows, at)
                    if reader.poll() is not None:
                        break
                loading.finish()

    store.drop(version)
    calm, full = "the same without a load (floor)", "ours, at full speed (--max-rate)"
    each = [(p99(load), p99(subprocess.Popen.wait), p99(partial(load, max_rate=1e9))) for _ in range(repetitions)]
    store.drop(version)
    what = "p99 of 1,000 lookups a second during a load at the default pace"
    return [
        row_of("load_p99", what, "µs", calm, [(paced, other) for paced, other, _ in each]),
        row_of("load_p99", what, "µs", full, [(paced, other) for paced, _, other in each]),
    ]


def bulk_load(bench: Bench, repetitions: int) -> Rows:
    """Compare a full online load, rows computed at the watermark included, with plain pipelined SETs of the finished rows."""
    [version] = bench.store.applied().versions
    client = bench.store.online._client  # noqa: SLF001
    keys = list(client.scan_iter(match=f"{version.uid}{{*", count=1000))
    rows = dict(zip(keys, client.mget(keys), strict=True))

    def ours() -> None:
        empty(client)
        [report] = bench.store.materialize()
        assert report.online_written == len(keys)

    def floor() -> None:
        empty(client)
        pipeline = client.pipeline(transaction=False)
        for number, (key, row) in enumerate(rows.items()):
            pipeline.set(key, row)
            if number % BATCH == 0:
                pipeline.execute()
        pipeline.execute()

    what, peers = "keys loaded online, a lost server rebuilt", {"pipelined SET of ready rows (floor)": floor}
    found = compare("bulk_load", what, ours, peers, repetitions, count=len(keys))
    _restore(bench)
    return found


# From offline rows to online rows


@cache
def _latest(bench: Bench, repetitions: int) -> Rows:
    """Compare the step from offline rows to online rows, and the memory of these, with `feast materialize` on the same server.

    The server is emptied in between, and at the end our rows are written again.
    """
    store, client, peer = bench.store, bench.store.online._client, feast(bench)  # noqa: SLF001
    seconds: list[tuple[float, float]] = []
    memory: list[tuple[float, float]] = []
    for _ in range(repetitions):
        before = _emptied(client)
        began = time.perf_counter()
        [report] = store.sync()
        took, mine = time.perf_counter() - began, _used(client) - before
        assert report.online_written == client.dbsize() - 2
        before = _emptied(client)
        seconds.append((took, peer.cost("materialize").seconds))
        memory.append((mine / report.online_written, (_used(client) - before) / int(client.dbsize())))
    empty(client)
    _restore(bench)
    what = f"{bench.sizes.rows:,} offline rows to {bench.sizes.keys:,} online rows x {FEATURES} features"
    size = f"memory of an online row of {FEATURES} Float64, key included"
    return [
        row_of("materialize_latest", what, "s", FEAST, seconds),
        row_of("bytes_per_row", size, "bytes", FEAST, memory),
    ]


def _restore(bench: Bench) -> None:
    """Write our rows again; Feast's come when they are looked up."""
    bench.store.sync()
    five_views(bench).sync()


def _emptied(client: redis.Redis) -> int:
    empty(client)
    return _used(client)


def _used(client: redis.Redis) -> int:
    found: int = client.info("memory")["used_memory"]
    return found


def materialize_latest(bench: Bench, repetitions: int) -> Rows:
    """Return the row of the step."""
    return _latest(bench, repetitions)[:1]


def bytes_per_row(bench: Bench, repetitions: int) -> Rows:
    """Return the row of the memory."""
    return _latest(bench, repetitions)[1:]


LOADING_ROWS: dict[str, Callable[..., Rows]] = {
    "materialize_offline": materialize_offline,
    "offline_bytes": offline_bytes,
    "materialize_latest": materialize_latest,
    "bytes_per_row": bytes_per_row,
    "bulk_load": bulk_load,
    "load_fresh": load_fresh,
    "load_conditional": load_conditional,
    "load_p99": latency,
}
