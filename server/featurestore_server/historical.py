"""`POST /v1/historical-features`: a training set for a spine that comes with the request, computed in a process of its own."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from featurestore_server.access import current_key
from featurestore_server.contract import ARROW, JSON, PARQUET, HistoricalAnswer, HistoricalOptions, HistoricalRequest
from featurestore_server.dependencies import negotiated, request_schema, sent_lock
from featurestore_server.processes import Computed
from featurestore_server.queries import Historical

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
async def historical_features(request: Request) -> Response:
    """Answer with the spine's rows in their order; values are those that serving would have given at the row's time."""
    asked = Historical(*negotiated(request, JSON, ARROW, PARQUET), current_key(), sent_lock(request))
    return Computed(request.app.state.processes, asked)
