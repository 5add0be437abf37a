"""Deterministic data, and a repo over it that is materialized once for all rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import FeatureStore

START = 1_370_000_000_000_000
SPAN = 90 * 86_400_000_000
FEATURES = 10
_BLOCK = 5_000_000

DEFINITIONS = f"""
from featurestore import Aggregation, Entity, FeatureService, FeatureView, FileSource
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
    """How many rows the source has, keys these have, and rows the spine has; and for how many seconds a server is loaded."""

    rows: int
    keys: int
    spine: int
    seconds: int = 3


@dataclass(frozen=True)
class Bench:
    """What rows measure on."""

    folder: Path
    store: FeatureStore
    sizes: Sizes
    prepared: float
    """How many seconds the first materialization took."""
    ending: ExitStack = field(default_factory=ExitStack)
    """Ends what rows have started for all of them."""

    @property
    def events(self) -> Path:
        """The source."""
        return self.folder / "events.parquet"

    @property
    def spine(self) -> Path:
        """The spine."""
        return self.folder / "spine.parquet"


@contextmanager
def make_repo(folder: Path, sizes: Sizes, *, settings: str = "", more: str = "", is_online: bool = True) -> Iterator[Bench]:
    """Write data and definitions, apply them, and materialize."""
    random = np.random.default_rng(2013)
    write_events(folder / "events.parquet", random, sizes)
    pq.write_table(pa.table(keys_and_times(random, sizes.spine, sizes.keys, "event_timestamp")), folder / "spine.parquet")
    (folder / "featurestore.toml").write_text(f'project = "benchmarks"\n{settings}', "utf-8")
    definitions = DEFINITIONS if is_online else DEFINITIONS.replace('refresh="1h",', 'refresh="1h", online=False,')
    (folder / "definitions.py").write_text(definitions + more, "utf-8")
    with FeatureStore(folder) as store:
        store.apply()
        began = time.perf_counter()
        store.materialize(["activity"])
        prepared = time.perf_counter() - began
        if more:
            store.materialize()
        bench = Bench(folder, store, sizes, prepared)
        try:
            yield bench
        finally:
            bench.ending.close()
            store.stop()


def write_events(path: Path, random: np.random.Generator, sizes: Sizes) -> None:
    """Write the source, a block of rows at a time, so that its size is bounded by the disk alone."""
    writer = None
    for first in range(0, sizes.rows, _BLOCK):
        rows = min(_BLOCK, sizes.rows - first)
        features = {f"f{number}": random.random(rows) for number in range(FEATURES)}
        table = pa.table({**keys_and_times(random, rows, sizes.keys, "happened_at"), **features})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def keys_and_times(
    random: np.random.Generator, rows: int, keys: int, time: str, *, first: int = START, span: int = SPAN
) -> dict[str, pa.Array]:
    """Return random keys, and times within a span, in microseconds."""
    times = pa.array(first + random.integers(0, span, rows), pa.int64()).cast(pa.timestamp("us", "UTC"))
    return {"user_id": pa.array(random.integers(0, keys, rows)), time: times}
