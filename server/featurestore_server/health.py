"""`GET /healthz` and `GET /readyz`. Readiness is asked of what is wired, so it cannot go stale."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request

from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError
from featurestore_server.contract import Health, Readiness
from featurestore_server.dependencies import Store
from featurestore_server.plans import Plans
from featurestore_server.problems import ProblemError

__all__ = ["checks", "router"]

router = APIRouter(tags=["health"])

_LOGGER = logging.getLogger("featurestore_server")
_OK = "ok"


@router.get("/healthz", summary="The process is up")
async def healthz() -> Health:
    """Answer, whatever the state of the stores behind."""
    return Health(status="ok")


@router.get("/readyz", summary="What the service is wired to answers")
def readyz(store: Store, request: Request) -> Readiness:
    """Answer 503 and say which check failed unless all that requests need answers, and every service's lookup is compiled."""
    found = checks(store) | {"plans": _warm(request.app.state.plans)}
    failed = [name for name, answer in found.items() if answer != _OK]
    if failed:
        _LOGGER.warning("not ready: %s", "; ".join(f"{name}: {found[name]}" for name in failed))
        shown = {name: "failed" if name in failed else _OK for name in found}
        detail = f"{', '.join(failed)} failed; the log of the service says why"
        raise ProblemError("not-ready", detail, name=failed[0], checks=shown)
    return Readiness(status="ready", checks=found)


def checks(store: FeatureStore) -> dict[str, str]:
    """Return for each thing that the store needs `ok`, or why it is not: the online store only if a view is served from it."""
    found = {}
    is_served_online = True
    try:
        is_served_online = any(version.view.online for version in store.registry.serving().versions)
        found["registry"] = _OK
    except FeatureStoreError as reason:
        found["registry"] = str(reason)
    if is_served_online:
        found["online-store"] = _pinged(store)
    return found


def _warm(plans: Plans) -> str:
    try:
        plans.be_warm()
    except FeatureStoreError as reason:
        return str(reason)
    return _OK


def _pinged(store: FeatureStore) -> str:
    try:
        store.online.ping()
    except FeatureStoreError as reason:
        return str(reason)
    return _OK
