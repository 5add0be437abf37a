from __future__ import annotations

import hashlib
import re

import pytest
import sqlalchemy as sa

from featurestore.errors import InputError, NotFoundError
from tests.conftest import NOON
from tests.databases import Open
from tests.registries import apply, service, view


def test_a_key_is_kept_as_a_hash(open_registry: Open, database_url: str) -> None:
    """A key's text has 256 random bits, is given once, and the database holds nothing of it but its SHA-256."""
    keys = open_registry().api_keys
    key, text = keys.create("shop", ["read-online"], now=NOON)
    _, other = keys.create("other", ["admin"], now=NOON)

    parts = re.fullmatch(rf"fsk_{key.id}_([\w-]{{43}})", text)  # the secret itself may have a "_", at its end even
    assert parts is not None
    assert text != other
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        stored = repr(connection.exec_driver_sql("SELECT * FROM api_keys WHERE name = 'shop'").one())
    engine.dispose()
    assert hashlib.sha256(text.encode()).hexdigest() in stored
    assert parts[1] not in stored
    assert key.digest.hex() not in repr(key)


def test_keys_are_listed_with_what_they_may_do(open_registry: Open) -> None:
    """Roles, services, and when they were made and revoked come back as they were given, oldest first."""
    registry = open_registry()
    apply(registry, service("s", view("a")), service("t", view("a")), view("a"))
    registry.api_keys.create("b", ["write", "read-online"], ["t", "s"], now=NOON)
    registry.api_keys.create("a", ["admin"], now=NOON + 1)
    registry.api_keys.revoke("a", now=NOON + 2)

    listed = [(key.name, key.roles, key.services, key.created_at, key.revoked_at) for key in registry.api_keys.all()]
    assert listed == [
        ("b", frozenset({"read-online", "write"}), frozenset({"s", "t"}), NOON, None),
        ("a", frozenset({"admin"}), None, NOON + 1, NOON + 2),
    ]


def test_a_revoked_key_frees_its_name(open_registry: Open) -> None:
    """A key is revoked by its name or its id, once; its name can then be another key's."""
    keys = open_registry().api_keys
    first, _ = keys.create("shop", ["admin"], now=NOON)
    with pytest.raises(InputError, match="there is a key 'shop' in force"):
        keys.create("shop", ["admin"], now=NOON)
    keys.revoke(first.id, now=NOON)
    second, _ = keys.create("shop", ["write"], now=NOON)

    assert keys.revoke("shop", now=NOON).id == second.id
    with pytest.raises(NotFoundError, match="no API key in force 'shop'"):
        keys.revoke("shop", now=NOON)


@pytest.mark.parametrize(
    ("name", "roles", "services", "message"),
    [
        ("", ["admin"], [], "'' is no name of a key"),
        ("a b", ["admin"], [], "'a b' is no name of a key"),
        ("a\n", ["admin"], [], "is no name of a key"),
        ("a", [], [], "key 'a' needs a role"),
        ("a", ["admin", "root"], [], "'root' is no role; the roles are read-online, read-offline, write, admin"),
        ("a", ["admin"], ["x"], "no feature service 'x'; there is none yet"),
    ],
)
def test_what_is_no_key(open_registry: Open, name: str, roles: list[str], services: list[str], message: str) -> None:
    """Malformed names, unknown roles and services that are not applied are refused, and nothing is kept."""
    keys = open_registry().api_keys
    with pytest.raises((InputError, NotFoundError), match=message):
        keys.create(name, roles, services, now=NOON)
    assert keys.all() == []
