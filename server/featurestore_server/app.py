"""The application, assembled: FastAPI's routes, and ahead of them the one that has to be fast."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from featurestore import FeatureStore
from featurestore_server import contract, health, historical, monitoring, online, push, registry, training_sets
from featurestore_server.contract import LOCK_HEADER, PATH, PROBLEM, PROBLEMS, Problem
from featurestore_server.gate import Gate
from featurestore_server.jobs import Jobs
from featurestore_server.limits import Limits
from featurestore_server.logs import RequestLog
from featurestore_server.metrics import Metrics
from featurestore_server.plans import Plans
from featurestore_server.problems import UnexpectedErrors, handle_errors
from featurestore_server.processes import Processes
from featurestore_server.tracing import Spans

__all__ = ["create_app"]

_SUBMISSIONS = 2
_SPANS_SECONDS = 2.0
_LOGGER = logging.getLogger("featurestore_server")
_PROBLEM_CONTENT = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}


class _Service(FastAPI):
    """FastAPI, which takes longer to dispatch a request than a lookup takes: lookups are answered before it sees them."""

    lookups: ASGIApp
    others: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            await self.lookups(scope, receive, send)
        else:
            await self.others(scope, receive, send)


def create_app(store: FeatureStore, *, is_open: bool = True, metrics: Metrics | None = None, spans: Spans | None = None) -> FastAPI:
    """Return the HTTP service of a store, which the caller opens and closes.

    `is_open` says whether requests need no key as long as there never was one; not for a service that others can reach. `metrics`
    are those of one of several processes. `spans` are made of all requests, and closed with the service.
    """
    limits, metrics = Limits(store.settings.server), metrics or Metrics()
    plans, log = (
        Plans(store, metrics, is_open=is_open),
        RequestLog(metrics, is_complete=store.settings.server.log_requests == "all", spans=spans),
    )
    app = _Service(
        title=f"featurestore: {store.settings.project}",
        summary="Feature values for training and serving, by entity key and time",
        description=f"```\n{contract.__doc__}```",
        version="1",
        lifespan=_lifespan,
        redirect_slashes=False,
        responses={"default": {"description": "A problem (RFC 9457)", "content": _PROBLEM_CONTENT}},
    )
    app.state.store, app.state.limits, app.state.plans, app.state.metrics = store, limits, plans, metrics
    app.state.online = online.OnlineFeatures(store, plans, limits, log)
    app.state.processes = Processes(store, store.settings.server.training_processes, store.settings.server.training_queue)
    app.state.submissions, app.state.jobs = Processes(store, _SUBMISSIONS, store.settings.server.training_queue), Jobs(store)
    app.lookups = UnexpectedErrors(app.state.online)
    groups = [each.router for each in (online, historical, training_sets, push, registry, health, monitoring)]
    routes = [each for router in (app, *groups) for each in router.routes if isinstance(each, Route)]
    app.others = Gate(super(_Service, app).__call__, plans.access, limits, log, routes)
    for router in groups:
        app.include_router(router)
    handle_errors(app)
    if store.settings.server.cors_origins:
        _share(app, store.settings.server.cors_origins)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _share(app: _Service, origins: list[str]) -> None:
    """Let pages of other origins call the service."""
    methods = ["GET", "POST", "DELETE"]

    def shared(inner: ASGIApp) -> ASGIApp:
        allowed = ["Authorization", "Content-Type", "Accept", "X-Request-Id", "Idempotency-Key", LOCK_HEADER]
        exposed = ["X-Request-Id", "Retry-After", "Location"]
        return CORSMiddleware(inner, origins, allow_methods=methods, allow_headers=allowed, expose_headers=exposed)

    app.lookups, app.others = shared(app.lookups), shared(app.others)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what the store opens when first used, before many threads use it; what does not answer yet may do so later."""
    for name, answer in (await run_in_threadpool(health.checks, app.state.store)).items():
        if answer != "ok":
            _LOGGER.warning("not ready: %s: %s", name, answer)
    async with app.state.online.serving(), app.state.jobs.running():
        saving = asyncio.create_task(_save(app))
        try:
            yield
        finally:
            saving.cancel()
            if (spans := app.state.online.log.spans) is not None:
                with suppress(TimeoutError):  # a collector that does not answer is not waited for
                    await asyncio.wait_for(asyncio.to_thread(spans.close), _SPANS_SECONDS)


async def _save(app: FastAPI) -> None:
    """Let the other workers know what this one has counted, once a second."""
    while app.state.metrics.is_shared:
        await asyncio.sleep(1)
        try:
            app.state.metrics.save(monitoring.own_gauges(app))
        except OSError as reason:
            _LOGGER.warning("other workers do not know what this one has counted: %s", reason)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
        )
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.setdefault("components", {}).setdefault("schemas", {}).update(problem.pop("$defs", {}) | {"Problem": problem})
        _document_problems(schema)
        app.openapi_schema = schema
    return app.openapi_schema


def _document_problems(schema: dict[str, Any]) -> None:
    """Give each operation the problems it can answer with, by status."""
    guarded = {"unauthorized", "forbidden", "too-slow", "registry"}
    by_name = guarded | {"not-found", "input"}
    with_body = by_name | {"malformed", "not-acceptable", "too-large", "unsupported-media-type"}
    own = {
        "/v1/online-features": with_body | {"online-store", "on-demand", "code", "lock"},
        "/v1/historical-features": with_body | {"spine", "incomplete", "offline-store", "busy", "on-demand", "code", "lock"},
        "/v1/training-sets": with_body | {"spine", "incomplete", "offline-store", "busy", "code", "lock"},
        "/v1/push/{source}": with_body,
        "/v1/registry": guarded,
        "/v1/registry/freshness": guarded,
        "/healthz": set(),
        "/readyz": {"not-ready"},
        "/metrics": guarded,
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            for code in sorted(own.get(path, by_name) | {"internal"}, key=lambda each: PROBLEMS[each].status):
                kind = PROBLEMS[code]
                known = operation["responses"].setdefault(str(kind.status), {"description": "", "content": _PROBLEM_CONTENT})
                known["description"] = "; ".join(filter(None, [known["description"], f"/problems/{code}: {kind.title}"]))
