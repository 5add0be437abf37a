"""The parts that definitions are made of: checked names and durations, and fields with their types."""

from __future__ import annotations

import datetime as dt
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, PlainSerializer
from pydantic import Field as Schema
from pydantic.dataclasses import dataclass

from featurestore.clock import duration_text, from_micros, parse_duration, parse_instant
from featurestore.types import ValueType

__all__ = [
    "Code",
    "Column",
    "Duration",
    "Field",
    "Fields",
    "Function",
    "Instant",
    "Name",
    "Tags",
    "check_cases",
    "check_distinct",
    "definition",
]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")


def is_name(text: str) -> bool:
    """Whether a text can be the name of a definition or a feature."""
    return _NAME.fullmatch(text) is not None and "__" not in text


def checked_name(name: str) -> str:
    """Return a name as it is; ValueError if it cannot be one."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: a letter, then letters, digits and underscores, 63 at most")
    if "__" in name:
        raise ValueError(f"{name!r} holds '__', which separates view and feature in output columns")
    return name


def _checked_column(name: str) -> str:
    if not name or "\0" in name:
        raise ValueError("a column name is a text of at least one character without NUL")
    return name


def _positive(duration: dt.timedelta) -> dt.timedelta:
    if duration <= dt.timedelta(0):
        raise ValueError("the duration must be longer than nothing")
    return duration


def pairs(value: Any) -> Any:
    """Return a mapping as a tuple of pairs, anything else as it is."""
    return tuple(value.items()) if isinstance(value, Mapping) else value


def sequence(value: Any) -> Any:
    """Return what holds several things as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else value


def _instant(value: Any) -> dt.datetime:
    return from_micros(parse_instant(value))


Name = Annotated[str, AfterValidator(checked_name)]
Column = Annotated[str, AfterValidator(_checked_column)]
Duration = Annotated[
    dt.timedelta,
    BeforeValidator(parse_duration),
    AfterValidator(_positive),
    PlainSerializer(duration_text, when_used="json"),
]
Instant = Annotated[dt.datetime, BeforeValidator(_instant)]
Tags = Annotated[tuple[tuple[str, str], ...], BeforeValidator(pairs), AfterValidator(lambda given: tuple(sorted(given)))]

definition = dataclass(frozen=True, config=ConfigDict(extra="forbid"))

# What a constructor takes is wider than what it keeps (`ttl="6h"`, a list for a tuple), so type checkers and editors get
# signatures of their own; `tests/test_definitions.py` holds them against the fields.


@definition
class Field:
    """A column and its type: a feature, or one column of a join key."""

    name: Name
    type: ValueType

    if TYPE_CHECKING:

        def __init__(self, name: str, type: ValueType) -> None: ...  # noqa: A002 (the field's name)


def _fields(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(Field(name, type_) for name, type_ in value.items())
    return sequence(value)


Fields = Annotated[tuple[Field, ...], BeforeValidator(_fields)]
GivenFields = Mapping[str, ValueType] | Sequence[Field]


@definition
class Code:
    """Where the code of an on-demand view is, and which it is (`functions.py`).

    `file` is relative to the repo, `function` a name in it, `hash` that of all repo code that the function reaches, `copy` the name
    of the kept copy of the repo's files.
    """

    file: str
    function: str
    hash: str
    copy: str

    if TYPE_CHECKING:

        def __init__(self, file: str, function: str, hash: str, copy: str) -> None: ...  # noqa: A002 (the field's name)


def _checked_function(function: Any) -> Any:
    if not callable(function) or not hasattr(function, "__qualname__"):
        raise ValueError(f"{function!r} is no function")
    try:
        inspect.signature(function).bind({})
    except TypeError:
        raise ValueError(f"{function.__qualname__} must take one argument, the mapping of its input columns") from None
    return function


# A function is no data: specs leave it out, and say where it is instead.
Function = Annotated[Any, AfterValidator(_checked_function), Schema(exclude=True)]


def check_distinct(what: str, names: Iterable[str]) -> None:
    """Raise ValueError if a name stands twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is named twice")
        seen.add(name)


def check_cases(columns: Iterable[str]) -> None:
    """Raise ValueError if two names of columns differ in case alone, which neither DuckDB nor a Delta table tells apart."""
    seen: dict[str, str] = {}
    for name in columns:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(f"columns {other!r} and {name!r} differ in upper and lower case alone")
