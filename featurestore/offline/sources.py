"""Reading sources: files to view rows, with the visible time of each (T3).

`view_rows` is the one place where a source row becomes a view row. Its columns are the join keys and features in their declared
types and

    __event_time     TIMESTAMPTZ  when the row became true; null for static rows, and for rows that lack it or
                                  are outside the years 1 to 9999 (they are skipped and counted)
    __created_time   TIMESTAMPTZ  when it was written; null if the source does not say
    __visible_time   TIMESTAMPTZ  v = ceil(known, refresh) + delay; the beginning of time for static rows
    __seq            BIGINT       file and row order: the file's place times the rows of the longest, plus the row's place in it.
                                  Rows that tie on event and created time share a visible time, so a run that replaces an interval
                                  replaces all of them: `seq` need only be consistent within one run
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from featurestore.aggregations import ALL, Aggregation
from featurestore.clock import BEGINNING, LAST, duration_micros
from featurestore.definitions import FeatureView, Field, FileSource, PushSource
from featurestore.errors import SourceError, known_names
from featurestore.offline.files import source_files
from featurestore.offline.session import identifier, parquet, session
from featurestore.offline.view_sql import faults_in, with_column
from featurestore.types import NULL, SCALARS, Array

__all__ = [
    "BEGINNING",
    "SourceColumns",
    "ViewRows",
    "describe",
    "expressions",
    "resolved",
    "view_faults",
    "view_rows",
]

_MISSING = re.compile(r'Referenced column "(.+?)" not found')
_NANOSECONDS = ("TIMESTAMP_NS", "TIMESTAMPTZ_NS")
_TIME_TYPES = {"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP WITH TIME ZONE", *_NANOSECONDS, NULL}

SourceColumns = Mapping[str, tuple[str, ...]]
"""The columns of a source and their DuckDB types: the one that holds all files' values, then what single files have instead."""


_HIDDEN = ("__file_seq", "__arrival")


def _row_counts(source: FileSource, root: Path) -> list[int]:
    """Return how many rows each file has."""
    try:
        return [pq.read_metadata(file).num_rows for file in source_files(source, root)]
    except (OSError, pa.ArrowException) as reason:
        raise SourceError(f"source {source.name!r} ({source.path}): {reason}") from reason


def describe(source: FileSource | PushSource, root: Path) -> SourceColumns:
    """Return the columns that all files of a source have; of a push source, those that it declares.

    Raises:
        SourceError: there is no file, one is no Parquet, or the types of a column cannot be brought together.

    """
    if isinstance(source, PushSource):
        return {name: (type_.sql,) for name, type_ in source.columns.items()}
    files = source_files(source, root)
    with session(SourceError, f"source {source.name!r} ({source.path})") as connection:
        together = _describe(connection, parquet(files))
        try:
            schemas = [pq.read_schema(file).remove_metadata() for file in files]
        except (OSError, pa.ArrowException) as reason:
            raise SourceError(f"source {source.name!r} ({source.path}): {reason}") from reason
        for file, schema in zip(files, schemas, strict=True):
            if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
                raise SourceError(f"source {source.name!r} ({source.path}): {file} has more than one column {twice[0]!r}")
        is_uniform = all(schema.equals(schemas[0]) for schema in schemas)
        alone = [] if is_uniform else [_describe(connection, parquet([file])) for file in files]
    return {
        name: tuple(dict.fromkeys([type_, *(types[name] for types in alone if types[name] != NULL)]))
        for name, type_ in together.items()
        if all(name in types for types in alone)
    }


