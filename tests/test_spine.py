from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.errors import SpineError
from featurestore.offline.spine import key_column, open_spine, times_of
from featurestore.types import Bool, Bytes, Date, Int32, Int64, String, Timestamp, ValueType
from tests.conftest import HOUR, NOON, TIME, Repo, at
from tests.spines import ANSWER, ASKED, GUSTS, KINDS, SERVICE, TEMPERATURE, features, offline_weather, parquet, spine

MINUTE = HOUR // 60


@pytest.fixture
def store(weather_repo: Repo) -> FeatureStore:
    """A store with the weather of `conftest.py`, materialized until noon; nothing of it is served online."""
    return offline_weather(weather_repo)


# What a spine may be


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
    parquet(ASKED, tmp_path).rename(name)

    assert features(store, name) == features(store, Path(name)) == ANSWER


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
