"""Who may do what: API keys (`featurestore keys`) and the role that each route asks for.

Keys are known as the registry had them last (`plans.py`): a request never waits for it, and lookups go on while it is gone. A
revocation takes effect within six seconds on every server that reaches the registry. As long as there never was a key, a service
that only this machine can reach is open.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from functools import lru_cache

from featurestore.registry.api_keys import ApiKey, digest_of
from featurestore_server.problems import ProblemError

__all__ = ["Access", "current_key", "permit", "role_of", "set_key"]

ANY = "any role"
_SERVICES = "/v1/registry/feature-services/"
_ROLES = (
    ("/v1/online-features", "read-online"),
    ("/v1/historical-features", "read-offline"),
    ("/v1/training-sets", "read-offline"),
    ("/v1/push", "write"),
    ("/v1/registry", ANY),
    ("/metrics", ANY),
)
_OPEN = frozenset({"/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
_ANYONE = ApiKey("", "anyone", frozenset({"admin"}), None, 0, "", None, b"")
_NOBODY = bytes(32)
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="featurestore"'}

_key: ContextVar[ApiKey] = ContextVar("key", default=_ANYONE)


@lru_cache(maxsize=1024)
def role_of(path: str) -> str | None:
    """Return the role that a route needs, none for those open to everyone; what is not known needs the highest."""
    if path in _OPEN:
        return None
    return next((role for prefix, role in _ROLES if path == prefix or path.startswith(f"{prefix}/")), "admin")


class Access:
    """The keys in force. Without any there ever was, `is_open` says whether requests need none."""

    def __init__(self, keys: Iterable[ApiKey] = (), *, is_open: bool = True) -> None:
        known = tuple(keys)
        self._keys = {key.id.encode(): key for key in known if key.revoked_at is None}
        self._is_open = is_open and not known
        self._has_keys = bool(known)

    def key(self, authorization: bytes | None) -> ApiKey:
        """Return the key of an Authorization header; a ProblemError if there is none in force."""
        if self._is_open:
            return _ANYONE
        scheme, _, text = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            how = "send Authorization: Bearer KEY" if self._has_keys else "featurestore keys create makes the first"
            raise ProblemError("unauthorized", f"an API key is needed; {how}", headers=_CHALLENGE)
        text = text.strip()
        key = self._keys.get(text[4:16])
        # A key that is not there takes as long as one whose secret is wrong.
        if not hmac.compare_digest(digest_of(text), _NOBODY if key is None else key.digest) or key is None:
            raise ProblemError("unauthorized", "the API key is not known, or revoked", headers=_CHALLENGE)
        return key

    def admit(self, authorization: bytes | None, path: str) -> ApiKey:
        """Return the key of a request to a route; a ProblemError if it has none, or its roles are not enough."""
        role = role_of(path)
        if role is None:
            return _ANYONE
        key = self.key(authorization)
        if "admin" in key.roles:
            return key
        if role not in key.roles and role != ANY:
            detail = f"the key {key.name!r} has no role {role}; it has {', '.join(sorted(key.roles))}"
            raise ProblemError("forbidden", detail, name=role)
        if role == ANY and key.services is not None and path.removeprefix(_SERVICES) not in key.services:
            detail = f"the key {key.name!r} is restricted to services, and may ask only for {_SERVICES}<name> of these"
            raise ProblemError("forbidden", detail, name=path)
        return key


def set_key(key: ApiKey) -> None:
    """Remember whose request the running task answers."""
    _key.set(key)


def current_key() -> ApiKey:
    """Return the key of the request that the running task answers."""
    return _key.get()


def permit(wanted: str | Sequence[str], key: ApiKey | None = None) -> None:
    """Raise ProblemError unless a key, by default that of the request, may read what is wanted: a service, or features."""
    key = key or _key.get()
    if key.services is None or (isinstance(wanted, str) and wanted in key.services) or "admin" in key.roles:
        return
    shown = f"the feature service {wanted!r}" if isinstance(wanted, str) else "a list of features"
    name = wanted if isinstance(wanted, str) else "features"
    detail = f"the key {key.name!r} may not read {shown}; it may read {', '.join(sorted(key.services))}"
    raise ProblemError("forbidden", detail, name=name)
