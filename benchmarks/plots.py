"""Curves as SVG: size along, cost upwards, both by powers of ten, so that what grows in proportion is a straight line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["plots"]

CURVES = {
    "pit_1view": ("Point-in-time join to Parquet: seconds", "rows of the source; spine of a tenth"),
    "windows_3": ("3 windows x 4 functions to Parquet: seconds", "rows of the source; spine of a tenth"),
    "bulk_load": ("Online load: rows per second", "keys"),
    "lookups": ("Lookup of one key: microseconds", "keys in the store"),
    "batches": ("Lookup of many keys: microseconds", "keys in a lookup"),
    "views": ("Lookup of one key: microseconds", "views of the service"),
}
"""Their titles, and what lies along."""

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 320, 70, 50, 40, 150
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626")


def plots(scaling: Mapping[str, Any]) -> dict[str, str]:
    """Return the curves of a run of `--scale`, by name."""
    points = {curve: [point for point in scaling["points"] if point["curve"] == curve] for curve in CURVES}
    return {curve: _plot(*CURVES[curve], mine) for curve, mine in points.items() if mine}


def _plot(title: str, along: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Return one curve for each of those who were measured; a size at which somebody failed has no point."""
    measured = [point for point in points if point["value"] is not None]
    sizes, values = [point["size"] for point in measured], [point["value"] for point in measured]
    first, last = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes)))
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    last, high = max(last, first + 1), max(high, low + 1)

    def x(size: float) -> float:
        return LEFT + (math.log10(size) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(along)}</text>',
    ]
    for power in range(first, last + 1):
        place = x(10**power)
        parts.append(f'<line x1="{place:.1f}" y1="{TOP}" x2="{place:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_label(power)}</text>')
    for power in range(low, high + 1):
        place = y(10**power)
        parts.append(f'<line x1="{LEFT}" y1="{place:.1f}" x2="{WIDTH - RIGHT}" y2="{place:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{_label(power)}</text>')
    names = list(dict.fromkeys(point["who"] for point in measured))
    for number, name in enumerate(names):
        colour, own = COLOURS[number], sorted((point["size"], point["value"]) for point in measured if point["who"] == name)
        line = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in own)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}"/>' for size, value in own]
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{TOP + 14 + 18 * number}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _label(power: int) -> str:
    if power >= 0:
        return f"{10 ** (power % 3)}{('', 'k', 'M', 'G')[power // 3]}"
    return f"{10.0**power:g}"
