"""The registry over SQL: every method is one transaction."""

from __future__ import annotations

import getpass
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from featurestore.definitions import FeatureView
from featurestore.errors import ConflictError, MissingDependencyError, RegistryError
from featurestore.registry.plan import Change, FieldChange, Plan
from featurestore.registry.schema import SCHEMA_VERSION, changes, meta, metadata, objects, runs, versions
from featurestore.registry.settling import ObjectState, settle
from featurestore.registry.state import Applied, Coverage, Loaded, Run, Version
from featurestore.specs import canonical_json, fingerprint, from_spec, to_spec

__all__ = ["Registry"]


class Registry:
    """The applied state of one project. Open it with `with`, or close it."""

    def __init__(self, url: str, project: str, shown_url: str) -> None:
        self._shown_url = shown_url
        try:
            self._engine = sa.create_engine(url)
            if self._engine.dialect.name == "sqlite" and self._engine.url.database:
                Path(self._engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        except ModuleNotFoundError as reason:
            if url.startswith("postgresql"):
                raise MissingDependencyError("psycopg", "postgres", "a PostgreSQL registry") from reason
            raise RegistryError(f"cannot open the registry {shown_url}: {reason}") from reason
        except (SQLAlchemyError, OSError) as reason:
            raise RegistryError(f"cannot open the registry {shown_url}: {reason}") from reason
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        try:
            self._create(project)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _create(self, project: str) -> None:
        with self._transaction(write=True) as connection:
            metadata.create_all(connection)
            row = connection.execute(sa.select(meta.c.schema_version, meta.c.project)).first()
            if row is None:
                values = {"id": 1, "schema_version": SCHEMA_VERSION, "project": project, "revision": 0}
                connection.execute(meta.insert().values(values))
            elif row.schema_version != SCHEMA_VERSION:
                raise RegistryError(
                    f"the registry {self._shown_url} has schema {row.schema_version}, this release reads {SCHEMA_VERSION}: "
                    "use the release that wrote it, or a newer one"
                )
            elif row.project != project:
                raise RegistryError(
                    f"the registry {self._shown_url} belongs to project {row.project!r}, not {project!r}: give each project its own"
                )

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect().execution_options(is_write=write) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as reason:
            cause = getattr(reason, "orig", None) or reason
            raise RegistryError(f"the registry {self._shown_url} failed: {cause}") from reason

    # What is applied

    def applied(self) -> Applied:
        """Return the specs applied last, and all versions."""
        with self._transaction() as connection:
            revision = connection.execute(sa.select(meta.c.revision)).scalar_one()
            rows = connection.execute(sa.select(objects).where(objects.c.spec.is_not(None))).all()
            specs = {(row.kind, row.name): json.loads(row.spec) for row in rows}
            return Applied(revision, specs, _versions(connection))

    def serving(self) -> Applied:
        """Return what names mean now: the serving specs, and the serving versions."""
        with self._transaction() as connection:
            revision = connection.execute(sa.select(meta.c.revision)).scalar_one()
            rows = connection.execute(sa.select(objects).where(objects.c.serving.is_not(None))).all()
            specs = {(row.kind, row.name): json.loads(row.serving) for row in rows}
            return Applied(revision, specs, tuple(each for each in _versions(connection) if each.state == "serving"))

    def apply(self, plan: Plan, *, now: int) -> None:
        """Do exactly what the plan says, in one transaction.

        Raises:
            ConflictError: somebody applied since the plan was made; nothing has changed.

        """
        with self._transaction(write=True) as connection:
            moved = sa.update(meta).where(meta.c.revision == plan.revision).values(revision=plan.revision + 1)
            if connection.execute(moved).rowcount != 1:
                raise ConflictError("the registry has changed since this plan was made; plan again and apply that")
            for change in plan.changes:
                fields = _recorded_fields(connection, change)
                _write_object(connection, change.kind, change.name, change.spec)
                record = {"revision": plan.revision + 1, "applied_at": now, "applied_by": _user()}
                record |= {"kind": change.kind, "name": change.name, "action": change.action}
                record["fields"] = canonical_json([asdict(field) for field in fields])
                connection.execute(changes.insert().values(record))
            overtaken = [*plan.dropped_candidates, *(new.view.name for new in plan.new_versions)]
            is_overtaken = versions.c.view.in_(overtaken) & (versions.c.state == "candidate")
            connection.execute(sa.update(versions).where(is_overtaken).values(state="dropped"))
            for view in plan.views:
                is_same = (versions.c.view == view.name) & (versions.c.fingerprint == fingerprint(view))
                connection.execute(sa.update(versions).where(is_same).values(spec=canonical_json(to_spec(view))))
            for new in plan.new_versions:
                connection.execute(versions.insert().values(_version_row(new.view, new.number, now)))
            _settle(connection)

    def history(self) -> list[dict[str, Any]]:
        """Return every change ever applied, oldest first: revision, when, who, what."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(changes).order_by(changes.c.id)).mappings().all()
            return [{**row, "fields": json.loads(row["fields"])} for row in rows]

    def drop(self) -> None:
        """Remove the registry's tables, and close it."""
        with self._transaction(write=True) as connection:
            metadata.drop_all(connection)
        self.close()

    # Versions and runs

    def version(self, version_id: int) -> Version:
        """Return one version as it is now."""
        with self._transaction() as connection:
            return _version(connection.execute(sa.select(versions).where(versions.c.id == version_id)).one())

    def start_run(self, version: Version, start: int | None, end: int, *, now: int, above: int = 0) -> int:
        """Register a run and return its number, which is greater than that of any run before and than `above`.

        The caller holds the version's lease, so a run of it that is still open was killed.
        """
        with self._transaction(write=True) as connection:
            is_open = (runs.c.version_id == version.id) & (runs.c.status == "running")
            killed = {"status": "failed", "error": "the process ended during the run", "finished_at": now}
            connection.execute(sa.update(runs).where(is_open).values(killed))
            last = connection.execute(sa.select(sa.func.max(runs.c.id))).scalar_one()
            row = {"version_id": version.id, "interval_start": start, "interval_end": end, "status": "running", "started_at": now}
            number = max(last or 0, above) + 1
            connection.execute(runs.insert().values(id=number, **row))
            return number

    def cover(self, version: Version, coverage: Coverage, table_version: int) -> None:
        """Record that a version's table holds this coverage at this table version."""
        values = {"coverage_start": coverage.start, "coverage_end": coverage.end, "table_version": table_version}
        with self._transaction(write=True) as connection:
            connection.execute(sa.update(versions).where(versions.c.id == version.id).values(values))

    def finish_run(
        self,
        version: Version,
        run: int,
        *,
        now: int,
        report: Mapping[str, Any],
        loaded: Loaded | None = None,
        error: str | None = None,
    ) -> None:
        """Close a run; with a completed online load, record it. Candidates that are ready now take over."""
        with self._transaction(write=True) as connection:
            values = {
                "status": "failed" if error else "completed",
                "error": error,
                "finished_at": now,
                "report": canonical_json(report),
            }
            connection.execute(sa.update(runs).where(runs.c.id == run).values(values))
            if loaded is not None:
                load = {"loaded_run": loaded.run, "loaded_table_version": loaded.table_version}
                connection.execute(sa.update(versions).where(versions.c.id == version.id).values(load))
            # What takes over changes what names mean, so a plan that was made before does not apply any more.
            if error is None and _settle(connection):
                connection.execute(sa.update(meta).values(revision=meta.c.revision + 1))

    def runs(self, limit: int = 50) -> list[Run]:
        """Return the newest runs, newest first."""
        query = sa.select(runs, versions.c.view, versions.c.number).join(versions, versions.c.id == runs.c.version_id)
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(runs.c.id.desc()).limit(limit)).all()
        return [
            Run(
                row.id, row.view, row.number, row.interval_start, row.interval_end, row.status,
                row.started_at, row.finished_at, json.loads(row.report), row.error,
            )
            for row in rows
        ]  # fmt: skip


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy, not the driver, begins transactions: the driver would begin them late and as readers.
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 20000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A reader that turns writer half-way fails where another wrote in between; a writer says so at the start and waits.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options()["is_write"] else "BEGIN")


