"""Training sets: the features of a service for each row of a spine, as of the row's own time.

T5: output rows are the spine's rows, same count, same order, duplicates kept, spine columns untouched; absent values are null;
types are the declared ones. T7: a row is complete if all that could be visible at its time is materialized; rows that are not are
an error unless `incomplete` says what to do with them. The rule itself is in `point_in_time.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.clock import instant_text
from featurestore.errors import IncompleteError, SpineError
from featurestore.offline.asked import Asked
from featurestore.offline.manifests import LookupRecord, Manifest, write_manifest
from featurestore.offline.measured import Measured
from featurestore.offline.point_in_time import Wanted, values_of
from featurestore.offline.sources import BEGINNING
from featurestore.offline.spine import Spine, key_column, request_column, times_of
from featurestore.offline.tables import Snapshot
from featurestore.on_demand import Evaluation
from featurestore.parquet_file import write_parquet
from featurestore.registry.selection import Lookup, Selection
from featurestore.registry.state import FOREVER, Version
from featurestore.types import pandas_type

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Availability", "Incomplete", "Origin", "Resources", "TrainingSet", "complete_until"]

_ASKED_BYTES = 150
"""What a spine row takes while it is sorted and looked up, besides its own columns and its features."""

_BYTES_OF_A_VALUE = 9
_COPIES = 3
"""How often a row's columns are in memory at most: as they are read, as they are gathered, and in the result."""

Incomplete = Literal["error", "stale", "null"]
Availability = Literal["declared", "measured"]


@dataclass(frozen=True)
class Origin:
    """What a training set was asked for, when, and where manifests keep table versions: what its manifest says besides."""

    features: str | tuple[str, ...]
    asked_at: int
    offline_folder: Path


@dataclass(frozen=True)
class Resources:
    """What computing a training set may take."""

    memory_bytes: int
    threads: int


