"""Versions of views, as the online store takes them."""

from __future__ import annotations

from typing import Any

from featurestore import Entity, FeatureView, FileSource
from featurestore.registry.state import Version
from featurestore.types import Int64, String


def version(uid: str = "0123abcd", *, ttl: str | None = None, **changes: Any) -> Version:
    """Return a version of a view with one key and one feature, some of it changed."""
    declared: dict[str, Any] = {
        "entities": [Entity("airport", join_keys={"origin": String})],
        "source": FileSource("weather", path="weather.parquet", event_time="observed_at"),
        "fields": {"gusts": Int64},
    }
    view = FeatureView("weather", ttl=ttl, **(declared | changes))
    return Version(1, uid, 1, "", view, "serving", 0, None, -1, None)
