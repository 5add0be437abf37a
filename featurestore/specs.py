"""Definitions as JSON: what the registry keeps, what `plan` compares, and the fingerprint that tells versions apart (T10, T11)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter

from featurestore.definitions import (
    Alias,
    Definition,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    OnDemandInput,
    Projection,
    RequestSource,
)

__all__ = ["canonical_json", "fingerprint", "from_spec", "on_demand_fingerprint", "to_reference_spec", "to_spec", "value_spec"]

_T = TypeVar("_T")

METADATA = ("description", "owner", "tags")
"""Fields that describe and do not alter values: a change of them makes no new version (T11)."""

_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def to_spec(definition: Definition | RequestSource) -> dict[str, Any]:
    """Return a definition as JSON-ready data, everything it refers to included."""
    spec: dict[str, Any] = _adapter(type(definition)).dump_python(definition, mode="json", exclude={"_"})
    return spec


def from_spec(kind: type[_T], spec: Mapping[str, Any]) -> _T:
    """Return the definition that `to_spec` wrote."""
    definition: _T = _adapter(kind).validate_python(spec)
    return definition


def to_reference_spec(definition: Definition) -> dict[str, Any]:
    """Return a definition as JSON-ready data in which other definitions stand by name: what `plan` compares."""
    spec = to_spec(definition)
    if isinstance(definition, FeatureView):
        spec["entities"] = [entity.name for entity in definition.entities]
        spec["source"] = definition.source.name
    elif isinstance(definition, Alias):
        spec["view"] = definition.view.name
    elif isinstance(definition, FeatureService):
        spec["features"] = [_reference(member) for member in definition.features]
    elif isinstance(definition, OnDemandFeatureView):
        spec["inputs"] = [_reference(each) for each in definition.inputs]
    return spec


def _reference(member: OnDemandInput) -> str | dict[str, Any]:
    if isinstance(member, str):
        return member
    if isinstance(member, RequestSource):
        return {"request": member.name, "fields": to_spec(member)["fields"]}
    if isinstance(member, Projection):
        return {"view": member.view.name, "features": list(member.features)}
    return {"view": member.name, "features": None}


def canonical_json(spec: Any) -> str:
    """Write JSON-ready data in the one form that is hashed and compared."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def value_spec(view: FeatureView) -> dict[str, Any]:
    """Return what determines a view's values, as JSON-ready data: its spec without descriptions and what only moves rows about."""
    spec = to_spec(view)
    for part in (spec, spec["source"], *spec["entities"]):
        for field in METADATA:
            del part[field]
    # Names of entities carry no value, and where or how far back rows are kept online alters none.
    spec["entities"] = [key for entity in spec["entities"] for key in entity["join_keys"]]
    del spec["online"], spec["lookback"]
    return spec


def fingerprint(view: FeatureView) -> str:
    """Return a hash of all that determines a view's values; equal fingerprints share a version (T11)."""
    return hashlib.sha256(canonical_json(value_spec(view)).encode()).hexdigest()[:32]


def on_demand_fingerprint(spec: Mapping[str, Any]) -> str:
    """Return a hash of all that an on-demand view's reference spec says of its values: inputs, fields, mode and code."""
    values = {name: value for name, value in spec.items() if name not in METADATA}
    values["code"] = {name: value for name, value in spec["code"].items() if name != "copy"}
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:32]
