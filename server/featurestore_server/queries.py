"""Historical features and stored training sets, as processes of their own compute them (`processes.py`).

A spine is a table here, never text: the library would take a text for SQL, or for a path on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from featurestore import FeatureStore
from featurestore.clock import instant_text
from featurestore.errors import NotFoundError, TrainingSetError
from featurestore.offline.training import TrainingSet
from featurestore.registry.api_keys import ApiKey
from featurestore.types import Timestamp, ValueType
from featurestore_server.access import permit
from featurestore_server.computing import compute
from featurestore_server.contract import JSON, PARQUET, HistoricalOptions, HistoricalRequest
from featurestore_server.dependencies import Received
from featurestore_server.limits import Limits
from featurestore_server.tables import check_form, encoded, reader
from featurestore_server.training_process import Outlet
from featurestore_server.values import check_lengths, from_json, untyped_from_json

__all__ = ["Computation", "Historical", "Submission"]


@dataclass(frozen=True)
class Historical:
    """A request for historical features, without its body."""

    media_type: str
    answer_type: str
    query: dict[str, list[str]]
    key: ApiKey
    lock: str | None

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
            spine = _json_spine(json_request.entities, store.selection(asked.wanted).needed, asked.timestamp_column)
        else:
            asked = Received(self.media_type, self.answer_type, self.query, b"", limits).options(HistoricalOptions)
            permit(asked.wanted, self.key)
            spine = reader(body, self.media_type)
        limits.check_features(len(store.selection(asked.wanted).columns))
        return store.get_historical_features(
            spine,
            asked.wanted,
            timestamp_column=asked.timestamp_column,
            incomplete=asked.incomplete,
            availability=asked.availability,
            lock=self.lock,
        )


def _json_spine(columns: Mapping[str, list[Any]], needed: Mapping[str, ValueType], timestamp_column: str) -> pa.Table:
    check_lengths(columns)
    typed = {timestamp_column: Timestamp, **needed}
    return pa.table(
        {
            name: from_json(name, typed[name], values) if name in typed else untyped_from_json(name, values)
            for name, values in columns.items()
        }
    )


@dataclass(frozen=True)
class Submission(Historical):
    """A request for a training set that is to be stored, under an identifier that its Idempotency-Key gives, or a new one."""

    identifier: str = ""

    def __call__(self, store: FeatureStore, folder: Path, outlet: Outlet) -> None:
        """Keep the job, and send what is known of it; what can be known before is refused at once."""
        training = self.training(store, folder / "body")
        check_form(PARQUET, training.schema)
        stored = store.training_sets.create(self.identifier, training, now=instant_text(store.clock()))
        location = f"/v1/training-sets/{self.identifier}"
        outlet.begin(202, [("content-type", JSON), ("location", location)])
        outlet.write(orjson.dumps(stored.to_dict()))


@dataclass(frozen=True)
class Computation:
    """The computation of a stored training set; nothing comes of it if another process has it, or it is over."""

    identifier: str

    def __call__(self, store: FeatureStore, _folder: Path, _outlet: Outlet) -> None:
        """Compute it, and say in its state what has become of it."""
        with suppress(NotFoundError, TrainingSetError), store.training_sets.held(self.identifier) as held:
            if not held.state.is_over:
                compute(store, held)
