"""The rows about reading the online store: whole lookups beside Feast's SDK, reads beside bare drivers, decoding beside numpy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import cast

import hiredis
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis.asyncio

from benchmarks.data import FEATURES, Bench
from benchmarks.feast import NAME as FEAST
from benchmarks.feast import feast, feast_loaded
from benchmarks.rows import Rows, compare
from featurestore import FeatureStore
from featurestore.definitions import Field
from featurestore.online.frames import mget
from featurestore.online.rows import codec_of
from featurestore.online.store import OnlineStore, keys_of
from featurestore.registry.state import Version
from featurestore.types import Float32

__all__ = ["READING_ROWS", "five_views", "path_of", "version_of"]

TASKS = 16
BATCH = 1_000
SLOW_BATCH = 30
VIEWS = """
from featurestore import Entity, FeatureService, FeatureView, FileSource
from featurestore.types import Float64, Int64

user = Entity("user", join_keys={"user_id": Int64})
latest = FileSource("latest", path="latest.parquet", event_time="happened_at")
views = [
    FeatureView(
        f"v{number}", entities=[user], source=latest, refresh="1h", fields={f"f{place}": Float64 for place in range(10)}
    )
    for number in range(5)
]
model = FeatureService("model", features=views[:1])
model_50 = FeatureService("model_50", features=views)
"""


def version_of(bench: Bench) -> Version:
    """Return the version of the bench's one view."""
    [version] = bench.store.applied().versions
    return version


def path_of(store: OnlineStore) -> str:
    """Return the socket of the embedded server."""
    return store.topology.layout().endpoints[0].path


@cache
def five_views(bench: Bench) -> FeatureStore:
    """Return a store of five views over the newest row of each key, which Feast has too, in the same server."""
    feast(bench)
    folder = bench.folder / "five_views"
    folder.mkdir()
    (folder / "featurestore.toml").write_text(f'project = "five"\nonline.url = "unix://{path_of(bench.store.online)}"\n', "utf-8")
    (folder / "definitions.py").write_text(VIEWS, "utf-8")
    (folder / "latest.parquet").symlink_to(bench.folder / "latest.parquet")
    store = bench.ending.enter_context(FeatureStore(folder))
    store.apply()
    store.materialize()
    # From then on the service asks for a key: what is measured over HTTP is what production does.
    _, key = store.registry.api_keys.create("benchmarks", ["read-online"], (), now=store.clock())
    (folder / "key").write_text(key, "utf-8")
    return store


# Lookups


def online_python_1x10(bench: Bench, repetitions: int) -> Rows:
    """Compare lookups of one key through the Python API with a bare GET of the same row, and with Feast's SDK."""
    store, users = five_views(bench), np.random.default_rng(1).integers(0, bench.sizes.keys, BATCH).tolist()
    [version] = [each for each in store.applied().versions if each.view.name == "v0"]
    keys, client = keys_of(version).plain([users]) or [], bench.store.online._client  # noqa: SLF001 (the floor is the bare driver)
    _check_feast(bench, "model", users[:100])

    def ours() -> None:
        for user in users:
            store.get_online_features({"user_id": [user]}, "model").to_dict()

    def floor() -> None:
        for key in keys:
            client.get(key or b"")

    requests = [[user] for user in users]
    peers = {"bare GET (floor)": floor, FEAST: lambda: feast_loaded(bench).cost("online", service="model", requests=requests)}
    return compare("online_python_1x10", "lookups of 1 key x 10 features, Python API", ours, peers, repetitions, count=BATCH)


def online_python_100x50(bench: Bench, repetitions: int) -> Rows:
    """Compare lookups of 100 keys and 50 features of five views through the Python API with Feast's SDK."""
    store, requests = five_views(bench), np.random.default_rng(2).integers(0, bench.sizes.keys, (SLOW_BATCH, 100)).tolist()
    _check_feast(bench, "model_50", requests[0])

    def ours() -> None:
        for users in requests:
            store.get_online_features({"user_id": users}, "model_50").to_dict()

    peers = {FEAST: lambda: feast_loaded(bench).cost("online", service="model_50", requests=requests)}
    what = "lookups of 100 keys x 50 features of 5 views, Python API"
    return compare("online_python_100x50", what, ours, peers, repetitions, count=SLOW_BATCH)


def _check_feast(bench: Bench, service: str, users: list[int]) -> None:
    mine = five_views(bench).get_online_features({"user_id": users}, service).to_dict()
    theirs = feast_loaded(bench).ask("values", service=service, users=users)
    if mine["v0__f7"] != theirs["v0__f7"]:
        raise AssertionError("Feast's lookups give other values than ours")


