"""Connections to the online store, and the one place where the driver's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from featurestore.errors import OnlineStoreError, SettingsError
from featurestore.online.embedded import ensure_running
from featurestore.settings import Settings, redacted

__all__ = ["connect", "translated"]

_SCHEMES = ("redis://", "rediss://", "unix://")


def connect(settings: Settings) -> redis.Redis:
    """Return a client of the online store; starts the embedded server where that is the setting."""
    url, timeout = settings.online.url, settings.online.timeout_ms / 1000
    options: dict[str, Any] = {"socket_timeout": timeout, "retry": Retry(NoBackoff(), 1)}
    if url == "embedded":
        return redis.Redis(unix_socket_path=str(ensure_running(settings.state / "online")), **options)
    if not url.startswith(_SCHEMES):
        known = ", ".join(["embedded", *(scheme + "…" for scheme in _SCHEMES)])
        raise SettingsError(f"online.url {redacted(url)!r} is not supported; known: {known}")
    if not url.startswith("unix://"):
        options["socket_connect_timeout"] = timeout
    try:
        return redis.Redis.from_url(url, **options)
    except ValueError as reason:
        raise SettingsError(f"online.url {redacted(url)!r}: {reason}") from None


@contextmanager
def translated(settings: Settings) -> Iterator[None]:
    """Let the driver's errors leave as OnlineStoreError that names the store and what to do."""
    where = redacted(settings.online.url)
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as reason:
        raise OnlineStoreError(
            f"the online store {where} does not answer ({reason}); is it running, and is online.url right?"
        ) from reason
    except redis.OutOfMemoryError as reason:
        raise OnlineStoreError(
            f"the online store {where} is out of memory ({reason}); raise its maxmemory, then run again"
        ) from reason
    except redis.ResponseError as reason:
        raise OnlineStoreError(f"the online store {where} refused: {reason}") from reason
    except redis.RedisError as reason:
        raise OnlineStoreError(f"the online store {where} failed: {reason}") from reason
