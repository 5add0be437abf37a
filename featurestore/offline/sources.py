"""Reading sources: files to view rows, with the visible time of each (T3).

`view_rows` is the one place where a source row becomes a view row. Its columns are the join keys and features in their declared
types and

    __event_time     TIMESTAMPTZ  when the row became true; null for static rows, and for rows that lack it or
                                  are outside the years 1 to 9999 (they are skipped and counted)
    __created_time   TIMESTAMPTZ  when it was written; null if the source does not say
    __visible_time   TIMESTAMPTZ  v = ceil(known, refresh) + delay; the beginning of time for static rows
    __seq            BIGINT       file and row order. Rows that tie on event and created time share a visible time, so a run that
                                  replaces an interval replaces all of them: `seq` need only be consistent within one run
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featurestore.clock import duration_micros
from featurestore.definitions import FeatureView, Field, FileSource
from featurestore.errors import SourceError, known_names
from featurestore.offline.session import identifier, literal, session
from featurestore.offline.view_sql import faults_in, with_column

__all__ = ["BEGINNING", "SourceColumns", "describe", "view_faults", "view_rows"]

BEGINNING = -62_135_596_800_000_000
"""The visible time of static rows: 0001-01-01, before every timestamp that can be asked for."""

_TIME_TYPES = {"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE"}
_GLOB = set("*?[")

SourceColumns = dict[str, str]
"""The columns of a source and their DuckDB types."""


def source_files(source: FileSource, root: Path) -> list[str]:
    """Return the Parquet files of a source in reading order; SourceError if there is none."""
    path = root / source.path
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*.parquet") if file.is_file())
    elif _GLOB & set(source.path):
        anchor = Path(path.anchor)
        files = sorted(str(file) for file in anchor.glob(str(path.relative_to(anchor))) if file.is_file())
    else:
        files = [str(path)] if path.is_file() else []
    if not files:
        raise SourceError(f"source {source.name!r}: no Parquet file at {path}")
    return files


def describe(source: FileSource, root: Path) -> SourceColumns:
    """Return the columns of a source; SourceError if it is missing or no Parquet."""
    with session(SourceError, f"source {source.name!r} ({source.path})") as connection:
        rows = connection.execute(f"DESCRIBE SELECT * FROM {_read_parquet(source, root)}").fetchall()
    return {row[0]: row[1] for row in rows}


def view_faults(view: FeatureView, root: Path, columns: SourceColumns) -> list[tuple[str, str]]:
    """Say what keeps a source with these columns from giving the view its rows, as (field, message) pairs."""
    source = view.source
    if view.sql is not None:
        if refusals := faults_in(view.sql, source.name):
            return [("sql", refusal) for refusal in refusals]
        try:
            columns = _describe_sql(view, root)
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
        elif columns[name] not in _TIME_TYPES:
            faults.append((role, f"column {name!r} of {where} is {columns[name]}, not a timestamp"))
    return faults


def _column_fault(field: Field, columns: SourceColumns, where: str) -> str | None:
    if field.name not in columns:
        return f"{where} has no column {field.name!r}; {known_names(field.name, columns)}"
    if not field.type.accepts_sql(columns[field.name]):
        found = f"column {field.name!r} of {where} is {columns[field.name]}"
        return f"{found}, which {field.type} cannot hold without loss; declare another type or CAST it in sql"
    return None


@dataclass(frozen=True)
class ViewRows:
    """A `SELECT` that gives a view's rows, ready to stand in a FROM clause."""

    view: FeatureView
    sql: str

    @property
    def keys_present(self) -> str:
        """The SQL condition that no join key is null."""
        return " AND ".join(f"{identifier(key.name)} IS NOT NULL" for key in self.view.join_keys)


def view_rows(view: FeatureView, root: Path) -> ViewRows:
    """Return the query that reads a view's rows out of its source, rows with null keys and times included.

    Raises:
        SourceError: the source has no file, or its columns no longer give what the view declares.

    """
    columns = describe(view.source, root)
    if faults := view_faults(view, root, columns):
        listed = "; ".join(message for _, message in faults)
        raise SourceError(f"view {view.name!r} cannot be read: {listed}")
    names = [*view.join_keys, *view.fields]
    selected = [f"CAST({identifier(field.name)} AS {field.type.sql}) AS {identifier(field.name)}" for field in names]
    rows = f"SELECT {', '.join([*selected, *_times(view.source), '__file_seq AS __seq'])} FROM {_source_query(view, root)}"
    visible = f"SELECT *, make_timestamptz({_visible_micros(view)}) AS __visible_time FROM ({rows})"
    return ViewRows(view, f"({visible})")


def _source_query(view: FeatureView, root: Path) -> str:
    scan = f"SELECT *, (file_index::BIGINT << 40) | file_row_number AS __file_seq FROM {_read_parquet(view.source, root)}"
    if view.sql is None:
        return f"({scan})"
    return f"(WITH {identifier(view.source.name)} AS ({scan}) {with_column(view.sql, '__file_seq')})"


def _read_parquet(source: FileSource, root: Path) -> str:
    return f"read_parquet([{', '.join(map(literal, source_files(source, root)))}])"


def _describe_sql(view: FeatureView, root: Path) -> SourceColumns:
    with session(SourceError, f"the SQL of view {view.name!r}") as connection:
        rows = connection.execute(f"DESCRIBE SELECT * FROM {_source_query(view, root)}").fetchall()
    return {row[0]: row[1] for row in rows}


def _times(source: FileSource) -> list[str]:
    return [_time(source.event_time, "__event_time"), _time(source.created_time, "__created_time")]


def _time(column: str | None, name: str) -> str:
    if column is None:
        return f"NULL::TIMESTAMPTZ AS {name}"
    # Through TIMESTAMP, since every time type casts to it: in a UTC session the two steps change no instant.
    instant = f"{identifier(column)}::TIMESTAMP::TIMESTAMPTZ"
    return f"CASE WHEN year({instant}) BETWEEN 1 AND 9999 THEN {instant} END AS {name}"


def _visible_micros(view: FeatureView) -> str:
    if view.is_static:
        return str(BEGINNING)
    known = "epoch_us(__event_time)"
    if view.source.visible_from == "created_time":
        known = f"greatest({known}, coalesce(epoch_us(__created_time), {known}))"
    refresh, delay = duration_micros(view.refresh), duration_micros(view.source.delay)
    if refresh:
        # SQL's remainder takes the sign of the dividend, so it is moved into [0, refresh) first.
        known = f"{known} + ({refresh} - (({known} % {refresh}) + {refresh}) % {refresh}) % {refresh}"
    # An event time that is null gives no visible time, and arithmetic on null stays null.
    return f"CASE WHEN __event_time IS NOT NULL THEN {known} + {delay} END"
