from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureService, FeatureStore
from featurestore.errors import FeatureStoreError, IncompleteError, InputError, NotFoundError, OfflineStoreError, SpineError
from featurestore.offline import spine as spines
from featurestore.offline import training
from featurestore.offline.spine import key_column, open_spine, times_of
from featurestore.types import Bool, Bytes, Date, Int32, Int64, String, Timestamp, ValueType
from tests.conftest import HOUR, NOON, TIME, WEATHER, Repo, at

SERVICE = "flight_weather"
MINUTE = HOUR // 60
TEMPERATURE, GUSTS = "airport_weather__temperature", "airport_weather__gusts"


@pytest.fixture
def store(weather_repo: Repo) -> FeatureStore:
    """A store with the weather of `conftest.py`, materialized until noon; nothing of it is served online."""
    weather_repo.define(WEATHER.replace('ttl="6h"', 'ttl="6h", online=False'))
    store = weather_repo.open()
    store.apply()
    store.materialize()
    return store


def spine(*rows: tuple[str | None, int]) -> pa.Table:
    """Return a spine of airports and instants."""
    times = [instant for _, instant in rows]
    columns = {"origin": pa.array([key for key, _ in rows], pa.string()), "event_timestamp": pa.array(times, pa.int64()).cast(TIME)}
    return pa.table(columns)


def features(store: FeatureStore, of: Any, **options: Any) -> list[tuple[float | None, int | None]]:
    """Return temperature and gusts of each row."""
    result = store.get_historical_features(of, SERVICE, **options).to_arrow()
    return list(zip(result[TEMPERATURE].to_pylist(), result[GUSTS].to_pylist(), strict=True))


# What a spine may be

ASKED = spine(("EWR", NOON), ("JFK", NOON), (None, NOON), ("EWR", NOON - HOUR), ("EWR", NOON), ("LGA", NOON))
ANSWER = [(21.0, 2**53 + 1), (None, None), (None, None), (None, None), (21.0, 2**53 + 1), (None, None)]


def _parquet(table: pa.Table, folder: Path) -> Path:
    pq.write_table(table, folder / "spine.parquet")
    return folder / "spine.parquet"