def _describe(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    return {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()}


def view_faults(view: FeatureView, root: Path, columns: SourceColumns | None) -> list[tuple[str, str]]:
    """Say what keeps a source of these columns (none: it cannot be read) from giving the view its rows: (field, message) pairs."""
    source = view.source
    if view.sql is not None and (refusals := faults_in(view.sql, source.name, columns)):
        return [("sql", refusal) for refusal in refusals]
    if columns is None:
        return []
    if view.sql is not None:
        try:
            columns = describe_sql(view, root, columns)
        except SourceError as reason:
            return [("sql", str(reason))]
    where = "the SQL's result" if view.sql is not None else f"source {source.name!r}"
    faults: list[tuple[str, str]] = []
    for role, wanted in [("join_keys", view.join_keys), ("fields", view.fields)]:
        faults += [(role, fault) for field in wanted if (fault := _column_fault(field, columns, where))]
    for role in ("event_time", "created_time"):
        name = getattr(source, role)
        if name is None:
            continue
        if name not in columns:
            faults.append((role, f"{where} has no column {name!r}; {known_names(name, columns)}"))
        elif not _TIME_TYPES.issuperset(columns[name]):
            faults.append((role, f"column {name!r} of {where} is {' and '.join(columns[name])}, not a timestamp"))
    return faults or [("aggregations", fault) for fault in resolved(view, root)[1]]


def _column_fault(field: Field, columns: SourceColumns, where: str) -> str | None:
    if field.name not in columns:
        return f"{where} has no column {field.name!r}; {known_names(field.name, columns)}"
    if not all(map(field.type.accepts_sql, columns[field.name])):
        found = f"column {field.name!r} of {where} is {' and '.join(columns[field.name])}"
        return f"{found}, which {field.type} cannot hold without loss; declare another type or CAST it in sql"
    return None


def resolved(view: FeatureView, root: Path) -> tuple[FeatureView, list[str]]:
    """Return the view with the types of all columns that it aggregates, and what is wrong with its aggregations.

    Raises:
        SourceError: the source cannot be read, or the view's own SQL.

    """
    faults: list[str] = []
    found: list[Aggregation] = []
    rows = _source_query(view, root, describe(view.source, root)) if view.aggregations else ""
    for each in view.aggregations:
        try:
            found.append(_resolved(each, view, rows))
        except (SourceError, ValueError) as reason:
            faults.append(f"aggregation {each.part!r}: {_text(reason)}")
    return (view if faults else cast("FeatureView", replace(cast("Any", view), aggregations=tuple(found)))), faults


def _resolved(aggregation: Aggregation, view: FeatureView, rows: str) -> Aggregation:
    for name in ("sql", "where"):
        text = getattr(aggregation, name)
        # A line of its own, so that a comment at the end hides nothing.
        if text is not None and (
            refusals := faults_in(f"SELECT (\n{text}\n) FROM {identifier(view.source.name)}", view.source.name)
        ):
            raise ValueError(f"its {name}: {'; '.join(refusals)}")
    sql_type = _type_of(aggregation, rows)
    if aggregation.column == ALL:
        return aggregation
    if aggregation.type is None:
        if sql_type.removesuffix("[]") == NULL:
            raise ValueError(f"column {aggregation.column!r} holds nothing but nulls, so its type has to be given")
        known = next((type_ for type_ in (*SCALARS, *map(Array, SCALARS)) if type_.accepts_sql(sql_type)), None)
        if known is None:
            raise ValueError(f"column {aggregation.column!r} is {sql_type}, which no type holds without loss; CAST it in its sql")
        return cast("Aggregation", replace(cast("Any", aggregation), type=known))
    if not aggregation.type.accepts_sql(sql_type):
        raise ValueError(f"column {aggregation.column!r} is {sql_type}, which {aggregation.type} cannot hold without loss")
    return aggregation


def _type_of(aggregation: Aggregation, rows: str) -> str:
    """Return the DuckDB type of the values that an aggregation takes, after a look at what it is made of."""
    with session(SourceError, "it cannot be computed") as connection:
        columns = [name for name in _describe(connection, rows) if name != "__file_seq"]
        # DuckDB does not tell upper from lower case.
        if aggregation.sql is None and aggregation.column.lower() not in (ALL, *map(str.lower, columns)):
            raise ValueError(f"no column {aggregation.column!r}; {known_names(aggregation.column, columns)}")
        for name in ("sql", "where"):
            text = getattr(aggregation, name)
            types = [] if text is None else _types_of(connection, name, text, rows, columns)
            if name == "where" and types not in ([], ["BOOLEAN"]):
                raise ValueError(f"its where is {types[0]}, and a condition is BOOLEAN")
        [sql_type] = _describe(connection, f"(SELECT {_expression(aggregation)} AS value FROM {rows})").values()
    return sql_type


def _types_of(connection: duckdb.DuckDBPyConnection, name: str, text: str, rows: str, columns: Sequence[str]) -> list[str]:
    try:
        types = list(_describe(connection, f"(SELECT \n{text}\n FROM {rows})").values())
    except duckdb.BinderException as reason:
        missing = _MISSING.search(str(reason))
        if missing is None:
            raise
        raise ValueError(f"its {name}: no column {missing[1]!r}; {known_names(missing[1], columns)}") from None
    if len(types) != 1:
        raise ValueError(f"its {name} gives {len(types)} values, and one is needed")
    return types


def _text(reason: Exception) -> str:
    if isinstance(reason, ValidationError):
        return "; ".join(error["msg"].removeprefix("Value error, ") for error in reason.errors())
    return str(reason)


def _expression(aggregation: Aggregation) -> str:
    """Return the SQL that gives the values which an aggregation takes; rows that its condition leaves out are null."""
    value = "true" if aggregation.column == ALL else identifier(aggregation.column)
    if aggregation.sql is not None:
        value = f"(\n{aggregation.sql}\n)"
    return value if aggregation.where is None else f"CASE WHEN (\n{aggregation.where}\n) THEN {value} END"


def expressions(view: FeatureView) -> dict[Field, str]:
    """Return the SQL expression of each column of a view's rows: its join keys, then what its table stores."""
    plain = {field: identifier(field.name) for field in (*view.join_keys, *view.fields)}
    return plain | {each.input: _expression(each) for each in view.aggregations if each.input is not None}


@dataclass(frozen=True)
class ViewRows:
    """A `SELECT` that gives a view's rows, ready to stand in a FROM clause.

    `seq` is an expression that orders as `__seq` does, `visible` one that gives `__visible_time`, if it can out of other columns.
    """

    view: FeatureView
    sql: str
    seq: str
    visible: str = "__visible_time"

    @property
    def what(self) -> str:
        """What is read, for messages."""
        return f"view {self.view.name!r}, source {self.view.source.name!r}"

    @property
    def keys_present(self) -> str:
        """The SQL condition that no join key is null."""
        return " AND ".join(f"{identifier(key.name)} IS NOT NULL" for key in self.view.join_keys)

    def within(self, start: int, end: int) -> str:
        """Return the rows with all keys and `start < visible time <= end`, ready to stand in a FROM clause."""
        return f"(SELECT * FROM {self.sql} WHERE {self.keys_present} AND {self.visible_within(start, end)})"

    def visible_within(self, start: int, end: int) -> str:
        """Return the SQL condition `start < visible time <= end`."""
        if self.view.is_static or self.view.source.visible_from != "event_time":
            return f"(epoch_us(__visible_time) > {start} AND epoch_us(__visible_time) <= {end})"
        # `ceil(event, refresh) + delay <= end` is a comparison with a constant, which needs no visible time of each row.
        delay, refresh = duration_micros(self.view.source.delay), duration_micros(self.view.refresh) or 1
        first, last = (f"make_timestamptz({(bound - delay) // refresh * refresh})" for bound in (start, end))
        return f"(__event_time > {first} AND __event_time <= {last})"


def view_rows(view: FeatureView, root: Path, within: tuple[int, int] | None = None) -> ViewRows:
    """Return the query that reads a view's rows out of its source, rows with null keys and times included.

    `within` bounds the visible times that will be asked for, so that files are read only where they can hold such rows; rows
    outside may come all the same.

    Raises:
        SourceError: the source has no file, or its columns no longer give what the view declares.

    """
    columns = describe(view.source, root)
    if faults := view_faults(view, root, columns):
        listed = "; ".join(message for _, message in faults)
        raise SourceError(f"view {view.name!r} cannot be read: {listed}")
    assert isinstance(view.source, FileSource)
    given = describe_sql(view, root, columns) if view.sql is not None else columns
    selected = selected_columns(view, given)
    source = _source_query(view, root, columns) + _skipping(view, given, within)
    rows = f"SELECT {', '.join([*selected, '__file_seq AS __seq'])} FROM {source}"
    visible = f"make_timestamptz({_visible_micros(view)})"
    # A sort key of 24 bytes or less is sorted much faster, and a hash, a time and 32 bits of `seq` are one.
    counts = _row_counts(view.source, root)
    seq = "CAST(__seq AS UINTEGER)" if max(counts) * len(counts) < 2**32 else "__seq"
    return ViewRows(view, f"(SELECT *, {visible} AS __visible_time FROM ({rows}))", seq, visible)


def selected_columns(view: FeatureView, given: SourceColumns) -> list[str]:
    """Return the SQL of what a row of a view takes from the columns given: keys, what its table stores, event and created time."""
    casts = [
        f"CAST({expression} AS {field.type.sql}) AS {identifier(field.name)}" for field, expression in expressions(view).items()
    ]
    source = view.source
    return [*casts, _time(source.event_time, given, "__event_time"), _time(source.created_time, given, "__created_time")]


def over(view: FeatureView, scan: str, hidden: Sequence[str]) -> str:
    """Return what a view takes of a scan of its source, ready to stand in a FROM clause; columns of ours go through its SQL."""
    if view.sql is None:
        return f"({scan})"
    sql = view.sql
    for column in hidden:
        sql = with_column(sql, column)
    return f"(WITH {identifier(view.source.name)} AS ({scan}) {sql})"


def empty_scan(columns: Mapping[str, str]) -> str:
    """Return a scan of no rows, of columns of DuckDB types."""
    return f"SELECT {', '.join(f'NULL::{type_} AS {identifier(name)}' for name, type_ in columns.items())} WHERE false"


def _skipping(view: FeatureView, columns: SourceColumns, within: tuple[int, int] | None) -> str:
    """Return a condition on the plain event time, which Parquet's statistics can answer; visible times are computed."""
    name = view.source.event_time
    constants: dict[tuple[str, ...], str] = {("TIMESTAMP WITH TIME ZONE",): "make_timestamptz", ("TIMESTAMP",): "make_timestamp"}
    if within is None or name is None or view.source.visible_from == "created_time" or columns[name] not in constants:
        return ""
    make = constants[columns[name]]
    start, end = (bound - duration_micros(view.source.delay) for bound in within)
    conditions = [f"{identifier(name)} <= {make}({end})"] if end <= LAST else []
    if start - duration_micros(view.refresh) >= BEGINNING:
        conditions.append(f"{identifier(name)} > {make}({start - duration_micros(view.refresh)})")
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _source_query(view: FeatureView, root: Path, columns: SourceColumns) -> str:
    """Return the rows that a view takes its columns from, with their `__file_seq`."""
    if isinstance(view.source, PushSource):
        return over(view, empty_scan({name: types[0] for name, types in columns.items()} | {"__file_seq": "BIGINT"}), _HIDDEN[:1])
    is_taken = {"file_index", "file_row_number"} & {name.lower() for name in columns}
    # A file's columns of these names hide DuckDB's own; numbering the rows as they come costs more, and gives the same order.
    longest = max(_row_counts(view.source, root))
    seq = "row_number() OVER ()" if is_taken else f"file_index::BIGINT * {longest} + file_row_number"
    given = ", ".join(identifier(name) for name in columns if name.lower() != "__file_seq")
    scan = f"SELECT {given}, {seq} AS __file_seq FROM {parquet(source_files(view.source, root))}"
    return over(view, scan, _HIDDEN[:1])


def describe_sql(view: FeatureView, root: Path, columns: SourceColumns) -> SourceColumns:
    with session(SourceError, f"the SQL of view {view.name!r}") as connection:
        described = _describe(connection, _source_query(view, root, columns))
    return {name: (type_,) for name, type_ in described.items() if name not in _HIDDEN}


def _time(column: str | None, columns: SourceColumns, name: str) -> str:
    if column is None or columns[column] == (NULL,):
        return f"NULL::TIMESTAMPTZ AS {name}"
    if columns[column] == ("TIMESTAMP WITH TIME ZONE",):
        instant = identifier(column)
        within = f"{instant} BETWEEN make_timestamptz({BEGINNING}) AND make_timestamptz({LAST})"
        return f"CASE WHEN {within} THEN {instant} END AS {name}"
    # Between instants and times without a zone DuckDB goes through a calendar, which takes longer than all the rest.
    has_zone = ["TIME ZONE" in type_ for type_ in columns[column]]
    casts = "" if all(has_zone) else "::TIMESTAMP::TIMESTAMPTZ" if any(has_zone) else "::TIMESTAMP"
    micros = f"epoch_us({identifier(column)}{casts})"
    if columns[column][0] in _NANOSECONDS:
        # Rounded down, as spines are; SQL's remainder takes the sign of the dividend, so it is moved into [0, 1000) first.
        nanos = f"epoch_ns({identifier(column)})"
        micros = f"({nanos} - (({nanos} % 1000) + 1000) % 1000) // 1000"
    return f"CASE WHEN {micros} BETWEEN {BEGINNING} AND {LAST} THEN make_timestamptz({micros}) END AS {name}"


def _visible_micros(view: FeatureView) -> str:
    if view.is_static:
        return str(BEGINNING)
    known = "epoch_us(__event_time)"
    if view.source.visible_from == "created_time":
        known = f"greatest({known}, coalesce(epoch_us(__created_time), {known}))"
    refresh, delay = duration_micros(view.refresh), duration_micros(view.source.delay)
    if refresh:
        # SQL's remainder takes the sign of the dividend; the outer one brings both signs to [0, refresh).
        known = f"{known} + ({refresh} - {known} % {refresh}) % {refresh}"
    # An event time that is null gives no visible time, and arithmetic on null stays null.
    return f"CASE WHEN __event_time IS NOT NULL THEN {known} + {delay} END"
