"""The command that says how far everything is: status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from featurestore.cli.invocation import Invocation
from featurestore.cli.rendering import NOTHING, bytes_text, elapsed_text, fitted, time_text
from featurestore.clock import duration_micros, instant_text
from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    from featurestore.online.sizing import Usage
    from featurestore.registry.pushes import LogState
    from featurestore.registry.state import Applied, Run, Version
    from featurestore.store import FeatureStore

__all__ = ["status"]

_RUNS = 1000
_COLOURS = {"serving": "green", "candidate": "yellow"}

All = Annotated[bool, typer.Option("--all", metavar="", help="Show versions too that no rollback can reach.")]


def status(call: Invocation, show_all: All = False) -> None:
    """Show how far each view is, offline and online.

    Example: featurestore status
    """
    with call.store() as store:
        runs: dict[tuple[str, int], Run] = {}
        for run in store.runs(_RUNS):
            runs.setdefault((run.view, run.version), run)
        applied = store.applied()
        chosen = [version for version in applied.versions if show_all or version.is_fed]
        chosen.sort(key=lambda version: (version.view.name, version.number))
        record = _repo_record(store)
        usage = _usage(store, chosen, record["online"])
        record["views"] = [
            _record(store, applied, version, runs.get((version.view.name, version.number)), usage.get(version.uid))
            for version in chosen
        ]
        record["push_sources"] = [_log_record(source, log) for source, log in store.push_logs().items()]
        record["waiting"] = [{"kind": kind, "name": name, "needs": list(needs)} for (kind, name), needs in applied.waiting.items()]
    call.answer(record, _parts(call, record))


# What is there


def _repo_record(store: FeatureStore) -> dict[str, Any]:
    from featurestore.online import embedded
    from featurestore.settings import redacted

    settings = store.settings
    is_running = embedded.is_running(settings.state / "online") if settings.online.url == "embedded" else None
    return {
        "project": settings.project,
        "repo": str(settings.root),
        "now": instant_text(store.clock()),
        "registry": redacted(settings.registry.url),
        "offline": str(settings.offline_folder),
        "online": {"url": redacted(settings.online.url), "is_running": is_running, "error": None},
    }


def _usage(store: FeatureStore, versions: Sequence[Version], online: dict[str, Any]) -> dict[str, Usage]:
    """Return what is in the online store; if it does not answer, nothing, and `online` says why. An embedded one is not started."""
    loaded = [version for version in versions if version.loaded is not None]
    if not loaded or online["is_running"] is False:
        return {}
    try:
        return store.usage(loaded)
    except FeatureStoreError as error:  # the columns of offline tables and runs are worth showing without
        online["error"] = str(error)
        return {}


def _record(store: FeatureStore, applied: Applied, version: Version, run: Run | None, usage: Usage | None) -> dict[str, Any]:
    now, coverage = store.clock(), version.coverage
    behind, refresh = version.behind(now), duration_micros(version.view.refresh)
    return {
        "view": version.view.name,
        "version": version.number,
        "state": version.state,
        "is_rollback": version.is_rollback,
        "needs": _needs(applied, version),
        "watermark": None if coverage is None else instant_text(coverage.end),
        "behind_seconds": None if behind is None else behind // 1_000_000,
        "is_overdue": behind > refresh if behind is not None and refresh else coverage is None and not version.view.is_pushed,
        "offline": _offline(store, version),
        "online": _online(version),
        "online_rows": None if usage is None else asdict(usage),
        "last_run": None if run is None else _run_record(run),
        "availability": _availability(store, version),
    }


def _availability(store: FeatureStore, version: Version) -> dict[str, Any] | None:
    """Return what is declared and what was measured of how old rows are when they are readable online; none if nothing was."""
    from featurestore.availability import availability

    found = availability(version.view, store.registry.loads(version)) if version.view.online else None
    if found is None:
        return None
    return {
        "declared_seconds": found.declared / 1_000_000,
        "p50_seconds": found.p50 / 1_000_000,
        "p99_seconds": found.p99 / 1_000_000,
        "rows": found.rows,
        "is_optimistic": found.is_optimistic,
    }


def _needs(applied: Applied, version: Version) -> list[str]:
    """Say what a version needs before it can serve: a candidate what its takeover waits for, a kept one what it lacks itself."""
    from featurestore.registry.settling import lacks

    if version.state == "candidate":
        return list(applied.waiting.get(("feature view", version.view.name), ()))
    serving = (each for each in applied.versions_of(version.view.name) if each.state == "serving")
    return list(lacks(version, next(serving, None))) if version.is_rollback else []


def _offline(store: FeatureStore, version: Version) -> dict[str, Any]:
    try:
        snapshot = store.snapshot(version)
    except FeatureStoreError as error:  # a table that is broken is what one looks for here
        return {"rows": None, "files": None, "error": str(error)}
    return {"rows": snapshot.rows, "files": len(snapshot.files), "error": None}


def _online(version: Version) -> str:
    """Say whether all that is materialized is loaded: `loaded`, `behind`, `not loaded`; or `off` (online=False) or `pushed`."""
    if not version.view.online:
        return "off"
    if version.view.is_pushed:
        return "pushed"
    if version.loaded is None:
        return "not loaded"
    return "loaded" if version.loaded.table_version == version.table_version else "behind"


def _log_record(source: str, log: LogState) -> dict[str, Any]:
    last = None if log.last_push is None else instant_text(log.last_push)
    return {"source": source, "rows": log.rows, "last_push": last, "rows_not_folded": log.waiting, "files": len(log.files)}


def _run_record(run: Run) -> dict[str, Any]:
    finished = None if run.finished_at is None else instant_text(run.finished_at)
    return {
        "number": run.number,
        "status": run.status,
        "started_at": instant_text(run.started_at),
        "finished_at": finished,
        "error": run.error,
    }


# How it looks


def _parts(call: Invocation, record: Mapping[str, Any]) -> Iterator[RenderableType]:
    running = {None: "", True: ", running", False: ", not running"}[record["online"]["is_running"]]
    yield Text.assemble((record["project"], "bold"), f" in {record['repo']}, now {time_text(record['now'])}")
    yield Text(f"registry {record['registry']}, online store {record['online']['url']}{running}", "dim")
    yield ""
    if not record["views"]:
        yield f"No view is applied. Next: {call.line('apply')}"
        return
    headers = ["view", "version", "state", "watermark", "behind", "rows", "files", "online", "last run"]
    yield from fitted(headers, list(map(_row, record["views"])))
    yield from _online_rows(record["views"])
    if record["online"]["error"] is not None:
        yield Text.assemble(("\nno online rows: ", "bold red"), record["online"]["error"])
    yield from _logs(record["push_sources"])
    yield from _readable(record["views"])
    yield from _troubles(record["views"])
    yield from _waiting(record)
    if any(view["last_run"] is None and view["online"] != "pushed" for view in record["views"]):
        yield f"\nNext: {call.line('materialize')}"


def _waiting(record: Mapping[str, Any]) -> Iterator[Text]:
    for view in record["views"]:
        own = f"{view['view']} v{view['version']}: "
        if view["needs"]:
            what = "to serve again" if view["is_rollback"] else "to take over"
            needs = "; ".join(need.removeprefix(own) for need in view["needs"])
            yield Text.assemble((own, "bold yellow"), f"{what}, it waits for {needs}")
    for each in record["waiting"]:
        if each["kind"] != "feature view":
            yield Text.assemble((f"{each['kind']} {each['name']}: ", "bold yellow"), f"pending, until {'; '.join(each['needs'])}")


def _row(view: Mapping[str, Any]) -> list[Any]:
    run = view["last_run"]
    return [
        view["view"],
        view["version"],
        Text("rollback" if view["is_rollback"] else view["state"], _COLOURS.get(view["state"], "dim")),
        NOTHING if view["watermark"] is None else time_text(view["watermark"]),
        _behind(view),
        NOTHING if view["offline"]["rows"] is None else view["offline"]["rows"],
        NOTHING if view["offline"]["files"] is None else view["offline"]["files"],
        Text(view["online"], {"loaded": "green", "pushed": "green", "off": "dim"}.get(view["online"], "yellow")),
        NOTHING if run is None else Text(run["status"], {"completed": "green", "failed": "red"}.get(run["status"], "yellow")),
    ]


def _online_rows(views: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    counted = [(view, view["online_rows"]) for view in views if view["online_rows"] is not None]
    if counted:
        yield ""
        headers = ["online rows", "version", "keys", "bytes per row", "memory"]
        yield from fitted(headers, [[view["view"], view["version"], *_cells(rows)] for view, rows in counted])


def _logs(logs: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if logs:
        yield ""
        yield from fitted(["push source", "rows", "last push", "not folded yet"], list(map(_log_row, logs)))


def _log_row(log: Mapping[str, Any]) -> list[Any]:
    last = NOTHING if log["last_push"] is None else time_text(log["last_push"])
    return [log["source"], log["rows"], last, log["rows_not_folded"]]


def _readable(views: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    measured = [(view, view["availability"]) for view in views if view["availability"] is not None]
    if not measured:
        return
    yield ""
    headers = ["readable online after", "version", "declared", "p50", "p99", "of rows"]
    yield from fitted(headers, [[view["view"], view["version"], *_ages(each)] for view, each in measured])
    for view, each in measured:
        if each["is_optimistic"]:
            text = (
                f"refresh + delay say that rows are readable after {_age(each['declared_seconds'])}, one in a hundred takes "
                f"{_age(each['p99_seconds'])} or more: training sees them before serving did. Declare a longer delay, or train "
                "with availability='measured'"
            )
            yield Text.assemble((f"warning: {view['view']} v{view['version']}: ", "bold yellow"), text)


def _ages(each: Mapping[str, Any]) -> list[Any]:
    colour = "yellow" if each["is_optimistic"] else ""
    p50, p99 = _age(each["p50_seconds"]), Text(_age(each["p99_seconds"]), colour)
    return [_age(each["declared_seconds"]), p50, p99, each["rows"]]


def _age(seconds: float) -> str:
    return elapsed_text(round(seconds * 1_000_000))


def _cells(rows: Mapping[str, Any]) -> list[Any]:
    about = "" if rows["is_exact"] else "about "
    return [f"{about}{rows['keys']:,}", rows["row_bytes"], f"{about}{bytes_text(rows['memory_bytes'])}"]


def _behind(view: Mapping[str, Any]) -> Text:
    if view["behind_seconds"] is None:
        return NOTHING
    return Text(elapsed_text(view["behind_seconds"] * 1_000_000), "yellow" if view["is_overdue"] else "")


def _troubles(views: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    for view in views:
        run = view["last_run"]
        for trouble in (run and run["error"], view["offline"]["error"]):
            if trouble:
                yield Text.assemble((f"{view['view']} v{view['version']}: ", "bold red"), trouble.splitlines()[0])
