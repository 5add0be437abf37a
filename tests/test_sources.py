from __future__ import annotations

import datetime as dt
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.definitions import FileSource
from featurestore.errors import SourceError
from featurestore.offline.files import source_files
from featurestore.offline.sources import BEGINNING
from featurestore.offline.spine import times_of
from featurestore.testing import oracle
from featurestore.types import Array, Bool, Date, Float32, Float64, Int64, String, Timestamp, ValueType
from tests.histories import (
    DAY,
    FIRST,
    HOUR,
    JUNE_1,
    LAST,
    NOON,
    SECOND,
    STATIC,
    UTC_TIME,
    Key,
    Landing,
    Row,
    answers,
    ask,
    at,
    batch_source,
    define,
    delays,
    differences,
    landing,
    materialize,
    moment,
    numbers,
    source_schema,
    write_files,
)

# --- how sources write time ------------------------------------------------------------------------------------------

INSTANTS = [at("2013-06-01T12:34:56"), at("1969-12-31T23:59:58"), at("1900-01-01T00:00:00"), at("2100-01-01T00:00:00")]
TIME_TYPES = [
    *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Kathmandu")),
    pa.date32(),
    pa.date64(),
]


def check_event_times(root: Path, column: pa.Array, instants: Sequence[int], *, created: bool = False, **options: Any) -> None:
    """Write a time column of a source and see its rows visible at these instants, and not a microsecond before."""
    view = delays(batch_source(visible_from_created=created))
    rows = len(instants)
    earlier = pa.array([BEGINNING] * rows, pa.int64()).cast(UTC_TIME)
    times = {"landed": earlier, "written": column} if created else {"landed": column, "written": pa.nulls(rows, UTC_TIME)}
    (root / "landings").mkdir()
    file = root / "landings" / "00.parquet"
    pq.write_table(pa.table({"tail": [f"a{n}" for n in range(rows)], **times, "n": range(rows)}), file, **options)
    asked = [((f"a{n}",), instant + offset) for n, instant in enumerate(instants) for offset in (-1, 0)]

    found = answers(ask(view, materialize(view, root), asked))

    assert [row and row["n"] for row in found] == [each for n in range(rows) for each in (None, n)]
    if not created:
        assert [row and row["__event_time"] for row in found] == [each for t in instants for each in (None, t)]


@pytest.mark.parametrize("created", [False, True], ids=["event time", "created time"])
@pytest.mark.parametrize("type_", TIME_TYPES, ids=str)
def test_times_are_read_in_every_unit(tmp_path: Path, type_: pa.DataType, created: bool) -> None:
    """Seconds to nanoseconds, naive or in a zone, and dates (their midnight in UTC) are instants of microseconds (T1)."""
    in_days = [instant - instant % DAY for instant in INSTANTS]
    instants = in_days if pa.types.is_date(type_) else INSTANTS
    numbers_ = [_in_unit(instant, type_) for instant in instants]
    integers = pa.array(numbers_, pa.int32() if type_ == pa.date32() else pa.int64())

    check_event_times(tmp_path, integers.cast(type_), instants, created=created)