KINDS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "Arrow table": lambda table, _: table,
    "Arrow table in chunks": lambda table, _: pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1)]),
    "record batch": lambda table, _: table.to_batches()[0],
    "record batch reader": lambda table, _: table.to_reader(2),
    "pandas": lambda table, _: table.to_pandas(),
    "Polars": lambda table, _: pl.from_arrow(table),
    "DuckDB relation": lambda table, _: duckdb.from_arrow(table),
    "Path": _parquet,
    "path as text": lambda table, folder: str(_parquet(table, folder)),
    "SQL": lambda table, folder: f"SELECT * FROM '{_parquet(table, folder)}'",
    "SQL from": lambda table, folder: f"\n FROM '{_parquet(table, folder)}'",
    "SQL with": lambda table, folder: f"WITH s AS (FROM '{_parquet(table, folder)}') SELECT * FROM s",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_spine_gives_the_same_table(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    """Whatever holds the spine: its rows, in its order, with the same values."""
    result = store.get_historical_features(KINDS[kind](ASKED, tmp_path), SERVICE)

    assert result.to_dict() == {
        "origin": ["EWR", "JFK", None, "EWR", "EWR", "LGA"],
        "event_timestamp": [at(NOON), at(NOON), at(NOON), at(NOON - HOUR), at(NOON), at(NOON)],
        TEMPERATURE: [temperature for temperature, _ in ANSWER],
        GUSTS: [gusts for _, gusts in ANSWER],
    }
    assert result.to_arrow().schema.field(TEMPERATURE).type == pa.float64()
    assert result.to_arrow().schema.field(GUSTS).type == pa.int64()


@pytest.mark.parametrize("kind", ["record batch reader", "Polars", "DuckDB relation", "SQL", "Path"])
def test_a_result_can_be_read_more_than_once(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    """A training set reads its spine as often as needed, also one that can itself be read only once."""
    result = store.get_historical_features(KINDS[kind](ASKED, tmp_path), SERVICE)

    assert result.to_arrow().equals(result.to_arrow())
    assert sum(len(batch) for batch in result.to_batches()) == 6


@pytest.mark.parametrize("name", ["selected.parquet", "with_labels.parquet", "from_2013.parquet", "(1).parquet"])
def test_a_path_may_begin_like_sql(store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The text of a path to a file is a path, whatever its first letters."""
    monkeypatch.chdir(tmp_path)
    _parquet(ASKED, tmp_path).rename(name)

    assert features(store, name) == features(store, Path(name)) == ANSWER


def test_a_service_may_be_named_given_or_listed(store: FeatureStore) -> None:
    """The second argument is a service, its name or a list of features; the columns are in its order."""
    wanted: list[tuple[Any, list[str]]] = [
        (SERVICE, [TEMPERATURE, GUSTS]),
        (FeatureService(SERVICE, features=["airport_weather:gusts"]), [TEMPERATURE, GUSTS]),
        (["airport_weather:gusts"], [GUSTS]),
        (("airport_weather:gusts", "airport_weather:temperature"), [GUSTS, TEMPERATURE]),
    ]
    for asked, columns in wanted:
        result = store.get_historical_features(ASKED, asked)
        assert list(result.to_dict()) == ["origin", "event_timestamp", *columns]
        assert result.schema == result.to_arrow().schema


UNREADABLE: list[tuple[str, Any, str]] = [
    (
        "list",
        [1, 2],
        "a list is no spine; pass an Arrow table, a pandas or Polars frame, a DuckDB relation, a path to Parquet, or SQL text",
    ),
    ("dict", {"origin": ["EWR"]}, "a dict is no spine; pass an Arrow table, "),
    ("None", None, "a NoneType is no spine; pass an Arrow table, "),
    ("lazy frame", pl.LazyFrame({"origin": ["EWR"]}), "a LazyFrame is no spine; pass an Arrow table, "),
    (
        "missing file",
        "nowhere.parquet",
        "no spine at nowhere.parquet: neither a Parquet file nor SQL (which begins with SELECT, WITH or FROM)",
    ),
    ("missing path", Path("nowhere.parquet"), "no spine at nowhere.parquet: "),
    ("folder", Path("/"), "the spine / cannot be read as Parquet: "),
    ("no Parquet", Path(__file__), f"the spine {__file__} cannot be read as Parquet: "),
    ("faulty SQL", "SELECT origin FROM", "the spine's SQL: Parser Error: "),
    ("SQL without file", "SELECT * FROM 'nowhere.parquet'", "the spine's SQL: IO Error: "),
    ("SQL that fails later", "SELECT 'EWR' AS origin, error('late') AS event_timestamp", "the spine's SQL: "),
    ("mixed objects", pd.DataFrame({"origin": ["EWR", 1], "event_timestamp": [at(NOON)] * 2}), "the spine cannot be read: "),
]


@pytest.mark.parametrize(("source", "message"), [pytest.param(*rest, id=name) for name, *rest in UNREADABLE])
def test_what_is_no_spine_is_refused(source: Any, message: str) -> None:
    """What cannot be read as a table is a SpineError that says what could be, or why not."""
    with pytest.raises(SpineError) as error:
        open_spine(source, "event_timestamp", {"origin": String})

    assert str(error.value).startswith(message)


# T5


def test_rows_keep_count_order_and_duplicates(store: FeatureStore) -> None:
    """Output rows are the spine's rows, one for one, however they repeat and whatever their order."""
    keys, moments = ["JFK", "EWR", None, "LGA"], [NOON, NOON - HOUR, NOON - 55 * MINUTE]
    generator = np.random.default_rng(1)
    rows = [(keys[key], moments[moment]) for key, moment in generator.integers(0, [4, 3], (2_000, 2)).tolist()]
    result = store.get_historical_features(spine(*rows), SERVICE).to_arrow()

    assert result.select(["origin", "event_timestamp"]).equals(spine(*rows))
    assert result[TEMPERATURE].to_pylist() == [21.0 if row == ("EWR", NOON) else None for row in rows]


EXTRA: dict[str, pa.Array] = {
    "dictionary": pa.array(["x", None]).dictionary_encode(),
    "large text": pa.array(["x", None], pa.large_string()),
    "text view": pa.array(["x", None], pa.string_view()),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns", "Europe/Berlin")),
    "naive": pa.array([1, None], pa.timestamp("ms")),
    "duration": pa.array([1, None], pa.duration("s")),
    "list": pa.array([[1, None], None], pa.large_list(pa.int8())),
    "struct": pa.array([{"a": 1}, None], pa.struct([("a", pa.uint16())])),
    "decimal": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
    "half": pa.array(np.array([1.5, 2.5], np.float16)),
    "unsigned": pa.array([2**64 - 1, None], pa.uint64()),
    "null": pa.nulls(2),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
    "__event_time": pa.array([1, 2]),
    "temperature": pa.array([1, 2]),
}


def test_spine_columns_are_untouched(store: FeatureStore) -> None:
    """All columns of the spine come back with their types and values, whatever they are; only features are added."""
    fields = [pa.field(name, column.type) for name, column in EXTRA.items()]
    key = pa.field("origin", pa.string(), nullable=False, metadata={"unit": "IATA"})
    schema = pa.schema([*fields, key, pa.field("event_timestamp", pa.timestamp("ns", "America/New_York"))])
    times = pa.array([NOON * 1000 + 1, NOON * 1000 - 1], pa.timestamp("ns", "America/New_York"))
    given = pa.table([*EXTRA.values(), pa.array(["EWR", "JFK"]), times], schema=schema)
    result = store.get_historical_features(given, SERVICE).to_arrow()

    assert result.column_names == [*EXTRA, "origin", "event_timestamp", TEMPERATURE, GUSTS]
    assert result.select(given.column_names).equals(given)
    assert result.schema.field("origin").equals(key, check_metadata=True)
    assert result[GUSTS].to_pylist() == [2**53 + 1, None]


def test_a_pandas_index_is_no_column_and_changes_no_order(store: FeatureStore) -> None:
    """Rows of a pandas frame are taken by position, whatever its index."""
    frame = ASKED.to_pandas().assign(id=range(6))
    for index in (range(5, -1, -1), ["x"] * 6, pd.MultiIndex.from_product([[1, 2], [1, 2, 3]])):
        result = store.get_historical_features(frame.set_index(pd.Index(index)), SERVICE)
        assert result.to_arrow().column_names == ["origin", "event_timestamp", "id", TEMPERATURE, GUSTS]
        assert result.to_dict()["id"] == [0, 1, 2, 3, 4, 5]
        assert features(store, frame.set_index(pd.Index(index))) == ANSWER


def test_integers_with_nulls_stay_integers(store: FeatureStore) -> None:
    """An int64 with nulls is an int64 in Arrow, and in pandas a nullable Int64 whether there are nulls or not."""
    mixed = store.get_historical_features(ASKED, SERVICE)
    full = store.get_historical_features(spine(("EWR", NOON)), SERVICE)

    assert mixed.to_arrow().schema.field(GUSTS).type == pa.int64()
    assert [str(each.to_pandas()[GUSTS].dtype) for each in (mixed, full)] == ["Int64", "Int64"]
    assert mixed.to_pandas()[GUSTS].tolist()[0] == full.to_pandas()[GUSTS].tolist()[0] == 2**53 + 1
    assert mixed.to_pandas()[GUSTS].isna().tolist() == [False, True, True, True, False, True]
    assert str(mixed.to_pandas()[TEMPERATURE].dtype) == "float64"


EMPTY: dict[str, Callable[[pa.Table, Path], Any]] = {
    **{name: KINDS[name] for name in ("Arrow table", "record batch reader", "pandas", "Polars", "DuckDB relation", "Path", "SQL")},
    "no batch": lambda table, _: pa.RecordBatchReader.from_batches(table.schema, []),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_an_empty_spine_gives_an_empty_table(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    """No rows give no rows, in the right schema, in every form."""
    result = store.get_historical_features(EMPTY[kind](spine(), tmp_path), SERVICE)

    assert (result.to_arrow().num_rows, len(result.to_pandas()), result.to_parquet(tmp_path / "out.parquet")) == (0, 0, 0)
    assert (
        result.to_arrow().column_names
        == pq.read_schema(tmp_path / "out.parquet").names
        == ["origin", "event_timestamp", TEMPERATURE, GUSTS]
    )
    assert result.to_arrow().schema.types[2:] == [pa.float64(), pa.int64()]


# Instants, by T1

# EWR's first two rows become visible at 11:10.
VISIBLE = NOON - 50 * MINUTE
INSTANTS: list[tuple[str, pa.Array, list[float | None]]] = [
    ("microseconds", pa.array([VISIBLE - 1, VISIBLE], TIME), [None, 21.0]),
    ("naive", pa.array([VISIBLE - 1, VISIBLE], pa.timestamp("us")), [None, 21.0]),
    ("milliseconds", pa.array([VISIBLE // 1000 - 1, VISIBLE // 1000], pa.timestamp("ms", "UTC")), [None, 21.0]),
    ("seconds", pa.array([VISIBLE // 10**6 - 1, VISIBLE // 10**6], pa.timestamp("s")), [None, 21.0]),
    ("another zone", pa.array([VISIBLE - 1, VISIBLE], pa.timestamp("us", "Asia/Kolkata")), [None, 21.0]),
    ("nanoseconds round down", pa.array([VISIBLE * 1000 - 1, VISIBLE * 1000 + 999], pa.timestamp("ns", "UTC")), [None, 21.0]),
    ("naive nanoseconds", pa.array([VISIBLE * 1000 - 1, VISIBLE * 1000], pa.timestamp("ns")), [None, 21.0]),
    ("before everything", pa.array([-(2**63), -1], TIME), [None, None]),
]


@pytest.mark.parametrize(("times", "expected"), [pytest.param(*rest, id=name) for name, *rest in INSTANTS])
def test_timestamps_of_every_kind_are_instants(store: FeatureStore, times: pa.Array, expected: list[float | None]) -> None:
    """A naive timestamp is UTC, an aware one is converted, nanoseconds are rounded down: the column itself stays as it is."""
    given = pa.table({"origin": ["EWR", "EWR"], "event_timestamp": times})
    result = store.get_historical_features(given, SERVICE).to_arrow()

    assert result[TEMPERATURE].to_pylist() == expected
    assert result["event_timestamp"].combine_chunks().equals(times)


def test_nanoseconds_before_the_epoch_round_down_too() -> None:
    """Rounding goes towards the past, on both sides of 1970."""
    times = pa.array([-1, -1000, -1001, 0, 999, 1000], pa.timestamp("ns"))

    assert times_of(times, "t").tolist() == [-1, -1, -2, 0, 0, 1]


def test_python_datetimes_in_pandas_are_instants(store: FeatureStore) -> None:
    """Frames with naive, aware and object columns of datetimes say the same."""
    zone = dt.timezone(dt.timedelta(hours=2))
    for moments in (
        [dt.datetime(2013, 6, 1, 12)],  # noqa: DTZ001
        [dt.datetime(2013, 6, 1, 14, tzinfo=zone)],
        pd.to_datetime(["2013-06-01T12:00"]),
        pd.to_datetime(["2013-06-01T08:00"]).tz_localize("America/New_York"),
        pd.Series([at(NOON)], dtype=object),
    ):
        assert features(store, pd.DataFrame({"origin": ["EWR"], "event_timestamp": moments})) == [(21.0, 2**53 + 1)]


def test_another_column_may_hold_the_time(store: FeatureStore) -> None:
    """`timestamp_column` names the column that counts; `event_timestamp` is a column like others then."""
    given = spine(("EWR", NOON), ("EWR", NOON)).append_column("asked_at", pa.array([VISIBLE - 1, VISIBLE], TIME))

    assert features(store, given) == [(21.0, 2**53 + 1)] * 2
    assert features(store, given, timestamp_column="asked_at") == [(None, None), (21.0, 2**53 + 1)]


# Faults of spines


def _with(name: str, column: pa.Array) -> pa.Table:
    """Return a spine of one row with a column set."""
    given = spine(("EWR", NOON))
    place = given.column_names.index(name) if name in given.column_names else None
    return given.append_column(name, column) if place is None else given.set_column(place, name, column)


FAULTY: list[tuple[str, Any, str, str | None]] = [
    # case, spine, message, offender
    (
        "no time",
        _with("x", pa.array([1])).rename_columns(["origin", "event_timestam", "x"]),
        "the spine has no timestamp column 'event_timestamp'; did you mean 'event_timestam'?",
        "event_timestamp",
    ),
    (
        "no key",
        ASKED.rename_columns(["orgin", "event_timestamp"]),
        "the spine has no key column 'origin'; did you mean 'orgin'?",
        "origin",
    ),
    (
        "other key",
        ASKED.rename_columns(["x", "event_timestamp"]),
        "the spine has no key column 'origin'; known: 'event_timestamp', 'x'",
        "origin",
    ),
    (
        "text as time",
        _with("event_timestamp", pa.array(["2013-06-01"])),
        "timestamp column 'event_timestamp' is string, not a timestamp; cast it",
        "event_timestamp",
    ),
    (
        "date as time",
        _with("event_timestamp", pa.array([dt.date(2013, 6, 1)])),
        "timestamp column 'event_timestamp' is date32[day], not a timestamp; cast it",
        "event_timestamp",
    ),
    (
        "number as time",
        _with("event_timestamp", pa.array([NOON])),
        "timestamp column 'event_timestamp' is int64, not a timestamp; cast it",
        "event_timestamp",
    ),
    (
        "null time",
        _with("event_timestamp", pa.array([None], TIME)),
        "timestamp column 'event_timestamp' has 1 nulls; a row without a time has no value",
        "event_timestamp",
    ),
    (
        "a time too far",
        _with("event_timestamp", pa.array([2**62], pa.timestamp("s"))),
        "timestamp column 'event_timestamp' holds a time that microseconds cannot count: ",
        "event_timestamp",
    ),
    (
        "float key",
        _with("origin", pa.array([1.0])),
        "key column 'origin' is double, but the key is declared String; cast it",
        "origin",
    ),
    (
        "number as text",
        _with("origin", pa.array([1])),
        "key column 'origin' is int64, but the key is declared String; cast it",
        "origin",
    ),
    (
        "bytes as text",
        _with("origin", pa.array([b"EWR"])),
        "key column 'origin' is binary, but the key is declared String; cast it",
        "origin",
    ),
    ("a feature's name", _with(GUSTS, pa.array([1])), f"the spine has a column '{GUSTS}' already; a feature has that name", GUSTS),
    (
        "a name twice",
        pa.table([ASKED["origin"], ASKED["origin"], ASKED["event_timestamp"]], names=["origin", "origin", "event_timestamp"]),
        "the spine has more than one column 'origin'",
        "origin",
    ),
    (
        "another column twice",
        pa.table([[1], [2], ["EWR"], pa.array([NOON], TIME)], names=["x", "x", "origin", "event_timestamp"]),
        "the spine has more than one column 'x'",
        "x",
    ),
]


@pytest.mark.parametrize(("given", "message", "name"), [pytest.param(*rest, id=case) for case, *rest in FAULTY])
def test_a_faulty_spine_is_refused_before_anything_is_read(store: FeatureStore, given: Any, message: str, name: str) -> None:
    """A column that is missing, double, of a wrong type or without a time is a SpineError that names it and what is near."""
    with pytest.raises(SpineError) as error:
        store.get_historical_features(given, SERVICE).to_arrow()

    assert str(error.value).startswith(message)
    assert error.value.name == name


def test_a_pandas_frame_with_a_name_twice_is_refused(store: FeatureStore) -> None:
    """Duplicate names are a SpineError in pandas as in Arrow."""
    frame = ASKED.to_pandas().assign(x=1)
    frame.columns = pd.Index(["origin", "event_timestamp", "origin"])
    with pytest.raises(SpineError, match="origin"):
        store.get_historical_features(frame, SERVICE)


KEYS: list[tuple[ValueType, pa.Array, Any]] = [
    # declared type, the spine's column, the key's values or None where it is refused
    (String, pa.array(["a", None], pa.large_string()), ["a", None]),
    (String, pa.array(["a", None], pa.string_view()), ["a", None]),
    (String, pa.array(["a", None]).dictionary_encode(), ["a", None]),
    (String, pa.DictionaryArray.from_arrays(pa.array([0, None], pa.uint32()), pa.array(["a"], pa.string_view())), ["a", None]),
    (String, pa.DictionaryArray.from_arrays(pa.array([0, None], pa.uint8()), pa.array(["a"], pa.large_string())), ["a", None]),
    (String, pa.nulls(2), [None, None]),
    (String, pa.array([1, None]), None),
    (String, pa.array([b"a"]), None),
    (Int64, pa.array([1, None], pa.int8()), [1, None]),
    (Int64, pa.array([2**32 - 1], pa.uint32()), [2**32 - 1]),
    (Int64, pa.array([2**63 - 1], pa.uint64()), [2**63 - 1]),
    (Int64, pa.array([2**63], pa.uint64()), None),
    (Int64, pa.array([1, 2]).dictionary_encode(), [1, 2]),
    (Int64, pa.array([1.0, None]), None),
    (Int64, pa.array([1.0], pa.float32()), None),
    (Int64, pa.array([Decimal(1)]), None),
    (Int64, pa.array([True]), None),
    (Int64, pa.array(["1"]), None),
    (Int64, pa.array([1], TIME), None),
    (Int32, pa.array([2**31 - 1, -(2**31)]), [2**31 - 1, -(2**31)]),
    (Int32, pa.array([2**31]), None),
    (Bool, pa.array([True, None]), [True, None]),
    (Bool, pa.array([1]), None),
    (Bytes, pa.array([b"a"], pa.large_binary()), [b"a"]),
    (Bytes, pa.array([b"ab"], pa.binary(2)), [b"ab"]),
    (Bytes, pa.array([b"a"], pa.binary_view()), [b"a"]),
    (Bytes, pa.array(["a"]), None),
    (Date, pa.array([dt.date(2013, 6, 1)], pa.date64()), [dt.date(2013, 6, 1)]),
    (Date, pa.array([0], TIME), None),
    (Date, pa.array([0]), None),
    (Timestamp, pa.array([NOON // 1000], pa.timestamp("ms")), [at(NOON)]),
    (Timestamp, pa.array([NOON * 1000], pa.timestamp("ns", "Asia/Kolkata")), [at(NOON)]),
    (Timestamp, pa.array([NOON * 1000 + 1], pa.timestamp("ns")), None),
    (Timestamp, pa.array([dt.date(2013, 6, 1)]), None),
    (Timestamp, pa.array([NOON]), None),
]


@pytest.mark.parametrize(("type_", "column", "expected"), KEYS, ids=lambda each: str(getattr(each, "type", each))[:40])
def test_a_key_column_has_its_type_or_one_that_loses_nothing(type_: ValueType, column: pa.Array, expected: Any) -> None:
    """Text, integers and times of any width are keys if every value fits; what would have to be converted is refused."""
    given = pa.table({"k": column, "event_timestamp": pa.array([NOON] * len(column), TIME)})
    if expected is None:
        with pytest.raises(SpineError, match="key column 'k' "):
            key_column(next(open_spine(given, "event_timestamp", {"k": type_}).chunks(10))["k"], "k", type_)
    else:
        found = key_column(next(open_spine(given, "event_timestamp", {"k": type_}).chunks(10))["k"], "k", type_)
        assert found.type == type_.arrow
        assert found.to_pylist() == expected


@pytest.mark.parametrize("type_", [pl.Categorical, pl.Enum(["EWR", "JFK", "LGA"]), pl.String])
def test_a_key_may_be_a_category_in_polars(store: FeatureStore, type_: Any) -> None:
    """Categories of Polars are text, as those of Arrow and pandas are."""
    frame = pl.DataFrame({"origin": ["EWR", "JFK"], "event_timestamp": [at(NOON), at(NOON)]}).with_columns(
        pl.col("origin").cast(type_)
    )

    assert features(store, frame) == [(21.0, 2**53 + 1), (None, None)]


def test_a_key_may_be_a_category_in_pandas_and_an_enum_in_duckdb(store: FeatureStore) -> None:
    """Categories of pandas and enums of DuckDB are text."""
    frame = ASKED.to_pandas().astype({"origin": "category"})
    relation = duckdb.sql(f"SELECT 'EWR'::ENUM('JFK', 'EWR') AS origin, make_timestamp({NOON}) AS event_timestamp")

    assert features(store, frame) == ANSWER
    assert features(store, relation) == [(21.0, 2**53 + 1)]


def test_dictionaries_may_differ_from_batch_to_batch(store: FeatureStore) -> None:
    """A reader whose batches have dictionaries of their own is a spine like any other."""
    schema = pa.schema([("origin", pa.dictionary(pa.int32(), pa.string())), ("event_timestamp", TIME)])
    batches = [
        pa.record_batch([pa.array(keys).dictionary_encode(), pa.array([NOON] * 2, TIME)], schema)
        for keys in (["EWR", "JFK"], ["LGA", "EWR"])
    ]

    assert features(store, pa.RecordBatchReader.from_batches(schema, batches)) == [
        (21.0, 2**53 + 1),
        (None, None),
        (None, None),
        (21.0, 2**53 + 1),
    ]
    assert features(store, pa.Table.from_batches(batches)) == [(21.0, 2**53 + 1), (None, None), (None, None), (21.0, 2**53 + 1)]


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [("flight_wether", "flight_weather"), (["airport_wether:gusts"], "airport_weather"), (["airport_weather:gust"], "gusts")],
)
def test_an_unknown_name_is_answered_with_the_nearest(store: FeatureStore, wanted: Any, nearest: str) -> None:
    """A service, view or feature that is not there is an error with the nearest that is."""
    with pytest.raises(NotFoundError, match=f"did you mean '{nearest}'\\?"):
        store.get_historical_features(ASKED, wanted)


# Completeness, by T7

# Materialized until noon, refreshed every hour with a delay of ten minutes: what is visible before 12:10 is there.
UNTIL = NOON + 10 * MINUTE - 1
ADVICE = "Materialize the views, or pass incomplete='stale' (answer from what is there) or 'null'"


def test_the_last_complete_instant_is_complete(store: FeatureStore) -> None:
    """Up to the last microsecond before the next visible time the answer is complete."""
    assert features(store, spine(("EWR", UNTIL), ("JFK", UNTIL))) == [(21.0, 2**53 + 1), (None, None)]


def test_one_microsecond_later_is_not_complete(store: FeatureStore) -> None:
    """A row beyond is refused when the training set is made; the message names view, watermark and count."""
    with pytest.raises(IncompleteError) as error:
        store.get_historical_features(spine(("EWR", UNTIL), ("JFK", UNTIL + 1), (None, UNTIL + 1)), SERVICE)

    assert str(error.value) == (
        "the spine reaches to 2013-06-01T12:10:00Z, beyond what is materialized: view 'airport_weather' is materialized until "
        f"2013-06-01T12:00:00Z, 2 of 3 rows are later. {ADVICE}"
    )


STALE = [(21.0, 2**53 + 1), (None, None), (21.0, 2**53 + 1), (None, None)]
NULL = [(21.0, 2**53 + 1), (None, None), (None, None), (None, None)]


@pytest.mark.parametrize(("incomplete", "expected"), [("stale", STALE), ("null", NULL)])
def test_incomplete_rows_are_stale_or_null_where_that_is_asked(store: FeatureStore, incomplete: str, expected: list[Any]) -> None:
    """`stale` answers from what is there, by T4 as ever; `null` gives incomplete rows nothing, and the others what they have."""
    asked = spine(("EWR", UNTIL), ("JFK", UNTIL), ("EWR", UNTIL + 1), ("EWR", NOON + 5 * HOUR + 1))

    assert features(store, asked, incomplete=incomplete) == expected


def test_what_is_asked_for_completeness_is_one_of_three(store: FeatureStore) -> None:
    """Another word is an input error."""
    with pytest.raises(InputError, match="incomplete='maybe' is not known; known: 'error', 'stale', 'null'"):
        store.get_historical_features(ASKED, SERVICE, incomplete="maybe")  # type: ignore[arg-type]


SEVERAL = """
airport = Entity("airport", join_keys={"origin": String})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at", delay="10m")
slow = FeatureView("slow", entities=[airport], source=weather, refresh="1h", online=False, fields={"gusts": Int64})
fast = FeatureView("fast", entities=[airport], source=weather, online=False, fields={"gusts": Int64})
never = FeatureView("never", entities=[airport], source=weather, online=False, fields={"gusts": Int64})
runways = FileSource("runways", path="runways.parquet")
static = FeatureView("static", entities=[airport], source=runways, online=False, fields={"count": Int64})
there = slow.alias("there", join_keys={"origin": "destination"})
service = FeatureService("service", features=[static, never, slow, there, fast])
"""


@pytest.fixture
def several(weather_repo: Repo) -> FeatureStore:
    """A store with four views and an alias; two of them are materialized."""
    weather_repo.define(SEVERAL)
    weather_repo.write("runways.parquet", {"origin": ["EWR"], "count": [3]})
    store = weather_repo.open()
    store.apply()
    store.materialize(["slow", "fast"])
    return store


def test_all_incomplete_views_are_named(several: FeatureStore) -> None:
    """Each view that lacks something is named with its own watermark and count, and those without any run say so."""
    asked = spine(("EWR", NOON), ("EWR", NOON + 1), ("EWR", UNTIL + 1)).append_column("destination", pa.array(["JFK"] * 3))
    with pytest.raises(IncompleteError) as error:
        several.get_historical_features(asked, "service")

    assert str(error.value) == (
        "the spine reaches to 2013-06-01T12:10:00Z, beyond what is materialized: "
        "view 'static' is not materialized yet, 3 of 3 rows are later; "
        "view 'never' is not materialized yet, 3 of 3 rows are later; "
        "view 'slow' is materialized until 2013-06-01T12:00:00Z, 1 of 3 rows are later; "
        "view 'there' is materialized until 2013-06-01T12:00:00Z, 1 of 3 rows are later; "
        f"view 'fast' is materialized until 2013-06-01T12:00:00Z, 2 of 3 rows are later. {ADVICE}"
    )


def test_each_view_is_incomplete_by_its_own_watermark(several: FeatureStore) -> None:
    """With `null`, a row has what is complete and lacks what is not, view by view."""
    asked = spine(("EWR", NOON), ("EWR", NOON + 1), ("EWR", UNTIL + 1)).append_column("destination", pa.array(["EWR"] * 3))
    result = several.get_historical_features(asked, "service", incomplete="null").to_dict()

    assert {name: result[name] for name in list(result)[3:]} == {
        "static__count": [None, None, None],
        "never__gusts": [None, None, None],
        "slow__gusts": [2**53 + 1, 2**53 + 1, None],
        "there__gusts": [2**53 + 1, 2**53 + 1, None],
        "fast__gusts": [2**53 + 1, None, None],
    }


def test_a_static_view_is_complete_for_ever_after_its_first_run(several: FeatureStore) -> None:
    """What has no time is complete at all times, past and future (T13)."""
    several.materialize(["static"])
    asked = spine(("EWR", -1), ("EWR", NOON + 10**6 * HOUR), ("JFK", NOON))

    assert several.get_historical_features(asked, ["static:count"]).to_dict()["static__count"] == [3, 3, None]


def test_an_alias_looks_up_by_its_own_column(several: FeatureStore) -> None:
    """One view in two roles gives two columns, each by its key column; a null key gives null."""
    asked = spine(("EWR", NOON), ("JFK", NOON), (None, NOON)).append_column("destination", pa.array(["JFK", "EWR", "EWR"]))
    result = several.get_historical_features(asked, ["there:gusts", "slow:gusts"]).to_dict()

    assert list(result) == ["origin", "event_timestamp", "destination", "there__gusts", "slow__gusts"]
    assert (result["slow__gusts"], result["there__gusts"]) == ([2**53 + 1, None, None], [None, 2**53 + 1, 2**53 + 1])


# Reading it


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute two rows at a time, as a large spine is computed millions of values at a time."""
    monkeypatch.setattr(training, "_CHUNK_VALUES", 8)
    monkeypatch.setattr(spines, "_BATCH_ROWS", 1)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", ["Arrow table", "record batch reader", "Path", "DuckDB relation", "Polars"])
def test_a_spine_of_many_chunks_gives_the_same_rows(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    """A training set that is computed in parts is the same in all its forms."""
    result = store.get_historical_features(KINDS[kind](ASKED, tmp_path), SERVICE)

    assert len(list(result.to_batches())) >= 3 or kind in ("Polars", "DuckDB relation")
    assert result.to_parquet(tmp_path / "out.parquet") == 6
    assert (
        pq.read_table(tmp_path / "out.parquet").select([TEMPERATURE, GUSTS]).equals(result.to_arrow().select([TEMPERATURE, GUSTS]))
    )
    assert list(zip(result.to_dict()[TEMPERATURE], result.to_dict()[GUSTS], strict=True)) == ANSWER


NUMBERED = """
numbers = FileSource("numbers", path="numbers.parquet")
number = Entity("number", join_keys={"n": Int32})
doubled = FeatureView("doubled", entities=[number], source=numbers, online=False, fields={"twice": Int64})
"""


@pytest.fixture
def numbered(repo: Repo) -> FeatureStore:
    """A store with a static view over small numbers."""
    repo.define(NUMBERED)
    repo.write("numbers.parquet", {"n": pa.array([1, 2, 3], pa.int32()), "twice": [2, 4, 6]})
    store = repo.open()
    store.apply()
    store.materialize()
    return store


def _failing_later() -> pa.Table:
    """Return a spine whose fourth row has a key that no Int32 can be."""
    return pa.table({"n": [1, 2, 3, 2**40], "event_timestamp": pa.array([NOON] * 4, TIME)})


@pytest.mark.usefixtures("small_chunks")
def test_batches_come_as_they_are_computed(numbered: FeatureStore) -> None:
    """`to_batches` gives what it has before it computes the next: here the first two rows, though the fourth is faulty."""
    batches = numbered.get_historical_features(_failing_later(), ["doubled:twice"]).to_batches()

    assert next(batches)["doubled__twice"].to_pylist() == [2]
    assert next(batches)["doubled__twice"].to_pylist() == [4]
    with pytest.raises(SpineError, match="key column 'n' holds a value that Int32 cannot"):
        next(batches)


@pytest.mark.usefixtures("small_chunks")
def test_a_parquet_file_appears_when_it_is_complete(numbered: FeatureStore, tmp_path: Path) -> None:
    """A training set that fails on the way leaves no file, and one that was there stays as it was."""
    target = tmp_path / "out" / "training.parquet"
    target.parent.mkdir()
    failing = numbered.get_historical_features(_failing_later(), ["doubled:twice"])
    with pytest.raises(SpineError):
        failing.to_parquet(target)
    assert list(target.parent.iterdir()) == []

    assert numbered.get_historical_features(_failing_later().slice(0, 3), ["doubled:twice"]).to_parquet(str(target)) == 3
    before = target.read_bytes()
    with pytest.raises(SpineError):
        failing.to_parquet(target)
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


INTERVALS = pa.array([(1, 2, 3)] * 3, pa.month_day_nano_interval())
UNWRITABLE = [
    # case, the file, a column more
    ("no folder", "nowhere/out.parquet", None),
    ("a folder in the file's place", ".", None),
    ("a file in the folder's place", "file/out.parquet", None),
    ("a column that Parquet does not know", "out.parquet", INTERVALS),
]


@pytest.mark.parametrize(("name", "column"), [pytest.param(*rest, id=case) for case, *rest in UNWRITABLE])
def test_a_file_that_cannot_be_written_is_an_error_of_ours(
    numbered: FeatureStore, tmp_path: Path, name: str, column: pa.Array | None
) -> None:
    """Where no file can be written the error names it, and nothing is left behind."""
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    given = _failing_later().slice(0, 3)
    result = numbered.get_historical_features(given if column is None else given.append_column("x", column), ["doubled:twice"])
    with pytest.raises(OfflineStoreError, match=f"cannot write {re.escape(str(tmp_path / name))}: "):
        result.to_parquet(tmp_path / name)

    assert [file for file in sorted(tmp_path.rglob("*")) if file not in before] == []


def test_a_table_that_has_lost_a_file_is_an_error_of_ours(store: FeatureStore) -> None:
    """A data file that is gone or damaged is an OfflineStoreError that names it."""
    [version] = store.applied().versions
    [file] = store.snapshot(version).files
    file.path.write_bytes(b"PAR1" + bytes(20) + b"PAR1")
    damaged = store.get_historical_features(ASKED, SERVICE)
    with pytest.raises(OfflineStoreError, match=f"cannot read {re.escape(str(file.path))}: "):
        damaged.to_arrow()
    file.path.unlink()
    with pytest.raises(OfflineStoreError, match=f"cannot read {re.escape(str(file.path))}: "):
        damaged.to_arrow()


def test_a_training_set_names_the_table_versions_that_it_reads(several: FeatureStore) -> None:
    """By view, the version of the table that the values come from; a view without a run has none."""
    asked = ASKED.append_column("destination", ASKED["origin"])
    result = several.get_historical_features(asked, ["there:gusts", "slow:gusts", "never:gusts"], incomplete="stale")
    versions = {version.view.name: version.table_version for version in several.applied().versions}

    assert result.table_versions == {"slow": versions["slow"], "never": -1}
    assert versions["slow"] >= 0


def test_a_training_set_reads_what_was_there_when_it_was_made(weather_repo: Repo, store: FeatureStore) -> None:
    """Runs that come between making and reading change nothing: the old values are read, and the old table version is named."""
    made = store.get_historical_features(ASKED, SERVICE)
    before = made.table_versions
    weather_repo.write(
        "weather.parquet",
        {"origin": ["EWR"], "observed_at": pa.array([at(NOON - HOUR)], TIME), "temperature": [-5.0], "gusts": [1]},
    )
    store.materialize(start=NOON - 2 * HOUR, end=NOON)
    after = store.get_historical_features(ASKED, SERVICE)

    assert made.to_arrow()[TEMPERATURE].to_pylist() == [temperature for temperature, _ in ANSWER]
    assert after.to_arrow()[TEMPERATURE].to_pylist() == [-5.0, None, None, None, -5.0, None]
    assert (made.table_versions, after.table_versions) == (before, {"airport_weather": before["airport_weather"] + 1})


def test_a_training_set_survives_a_new_version_of_its_view(weather_repo: Repo, store: FeatureStore) -> None:
    """A view that is changed, materialized and taken over by its new version leaves a training set made before as it was."""
    made = store.get_historical_features(ASKED, SERVICE)
    weather_repo.define(WEATHER.replace('ttl="6h"', 'ttl="30m", online=False'))
    store.apply()
    store.materialize()

    assert [version.state for version in store.applied().versions] == ["replaced", "serving"]
    assert features(store, ASKED) == [(None, None)] * 6
    assert made.to_arrow()[TEMPERATURE].to_pylist() == [temperature for temperature, _ in ANSWER]


def test_every_error_of_a_training_set_is_one_of_ours() -> None:
    """Errors of spines are input errors, and all are below FeatureStoreError, so callers catch one class."""
    assert issubclass(SpineError, InputError)
    assert all(issubclass(each, FeatureStoreError) for each in (SpineError, IncompleteError, OfflineStoreError, NotFoundError))
