"""Materialize the benchmark's events with Feast; runs in Feast's own environment, and prints the seconds of the step."""

from __future__ import annotations

import datetime as dt
import sys
import time
from pathlib import Path

from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig, ValueType
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.online_stores.redis import RedisOnlineStoreConfig
from feast.types import Float64, Int64


def main(folder: str, address: str, events: str) -> None:
    """Apply one view of ten features and materialize all of it into the Redis at an address."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    config = RepoConfig(
        project="benchmarks",
        provider="local",
        registry=f"{folder}/registry.db",
        offline_store=DuckDBOfflineStoreConfig(),
        online_store=RedisOnlineStoreConfig(type="redis", connection_string=address),
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    features = [Field(name=f"f{number}", dtype=Float64) for number in range(10)]
    view = FeatureView(
        name="activity",
        entities=[user],
        ttl=dt.timedelta(0),
        schema=[Field(name="user_id", dtype=Int64), *features],
        source=FileSource(name="events", path=events, timestamp_field="happened_at"),
        online=True,
    )
    store.apply([user, view])
    began = time.perf_counter()
    store.materialize(dt.datetime(2013, 5, 1, tzinfo=dt.UTC), dt.datetime(2013, 12, 1, tzinfo=dt.UTC))
    print(time.perf_counter() - began)


main(*sys.argv[1:])
