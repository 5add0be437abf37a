"""Feature vectors: the answer to an online lookup, as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.errors import IncompleteError, InputError, known_names
from featurestore.online.store import OnlineRows, OnlineStore, Status
from featurestore.registry.selection import Selection
from featurestore.types import ValueType, as_key_column, pandas_type

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FeatureVectors", "look_up"]


@dataclass(frozen=True)
class FeatureVectors:
    """Feature vectors, a row for each entity asked for, in the order asked.

    Columns are the request's, then the features in the service's order as `view__feature`, in their declared types; absent values
    are null. `statuses` and `event_times` say per view what became of each row.
    """

    columns: pa.Table
    features: tuple[str, ...]
    statuses: Mapping[str, Sequence[Status]]
    event_times: Mapping[str, pa.Array]

    def to_arrow(self) -> pa.Table:
        """Return the vectors as an Arrow table."""
        return self.columns

    def to_pandas(self) -> pd.DataFrame:
        """Return the vectors as a pandas frame. Integers and booleans are nullable, so an int64 beside a null stays one."""
        return self.columns.to_pandas(types_mapper=pandas_type)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the vectors as lists by column."""
        return self.columns.to_pydict()


def look_up(store: OnlineStore, selection: Selection, entities: Mapping[str, Sequence[Any]], *, now: int) -> FeatureVectors:
    """Return the feature vectors of some entities, given as one list of values for each key column, all of the same length.

    Raises:
        InputError: a key column is missing, unknown, of another length or holds a value of a wrong type, or a view is not online.
        IncompleteError: a view has never been loaded online.

    """
    for lookup in selection.lookups:
        if not lookup.version.view.online:
            raise InputError(f"feature view {lookup.name!r} is not served online (online=False)", name=lookup.name)
    keys = _key_columns(selection.keys, entities)
    for lookup in selection.lookups:
        if lookup.version.loaded is None:
            raise IncompleteError(f"feature view {lookup.name!r} is not loaded online yet; materialize it")
    wanted = [(lookup.version, [keys[column] for column in lookup.key_columns]) for lookup in selection.lookups]
    answers = dict(zip([lookup.name for lookup in selection.lookups], store.read(wanted, now=now), strict=True))
    columns: dict[str, pa.Array | pa.ChunkedArray] = dict(keys)
    found = {
        lookup.column(field.name): column
        for lookup in selection.lookups
        for field, column in zip(lookup.version.view.features, answers[lookup.name].features, strict=True)
    }
    columns |= {name: found[name] for name in selection.columns}
    return FeatureVectors(
        pa.table(columns),
        selection.columns,
        {name: _statuses(rows) for name, rows in answers.items()},
        {name: rows.event_times for name, rows in answers.items()},
    )


def _statuses(rows: OnlineRows) -> list[Status]:
    return [Status(status) for status in rows.statuses.tolist()]


def _key_columns(wanted: Mapping[str, ValueType], given: Mapping[str, Sequence[Any]]) -> dict[str, pa.ChunkedArray]:
    for name in given:
        if name not in wanted:
            raise InputError(f"{name!r} is no key of the features asked for; {known_names(name, wanted)}", name=name)
    for name in wanted:
        if name not in given:
            raise InputError(f"key {name!r} is missing; the keys are {', '.join(map(repr, wanted))}", name=name)
    columns = {name: _key_column(name, type_, given[name]) for name, type_ in wanted.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise InputError(f"key columns differ in length: {shown}")
    return columns


def _key_column(name: str, type_: ValueType, values: Sequence[Any]) -> pa.ChunkedArray:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise InputError(f"key {name!r} needs a list of values, one for each row; got {type(values).__name__}", name=name)
    try:
        column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as reason:
        raise InputError(f"key {name!r} holds a value that is no {type_}: {reason}", name=name) from reason
    return as_key_column(column, name, type_)
