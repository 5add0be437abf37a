"""What a store holds of the weather: rows offline and values online."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import FeatureStore


def table_rows(store: FeatureStore, columns: list[str]) -> list[dict[str, Any]]:
    """Return columns of the rows that the one serving version has offline."""
    [version] = [each for each in store.applied().versions if each.state == "serving"]
    files = [pq.read_table(file.path, columns=columns) for file in store.snapshot(version).files]
    return pa.concat_tables(files).to_pylist() if files else []


def temperatures(store: FeatureStore, *origins: str) -> list[float | None]:
    """Return the temperatures that are served for some airports."""
    answer = store.get_online_features({"origin": list(origins)}, ["airport_weather:temperature"])
    values: list[float | None] = answer.to_dict()["airport_weather__temperature"]
    return values
