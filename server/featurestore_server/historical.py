"""`POST /v1/historical-features`: a training set for a spine that comes with the request.

A spine is a table here, never text: the library would take a text for SQL, or for a path on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Depends
from starlette.responses import StreamingResponse

from featurestore.types import Timestamp, ValueType
from featurestore_server.access import permit
from featurestore_server.contract import ARROW, JSON, PARQUET, HistoricalAnswer, HistoricalOptions, HistoricalRequest
from featurestore_server.dependencies import Received, Store, received, request_schema
from featurestore_server.tables import begun, encoded, reader
from featurestore_server.values import check_lengths, from_json, untyped_from_json

__all__ = ["router"]

router = APIRouter(tags=["features"])
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/v1/historical-features",
    summary="A training set: the features of each spine row as of its time",
    response_model=HistoricalAnswer,
    responses={200: {"description": "The spine with its features, row by row", "content": {ARROW: _BINARY, PARQUET: _BINARY}}},
    openapi_extra=request_schema(HistoricalRequest, HistoricalOptions, ARROW, PARQUET),
)
def historical_features(request: Annotated[Received, Depends(received(JSON, ARROW, PARQUET))], store: Store) -> StreamingResponse:
    """Answer with the spine's rows in their order; values are those that serving would have given at the row's time."""
    asked: HistoricalOptions
    spine: pa.Table | pa.RecordBatchReader
    if request.media_type == JSON:
        asked = json_request = request.json(HistoricalRequest)
        permit(asked.wanted)
        spine = _json_spine(json_request.entities, store.selection(asked.wanted).keys, asked.timestamp_column)
    else:
        asked = request.options(HistoricalOptions)
        permit(asked.wanted)
        spine = reader(request.body, request.media_type)
    request.limits.check_features(len(store.selection(asked.wanted).columns))
    training = store.get_historical_features(
        spine, asked.wanted, timestamp_column=asked.timestamp_column, incomplete=asked.incomplete
    )
    chunks = encoded(request.answer_type, training.schema, training.to_batches(), training.spine.schema.names)
    return StreamingResponse(begun(chunks), media_type=request.answer_type)


def _json_spine(columns: Mapping[str, list[Any]], keys: Mapping[str, ValueType], timestamp_column: str) -> pa.Table:
    check_lengths(columns)
    typed = {timestamp_column: Timestamp, **keys}
    return pa.table(
        {
            name: from_json(name, typed[name], values) if name in typed else untyped_from_json(name, values)
            for name, values in columns.items()
        }
    )
