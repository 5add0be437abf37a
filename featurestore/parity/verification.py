"""Verification: what is served is held against what training would see, key by key, at the watermark of the last completed load.

The truth is T4 and T6 at that watermark, over the rows of the view's table and, since a row is visible from its visible time on
whether it was there in time or not (T3), over those that the source has and the table lacks. Serving is read as it is stored, and
its TTL counted to the same instant. Keys of either side are looked at some at a time, so memory does not grow with their number.

A run that goes on in between moves the watermark: keys that differ then are compared anew.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.clock import BEGINNING, Clock, instant_text
from featurestore.errors import FeatureStoreError, InputError, SourceError
from featurestore.materialize import offline_table
from featurestore.offline.arrivals import source_stamp
from featurestore.offline.erased import without_erased
from featurestore.offline.late import LateRows, find_late_rows
from featurestore.offline.session import identifier, session
from featurestore.offline.sources import view_rows
from featurestore.offline.tables import Snapshot
from featurestore.online.store import OnlineStore, ttl_of
from featurestore.parity.causes import Explained, Suspects, Witnesses, explain, is_alike
from featurestore.parity.code import ON_DEMAND, code_parities
from featurestore.parity.comparison import Bools
from featurestore.parity.findings import Cause, Difference, Kind, Parity, ViewParity
from featurestore.parity.keys import KeySample, least_hashes
from featurestore.parity.pushed import PushWitnesses, explain_pushed
from featurestore.parity.served import served
from featurestore.parity.sides import EVENT_TIME, Disagreement, Integers, Side, disagreement, offline_side, online_side
from featurestore.push import Pushing
from featurestore.push_tail import with_tail
from featurestore.registry.registry import Registry
from featurestore.registry.selection import lookup_of, select
from featurestore.registry.state import Applied, Loaded, Version
from featurestore.settings import Settings
from featurestore.types import ValueType

__all__ = ["Verification", "VerifyProgress"]

VerifyProgress = Callable[[str, int], None]
"""Is told a view, and how many of its keys are compared so far."""

_ATTEMPTS = 3
_ROWS, _BYTES = 50_000, 50_000_000


def _chosen_versions(serving: Applied, views: Sequence[str] | None, service: str | None) -> list[Version]:
    """Return the serving versions of views or aliases, by default all, or of those that a feature service asks for.

    Raises:
        NotFoundError: no such view, alias or service.
        PendingError: what was asked for waits for candidates.

    """
    if views is not None and service is not None:
        raise InputError("name views or a feature service, not both", name="service")
    if service is not None:
        found = [lookup.version for lookup in select(serving, service).lookups]
    elif views is None:
        found = list(serving.versions)
    else:
        found = [lookup_of(serving, name).version for name in views if (ON_DEMAND, name) not in serving.specs]
    return list({version.id: version for version in found}.values())


@dataclass(frozen=True)
class Verification:
    """Verifies views of one repo."""

    settings: Settings
    registry: Registry
    online: OnlineStore
    clock: Clock
    pushing: Pushing

    def verify(self, views: Sequence[str] | None, service: str | None, *, keys: int | None, progress: VerifyProgress) -> Parity:
        """Compare what serves, `keys` keys of each view or all of them, and look at the code of on-demand views.

        Raises:
            NotFoundError: no such view, alias or service.
            OnlineStoreError: the online store does not answer.
            OfflineStoreError: a table cannot be read.

        """
        serving = self.registry.serving()
        found = [self._view(version, keys, progress) for version in _chosen_versions(serving, views, service)]
        return Parity(self.clock(), keys, (*found, *code_parities(self.settings, serving, views, service)))

    def _view(self, version: Version, keys: int | None, progress: VerifyProgress) -> ViewParity:
        name, loaded = version.view.name, version.loaded
        found = ViewParity(name, version.number, None, features_compared=version.view.feature_names)
        if not version.view.online or (loaded is None and not version.view.is_pushed):
            found.skipped = "not served online (online=False)" if not version.view.online else "never loaded online"
            return found
        with tempfile.TemporaryDirectory(prefix="featurestore-verify-", dir=self.settings.temp_folder) as folder:
            compared = _ViewComparison(self, version, loaded, Path(folder))
            for differences in compared.differences(keys):
                found.add(differences)
                found.compared = compared.compared
                progress(name, found.compared)
            found.compared, found.watermark = compared.compared, compared.until
            found.notes += compared.notes()
        return found


class _ViewComparison:
    """The comparison of one version, in a temporary folder of its own."""

    def __init__(self, parent: Verification, version: Version, loaded: Loaded | None, folder: Path) -> None:
        self.pushing = parent.pushing
        self.settings, self.registry, self.online = parent.settings, parent.registry, parent.online
        self.clock = parent.clock
        self.folder = folder
        self.compared = 0
        self._troubles: list[str] = []
        self._attempts = 0
        self._move_to(version, loaded)

    def _move_to(self, version: Version, loaded: Loaded | None) -> None:
        """Compare from now on with what the version has become; what is pushed, with what has arrived by now."""
        self.version, self.loaded, self.view, self.now = version, loaded, version.view, self.clock()
        self.until = BEGINNING if loaded is None else loaded.until
        if version.view.is_pushed:
            self.until = self.registry.pushes.seal(version.view.source.name, self.now)
        self.snapshot = self._whole(version)
        self.late = self._find_late()

    def _whole(self, version: Version) -> Snapshot:
        """Return the newest table of a version, with the rest of the log of one that is pushed."""
        snapshot = self._snapshot(version, version.table_version)
        return with_tail(self.pushing, version, snapshot, version.watermark, self.until) if version.view.is_pushed else snapshot

    def _snapshot(self, version: Version, table_version: int) -> Snapshot:
        return offline_table(self.settings, version).snapshot(table_version)

    def _find_late(self) -> LateRows | None:
        """Look for late rows; a source that is gone has none to show, which is a note and no failure."""
        coverage = self.version.coverage
        if self.view.is_static or self.view.is_pushed or coverage is None:
            return None
        self._attempts += 1
        path = self.folder / f"late{self._attempts}.parquet"
        try:
            rows = without_erased(view_rows(self.view, self.settings.root), self.registry.erasures.tombstones())
            return find_late_rows(rows, self.snapshot, (coverage.start, self.until), path)
        except SourceError as reason:
            self._troubles.append(f"late rows could not be looked for: {reason}")
            return None

    def differences(self, keys: int | None) -> Iterator[list[Difference]]:
        """Give the differences of some keys after the other."""
        sample = KeySample(self.version, least_hashes(self.view, self.snapshot, keys), self.folder)
        sample.scan(self.online)
        stored = [field.name for field in self.view.stored]
        rows = max(1_000, min(_ROWS, _BYTES // self.snapshot.bytes_per_row(stored)))
        for chunk in sample.chunks(self.snapshot, self.late, rows):
            self.compared += len(chunk[0])
            yield self._compared(chunk)
        self.compared += len(sample.foreign)
        yield [
            Difference(Kind.EXTRA, Cause.WRITE_OUTSIDE, f"the stored key {name!r} is no key of this view", {})
            for name in sorted(sample.foreign)
        ]

    def _compared(self, keys: list[pa.ChunkedArray]) -> list[Difference]:
        for attempt in range(_ATTEMPTS):
            online = served(self.online, self.version, keys)
            table, offline, is_late = self._truth(keys)
            found = disagreement(self.view, online_side(online, self.until, ttl_of(self.version)), offline)
            places = np.flatnonzero(found.any)
            if not len(places) or attempt == _ATTEMPTS - 1 or not self._has_moved():
                break
            keys = [key.take(pa.array(places)) for key in keys]
        return list(self._named(Suspects(keys, online, table, offline, is_late).take(places), found, places))

    def _has_moved(self) -> bool:
        """Look whether a run or a push came in between, and if so, compare with what there is now."""
        present, before = self.registry.version(self.version.id), self.until
        is_moved = (present.loaded, present.table_version) != (self.loaded, self.version.table_version)
        if not is_moved and not self.view.is_pushed:
            return False
        self._move_to(present, present.loaded)
        return is_moved or self.until != before

    def _truth(self, keys: list[pa.ChunkedArray]) -> tuple[Side, Side, Bools]:
        """Return what the table gives, what it gives with late rows, and which keys have any."""
        threads = self.settings.threads
        table = offline_side(self.view, self.snapshot, keys, self.until, threads=threads)
        is_late = np.zeros(len(keys[0]), dtype=bool)
        if self.late is None:
            return table, table, is_late
        names = [key.name for key in self.view.join_keys]
        listed = ", ".join(map(identifier, names))
        with session(SourceError, self.late.rows.what) as connection:
            connection.register("asked", pa.table([*keys, pa.array(np.arange(len(is_late)))], names=[*names, "__place"]))
            found = connection.execute(f"SELECT __place FROM asked SEMI JOIN {self.late.keys} AS late USING ({listed}) ORDER BY 1")
            places = np.array([row[0] for row in found.fetchall()], dtype=np.int64)
        if not len(places):
            return table, table, is_late
        is_late[places] = True
        own = [key.take(pa.array(places)) for key in keys]
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            healed = self.late.healed(pa.table(own, names=names), Path(folder))
            side = offline_side(self.view, healed, own, self.until, threads=threads)
        return table, table.replaced(places, side), is_late

    def _named(self, suspects: Suspects, found: Disagreement, places: Integers) -> Iterator[Difference]:
        """Give the differences with their causes."""
        causes = self._explained(suspects) if len(places) else []
        for row, (place, explained) in enumerate(zip(places.tolist(), causes, strict=True)):
            if explained is None:
                continue
            kind = Kind.MISSING if found.missing[place] else Kind.EXTRA if found.extra[place] else Kind.DIFFERENT
            key = {
                field.name: field.type.to_json(column[row].as_py())
                for field, column in zip(self.view.join_keys, suspects.keys, strict=True)
            }
            yield Difference(kind, *explained, key, self._values(suspects, row, found, place, kind))

    def _values(
        self, suspects: Suspects, row: int, found: Disagreement, place: int, kind: Kind
    ) -> dict[str, tuple[object, object]]:
        shown: dict[str, tuple[object, object]] = {}
        for field in self.view.features:
            if kind is not Kind.DIFFERENT or found.features[field.name][place]:
                sides = (suspects.online, suspects.offline)
                online, offline = (_json(field.type, each.features[field.name][row].as_py()) for each in sides)
                shown[field.name] = online, offline
        if kind is Kind.DIFFERENT and EVENT_TIME in found.features and found.features[EVENT_TIME][place]:
            shown[EVENT_TIME] = (
                instant_text(int(suspects.online.event_times[row])), instant_text(int(suspects.offline.event_times[row])),
            )  # fmt: skip
        return shown

    def _explained(self, suspects: Suspects) -> list[Explained | None]:
        versions = self.registry.applied().versions_of(self.view.name)
        others = tuple(
            each
            for each in versions
            if each.id != self.version.id and each.watermark is not None and each.state not in ("removing", "removed")
        )
        if self.view.is_pushed:
            alike = [each for each in others if each.view.is_pushed and is_alike(each.view, self.view)]
            rows = tuple((each, self._whole(each)) for each in alike)
            written = self.online.pushed_until(self.version).until
            return explain_pushed(PushWitnesses(self.version, self.snapshot, self.until, written, rows, self.now), suspects)
        assert self.loaded is not None
        loads = {each.run: each for each in self.registry.loads(self.version)}
        witnesses = Witnesses(
            self.version, self.loaded, self.online.loaded_run(self.version), self.registry.run_states(self.version), loads, others,
            self.now, self._snapshot, self._changed_code(),
        )  # fmt: skip
        return explain(witnesses, suspects)

    def _changed_code(self) -> str | None:
        """Say that the same files give other values than they gave; none if the files are others, or had late rows then."""
        read = [each for each in self.registry.loads(self.version) if each.source is not None]
        if self.late is None or not read or read[-1].late:
            return None
        try:
            is_same = source_stamp(self.view.source, self.settings.root) == read[-1].source
        except SourceError:
            return None
        if not is_same:
            return None
        return f"the source's files are those that run {read[-1].run} read, and they give other rows than the table has of them"

    # What is worth knowing

    def notes(self) -> list[str]:
        """Say what could not be looked at, and what a reader of the counts should know."""
        notes = list(dict.fromkeys(self._troubles))
        if self.late is not None:
            notes.append(f"the source has {self.late.count} late rows, which the table lacks: set lookback, or materialize again")
        waiting = self.registry.applied().waiting.get(("feature view", self.view.name), ())
        if waiting:
            notes.append(
                f"a newer version is applied and waits for {'; '.join(waiting)}; compared is version {self.version.number}"
            )
        unread = self._unread()
        if unread:
            behind = instant_text(self.until)
            notes.append(f"{unread} source rows have become visible since the watermark {behind}: serving is behind")
        return notes

    def _unread(self) -> int:
        """Count the source rows that are visible by now and beyond the watermark."""
        if self.view.is_static or self.view.is_pushed or self.until >= self.now:
            return 0
        try:
            interval = (self.until, self.now)
            rows = without_erased(view_rows(self.view, self.settings.root, interval), self.registry.erasures.tombstones())
            with session(SourceError, rows.what) as connection:
                found = connection.execute(f"SELECT count(*) FROM {rows.within(*interval)}").fetchone()
        except FeatureStoreError:
            return 0  # that the source cannot be read has been said
        assert found is not None
        return int(found[0])


def _json(type_: ValueType, value: Any) -> Any:
    """Return the JSON form of a value, with the names of the floats that JSON has none for."""
    form = type_.to_json(value)
    if isinstance(form, list):
        return [_json(type_.item, each) if type_.item is not None and each is not None else each for each in value]
    return str(form).replace("nan", "NaN") if isinstance(form, float) and not math.isfinite(form) else form
