from __future__ import annotations

import datetime as dt
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.definitions import Entity, FeatureView, Field, FileSource
from featurestore.errors import SourceError
from featurestore.offline import point_in_time, tables
from featurestore.offline.keys import key_hash
from featurestore.offline.point_in_time import Values, values_at
from featurestore.offline.session import session
from featurestore.offline.sources import BEGINNING, view_rows
from featurestore.offline.spine import times_of
from featurestore.offline.tables import OfflineTable, Snapshot
from featurestore.types import (
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
from tests import oracle

Row = dict[str, Any]
Key = tuple[Any, ...]
Asked = Sequence[tuple[Key, int]]
Interval = tuple[int, int]

US = 1
SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
JUNE_1 = 1_370_044_800_000_000  # 2013-06-01T00:00:00Z
UTC_TIME = pa.timestamp("us", "UTC")
FIRST = BEGINNING - 1
LAST = 253_402_300_799_999_999  # the end of the year 9999
EVERYTHING: Interval = (FIRST, LAST)
ABSENT = "absent"


# --- from source rows to answers -------------------------------------------------------------------------------------


def duration(micros: int | None) -> dt.timedelta | None:
    """Return a duration of so many microseconds, none for none."""
    return None if micros is None else dt.timedelta(microseconds=micros)


def moment(instant: int) -> dt.datetime:
    """Return an instant as a datetime in UTC."""
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=instant)


def at(text: str) -> int:
    """Return the instant of a time of day on 2013-06-01, or of a whole timestamp, in UTC."""
    return oracle.instant(dt.datetime.fromisoformat(text if "T" in text else f"2013-06-01T{text}"))


def define(
    keys: dict[str, ValueType],
    fields: dict[str, ValueType],
    source: FileSource,
    *,
    ttl: int | None = None,
    refresh: int | None = None,
    sql: str | None = None,
) -> FeatureView:
    """Return a view whose durations are given in microseconds."""
    return FeatureView(
        "delays",
        entities=(Entity("aircraft", join_keys=fields_of(keys)),),
        source=source,
        fields=fields_of(fields),
        ttl=duration(ttl),
        refresh=duration(refresh),
        sql=sql,
    )


def fields_of(types: dict[str, ValueType]) -> tuple[Field, ...]:
    """Return fields of these names and types."""
    return tuple(Field(name, type_) for name, type_ in types.items())


def batch_source(*, is_created: bool = True, visible_from_created: bool = False, delay: int | None = None) -> FileSource:
    """Return the source of a folder of files with the columns `at` and `written`."""
    return FileSource(
        "landings",
        path="landings",
        event_time="landed",
        created_time="written" if is_created else None,
        visible_from="created_time" if visible_from_created else "event_time",
        delay=duration(delay),
    )


STATIC = FileSource("landings", path="landings")


def source_schema(view: FeatureView) -> pa.Schema:
    """Return the schema of the files of a view's source: keys, times and features in their own types."""
    columns = [(field.name, field.type.arrow) for field in (*view.join_keys, *view.fields)]
    return pa.schema(columns if view.is_static else [*columns, ("landed", UTC_TIME), ("written", UTC_TIME)])


def write_files(root: Path, schema: pa.Schema, files: Sequence[Sequence[Row]], **options: Any) -> None:
    """Write the files of the source `landings`, to be read in the order given."""
    folder = root / "landings"
    folder.mkdir()
    for number, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), folder / f"{number:02}.parquet", **options)


def materialize(view: FeatureView, root: Path, intervals: Sequence[Interval] = (EVERYTHING,)) -> Snapshot:
    """Replace intervals of visible time in the view's table, one after the other, by the source's rows."""
    table = OfflineTable(root / "table", view)
    rows = view_rows(view, root)
    visible = "epoch_us(__visible_time)"
    with session(SourceError, "test") as connection:
        for run, (start, end) in enumerate(intervals, start=1):
            query = f"FROM {rows.sql} WHERE {rows.keys_present} AND {visible} > {start} AND {visible} <= {end}"
            table.replace(start, end, connection.sql(query).to_arrow_reader(100_000), run=run)
    return table.snapshot()


def ask(view: FeatureView, snapshot: Snapshot, asked: Asked, *, ttl: bool = True) -> Values:
    """Evaluate all features of the view at (key, time) pairs; what comes back has the declared types, always (T5)."""
    columns = [
        pa.chunked_array([pa.array([key[number] for key, _ in asked], type=field.type.arrow)])
        for number, field in enumerate(view.join_keys)
    ]
    times = np.array([t for _, t in asked], dtype=np.int64)
    values = values_at(view, snapshot, columns, times, [field.name for field in view.fields], ttl=ttl)
    declared = [(field.name, str(field.type.arrow)) for field in view.fields]
    assert [(column.name, str(column.type)) for column in values.features.schema] == declared
    assert values.event_times.type == UTC_TIME
    assert len(values.features) == len(values.event_times) == len(values.present) == len(asked)
    return values


def answers(values: Values) -> list[Row | None]:
    """Return values as rows with the event time, None where absent; what is absent is null in all columns."""
    event_times = values.event_times.cast(pa.int64()).to_pylist()
    rows: list[Row | None] = []
    for row, event_time, is_present in zip(values.features.to_pylist(), event_times, values.present, strict=True):
        if not is_present:
            assert set(row.values()) == {None}
            assert event_time is None
        rows.append({**row, "__event_time": event_time} if is_present else None)
    return rows


def expected(view: FeatureView, rows: Sequence[Row], asked: Asked) -> list[Row | None]:
    """Return what the oracle answers, in the form of `answers`."""
    found = [oracle.row_at(view, rows, key, t) for key, t in asked]
    names = [field.name for field in view.fields]
    event_time = view.source.event_time
    return [
        None
        if row is None
        else {name: row[name] for name in names} | {"__event_time": oracle.instant(row[event_time]) if event_time else None}
        for row in found
    ]


def differences(view: FeatureView, rows: Sequence[Row], snapshot: Snapshot, asked: Asked) -> list[Row]:
    """Return the asked rows whose answer is not the oracle's."""
    pairs = zip(asked, answers(ask(view, snapshot, asked)), expected(view, rows, asked), strict=True)
    return [{"key": key, "t": t, "answer": answer, "oracle": wanted} for (key, t), answer, wanted in pairs if answer != wanted]


