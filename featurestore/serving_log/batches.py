"""What was served, as Arrow: many requests of one lookup become one batch, in the columns that `layout.py` specifies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import metadata
from itertools import chain, pairwise
from typing import Any

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

__all__ = ["Gathered", "batch_of", "header_of"]

_STATUSES = pa.array([status.name for status in Status])
_PLAIN = {"Date": pa.int32(), "Timestamp": pa.int64()}
"""The Arrow types of plain values that are not those of the declared types (`FeatureVectors.plain_features`)."""


class Gathered:
    """Answered requests of one plan, as columns: what was given, what was found, and the present by which it was answered.

    Plain values are all that is kept of most requests, as bytes and numbers give the collector of garbage nothing to look through.
    What was given as Arrow stays in the requests, and on-demand features, which nothing else has, in the vectors.
    """

    def __init__(self, plan: LookupPlan, *, is_plain: bool) -> None:
        self.plan, self.is_plain = plan, is_plain
        self.ends: list[int] = []
        self.nows: list[int] = []
        self.found: list[Found] = [[] for _ in plan.lookups]
        self.given: dict[str, list[Any]] = {name: [] for name in plan.needed} if is_plain else {}
        self.requests: list[Request] = []
        self.vectors: list[FeatureVectors] = []

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.nows)

    def add(self, request: Request, found: Found, vectors: FeatureVectors, now: int) -> None:
        """Take one more request."""
        rows = request.rows
        self.nows += [now] * rows
        self.ends.append(len(self.nows))
        for place, column in enumerate(self.found):
            column.extend(found[place * rows : (place + 1) * rows])
        for name, values in self.given.items():
            values.extend(request.given[name])
        if not self.is_plain:
            self.requests.append(request)
        if self.plan.on_demand:
            self.vectors.append(vectors)

    def singles(self) -> Iterator[Gathered]:
        """Give each request by itself."""
        for place, (first, end) in enumerate(pairwise([0, *self.ends])):
            one = Gathered(self.plan, is_plain=self.is_plain)
            one.ends, one.nows = [end - first], self.nows[first:end]
            one.found = [column[first:end] for column in self.found]
            one.given = {name: values[first:end] for name, values in self.given.items()}
            one.requests, one.vectors = self.requests[place : place + 1], self.vectors[place : place + 1]
            yield one


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
        library=_library(),
        service=selection.name,
        fingerprint=selection.fingerprint(),
        columns=selection.columns,
        keys={name: str(type_) for name, type_ in selection.needed.items()},
        lookups=lookups,
        sample=sample,
        on_demand=tuple(dict(each.spec) for each in selection.computed),
    )


@cache
def _library() -> str:
    return metadata.version("featurestore")  # read from a file


def batch_of(gathered: Gathered) -> pa.Table:
    """Return requests as a table, a row for each entity.

    Raises:
        OnlineStoreError: a row that was found contradicts itself, so nobody could read it.
        OnDemandError: an on-demand function fails, so nobody was served.

    """
    plan, nows = gathered.plan, gathered.nows
    selection = plan.selection
    answers = plan.together(gathered.found, nows)
    features = {name: answers[view].features[feature] for name, view, feature in plan.places} | _computed(gathered)
    columns: dict[str, Any] = {REQUESTED_AT: pa.array(nows, pa.int64()).cast(UTC_TIME)}
    columns |= {name: _given(gathered, name, type_) for name, type_ in plan.needed.items()}
    columns |= {name: features[name] for name in selection.columns}
    for lookup, rows in zip(plan.lookups, answers, strict=True):
        columns[status_column(lookup.name)] = pa.DictionaryArray.from_arrays(pa.array(rows.statuses), _STATUSES).cast(pa.string())
        columns[event_time_column(lookup.name)] = rows.event_times
    return pa.table(columns)


def _computed(gathered: Gathered) -> dict[str, pa.Array]:
    """Return the on-demand features as they were computed for the requests."""
    parts = [vectors.plain_computed() for vectors in gathered.vectors]
    return {
        name: _values(type_, list(chain.from_iterable(part[name] for part in parts)))
        for name, type_ in gathered.plan.on_demand.types.items()
    }


def _given(gathered: Gathered, name: str, type_: ValueType) -> Any:
    """Return a column of requests: from the values as they were given, or from Arrow."""
    if gathered.is_plain:
        return pa.array(gathered.given[name], type_.arrow)
    chunks = chain.from_iterable(request.arrow[name].chunks for request in gathered.requests)
    return pa.chunked_array(list(chunks), type_.arrow)


def _values(type_: ValueType, values: list[Any]) -> pa.Array:
    item = (type_.item or type_).name
    plain = _PLAIN.get(item)
    if plain is None:
        return pa.array(values, type_.arrow)
    return pa.array(values, plain if type_.item is None else pa.list_(plain)).cast(type_.arrow)
