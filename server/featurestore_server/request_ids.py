"""Request ids: the client's `X-Request-Id` if it can stand in a log as it is, or a new one. Answers and log lines have it."""

from __future__ import annotations

import itertools
import re
import secrets
from contextvars import ContextVar

__all__ = ["HEADER", "current_id", "request_id", "set_id"]

HEADER = b"x-request-id"
_GIVEN = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_PROCESS = secrets.token_hex(6).encode()
_numbers = itertools.count(1)
_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def request_id(given: bytes | None) -> bytes:
    """Return the id of a request whose header is given."""
    if given is not None and _GIVEN.fullmatch(given):
        return given
    return b"%b-%x" % (_PROCESS, next(_numbers))


def set_id(identifier: bytes) -> None:
    """Remember which request the running task answers."""
    _current.set(identifier.decode("ascii"))


def current_id() -> str | None:
    """Return the id of the request that the running task answers, if it answers one."""
    return _current.get()
