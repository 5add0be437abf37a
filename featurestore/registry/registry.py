"""The registry over SQL: every method is one transaction."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from featurestore.errors import ConflictError, RegistryError, RunInProgressError
from featurestore.registry.api_keys import ApiKeys
from featurestore.registry.database import Database
from featurestore.registry.erasures import Erasures, rename
from featurestore.registry.lease import advisory_holder, advisory_lease, advisory_turn, holder, lease, turn
from featurestore.registry.migrations import upgrade
from featurestore.registry.plan import Change, FieldChange, NewVersion, Plan
from featurestore.registry.pushes import Pushes
from featurestore.registry.records import (
    all_objects,
    all_versions,
    load_records,
    loads,
    newest_runs,
    one_version,
    run_states,
    version_row,
    write_load,
    write_object,
)
from featurestore.registry.schema import (
    SCHEMA_VERSION,
    alembic,
    changes,
    meta,
    metadata,
    objects,
    runs,
    versions,
)
from featurestore.registry.selection import Selection
from featurestore.registry.settling import waiting
from featurestore.registry.state import Applied, Coverage, Loaded, LoadRecord, Rollback, Run, Version
from featurestore.registry.takeover import find_selection, needed_copies, restore, set_state, settle_now
from featurestore.specs import canonical_json, fingerprint, to_spec

__all__ = ["Registry"]


class Registry:
    """The applied state of one project. Open it with `with`, or close it."""

    def __init__(self, url: str, project: str, shown_url: str) -> None:
        self._database = Database(url, shown_url)
        self.pushes = Pushes(self._database)
        self.erasures, self.api_keys = Erasures(self._transaction, _user), ApiKeys(self._transaction, _user)
        try:
            self._open(project)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    def _open(self, project: str) -> None:
        """Make the tables in an empty database, bring older ones to this release's schema, and refuse what belongs to others."""
        with self._transaction() as connection:
            found = _meta(connection)
            self._check(found, project)
        if found is None or found.schema_version < SCHEMA_VERSION:
            with self._transaction(write=True) as connection:  # another process may have done it by now
                found = _meta(connection)
                self._check(found, project)
                if found is None:
                    _create(connection, project)
                elif found.schema_version < SCHEMA_VERSION:
                    upgrade(connection)

    def _check(self, found: Any, project: str) -> None:
        if found is not None and found.schema_version > SCHEMA_VERSION:
            raise RegistryError(
                f"the registry {self._shown_url} has schema {found.schema_version}, this release reads {SCHEMA_VERSION}: "
                "use the release that wrote it, or a newer one"
            )
        if found is not None and found.project != project:
            raise RegistryError(
                f"the registry {self._shown_url} belongs to project {found.project!r}, not {project!r}: give each project its own"
            )

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sa.Connection]:
        with self._database.transaction(write=write) as connection:
            yield connection
            if write:
                connection.execute(sa.update(meta).values(writes=meta.c.writes + 1))

    def writes(self) -> int:
        """Return a number that grows with every write but those of pushes: while it is the same, so is what lookups go by."""
        with self._transaction() as connection:
            return int(connection.execute(sa.select(meta.c.writes)).scalar_one())

    @property
    def _shown_url(self) -> str:
        return self._database.shown_url

    def server(self) -> tuple[str, str, int]:
        """Return what database this is, its version, and its present in microseconds."""
        with self._transaction() as connection:
            if self._database.is_postgresql:
                query = sa.text(
                    "SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
                )
                number, now = connection.execute(query).one()
                return "PostgreSQL", str(number).split()[0], int(now)
            number = connection.execute(sa.select(sa.func.sqlite_version())).scalar_one()
            return "SQLite", str(number), time.time_ns() // 1000

    def connections(self) -> dict[str, int]:
        """Return how many connections to the database this process has, by state: busy and idle; none of one in memory."""
        return self._database.connections()

    # Leases

    def lease(self, version: Version) -> AbstractContextManager[None]:
        """Hold the lease of a version; RunInProgressError says who has it instead."""
        what = f"view {version.view.name!r}"
        if self._database.is_postgresql:
            return advisory_lease(self._database, version.uid, what)
        return lease(self._lease_folder, version.uid, what)

    def lease_holder(self, version: Version) -> str | None:
        """Say who holds the lease of a version; none if nobody does."""
        if self._database.is_postgresql:
            return advisory_holder(self._database, version.uid)
        return holder(self._lease_folder, version.uid)

    def turn(self, name: str, seconds: float) -> AbstractContextManager[bool]:
        """Wait for one's turn at what only one may do at a time, in all processes; gives whether it came in so many seconds."""
        if self._database.is_postgresql:
            return advisory_turn(self._database, name, seconds)
        return turn(self._lease_folder, name, seconds)

    @property
    def _lease_folder(self) -> Path:
        # Beside the database, so that all who share it share the leases; a database in memory is this process's alone.
        file = self._database.file or Path(tempfile.gettempdir(), f"featurestore-{os.getpid()}-registry")
        return file.with_name(f"{file.name}.leases")

    def shred(self) -> None:
        """Let rows of pushes that were deleted leave the disk."""
        self._database.shred("pushes")

    # What is applied

    def applied(self) -> Applied:
        """Return the specs applied last, and all versions."""
        with self._transaction() as connection:
            revision = connection.execute(sa.select(meta.c.revision)).scalar_one()
            states, known = all_objects(connection), all_versions(connection)
        specs = {(each.kind, each.name): each.spec for each in states if each.spec is not None}
        return Applied(revision, specs, known, waiting(states, known))

    def serving(self) -> Applied:
        """Return what names mean now: the serving specs, and the serving versions."""
        with self._transaction() as connection:
            revision = connection.execute(sa.select(meta.c.revision)).scalar_one()
            states, known = all_objects(connection), all_versions(connection)
        specs = {(each.kind, each.name): each.serving for each in states if each.serving is not None}
        return Applied(revision, specs, tuple(each for each in known if each.state == "serving"), waiting(states, known))

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
                for field in fields if change.kind == "entity" else ():
                    if field.field == "join_keys":
                        rename(connection, *([key["name"] for key in keys] for keys in (field.before, field.after)))
                write_object(connection, change.kind, change.name, spec=change.spec)
                record = {"revision": plan.revision + 1, "applied_at": now, "applied_by": _user()}
                record |= {"kind": change.kind, "name": change.name, "action": change.action}
                record["fields"] = canonical_json([asdict(field) for field in fields])
                connection.execute(changes.insert().values(record))
            overtaken = [*plan.dropped_candidates, *(new.view.name for new in plan.new_versions)]
            is_overtaken = versions.c.view.in_(overtaken) & (versions.c.state == "candidate")
            connection.execute(sa.update(versions).where(is_overtaken).values(state="dropped", retired_at=now))
            for view in plan.views:
                is_same = (versions.c.view == view.name) & (versions.c.fingerprint == fingerprint(view))
                connection.execute(sa.update(versions).where(is_same).values(spec=canonical_json(to_spec(view))))
            for new in plan.new_versions:
                _add_version(connection, new, now)
            settle_now(connection, now=now)

    def rollback(self, view: str, *, now: int) -> Rollback:
        """Let the version of a view that served before serve again, with all that took over together with the present one.

        Raises:
            NotFoundError: no view of that name serves.
            RollbackError: there is no version before, it is not ready, or a service could not be answered; nothing has changed.

        """
        with self._transaction(write=True) as connection:
            done, records = restore(connection, view, now=now)
            connection.execute(sa.update(meta).values(revision=meta.c.revision + 1))
            revision = connection.execute(sa.select(meta.c.revision)).scalar_one()
            for record in records:
                record |= {"revision": revision, "applied_at": now, "applied_by": _user()}
                connection.execute(changes.insert().values(record))
            return done

    def needed_copies(self) -> set[str]:
        """Return the kept copies of code that on-demand views need, now or after a rollback."""
        with self._transaction() as connection:
            return needed_copies(connection)

    def find_selection(self, selection: Selection, fingerprint: str) -> Selection | None:
        """Return what a selection's name meant when it had a fingerprint, the last time that it did; none if it never had."""
        with self._transaction() as connection:
            return find_selection(connection, selection, fingerprint)

    def history(self) -> list[dict[str, Any]]:
        """Return every change ever applied, oldest first: revision, when, who, what."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(changes).order_by(changes.c.id)).mappings().all()
            return [{**row, "fields": json.loads(row["fields"])} for row in rows]

    def drop(self) -> None:
        """Remove the registry's tables and leases, and close it."""
        with self._database.transaction(write=True) as connection:
            metadata.drop_all(connection)
        self.close()
        if not self._database.is_postgresql:
            shutil.rmtree(self._lease_folder, ignore_errors=True)

    # Versions and runs

    def version(self, version_id: int) -> Version:
        """Return one version as it is now."""
        with self._transaction() as connection:
            return one_version(connection, version_id)

    def mark_removing(self, version: Version) -> bool:
        """Mark a version whose rows are about to be removed, unless it has come to be needed again; the caller holds its lease."""
        with self._transaction(write=True) as connection:
            if one_version(connection, version.id).is_fed:
                return False
            connection.execute(sa.update(versions).where(versions.c.id == version.id).values(state="removing"))
            return True

    def mark_removed(self, version: Version) -> None:
        """Record that nothing is left of a version's rows."""
        with self._transaction(write=True) as connection:
            connection.execute(sa.update(versions).where(versions.c.id == version.id).values(state="removed"))

    def was_killed(self, version: Version) -> bool:
        """Whether the last run of a version, whose lease the caller holds, has never ended."""
        with self._transaction() as connection:
            is_open = (runs.c.version_id == version.id) & (runs.c.status == "running")
            return connection.execute(sa.select(sa.func.count()).where(is_open)).scalar_one() > 0

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

    def run_states(self, version: Version) -> dict[int, str]:
        """Return the number and the status of every run of a version."""
        with self._transaction() as connection:
            return run_states(connection, version.id)

    def loads(self, version: Version) -> list[LoadRecord]:
        """Return the records of a version's completed online loads, oldest first."""
        with self._transaction() as connection:
            return load_records(connection, version.id)

    def cover(self, version: Version, coverage: Coverage, table_version: int, run: int) -> None:
        """Record that a version's table holds this coverage at this table version.

        Raises:
            RunInProgressError: the run lost its lease unnoticed, and a later one has closed it.

        """
        values = {"coverage_start": coverage.start, "coverage_end": coverage.end, "table_version": table_version}
        with self._transaction(write=True) as connection:
            _check_open(connection, version, run)
            connection.execute(sa.update(versions).where(versions.c.id == version.id).values(values))

    def finish_run(
        self,
        version: Version,
        run: int,
        *,
        now: int,
        report: Mapping[str, Any],
        loaded: Loaded | None = None,
        record: LoadRecord | None = None,
        error: str | None = None,
    ) -> None:
        """Close a run, and record a completed online load and when it was readable. Candidates that are ready now take over."""
        with self._transaction(write=True) as connection:
            if error is None:
                _check_open(connection, version, run)
            values = {
                "status": "failed" if error else "completed",
                "error": error,
                "finished_at": now,
                "report": canonical_json(report),
            }
            connection.execute(sa.update(runs).where(runs.c.id == run).values(values))
            if loaded is not None:
                load = {"loaded_run": loaded.run, "loaded_table_version": loaded.table_version, "loaded_until": loaded.until}
                connection.execute(sa.update(versions).where(versions.c.id == version.id).values(load))
            if record is not None:
                write_load(connection, version.id, record)
            # What takes over changes what names mean, so a plan that was made before does not apply any more.
            if error is None and settle_now(connection, now=now):
                connection.execute(sa.update(meta).values(revision=meta.c.revision + 1))

    def runs(self, limit: int = 50) -> list[Run]:
        """Return the newest runs, newest first."""
        with self._transaction() as connection:
            return newest_runs(connection, limit)


