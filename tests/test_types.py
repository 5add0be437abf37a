from __future__ import annotations

import datetime as dt
import math
import struct
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from featurestore import types
from featurestore.types import (
    KEY_TYPES,
    Array,
    Bool,
    Bytes,
    Date,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
    ValueType,
)

NAN = math.nan
MOMENT = dt.datetime(2013, 6, 1, 12, 0, 0, 1, dt.UTC)

TYPES: list[tuple[ValueType, pa.DataType, str, str]] = [
    # type, Arrow, DuckDB, numpy ("" where the width varies)
    (Bool, pa.bool_(), "BOOLEAN", "?"),
    (Int32, pa.int32(), "INTEGER", "<i4"),
    (Int64, pa.int64(), "BIGINT", "<i8"),
    (Float32, pa.float32(), "FLOAT", "<f4"),
    (Float64, pa.float64(), "DOUBLE", "<f8"),
    (String, pa.string(), "VARCHAR", ""),
    (Bytes, pa.binary(), "BLOB", ""),
    (Date, pa.date32(), "DATE", "<i4"),
    (Timestamp, pa.timestamp("us", "UTC"), "TIMESTAMP WITH TIME ZONE", "<i8"),
    (Array(Bool), pa.list_(pa.bool_()), "BOOLEAN[]", ""),
    (Array(Int32), pa.list_(pa.int32()), "INTEGER[]", ""),
    (Array(Int64), pa.list_(pa.int64()), "BIGINT[]", ""),
    (Array(Float32), pa.list_(pa.float32()), "FLOAT[]", ""),
    (Array(Float64), pa.list_(pa.float64()), "DOUBLE[]", ""),
    (Array(String), pa.list_(pa.string()), "VARCHAR[]", ""),
    (Array(Bytes), pa.list_(pa.binary()), "BLOB[]", ""),
    (Array(Date), pa.list_(pa.date32()), "DATE[]", ""),
    (Array(Timestamp), pa.list_(pa.timestamp("us", "UTC")), "TIMESTAMP WITH TIME ZONE[]", ""),
]
EACH = [row[0] for row in TYPES]


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB session in UTC."""
    with duckdb.connect() as opened:
        opened.execute("SET TimeZone = 'UTC'")
        yield opened


@pytest.mark.parametrize(("type_", "arrow", "sql", "numpy"), TYPES, ids=str)
def test_a_type_has_one_form_in_each_system(type_: ValueType, arrow: pa.DataType, sql: str, numpy: str) -> None:
    """The Arrow, DuckDB and numpy forms of each type are those of the module's table."""
    assert (type_.arrow, type_.sql, type_.numpy) == (arrow, sql, numpy)
    assert type_.is_fixed_width == bool(numpy)


@pytest.mark.parametrize("type_", EACH, ids=str)
def test_duckdb_gives_arrow_the_declared_type(connection: duckdb.DuckDBPyConnection, type_: ValueType) -> None:
    """A column that DuckDB casts to a type's SQL form arrives in Arrow as the type's Arrow form, and DESCRIBE names it so."""
    column = f"SELECT CAST(NULL AS {type_.sql}) AS x"

    assert connection.sql(column).to_arrow_table().schema == pa.schema([("x", type_.arrow)])
    assert connection.execute(f"DESCRIBE {column}").fetchall()[0][1] == type_.sql


WIDTHS = [(Bool, 1), (Int32, 4), (Int64, 8), (Float32, 4), (Float64, 8), (Date, 4), (Timestamp, 8)]


@pytest.mark.parametrize(("type_", "width"), WIDTHS, ids=str)
def test_the_numpy_form_is_little_endian_and_of_the_documented_width(type_: ValueType, width: int) -> None:
    """A fixed-width type takes as many bytes as the module's table says, little-endian on every machine."""
    assert np.dtype(type_.numpy).itemsize == width
    assert np.dtype(type_.numpy) == np.dtype(type_.numpy).newbyteorder("<")


