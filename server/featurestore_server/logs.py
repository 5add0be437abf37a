"""The log of the service: a JSON object on each line of stderr, with the id of the request that it is about.

{"time", "level", "logger", "message"}    of every line
"request_id"                              of lines about a request
"method", "path", "status", "seconds"     of the line of a request: with a status of 400 or more, or of all
"exception"                               the traceback of what was not expected
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from collections.abc import Mapping
from typing import Any

import orjson

from featurestore_server.metrics import Metrics, Series
from featurestore_server.request_ids import current_id
from featurestore_server.tracing import Spans

__all__ = ["RequestLog", "configure"]

REQUESTS = logging.getLogger("featurestore_server.requests")
_FAILED = 400


class _Lines(logging.Formatter):
    """Records as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (identifier := getattr(record, "request_id", None) or current_id()) is not None:
            line["request_id"] = identifier
        line |= getattr(record, "request", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def configure(*, level: int) -> None:
    """Write the log of this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    REQUESTS.setLevel(logging.INFO)


class RequestLog:
    """Counts requests, and logs those that fail, or all of them; `spans` makes a span of each."""

    def __init__(self, metrics: Metrics, *, is_complete: bool = False, spans: Spans | None = None) -> None:
        self.metrics, self.is_complete, self.spans = metrics, is_complete, spans

    def end(
        self,
        series: Series,
        scope: Mapping[str, Any],
        status: int,
        seconds: float,
        identifier: bytes,
        given: Mapping[bytes, bytes],
    ) -> None:
        """Count an answer to a request with the headers `given`, and log it if it is of those."""
        series.count(status, seconds)
        if self.spans is not None:
            self.spans.add(series, scope["method"], status, seconds, given.get(b"traceparent", b""))
        if self.is_complete or status >= _FAILED:
            method, path = scope["method"], scope["path"]
            request = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
            extra = {"request": request, "request_id": identifier.decode("ascii")}
            REQUESTS.info("%s %s %d", method, path, status, extra=extra)
