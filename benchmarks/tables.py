"""Rendering results as the Markdown that the READMEs show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.rows import Row

__all__ = ["SHORT", "brief", "render", "render_curves", "with_part"]

SHORT = (
    "pit_1view", "windows_3", "online_1x10", "online_100x50", "online_python_1x10", "materialize_latest", "bytes_per_row",
    "push_to_read", "lines_to_first_feature",
)  # fmt: skip
"""The rows of the project's README."""


def render(results: Mapping[str, Any], names: tuple[str, ...] | None = None) -> str:
    """Return the results as a Markdown table, and a line that says when and with what they were measured."""
    rows = [row for row in results["rows"] if names is None or row["name"] in names]
    lines = ["| what | ours | compared with | times better (least to greatest) |", "|---|---|---|---|"]
    lines += [_line(row, is_full=names is None) for row in rows]
    if names is None:
        lines += ["", *_costs(rows), "", *_latencies(rows)]
    return "\n".join([*lines, "", f"Medians; {_provenance(results)}."])


def render_curves(scaling: Mapping[str, Any]) -> str:
    """Return the points of a run of `--scale` as a Markdown table, and the same line."""
    lines = ["| curve | whose | size | value | peak of the process |", "|---|---|---|---|---|"]
    for point in sorted(scaling["points"], key=lambda point: (point["curve"], point["who"], point["size"])):
        value = point["error"] or _shown(point["value"], point["unit"])
        memory = "" if point["memory"] is None else f"{point['memory'] / 1e6:,.0f} MB"
        lines.append(f"| `{point['curve']}` | {point['who']} | {point['size']:,} | {value} | {memory} |")
    return "\n".join([*lines, "", f"Each measured once; {_provenance(scaling)}."])


def _provenance(results: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{results['date']}, commit {results['commit']}, {results['machine']}, Python {results['python']}, {versions}"


def brief(row: Row) -> str:
    """Return what a row found in a few words, for whoever waits for the rest."""
    return "  " + _line(asdict(row), is_full=False).removeprefix(f"| {row.what} | ").rstrip(" |")


def _line(row: Mapping[str, Any], *, is_full: bool) -> str:
    what = f"`{row['name']}` {row['what']}" if is_full else row["what"]
    ours = _shown(row["ours"], row["unit"])
    if row["error"] is not None:
        return f"| {what} | {ours} | {row['peer_name']}: failed | {row['error']} |"
    spread = f"{_number(row['spread'][0])} to {_number(row['spread'][1])}"
    peer = f"{_shown(row['peer'], row['unit'])}, {row['peer_name']}"
    return f"| {what} | {ours} | {peer} | {_number(row['ratio'])} ({spread}) |"


def _costs(rows: list[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| row | compared with | processor seconds, ours / theirs | memory at the peak, ours / theirs |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row["processor"] is not None:
            processor = " / ".join(f"{each:,.3g}" for each in row["processor"])
            memory = " / ".join(f"{each / 1e6:,.0f} MB" for each in row["memory"])
            lines.append(f"| `{row['name']}` | {row['peer_name']} | {processor} | {memory} |")
    return lines


def _latencies(rows: list[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| row | at requests per second | p50 | p90 | p99 | p99.9 | the floor's p50 | p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if (latency := row["latency"]) is not None:
            names = ("p50", "p90", "p99", "p99.9", "floor_p50", "floor_p99")
            values = " | ".join(f"{latency[name]:.2f} ms" if name in latency else "not measured" for name in names)
            lines.append(f"| `{row['name']}` | {latency['rate']:,.0f} | {values} |")
    return lines


def _shown(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.2f} {unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def with_part(document: str, mark: str, content: str) -> str:
    """Return a document with other content between the marks of a part."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, _, rest = document.partition(begin)
    return f"{before}{begin}{content}\n{end}{rest.partition(end)[2]}"
