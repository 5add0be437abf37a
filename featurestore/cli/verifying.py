"""The command that proves parity: verify."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from featurestore.cli.invocation import Invocation
from featurestore.cli.progress import row_bars
from featurestore.cli.rendering import NOTHING, cell, counted, fitted, time_text
from featurestore.errors import InputError

if TYPE_CHECKING:
    from featurestore.parity.findings import Difference, Parity, ViewParity

__all__ = ["verify"]

Views = Annotated[list[str] | None, typer.Argument(metavar="VIEWS", help="Feature views or aliases; by default all.")]
Service = Annotated[str | None, typer.Option(metavar="NAME", help="The views that this feature service asks for.")]
Keys = Annotated[int, typer.Option(min=1, metavar="N", help="How many keys of each view, the same ones each time.")]
All = Annotated[bool, typer.Option("--all", metavar="", help="Every key that the table or the online store has.")]
FromLog = Annotated[
    bool, typer.Option("--from-log", metavar="", help="Compare what the serving log has, at the times of the requests.")
]
Start = Annotated[str | None, typer.Option(metavar="TIME", help="With --from-log, requests after this time.")]
End = Annotated[str | None, typer.Option(metavar="TIME", help="With --from-log, requests until this time.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a report to this file, which needs nothing else.")]
Threshold = Annotated[int, typer.Option(min=0, metavar="N", help="How many keys may differ before the exit code is 1.")]


def verify(
    call: Invocation,
    views: Views = None,
    service: Service = None,
    keys: Keys = 1000,
    every: All = False,
    from_log: FromLog = False,
    start: Start = None,
    end: End = None,
    html: Html = None,
    threshold: Threshold = 0,
) -> None:
    """Compare what is served with what training sees, bit for bit, and say why where they differ.

    Each view is compared at the watermark of its last completed load; with --from-log, each logged request at its time. The exit
    code is 1 if more keys, or logged rows, differ than the threshold, and if nothing was compared.

    Example: featurestore verify --all --html parity.html
    """
    if views and from_log:
        raise InputError("the log is of feature services: name one with --service", name="views")
    if (start or end) and not from_log:
        raise InputError("--start and --end are of requests, which only --from-log has", name="start" if start else "end")
    with call.store() as store, row_bars("comparing") as bars:
        found = (
            store.verify_log(service, start, end, progress=lambda name, done: bars.count(name, "rows", done, None))
            if from_log
            else store.verify(
                views or None,
                service=service,
                keys=None if every else keys,
                progress=lambda view, done: bars.count(view, "keys", done, None),
            )
        )
    if html is not None:
        _write(html, found)
    is_over = found.differences > threshold
    call.answer(found.to_dict() | {"threshold": threshold, "is_over_threshold": is_over}, _parts(found, html))
    if is_over or not found.compared:
        raise typer.Exit(1)


def _write(path: Path, found: Parity) -> None:
    from featurestore.parity.page import page

    try:
        path.write_text(page(found), "utf-8")
    except OSError as reason:
        raise InputError(f"cannot write {path}: {reason}", name=str(path)) from reason


def _parts(found: Parity, html: Path | None) -> Iterator[RenderableType]:
    headers = ["view", "version", "at", f"{found.what}s", "equal", "different", "missing online", "extra online", "causes"]
    yield from fitted(headers, [_row(each) for each in found.views])
    for view in found.views:
        yield from _features(view)
        for example in view.examples:
            yield _example(view, example)
        for note in view.notes:
            yield Text.assemble(("note: ", "bold yellow"), f"{view.view}: {note}")
    differ = f"{found.differences:,} of them {'differs' if found.differences == 1 else 'differ'}"
    verdict = "serving and training agree" if found.is_equal else differ
    compared = f"{counted(found.compared, found.what)}, {counted(found.values, 'value')} compared: {verdict}"
    text = compared if found.compared else "nothing was compared"
    yield Text.assemble("\n", (text, "bold red" if not found.is_equal else "bold green" if found.compared else "bold yellow"))
    if html is not None:
        yield Text(f"report: {html}")


def _row(view: ViewParity) -> list[Any]:
    if view.skipped is not None:
        return [view.view, view.version or NOTHING, *[NOTHING] * 6, Text(view.skipped, "dim")]
    causes = ", ".join(f"{cause.value} {count:,}" for cause, count in sorted(view.causes.items())) or NOTHING
    counts = [view.compared, view.equal, view.different, view.missing_online, view.extra_online]
    at = NOTHING if view.watermark is None else time_text(view.watermark)
    return [view.view, view.version or NOTHING, at, *counts, causes]


def _features(view: ViewParity) -> Iterator[RenderableType]:
    """Give the features of a view of which some values differ."""
    rows = [
        [f"{view.view}:{each.feature}", each.compared, each.equal, each.different, each.missing_online, each.extra_online]
        for each in view.features
        if each.different
    ]
    if rows:
        yield ""
        yield from fitted(["feature", "compared", "equal", "different", "missing online", "extra online"], rows)


def _example(view: ViewParity, example: Difference) -> Text:
    key = ", ".join(f"{name}={cell(value).plain}" for name, value in example.key.items())
    values = "; ".join(
        f"{name} {cell(online).plain} online, {cell(offline).plain} offline" for name, (online, offline) in example.values.items()
    )
    text = f": {example.kind.value}, {example.cause.value}: {example.evidence}" + (f" ({values})" if values else "")
    return Text.assemble((f"{view.view} {key}".rstrip(), "bold red"), text)
