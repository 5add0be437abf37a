"""Value types of keys and features, and their Arrow, DuckDB, numpy and JSON forms.

    type        Arrow                DuckDB                    online row            JSON
    Bool        bool                 BOOLEAN                   1 byte                true, false
    Int32       int32                INTEGER                   4 bytes               number
    Int64       int64                BIGINT                    8 bytes               number
    Float32     float                FLOAT                     4 bytes               number
    Float64     double               DOUBLE                    8 bytes               number
    String      string               VARCHAR                   tail, UTF-8           string
    Bytes       binary               BLOB                      tail                  base64 string
    Date        date32               DATE                      4 bytes, days         "2013-06-01"
    Timestamp   timestamp[us, UTC]   TIMESTAMP WITH TIME ZONE  8 bytes, microseconds "2013-06-01T12:00:00Z"
    Array(T)    list<T>              T[]                       tail                  array

A declared type is a promise about every value of the column: a source may hold a narrower type (INTEGER for Int64), never a
wider one, so that nothing is rounded or cut on the way.
"""

from __future__ import annotations

import base64
import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import core_schema

from featurestore.clock import from_micros, parse_instant
from featurestore.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

NULL = '"NULL"'
"""The DuckDB type of a column that was written without any value."""

_ARRAY = re.compile(r"(.+)\[\d*\]", re.DOTALL)

__all__ = [
    "Array",
    "Bool",
    "Bytes",
    "Date",
    "Float32",
    "Float64",
    "Int32",
    "Int64",
    "String",
    "Timestamp",
    "ValueType",
]


@dataclass(frozen=True)
class ValueType:
    """The type of a key or a feature; compared by value and written as its name (`Int64`, `Array(Float32)`).

    `sql` is the DuckDB type, `numpy` the little-endian dtype of its fixed-width form ("" where the width varies), `accepts` the
    DuckDB types of a source column that hold only values of this type.
    """

    name: str
    sql: str
    numpy: str
    accepts: frozenset[str]
    item: ValueType | None = None

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    @property
    def is_fixed_width(self) -> bool:
        """Whether every value takes the same number of bytes in an online row."""
        return bool(self.numpy)

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type that columns of this type have, always."""
        import pyarrow as pa

        if self.item is not None:
            return pa.list_(self.item.arrow)
        return {
            "Bool": pa.bool_(),
            "Int32": pa.int32(),
            "Int64": pa.int64(),
            "Float32": pa.float32(),
            "Float64": pa.float64(),
            "String": pa.string(),
            "Bytes": pa.binary(),
            "Date": pa.date32(),
            "Timestamp": pa.timestamp("us", "UTC"),
        }[self.name]

    def accepts_sql(self, sql_type: str) -> bool:
        """Whether a source column of this DuckDB type holds only values of this type; one of nulls alone does."""
        if sql_type == NULL:
            return True
        if self.item is None:
            is_enum = sql_type.startswith("ENUM(") and sql_type.endswith(")")
            return sql_type in self.accepts or (is_enum and "VARCHAR" in self.accepts)
        element = _ARRAY.fullmatch(sql_type)
        return element is not None and self.item.accepts_sql(element[1])

    def to_json(self, value: Any) -> Any:
        """Return the JSON form of one Python value of this type."""
        if value is None:
            return None
        if self.item is not None:
            return [self.item.to_json(each) for each in value]
        return _TO_JSON[self.name](value) if self.name in _TO_JSON else value

    def from_json(self, value: Any) -> Any:
        """Return the Python value of a JSON form; ValueError if it is not one of this type."""
        if value is None:
            return None
        kinds: tuple[type, ...] = (list,) if self.item is not None else _JSON_KINDS[self.name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{value!r} is no {self}")
        if self.item is not None:
            return [self.item.from_json(each) for each in cast("list[Any]", value)]
        return _FROM_JSON[self.name](cast("str", value)) if self.name in _FROM_JSON else value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            value_type, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


_TO_JSON: dict[str, Callable[[Any], Any]] = {
    "Bytes": lambda value: base64.b64encode(value).decode("ascii"),
    "Date": dt.date.isoformat,
    "Timestamp": lambda value: value.isoformat().replace("+00:00", "Z"),
}
_JSON_KINDS: dict[str, tuple[type, ...]] = {
    "Bool": (bool,),
    "Int32": (int,),
    "Int64": (int,),
    "Float32": (int, float),
    "Float64": (int, float),
    "String": (str,),
    "Bytes": (str,),
    "Date": (str,),
    "Timestamp": (str,),
}
_FROM_JSON: dict[str, Callable[[str], Any]] = {
    "Bytes": lambda value: base64.b64decode(value, validate=True),
    "Date": dt.date.fromisoformat,
    "Timestamp": lambda value: from_micros(parse_instant(value)),
}


def _scalar(name: str, sql: str, numpy: str, *narrower: str) -> ValueType:
    return ValueType(name, sql, numpy, frozenset({sql, *narrower}))


_INT32 = ("SMALLINT", "TINYINT", "USMALLINT", "UTINYINT")
Bool = _scalar("Bool", "BOOLEAN", "?")
Int32 = _scalar("Int32", "INTEGER", "<i4", *_INT32)
Int64 = _scalar("Int64", "BIGINT", "<i8", "INTEGER", "UINTEGER", *_INT32)
Float32 = _scalar("Float32", "FLOAT", "<f4", *_INT32)
Float64 = _scalar("Float64", "DOUBLE", "<f8", "FLOAT", "INTEGER", "UINTEGER", *_INT32)
String = _scalar("String", "VARCHAR", "")
Bytes = _scalar("Bytes", "BLOB", "")
Date = _scalar("Date", "DATE", "<i4")
Timestamp = _scalar("Timestamp", "TIMESTAMP WITH TIME ZONE", "<i8", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "DATE")

KEY_TYPES = (String, Int64, Int32, Bytes, Bool, Date, Timestamp)
"""Types that a join key may have: those whose equality means the same everywhere (floats do not qualify)."""

SCALARS = (Bool, Int32, Int64, Float32, Float64, String, Bytes, Date, Timestamp)
"""All types but arrays; of those that hold a source column's values, the first is its own."""

