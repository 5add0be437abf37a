"""Stored training sets: jobs and what they compute. Each is a folder, `training_jobs/<id>` in the offline store.

    job.json        what was asked for, written once: see `Job`
    state.json      how far it is, written anew at each change: see `State`
    spine.arrow     its spine, an Arrow IPC file
    result.parquet  the training set, with `result.parquet.manifest.json` beside it (manifests.py)
    job.lock        locked (flock) by the process that computes or changes the set, whose end frees it, however it ends
    cancel          there once it is to be cancelled

A job waits, runs, and is completed, failed or cancelled. One that says that it runs although its lock is free has lost its process:
it waits again, until it has lost `MOST_ATTEMPTS`. So any number of servers may look for jobs, and each runs once. One whose state
cannot be read counts as failed.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from featurestore.errors import NotFoundError, OfflineStoreError, RegistryError, RunInProgressError, TrainingSetError
from featurestore.offline.training import Availability, TrainingSet
from featurestore.registry.lease import holder, lease

__all__ = ["MOST_ATTEMPTS", "Job", "Keys", "State", "StoredSet", "StoredSets"]

MOST_ATTEMPTS = 3
_FOLDER = "training_jobs"
_LOCK = "job"
_ID = re.compile(r"[0-9a-f]{32}")
_LEFT_SECONDS = 3600.0
_OVER_SECONDS = 5.0
"""How long one that is over is waited for: whoever computed it, or erases of it, holds it a little longer."""

StateName = Literal["waiting", "running", "cancelling", "completed", "failed", "cancelled"]


@dataclass(frozen=True)
class Keys:
    """The spine's columns that stand for the join keys of a view, and the names and types of these."""

    columns: tuple[str, ...]
    names: tuple[str, ...]
    types: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What was asked for; instants are ISO 8601 texts."""

    id: str
    created_at: str
    features: str | tuple[str, ...]
    timestamp_column: str
    incomplete: Literal["error", "stale", "null"]
    columns: tuple[str, ...]
    spine_rows: int
    keys: tuple[Keys, ...]
    availability: Availability = "declared"


@dataclass(frozen=True)
class State:
    """How far a job is. `rows_done` are rows of the spine, `rows` and `bytes` the result's, `erased_rows` left it by an erasure."""

    state: StateName = "waiting"
    attempts: int = 0
    started_at: str | None = None
    finished_at: str | None = None
    rows_done: int = 0
    rows: int | None = None
    bytes: int | None = None
    erased_rows: int = 0
    error: dict[str, str] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing will come any more."""
        return self.state in ("completed", "failed", "cancelled")


_UNREADABLE = State(
    "failed", error={"code": OfflineStoreError.code, "detail": "its state cannot be read; delete it, and ask for it anew"}
)


@dataclass(frozen=True)
class StoredSet:
    """One training set as it is now."""

    folder: Path
    job: Job
    state: State

    @property
    def result(self) -> Path:
        """The file of the training set."""
        return self.folder / "result.parquet"

    @property
    def spine_file(self) -> Path:
        """The file of the spine."""
        return self.folder / "spine.arrow"

    def spine(self) -> pa.Table:
        """Return the spine, mapped from its file."""
        return pa.ipc.open_file(pa.memory_map(str(self.spine_file))).read_all()

    @property
    def is_to_be_cancelled(self) -> bool:
        """Whether somebody has asked for it."""
        return (self.folder / "cancel").exists()

    def save(self, **changes: Any) -> StoredSet:
        """Change the state; whoever does holds the set."""
        changed = replace(self, state=replace(self.state, **changes))
        _write(self.folder / "state.json", asdict(changed.state))
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Return all but the keys as JSON-ready data."""
        record = asdict(self.job) | asdict(self.state)
        del record["keys"]
        return record


