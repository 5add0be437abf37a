"""`POST /v1/push/{source}`: rows of a push source, logged before they are answered for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool

from featurestore.errors import InputError
from featurestore.push import Receipt
from featurestore.types import ValueType
from featurestore_server.contract import ARROW, JSON, PushAnswer, PushRequest
from featurestore_server.dependencies import Received, Store, openapi_body
from featurestore_server.negotiation import accepted_type, sent_type
from featurestore_server.tables import read_table

__all__ = ["router"]

router = APIRouter(tags=["features"])
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_KEY_HELP = "A text of the client's own, 1 to 255 visible ASCII characters: a push with the key of an earlier one changes nothing"


@router.post("/v1/push/{source}", summary="Push rows of a push source", openapi_extra=openapi_body(PushRequest, ARROW))
async def push(
    source: str,
    request: Request,
    store: Store,
    idempotency_key: Annotated[str | None, Header(description=_KEY_HELP)] = None,
) -> PushAnswer:
    """Log rows durably and write them online; all of them or none. They are visible to training from the answer on."""
    sent = sent_type(request.headers, (JSON, ARROW))
    accepted_type(", ".join(request.headers.getlist("accept")), (JSON,))
    if request.query_params:
        name = next(iter(request.query_params))
        raise InputError(f"parameter {name!r} is not known; a push has none", name=name)
    if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
        raise InputError("an Idempotency-Key is 1 to 255 visible ASCII characters", name="Idempotency-Key")
    body = Received(sent, JSON, {}, await request.body(), request.app.state.limits)

    def pushed() -> Receipt:
        columns = store.push_source(source).columns
        rows = read_table(body.body, ARROW) if sent == ARROW else _columns(body.json(PushRequest).columns, columns)
        return store.push(source, rows, idempotency_key)

    return PushAnswer.model_validate((await run_in_threadpool(pushed)).to_dict())


def _columns(given: Mapping[str, list[Any]], types: Mapping[str, ValueType]) -> dict[str, Any]:
    """Return columns of JSON in their declared types; what the source does not have is left for it to name."""
    return {name: _column(name, types[name], values) if name in types else values for name, values in given.items()}


def _column(name: str, type_: ValueType, values: list[Any]) -> pa.Array:
    read, parsed = _reader(type_), []
    for row, value in enumerate(values):
        try:
            parsed.append(read(value))
        except (ValueError, OverflowError) as reason:
            raise InputError(f"column {name!r}: value {row} is no {type_}: {reason}", name=name) from reason
    try:
        return pa.array(parsed, type_.arrow)
    except (pa.ArrowException, OverflowError, ValueError, TypeError) as reason:
        raise InputError(f"column {name!r} holds a value that {type_} cannot: {reason}", name=name) from reason


def _reader(type_: ValueType) -> Callable[[Any], Any]:
    if type_.item is not None:
        item = _reader(type_.item)
        return lambda value: [item(each) for each in value] if isinstance(value, list) else type_.from_json(value)
    if type_.name in ("Float32", "Float64"):
        return lambda value: _SPECIAL[value] if isinstance(value, str) and value in _SPECIAL else type_.from_json(value)
    return type_.from_json
