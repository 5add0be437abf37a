"""The command that builds a training set: get-historical."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from featurestore.cli.invocation import Invocation
from featurestore.cli.progress import RowBars, row_bars
from featurestore.cli.rendering import counted, json_form, values_grid
from featurestore.cli.serving import Features, LockOption, features_named

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.offline.training import TrainingSet

__all__ = ["get_historical"]


class Incomplete(StrEnum):
    """What happens to spine rows beyond a view's watermark."""

    ERROR = "error"
    STALE = "stale"
    NULL = "null"


class Availability(StrEnum):
    """From when rows are visible."""

    DECLARED = "declared"
    MEASURED = "measured"


SpineOption = Annotated[
    str, typer.Option("--spine", metavar="FILE|SQL", help="Entity keys and timestamps: a Parquet file, or SQL that selects them.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write all rows to this Parquet file.")]
TimestampColumn = Annotated[str, typer.Option(metavar="NAME", help="The spine's column of timestamps.")]
IncompleteOption = Annotated[
    Incomplete, typer.Option(help="Rows beyond what is materialized: refuse, answer from what is there, or leave null.")
]
AvailabilityOption = Annotated[
    Availability, typer.Option(help="Rows are visible as their view declares, or from when they were readable online on record.")
]
Limit = Annotated[int, typer.Option(min=1, metavar="ROWS", help="How many rows to show without --output.")]


def get_historical(
    call: Invocation,
    features: Features,
    spine: SpineOption,
    output: Output = None,
    timestamp_column: TimestampColumn = "event_timestamp",
    incomplete: IncompleteOption = Incomplete.ERROR,
    availability: AvailabilityOption = Availability.DECLARED,
    limit: Limit = 20,
    lock: LockOption = None,
) -> None:
    """Build a training set: features as of each row's own time.

    Example: featurestore get-historical machine_health_v1 --spine spine.parquet
    """
    with call.store() as store, row_bars("reading the spine") as bars:
        training = store.get_historical_features(
            spine,
            features_named(features),
            timestamp_column=timestamp_column,
            incomplete=incomplete.value,
            availability=availability.value,
            lock=lock,
        )
        bars.say("looking the features up")
        # One row more than is shown tells whether there are more.
        rows = _watched(training, bars, None if output else limit + 1)
        answer = _written(rows, output) if output else _first_rows(rows, limit)
    call.answer(*answer)


Answer = tuple[dict[str, Any], Iterable[RenderableType]]


def _watched(training: TrainingSet, bars: RowBars, limit: int | None) -> TrainingSet:
    """Return the same training set, or its first rows, with a bar for the rows that it has read of its spine."""
    total = sum(map(len, training.spine.times()))
    total = total if limit is None else min(total, limit)

    def read(columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in training.spine.read(columns):
            part = batch if limit is None else batch.slice(0, limit - done)
            yield part
            done += len(part)
            bars.count("training set", "rows", done, total)
            if done == limit:
                return

    # It has been checked for completeness, and need not be again.
    checked = training.incomplete if training.incomplete == "null" else "stale"
    return replace(training, spine=replace(training.spine, read=read), incomplete=checked)


def _written(training: TrainingSet, path: Path) -> Answer:
    rows, names = training.to_parquet(path), training.schema.names
    record = {"path": str(path), "rows": rows, "columns": names, "table_versions": training.table_versions}
    return record, [f"{counted(rows, 'row')} of {counted(len(names), 'column')} in {path}"]


def _first_rows(training: TrainingSet, limit: int) -> Answer:
    table, types = training.to_arrow(), training.selection.types()
    rows, is_cut = table.slice(0, limit), len(table) > limit
    forms = {name: types[name].to_json if name in types else json_form for name in rows.column_names}
    values = {name: [forms[name](value) for value in rows[name].to_pylist()] for name in rows.column_names}
    record = {"rows": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)], "is_cut": is_cut}
    return record, _shown(values, is_cut=is_cut)


def _shown(values: dict[str, list[Any]], *, is_cut: bool) -> Iterator[RenderableType]:
    rows = len(next(iter(values.values())))
    if not rows:
        yield "The spine has no rows."
        return
    yield from values_grid(values)
    if is_cut:
        yield f"These are the first {counted(rows, 'row')}; --limit shows more, --output FILE writes all."
