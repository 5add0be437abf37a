"""The rules read naively: T1 to T6, T7's `history_start` and T13, one row at a time, in plain integers.

Tests compare the library with this. It is written from the text of the rules alone (docs/concepts) and shares nothing with the
library but the definitions: no columns, no sorting, no search, so whoever reads it next to the text sees that both say the same.
It looks at every source row for every value: right, and slow.

A source row is a dict of the columns that the view's SQL gives, or its source; source rows are a list in file and row order. What
an aggregation takes is in it under the name of its stored column (`Aggregation.stored_name`). Instants are microseconds since 1970,
UTC.
"""

from __future__ import annotations

import datetime as dt
import fractions
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.definitions import Aggregation, FeatureView

__all__ = ["Member", "instant", "row_at", "training_set", "value_at", "visible_time", "windows_at"]

Row = Mapping[str, Any]
Key = tuple[Any, ...]

_EPOCH = dt.datetime.fromisoformat("1970-01-01")
_MICROSECOND = dt.timedelta(microseconds=1)


@dataclass(frozen=True)
class Member:
    """What a training set takes of one view: `name` is the view's or its alias's, `key_columns` stand for its join keys."""

    name: str
    view: FeatureView
    source_rows: Sequence[Row]
    key_columns: tuple[str, ...]
    features: tuple[str, ...]


def training_set(
    members: Sequence[Member], spine: Sequence[Row], timestamp_column: str = "event_timestamp"
) -> list[dict[str, Any]]:
    """Return the spine's rows with the features beside them, as `view__feature`, each as of its row's own time (T5)."""
    return [dict(row) | _features(members, row, instant(row[timestamp_column])) for row in spine]


