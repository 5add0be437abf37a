"""Rendering results as the Markdown that the READMEs show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["render", "with_scoreboard"]

_BEGIN, _END = "<!-- scoreboard -->\n", "<!-- /scoreboard -->"


def render(results: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table, and a line that says when and with what they were measured."""
    lines = ["| what | ours | compared with | ratio (least to greatest) |", "|---|---|---|---|"]
    for row in results["rows"]:
        ours, peer = (
            f"{value:,.2f} s" if row["unit"] == "s" else f"{value:,.0f} {row['unit']}" for value in (row["ours"], row["peer"])
        )
        spread = f"{row['spread'][0]:.2f} to {row['spread'][1]:.2f}"
        lines.append(f"| {row['what']} | {ours} | {peer}, {row['peer_name']} | {row['ratio']:.2f} ({spread}) |")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    where = f"{results['date']}, commit {results['commit']}, {results['machine']}, Python {results['python']}, {versions}"
    return "\n".join([*lines, "", f"Medians; {where}."])


def with_scoreboard(document: str, results: Mapping[str, Any]) -> str:
    """Return a document with the results between its scoreboard marks."""
    before, _, rest = document.partition(_BEGIN)
    return f"{before}{_BEGIN}{render(results)}\n{_END}{rest.partition(_END)[2]}"
