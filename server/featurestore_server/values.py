"""Columns between JSON and Arrow, by the rules of the contract; exact in both directions."""

from __future__ import annotations

import base64
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import InputError
from featurestore.types import ValueType

__all__ = ["Writer", "are_finite", "check_lengths", "from_json", "has_json_form", "plain_writer", "to_json", "untyped_from_json"]

Writer = Callable[[list[Any]], list[Any]]
"""Makes the JSON values of a column of plain ones."""

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_KINDS: dict[type, str] = {bool: "booleans", int: "integers", float: "numbers", str: "texts", list: "arrays", dict: "objects"}
_NO_FRACTION = {"s": "", "ms": ".000", "us": ".000000", "ns": ".000000000"}
_EXACT_DOUBLE = 2**53


# From JSON


def from_json(name: str, type_: ValueType, values: Sequence[Any]) -> pa.Array:
    """Return a column of a declared type; InputError names the column and the value that does not fit."""
    parsed = []
    for row, value in enumerate(values):
        try:
            parsed.append(_typed(type_, value))
        except (ValueError, OverflowError) as reason:
            raise _misfit(name, type_, row, value) from reason
    try:
        return pa.array(parsed, type_.arrow)
    except (pa.ArrowException, ValueError, OverflowError) as reason:
        raise InputError(f"column {name!r} holds a value that is no {type_}: {reason}", name=name) from reason


def _typed(type_: ValueType, value: Any) -> Any:
    """Return the Python value of a JSON form; ValueError if it is not one of this type."""
    if value is not None and type_.item is not None and isinstance(value, list):
        return [_typed(type_.item, each) for each in value]
    if type_.name in ("Float32", "Float64") and isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    return type_.from_json(value)


def _misfit(name: str, type_: ValueType, row: int, value: Any) -> InputError:
    forms = {"Bytes": " (base64 in a text)", "Date": " (such as '2013-06-01')", "Timestamp": " (such as '2013-06-01T12:00:00Z')"}
    shown = reprlib.repr(value)
    return InputError(f"column {name!r} is {type_}{forms.get(type_.name, '')}; its value {row}, {shown}, is none", name=name)


def untyped_from_json(name: str, values: Sequence[Any]) -> pa.Array:
    """Return a column without a declared type, in the one that its values have; InputError if they are of several kinds."""
    kinds = {type(value) for value in values if value is not None}
    texts = {value for value in values if isinstance(value, str)} if str in kinds else set()
    try:
        if kinds == {list}:
            return _lists_from_json(name, values)
        if kinds == {int}:
            return _integers(values)
        if kinds & {int, float} and kinds <= {int, float, str} and texts <= _SPECIAL.keys():
            return _floats(values)
        if kinds <= {bool} or kinds <= {str}:
            return pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError) as reason:
        raise InputError(f"column {name!r} cannot be read: {reason}", name=name) from reason
    found = ", ".join(sorted(_KINDS[kind] for kind in kinds))
    raise InputError(f"column {name!r} holds {found}: one of integers, numbers, texts, booleans or arrays is needed", name=name)


def _lists_from_json(name: str, values: Sequence[Any]) -> pa.Array:
    items = untyped_from_json(name, [item for value in values if value is not None for item in value])
    ends = accumulate((len(value) if value is not None else 0 for value in values), initial=0)
    mask = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items, mask=mask)


def _integers(values: Sequence[Any]) -> pa.Array:
    is_signed = all(value is None or -(2**63) <= value < 2**63 for value in values)
    return pa.array(values, pa.int64() if is_signed else pa.uint64())


def _floats(values: Sequence[Any]) -> pa.Array:
    for value in values:
        if type(value) is int and abs(value) > _EXACT_DOUBLE and int(float(value)) != value:
            raise ValueError(f"the integer {value} stands among other numbers, whose type, double, cannot hold it")
    return pa.array([_SPECIAL[value] if isinstance(value, str) else value for value in values], pa.float64())


def check_lengths(columns: Mapping[str, Sequence[Any]]) -> None:
    """Raise InputError unless all columns have the same length."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        name = next(each for each, length in lengths.items() if length != next(iter(lengths.values())))
        raise InputError(f"columns differ in length: {shown}", name=name)


# To JSON


def has_json_form(type_: pa.DataType) -> bool:
    """Whether `to_json` knows the type."""
    if pa.types.is_struct(type_):
        return all(has_json_form(field.type) for field in type_) and len({field.name for field in type_}) == type_.num_fields
    if pa.types.is_dictionary(type_) or _is_list(type_):
        return has_json_form(type_.value_type)
    return _writer(type_) is not None


def to_json(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return the JSON values of a column whose type has a JSON form."""
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in to_json(chunk)]
    writer = _writer(column.type)
    assert writer is not None, column.type
    return writer(column)


