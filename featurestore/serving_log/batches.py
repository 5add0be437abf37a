"""What was served, as Arrow: many requests of one lookup become one batch, in the columns that `layout.py` specifies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.online.rows import NO_EVENT_TIME
from featurestore.online.status import Status
from featurestore.online.vectors import FeatureVectors, Request
from featurestore.registry.selection import Selection
from featurestore.serving_log.layout import (
    REQUESTED_AT,
    UTC_TIME,
    LoggedLookup,
    LogHeader,
    event_time_column,
    status_column,
)
from featurestore.types import ValueType

__all__ = ["Served", "batch_of", "header_of"]

_STATUSES = pa.array([status.name for status in Status])
_PLAIN = {"Date": pa.int32(), "Timestamp": pa.int64()}
"""The Arrow types of plain values that are not those of the declared types (`FeatureVectors.plain_features`)."""


@dataclass(frozen=True)
class Served:
    """One answered request, and the present by which it was answered."""

    request: Request
    vectors: FeatureVectors
    now: int


def header_of(selection: Selection, sample: float) -> LogHeader:
    """Return the header of a file of what a selection gave."""
    lookups = tuple(
        LoggedLookup(
            each.name,
            each.version.view.name,
            each.version.uid,
            {key.name: column for key, column in zip(each.version.view.join_keys, each.key_columns, strict=True)},
            each.features,
        )
        for each in selection.lookups
    )
    return LogHeader(
        library=metadata.version("featurestore"),
        service=selection.name,
        fingerprint=selection.fingerprint(),
        columns=selection.columns,
        keys={name: str(type_) for name, type_ in selection.needed.items()},
        lookups=lookups,
        sample=sample,
        on_demand=tuple(dict(each.spec) for each in selection.computed),
    )


def batch_of(selection: Selection, served: Sequence[Served]) -> pa.Table:
    """Return requests of one selection as a table, a row for each entity.

    Raises:
        OnlineStoreError: a row that was found contradicts itself, so nobody could read it.

    """
    rows = [each.request.rows for each in served]
    columns: dict[str, Any] = {REQUESTED_AT: pa.array(np.repeat([each.now for each in served], rows), pa.int64()).cast(UTC_TIME)}
    for name, type_ in selection.needed.items():
        columns[name] = _keys(name, type_, served)
    features = [each.vectors.plain_features() for each in served]
    for name, type_ in selection.types().items():
        columns[name] = _values(type_, chain.from_iterable(each[name] for each in features))
    statuses = [each.vectors.statuses for each in served]
    times = [each.vectors.plain_event_times() for each in served]
    for lookup in selection.lookups:
        codes = pa.array(list(chain.from_iterable(each[lookup.name] for each in statuses)), pa.int8())
        columns[status_column(lookup.name)] = pa.DictionaryArray.from_arrays(codes, _STATUSES).cast(pa.string())
        found = np.array(list(chain.from_iterable(each[lookup.name] for each in times)), np.int64)
        columns[event_time_column(lookup.name)] = pa.array(found, mask=found == NO_EVENT_TIME).cast(UTC_TIME)
    return pa.table(columns)


def _keys(name: str, type_: ValueType, served: Sequence[Served]) -> Any:
    """Return a key column: from the values as they were given, or from Arrow where some were given otherwise."""
    if all(name in each.request.given for each in served):
        return pa.array(list(chain.from_iterable(each.request.given[name] for each in served)), type_.arrow)
    chunks = chain.from_iterable(each.request.arrow[name].chunks for each in served)
    return pa.chunked_array(list(chunks), type_.arrow)


def _values(type_: ValueType, values: Iterable[Any]) -> pa.Array:
    item = (type_.item or type_).name
    plain = _PLAIN.get(item)
    if plain is None:
        return pa.array(list(values), type_.arrow)
    return pa.array(list(values), plain if type_.item is None else pa.list_(plain)).cast(type_.arrow)
