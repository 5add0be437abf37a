from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from featurestore import FeatureStore
from featurestore.online.keys import online_key
from featurestore.online.sizing import memory_of
from tests.conftest import CHECKOUT, HOUR, Repo
from tests.servers import HOST, server


@pytest.mark.parametrize(("key", "row"), [(8, 26), (8, 58), (8, 99), (8, 425), (8, 3089), (20, 99), (32, 219)])
def test_the_arithmetic_is_that_of_redis(tmp_path: Path, key: int, row: int) -> None:
    """The memory that a server reports for many rows is what is computed for them, within the hash table's own growth."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not on the PATH")
    count = 1 << 14
    with server(tmp_path, of="redis-server") as made, redis.Redis(HOST, made.port) as raw:
        before: Any = raw.info("memory")["used_memory"]
        pipeline = raw.pipeline(transaction=False)
        for number in range(count):
            pipeline.set(online_key("0123abcd", (b"%d" % number).rjust(key, b"x")), b"r" * row)
        pipeline.execute()
        after: Any = raw.info("memory")["used_memory"]

    assert memory_of(key, row) == pytest.approx((after - before) / count, abs=8)


def test_memory_of_a_text_or_array_depends_on_its_length() -> None:
    """A longer row is never smaller, and takes its size class."""
    sizes = [memory_of(8, row) for row in range(18, 4000)]

    assert sizes == sorted(sizes)
    assert sizes[-1] - sizes[0] > 3900


def test_usage_counts_the_rows_of_each_version(weather_repo: Repo) -> None:
    """A version's keys, the length of its rows and their memory are those in the server; others' keys do not count."""
    weather_repo.now += HOUR
    store = weather_repo.open()
    store.apply()
    store.materialize()
    [version] = store.applied().versions
    store.online._client.set("another", "x")
    usage = store.usage([version])[version.uid]
    memory: Any = store.online._client.memory_usage(online_key(version.uid, b"EWR"))

    assert (usage.keys, usage.row_bytes, usage.is_exact) == (2, 17 + 1 + 16, True)
    assert usage.memory_bytes == 2 * (memory + 12)


def test_many_keys_are_projected(weather_repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large server only the first keys are looked at, and the count says that it is projected."""
    weather_repo.now += HOUR
    store = weather_repo.open()
    store.apply()
    store.materialize()
    [version] = store.applied().versions
    pipeline = store.online._client.pipeline(transaction=False)
    for number in range(20_000):
        pipeline.set(online_key(version.uid, b"%d" % number), b"r" * 34)
        pipeline.set(f"another{number}", "x")
    pipeline.execute()
    monkeypatch.setattr("featurestore.online.sizing._LOOKED_AT", 10_000)
    usage = store.usage([version])[version.uid]

    assert not usage.is_exact
    assert usage.keys == pytest.approx(20_002, rel=0.05)


def test_a_plan_says_what_its_versions_need(make_repo: Callable[..., Repo]) -> None:
    """The estimate of a plan is near what the server takes once the plan is applied and materialized."""
    repo = make_repo()
    repo.define("""
user = Entity("user", join_keys={"name": String, "number": Int32})
events = FileSource("events", path="events.parquet")
view = FeatureView("view", entities=[user], source=events, fields={"text": String, "n": Float64, "vector": Array(Float32)})
hidden = FeatureView("hidden", entities=[user], source=events, fields={"n": Float64}, online=False)
""")
    count = 5000
    repo.write(
        "events.parquet",
        {
            "name": [f"user_{number}" for number in range(count)],
            "number": pa.array(range(count), pa.int32()),
            "text": ["x" * (number % 40) for number in range(count)],
            "n": [0.5] * count,
            "vector": [[1.0] * 16] * count,
        },
        pa.schema(
            [
                ("name", pa.string()),
                ("number", pa.int32()),
                ("text", pa.string()),
                ("n", pa.float64()),
                ("vector", pa.list_(pa.float32())),
            ]
        ),
    )
    store: FeatureStore = repo.open()
    plan = store.plan()
    [estimate] = store.estimate(plan)
    store.apply(plan)
    store.materialize()
    version = next(each for each in store.applied().versions if each.view.name == "view")
    usage = store.usage([version])[version.uid]

    assert (estimate.view, estimate.version) == ("view", 1)
    assert estimate.keys == pytest.approx(count, rel=0.1)
    assert estimate.row_bytes == pytest.approx(usage.row_bytes, abs=8)  # the server is asked for some rows only
    # Valkey needs less than the Redis 7 that is computed.
    assert 0.6 < usage.memory_bytes / (estimate.memory_bytes * count / estimate.keys) < 1.1


def test_the_capacity_table_is_computed_from_the_measured_one() -> None:
    """docs/sizing.md multiplies what it measured, and says so."""
    text = (CHECKOUT / "docs/sizing.md").read_text("utf-8")
    [[valkey, redis_7]] = re.findall(r"^\| 10 Float64 \| 99 \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    capacity = re.findall(r"^\| ([\d,]+) \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) GB \|$", text, re.MULTILINE)

    assert [row[0] for row in capacity] == ["1,000,000", "10,000,000", "100,000,000", "1,000,000,000"]
    for rows, *shown in capacity:
        count = int(rows.replace(",", ""))
        computed = [count * int(valkey) / 1e9, count * int(redis_7) / 1e9, count * int(redis_7) / 32e9]
        assert [float(each) for each in shown] == pytest.approx(computed, rel=0.05)
    assert "Computed from the measured figures" in text
    assert memory_of(8, 99) == pytest.approx(int(redis_7), abs=8)