def _in_unit(instant: int, type_: pa.DataType) -> int:
    if type_ == pa.date32():
        return instant // DAY
    if type_ == pa.date64():
        return instant // 1_000
    return {"s": instant // SECOND, "ms": instant // 1_000, "us": instant, "ns": instant * 1_000}[type_.unit]


@pytest.mark.parametrize("type_", [pa.timestamp("us"), pa.timestamp("ns")], ids=str)
def test_times_of_the_int96_kind_are_read_as_utc(tmp_path: Path, type_: pa.DataType) -> None:
    """The old Parquet timestamps that Spark and Hive write are naive, hence UTC (T1)."""
    integers = pa.array([_in_unit(instant, type_) for instant in INSTANTS[:2]], pa.int64())

    check_event_times(tmp_path, integers.cast(type_), INSTANTS[:2], use_deprecated_int96_timestamps=True)


@pytest.mark.parametrize("created", [False, True], ids=["event time", "created time"])
def test_nanoseconds_are_cut_as_those_of_a_spine_are(tmp_path: Path, created: bool) -> None:
    """A row is visible at its own time, to the nanosecond: sources and spines get to microseconds in the same way (T2)."""
    nanoseconds = [0, 1, 499, 500, 999, 1_500, -1, -499, -500, -999, -1_001, JUNE_1 * 1_000 + 501]
    column = pa.array(nanoseconds, pa.int64()).cast(pa.timestamp("ns"))

    check_event_times(tmp_path, column, times_of(column, "t").tolist(), created=created)


ZONED = {  # what a clock on the wall shows around a change of summer time, with its offset, and the instant
    "America/New_York": [
        ("2013-03-10T01:59:59.999999-05:00", "2013-03-10T06:59:59.999999"),
        ("2013-03-10T03:00:00-04:00", "2013-03-10T07:00:00"),
        ("2013-11-03T01:30:00-04:00", "2013-11-03T05:30:00"),
        ("2013-11-03T01:30:00-05:00", "2013-11-03T06:30:00"),
    ],
    "Europe/Berlin": [
        ("2013-03-31T01:59:59.999999+01:00", "2013-03-31T00:59:59.999999"),
        ("2013-03-31T03:00:00+02:00", "2013-03-31T01:00:00"),
        ("2013-10-27T02:30:00+02:00", "2013-10-27T00:30:00"),
        ("2013-10-27T02:30:00+01:00", "2013-10-27T01:30:00"),
    ],
    "Australia/Lord_Howe": [  # half an hour
        ("2013-04-07T01:45:00+11:00", "2013-04-06T14:45:00"),
        ("2013-04-07T01:45:00+10:30", "2013-04-06T15:15:00"),
        ("2013-10-06T01:59:59.999999+10:30", "2013-10-05T15:29:59.999999"),
        ("2013-10-06T02:30:00+11:00", "2013-10-05T15:30:00"),
    ],
}


@pytest.mark.parametrize("unit", ["us", "ns"])
@pytest.mark.parametrize("zone", ZONED)
def test_aware_times_are_converted_across_a_change_of_summer_time(tmp_path: Path, zone: str, unit: str) -> None:
    """An hour that a zone's clocks show twice is two hours, and one that they skip is none (T1)."""
    wall = [dt.datetime.fromisoformat(text) for text, _ in ZONED[zone]]
    column = pa.array(wall, pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, zone))

    check_event_times(tmp_path, column, [at(instant) for _, instant in ZONED[zone]])


