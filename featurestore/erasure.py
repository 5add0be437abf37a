"""Erasure (T14): the rows of some entities disappear online and from every retained version of every table, and do not come back.

In this order, so that whoever was killed in between only has to do it again: the tombstones are recorded, which every later read of
a source respects; the online rows are deleted by a run of a number above all others, so that no run that is under way brings them
back; then each version's tables are written anew under its lease, the serving log and the stored training sets. What is recorded
of it has hashes and counts, never keys.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from featurestore.clock import instant_text
from featurestore.definitions import Entity
from featurestore.errors import (
    InputError,
    NotFoundError,
    OfflineStoreError,
    OnlineStoreError,
    RunInProgressError,
    TrainingSetError,
    known_names,
)
from featurestore.materialize import offline_table
from featurestore.offline.erased import digests, is_kept
from featurestore.offline.session import identifier, parquet, session
from featurestore.offline.stored_erasure import erase_stored
from featurestore.offline.stored_sets import StoredSets
from featurestore.offline.upkeep import data_files, discard_unnamed, erase
from featurestore.online.store import OnlineStore
from featurestore.push import Pushing
from featurestore.push_erasure import erase_pushed
from featurestore.registry.erasures import is_renamed
from featurestore.registry.registry import Registry
from featurestore.registry.state import Loaded, Tombstones, Version
from featurestore.serving_log.layout import rewrite
from featurestore.settings import Settings
from featurestore.specs import from_spec
from featurestore.types import as_key_column

__all__ = ["ErasedVersion", "Erasure", "Manifest"]

_ALL = "true"


@dataclass(frozen=True)
class ErasedVersion:
    """What was erased of one version of a view: online rows, rows of the newest table, and files that were written anew."""

    view: str
    version: int
    online_rows: int
    rows: int
    files: int


@dataclass(frozen=True)
class Manifest:
    """What an erasure did: hashes and counts, never keys.

    `serving_log_rows` were erased from the serving log, `pushed_rows` from the logs of push sources; `training_sets` are the stored
    ones that lost rows; `is_log_compacted` says whether the online server dropped its own old log.
    """

    entity: str
    erased_at: int
    digests: tuple[str, ...]
    versions: tuple[ErasedVersion, ...] = field(default=())
    serving_log_rows: int = 0
    training_sets: tuple[str, ...] = field(default=())
    pushed_rows: int = 0
    is_log_compacted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-ready data."""
        versions = [asdict(each) for each in self.versions]
        return asdict(self) | {
            "erased_at": instant_text(self.erased_at),
            "digests": list(self.digests),
            "versions": versions,
            "training_sets": list(self.training_sets),
        }


