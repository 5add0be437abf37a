"""Instants and durations: the only module that knows how time is counted.

An instant is a Python `int`: microseconds since 1970-01-01T00:00:00Z. A naive timestamp is read as UTC, an aware one is
converted (T1). A duration is a `timedelta`, written in definitions as a whole number and a unit (`"15m"`, `"6h"`, `"30d"`).
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable

__all__ = [
    "BEGINNING",
    "LAST",
    "Clock",
    "ceil",
    "duration_text",
    "floor",
    "from_micros",
    "parse_duration",
    "parse_instant",
    "to_micros",
]

BEGINNING = -62_135_596_800_000_000
"""0001-01-01: the first instant of the calendar, and the visible time of static rows."""
LAST = 253_402_300_799_999_999
"""The last microsecond of the year 9999."""

_EXPECTED = "expected a timestamp such as 2013-06-01T12:00:00Z"
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_UNITS["w"] = 7 * _UNITS["d"]
_DURATION = re.compile(r"\s*(\d+)\s*(us|ms|s|m|h|d|w)\s*")

Clock = Callable[[], int]
"""Gives the present instant. Injected wherever the present matters, so that tests and replays can choose it."""


def system_clock() -> int:
    """Return the machine's present instant, in microseconds."""
    return time.time_ns() // 1_000


def to_micros(moment: dt.datetime) -> int:
    """Return the instant of a datetime; a naive one is read as UTC."""
    aware = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment
    return (aware - _EPOCH) // _MICROSECOND


def from_micros(instant: int) -> dt.datetime:
    """Return the aware UTC datetime of an instant; OverflowError beyond the years 1 to 9999."""
    return _EPOCH + dt.timedelta(microseconds=instant)


def instant_text(instant: int | None) -> str:
    """Render an instant for people: `2013-06-01T12:00:00Z`, or `the beginning` for none."""
    if instant is None:
        return "the beginning"
    if not BEGINNING <= instant <= LAST:
        return "before the year 1" if instant < BEGINNING else "after the year 9999"
    return from_micros(instant).isoformat().replace("+00:00", "Z")


def parse_instant(value: dt.datetime | str | int) -> int:
    """Read an instant from a datetime, an ISO 8601 text or microseconds; ValueError for anything else."""
    try:
        moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{_EXPECTED}, got {value!r}") from None
    if isinstance(moment, bool) or not isinstance(moment, int | dt.datetime):
        raise ValueError(f"{_EXPECTED}, got {value!r}")
    instant = moment if isinstance(moment, int) else to_micros(moment)
    if not BEGINNING <= instant <= LAST:
        raise ValueError(f"{_EXPECTED}, got {value!r}, which is outside the years 1 to 9999")
    return instant


def parse_duration(value: dt.timedelta | str) -> dt.timedelta:
    """Read a duration such as `"90m"`; ValueError names what is understood."""
    if isinstance(value, dt.timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected a duration such as '15m', '6h' or '30d', got {value!r}")
    try:
        return dt.timedelta(microseconds=int(match[1]) * _UNITS[match[2]])
    except OverflowError:
        raise ValueError(f"the duration {value!r} is too long") from None


def duration_micros(duration: dt.timedelta | None) -> int:
    """Return a duration's length in microseconds, 0 for none."""
    return 0 if duration is None else duration // _MICROSECOND


def duration_text(duration: dt.timedelta) -> str:
    """Write a duration with the largest unit that divides it, so equal durations have one text (`24h` is `1d`)."""
    micros = duration // _MICROSECOND
    for unit in ("d", "h", "m", "s", "ms"):
        if micros % _UNITS[unit] == 0:
            return f"{micros // _UNITS[unit]}{unit}"
    return f"{micros}us"


def floor(instant: int, refresh: int) -> int:
    """Return the last refresh boundary at or before an instant; the instant itself if `refresh` is 0."""
    return instant - instant % refresh if refresh else instant


def ceil(instant: int, refresh: int) -> int:
    """Return the first refresh boundary at or after an instant; one on a boundary stays (T3)."""
    return instant + -instant % refresh if refresh else instant