SMALL = {"TINYINT", "SMALLINT", "UTINYINT", "USMALLINT"}
SQL_TYPES: dict[str, set[ValueType]] = {
    # a source column's type: the types that it can be declared as
    "BOOLEAN": {Bool},
    "TINYINT": {Int32, Int64, Float32, Float64},
    "SMALLINT": {Int32, Int64, Float32, Float64},
    "UTINYINT": {Int32, Int64, Float32, Float64},
    "USMALLINT": {Int32, Int64, Float32, Float64},
    "INTEGER": {Int32, Int64, Float64},
    "UINTEGER": {Int64, Float64},
    "BIGINT": {Int64},
    "UBIGINT": set(),
    "HUGEINT": set(),
    "FLOAT": {Float32, Float64},
    "DOUBLE": {Float64},
    "DECIMAL(18,3)": set(),
    "DECIMAL(4,0)": set(),
    "VARCHAR": {String},
    "ENUM('a', 'b')": {String},
    "ENUM('a[]', '[b')": {String},
    "BLOB": {Bytes},
    "BIT": set(),
    "UUID": set(),
    "JSON": set(),
    "DATE": {Date, Timestamp},
    "TIMESTAMP": {Timestamp},
    "TIMESTAMP_S": {Timestamp},
    "TIMESTAMP_MS": {Timestamp},
    "TIMESTAMP_NS": set(),
    "TIMESTAMP WITH TIME ZONE": {Timestamp},
    "TIME": set(),
    "INTERVAL": set(),
    "STRUCT(a INTEGER)": set(),
    "STRUCT(a INTEGER[])": set(),
    "MAP(VARCHAR, INTEGER)": set(),
    "BOOLEAN[]": {Array(Bool)},
    "SMALLINT[]": {Array(Int32), Array(Int64), Array(Float32), Array(Float64)},
    "INTEGER[]": {Array(Int32), Array(Int64), Array(Float64)},
    "INTEGER[3]": {Array(Int32), Array(Int64), Array(Float64)},
    "BIGINT[]": {Array(Int64)},
    "FLOAT[768]": {Array(Float32), Array(Float64)},
    "DECIMAL(18,3)[]": set(),
    "VARCHAR[]": {Array(String)},
    "ENUM('a', 'b')[]": {Array(String)},
    "BLOB[]": {Array(Bytes)},
    "DATE[]": {Array(Date), Array(Timestamp)},
    "TIMESTAMP WITH TIME ZONE[]": {Array(Timestamp)},
    "INTEGER[][]": set(),
    "STRUCT(a INTEGER)[]": set(),
    '"NULL"': set(EACH),
    '"NULL"[]': {type_ for type_ in EACH if type_.item is not None},
}


@pytest.mark.parametrize(("sql", "accepting"), SQL_TYPES.items(), ids=list(SQL_TYPES))
def test_a_type_accepts_narrower_columns_and_no_others(sql: str, accepting: set[ValueType]) -> None:
    """A source column may be narrower than declared, never wider: INTEGER for Int64, but no BIGINT for Float64 and no DECIMAL."""
    assert {type_ for type_ in EACH if type_.accepts_sql(sql)} == accepting


EXTREMES = {
    "TINYINT": ["-128", "127"],
    "SMALLINT": ["-32768", "32767"],
    "UTINYINT": ["0", "255"],
    "USMALLINT": ["0", "65535"],
    "INTEGER": ["-2147483648", "2147483647"],
    "UINTEGER": ["0", "4294967295"],
    "FLOAT": ["'3.4028235e38'", "'1e-45'", "'-0.0'", "'nan'", "'inf'"],
    "DATE": ["'0001-01-01'", "'9999-12-31'"],
    "TIMESTAMP": ["'0001-01-01 00:00:00'", "'9999-12-31 23:59:59.999999'"],
    "TIMESTAMP_S": ["'0001-01-01 00:00:00'", "'9999-12-31 23:59:59'"],
    "TIMESTAMP_MS": ["'0001-01-01 00:00:00'", "'9999-12-31 23:59:59.999'"],
}
WIDENINGS = [
    (narrow, type_.sql, value)
    for narrow, values in EXTREMES.items()
    for type_ in sorted(SQL_TYPES[narrow], key=str)
    for value in values
]


@pytest.mark.parametrize(("narrow", "wide", "value"), WIDENINGS)
def test_no_accepted_column_changes_a_value(connection: duckdb.DuckDBPyConnection, narrow: str, wide: str, value: str) -> None:
    """The extremes of every accepted narrower type come back from the declared type as they were."""
    query = f"SELECT x, CAST(CAST(x AS {wide}) AS {narrow}) AS again FROM (SELECT CAST({value} AS {narrow}) AS x)"
    [row] = connection.sql(f"SELECT x::VARCHAR AS x, again::VARCHAR AS again FROM ({query})").to_arrow_table().to_pylist()

    assert row["again"] == row["x"]


JSON: list[tuple[ValueType, Any, Any]] = [
    # type, Python value, JSON form
    (Bool, True, True),
    (Bool, False, False),
    (Int32, -(2**31), -(2**31)),
    (Int64, 2**63 - 1, 2**63 - 1),
    (Float32, 0.5, 0.5),
    (Float64, 0.1, 0.1),
    (String, "é\0", "é\0"),
    (String, "", ""),
    (Bytes, b"\x00\xff", "AP8="),
    (Bytes, b"", ""),
    (Date, dt.date(2013, 6, 1), "2013-06-01"),
    (Timestamp, dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC), "2013-06-01T12:00:00Z"),
    (Timestamp, MOMENT, "2013-06-01T12:00:00.000001Z"),
    (Array(Int64), [1, None, 2**53 + 1], [1, None, 2**53 + 1]),
    (Array(Float32), [], []),
    (Array(Bool), [True, None], [True, None]),
    (Array(String), ["a", "", None], ["a", "", None]),
    (Array(Bytes), [b"a", None], ["YQ==", None]),
    (Array(Date), [dt.date(1969, 12, 31)], ["1969-12-31"]),
    (Array(Timestamp), [MOMENT, None], ["2013-06-01T12:00:00.000001Z", None]),
]


