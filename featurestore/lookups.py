"""Lookups of the Python API, compiled once for what names mean now; at most once a second the registry is asked if that changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from featurestore.clock import Clock
from featurestore.functions import Functions
from featurestore.lock import GivenLock, check_lock, read_lock
from featurestore.online.fetching import Found
from featurestore.online.store import OnlineStore
from featurestore.online.vectors import FeatureVectors, LookupPlan, Request
from featurestore.registry.registry import Registry
from featurestore.registry.selection import select
from featurestore.registry.state import Applied
from featurestore.serving_log.writer import ServingLog

__all__ = ["READ_SECONDS", "Lookups"]

READ_SECONDS = 60.0
"""After which all is read again though nobody wrote: a process of a release that does not count may have."""

_SERVING_SECONDS = 1.0
_PLANS = 1000


@dataclass(frozen=True)
class _Serving:
    """What names mean, and the lookups compiled from it: when it was last found to be so, and when it was read, at which count."""

    looked_at: float
    read_at: float
    writes: int
    applied: Applied
    plans: dict[str | tuple[str, ...], LookupPlan] = field(default_factory=dict)
    locked: set[tuple[str | tuple[str, ...], GivenLock]] = field(default_factory=set)


class Lookups:
    """The lookups of one store. Threads and tasks may share it."""

    def __init__(
        self, registry: Callable[[], Registry], online: OnlineStore, functions: Functions, log: ServingLog | None, clock: Clock
    ) -> None:
        self._registry, self._online, self._functions, self._log, self._clock = registry, online, functions, log, clock
        self._serving: _Serving | None = None

    def fetch(self, entities: Mapping[str, Sequence[Any]], wanted: str | Sequence[str], lock: GivenLock | None) -> FeatureVectors:
        """Look entities up; `FeatureStore.get_online_features` says what can go wrong."""
        request = self.plan(wanted, lock).request(entities)
        return self._answer(request, self._online.fetch(request.names))

    async def fetch_async(
        self, entities: Mapping[str, Sequence[Any]], wanted: str | Sequence[str], lock: GivenLock | None
    ) -> FeatureVectors:
        """Do the same over this event loop's connections; registry, locks and the code of definitions are read beside the loop."""
        plan = self._known(wanted, lock)
        if plan is None:
            plan = await asyncio.to_thread(self.plan, wanted, lock)
        request = plan.request(entities)
        return self._answer(request, await self._online.fetch_async(request.names))

    def plan(self, wanted: str | Sequence[str], lock: GivenLock | None = None) -> LookupPlan:
        """Return what a service or a list of features asks for, compiled and held against a lock once for what names mean now."""
        serving, name = self._serving_now(), wanted if isinstance(wanted, str) else tuple(wanted)
        if lock is not None and (name, lock) not in serving.locked:
            check_lock(self.plan(wanted).selection, read_lock(lock), self._registry().find_selection)
            serving.locked.add((name, lock))
        plan = serving.plans.get(name)
        if plan is None:
            if len(serving.plans) >= _PLANS:
                serving.plans.clear()
            plan = serving.plans[name] = LookupPlan(select(serving.applied, wanted), self._functions.of)
        return plan

    def _known(self, wanted: str | Sequence[str], lock: GivenLock | None) -> LookupPlan | None:
        """Return what `plan` would without waiting for anything; none if it would have to."""
        serving, name = self._serving, wanted if isinstance(wanted, str) else tuple(wanted)
        if serving is None or time.monotonic() - serving.looked_at > _SERVING_SECONDS:
            return None
        return serving.plans.get(name) if lock is None or (name, lock) in serving.locked else None

    def forget(self) -> None:
        """Let the next lookup read anew what names mean."""
        self._serving = None

    def _answer(self, request: Request, found: Found) -> FeatureVectors:
        now = self._clock()
        vectors = request.plan.answer(request, found, now=now)
        if self._log is not None:
            self._log.offer(request, found, vectors, now)
        return vectors

    def _serving_now(self) -> _Serving:
        known, now = self._serving, time.monotonic()
        if known is not None and now - known.looked_at <= _SERVING_SECONDS:
            return known
        registry = self._registry()
        writes = registry.writes()  # before what it counts, so that a write in between is found by the next look
        if known is not None and known.writes == writes and now - known.read_at <= READ_SECONDS:
            serving = replace(known, looked_at=now, locked=set())  # a lock may be a file, which is read again, too
        else:
            serving = _Serving(now, now, writes, registry.serving())
        self._serving = serving
        return serving
