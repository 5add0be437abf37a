"""What the registry keeps of erasures (T14): tombstones of erased keys, as hashes, and a manifest of each erasure."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa

from featurestore.registry.schema import changes, erasures, meta, runs, tombstones
from featurestore.registry.state import Tombstones, Version
from featurestore.specs import canonical_json

__all__ = ["Erasures", "is_renamed", "rename"]


def _says_online(change: Mapping[str, Any]) -> bool:
    """Whether a change is of `online`, or of a whole view that was online before or after."""
    sides = (change["before"], change["after"])
    return change["field"] == "online" or (not change["field"] and any(side and side["online"] for side in sides))


def is_renamed(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether key columns are others by their names alone: as many, and those that keep their names in their places."""
    places = {name: place for place, name in enumerate(after)}
    return len(before) == len(after) and all(places.get(name, place) == place for place, name in enumerate(before))


def rename(connection: sa.Connection, before: Sequence[str], after: Sequence[str]) -> None:
    """Let the tombstones of key columns hold for their new names as well: rows that come by these are of the same entities."""
    rows = connection.execute(sa.select(tombstones).where(tombstones.c.columns == canonical_json(list(before)))).mappings().all()
    is_there = (tombstones.c.columns == canonical_json(list(after))) & tombstones.c.lifted_at.is_(None)
    there = set(connection.execute(sa.select(tombstones.c.digest).where(is_there)).scalars())
    new = [row for row in rows if row["lifted_at"] is None and row["digest"] not in there]
    for row in new if is_renamed(before, after) else ():
        carried = {"columns": canonical_json(list(after)), "digest": row["digest"], "erased_at": row["erased_at"]}
        connection.execute(tombstones.insert().values(carried))


class Erasures:
    """The erasures of one registry; every method is one transaction."""

    def __init__(self, transaction: Callable[..., AbstractContextManager[sa.Connection]], user: Callable[[], str]) -> None:
        self._transaction, self._user = transaction, user

    def secret(self) -> str:
        """Return the secret that goes into the hashes of erased keys; made when first asked for."""
        with self._transaction(write=True) as connection:
            secret = connection.execute(sa.select(meta.c.erasure_secret)).scalar_one()
            if secret is None:
                secret = secrets.token_hex(32)
                connection.execute(sa.update(meta).values(erasure_secret=secret))
            return str(secret)

    def tombstones(self) -> Tombstones:
        """Return the hashes of all keys that are erased and not lifted."""
        with self._transaction() as connection:
            secret = connection.execute(sa.select(meta.c.erasure_secret)).scalar_one()
            rows = connection.execute(sa.select(tombstones).where(tombstones.c.lifted_at.is_(None))).all()
        found: dict[tuple[str, ...], set[str]] = {}
        for row in rows:
            found.setdefault(tuple(json.loads(row.columns)), set()).add(row.digest)
        return Tombstones(secret or "", {names: frozenset(digests) for names, digests in found.items()})

    def bury(self, columns: Sequence[str], digests: Sequence[str], *, now: int) -> None:
        """Record that keys of these columns are erased, those left out that are already."""
        names = canonical_json(list(columns))
        with self._transaction(write=True) as connection:
            is_there = (tombstones.c.columns == names) & tombstones.c.lifted_at.is_(None)
            there = set(connection.execute(sa.select(tombstones.c.digest).where(is_there)).scalars())
            rows = [{"columns": names, "digest": each, "erased_at": now} for each in digests if each not in there]
            if rows:
                connection.execute(tombstones.insert(), rows)

    def lift(self, columns: Sequence[str], digests: Sequence[str], *, now: int) -> int:
        """Lift the tombstones of keys; returns how many there were."""
        with self._transaction(write=True) as connection:
            is_it = (tombstones.c.columns == canonical_json(list(columns))) & tombstones.c.lifted_at.is_(None)
            update = sa.update(tombstones).where(is_it, tombstones.c.digest.in_(digests)).values(lifted_at=now)
            return int(connection.execute(update).rowcount)

    def online_run(self, version: Version, *, now: int) -> int:
        """Return the number of a run that only deletes online; it needs no lease, and is above that of any run under way."""
        with self._transaction(write=True) as connection:
            number = (connection.execute(sa.select(sa.func.max(runs.c.id))).scalar_one() or 0) + 1
            row = {"version_id": version.id, "interval_end": now, "status": "completed", "started_at": now, "finished_at": now}
            connection.execute(runs.insert().values(id=number, report=canonical_json({"erased_online": True}), **row))
            return number

    def may_be_online(self, version: Version) -> bool:
        """Whether a version may have rows online: its view is served so, or was once, and what it had then is still there."""
        if version.view.online:
            return True
        is_its = (changes.c.kind == "feature view") & (changes.c.name == version.view.name)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(changes.c.fields).where(is_its)).scalars()
            return any(_says_online(change) for text in rows for change in json.loads(text))

    def record(self, entity: str, manifest: Mapping[str, Any], *, now: int) -> None:
        """Keep the manifest of an erasure."""
        row = {"entity": entity, "erased_at": now, "erased_by": self._user(), "manifest": canonical_json(manifest)}
        with self._transaction(write=True) as connection:
            connection.execute(erasures.insert().values(row))

    def manifests(self) -> list[dict[str, Any]]:
        """Return the manifests of all erasures, oldest first."""
        with self._transaction() as connection:
            return [
                json.loads(text) for text in connection.execute(sa.select(erasures.c.manifest).order_by(erasures.c.id)).scalars()
            ]
