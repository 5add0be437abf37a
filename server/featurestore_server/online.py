"""`POST /v1/online-features`: the newest values of some entities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import orjson
import pyarrow as pa
from fastapi import APIRouter, Depends
from starlette.responses import Response

from featurestore.errors import InputError, SpineError
from featurestore.offline.spine import key_column
from featurestore.online.vectors import FeatureVectors
from featurestore.types import ValueType
from featurestore_server.contract import ARROW, JSON, OnlineAnswer, OnlineOptions, OnlineRequest
from featurestore_server.dependencies import Received, Store, received, request_schema
from featurestore_server.problems import ProblemError, nearest
from featurestore_server.tables import read_table
from featurestore_server.values import check_lengths, from_json, to_json

__all__ = ["router"]

router = APIRouter(tags=["features"])
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/v1/online-features",
    summary="The newest values of some entities",
    response_model=OnlineAnswer,
    responses={200: {"description": "Feature vectors, a row for each entity", "content": {ARROW: _BINARY}}},
    openapi_extra=request_schema(OnlineRequest, OnlineOptions, ARROW),
)
def online_features(request: Annotated[Received, Depends(received(JSON, ARROW))], store: Store) -> Response:
    """Answer in the order asked, with null where a value is missing. `contract.py` has the rules of values."""
    asked: OnlineOptions
    if request.media_type == JSON:
        asked = json_request = request.json(OnlineRequest)
        keys = store.selection(asked.wanted).keys
        entities = _json_entities(json_request.entities, keys)
    else:
        asked = request.options(OnlineOptions)
        keys = store.selection(asked.wanted).keys
        entities = _arrow_entities(read_table(request.body, request.media_type), keys)
    vectors = store.get_online_features(entities, asked.wanted)
    answer = _json_answer if request.answer_type == JSON else _arrow_answer
    return Response(answer(vectors, has_metadata=asked.metadata), media_type=request.answer_type)


def _json_entities(columns: Mapping[str, list[Any]], keys: Mapping[str, ValueType]) -> dict[str, pa.Array]:
    _check_names(columns, keys)
    entities = {name: from_json(name, type_, columns[name]) for name, type_ in keys.items()}
    check_lengths(entities)
    return entities


def _arrow_entities(table: pa.Table, keys: Mapping[str, ValueType]) -> dict[str, pa.Array]:
    names = table.column_names
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the table has more than one column {name!r}", name=name)
    _check_names(table.column_names, keys)
    try:
        return {name: key_column(table[name], name, type_) for name, type_ in keys.items()}
    except SpineError as reason:
        raise InputError(str(reason), name=reason.name) from reason


def _check_names(given: Mapping[str, Any] | list[str], keys: Mapping[str, ValueType]) -> None:
    for name in given:
        if name not in keys:
            detail = f"{name!r} is no key of the features asked for; the keys are {', '.join(map(repr, keys))}"
            raise ProblemError("input", detail, name=name, nearest=nearest(name, keys))
    for name in keys:
        if name not in given:
            detail = f"key {name!r} is missing; the keys are {', '.join(map(repr, keys))}"
            raise ProblemError("input", detail, name=name, nearest=nearest(name, given))


def _json_answer(vectors: FeatureVectors, *, has_metadata: bool) -> bytes:
    answer: dict[str, Any] = {"features": {name: to_json(vectors.columns[name]) for name in vectors.features}}
    if has_metadata:
        answer["metadata"] = {
            view: {"status": [status.name for status in statuses], "event_time": to_json(vectors.event_times[view])}
            for view, statuses in vectors.statuses.items()
        }
    return orjson.dumps(answer)


def _arrow_answer(vectors: FeatureVectors, *, has_metadata: bool) -> bytes:
    columns = {name: vectors.columns[name] for name in vectors.features}
    if has_metadata:
        for view, statuses in vectors.statuses.items():
            columns[f"__{view}__status"] = pa.array([status.name for status in statuses], pa.string())
            columns[f"__{view}__event_time"] = vectors.event_times[view]
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content