@pytest.mark.parametrize("zone", ZONED)
def test_naive_times_are_utc_whatever_zone_the_machine_is_in(tmp_path: Path, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of the clock on the wall without a zone, even those that a zone shows twice or never, are UTC (T1)."""
    wall = [dt.datetime.fromisoformat(text).replace(tzinfo=None) for text, _ in ZONED[zone]]
    column = pa.array(wall, pa.timestamp("us"))

    with in_zone(zone, monkeypatch):
        check_event_times(tmp_path, column, [oracle.instant(naive) for naive in wall])


@contextmanager
def in_zone(zone: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Move the process into a time zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    "landed",
    [2**63 - 1, -(2**63) + 1, 2**62, -(2**62), LAST + 1, BEGINNING - 1, BEGINNING - 366 * DAY],
    ids=["infinity", "-infinity", "year 148108", "year -144169", "year 10000", "year 0", "year -1"],
)
@pytest.mark.parametrize("refresh", [None, 1_000 * DAY])
def test_rows_out_of_the_calendar_are_left_out(tmp_path: Path, landed: int, refresh: int | None) -> None:
    """Event times outside the years 1 to 9999, such as an end of time, do not exist and harm no other row."""
    view = delays(batch_source(delay=HOUR), refresh=refresh)
    landings = pa.array([landed, at("10:00")], pa.int64()).cast(UTC_TIME)
    columns = {"tail": ["a", "b"], "landed": landings, "written": pa.nulls(2, UTC_TIME), "n": [1, 2]}
    (tmp_path / "landings").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "landings" / "00.parquet")

    snapshot = materialize(view, tmp_path)

    found = answers(ask(view, snapshot, [(("a",), LAST), (("b",), LAST)]))
    assert found == [None, {"n": 2, "__event_time": at("10:00")}]
    assert snapshot.rows == 1


def test_a_row_that_becomes_visible_after_the_calendar_harms_no_other(tmp_path: Path) -> None:
    """A last day whose next refresh is in the year 10000 is never visible, and no reason to fail."""
    landings: list[Landing] = [("9999-12-31T23:59:59.999999", None, 1), ("10:00", None, 2)]

    assert numbers(tmp_path, delays(refresh=DAY), landings, [LAST]) == [2]


# --- what else a source may hold -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["file_row_number", "file_index", "filename", "__file_seq", "__seq", "__event_time"])
def test_columns_of_any_name_leave_the_order_of_rows_alone(tmp_path: Path, column: str) -> None:
    """`seq` is the file and row order, even if the source has a column that is called as DuckDB calls such things."""
    view = delays()
    schema = source_schema(view).append(pa.field(column, pa.int64()))
    rows = [landing(n) | {column: other} for n, other in ((1, 9), (2, 8), (3, 7), (4, 6))]
    write_files(tmp_path, schema, [rows[:2], rows[2:]])

    found = answers(ask(view, materialize(view, tmp_path), [(("a",), LAST)]))

    assert found == [{"n": 4, "__event_time": at("10:00")}]


def test_the_folder_that_a_repo_lies_in_has_no_say_in_its_values(tmp_path: Path) -> None:
    """A path such as `tail=b/n=5` outside the source, which looks like Hive's partitions, changes no column."""
    root = tmp_path / "tail=b" / "n=5"
    root.mkdir(parents=True)
    view = delays()
    write_files(root, source_schema(view), [[landing(1)]])

    found = answers(ask(view, materialize(view, root), [(("a",), LAST), (("b",), LAST)]))

    assert found == [{"n": 1, "__event_time": at("10:00")}, None]


def test_files_are_read_by_their_names_not_as_patterns(tmp_path: Path) -> None:
    """A file `part [1].parquet` in a source's folder is that file and no other."""
    view = delays()
    write_files(tmp_path, source_schema(view), [[landing(1)], [landing(2)]])
    folder = tmp_path / "landings"
    (folder / "00.parquet").rename(folder / "part 1.parquet")
    (folder / "01.parquet").rename(folder / "part [1].parquet")

    found = answers(ask(view, materialize(view, tmp_path), [(("a",), LAST)]))

    assert found == [{"n": 2, "__event_time": at("10:00")}]


def test_links_to_folders_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    """A month that lies on another disk is read as the others are; a link to a folder that is read already adds nothing."""
    landings = tmp_path / "repo" / "landings"
    for folder in (landings / "a" / "1", landings / "b", landings / "z", tmp_path / "disk" / "deep", tmp_path / "disk"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "x.parquet").touch()
    links = {"a/latest": landings / "z", "again": tmp_path / "disk" / "deep", "b/cycle": landings, "more": tmp_path / "disk"}
    for link, target in links.items():
        (landings / link).symlink_to(target, target_is_directory=True)

    def found(path: str) -> list[str]:
        return [str(Path(file).relative_to(landings).parent) for file in source_files(FileSource("s", path=path), landings.parent)]

    assert found("landings") == found("landings/**/*.parquet") == found("**/x.parquet") == ["a/1", "again", "b", "more", "z"]
    assert found("landings/m*/**/*.parquet") == found("landings/more") == ["more/deep", "more"]
    assert found("landings/**/deep/*.parquet") == ["more/deep"]


WIDENED: list[tuple[ValueType, pa.Array, pa.Array, list[Any] | None]] = [  # the last column: what the type can hold
    (Int64, pa.array([7], pa.int32()), pa.array([2**40], pa.int64()), [7, 2**40]),
    (Int64, pa.array([7], pa.int64()), pa.array([7.6], pa.float64()), None),
    (Int64, pa.array([7], pa.int64()), pa.array(["7.6"], pa.string()), None),
    (Float32, pa.array([7.5], pa.float32()), pa.array([0.1], pa.float64()), None),
    (Float64, pa.array([7.5], pa.float32()), pa.array([0.1], pa.float64()), [7.5, 0.1]),
    (Float64, pa.array([7], pa.int32()), pa.array([7.6], pa.float64()), [7.0, 7.6]),
    (Float64, pa.array([0.5], pa.float64()), pa.array([2**53 + 1], pa.int64()), None),
    (Float32, pa.array([0.5], pa.float32()), pa.array([2**24 + 1], pa.int32()), None),
    (Float32, pa.array([0.5], pa.float32()), pa.array([2**15], pa.uint16()), [0.5, 2.0**15]),
    (Bool, pa.array([True]), pa.array([7], pa.int64()), None),
    (Date, pa.array([NOON.date()]), pa.array([NOON], UTC_TIME), None),
    (Timestamp, pa.array([NOON.date()]), pa.array([NOON], UTC_TIME), [moment(JUNE_1), NOON]),
]


def write_column(root: Path, *columns: pa.Array) -> None:
    """Write a file for each, with one row of a key of its own that holds the column's value."""
    (root / "landings").mkdir()
    for number, column in enumerate(columns):
        times = pa.array([NOON], UTC_TIME)
        rows = pa.table({"tail": [f"a{number}"], "landed": times, "written": times, "x": column})
        pq.write_table(rows, root / "landings" / f"{number:02}.parquet")


@pytest.mark.parametrize(
    ("type_", "first", "second", "exact"),
    WIDENED,
    ids=[f"{type_} of {first.type} and {second.type}" for type_, first, second, _ in WIDENED],
)
def test_a_file_of_a_wider_type_is_not_cut_to_that_of_the_first(
    tmp_path: Path, type_: ValueType, first: pa.Array, second: pa.Array, exact: list[Any] | None
) -> None:
    """Where the files of a source differ in a column's type its values are exact, or the source is refused."""
    view = define({"tail": String}, {"x": type_}, batch_source())
    write_column(tmp_path, first, second)

    try:
        snapshot = materialize(view, tmp_path)
    except SourceError:
        return
    assert ask(view, snapshot, [(("a0",), LAST), (("a1",), LAST)]).features["x"].to_pylist() == exact


def test_a_file_with_finer_times_is_not_cut_to_those_of_the_first(tmp_path: Path) -> None:
    """A row of a file with timestamps is not visible from midnight because the first file has dates (T2)."""
    view = delays(batch_source(is_created=False))
    (tmp_path / "landings").mkdir()
    for number, landed in enumerate([pa.array([dt.date(2013, 5, 31)]), pa.array([NOON], UTC_TIME)]):
        rows = pa.table({"tail": ["a"], "landed": landed, "n": [number]})
        pq.write_table(rows, tmp_path / "landings" / f"{number:02}.parquet")

    try:
        snapshot = materialize(view, tmp_path)
    except SourceError:
        return
    found = answers(ask(view, snapshot, [(("a",), oracle.instant(NOON) - 1), (("a",), oracle.instant(NOON))]))
    assert [row and row["n"] for row in found] == [0, 1]


@pytest.mark.parametrize(
    ("type_", "first", "second"),
    [
        (Int64, pa.nulls(1), pa.array([2**40])),
        (String, pa.array(["x"]), pa.nulls(1)),
        (Date, pa.nulls(1), pa.array([NOON.date()])),
        (Array(String), pa.array([["x"]]), pa.array([[None]], pa.list_(pa.null()))),
        (Array(Int64), pa.nulls(1), pa.array([[1]])),
        (Float64, pa.nulls(1), pa.nulls(1)),
    ],
    ids=str,
)
def test_a_file_without_any_value_of_a_column_is_read(tmp_path: Path, type_: ValueType, first: pa.Array, second: pa.Array) -> None:
    """A column that a writer saw no value of, and so gave no type, holds nulls of any type."""
    view = define({"tail": String}, {"x": type_}, batch_source())
    write_column(tmp_path, first, second)

    found = ask(view, materialize(view, tmp_path), [(("a0",), LAST), (("a1",), LAST)])

    assert found.features["x"].to_pylist() == [*first.to_pylist(), *second.to_pylist()]


@pytest.mark.parametrize("kinds", [(pa.null(), UTC_TIME), (UTC_TIME, pa.null()), (pa.null(), pa.null())], ids=str)
@pytest.mark.parametrize("role", ["landed", "written"])
def test_a_time_column_without_any_value_is_one_of_nulls(tmp_path: Path, role: str, kinds: Sequence[pa.DataType]) -> None:
    """A file that was written without a time in any row holds nulls: rows without an event time are none, created time is free."""
    view = delays(batch_source())
    (tmp_path / "landings").mkdir()
    for number, kind in enumerate(kinds):
        times = {"landed": pa.array([NOON], UTC_TIME), "written": pa.array([NOON], UTC_TIME)}
        times[role] = pa.nulls(1) if pa.types.is_null(kind) else times[role]
        pq.write_table(pa.table({"tail": [f"a{number}"], **times, "n": [number]}), tmp_path / "landings" / f"{number}.parquet")

    found = answers(ask(view, materialize(view, tmp_path), [(("a0",), LAST), (("a1",), LAST)]))

    has_row = [role == "written" or not pa.types.is_null(kind) for kind in kinds]
    assert [row and row["n"] for row in found] == [number if there else None for number, there in enumerate(has_row)]


# --- static tables and SQL -------------------------------------------------------------------------------------------


def test_static_rows_are_visible_always(tmp_path: Path) -> None:
    """A view of a source without event time gives the present row at any time, past ones too (T13)."""
    view = define({"code": String, "number": Int64}, {"name": String}, STATIC)
    rows: list[Row] = [
        {"code": "1", "number": 11, "name": "one"},
        {"code": "11", "number": 1, "name": None},
        {"code": None, "number": 1, "name": "nobody"},
    ]
    write_files(tmp_path, source_schema(view), [rows[:1], rows[1:]])
    snapshot = materialize(view, tmp_path)
    keys: list[Key] = [("1", 11), ("11", 1), ("1", 1), (None, 1), ("1", None)]
    asked = [(key, t) for key in keys for t in (BEGINNING, -1, 0, JUNE_1, LAST)]

    assert differences(view, rows, snapshot, asked) == []


def test_a_run_on_a_static_source_replaces_the_table(tmp_path: Path) -> None:
    """What the source no longer has is gone after the next run (T13)."""
    view = define({"code": String}, {"n": Int64}, STATIC)
    asked = [((code,), 0) for code in "abc"]
    for codes, found in [("ab", [0, 1, None]), ("bc", [None, 0, 1]), ("", [None, None, None])]:
        root = tmp_path / f"source {codes}"
        root.mkdir()
        write_files(root, source_schema(view), [[{"code": code, "n": n} for n, code in enumerate(codes)]])
        (root / "table").symlink_to(tmp_path / "table")
        (tmp_path / "table").mkdir(exist_ok=True)

        assert [row and row["n"] for row in answers(ask(view, materialize(view, root), asked))] == found


SQL = """
    SELECT upper(aircraft) AS tail, landed + INTERVAL 1 HOUR AS landed, written, minutes * 2 AS n
    FROM landings AS l WHERE minutes >= 0 AND NOT coalesce(is_cancelled, false)
"""


FLIGHTS: list[tuple[str | None, str, str | None, int | None, bool | None]] = [
    # aircraft, landed, written, minutes, is_cancelled
    ("a", "10:00", "10:30", 1, None),
    ("A", "10:00", "10:30", 2, False),
    ("a", "10:00", "10:30", 9, True),
    ("b", "11:00", None, None, None),
    ("b", "10:00", None, 4, None),
    ("b", "10:00", None, 5, None),
    ("b", "11:00", None, -1, None),
    (None, "10:00", None, 6, None),
]


@pytest.mark.parametrize("cut", [[], [at("11:00")], [at("11:00") - 1, at("12:00")]], ids=["whole", "two", "three"])
def test_a_view_of_sql_gives_the_rows_of_its_sql(tmp_path: Path, cut: list[int]) -> None:
    """Keys, times and features are what the expressions give for the rows that the WHERE leaves (T12)."""
    view = delays(sql=SQL)
    times = [(moment(at(landed)), moment(at(written)) if written else None) for _, landed, written, _, _ in FLIGHTS]
    source: list[Row] = [
        {"aircraft": aircraft, "landed": landed, "written": written, "minutes": minutes, "is_cancelled": is_cancelled}
        for (aircraft, _, _, minutes, is_cancelled), (landed, written) in zip(FLIGHTS, times, strict=True)
    ]
    names, types = list(source[0]), [pa.string(), UTC_TIME, UTC_TIME, pa.int32(), pa.bool_()]
    write_files(tmp_path, pa.schema(list(zip(names, types, strict=True))), [source[:3], source[3:]])
    rows: list[Row] = [  # the SQL, in Python
        {"tail": aircraft and aircraft.upper(), "landed": landed + dt.timedelta(hours=1), "written": written, "n": minutes * 2}
        for (aircraft, _, _, minutes, is_cancelled), (landed, written) in zip(FLIGHTS, times, strict=True)
        if minutes is not None and minutes >= 0 and not is_cancelled
    ]
    asked = [((tail,), at("10:00") + steps * HOUR + us) for tail in "ABab" for steps in range(4) for us in (-1, 0)]

    snapshot = materialize(view, tmp_path, list(itertools.pairwise([FIRST, *cut, LAST])))

    assert snapshot.rows == 4
    assert differences(view, rows, snapshot, asked) == []
    assert answers(ask(view, snapshot, [(("A",), LAST), (("B",), LAST)])) == [
        {"n": 4, "__event_time": at("11:00")},
        {"n": 10, "__event_time": at("11:00")},
    ]


@pytest.mark.parametrize("zone", ["UTC", *ZONED])
def test_sql_sees_times_in_utc(tmp_path: Path, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days and hours of a timestamp in SQL are those of UTC, wherever the machine stands (T12)."""
    sql = """
        SELECT tail, landed, written, landed::DATE AS day, hour(landed) AS hour, landed::VARCHAR AS words,
               '2013-06-01 12:00:00'::TIMESTAMPTZ AS noon FROM landings
    """
    view = define({"tail": String}, {"day": Date, "hour": Int64, "words": String, "noon": Timestamp}, batch_source(), sql=sql)
    schema = pa.schema([("tail", pa.string()), ("landed", UTC_TIME), ("written", UTC_TIME)])
    late = moment(at("23:30"))
    write_files(tmp_path, schema, [[{"tail": "a", "landed": late, "written": None}]])

    with in_zone(zone, monkeypatch):
        values = ask(view, materialize(view, tmp_path), [(("a",), LAST)])

    assert values.features.to_pylist() == [
        {"day": dt.date(2013, 6, 1), "hour": 23, "words": "2013-06-01 23:30:00+00", "noon": NOON}
    ]
