"""Historical features, as a process of their own computes them (`processes.py`).

A spine is a table here, never text: the library would take a text for SQL, or for a path on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore import FeatureStore
from featurestore.offline.training import TrainingSet
from featurestore.registry.api_keys import ApiKey
from featurestore.types import Timestamp, ValueType
from featurestore_server.access import permit
from featurestore_server.contract import JSON, HistoricalOptions, HistoricalRequest
from featurestore_server.dependencies import Received
from featurestore_server.limits import Limits
from featurestore_server.tables import encoded, reader
from featurestore_server.training_process import Outlet
from featurestore_server.values import check_lengths, from_json, untyped_from_json

__all__ = ["Historical"]


@dataclass(frozen=True)
class Historical:
    """A request for historical features, without its body."""

    media_type: str
    answer_type: str
    query: dict[str, list[str]]
    key: ApiKey

    def __call__(self, store: FeatureStore, folder: Path, outlet: Outlet) -> None:
        """Send the training set, batch by batch; what can be known before is found before the head is sent."""
        training = self.training(store, folder / "body")
        chunks = encoded(self.answer_type, training.schema, training.to_batches(), training.spine.schema.names)
        first = next(chunks, b"")
        outlet.begin(200, [("content-type", self.answer_type)])
        outlet.write(first)
        for chunk in chunks:
            outlet.write(chunk)

    def training(self, store: FeatureStore, body: Path) -> TrainingSet:
        """Return what is asked for; ProblemError and FeatureStoreError if it cannot be."""
        asked: HistoricalOptions
        spine: pa.Table | pa.RecordBatchReader
        limits = Limits(store.settings.server)
        if self.media_type == JSON:
            received = Received(self.media_type, self.answer_type, self.query, body.read_bytes(), limits)
            asked = json_request = received.json(HistoricalRequest)
            permit(asked.wanted, self.key)
            spine = _json_spine(json_request.entities, store.selection(asked.wanted).keys, asked.timestamp_column)
        else:
            asked = Received(self.media_type, self.answer_type, self.query, b"", limits).options(HistoricalOptions)
            permit(asked.wanted, self.key)
            spine = reader(body, self.media_type)
        limits.check_features(len(store.selection(asked.wanted).columns))
        return store.get_historical_features(
            spine, asked.wanted, timestamp_column=asked.timestamp_column, incomplete=asked.incomplete
        )


def _json_spine(columns: Mapping[str, list[Any]], keys: Mapping[str, ValueType], timestamp_column: str) -> pa.Table:
    check_lengths(columns)
    typed = {timestamp_column: Timestamp, **keys}
    return pa.table(
        {
            name: from_json(name, typed[name], values) if name in typed else untyped_from_json(name, values)
            for name, values in columns.items()
        }
    )
