"""Manifests of training sets: what a written one was made of, so that it can be made again, identically.

A manifest is JSON beside the file, `<file>.manifest.json`, and once more under `training_sets/` in the offline store's folder:
there it keeps the table versions that it names from being vacuumed, until the file is gone.

    library              the version of featurestore that wrote it
    created_at           when, as an ISO 8601 text
    path                 the file
    features             what was asked for: a feature service's name or a list of "view:feature"
    fingerprint          hash of the output columns, their types and the fingerprints of the view versions and of the code that give
                         them
    columns              the feature columns, in order
    lookups              for each view or alias: name, view, version (its uid), table_version, complete_until (microseconds),
                         key_columns, features; of a push view also covered_until: what arrived later came from the log
    on_demand            the on-demand views, each after those that it takes features of: what the registry holds of them, the hash
                         of their code and the name of its kept copy included
    timestamp_column     the spine's
    incomplete           error, stale or null
    availability         declared or measured
    spine                hash of the spine's columns: see `Spine.digest`
    rows                 how many rows it has
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from featurestore.errors import InputError, OfflineStoreError

__all__ = ["LookupRecord", "Manifest", "pinned", "pinned_copies", "read_manifest", "write_manifest"]

_SUFFIX = ".manifest.json"
_FOLDER = "training_sets"


@dataclass(frozen=True)
class LookupRecord:
    """One view or alias of a training set, and the table version that its values came from."""

    name: str
    view: str
    version: str
    table_version: int
    complete_until: int
    key_columns: tuple[str, ...]
    features: tuple[str, ...]
    covered_until: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What a training set was made of."""

    library: str
    created_at: str
    path: str
    features: str | tuple[str, ...]
    fingerprint: str
    columns: tuple[str, ...]
    lookups: tuple[LookupRecord, ...]
    timestamp_column: str
    incomplete: str
    spine: str
    rows: int
    on_demand: tuple[dict[str, Any], ...] = ()
    availability: str = "declared"


def write_manifest(manifest: Manifest, offline_folder: Path) -> Path:
    """Write a manifest beside its training set, and where it keeps the table versions; returns the first."""
    text = orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2) + b"\n"
    beside = Path(manifest.path + _SUFFIX)
    kept = offline_folder / _FOLDER / f"{hashlib.sha256(manifest.path.encode()).hexdigest()[:32]}.json"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        for path in (kept, beside):
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            partial.write_bytes(text)
            partial.replace(path)
    except OSError as reason:
        raise OfflineStoreError(f"cannot write the manifest {beside}: {reason}") from reason
    return beside


def read_manifest(given: str | Path | Mapping[str, Any] | Manifest) -> Manifest:
    """Return a manifest, given as itself, as its JSON data, or as the path to it or to its training set.

    Raises:
        InputError: there is none at the path, or it is none that this release reads.

    """
    if isinstance(given, Manifest):
        return given
    if isinstance(given, Mapping):
        return _parsed(given, "the manifest")
    path = Path(given) if str(given).endswith(_SUFFIX) else Path(f"{given}{_SUFFIX}")
    try:
        return _parsed(orjson.loads(path.read_bytes()), str(path))
    except FileNotFoundError:
        raise InputError(f"no manifest at {path}; `to_parquet` writes it beside the training set", name=str(path)) from None
    except (OSError, orjson.JSONDecodeError) as reason:
        raise InputError(f"cannot read the manifest {path}: {reason}", name=str(path)) from reason


def _parsed(found: Mapping[str, Any], where: str) -> Manifest:
    try:
        return TypeAdapter(Manifest).validate_python(found)
    except ValidationError as reason:
        raise InputError(f"{where} is no manifest of a training set that this release reads: {reason}", name=where) from reason


def pinned(offline_folder: Path) -> dict[str, set[int]]:
    """Return the table versions that training sets need, by the uid of the view version; sets whose file is gone need none."""
    found: dict[str, set[int]] = {}
    for manifest in _kept(offline_folder):
        for lookup in manifest.lookups:
            found.setdefault(lookup.version, set()).add(lookup.table_version)
    return found


def pinned_copies(offline_folder: Path) -> set[str]:
    """Return the kept copies of code that training sets need."""
    return {str(spec["code"]["copy"]) for manifest in _kept(offline_folder) for spec in manifest.on_demand}


def _kept(offline_folder: Path) -> Iterator[Manifest]:
    for file in sorted((offline_folder / _FOLDER).glob("*.json")):
        manifest = _parsed(orjson.loads(file.read_bytes()), str(file))
        if Path(manifest.path).exists():
            yield manifest
        else:
            with suppress(OSError):
                file.unlink()