@dataclass(frozen=True)
class StoredSets:
    """The stored training sets of an offline store."""

    offline_folder: Path
    _over: dict[str, StoredSet] = field(default_factory=dict, compare=False)

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.offline_folder / _FOLDER

    def create(self, identifier: str, training: TrainingSet, *, now: str) -> StoredSet:
        """Keep what is to be computed; the set that has the identifier already, if there is one.

        Raises:
            OfflineStoreError: it cannot be written.

        """
        target, partial = self.folder / identifier, self.folder / f".{identifier}.{os.getpid()}.partial"
        try:
            partial.mkdir(parents=True)
            rows = _write_spine(training, partial / "spine.arrow")
            _write(partial / "job.json", asdict(_job(identifier, training, now, rows)))
            _write(partial / "state.json", asdict(State()))
            if not target.exists():
                partial.rename(target)
        except (OSError, pa.ArrowException) as reason:
            if not target.exists():
                raise OfflineStoreError(f"cannot keep the training set in {self.folder}: {reason}") from reason
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return self.find(identifier)

    def find(self, identifier: str) -> StoredSet:
        """Return one of them; NotFoundError if there is none."""
        found = self._read(self.folder / identifier) if _ID.fullmatch(identifier) else None
        if found is None:
            raise NotFoundError("training set", identifier, self._names())
        return found

    def all(self) -> list[StoredSet]:
        """Return all, newest first."""
        found = [each for name in self._names() if (each := self._read(self.folder / name)) is not None]
        return sorted(found, key=lambda each: (each.job.created_at, each.job.id), reverse=True)

    def waiting(self) -> list[StoredSet]:
        """Return those that wait to be computed, oldest first; what a creation left that was killed is removed."""
        for left in self.folder.glob(".*.partial"):
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        found = [self._over.get(name) or self._read(self.folder / name) for name in self._names()]
        present = [each for each in found if each is not None]
        self._over.clear()
        self._over.update({each.job.id: each for each in present if each.state.is_over and each.state != _UNREADABLE})
        return sorted((each for each in present if each.state.state == "waiting"), key=lambda each: each.job.created_at)

    def cancel(self, identifier: str, *, now: str) -> StoredSet:
        """Cancel one. If a process computes it, that ends within a second.

        Raises:
            NotFoundError: there is no such set.
            TrainingSetError: it is over already.

        """
        found = self.find(identifier)
        if found.state.state == "cancelled":
            return found
        if found.state.is_over:
            raise TrainingSetError(f"training set {identifier!r} is {found.state.state}; delete it", name=identifier)
        (found.folder / "cancel").touch()
        try:
            with self.held(identifier) as held:
                return held if held.state.is_over else held.save(state="cancelled", finished_at=now)
        except TrainingSetError:
            return self.find(identifier)

    def delete(self, identifier: str) -> None:
        """Delete one with all its files.

        Raises:
            NotFoundError: there is no such set.
            TrainingSetError: a process is at it; cancel it first.

        """
        with self.held(identifier) as held:
            # Away in one step, so that nobody finds half of it.
            gone = held.folder.rename(held.folder.with_name(f".{identifier}.{os.getpid()}.partial"))
            shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def held(self, identifier: str) -> Iterator[StoredSet]:
        """Hold a set, as whoever computes or changes it does; gives it as it is then.

        Raises:
            NotFoundError: there is no such set.
            TrainingSetError: another process or thread holds it.

        """
        with ExitStack() as stack:
            until = time.monotonic() + _OVER_SECONDS
            while not self._is_held(identifier, stack, is_last=time.monotonic() > until):
                time.sleep(0.01)
            yield self.find(identifier)

    def _is_held(self, identifier: str, stack: ExitStack, *, is_last: bool) -> bool:
        """Hold a set until the stack ends, and return whether that came about. Of one that is over, somebody lets go soon."""
        found = self.find(identifier)
        try:
            stack.enter_context(lease(found.folder, _LOCK, f"training set {identifier!r}", makes_folder=False))
        except RunInProgressError as reason:
            if found.state.is_over and not is_last:
                return False
            detail = f"training set {identifier!r} is being computed; cancel it first, or wait"
            raise TrainingSetError(detail, name=identifier) from reason
        except RegistryError:
            self.find(identifier)  # it was deleted a moment ago
            raise
        return True

    def _names(self) -> list[str]:
        if not self.folder.exists():
            return []
        return sorted(each.name for each in self.folder.iterdir() if _ID.fullmatch(each.name))

    def _read(self, folder: Path) -> StoredSet | None:
        try:
            job = TypeAdapter(Job).validate_python(orjson.loads((folder / "job.json").read_bytes()))
            state = _state(folder / "state.json")
        except FileNotFoundError:  # it was deleted a moment ago
            return None
        except (OSError, orjson.JSONDecodeError, ValidationError) as reason:
            raise OfflineStoreError(f"cannot read the training set in {folder}: {reason}") from reason
        found = StoredSet(folder, job, state)
        return found if state.is_over else replace(found, state=replace(state, state=_seen(found)))


def _state(path: Path) -> State:
    try:
        return TypeAdapter(State).validate_python(orjson.loads(path.read_bytes()))
    except (IsADirectoryError, orjson.JSONDecodeError, ValidationError):  # other errors of the system may pass
        return _UNREADABLE


def _seen(found: StoredSet) -> StateName:
    """Return the state of a job that is not over, by whether a process has it."""
    if holder(found.folder, _LOCK) is None:
        return "waiting"
    return "cancelling" if found.is_to_be_cancelled else "running"


def _job(identifier: str, training: TrainingSet, now: str, rows: int) -> Job:
    keys = tuple(
        Keys(
            lookup.key_columns,
            tuple(key.name for key in lookup.version.view.join_keys),
            tuple(str(key.type) for key in lookup.version.view.join_keys),
        )
        for lookup in training.selection.lookups
    )
    features, column = training.origin.features, training.spine.timestamp_column
    names = tuple(training.schema.names)
    return Job(identifier, now, features, column, training.incomplete, names, rows, keys, training.availability)


def _write_spine(training: TrainingSet, path: Path) -> int:
    rows = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, training.spine.schema) as writer:
        for batch in training.spine.read(None):
            writer.write_batch(batch)
            rows += len(batch)
    return rows


def _write(path: Path, content: Any) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(orjson.dumps(content))
    partial.replace(path)
