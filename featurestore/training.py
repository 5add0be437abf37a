"""Training sets of a repo: from what is asked for to what computes it, at the present tables or at those of a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featurestore.clock import parse_instant
from featurestore.errors import InputError
from featurestore.functions import Functions
from featurestore.materialize import offline_table
from featurestore.offline.manifests import Manifest
from featurestore.offline.measured import Measured
from featurestore.offline.spine import Spine, open_spine
from featurestore.offline.tables import Snapshot
from featurestore.offline.training import Availability, Incomplete, Origin, Resources, TrainingSet, complete_until
from featurestore.on_demand import Evaluation
from featurestore.push import Pushing
from featurestore.push_tail import with_tail
from featurestore.registry.registry import Registry
from featurestore.registry.selection import Lookup, Selection, select, selection_of
from featurestore.registry.state import Version
from featurestore.settings import Settings

__all__ = ["TrainingSets"]


@dataclass(frozen=True)
class TrainingSets:
    """Makes the training sets of one repo."""

    settings: Settings
    registry: Registry
    functions: Functions
    pushing: Pushing

    def make(
        self,
        spine: Any,
        features: str | tuple[str, ...],
        timestamp_column: str,
        incomplete: Incomplete,
        availability: Availability = "declared",
        *,
        now: int,
    ) -> TrainingSet:
        """Return a training set of what names mean now, from the newest tables, or by the record of loads.

        Raises:
            InputError: a view has no record of loads, since it is not online or was never loaded.

        """
        if availability not in ("declared", "measured"):
            raise InputError(f"availability={availability!r} is not known; known: 'declared', 'measured'", name="availability")
        if incomplete not in ("error", "stale", "null"):
            raise InputError(f"incomplete={incomplete!r} is not known; known: 'error', 'stale', 'null'", name="incomplete")
        selection = select(self.registry.serving(), features if isinstance(features, str) else list(features))
        opened = open_spine(spine, timestamp_column, selection.keys, selection.request)
        sealed = {each.version.view.source.name: 0 for each in selection.lookups if each.version.view.is_pushed}
        sealed = {source: self.registry.pushes.seal(source, now) for source in sealed}
        snapshots, limits = {}, {}
        for lookup in selection.lookups:
            version = lookup.version
            snapshots[version.uid] = self._snapshot(version, version.table_version)
            limits[lookup.name] = complete_until(version)
            if version.view.is_pushed:
                limits[lookup.name] = until = sealed[version.view.source.name]
                snapshots[version.uid] = with_tail(self.pushing, version, snapshots[version.uid], version.watermark, until)
        measured = None
        if availability == "measured":
            measured = {each.version.uid: self._measured(each) for each in selection.lookups if not each.version.view.is_pushed}
            snapshots |= {uid: record.tables[-1] for uid, record in measured.items()}
            # What a load to come brings is readable later than now.
            limits |= {each.name: now for each in selection.lookups if each.version.uid in measured}
        origin, on_demand = self._origin(features, now), Evaluation(selection, self.functions.of)
        return TrainingSet(opened, selection, snapshots, limits, self._resources, origin, on_demand, incomplete, measured=measured)

    def remake(self, manifest: Manifest, spine: Any, features: str | tuple[str, ...], *, now: int) -> TrainingSet:
        """Return the training set of a manifest, whatever was applied and materialized since.

        Raises:
            InputError: the spine or the features are not the manifest's, or a version that it names is gone.

        """
        if features != manifest.features:
            raise InputError(f"the manifest is of {manifest.features!r}, and {features!r} is asked for", name="features")
        selection = self._selection(manifest)
        opened = open_spine(spine, manifest.timestamp_column, selection.keys, selection.request)
        self._check_spine(opened, manifest)
        tables = {lookup.version: lookup.table_version for lookup in manifest.lookups}
        snapshots = {each.version.uid: self._snapshot(each.version, tables[each.version.uid]) for each in selection.lookups}
        for lookup, record in zip(selection.lookups, manifest.lookups, strict=True):
            if lookup.version.view.is_pushed:
                snapshot, until = snapshots[lookup.version.uid], record.complete_until
                snapshots[lookup.version.uid] = with_tail(self.pushing, lookup.version, snapshot, record.covered_until, until)
        limits = {lookup.name: lookup.complete_until for lookup in manifest.lookups}
        # What was complete then is complete now; only `null` has to leave out again what it left out.
        incomplete: Incomplete = "null" if manifest.incomplete == "null" else "stale"
        origin, on_demand = self._origin(features, now), Evaluation(selection, self.functions.of)
        erased, measured = self._erased_since(manifest), None
        if manifest.availability == "measured":
            measured = {
                each.version.uid: self._measured(each, tables[each.version.uid])
                for each in selection.lookups
                if not each.version.view.is_pushed
            }
        return TrainingSet(opened, selection, snapshots, limits, self._resources, origin, on_demand, incomplete, erased, measured)

    def _measured(self, lookup: Lookup, table_version: int | None = None) -> Measured:
        """Return the record of a version's loads, until that of a table version if one is given."""
        version = lookup.version
        loads = [each for each in self.registry.loads(version) if table_version is None or each.table_version <= table_version]
        if not loads:
            why = "has no load on record yet; materialize it" if version.view.online else "is not served online (online=False)"
            raise InputError(f"view {lookup.name!r} {why}, so when its rows were readable was not measured", name=lookup.name)
        return Measured.of(version.view, loads, lambda number: self._snapshot(version, number))

    def _selection(self, manifest: Manifest) -> Selection:
        versions = {version.uid: version for version in self.registry.applied().versions}
        lookups = {}
        for each in manifest.lookups:
            version = versions.get(each.version)
            if version is None or version.state in ("removing", "removed"):
                raise InputError(f"the manifest needs a version of view {each.view!r} that has been removed", name=each.view)
            lookups[each.name] = Lookup(each.name, version, each.key_columns, each.features)
        return selection_of(manifest.features, manifest.columns, lookups, manifest.on_demand)

    def _check_spine(self, spine: Spine, manifest: Manifest) -> None:
        if spine.digest() != manifest.spine:
            raise InputError("the spine is not the one of the manifest: their hashes differ", name="spine")

    def _erased_since(self, manifest: Manifest) -> int:
        before = parse_instant(manifest.created_at)
        return sum(parse_instant(each["erased_at"]) >= before for each in self.registry.erasures.manifests())

    def _snapshot(self, version: Version, table_version: int) -> Snapshot:
        return offline_table(self.settings, version).snapshot(table_version)

    def _origin(self, features: str | tuple[str, ...], now: int) -> Origin:
        return Origin(features, now, self.settings.offline_folder)

    @property
    def _resources(self) -> Resources:
        return Resources(self.settings.offline.memory_bytes, self.settings.threads)
