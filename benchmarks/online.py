"""The rows about the online store: reading, loading and its cost, against bare drivers and against Feast."""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import redis
import redis.asyncio

from benchmarks.data import FEATURES, START, Bench
from benchmarks.rows import Row, times
from benchmarks.rows import _rates as rates
from featurestore.definitions import Field
from featurestore.online.rows import codec_of
from featurestore.online.store import OnlineStore, keys_of
from featurestore.registry.state import Version
from featurestore.types import Float32

__all__ = ["ONLINE_ROWS"]

TASKS = 16
FEAST = Path(__file__).parent / ".scratch" / "feast"


def _version(bench: Bench) -> Version:
    [version] = bench.store.applied().versions
    return version


def _path(store: OnlineStore) -> str:
    return store.topology.layout().endpoints[0].path


# Reading


def _reads(name: str, bench: Bench, repetitions: int, batch: int, requests: int, *, whole: bool) -> Row:
    keys = keys_of(_version(bench))
    users = np.random.default_rng(2).integers(0, bench.sizes.keys, (requests, batch)).tolist()
    asked = [keys.plain([each]) for each in users]

    async def spread(runner: Callable[[int], Awaitable[object]]) -> None:
        async def task(first: int) -> None:
            for number in range(first, requests, TASKS):
                await runner(number)

        await asyncio.gather(*[task(first) for first in range(TASKS)])

    store = bench.store
    with asyncio.Runner() as loop:
        client = redis.asyncio.Redis(unix_socket_path=_path(store.online))

        async def bare(number: int) -> object:
            return await client.mget(asked[number] or [])

        async def read(number: int) -> object:
            return await store.online.fetch_async(asked[number] or [])

        async def vectors(number: int) -> object:
            return (await store.get_online_features_async({"user_id": users[number]}, "model")).plain_features()

        mine = vectors if whole else read
        row = rates(
            name,
            f"{'feature vectors' if whole else 'reads'} of {batch} key{'s' * (batch > 1)} x {FEATURES} features, {TASKS} tasks",
            "redis.asyncio MGET",
            lambda: loop.run(spread(mine)),
            lambda: loop.run(spread(bare)),
            requests,
            repetitions,
        )
        loop.run(client.aclose())
        loop.run(store.online.aclose())
    return row


def async_1(bench: Bench, repetitions: int) -> Row:
    """Compare single-key reads from 16 tasks with redis.asyncio."""
    return _reads("online_async_1", bench, repetitions, 1, 16_000, whole=False)


def async_100(bench: Bench, repetitions: int) -> Row:
    """Compare reads of 100 keys from 16 tasks with redis.asyncio."""
    return _reads("online_async_100", bench, repetitions, 100, 3_200, whole=False)


def vectors_async_1(bench: Bench, repetitions: int) -> Row:
    """Compare whole lookups of one key with redis.asyncio, which gives bytes."""
    return _reads("vectors_async_1", bench, repetitions, 1, 8_000, whole=True)


def decode(_: Bench, repetitions: int) -> Row:
    """Measure decoding 100 rows of 50 floats to columns, beside one numpy view of the same bytes."""
    codec = codec_of(tuple(Field(f"f{number}", Float32) for number in range(50)))
    table = pa.table({f"f{number}": np.random.default_rng(3).random(100).astype("f4") for number in range(50)})
    rows = codec.encode(table, np.arange(100), 1)
    count = 1000

    def ours() -> None:
        for _ in range(count):
            codec.decode_plain(rows)

    def floor() -> None:
        for _ in range(count):
            np.frombuffer(b"".join(rows), np.uint8).reshape(100, -1)[:, 24:].copy().view("<f4").T.tolist()

    row = times(
        "online_decode", "100 rows x 50 Float32 to columns of Python values", "numpy alone (floor)", ours, floor, repetitions
    )
    return replace(row, unit="µs", ours=row.ours / count * 1e6, peer=row.peer / count * 1e6)


# Loading


def _table(count: int) -> tuple[pa.ChunkedArray, pa.Table, pa.ChunkedArray]:
    random = np.random.default_rng(4)
    instants = pa.array(START + np.arange(count)).cast(pa.timestamp("us", "UTC"))
    features = pa.table({f"f{number}": random.random(count) for number in range(FEATURES)})
    return pa.chunked_array([random.permutation(count)]), features, pa.chunked_array([instants])


def _loads(name: str, what: str, bench: Bench, repetitions: int, *, is_fresh: bool) -> Row:
    """Load rows out of Arrow into an empty server of the same kind, or over rows that are there."""
    store, count = bench.store.online, bench.sizes.rows // 10
    versions = [replace(_version(bench), uid=f"bench{number:03}") for number in range(100)]
    version = versions[0]
    keys, features, instants = _table(count)
    names = keys_of(version).names([keys])
    ready = list(zip(names, [b"r" * (19 + 8 * FEATURES)] * count, strict=True))
    run = 0

    def ours() -> None:
        nonlocal run
        run += 1
        with store.load(versions[run] if is_fresh else version, run=run, now=START) as load:
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
        if is_fresh:  # outside of what is measured as ours
            store.drop(versions[run])
            store.drop(version)

    row = rates(name, what, "redis-py pipelined SET of ready rows", ours, floor, count, repetitions)
    store.drop(version)
    return row


def load_fresh(bench: Bench, repetitions: int) -> Row:
    """Compare the first load of a version, encoding from Arrow included, with redis-py."""
    return _loads("load_fresh", "rows loaded out of Arrow, a fresh version", bench, repetitions, is_fresh=True)


