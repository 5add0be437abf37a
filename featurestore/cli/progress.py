"""Progress bars on stderr, where that is a terminal; elsewhere nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from featurestore.cli.rendering import messages

if TYPE_CHECKING:
    from featurestore.materialize import Step

__all__ = ["RowBars", "row_bars"]


class _RowsColumn(ProgressColumn):
    """Rows done, of rows to do where that is known, and how many a second."""

    def render(self, task: Task) -> Text:
        """Return the text of one task."""
        if not task.total and not task.completed:
            return Text("")
        of = "" if task.total is None else f" of {int(task.total):,}"
        seconds = task.fields["seconds"]
        rate = f"  {task.completed / seconds:,.0f}/s" if seconds else ""
        return Text(f"{int(task.completed):,}{of} rows{rate}", "cyan")


class RowBars:
    """A bar for each phase that counts rows, below one line that says what is going on."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._title = progress.add_task(title, total=None, seconds=0)
        self._tasks: dict[tuple[str, str], tuple[TaskID, float]] = {}
        self._latest = time.monotonic()

    def step(self, step: Step) -> None:
        """Move the bar of a view's phase; the view's other phases are over."""
        for (view, phase), (task, _) in self._tasks.items():
            if (view, phase) != (step.view, step.phase):
                self._end(task)
        self.count(step.view, step.phase, step.done, step.total)

    def count(self, name: str, phase: str, done: int, total: int | None) -> None:
        """Move the bar of that name and phase, which began when the one before it last moved."""
        now = time.monotonic()
        if (name, phase) not in self._tasks:
            self._tasks[name, phase] = self._progress.add_task(f"  {name} {phase}", total=total, seconds=0), self._latest
        task, began = self._tasks[name, phase]
        self._progress.update(task, completed=done, total=total, seconds=now - began)
        self._latest = now

    def finish(self) -> None:
        """End all bars; a later run of the same view gets new ones."""
        for task, _ in self._tasks.values():
            self._end(task)
        self._tasks.clear()
        self._latest = time.monotonic()

    def say(self, title: str) -> None:
        """Change the line that says what is going on."""
        self._progress.update(self._title, description=title)

    def _end(self, task: TaskID) -> None:
        # The total is an upper bound, since several rows can have one key.
        done = next(each.completed for each in self._progress.tasks if each.id == task)
        self._progress.update(task, total=done)


@contextmanager
def row_bars(title: str) -> Iterator[RowBars]:
    """Show bars until the block ends; they vanish then, and the answer takes their place."""
    columns: list[Any] = [
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        _RowsColumn(),
        TimeElapsedColumn(),
    ]
    console = messages()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield RowBars(progress, title)
