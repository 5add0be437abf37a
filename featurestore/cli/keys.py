"""The commands about the HTTP service's API keys: keys create, keys list, keys revoke."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from featurestore.cli.invocation import Invocation
from featurestore.cli.rendering import grid, time_text
from featurestore.clock import instant_text, system_clock

if TYPE_CHECKING:
    from featurestore.registry.api_keys import ApiKey

__all__ = ["create_key", "list_keys", "revoke_key"]

_ROLES_HELP = "What it may do: read-online, read-offline, write or admin, which is all of it. Several times for several."
Name = Annotated[str, typer.Argument(metavar="NAME", help="What the key is called, such as the program that has it.")]
Named = Annotated[str, typer.Argument(metavar="NAME", help="The key's name, or its id.")]
Roles = Annotated[list[str], typer.Option("--role", "-r", metavar="ROLE", help=_ROLES_HELP)]
Services = Annotated[
    list[str] | None,
    typer.Option("--service", "-s", metavar="SERVICE", help="A feature service that it may read; without any, all. Several times."),
]


def create_key(call: Invocation, name: Name, role: Roles, service: Services = None) -> None:
    """Create an API key for the HTTP service, and show it this once.

    As soon as there is a key the service answers nobody without one.

    Example: featurestore keys create checkout --role read-online
    """
    with call.store() as store:
        key, text = store.registry.api_keys.create(name, role, service or (), now=system_clock())
    lines = [f"Key {key.name} ({key.id}) may {_roles_text(key)}. It is shown this once:", "", text, ""]
    call.answer({**_record(key), "key": text}, [*lines, "Send it as a header: Authorization: Bearer KEY"])


def list_keys(call: Invocation) -> None:
    """List the API keys, revoked ones included; their secrets are nowhere.

    Example: featurestore keys list
    """
    with call.store() as store:
        keys = store.registry.api_keys.all()
    call.answer([_record(key) for key in keys], _table(call, keys))


def revoke_key(call: Invocation, name: Named) -> None:
    """Revoke an API key, for good. Servers that reach the registry refuse it within six seconds.

    Example: featurestore keys revoke checkout
    """
    with call.store() as store:
        key = store.registry.api_keys.revoke(name, now=system_clock())
    call.answer({"id": key.id, "name": key.name, "revoked": True}, [f"Key {key.name} ({key.id}) is revoked."])


def _roles_text(key: ApiKey) -> str:
    roles = ", ".join(sorted(key.roles))
    return roles if key.services is None else f"{roles} of {', '.join(sorted(key.services))}"


def _record(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "roles": sorted(key.roles),
        "services": None if key.services is None else sorted(key.services),
        "created_at": instant_text(key.created_at),
        "created_by": key.created_by,
        "revoked_at": None if key.revoked_at is None else instant_text(key.revoked_at),
    }


def _table(call: Invocation, keys: Sequence[ApiKey]) -> Iterator[RenderableType]:
    if not keys:
        yield f"There is no key: the service is open on this machine. {call.line('keys', 'create')} makes one."
        return
    rows = [
        [
            key.name,
            key.id,
            ", ".join(sorted(key.roles)),
            "all" if key.services is None else ", ".join(sorted(key.services)),
            time_text(key.created_at),
            "in force" if key.revoked_at is None else f"revoked {time_text(key.revoked_at)}",
        ]
        for key in keys
    ]
    yield grid(["name", "id", "roles", "services", "created", "state"], rows)