# --- generated histories against the oracle --------------------------------------------------------------------------

NOON = dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC)
TINY = dt.timedelta(microseconds=1)
KEYS: list[tuple[list[ValueType], list[Key]]] = [
    ([String], [("a",), ("ab",), ("",), ("é",)]),
    ([Int64], [(2**53,), (2**53 + 1,), (-(2**63),), (0,)]),
    ([Int32], [(1,), (-1,), (11,)]),
    ([Bytes], [(b"\x00\xff",), (b"",), (b"\xff",)]),
    ([Bool], [(True,), (False,)]),
    ([Date], [(dt.date(2013, 6, 1),), (dt.date(1969, 12, 31),)]),
    ([Timestamp], [(NOON,), (NOON + TINY,), (dt.datetime(1969, 12, 31, tzinfo=dt.UTC),)]),
    ([Int64, Int64], [(1, 11), (11, 1), (1, 1), (11, 11)]),
    ([String, String], [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", "")]),
    ([String, Int64], [("1", 11), ("11", 1), ("1", 2**53 + 1), ("1", 2**53)]),
    ([Int32, Bytes, Bool], [(1, b"a", True), (1, b"a", False), (1, b"", True)]),
]
STEPS = [10, HOUR, DAY]
ANCHORS = [0, JUNE_1, -25_567 * DAY]  # 1970, 2013 and 1900


@dataclass(frozen=True)
class History:
    """A view, the rows of its source by file, and keys to ask for: those of the rows, others, and null ones."""

    view: FeatureView
    files: list[list[Row]]
    keys: list[Key]

    @property
    def rows(self) -> list[Row]:
        """The source's rows in file and row order."""
        return [row for file in self.files for row in file]

    @property
    def visible_times(self) -> list[int]:
        """The distinct visible times of the rows that have one, in order."""
        return sorted({v for row in self.rows if (v := oracle.visible_time(self.view, row)) is not None})

    def asked(self) -> list[tuple[Key, int]]:
        """Return each key at every time where its value may change, shuffled, some of them twice."""
        ttl = 0 if self.view.ttl is None else self.view.ttl // TINY
        events = [oracle.instant(row["landed"]) for row in self.rows if row["landed"] is not None]
        edges = {*self.visible_times, *events, *(event + ttl for event in events), 0}
        times = {edge + offset for edge in edges for offset in (-1, 0, 1)}
        asked = list(itertools.product(self.keys, sorted(times)))
        generator = random.Random(len(asked))
        return generator.sample(asked, min(len(asked), 600)) + generator.sample(asked, min(len(asked), 9))


@st.composite
def histories(draw: st.DrawFn, *, is_reordered: bool | None = None) -> History:
    """Draw a history of few keys and few instants, so that they tie, and lie on boundaries or a microsecond beside."""
    types, universe = draw(st.sampled_from(KEYS))
    names = [f"k{number}" for number in range(len(types))]
    nulls = [(*universe[0][:number], None, *universe[0][number + 1 :]) for number in range(len(types))]
    step, anchor = draw(st.sampled_from(STEPS)), draw(st.sampled_from(ANCHORS))
    values = st.tuples(
        st.sampled_from([*universe[:2] * 4, *universe, *nulls]),
        st.integers(-2, 2),  # the event's step
        st.sampled_from([0, 0, 0, -1, 1]),  # microseconds beside it
        st.sampled_from([-step, 0, 1, step, step, 3 * step, None]),  # from the event to its being written
        st.sampled_from(["number", "number", "no number", "no event time"]),
    )
    rows: list[Row] = []
    for key, steps, offset, lag, kind in draw(st.lists(values, min_size=draw(st.sampled_from([0, 5, 10])), max_size=18)):
        event, number = anchor + steps * step + offset, len(rows)
        row = dict(zip(names, key, strict=True)) | {"name": f"row {number}"}
        row["n"] = None if kind == "no number" else 2**53 + 1 + number
        row["landed"] = None if kind == "no event time" and offset else moment(event)
        row["written"] = None if lag is None else moment(event + lag)
        rows.append(row)
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=2)))
    files = [rows[first:last] for first, last in itertools.pairwise([0, *cuts, len(rows)])]
    is_created = draw(st.booleans()) if is_reordered is None else True
    source = batch_source(
        is_created=is_created,
        visible_from_created=is_created and (draw(st.booleans()) if is_reordered is None else is_reordered),
        delay=draw(st.sampled_from([None, 1, step, step // 2])),
    )
    view = define(
        dict(zip(names, types, strict=True)),
        {"n": Int64, "name": String},
        source,
        ttl=draw(st.sampled_from([None, 1, step, 2 * step + 1])),
        refresh=draw(st.sampled_from([None, step, 3 * step, 7])),
    )
    return History(view, files, [*universe, *nulls])


@st.composite
def cut_histories(draw: st.DrawFn, *, most_cuts: int = 3) -> tuple[History, list[Interval]]:
    """Draw a history and a way to materialize all of it: in one go or in pieces, and then some intervals again."""
    history = draw(histories())
    edges = {edge for visible in history.visible_times for edge in (visible, visible - 1)}
    cuts = draw(st.sets(st.sampled_from(sorted(edges)), min_size=1, max_size=most_cuts)) if edges else set()
    bounds = [FIRST, *sorted(cuts), LAST]
    pieces = st.permutations(list(itertools.pairwise(bounds)))
    all_of_it = draw(st.one_of(st.just([EVERYTHING]), pieces))
    again = draw(st.lists(st.sampled_from(list(itertools.combinations(bounds, 2))), max_size=3))
    return history, [*all_of_it, *again]


@contextmanager
def materialized(history: History, intervals: Sequence[Interval] = (EVERYTHING,)) -> Iterator[Snapshot]:
    """Write a history's files and materialize them in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), source_schema(history.view), history.files)
        yield materialize(history.view, Path(folder), intervals)


def mismatches(history: History, snapshot: Snapshot) -> list[Row]:
    """Return what differs from the oracle, also when only the past is asked for and files of the present stay unread."""
    asked, moments = history.asked(), history.visible_times or [0]
    past = [(key, t) for key, t in asked if t <= moments[len(moments) // 2]]
    return [found for part in (asked, past) for found in differences(history.view, history.rows, snapshot, part)]


@given(histories())
@settings(max_examples=150, deadline=None)
def test_values_are_those_of_the_oracle(history: History) -> None:
    """On any history the library and the naive reading of the contract answer alike, at every time that matters."""
    with materialized(history) as snapshot:
        assert mismatches(history, snapshot) == []


@given(histories(is_reordered=True))
@settings(max_examples=100, deadline=None)
def test_values_that_become_visible_when_written_are_those_of_the_oracle(history: History) -> None:
    """With `visible_from="created_time"`, late rows and corrections count from when they were written (T3, T4)."""
    with materialized(history) as snapshot:
        assert mismatches(history, snapshot) == []


@given(cut_histories())
@settings(max_examples=80, deadline=None)
def test_the_way_a_history_is_cut_into_runs_changes_nothing(cut: tuple[History, list[Interval]]) -> None:
    """Intervals in any order, overlapping or repeated, leave the same table as one run over everything (T7)."""
    history, intervals = cut
    kept = [row for row in history.rows if _is_stored(history.view, row)]

    with materialized(history, intervals) as snapshot:
        assert snapshot.rows == len(kept)
        assert mismatches(history, snapshot) == []


def _is_stored(view: FeatureView, row: Row) -> bool:
    return row["landed"] is not None and all(row[key.name] is not None for key in view.join_keys)


Hash = Callable[[Sequence[pa.Array]], npt.NDArray[np.int64]]


def constant(value: int) -> Hash:
    """Return a hash that is the same for all keys."""
    return lambda columns: np.full(len(columns[0]), value, dtype=np.int64)


HASHES: dict[str, Hash] = {
    "one bit": lambda columns: key_hash(columns) & 1,
    "sign": lambda columns: key_hash(columns) >> 63,
    "the ends": lambda columns: np.where(key_hash(columns) & 1, -(2**63), 2**63 - 1),
    "zero": constant(0),
    "the least": constant(-(2**63)),
    "the greatest": constant(2**63 - 1),
    "a quarter": constant(2**62),
}


@given(cut_histories(most_cuts=2), st.sampled_from(sorted(HASHES)), st.sampled_from([1, 2, 5, 2_000_000]))
@settings(max_examples=100, deadline=None)
def test_keys_whose_hashes_collide_stay_apart(cut: tuple[History, list[Interval]], name: str, bucket_rows: int) -> None:
    """Different keys of one hash, in several files and in buckets of any size, keep their own values (T5)."""
    history, intervals = cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "key_hash", HASHES[name])
        patch.setattr(point_in_time, "key_hash", HASHES[name])
        patch.setattr(point_in_time, "_BUCKET_ROWS", bucket_rows)
        with materialized(history, intervals) as snapshot:
            assert mismatches(history, snapshot) == []


@given(cut_histories(most_cuts=1))
@settings(max_examples=40, deadline=None)
def test_the_size_of_buckets_changes_nothing(cut: tuple[History, list[Interval]]) -> None:
    """Whether a table is one bucket or more of them than it has rows, the answers are identical."""
    history, intervals = cut
    asked = history.asked()
    with materialized(history, intervals) as snapshot:
        whole = ask(history.view, snapshot, asked)
        for bucket_rows in (1, 3):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(point_in_time, "_BUCKET_ROWS", bucket_rows)
                parts = ask(history.view, snapshot, asked)
            assert parts.features.equals(whole.features)
            assert parts.event_times.equals(whole.event_times)
            assert parts.present.tolist() == whole.present.tolist()


# --- the rules, one by one -------------------------------------------------------------------------------------------

Landing = tuple[str, str | None, int | None]  # landed, written, n: all of the aircraft "a"


def numbers(root: Path, view: FeatureView, landings: Sequence[Landing], times: Sequence[int]) -> list[int | str | None]:
    """Return the feature `n` of the aircraft "a" at some times; the oracle has to agree that this is the answer."""
    rows = [
        {"tail": "a", "landed": moment(at(landed)), "written": written and moment(at(written)), "n": n}
        for landed, written, n in landings
    ]
    asked = [(("a",), t) for t in times]
    write_files(root, source_schema(view), [rows])
    snapshot = materialize(view, root)
    assert differences(view, rows, snapshot, asked) == []
    return [ABSENT if row is None else row["n"] for row in answers(ask(view, snapshot, asked))]


def delays(
    source: FileSource | None = None, *, ttl: int | None = None, refresh: int | None = None, sql: str | None = None
) -> FeatureView:
    """Return a view of the feature `n` of aircraft."""
    return define({"tail": String}, {"n": Int64}, source or batch_source(), ttl=ttl, refresh=refresh, sql=sql)


def test_a_row_is_visible_at_its_visible_time_and_not_a_microsecond_before(tmp_path: Path) -> None:
    """A row is visible at `t` if and only if its visible time is `<= t` (T2)."""
    times = [at("09:59:59.999999"), at("10:00"), at("10:00:00.000001"), LAST]

    assert numbers(tmp_path, delays(), [("10:00", None, 1)], times) == [ABSENT, 1, 1, 1]


def test_the_next_row_takes_over_at_its_visible_time(tmp_path: Path) -> None:
    """The row before is the answer up to the microsecond before the next one is visible (T2)."""
    landings: list[Landing] = [("10:00", None, 1), ("11:00", None, 2)]

    assert numbers(tmp_path, delays(), landings, [at("10:59:59.999999"), at("11:00")]) == [1, 2]


VISIBLE = [  # landed, written, refresh, delay, visible from
    ("10:20", None, None, None, "10:20"),
    ("10:20", None, None, 5 * 60 * SECOND, "10:25"),
    ("10:00", None, HOUR, None, "10:00"),
    ("10:00:00.000001", None, HOUR, None, "11:00"),
    ("09:59:59.999999", None, HOUR, None, "10:00"),
    ("10:00", None, HOUR, 5 * 60 * SECOND, "10:05"),
    ("10:20", None, HOUR, 5 * 60 * SECOND, "11:05"),
    ("10:20", None, DAY, HOUR, "2013-06-02T01:00"),
    ("10:20", None, 7 * DAY, None, "2013-06-06T00:00"),  # aligned to 1970-01-01, a Thursday
    ("10:20", "13:00", HOUR, None, "11:00"),  # a created time that nobody asked to wait for
    ("1969-12-31T23:00", None, HOUR, None, "1969-12-31T23:00"),
    ("1969-12-31T23:00:00.000001", None, HOUR, None, "1970-01-01T00:00"),
    ("1969-12-31T23:59:59.999999", None, HOUR, US, "1970-01-01T00:00:00.000001"),
    ("1900-01-01T00:30", None, HOUR, None, "1900-01-01T01:00"),
    ("0001-01-01T00:00", None, None, None, "0001-01-01T00:00"),
    ("0001-01-01T00:30", None, HOUR, None, "0001-01-01T01:00"),
]


@pytest.mark.parametrize(("landed", "written", "refresh", "delay", "visible"), VISIBLE)
def test_the_visible_time_is_the_next_refresh_plus_the_delay(
    tmp_path: Path, landed: str, written: str | None, refresh: int | None, delay: int | None, visible: str
) -> None:
    """`v = ceil(e, refresh) + delay`; an event time on the boundary stays, before 1970 as after (T3)."""
    view = delays(batch_source(delay=delay), refresh=refresh)

    assert numbers(tmp_path, view, [(landed, written, 1)], [at(visible) - 1, at(visible)]) == [ABSENT, 1]


VISIBLE_WHEN_WRITTEN = [  # landed, written, refresh, delay, visible from
    ("10:20", "11:40", None, None, "11:40"),
    ("10:20", "11:40", HOUR, None, "12:00"),
    ("10:20", "11:40", HOUR, 5 * 60 * SECOND, "12:05"),
    ("10:20", "12:00", HOUR, None, "12:00"),
    ("10:20", "12:00:00.000001", HOUR, None, "13:00"),
    ("10:20", None, HOUR, None, "11:00"),
    ("10:20", "09:00", HOUR, None, "11:00"),
    ("10:20", "1969-01-01T00:00", None, None, "10:20"),
    ("1969-12-31T10:20", "1969-12-31T11:40", HOUR, None, "1969-12-31T12:00"),
]


@pytest.mark.parametrize(("landed", "written", "refresh", "delay", "visible"), VISIBLE_WHEN_WRITTEN)
def test_a_row_that_waits_to_be_written_is_known_from_the_later_of_both_times(
    tmp_path: Path, landed: str, written: str | None, refresh: int | None, delay: int | None, visible: str
) -> None:
    """With `visible_from="created_time"`, `known = max(e, created)`, and a null created time counts as `e` (T3)."""
    view = delays(batch_source(visible_from_created=True, delay=delay), refresh=refresh)

    assert numbers(tmp_path, view, [(landed, written, 1)], [at(visible) - 1, at(visible)]) == [ABSENT, 1]


LATEST: list[tuple[str, list[Landing], int | None]] = [
    ("the greatest event time", [("10:00", None, 1), ("12:00", None, 2), ("11:00", None, 3)], 2),
    ("event time before created time", [("10:00", "23:00", 1), ("10:00:00.000001", "01:00", 2)], 2),
    ("the greatest created time", [("10:00", "11:00", 1), ("10:00", "13:00", 2), ("10:00", "12:00", 3)], 2),
    ("a microsecond of created time", [("10:00", "11:00:00.000001", 1), ("10:00", "11:00", 2)], 1),
    ("null created first", [("10:00", "11:00", 1), ("10:00", None, 2)], 1),
    ("null created before 1969", [("10:00", "1969-01-01T00:00", 1), ("10:00", None, 2)], 1),
    ("null created before the year 1", [("10:00", "0001-01-01T00:00", 1), ("10:00", None, 2)], 1),
    ("the last row", [("10:00", "11:00", 1), ("10:00", "11:00", 3), ("10:00", "11:00", 2)], 2),
    ("the last row without created time", [("10:00", None, 3), ("10:00", None, 1)], 1),
    ("a null is a value", [("10:00", None, 1), ("11:00", None, None)], None),
]


@pytest.mark.parametrize("visible_from_created", [False, True], ids=["at once", "when written"])
@pytest.mark.parametrize(("landings", "n"), [case[1:] for case in LATEST], ids=[case[0] for case in LATEST])
def test_the_value_is_that_of_the_greatest_event_created_seq(
    tmp_path: Path, landings: list[Landing], n: int | None, visible_from_created: bool
) -> None:
    """Among visible rows the greatest `(event time, created time, seq)` wins, a null created time sorts first (T4)."""
    view = delays(batch_source(visible_from_created=visible_from_created))

    assert numbers(tmp_path, view, landings, [at("23:59:59")]) == [n]


def test_rows_that_tie_are_ordered_by_file_and_row(tmp_path: Path) -> None:
    """Of rows with equal times that of the last file wins, and within it the last row (T4, seq)."""
    view = delays()
    files = [[_landing(n) for n in numbers_] for numbers_ in ([9, 8], [1, 3], [2, 4, 7], [])]
    write_files(tmp_path, source_schema(view), files)

    assert answers(ask(view, materialize(view, tmp_path), [(("a",), LAST)])) == [{"n": 7, "__event_time": at("10:00")}]


def _landing(n: int | None, landed: str = "10:00", tail: str = "a") -> Row:
    return {"tail": tail, "landed": moment(at(landed)), "written": moment(at(landed)), "n": n}


def test_without_created_time_a_column_of_that_kind_does_not_break_ties(tmp_path: Path) -> None:
    """A source that does not name a created time has none: the last row wins (T4)."""
    landings: list[Landing] = [("10:00", "13:00", 1), ("10:00", "12:00", 2)]

    assert numbers(tmp_path, delays(batch_source(is_created=False)), landings, [at("14:00")]) == [2]


def test_a_late_row_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    """A row that is written late counts from then on, but only if its event time is the greatest (T4)."""
    view = delays(batch_source(visible_from_created=True))
    landings: list[Landing] = [("10:00", "10:01", 1), ("09:00", "12:00", 2), ("11:00", "13:00", 3)]
    times = [at("10:00"), at("10:01"), at("12:00"), at("12:59:59.999999"), at("13:00")]

    assert numbers(tmp_path, view, landings, times) == [ABSENT, 1, 1, 1, 3]


def test_a_late_row_is_the_value_until_a_newer_one_is_visible(tmp_path: Path) -> None:
    """What was visible first and what is newest are two things: the answer is the newest of what is visible (T4)."""
    view = delays(batch_source(visible_from_created=True))
    landings: list[Landing] = [("11:00", "15:00", 3), ("09:00", "14:00", 2), ("08:00", "08:00", 1)]

    assert numbers(tmp_path, view, landings, [at("13:59"), at("14:00"), at("14:59"), at("15:00")]) == [1, 2, 2, 3]


def test_a_correction_replaces_from_when_it_was_written(tmp_path: Path) -> None:
    """A row of the same event, written later, is unseen before it was written and the value afterwards (T3, T4)."""
    view = delays(batch_source(visible_from_created=True))
    landings: list[Landing] = [("10:00", "12:00", 2), ("10:00", "10:00", 1)]

    assert numbers(tmp_path, view, landings, [at("11:59:59.999999"), at("12:00")]) == [1, 2]


def test_ttl_equality_is_still_present(tmp_path: Path) -> None:
    """A value is absent if `t - event time > ttl`, and present at equality (T4)."""
    times = [at("11:00"), at("11:00:00.000001")]

    assert numbers(tmp_path, delays(ttl=HOUR), [("10:00", None, 1)], times) == [1, ABSENT]


def test_ttl_counts_from_the_event_time(tmp_path: Path) -> None:
    """Delay and refresh take from the time in which a value is present, they do not move its end (T4)."""
    view = delays(batch_source(delay=HOUR // 2), ttl=2 * HOUR, refresh=HOUR)
    times = [at("11:29:59.999999"), at("11:30"), at("12:20"), at("12:20:00.000001")]

    assert numbers(tmp_path, view, [("10:20", None, 1)], times) == [ABSENT, 1, 1, ABSENT]


def test_a_value_that_is_visible_after_its_ttl_is_never_present(tmp_path: Path) -> None:
    """With a delay longer than the TTL every value is absent, always (T4)."""
    view = delays(batch_source(delay=2 * HOUR), ttl=HOUR)

    assert numbers(tmp_path, view, [("10:00", None, 1)], [at("11:00"), at("12:00"), LAST]) == [ABSENT] * 3


def test_ttl_of_a_late_row_counts_from_its_event(tmp_path: Path) -> None:
    """A row written after its TTL is absent, and hides nothing that is newer (T4)."""
    view = delays(batch_source(visible_from_created=True), ttl=HOUR)
    landings: list[Landing] = [("11:30", "11:30", 1), ("10:00", "12:00", 2), ("14:00", "16:00", 3)]
    times = [at("12:00"), at("12:30"), at("12:30:00.000001"), at("16:00")]

    assert numbers(tmp_path, view, landings, times) == [1, 1, ABSENT, ABSENT]


def test_ttl_before_1970(tmp_path: Path) -> None:
    """The TTL is measured on instants of either sign alike (T4)."""
    times = [at("1969-12-31T23:59:59.999999"), at("1970-01-01T00:59:59.999999"), at("1970-01-01T01:00")]

    assert numbers(tmp_path, delays(ttl=HOUR), [("1969-12-31T23:59:59.999999", None, 1)], times) == [1, 1, ABSENT]


def test_expired_values_are_left_in_on_request(tmp_path: Path) -> None:
    """`ttl=False` answers as if the view had no TTL."""
    view = delays(ttl=HOUR)
    write_files(tmp_path, source_schema(view), [[_landing(1)]])
    snapshot = materialize(view, tmp_path)
    asked = [(("a",), at("09:00")), (("a",), at("12:00")), (("b",), at("12:00"))]

    assert [row and row["n"] for row in answers(ask(view, snapshot, asked, ttl=False))] == [None, 1, None]


# --- what comes back -------------------------------------------------------------------------------------------------


def test_answers_stand_in_the_order_asked_with_duplicates(tmp_path: Path) -> None:
    """There is one answer for each row asked for, in the same order, however often it is asked (T5)."""
    view = delays()
    rows = [_landing(1), _landing(2, "11:00"), _landing(3, tail="b")]
    write_files(tmp_path, source_schema(view), [rows])
    noon, half = at("12:00"), at("10:30")
    asked = [(("b",), noon), (("a",), noon), (("c",), noon), (("a",), half), (("b",), noon), (("a",), noon)]

    found = answers(ask(view, materialize(view, tmp_path), asked))

    assert [row and row["n"] for row in found] == [3, 2, None, 1, 3, 2]


def test_a_null_join_key_gets_nulls(tmp_path: Path) -> None:
    """A row asked for with a null in any join key is absent, whatever the source holds (T5)."""
    view = define({"a": String, "b": Int64}, {"n": Int64}, batch_source())
    keys = [("x", 1), ("x", None), (None, 1), (None, None)]
    rows = [{"a": a, "b": b, "landed": NOON, "written": NOON, "n": n} for n, (a, b) in enumerate(keys)]
    write_files(tmp_path, source_schema(view), [rows])

    found = answers(ask(view, materialize(view, tmp_path), [(key, LAST) for key in reversed(keys)]))

    assert [row and row["n"] for row in found] == [None, None, None, 0]


def test_only_null_join_keys_get_only_nulls(tmp_path: Path) -> None:
    """Nulls alone are answered too (T5)."""
    view = delays()
    write_files(tmp_path, source_schema(view), [[_landing(1)]])

    assert answers(ask(view, materialize(view, tmp_path), [((None,), LAST)] * 3)) == [None] * 3


@pytest.mark.parametrize(
    ("types", "keys"),
    [
        ([Int64, Int64], [(1, 11), (11, 1), (1, 1), (11, 11), (111, 1), (1, 111)]),
        ([String, String], [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("a", "b"), ("a\0", "b"), ("a", "\0b")]),
        ([String, Int64], [("1", 11), ("11", 1), ("1", 1), ("111", 1), ("", 111)]),
        ([Bytes, String], [(b"a", "bc"), (b"ab", "c"), (b"", "abc")]),
    ],
    ids=["integers", "texts", "text and integer", "bytes and text"],
)
def test_composite_keys_are_compared_column_by_column(tmp_path: Path, types: list[ValueType], keys: list[Key]) -> None:
    """Keys whose columns would concatenate to the same text, or hold the same values elsewhere, are different (T5)."""
    view = define({f"k{number}": type_ for number, type_ in enumerate(types)}, {"n": Int64}, batch_source())
    rows = [
        {**{f"k{number}": part for number, part in enumerate(key)}, "landed": NOON, "written": None, "n": n}
        for n, key in enumerate(keys)
    ]
    write_files(tmp_path, source_schema(view), [rows])

    found = answers(ask(view, materialize(view, tmp_path), [(key, LAST) for key in keys]))

    assert [row and row["n"] for row in found] == list(range(len(keys)))


NO_ROWS: dict[str, list[list[Row]]] = {
    "an empty file": [[]],
    "empty files": [[], []],
    "null keys only": [[{"tail": None, "landed": NOON, "written": NOON, "n": 1}]],
    "no event times": [[{"tail": "a", "landed": None, "written": NOON, "n": 1}]],
}


@pytest.mark.parametrize("files", NO_ROWS.values(), ids=NO_ROWS.keys())
def test_a_source_without_rows_gives_absent_values(tmp_path: Path, files: list[list[Row]]) -> None:
    """A table that was materialized from nothing answers, with nothing."""
    view = delays()
    write_files(tmp_path, source_schema(view), files)
    snapshot = materialize(view, tmp_path)

    assert snapshot.rows == 0
    assert answers(ask(view, snapshot, [(("a",), LAST), ((None,), LAST)])) == [None, None]


def test_a_table_that_was_never_written_gives_absent_values(tmp_path: Path) -> None:
    """Before the first run every value is absent."""
    view = delays()
    snapshot = OfflineTable(tmp_path / "table", view).snapshot()

    assert snapshot == Snapshot(-1)
    assert answers(ask(view, snapshot, [(("a",), LAST)])) == [None]


def test_no_rows_asked_get_no_answers(tmp_path: Path) -> None:
    """An empty spine gives empty columns of the declared types (T5)."""
    view = delays()
    write_files(tmp_path, source_schema(view), [[_landing(1)]])

    assert answers(ask(view, materialize(view, tmp_path), [])) == []


def test_a_history_in_the_future_gives_absent_values(tmp_path: Path) -> None:
    """Rows that are visible only after all times asked for answer none of them (T2)."""
    landings: list[Landing] = [("2030-01-01T00:00", None, 1), ("2031-01-01T00:00", None, 2)]

    assert numbers(tmp_path, delays(), landings, [0, at("10:00"), at("2029-12-31T23:59:59")]) == [ABSENT] * 3


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


def test_a_projection_gives_its_features_in_its_order(tmp_path: Path) -> None:
    """Only the features that are asked for come back, in the order asked."""
    view = define({"tail": String}, {"x": Int64, "y": String, "z": Bool}, batch_source())
    row = {"tail": "a", "landed": NOON, "written": NOON, "x": 1, "y": "one", "z": True}
    write_files(tmp_path, source_schema(view), [[row]])
    snapshot = materialize(view, tmp_path)

    for features in (["z", "x"], ["y"], []):
        values = values_at(view, snapshot, [pa.chunked_array([["a"]])], np.array([LAST]), features)
        assert values.features.column_names == features
        assert values.present.tolist() == [True]
        assert values.features.to_pylist() == [{name: row[name] for name in features}]


def test_keys_may_come_in_chunks_and_slices(tmp_path: Path) -> None:
    """How the key columns asked for are chunked does not matter, nor that two of them are chunked differently."""
    view = define({"a": String, "b": Int64}, {"n": Int64}, batch_source())
    rows = [
        {"a": a, "b": b, "landed": NOON, "written": NOON, "n": 10 * b + (a == "y")} for a, b in itertools.product("xy", range(4))
    ]
    write_files(tmp_path, source_schema(view), [rows])
    names = pa.chunked_array([["x", "y"], pa.array(["no", None, "x", "y"]).slice(1), pa.array([], pa.string())])
    integers = pa.chunked_array([pa.array([9, 0, 1, 2]).slice(1), pa.array([3, None], pa.int64())])

    values = values_at(view, materialize(view, tmp_path), [names, integers], np.full(5, LAST), ["n"])

    assert values.features["n"].to_pylist() == [0, 11, None, 30, None]


def test_an_int64_with_nulls_stays_exact(tmp_path: Path) -> None:
    """Integers above 2**53 beside nulls come back as they are, as int64 (T5)."""
    exact = [2**53 + 1, None, -(2**53) - 1, 2**63 - 1, -(2**63), None]
    view = delays()
    rows = [_landing(n, tail=f"a{number}") for number, n in enumerate(exact)]
    write_files(tmp_path, source_schema(view), [rows])

    values = ask(view, materialize(view, tmp_path), [((f"a{number}",), LAST) for number in range(7)])

    assert values.features["n"].type == pa.int64()
    assert values.features["n"].to_pylist() == [*exact, None]
    assert values.present.tolist() == [True] * 6 + [False]


# --- types -----------------------------------------------------------------------------------------------------------

KEY_VALUES: list[tuple[ValueType, list[Any]]] = [
    (String, ["a", "A", "", "a\0b", "é", "e\u0301", "東京", "x" * 1_000, "'; --"]),
    (Int64, [0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]),
    (Int32, [0, 1, -1, 2**31 - 1, -(2**31)]),
    (Bytes, [b"", b"\x00", b"\x00\x00", b"a", b"\xff\xfe", b"'"]),
    (Bool, [False, True]),
    (Date, [dt.date(1, 1, 1), dt.date(1969, 12, 31), dt.date(1970, 1, 1), dt.date(2013, 6, 1), dt.date(9999, 12, 31)]),
    (Timestamp, [NOON, NOON + TINY, NOON - TINY, moment(-1), moment(0), moment(BEGINNING), moment(LAST)]),
]


@pytest.mark.parametrize("bucket_rows", [1, 2_000_000], ids=["many buckets", "one bucket"])
@pytest.mark.parametrize(("type_", "keys"), KEY_VALUES, ids=[str(type_) for type_, _ in KEY_VALUES])
def test_every_key_type_finds_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: ValueType, keys: list[Any], bucket_rows: int
) -> None:
    """Keys of each type are found by their value, in several files of a table, and null is no value."""
    monkeypatch.setattr(point_in_time, "_BUCKET_ROWS", bucket_rows)
    view = define({"k": type_}, {"n": Int64}, batch_source(is_created=False))
    rows = [
        {"k": key, "landed": moment(JUNE_1 + day * DAY), "written": None, "n": 100 * day + number}
        for day in range(3)
        for number, key in enumerate([*keys, None])
    ]
    write_files(tmp_path, source_schema(view), [rows])
    snapshot = materialize(view, tmp_path, [(FIRST, JUNE_1), (JUNE_1, JUNE_1 + DAY), (JUNE_1 + DAY, LAST)])
    asked = [((key,), JUNE_1 + day * DAY) for key in [*keys, None] for day in (-1, 0, 1, 2)]

    assert differences(view, rows, snapshot, asked) == []


def _float32(value: float) -> float:
    return float(np.float32(value))


FEATURE_VALUES: list[tuple[ValueType, list[Any]]] = [
    (Bool, [True, False]),
    (Int32, [0, 2**31 - 1, -(2**31)]),
    (Int64, [0, 2**53 + 1, 2**63 - 1, -(2**63)]),
    (Float32, [0.0, -0.0, _float32(0.1), float("inf"), float("-inf"), float("nan"), 2.0**-149]),
    (Float64, [0.0, -0.0, 0.1, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")]),
    (String, ["", "a", "é", "東京", "a\0b", "x" * 10_000]),
    (Bytes, [b"", b"\x00\xff", bytes(range(256))]),
    (Date, [dt.date(1, 1, 1), dt.date(1969, 12, 31), dt.date(2013, 6, 1), dt.date(9999, 12, 31)]),
    (Timestamp, [NOON, moment(-1), moment(BEGINNING), moment(LAST)]),
    (Array(Float32), [[], [_float32(0.1), None, float("nan")], [1.5] * 300, [None]]),
    (Array(Float64), [[], [0.1, None]]),
    (Array(String), [[], ["a", None, "", "é"], [None, None]]),
    (Array(Int64), [[], [2**53 + 1, None, -(2**63)]]),
    (Array(Int32), [[1, None]]),
    (Array(Bool), [[True, None, False]]),
    (Array(Bytes), [[b"\x00", None, b""]]),
    (Array(Date), [[dt.date(1969, 12, 31), None]]),
    (Array(Timestamp), [[NOON, None, moment(-1)]]),
]
FEATURE_IDS = [str(type_) for type_, _ in FEATURE_VALUES]


@pytest.mark.parametrize("bucket_rows", [1, 2_000_000], ids=["many buckets", "one bucket"])
@pytest.mark.parametrize(("type_", "values"), FEATURE_VALUES, ids=FEATURE_IDS)
def test_every_feature_type_gives_back_what_went_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: ValueType, values: list[Any], bucket_rows: int
) -> None:
    """A value comes back as it was written, in the declared Arrow type, beside nulls and absent rows (T5)."""
    monkeypatch.setattr(point_in_time, "_BUCKET_ROWS", bucket_rows)
    view = define({"tail": String}, {"x": type_}, batch_source())
    stored = [*values, None]
    rows = [
        {"tail": f"a{number}", "landed": moment(JUNE_1 + number), "written": None, "x": value}
        for number, value in enumerate(stored)
    ]
    write_files(tmp_path, source_schema(view), [rows])
    snapshot = materialize(view, tmp_path, [(FIRST, JUNE_1), (JUNE_1, LAST)])

    found = ask(view, snapshot, [((f"a{number}",), LAST) for number in range(len(stored) + 1)])

    # As text, which tells -0.0 from 0.0 and holds NaN equal to itself.
    assert str(found.features["x"].to_pylist()) == str(pa.array([*stored, None], type_.arrow).to_pylist())
    assert found.present.tolist() == [True] * len(stored) + [False]


@pytest.mark.parametrize("type_", [type_ for type_, _ in FEATURE_VALUES], ids=FEATURE_IDS)
def test_a_column_of_nulls_keeps_its_type(tmp_path: Path, type_: ValueType) -> None:
    """Where all values are null or absent the column still has the declared Arrow type (T5)."""
    view = define({"tail": String}, {"x": type_}, batch_source())
    write_files(tmp_path, source_schema(view), [[{"tail": "a", "landed": NOON, "written": NOON, "x": None}]])
    snapshot = materialize(view, tmp_path)

    for asked in ([(("a",), LAST)], [(("b",), LAST)], [((None,), LAST)], []):
        found = ask(view, snapshot, asked)  # which checks the type
        assert found.features["x"].null_count == len(asked)


NARROWER: list[tuple[ValueType, pa.DataType, list[Any], list[Any]]] = [
    (Int64, pa.int32(), [-1, None], [-1, None]),
    (Int64, pa.uint32(), [2**32 - 1, None], [2**32 - 1, None]),
    (Int32, pa.uint16(), [2**16 - 1, None], [2**16 - 1, None]),
    (Float64, pa.float32(), [_float32(0.1), None], [_float32(0.1), None]),
    (Float64, pa.int32(), [2**31 - 1, None], [float(2**31 - 1), None]),
    (String, pa.large_string(), ["a", None], ["a", None]),
    (String, pa.dictionary(pa.int32(), pa.string()), ["a", None], ["a", None]),
    (Bytes, pa.binary(2), [b"ab", None], [b"ab", None]),
    (Timestamp, pa.timestamp("us"), [dt.datetime.fromisoformat("2013-06-01T12:00"), None], [NOON, None]),
    (Timestamp, pa.timestamp("ms", "Europe/Berlin"), [NOON, None], [NOON, None]),
    (Timestamp, pa.date32(), [dt.date(2013, 6, 1), None], [moment(JUNE_1), None]),
    (Array(Float32), pa.list_(pa.float32(), 2), [[1.5, None], None], [[1.5, None], None]),
    (Array(Float64), pa.list_(pa.float32()), [[1.5, None], None], [[1.5, None], None]),
    (Array(Int64), pa.large_list(pa.int32()), [[1, None], None], [[1, None], None]),
]


@pytest.mark.parametrize(
    ("type_", "stored", "values", "found"), NARROWER, ids=[f"{type_} from {stored}" for type_, stored, *_ in NARROWER]
)
def test_a_narrower_column_gives_the_declared_type(
    tmp_path: Path, type_: ValueType, stored: pa.DataType, values: list[Any], found: list[Any]
) -> None:
    """A source column whose type holds only values of the declared one is converted to it, exactly."""
    view = define({"tail": String}, {"x": type_}, batch_source())
    schema = pa.schema([("tail", pa.string()), ("landed", UTC_TIME), ("written", UTC_TIME), ("x", stored)])
    rows = [{"tail": f"a{n}", "landed": NOON, "written": NOON, "x": value} for n, value in enumerate(values)]
    write_files(tmp_path, schema, [rows])

    answer = ask(view, materialize(view, tmp_path), [((f"a{n}",), LAST) for n in range(len(values))])

    assert answer.features["x"].to_pylist() == found


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


# --- what else a source may hold, and runs that follow each other ----------------------------------------------------


@pytest.mark.parametrize("column", ["file_row_number", "file_index", "filename", "__file_seq", "__seq", "__event_time"])
def test_columns_of_any_name_leave_the_order_of_rows_alone(tmp_path: Path, column: str) -> None:
    """`seq` is the file and row order, even if the source has a column that is called as DuckDB calls such things."""
    view = delays()
    schema = source_schema(view).append(pa.field(column, pa.int64()))
    rows = [_landing(n) | {column: other} for n, other in ((1, 9), (2, 8), (3, 7), (4, 6))]
    write_files(tmp_path, schema, [rows[:2], rows[2:]])

    found = answers(ask(view, materialize(view, tmp_path), [(("a",), LAST)]))

    assert found == [{"n": 4, "__event_time": at("10:00")}]


def test_the_folder_that_a_repo_lies_in_has_no_say_in_its_values(tmp_path: Path) -> None:
    """A path such as `tail=b/n=5` outside the source, which looks like Hive's partitions, changes no column."""
    root = tmp_path / "tail=b" / "n=5"
    root.mkdir(parents=True)
    view = delays()
    write_files(root, source_schema(view), [[_landing(1)]])

    found = answers(ask(view, materialize(view, root), [(("a",), LAST), (("b",), LAST)]))

    assert found == [{"n": 1, "__event_time": at("10:00")}, None]


def test_files_are_read_by_their_names_not_as_patterns(tmp_path: Path) -> None:
    """A file `part [1].parquet` in a source's folder is that file and no other."""
    view = delays()
    write_files(tmp_path, source_schema(view), [[_landing(1)], [_landing(2)]])
    folder = tmp_path / "landings"
    (folder / "00.parquet").rename(folder / "part 1.parquet")
    (folder / "01.parquet").rename(folder / "part [1].parquet")

    found = answers(ask(view, materialize(view, tmp_path), [(("a",), LAST)]))

    assert found == [{"n": 2, "__event_time": at("10:00")}]


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
    (tmp_path / "landings").mkdir()
    for number, column in enumerate((first, second)):
        times = pa.array([NOON], UTC_TIME)
        rows = pa.table({"tail": [f"a{number}"], "landed": times, "written": times, "x": column})
        pq.write_table(rows, tmp_path / "landings" / f"{number:02}.parquet")

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


def test_a_run_replaces_its_interval_and_nothing_else(tmp_path: Path) -> None:
    """A later run takes over what the source gained, lost and corrected in `(start, end]`, both bounds included (T7)."""
    view = delays()
    landed = ["09:00", "10:00", "11:00", "12:00", "13:00"]
    asked = [(("a",), at(text)) for text in landed] + [(("b",), LAST)]
    write_files(tmp_path, source_schema(view), [[_landing(n, text) for n, text in enumerate(landed)]])
    before = materialize(view, tmp_path)
    changed = [_landing(10 + n, text) for n, text in enumerate(landed) if text != "11:00"]
    late = _landing(20, "11:30", tail="b")
    pq.write_table(pa.Table.from_pylist([*changed, late], source_schema(view)), tmp_path / "landings" / "00.parquet")

    after = materialize(view, tmp_path, [(at("10:00"), at("12:00"))])

    found = answers(ask(view, after, asked))
    assert [row and row["n"] for row in found] == [0, 1, 1, 13, 4, 20]
    assert [row and row["n"] for row in answers(ask(view, before, asked))] == [0, 1, 2, 3, 4, None]
    assert OfflineTable(tmp_path / "table", view).snapshot(before.version) == before


def test_an_interval_holds_its_end_and_not_its_start(tmp_path: Path) -> None:
    """Whatever `(start, end]` is replaced by what it holds, rows on its bounds are neither lost nor doubled (T2, T7)."""
    view = delays()
    rows = [_landing(n, text) for n, text in enumerate(["10:00", "10:00:00.000001", "11:00"])]
    write_files(tmp_path, source_schema(view), [rows])
    edges = sorted({FIRST, LAST, *(oracle.instant(row["landed"]) + us for row in rows for us in (-1, 0))})
    asked = [(("a",), t) for t in edges]

    for interval in itertools.combinations(edges, 2):
        snapshot = materialize(view, tmp_path, [EVERYTHING, interval])
        assert snapshot.rows == 3, interval
        assert differences(view, rows, snapshot, asked) == [], interval


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


# --- tables of many row groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_reordered", [False, True], ids=["at once", "when written"])
@pytest.mark.parametrize("key_count", [1, 7, 40_000])
def test_a_table_of_many_row_groups_is_read_where_it_matters(tmp_path: Path, key_count: int, is_reordered: bool) -> None:
    """Keys that span row groups and row groups that span keys: what is skipped in reading is never the answer."""
    # Row n is of the key n % key_count and lands at n; so the value at t is the greatest n <= t of the key asked for.
    rows = 260_000
    view = define({"k": Int64}, {"n": Int64}, batch_source(visible_from_created=is_reordered))
    order = np.random.default_rng(7).permutation(rows)
    landed = pa.array(order).cast(UTC_TIME)
    columns = {"k": order % key_count, "landed": landed, "written": landed, "n": order}
    (tmp_path / "landings").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "landings" / "00.parquet")
    snapshot = materialize(view, tmp_path, [(FIRST, 250_000), (250_000, LAST)])
    generator = random.Random(7)
    asked = [((generator.randrange(key_count),), generator.randrange(-10, rows + 10)) for _ in range(2_000)]
    asked += [((generator.randrange(key_count),), 5) for _ in range(10)]

    for part in (asked, asked[-10:], asked[:1]):
        wanted = [_greatest(key, min(t, rows - 1), key_count) for (key,), t in part]
        assert ask(view, snapshot, part).features["n"].to_pylist() == wanted


def _greatest(key: int, most: int, key_count: int) -> int | None:
    number = most - (most - key) % key_count
    return number if number >= 0 else None
