"""Content types: what a body says it is, and what the client accepts (RFC 9110, sections 8.3 and 12.5.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featurestore_server.contract import JSON
from featurestore_server.problems import ProblemError

__all__ = ["accepted_type", "sent_type"]


def sent_type(headers: Mapping[str, str], known: Sequence[str]) -> str:
    """Return the type of a body, one of those known; a ProblemError otherwise."""
    sent, *parameters = headers.get("content-type", "").split(";")
    type_ = sent.strip().lower()
    understood = {"Accept-Post": ", ".join(known)}
    if type_ not in known:
        shown = f"Content-Type {sent!r} is not understood" if type_ else "the request has no Content-Type"
        detail = f"{shown}; send one of {', '.join(known)}"
        raise ProblemError("unsupported-media-type", detail, headers=understood, name="Content-Type", nearest=list(known))
    charsets = [value for name, _, value in (each.partition("=") for each in parameters) if name.strip().lower() == "charset"]
    if type_ == JSON and charsets and charsets[0].strip().strip('"').lower() not in ("utf-8", "utf8", "us-ascii"):
        detail = f"JSON is UTF-8, not {charsets[0]!r}"
        raise ProblemError("unsupported-media-type", detail, headers=understood, name="Content-Type")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        detail = f"Content-Encoding {coding!r} is not understood; send the body as it is"
        raise ProblemError("unsupported-media-type", detail, headers=understood, name="Content-Encoding")
    return type_


def accepted_type(accept: str | None, offered: Sequence[str]) -> str:
    """Return the type of the answer: of those offered the most wanted, the first of several; a ProblemError if none is accepted."""
    if not accept or not accept.strip():
        return offered[0]
    ranges = [_range(each) for each in accept.split(",") if each.strip()]
    best = max(offered, key=lambda type_: _quality(type_, ranges))
    if not _quality(best, ranges):
        detail = f"Accept {accept!r} allows none of {', '.join(offered)}"
        raise ProblemError("not-acceptable", detail, name="Accept", nearest=list(offered))
    return best


def _range(text: str) -> tuple[str, float]:
    """Return a media range and its quality; one that cannot be read counts in full."""
    type_, *parameters = text.split(";")
    quality = 1.0
    for name, _, value in (each.partition("=") for each in parameters):
        if name.strip().lower() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 1.0
    return type_.strip().lower(), quality


def _quality(type_: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality that the most specific range gives to a type."""
    family = type_.partition("/")[0]
    for pattern in (type_, f"{family}/*", "*/*"):
        found = [quality for each, quality in ranges if each == pattern]
        if found:
            return max(found)
    return 0.0
