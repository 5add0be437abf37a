"""Erased keys (T14): a keyed hash of each stands in the registry, never the key, and every read of a source leaves its rows out.

The hash of a key is `sha256(secret || sha256(secret || columns))` in hexadecimal digits, where each column is the text of its value
with its length in bytes and a colon before it. The text of a Bytes is its hexadecimal digits, of a Timestamp its microseconds, and
of other types what DuckDB casts to VARCHAR. DuckDB computes it, for what is erased and for what is read alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from featurestore.definitions import FeatureView, Field
from featurestore.errors import OfflineStoreError
from featurestore.offline.session import identifier, literal, session
from featurestore.offline.sources import ViewRows
from featurestore.registry.state import Tombstones

__all__ = ["digests", "is_kept", "is_row_kept", "without_erased"]


def digests(secret: str, keys: Sequence[Field], columns: Sequence[pa.ChunkedArray]) -> list[str]:
    """Return the hash of each key, given as columns of the declared types without nulls."""
    with session(OfflineStoreError, "the hashes of keys") as connection:
        connection.register("erased_keys", pa.table(dict(zip([key.name for key in keys], columns, strict=True))))
        return [row[0] for row in connection.execute(f"SELECT {_digest(secret, keys)} FROM erased_keys").fetchall()]


def is_kept(view: FeatureView, tombstones: Tombstones) -> str | None:
    """Return the SQL condition that a row of a view is of no erased key; none if nothing of the view's keys is erased."""
    return is_row_kept({key.name: key for key in view.join_keys}, tombstones)


def is_row_kept(columns: Mapping[str, Field], tombstones: Tombstones) -> str | None:
    """Return the SQL condition that a row is of no erased key; `columns` are those that stand for join keys, by the keys' names.

    A tombstone is for the columns of an entity, so it holds in every view that has them, with keys of several entities too.
    """
    conditions = []
    for names, erased in sorted(tombstones.digests.items()):
        keys = [columns[name] for name in names if name in columns]
        if erased and len(keys) == len(names):
            listed = ", ".join(map(literal, sorted(erased)))
            conditions.append(f"coalesce({_digest(tombstones.secret, keys)} NOT IN ({listed}), true)")
    return " AND ".join(conditions) or None


def without_erased(rows: ViewRows, tombstones: Tombstones) -> ViewRows:
    """Return the rows of a view without those of erased keys."""
    condition = is_kept(rows.view, tombstones)
    return rows if condition is None else replace(rows, sql=f"(SELECT * FROM {rows.sql} WHERE {condition})")


def _digest(secret: str, keys: Sequence[Field]) -> str:
    texts = [_text(key) for key in keys]
    message = " || ".join(f"strlen({text})::VARCHAR || ':' || {text}" for text in texts)
    return f"sha256({literal(secret)} || sha256({literal(secret)} || {message}))"


def _text(key: Field) -> str:
    name = identifier(key.name)
    forms = {"Bytes": f"hex({name})", "Timestamp": f"epoch_us({name})::VARCHAR"}
    return forms.get(key.type.name, f"{name}::VARCHAR")
