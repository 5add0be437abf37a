"""What is wrong with a repo and what to do about it: each check looks at one thing, changes nothing, and starts nothing.

A check that cannot be made, since what it needs has failed, is left out; the failure is there.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from featurestore.clock import duration_micros, from_micros, instant_text
from featurestore.errors import FeatureStoreError
from featurestore.materialize import offline_table
from featurestore.online import embedded
from featurestore.online.store import OnlineStore
from featurestore.registry.plan import make_plan
from featurestore.registry.registry import Registry
from featurestore.registry.state import Applied, Version
from featurestore.repo import load_repo
from featurestore.settings import Settings, load_settings, redacted

__all__ = ["FAIL", "OK", "WARN", "Finding", "examine"]

OK, WARN, FAIL = "ok", "warn", "fail"
_LIBRARIES = ("featurestore", "duckdb", "deltalake", "pyarrow", "numpy", "pandas", "pydantic", "sqlalchemy", "redis")
_OLDEST = {"redis": (6, 2), "valkey": (7, 2), "PostgreSQL": (12,)}
_LITTLE_BYTES, _TOO_LITTLE_BYTES = 2 * 1024**3, 200 * 1024**2
_SKEW_WARN_MICROS, _SKEW_FAIL_MICROS = 1_000_000, 60_000_000
_FULL_PERCENT = 90


@dataclass(frozen=True)
class Finding:
    """What one check found: `level` is ok, warn or fail, `todo` says what to do unless all is well."""

    check: str
    level: str
    message: str
    todo: str = ""


Findings = Iterator[Finding]
_T = TypeVar("_T")


def examine(root: Path) -> Findings:
    """Examine the repo in a folder, from its settings to its candidates."""
    yield _libraries()
    try:
        settings = load_settings(root)
    except FeatureStoreError as reason:
        yield Finding("settings", FAIL, str(reason), "correct the setting that it names")
        return
    yield from _settings(settings)
    yield from _definitions(settings)
    yield from _folders(settings)
    with closing(OnlineStore(settings)) as online:
        is_reachable = yield from _online(settings, online)
        yield from _applied(settings, online if is_reachable else None)


def _libraries() -> Finding:
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return Finding("libraries", OK, ", ".join([f"Python {sys.version.split()[0]}", *found]))


def _settings(settings: Settings) -> Findings:
    yield Finding("settings", OK, f"project {settings.project!r} in {settings.root}")
    if settings.now is not None:
        yield Finding(
            "settings", WARN, f"the present is fixed at {instant_text(settings.clock())}", "unset `now` where time shall pass"
        )


def _definitions(settings: Settings) -> Findings:
    try:
        count = len(load_repo(settings.root))
    except FeatureStoreError as reason:
        yield Finding("definitions", FAIL, str(reason), "correct the definitions; featurestore plan checks them again")
    else:
        yield Finding("definitions", OK, f"{count} definitions, without fault")


# Disk and permissions


def _folders(settings: Settings) -> Findings:
    for check, folder in (("state folder", settings.state), ("offline store", settings.offline_folder)):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
            yield Finding(check, FAIL, f"{there} cannot be written by this user", "give this user the right to write there")
            continue
        free = shutil.disk_usage(there).free
        text = f"{folder}, {free / 1024**3:,.1f} GiB free"
        if free < _LITTLE_BYTES:
            yield Finding(check, FAIL if free < _TOO_LITTLE_BYTES else WARN, text, "make room, or move it to a larger disk")
        else:
            yield Finding(check, OK, text)


# The online store


def _online(settings: Settings, online: OnlineStore) -> Generator[Finding, None, bool]:
    """Examine the server; returns whether it answers."""
    where = redacted(settings.online.url)
    try:
        if settings.online.url == "embedded" and not embedded.is_running(settings.state / "online"):
            yield Finding("online store", OK, "embedded, not running: the next command that needs it starts it")
            return False
        began = time.monotonic()
        facts = online.server()
        took = time.monotonic() - began
    except FeatureStoreError as reason:
        yield Finding("online store", FAIL, str(reason), "start the server, or correct online.url")
        return False
    name = "valkey" if facts.get("valkey_version") else "redis"
    yield _server("online store", name, str(facts.get(f"{name}_version", "")), f"{where}, {took * 1000:.1f} ms for an answer")
    policy, limit = facts.get("maxmemory_policy", "noeviction"), int(facts.get("maxmemory", 0))
    if limit and policy != "noeviction":
        yield Finding(
            "online store", WARN, f"its maxmemory-policy is {policy}: it may drop rows unseen", "set maxmemory-policy noeviction"
        )
    if limit and int(facts["used_memory"]) * 100 > limit * _FULL_PERCENT:
        yield Finding("online store", WARN, f"uses over {_FULL_PERCENT}% of its maxmemory", "raise maxmemory, or prune versions")
    yield _clock("online store", int(facts["time"]))
    return True


def _server(check: str, name: str, number: str, text: str) -> Finding:
    oldest = _OLDEST[name]
    found = tuple(int(part) for part in number.split(".")[: len(oldest)] if part.isdigit())
    if found < oldest:
        needed = ".".join(map(str, oldest))
        return Finding(check, FAIL, f"{name} {number or 'of unknown version'} at {text}", f"{name} {needed} or newer is needed")
    return Finding(check, OK, f"{name} {number} at {text}")


def _clock(where: str, theirs: int) -> Finding:
    skew = abs(theirs - time.time_ns() // 1000)
    text = f"differs by {skew / 1e6:.3f} s from that of the {where}"
    if skew <= _SKEW_WARN_MICROS:
        return Finding("clock", OK, text)
    level = FAIL if skew > _SKEW_FAIL_MICROS else WARN
    return Finding("clock", level, text, "synchronise both clocks (NTP): expiry and watermarks follow them")


# The registry, and what it says


def _applied(settings: Settings, online: OnlineStore | None) -> Findings:
    shown, file = redacted(settings.registry.url), Path(settings.registry_url.partition(":///")[2])
    if settings.registry_url.startswith("sqlite") and not file.exists():
        yield Finding("registry", WARN, f"there is none yet at {shown}", "featurestore apply")
        return
    try:
        registry = Registry(settings.registry_url, settings.project, shown)
    except FeatureStoreError as reason:
        yield Finding("registry", FAIL, str(reason), "start the database, or correct registry.url")
        return
    with closing(registry):
        yield from _registry(registry, shown)
        yield from _state(settings, registry, online)


def _registry(registry: Registry, shown: str) -> Findings:
    name, number, theirs = registry.server()
    if name == "PostgreSQL":
        yield _server("registry", name, number, shown)
        yield _clock("registry", theirs)
    else:
        yield Finding("registry", OK, f"{name} {number} at {shown}")


def _state(settings: Settings, registry: Registry, online: OnlineStore | None) -> Findings:
    applied = registry.applied()
    if not applied.versions:
        yield Finding("plan", WARN, "no feature view is applied", "featurestore apply")
        return
    yield from _plan(settings, applied)
    fed = [each for each in applied.versions if each.is_fed]
    for each in fed:
        yield from _checked(_lease, registry, each)
        yield from _checked(_coverage, settings, each)
        if online is not None and each.view.online:
            yield from _checked(_pushed if each.view.is_pushed else _loaded, (registry, online), each)
    yield from _waiting(applied)
    yield from _leftovers(settings, applied)


def _checked(check: Callable[[_T, Version], Findings], where: _T, each: Version) -> Findings:
    try:
        yield from check(where, each)
    except FeatureStoreError as reason:
        yield Finding("state", FAIL, str(reason), "see the message")


def _plan(settings: Settings, applied: Applied) -> Findings:
    try:
        planned = make_plan(applied, load_repo(settings.root))
    except FeatureStoreError:
        return  # said already
    if planned.is_empty:
        yield Finding("plan", OK, f"revision {applied.revision} is what the definitions say")
    else:
        yield Finding("plan", WARN, "the definitions differ from what is applied", "featurestore plan, then featurestore apply")


def _named(each: Version) -> str:
    return f"{each.view.name} v{each.number}"


def _lease(registry: Registry, each: Version) -> Findings:
    by = registry.lease_holder(each)
    if by is not None:
        yield Finding("lease", OK, f"{_named(each)} is being materialized by {by}")
    elif any(run.status == "running" and (run.view, run.version) == (each.view.name, each.number) for run in registry.runs(1000)):
        yield Finding(
            "lease", WARN, f"a run of {_named(each)} was killed", f"featurestore materialize {each.view.name}: it goes on"
        )


def _coverage(settings: Settings, each: Version) -> Findings:
    view, again = _named(each), f"featurestore materialize {each.view.name}"
    if each.coverage is None and each.view.is_pushed:
        yield Finding("coverage", OK, f"{view} answers from its log alone so far; a materialization makes a table of it")
        return
    if each.coverage is None:
        yield Finding("coverage", WARN, f"{view} is not materialized", again)
        return
    offline_table(settings, each).snapshot(each.table_version)
    behind, refresh = settings.clock() - each.coverage.end, duration_micros(each.view.refresh)
    text = f"{view} covers until {instant_text(each.coverage.end)}"
    if refresh and behind > refresh and not each.view.is_static:
        yield Finding("coverage", WARN, f"{text}, more than its refresh ago", again)
    elif each.view.online and (each.loaded is None or each.loaded.table_version != each.table_version):
        yield Finding("coverage", WARN, f"{text}, and not all of it is loaded online", again)
    else:
        yield Finding("coverage", OK, text)


def _loaded(where: tuple[Registry, OnlineStore], each: Version) -> Findings:
    _, online = where
    if each.loaded is not None and online.loaded_run(each) != each.loaded.run:
        yield _lost(each)


def _pushed(where: tuple[Registry, OnlineStore], each: Version) -> Findings:
    registry, online = where
    logged, written = registry.pushes.state(each.view.source.name).last_push, online.pushed_until(each).until
    if logged is None or (written is not None and written >= logged):
        return
    if written is None and each.loaded is not None:
        yield _lost(each)
        return
    text = f"the online store does not have all that was pushed to {_named(each)}"
    yield Finding("online rows", WARN, text, f"featurestore sync --views {each.view.name}, or any push, writes the rest")


def _lost(each: Version) -> Finding:
    text = f"the online store has lost rows of {_named(each)}"
    return Finding("online rows", FAIL, text, f"featurestore materialize {each.view.name}")


def _waiting(applied: Applied) -> Findings:
    for (kind, name), needs in applied.waiting.items():
        yield Finding("candidates", WARN, f"{kind} {name} waits for {'; '.join(needs)}", "featurestore materialize")


def _leftovers(settings: Settings, applied: Applied) -> Findings:
    retired = [each for each in applied.versions if not each.is_fed and each.state in ("replaced", "dropped", "removing")]
    if retired:
        since = min(each.retired_at or 0 for each in retired)
        text = f"{len(retired)} versions that no rollback reaches, the oldest since {from_micros(since):%Y-%m-%d}"
        yield Finding("removal", OK, f"{text}: removed bit by bit by every materialize, or at once by featurestore prune")
    known = {offline_table(settings, each).folder for each in applied.versions}
    strange = [path for path in settings.offline_folder.glob("*/v*-*") if path not in known]
    for path in strange:
        yield Finding("removal", WARN, f"{path} belongs to no version of this registry", "remove it, if no other registry uses it")
