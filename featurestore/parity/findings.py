"""What a verification found. Counts are keys, for each view and for each of its features.

A key is **different** if it has a value on both sides and these are not the same, **missing online** if only training has one,
**extra online** if only serving has. `equal` are all others, absent on both sides included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

from featurestore.clock import instant_text

__all__ = ["Cause", "Difference", "FeatureParity", "Kind", "Parity", "ViewParity"]

_EXAMPLES = 3


class Kind(StrEnum):
    """How a key differs."""

    DIFFERENT = "different"
    MISSING = "missing online"
    EXTRA = "extra online"


class Cause(StrEnum):
    """Why a key differs, found by evidence."""

    LATE_ROWS = "late rows"
    STALE = "stale materialization"
    TTL = "TTL"
    NOT_FLIPPED = "version not flipped"
    CHANGED_CODE = "changed code"
    WRITE_OUTSIDE = "write outside the store"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Difference:
    """One key that differs: its join keys, (online, offline) of each feature that differs, the cause and what shows it.

    Keys and values are in their JSON form. A key that is none of the view's has no join keys; `evidence` has its bytes.
    """

    kind: Kind
    cause: Cause
    evidence: str
    key: Mapping[str, Any]
    values: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as JSON-ready data."""
        values = {name: {"online": online, "offline": offline} for name, (online, offline) in self.values.items()}
        return asdict(self) | {"kind": self.kind.value, "cause": self.cause.value, "values": values}


@dataclass(frozen=True)
class FeatureParity:
    """How one feature compares."""

    feature: str
    compared: int
    equal: int
    different: int
    missing_online: int
    extra_online: int


@dataclass
class ViewParity:
    """How one view compares at `watermark`, that of its last completed load; `causes` has how many keys differ for each cause.

    `examples` has a few differences of each cause, the same ones each time. `notes` say what could not be looked at, and what is
    worth knowing. A view that could not be compared at all, as one that is not loaded, has a `skipped` reason.
    """

    view: str
    version: int
    watermark: int | None
    compared: int = 0
    different: int = 0
    missing_online: int = 0
    extra_online: int = 0
    different_features: Counter[str] = field(default_factory=Counter)
    features_compared: tuple[str, ...] = ()
    causes: Counter[Cause] = field(default_factory=Counter)
    examples: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str | None = None

    def add(self, differences: Iterable[Difference]) -> None:
        """Count differences, and keep some of them as examples."""
        for each in differences:
            self.different += each.kind is Kind.DIFFERENT
            self.missing_online += each.kind is Kind.MISSING
            self.extra_online += each.kind is Kind.EXTRA
            if each.kind is Kind.DIFFERENT:
                self.different_features.update(each.values.keys())
            self.causes[each.cause] += 1
            if self.causes[each.cause] <= _EXAMPLES:
                self.examples.append(each)

    @property
    def differences(self) -> int:
        """How many keys differ, those left out that the TTL alone explains: there serving is right."""
        return self.different + self.missing_online + self.extra_online - self.causes[Cause.TTL]

    @property
    def equal(self) -> int:
        """How many keys are the same on both sides."""
        return self.compared - self.different - self.missing_online - self.extra_online

    @property
    def is_equal(self) -> bool:
        """Whether every key has online what it has offline."""
        return not self.differences

    @property
    def features(self) -> tuple[FeatureParity, ...]:
        """How each feature compares, in the view's order."""
        absent = self.missing_online + self.extra_online
        return tuple(
            FeatureParity(
                name, self.compared, self.compared - absent - self.different_features[name], self.different_features[name],
                self.missing_online, self.extra_online,
            )
            for name in self.features_compared
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready data."""
        return {
            "view": self.view,
            "version": self.version,
            "watermark": None if self.watermark is None else instant_text(self.watermark),
            "skipped": self.skipped,
            "compared": self.compared,
            "equal": self.equal,
            "different": self.different,
            "missing_online": self.missing_online,
            "extra_online": self.extra_online,
            "features": [asdict(each) for each in self.features],
            "causes": {cause.value: count for cause, count in sorted(self.causes.items())},
            "examples": [each.to_dict() for each in self.examples],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Parity:
    """What a verification found over all views that were asked for, at the instant `verified_at`.

    `keys` is the size of the sample of each view, none for all keys. `what` was compared: keys, or rows of the serving log.
    """

    verified_at: int
    keys: int | None
    views: tuple[ViewParity, ...]
    what: Literal["key", "logged row"] = "key"

    @property
    def compared(self) -> int:
        """How many keys were compared."""
        return sum(each.compared for each in self.views)

    @property
    def values(self) -> int:
        """How many values were compared: keys times features."""
        return sum(each.compared * len(each.features_compared) for each in self.views)

    @property
    def differences(self) -> int:
        """How many keys differ, those left out that the TTL alone explains."""
        return sum(each.differences for each in self.views)

    @property
    def is_equal(self) -> bool:
        """Whether training and serving agree on every key."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as JSON-ready data."""
        return {
            "verified_at": instant_text(self.verified_at),
            "keys": self.keys,
            "what": self.what,
            "compared": self.compared,
            "values": self.values,
            "differences": self.differences,
            "views": [each.to_dict() for each in self.views],
        }
