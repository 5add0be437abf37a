"""`GET /v1/registry/…`: what is applied, its versions, runs and freshness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query

from featurestore import FeatureStore
from featurestore.clock import instant_text
from featurestore.errors import FeatureStoreError, NotFoundError
from featurestore.offline.sources import BEGINNING
from featurestore.registry.state import Applied
from featurestore.registry.state import Run as AppliedRun
from featurestore.registry.state import Version as AppliedVersion
from featurestore_server.contract import Freshness, Overview, Run, Runs, Version, Versions, ViewFreshness
from featurestore_server.dependencies import Store

__all__ = ["router"]

router = APIRouter(prefix="/v1/registry", tags=["registry"])

KINDS = {
    "entities": "entity",
    "sources": "source",
    "feature-views": "feature view",
    "aliases": "alias",
    "on-demand-feature-views": "on-demand feature view",
    "feature-services": "feature service",
}
_PAIRS = {"tags", "join_keys"}
_MOST_RUNS = 1000

Definition = dict[str, Any]


@router.get("", summary="What is applied, by name")
def overview(store: Store) -> Overview:
    """Name everything that is applied."""
    applied = store.applied()
    names = {route.replace("-", "_"): _names(applied, kind) for route, kind in KINDS.items()}
    return Overview(project=store.settings.project, revision=applied.revision, **names)


@router.get("/versions", summary="Versions of feature views")
def versions(store: Store, view: str | None = None) -> Versions:
    """List versions, oldest first: what each computes, covers, and has loaded online."""
    applied = store.applied()
    _check_view(applied, view)
    return Versions(versions=[_version(applied, each) for each in applied.versions if view in (None, each.view.name)])


@router.get("/runs", summary="Materializations")
def runs(store: Store, view: str | None = None, limit: Annotated[int, Query(ge=1, le=_MOST_RUNS)] = 50) -> Runs:
    """List materializations, newest first; those of one view among the newest thousand of all."""
    _check_view(store.applied(), view)
    newest = store.runs(limit if view is None else _MOST_RUNS)
    return Runs(runs=[_run(each) for each in newest if view in (None, each.view)][:limit])


@router.get("/freshness", summary="How far watermarks are behind now")
def freshness(store: Store) -> Freshness:
    """Say of each view that serves, or is about to, how far it is materialized."""
    now = store.clock()
    living = [each for each in store.applied().versions if each.state in ("serving", "candidate")]
    return Freshness(now=instant_text(now), feature_views=[_freshness(each, now) for each in living])


def _add_kind(route: str, kind: str) -> None:
    """Add the routes that list one kind of definition and show one of it."""
    key = route.replace("-", "_")

    def listed(store: Store) -> dict[str, list[Definition]]:
        applied = store.applied()
        return {key: [_definition(store, applied, kind, name) for name in _names(applied, kind)]}

    def shown(name: str, store: Store) -> Definition:
        applied = store.applied()
        return _definition(store, applied, kind, name)

    router.add_api_route(f"/{route}", listed, name=f"list {route}", summary=f"Every {kind}")
    router.add_api_route(f"/{route}/{{name}}", shown, name=f"show {route}", summary=f"One {kind}, as it is defined")


for _route, _kind in KINDS.items():
    _add_kind(_route, _kind)


def _names(applied: Applied, kind: str) -> list[str]:
    return sorted(name for each, name in applied.specs if each == kind)


def _check_view(applied: Applied, view: str | None) -> None:
    known = {each.view.name for each in applied.versions}
    if view is not None and view not in known:
        raise NotFoundError("feature view", view, known)


def _definition(store: FeatureStore, applied: Applied, kind: str, name: str) -> Definition:
    if (kind, name) not in applied.specs:
        raise NotFoundError(kind, name, _names(applied, kind))
    spec = _with_objects(applied.specs[kind, name])
    additions: dict[str, Callable[[], Definition]] = {
        "feature view": lambda: {"versions": [_version(applied, each).model_dump() for each in applied.versions_of(name)]},
        "feature service": lambda: _resolved(store, name),
    }
    return spec | additions[kind]() if kind in additions else spec


def _with_objects(spec: Mapping[str, Any]) -> Definition:
    """Return a spec in which pairs of texts, as the registry keeps them, are objects."""
    return {key: dict(value) if key in _PAIRS and _are_pairs(value) else value for key, value in spec.items()}


def _are_pairs(value: Any) -> bool:
    return all(isinstance(each, list) for each in value)


def _resolved(store: FeatureStore, service: str) -> Definition:
    """Return the columns to send and to expect, with their types, and the fingerprint; null while no version of a view serves."""
    try:
        selection = store.selection(service)
    except FeatureStoreError:
        return {"keys": None, "request": None, "columns": None, "fingerprint": None}
    return {
        "keys": {name: str(type_) for name, type_ in selection.keys.items()},
        "request": {name: str(type_) for name, type_ in selection.request.items()},
        "columns": {name: str(type_) for name, type_ in selection.types().items()},
        "fingerprint": selection.fingerprint(),
    }


def _version(applied: Applied, version: AppliedVersion) -> Version:
    coverage = version.coverage
    needs = applied.waiting.get(("feature view", version.view.name), ()) if version.state == "candidate" else ()
    is_from_beginning = coverage is None or coverage.start < BEGINNING
    return Version(
        view=version.view.name,
        version=version.number,
        uid=version.uid,
        state=version.state,  # type: ignore[arg-type]  # pydantic checks it
        is_rollback=version.is_rollback,
        waits_for=list(needs),
        fingerprint=version.fingerprint,
        created_at=instant_text(version.created_at),
        coverage_start=None if coverage is None or is_from_beginning else instant_text(coverage.start),
        watermark=_text(version.watermark),
        table_version=None if coverage is None else version.table_version,
        online_run=version.loaded.run if version.loaded else None,
    )


def _run(run: AppliedRun) -> Run:
    return Run(
        run=run.number,
        view=run.view,
        version=run.version,
        status=run.status,  # type: ignore[arg-type]  # pydantic checks it
        start=_text(run.start),
        end=instant_text(run.end),
        started_at=instant_text(run.started_at),
        finished_at=_text(run.finished_at),
        report=dict(run.report),
        error=run.error,
    )


def _freshness(version: AppliedVersion, now: int) -> ViewFreshness:
    behind = version.behind(now)
    return ViewFreshness(
        view=version.view.name,
        version=version.number,
        state=version.state,  # type: ignore[arg-type]  # pydantic checks it
        watermark=_text(version.watermark),
        seconds_behind=None if behind is None else behind / 1_000_000,
        online_run=version.loaded.run if version.loaded else None,
    )


def _text(instant: int | None) -> str | None:
    return None if instant is None else instant_text(instant)