# Reads


def _reads(name: str, bench: Bench, repetitions: int, batch: int, requests: int, *, whole: bool) -> Rows:
    keys = keys_of(version_of(bench))
    users = np.random.default_rng(2).integers(0, bench.sizes.keys, (requests, batch)).tolist()
    asked = cast("list[list[bytes]]", [keys.plain([each]) for each in users])

    async def spread(runner: Callable[[int], Awaitable[object]]) -> None:
        async def task(first: int) -> None:
            for number in range(first, requests, TASKS):
                await runner(number)

        await asyncio.gather(*[task(first) for first in range(TASKS)])

    store = bench.store
    with asyncio.Runner() as loop:
        client = redis.asyncio.Redis(unix_socket_path=path_of(store.online))

        async def bare(number: int) -> object:
            return await client.mget(asked[number])

        async def read(number: int) -> object:
            return await store.online.fetch_async(asked[number])

        async def vectors(number: int) -> object:
            return (await store.get_online_features_async({"user_id": users[number]}, "model")).plain_features()

        mine = vectors if whole else read
        what = f"{'feature vectors' if whole else 'reads'} of {batch} key{'s' * (batch > 1)} x {FEATURES} features, {TASKS} tasks"
        peers = {
            "redis.asyncio MGET": lambda: loop.run(spread(bare)),
            "a blocking socket, replies parsed (floor)": lambda: _exchange(path_of(store.online), asked),
        }
        rows = compare(name, what, lambda: loop.run(spread(mine)), peers, repetitions, count=requests)
        loop.run(client.aclose())
        loop.run(store.online.aclose())
    return rows


def _exchange(path: str, asked: Sequence[Sequence[bytes]]) -> None:
    """Do what the server and hiredis cannot be spared: as many commands under way as there are tasks, and nothing around them."""
    reader, count = hiredis.Reader(), 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        for first in range(0, len(asked), TASKS):
            connection.sendall(b"".join([mget(keys) for keys in asked[first : first + TASKS]]))
            count += TASKS
            while count:
                if reader.gets() is False:
                    reader.feed(connection.recv(1 << 18))
                else:
                    count -= 1


def async_1(bench: Bench, repetitions: int) -> Rows:
    """Compare single-key reads from 16 tasks with redis.asyncio."""
    return _reads("online_async_1", bench, repetitions, 1, 16_000, whole=False)


def async_100(bench: Bench, repetitions: int) -> Rows:
    """Compare reads of 100 keys from 16 tasks with redis.asyncio."""
    return _reads("online_async_100", bench, repetitions, 100, 3_200, whole=False)


def vectors_async_1(bench: Bench, repetitions: int) -> Rows:
    """Compare whole lookups of one key with redis.asyncio, which gives bytes."""
    return _reads("vectors_async_1", bench, repetitions, 1, 8_000, whole=True)


def decode(_: Bench, repetitions: int) -> Rows:
    """Measure decoding 100 rows of 50 floats to columns in each form that answers need, beside numpy on the same bytes."""
    codec = codec_of(tuple(Field(f"f{number}", Float32) for number in range(50)))
    table = pa.table({f"f{number}": np.random.default_rng(3).random(100).astype("f4") for number in range(50)})
    rows = codec.encode(table, np.arange(100), 1)
    count = 1000

    def repeated(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                work()

        return run

    def floor() -> npt.NDArray[np.float32]:
        return np.frombuffer(b"".join(rows), np.uint8).reshape(100, -1)[:, 24:].copy().view("<f4").T

    forms: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "numpy columns, as JSON is written from": (lambda: codec.open(rows).arrays(), lambda: floor().astype("f8")),
        "Arrow columns": (lambda: codec.open(rows).columns(), floor),
        "lists of Python values": (lambda: codec.decode_plain(rows), lambda: floor().tolist()),
    }
    measured = []
    for form, (ours, bare) in forms.items():
        what = f"100 rows x 50 Float32 to {form}"
        peers = {"numpy alone (floor)": repeated(bare)}
        [row] = compare("online_decode", what, repeated(ours), peers, repetitions)
        assert row.peer is not None
        measured.append(replace(row, unit="µs", ours=row.ours / count * 1e6, peer=row.peer / count * 1e6))
    return measured


READING_ROWS: dict[str, Callable[..., Rows]] = {
    "online_python_1x10": online_python_1x10,
    "online_python_100x50": online_python_100x50,
    "online_async_1": async_1,
    "online_async_100": async_100,
    "vectors_async_1": vectors_async_1,
    "online_decode": decode,
}