_SCALARS = {each.name: each for each in SCALARS}


def Array(item: ValueType) -> ValueType:  # noqa: N802 (reads as a type in definitions)
    """Return the type of lists of `item`, such as embeddings: `Array(Float32)`. Lists of lists are not supported."""
    if item.item is not None:
        raise ValueError(f"an array of {item} is not supported; flatten it to Array({item.item})")
    return ValueType(f"Array({item})", f"{item.sql}[]", "", frozenset(), item)


def as_key_column(column: pa.Array | pa.ChunkedArray, name: str, type_: ValueType) -> pa.ChunkedArray:
    """Return a column of key values in their declared type; InputError for a type whose values could change on the way."""
    return _as_column(column, name, type_, "key column", "the key")


def as_request_column(column: pa.Array | pa.ChunkedArray, name: str, type_: ValueType) -> pa.ChunkedArray:
    """Return a column of request values in their declared type, as `as_key_column` does; floats may be rounded to Float32."""
    return _as_column(column, name, type_, "request column", "it")


def _as_column(column: pa.Array | pa.ChunkedArray, name: str, type_: ValueType, what: str, subject: str) -> pa.ChunkedArray:
    import pyarrow as pa

    if not len(column):
        return pa.chunked_array([], type_.arrow)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not pa.types.is_null(kind) and not is_of_kind(kind, type_):
        raise InputError(f"{what} {name!r} is {column.type}, but {subject} is declared {type_}; cast it", name=name)
    try:
        if pa.types.is_dictionary(column.type):
            return pa.chunked_array([each.dictionary.cast(type_.arrow).take(each.indices) for each in chunks], type_.arrow)
        return pa.chunked_array([each.cast(type_.arrow) for each in chunks], type_.arrow)
    except pa.ArrowInvalid as reason:
        raise InputError(f"{what} {name!r} holds a value that {type_} cannot: {reason}", name=name) from reason


def is_of_kind(arrow: pa.DataType, type_: ValueType) -> bool:
    """Whether columns of an Arrow type hold what a type may, as long as each value fits."""
    from pyarrow import types

    if type_.item is not None:
        is_list = types.is_list(arrow) or types.is_large_list(arrow) or types.is_fixed_size_list(arrow)
        return is_list and (types.is_null(arrow.value_type) or is_of_kind(arrow.value_type, type_.item))
    kinds: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
        "String": (types.is_string, types.is_large_string, types.is_string_view),
        "Bytes": (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary),
        "Float64": (types.is_floating, types.is_integer),
        "Float32": (types.is_floating, types.is_integer),
        "Int64": (types.is_integer,),
        "Int32": (types.is_integer,),
        "Bool": (types.is_boolean,),
        "Date": (types.is_date,),
        "Timestamp": (types.is_timestamp,),
    }
    return any(is_it(arrow) for is_it in kinds[type_.name])


def pandas_type(arrow: pa.DataType) -> Any:
    """Return the pandas type that keeps a column's values beside nulls, none where pandas' own choice does."""
    import pandas as pd

    return {"int32": pd.Int32Dtype(), "int64": pd.Int64Dtype(), "bool": pd.BooleanDtype()}.get(str(arrow))


def value_type(value: Any) -> ValueType:
    """Return the type of a name, such as `Array(Float32)`; a type is returned as it is. ValueError if there is none."""
    if isinstance(value, ValueType):
        return value
    if isinstance(value, str):
        if value in _SCALARS:
            return _SCALARS[value]
        if value.startswith("Array(") and value.endswith(")") and value[6:-1] in _SCALARS:
            return Array(_SCALARS[value[6:-1]])
    raise ValueError(f"unknown type {value!r}; known: {', '.join(_SCALARS)}, Array(type)")
