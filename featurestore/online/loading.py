"""Loading a version: the writes of one run, over several connections, in bounded memory, without slowing down whoever reads.

A run first raises the version's fence on every node to its own number, and ends the connections that earlier runs have left open
there: what a killed run still had in a socket is lost with it. A connection of this run shows its name to the server before it
reads the fence, so a run that was believed dead and goes on is either seen and ended, or sees the fence and gives up. That is why
the first load of a version, which finds nothing stored, may use plain MSET: no older write can come after it. Every other load
leaves the decision to the script (`scripts.py`).

At the end the run checks that every node is still the process that it began with: one that restarted or failed over in between may
have lost what it had acknowledged. Only then are the markers set, so a run that fails is repeated by the next.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from featurestore.errors import OnlineStoreError
from featurestore.online.delivery import Delivery, Parcel, parcels
from featurestore.online.frames import command
from featurestore.online.keys import KeyBlock, fence, marker, pattern
from featurestore.online.links import Link, raise_refusal
from featurestore.online.packed import PackedRows
from featurestore.online.rows import deleted_row
from featurestore.online.scripts import CLAIM, CLAIM_SHA, OLD, OLD_SHA
from featurestore.online.throttle import Throttle
from featurestore.online.topology import Endpoint, Topology

__all__ = ["DELETED_FOR_MS", "Load", "loaded_run", "number_at", "scripted"]

DELETED_FOR_MS = 24 * 3600 * 1000
_CONNECTIONS = 2
_SHIPMENT_PARCELS = 32
_PATIENCE_TIMEOUTS = 10
_SCAN = 2_000
_LOOKED_AT = 250  # keys by one command: some 0.2 ms of a server, in which it answers nobody else


def loaded_run(topology: Topology, uid: str) -> int | None:
    """Return the run whose load every node holds in full; none if one has no marker, as on a server that lost its data."""
    layout = topology.layout()
    found = [number_at(topology.client(each), marker(uid, layout.first_slot(each))) for each in layout.endpoints]
    runs = {run for run in found if run is not None}
    return runs.pop() if len(runs) == 1 and None not in found else None


def number_at(client: redis.Redis, key: str) -> int | None:
    """Return the number that stands under a key of ours, none where nothing does."""
    value: Any = client.get(key)
    if value is None:
        return None
    if not isinstance(value, bytes) or not value.removeprefix(b"-").isdigit():
        raise OnlineStoreError(f"the online store's key {key!r} is not ours: remove it, then run again")
    return int(value)


@dataclass(frozen=True)
class _Node:
    """One primary as the run found it: which process it is, and whether it held nothing of the version."""

    endpoint: Endpoint
    process: str
    is_fresh: bool


class Load:
    """The writes of one run of one version. The caller holds the version's lease, and closes it.

    `written` and `deleted` count the rows that were acknowledged so far and not older than what was stored.
    """

    def __init__(self, topology: Topology, uid: str, run: int, max_rate: float | None = None, *, is_pushed: bool = False) -> None:
        self._topology, self._uid, self._run = topology, uid, run
        # Rows that were pushed are compared by themselves, and pushes come in between.
        self._order = None if is_pushed else run
        self._lock = threading.Lock()
        self.written = self.deleted = 0
        self._nodes = [self._claim(each) for each in topology.layout().endpoints]
        self._is_plain = not is_pushed and not topology.is_cluster and all(node.is_fresh for node in self._nodes)
        self._throttle = Throttle([topology.client(node.endpoint) for node in self._nodes], max_rate)
        self._failure: BaseException | None = None
        self._queue: queue.Queue[tuple[list[Parcel], bool] | None] = queue.Queue(2 * _CONNECTIONS)
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(_CONNECTIONS)]
        for worker in self._workers:
            worker.start()

    # The claim

    def _claim(self, endpoint: Endpoint) -> _Node:
        client = self._topology.client(endpoint)
        first_slot = self._topology.layout().first_slot(endpoint)
        loaded = number_at(client, marker(self._uid, first_slot))
        before = self._raise_fence(client, fence(self._uid, first_slot))
        newest = max(before or 0, loaded or 0)
        if newest > self._run:
            raise OnlineStoreError(f"run {newest} has begun to write to the online store; this is run {self._run}: run again")
        if before is None or before != loaded:
            self._end_earlier(client)
        is_fresh = before is None and loaded is None and next(scanned(client, self._uid), None) is None
        return _Node(endpoint, _process(client), is_fresh)

    def _raise_fence(self, client: Any, key: str) -> int | None:
        """Raise the fence in one step, since a run that was believed dead could lower it in between; returns the one before."""
        number_at(client, key)  # refuses a foreign value
        before = scripted(client, CLAIM, CLAIM_SHA, 1, key, self._run)
        return None if before is None else int(before)

    def _end_earlier(self, client: redis.Redis) -> None:
        """End the connections of earlier runs, which were killed or have lost their lease."""
        mine = _name(self._uid, "")
        for each in client.client_list():
            if str(each.get("name", "")).startswith(mine):
                client.client_kill_filter(_id=each["id"])

    # Writing

    def write(self, block: KeyBlock, rows: PackedRows, lives: npt.NDArray[np.int64] | int) -> None:
        """Send rows and the milliseconds that they live (zero: forever) on their way; waits while too many are."""
        is_plain = self._is_plain and isinstance(lives, int)
        is_cluster, frame_rows = self._topology.is_cluster, self._throttle.frame_rows
        sent = parcels(block, rows, self._order, lives, is_cluster=is_cluster, is_plain=is_plain, frame_rows=frame_rows)
        self._ship(sent, is_deletion=False)

    def delete(self, block: KeyBlock) -> None:
        """Send deletions on their way."""
        is_cluster, frame_rows = self._topology.is_cluster, self._throttle.frame_rows
        sent = parcels(block, deleted_row(self._run), self._run, DELETED_FOR_MS, is_cluster=is_cluster, frame_rows=frame_rows)
        self._ship(sent, is_deletion=True)

    def sweep(self) -> None:
        """Delete every row that is older than the run, which has written all that should be there."""
        self.flush()
        for node in self._nodes:
            if node.is_fresh:  # what is there, this run has written
                continue
            for keys in self._old_keys(self._topology.client(node.endpoint)):
                for length in {len(key) for key in keys}:
                    same = [key for key in keys if len(key) == length]
                    matrix = np.frombuffer(b"".join(same), np.uint8).reshape(-1, length)
                    self.delete(KeyBlock(self._uid, np.arange(len(same)), matrix))

    def _old_keys(self, client: Any) -> Iterator[Sequence[bytes]]:
        """Give the keys of the version on one node whose rows are older than the run."""
        cursor, order = b"0", self._run.to_bytes(8, "little", signed=True)
        while True:
            with self._throttle.turn(0):
                cursor, keys = scripted(client, OLD, OLD_SHA, 0, cursor, pattern(self._uid), _LOOKED_AT, order)
            if keys:
                yield keys
            if cursor == b"0":
                return

    def _ship(self, sent: Iterator[Parcel], *, is_deletion: bool) -> None:
        while shipment := [parcel for _, parcel in zip(range(_SHIPMENT_PARCELS), sent, strict=False)]:
            self._raise_failure()
            self._queue.put((shipment, is_deletion))

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged."""
        self._queue.join()
        self._raise_failure()

    def finish(self) -> None:
        """Wait for all acknowledgements and record on every node that the run has loaded all it had to.

        Raises:
            OnlineStoreError: a node is not the one that the run began with; what it had acknowledged may be lost.

        """
        self.flush()
        layout = self._topology.rediscover(self._topology.layout()) if self._topology.can_move else self._topology.layout()
        found = {endpoint: _process(self._topology.client(endpoint)) for endpoint in layout.endpoints}
        if found != {node.endpoint: node.process for node in self._nodes}:
            raise OnlineStoreError(
                "a server of the online store restarted, failed over or was moved during the load, so rows that it had taken may "
                "be lost; run again",
                is_retryable=True,
            )
        for endpoint in layout.endpoints:
            self._topology.client(endpoint).set(marker(self._uid, layout.first_slot(endpoint)), self._run)

    def close(self) -> None:
        """End the connections; what is not acknowledged yet may or may not be written."""
        if self._failure is None:
            self._failure = RuntimeError("the load was closed")
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            worker.join()
        self._throttle.close()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # The workers

    def _work(self) -> None:
        patience = _PATIENCE_TIMEOUTS * self._topology.access.timeout
        delivery = _Fenced(self._topology, patience, self._uid, self._run)
        try:
            while (taken := self._queue.get()) is not None:
                try:
                    if self._failure is None:
                        self._deliver(delivery, *taken)
                except BaseException as reason:  # noqa: BLE001 (the thread that writes raises it)
                    self._failure = self._failure or reason
                finally:
                    self._queue.task_done()
        finally:
            self._queue.task_done()
            delivery.close()

    def _deliver(self, delivery: Delivery, shipment: list[Parcel], is_deletion: bool) -> None:  # noqa: FBT001 (from the queue)
        while shipment:
            with self._throttle.turn(shipment[0].frame.rows) as is_gentle:
                part = shipment[:1] if is_gentle else shipment
                shipment = shipment[len(part) :]
                count = delivery.deliver(part)
            with self._lock:
                if is_deletion:
                    self.deleted += count
                else:
                    self.written += count


