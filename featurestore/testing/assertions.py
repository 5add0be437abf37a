"""What tests of definitions assert: serving and training see the same, and training sees what the rules say."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.clock import instant_text
from featurestore.definitions import FeatureView, FileSource
from featurestore.errors import InputError
from featurestore.offline.files import source_files
from featurestore.offline.session import identifier
from featurestore.offline.sources import expressions
from featurestore.on_demand import Evaluation
from featurestore.registry.selection import Lookup, Selection
from featurestore.store import Features, FeatureStore
from featurestore.testing import oracle

__all__ = ["assert_parity", "assert_point_in_time"]

_TIME = "__asked_at"  # no column of a spine or a service has such a name
_EXAMPLES = 5


def assert_parity(
    store: FeatureStore, features: Features, entities: Mapping[str, Sequence[Any]] | None = None, *, keys: int = 200
) -> int:
    """Assert that a lookup and a training row of this instant give the same values, bit for bit; returns how many were compared.

    `features` is a service, its name, or a list of `"view:feature"`. `entities` are those of a lookup, with its request columns; by
    default keys are drawn from the tables, up to so many `keys` of each view. Use it under a virtual clock, or the present moves on
    between the two.

    Raises:
        AssertionError: values differ; lists the first, and says how many.
        IncompleteError: the views are not materialized up to the present.
        InputError: the features need request columns, and no entities are given.

    """
    selection = store.selection(features)
    entities = _drawn(store, selection, keys) if entities is None else entities
    served = store.get_online_features(entities, features).to_arrow()
    now = store.clock()
    times = pa.array([now] * len(served), pa.int64()).cast(pa.timestamp("us", "UTC"))
    spine = served.select(list(selection.needed)).append_column(_TIME, times)
    trained = store.get_historical_features(spine, features, timestamp_column=_TIME).to_arrow()
    _compare(
        selection,
        ("served", served.to_pylist()),
        ("trained", trained.to_pylist()),
        f"a lookup and a training row at {instant_text(now)}",
    )
    return len(served) * len(selection.columns)


def assert_point_in_time(
    store: FeatureStore, features: Features, spine: pa.Table, *, timestamp_column: str = "event_timestamp"
) -> int:
    """Assert that a training set is what the naive oracle makes of the source files; returns how many values were compared.

    The oracle reads whole files into Python and looks at every row for every value: keep sources and spine small. On-demand
    features are held against their function of what the oracle gives.

    Raises:
        AssertionError: values differ; lists the first, and says how many.

    """
    selection, root = store.selection(features), store.settings.root
    trained = store.get_historical_features(spine, features, timestamp_column=timestamp_column).to_arrow()
    members = [
        oracle.Member(each.name, each.version.view, source_rows(each.version.view, root), each.key_columns, each.features)
        for each in selection.lookups
    ]
    expected = _with_on_demand(store, selection, oracle.training_set(members, spine.to_pylist(), timestamp_column))
    _compare(selection, ("trained", trained.to_pylist()), ("expected", expected), "the training set and the oracle")
    return len(expected) * len(selection.columns)


def source_rows(view: FeatureView, root: Any) -> list[dict[str, Any]]:
    """Return the rows of a view's source as the oracle takes them: all of its files, its SQL applied, in the declared types."""
    if not isinstance(view.source, FileSource):
        raise InputError(f"view {view.name!r} is fed by pushes, and has no files that the oracle could read", name=view.name)
    files = [pq.read_table(file) for file in source_files(view.source, root)]
    times = [name for name in (view.source.event_time, view.source.created_time) if name is not None]
    wanted = {field.name: field for field in (*view.join_keys, *view.stored)}
    columns = [f"{expression} AS {identifier(field.name)}" for field, expression in expressions(view).items()]
    columns += [identifier(name) for name in times if name not in wanted]
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register(view.source.name, pa.concat_tables(files, promote_options="permissive"))
        rows = view.sql or f"SELECT * FROM {identifier(view.source.name)}"
        table = connection.sql(f"SELECT {', '.join(columns)} FROM ({rows})").to_arrow_table()
    typed = {name: table[name].cast(wanted[name].type.arrow) if name in wanted else table[name] for name in table.column_names}
    return pa.table(typed).to_pylist()


def _with_on_demand(store: FeatureStore, selection: Selection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    evaluation = Evaluation(selection, store.functions.of)
    types = {**selection.all_types(), **selection.request}
    given = {name: pa.array([row[name] for row in rows], types[name].arrow) for name in evaluation.inputs}
    computed = {name: column.to_pylist() for name, column in evaluation.arrow(given, len(rows)).items()}
    return [row | {name: values[place] for name, values in computed.items()} for place, row in enumerate(rows)]


def _drawn(store: FeatureStore, selection: Selection, count: int) -> dict[str, list[Any]]:
    """Return entities with every drawn key of each view; columns that a view lacks come from the other views' keys."""
    drawn = [_keys(store, lookup, count) for lookup in selection.lookups]
    known = {column: next(each[column] for each in drawn if column in each) or [None] for column in selection.keys}
    entities: dict[str, list[Any]] = {column: [] for column in selection.keys}
    for each in drawn:
        rows = len(next(iter(each.values())))
        for column in entities:
            entities[column] += each.get(column) or itertools.islice(itertools.cycle(known[column]), rows)
    return entities


def _keys(store: FeatureStore, lookup: Lookup, count: int) -> dict[str, list[Any]]:
    """Return the first keys by hash that the table of a view has: the same ones each time."""
    keys = lookup.version.view.join_keys
    schema = pa.schema([(key.name, key.type.arrow) for key in keys])
    files = store.snapshot(lookup.version).files
    tables = [pq.read_table(file.path, columns=schema.names).cast(schema) for file in files]
    whole = pa.concat_tables([schema.empty_table(), *tables])
    found = whole.group_by(schema.names, use_threads=False).aggregate([]).slice(0, count)
    return {column: found[key.name].to_pylist() for column, key in zip(lookup.key_columns, keys, strict=True)}


def _compare(selection: Selection, one: tuple[str, Sequence[Any]], other: tuple[str, Sequence[Any]], what: str) -> None:
    (left, rows), (right, others) = one, other
    different, lines = set(), []
    for number, (row, wanted) in enumerate(zip(rows, others, strict=True)):
        for column in selection.columns:
            if not _is_same(row[column], wanted[column]):
                different.add(number)
                key = ", ".join(f"{name}={row[name]!r}" for name in selection.keys)
                lines.append(f"  {key}: {column} is {row[column]!r} as {left}, {wanted[column]!r} as {right}")
    if different:
        shown = [*lines[:_EXAMPLES], *([f"  and {len(lines) - _EXAMPLES} more values"] if len(lines) > _EXAMPLES else [])]
        raise AssertionError("\n".join([f"{selection.name}: {what} differ in {len(different)} of {len(rows)} rows:", *shown]))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values have the same bits; NaN is one value."""
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("<d", one) == struct.pack("<d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return type(one) is type(other) and bool(one == other)
