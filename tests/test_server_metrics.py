from __future__ import annotations

import math
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from featurestore import FeatureStore
from featurestore_server.app import create_app
from featurestore_server.metrics import BOUNDS, CONTENT_TYPE, Gauges, Metrics
from tests.service import ONLINE, USERS

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)+)\})? (\S+)')
LABEL = re.compile(r'([a-z]+)="((?:[^"\\]|\\.)*)"')
LOOKUP = {"feature_service": "everything", "entities": USERS}

Samples = dict[tuple[Any, ...], float]


def parsed(text: str) -> Samples:
    """Return the samples of Prometheus' text form by name and labels; what a name is stands before its samples."""
    samples: Samples = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kinds.setdefault(name, kind) == kind
            continue
        if line.startswith("# HELP "):
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert re.sub("_(bucket|sum|count)$", "", match[1]) in kinds or match[1] in kinds, line
        key = (match[1], *LABEL.findall(match[2] or ""))
        assert key not in samples
        samples[key] = float(match[3])
    assert set(kinds.values()) <= {"counter", "gauge", "histogram"}
    return samples


def scraped(client: TestClient) -> Samples:
    """Return what a scrape gives."""
    response = client.get("/metrics")
    assert (response.status_code, response.headers["content-type"]) == (200, CONTENT_TYPE)
    return parsed(response.text)


def count(samples: Samples, route: str, service: str, status: int) -> float:
    """Return how many answers of a status a route and service had."""
    return samples.get(("featurestore_requests_total", ("route", route), ("service", service), ("status", str(status))), 0.0)


def test_requests_are_counted_by_route_service_and_status(store: FeatureStore) -> None:
    """Each answer counts once, where it belongs; a service that does not exist makes no label of its own."""
    with TestClient(create_app(store)) as client:
        for _ in range(3):
            client.post(ONLINE, json=LOOKUP)
        client.post(ONLINE, json={"features": ["every_type:flag"], "entities": USERS})
        for number in range(5):
            client.post(ONLINE, json=LOOKUP | {"feature_service": f"made_up_{number}"})
        client.get("/v1/registry/feature-services/everything")
        client.get("/v1/registry/feature-services/made_up")
        client.get("/made/up")
        samples = scraped(client)

    assert count(samples, ONLINE, "everything", 200) == 3
    assert (count(samples, ONLINE, "", 200), count(samples, ONLINE, "", 404)) == (1, 5)
    registry = "/v1/registry/feature-services/{name}"
    assert (count(samples, registry, "", 200), count(samples, registry, "", 404)) == (1, 1)
    assert count(samples, "other", "", 404) == 1
    assert "made" not in repr(samples)