def load_conditional(bench: Bench, repetitions: int) -> Row:
    """Compare a conditional load over rows that are there with redis-py, which compares nothing."""
    return _loads(
        "load_conditional", "rows loaded out of Arrow, each compared with what is stored", bench, repetitions, is_fresh=False
    )


def latency(bench: Bench, repetitions: int) -> Row:
    """Compare the p99 of paced lookups without a load with the one during a load at the default pace."""
    store, version, count = bench.store.online, replace(_version(bench), uid="benchmar"), 100_000
    keys, features, instants = _table(count)
    name = (keys_of(_version(bench)).plain([[1]]) or [b""])[0]
    seconds, run = 3.0, 0

    def p99() -> float:
        code = "import sys; from benchmarks.online import paced; paced(*sys.argv[1:])"
        arguments = [sys.executable, "-c", code, _path(store), (name or b"").hex(), str(seconds)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        return float(done.stdout)

    def under_load() -> float:
        nonlocal run
        found: list[float] = []
        reader = threading.Thread(target=lambda: found.append(p99()))
        reader.start()
        time.sleep(0.5)  # the load sees that somebody reads
        while reader.is_alive():
            run += 1
            with store.load(version, run=run, now=START) as load:
                for first in range(0, count, 5_000):
                    key, rows, at = (each.slice(first, 5_000) for each in (keys, features, instants))
                    load.write([key], rows, at)
                    if not reader.is_alive():
                        break
                load.finish()
        return found[0]

    store.drop(version)
    pairs = [(under_load(), p99()) for _ in range(repetitions)]
    store.drop(version)
    mine, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [without / during for during, without in pairs]
    return Row(
        "load_p99",
        "p99 of 1,000 lookups a second during a load at the default pace",
        "µs",
        mine,
        alone,
        "the same without a load (floor)",
        statistics.median(ratios),
        (min(ratios), max(ratios)),
    )


def paced(path: str, name: str, seconds: str) -> None:
    """Read a key a thousand times a second, and print the p99 of the answers in microseconds."""
    from featurestore.online.frames import mget
    from featurestore.online.links import Link
    from featurestore.online.topology import Access, Endpoint

    link, asked, random = Link(Endpoint(path=path), Access(5.0)), mget([bytes.fromhex(name)]), np.random.default_rng(5)
    taken: list[float] = []
    end = due = time.perf_counter()
    end += float(seconds)
    while (now := time.perf_counter()) < end:
        time.sleep(max(0.0, due - now))
        due = max(due, now) + random.exponential(1 / 1000)
        began = time.perf_counter()
        link.exchange(asked, 1)
        taken.append(time.perf_counter() - began)
    link.close()
    print(np.percentile(taken, 99) * 1e6)


# Feast


def _feast(bench: Bench, address: str) -> float:
    """Materialize the same rows with Feast into the server on a TCP port, and return the seconds."""
    program = FEAST / "bin" / "python"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FEAST)], check=True)
        subprocess.run([str(program), "-m", "pip", "install", "-qq", "feast[redis,duckdb]"], check=True)
    script = Path(__file__).parent / "feast_peer.py"
    arguments = [str(program), str(script), str(bench.folder / "feast"), address, str(bench.events)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _memory(client: redis.Redis) -> int:
    found: int = client.info("memory")["used_memory"]  # type: ignore[index]
    return found


@cache
def feast(bench: Bench, repetitions: int) -> Sequence[Row]:
    """Compare the step from offline rows to online rows, and the memory of these, with `feast materialize` on the same server."""
    store, client = bench.store, bench.store.online._client  # noqa: SLF001
    port = _free_port()
    client.config_set("port", port)
    seconds: list[tuple[float, float]] = []
    memory: list[tuple[float, float]] = []
    for _ in range(max(1, repetitions // 2)):
        client.execute_command("FLUSHALL", "SYNC")
        empty = _memory(client)
        began = time.perf_counter()
        [report] = store.sync()
        took, mine = time.perf_counter() - began, _memory(client) - empty
        assert report.online_written == client.dbsize() - 2
        client.execute_command("FLUSHALL", "SYNC")
        empty = _memory(client)
        seconds.append((took, _feast(bench, f"127.0.0.1:{port}")))
        memory.append((mine / report.online_written, (_memory(client) - empty) / int(client.dbsize())))  # type: ignore[arg-type]
    client.execute_command("FLUSHALL", "SYNC")
    client.config_set("port", 0)
    store.sync()
    what = f"{bench.sizes.rows:,} offline rows to {bench.sizes.keys:,} online rows x {FEATURES} features"
    return [
        _row("feast_materialize", what, "s", seconds, "feast materialize"),
        _row("feast_memory", f"memory of an online row of {FEATURES} Float64, key included", "bytes", memory, "Feast"),
    ]


def _row(name: str, what: str, unit: str, pairs: Sequence[tuple[float, float]], peer: str) -> Row:
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [other / one for one, other in pairs]
    return Row(name, what, unit, mine, theirs, peer, statistics.median(ratios), (min(ratios), max(ratios)))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def feast_materialize(bench: Bench, repetitions: int) -> Row:
    """Return the row of the step."""
    return feast(bench, repetitions)[0]


def feast_memory(bench: Bench, repetitions: int) -> Row:
    """Return the row of the memory."""
    return feast(bench, repetitions)[1]


ONLINE_ROWS: dict[str, Callable[..., Row]] = {
    "online_async_1": async_1,
    "online_async_100": async_100,
    "vectors_async_1": vectors_async_1,
    "online_decode": decode,
    "load_fresh": load_fresh,
    "load_conditional": load_conditional,
    "load_p99": latency,
    "feast_materialize": feast_materialize,
    "feast_memory": feast_memory,
}