def _recorded_fields(connection: sa.Connection, change: Change) -> tuple[FieldChange, ...]:
    """Return what history keeps of a change: its fields, or the whole spec of what is created or removed."""
    if change.action == "change":
        return change.fields
    is_it = (objects.c.kind == change.kind) & (objects.c.name == change.name)
    before = connection.execute(sa.select(objects.c.spec).where(is_it)).scalar_one_or_none()
    return (FieldChange("", _loads(before), change.spec),)


def _write_object(connection: sa.Connection, kind: str, name: str, spec: Mapping[str, Any] | None) -> None:
    is_it = (objects.c.kind == kind) & (objects.c.name == name)
    text = None if spec is None else canonical_json(spec)
    if connection.execute(sa.update(objects).where(is_it).values(spec=text)).rowcount == 0:
        connection.execute(objects.insert().values(kind=kind, name=name, spec=text))


def _settle(connection: sa.Connection) -> bool:
    """Let what is ready take over; returns whether anything did."""
    rows = connection.execute(sa.select(objects)).all()
    states = [ObjectState(row.kind, row.name, _loads(row.spec), _loads(row.serving)) for row in rows]
    settlement = settle(states, _versions(connection))
    for version in settlement.promoted:
        _set_state(connection, version.view.name, "serving", "replaced")
        connection.execute(sa.update(versions).where(versions.c.id == version.id).values(state="serving"))
    for each in settlement.objects:
        is_it = (objects.c.kind == each.kind) & (objects.c.name == each.name)
        if each.spec is None:
            connection.execute(sa.delete(objects).where(is_it))
            if each.kind == "feature view":
                _set_state(connection, each.name, "serving", "replaced")
        else:
            connection.execute(sa.update(objects).where(is_it).values(serving=canonical_json(each.spec)))
    return bool(settlement.promoted or settlement.objects)


def _set_state(connection: sa.Connection, view: str, before: str, after: str) -> None:
    is_it = (versions.c.view == view) & (versions.c.state == before)
    connection.execute(sa.update(versions).where(is_it).values(state=after))


def _version_row(view: FeatureView, number: int, now: int) -> dict[str, Any]:
    return {
        "uid": secrets.token_hex(4),
        "view": view.name,
        "number": number,
        "fingerprint": fingerprint(view),
        "spec": canonical_json(to_spec(view)),
        "state": "candidate",
        "created_at": now,
    }


def _versions(connection: sa.Connection) -> tuple[Version, ...]:
    return tuple(map(_version, connection.execute(sa.select(versions).order_by(versions.c.id)).all()))


def _version(row: Any) -> Version:
    return Version(
        id=row.id,
        uid=row.uid,
        number=row.number,
        fingerprint=row.fingerprint,
        view=from_spec(FeatureView, json.loads(row.spec)),
        state=row.state,
        created_at=row.created_at,
        coverage=None if row.coverage_end is None else Coverage(row.coverage_start, row.coverage_end),
        table_version=row.table_version,
        loaded=None if row.loaded_run is None else Loaded(row.loaded_run, row.loaded_table_version),
    )


def _loads(text: str | None) -> Any:
    return None if text is None else json.loads(text)
