"""`POST /v1/online-features`: the newest values of some entities, answered ahead of FastAPI.

A request is read, checked and answered by hand; what is not as it should be goes to the models of the contract, whose words say
what is wrong with it. No request waits for the registry (`plans.py`). The online store answers it in one round trip, shared with
the requests of the same moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError, InputError, SpineError
from featurestore.lock import check_lock, read_lock
from featurestore.offline.spine import key_column, request_column
from featurestore.online.fetching import Found
from featurestore.online.vectors import FeatureVectors, LookupPlan
from featurestore.online.vectors import Request as Lookup
from featurestore_server.access import permit, set_key
from featurestore_server.contract import ARROW, JSON, LOCK_HEADER, PATH, OnlineAnswer, OnlineOptions, OnlineRequest
from featurestore_server.dependencies import Received, checked_fingerprint, received, request_schema, validated
from featurestore_server.gate import headers_of, safe_headers
from featurestore_server.limits import Limits, late
from featurestore_server.logs import RequestLog
from featurestore_server.metrics import Series, now
from featurestore_server.negotiation import accepted_type, sent_type
from featurestore_server.plans import Plan, Plans
from featurestore_server.problems import ProblemError, nearest, refusal
from featurestore_server.request_ids import HEADER, request_id, set_id
from featurestore_server.tables import read_table
from featurestore_server.values import check_lengths, from_json, to_json

__all__ = ["OnlineFeatures", "Short", "router"]

_MEMBERS = frozenset(OnlineRequest.model_fields)
_WARMING = b"featurestore"  # a key that no row has: asking for it opens the connection before a request waits for it
_LOCK = LOCK_HEADER.lower().encode()
_LARGE_BYTES = 65_536  # of a body that the event loop leaves to a thread

router = APIRouter(tags=["features"])
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    PATH,
    summary="The newest values of some entities",
    response_model=OnlineAnswer,
    responses={200: {"description": "Feature vectors, a row for each entity", "content": {ARROW: _BINARY}}},
    openapi_extra=request_schema(OnlineRequest, OnlineOptions, ARROW),
)
async def online_features(request: Request) -> Response:
    """Answer in the order asked, with null where a value is missing. `contract.py` has the rules of values."""
    # Documents the route, and answers where the application is mounted under a prefix, which hides the path from the fast way.
    lookups: OnlineFeatures = request.app.state.online
    asked = await received(JSON, ARROW)(request)
    content, _ = await lookups.answer(asked)
    return Response(content, media_type=asked.answer_type)


class _Asked(NamedTuple):
    """What a request asks for; `entities` are columns of JSON values, or a table."""

    wanted: str | list[str]
    entities: dict[str, list[Any]] | pa.Table
    has_metadata: bool


class Short(NamedTuple):
    """An answer, its type, and where it counts."""

    content: bytes
    type: str
    series: Series


Write = Callable[[Plan, _Asked, FeatureVectors], bytes]


class OnlineFeatures:
    """The route as an ASGI application."""

    def __init__(self, store: FeatureStore, plans: Plans, limits: Limits, log: RequestLog) -> None:
        self._store, self._plans, self._limits, self._log = store, plans, limits, log
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve on the running event loop, over one connection to each server of the online store, which is closed at the end."""
        with suppress(FeatureStoreError):  # it may answer later
            await self._plans.serving()
            await self._store.online.fetch_async([_WARMING])
        self._loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            self._loop = None
            await self._store.online.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        begun, given, log = now(), headers_of(scope), self._log
        identifier = request_id(given.get(HEADER))
        log.metrics.in_flight += 1
        try:
            async with asyncio.timeout(self._limits.seconds):
                set_key((await self._plans.access()).admit(given.get(b"authorization"), PATH))
                request = await self._received(scope, given, receive)
                content, plan = await self.answer(request)
            status, series, type_ = 200, plan.series, request.answer_type.encode()
            headers = [(b"content-type", type_), (b"content-length", b"%d" % len(content))]
        except (ProblemError, FeatureStoreError, TimeoutError) as error:
            set_id(identifier)
            problem = late("request_timeout_ms", self._limits.seconds) if isinstance(error, TimeoutError) else error
            response = refusal(problem, scope["method"], PATH)
            status, series = response.status_code, log.metrics.series(PATH)
            headers, content = response.raw_headers, bytes(response.body)
        finally:
            log.metrics.in_flight -= 1
        headers = [*headers, *safe_headers(scope), (HEADER, identifier)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})
        log.end(series, scope, status, now() - begun, identifier, given)

    def begin(self, given: Mapping[bytes, bytes], body: bytes, done: Callable[[Short | None], None]) -> bool:
        """Answer in two steps that wait for nothing, if a request is as most are; false if it is not, and needs the long way.

        `done` is called in a later turn of the event loop, with none if it needs the long way after all. What is refused is refused
        there, in the same words.
        """
        serving = self._plans.known()
        if serving is None or self._loop is None:
            return False
        try:
            key = serving.access.admit(given.get(b"authorization"), PATH)
            self._limits.check_body(len(body))
            sent, type_ = _negotiated(
                given.get(b"content-type", b""), given.get(b"content-encoding", b""), given.get(b"accept", b"")
            )
            asked = _valid(orjson.loads(body)) if sent == JSON else None
            if asked is None:
                return False
            permit(asked.wanted, key)
            self._check(asked)
            plan = serving.known(asked.wanted)
            if plan is None or any(len(values) > plan.short_rows for values in asked.entities.values()):
                return False
            self._limits.check_features(len(plan.lookup.selection.columns))
            if not _is_given(asked.entities, plan) or _lock(given) not in (None, plan.fingerprint):
                return False
            lookup = plan.lookup.request(_read(asked.entities, plan))
        except (ProblemError, FeatureStoreError, ValueError, OverflowError):  # a JSONDecodeError is a ValueError
            return False
        write = _json_answer if type_ == JSON else _arrow_answer

        def end(found: Found | None) -> None:
            short = None
            if found is not None:
                with suppress(Exception):  # the long way says what is wrong
                    short = Short(self._written(plan, asked, lookup, found, write), type_, plan.series)
            done(short)

        return self._store.online.fetch_soon(lookup.names, end)

    def _written(self, plan: Plan, asked: _Asked, lookup: Lookup, found: Found, write: Write) -> bytes:
        present = self._store.clock()
        made = plan.lookup.answer(lookup, found, now=present)
        content = write(plan, asked, made)
        if self._store.serving_log is not None:
            self._store.serving_log.offer(lookup, found, made, present)
        return content

    @property
    def log(self) -> RequestLog:
        """Where requests are counted."""
        return self._log

    async def _received(self, scope: Scope, given: Mapping[bytes, bytes], receive: Receive) -> Received:
        types = _negotiated(given.get(b"content-type", b""), given.get(b"content-encoding", b""), given.get(b"accept", b""))
        query: dict[str, list[str]] = {}
        if scope["query_string"]:
            parameters = QueryParams(scope["query_string"])
            query = {name: parameters.getlist(name) for name in parameters}
        if (length := given.get(b"content-length", b"")).isdigit():
            self._limits.check_body(int(length))
        return Received(*types, query, await self._body(receive), self._limits, _lock(given))

    async def _body(self, receive: Receive) -> bytes:
        message = await receive()
        size, parts = 0, []
        while message["type"] == "http.request":
            part = message.get("body", b"")
            size += len(part)
            self._limits.check_body(size)
            parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)
            message = await receive()
        raise ClientDisconnect

    async def answer(self, request: Received) -> tuple[bytes, Plan]:
        """Return the answer to a request, in the type that it accepts, and the plan behind it.

        Raises:
            ProblemError, FeatureStoreError: it is refused, or cannot be answered now.

        """
        is_large = len(request.body) > _LARGE_BYTES
        asked = await asyncio.to_thread(_asked, request) if is_large else _asked(request)
        permit(asked.wanted)
        self._check(asked)
        serving = self._plans.known() or await self._plans.serving()
        plan = serving.known(asked.wanted)
        if plan is None:
            plan = await asyncio.to_thread(serving.plan, asked.wanted)
        if request.lock not in (None, plan.fingerprint):
            lock = read_lock(checked_fingerprint(request.lock))
            await asyncio.to_thread(check_lock, plan.lookup.selection, lock, self._store.registry.find_selection)
        self._limits.check_features(len(plan.lookup.selection.columns))
        lookup = await asyncio.to_thread(_request, plan, asked, self._limits) if is_large else _request(plan, asked, self._limits)
        found = await self._fetch(lookup)
        arguments = plan, asked, lookup, found, _json_answer if request.answer_type == JSON else _arrow_answer
        return await asyncio.to_thread(self._written, *arguments) if is_large else self._written(*arguments), plan

    def _check(self, asked: _Asked) -> None:
        if type(asked.wanted) is list:
            self._limits.check_features(len(asked.wanted))
        if type(asked.entities) is not dict:
            self._limits.check_rows(len(asked.entities))
            return
        for values in asked.entities.values():
            self._limits.check_rows(len(values))

    async def _fetch(self, request: Lookup) -> Found:
        online = self._store.online
        if self._loop is asyncio.get_running_loop():
            return await online.fetch_async(request.names)
        return await asyncio.to_thread(online.fetch, request.names)  # a loop that nobody tells us the end of


