"""Rendering rows as the Markdown table that README.md shows."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.rows import Row

__all__ = ["render"]


def render(rows: Iterable[Row]) -> str:
    """Return a Markdown table, one line for each row."""
    lines = ["| what | ours | compared with | ratio |", "|---|---|---|---|"]
    for row in rows:
        ours, peer = (f"{value:,.2f} s" if row.unit == "s" else f"{value:,.0f} {row.unit}" for value in (row.ours, row.peer))
        spread = f"{row.spread[0]:.2f} to {row.spread[1]:.2f}"
        lines.append(f"| {row.what} | {ours} | {peer}, {row.peer_name} | {row.ratio:.2f} ({spread}) |")
    return "\n".join(lines)
