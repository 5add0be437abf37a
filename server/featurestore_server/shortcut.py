"""The short way of a lookup: from the parser of HTTP to the online store and back, with no task, no ASGI and no waiting.

Uvicorn's protocol spends more on a request than a lookup does. This one answers the hot route itself where a request is as most
are: HTTP/1.1, kept alive, a small body with its length, everything in it as it should be, and the online store's connection open.
Anything else goes the long way through the application, from the same bytes, which also words every refusal; so what is answered
does not depend on the way.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from featurestore_server.contract import PATH, PROBLEM, PROBLEMS
from featurestore_server.gate import headers_of, safe_headers
from featurestore_server.metrics import now
from featurestore_server.online import OnlineFeatures, Short
from featurestore_server.request_ids import HEADER, request_id

__all__ = ["MOST_HEAD_BYTES", "protocol_of"]

MOST_HEAD_BYTES = 65_536
_URL = PATH.encode()
_MOST_BODY_BYTES = 65_536
_PATIENCE_SECONDS = 0.05  # for a body that comes apart from its head
_SCOPE: dict[str, Any] = {"method": "POST", "path": PATH}


def protocol_of(lookups: OnlineFeatures, *, is_short: bool = True) -> type[HttpToolsProtocol]:
    """Return the protocol of a service's connections; all go the long way unless `is_short`."""
    return type("Protocol", (_Protocol,), {"lookups": lookups, "is_short": is_short})


class _Unheard:
    """An event that nobody waits for."""

    def set(self) -> None:
        """Do nothing."""


class _Turn:
    """A lookup that goes the short way: what uvicorn's protocol looks at in place of its own cycle, and the request."""

    __slots__ = ("begun", "body", "disconnected", "given", "headers", "id", "keep_alive", "message_event", "response_complete")

    def __init__(self, headers: list[tuple[bytes, bytes]], given: dict[bytes, bytes]) -> None:
        self.disconnected = self.response_complete = False
        self.keep_alive, self.message_event = True, _UNHEARD
        self.headers, self.given, self.body = headers, given, b""
        self.begun, self.id = now(), request_id(given.get(HEADER))


_UNHEARD = _Unheard()


