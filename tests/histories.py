"""Histories of a source, given or generated: written to files, materialized, and asked for beside the oracle."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from featurestore.definitions import Entity, FeatureView, Field, FileSource
from featurestore.offline import buckets
from featurestore.offline.asked import Asked as AskedRows
from featurestore.offline.point_in_time import Values, values_at
from featurestore.offline.sources import BEGINNING, view_rows
from featurestore.offline.tables import OfflineTable, Snapshot
from featurestore.testing import oracle
from featurestore.types import Bool, Bytes, Date, Int32, Int64, String, Timestamp, ValueType

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
    for run, (start, end) in enumerate(intervals, start=1):
        table.replace(start, end, rows, run=run)
    return table.snapshot()


def ask(view: FeatureView, snapshot: Snapshot, asked: Asked, *, ttl: bool = True) -> Values:
    """Evaluate all features of the view at (key, time) pairs; what comes back has the declared types, always (T5)."""
    columns = [
        pa.chunked_array([pa.array([key[number] for key, _ in asked], type=field.type.arrow)])
        for number, field in enumerate(view.join_keys)
    ]
    times = np.array([t for _, t in asked], dtype=np.int64)
    values = values_at(view, snapshot, AskedRows.of(columns, times), view.feature_names, ttl=ttl)
    declared = [(field.name, str(field.type.arrow)) for field in view.features]
    assert [(column.name, str(column.type)) for column in values.features.schema] == declared, values.features.schema
    assert values.event_times.type == UTC_TIME, values.event_times.type
    lengths = len(values.features), len(values.event_times), len(values.present)
    assert lengths == (len(asked),) * 3, lengths
    return values


def answers(values: Values) -> list[Row | None]:
    """Return values as rows with the event time, None where absent; what is absent is null in all columns."""
    event_times = values.event_times.cast(pa.int64()).to_pylist()
    rows: list[Row | None] = []
    for row, event_time, is_present in zip(values.features.to_pylist(), event_times, values.present, strict=True):
        if not is_present:
            assert set(row.values()) == {None}, row
            assert event_time is None, event_time
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


# --- generated histories ---------------------------------------------------------------------------------------------

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


def set_bucket_rows(patch: pytest.MonkeyPatch, rows: int) -> None:
    """Let tables be cut into buckets of about so many rows."""
    patch.setattr(buckets, "_ROWS", rows)
    patch.setattr(buckets, "_ROWS_OF_A_FILE", 1)


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


# --- landings of one aircraft ----------------------------------------------------------------------------------------

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
    differing = differences(view, rows, snapshot, asked)
    assert differing == [], differing
    return [ABSENT if row is None else row["n"] for row in answers(ask(view, snapshot, asked))]


def delays(
    source: FileSource | None = None, *, ttl: int | None = None, refresh: int | None = None, sql: str | None = None
) -> FeatureView:
    """Return a view of the feature `n` of aircraft."""
    return define({"tail": String}, {"n": Int64}, source or batch_source(), ttl=ttl, refresh=refresh, sql=sql)


def landing(n: int | None, landed: str = "10:00", tail: str = "a") -> Row:
    """Return a row of an aircraft that is written as it lands."""
    return {"tail": tail, "landed": moment(at(landed)), "written": moment(at(landed)), "n": n}
