"""Spans of requests, by OpenTelemetry: only where its own variables name a collector, else nothing of it is imported.

`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is the collector (OTLP over HTTP). `OTEL_SERVICE_NAME`,
`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS` and the rest mean what they mean to the SDK; `OTEL_SDK_DISABLED=true` and
`OTEL_TRACES_EXPORTER=none` turn it off. A span is made once its answer is sent, in the trace that the request's `traceparent`
names, and leaves in a batch by a thread of the SDK.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from featurestore.errors import MissingDependencyError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from featurestore_server.metrics import Series

__all__ = ["Spans", "spans_wanted"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SERVER_FAULT = 500


def spans_wanted() -> Spans | None:
    """Return what makes spans of this process, none where the environment asks for none.

    Raises:
        MissingDependencyError: it does, and OpenTelemetry is not installed.

    """
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    if is_off or not any(map(os.environ.get, _ENDPOINTS)):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as missing:
        raise MissingDependencyError("opentelemetry-exporter-otlp-proto-http", "otel", "OTEL_EXPORTER_OTLP_ENDPOINT") from missing
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "featurestore"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider)


class Spans:
    """Makes a span of each request that was answered."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._kind, self._error = SpanKind.SERVER, StatusCode.ERROR
        self._provider, self._tracer = provider, provider.get_tracer("featurestore")
        self._propagator = TraceContextTextMapPropagator()

    def add(self, series: Series, method: str, status: int, seconds: float, traceparent: bytes) -> None:
        """Make the span of a request that ends now and took so many seconds."""
        end = time.time_ns()
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": series.route,
            "http.response.status_code": status,
        }
        if series.service:
            attributes["featurestore.service"] = series.service
        trace = self._propagator.extract({"traceparent": traceparent.decode("latin-1")}) if traceparent else None
        name, start = f"{method} {series.route}", end - round(seconds * 1e9)
        span = self._tracer.start_span(name, trace, self._kind, attributes, start_time=start)
        if status >= _SERVER_FAULT:
            span.set_status(self._error)
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