@pytest.mark.parametrize(("type_", "value", "json"), JSON, ids=str)
def test_the_json_form_reads_back_as_the_value(type_: ValueType, value: Any, json: Any) -> None:
    """`to_json` gives the documented form and `from_json` gives the value back."""
    assert type_.to_json(value) == json
    assert type_.from_json(json) == value
    assert pa.array([type_.from_json(json)], type_.arrow).to_pylist() == [value]


@pytest.mark.parametrize("type_", EACH, ids=str)
def test_null_is_null_in_every_form(type_: ValueType) -> None:
    """Null has the JSON form null, whatever the type."""
    assert type_.to_json(None) is None
    assert type_.from_json(None) is None


def test_a_float_keeps_its_bits_in_json() -> None:
    """NaN, infinities and -0.0 pass through the JSON form as the floats that they are."""
    values = [NAN, math.inf, -math.inf, -0.0]
    passed = [Float64.from_json(Float64.to_json(value)) for value in values]

    assert struct.pack("<4d", *passed) == struct.pack("<4d", *values)


INSTANTS = [
    ("2013-06-01T12:00:00", dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC)),
    ("2013-06-01T14:00:00+02:00", dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC)),
    ("2013-06-01", dt.datetime(2013, 6, 1, tzinfo=dt.UTC)),
]


@pytest.mark.parametrize(("text", "moment"), INSTANTS)
def test_a_timestamp_in_json_is_utc_unless_it_says_otherwise(text: str, moment: dt.datetime) -> None:
    """A naive JSON timestamp is read as UTC, one with an offset is converted (T1)."""
    assert Timestamp.from_json(text) == moment


MALFORMED = [
    (Bytes, "AP8"),
    (Bytes, "A P 8 ="),
    (Date, "2013-06-31"),
    (Date, "yesterday"),
    (Timestamp, "noon"),
    (Array(Date), ["2013-06-01", "never"]),
]
OF_ANOTHER_TYPE = [
    (Bool, "true"),
    (Bool, 1),
    (Int64, "abc"),
    (Int64, True),
    (Int64, 1.5),
    (Float64, "1.5"),
    (String, 5),
    (Date, 5),
    (Bytes, 5),
    (Timestamp, 1.5),
    (Array(String), "abc"),
    (Array(Int64), ["1"]),
]


@pytest.mark.parametrize(("type_", "json"), [*MALFORMED, *OF_ANOTHER_TYPE], ids=str)
def test_a_json_form_of_another_type_is_refused(type_: ValueType, json: Any) -> None:
    """What is not the JSON form of a value of the type is a ValueError, never a value of another type."""
    with pytest.raises(ValueError):  # noqa: PT011 (every form has words of its own)
        type_.from_json(json)


@pytest.mark.parametrize("type_", EACH, ids=str)
def test_a_name_parses_back_as_its_type(type_: ValueType) -> None:
    """A type is written as its name, which reads back as the same type."""
    adapter = TypeAdapter(ValueType)

    assert str(type_) == repr(type_) == adapter.dump_python(type_, mode="json")
    assert adapter.validate_python(str(type_)) == type_
    assert adapter.validate_python(type_) is type_


@pytest.mark.parametrize(
    "name",
    [
        "int64",
        "Int",
        "",
        "Array",
        "Array()",
        "Array(int64)",
        "Array(Array(Int64))",
        "Array(Int64",
        "Array(Int64]",
        "Array(Int64)x",
        3,
        None,
        int,
    ],
)
def test_an_unknown_type_is_refused_with_the_known_ones(name: Any) -> None:
    """What names no type is refused, and the message lists those that there are."""
    known = "Bool, Int32, Int64, Float32, Float64, String, Bytes, Date, Timestamp, Array\\(type\\)"
    with pytest.raises(ValidationError, match=f"unknown type .*; known: {known}"):
        TypeAdapter(ValueType).validate_python(name)


def test_types_are_values() -> None:
    """Types compare and hash by value; arrays differ by their items."""
    assert Array(Int64) == Array(Int64)
    assert len({Array(Int64), Array(Int64), Array(Int32), Int64}) == 3


def test_an_array_of_arrays_is_refused() -> None:
    """A list of lists is refused, and the message says what to declare instead."""
    with pytest.raises(ValueError, match=r"an array of Array\(Float32\) is not supported; flatten it to Array\(Float32\)"):
        Array(Array(Float32))


def test_keys_have_types_whose_equality_is_sure() -> None:
    """Floats and arrays are no keys; every other type is."""
    assert set(KEY_TYPES) == set(EACH[:9]) - {Float32, Float64}


def test_the_public_names_are_the_types() -> None:
    """`featurestore.types` exports the types, and nothing of its machinery."""
    names = ["Array", "Bool", "Bytes", "Date", "Float32", "Float64", "Int32", "Int64", "String", "Timestamp", "ValueType"]

    assert types.__all__ == names
    assert all(hasattr(types, name) for name in names)
