"""What was served, as Arrow: many requests of one lookup become one batch, in the columns that `layout.py` specifies."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa

from featurestore.online.fetching import Found
from featurestore.online.status import Status
from featurestore.online.vectors import FeatureVectors, LookupPlan, Request
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


class Served(NamedTuple):
    """One answered request: what was found for it, and the present by which it was answered.

    `vectors` are there only if they have on-demand features, whose values nothing else has. The fewer objects wait, the less the
    collector of garbage has to look through.
    """

    request: Request
    found: Found
    now: int
    vectors: FeatureVectors | None


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


def batch_of(plan: LookupPlan, served: Sequence[Served]) -> pa.Table:
    """Return requests of one plan as a table, a row for each entity.

    Raises:
        OnlineStoreError: a row that was found contradicts itself, so nobody could read it.

    """
    selection = plan.selection
    nows = [each.now for each in served for _ in range(each.request.rows)]
    answers = plan.together([(each.request.rows, each.found) for each in served], nows)
    features = {name: answers[view].features[feature] for name, view, feature in plan.places} | _computed(plan, served)
    columns: dict[str, Any] = {REQUESTED_AT: pa.array(nows, pa.int64()).cast(UTC_TIME)}
    columns |= {name: _given(name, type_, served) for name, type_ in selection.needed.items()}
    columns |= {name: features[name] for name in selection.columns}
    for lookup, rows in zip(plan.lookups, answers, strict=True):
        columns[status_column(lookup.name)] = pa.DictionaryArray.from_arrays(pa.array(rows.statuses), _STATUSES).cast(pa.string())
        columns[event_time_column(lookup.name)] = rows.event_times
    return pa.table(columns)


def _computed(plan: LookupPlan, served: Sequence[Served]) -> dict[str, pa.Array]:
    """Return the on-demand features as they were computed for the requests."""
    parts = [each.vectors.plain_computed() for each in served if each.vectors is not None]
    return {
        name: _values(type_, list(chain.from_iterable(part[name] for part in parts)))
        for name, type_ in plan.on_demand.types.items()
    }


def _given(name: str, type_: ValueType, served: Sequence[Served]) -> Any:
    """Return a column of requests: from the values as they were given, or from Arrow where some were given otherwise."""
    if all(name in each.request.given for each in served):
        return pa.array(list(chain.from_iterable(each.request.given[name] for each in served)), type_.arrow)
    chunks = chain.from_iterable(each.request.arrow[name].chunks for each in served)
    return pa.chunked_array(list(chunks), type_.arrow)


def _values(type_: ValueType, values: list[Any]) -> pa.Array:
    item = (type_.item or type_).name
    plain = _PLAIN.get(item)
    if plain is None:
        return pa.array(values, type_.arrow)
    return pa.array(values, plain if type_.item is None else pa.list_(plain)).cast(type_.arrow)
