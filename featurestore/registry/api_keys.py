"""API keys of the HTTP service, as the registry keeps them. This docstring is the specification of a key's text.

    fsk_<id>_<secret>     id: 12 hexadecimal digits, which may be shown; secret: 43 letters of base64url, 256 random bits

The registry has the SHA-256 of the whole text and never the text, which is shown once. A slow hash would add nothing: nobody tries
256 random bits. Roles:

    read-online           online features
    read-offline          historical features and training sets
    write                 push
    admin                 all of it

`services` restricts what a key may read to these feature services, asked for by name. A revoked key stays in the table, so a store
that once had keys is never open again because the last one went.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from featurestore.errors import InputError, NotFoundError
from featurestore.registry.schema import api_keys, objects

__all__ = ["ROLES", "ApiKey", "ApiKeys", "digest_of"]

ROLES = ("read-online", "read-offline", "write", "admin")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class ApiKey:
    """One key. `services` are those that it may read, none for all; instants are microseconds."""

    id: str
    name: str
    roles: frozenset[str]
    services: frozenset[str] | None
    created_at: int
    created_by: str
    revoked_at: int | None
    digest: bytes = field(repr=False)


class ApiKeys:
    """The keys of one registry; every method is one transaction."""

    def __init__(self, transaction: Callable[..., AbstractContextManager[sa.Connection]], user: Callable[[], str]) -> None:
        self._transaction, self._user = transaction, user

    def create(self, name: str, roles: Sequence[str], services: Sequence[str] = (), *, now: int) -> tuple[ApiKey, str]:
        """Make a key; returns it, and its text, which nobody can find out again.

        Raises:
            InputError: the name is malformed or taken by a key in force, or a role is not one.
            NotFoundError: no feature service of that name is applied.

        """
        _check(name, roles)
        identifier = secrets.token_hex(6)
        text = f"fsk_{identifier}_{secrets.token_urlsafe(32)}"
        allowed = frozenset(services) or None
        key = ApiKey(identifier, name, frozenset(roles), allowed, now, self._user(), None, digest_of(text.encode()))
        with self._transaction(write=True) as connection:
            _check_free(connection, name)
            _check_services(connection, services)
            connection.execute(sa.insert(api_keys).values(**_row(key)))
        return key, text

    def revoke(self, name: str, *, now: int) -> ApiKey:
        """Put a key, named by its name or id, out of force for good. NotFoundError if no key in force is called so."""
        with self._transaction(write=True) as connection:
            known = _in_force(connection)
            key = next((key for key in known if name in (key.name, key.id)), None)
            if key is None:
                raise NotFoundError("API key in force", name, [key.name for key in known])
            connection.execute(sa.update(api_keys).where(api_keys.c.id == key.id).values(revoked_at=now))
        return key

    def all(self) -> list[ApiKey]:
        """Return every key there ever was, oldest first."""
        with self._transaction() as connection:
            return _all(connection)


def digest_of(text: bytes) -> bytes:
    """Return what the registry has of a key's text."""
    return hashlib.sha256(text).digest()


def _check(name: str, roles: Sequence[str]) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of a key: letters, digits, and _ . - after the first, at most 63", name=name)
    for role in roles:
        if role not in ROLES:
            raise InputError(f"{role!r} is no role; the roles are {', '.join(ROLES)}", name=role)
    if not roles:
        raise InputError(f"key {name!r} needs a role, one or more of {', '.join(ROLES)}", name=name)


def _check_free(connection: sa.Connection, name: str) -> None:
    if any(key.name == name for key in _in_force(connection)):
        raise InputError(f"there is a key {name!r} in force; revoke it first, or take another name", name=name)


def _check_services(connection: sa.Connection, services: Sequence[str]) -> None:
    query = sa.select(objects.c.name).where(objects.c.kind == "feature service", objects.c.spec.is_not(None))
    known = set(connection.execute(query).scalars()) if services else set()
    for service in services:
        if service not in known:
            raise NotFoundError("feature service", service, known)


def _all(connection: sa.Connection) -> list[ApiKey]:
    return [_key(row) for row in connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))]


def _in_force(connection: sa.Connection) -> list[ApiKey]:
    return [key for key in _all(connection) if key.revoked_at is None]


def _row(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "digest": key.digest.hex(),
        "roles": json.dumps(sorted(key.roles)),
        "services": None if key.services is None else json.dumps(sorted(key.services)),
        "created_at": key.created_at,
        "created_by": key.created_by,
    }


def _key(row: Any) -> ApiKey:
    services = None if row.services is None else frozenset(json.loads(row.services))
    roles = frozenset(json.loads(row.roles))
    return ApiKey(row.id, row.name, roles, services, row.created_at, row.created_by, row.revoked_at, bytes.fromhex(row.digest))
