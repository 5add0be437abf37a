"""On-demand features (T9): the functions of a selection's on-demand views, evaluated over columns.

One evaluation serves lookups and training sets, with the same function objects. In numpy mode a function gets the rows that have no
null in any input, in arrays of the declared dtypes that it cannot write to; the other rows are null. In arrow mode it gets Arrow
arrays with their nulls. What it returns is checked and brought to the declared type:

    declared            returned
    Bool                booleans
    Int32, Int64        integers, as long as each fits
    Float32, Float64    floats, rounded to the nearest where the declared type is narrower; integers that are exact in it
    String, Bytes       texts, bytes
    Date, Timestamp     dates; times (naive ones are UTC) without digits beyond microseconds
    Array(T)            lists, arrays of one dimension, or one array of two, of what T takes

A function has to be pure and row by row: no row's value may depend on the other rows, since nobody promises which come together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.columns import Column, arrow_of, as_arrow, as_numpy, as_plain, dtype_of
from featurestore.errors import OnDemandError
from featurestore.fields import Field
from featurestore.registry.selection import Computed, Selection
from featurestore.types import is_of_kind

__all__ = ["Evaluation", "Function"]

_PLAIN_KINDS = "bif"
"""The kinds of dtypes whose arrays hold values as they are in plain lists."""

_COARSE = [np.dtype(f"M8[{unit}]") for unit in ("Y", "M", "W", "h", "m")]
"""Units that Arrow does not have."""

Function = Callable[[Any], Any]
Columns = dict[str, Column]


class Evaluation:
    """The on-demand views of a selection, compiled."""

    def __init__(self, selection: Selection, function_of: Callable[[Computed], Function]) -> None:
        """Take what gives the function of an on-demand view; its errors are raised here."""
        types = {**selection.request, **selection.all_types()}
        makers = {"numpy": _NumpyStep, "arrow": _ArrowStep}
        self._steps = [makers[each.mode](each, function_of(each), types) for each in selection.computed]
        self.types = {name: type_ for name, type_ in types.items() if name in {name for step in self._steps for name in step.gives}}
        self.inputs = tuple({column: None for step in self._steps for _, column, *_ in step.inputs if column not in self.types})
        """The columns that are needed: features of views as `view__feature`, and request columns."""

    def __bool__(self) -> bool:
        """Whether there is anything to evaluate."""
        return bool(self._steps)

    def arrow(self, given: Mapping[str, Column], rows: int, *, first_row: int = 0) -> dict[str, pa.Array]:
        """Return all on-demand features as Arrow arrays. `first_row` is what errors add to the places of rows."""
        return self.as_arrow(self.evaluated(given, rows, first_row=first_row))

    def evaluated(self, given: Mapping[str, Column], rows: int, *, first_row: int = 0) -> Columns:
        """Return all on-demand features, for `as_arrow` and `as_plain`."""
        columns: Columns = dict(given)
        with np.errstate(all="ignore"):  # infinity and NaN are values, wherever they come from
            for step in self._steps:
                step.run(columns, rows, first_row)
        return columns

    def as_arrow(self, found: Columns) -> dict[str, pa.Array]:
        """Return what was evaluated as Arrow arrays."""
        return {name: arrow_of(as_arrow(found[name], type_)) for name, type_ in self.types.items()}

    def as_plain(self, found: Columns) -> dict[str, list[Any]]:
        """Return what was evaluated as lists; dates are days and timestamps microseconds since 1970."""
        return {name: as_plain(found[name], type_) for name, type_ in self.types.items()}


class _FaultError(Exception):
    """What is wrong with what a function did; `is_of_a_row` if a row can be to blame."""

    def __init__(self, what: str, feature: str | None = None, *, is_of_a_row: bool = False) -> None:
        super().__init__(what)
        self.feature, self.is_of_a_row = feature, is_of_a_row


class _Step:
    """One on-demand view: its function, and where its inputs come from."""

    def __init__(self, computed: Computed, function: Function, types: Mapping[str, Any]) -> None:
        self.name, self.function = computed.name, function
        self.inputs = [(name, column, types[column], dtype_of(types[column])) for name, column in computed.inputs]
        self.fields = [(field, computed.column(field.name), dtype_of(field.type)) for field in computed.fields]
        self.gives = [column for _, column, _ in self.fields]
        self._names = {field.name for field in computed.fields}

    def run(self, columns: Columns, rows: int, first_row: int) -> None:
        """Add the features to the columns."""
        raise NotImplementedError

    def evaluated(self, inputs: Columns, rows: int) -> list[Column]:
        """Return the features of inputs in their declared types."""
        raise NotImplementedError

    def results(self, inputs: Columns, rows: int, row_of: Callable[[int], int]) -> list[Column]:
        """Return the features of inputs, or raise the error with the row that is to blame for it."""
        try:
            return self.evaluated(inputs, rows)
        except _FaultError as fault:
            row = self._blamed(inputs, rows) if fault.is_of_a_row else None
            of = f", feature {fault.feature!r}" if fault.feature else ""
            if row is not None:
                row = row_of(row)
                of += f", row {row}"
            message = f"on-demand view {self.name!r}{of}: {fault}"
            raise OnDemandError(message, name=self.name, feature=fault.feature, row=row) from fault.__cause__

    def _blamed(self, inputs: Columns, rows: int) -> int | None:
        """Find the first row that fails by itself; none if there is none, or if all seem to."""

        def fails(first: int, last: int) -> bool:
            try:
                self.evaluated({name: column[first:last] for name, column in inputs.items()}, last - first)
            except _FaultError:
                return True
            return False

        first, last = 0, rows
        while last - first > 1:
            middle = (first + last) // 2
            if fails(first, middle):
                last = middle
            elif fails(middle, last):
                first = middle
            else:
                return None
        return None if first == 0 and fails(rows - 1, rows) else first

    def called(self, inputs: Columns) -> Mapping[str, Any]:
        """Call the function, and check that it returns what the view declares."""
        try:
            given = self.function(inputs)
        except Exception as reason:
            raise _FaultError(f"{type(reason).__name__}: {reason}", is_of_a_row=True) from reason
        if type(given) is not dict and not isinstance(given, Mapping):
            raise _FaultError(f"returned a {type(given).__name__}; a mapping of columns is needed")
        if given.keys() != self._names:
            found, declared = (", ".join(map(repr, names)) for names in (given, self._names))
            raise _FaultError(f"returned {found or 'no column'}; the view declares {declared}")
        return given


class _NumpyStep(_Step):
    def run(self, columns: Columns, rows: int, first_row: int) -> None:
        inputs, is_null = {}, None
        for name, column, type_, dtype in self.inputs:
            given = columns[column]
            if dtype.kind in _PLAIN_KINDS and type(given) is list and None not in given:  # the common case, in half the time
                values = inputs[name] = np.array(given, dtype)
                columns[column] = values, None
                continue
            values, mask = made = as_numpy(given, type_)
            if type_.item is None:  # of arrays that hold a null, Arrow has more to say
                columns[column] = made
            if mask is not None:
                is_null = mask if is_null is None else is_null | mask
            inputs[name] = values
        if is_null is None:
            self._finish(columns, inputs, rows, lambda row: row + first_row)
            return
        places = np.flatnonzero(~is_null)
        passed: Columns = {name: values[places] for name, values in inputs.items()}
        found: Columns = {}
        self._finish(found, passed, len(places), lambda row: int(places[row]) + first_row)
        for _, column, dtype in self.fields:
            columns[column] = _spread(found[column], places, rows, dtype)

    def _finish(self, columns: Columns, inputs: Columns, rows: int, row_of: Callable[[int], int]) -> None:
        for values in inputs.values():
            values.setflags(write=False)
        found = self.results(inputs, rows, row_of) if rows else [(np.empty(0, dtype), None) for _, _, dtype in self.fields]
        columns |= dict(zip(self.gives, found, strict=True))

    def evaluated(self, inputs: Columns, rows: int) -> list[Column]:
        given = self.called(inputs)
        found = []
        for field, _, dtype in self.fields:
            values = given[field.name]
            is_plain = dtype.kind in _PLAIN_KINDS and type(values) is np.ndarray
            is_done = is_plain and values.dtype == dtype and values.shape == (rows,)
            found.append((values, None) if is_done else as_numpy(_cast(field, values, rows), field.type))
        return found


class _ArrowStep(_Step):
    def run(self, columns: Columns, rows: int, first_row: int) -> None:
        inputs = {name: arrow_of(as_arrow(columns[column], type_)) for name, column, type_, _ in self.inputs}
        found = (
            self.results(inputs, rows, lambda row: row + first_row)
            if rows
            else [pa.array([], field.type.arrow) for field, *_ in self.fields]
        )
        columns |= dict(zip(self.gives, found, strict=True))

    def evaluated(self, inputs: Columns, rows: int) -> list[Column]:
        given = self.called(inputs)
        return [_cast(field, given[field.name], rows) for field, *_ in self.fields]


def _spread(column: Column, places: Any, rows: int, dtype: Any) -> Column:
    """Put the values of some rows in their places, among nulls."""
    values, mask = column
    spread, is_null = np.empty(rows, dtype) if dtype.hasobject else np.zeros(rows, dtype), np.ones(rows, dtype=bool)
    spread[places] = values
    is_null[places] = False if mask is None else mask
    return spread, is_null


def _cast(field: Field, given: Any, rows: int) -> pa.Array:
    """Return what a function gave for a feature, in the declared type."""
    name, declared = field.name, field.type
    array = _array(field, given)
    if len(array) != rows:
        raise _FaultError(f"returned {len(array)} values for {rows} rows", name)
    if not pa.types.is_null(array.type) and not is_of_kind(array.type, declared):
        raise _FaultError(f"returned {_shown(given, array)}; the view declares {declared}", name)
    try:
        return array.cast(declared.arrow)
    except pa.ArrowException as reason:
        raise _FaultError(f"returned a value that {declared} cannot hold: {reason}", name, is_of_a_row=True) from reason


def _array(field: Field, given: Any) -> pa.Array:
    if isinstance(given, pa.Array | pa.ChunkedArray):
        array = arrow_of(given)
        return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    is_single = isinstance(given, str | bytes | Mapping | pa.Scalar) or (isinstance(given, np.ndarray) and not given.ndim)
    if is_single or not hasattr(given, "__len__"):
        raise _FaultError(f"returned a single {type(given).__name__}; a column with a value for each row is needed", field.name)
    try:
        if isinstance(given, np.ma.MaskedArray):
            return pa.array(given.data, mask=np.ma.getmaskarray(given))
        if field.type.item is not None:
            return pa.array(list(map(_times, given) if dtype_of(field.type.item).kind == "M" else given))
        if isinstance(given, list):
            return pa.array(given)
        values = np.asarray(given)
        return pa.array(values.astype("M8[s]") if values.dtype in _COARSE else values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as reason:
        raise _FaultError(f"returned what is no column of {field.type}: {reason}", field.name, is_of_a_row=True) from reason


def _times(value: Any) -> Any:
    """Return the times of one array as Arrow reads them within a list, where it takes neither days nor coarser units of numpy."""
    times = np.asarray(value)
    if times.dtype == "M8[D]":
        return times.tolist()
    return times.astype("M8[s]") if times.dtype in _COARSE else value


def _shown(given: Any, array: pa.Array) -> str:
    is_typed = isinstance(given, np.ndarray) and given.dtype.kind != "O"
    return f"an array of {given.dtype}" if is_typed else f"a column of {array.type}"