# Reading


@lru_cache(maxsize=256)
def _negotiated(content_type: bytes, content_encoding: bytes, accept: bytes) -> tuple[str, str]:
    """Return the type of the body, and that of the answer."""
    headers = {"content-type": content_type.decode("latin-1"), "content-encoding": content_encoding.decode("latin-1")}
    sent = sent_type(headers, (JSON, ARROW))
    return sent, accepted_type(accept.decode("latin-1"), (sent, ARROW if sent == JSON else JSON))


def _lock(given: Mapping[bytes, bytes]) -> str | None:
    """Return the fingerprint of a lock that a request names, as it stands there; none if it names none."""
    lock = given.get(_LOCK)
    return None if lock is None else lock.decode("latin-1")


def _asked(request: Received) -> _Asked:
    if request.media_type == JSON:
        parsed = request.parsed()
        if (asked := _valid(parsed)) is not None:
            return asked
        request.limits.check_nesting(parsed)
        return _validated(parsed)
    options = request.options(OnlineOptions)
    return _Asked(options.wanted, read_table(request.body, request.media_type), options.metadata)


def _valid(parsed: Any) -> _Asked | None:
    """Return what a body asks for if nothing is wrong with it."""
    if type(parsed) is not dict or not parsed.keys() <= _MEMBERS:
        return None
    entities, has_metadata = parsed.get("entities"), parsed.get("metadata", False)
    service, features = parsed.get("feature_service"), parsed.get("features")
    if type(entities) is not dict or not {list}.issuperset(map(type, entities.values())) or type(has_metadata) is not bool:
        return None
    if type(service) is str and features is None:
        return _Asked(service, entities, has_metadata)
    if service is None and type(features) is list and {str}.issuperset(map(type, features)):
        return _Asked(features, entities, has_metadata)
    return None


