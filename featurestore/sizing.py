"""How much memory the online store will need for the versions that a plan makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurestore.definitions import FeatureView, Field
from featurestore.errors import SourceError
from featurestore.offline.session import identifier, session
from featurestore.offline.sources import view_rows
from featurestore.online.sizing import memory_of, row_bytes
from featurestore.online.store import features_of_view
from featurestore.registry.plan import Plan

__all__ = ["Estimate", "estimates"]

_ARRAY_OF_TEXTS_BYTES = 16  # each item's end, its bit, and a short text


@dataclass(frozen=True)
class Estimate:
    """The online rows that a new version will have: keys, mean bytes of a row, and the memory of all on Redis 7."""

    view: str
    version: int
    keys: int
    row_bytes: float
    memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON-ready data."""
        return asdict(self)


def estimates(plan: Plan, root: Path) -> list[Estimate]:
    """Estimate the online memory of each new version from its source: its distinct keys (to a few percent), its mean lengths.

    A version whose source cannot be read is left out, and one of pushed rows. The version that a new one replaces stays online
    beside it until it is dropped.
    """
    return list(_estimates(plan, root))


def _estimates(plan: Plan, root: Path) -> Iterator[Estimate]:
    for new in plan.new_versions:
        if not new.view.online or new.view.is_pushed:
            continue
        try:
            keys, key_bytes, tail_bytes = _measured(new.view, root)
        except SourceError:
            continue
        row = row_bytes(features_of_view(new.view), tail_bytes)
        yield Estimate(new.view.name, new.number, keys, round(row, 1), round(keys * memory_of(key_bytes, row)))


def _measured(view: FeatureView, root: Path) -> tuple[int, float, float]:
    """Return the distinct keys of a view's source, and the mean bytes of a key and of a row's tail."""
    names = ", ".join(identifier(key.name) for key in view.join_keys)
    length_bytes = 4 * sum(not key.type.is_fixed_width for key in view.join_keys[:-1])
    counted = f"approx_count_distinct(hash({names})), {_mean(map(_bytes, view.join_keys))}, {_mean(_tails(view))}"
    rows = view_rows(view, root)
    with session(SourceError, f"view {view.name!r}, source {view.source.name!r}") as connection:
        query = f"SELECT {counted} FROM {rows.sql} WHERE {rows.keys_present}"
        found = connection.execute(query).fetchone()
    assert found is not None
    return int(found[0]), float(found[1] or 0) + length_bytes, float(found[2] or 0)


def _mean(terms: Iterable[str]) -> str:
    """Return the SQL of the mean bytes that some columns take together."""
    return " + ".join(f"coalesce(avg({term}), 0)" for term in terms) or "0"


def _tails(view: FeatureView) -> Iterator[str]:
    """Return the SQL of the bytes that each feature of variable width takes in a row's tail; a list of the last n has n at most."""
    yield from (_bytes(field) for field in view.fields if not field.type.is_fixed_width)
    for aggregation in view.aggregations:
        for feature in aggregation.features:
            if not feature.type.is_fixed_width and aggregation.input is not None:
                yield f"{aggregation.n or 1} * ({_bytes(aggregation.input)})"


def _bytes(field: Field) -> str:
    import numpy as np

    name, item = identifier(field.name), field.type.item
    if item is not None:
        each = np.dtype(item.numpy).itemsize if item.is_fixed_width else _ARRAY_OF_TEXTS_BYTES
        return f"len({name}) * {each}"
    if field.type.is_fixed_width:
        return str(np.dtype(field.type.numpy).itemsize)
    return f"strlen({name})" if field.type.name == "String" else f"octet_length({name})"
