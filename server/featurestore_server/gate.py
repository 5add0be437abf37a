"""The gate before every route but the hot one, which does the same by hand: keys, limits, request ids, headers of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurestore.errors import FeatureStoreError
from featurestore_server.access import Access, set_key
from featurestore_server.limits import Limits, exceeded, late
from featurestore_server.logs import RequestLog
from featurestore_server.metrics import now
from featurestore_server.problems import TOO_LATE, ProblemError, refusal
from featurestore_server.request_ids import HEADER, request_id, set_id

__all__ = ["Gate", "headers_of", "safe_headers"]

Headers = list[tuple[bytes, bytes]]

_SAFE: Headers = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_TLS_ONLY = (b"strict-transport-security", b"max-age=31536000")
_PAGES = frozenset({"/docs", "/docs/oauth2-redirect", "/redoc"})
_FOR_PAGES: Headers = [(b"x-frame-options", b"DENY"), (b"referrer-policy", b"no-referrer")]


def safe_headers(scope: Scope) -> Headers:
    """Return the headers that keep browsers and caches from doing with an answer what they must not."""
    pages = _FOR_PAGES if scope["path"] in _PAGES else []
    return _SAFE + pages + ([_TLS_ONLY] if scope.get("scheme") == "https" else [])


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers by name: the first of each, of Accept all in one."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name == b"accept" and name in found:
            found[name] += b", " + value
        else:
            found.setdefault(name, value)
    return found


class Gate:
    """Lets requests through to an application. `access` gives the keys as they are known, `routes` are the application's."""

    def __init__(
        self, app: ASGIApp, access: Callable[[], Awaitable[Access]], limits: Limits, log: RequestLog, routes: Sequence[Route]
    ) -> None:
        self._app, self._access, self._limits, self._log, self._routes = app, access, limits, log, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = headers_of(scope)
        passage = _Passage(scope, request_id(given.get(HEADER)), receive, send)
        set_id(passage.id)
        begun, metrics = now(), self._log.metrics
        metrics.in_flight += 1
        try:
            await self._let(passage, given)
        finally:
            metrics.in_flight -= 1
            passage.end()
            if passage.status:
                series = metrics.series(getattr(scope.get("route") or self._route(scope), "path", "other"))
                self._log.end(series, scope, passage.status, now() - begun, passage.id, given)

    def _route(self, scope: Scope) -> Route | None:
        """Return the route of a request that was refused before the application looked for it."""
        matches = [(route.matches(scope)[0].value, route) for route in self._routes]
        most, route = max(matches, key=lambda each: each[0])
        return route if most else None

    async def _let(self, passage: _Passage, given: dict[bytes, bytes]) -> None:
        scope = passage.scope
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            if path not in _PUBLIC:
                set_key((await self._access()).admit(given.get(b"authorization"), path))
            passage.bound(*self._limits.bytes_of(path), given.get(b"content-length"))
        except (ProblemError, FeatureStoreError) as error:
            await refusal(error, scope["method"], path)(scope, passage.receive, passage.send)
            return
        passage.begin(*self._limits.seconds_of(path))
        await self._app(scope, passage.receive, passage.send)


_PUBLIC = frozenset({"/healthz", "/readyz"})  # whoever probes has no key, and waits for no registry


class _Passage:
    """One request on its way through."""

    def __init__(self, scope: Scope, identifier: bytes, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.id, self.status = identifier, 0
        self._setting, self._most, self._taken = "", 0, 0
        self._timer: asyncio.TimerHandle | None = None

    def bound(self, setting: str, most: int, content_length: bytes | None) -> None:
        """Set how many bytes the body may have; a ProblemError if it says itself that it has more."""
        self._setting, self._most = setting, most
        if content_length is not None and content_length.isdigit() and int(content_length) > most:
            raise exceeded(setting, most, f"a body of {int(content_length)} bytes")

    def begin(self, setting: str, seconds: float) -> None:
        """Set how long it may take until the answer begins."""
        task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            self.scope[TOO_LATE] = late(setting, seconds)
            task.cancel()

        self._timer = asyncio.get_running_loop().call_later(seconds, end)

    def end(self) -> None:
        """Let the clock be."""
        if self._timer is not None:
            self._timer.cancel()

    async def receive(self) -> Message:
        """Receive, no more than the limit."""
        message = await self._receive()
        self._taken += len(message.get("body", b""))
        if self._most and self._taken > self._most:
            raise exceeded(self._setting, self._most, "the body is larger")
        return message

    async def send(self, message: Message) -> None:
        """Send; an answer begins with the headers that each has."""
        if message["type"] == "http.response.start":
            self.end()
            self.status = message["status"]
            headers = [*message.get("headers", ()), *safe_headers(self.scope), (HEADER, self.id)]
            message = {**message, "headers": headers}
        await self._send(message)
