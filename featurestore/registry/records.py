"""Between the registry's rows and its values."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from featurestore.definitions import FeatureView
from featurestore.registry.schema import loads as loads_table
from featurestore.registry.schema import objects, runs, takeovers, versions
from featurestore.registry.settling import ObjectState
from featurestore.registry.state import Coverage, Loaded, LoadRecord, Run, Version
from featurestore.specs import canonical_json, fingerprint, from_spec, to_spec

__all__ = [
    "all_objects",
    "all_versions",
    "load_records",
    "loads",
    "newest_runs",
    "one_version",
    "run_states",
    "version_row",
    "write_load",
    "write_object",
]

VIEW = "feature view"
ON_DEMAND = "on-demand feature view"


def version_row(view: FeatureView, number: int, now: int) -> dict[str, Any]:
    """Return the row of a new version, a candidate."""
    return {
        "uid": secrets.token_hex(4),
        "view": view.name,
        "number": number,
        "fingerprint": fingerprint(view),
        "spec": canonical_json(to_spec(view)),
        "state": "candidate",
        "created_at": now,
    }


def all_versions(connection: sa.Connection) -> tuple[Version, ...]:
    """Return every version there ever was, oldest first."""
    targets = _rollback_targets(connection)
    rows = connection.execute(sa.select(versions).order_by(versions.c.id)).all()
    return tuple(_version(row, targets) for row in rows)


def one_version(connection: sa.Connection, version_id: int) -> Version:
    """Return one version."""
    row = connection.execute(sa.select(versions).where(versions.c.id == version_id)).one()
    return _version(row, _rollback_targets(connection))


def _rollback_targets(connection: sa.Connection) -> set[int | None]:
    """Return the ids of the versions that served before, each until the last takeover of its view."""
    is_change = takeovers.c.version_before.is_distinct_from(takeovers.c.version_after)
    last = sa.select(sa.func.max(takeovers.c.id)).where(takeovers.c.kind == VIEW, is_change).group_by(takeovers.c.name)
    query = sa.select(takeovers.c.version_before).where(takeovers.c.id.in_(last), takeovers.c.version_after.is_not(None))
    return set(connection.execute(query).scalars())


def _version(row: Any, targets: set[int | None]) -> Version:
    coverage = None if row.coverage_end is None else Coverage(row.coverage_start, row.coverage_end)
    view = _view(row.spec)
    return Version(
        id=row.id,
        uid=row.uid,
        number=row.number,
        fingerprint=row.fingerprint,
        view=view,
        state=row.state,
        created_at=row.created_at,
        coverage=coverage,
        table_version=row.table_version,
        loaded=None if row.loaded_run is None else Loaded(row.loaded_run, row.loaded_table_version, row.loaded_until),
        retired_at=row.retired_at,
        # What never held a row has nothing that could serve again; what is pushed needs no run to hold some.
        is_rollback=row.state == "replaced" and (coverage is not None or view.is_pushed) and row.id in targets,
    )


@lru_cache(maxsize=1024)
def _view(text: str) -> FeatureView:
    """Return the view of a spec; who reads again what names mean reads mostly the same ones."""
    return from_spec(FeatureView, json.loads(text))


def all_objects(connection: sa.Connection) -> list[ObjectState]:
    """Return every object: what was applied last, and what its name means now."""
    rows = connection.execute(sa.select(objects).order_by(objects.c.kind, objects.c.name)).all()
    return [ObjectState(row.kind, row.name, loads(row.spec), loads(row.serving)) for row in rows]


def write_object(connection: sa.Connection, kind: str, name: str, **specs: Mapping[str, Any] | None) -> None:
    """Set the `spec` or `serving` of an object, which is made if it is not there."""
    is_it = (objects.c.kind == kind) & (objects.c.name == name)
    texts = {column: None if spec is None else canonical_json(spec) for column, spec in specs.items()}
    if connection.execute(sa.update(objects).where(is_it).values(texts)).rowcount == 0:
        connection.execute(objects.insert().values(kind=kind, name=name, **texts))


def newest_runs(connection: sa.Connection, limit: int) -> list[Run]:
    """Return the newest runs, newest first."""
    query = sa.select(runs, versions.c.view, versions.c.number).join(versions, versions.c.id == runs.c.version_id)
    rows = connection.execute(query.order_by(runs.c.id.desc()).limit(limit)).all()
    return [
        Run(
            row.id, row.view, row.number, row.interval_start, row.interval_end, row.status,
            row.started_at, row.finished_at, json.loads(row.report), row.error,
        )
        for row in rows
    ]  # fmt: skip


def run_states(connection: sa.Connection, version_id: int) -> dict[int, str]:
    """Return the number and the status of every run of a version."""
    query = sa.select(runs.c.id, runs.c.status).where(runs.c.version_id == version_id)
    return {row.id: row.status for row in connection.execute(query)}


def write_load(connection: sa.Connection, version_id: int, record: LoadRecord) -> None:
    """Keep the record of a completed load."""
    row = asdict(record) | {"version_id": version_id, "ages": canonical_json(list(record.ages))}
    connection.execute(loads_table.insert().values(row))


def load_records(connection: sa.Connection, version_id: int) -> list[LoadRecord]:
    """Return the records of a version's completed loads, oldest first."""
    rows = connection.execute(sa.select(loads_table).where(loads_table.c.version_id == version_id).order_by(loads_table.c.run))
    return [
        LoadRecord(
            row.run, row.table_version, row.until, row.readable_at, row.is_rewrite, row.rows, tuple(json.loads(row.ages)),
            row.late, row.source,
        )
        for row in rows
    ]  # fmt: skip


def loads(text: str | None) -> Any:
    """Read JSON; none of none."""
    return None if text is None else json.loads(text)
