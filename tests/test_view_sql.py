from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from featurestore.errors import SourceError
from featurestore.offline.session import session
from featurestore.offline.view_sql import faults_in, with_column

if TYPE_CHECKING:
    import duckdb

SOURCE = "landings"
ROW = """
    'ab' AS tail, 3 AS delay, [3, NULL, 4] AS stops, {'gate': 'A1', 'user': 'me'} AS place,
    TIMESTAMPTZ '2013-06-01 23:30:00Z' AS arrived, TIMESTAMP '2013-06-01 23:30:00' AS naive, DATE '2013-06-01' AS day,
    'me' AS "user", 8 AS __file_seq
"""
FROM_ALONE = 'the SQL must read FROM "landings" alone, its one source (no joins, no table functions)'
NOT_PLAIN = "the SQL must be a plain SELECT (no UNION, INTERSECT or EXCEPT)"
NOT_A_SELECT = "the SQL does not parse as a SELECT: Only SELECT statements can be serialized to json!"
CHANGES = "its result can change from call to call"


@pytest.fixture(scope="module")
def landings() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a session in which the source is a table of one row, with the hidden column of file and row order."""
    with session(SourceError, "test") as connection:
        connection.execute(f"CREATE TEMP TABLE {SOURCE} AS SELECT {ROW}")
        yield connection


ALLOWED: list[tuple[str, dict[str, Any]]] = [
    ("SELECT tail, delay FROM landings", {"tail": "ab", "delay": 3}),
    ("SELECT tail FROM LANDINGS;", {"tail": "ab"}),
    ('SELECT "tail" FROM "landings" -- all', {"tail": "ab"}),
    ("SELECT l.tail AS k FROM landings AS l", {"k": "ab"}),
    ("SELECT delay FROM landings WHERE delay > 2 AND tail LIKE 'a%' OR delay IS NULL", {"delay": 3}),
    ("SELECT -delay AS a, delay // 2 AS b, delay % 2 AS c FROM landings", {"a": -3, "b": 1, "c": 1}),
    ("SELECT delay + 1 AS a, a * 2 AS b FROM landings", {"a": 4, "b": 8}),
    ("SELECT CASE WHEN delay > 2 THEN 'late' ELSE 'fine' END AS a FROM landings", {"a": "late"}),
    ("SELECT coalesce(delay, 0) AS a, nullif(delay, 3) AS b FROM landings", {"a": 3, "b": None}),
    ("SELECT delay::VARCHAR AS a, TRY_CAST(tail AS INTEGER) AS b FROM landings", {"a": "3", "b": None}),
    ("SELECT delay BETWEEN 1 AND 3 AS a, delay IN (1, 2) AS b FROM landings", {"a": True, "b": False}),
    ("SELECT delay IS NULL AS a, delay IS DISTINCT FROM NULL AS b FROM landings", {"a": False, "b": True}),
    ("SELECT upper(tail) || '!' AS a, tail SIMILAR TO 'a.' AS b FROM landings", {"a": "AB!", "b": True}),
    ("SELECT place.gate AS a, stops[1] AS b, {'x': delay} AS c FROM landings", {"a": "A1", "b": 3, "c": {"x": 3}}),
    ("SELECT list_transform(stops, lambda x: x + 1) AS a FROM landings", {"a": [4, None, 5]}),
    ("SELECT [x * 2 FOR x IN stops IF x > 3] AS a FROM landings", {"a": [8]}),
    ("SELECT list_sum(stops) AS a, list_aggregate(stops, 'max') AS b FROM landings", {"a": 7, "b": 4}),
    ("SELECT date_trunc('day', naive)::VARCHAR AS a FROM landings", {"a": "2013-06-01 00:00:00"}),
    ("SELECT hour(arrived) AS a, epoch_us(arrived) AS b FROM landings", {"a": 23, "b": 1370129400000000}),
    ("SELECT strftime(arrived + INTERVAL 1 HOUR, '%d %H:%M') AS a FROM landings", {"a": "02 00:30"}),
    ("SELECT strftime(arrived AT TIME ZONE 'America/New_York', '%H:%M') AS a FROM landings", {"a": "19:30"}),
    ("SELECT date_diff('hour', day::TIMESTAMP, naive) AS a FROM landings", {"a": 23}),
]


@pytest.mark.parametrize(("sql", "expected"), ALLOWED)
def test_expressions_over_one_row_are_allowed(landings: duckdb.DuckDBPyConnection, sql: str, expected: dict[str, Any]) -> None:
    """Projection, expressions and WHERE pass, and with a column more they give what they gave and that column (T12)."""
    assert faults_in(sql, SOURCE) == []
    assert _row(landings, with_column(sql, "__file_seq")) == {**expected, "__file_seq": 8}


STARS = [
    "FROM landings",
    "SELECT * FROM landings",
    "SELECT *, delay + 1 AS more FROM landings",
    "SELECT landings.* FROM landings",
    "SELECT l.* FROM landings l",
    "SELECT * EXCLUDE (stops) FROM landings",
    "SELECT * REPLACE (upper(tail) AS tail) FROM landings",
    "SELECT * RENAME (tail AS k) FROM landings",
    "SELECT COLUMNS('.*') FROM landings",
    "SELECT COLUMNS('tail|delay') FROM landings",
    "SELECT COLUMNS(lambda name: name <> 'stops') FROM landings",
]


@pytest.mark.parametrize("sql", STARS)
def test_a_star_is_allowed_and_the_column_can_be_read_beside_it(landings: duckdb.DuckDBPyConnection, sql: str) -> None:
    """A SELECT of many columns at once gives the column that is added to it, and its name is not ambiguous."""
    assert faults_in(sql, SOURCE) == []
    assert _row(landings, f"SELECT __file_seq FROM ({with_column(sql, '__file_seq')})") == {"__file_seq": 8}


AGGREGATES = "it aggregates rows"
MACRO = "it is a macro over what is not row-local"
SEVERAL = "it makes several rows of one"
UNKNOWN = "DuckDB has no scalar function of that name"


def function(name: str, reason: str) -> str:
    """Return the fault of a function."""
    return f"function {name!r} is not allowed: {reason}"


NO_STAR = "COLUMNS(…) or * within an expression is not supported; name the columns"

REFUSED = [
    # more than a projection
    ("SELECT DISTINCT tail FROM landings", "DISTINCT is not row-local"),
    ("SELECT DISTINCT ON (tail) tail FROM landings", "DISTINCT is not row-local"),
    ("SELECT tail FROM landings ORDER BY tail", "ORDER BY is not row-local"),
    ("SELECT tail FROM landings ORDER BY ALL", "ORDER BY is not row-local"),
    ("SELECT tail FROM landings LIMIT 3", "LIMIT is not row-local"),
    ("SELECT tail FROM landings LIMIT 10%", "LIMIT is not row-local"),
    ("SELECT tail FROM landings OFFSET 3", "LIMIT is not row-local"),
    ("SELECT tail FROM landings GROUP BY ALL", "GROUP BY is not row-local"),
    ("SELECT tail FROM landings HAVING true", "HAVING is not row-local"),
    ("SELECT tail FROM landings QUALIFY true", "QUALIFY is not row-local"),
    ("SELECT tail FROM landings USING SAMPLE 10%", "a sample is not row-local"),
    ("SELECT tail FROM landings TABLESAMPLE 10%", "a sample or a version of the source is not row-local"),
    ("SELECT tail FROM landings AT (VERSION => 3)", "a sample or a version of the source is not row-local"),
    # aggregates and windows
    ("SELECT sum(delay) AS a FROM landings", function("sum", AGGREGATES)),
    ("SELECT count(*) AS a FROM landings", function("count_star", AGGREGATES)),
    ("SELECT delay.max() AS a FROM landings", function("max", AGGREGATES)),
    ("SELECT main.first(delay) AS a FROM landings", function("first", AGGREGATES)),
    ("SELECT 1 + list(delay)[1] AS a FROM landings", function("list", AGGREGATES)),
    ("SELECT geomean(delay) AS a FROM landings", function("geomean", MACRO)),
    ("SELECT sum(delay) OVER () AS a FROM landings", "a window function is not row-local"),
    ("SELECT row_number() OVER (ORDER BY delay) AS a FROM landings", "a window function is not row-local"),
    ("SELECT lag(delay) OVER w FROM landings WINDOW w AS (ORDER BY delay)", "a window function is not row-local"),
    # several rows of one
    ("SELECT unnest(stops) AS a FROM landings", function("unnest", SEVERAL)),
    ("SELECT UNNEST(stops, recursive := true) AS a FROM landings", function("unnest", SEVERAL)),
    ("SELECT generate_subscripts(stops, 1) AS a FROM landings", function("generate_subscripts", MACRO)),
    # more than one source
    ("SELECT tail FROM landings JOIN other USING (tail)", FROM_ALONE),
    ("SELECT tail FROM landings, other", FROM_ALONE),
    ("SELECT tail FROM landings, unnest(stops)", FROM_ALONE),
    ("SELECT tail FROM landings POSITIONAL JOIN landings AS l", FROM_ALONE),
    ("SELECT tail FROM (SELECT * FROM landings)", FROM_ALONE),
    ("SELECT tail FROM read_parquet('landings.parquet')", FROM_ALONE),
    ("SELECT tail FROM landings PIVOT (sum(delay) FOR tail IN ('ab'))", FROM_ALONE),
    ("SELECT 1 AS tail", FROM_ALONE),
    ("VALUES (1)", FROM_ALONE),
    ("DESCRIBE landings", FROM_ALONE),
    ("SELECT tail FROM other", "the SQL reads 'other'; its one source is 'landings'"),
    ("SELECT tail FROM 'a.parquet'", "the SQL reads 'a.parquet'; its one source is 'landings'"),
    ("SELECT tail FROM landings UNION ALL FROM landings", NOT_PLAIN),
    ("SELECT tail FROM landings EXCEPT FROM landings", NOT_PLAIN),
    ("WITH a AS (SELECT 1) SELECT tail FROM landings", "WITH is not supported; write one SELECT"),
    ("SELECT tail FROM landings WHERE delay = (SELECT 1)", "a subquery is not row-local"),
    ("SELECT tail FROM landings WHERE delay IN (SELECT 1)", "a subquery is not row-local"),
    ("SELECT tail FROM landings WHERE EXISTS (FROM other)", "a subquery is not row-local"),
    ("SELECT tail FROM landings WHERE delay = ?", "a parameter is not row-local"),
    # what changes from call to call
    ("SELECT random() AS a FROM landings", function("random", CHANGES)),
    ("SELECT tail FROM landings WHERE Random() < 0.5", function("random", CHANGES)),
    ("SELECT list_transform(stops, lambda x: random()) AS a FROM landings", function("random", CHANGES)),
    ("SELECT CASE WHEN uuid() IS NULL THEN 1 END AS a FROM landings", function("uuid", CHANGES)),
    ("SELECT now() AS a FROM landings", function("now", CHANGES)),
    ("SELECT today() - day AS a FROM landings", function("today", CHANGES)),
    ("SELECT CURRENT_DATE AS a FROM landings", f"CURRENT_DATE is not allowed: {CHANGES}"),
    ("SELECT current_timestamp AS a FROM landings", f"current_timestamp is not allowed: {CHANGES}"),
    ("SELECT localtimestamp AS a FROM landings", f"localtimestamp is not allowed: {CHANGES}"),
    ("SELECT current_setting('threads') AS a FROM landings", function("current_setting", CHANGES)),
    ("SELECT getvariable('a') AS a FROM landings", function("getvariable", CHANGES)),
    ("SELECT nextval('a') AS a FROM landings", function("nextval", CHANGES)),
    # no functions
    ("SELECT nosuch(delay) AS a FROM landings", function("nosuch", UNKNOWN)),
    ("SELECT read_text('a') AS a FROM landings", function("read_text", UNKNOWN)),
    # what would see the library's own columns
    ("SELECT tail, -COLUMNS(delay) FROM landings", NO_STAR),
    ("SELECT tail FROM landings WHERE COLUMNS(* EXCLUDE (tail, day, stops)) > 0", NO_STAR),
    ("SELECT greatest(*COLUMNS('d.*')) AS a FROM landings", NO_STAR),
    ("SELECT {'a': *} AS a FROM landings", NO_STAR),
    ("SELECT #2 AS a FROM landings", "a column by its number (#2) is not supported; name it"),
    ("SELECT * EXCLUDE (__file_seq) FROM landings", "__file_seq is the library's own column"),
    # no SELECT
    ("", "the SQL must be one statement"),
    ("-- nothing", "the SQL must be one statement"),
    ("SELECT tail FROM landings; SELECT tail FROM landings", "the SQL must be one statement"),
    ("INSERT INTO landings VALUES (1)", NOT_A_SELECT),
    ("DROP TABLE landings", NOT_A_SELECT),
    ("COPY landings TO 'landings.parquet'", NOT_A_SELECT),
]


@pytest.mark.parametrize(("sql", "fault"), REFUSED)
def test_what_is_not_row_local_is_refused(sql: str, fault: str) -> None:
    """What makes a row depend on other rows, tables or the moment is refused, and the message names it (T12)."""
    assert faults_in(sql, SOURCE) == [fault]


@pytest.mark.parametrize(("sql", "name"), [
    ("SELECT to_json(landings) AS a FROM landings", "landings"), ("SELECT Landings::VARCHAR AS a FROM landings", "Landings"),
    ("SELECT tail FROM landings AS l WHERE l IS NOT NULL", "l"),
])  # fmt: skip
def test_a_row_as_a_whole_is_refused(sql: str, name: str) -> None:
    """It would hold the library's own columns; a column may have the name of its source all the same."""
    assert faults_in(sql, SOURCE, ["tail"]) == [f"a row as a whole ({name}) is not supported; name the columns"]
    assert faults_in(sql, SOURCE, ["tail", name]) == []
    assert faults_in("SELECT list_transform(stops, lambda landings: landings) AS a FROM landings", SOURCE, ["stops"]) == []


