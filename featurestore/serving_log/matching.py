"""Training on what was served: labels, each with the features of the request that it belongs to, as the log has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter

from featurestore.errors import InputError, NotFoundError, OfflineStoreError, SpineError, known_names
from featurestore.offline.session import identifier, session
from featurestore.offline.spine import key_column, open_spine, request_column, times_of
from featurestore.parquet_file import write_parquet
from featurestore.registry.state import Tombstones
from featurestore.serving_log.layout import REQUESTED_AT, LogFile, log_files
from featurestore.types import ValueType, pandas_type

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LoggedTrainingSet", "ServedLog"]

Integers = npt.NDArray[np.int64]
_TIME, _PLACE = "__time", "__place"


@dataclass(frozen=True)
class LoggedTrainingSet:
    """Labels with the features as they were served: the labels' columns, then the features in the service's order.

    A label is a row if the log has its request; `unmatched` says how many are not. The rows stand in the labels' order.
    """

    table: pa.Table
    unmatched: int

    def to_arrow(self) -> pa.Table:
        """Return it as an Arrow table."""
        return self.table

    def to_pandas(self) -> pd.DataFrame:
        """Return it as a pandas frame. Integers and booleans are nullable, so an int64 beside a null stays one."""
        return self.table.to_pandas(types_mapper=pandas_type)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return it as lists by column."""
        return self.table.to_pydict()

    def to_parquet(self, path: str | Path) -> int:
        """Write it to a Parquet file, which appears when it is complete; returns the number of rows."""
        return write_parquet(path, self.table.schema, self.table.to_batches())


@dataclass(frozen=True)
class ServedLog:
    """What the log has of one service with one fingerprint, but of erased keys."""

    folder: Path
    service: str
    fingerprint: str
    tombstones: Tombstones

    def training_set(self, labels: Any, on: Sequence[str] | None, timestamp_column: str, tolerance: int) -> LoggedTrainingSet:
        """Return labels with the features of the last request, of equal columns `on`, at most `tolerance` microseconds before.

        Raises:
            NotFoundError: the log has nothing of the service with this fingerprint.
            InputError: `on` names a column that requests do not have.
            SpineError: the labels lack a column, or one has a wrong type.
            OfflineStoreError: the log cannot be read.

        """
        files = self._files()
        header = files[0].header
        types = TypeAdapter(dict[str, ValueType]).validate_python(header.keys)
        for name in on or ():
            if name not in types:
                raise InputError(f"requests of {self.service!r} have no column {name!r}; {known_names(name, types)}", name=name)
        keys = {column for lookup in header.lookups for column in lookup.join_keys.values()}
        needed = {name: type_ for name, type_ in types.items() if (name in keys if on is None else name in on)}
        spine = open_spine(labels, timestamp_column, needed)
        if on is None:  # what labels know of the rest of a request tells it from others
            needed = {name: type_ for name, type_ in types.items() if name in spine.schema.names}
        if taken := set(header.columns) & set(spine.schema.names):
            raise SpineError(f"the labels have a column {min(taken)!r} already; a feature has that name", name=min(taken))
        whole = pa.Table.from_batches(spine.read(None), spine.schema)
        asked = {name: (key_column if name in keys else request_column)(whole[name], name, type_) for name, type_ in needed.items()}
        rows, places = self._matched(files, asked, times_of(whole[timestamp_column], timestamp_column), tolerance)
        features = self._gathered(files, header.columns, places)
        return LoggedTrainingSet(_beside(whole.take(pa.array(rows)), features), len(whole) - len(rows))

    def _files(self) -> list[LogFile]:
        files = log_files(self.folder, self.service)
        mine = [file for file in files if file.header.fingerprint == self.fingerprint]
        if not mine:
            known = {file.header.fingerprint for file in files}
            raise NotFoundError(f"serving log of {self.service!r} with the fingerprint", self.fingerprint, known)
        return mine

    def _matched(
        self, files: Sequence[LogFile], asked: Mapping[str, pa.ChunkedArray], times: Integers, tolerance: int
    ) -> tuple[Integers, Integers]:
        """Return which labels have a request, and the place of that in the log."""
        names = list(asked)
        logged = pa.concat_tables([self._read(file).select([REQUESTED_AT, *names]) for file in files])
        columns = [*(logged[name] for name in names), logged[REQUESTED_AT].cast(pa.int64()), pa.array(np.arange(len(logged)))]
        wanted = [*asked.values(), pa.array(times), pa.array(np.arange(len(times)))]
        is_same = " AND ".join(f"l.{identifier(name)} IS NOT DISTINCT FROM r.{identifier(name)}" for name in names)
        with session(OfflineStoreError, "the serving log") as connection:
            connection.register("requests", pa.table(columns, names=[*names, _TIME, _PLACE]))
            connection.register("labels", pa.table(wanted, names=[*names, _TIME, _PLACE]))
            found = connection.sql(
                f"SELECT l.{_PLACE} AS label, arg_max(r.{_PLACE}, (r.{_TIME}, r.{_PLACE})) AS request "
                f"FROM labels l JOIN requests r ON {is_same} AND r.{_TIME} <= l.{_TIME} AND r.{_TIME} >= l.{_TIME} - {tolerance} "
                "GROUP BY 1 ORDER BY 1"
            ).to_arrow_table()
        return np.asarray(found["label"]), np.asarray(found["request"])

    def _gathered(self, files: Sequence[LogFile], columns: Sequence[str], places: Integers) -> pa.Table:
        """Return the features at some places of the log."""
        parts, wanted, first = [], np.argsort(places, kind="stable"), 0
        ordered = places[wanted]
        for file in files:
            table = self._read(file).select(list(columns))
            low, high = np.searchsorted(ordered, (first, first + len(table)))
            parts.append(table.take(pa.array(ordered[low:high] - first)))
            first += len(table)
        back = np.empty(len(places), np.int64)
        back[wanted] = np.arange(len(places))
        return pa.concat_tables(parts).take(pa.array(back))

    def _read(self, file: LogFile) -> pa.Table:
        table = file.read(self.tombstones)
        if table is None:
            raise OfflineStoreError("the serving log was trimmed while it was read; try again")
        return table


def _beside(labels: pa.Table, features: pa.Table) -> pa.Table:
    schema = pa.schema([*labels.schema, *features.schema]).remove_metadata()
    return pa.table([*labels.columns, *features.columns], schema=schema)