def _writer(type_: pa.DataType) -> Callable[[pa.Array], list[Any]] | None:
    return next((writer for is_of, writer in _WRITERS if is_of(type_)), None)


def plain_writer(type_: ValueType) -> Writer | None:
    """Return what makes JSON values of a type's plain ones (`FeatureVectors.plain_features`), none where they are JSON."""
    item = type_.item or type_
    if item.name in ("Date", "Timestamp"):
        arrow = type_.arrow
        return lambda values: to_json(pa.array(values, arrow))
    writer = {"Float32": _plain_numbers, "Float64": _plain_numbers, "Bytes": _plain_bytes}.get(item.name)
    if writer is None or type_.item is None:
        return writer
    return lambda values: [None if value is None else writer(value) for value in values]


def are_finite(columns: Iterable[Sequence[Any]]) -> bool:
    """Whether columns of floats have nothing but numbers that JSON has; false if that takes a look at each one."""
    try:
        return math.isfinite(sum(chain.from_iterable(columns)))  # what is not finite would show in the sum
    except TypeError:  # a null
        return False


def _plain_numbers(values: list[Any]) -> list[Any]:
    return [value if value is None or math.isfinite(value) else _special(value) for value in values]


def _plain_bytes(values: list[Any]) -> list[Any]:
    return [None if value is None else base64.b64encode(value).decode("ascii") for value in values]


def _plain(column: pa.Array) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values


def _shown(column: pa.Array) -> list[Any]:
    return _plain(column.cast(pa.string()))


def _bytes(column: pa.Array) -> list[Any]:
    return _plain_bytes(column.to_pylist())


def _decoded(column: pa.Array) -> list[Any]:
    if len(column.dictionary) > len(column):  # a batch may use a few of very many
        with suppress(pa.ArrowNotImplementedError):  # Arrow cannot choose among views
            return to_json(column.dictionary.take(column.indices))
    values = to_json(column.dictionary)
    return [None if index is None else values[index] for index in column.indices.to_pylist()]


def _numbers(column: pa.Array) -> list[Any]:
    doubles = column.cast(pa.float64())
    values: list[Any] = doubles.to_pylist()
    return values if pc.all(pc.is_finite(doubles)).as_py() in (True, None) else _plain_numbers(values)


def _special(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _instants(column: pa.Array) -> list[Any]:
    unit = column.type.unit
    texts = np.datetime_as_string(_filled(column.cast(pa.int64())).view(f"M8[{unit}]")).tolist()
    return _with_nulls([text.removesuffix(_NO_FRACTION[unit]) + "Z" for text in texts], column)


def _dates(column: pa.Array) -> list[Any]:
    days = _filled(column.cast(pa.date32()).cast(pa.int32())).astype("M8[D]")
    return _with_nulls(np.datetime_as_string(days).tolist(), column)


def _filled(column: pa.Array) -> npt.NDArray[Any]:
    filled: npt.NDArray[Any] = column.fill_null(0).to_numpy()
    return filled


def _with_nulls(values: list[Any], column: pa.Array) -> list[Any]:
    if not column.null_count:
        return values
    return [value if is_valid else None for value, is_valid in zip(values, column.is_valid().to_pylist(), strict=True)]


def _lists(column: pa.Array) -> list[Any]:
    column = column.cast(pa.large_list(column.type.value_field))
    items = to_json(column.flatten())
    lengths = column.value_lengths().to_pylist()
    bounds = pairwise(accumulate((length or 0 for length in lengths), initial=0))
    return [None if length is None else items[first:last] for length, (first, last) in zip(lengths, bounds, strict=True)]


def _structs(column: pa.Array) -> list[Any]:
    names = [field.name for field in column.type]
    members: Iterable[tuple[Any, ...]] = zip(*map(to_json, column.flatten()), strict=True) if names else ((),) * len(column)
    valid = column.is_valid().to_pylist()
    return [dict(zip(names, row, strict=True)) if is_valid else None for row, is_valid in zip(members, valid, strict=True)]


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_binary(type_: pa.DataType) -> bool:
    variable = pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)
    return bool(variable or pa.types.is_fixed_size_binary(type_))


_WRITERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[Any]]], ...] = (
    (pa.types.is_null, _plain),
    (pa.types.is_boolean, _plain),
    (pa.types.is_integer, _plain),
    (_is_text, _plain),
    (pa.types.is_floating, _numbers),
    (pa.types.is_timestamp, _instants),
    (pa.types.is_date, _dates),
    (_is_binary, _bytes),
    (_is_list, _lists),
    (pa.types.is_struct, _structs),
    (pa.types.is_dictionary, _decoded),
    (pa.types.is_decimal, _shown),
    (pa.types.is_time, _shown),
)
