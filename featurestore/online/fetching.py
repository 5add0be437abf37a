"""Fetching the values of keys, as a dialogue without I/O: who drives it sends, waits and looks around as it asks.

`fetch` yields what is to be done and is sent what came of it, so that the blocking and the asynchronous path are one algorithm.
On one server all keys are one MGET; on a cluster one MGET for each slot, those of a node in one go. A node that has moved, fails
over or comes up again is asked again until the time is over; what is returned was read from the owner of its key.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
import redis

from featurestore.online.frames import command, mget
from featurestore.online.keys import slot
from featurestore.online.links import RefusedError
from featurestore.online.topology import Endpoint, Layout

__all__ = ["Exchange", "Found", "LookAround", "Pause", "Step", "delays", "fetch", "is_passing"]

Found = list[bytes | None]

_FIRST_DELAY = 0.005
_LONGEST_DELAY = 0.25
_PASSING = {"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "UNBLOCKED"}


@dataclass(frozen=True)
class Exchange:
    """Send to one endpoint, and receive so many replies. `places` are the keys of each reply that counts."""

    endpoint: Endpoint
    payload: bytes
    replies: int
    places: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class LookAround:
    """Find out who is there now, since the layout was wrong; the answer is the new one."""

    layout: Layout


Step = list[Exchange] | Pause | LookAround


def delays() -> Iterator[float]:
    """Give how long to wait before each new attempt: longer and longer, and not all at the same time."""
    longest = _FIRST_DELAY
    while True:
        yield random.uniform(0, longest)  # noqa: S311 (it only spreads attempts)
        longest = min(2 * longest, _LONGEST_DELAY)


def is_passing(failure: redis.RedisError) -> bool:
    """Whether a failure can be over soon: a lost connection, or a server that is coming up, moving or failing over."""
    if isinstance(failure, RefusedError):
        return failure.kind in _PASSING
    return isinstance(failure, redis.ConnectionError | redis.TimeoutError)


def fetch(keys: Sequence[bytes], layout: Layout, *, patience: float) -> Generator[Step, Any, Found]:
    """Return the value of each key, none where there is none. `patience` is for how many seconds failures are taken to pass.

    Raises:
        redis.RedisError: the failure that did not pass.

    """
    found: Found = [None] * len(keys)
    asking: dict[int, Endpoint] = {}
    pending: list[int] = list(range(len(keys)))
    deadline, waits = time.monotonic() + patience, delays()
    is_first = True
    while True:
        exchanges = _exchanges(keys, pending, asking, layout)
        results = yield exchanges
        asking, pending, failure = {}, [], None
        for exchange, result in zip(exchanges, results, strict=True):
            replies = [result] * exchange.replies if isinstance(result, redis.RedisError) else result
            for places, reply in zip(exchange.places, replies[exchange.replies - len(exchange.places) :], strict=True):
                if isinstance(reply, list):
                    for place, value in zip(places, reply, strict=True):
                        found[place] = value
                    continue
                pending += places
                failure = RefusedError(str(reply)) if isinstance(reply, hiredis.ReplyError) else reply
                if isinstance(failure, RefusedError) and failure.kind == "ASK":
                    asking |= dict.fromkeys(places, _named(failure))
        if failure is None:
            return found
        if not is_passing(failure) or (not is_first and time.monotonic() > deadline):
            raise failure
        if not is_first:  # a pooled connection may have died long ago: the first new attempt is at once
            yield Pause(next(waits))
        is_first = False
        layout = yield LookAround(layout)


def _named(refusal: RefusedError) -> Endpoint:
    host, _, port = str(refusal).rpartition(" ")[2].rpartition(":")
    return Endpoint(host, int(port))


def _exchanges(keys: Sequence[bytes], places: Sequence[int], asking: dict[int, Endpoint], layout: Layout) -> list[Exchange]:
    if layout.owners is None:
        asked = keys if len(places) == len(keys) else [keys[place] for place in places]
        return [Exchange(layout.endpoints[0], mget(asked), 1, [places])]
    groups: dict[tuple[Endpoint, bool], dict[int, list[int]]] = {}
    for place in places:
        number = slot(keys[place])
        owner = int(layout.owners[number])
        if owner < 0 and place not in asking:
            raise RefusedError(f"CLUSTERDOWN slot {number} has no owner")
        endpoint = asking.get(place) or layout.endpoints[owner]
        groups.setdefault((endpoint, place in asking), {}).setdefault(number, []).append(place)
    exchanges = []
    for (endpoint, is_asking), by_slot in groups.items():
        head = command(b"ASKING") if is_asking else b""
        for_slots = [by_slot] if not is_asking else [{number: group} for number, group in by_slot.items()]
        for each in for_slots:
            payload = b"".join([head + mget([keys[place] for place in group]) for group in each.values()])
            exchanges.append(Exchange(endpoint, payload, len(each) + is_asking, list(each.values())))
    return exchanges
