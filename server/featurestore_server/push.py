"""`POST /v1/push/{source}`: rows of a push source, logged before they are answered for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Header, Request
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from featurestore.definitions import PushSource
from featurestore.errors import InputError
from featurestore.push import Receipt
from featurestore.types import ValueType
from featurestore_server.contract import ARROW, JSON, PYTHON_ROWS, PushAnswer, PushRequest
from featurestore_server.dependencies import Received, Store, openapi_body
from featurestore_server.negotiation import accepted_type, sent_type
from featurestore_server.problems import ProblemError
from featurestore_server.tables import metadata_of, read_table
from featurestore_server.values import from_json

__all__ = ["router"]

router = APIRouter(tags=["features"])
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
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
        declared = store.push_source(source)
        if sent == ARROW:
            return store.push(source, _rows(declared, body.body), idempotency_key)
        return store.push(source, _columns(body.json(PushRequest).columns, declared.columns), idempotency_key)

    return PushAnswer.model_validate((await run_in_threadpool(pushed)).to_dict())


def _rows(source: PushSource, body: bytes) -> pa.Table | dict[str, pa.ChunkedArray]:
    """Return rows as they were given: a table, or the columns of a client's Python values, for which Arrow found the types."""
    table = read_table(body, ARROW)
    said = metadata_of(body).get(PYTHON_ROWS.encode())
    if said is None or len(set(table.column_names)) < table.num_columns:
        return table
    try:
        lacks = TypeAdapter(_Python).validate_json(said).lacks
    except ValidationError as reason:
        raise ProblemError("malformed", f"{PYTHON_ROWS} in the metadata of the schema is not as it should be") from reason
    for name, row in lacks.items():
        if name != source.created_time:
            raise InputError(f"push source {source.name!r}: row {row} lacks column {name!r}", name=name)
    return dict(zip(table.column_names, table.columns, strict=True))


@dataclass(frozen=True)
class _Python:
    """What the metadata says of rows that were Python values: the first row that lacks a column, if they were dicts."""

    lacks: dict[str, int]


def _columns(given: Mapping[str, list[Any]], types: Mapping[str, ValueType]) -> dict[str, Any]:
    """Return columns of JSON in their declared types; what the source does not have is left for it to name."""
    return {name: from_json(name, types[name], values) if name in types else values for name, values in given.items()}
