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

MGET_KEYS = 1000
"""Keys that one command reads: some 0.3 ms of a server, which it cannot be interrupted in."""

_FIRST_DELAY = 0.005
_LONGEST_DELAY = 0.25
_PASSING = {"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "UNBLOCKED"}


@dataclass(frozen=True)
class Exchange:
    """Send to one endpoint. `places` are the keys of each command that reads; the last of its `replies_each` replies counts."""

    endpoint: Endpoint
    payload: bytes
    places: Sequence[Sequence[int]]
    replies_each: int = 1

    @property
    def replies(self) -> int:
        """How many replies to receive."""
        return len(self.places) * self.replies_each


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
    state = _State(keys)
    deadline, waits = time.monotonic() + patience, delays()
    is_first = True
    while True:
        exchanges = _exchanges(state, layout)
        failure = state.take(exchanges, (yield exchanges))
        if failure is None:
            return state.found
        if not is_passing(failure) or (not is_first and time.monotonic() > deadline):
            raise failure
        if not is_first:  # a pooled connection may have died long ago: the first new attempt is at once
            yield Pause(next(waits))
        is_first = False
        layout = yield LookAround(layout)


class _State:
    """What was found, what is missing, and how to ask for that: keys of a slot that is moving can be on either side."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.found: Found = [None] * len(keys)
        self.pending: Sequence[int] = range(len(keys))  # of which parts are ranges, too
        self.asking: dict[int, Endpoint] = {}
        self.alone: set[int] = set()

    def take(self, exchanges: Sequence[Exchange], results: Sequence[list[Any] | redis.RedisError]) -> redis.RedisError | None:
        """Take what exchanges gave; returns why something is still missing."""
        failure, missing = None, list[int]()
        self.asking = {}
        for exchange, result in zip(exchanges, results, strict=True):
            replies = [result] * exchange.replies if isinstance(result, redis.RedisError) else result
            for places, reply in zip(exchange.places, replies[exchange.replies_each - 1 :: exchange.replies_each], strict=True):
                if isinstance(reply, list) and isinstance(places, range) and len(reply) == len(places):
                    self.found[places.start : places.stop] = reply
                elif isinstance(reply, list):
                    for place, value in zip(places, reply, strict=True):
                        self.found[place] = value
                else:
                    failure = self._miss(places, reply)
                    missing += places
        self.pending = missing
        return failure

    def _miss(self, places: Sequence[int], reply: Any) -> redis.RedisError:
        if not isinstance(reply, hiredis.ReplyError):
            lost: redis.RedisError = reply
            return lost
        refusal = RefusedError(str(reply))
        if refusal.kind == "ASK":
            self.asking |= dict.fromkeys(places, _named(refusal))
        elif refusal.kind == "TRYAGAIN":
            self.alone.update(places)
        return refusal


def _named(refusal: RefusedError) -> Endpoint:
    host, _, port = str(refusal).rpartition(" ")[2].rpartition(":")
    return Endpoint(host, int(port))


def _exchanges(state: _State, layout: Layout) -> list[Exchange]:
    keys = state.keys
    if layout.owners is None:
        return [_exchange(layout.endpoints[0], keys, [state.pending])]
    groups: dict[Endpoint, dict[tuple[int, int], list[int]]] = {}
    for place in state.pending:
        if place not in state.asking:
            number = slot(keys[place])
            group = number, place if place in state.alone else -1
            groups.setdefault(layout.endpoints[layout.owners[number]], {}).setdefault(group, []).append(place)
    found = [_exchange(endpoint, keys, list(by_group.values())) for endpoint, by_group in groups.items()]
    for endpoint in set(state.asking.values()):
        singles = [[place] for place, asked in state.asking.items() if asked == endpoint]
        payload = b"".join([command(b"ASKING") + mget([keys[place]]) for [place] in singles])
        found.append(Exchange(endpoint, payload, singles, replies_each=2))
    return found


def _exchange(endpoint: Endpoint, keys: Sequence[bytes], groups: Sequence[Sequence[int]]) -> Exchange:
    parts = [group[first : first + MGET_KEYS] for group in groups for first in range(0, len(group), MGET_KEYS)]
    return Exchange(endpoint, b"".join([mget(_at(keys, part)) for part in parts]), parts)


def _at(keys: Sequence[bytes], places: Sequence[int]) -> Sequence[bytes]:
    if isinstance(places, range):
        return keys[places.start : places.stop]
    return [keys[place] for place in places]