def _create(connection: sa.Connection, project: str) -> None:
    metadata.create_all(connection)
    connection.execute(alembic.insert().values(version_num=str(SCHEMA_VERSION)))
    # Counting begins where no other registry's does, lest one that takes another's place be taken for it.
    first = secrets.randbits(48)
    connection.execute(meta.insert().values(id=1, schema_version=SCHEMA_VERSION, project=project, revision=0, writes=first))


def _meta(connection: sa.Connection) -> Any:
    if not sa.inspect(connection).has_table(meta.name):
        return None
    return connection.execute(sa.select(meta.c.schema_version, meta.c.project)).first()


def _add_version(connection: sa.Connection, new: NewVersion, now: int) -> None:
    if not new.is_resumed:
        connection.execute(versions.insert().values(version_row(new.view, new.number, now)))
        return
    for version in all_versions(connection):
        if (version.view.name, version.number) == (new.view.name, new.number) and version.is_rollback:
            set_state(connection, version.id, "candidate", None)
            return
    raise ConflictError(f"version {new.number} of view {new.view.name!r} is not kept any more; plan again and apply that")


def _check_open(connection: sa.Connection, version: Version, run: int) -> None:
    status = connection.execute(sa.select(runs.c.status).where(runs.c.id == run)).scalar_one_or_none()
    if status != "running":
        raise RunInProgressError(f"view {version.view.name!r} has been taken over by another run since this one lost its lease")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _recorded_fields(connection: sa.Connection, change: Change) -> tuple[FieldChange, ...]:
    """Return what history keeps of a change: its fields, or the whole spec of what is created or removed."""
    if change.action == "change":
        return change.fields
    is_it = (objects.c.kind == change.kind) & (objects.c.name == change.name)
    before = connection.execute(sa.select(objects.c.spec).where(is_it)).scalar_one_or_none()
    return (FieldChange("", loads(before), change.spec),)
