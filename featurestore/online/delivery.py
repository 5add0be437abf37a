"""Delivering writes: frames to the owners of their keys, until each is acknowledged.

A frame whose acknowledgement got lost is sent again, which changes nothing: a row that is as new as what is stored replaces it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
import numpy as np
import numpy.typing as npt
import redis

from featurestore.online.fetching import delays, is_passing
from featurestore.online.frames import Frame, command, setting, writing
from featurestore.online.keys import KeyBlock
from featurestore.online.links import Link, RefusedError, raise_refusal
from featurestore.online.packed import PackedRows
from featurestore.online.scripts import WRITE
from featurestore.online.topology import Endpoint, Topology

__all__ = ["Delivery", "Parcel", "parcels"]

FRAME_ROWS = 64
"""Rows that one command writes: some 0.3 ms of a server, in which it answers nobody else."""


@dataclass(frozen=True)
class Parcel:
    """A frame and the slot of its keys; none where there are no slots."""

    frame: Frame
    slot: int | None


def parcels(
    block: KeyBlock,
    rows: PackedRows | bytes,
    order: int | None,
    lives: npt.NDArray[np.int64] | int,
    *,
    is_cluster: bool,
    is_plain: bool = False,
    frame_rows: Callable[[], int] = lambda: FRAME_ROWS,
) -> Iterator[Parcel]:
    """Cut the writes of a block of keys into frames. `rows` and `lives` go with the keys; `frame_rows` is asked for each frame."""
    if not is_cluster:
        places = _cut(0, len(block.keys), frame_rows)
        frames = setting(block.keys, rows, places) if is_plain and isinstance(rows, PackedRows) else None
        yield from (Parcel(frame, None) for frame in frames or writing(block.keys, rows, order, lives, places))
        return
    slots = block.slots()
    by_slot = np.argsort(slots, kind="stable")
    slots, keys = slots[by_slot], block.keys[by_slot]
    rows = rows if isinstance(rows, bytes) else rows.take(by_slot)
    lives = lives if isinstance(lives, int) else lives[by_slot]
    places, same = itertools.tee(_runs(slots, frame_rows))
    for place, frame in zip(places, writing(keys, rows, order, lives, same), strict=True):
        yield Parcel(frame, int(slots[place.start]))


def _runs(slots: npt.NDArray[np.uint16], frame_rows: Callable[[], int]) -> Iterator[slice]:
    for first, last in itertools.pairwise([0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]):
        yield from _cut(first, last, frame_rows)


def _cut(first: int, last: int, frame_rows: Callable[[], int]) -> Iterator[slice]:
    while first < last:
        end = min(first + frame_rows(), last)
        yield slice(first, end)
        first = end


class Delivery:
    """Sends frames over connections of its own. One thread uses it.

    `patience` is for how many seconds a failure is taken to pass, counted from the last acknowledgement.
    """

    def __init__(self, topology: Topology, patience: float, name: str = "") -> None:
        self._topology, self._patience, self._name = topology, patience, name
        self._links: dict[Endpoint, Link] = {}

    def close(self) -> None:
        """End the connections."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    def deliver(self, sent: Sequence[Parcel]) -> int:
        """Send parcels; returns how many rows were written, the others being older than what is stored.

        Raises:
            redis.RedisError: a failure that did not pass.

        """
        written, waits, deadline = 0, delays(), time.monotonic() + self._patience
        pending, is_first = list(sent), True
        while pending:
            count, left, failure = self._attempt(pending)
            written += count
            if failure is None:
                return written
            if len(left) < len(pending):
                waits, deadline = delays(), time.monotonic() + self._patience
            # A connection that was idle may have died long ago, so the first new attempt is always made.
            self._recover(failure, is_over=not is_first and time.monotonic() > deadline)
            is_first = False
            pending = self._split(left) if isinstance(failure, RefusedError) and failure.kind in ("TRYAGAIN", "ASK") else left
            if not (isinstance(failure, RefusedError) and failure.kind in ("NOSCRIPT", "MOVED", "ASK")):
                time.sleep(next(waits))
        return written

    def _recover(self, failure: redis.RedisError, *, is_over: bool) -> None:
        if isinstance(failure, RefusedError) and failure.kind == "NOSCRIPT":
            self._load_script()
            return
        can_pass = is_passing(failure) and not (str(failure).startswith("READONLY") and not self._topology.can_move)
        if is_over or not can_pass:
            raise failure
        try:
            self._topology.rediscover(self._topology.layout())
        except redis.RedisError as reason:
            if not is_passing(reason):
                raise

    def _split(self, left: Sequence[Parcel]) -> list[Parcel]:
        """Cut frames into rows, since the keys of a slot on its way can be on either side."""
        return [Parcel(frame, parcel.slot) for parcel in left for frame in parcel.frame.single()]

    def _attempt(self, sent: Sequence[Parcel]) -> tuple[int, list[Parcel], redis.RedisError | None]:
        """Send each parcel once; returns the rows written, the parcels that have to be sent again, and why."""
        written, left, failure = 0, list[Parcel](), None
        for endpoint, group in self._by_owner(sent).items():
            try:
                link = self._link(endpoint)
                replies = link.exchange(b"".join([each.frame.payload for each in group]), len(group))
            except redis.RedisError as reason:
                self._links.pop(endpoint, None)
                failure, left = reason, left + group
                continue
            for parcel, reply in zip(group, replies, strict=True):
                count, refusal = _outcome(parcel, reply)
                if refusal is not None and refusal.kind == "ASK":
                    count, refusal = self._ask(parcel, refusal)
                written += count
                if refusal is not None:
                    failure, left = refusal, [*left, parcel]
        return written, left, failure

    def _ask(self, parcel: Parcel, refusal: RefusedError) -> tuple[int, RefusedError | None]:
        host, _, port = str(refusal).rpartition(" ")[2].rpartition(":")
        try:
            replies = self._link(Endpoint(host, int(port))).exchange(command(b"ASKING") + parcel.frame.payload, 2)
        except redis.RedisError:
            self._links.pop(Endpoint(host, int(port)), None)
            return 0, RefusedError("TRYAGAIN the slot is moving")
        count, refused = _outcome(parcel, replies[1])
        if refused is not None and refused.kind == "NOSCRIPT":
            self._load_script(Endpoint(host, int(port)))
            return 0, RefusedError("TRYAGAIN the slot is moving")
        return count, refused

    def _by_owner(self, sent: Sequence[Parcel]) -> dict[Endpoint, list[Parcel]]:
        layout = self._topology.layout()
        if layout.owners is None:
            return {layout.endpoints[0]: list(sent)}
        groups: dict[Endpoint, list[Parcel]] = {}
        for parcel in sent:
            groups.setdefault(layout.endpoints[layout.owners[parcel.slot or 0]], []).append(parcel)
        return groups

    def _link(self, endpoint: Endpoint) -> Link:
        link = self._links.get(endpoint)
        if link is None or link.is_closed:
            link = self._links[endpoint] = Link(endpoint, self._topology.access, self._name)
            self.greet(link)
        return link

    def greet(self, link: Link) -> None:
        """Do what has to be done before the first write over a new connection."""

    def _load_script(self, *more: Endpoint) -> None:
        for endpoint in {*self._links, *more}:
            raise_refusal(self._link(endpoint).exchange(command(b"SCRIPT", b"LOAD", WRITE), 1))


def _outcome(parcel: Parcel, reply: Any) -> tuple[int, RefusedError | None]:
    if isinstance(reply, hiredis.ReplyError):
        return 0, RefusedError(str(reply))
    return (reply if isinstance(reply, int) else parcel.frame.rows), None
