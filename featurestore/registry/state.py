"""Values that the registry gives: versions of views, their coverage, and the applied state as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featurestore.clock import duration_micros, floor
from featurestore.definitions import FeatureView

FOREVER = 2**63 - 1

__all__ = ["Applied", "Coverage", "LoadRecord", "Loaded", "Rollback", "Run", "Tombstones", "Version"]


@dataclass(frozen=True)
class Coverage:
    """The interval `(start, end]` of visible time that is materialized; `end` is the watermark."""

    start: int
    end: int


@dataclass(frozen=True)
class Loaded:
    """The last completed online load: the run that did it, the table version, and the watermark at which it evaluated that."""

    run: int
    table_version: int
    until: int


@dataclass(frozen=True)
class LoadRecord:
    """One completed online load, and when what it wrote was readable.

    `is_rewrite` says whether rows at or below the watermark of the load before it came, went or changed. `rows` counts those that
    are new since then and became visible after the version was made, `ages` are quantiles of how old they were when they were
    readable, in microseconds. `late` counts the rows that the run found to have come too late for the table; `source` says what it
    found the source's files to be, none for one that read none.
    """

    run: int
    table_version: int
    until: int
    readable_at: int
    is_rewrite: bool
    rows: int
    ages: tuple[int, ...]
    late: int
    source: str | None


@dataclass(frozen=True)
class Version:
    """One version of a feature view: what it computes, and how much of it is materialized and loaded."""

    id: int
    uid: str
    number: int
    fingerprint: str
    view: FeatureView
    state: str
    created_at: int
    coverage: Coverage | None
    table_version: int
    loaded: Loaded | None
    retired_at: int | None = None
    is_rollback: bool = False
    """Whether a rollback of its view would make it serve again, so that runs keep feeding it."""

    @property
    def is_fed(self) -> bool:
        """Whether runs feed it: it serves, it is to take over, or it can serve again."""
        return self.state in ("serving", "candidate") or self.is_rollback

    @property
    def watermark(self) -> int | None:
        """The end of the coverage; none before the first run."""
        return self.coverage.end if self.coverage else None

    def behind(self, now: int) -> int | None:
        """Return the microseconds from the watermark to an instant; none before the first run, and for push views."""
        if self.coverage is None or self.view.is_pushed:
            return None
        return max(now - self.coverage.end, 0)

    def complete_until(self) -> int | None:
        """Return the last instant for which a training row is complete (T7); none before the first run."""
        if self.coverage is None:
            return None
        if self.view.is_static:
            return FOREVER
        refresh, delay = duration_micros(self.view.refresh), duration_micros(self.view.source.delay)
        if not refresh:
            return self.coverage.end
        # floor(t - delay) + delay <= watermark holds for all t before the first boundary after the watermark.
        return floor(self.coverage.end - delay, refresh) + delay + refresh - 1


@dataclass(frozen=True)
class Run:
    """One materialization of one version. Its number orders its online rows (T8)."""

    number: int
    view: str
    version: int
    start: int | None
    end: int
    status: str
    started_at: int
    finished_at: int | None
    report: Mapping[str, Any]
    error: str | None


@dataclass(frozen=True)
class Tombstones:
    """The hashes of erased keys, by the names of the key columns that they are of, and the secret that went into them (T14)."""

    secret: str
    digests: Mapping[tuple[str, ...], frozenset[str]]


@dataclass(frozen=True)
class Rollback:
    """What a rollback did.

    `versions` has of each view the number of the version that served and of the one that serves again, `objects` the (kind, name)
    of what else means again what it meant.
    """

    versions: Mapping[str, tuple[int, int]]
    objects: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Applied:
    """What is applied at one revision: specs by (kind, name), and every version there ever was."""

    revision: int
    specs: Mapping[tuple[str, str], Mapping[str, Any]]
    versions: tuple[Version, ...]
    waiting: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """What each name that does not mean yet what was applied last waits for."""

    def versions_of(self, view: str) -> tuple[Version, ...]:
        """Return the versions of a view, oldest first."""
        return tuple(version for version in self.versions if version.view.name == view)