@dataclass(frozen=True)
class Erasure:
    """Erases entities of one repo, and lifts what was erased."""

    settings: Settings
    registry: Registry
    online: OnlineStore
    pushing: Pushing

    def erase(self, entity: str, keys: Mapping[str, Sequence[Any]], *, now: int) -> Manifest:
        """Erase entities given by their join key columns.

        Raises:
            NotFoundError: no such entity is applied.
            InputError: a key column is missing, unknown, of another length, of a wrong type or holds a null.
            RunInProgressError: a view is being materialized, so its tables are not done; do it again when that has ended.

        """
        found, columns = self._keys(entity, keys)
        forms = self._forms(found)
        hashes = tuple(dict.fromkeys(digests(self.registry.erasures.secret(), found.join_keys, columns)))
        for form in forms:
            self.registry.erasures.bury(_names(form), hashes, now=now)
        tombstones = self.registry.erasures.tombstones()
        own = {each.uid: _with_own(tombstones, each, found, hashes) for each in self.registry.applied().versions}
        held = [each for each in self.registry.applied().versions if _holds(each, forms) or own[each.uid] != tombstones]
        done, busy = list[ErasedVersion](), list[str]()
        deleted = {
            each.uid: self._delete_online(each, own[each.uid], forms, columns, now) for each in held if not each.view.is_pushed
        }
        pushed, online = self._erase_pushed(held, tombstones, forms, columns, busy)
        deleted |= online
        for each in held:
            try:
                with self.registry.lease(each):
                    rows, files = self._rewrite(self.registry.version(each.id), own[each.uid], now)
            except RunInProgressError as reason:
                busy.append(str(reason))
            else:
                done.append(ErasedVersion(each.view.name, each.number, deleted.get(each.uid, 0), rows, files))
        logged = rewrite(self.settings.serving_log_folder, tombstones)
        sets = self._rewrite_stored(tombstones, busy)
        manifest = Manifest(entity, now, hashes, tuple(done), logged, sets, pushed, is_log_compacted=self._compact())
        self.registry.erasures.record(entity, manifest.to_dict(), now=now)
        if busy:
            raise RunInProgressError(f"not yet erased everywhere; do it again when that has ended: {'; '.join(busy)}")
        return manifest

    def lift(self, entity: str, keys: Mapping[str, Sequence[Any]], *, now: int) -> int:
        """Lift the tombstones of entities, so that later runs read their rows again; returns how many there were."""
        found, columns = self._keys(entity, keys)
        forms = self._forms(found)
        for version in self.registry.applied().versions:
            if _holds(version, forms) and version.view.is_pushed and self.registry.erasures.may_be_online(version):
                self.online.release(version)
        hashes = digests(self.registry.erasures.secret(), found.join_keys, columns)
        return max(self.registry.erasures.lift(_names(form), hashes, now=now) for form in forms)

    def _forms(self, entity: Entity) -> list[Entity]:
        """Return an entity as it is applied, and as there were versions that knew its keys by other names.

        Names that are those of another entity now are left out: what is erased would be that one's.
        """
        forms, applied = {_names(entity): entity}, self.registry.applied()
        others = [spec for (kind, name), spec in applied.specs.items() if kind == "entity" and name != entity.name]
        taken = {_names(from_spec(Entity, spec)) for spec in others}
        for version in applied.versions:
            for each in version.view.entities:
                if each.name == entity.name and is_renamed(_names(each), _names(entity)) and _names(each) not in taken:
                    forms.setdefault(_names(each), each)
        return list(forms.values())

    def _keys(self, entity: str, given: Mapping[str, Sequence[Any]]) -> tuple[Entity, list[pa.ChunkedArray]]:
        specs = self.registry.applied().specs
        if ("entity", entity) not in specs:
            raise NotFoundError("entity", entity, [name for kind, name in specs if kind == "entity"])
        found = from_spec(Entity, specs["entity", entity])
        names = [key.name for key in found.join_keys]
        for name in given:
            if name not in names:
                raise InputError(f"{name!r} is no join key of entity {entity!r}; {known_names(name, names)}", name=name)
        columns = []
        for key in found.join_keys:
            if key.name not in given:
                raise InputError(f"join key {key.name!r} of entity {entity!r} is missing", name=key.name)
            try:
                column = as_key_column(pa.array(given[key.name]), key.name, key.type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as reason:
                raise InputError(f"key {key.name!r} holds a value that is no {key.type}: {reason}", name=key.name) from reason
            if column.null_count:
                raise InputError(f"key {key.name!r} holds a null, which is no entity", name=key.name)
            columns.append(column)
        if len({len(column) for column in columns}) > 1:
            raise InputError("key columns differ in length: " + ", ".join(f"{key!r}" for key in names))
        return found, columns

    def _erase_pushed(
        self, held: Sequence[Version], tombstones: Tombstones, forms: list[Entity], given: list[pa.ChunkedArray], busy: list[str]
    ) -> tuple[int, dict[str, int]]:
        """Erase what was pushed, online and in the logs; returns the rows of logs, and of each version the online rows.

        Adds the sources whose log another process keeps to what is busy.
        """
        rows, deleted = 0, dict[str, int]()
        pushed = [each for each in held if each.view.is_pushed]
        keys = {each.uid: given for each in pushed if _is_keyed_by(each, forms)}
        for source in dict.fromkeys(each.view.source.name for each in pushed):
            fed = [each for each in pushed if each.view.source.name == source]
            try:
                count, online = erase_pushed(self.pushing, source, fed, tombstones, keys)
            except RunInProgressError as reason:
                busy.append(str(reason))
            else:
                rows, deleted = rows + count, deleted | online
        return rows, deleted

    def _delete_online(
        self, version: Version, tombstones: Tombstones, forms: list[Entity], given: list[pa.ChunkedArray], now: int
    ) -> int:
        """Delete the online rows of all keys that contain an erased one; those of several entities are found in the tables."""
        if version.coverage is None or not self.registry.erasures.may_be_online(version):
            return 0
        run = self.registry.erasures.online_run(version, now=now)
        keys = self._keys_in_tables(version, tombstones)
        self.online.delete(version, keys, run=run)
        if _is_keyed_by(version, forms):
            self.online.delete(version, given, run=run)
        return len(keys[0])

    def _keys_in_tables(self, version: Version, tombstones: Tombstones) -> list[pa.ChunkedArray]:
        view, files = version.view, data_files(offline_table(self.settings, version))
        kept = is_kept(view, tombstones)
        if not files or kept is None:
            return [pa.chunked_array([], key.type.arrow) for key in view.join_keys]
        columns = ", ".join(identifier(key.name) for key in view.join_keys)
        with session(OfflineStoreError, f"the table of view {view.name!r}") as connection:
            query = f"SELECT DISTINCT {columns} FROM {parquet(files)} WHERE NOT ({kept})"
            table = connection.sql(query).to_arrow_table()
        return [table[key.name].cast(key.type.arrow) for key in view.join_keys]

    def _rewrite(self, version: Version, tombstones: Tombstones, now: int) -> tuple[int, int]:
        """Write the tables of a version anew, whose lease the caller holds; returns rows and files."""
        table = offline_table(self.settings, version)
        if version.state in ("removing", "removed"):
            shutil.rmtree(table.folder, ignore_errors=True)  # it is on its way out, and need not be whole any more
        if version.coverage is None or not table.folder.exists():
            return 0, 0
        run = self.registry.start_run(version, None, version.coverage.end, now=now)
        discard_unnamed(table)
        try:
            snapshot, rows, files = erase(table, is_kept(version.view, tombstones) or _ALL, run=run)
            self.registry.cover(version, version.coverage, snapshot.version, run)
            loaded = self._loaded(version, run, snapshot.version, now)
        except BaseException as reason:
            error = str(reason) or type(reason).__name__
            self.registry.finish_run(version, run, now=now, report={"erased": 0}, error=error)
            raise
        self.registry.finish_run(version, run, now=now, report={"erased": rows}, loaded=loaded)
        return rows, files

    def _rewrite_stored(self, tombstones: Tombstones, busy: list[str]) -> tuple[str, ...]:
        """Write stored training sets anew; returns those that lost rows, and adds what is being computed to what is busy."""
        stored, rewritten = StoredSets(self.settings.offline_folder), []
        for each in stored.all():
            try:
                with stored.held(each.job.id) as held:
                    if erase_stored(held, tombstones):
                        rewritten.append(each.job.id)
            except TrainingSetError as reason:
                busy.append(str(reason))
            except NotFoundError:  # it was deleted a moment ago
                continue
        return tuple(rewritten)

    def _loaded(self, version: Version, run: int, table_version: int, now: int) -> Loaded | None:
        """Take the online load along to the new table version, if it was complete and the server still has it."""
        loaded = version.loaded
        if loaded is None or loaded.table_version != version.table_version or not version.view.online:
            return None
        if version.view.is_pushed:
            return Loaded(run, table_version, loaded.until)
        if self.online.loaded_run(version) != loaded.run:
            return None
        with self.online.load(version, run=run, now=now) as load:
            load.finish()
        return Loaded(run, table_version, loaded.until)

    def _compact(self) -> bool:
        try:
            self.online.compact()
        except OnlineStoreError:  # a server of others may forbid it
            return False
        return True


def _names(entity: Entity) -> tuple[str, ...]:
    return tuple(key.name for key in entity.join_keys)


def _with_own(tombstones: Tombstones, version: Version, entity: Entity, hashes: Sequence[str]) -> Tombstones:
    """Return tombstones, and hashes for the names by which a version itself knows an entity's keys, be they another's by now."""
    digests = dict(tombstones.digests)
    for each in version.view.entities if version.state != "removed" else ():
        if each.name == entity.name and is_renamed(_names(each), _names(entity)):
            digests[_names(each)] = digests.get(_names(each), frozenset()) | set(hashes)
    return replace(tombstones, digests=digests)


def _holds(version: Version, forms: Sequence[Entity]) -> bool:
    names = {key.name for key in version.view.join_keys}
    return version.state != "removed" and any(names >= set(_names(form)) for form in forms)


def _is_keyed_by(version: Version, forms: Sequence[Entity]) -> bool:
    """Whether the keys of a version are those that were given, of the same types."""
    types = [key.type for key in forms[0].join_keys]
    return any(version.view.join_keys == form.join_keys and [key.type for key in form.join_keys] == types for form in forms)
