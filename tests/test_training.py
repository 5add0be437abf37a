from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureService, FeatureStore
from featurestore.errors import FeatureStoreError, IncompleteError, InputError, NotFoundError, OfflineStoreError, SpineError
from featurestore.offline import spine as spines
from featurestore.offline import training
from tests.conftest import HOUR, NOON, TIME, WEATHER, Repo, at
from tests.spines import ANSWER, ASKED, GUSTS, KINDS, SERVICE, TEMPERATURE, features, offline_weather, spine

MINUTE = HOUR // 60


@pytest.fixture
def store(weather_repo: Repo) -> FeatureStore:
    """A store with the weather of `conftest.py`, materialized until noon; nothing of it is served online."""
    return offline_weather(weather_repo)


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
    """What has no time is complete at all times, past and future, and before it at none (T13)."""
    with pytest.raises(IncompleteError, match="view 'static' is not materialized yet, 1 of 1 rows are later"):
        several.get_historical_features(spine(("EWR", -(2**63))), ["static:count"])
    several.materialize(["static"])
    asked = spine(("EWR", -1), ("EWR", NOON + 10**6 * HOUR), ("JFK", NOON), ("EWR", -(2**63)), ("EWR", 2**63 - 1))

    assert several.get_historical_features(asked, ["static:count"]).to_arrow()["static__count"].to_pylist() == [3, 3, None, 3, 3]
    found = several.get_historical_features(asked, ["static:count", "slow:gusts"], incomplete="null").to_arrow()
    assert found["static__count"].to_pylist() == [3, 3, None, 3, 3]
    assert found["slow__gusts"].to_pylist() == [None] * 5


FAR = """
old = FileSource("old", path="old.parquet", event_time="at", delay="10m")
plain = FeatureView("plain", entities=[airport], source=old, online=False, fields={"n": Int64})
short = FeatureView("short", entities=[airport], source=old, ttl="1d", online=False, fields={"n": Int64})
counted = FeatureView("counted", entities=[airport], source=old, online=False, aggregations=[Aggregation("*", "count", ["1d"])])
"""


@pytest.mark.parametrize("event", [-HOUR, HOUR], ids=["before 1970", "after 1970"])  # numbers wrap around to either side
def test_at_the_ends_of_time_all_is_far_away(weather_repo: Repo, event: int) -> None:
    """At the first instants that a spine can hold nothing is visible; at the last ones all is, long expired."""
    weather_repo.define(SEVERAL + FAR)
    weather_repo.write("runways.parquet", {"origin": ["EWR"], "count": [3]})
    weather_repo.write("old.parquet", {"origin": ["EWR"], "at": pa.array([at(event)], TIME), "n": [1]})
    store = weather_repo.open()
    store.apply()
    store.materialize()
    asked = spine(*(("EWR", instant) for instant in (-(2**63), -(2**63) + 1, -(2**62), 2**62, 2**63 - 1)))

    found = store.get_historical_features(asked, ["plain:n", "short:n", "counted:count_1d"], incomplete="stale").to_arrow()

    assert found["event_timestamp"].equals(asked["event_timestamp"])
    assert found["plain__n"].to_pylist() == [None, None, None, 1, 1]
    assert found["short__n"].to_pylist() == [None] * 5
    assert found["counted__count_1d"].to_pylist() == [None, None, None, 0, 0]


def test_an_alias_looks_up_by_its_own_column(several: FeatureStore) -> None:
    """One view in two roles gives two columns, each by its key column; a null key gives null."""
    asked = spine(("EWR", NOON), ("JFK", NOON), (None, NOON)).append_column("destination", pa.array(["JFK", "EWR", "EWR"]))
    result = several.get_historical_features(asked, ["there:gusts", "slow:gusts"]).to_dict()

    assert list(result) == ["origin", "event_timestamp", "destination", "there__gusts", "slow__gusts"]
    assert (result["slow__gusts"], result["there__gusts"]) == ([2**53 + 1, None, None], [None, 2**53 + 1, 2**53 + 1])


# Reading it


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute one row at a time, as a large spine is computed in parts that fit into memory."""
    monkeypatch.setattr(training, "_ASKED_BYTES", 10**18)
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
    """`to_batches` gives what it has before it computes the next: here the first three rows, though the fourth is faulty."""
    batches = numbered.get_historical_features(_failing_later(), ["doubled:twice"]).to_batches()

    assert next(batches)["doubled__twice"].to_pylist() == [2]
    assert next(batches)["doubled__twice"].to_pylist() == [4]
    assert next(batches)["doubled__twice"].to_pylist() == [6]
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
    assert sorted(target.parent.iterdir()) == [target, target.with_name(f"{target.name}.manifest.json")]


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
