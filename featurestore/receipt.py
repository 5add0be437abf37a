"""The answer to a push; light, since clients give it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from featurestore.clock import instant_text

__all__ = ["Receipt"]


@dataclass(frozen=True)
class Receipt:
    """The answer to a push: its arrival, and how many rows it logged.

    `erased` counts rows of erased keys, which are not taken (T14). `is_online` says whether the rows are written online by now; if
    not, they are logged all the same, and the next push, materialization or sync writes them.
    """

    source: str
    arrival: int
    rows: int
    erased: int = 0
    is_online: bool = field(default=True, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON-ready data."""
        return {
            "source": self.source,
            "arrival": instant_text(self.arrival),
            "rows": self.rows,
            "erased": self.erased,
            "online": self.is_online,
        }
