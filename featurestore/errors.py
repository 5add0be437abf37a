"""Every error that featurestore raises on purpose, in one tree.

    FeatureStoreError
    ├── SettingsError              featurestore.toml or a FEATURESTORE_* variable is wrong
    ├── DefinitionError            definitions are faulty; carries every fault found
    ├── NotFoundError              a name is not known; says what is
    ├── InputError                 an argument or a request is malformed
    │   └── SpineError             a spine cannot be read as entity keys and timestamps
    ├── SourceError                a source cannot be read, or no longer gives what it gave
    ├── RegistryError              the registry cannot be used
    │   ├── ConflictError          the registry moved between plan and apply
    │   ├── RollbackError          the version that served before cannot serve again
    │   └── RunInProgressError     another run holds the view
    ├── CoverageError              materialized coverage does not allow it
    │   ├── GapError               a run would leave a gap that holds source rows
    │   ├── IncompleteError        spine rows lie beyond what is materialized
    │   └── PendingError           a name waits for candidate versions, and means nothing yet
    ├── RunsFailedError            some views of a materialization failed; carries their errors and the others' reports
    ├── OnDemandError              an on-demand function fails, or gives what its view does not declare
    │   └── CodeError              its code is not there, or cannot be loaded
    ├── LockError                  definitions are not those of the lock
    ├── OfflineStoreError          the offline tables cannot be read or written
    ├── TrainingSetError           a stored training set is in a state that does not allow it
    ├── OnlineStoreError           the online store cannot be reached or holds foreign bytes
    ├── ServiceError               the HTTP service cannot be reached, or refuses for a reason that is none of the above
    └── MissingDependencyError     an optional package is not installed (also an ImportError)

`code` is stable: the HTTP service uses it as the last part of a problem's `type`, the CLI prints it under `--json`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CodeError",
    "ConflictError",
    "CoverageError",
    "DefinitionError",
    "Fault",
    "FeatureStoreError",
    "GapError",
    "IncompleteError",
    "InputError",
    "LockError",
    "MissingDependencyError",
    "NotFoundError",
    "OfflineStoreError",
    "OnDemandError",
    "OnlineStoreError",
    "PendingError",
    "RegistryError",
    "RollbackError",
    "RunInProgressError",
    "RunsFailedError",
    "ServiceError",
    "SettingsError",
    "SourceError",
    "SpineError",
    "TrainingSetError",
]


_SHOWN_NAMES = 12


class FeatureStoreError(Exception):
    """Anything that featurestore refuses or cannot do; the message says what to do about it."""

    code = "error"


class SettingsError(FeatureStoreError):
    """`featurestore.toml` or an environment variable holds something unusable."""

    code = "settings"


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a repo: where it is and what it is."""

    file: str
    object: str
    field: str
    message: str

    def __str__(self) -> str:
        place = ".".join(part for part in (self.object, self.field) if part)
        return ": ".join(part for part in (self.file, place, self.message) if part)


class DefinitionError(FeatureStoreError):
    """Definitions are faulty. `faults` holds all of them, not just the first."""

    code = "definition"

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        title = f"{count} fault{'s' if count != 1 else ''} in the definitions:"
        super().__init__("\n".join([title, *(f"  {fault}" for fault in self.faults)]))


class NotFoundError(FeatureStoreError):
    """A name that nothing known has. `name` is the offender, `nearest` the known names closest to it."""

    code = "not-found"

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        self.kind = kind
        self.name = name
        self.nearest = tuple(difflib.get_close_matches(name, known, n=3, cutoff=0.5))
        super().__init__(f"no {kind} {name!r}; {known_names(name, known)}")


def known_names(name: str, known: Iterable[str]) -> str:
    """Say which names exist, the nearest to `name` first: `did you mean 'a'?` or `known: 'a', 'b'`."""
    names = sorted(set(known))
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"did you mean {close[0]!r}?"
    if not names:
        return "there is none yet"
    shown = ", ".join(repr(each) for each in names[:_SHOWN_NAMES])
    return f"known: {shown}" + (f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else "")


class InputError(FeatureStoreError):
    """An argument or a request is malformed. `name` is what is wrong, where it has a name."""

    code = "input"

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class SpineError(InputError):
    """A spine cannot be read as rows of entity keys and timestamps."""

    code = "spine"


class SourceError(FeatureStoreError):
    """A source is missing, unreadable, or does not hold what its definition says."""

    code = "source"


class RegistryError(FeatureStoreError):
    """The registry cannot be opened, or holds what this release cannot read."""

    code = "registry"


