"""The one place where the errors of servers and drivers become ours: what is wrong with which store, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from featurestore.errors import OnlineStoreError
from featurestore.settings import Settings, redacted

__all__ = ["ours", "translated"]

_REFUSALS = (
    # how the answer of the server begins, what redis-py makes of it, what that means, what to do
    ("OOM", redis.OutOfMemoryError, "is out of memory", "raise its maxmemory, then run again"),
    ("READONLY", redis.ReadOnlyError, "is a read-only replica", "let online.url name the primary, or its Sentinels"),
    ("NOPERM", redis.exceptions.NoPermissionError, "does not let this user do it", "docs/online.md lists the commands to permit"),
    ("NOAUTH", None, "wants a password", "put user and password into online.url"),
    ("WRONGPASS", redis.AuthenticationError, "does not accept user and password", "correct online.url"),
    ("FOREIGN", None, "holds a key of ours that is no row", "another program wrote it: remove it (DEL), then run again"),
    ("WRONGTYPE", None, "holds a key of ours that is no row", "another program wrote it: remove it (DEL), then run again"),
    ("MISCONF", None, "cannot save to its disk, so it takes no writes", "repair that, then run again"),
    ("NOREPLICAS", None, "has too few replicas to take writes", "repair that, then run again"),
)
_PASSING = ("LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "MOVED", "ASK", "BUSY")


@contextmanager
def translated(settings: Settings) -> Iterator[None]:
    """Let the driver's errors leave as OnlineStoreError that names the store and what to do."""
    try:
        yield
    except redis.RedisError as reason:
        raise ours(settings, reason) from reason


def ours(settings: Settings, reason: redis.RedisError) -> OnlineStoreError:
    """Return the driver's error as one that names the store and what to do."""
    store, text = f"the online store {redacted(settings.online.url)}", str(reason)
    for begin, kind, meaning, advice in _REFUSALS:
        if text.startswith(begin) or (kind is not None and isinstance(reason, kind)):
            return OnlineStoreError(f"{store} {meaning} ({text}); {advice}")
    if any(word in text for word in ("CERTIFICATE", "certificate", "SSL", "TLS", "_ssl.c")):
        return OnlineStoreError(f"{store} and this client do not agree on TLS ({text}); see the ssl_ options in docs/online.md")
    if isinstance(reason, redis.ConnectionError | redis.TimeoutError) or text.startswith(_PASSING):
        advice = "is it running, and is online.url right? It may come up or fail over: try again"
        if settings.online.url.startswith("rediss"):
            advice = f"do both sides agree on TLS (ssl_ options in docs/online.md)? {advice}"
        return OnlineStoreError(f"{store} does not answer ({text}); {advice}", is_retryable=True)
    return OnlineStoreError(f"{store} refused: {text}")
