from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.metrics import Series
from featurestore_server.tracing import Spans, spans_wanted
from tests.service import ONLINE, USERS, serving

LOOKUP = {"feature_service": "everything", "entities": USERS}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_each_request_is_a_span(store: FeatureStore) -> None:
    """It has route, service and status, lasts as long as the request, and belongs to the trace of whoever asked."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with TestClient(create_app(store, spans=Spans(provider))) as client:
        client.post(ONLINE, json=LOOKUP, headers={"traceparent": TRACE})
        client.post(ONLINE, json=LOOKUP | {"feature_service": "none"})
        client.get("/v1/registry/feature-services/everything", headers={"traceparent": "of nobody"})
    found = kept.get_finished_spans()

    assert [(span.name, span.kind, span.status.status_code) for span in found] == [
        (f"POST {ONLINE}", SpanKind.SERVER, StatusCode.UNSET),
        (f"POST {ONLINE}", SpanKind.SERVER, StatusCode.UNSET),
        ("GET /v1/registry/feature-services/{name}", SpanKind.SERVER, StatusCode.UNSET),
    ]
    assert [dict(span.attributes or {}).get("featurestore.service") for span in found] == ["everything", None, None]
    assert [dict(span.attributes or {})["http.response.status_code"] for span in found] == [200, 404, 200]
    assert all(0 < (span.end_time or 0) - (span.start_time or 0) < 60e9 for span in found)
    parents = [format(span.parent.trace_id, "032x") if span.parent else None for span in found]
    assert parents == [TRACE.split("-")[1], None, None]


def test_a_fault_of_the_service_is_an_error() -> None:
    """A span of a 500 says so."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    Spans(provider).add(Series("/v1/push/{source}", ""), "POST", 500, 0.5, b"")

    [span] = kept.get_finished_spans()
    assert span.status.status_code == StatusCode.ERROR
    assert (span.end_time or 0) - (span.start_time or 0) == 500_000_000


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nobody_asks_for_spans(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Without a collector, or where OpenTelemetry is turned off, there are none."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert spans_wanted() is None


@contextmanager
def _collector() -> Iterator[tuple[str, list[bytes]]]:
    """Take what is exported; gives the URL to export to."""
    taken: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    listener = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}", taken
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def test_a_service_sends_its_spans_to_a_collector(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service whose environment names a collector sends it the spans of the short way too, the last ones when it ends."""
    with _collector() as (url, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        with serving(store.settings.root, "--json") as (process, line):
            answer = httpx.post(orjson.loads(line)["url"] + ONLINE, json=LOOKUP)
            process.terminate()
            process.wait(20)
    exported = [ExportTraceServiceRequest.FromString(each) for each in taken]
    resources = [each for request in exported for each in request.resource_spans]
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]

    assert answer.status_code == 200
    assert f"POST {ONLINE}" in {span.name for span in spans}
    assert {attribute.value.string_value for each in resources for attribute in each.resource.attributes} >= {"featurestore"}
