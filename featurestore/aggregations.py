"""Aggregations over time windows, as they are declared (T6); `offline/windows.py` computes them.

The value of an aggregation at `t` is that of a function over the entity's events with `T - window < event time <= T` that were
known at `T`, where `T` is `t - delay`, rounded down to a multiple of the view's refresh. Nulls are ignored, as in SQL.

    function        gives         of a window without values   takes
    count           Int64         0                            any type; "*" counts events
    count_distinct  Int64         0                            any type but arrays
    sum             Int64 of integers, Float64 of floats; 0    numbers
    mean            Float64       null                         numbers
    stddev          Float64       null, also of one value      numbers; the sample's
    min, max        the column's  null                         any type but arrays
    first, last     the column's  null                         any type; in T4's order
    last_n          Array of it   null                         any type but arrays; the last `n`, oldest first
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from featurestore import fields
from featurestore.clock import duration_text
from featurestore.errors import known_names
from featurestore.fields import Column, Duration, Name, check_distinct, checked_name, definition, is_name, sequence
from featurestore.types import Array, Bool, Float32, Float64, Int32, Int64, ValueType

__all__ = ["ALL", "FUNCTIONS", "Aggregation", "Function"]

ALL = "*"
"""The column that stands for the event itself."""

Function = Literal["count", "count_distinct", "sum", "mean", "stddev", "min", "max", "first", "last", "last_n"]
FUNCTIONS: tuple[str, ...] = get_args(Function)

_INTEGERS = (Int32, Int64)
_NUMBERS = (*_INTEGERS, Float32, Float64)
_OF_NUMBERS = ("sum", "mean", "stddev")
_OF_ARRAYS = ("count", "first", "last")


def _known_function(function: str) -> str:
    if isinstance(function, str) and function not in FUNCTIONS:
        raise ValueError(f"no function {function!r}; {known_names(function, FUNCTIONS)}")
    return function


@definition
class Aggregation:
    """A function of a column over one or several time windows; it gives a feature for each window.

    `sql` is a row-local expression that gives the column's values, in place of the source's column of that name; `where` a
    condition: rows that do not meet it count as null. `n` is for `last_n`. `type` is the type of the column's values, by default
    that of the source. Features are named `<column>_<function>_<window>`, as `delay_mean_7d`, `delay_last_5_7d`, `count_1d` for
    `"*"`; `name` replaces the part before the window.
    """

    column: Column
    function: Annotated[Function, BeforeValidator(_known_function)]
    windows: Annotated[tuple[Duration, ...], BeforeValidator(sequence)]
    _: KW_ONLY
    n: Annotated[int, Field(ge=1, le=10_000)] | None = None
    sql: str | None = None
    where: str | None = None
    name: Name | None = None
    type: ValueType | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            column: str,
            function: str,
            windows: Sequence[str | dt.timedelta],
            *,
            n: int | None = None,
            sql: str | None = None,
            where: str | None = None,
            name: str | None = None,
            type: ValueType | None = None,  # noqa: A002 (the field's name)
        ) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Aggregation:
        if self.column == ALL and (self.function != "count" or self.sql is not None or self.type is not None):
            raise ValueError(f"column '*' is the event itself: it can be counted, and has no sql and no type ({self.function})")
        if (self.n is None) == (self.function == "last_n"):
            raise ValueError("last_n needs n, the number of values" if self.n is None else f"n is for last_n, not {self.function}")
        if not self.windows:
            raise ValueError("an aggregation needs at least one window")
        for name in self.feature_names:
            checked_name(name)
        check_distinct("window", map(duration_text, self.windows))
        self._check_type()
        return self

    def _check_type(self) -> None:
        if self.type is None:
            return
        if self.function in _OF_NUMBERS and self.type not in _NUMBERS:
            raise ValueError(f"{self.function} needs numbers, and column {self.column!r} is {self.type}")
        if self.type.item is not None and self.function not in _OF_ARRAYS:
            raise ValueError(f"{self.function} cannot take arrays, and column {self.column!r} is {self.type}")

    @property
    def part(self) -> str:
        """The part of the features' names before the window."""
        if self.name is not None:
            return self.name
        function = self.function if self.n is None else f"last_{self.n}"
        return function if self.column == ALL else f"{self.column}_{function}"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the features, one for each window."""
        return tuple(f"{self.part}_{duration_text(window)}" for window in self.windows)

    @property
    def features(self) -> tuple[fields.Field, ...]:
        """The features, one for each window."""
        return tuple(fields.Field(name, self._result) for name in self.feature_names)

    @property
    def stored_name(self) -> str:
        """The name under which the view's table stores the column.

        Rows that `where` leaves out are null in it, so a condition makes a column of its own.
        """
        return self.column if self.where is None and is_name(self.column) else self.part

    @property
    def input(self) -> fields.Field | None:
        """The column that the view's table stores for it; none where events themselves are counted."""
        if self.column == ALL:
            return None if self.where is None else fields.Field(self.stored_name, Bool)
        return fields.Field(self.stored_name, self._values)

    @property
    def _values(self) -> ValueType:
        assert self.type is not None, "the repo resolves the types of columns"
        return self.type

    @property
    def _result(self) -> ValueType:
        if self.function in ("count", "count_distinct"):
            return Int64
        if self.function in ("mean", "stddev"):
            return Float64
        if self.function == "sum":
            return Int64 if self._values in _INTEGERS else Float64
        return Array(self._values) if self.function == "last_n" else self._values