class _Fenced(Delivery):
    """Delivers for a run as long as no newer one has begun."""

    def __init__(self, topology: Topology, patience: float, uid: str, run: int) -> None:
        super().__init__(topology, patience, _name(uid, str(run)))
        self._uid, self._run = uid, run

    def greet(self, link: Link) -> None:
        """Check the fence, which whoever takes over raises before it looks for connections to end."""
        layout = self._topology.layout()
        if link.endpoint not in layout.endpoints:
            return
        replies = link.exchange(command(b"GET", fence(self._uid, layout.first_slot(link.endpoint)).encode()), 1)
        raise_refusal(replies)
        if replies[0] is not None and int(replies[0]) > self._run:
            raise OnlineStoreError(f"run {int(replies[0])} has taken over from run {self._run}, which ends here")


def _name(uid: str, run: str) -> str:
    return f"featurestore:{uid}:{run}"


def _process(client: redis.Redis) -> str:
    return str(client.info("server")["run_id"])


def scripted(client: Any, script: bytes, sha: bytes, *arguments: Any) -> Any:
    """Run a script, which the server may not know yet."""
    try:
        return client.execute_command("EVALSHA", sha, *arguments)
    except redis.exceptions.NoScriptError:
        client.script_load(script)
        return client.execute_command("EVALSHA", sha, *arguments)


def scanned(client: Any, uid: str) -> Iterator[list[bytes]]:
    """Give the keys of a version's rows on one node, some at a time."""
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, match=pattern(uid), count=_SCAN)
        if keys:
            yield keys
        if cursor == 0:
            return
