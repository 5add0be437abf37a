"""The commands that run views: materialize, sync, compact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from featurestore.cli.invocation import Invocation
from featurestore.cli.progress import row_bars
from featurestore.cli.rendering import NOTHING, counted, fitted, time_text
from featurestore.errors import RunsFailedError

if TYPE_CHECKING:
    from featurestore.materialize import Report, Step
    from featurestore.store import FeatureStore

__all__ = ["compact", "materialize", "sync"]

Views = Annotated[list[str] | None, typer.Argument(metavar="VIEWS", help="Feature views; by default all.")]
Start = Annotated[str | None, typer.Option(metavar="TIME", help="Where to start; by default at the watermark.")]
SyncViews = Annotated[list[str] | None, typer.Option("--views", metavar="VIEW", help="Feature views; by default all.")]
Full = Annotated[bool, typer.Option("--full", metavar="", help="Write every row, not only what has changed.")]
_MAX_RATE_HELP = "Rows per second to write online; by default as many as those who read it let it."
MaxRate = Annotated[float | None, typer.Option(metavar="ROWS", min=1, help=_MAX_RATE_HELP)]
Vacuum = Annotated[bool, typer.Option("--vacuum", metavar="", help="Also remove files that nothing needs any more.")]
End = Annotated[str | None, typer.Option(metavar="TIME", help="Where to end; by default now.")]


def materialize(call: Invocation, views: Views = None, start: Start = None, end: End = None, max_rate: MaxRate = None) -> None:
    """Bring views up to date, offline and online.

    A run goes on at the view's watermark. With --start and --end it computes an interval anew, (start, end] of visible time.

    Example: featurestore materialize machine_health --start 2024-01-02
    """
    _run(
        call,
        lambda store, progress, on_report: store.materialize(
            views or None, start, end, max_rate=max_rate, progress=progress, on_report=on_report
        ),
    )


def sync(call: Invocation, views: SyncViews = None, full: Full = False, max_rate: MaxRate = None) -> None:
    """Rebuild the online store out of the offline tables alone, while serving goes on.

    Writes what has changed since the last load, or every row where the server lost them. Sources are not read.

    Example: featurestore sync --full
    """
    chosen = _split(views)
    _run(
        call,
        lambda store, progress, on_report: store.sync(chosen, full=full, max_rate=max_rate, progress=progress, on_report=on_report),
    )


def compact(call: Invocation, views: SyncViews = None, vacuum: Vacuum = False) -> None:
    """Put the small files of offline tables together.

    Runs do so by themselves when there are many. With --vacuum, files are removed that no current table version has, none of the
    last hour, and none that the manifest of a training set names.

    Example: featurestore compact --vacuum
    """
    reports: list[Report] = []
    with call.store() as store:
        store.compact(_split(views), vacuum=vacuum, on_report=reports.append)
    record = {
        "reports": [
            {"view": each.view, "version": each.version, "compacted": each.compacted, "vacuumed": each.vacuumed} for each in reports
        ]
    }
    rows = [[each.view, each.version, each.compacted, each.vacuumed] for each in reports]
    call.answer(record, fitted(["view", "version", "files put together", "files removed"], rows))


def _split(views: Sequence[str] | None) -> list[str] | None:
    return [name for each in views or () for name in each.split(",")] or None


def _run(call: Invocation, work: Callable[[FeatureStore, Callable[[Step], None], Callable[[Report], None]], object]) -> None:
    finished: list[tuple[Report, float]] = []
    began = time.perf_counter()

    def on_report(report: Report) -> None:
        nonlocal began
        now = time.perf_counter()
        finished.append((report, now - began))
        began = now
        bars.finish()
        bars.say(f"{len(finished)} done, last {report.view}")

    with call.store() as store, row_bars("looking at what there is") as bars:
        try:
            work(store, bars.step, on_report)
        except RunsFailedError as error:
            failure: RunsFailedError | None = error
        else:
            failure = None
    record = {"reports": [{**report.to_dict(), "seconds": round(seconds, 3)} for report, seconds in finished]}
    call.answer(record, _summary(call, finished))
    if failure is not None:
        raise failure


def _summary(call: Invocation, finished: Sequence[tuple[Report, float]]) -> Iterator[RenderableType]:
    if not finished:
        return
    headers = ["view", "version", "from", "to", "rows", "skipped", "late", "written", "deleted", "seconds"]
    yield from fitted(headers, [_row(report, seconds) for report, seconds in finished])
    for report, _ in finished:
        yield from _remarks(call, report)


def _row(report: Report, seconds: float) -> list[Any]:
    interval = [time_text(report.start), time_text(report.end)]
    skipped = report.null_keys + report.null_times
    written = report.online_written if report.online_written or report.online_full else NOTHING
    counts = [report.rows, skipped, report.late, written, report.online_deleted]
    return [report.view, report.version, *interval, *counts, round(seconds, 2)]


def _remarks(call: Invocation, report: Report) -> Iterator[Text]:
    if report.error:
        yield _remark(
            report, f"v{report.version}, kept for rollback, could not be brought up to date: {report.error.splitlines()[0]}"
        )
    for count, lack in ((report.null_keys, "a null join key"), (report.null_times, "no event time")):
        if count:
            yield _remark(report, f"skipped {counted(count, 'source row')} with {lack}")
    if report.late:
        again = call.line("materialize", report.view, "--start", "2013-06-01T00:00:00Z").replace("2013-06-01T00:00:00Z", "TIME")
        yield _remark(
            report,
            f"{counted(report.late, 'source row')} came too late: below the watermark, where the table lacks them. Set lookback "
            f"on the view, which heals them at every run, or go back once: {again}",
        )


def _remark(report: Report, text: str) -> Text:
    return Text.assemble(("note: ", "bold yellow"), f"{report.view}: {text}")
