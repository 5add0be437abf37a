"""Runs of many views: which versions a run feeds, in what order, and what becomes of the others where one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from featurestore.clock import Clock, instant_text
from featurestore.errors import FeatureStoreError, InputError, NotFoundError, RunsFailedError
from featurestore.materialize import Materialization, Progress, Report
from featurestore.online.store import OnlineStore
from featurestore.registry.registry import Registry
from featurestore.registry.state import Version
from featurestore.retirement import KEPT_MICROS, KEYS_PER_RUN, remove_code, remove_retired
from featurestore.settings import Settings

__all__ = ["ViewRuns", "fed_versions"]

OnReport = Callable[[Report], None]


@dataclass(frozen=True)
class ViewRuns:
    """Runs over the views of one repo. Where some of several views fail, RunsFailedError has all that happened."""

    settings: Settings
    registry: Registry
    online: OnlineStore
    clock: Clock

    def materialize(
        self,
        views: Sequence[str] | None,
        start: int | None,
        end: int | None,
        *,
        max_rate: float | None,
        progress: Progress,
        on_report: OnReport,
    ) -> list[Report]:
        """Materialize views over `(start, end]`, and remove some of what retired versions left."""
        now = self.clock()
        if end is not None and end > now:
            raise InputError(f"end {instant_text(end)} lies in the future; it is {instant_text(now)} now", name="end")
        runs = Materialization(self.settings, self.registry, self.online, self.clock, max_rate)
        # One present for all, so that a version which has just been replaced covers what its successor does.
        chosen = fed_versions(self.registry, views)
        reports = self._each(chosen, lambda version: runs.run(version, start, end, progress, now), on_report)
        with suppress(FeatureStoreError):  # what is left is for the next run
            list(remove_retired(self.settings, self.registry, self.online, before=now - KEPT_MICROS, keys=KEYS_PER_RUN))
            remove_code(self.settings, self.registry, kept_seconds=KEPT_MICROS / 1e6)
        return reports

    def sync(
        self, views: Sequence[str] | None, *, full: bool, max_rate: float | None, progress: Progress, on_report: OnReport
    ) -> list[Report]:
        """Load views online out of their tables."""
        fed = fed_versions(self.registry, views)
        chosen = [each for each in fed if each.view.online and (each.watermark is not None or each.view.is_pushed)]
        for view in views or ():
            if view not in {version.view.name for version in chosen}:
                raise InputError(f"feature view {view!r} has nothing to load: it is not online, or not materialized yet", name=view)
        runs = Materialization(self.settings, self.registry, self.online, self.clock, max_rate)
        return self._each(chosen, lambda version: runs.sync(version, full=full, progress=progress), on_report)

    def compact(self, views: Sequence[str] | None, *, is_vacuum: bool, on_report: OnReport) -> list[Report]:
        """Put the small files of views' tables together, and with `is_vacuum` remove what nothing needs."""
        chosen = [version for version in fed_versions(self.registry, views) if version.coverage is not None]
        runs = Materialization(self.settings, self.registry, self.online, self.clock)
        return self._each(chosen, lambda version: runs.compact(version, is_vacuum=is_vacuum), on_report)

    def _each(self, chosen: Sequence[Version], run: Callable[[Version], Report], on_report: OnReport) -> list[Report]:
        reports: list[Report] = []
        failures: dict[str, FeatureStoreError] = {}
        for version in chosen:
            try:
                report = run(version)
            except FeatureStoreError as reason:
                if not version.is_rollback:
                    name = version.view.name
                    failures[name if name not in failures else f"{name} v{version.number}"] = reason
                    continue
                # What it needs may be gone for good, which is no reason for every run to fail from now on.
                report = Report(version.view.name, version.number, 0, None, self.clock(), error=str(reason))
            reports.append(report)
            on_report(report)
        if failures and len(chosen) == 1:
            raise next(iter(failures.values()))
        if failures:
            raise RunsFailedError(failures, reports)
        return reports


def fed_versions(registry: Registry, views: Sequence[str] | None) -> list[Version]:
    """Return the versions that runs feed: what serves, then the candidates that are to take over, then what served before.

    Raises:
        InputError: no view is applied.
        NotFoundError: no view of a name is.

    """
    living = [version for version in registry.applied().versions if version.is_fed]
    living.sort(key=lambda version: ("serving", "candidate", "replaced").index(version.state))
    known = {version.view.name for version in living}
    if not known:
        raise InputError("no feature view is applied yet; apply the definitions first: featurestore apply")
    for view in views or ():
        if view not in known:
            raise NotFoundError("feature view", view, known)
    return [version for version in living if views is None or version.view.name in views]