class ConflictError(RegistryError):
    """Somebody applied between this plan and its apply; plan again."""

    code = "conflict"


class RollbackError(RegistryError):
    """The version that served before cannot serve again; nothing has changed. `name` is the view or service that is the reason."""

    code = "rollback"

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class RunInProgressError(RegistryError):
    """Another run holds the view; runs on one view exclude each other."""

    code = "run-in-progress"


class CoverageError(FeatureStoreError):
    """What is materialized does not allow the request."""

    code = "coverage"


class GapError(CoverageError):
    """A run would leave an interval of visible time uncovered although the source has rows in it."""

    code = "gap"


class IncompleteError(CoverageError):
    """Spine rows ask for a time beyond the watermark of a view."""

    code = "incomplete"


class PendingError(CoverageError):
    """What is asked for is applied, but waits for versions that are not ready. `name` is what was asked for."""

    code = "pending"

    def __init__(self, kind: str, name: str, needs: Iterable[str]) -> None:
        self.name = name
        super().__init__(f"{kind} {name!r} is pending: it is applied, and waits for {'; '.join(needs)}")


class RunsFailedError(FeatureStoreError):
    """Some views of a materialization failed, the others are done. `failures` by view, `reports` of those that are done."""

    code = "runs-failed"

    def __init__(self, failures: Mapping[str, FeatureStoreError], reports: Sequence[object]) -> None:
        self.failures = dict(failures)
        self.reports = tuple(reports)
        lines = [f"  {view}: {reason}" for view, reason in failures.items()]
        super().__init__("\n".join([f"{len(failures)} of {len(failures) + len(reports)} views failed:", *lines]))


class OnDemandError(FeatureStoreError):
    """An on-demand function fails, or gives what its view does not declare.

    `name` is the view, `feature` the feature and `row` the place of the row among those asked for, where they can be said.
    """

    code = "on-demand"

    def __init__(self, message: str, *, name: str, feature: str | None = None, row: int | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.feature = feature
        self.row = row


class CodeError(OnDemandError):
    """The code of an on-demand view is not there, or cannot be loaded."""

    code = "code"


class LockError(FeatureStoreError):
    """What is served is not what a model was trained on. `differences` says what differs, `name` names the service."""

    code = "lock"

    def __init__(self, message: str, *, name: str, differences: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.differences = tuple(differences)


class OfflineStoreError(FeatureStoreError):
    """An offline table cannot be read or written."""

    code = "offline-store"


class TrainingSetError(FeatureStoreError):
    """A stored training set is being computed, is not completed, or is over already. `name` is its id."""

    code = "training-set"

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class OnlineStoreError(FeatureStoreError):
    """The online store cannot be reached, or holds bytes that are not ours. `is_retryable`: the same call may succeed soon."""

    code = "online-store"

    def __init__(self, message: str, *, is_retryable: bool = False) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable


class ServiceError(FeatureStoreError):
    """The HTTP service cannot be reached, or refuses the request.

    `status` is that of its answer, none without one; `problem` is the code of the problem that it answered with, where that is
    none of the other errors' (docs/reference/http.md).
    """

    code = "service"

    def __init__(self, message: str, *, status: int | None = None, problem: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem


class MissingDependencyError(FeatureStoreError, ImportError):
    """A package of an optional extra is not installed; the message is the command that installs it."""

    code = "missing-dependency"

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'featurestore[{extra}]'")


def restored(code: str, message: str, members: Mapping[str, Any]) -> FeatureStoreError | None:
    """Return the error that was described by its code and message; none if no error has the code.

    `members` may hold `name` and `nearest`. What else an error carries is not told, and empty.
    """
    kind = next((each for each in _tree(FeatureStoreError) if each.code == code), None)
    if kind is None:
        return None
    error = kind.__new__(kind, message)  # constructors compose the message, which is composed already
    told = {"name": members.get("name"), "nearest": tuple(members.get("nearest") or ())}
    vars(error).update(_UNTOLD.get(kind, {}) | told)
    return error


_UNTOLD: dict[type[FeatureStoreError], dict[str, Any]] = {
    DefinitionError: {"faults": ()},
    NotFoundError: {"kind": "name"},
    OnDemandError: {"feature": None, "row": None},
    CodeError: {"feature": None, "row": None},
    LockError: {"differences": ()},
    OnlineStoreError: {"is_retryable": False},
    RunsFailedError: {"failures": {}, "reports": ()},
    ServiceError: {"status": None, "problem": None},
}


def _tree(kind: type[FeatureStoreError]) -> Iterator[type[FeatureStoreError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _tree(each)
