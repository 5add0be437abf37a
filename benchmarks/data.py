"""Deterministic data, and a repo over it that is materialized once for all rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import FeatureStore

START = 1_370_000_000_000_000
SPAN = 90 * 86_400_000_000
FEATURES = 10

DEFINITIONS = f"""
from featurestore import Entity, FeatureService, FeatureView, FileSource
from featurestore.types import Float64, Int64

user = Entity("user", join_keys={{"user_id": Int64}})
events = FileSource("events", path="events.parquet", event_time="happened_at")
activity = FeatureView(
    "activity", entities=[user], source=events, refresh="1h",
    fields={{f"f{{number}}": Float64 for number in range({FEATURES})}},
)
model = FeatureService("model", features=[activity])
"""


@dataclass(frozen=True)
class Sizes:
    """How many rows the source has, how many keys they spread over, and how many rows the spine has."""

    rows: int
    keys: int
    spine: int


@dataclass(frozen=True)
class Bench:
    """What rows measure on."""

    folder: Path
    store: FeatureStore
    sizes: Sizes

    @property
    def events(self) -> Path:
        """The source."""
        return self.folder / "events.parquet"

    @property
    def spine(self) -> Path:
        """The spine."""
        return self.folder / "spine.parquet"


@contextmanager
def make_repo(folder: Path, sizes: Sizes) -> Iterator[Bench]:
    """Write data and definitions, apply them, and materialize."""
    random = np.random.default_rng(2013)
    features = {f"f{number}": random.random(sizes.rows) for number in range(FEATURES)}
    pq.write_table(
        pa.table({**keys_and_times(random, sizes.rows, sizes.keys, "happened_at"), **features}), folder / "events.parquet"
    )
    pq.write_table(pa.table(keys_and_times(random, sizes.spine, sizes.keys, "event_timestamp")), folder / "spine.parquet")
    (folder / "featurestore.toml").write_text('project = "benchmarks"\n')
    (folder / "definitions.py").write_text(DEFINITIONS)
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize()
        try:
            yield Bench(folder, store, sizes)
        finally:
            store.stop()


def keys_and_times(
    random: np.random.Generator, rows: int, keys: int, time: str, *, first: int = START, span: int = SPAN
) -> dict[str, pa.Array]:
    """Return random keys, and times within a span, in microseconds."""
    times = pa.array(first + random.integers(0, span, rows), pa.int64()).cast(pa.timestamp("us", "UTC"))
    return {"user_id": pa.array(random.integers(0, keys, rows)), time: times}