def test_a_star_of_a_struct_does_not_give_the_column() -> None:
    """Its fields are what the star stands for, and the column is added beside them."""
    with session(SourceError, "a test") as connection:
        sql = with_column("SELECT place.* FROM landings AS l", "__file_seq")
        found = connection.execute(f"WITH landings AS (SELECT {{'x': 1, 'y': 2}} AS place, 8 AS __file_seq) {sql}").fetchall()
    assert found == [(1, 2, 8)]


@pytest.mark.parametrize("group", ["tail", "()", "1", "GROUPING SETS ((tail), ())", "ROLLUP (tail)", "tail, delay"])
def test_a_group_by_is_refused(group: str) -> None:
    """GROUP BY is a fault however it is written."""
    assert set(faults_in(f"SELECT tail FROM landings GROUP BY {group}", SOURCE)) == {"GROUP BY is not row-local"}


def test_what_does_not_parse_is_refused_with_the_reason() -> None:
    """SQL that DuckDB cannot parse is a fault that carries DuckDB's words."""
    (fault,) = faults_in("SELEC tail", SOURCE)

    assert fault.startswith("the SQL does not parse as a SELECT: ")
    assert "SELEC" in fault


def test_all_faults_are_reported_at_once() -> None:
    """Each fault of a SELECT is named, not only the first."""
    sql = "SELECT DISTINCT random() AS a, sum(delay) AS b FROM other WHERE delay = (SELECT 1) LIMIT 1"

    assert faults_in(sql, SOURCE) == [
        "DISTINCT is not row-local",
        "LIMIT is not row-local",
        "the SQL reads 'other'; its one source is 'landings'",
        f"function 'random' is not allowed: {CHANGES}",
        "function 'sum' is not allowed: it aggregates rows",
        "a subquery is not row-local",
    ]


