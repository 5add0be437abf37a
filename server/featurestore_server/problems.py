"""Errors as RFC 9457 problems. Whatever goes wrong leaves the service through here, and nothing leaves in another form."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurestore.errors import FeatureStoreError, OnDemandError
from featurestore_server.contract import PROBLEM, PROBLEMS, ProblemType

__all__ = ["TOO_LATE", "ProblemError", "UnexpectedErrors", "handle_errors", "invalid", "nearest", "problem_of", "refusal"]

_LOGGER = logging.getLogger("featurestore_server")
TOO_LATE = "featurestore.too_late"
"""Where a scope has the ProblemError of a request that was cancelled because it took too long."""

_RETRY_SECONDS = "1"
_MESSAGES = {
    "dict_type": "an object is needed, with an array for each column",
    "extra_forbidden": "is not known",
    "list_type": "an array is needed",
    "missing": "is missing",
    "model_attributes_type": "an object is needed",
    "model_type": "an object is needed",
    "string_type": "a text is needed",
}
"""What pydantic says, in the words of JSON."""


class ProblemError(Exception):
    """A refusal of the service's own. `code` is one of the contract's, `members` are the problem's beyond the required ones."""

    def __init__(self, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.headers = dict(headers or {})
        self.members = members

    def response(self) -> Response:
        """Return the problem as a response."""
        return _response(self.code, PROBLEMS[self.code], str(self), self.headers, self.members)


def refusal(error: ProblemError | FeatureStoreError, method: str, path: str) -> Response:
    """Return the problem that an error of the service or of the library is; the log has those that are not the client's fault."""
    response = error.response() if isinstance(error, ProblemError) else problem_of(error)
    if response.status_code >= 500:  # noqa: PLR2004 (the server's faults, which its operator should see)
        _LOGGER.warning("%s %s: %s", method, path, error)
    return response


def problem_of(error: FeatureStoreError) -> Response:
    """Return the problem that an error of the library is."""
    codes = (getattr(kind, "code", None) for kind in type(error).__mro__)
    kind = next(PROBLEMS[code] for code in codes if code in PROBLEMS)
    if kind.status >= 500:  # noqa: PLR2004 (what is wrong inside is for the log)
        members = {"name": error.name} if isinstance(error, OnDemandError) else {}
        return _response(error.code, kind, f"{kind.title}; the log of the service says why", {}, members)
    told = ("name", "nearest", "differences")
    members = {each: getattr(error, each) for each in told if getattr(error, each, None) is not None}
    return _response(error.code, kind, str(error), {}, members)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names closest to a name, best first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def invalid(reason: ValidationError | RequestValidationError, model: type[BaseModel] | None = None) -> ProblemError:
    """Return the problem that a request's faults are; `model` says which members there could have been."""
    # A member that is not known may be why another is missing: it comes first.
    errors = sorted(reason.errors(), key=lambda each: each["type"] != "extra_forbidden")
    faults = [_fault(error) for error in errors]
    members: dict[str, Any] = {"name": faults[0]["name"]} if faults[0]["name"] else {}
    if model is not None and errors[0]["type"] == "extra_forbidden":
        members["nearest"] = nearest(faults[0]["name"], model.model_fields)
    members["errors"] = faults
    detail = "; ".join(": ".join(filter(None, (fault["name"], fault["message"]))) for fault in faults)
    return ProblemError("input", detail, **members)


def _fault(fault: Mapping[str, Any]) -> dict[str, Any]:
    parts = [str(part) for part in fault["loc"] if part not in ("query", "path")]
    message = _MESSAGES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    return {"name": ".".join(parts) or None, "message": message}


def _response(
    code: str, kind: ProblemType, detail: str, headers: Mapping[str, str], members: Mapping[str, Any], status: int | None = None
) -> Response:
    status = status or kind.status
    problem = {"type": f"/problems/{code}", "title": kind.title, "status": status, "detail": detail, **members}
    retry = {"Retry-After": _RETRY_SECONDS} if status == 503 else {}  # noqa: PLR2004 (the one status that retrying heals)
    return Response(orjson.dumps(problem), status, {**retry, **headers}, PROBLEM)


# What FastAPI calls


def handle_errors(app: FastAPI) -> None:
    """Make every error of an application a problem."""
    app.add_exception_handler(ProblemError, _own)
    app.add_exception_handler(FeatureStoreError, _library)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(UnexpectedErrors)


async def _own(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return error.response()


async def _library(request: Request, error: Exception) -> Response:
    assert isinstance(error, FeatureStoreError)
    return refusal(error, request.method, request.url.path)


async def _validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid(error).response()


async def _http(request: Request, error: Exception) -> Response:
    """Translate what the framework refuses by itself: paths and methods, above all."""
    assert isinstance(error, HTTPException)
    path, headers = request.url.path, error.headers or {}
    if error.status_code == 404:  # noqa: PLR2004 (what it says)
        known = request.app.openapi()["paths"]
        return ProblemError("no-route", f"no route {path!r}; see /docs", name=path, nearest=nearest(path, known)).response()
    if error.status_code == 405:  # noqa: PLR2004 (what it says)
        detail = f"{request.method} is not allowed on {path}; allowed: {headers.get('Allow', 'none')}"
        return ProblemError("method-not-allowed", detail, headers=headers, name=request.method).response()
    code = "malformed" if error.status_code < 500 else "internal"  # noqa: PLR2004 (whose fault it is)
    return _response(code, PROBLEMS[code], str(error.detail), headers, {}, error.status_code)


class UnexpectedErrors:
    """Middleware: an exception that nobody expected is logged here and leaves as a problem that tells nothing of the inside.

    If the response has begun it can only be cut off, so that the client does not take a part for the whole.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 (ASGI's signature)
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            # Only the clock and a server that ends cancel a request. Uvicorn cuts off a response that has begun.
            if not has_begun:
                problem = scope.get(TOO_LATE) or ProblemError("not-ready", "the service is ending")
                await problem.response()(scope, receive, send)
        except ProblemError as problem:  # a body beyond the limit, wherever it was being read
            if has_begun:
                raise
            await problem.response()(scope, receive, send)
        except Exception:
            if has_begun:
                raise
            _LOGGER.exception("%s %s failed", scope["method"], scope["path"])
            unexpected = ProblemError("internal", "the service failed unexpectedly; its log says why")
            await unexpected.response()(scope, receive, send)