@dataclass(frozen=True)
class TrainingSet:
    """A point-in-time training set, computed as it is read: `to_batches` and `to_parquet` never hold all of it.

    Its columns are the spine's, then the features in the service's order as `view__feature`. It reads the table versions that were
    current when it was made, so reading it twice gives the same values whatever is materialized in between. `complete_until` says
    for each view or alias how far its rows are complete. `erased_since` counts the erasures since the manifest that it is made
    after: rows of what was erased are null.
    """

    spine: Spine
    selection: Selection
    snapshots: Mapping[str, Snapshot]
    complete_until: Mapping[str, int]
    resources: Resources
    origin: Origin
    on_demand: Evaluation
    incomplete: Incomplete = "error"
    erased_since: int = 0
    measured: Mapping[str, Measured] | None = None
    """By version, the record that takes the place of the declared visible times; none: what is declared."""

    def __post_init__(self) -> None:
        taken = set(self.selection.columns) & set(self.spine.schema.names)
        if taken:
            raise SpineError(f"the spine has a column {min(taken)!r} already; a feature has that name", name=min(taken))
        if self.incomplete == "error":
            self._refuse_incomplete()

    @property
    def availability(self) -> Availability:
        """By what it goes: the declared visible times, or the record of loads."""
        return "declared" if self.measured is None else "measured"

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the result."""
        features = [pa.field(name, type_.arrow) for name, type_ in self.selection.types().items()]
        return pa.schema([*self.spine.schema, *features])

    @property
    def table_versions(self) -> dict[str, int]:
        """The version of each view's table that the values come from."""
        return {lookup.version.view.name: self.snapshots[lookup.version.uid].version for lookup in self.selection.lookups}

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Give the result batch by batch, in the spine's order."""
        first_row = 0
        for chunk in self.spine.chunks(self._chunk_rows()):
            yield from self._in_parts(chunk, first_row)
            first_row += len(chunk)

    def to_arrow(self) -> pa.Table:
        """Return the whole result as an Arrow table."""
        return pa.Table.from_batches(self.to_batches(), self.schema)

    def to_pandas(self) -> pd.DataFrame:
        """Return the whole result as a pandas frame. Integers and booleans are nullable, so an int64 beside a null stays one."""
        return self.to_arrow().to_pandas(types_mapper=pandas_type)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the whole result as lists by column."""
        return self.to_arrow().to_pydict()

    def to_parquet(self, path: str | Path) -> int:
        """Write the result to a Parquet file, which appears when it is complete; returns the number of rows.

        `<path>.manifest.json` beside it says what it was made of (`manifests.py`): `as_of_manifest` makes it again.

        Raises:
            SpineError: it is the spine's own file, which stays.

        """
        target = Path(path)
        if self.spine.path is not None and target.exists() and target.samefile(self.spine.path):
            raise SpineError(f"{target} is the spine; write the training set to another file", name=str(target))
        spine = self.spine.digest()  # before the file is replaced, which SQL may have read the spine from
        rows = write_parquet(target, self.schema, self.to_batches())
        write_manifest(self._manifest(target, rows, spine), self.origin.offline_folder)
        return rows

    def _manifest(self, target: Path, rows: int, spine: str) -> Manifest:
        lookups = tuple(
            LookupRecord(
                lookup.name, lookup.version.view.name, lookup.version.uid, self.snapshots[lookup.version.uid].version,
                self.complete_until[lookup.name], lookup.key_columns, lookup.features,
                self.snapshots[lookup.version.uid].covered_until,
            )
            for lookup in self.selection.lookups
        )  # fmt: skip
        return Manifest(
            library=metadata.version("featurestore"),
            created_at=instant_text(self.origin.asked_at),
            path=str(target.resolve()),
            features=self.origin.features,
            fingerprint=self.selection.fingerprint(),
            columns=self.selection.columns,
            lookups=lookups,
            timestamp_column=self.spine.timestamp_column,
            incomplete=self.incomplete,
            spine=spine,
            rows=rows,
            on_demand=tuple(dict(each.spec) for each in self.selection.computed),
            availability=self.availability,
        )

    def _chunk_rows(self) -> int:
        """Return how many spine rows to answer at once: what half of the memory holds, as each chunk reads the tables."""
        values = sum(self._bytes_per_row(lookup) for lookup in self.selection.lookups)
        return max(1, self.resources.memory_bytes // 2 // (_COPIES * (values + self.spine.bytes_per_row()) + _ASKED_BYTES))

    def _bytes_per_row(self, lookup: Lookup) -> int:
        stored = [field.name for field in lookup.version.view.fields if field.name in lookup.features]
        looked_up = self.snapshots[lookup.version.uid].bytes_per_row(stored)
        return max(looked_up, _BYTES_OF_A_VALUE * len(lookup.features))

    def _in_parts(self, chunk: pa.Table, first_row: int) -> Iterator[pa.RecordBatch]:
        """Give the result of a chunk; in halves where it holds more text or bytes than an Arrow column can."""
        try:
            yield from self._with_features(chunk, first_row).to_batches()
        except pa.ArrowInvalid:
            if len(chunk) < 2:  # noqa: PLR2004 (what cannot be halved)
                raise
            middle = len(chunk) // 2
            yield from self._in_parts(chunk.slice(0, middle), first_row)
            yield from self._in_parts(chunk.slice(middle), first_row + middle)

    def _with_features(self, chunk: pa.Table, first_row: int) -> pa.Table:
        times = times_of(chunk[self.spine.timestamp_column], self.spine.timestamp_column)
        columns: dict[str, pa.ChunkedArray] = {}
        wanted: list[Wanted] = []
        sorted_once: dict[tuple[object, ...], Asked] = {}
        for lookup in self.selection.lookups:
            view = lookup.version.view
            what = (lookup.key_columns, tuple(key.type for key in view.join_keys), self._latest(lookup), view.is_static)
            if what not in sorted_once:
                keys = [key_column(chunk[name], name, key.type) for name, key in zip(what[0], view.join_keys, strict=True)]
                sorted_once[what] = Asked.of(keys, self._asked_times(lookup, times))
            if lookup.version.uid not in (self.measured or {}):
                snapshot = self.snapshots[lookup.version.uid]
                wanted.append(Wanted(view, snapshot, sorted_once[what], lookup.features, event_times=False))
        found = iter(values_of(wanted, threads=self.resources.threads))
        for lookup in self.selection.lookups:
            measured = (self.measured or {}).get(lookup.version.uid)
            values = next(found).features if measured is None else self._measured_values(measured, lookup, chunk, times)
            columns |= {lookup.column(feature): values[feature] for feature in lookup.features}
        if self.on_demand:
            request = {name: request_column(chunk[name], name, type_) for name, type_ in self.selection.request.items()}
            given = columns | request
            inputs = {name: given[name] for name in self.on_demand.inputs}
            columns |= self.on_demand.arrow(inputs, len(chunk), first_row=first_row)
        return pa.table([*chunk.columns, *(columns[name] for name in self.selection.columns)], schema=self.schema)

    def _latest(self, lookup: Lookup) -> int:
        return self.complete_until[lookup.name] if self.incomplete == "null" else FOREVER

    def _asked_times(self, lookup: Lookup, times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the times at which a lookup's values are taken: one before all rows where the answer is to be null."""
        if lookup.version.view.is_static:  # visible always, before the year 1 too
            times = np.maximum(times, BEGINNING)
        return np.where(times > self._latest(lookup), BEGINNING - 1, times)

    def _measured_values(self, measured: Measured, lookup: Lookup, chunk: pa.Table, times: npt.NDArray[np.int64]) -> pa.Table:
        """Return the features of a lookup by the record of its loads."""
        pairs = zip(lookup.key_columns, lookup.version.view.join_keys, strict=True)
        keys = [key_column(chunk[name], name, key.type) for name, key in pairs]
        return measured.values(keys, self._asked_times(lookup, times), lookup.features, threads=self.resources.threads)

    def _refuse_incomplete(self) -> None:
        limits = [(lookup, self.complete_until[lookup.name]) for lookup in self.selection.lookups]
        late = np.zeros(len(limits), dtype=np.int64)
        rows, latest = 0, -(2**63)
        for times in self.spine.times():
            late += np.array([np.count_nonzero(times > limit) for _, limit in limits], dtype=np.int64)
            rows += len(times)
            latest = max(latest, int(times.max(initial=latest)))
        faults = [_incompleteness(lookup, int(count), rows) for (lookup, _), count in zip(limits, late, strict=True) if count]
        if faults:
            raise IncompleteError(
                f"the spine reaches to {instant_text(latest)}, beyond what is materialized: {'; '.join(faults)}. "
                "Materialize the views, or pass incomplete='stale' (answer from what is there) or 'null'"
            )


def _incompleteness(lookup: Lookup, count: int, rows: int) -> str:
    watermark = lookup.version.watermark
    if lookup.version.view.is_pushed:
        return f"{count} of {rows} rows ask view {lookup.name!r} for pushes that are still to come"
    until = "not materialized yet" if watermark is None else f"materialized until {instant_text(watermark)}"
    return f"view {lookup.name!r} is {until}, {count} of {rows} rows are later"


def complete_until(version: Version) -> int:
    """Return the last instant for which a training row is complete; one before all others where nothing is materialized."""
    until = version.complete_until()
    return -(2**63) if until is None else until
