"""T12: a view's SQL is row-local, checked on DuckDB's own parse tree.

What passes is one `SELECT` of expressions over the view's one source, with an optional `WHERE`. So each source row gives at most
one row, whatever the other rows are, and the result does not depend on how the work is cut or where it runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache, lru_cache
from typing import Any

import orjson

from featurestore.errors import SourceError
from featurestore.offline.session import identifier, session

__all__ = ["faults_in", "with_column"]

_NOT_ROW_LOCAL = {
    "WINDOW": "a window function",
    "SUBQUERY": "a subquery",
    "PARAMETER": "a parameter",
}
_LISTS = {
    "group_expressions": "GROUP BY",
    "group_sets": "GROUP BY",
    "having": "HAVING",
    "qualify": "QUALIFY",
    "sample": "a sample",
}
# Words that DuckDB's binder turns into a function where no column has the name.
_MOMENTARY = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"} | {
    "current_user",
    "session_user",
    "user",
}
# Functions of the moment or of the session that DuckDB calls CONSISTENT all the same.
_MOMENTARY_FUNCTIONS = {"current_localtime", "current_localtimestamp", "get_current_time", "transaction_timestamp"}
_MOMENTARY_REASON = "its result can change from call to call"
_SESSION_FUNCTIONS = {"current_schema", "current_schemas", "current_database", "current_catalog", "current_role", "version"}
_OURS = ("__file_seq", "__arrival")
_MODIFIERS = {"DISTINCT_MODIFIER": "DISTINCT", "ORDER_MODIFIER": "ORDER BY"}


def faults_in(sql: str, source: str, columns: Collection[str] | None = None) -> list[str]:
    """Say what keeps `sql` from being row-local over the source of that name and these columns; nothing if it is."""
    tree = _parse(sql)
    if tree["error"]:
        return [f"the SQL does not parse as a SELECT: {tree['error_message']}"]
    if len(tree["statements"]) != 1:
        return ["the SQL must be one statement"]
    node = tree["statements"][0]["node"]
    if node["type"] != "SELECT_NODE":
        return ["the SQL must be a plain SELECT (no UNION, INTERSECT or EXCEPT)"]
    return [*_clause_faults(node), *_table_faults(node["from_table"], source), *_expression_faults(node, columns)]


@lru_cache(maxsize=256)
def with_column(sql: str, column: str) -> str:
    """Return `sql` with one more column of its source in the select list; `sql` must be free of faults."""
    tree = _parse(sql)
    reference = {"class": "COLUMN_REF", "type": "COLUMN_REF", "alias": "", "column_names": [column]}
    node = tree["statements"][0]["node"]
    select, rows = node["select_list"], {"", *_names_of_rows(node["from_table"])}
    # A star gives the column already, if it is none of a struct's; what is selected twice would be ambiguous.
    if not any(each["class"] == "STAR" and not each["columns"] and each["relation_name"].lower() in rows for each in select):
        select.append(reference)
    with session(SourceError, "view SQL") as connection:
        row = connection.execute("SELECT json_deserialize_sql($1::JSON)", [orjson.dumps(tree).decode()]).fetchone()
    assert row is not None
    return str(row[0])


def _parse(sql: str) -> dict[str, Any]:
    with session(SourceError, "view SQL") as connection:
        row = connection.execute("SELECT json_serialize_sql($1)", [sql]).fetchone()
    assert row is not None
    tree: dict[str, Any] = orjson.loads(row[0])
    return tree


def _clause_faults(node: dict[str, Any]) -> Iterator[str]:
    yield from (f"{name} is not row-local" for part, name in _LISTS.items() if node[part])
    if node["cte_map"]["map"]:
        yield "WITH is not supported; write one SELECT"
    if node["aggregate_handling"] != "STANDARD_HANDLING":
        yield "GROUP BY is not row-local"
    for modifier in node["modifiers"]:
        yield f"{_MODIFIERS.get(modifier['type'], 'LIMIT')} is not row-local"


def _table_faults(table: dict[str, Any], source: str) -> Iterator[str]:
    if table["type"] != "BASE_TABLE":
        yield f"the SQL must read FROM {identifier(source)} alone, its one source (no joins, no table functions)"
    elif [table["catalog_name"], table["schema_name"], table["table_name"].lower()] != ["", "", source.lower()]:
        yield f"the SQL reads {table['table_name']!r}; its one source is {source!r}"
    elif table["sample"] or table["at_clause"]:
        yield "a sample or a version of the source is not row-local"


def _expression_faults(node: dict[str, Any], columns: Collection[str] | None) -> Iterator[str]:
    whole = [each for each in node["select_list"] if each["class"] == "STAR"]
    stars = [id(star) for each in whole for star in [each, *_walk(each["expr"])]]
    parts = list(_walk([node["select_list"], node["where_clause"]]))
    lambdas = [part["lhs"] for part in parts if part["class"] == "LAMBDA"]
    parameters = [name for part in _walk(lambdas) for name in part.get("column_names", ())]
    rows = _names_of_rows(node["from_table"]) - {name.lower() for name in (*parameters, *(columns or ()))}
    if any(part["class"] == "SUBQUERY" for part in parts):  # which is refused, whatever stands in it
        stars += [id(part) for part in parts]
    for part in parts:
        if fault := _fault(part):
            yield fault
        # The source has columns of ours beside its own, which must not take part.
        if part["class"] == "STAR" and id(part) not in stars:
            yield "COLUMNS(…) or * within an expression is not supported; name the columns"
        if columns is not None and part["class"] == "COLUMN_REF" and ".".join(part["column_names"]).lower() in rows:
            yield f"a row as a whole ({part['column_names'][0]}) is not supported; name the columns"


def _names_of_rows(table: dict[str, Any]) -> set[str]:
    """Return the names that a row of the source as a whole has, in lower case."""
    return {str(table.get("alias") or table.get("table_name", "")).lower()}


def _fault(part: dict[str, Any]) -> str | None:
    kind = part["class"]
    names = [part.get("alias", ""), *part.get("column_names", [])[-1:], *part.get("exclude_list", [])]
    for name in names:
        if name.lower() in _OURS:
            return f"{name.lower()} is the library's own column"
    if kind == "POSITIONAL_REFERENCE":
        return f"a column by its number (#{part['index']}) is not supported; name it"
    if kind in _NOT_ROW_LOCAL:
        return f"{_NOT_ROW_LOCAL[kind]} is not row-local"
    if kind == "COLUMN_REF" and len(part["column_names"]) == 1 and part["column_names"][0].lower() in _MOMENTARY:
        return f"{part['column_names'][0]} is not allowed: {_MOMENTARY_REASON}"
    if kind == "FUNCTION" and (reason := _refusal(part["function_name"].lower(), len(part["arguments"]))):
        return f"function {part['function_name'].lower()!r} is not allowed: {reason}"
    return None


@cache
def _refusal(name: str, arguments: int) -> str | None:
    if name in _MOMENTARY_FUNCTIONS or (name, arguments) == ("age", 1):
        return _MOMENTARY_REASON
    if name in _SESSION_FUNCTIONS:
        return "its result depends on the session"
    if name == "unnest":
        return "it makes several rows of one"
    overloads = _functions().get(name, {("", "", "")})
    return next((reason for overload in overloads if (reason := _overload_refusal(name, *overload))), None)


def _overload_refusal(name: str, kind: str, stability: str, macro: str) -> str | None:
    if kind == "aggregate":
        return "it aggregates rows"
    if kind == "macro":
        body = _parse(f"SELECT {macro}")["statements"][0]["node"]["select_list"]
        # A macro may call a function of its own name, which is another overload and judged as such.
        is_faulty = any(_fault(part) for part in _walk(body) if part.get("function_name") != name)
        return "it is a macro over what is not row-local" if is_faulty else None
    if not kind:
        return "DuckDB has no scalar function of that name"
    return None if stability == "CONSISTENT" else _MOMENTARY_REASON


def _walk(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, list):
        for each in part:
            yield from _walk(each)
    elif isinstance(part, dict):
        if "class" in part:
            yield part
        for each in part.values():
            yield from _walk(each)


@cache
def _functions() -> dict[str, set[tuple[str, str, str]]]:
    functions: dict[str, set[tuple[str, str, str]]] = {}
    # A function of an instant depends on the session's time zone, so DuckDB calls it consistent within a query; ours is always UTC.
    query = """
        SELECT lower(function_name), function_type,
               CASE WHEN len(parameter_types) > 0 AND stability = 'CONSISTENT_WITHIN_QUERY'
                         AND regexp_matches(concat_ws(' ', parameter_types::VARCHAR, return_type), 'WITH TIME ZONE|TIMESTAMPTZ')
                    THEN 'CONSISTENT' ELSE stability END,
               macro_definition
        FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate', 'macro')"""
    with session(SourceError, "view SQL") as connection:
        for name, *rest in connection.execute(query).fetchall():
            functions.setdefault(name, set()).add(tuple(rest))
    return functions