MOMENTARY = [
    "current_localtimestamp()",
    "current_localtime()",
    "age(naive)",
    "get_current_timestamp()",
    "get_current_time()",
    "transaction_timestamp()",
]


@pytest.mark.parametrize("expression", MOMENTARY)
def test_what_depends_on_the_moment_is_refused_whatever_duckdb_calls_it(expression: str) -> None:
    """DuckDB calls some functions of the present CONSISTENT; still, no row may depend on when it is read (T12)."""
    assert faults_in(f"SELECT {expression} AS a FROM landings", SOURCE) != []


SESSION = [
    "current_query()",
    "current_schema()",
    "current_schemas(true)",
    "current_database()",
    "current_catalog()",
    "txid_current()",
]


@pytest.mark.parametrize("expression", SESSION)
def test_what_depends_on_the_session_is_refused(expression: str) -> None:
    """Functions that DuckDB offers both as a macro and as what the macro calls are refused like all that can change."""
    name, _, _ = expression.partition("(")

    (fault,) = faults_in(f"SELECT {expression} AS a FROM landings", SOURCE)

    assert fault.startswith(f"function {name!r} is not allowed: ")


@pytest.mark.parametrize("column", ["landings.user", "place.user", "landings.place.user"])
def test_a_qualified_name_is_a_column_whatever_it_is_called(landings: duckdb.DuckDBPyConnection, column: str) -> None:
    """Only a bare word can stand for a function without parentheses; a qualified one is a column of the source."""
    sql = f"SELECT {column} AS a FROM landings"

    assert faults_in(sql, SOURCE) == []
    assert _row(landings, with_column(sql, "__file_seq")) == {"a": "me", "__file_seq": 8}


def _row(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    result = connection.execute(sql)
    names = [column[0] for column in result.description or ()]
    ((*values,),) = result.fetchall()
    return dict(zip(names, values, strict=True))
