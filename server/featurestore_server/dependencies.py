"""What FastAPI hands to the routes: the store, and the request as it came."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple, TypeVar

import orjson
from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from featurestore import FeatureStore
from featurestore.errors import InputError
from featurestore.lock import is_fingerprint
from featurestore_server.contract import JSON, LOCK_HEADER
from featurestore_server.limits import Limits
from featurestore_server.negotiation import accepted_type, sent_type
from featurestore_server.problems import ProblemError, invalid

__all__ = [
    "Received",
    "Store",
    "checked_fingerprint",
    "negotiated",
    "openapi_body",
    "received",
    "request_schema",
    "sent_lock",
    "validated",
]

_REPEATED = "features"  # the one parameter of several values
_M = TypeVar("_M", bound=BaseModel)


async def _store(request: Request) -> FeatureStore:
    store: FeatureStore = request.app.state.store
    return store


Store = Annotated[FeatureStore, Depends(_store)]


class Received(NamedTuple):
    """A request: the media types of its body and of the answer, the query, the body, what it may cost, and a lock's fingerprint."""

    media_type: str
    answer_type: str
    query: dict[str, list[str]]
    body: bytes
    limits: Limits
    lock: str | None = None

    def parsed(self) -> Any:
        """Return what a JSON body holds; a ProblemError if it is none."""
        if self.query:
            name = next(iter(self.query))
            raise InputError(f"parameter {name!r} stands in the query; in a JSON request it is a member of the body", name=name)
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as reason:
            raise ProblemError("malformed", f"the body is no JSON: {reason}") from reason

    def json(self, model: type[_M]) -> _M:
        """Return a JSON body; a ProblemError if it is none, or not the model's."""
        parsed = self.parsed()
        self.limits.check_nesting(parsed)
        return validated(model, parsed)

    def options(self, model: type[_M]) -> _M:
        """Return the parameters of a request whose body is a table, from its query."""
        twice = [name for name, values in self.query.items() if len(values) > 1 and name != _REPEATED]
        if twice:
            raise InputError(f"parameter {twice[0]!r} is given more than once", name=twice[0])
        values: dict[str, Any] = {name: each if name == _REPEATED else each[0] for name, each in self.query.items()}
        try:
            return model.model_validate(values)
        except ValidationError as reason:
            raise invalid(reason, model) from reason


def validated(model: type[_M], parsed: Any) -> _M:
    """Return what JSON holds as a model; a ProblemError lists all its faults."""
    try:
        return model.model_validate(parsed, strict=True)
    except ValidationError as reason:
        raise invalid(reason, model) from reason


def received(*types: str) -> Callable[[Request], Awaitable[Received]]:
    """Return the dependency that reads a request whose body and answer may have these types."""

    async def receive(request: Request) -> Received:
        lock = request.headers.get(LOCK_HEADER)
        return Received(*negotiated(request, *types), await request.body(), request.app.state.limits, lock)

    return receive


def sent_lock(request: Request) -> str | None:
    """Return the fingerprint of a lock that a request names; none if it names none."""
    given = request.headers.get(LOCK_HEADER)
    return None if given is None else checked_fingerprint(given)


def checked_fingerprint(text: str) -> str:
    """Return what a request gives as the fingerprint of a lock; InputError if it is none. A path it must never be."""
    if not is_fingerprint(text):
        raise InputError(f"{LOCK_HEADER} {text!r} is no fingerprint: 32 hexadecimal digits, in lower case", name=LOCK_HEADER)
    return text


def negotiated(request: Request, *types: str) -> tuple[str, str, dict[str, list[str]]]:
    """Return the type of a request's body, that of its answer, and its query; both may have these types."""
    sent = sent_type(request.headers, types)
    answer = accepted_type(", ".join(request.headers.getlist("accept")), (sent, *(type_ for type_ in types if type_ != sent)))
    return sent, answer, {name: request.query_params.getlist(name) for name in request.query_params}


def request_schema(request: type[BaseModel], options: type[BaseModel], *tables: str) -> dict[str, Any]:
    """Return what OpenAPI says of a request in JSON, or as a table with its parameters in the query."""
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": {key: value for key, value in each.items() if key != "description"},
            "description": f"{each['description']}. For Arrow and Parquet bodies; a member of the body in JSON",
        }
        for name, each in options.model_json_schema()["properties"].items()
    ]
    header = {"name": LOCK_HEADER, "in": "header", "required": False, "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}}
    parameters.append(header | {"description": "The fingerprint of a lock: refuse features that are others"})
    return {**openapi_body(request, *tables), "parameters": parameters}


def openapi_body(request: type[BaseModel], *tables: str) -> dict[str, Any]:
    """Return what OpenAPI says of a body in JSON, or as a table."""
    schema = request.model_json_schema()
    examples = {str(number): {"value": example} for number, example in enumerate(schema.pop("examples", []), 1)}
    contents: dict[str, Any] = {JSON: {"schema": schema, "examples": examples}}
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": contents | dict.fromkeys(tables, binary)}}
