"""Feature vectors: what a lookup asks for, compiled once, and the answer to it, as columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pyarrow as pa

from featurestore.columns import plain_of
from featurestore.errors import IncompleteError, InputError, known_names
from featurestore.on_demand import Evaluation, Function
from featurestore.online.answers import OnlineRows
from featurestore.online.fetching import Found
from featurestore.online.keys import KeyCodec
from featurestore.online.rows import RowCodec, is_deleted
from featurestore.online.status import Status
from featurestore.online.store import features_of, keys_of, rows_of, ttl_of
from featurestore.registry.selection import Computed, Lookup, Selection
from featurestore.types import ValueType, as_key_column, as_request_column, pandas_type

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FeatureVectors", "LookupPlan", "Request"]

_FEW_ROWS = 256  # where one Arrow call for each column begins to cost less than one Python call for each value


class FeatureVectors:
    """Feature vectors, a row for each entity asked for, in the order asked.

    Columns are the request's, then the features in the service's order as `view__feature`, in their declared types; absent values
    are null. `statuses` and `event_times` say per view what became of each row.
    """

    def __init__(self, plan: LookupPlan, request: Request, found: Found, now: int) -> None:
        """Take what was found under the request's names; OnlineStoreError for a foreign row, and for one that contradicts itself.

        The content of rows is looked at only for one entity; of more, where it is read.
        """
        self._plan, self._request, self._found, self._now = plan, request, found, now
        self._single = plan.single(found, now) if request.rows == 1 else None
        if self._single is None:
            _ = self._answers  # which are checked now

    @cached_property
    def _answers(self) -> list[OnlineRows]:
        rows, found, now = self._request.rows, self._found, self._now
        return [
            OnlineRows(codec, ttl, found[place * rows : (place + 1) * rows], now)
            for place, (_, _, codec, ttl) in enumerate(self._plan.parts)
        ]

    @cached_property
    def _plain(self) -> list[list[Any]]:
        """The columns that are looked up, in the order of the plan's places."""
        if self._single is not None:
            return self._single
        plains = [rows.plain for rows in self._answers]
        return [plains[view][feature] for _, view, feature in self._plan.places]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features' columns."""
        return self._plan.selection.columns

    @cached_property
    def columns(self) -> pa.Table:
        """The vectors as an Arrow table."""
        found: dict[str, Any] = dict(self._request.arrow)
        found |= {name: self._answers[view].features[feature] for name, view, feature in self._plan.places}
        if self._plan.on_demand:
            found |= self._plan.on_demand.as_arrow(self._computed)
        return pa.table({name: found[name] for name in (*self._request.arrow, *self.features)})

    @cached_property
    def statuses(self) -> Mapping[str, Sequence[Status]]:
        """The status of each row, by view."""
        return {lookup.name: rows.status_list for lookup, rows in zip(self._plan.lookups, self._answers, strict=True)}

    @cached_property
    def event_times(self) -> Mapping[str, pa.Array]:
        """The event time of each row, by view; null where nothing was found, and in static views."""
        return {lookup.name: rows.event_times for lookup, rows in zip(self._plan.lookups, self._answers, strict=True)}

    def plain_features(self) -> dict[str, list[Any]]:
        """Return the features as lists by column; dates are days and timestamps microseconds since 1970."""
        found = dict(zip(self._plan.looked_up, self._plain, strict=True))
        if not self._plan.on_demand:
            return found
        found |= self._plan.on_demand.as_plain(self._computed)
        return {name: found[name] for name in self.features}

    @cached_property
    def _computed(self) -> dict[str, Any]:
        """The on-demand features, evaluated once: what is logged is what was served."""
        return self._plan.on_demand.evaluated(self._inputs(), self._request.rows)

    def arrays(self) -> dict[str, npt.NDArray[Any] | list[Any]] | None:
        """Return the features by column as `OnlineRows.arrays` does; none if that of a view is none, or there is but one entity."""
        if not self._plan.is_numeric or self._single is not None:
            return None
        columns = []
        for rows in self._answers:
            arrays = rows.arrays()
            if arrays is None:
                return None
            columns.append(arrays)
        return {name: columns[view][feature] for name, view, feature in self._plan.places}

    def _inputs(self) -> dict[str, Any]:
        """Return what on-demand views take, in the form in which few or many rows come fastest."""
        request, plan = self._request, self._plan
        columns: Mapping[str, Any] = request.plain if request.is_plain else request.arrow
        inputs = {name: columns[name] for name in plan.taken}
        for name, view, feature in plan.inputs:
            rows = self._answers[view]
            inputs[name] = rows.plain[feature] if request.is_plain else rows.features[feature]
        return inputs

    def plain_computed(self) -> dict[str, list[Any]]:
        """Return the on-demand features as `plain_features` does, those that are only inputs included."""
        return self._plan.on_demand.as_plain(self._computed)

    def to_arrow(self) -> pa.Table:
        """Return the vectors as an Arrow table."""
        return self.columns

    def to_pandas(self) -> pd.DataFrame:
        """Return the vectors as a pandas frame. Integers and booleans are nullable, so an int64 beside a null stays one."""
        return self.columns.to_pandas(types_mapper=pandas_type)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the vectors as lists by column."""
        given, is_plain = self._request.given, self._plan.is_plain
        columns: dict[str, list[Any]] = {}
        for name in self._plan.needed:
            columns[name] = list(given[name]) if name in given else self._request.arrow[name].to_pylist()
        if self._plan.on_demand:
            return columns | {name: self.columns[name].to_pylist() for name in self.features}
        for (name, view, feature), plain in zip(self._plan.places, self._plain, strict=True):
            columns[name] = list(plain) if is_plain[view][feature] else self._answers[view].features[feature].to_pylist()
        return columns


@dataclass(eq=False)  # one that is frozen takes three times as long to make, which a lookup would feel
class Request:
    """Entities that are asked for: `given` as Python values where these are of the very types declared, and the keys of their rows.

    `names` holds the keys of all lookups, one lookup after the other, each with a key for each of `rows` rows, none for a null.
    `plain` holds the columns that on-demand views take, dates as days and timestamps as microseconds since 1970, if `is_plain`.
    """

    plan: LookupPlan
    entities: Mapping[str, Any]
    given: Mapping[str, Sequence[Any]]
    names: Sequence[bytes | None]
    rows: int
    plain: Mapping[str, list[Any]]
    is_plain: bool

    @cached_property
    def arrow(self) -> dict[str, pa.ChunkedArray]:
        """The columns in their declared types."""
        return _request_columns(self.plan, self.entities)


class LookupPlan:
    """A selection, compiled: what does not depend on the entities is found once."""

    def __init__(self, selection: Selection, function_of: Callable[[Computed], Function]) -> None:
        """Take what gives the function of an on-demand view; CodeError if it cannot be had."""
        self.selection = selection
        self.lookups = selection.lookups
        self.keys = selection.keys
        self.needed = selection.needed
        self.on_demand = Evaluation(selection, function_of)
        self.parts: list[tuple[Lookup, KeyCodec, RowCodec, int | None]] = [
            (lookup, keys_of(lookup.version), rows_of(lookup.version), ttl_of(lookup.version)) for lookup in self.lookups
        ]
        """Each lookup, with the codecs of its keys and rows and its TTL in microseconds."""
        fields = [features_of(lookup.version) for lookup in self.lookups]
        by_column = {
            lookup.column(field.name): (view, feature)
            for view, lookup in enumerate(self.lookups)
            for feature, field in enumerate(fields[view])
        }
        self.places = [(name, *by_column[name]) for name in selection.columns if name in by_column]
        """Each column that is looked up, the place of its lookup, and the place of its feature in that."""
        self.looked_up = [name for name, _, _ in self.places]
        """The names of these."""
        firsts = [0, *itertools.accumulate(map(len, fields))]
        self._flat = [firsts[view] + feature for _, view, feature in self.places]
        self.is_numeric = not self.on_demand and all(codec.is_numeric for _, _, codec, _ in self.parts)
        """Whether there is nothing but numbers and booleans to look up, and nothing to compute."""
        self.inputs = [(name, *by_column[name]) for name in self.on_demand.inputs if name in by_column]
        """The same of the columns that on-demand views take."""
        self.taken = [name for name in self.on_demand.inputs if name not in by_column]
        """The request columns that they take."""
        self._plains = [(name, plain_of(selection.request[name])) for name in selection.request]
        self.is_plain = [[_is_plain(field.type) for field in each] for each in fields]
        self._is_ready = all(each.version.view.online and each.version.loaded is not None for each in self.lookups)

    def request(self, entities: Mapping[str, Sequence[Any]]) -> Request:
        """Return what is asked for some entities, given as one list of values for each column needed, all of the same length.

        Raises:
            InputError: a column is missing, unknown, of another length or holds a wrong value, or a view is not online.
            IncompleteError: a view has never been loaded online.

        """
        if self._is_ready and (ready := self._plain_request(entities)) is not None:
            return ready
        for lookup in self.lookups:
            if not lookup.version.view.online:
                raise InputError(f"feature view {lookup.name!r} is not served online (online=False)", name=lookup.name)
        request = self._plain_request(entities) or self._arrow_request(entities)
        for lookup in self.lookups:
            if lookup.version.loaded is None and not lookup.version.view.is_pushed:
                raise IncompleteError(f"feature view {lookup.name!r} is not loaded online yet; materialize it")
        return request

    def _plain_request(self, entities: Mapping[str, Sequence[Any]]) -> Request | None:
        """Return the request for lists of few values of the very types; none for others, which Arrow converts or refuses."""
        if entities.keys() != self.needed.keys() or not all(type(values) in (list, tuple) for values in entities.values()):
            return None
        given = {name: list(values) for name, values in entities.items()}
        lengths = {len(values) for values in given.values()}
        if len(lengths) != 1 or (rows := lengths.pop()) > _FEW_ROWS:
            return None
        names: list[bytes | None] = []
        known: dict[tuple[str, ...], list[bytes | None]] = {}
        for lookup, keys, _, _ in self.parts:
            endings = known.get(lookup.key_columns)
            if endings is None:
                endings = keys.endings([given[column] for column in lookup.key_columns])
                if endings is None:
                    return None
                known[lookup.key_columns] = endings
            names += keys.ending_in(endings)
        plain: dict[str, list[Any]] = {}
        for name, converted in self._plains:
            column = converted(given[name])
            if column is None:
                return None
            plain[name] = column
        return Request(self, given, given, names, rows, plain, is_plain=True)

    def _arrow_request(self, entities: Mapping[str, Sequence[Any]]) -> Request:
        columns = _request_columns(self, entities)
        names: list[bytes | None] = []
        known: dict[tuple[str, ...], list[bytes | None]] = {}
        for lookup, keys, _, _ in self.parts:
            if lookup.key_columns not in known:
                known[lookup.key_columns] = keys.endings_of([columns[column] for column in lookup.key_columns])
            names += keys.ending_in(known[lookup.key_columns])
        return Request(self, columns, {}, names, len(next(iter(columns.values()))), {}, is_plain=False)

    def together(self, found: Sequence[Found], nows: Sequence[int]) -> list[OnlineRows]:
        """Return what was found for several requests, for each lookup, as one answer for each; `nows` is for each row."""
        return [OnlineRows(codec, ttl, values, nows) for (_, _, codec, ttl), values in zip(self.parts, found, strict=True)]

    def answer(self, request: Request, found: Found, *, now: int) -> FeatureVectors:
        """Return the vectors that what was found under the request's names makes as of `now`."""
        return FeatureVectors(self, request, found, now)

    def single(self, found: Found, now: int) -> list[list[Any]] | None:
        """Return the plain columns of one entity, in the order of the places: what `OnlineRows` does, in a fifth of its time.

        None where on-demand views take part, and where a row is none of its view.
        """
        if self.on_demand:
            return None
        values: list[Any] = []
        for row, (_, _, codec, ttl) in zip(found, self.parts, strict=True):
            one = [None] * len(codec.fields) if row is None or is_deleted(row) else codec.one(row)
            if one is None:
                return None
            if ttl is not None and row is not None and int.from_bytes(row[1:9], "little", signed=True) < now - ttl:
                one = [None] * len(one)
            values += one
        return [[values[place]] for place in self._flat]


