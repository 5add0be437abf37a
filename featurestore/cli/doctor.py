"""The command that finds what is wrong: doctor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from featurestore.cli.invocation import Invocation

if TYPE_CHECKING:
    from featurestore.doctor import Finding

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(call: Invocation) -> None:
    """Examine the repo and its servers, and say what to do.

    It looks at settings, definitions, versions, permissions, disk, clocks, leases, coverage and candidates, changes nothing, and
    starts no server. Its exit code is 1 if a check fails.

    Example: featurestore doctor
    """
    from featurestore.doctor import FAIL, examine

    findings = list(examine(call.repo))
    counts = {level: sum(each.level == level for each in findings) for level in _COLOURS}
    call.answer({"findings": [asdict(each) for each in findings], "counts": counts}, _lines(findings, counts))
    if counts[FAIL]:
        raise typer.Exit(1)


def _lines(findings: Sequence[Finding], counts: dict[str, int]) -> Iterator[Text]:
    width = max(len(each.check) for each in findings)
    for each in findings:
        first, *rest = each.message.splitlines()
        yield Text.assemble((f"{each.level:<5}", _COLOURS[each.level]), f"{each.check:<{width}}  ", first)
        for line in rest:
            yield Text(f"{'':<{width + 7}}{line}")
        if each.todo:
            yield Text.assemble(" " * (width + 7), ("-> ", "bold"), each.todo)
    yield Text(f"\n{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed", "bold")
