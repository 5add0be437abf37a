"""`GET /metrics`: what `metrics.py` counts, and how the stores behind the service are."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import PlainTextResponse

from featurestore import FeatureStore
from featurestore_server.metrics import CONTENT_TYPE, Gauges, Metrics
from featurestore_server.plans import Plans

__all__ = ["own_gauges", "router"]

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Counters and gauges for Prometheus",
    response_class=PlainTextResponse,
    responses={200: {"description": "Prometheus' text form", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> PlainTextResponse:
    """Answer with what all workers of this service have counted."""
    app: FastAPI = request.app
    counted: Metrics = app.state.metrics
    text = await asyncio.to_thread(counted.text, own_gauges(app), _freshness(app))
    return PlainTextResponse(text, headers={"Content-Type": CONTENT_TYPE})


def own_gauges(app: FastAPI) -> Gauges:
    """Return the gauges of this process; on its event loop."""
    counted: Metrics = app.state.metrics
    plans: Plans = app.state.plans
    store: FeatureStore = app.state.store
    worker = ("worker", str(counted.worker))
    gauges = counted.own()
    if plans.last is not None:
        gauges.append(("featurestore_registry_look_age_seconds", (worker,), plans.age))
        pool = store.registry.connections()  # open by now: what opens it waits
        gauges += [("featurestore_registry_connections", (worker, ("state", state)), number) for state, number in pool.items()]
    states, waiting = store.online.connections()
    gauges += [("featurestore_online_connections", (worker, ("state", state)), number) for state, number in states.items()]
    gauges.append(("featurestore_online_waiting", (worker,), waiting))
    if store.serving_log is not None:
        counts = store.serving_log.counts
        outcomes = ("written", counts.logged), ("dropped", counts.dropped)
        gauges += [("featurestore_serving_log_rows_total", (worker, ("outcome", outcome)), rows) for outcome, rows in outcomes]
        gauges.append(("featurestore_serving_log_waiting", (worker,), counts.queued))
    return gauges


def _freshness(app: FastAPI) -> Gauges:
    """Return how far each serving view's watermark is behind, as the registry said last."""
    plans: Plans = app.state.plans
    store: FeatureStore = app.state.store
    if plans.last is None:
        return []
    present = store.clock()
    return [
        ("featurestore_view_behind_seconds", (("view", version.view.name),), behind / 1_000_000)
        for version in plans.last.applied.versions
        if (behind := version.behind(present)) is not None
    ]
