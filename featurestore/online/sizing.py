"""What online rows cost in memory: sampled from servers that run, computed for rows that are planned.

`memory_of` is the arithmetic of Redis 7 with jemalloc, which the tests hold against a real server; Valkey 8 and newer need less.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.definitions import Field
from featurestore.online.failures import translated
from featurestore.online.rows import codec_of
from featurestore.online.store import OnlineStore

__all__ = ["Usage", "memory_of", "row_bytes", "usages"]

_LOOKED_AT = 200_000
_PAGE = 2_000
_WEIGHED = 64
_TABLE_BYTES = 12  # a slot of the hash table: 8 bytes where it is full, 16 after it has doubled
_KEY_PREFIX = 13
_EMBEDDED_BYTES = 44  # a value up to this length is in one piece with its head
_CLASSES = [8, 16, 32, 48, 64, 80, 96, 112, 128] + [(4 + step) << power for power in range(5, 40) for step in range(1, 5)]


@dataclass(frozen=True)
class Usage:
    """The rows of one version online: keys (deletions of the last day included), the mean bytes of a row, and the memory of all.

    `is_exact` says that all keys were counted; else the counts are projected from the first 200,000 keys of each server.
    """

    keys: int
    row_bytes: float
    memory_bytes: int
    is_exact: bool


def usages(store: OnlineStore, uids: Collection[str]) -> dict[str, Usage]:
    """Return what versions take, by uid; OnlineStoreError if the store does not answer."""
    counted, exact = dict.fromkeys(uids, 0.0), True
    weighed: dict[str, list[tuple[int, int]]] = {uid: [] for uid in uids}
    with translated(store.settings):
        for endpoint in store.topology.layout().endpoints:
            client = store.topology.client(endpoint)
            keys, seen, is_whole = _looked_at(client, uids)
            exact = exact and is_whole
            share = 1.0 if is_whole else seen / max(seen, int(client.dbsize()))
            for uid, mine in keys.items():
                counted[uid] += len(mine) / share
                weighed[uid] += _weighed(client, mine[:_WEIGHED])
    return {uid: _usage(counted[uid], weighed[uid], is_exact=exact) for uid in uids}


def _looked_at(client: Any, uids: Collection[str]) -> tuple[dict[str, list[bytes]], int, bool]:
    """Return the keys of each version among the first of a server, how many keys these are, and whether they are all."""
    found: dict[str, list[bytes]] = {uid: [] for uid in uids}
    cursor, seen = 0, 0
    while True:
        cursor, keys = client.scan(cursor, count=_PAGE)
        seen += len(keys)
        for key in keys:
            if key[8:9] == b"{" and (mine := found.get(key[:8].decode("latin-1"))) is not None:
                mine.append(key)
        if cursor == 0 or seen >= _LOOKED_AT:
            return found, seen, cursor == 0


def _weighed(client: Any, keys: Sequence[bytes]) -> list[tuple[int, int]]:
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.strlen(key)
        pipeline.memory_usage(key)
    answers = pipeline.execute()
    return [(length, memory) for length, memory in zip(answers[::2], answers[1::2], strict=True) if memory is not None]


def _usage(keys: float, weighed: Sequence[tuple[int, int]], *, is_exact: bool) -> Usage:
    rows, memory = (sum(column) / len(weighed) for column in zip(*weighed, strict=True)) if weighed else (0.0, 0.0)
    return Usage(round(keys), round(rows, 1), round(keys * (memory + _TABLE_BYTES)) if weighed else 0, is_exact)


def row_bytes(fields: Sequence[Field], tail_bytes: float) -> float:
    """Return the mean length of a row whose values of variable width take so many bytes together."""
    return codec_of(tuple(fields)).width + tail_bytes


def memory_of(key_bytes: float, row: float) -> float:
    """Return the memory of one key, its key bytes and row of these lengths: key, value and entry, each in its size class."""
    name = _KEY_PREFIX + key_bytes
    value = _class(row + 20) if row <= _EMBEDDED_BYTES else 16 + _class(row + _string_head(row))
    return _class(name + _string_head(name)) + value + 32 + _TABLE_BYTES


def _string_head(length: float) -> int:
    """Return the bytes that a string has beside its content."""
    return 2 if length < 2**5 else 4 if length < 2**8 else 6


def _class(size: float) -> int:
    """Return the size class that jemalloc serves a size from."""
    return _CLASSES[bisect_left(_CLASSES, size)]
