"""What lookups ask for, compiled once for what names mean now. That is read from the registry beside the requests, as the keys are.

The registry is asked at most once a second and only while there are requests, by a thread of its own, so the event loop never waits
for it. Lookups go on with what was read last: for good if the registry is gone, and while it is being read, unless the last look is
so old (there were no requests) that a second's wait for a new one is better.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError
from featurestore.functions import Functions
from featurestore.lookups import READ_SECONDS
from featurestore.online.fetching import MGET_KEYS
from featurestore.online.vectors import LookupPlan
from featurestore.registry.api_keys import ApiKey
from featurestore.registry.selection import select
from featurestore.registry.state import Applied
from featurestore_server.access import Access
from featurestore_server.contract import KEYS, PATH
from featurestore_server.metrics import Metrics, Series
from featurestore_server.values import Writer, are_finite, plain_writer

__all__ = ["Plan", "Plans", "Serving"]

_LOGGER = logging.getLogger("featurestore_server")
_LOOK_SECONDS = 1.0
_OLD_SECONDS = 5.0
_WAIT_SECONDS = 1.0
_PLANS = 1000
_AS_THEY_ARE: dict[str, tuple[type, ...]] = {"Int64": (int,), "Int32": (int,), "String": (str,), "Bool": (bool,)}
"""The key types whose values JSON has in the form that keys are made of."""

_REQUEST_KINDS = _AS_THEY_ARE | {"Float64": (float, int), "Float32": (float, int), "Timestamp": (str,), "Date": (str,)}
"""The same of the types of request columns; times and dates are read first."""


class Plan:
    """A lookup, its counters, which types JSON values of its columns have, and what makes JSON of the features that are not JSON.

    `given` is none if a column's values in JSON are not what the lookup takes; `readers` read those that are texts of times and
    dates. `numbers` are the features that are floats, which are JSON as long as they are finite. `short_rows` are the most rows
    that one command reads.
    """

    def __init__(self, lookup: LookupPlan, series: Series) -> None:
        self.lookup, self.series = lookup, series
        self.fingerprint = lookup.selection.fingerprint()
        self.short_rows = MGET_KEYS // max(1, len(lookup.lookups))
        self.schema_metadata = {KEYS: orjson.dumps({name: str(type_) for name, type_ in lookup.needed.items()})}
        kinds = [
            (name, (_AS_THEY_ARE if name in lookup.keys else _REQUEST_KINDS).get(type_.name))
            for name, type_ in lookup.needed.items()
        ]
        given = [(name, frozenset({*kind, type(None)})) for name, kind in kinds if kind is not None]
        self.given = given if len(given) == len(kinds) else None
        times = {name: type_ for name, type_ in lookup.needed.items() if type_.name in ("Timestamp", "Date")}
        self.readers = [(name, type_.from_json) for name, type_ in times.items()]
        types = lookup.selection.types()
        self.numbers = [name for name, type_ in types.items() if type_.name in ("Float32", "Float64")]
        writers = [(name, plain_writer(type_)) for name, type_ in types.items()]
        self.writers: list[tuple[str, Writer]] = [(name, writer) for name, writer in writers if writer is not None]
        self.other_writers = [(name, writer) for name, writer in self.writers if name not in self.numbers]

    def write(self, features: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Turn plain features into JSON values, in place."""
        are_numbers_json = are_finite([features[name] for name in self.numbers])
        for name, writer in self.other_writers if are_numbers_json else self.writers:
            features[name] = writer(features[name])
        return features


@dataclass(frozen=True)
class Serving:
    """What names mean, the keys, and the lookups compiled from the names; when they were read, and the registry's count then."""

    read_at: float
    writes: int
    applied: Applied
    keys: tuple[ApiKey, ...]
    access: Access
    functions: Functions
    metrics: Metrics
    plans: dict[str | tuple[str, ...], Plan] = field(default_factory=dict)

    def known(self, wanted: str | Sequence[str]) -> Plan | None:
        """Return the lookup of a service or of features; none if it is not compiled yet."""
        return self.plans.get(wanted if isinstance(wanted, str) else tuple(wanted))

    def plan(self, wanted: str | Sequence[str]) -> Plan:
        """Compile the lookup of a service or of features, for which definitions may be imported. Raises as `select` does."""
        lookup = LookupPlan(select(self.applied, wanted), self.functions.of)
        plan = Plan(lookup, self.metrics.series(PATH, wanted if isinstance(wanted, str) else ""))
        if len(self.plans) >= _PLANS:
            self.plans.clear()
        self.plans[wanted if isinstance(wanted, str) else tuple(wanted)] = plan
        return plan

    def warm(self) -> None:
        """Compile the lookups of all services, but for those that cannot be answered, which say why when they are asked for."""
        for kind, name in self.applied.specs:
            if kind == "feature service":
                with suppress(FeatureStoreError):
                    self.plan(name)


