"""How a request becomes an answer: what is sent, what is tried again and when, and which error a refusal is. It does no I/O.

An exchange is a generator: it gives a `Request` to be sent, for which it takes an `Answer` or a `Failure`, or a number of seconds
to wait; it ends with its result. Whoever drives it, blocking or not, decides nothing.

Tried again are requests that met a closed door (429 and 503 with Retry-After) or a connection that could not be made or broke.
All requests may be sent twice: lookups, training sets and reads change nothing, and what changes something carries an
`Idempotency-Key`. One that took too long is not tried again, since it would only add to the load.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeVar

import orjson

from featurestore.client.bodies import ARROW, JSON
from featurestore.client.spool import Spool
from featurestore.errors import FeatureStoreError, ServiceError, restored

__all__ = ["Answer", "Exchange", "Failure", "Request", "Retries", "Step", "exchange", "is_expected"]

_T = TypeVar("_T")
_GOOD = (200, 202)
_LEAST_REFUSAL = 400
_CLOSED_DOOR = (429, 503)
_TOO_SLOW = b'"/problems/too-slow"'


@dataclass(frozen=True)
class Request:
    """A request. `is_long`: it may take as long as a training set does. `target`: the file that a good answer becomes."""

    method: str
    path: str
    parameters: list[tuple[str, str]] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Spool | None = None
    is_long: bool = False
    target: Path | None = None

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers, and those that the body needs."""
        sized = {} if self.body is None else {"Content-Length": str(self.body.size)}
        return {"Accept": JSON if self.body is None else ARROW, **self.headers, **sized}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    content: Spool


@dataclass(frozen=True)
class Failure:
    """Why nothing came back, and whether the same request may succeed soon."""

    message: str
    is_retryable: bool


Step = Request | float
Exchange = Generator[Step, "Answer | Failure | None", _T]


@dataclass(frozen=True)
class Retries:
    """How often to try again, and how long to wait: a random part of a span that doubles, above what the service asks for.

    A service that asks for more than `longest_seconds` is not waited for. `chance` gives numbers in [0, 1).
    """

    count: int = 3
    first_seconds: float = 0.1
    longest_seconds: float = 20.0
    chance: Callable[[], float] = random.random

    def pause(self, got: Answer | Failure | None, attempt: int) -> float | None:
        """Return how many seconds to wait after an attempt, the first being 0, before the next one; none if there is none."""
        wanted = _wanted_pause(got)
        if wanted is None or attempt >= self.count or wanted > self.longest_seconds:
            return None
        return wanted + self.chance() * min(self.longest_seconds, self.first_seconds * 2.0**attempt)


def _wanted_pause(got: Answer | Failure | None) -> float | None:
    """Return the least pause before the next attempt; none if it would be no use."""
    if isinstance(got, Answer):
        seconds = got.headers.get("retry-after", "")
        is_closed = got.status in _CLOSED_DOOR and seconds.isdecimal() and _TOO_SLOW not in got.content.content()
        return float(seconds) if is_closed else None
    return 0.0 if got is not None and got.is_retryable else None


def exchange(request: Request, retries: Retries) -> Exchange[Answer]:
    """Send a request, again where that is of use, and return the answer to it.

    Raises:
        FeatureStoreError: the service refuses; of the class that the library would have raised.
        ServiceError: it cannot be reached, or refuses for reasons of its own.

    """
    for attempt in count():
        got = yield request
        pause = retries.pause(got, attempt)
        if pause is None:
            break
        yield pause
    if not isinstance(got, Answer):
        message = got.message if got is not None else "nothing was sent"
        raise ServiceError(f"{request.method} {request.path}: {message}")
    if got.status >= _LEAST_REFUSAL:
        raise _refusal(request, got)
    if got.status not in _GOOD or not is_expected(request, got.headers):
        raise _foreign(request, got)
    return got


def is_expected(request: Request, headers: Mapping[str, str]) -> bool:
    """Whether an answer is of the type that a request asks for."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == request.all_headers["Accept"]


def _foreign(request: Request, answer: Answer) -> ServiceError:
    shown = f"{answer.status} {answer.headers.get('content-type', '')}".rstrip()
    return ServiceError(
        f"{request.method} {request.path} was answered with {shown}, and not by a feature store", status=answer.status
    )


def _refusal(request: Request, answer: Answer) -> FeatureStoreError:
    """Return the error that a problem stands for (RFC 9457)."""
    try:
        problem = orjson.loads(answer.content.content())
        code, detail = problem["type"].removeprefix("/problems/"), problem["detail"]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return _foreign(request, answer)
    error = restored(code, detail, problem)
    return error if error is not None else ServiceError(detail, status=answer.status, problem=code)
