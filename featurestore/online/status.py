"""Statuses of online rows; light, since clients name them too."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Status"]


class Status(IntEnum):
    """What became of one row of a lookup."""

    PRESENT = 0
    NOT_FOUND = 1
    OUTSIDE_MAX_AGE = 2
