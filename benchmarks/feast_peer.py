"""Feast on the benchmark's data: a process in Feast's own environment that measures what it is asked for.

It reads one JSON object a line and answers with one: the cost of what was done, or the error. Views: `ACTIVITIES` over all events
for training and materialization, and `v0` to `v4` over the latest row of each key, for lookups and pushes.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, PushSource, ValueType
from feast.infra.offline_stores.file_source import FileSource
from feast.types import Float64, Int64

from benchmarks.rows import measured

CONFIGURATION = """
project: benchmarks
provider: local
registry: {folder}/registry.db
offline_store: {{type: duckdb}}
online_store: {{type: redis, connection_string: "{address}"}}
entity_key_serialization_version: 3
"""
ACTIVITIES = ["activity", *[f"activity{number}" for number in range(1, 5)]]
FIRST, LAST = dt.datetime(2013, 5, 1, tzinfo=dt.UTC), dt.datetime(2013, 12, 1, tzinfo=dt.UTC)


class Peer:
    """A Feast repo."""

    def __init__(self, folder: str, address: str, events: str, latest: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "feature_store.yaml").write_text(CONFIGURATION.format(folder=folder, address=address), "utf-8")
        self.store = FeatureStore(folder)
        user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
        features = [Field(name=f"f{number}", dtype=Float64) for number in range(10)]
        newest = FileSource(name="latest", path=latest, timestamp_field="happened_at")
        pushed = PushSource(name="pushed", batch_source=newest)

        def view(name: str, source: Any) -> FeatureView:
            schema = [Field(name="user_id", dtype=Int64), *features]
            return FeatureView(name=name, entities=[user], ttl=dt.timedelta(0), schema=schema, source=source, online=True)

        everything = FileSource(name="events", path=events, timestamp_field="happened_at")
        activities = [view(name, everything) for name in ACTIVITIES]
        views = [view("v0", pushed), *[view(f"v{number}", newest) for number in range(1, 5)]]
        services = [FeatureService(name="model", features=[views[0]]), FeatureService(name="model_50", features=views)]
        self.store.apply([user, *activities, *views, *services])

    def materialize(self) -> object:
        """Write the newest of all events online."""
        return measured(lambda: self.store.materialize(FIRST, LAST, feature_views=ACTIVITIES[:1]))

    def load(self) -> object:
        """Write what lookups read."""
        return measured(lambda: self.store.materialize(FIRST, LAST, feature_views=[f"v{number}" for number in range(5)]))

    def pit(self, spine: str, views: int = 1, target: str | None = None) -> object:
        """Make a training set of ten features a view, and write it to a file if one is named; the spine is in memory before."""
        frame = pd.read_parquet(spine)
        names = [f"{view}:f{number}" for view in ACTIVITIES[:views] for number in range(10)]
        found: list[Any] = []
        cost = measured(
            lambda: found.append(self.store.get_historical_features(frame, names, full_feature_names=views > 1).to_arrow())
        )
        if target is not None:
            pq.write_table(found[0], target)
        return cost

    def online(self, service: str, requests: list[list[int]]) -> object:
        """Look entities up, one request after the other, as Python values."""
        chosen = self.store.get_feature_service(service)
        return measured(
            lambda: [
                self.store.get_online_features(chosen, _entities(users), full_feature_names=True).to_dict() for users in requests
            ]
        )

    def values(self, service: str, users: list[int]) -> object:
        """Return what a lookup gives."""
        chosen = self.store.get_feature_service(service)
        return self.store.get_online_features(chosen, _entities(users), full_feature_names=True).to_dict()

    def push(self, rows: list[dict[str, float]]) -> object:
        """Push rows online and read each until it is there."""
        chosen = self.store.get_feature_service("model")

        def each() -> None:
            for row in rows:
                frame = pd.DataFrame([{**row, "happened_at": dt.datetime.now(dt.UTC)}])
                self.store.push("pushed", frame)
                entity = [{"user_id": row["user_id"]}]
                while self.store.get_online_features(chosen, entity).to_dict()["f0"] != [row["f0"]]:
                    pass

        return measured(each)


def _entities(users: list[int]) -> list[dict[str, int]]:
    return [{"user_id": user} for user in users]


def main(folder: str, address: str, events: str, latest: str) -> None:
    """Answer one command a line until there are no more. What Feast prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = Peer(folder, address, events, latest)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            result = getattr(peer, command.pop("do"))(**command)
            answer: dict[str, Any] = {"result": result if isinstance(result, dict) else asdict(result)}
        except Exception as reason:  # noqa: BLE001 (the failure is what was measured)
            traceback.print_exc()
            answer = {"error": f"{type(reason).__name__}: {reason}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
