"""Definitions over the weather, registries that they are applied to, and versions of views in every state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurestore import Alias, Entity, FeatureService, FeatureView, FileSource, PushSource
from featurestore.definitions import Definition, Projection
from featurestore.registry.plan import Plan, make_plan
from featurestore.registry.registry import Registry
from featurestore.registry.state import Coverage, Loaded, Version
from featurestore.types import Float64, Int64, String
from tests.conftest import NOON

airport = Entity("airport", join_keys={"origin": String})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
runways = FileSource("runways", path="runways.parquet")
reports = PushSource("reports", fields={"origin": String, "temperature": Float64, "gusts": Int64}, event_time="observed_at")


def view(name: str, **changes: Any) -> FeatureView:
    """Return a view over the weather, some of it changed."""
    declared: dict[str, Any] = {"entities": [airport], "source": weather, "fields": {"temperature": Float64, "gusts": Int64}}
    return FeatureView(name, **(declared | changes))


def service(name: str, *members: Any) -> FeatureService:
    """Return a service of some members."""
    return FeatureService(name, features=members)


def parts(*definitions: Definition) -> list[Definition]:
    """Return definitions with the entities, sources, views and aliases that they refer to: what a repo would hold."""
    found: dict[tuple[type, str], Definition] = {}
    for each in definitions:
        referred: Sequence[Any] = ()
        if isinstance(each, FeatureView):
            referred = (*each.entities, each.source)
        elif isinstance(each, FeatureService):
            referred = [member.view if isinstance(member, Projection) else member for member in each.features]
        elif isinstance(each, Alias):
            referred = (each.view,)
        for part in (*(parts(*(one for one in referred if not isinstance(one, str)))), each):
            found[type(part), part.name] = part
    return list(found.values())


def apply(registry: Registry, *definitions: Definition, now: int = NOON) -> Plan:
    """Plan and apply definitions with all they refer to."""
    plan = make_plan(registry.applied(), parts(*definitions))
    if not plan.is_empty:
        registry.apply(plan, now=now)
    return plan


def states(registry: Registry, *views: str) -> list[str]:
    """Return the states of all versions of some views, oldest first, by view."""
    return [f"{name}{version.number} {version.state}" for name in views for version in registry.applied().versions_of(name)]


def reasons(plan: Plan) -> list[tuple[str, Any, Any]]:
    """Return why a plan's one new version is one."""
    [new] = plan.new_versions
    return [(reason.field, reason.before, reason.after) for reason in new.reasons]


def made(
    name: str,
    state: str,
    number: int = 1,
    *,
    covered: int | None = None,
    loaded: bool = True,
    online: bool = True,
    pushed: bool = False,
) -> Version:
    """Return a version of a view: covered until an instant, or never materialized."""
    source = reports if pushed else weather
    coverage = None if covered is None else Coverage(0, covered)
    load = Loaded(1, 0, covered) if loaded and covered is not None else None
    return Version(number, f"{name}{number}", number, "", view(name, source=source, online=online), state, 0, coverage, 0, load)