class Plans:
    """The plans of a store; threads and event loops may share it."""

    def __init__(self, store: FeatureStore, metrics: Metrics, *, is_open: bool = True) -> None:
        self._store, self._metrics, self._is_open = store, metrics, is_open
        self._lock = threading.Lock()
        self._serving: Serving | None = None
        self._looked_at = 0.0
        self._looking: Future[Serving] | None = None
        self._since = 0.0

    def known(self) -> Serving | None:
        """Return what names mean without waiting; none if that has to be awaited (`serving`)."""
        serving, age = self._serving, time.monotonic() - self._looked_at
        if serving is None or age > _OLD_SECONDS:
            return None
        if age > _LOOK_SECONDS and self._looking is None:
            self._look()
        return serving

    async def serving(self) -> Serving:
        """Return what names mean, having waited for the registry if it was never read, or for a moment if that is long ago.

        Raises:
            RegistryError: it was never read, and cannot be.

        """
        look = asyncio.wrap_future(self._look())
        if self._serving is None:
            return await look
        look.add_done_callback(_retrieve)
        await asyncio.wait([look], timeout=max(0.0, self._since + _WAIT_SECONDS - time.monotonic()))
        return self._serving

    @property
    def last(self) -> Serving | None:
        """What the registry said last, however long ago; none if it was never read."""
        return self._serving

    @property
    def age(self) -> float:
        """For how many seconds it has not been read."""
        return time.monotonic() - self._looked_at

    def be_warm(self) -> None:
        """Wait until the lookups of all services are compiled. Raises as `serving`."""
        if self._serving is None:
            self._look().result()

    async def access(self) -> Access:
        """Return the keys as they are known. Raises as `serving`."""
        return (self.known() or await self.serving()).access

    def _look(self) -> Future[Serving]:
        """Return the look at the registry that is under way, begun if there is none."""
        with self._lock:
            if self._looking is None:
                self._looking, self._since = Future(), time.monotonic()
                self._looking.set_running_or_notify_cancel()  # whoever stops waiting does not end it
                threading.Thread(target=self._read, args=(self._looking,), name="registry", daemon=True).start()
            return self._looking

    def _read(self, looking: Future[Serving]) -> None:
        try:
            serving = self._serving = self._now()
        except Exception as reason:  # noqa: BLE001 (whoever waits gets it)
            if self._serving is not None:
                level = logging.WARNING if isinstance(reason, FeatureStoreError) else logging.ERROR
                _LOGGER.log(level, "lookups go on with what the registry said last: %s", reason)
            self._end_look()
            looking.set_exception(reason)
        else:
            self._end_look()
            looking.set_result(serving)

    def _now(self) -> Serving:
        """Return what the registry says, with all that was compiled before and still holds."""
        registry, known = self._store.registry, self._serving
        writes = registry.writes()  # before what it counts, so that a write in between is found by the next look
        if known is not None and known.writes == writes and time.monotonic() - known.read_at <= READ_SECONDS:
            return known
        read_at = time.monotonic()
        applied, keys = registry.serving(), tuple(registry.api_keys.all())
        access = known.access if known is not None and known.keys == keys else Access(keys, is_open=self._is_open)
        if known is not None and known.applied == applied:
            return replace(known, read_at=read_at, writes=writes, keys=keys, access=access)
        new = Serving(read_at, writes, applied, keys, access, self._store.functions, self._metrics)
        new.warm()  # here, where no request waits for it
        return new

    def _end_look(self) -> None:
        with self._lock:
            self._looking, self._looked_at = None, time.monotonic()


def _retrieve(look: asyncio.Future[Serving]) -> None:
    if not look.cancelled():
        look.exception()  # the log has it
