"""Asynchronous reading: one connection for each server and event loop, shared by all tasks of the loop.

Commands of one turn of the loop leave in one write; replies are matched in order. A connection that fails fails everyone who waits
on it, is never used again, and the next command opens another, so a reply cannot reach another's caller.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
import redis

from featurestore.online.fetching import delays
from featurestore.online.frames import command
from featurestore.online.links import raise_refusal
from featurestore.online.topology import Access, Endpoint

__all__ = ["Multiplexed", "MultiplexedLinks"]

_MOST_WAITING = 4096


class _Waiting:
    """One who waits for some replies, in a task."""

    __slots__ = ("future", "left", "replies", "since")

    def __init__(self, future: asyncio.Future[list[Any]], count: int, since: float) -> None:
        self.future, self.left, self.since = future, count, since
        self.replies: list[Any] = []

    def end(self) -> None:
        if not self.future.done():  # its task may have been cancelled; the reply is for nobody then
            self.future.set_result(self.replies)

    def fail(self, reason: redis.RedisError) -> None:
        if not self.future.done():
            self.future.set_exception(reason)


class _Called:
    """One who is called with one reply, or with none if there will be none."""

    __slots__ = ("callback", "left", "replies", "since")

    def __init__(self, callback: Callable[[Any], None], since: float) -> None:
        self.callback, self.left, self.since = callback, 1, since
        self.replies: list[Any] = []

    def end(self) -> None:
        self.callback(self.replies[0])

    def fail(self, _: redis.RedisError) -> None:
        self.callback(None)


class Multiplexed(asyncio.Protocol):
    """One connection."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self._endpoint, self._timeout = endpoint, timeout
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[_Waiting | _Called] = deque()
        self._out: list[bytes] = []
        self._room = asyncio.Event()
        self._room.set()
        self._is_writable = True
        self._watch: asyncio.TimerHandle | None = None
        self.failure: redis.RedisError | None = None

    @property
    def waiting(self) -> int:
        """How many wait for replies."""
        return len(self._waiting)

    async def exchange(self, payload: bytes, replies: int) -> list[Any]:
        """Send commands and return their replies; refusals are among them as `hiredis.ReplyError`."""
        while not self._room.is_set() and self.failure is None:
            await self._room.wait()
        if self.failure is not None:
            raise self.failure
        waiting = _Waiting(self._loop.create_future(), replies, self._loop.time())
        self._send(payload, waiting)
        return await waiting.future

    def send_soon(self, payload: bytes, callback: Callable[[Any], None]) -> bool:
        """Send a command of one reply with which `callback` is called, or with none if it fails; false if there is no room now."""
        if self.failure is not None or not self._room.is_set():
            return False
        self._send(payload, _Called(callback, self._loop.time()))
        return True

    def _send(self, payload: bytes, waiting: _Waiting | _Called) -> None:
        self._waiting.append(waiting)
        if len(self._waiting) >= _MOST_WAITING:
            self._room.clear()
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(payload)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._look_at_the_clock)

    def close(self) -> None:
        """End it; whoever waits gets an error."""
        self._fail(redis.ConnectionError(f"the connection to {self._endpoint} was closed"))

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and self.failure is None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _look_at_the_clock(self) -> None:
        """End the connection if its oldest command has waited for too long. The order is fixed, so no later one can be sooner."""
        self._watch = None
        if not self._waiting:
            return
        left = self._waiting[0].since + self._timeout - self._loop.time()
        if left <= 0:
            self._fail(redis.TimeoutError(f"no answer of {self._endpoint} in {self._timeout:g} s"))
        else:
            self._watch = self._loop.call_later(left, self._look_at_the_clock)

    def _fail(self, reason: redis.RedisError) -> None:
        if self.failure is None:
            self.failure = reason
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            each.fail(self.failure)
        self._room.set()
        if self._transport is not None:
            self._transport.abort()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, though not by its class

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits."""
        self._fail(redis.ConnectionError(f"{self._endpoint}: {exc or 'the server hung up'}"))

    def pause_writing(self) -> None:
        """Let no more commands in while the server does not take what was sent."""
        self._is_writable = False
        self._room.clear()

    def resume_writing(self) -> None:
        """Let commands in again."""
        self._is_writable = True
        self._make_room()

    def _make_room(self) -> None:
        if self._is_writable and len(self._waiting) < _MOST_WAITING:
            self._room.set()

    def data_received(self, data: bytes) -> None:
        """Give replies to those who wait, in order."""
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                first = waiting[0]
                first.replies.append(reply)
                first.left -= 1
                if not first.left:
                    waiting.popleft()
                    first.end()
        except (hiredis.ProtocolError, IndexError) as reason:
            self._fail(redis.ConnectionError(f"{self._endpoint} does not speak the protocol: {reason}"))
        if not self._room.is_set():
            self._make_room()


class _Opening:
    """The connection to one server, or the attempt to get one; after a failed one a pause, longer each time, before the next."""

    def __init__(self, task: asyncio.Task[Multiplexed]) -> None:
        self.task = task
        self.waits = delays()
        self.next_at = 0.0

    @property
    def failure(self) -> BaseException | None:
        if not self.task.done():
            return None
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception() or self.task.result().failure


class MultiplexedLinks:
    """The connections of all event loops. Use them in their own loop."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._by_loop: dict[asyncio.AbstractEventLoop, dict[Endpoint, _Opening]] = {}

    async def exchange(self, endpoint: Endpoint, payload: bytes, replies: int) -> list[Any]:
        """Send commands to an endpoint over this loop's connection, opened if need be, and return their replies.

        Right after an attempt to open it has failed, no other is made: its failure is the answer.
        """
        opening = self._opening(endpoint)
        # Shielded, since a task that is cancelled must not cancel the connection that others wait for.
        link = opening.task.result() if opening.task.done() else await asyncio.shield(opening.task)
        return await link.exchange(payload, replies)

    def ready(self, endpoint: Endpoint) -> Multiplexed | None:
        """Return this loop's connection to an endpoint, none unless it is open."""
        opening = self._by_loop.get(asyncio.get_running_loop(), {}).get(endpoint)
        return None if opening is None or opening.failure is not None or not opening.task.done() else opening.task.result()

    def _opening(self, endpoint: Endpoint) -> _Opening:
        loop = asyncio.get_running_loop()
        links = self._by_loop.get(loop)
        if links is None:
            self._by_loop = {each: links for each, links in self._by_loop.items() if not each.is_closed()}
            links = self._by_loop.setdefault(loop, {})
        opening = links.get(endpoint)
        if opening is not None and opening.failure is None:
            return opening
        if opening is not None and opening.task.exception() is not None and loop.time() < opening.next_at:
            return opening
        task = loop.create_task(_opened(endpoint, self._access))
        task.add_done_callback(_retrieve)
        if opening is None or opening.task.exception() is None:
            opening = links[endpoint] = _Opening(task)
        opening.task, opening.next_at = task, loop.time() + next(opening.waits)
        return opening

    def states(self) -> tuple[dict[str, int], int]:
        """Return how many connections this loop has by state, and how many commands wait for replies on them."""
        states, waiting = {"open": 0, "opening": 0, "failed": 0}, 0
        for opening in self._by_loop.get(asyncio.get_running_loop(), {}).values():
            if not opening.task.done():
                states["opening"] += 1
            elif opening.failure is not None:
                states["failed"] += 1
            else:
                states["open"] += 1
                waiting += opening.task.result().waiting
        return states, waiting

    async def aclose(self) -> None:
        """End this loop's connections."""
        for opening in self._by_loop.pop(asyncio.get_running_loop(), {}).values():
            opening.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, redis.RedisError):
                (await opening.task).close()
        await asyncio.sleep(0)  # a transport ends in the next turn

    def close(self) -> None:
        """End the connections of loops that still run."""
        for loop, links in self._by_loop.items():
            for opening in links.values():
                if not loop.is_closed() and opening.task.done() and opening.failure is None:
                    loop.call_soon_threadsafe(opening.task.result().close)
        self._by_loop = {}


def _retrieve(task: asyncio.Task[Multiplexed]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits gets it; nobody need wait


async def _opened(endpoint: Endpoint, access: Access) -> Multiplexed:
    try:
        async with asyncio.timeout(access.timeout):
            return await _greeted(endpoint, access)
    except TimeoutError as reason:
        raise redis.TimeoutError(f"no connection to {endpoint} in {access.timeout:g} s") from reason
    except OSError as reason:
        raise redis.ConnectionError(f"{endpoint}: {reason}") from reason


async def _greeted(endpoint: Endpoint, access: Access) -> Multiplexed:
    loop = asyncio.get_running_loop()

    def protocol() -> Multiplexed:
        return Multiplexed(endpoint, access.timeout)

    if endpoint.path:
        _, link = await loop.create_unix_connection(protocol, endpoint.path)
    else:
        name = endpoint.host if access.tls is not None else None
        _, link = await loop.create_connection(protocol, endpoint.host, endpoint.port, ssl=access.tls, server_hostname=name)
    if greeting := access.greeting():
        try:
            raise_refusal(await link.exchange(b"".join([command(*parts) for parts in greeting]), len(greeting)))
        except BaseException:
            link.close()
            raise
    return link
