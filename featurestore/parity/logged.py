"""Verification from the serving log: what was served is held against what training sees at the very times of the requests.

This is the true skew. At each request's time T4 and T6 are evaluated over the tables as they are now, with the versions that
served; then on-demand views over what that gives and the request's own columns, with the code that served. The result is compared
with the log: whether there was a value, the values, the event times, and the statuses. What has been collected after its TTL may be
NOT_FOUND or OUTSIDE_MAX_AGE alike. Rows beyond what is materialized cannot be compared yet, and are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.clock import instant_text
from featurestore.errors import FeatureStoreError, NotFoundError
from featurestore.fields import Field
from featurestore.functions import Functions
from featurestore.materialize import offline_table
from featurestore.offline.spine import key_column
from featurestore.offline.tables import Snapshot
from featurestore.offline.training import complete_until
from featurestore.on_demand import Evaluation
from featurestore.online.status import Status
from featurestore.parity.comparison import Bools, differing
from featurestore.parity.findings import Cause, Difference, Kind, Parity, ViewParity
from featurestore.parity.loads import Explained, Loads
from featurestore.parity.moments import EVENT_TIME, STATUS, Integers, Moments, differences, logged, trained
from featurestore.push import Pushing
from featurestore.push_tail import with_tail
from featurestore.registry.registry import Registry
from featurestore.registry.selection import Computed, Lookup, selection_of
from featurestore.registry.state import Applied, Version
from featurestore.serving_log.layout import REQUESTED_AT, LogFile, LoggedLookup, LogHeader, log_files
from featurestore.settings import Settings

__all__ = ["LogProgress", "LogVerification"]

LogProgress = Callable[[str, int], None]
"""Is told a service, and how many of its rows are compared so far."""

_ROWS = 200_000


@dataclass
class LogVerification:
    """Compares the serving log of one repo, or a part of it."""

    settings: Settings
    registry: Registry
    functions: Functions
    pushing: Pushing
    progress: LogProgress
    _found: dict[tuple[str, str], ViewParity] = field(default_factory=dict)
    _tables_of: dict[str, tuple[Snapshot, int]] = field(default_factory=dict)
    _now: int = 0

    def verify(self, service: str | None, start: int | None, end: int | None, *, now: int) -> Parity:
        """Compare the rows of a service, or of all, with requests in `(start, end]`.

        Raises:
            NotFoundError: the log has nothing of the service.
            OfflineStoreError: the log or a table cannot be read.

        """
        applied, self._now = self.registry.applied(), now
        for header, table in self._tables(service):
            times = np.asarray(table[REQUESTED_AT].cast(pa.int64()))
            inside = np.ones(len(times), dtype=bool)
            if start is not None:
                inside &= times > start
            if end is not None:
                inside &= times <= end
            if inside.any():
                self._compare(header, table.filter(pa.array(inside)), applied)
        return Parity(now, None, tuple(self._found.values()), "logged row")

    def _tables(self, service: str | None) -> Iterator[tuple[LogHeader, pa.Table]]:
        """Give the rows of the log, some at a time, those of one service and fingerprint together."""
        groups: dict[tuple[str, str], list[LogFile]] = {}
        files = log_files(self.settings.serving_log_folder, service)
        if service is not None and not files:
            known = {file.header.service for file in log_files(self.settings.serving_log_folder)}
            raise NotFoundError("feature service in the serving log named", service, known)
        for file in files:
            groups.setdefault((file.header.service, file.header.fingerprint), []).append(file)
        tombstones = self.registry.erasures.tombstones()
        for (name, _), files in groups.items():
            held: list[pa.Table] = []
            done = 0
            for place, file in enumerate(files, start=1):
                table = file.read(tombstones)
                if table is not None:
                    held.append(table)
                if held and (place == len(files) or sum(map(len, held)) >= _ROWS):
                    whole = pa.concat_tables(held)
                    yield file.header, whole
                    held, done = [], done + len(whole)
                    self.progress(name, done)
            self._note_lost(files)

    def _note_lost(self, files: Sequence[LogFile]) -> None:
        """Say at the first view of a service how many rows its log could not take."""
        lost, lookups = sum(file.header.dropped for file in files), files[0].header.lookups
        found = self._found.get((lookups[0].name, lookups[0].version)) if lookups else None
        if lost and found is not None:
            _note(found, f"the log lacks {lost} rows, which it had to drop")

    def _compare(self, header: LogHeader, table: pa.Table, applied: Applied) -> None:
        versions = {version.uid: version for version in applied.versions if version.state not in ("removing", "removed")}
        times = np.asarray(table[REQUESTED_AT].cast(pa.int64()))
        is_known = np.ones(len(times), dtype=bool)
        lookups: dict[str, Lookup] = {}
        truth: dict[str, pa.ChunkedArray] = {}
        for each in header.lookups:
            version = versions.get(each.version)
            if version is None:
                self._view(each.name, each.version, 0, each.features).skipped = "the version that served it has been removed"
                is_known[:] = False
                continue
            lookups[each.name] = Lookup(each.name, version, tuple(each.join_keys.values()), each.features)
            wanted, is_complete = self._lookup(each, version, table, times, applied)
            is_known &= is_complete
            truth |= {f"{each.name}__{name}": _shown(wanted, name) for name in each.features}
        if header.on_demand and is_known.any():
            self._on_demand(header, lookups, table, truth, is_known)

    def _view(self, name: str, version: str, number: int, features: Sequence[str]) -> ViewParity:
        """Return what is found of a view or alias in one version; services share it."""
        found = self._found.setdefault((name, version), ViewParity(name, number, None))
        found.features_compared = tuple(dict.fromkeys([*found.features_compared, *features]))
        return found

    # What is looked up

    def _lookup(
        self, logged_as: LoggedLookup, version: Version, table: pa.Table, times: Integers, applied: Applied
    ) -> tuple[Moments, Bools]:
        """Compare one view or alias; returns what training sees, and which rows it sees in full."""
        view, served = version.view, logged(table, logged_as)
        found = self._view(logged_as.name, version.uid, version.number, served.features.column_names)
        keys = [key_column(table[logged_as.join_keys[key.name]], key.name, key.type) for key in view.join_keys]
        snapshot, complete = self._whole(version)
        wanted = trained(view, snapshot, keys, logged_as.features, times, threads=self.settings.threads)
        is_complete: Bools = times <= complete
        if count := int(np.count_nonzero(~is_complete)):
            _note(found, f"{count} rows are later than what is materialized, and could not be compared yet")
        differing_in = {name: rows & is_complete for name, rows in differences(view, served, wanted, times).items()}
        found.compared += int(np.count_nonzero(is_complete))
        places = np.flatnonzero(np.logical_or.reduce([*differing_in.values()]))
        if len(places):
            loads = Loads(version, self.registry.loads(version), _others(version, applied), snapshot, self._snapshot)
            own = [key.take(pa.array(places)) for key in keys]
            causes = loads.explain(own, times[places], served.take(places))
            found.add(self._named(table, logged_as, version, differing_in, served, wanted, places, causes))
        return wanted, is_complete

    def _whole(self, version: Version) -> tuple[Snapshot, int]:
        """Return what training reads of a version, and until when that is complete: of what is pushed, all until now."""
        if version.uid not in self._tables_of:
            snapshot, until = self._snapshot(version, version.table_version), complete_until(version)
            if version.view.is_pushed:
                until = self.registry.pushes.seal(version.view.source.name, self._now)
                snapshot = with_tail(self.pushing, version, snapshot, version.watermark, until)
            self._tables_of[version.uid] = snapshot, until
        return self._tables_of[version.uid]

    def _snapshot(self, version: Version, table_version: int) -> Snapshot:
        return offline_table(self.settings, version).snapshot(table_version)

    def _named(
        self,
        table: pa.Table,
        logged_as: LoggedLookup,
        version: Version,
        differing_in: dict[str, Bools],
        served: Moments,
        wanted: Moments,
        places: Integers,
        causes: Sequence[Explained],
    ) -> Iterator[Difference]:
        types = {each.name: each.type for each in version.view.features}
        for place, (cause, evidence) in zip(places.tolist(), causes, strict=True):
            is_served, is_wanted = bool(served.present[place]), bool(wanted.present[place])
            kind = Kind.DIFFERENT if is_served == is_wanted else Kind.EXTRA if is_served else Kind.MISSING
            values: dict[str, tuple[object, object]] = {}
            for name, rows in differing_in.items():
                if name == STATUS and rows[place]:
                    values[name] = Status(served.statuses[place]).name, Status(wanted.statuses[place]).name
                elif name == EVENT_TIME and rows[place]:
                    values[name] = instant_text(int(served.event_times[place])), instant_text(int(wanted.event_times[place]))
                elif rows[place] or (name in types and kind is not Kind.DIFFERENT):
                    both = (side.features[name][place].as_py() if side.present[place] else None for side in (served, wanted))
                    online, offline = (types[name].to_json(value) for value in both)
                    values[name] = online, offline
            yield Difference(kind, cause, evidence, _request(table, place, list(logged_as.join_keys.values())), values)

    # What is computed

    def _on_demand(
        self, header: LogHeader, lookups: dict[str, Lookup], table: pa.Table, truth: dict[str, pa.ChunkedArray], is_known: Bools
    ) -> None:
        """Compare on-demand features with what the code that served gives of what training sees."""
        places = np.flatnonzero(is_known)
        rows = table.take(pa.array(places))
        trained_inputs = {name: column.take(pa.array(places)) for name, column in truth.items()}
        selection = selection_of(header.service, header.columns, lookups, header.on_demand)
        try:
            evaluation = Evaluation(selection, self.functions.of)
            wanted = self._evaluated(evaluation, trained_inputs, rows)
            served_inputs = {name: rows[name] for name in trained_inputs if name in rows.column_names}
            of_served = self._evaluated(evaluation, trained_inputs | served_inputs, rows)
        except FeatureStoreError as reason:
            for each in selection.computed:
                _note(self._view(each.name, each.fingerprint, 0, ()), f"{len(rows)} rows could not be computed: {reason}")
            return
        for each in selection.computed:
            columns = {field.name: field for field in each.fields if each.column(field.name) in rows.column_names}
            found = self._view(each.name, each.fingerprint, 0, list(columns))
            found.compared += len(rows)
            found.add(self._computed(each, columns, rows, header, wanted, of_served))

    def _evaluated(self, evaluation: Evaluation, features: dict[str, pa.ChunkedArray], rows: pa.Table) -> dict[str, pa.Array]:
        given = {name: features[name] if name in features else rows[name] for name in evaluation.inputs}
        return evaluation.arrow(given, len(rows))

    def _computed(
        self,
        computed: Computed,
        columns: dict[str, Field],
        rows: pa.Table,
        header: LogHeader,
        wanted: dict[str, pa.Array],
        of_served: dict[str, pa.Array],
    ) -> Iterator[Difference]:
        different, is_own = {}, np.zeros(len(rows), dtype=bool)
        for name, each in columns.items():
            column = computed.column(name)
            different[name] = differing(rows[column], wanted[column], each.type)
            is_own |= differing(rows[column], of_served[column], each.type)
        for place in np.flatnonzero(np.logical_or.reduce([*different.values()])).tolist():
            cause, evidence = Cause.CHANGED_CODE, "the code on record gives another value of the very inputs that were served"
            if not is_own[place]:
                cause, evidence = Cause.UNKNOWN, "its inputs differ: the views that it takes them from say why"
            values = {
                name: tuple(columns[name].type.to_json(side[computed.column(name)][place].as_py()) for side in (rows, wanted))
                for name, is_different in different.items()
                if is_different[place]
            }
            yield Difference(Kind.DIFFERENT, cause, evidence, _request(rows, place, list(header.keys)), values)


def _shown(wanted: Moments, name: str) -> pa.ChunkedArray:
    """Return a feature as training shows it: null where there is no value."""
    column = wanted.features[name]
    return pa.chunked_array([pc.if_else(pa.array(wanted.present), column.combine_chunks(), pa.scalar(None, column.type))])


def _request(table: pa.Table, place: int, columns: Sequence[str]) -> dict[str, object]:
    requested_at = table[REQUESTED_AT].cast(pa.int64())[place].as_py()
    return {"requested_at": instant_text(requested_at)} | {name: table[name][place].as_py() for name in columns}


def _note(found: ViewParity, text: str) -> None:
    if text not in found.notes:
        found.notes.append(text)


def _others(version: Version, applied: Applied) -> list[Version]:
    known = applied.versions_of(version.view.name)
    return [
        each for each in known if each.id != version.id and each.coverage is not None and each.state not in ("removing", "removed")
    ]
