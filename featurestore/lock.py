"""The lock of a feature service: what a model was trained on, so that nobody serves it anything else.

A lock is JSON, made by `featurestore lock` and kept beside the model:

    features      what it is of: a feature service's name or a list of "view:feature"
    fingerprint   `Selection.fingerprint`: a hash of all below
    columns       [name, type] of each output column, in order
    views         for each view or alias: view, its fingerprint, key_columns, and `values`: all that determines the view's values
    on_demand     for each on-demand view: its fingerprint, inputs, fields, mode, and its code: file, function and hash
    library       the version of featurestore that wrote it

What is served has the same fingerprint, or it differs in something that the lock names. A fingerprint alone will do as a lock: what
it stood for is then looked for among all that the service has ever been.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from featurestore.errors import InputError, LockError
from featurestore.registry.plan import difference
from featurestore.registry.selection import Selection
from featurestore.specs import METADATA, value_spec

__all__ = ["GivenLock", "Lock", "check_lock", "is_fingerprint", "lock_of", "read_lock", "write_lock"]

GivenLock = str | Path
"""A lock file's path, or a fingerprint."""

_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_SHOWN = 60


@dataclass(frozen=True)
class Lock:
    """What a feature service is made of; of a fingerprint alone the rest is empty."""

    features: str | tuple[str, ...]
    fingerprint: str
    columns: tuple[tuple[str, str], ...] = ()
    views: Mapping[str, Any] | None = None
    on_demand: Mapping[str, Any] | None = None
    library: str = ""


def lock_of(selection: Selection) -> Lock:
    """Return the lock of what a selection means now."""
    return Lock(
        features=selection.wanted,
        fingerprint=selection.fingerprint(),
        columns=tuple((name, str(type_)) for name, type_ in selection.types().items()),
        views={
            each.name: {
                "view": each.version.view.name,
                "fingerprint": each.version.fingerprint,
                "key_columns": list(each.key_columns),
                "values": value_spec(each.version.view),
            }
            for each in selection.lookups
        },
        on_demand={
            each.name: {
                "fingerprint": each.fingerprint,
                "code": {name: value for name, value in each.spec["code"].items() if name != "copy"},
                **{name: value for name, value in each.spec.items() if name not in (*METADATA, "name", "code")},
            }
            for each in selection.computed
        },
        library=metadata.version("featurestore"),
    )


def write_lock(lock: Lock, path: Path) -> None:
    """Write a lock; InputError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(lock), indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as reason:
        raise InputError(f"cannot write the lock {path}: {reason}", name=str(path)) from reason


def is_fingerprint(text: str) -> bool:
    """Whether a text has the form of a fingerprint."""
    return _FINGERPRINT.fullmatch(text) is not None


def read_lock(given: GivenLock) -> Lock:
    """Return the lock in a file, or that of a fingerprint; InputError if it is neither."""
    if isinstance(given, str) and is_fingerprint(given):
        return Lock("", given)
    path = Path(given)
    try:
        return _reader().validate_python(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise InputError(f"no lock at {path}, and it is no fingerprint either (32 hexadecimal digits)", name=str(given)) from None
    except (OSError, ValueError, ValidationError) as reason:
        raise InputError(f"{path} is no lock that this release reads: {reason}", name=str(path)) from reason


@cache
def _reader() -> TypeAdapter[Lock]:
    return TypeAdapter(Lock)  # to make it takes ten times as long as to read a lock


def check_lock(selection: Selection, lock: Lock, find: Callable[[Selection, str], Selection | None]) -> None:
    """Raise LockError, which says what differs, unless a selection is what a lock was made of.

    `find` looks for what a selection's name has meant with a given fingerprint.
    """
    if selection.fingerprint() == lock.fingerprint:
        return
    what = f"feature service {selection.name!r}" if isinstance(selection.wanted, str) else "the list of features"
    if lock.views is None:
        then = find(selection, lock.fingerprint)
        if then is None:
            raise LockError(f"{what} has never had the fingerprint {lock.fingerprint} here", name=selection.name)
        lock = lock_of(then)
    differences = tuple(_differences(lock, lock_of(selection))) or ("the order in which views are read",)
    raise LockError(
        f"{what} is not what its lock was made of: {'; '.join(differences)}. Train on what is served now and lock that, or let "
        "what was locked serve again",
        name=selection.name,
        differences=differences,
    )


def _differences(before: Lock, after: Lock) -> Iterator[str]:
    if before.features != after.features:
        yield f"the lock is of {before.features!r}"
    yield from _column_differences(dict(before.columns), dict(after.columns))
    yield from _part_differences("view", before.views or {}, after.views or {})
    yield from _part_differences("on-demand view", before.on_demand or {}, after.on_demand or {})


def _column_differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    yield from (f"feature {name} is gone" for name in before if name not in after)
    yield from (f"feature {name} is new" for name in after if name not in before)
    for name, type_ in before.items():
        if after.get(name, type_) != type_:
            yield f"feature {name} was {type_} and is {after[name]}"
    if [name for name in before if name in after] != [name for name in after if name in before]:
        yield "the features have another order"


def _part_differences(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in (name for name in before if name in after):
        for change in difference(before[name], after[name]):
            if change.field == "code.hash":
                yield f"the code of {kind} {name} is another ({change.before[:12]} -> {change.after[:12]})"
            elif change.field != "fingerprint":
                yield f"{change.field.removeprefix('values.')} of {kind} {name}{_shown(change.before, change.after)}"


def _shown(before: Any, after: Any) -> str:
    shown = " -> ".join(
        "none" if value is None else value if isinstance(value, str) else json.dumps(value) for value in (before, after)
    )
    return f": {shown}" if len(shown) <= _SHOWN else " has changed"
