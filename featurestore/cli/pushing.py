"""The command that pushes rows: push."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.invocation import Invocation
from featurestore.cli.rendering import counted

if TYPE_CHECKING:
    from featurestore.push import Receipt

__all__ = ["push"]

SourceName = Annotated[str, typer.Argument(metavar="SOURCE", help="The push source, as it is applied.")]
Rows = Annotated[Path, typer.Argument(metavar="FILE", help="A Parquet file with its columns.")]
Key = Annotated[
    str | None, typer.Option("--idempotency-key", metavar="TEXT", help="A push with the key of an earlier one changes nothing.")
]


def push(call: Invocation, source: SourceName, file: Rows, idempotency_key: Key = None) -> None:
    """Push the rows of a Parquet file: logged durably, written online, visible to training at once.

    A file of more than 100,000 rows is checked as a whole first, and then pushed in parts.

    Example: featurestore push service_reports reports.parquet
    """
    with call.store() as store:
        receipts = store.push_file(source, file, idempotency_key)
    rows, erased = sum(each.rows for each in receipts), sum(each.erased for each in receipts)
    record: dict[str, Any] = {"source": source, "rows": rows, "erased": erased, "pushes": [each.to_dict() for each in receipts]}
    call.answer(record, _parts(source, receipts, rows, erased))


def _parts(source: str, receipts: list[Receipt], rows: int, erased: int) -> Iterator[str]:
    yield f"{counted(rows, 'row')} pushed to {source}."
    if erased:
        yield f"{counted(erased, 'row')} of erased keys not taken."
    if not all(each.is_online for each in receipts):
        yield "Logged, and not all written online yet; the next push does that, or: featurestore sync"
