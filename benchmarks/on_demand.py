"""The row about on-demand features: what three numpy expressions add to a lookup of one key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import Bench
from benchmarks.online import path_of
from benchmarks.rows import Rows, compare
from featurestore import FeatureStore
from featurestore.online.vectors import LookupPlan

__all__ = ["ON_DEMAND_ROWS"]

LOOKUPS = 5_000
DEFINITIONS = """
import numpy as np

from featurestore import Entity, FeatureService, FeatureView, FileSource, RequestSource, on_demand_feature_view
from featurestore.types import Float64, Int64

user = Entity("user", join_keys={"user_id": Int64})
rows = FileSource("rows", path="rows.parquet", event_time="happened_at")
view = FeatureView("view", entities=[user], source=rows, refresh="1h", fields={f"f{place}": Float64 for place in range(10)})


@on_demand_feature_view(
    inputs=[view[["f0", "f1", "f2"]], RequestSource("request", {"distance": Float64})],
    fields={"ratio": Float64, "sum": Float64, "root": Float64},
)
def computed(inputs):
    return {
        "ratio": inputs["f0"] / inputs["distance"],
        "sum": inputs["f1"] + 2 * inputs["f2"],
        "root": np.sqrt(inputs["distance"]),
    }


plain = FeatureService("plain", features=[view])
with_computed = FeatureService("with_computed", features=[view, computed])
"""


def on_demand_3(bench: Bench, repetitions: int) -> Rows:
    """Compare all of a lookup but its round trip, with three on-demand features and without."""
    folder = bench.folder / "on_demand"
    folder.mkdir()
    (folder / "featurestore.toml").write_text(
        f'project = "computed"\nonline.url = "unix://{path_of(bench.store.online)}"\n', "utf-8"
    )
    (folder / "definitions.py").write_text(DEFINITIONS, "utf-8")
    values = {f"f{place}": np.random.default_rng(place).normal(size=1) for place in range(10)}
    time = pa.array([1_370_000_000_000_000], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user_id": [7], "happened_at": time, **values}), folder / "rows.parquet")
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize()
        store.get_online_features({"user_id": [7], "distance": [3.5]}, "with_computed").to_dict()
        lookups = [
            _lookup(store, "with_computed", {"user_id": [7], "distance": [3.5]}), _lookup(store, "plain", {"user_id": [7]}),
        ]  # fmt: skip
        ours, floor = lookups
        what = "a lookup of 1 key x 10 features and 3 on-demand ones, without its round trip"
        [row] = compare("on_demand_3", what, ours, {"the same without them (floor)": floor}, repetitions)
    assert row.peer is not None
    return [replace(row, unit="µs", ours=row.ours / LOOKUPS * 1e6, peer=row.peer / LOOKUPS * 1e6)]


def _lookup(store: FeatureStore, service: str, entities: dict[str, list[float]]) -> Callable[[], None]:
    plan = LookupPlan(store.selection(service), store.functions.of)
    found, now = store.online.fetch(plan.request(entities).names), store.clock()

    def look_up() -> None:
        for _ in range(LOOKUPS):
            plan.answer(plan.request(entities), found, now=now).plain_features()

    return look_up


ON_DEMAND_ROWS: dict[str, Callable[..., Rows]] = {"on_demand_3": on_demand_3}