def test_what_is_refused_at_the_door_counts_where_it_was_sent_to(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without a key or with too large a body counts for its route as others do, by the template of its path."""
    monkeypatch.setenv("FEATURESTORE_SERVER__MAX_BODY_BYTES", "10")
    with FeatureStore(store.settings.root) as limited:
        apps = create_app(limited, is_open=False), create_app(limited)
    closed, small = map(TestClient, apps)
    for path in ("/v1/registry/feature-services/made_up", "/v1/training-sets/made_up", "/v1/training-sets", "/made/up"):
        assert closed.get(path).status_code == 401
    for method, path in (("GET", "/docs"), ("GET", ONLINE), ("POST", "/v1/registry"), ("POST", "/made/up")):
        assert small.request(method, path, content=b"x" * 11).status_code == 413
    closed_counts, small_counts = (
        {key: each.statuses for key, each in app.state.metrics._series.items() if each.statuses} for app in apps
    )

    known = ("/v1/registry/feature-services/{name}", "/v1/training-sets/{set_id}", "/v1/training-sets", "other")
    assert closed_counts == {(route, ""): {401: 1} for route in known}
    assert small_counts == {(route, ""): {413: 1} for route in ("/docs", ONLINE, "/v1/registry", "other")}


def test_latencies_are_a_histogram(store: FeatureStore) -> None:
    """Buckets are cumulative up to +Inf, which is the count; the sum is of that many answers."""
    with TestClient(create_app(store)) as client:
        for _ in range(4):
            client.post(ONLINE, json=LOOKUP)
        samples = scraped(client)
    of = (("route", ONLINE), ("service", "everything"))
    buckets = {dict(key[1:])["le"]: value for key, value in samples.items() if key[0].endswith("_bucket") and key[1:3] == of}

    assert [float(bound) for bound in buckets] == [*BOUNDS, math.inf]
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets["+Inf"] == samples["featurestore_request_seconds_count", *of] == 4
    assert 0 < samples["featurestore_request_seconds_sum", *of] < 60


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (BOUNDS[0], 0), (math.nextafter(BOUNDS[0], 1), 1), (60.0, 16), (61.0, 17)]
)
def test_a_bound_belongs_to_its_bucket(seconds: float, bucket: int) -> None:
    """A bucket counts what is less than or equal to its bound, as Prometheus has it."""
    series = Metrics().series("r")
    series.count(200, seconds)

    assert series.buckets.index(1) == bucket


def test_the_stores_behind_are_gauges(store: FeatureStore) -> None:
    """A scrape has the freshness of each serving view, the age of what the registry said, connections, and the process."""
    with TestClient(create_app(store)) as client:
        client.post(ONLINE, json=LOOKUP)
        samples = scraped(client)
        watermarks = {version.view.name: version.watermark for version in store.registry.serving().versions}
    worker = ("worker", "0")

    for view in ("every_type", "thing_notes"):
        assert samples["featurestore_view_behind_seconds", ("view", view)] == (store.clock() - (watermarks[view] or 0)) / 1e6
    assert 0 <= samples["featurestore_registry_look_age_seconds", worker] < 60
    assert sum(samples["featurestore_registry_connections", worker, ("state", state)] for state in ("busy", "idle")) >= 1
    assert samples["featurestore_online_connections", worker, ("state", "open")] == 1
    assert samples["featurestore_online_connections", worker, ("state", "failed")] == 0
    assert samples["featurestore_online_waiting", worker] == 0
    assert samples["featurestore_requests_in_flight", worker] == 1  # the scrape
    assert samples["process_resident_memory_bytes", worker] > 10_000_000
    assert samples["process_cpu_seconds_total", worker] > 0


def test_workers_add_up(tmp_path: Path) -> None:
    """Whichever worker is scraped, counters are the sum of all; a successor goes on counting; gauges keep apart."""
    one, two = Metrics(0, tmp_path), Metrics(1, tmp_path)
    one.series("r", "s").count(200, 0.001)
    two.series("r", "s").count(200, 0.2)
    two.series("r", "s").count(503, 0.2)
    two.save(two.own())
    of = (("route", "r"), ("service", "s"))
    first = parsed(one.text(one.own(), []))
    new = Metrics(1, tmp_path)
    new.series("r", "s").count(200, 0.5)
    later = parsed(new.text(new.own(), []))

    assert (count(first, "r", "s", 200), count(first, "r", "s", 503)) == (2, 1)
    assert first["featurestore_request_seconds_sum", *of] == pytest.approx(0.401)
    assert (count(later, "r", "s", 200), later["featurestore_request_seconds_count", *of]) == (3, 4)
    assert {key[1] for key in later if key[0] == "process_open_fds"} == {("worker", "0"), ("worker", "1")}


def test_a_scrape_while_counts_are_shared(tmp_path: Path) -> None:
    """A worker shares what it counted once a second, and a scrape does so beside it: neither fails, and nothing is lost."""
    metrics, until = Metrics(0, tmp_path), time.monotonic() + 1
    shown = 0

    def scrape() -> None:
        while time.monotonic() < until:
            metrics.text(metrics.own(), [])

    with ThreadPoolExecutor() as pool:
        scraping = pool.submit(scrape)
        while time.monotonic() < until:
            shown += 1
            metrics.series(f"r{shown % 50}", "s").count(shown, 0.1)
            metrics.save(metrics.own())
        scraping.result()

    assert shown == sum(sum(each.statuses.values()) for each in (metrics.series(f"r{place}", "s") for place in range(50)))


def test_counts_are_shared_again_after_a_full_disk(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that cannot write what it counted says so, and tries again a second later."""
    left, saved, save = [OSError(28, "No space left on device")], threading.Event(), Metrics.save

    def failing(metrics: Metrics, gauges: Gauges) -> None:
        if left:
            raise left.pop()
        save(metrics, gauges)
        saved.set()

    monkeypatch.setattr(Metrics, "save", failing)
    with TestClient(create_app(store, metrics=Metrics(0, tmp_path))):
        assert saved.wait(20)

    assert "other workers do not know what this one has counted: [Errno 28] No space left on device" in caplog.text


def test_labels_are_escaped() -> None:
    """Quotes, backslashes and line ends in a label do not break the form."""
    metrics = Metrics()
    metrics.series('a"b\\c\nd').count(200, 0.1)

    assert 'route="a\\"b\\\\c\\nd"' in metrics.text([], [])
    parsed(metrics.text([], []))
