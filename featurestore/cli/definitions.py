"""The commands that begin and change a repo: init, plan, apply."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from featurestore.cli import example
from featurestore.cli.invocation import Invocation, shell_line
from featurestore.cli.rendering import bytes_text, counted
from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    from featurestore.registry.plan import Change, FieldChange, NewVersion, Plan
    from featurestore.sizing import Estimate

__all__ = ["apply", "init", "plan"]

_MARKS = {"create": ("+", "green"), "change": ("~", "yellow"), "remove": ("-", "red")}
_SHORT = 72
_NAMED = 3

Folder = Annotated[Path | None, typer.Argument(metavar="DIR", help="The folder; by default the repo's.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask before something is removed or replaced.")]


def init(call: Invocation, folder: Folder = None) -> None:
    """Start a repo of a few files that work at once.

    Example: featurestore init my_repo
    """
    folder = folder or call.repo
    project, files = example.create(folder)
    notes = list(_notes(folder, files))
    lines = [shell_line("featurestore", *words) for words in example.NEXT]
    if folder.resolve() != Path.cwd():
        lines.insert(0, shell_line("cd", str(folder)))
    record = {"repo": str(folder.resolve()), "project": project, "files": files, "notes": notes, "next": lines}
    said = [Text.assemble(("note: ", "bold yellow"), note) for note in notes]
    call.answer(record, [f"Project {project!r} is ready: {', '.join(files)}", *said, "", "Next:", *(f"  {line}" for line in lines)])


def _notes(folder: Path, files: list[str]) -> Iterator[str]:
    if others := example.foreign_definitions(folder):
        named = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        yield f"{folder} holds other Python files, which will be loaded as definitions too: {named}"
    if ".gitignore" not in files:
        yield ".gitignore was there and is left as it is; add .featurestore/ to it"


def plan(call: Invocation) -> None:
    """Show what apply would change, and change nothing.

    Example: featurestore plan
    """
    with call.store() as store:
        planned = store.plan()
        memory = store.estimate(planned)
    record = {**planned.to_dict(), "online_memory": [each.to_dict() for each in memory]}
    call.answer(record, [*_plan_lines(planned), *_memory_lines(memory), *_hint(planned, call.line("apply"))])


def apply(call: Invocation, yes: Yes = False) -> None:
    """Show what is to change, and change it.

    On a terminal it asks before it removes something or replaces a version. Values are computed by the next materialize.

    Example: featurestore apply --yes
    """
    with call.store() as store:
        planned = store.plan()
        if not call.as_json:
            call.announce(_plan_lines(planned))
        if _is_drastic(planned) and call.can_ask and not yes and not call.is_confirmed("Apply this?"):
            raise FeatureStoreError("nothing was applied")
        store.apply(planned)
    views = [new.view.name for new in planned.new_versions]
    hint = _hint(planned, call.line("materialize", *views)) if views else []
    record = {"applied": not planned.is_empty, **planned.to_dict()}
    call.answer(record, [] if planned.is_empty else ["", "Applied.", *hint])


def _is_drastic(planned: Plan) -> bool:
    removes = any(change.action == "remove" for change in planned.changes)
    return removes or bool(planned.new_code) or any(new.replaces for new in planned.new_versions)


def _hint(planned: Plan, line: str) -> list[str]:
    return [] if planned.is_empty else ["", f"Next: {line}"]


def _plan_lines(planned: Plan) -> Iterator[RenderableType]:
    for change in planned.changes:
        yield from _change_lines(change)
    if planned.new_versions or planned.new_code:
        yield Text("\nNew versions" if planned.changes else "New versions", "bold")
    for new in planned.new_versions:
        yield from _version_lines(new)
    for name in planned.new_code:
        yield Text(f"~ {name} replaces what it was: at once, or with the candidates that it is connected with", "yellow")
    for view in planned.dropped_candidates:
        yield Text(f"- the candidate version of {view} that never served is dropped", "red")
    if planned.waiting:
        yield Text("\nCandidates" if planned.changes or planned.new_versions else "Candidates", "bold")
    for each in planned.waiting:
        own = f"{each.view} v{each.number}"
        yield Text(f"  {own} waits for {'; '.join(need.removeprefix(f'{own}: ') for need in each.needs)}", "yellow")
    for warning in planned.warnings:
        yield Text.assemble(("warning: ", "bold yellow"), warning)
    yield Text(_summary(planned), "bold")


def _memory_lines(memory: Sequence[Estimate]) -> Iterator[Text]:
    for each in memory:
        size = bytes_text(each.memory_bytes)
        yield Text(
            f"{each.view} v{each.version} online: about {counted(each.keys, 'key')} of {each.row_bytes:.0f} bytes, {size}", "dim"
        )


def _summary(planned: Plan) -> str:
    if planned.is_empty:
        return "Nothing to change."
    counts = Counter(change.action for change in planned.changes)
    listed = ", ".join(f"{counts[action]} to {action}" for action in _MARKS)
    return f"\n{listed}; {counted(len(planned.new_versions) + len(planned.new_code), 'new version')}"


def _change_lines(change: Change) -> Iterator[Text]:
    mark, colour = _MARKS[change.action]
    yield Text.assemble((f"{mark} {change.kind:<15} ", colour), change.name)
    for field in change.fields:
        yield from _field_lines(field)


def _version_lines(new: NewVersion) -> Iterator[Text]:
    name = f"{new.view.name} v{new.number}"
    if new.is_resumed:
        yield Text(f"~ {name}, kept for rollback, replaces v{new.replaces}: at once, or when it has what it lacks", "yellow")
        return
    if new.replaces is None:
        yield Text(f"+ {name}: materialize {new.materialization}", "green")
        return
    yield Text(f"~ {name} replaces v{new.replaces}: materialize {new.materialization}", "yellow")
    for reason in new.reasons:
        yield from _field_lines(reason)


def _field_lines(field: FieldChange) -> Iterator[Text]:
    before, after = _shown(field.before), _shown(field.after)
    if len(before) + len(after) <= _SHORT and "\n" not in before + after:
        yield Text.assemble(f"    {field.field}: ", (before, "red"), " -> ", (after, "green"))
        return
    yield Text(f"    {field.field}:")
    for line in difflib.ndiff(_items(field.before), _items(field.after)):
        if not line.startswith("?"):
            yield Text(f"      {line}", {"-": "red", "+": "green"}.get(line[0], "dim"))


def _shown(value: Any) -> str:
    return "unset" if value is None else value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _items(value: Any) -> list[str]:
    """Cut a long value into the lines that are compared: of a text its lines, of a list its items."""
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return [] if value is None else _shown(value).splitlines()
