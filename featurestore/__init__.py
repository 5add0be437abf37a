"""featurestore: a feature value is a function of (entity key, time), and training and serving evaluate the same one.

Each name is imported when it is first used. Definitions are light; `FeatureStore` brings DuckDB, Arrow and Redis in. The clients of
the HTTP service bring httpx, and Arrow when the first table is there.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.client import AsyncFeatureStoreClient, FeatureStoreClient
    from featurestore.definitions import (
        Aggregation,
        Alias,
        Entity,
        FeatureService,
        FeatureView,
        Field,
        FileSource,
        OnDemandFeatureView,
        PushSource,
        RequestSource,
        on_demand_feature_view,
    )
    from featurestore.store import FeatureStore

__all__ = [
    "Aggregation",
    "Alias",
    "AsyncFeatureStoreClient",
    "Entity",
    "FeatureService",
    "FeatureStore",
    "FeatureStoreClient",
    "FeatureView",
    "Field",
    "FileSource",
    "OnDemandFeatureView",
    "PushSource",
    "RequestSource",
    "on_demand_feature_view",
]


def __getattr__(name: str) -> Any:
    if name == "FeatureStore":
        from featurestore.store import FeatureStore

        return FeatureStore
    if name in ("FeatureStoreClient", "AsyncFeatureStoreClient"):
        from featurestore import client

        return getattr(client, name)
    if name in __all__:
        from featurestore import definitions

        return getattr(definitions, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
