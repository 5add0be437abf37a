"""httpx, at the one place that knows it: where the service is, what each request carries, and what its errors mean."""

from __future__ import annotations

import os
import ssl
from typing import Any

from featurestore.client.exchange import Failure, Request
from featurestore.errors import InputError, MissingDependencyError

try:
    import httpx
except ImportError as missing:
    raise MissingDependencyError("httpx", "client", "the HTTP client") from missing

__all__ = ["connection", "failure_of", "sent"]

_URL, _KEY = "FEATURESTORE_URL", "FEATURESTORE_API_KEY"
_LOST = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


def connection(url: str | None, api_key: str | None, timeout_seconds: float, ca_file: str | None) -> dict[str, Any]:
    """Return the arguments of an httpx client; InputError if it is not said where the service is."""
    url = url or os.environ.get(_URL)
    if not url or not url.startswith(("http://", "https://")):
        found = f"{url!r} is no URL of a feature store" if url else "it is not said where the feature store is"
        raise InputError(f"{found}; pass url='http://…', or set {_URL}", name="url")
    key = api_key or os.environ.get(_KEY)
    if key and not (key.isascii() and key.isprintable()):
        raise InputError("the API key holds characters that no header can", name="api_key")
    headers = {"User-Agent": "featurestore", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        verify = ssl.create_default_context(cafile=ca_file) if ca_file else True
    except OSError as reason:  # an SSLError is one
        raise InputError(f"there are no certificates to read in {ca_file}: {reason}", name="ca_file") from reason
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout_seconds, "verify": verify}


def sent(request: Request, timeout_seconds: float) -> dict[str, Any]:
    """Return the arguments that httpx builds a request of, its body aside."""
    return {
        "method": request.method,
        "url": request.path,
        "params": request.parameters,
        "headers": request.all_headers,
        "timeout": httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, 10.0)),
    }


def failure_of(error: httpx.HTTPError | httpx.InvalidURL) -> Failure:
    """Return what an error of httpx means."""
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return Failure("the service did not answer in time; allow more time, or ask for less", is_retryable=False)
    words = str(error) or type(error).__name__
    return Failure(f"the service cannot be reached: {words}", is_retryable=isinstance(error, _LOST))