def _features(members: Sequence[Member], row: Row, t: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for member in members:
        key = tuple(row[column] for column in member.key_columns)
        values = value_at(member.view, member.source_rows, key, t) or {}
        found |= {f"{member.name}__{feature}": values.get(feature) for feature in member.features}
    return found


def value_at(view: FeatureView, source_rows: Sequence[Row], key: Key, t: int) -> dict[str, Any] | None:
    """Return the features of a key at `t`, None where the value is absent."""
    if view.aggregations:
        return windows_at(view, source_rows, key, t)
    row = row_at(view, source_rows, key, t)
    return None if row is None else {field.name: row[field.name] for field in view.fields}


def row_at(view: FeatureView, source_rows: Sequence[Row], key: Key, t: int) -> Row | None:
    """Return the source row that gives the value of a key at `t` (T4), None where there is none."""
    if any(part is None for part in key):
        return None  # T5: a null join key gets nulls
    own = [(seq, row) for seq, row in enumerate(source_rows) if _has_key(view, row, key)]
    if view.is_static:
        return _only(own)
    candidates = [(seq, row) for seq, row in own if _exists(view, row) and _visible_time(view, row) <= t]  # T2
    if not candidates:
        return None
    _, latest = max(candidates, key=lambda each: _order(view, *each))
    return None if _is_expired(view, latest, t) else latest


def windows_at(view: FeatureView, source_rows: Sequence[Row], key: Key, t: int) -> dict[str, Any] | None:
    """Return the features of an aggregated view of a key at `t` (T6), None where the value is absent."""
    if row_at(view, source_rows, key, t) is None:
        return None
    end = _boundary_before(t - _length(view.source.delay), _length(view.refresh))
    known = [(seq, row) for seq, row in enumerate(source_rows) if _has_key(view, row, key) and _exists(view, row)]
    known = [(seq, row) for seq, row in known if _known(view, row) <= end]
    ordered = [row for _, row in sorted(known, key=lambda each: _order(view, *each))]
    found = {}
    for aggregation in view.aggregations:
        for window, name in zip(aggregation.windows, aggregation.feature_names, strict=True):
            inside = [row for row in ordered if end - _length(window) < (_event_time(view, row) or 0) <= end]
            found[name] = _aggregate(aggregation, inside)
    return found


def _aggregate(aggregation: Aggregation, rows: Sequence[Row]) -> Any:
    if aggregation.input is None:
        return len(rows)
    values = [row[aggregation.input.name] for row in rows if row[aggregation.input.name] is not None]
    function, n = aggregation.function, aggregation.n
    if function in ("count", "count_distinct"):
        return len(values) if function == "count" else len({_identity(value) for value in values})
    if function == "sum":
        return _sum(values) if values else 0
    if not values or (function == "stddev" and len(values) == 1):
        return None
    results: dict[str, Callable[[], Any]] = {
        "mean": lambda: float(_sum(values)) / len(values),
        "stddev": lambda: _deviation(values),
        "min": lambda: min(values, key=_rank),
        "max": lambda: max(values, key=_rank),
        "first": lambda: values[0],
        "last": lambda: values[-1],
        "last_n": lambda: values[-(n or 0) :],
    }
    return results[function]()


def _sum(values: Sequence[Any]) -> Any:
    if all(isinstance(value, int) for value in values):
        return sum(values)
    if any(math.isnan(value) for value in values) or {math.inf, -math.inf} <= set(values):
        return math.nan
    return math.fsum(values)


def _deviation(values: Sequence[Any]) -> float:
    if not all(math.isfinite(value) for value in values):
        return math.nan
    exact = [fractions.Fraction(value) for value in values]
    mean = sum(exact, fractions.Fraction()) / len(exact)
    variance = sum(((value - mean) ** 2 for value in exact), fractions.Fraction()) / (len(exact) - 1)
    # The variance may lie beyond the floats where its root does not.
    half = (variance.numerator.bit_length() - variance.denominator.bit_length()) // 2
    return math.ldexp(math.sqrt(variance / fractions.Fraction(4) ** half), half)


def _identity(value: Any) -> Any:
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def _rank(value: Any) -> Any:
    """NaN sorts above all, -0.0 below 0.0."""
    if not isinstance(value, float):
        return value
    return math.isnan(value), 0.0 if math.isnan(value) else value, math.copysign(1, value)


def visible_time(view: FeatureView, row: Row) -> int | None:
    """Return the moment from which serving could have returned a row (T3); None for one without event time."""
    return None if _event_time(view, row) is None else _visible_time(view, row)


def instant(moment: dt.datetime | dt.date) -> int:
    """Return a moment in microseconds: a naive one is UTC, an aware one is converted, a date is its midnight (T1)."""
    if not isinstance(moment, dt.datetime):
        moment = dt.datetime.combine(moment, dt.time())
    offset = moment.utcoffset() or dt.timedelta(0)
    return (moment.replace(tzinfo=None) - _EPOCH - offset) // _MICROSECOND


def _has_key(view: FeatureView, row: Row, key: Key) -> bool:
    parts = zip(view.join_keys, key, strict=True)
    return all(row[field.name] is not None and row[field.name] == part for field, part in parts)


def _only(rows: list[tuple[int, Row]]) -> Row | None:
    """T13: a static source has one row for each key, visible always."""
    if len(rows) > 1:
        raise ValueError("a duplicate key in a static source")
    return rows[0][1] if rows else None


def _exists(view: FeatureView, row: Row) -> bool:
    visible = visible_time(view, row)
    if visible is None:
        return False
    return view.history_start is None or visible > instant(view.history_start)


def _event_time(view: FeatureView, row: Row) -> int | None:
    assert view.source.event_time is not None
    moment = row[view.source.event_time]
    return None if moment is None else instant(moment)


def _created_time(view: FeatureView, row: Row) -> int | None:
    column = view.source.created_time
    return None if column is None or row[column] is None else instant(row[column])


def _visible_time(view: FeatureView, row: Row) -> int:
    return _next_boundary(_known(view, row), _length(view.refresh)) + _length(view.source.delay)


def _known(view: FeatureView, row: Row) -> int:
    event = _event_time(view, row)
    assert event is not None
    created = _created_time(view, row)
    is_late = view.source.visible_from == "created_time" and created is not None
    return max(event, created) if is_late and created is not None else event


def _boundary_before(moment: int, refresh: int) -> int:
    if refresh == 0:
        return moment
    steps = moment // refresh
    while (steps + 1) * refresh <= moment:
        steps += 1
    return steps * refresh


def _next_boundary(moment: int, refresh: int) -> int:
    if refresh == 0:
        return moment  # not materialized in steps: at once
    steps = moment // refresh
    while steps * refresh < moment:
        steps += 1
    return steps * refresh


def _order(view: FeatureView, seq: int, row: Row) -> tuple[int | None, bool, int, int]:
    created = _created_time(view, row)
    return _event_time(view, row), created is not None, created or 0, seq


def _is_expired(view: FeatureView, row: Row, t: int) -> bool:
    event = _event_time(view, row)
    assert event is not None
    return view.ttl is not None and t - event > _length(view.ttl)


def _length(duration: dt.timedelta | None) -> int:
    return 0 if duration is None else duration // _MICROSECOND