def _validated(parsed: Any) -> _Asked:
    """Return the same of a body with faults: a ProblemError that lists them."""
    asked = validated(OnlineRequest, parsed)
    return _Asked(asked.wanted, asked.entities, asked.metadata)


def _request(plan: Plan, asked: _Asked, limits: Limits) -> Lookup:
    entities, lookup = asked.entities, plan.lookup
    if type(entities) is not dict:
        return lookup.request(_arrow_entities(entities, lookup))
    if _is_given(entities, plan):
        try:
            return lookup.request(_read(entities, plan))
        except (InputError, ValueError, OverflowError):  # what is wrong is said below, in the words of JSON
            pass
    limits.check_nesting({"entities": entities})
    return lookup.request(_json_entities(entities, lookup))


def _is_given(entities: Mapping[str, list[Any]], plan: Plan) -> bool:
    """Whether JSON values are those that the lookup takes, or that are read for it."""
    if plan.given is None or len(entities) != len(plan.given):
        return False
    return all(name in entities and kinds.issuperset(map(type, entities[name])) for name, kinds in plan.given)


def _read(entities: dict[str, list[Any]], plan: Plan) -> dict[str, list[Any]]:
    if not plan.readers:
        return entities
    return entities | {name: [read(value) for value in entities[name]] for name, read in plan.readers}


def _json_entities(columns: Mapping[str, list[Any]], lookup: LookupPlan) -> dict[str, pa.Array]:
    _check_names(columns, lookup)
    entities = {name: from_json(name, type_, columns[name]) for name, type_ in lookup.needed.items()}
    check_lengths(entities)
    return entities


def _arrow_entities(table: pa.Table, lookup: LookupPlan) -> dict[str, pa.Array]:
    names = table.column_names
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the table has more than one column {name!r}", name=name)
    _check_names(table.column_names, lookup)
    try:
        return {
            name: (key_column if name in lookup.keys else request_column)(table[name], name, type_)
            for name, type_ in lookup.needed.items()
        }
    except SpineError as reason:
        raise InputError(str(reason), name=reason.name) from reason


def _check_names(given: Mapping[str, Any] | list[str], lookup: LookupPlan) -> None:
    needed, known = lookup.needed, f"the keys are {', '.join(map(repr, lookup.keys))}" if lookup.keys else ""
    if others := [name for name in needed if name not in lookup.keys]:
        known += f"{', ' * bool(known)}the request columns are {', '.join(map(repr, others))}"
    for name in given:
        if name not in needed:
            detail = f"{name!r} is no key of the features asked for; {known}"
            raise ProblemError("input", detail, name=name, nearest=nearest(name, needed))
    for name in needed:
        if name not in given:
            detail = f"{'key' if name in lookup.keys else 'request column'} {name!r} is missing; {known}"
            raise ProblemError("input", detail, name=name, nearest=nearest(name, given))


# Writing


def _json_answer(plan: Plan, asked: _Asked, vectors: FeatureVectors) -> bytes:
    arrays = vectors.arrays()
    answer: dict[str, Any] = {"features": plan.write(vectors.plain_features()) if arrays is None else arrays}
    if asked.has_metadata:
        answer["metadata"] = {
            view: {"status": [status.name for status in statuses], "event_time": to_json(vectors.event_times[view])}
            for view, statuses in vectors.statuses.items()
        }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _arrow_answer(plan: Plan, asked: _Asked, vectors: FeatureVectors) -> bytes:
    table = vectors.columns.select(vectors.features).replace_schema_metadata(plan.schema_metadata)
    if asked.has_metadata:
        for view, statuses in vectors.statuses.items():
            table = table.append_column(f"__{view}__status", pa.array([status.name for status in statuses], pa.string()))
            table = table.append_column(f"__{view}__event_time", vectors.event_times[view])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content
