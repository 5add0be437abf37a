"""Asynchronous reading: one connection for each server and event loop, shared by all tasks of the loop.

Commands of one turn of the loop leave in one write; replies are matched in order. A connection that fails fails everyone who waits
on it, is never used again, and the next command opens another, so a reply cannot reach another's caller.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis
import redis

from featurestore.online.fetching import Found, delays
from featurestore.online.frames import command, mget
from featurestore.online.links import raise_refusal
from featurestore.online.topology import Access, Endpoint

__all__ = ["Multiplexed", "MultiplexedLinks"]

_MOST_WAITING = 4096
_SHARED_KEYS = 128
_RECEIVED_BYTES = 1 << 16
"""Replies that are taken at once. Those who got theirs ask on before the rest is read, so the server need not wait for them."""


class _Waiting:
    """One who waits for some replies, in a task."""

    __slots__ = ("future", "left", "replies", "since")
    callers = 1

    def __init__(self, future: asyncio.Future[list[Any]], count: int, since: float) -> None:
        self.future, self.left, self.since = future, count, since
        self.replies: list[Any] = []

    def take(self, reply: Any) -> None:
        self.replies.append(reply)
        if not self.left and not self.future.done():  # its task may have been cancelled; the replies are for nobody then
            self.future.set_result(self.replies)

    def fail(self, reason: redis.RedisError) -> None:
        if not self.future.done():
            self.future.set_exception(reason)


class _Reads:
    """Those whose reads are one command: each is called with the values of its keys, or with none if there will be none."""

    __slots__ = ("asked", "keys", "left", "since")

    def __init__(self, since: float) -> None:
        self.left, self.since = 1, since
        self.keys: list[bytes] = []
        self.asked: list[tuple[int, Callable[[Found | None], None]]] = []

    @property
    def callers(self) -> int:
        return len(self.asked)

    def take(self, reply: Any) -> None:
        is_found, first = type(reply) is list, 0
        for count, done in self.asked:
            last = first + count
            try:  # noqa: SIM105 (`suppress` takes as long as all the rest)
                done(reply[first:last] if is_found else None)
            except asyncio.InvalidStateError:  # its task was cancelled
                pass
            first = last

    def fail(self, _: redis.RedisError) -> None:
        self.take(None)


class Multiplexed(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self._endpoint, self._timeout = endpoint, timeout
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._place = memoryview(bytearray(_RECEIVED_BYTES))  # of which asyncio slices parts to write to
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[_Waiting | _Reads] = deque()
        self._reads: list[_Reads] = []
        self._out: list[bytes] = []
        self._is_flushing = False
        self._room = asyncio.Event()
        self._room.set()
        self._is_writable = True
        self._watch: asyncio.TimerHandle | None = None
        self.waiting = 0
        """How many wait for replies."""
        self.failure: redis.RedisError | None = None

    async def exchange(self, payload: bytes, replies: int) -> list[Any]:
        """Send commands and return their replies; refusals are among them as `hiredis.ReplyError`."""
        while not self._room.is_set() and self.failure is None:
            await self._room.wait()
        if self.failure is not None:
            raise self.failure
        waiting = _Waiting(self._loop.create_future(), replies, self._loop.time())
        self._waiting.append(waiting)
        self._out.append(payload)
        self._sent_one()
        return await waiting.future

    def read(self, keys: Sequence[bytes], done: Callable[[Found | None], None]) -> bool:
        """Read keys and call `done` with their values, or with none if that fails; false if there is no room now.

        Those who ask for few keys in one turn of the loop share a command.
        """
        if self.failure is not None or not self._room.is_set():
            return False
        reads = self._reads[-1] if self._reads else None
        if reads is None or len(reads.keys) + len(keys) > _SHARED_KEYS:
            reads = _Reads(self._loop.time())
            self._reads.append(reads)
        reads.keys += keys
        reads.asked.append((len(keys), done))
        self._sent_one()
        return True

    def _sent_one(self) -> None:
        self.waiting += 1
        if self.waiting >= _MOST_WAITING:
            self._room.clear()
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """End it; whoever waits gets an error."""
        self._fail(redis.ConnectionError(f"the connection to {self._endpoint} was closed"))

    def _flush(self) -> None:
        self._is_flushing = False
        if self._transport is None or self.failure is not None:
            return
        out, self._out = self._out, []
        out += [mget(reads.keys) for reads in self._reads]
        self._waiting += self._reads
        self._reads = []
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._look_at_the_clock)

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
        waiting = [*self._waiting, *self._reads]
        self._waiting, self._reads, self.waiting = deque(), [], 0
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
        if self._is_writable and self.waiting <= _MOST_WAITING // 2:  # not one by one, since all who wait look whether they may
            self._room.set()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (a hint)
        """Return where replies come to."""
        return self._place

    def buffer_updated(self, nbytes: int) -> None:
        """Give replies to those who wait, in order."""
        reader, waiting = self._reader, self._waiting
        reader.feed(self._place, 0, nbytes)  # type: ignore[arg-type]  # any buffer will do
        try:
            while (reply := reader.gets()) is not False:
                first = waiting[0]
                first.left -= 1
                if not first.left:
                    waiting.popleft()
                    self.waiting -= first.callers
                first.take(reply)
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
        self._latest: tuple[asyncio.AbstractEventLoop, Endpoint, Multiplexed] | None = None  # mostly there is but one

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
        loop, latest = asyncio.get_running_loop(), self._latest
        if latest is not None and latest[0] is loop and latest[1] is endpoint and latest[2].failure is None:
            return latest[2]
        opening = self._by_loop.get(loop, {}).get(endpoint)
        if opening is None or opening.failure is not None or not opening.task.done():
            return None
        self._latest = loop, endpoint, opening.task.result()
        return self._latest[2]

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
