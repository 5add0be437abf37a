"""What the service answers, in the forms that the local API gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from featurestore.client.bodies import typed
from featurestore.client.spool import Spool
from featurestore.online.status import Status
from featurestore.parquet_file import write_parquet
from featurestore.types import pandas_type, value_type

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["RemoteTrainingSet", "RemoteVectors", "TrainingSetJob"]

_KEYS = b"featurestore.keys"
_STATUS, _EVENT_TIME = "__status", "__event_time"


class RemoteVectors:
    """Feature vectors that the service found, a row for each entity asked for: what `FeatureStore.get_online_features` gives."""

    def __init__(self, entities: pa.Table, answer: Spool) -> None:
        import pyarrow as pa

        self._entities = entities
        with pa.ipc.open_stream(answer.source()) as stream:
            self._answer = stream.read_all()
        names = self._answer.column_names
        self._views = [name[2 : -len(_STATUS)] for name in names if name.startswith("__") and name.endswith(_STATUS)]
        self.features = tuple(name for name in names if not name.startswith("__"))
        """The names of the features' columns."""

    @cached_property
    def columns(self) -> pa.Table:
        """The vectors as an Arrow table: the request's columns in their declared types, then the features."""
        import pyarrow as pa

        types = orjson.loads(self._answer.schema.metadata[_KEYS])
        keys = {name: typed(self._entities, name, value_type(each)) for name, each in types.items()}
        return pa.table(keys | {name: self._answer[name] for name in self.features})

    @cached_property
    def statuses(self) -> Mapping[str, Sequence[Status]]:
        """The status of each row, by view."""
        return {view: [Status[name] for name in self._answer[f"__{view}{_STATUS}"].to_pylist()] for view in self._views}

    @cached_property
    def event_times(self) -> Mapping[str, pa.Array]:
        """The event time of each row, by view; null where nothing was found, and in static views."""
        return {view: self._answer[f"__{view}{_EVENT_TIME}"].combine_chunks() for view in self._views}

    def to_arrow(self) -> pa.Table:
        """Return the vectors as an Arrow table."""
        return self.columns

    def to_pandas(self) -> pd.DataFrame:
        """Return the vectors as a pandas frame. Integers and booleans are nullable, so an int64 beside a null stays one."""
        return self.columns.to_pandas(types_mapper=pandas_type)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the vectors as lists by column."""
        columns: dict[str, list[Any]] = self.columns.to_pydict()
        return columns


@dataclass(frozen=True)
class TrainingSetJob:
    """A training set that the service computes and keeps, as it was when it was asked for.

    `state` is waiting, running, cancelling, completed, failed or cancelled. `rows_done` counts the rows of the spine read,
    `rows` and `bytes` are the result's, `erased_rows` left it by an erasure. `error` says why it failed.
    """

    id: str
    state: str
    features: str | list[str]
    columns: list[str]
    spine_rows: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    attempts: int
    rows_done: int
    rows: int | None
    bytes: int | None
    erased_rows: int
    error: dict[str, str] | None

    @staticmethod
    def of(record: Mapping[str, Any]) -> TrainingSetJob:
        """Return what the service says of a job."""
        return TrainingSetJob(**{each.name: record[each.name] for each in fields(TrainingSetJob)})

    @property
    def is_over(self) -> bool:
        """Whether nothing will come any more."""
        return self.state in ("completed", "failed", "cancelled")


class RemoteTrainingSet:
    """A training set that the service computed: what `FeatureStore.get_historical_features` gives.

    It has been received in full, beyond a few megabytes into a temporary file, which goes when this object does: reading it again
    gives the same, and `to_batches` and `to_parquet` never hold all of it.
    """

    def __init__(self, answer: Spool) -> None:
        self._answer = answer

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema: the spine's columns, then the features in the service's order."""
        import pyarrow as pa

        with pa.ipc.open_stream(self._answer.source()) as stream:
            return stream.schema

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Give the rows batch by batch, in the spine's order."""
        import pyarrow as pa

        with pa.ipc.open_stream(self._answer.source()) as stream:
            yield from stream

    def to_arrow(self) -> pa.Table:
        """Return the whole result as an Arrow table."""
        import pyarrow as pa

        return pa.Table.from_batches(self.to_batches(), self.schema)

    def to_pandas(self) -> pd.DataFrame:
        """Return the whole result as a pandas frame. Integers and booleans are nullable, so an int64 beside a null stays one."""
        return self.to_arrow().to_pandas(types_mapper=pandas_type)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the whole result as lists by column."""
        columns: dict[str, list[Any]] = self.to_arrow().to_pydict()
        return columns

    def to_parquet(self, path: str | Path) -> int:
        """Write the result to a Parquet file, which appears when it is complete; returns the number of rows.

        There is no manifest beside it: where a training set has to be made again, let the service keep it
        (`create_training_set`).
        """
        return write_parquet(path, self.schema, self.to_batches())
