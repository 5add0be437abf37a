"""Retired versions: what replaced and dropped versions left, online and offline, is removed lazily and at a bounded rate (T11).

A version that no rollback can reach any more is kept for an hour, since a lookup or a training read that began before may still use
it, and as long as the file of a training set is there that was made of it. Its state is `removing` before its first row goes, and
`removed` when nothing is left, so whoever was killed between is followed by the next run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from featurestore.errors import OfflineStoreError, RunInProgressError
from featurestore.functions import remove_copies
from featurestore.materialize import offline_table
from featurestore.offline.manifests import pinned, pinned_copies
from featurestore.online.store import OnlineStore
from featurestore.registry.registry import Registry
from featurestore.registry.state import Version
from featurestore.settings import Settings

__all__ = ["KEPT_MICROS", "KEYS_PER_RUN", "Removal", "remove_code", "remove_retired"]

KEPT_MICROS = 3_600_000_000
KEYS_PER_RUN = 200_000
"""How many online rows the end of a materialization removes at most."""


@dataclass(frozen=True)
class Removal:
    """What was removed of one version: so many online rows, and its table if `is_complete`."""

    view: str
    version: int
    online_rows: int
    is_complete: bool


def remove_code(settings: Settings, registry: Registry, *, kept_seconds: float) -> None:
    """Remove the copies of code that no on-demand view needs, now or after a rollback, nor the manifest of a training set."""
    needed = registry.needed_copies() | pinned_copies(settings.offline_folder)
    remove_copies(settings.state, needed, kept_seconds=kept_seconds)


def remove_retired(
    settings: Settings, registry: Registry, online: OnlineStore, *, before: int, keys: int | None = None
) -> Iterator[Removal]:
    """Remove what versions left that were retired at or before an instant, the oldest first, of `keys` online rows at most.

    A version that is being materialized is left for the next time.
    """
    left = keys
    needed = pinned(settings.offline_folder)
    for version in registry.applied().versions:
        if left == 0:
            return
        if _is_due(version, before) and version.uid not in needed:
            try:
                with registry.lease(version):
                    removal = _remove(settings, registry, online, version, left)
            except RunInProgressError:
                continue
            if removal is not None:
                left = None if left is None else left - removal.online_rows
                yield removal


def _is_due(version: Version, before: int) -> bool:
    if version.state == "removing":
        return True
    return version.state in ("replaced", "dropped") and not version.is_fed and (version.retired_at or 0) <= before


def _remove(settings: Settings, registry: Registry, online: OnlineStore, version: Version, keys: int | None) -> Removal | None:
    if not registry.mark_removing(version):
        return None
    # Loads that were never completed left rows too, so only a version that never had a table has none.
    is_held = version.coverage is not None or version.view.is_pushed
    dropped = online.drop(version, limit=keys) if is_held else 0
    if keys is not None and dropped >= keys:
        return Removal(version.view.name, version.number, dropped, is_complete=False)
    folder = offline_table(settings, version).folder
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as reason:
        raise OfflineStoreError(f"cannot remove the table at {folder}: {reason}") from reason
    registry.mark_removed(version)
    return Removal(version.view.name, version.number, dropped, is_complete=True)