def _is_plain(type_: ValueType) -> bool:
    """Whether a value has the same Python form in Arrow and in plain lists."""
    return (type_.item or type_).name not in ("Date", "Timestamp")


def _request_columns(plan: LookupPlan, given: Mapping[str, Sequence[Any]]) -> dict[str, pa.ChunkedArray]:
    wanted, kind = plan.needed, {name: "key" if name in plan.keys else "request column" for name in plan.needed}
    for name in given:
        if name not in wanted:
            raise InputError(f"{name!r} is no key of the features asked for; {known_names(name, wanted)}", name=name)
    for name in wanted:
        if name not in given:
            raise InputError(f"{kind[name]} {name!r} is missing; {_known_columns(plan)}", name=name)
    columns = {name: _request_column(name, type_, given[name], kind[name]) for name, type_ in wanted.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise InputError(f"{'request' if plan.selection.request else 'key'} columns differ in length: {shown}")
    return columns


def _known_columns(plan: LookupPlan) -> str:
    named = (("keys", list(plan.keys)), ("request columns", [name for name in plan.needed if name not in plan.keys]))
    return ", ".join(f"the {what} are {', '.join(map(repr, names))}" for what, names in named if names)


def _request_column(name: str, type_: ValueType, values: Sequence[Any], kind: str) -> pa.ChunkedArray:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise InputError(f"{kind} {name!r} needs a list of values, one for each row; got {type(values).__name__}", name=name)
    try:
        column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as reason:
        raise InputError(f"{kind} {name!r} holds a value that is no {type_}: {reason}", name=name) from reason
    return as_key_column(column, name, type_) if kind == "key" else as_request_column(column, name, type_)
