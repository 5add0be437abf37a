"""`/v1/training-sets`: training sets as jobs, which outlive the request and the server, and are kept in the offline store."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from starlette.responses import Response

from featurestore import FeatureStore
from featurestore.clock import instant_text, system_clock
from featurestore.errors import InputError, NotFoundError, TrainingSetError
from featurestore.offline.stored_sets import StoredSet
from featurestore_server.access import current_key, permit
from featurestore_server.contract import (
    ARROW,
    JSON,
    PARQUET,
    HistoricalOptions,
    HistoricalRequest,
    TrainingSetRecord,
    TrainingSetRecords,
)
from featurestore_server.dependencies import Store, request_schema, sent_lock
from featurestore_server.negotiation import accepted_type, sent_type
from featurestore_server.problems import ProblemError
from featurestore_server.processes import Computed
from featurestore_server.queries import Submission

__all__ = ["router"]

router = APIRouter(prefix="/v1/training-sets", tags=["training sets"])
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_KEY_LENGTH = 200
_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": _KEY_LENGTH},
    "description": "Requests of one API key with one such key make one training set, that of the first",
}


def _submission_schema() -> dict[str, Any]:
    schema = request_schema(HistoricalRequest, HistoricalOptions, ARROW, PARQUET)
    return schema | {"parameters": [*schema["parameters"], _KEY_PARAMETER]}


@router.post(
    "",
    status_code=202,
    summary="Have a training set computed and kept",
    response_model=TrainingSetRecord,
    openapi_extra=_submission_schema(),
)
async def create(request: Request) -> Response:
    """Keep the spine and what is asked for it; what is wrong with them is refused at once. It is computed when its turn comes."""
    media_type = sent_type(request.headers, (JSON, ARROW, PARQUET))
    accepted_type(", ".join(request.headers.getlist("accept")), (JSON,))
    query = {name: request.query_params.getlist(name) for name in request.query_params}
    identifier = _identifier(request.headers.get("idempotency-key"))
    work = Submission(media_type, JSON, query, current_key(), sent_lock(request), identifier)
    return Computed(request.app.state.submissions, work)


def _identifier(idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return secrets.token_hex(16)
    if not 0 < len(idempotency_key) <= _KEY_LENGTH:
        raise InputError(f"an Idempotency-Key has 1 to {_KEY_LENGTH} characters", name="Idempotency-Key")
    return hashlib.sha256(f"{current_key().id}\0{idempotency_key}".encode()).hexdigest()[:32]


@router.get("", summary="Every stored training set")
def listed(store: Store) -> TrainingSetRecords:
    """List those that the key may read, newest first."""
    return TrainingSetRecords(training_sets=[_record(each) for each in _permitted(store)])


@contextmanager
def _stored(store: FeatureStore, set_id: str) -> Iterator[StoredSet]:
    """Give a set that the key may read; where there is none, no others are named than such."""
    try:
        found = store.training_sets.find(set_id)
        permit(_features(found))
        yield found
    except NotFoundError as reason:
        raise NotFoundError(reason.kind, reason.name, [each.job.id for each in _permitted(store)]) from reason


@router.get("/{set_id}", summary="How far a training set is")
def shown(set_id: str, store: Store) -> TrainingSetRecord:
    """Say what was asked for and what has become of it."""
    with _stored(store, set_id) as stored:
        return _record(stored)


@router.post("/{set_id}/cancel", summary="Cancel a training set")
def cancelled(set_id: str, store: Store) -> TrainingSetRecord:
    """Cancel one that is not over; the process that computes it ends within a second."""
    with _stored(store, set_id) as stored:
        return _record(store.training_sets.cancel(stored.job.id, now=instant_text(system_clock())))


@router.delete("/{set_id}", summary="Delete a training set")
def deleted(set_id: str, store: Store) -> TrainingSetRecord:
    """Delete one with its files; one that is being computed has to be cancelled before."""
    with _stored(store, set_id) as stored:
        store.training_sets.delete(stored.job.id)
        return _record(stored)


@router.get(
    "/{set_id}/data",
    summary="The rows of a training set, as Parquet",
    response_class=FileResponse,
    responses={200: {"description": "The file; ranges of it can be asked for", "content": {PARQUET: _BINARY}}},
)
def data(set_id: str, store: Store) -> FileResponse:
    """Send the file of one that is completed."""
    with _stored(store, set_id) as stored:
        if stored.state.state != "completed":
            raise TrainingSetError(f"training set {stored.job.id!r} is {stored.state.state}, and has no rows", name=stored.job.id)
        return FileResponse(stored.result, media_type=PARQUET, filename=f"{stored.job.id}.parquet")


def _permitted(store: FeatureStore) -> list[StoredSet]:
    return [each for each in store.training_sets.all() if _is_permitted(each)]


def _is_permitted(stored: StoredSet) -> bool:
    try:
        permit(_features(stored))
    except ProblemError:
        return False
    return True


def _features(stored: StoredSet) -> str | list[str]:
    features = stored.job.features
    return features if isinstance(features, str) else list(features)


def _record(stored: StoredSet) -> TrainingSetRecord:
    return TrainingSetRecord.model_validate(stored.to_dict())