class _Protocol(HttpToolsProtocol):
    """One connection."""

    lookups: OnlineFeatures
    is_short: bool

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._turn: _Turn | None = None  # one whose body is not there yet
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head, self._head_bytes = False, 0
        self._defaults: Any = None
        self._fixed = b""

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        """Parse; what is left open is watched."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._turn is not None and self._timer is None:
            self._timer = self.loop.call_later(_PATIENCE_SECONDS, self._give_up)
        if self._is_in_head and self._head_bytes > MOST_HEAD_BYTES:
            self._refuse("too-large", f"the head of the request is larger than {MOST_HEAD_BYTES} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was under way."""
        self._end_timer()
        self._turn = None
        super().connection_lost(exc)

    # What the parser calls

    def on_message_begin(self) -> None:
        """Begin; the scope is made only if somebody wants it."""
        self._is_in_head = True
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Choose the way."""
        self._is_in_head = False
        if self.url == _URL and self._is_usual():
            given = headers_of({"headers": self.headers})
            length = given.get(b"content-length", b"")
            if length.isdigit() and int(length) <= _MOST_BODY_BYTES:
                self._turn = self.cycle = _Turn(self.headers, given)  # type: ignore[assignment]  # all that is looked at
                return
        url, headers, is_expecting = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, is_expecting
        self.headers.extend(headers)
        super().on_headers_complete()

    def _is_usual(self) -> bool:
        parser, cycle = self.parser, self.cycle
        return (
            self.is_short
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and not self.expect_100_continue
            and not self.flow.write_paused
            and (cycle is None or cycle.response_complete)
        )

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if self._turn is None:
            super().on_body(body)
        else:
            self._turn.body += body

    def on_message_complete(self) -> None:
        """Look up what a request asks for, now that it is whole."""
        self._head_bytes = 0  # of what comes with it, the next head may be a small part
        turn = self._turn
        if turn is None:
            super().on_message_complete()
            return
        self._turn = None
        if self._timer is not None:
            self._end_timer()
        metrics = self.lookups.log.metrics
        metrics.in_flight += 1
        if not self.lookups.begin(turn.given, turn.body, partial(self._end, turn)):
            metrics.in_flight -= 1
            self._go_on(turn, is_whole=True)

    # The end of a turn

    def _end(self, turn: _Turn, short: Short | None) -> None:
        log = self.lookups.log
        log.metrics.in_flight -= 1
        if turn.disconnected or self.transport.is_closing():
            turn.response_complete = True
            return
        if short is None:
            self._go_on(turn, is_whole=True)
            return
        self.transport.write(self._head(turn, short) + short.content)
        turn.response_complete = True
        log.end(short.series, _SCOPE, 200, now() - turn.begun, turn.id, turn.given)
        if not turn.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _head(self, turn: _Turn, short: Short) -> bytes:
        defaults = self.server_state.default_headers  # another list each second, for it has the date
        if self._defaults is not defaults:
            headers = [*defaults, *safe_headers({"path": PATH, "scheme": self.scheme})]
            self._defaults, self._fixed = defaults, b"HTTP/1.1 200 OK\r\n" + b"".join([b"%b: %b\r\n" % each for each in headers])
        closing = b"" if turn.keep_alive else b"connection: close\r\n"
        return b"%bcontent-type: %b\r\n%b: %b\r\n%bcontent-length: %d\r\n\r\n" % (
            self._fixed, short.type.encode(), HEADER, turn.id, closing, len(short.content)
        )  # fmt: skip

    # The long way

    def _give_up(self) -> None:
        """Go the long way with a body that is not whole yet, which has its limits of time."""
        self._timer = None
        turn, self._turn = self._turn, None
        if turn is not None:
            self._go_on(turn, is_whole=False)

    def _go_on(self, turn: _Turn, *, is_whole: bool) -> None:
        """Hand a request to the application."""
        turn.response_complete = True
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": turn.headers,
            "state": self.app_state.copy(),
            "method": "POST",
            "path": self.root_path + PATH,
            "raw_path": self.root_path.encode() + _URL,
            "query_string": b"",
        }
        cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=turn.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body += turn.body
        cycle.more_body = not is_whole
        if is_whole:
            cycle.message_event.set()
        if self.cycle is turn:  # type: ignore[comparison-overlap]
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)

    # Refusals of what is no HTTP

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser does not understand, as a problem."""
        self._refuse("malformed", msg)

    def _refuse(self, code: str, detail: str) -> None:
        """Refuse, count and log what never became a request; the log has of it what was read."""
        if self.transport.is_closing():  # it is refused already
            return
        kind = PROBLEMS[code]
        problem = {"type": f"/problems/{code}", "title": kind.title, "status": kind.status, "detail": detail}
        content = orjson.dumps(problem)
        given = headers_of({"headers": self.headers if self._is_in_head else []})
        scope, identifier = self._begun(), request_id(given.get(HEADER))
        defaults = [*self.server_state.default_headers, *safe_headers(scope), (HEADER, identifier)]
        head = b"HTTP/1.1 %d \r\n%bcontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        fixed = b"".join([b"%b: %b\r\n" % each for each in defaults])
        self.transport.write(head % (kind.status, fixed, PROBLEM.encode(), len(content)) + content)
        self.transport.close()
        log = self.lookups.log
        log.end(log.metrics.series("other"), scope, kind.status, 0.0, identifier, given)

    def _begun(self) -> dict[str, Any]:
        """Return the scope of a request whose head was read in part, or not at all."""
        method = path = "-"
        if self._is_in_head and self.url:
            method, path = self.parser.get_method().decode(), self.url.partition(b"?")[0].decode("latin-1")
        return {"method": method, "path": path, "scheme": self.scheme}

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
