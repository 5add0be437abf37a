"""The report of a verification as one page of HTML: nothing is loaded from elsewhere, and every text is escaped.

Plots are inline SVG: a bar for each view and each feature, cut by outcome, and a bar for each cause.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from featurestore.clock import instant_text
from featurestore.parity.findings import Cause, Difference, FeatureParity, Parity, ViewParity

__all__ = ["page"]

_OUTCOMES = ("equal", "different", "missing online", "extra online")
_COLOURS = ("#2f9e62", "#d6453d", "#e8a33d", "#7a5bd1")
_BAR_WIDTH, _BAR_HEIGHT, _LEAST_WIDTH = 240, 12, 2
_LONGEST = 400
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2.5rem auto; max-width: 72rem; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .3rem; } p { margin: .3rem 0; }
.dim { color: var(--dim); } .verdict { font-size: 1.15rem; font-weight: 600; margin: 1rem 0 1.5rem; padding: .7rem 1rem;
  border-left: .4rem solid; background: var(--soft); } .good { border-color: #2f9e62; } .bad { border-color: #d6453d; }
.none { border-color: #e8a33d; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: .6rem 0; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
h2, td:first-child, .note, .long { overflow-wrap: anywhere; }
td:first-child { min-width: 12rem; } th, .n, .at { white-space: nowrap; }
th { font-weight: 600; font-size: .85rem; color: var(--dim); } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; } svg { display: block; margin-top: .35rem; }
.key { display: inline-block; width: .8rem; height: .8rem; margin: 0 .35rem 0 1rem; vertical-align: -.05rem; }
.note { border-left: .2rem solid #e8a33d; padding-left: .7rem; }
"""


def page(found: Parity) -> str:
    """Return the page."""
    return "\n".join(_page(found)) + "\n"


def _page(found: Parity) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Parity, {_text(instant_text(found.verified_at))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    yield "<h1>Parity of serving and training</h1>"
    sample = f"all {found.what}s" if found.keys is None else f"up to {found.keys:,} keys of each view, by key hash"
    yield f'<p class="dim">Verified at {_text(instant_text(found.verified_at))}: {sample}, {found.values:,} values</p>'
    kind, verdict = _verdict(found)
    yield f'<p class="verdict {kind}">{verdict}</p>'
    yield _legend()
    yield from _table(["view", "version", "at", *_OUTCOMES, ""], [_view_row(each) for each in found.views])
    causes = sum((view.causes for view in found.views), Counter[Cause]())
    if causes:
        yield "<h2>Causes</h2>"
        most = max(causes.values())
        rows = [
            [_text(cause.value), _number(count), _plot([count], most, ["#d6453d"], cause.value)]
            for cause, count in causes.most_common()
        ]
        yield from _table(["cause", f"{found.what}s", ""], rows)
    for view in found.views:
        if view.skipped is None:
            yield from _view(view)
    yield "</body>\n</html>"


def _verdict(found: Parity) -> tuple[str, str]:
    if not found.compared:
        return "none", "Nothing was compared"
    if found.is_equal:
        return "good", "Serving and training agree"
    return "bad", f"{found.differences:,} of {found.compared:,} {found.what}s differ"


def _view_row(view: ViewParity) -> list[str]:
    name = [_text(view.view), str(view.version or "")]
    if view.skipped is not None:
        return [*name, f'<span class="dim">{_text(view.skipped)}</span>', "", "", "", "", ""]
    counts = [view.equal, view.different, view.missing_online, view.extra_online]
    at = "" if view.watermark is None else f'<span class="at">{_text(instant_text(view.watermark))}</span>'
    return [*name, at, *map(_number, counts), _plot(counts, sum(counts), _COLOURS, view.view)]


def _view(view: ViewParity) -> Iterator[str]:
    yield f"<h2>{_text(view.view)}</h2>"
    for note in view.notes:
        yield f'<p class="note">{_text(note)}</p>'
    yield from _table(["feature", "compared", *_OUTCOMES, ""], [_feature_row(each) for each in view.features])
    if view.examples:
        yield from _table(["key", "what", "cause", "evidence", "online / offline"], [_example_row(each) for each in view.examples])


def _feature_row(each: FeatureParity) -> list[str]:
    counts = [each.equal, each.different, each.missing_online, each.extra_online]
    name = f"<code>{_text(each.feature)}</code>"
    return [name, _number(each.compared), *map(_number, counts), _plot(counts, each.compared, _COLOURS, each.feature)]


def _example_row(each: Difference) -> list[str]:
    key = "<br>".join(f"{_text(name)}={_value(value)}" for name, value in each.key.items())
    values = "<br>".join(f"{_text(name)}: {_value(one)} / {_value(other)}" for name, (one, other) in each.values.items())
    return [
        f"<code>{key}</code>",
        each.kind.value,
        each.cause.value,
        f'<span class="long">{_text(each.evidence)}</span>',
        f"<code>{values}</code>",
    ]


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    numeric = [bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(headers))]
    kinds = [' class="n"' if is_number else "" for is_number in numeric]
    yield '<div class="scroll"><table>'
    yield "<tr>" + "".join(f"<th{kind}>{_text(header)}</th>" for header, kind in zip(headers, kinds, strict=True)) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
    yield "</table></div>"


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(",", "").isdigit()


def _legend() -> str:
    keys = zip(_OUTCOMES, _COLOURS, strict=True)
    return "<p>" + "".join(f'<span class="key" style="background: {colour}"></span>{name}' for name, colour in keys) + "</p>"


def _plot(parts: Sequence[int], whole: int, colours: Sequence[str], title: str) -> str:
    """Return a bar that is cut into parts; one that is there is seen, however small it is."""
    widths = [max(_BAR_WIDTH * part / whole, _LEAST_WIDTH) if part else 0.0 for part in parts]
    widths[widths.index(max(widths))] -= max(sum(widths) - _BAR_WIDTH, 0.0)  # the longest makes room
    shapes, place = [], 0.0
    for width, colour in zip(widths, colours, strict=True):
        if width:
            shapes.append(f'<rect x="{place:.1f}" width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{colour}"/>')
            place += width
    head = f'<svg role="img" width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}" viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}">'
    return f"{head}<title>{_text(title)}</title>{''.join(shapes)}</svg>"


def _number(count: int) -> str:
    return f"{count:,}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _text(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def _text(text: str) -> str:
    """Escape a text; what a browser would not show is spelled out."""
    shown = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
    return escape(shown)
