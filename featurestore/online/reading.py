"""Reading what is stored under keys: blocking over a small pool, asynchronously over one connection for each event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import redis

from featurestore.online.failures import ours, translated
from featurestore.online.fetching import MGET_KEYS, Exchange, Found, LookAround, Pause, Step, fetch, is_passing
from featurestore.online.frames import mget
from featurestore.online.links import Link, Links
from featurestore.online.multiplexed import MultiplexedLinks
from featurestore.online.topology import Layout, Topology
from featurestore.settings import Settings

__all__ = ["Reader"]


class Reader:
    """Reads from the servers of one online store; threads and tasks may share it."""

    def __init__(self, settings: Settings, topology: Topology) -> None:
        self._settings, self._topology = settings, topology
        self._links, self._multiplexed = Links(topology.access), MultiplexedLinks(topology.access)

    def close(self) -> None:
        """Close the connections; those of event loops that have ended are closed with their loop."""
        self._links.close()
        self._multiplexed.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._multiplexed.aclose()

    def connections(self) -> tuple[dict[str, int], int]:
        """Return what `OnlineStore.connections` does."""
        return self._multiplexed.states()

    def fetch(self, names: Sequence[bytes | None]) -> Found:
        """Return what is stored under each key, none where nothing is or where there is no key."""
        asked = [name for name in names if name is not None] if None in names else cast("Sequence[bytes]", names)
        if not asked:
            return [None] * len(names)
        try:
            found = self._fetch(asked)
        except redis.RedisError as reason:
            if not self._topology.revive():
                raise ours(self._settings, reason) from reason
            with translated(self._settings):
                found = self._fetch(asked)
        return _spread(names, found)

    async def fetch_async(self, names: Sequence[bytes | None]) -> Found:
        """Return the same as `fetch`, over this event loop's connection to each server."""
        future: asyncio.Future[Found | None] = asyncio.get_running_loop().create_future()
        if self.fetch_soon(names, future.set_result) and (quick := await future) is not None:
            return quick
        asked = [name for name in names if name is not None]
        if not asked:
            return [None] * len(names)
        try:
            found = await self._fetch_async(asked)
        except redis.RedisError as reason:
            if not await asyncio.to_thread(self._topology.revive):
                raise ours(self._settings, reason) from reason
            with translated(self._settings):
                found = await self._fetch_async(asked)
        return _spread(names, found)

    def fetch_soon(self, names: Sequence[bytes | None], done: Callable[[Found | None], None]) -> bool:
        """Ask for what is stored under keys, if that takes one command on an open connection; false if it does not.

        `done` is called in a later turn of the loop with what `fetch` returns, or with none if it has to be asked again.
        """
        layout = self._topology.known
        if layout is None or layout.owners is not None or not 0 < len(names) <= MGET_KEYS or None in names:
            return False
        link = self._multiplexed.ready(layout.endpoints[0])
        return link is not None and link.read(cast("Sequence[bytes]", names), done)

    def _fetch(self, keys: Sequence[bytes]) -> Found:
        topology, links = self._topology, self._links
        layout = topology.layout()
        if layout.owners is None and len(keys) <= MGET_KEYS:  # the common case, in half the time
            [values] = _exchanged(links, [Exchange(layout.endpoints[0], mget(keys), ((),))])
            if type(values) is list and type(values[0]) is list:
                return values[0]
        dialogue = fetch(keys, layout, patience=topology.patience)
        answer: Any = None
        try:
            while True:
                step: Step = dialogue.send(answer)
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    answer = None
                elif isinstance(step, LookAround):
                    answer = self._look_around(step.layout)
                else:
                    answer = _exchanged(links, step)
        except StopIteration as end:
            found: Found = end.value
            return found

    async def _fetch_async(self, keys: Sequence[bytes]) -> Found:
        topology, links = self._topology, self._multiplexed
        layout = topology.known
        if layout is None:
            layout = await asyncio.to_thread(topology.layout)
        dialogue = fetch(keys, layout, patience=topology.patience)
        answer: Any = None
        try:
            while True:
                step: Step = dialogue.send(answer)
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    answer = None
                elif isinstance(step, LookAround):
                    answer = await asyncio.to_thread(self._look_around, step.layout)
                elif len(step) == 1:
                    answer = [await _exchanged_async(links, step[0])]
                else:
                    answer = await asyncio.gather(*[_exchanged_async(links, each) for each in step])
        except StopIteration as end:
            found: Found = end.value
            return found

    def _look_around(self, layout: Layout) -> Layout:
        if not self._topology.can_move:
            return layout
        try:
            return self._topology.rediscover(layout)
        except redis.RedisError as reason:
            if not is_passing(reason):
                raise
            return layout  # nobody knows yet who takes over


def _spread(names: Sequence[bytes | None], found: Found) -> Found:
    if len(found) == len(names):
        return found
    values = iter(found)
    return [None if name is None else next(values) for name in names]


def _exchanged(links: Links, step: Sequence[Exchange]) -> list[list[Any] | redis.RedisError]:
    """Send to all endpoints before the first answer is awaited."""
    sent: list[Link | redis.RedisError] = []
    for each in step:
        try:
            link = links.take(each.endpoint)
            link.send(each.payload)
            sent.append(link)
        except redis.RedisError as reason:
            links.forget(each.endpoint)
            sent.append(reason)
    answers: list[list[Any] | redis.RedisError] = []
    for each, taken in zip(step, sent, strict=True):
        if isinstance(taken, redis.RedisError):
            answers.append(taken)
            continue
        try:
            answers.append(taken.receive(each.replies))
        except redis.RedisError as reason:
            links.forget(each.endpoint)
            answers.append(reason)
        else:
            links.give_back(taken)
    return answers


async def _exchanged_async(links: MultiplexedLinks, each: Exchange) -> list[Any] | redis.RedisError:
    try:
        return await links.exchange(each.endpoint, each.payload, each.replies)
    except redis.RedisError as reason:
        return reason
