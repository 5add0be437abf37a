"""The two clients: they send what the exchanges ask for and wait where these say so, one blocking, one on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from featurestore.client.bodies import Features, push_body, spine_body
from featurestore.client.calls import Availability, Calls, GivenLock, Incomplete, Training
from featurestore.client.connection import connection, failure_of, sent
from featurestore.client.exchange import Answer, Exchange, Failure, Request, Retries, is_expected
from featurestore.client.results import RemoteTrainingSet, RemoteVectors, TrainingSetJob
from featurestore.client.spool import Spool
from featurestore.receipt import Receipt

__all__ = ["AsyncFeatureStoreClient", "FeatureStoreClient"]

_T = TypeVar("_T")
_OK = 200


class _Client:
    """What both clients have."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 10.0,
        training_timeout_seconds: float = 3600.0,
        retries: int = 3,
        ca_file: str | None = None,
    ) -> None:
        self._settings = connection(url, api_key, timeout_seconds, ca_file)
        self._timeout_seconds, self._training_timeout_seconds = timeout_seconds, training_timeout_seconds
        self._calls = Calls(Retries(retries))
        self._open()

    def _open(self) -> None:
        """Make the httpx client, which connects when it is first used."""
        raise NotImplementedError

    def __repr__(self) -> str:
        from featurestore.settings import redacted

        return f"{type(self).__name__}({redacted(self._settings['base_url'])!r})"

    def _sent(self, request: Request) -> dict[str, Any]:
        return sent(request, self._training_timeout_seconds if request.is_long else self._timeout_seconds)


class FeatureStoreClient(_Client):
    """A feature store behind its HTTP service, with the methods and results of `FeatureStore`. Use it with `with`, or close it.

    `url` is the service's, by default that of `FEATURESTORE_URL`; `api_key` its key, by default `FEATURESTORE_API_KEY`. A request
    may take `timeout_seconds`, one that computes a training set `training_timeout_seconds`. Requests that met a closed door or a
    broken connection are tried again up to `retries` times, after growing random pauses. `ca_file` has the certificates to
    trust. Threads may share a client.

    All methods raise the errors of the local API, and ServiceError if the service cannot be reached.
    """

    def _open(self) -> None:
        self._http = httpx.Client(**self._settings)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def get_online_features(
        self, entities: Mapping[str, Sequence[Any]], features: Features, *, lock: GivenLock | None = None
    ) -> RemoteVectors:
        """Return the feature vectors of some entities: `{"tail_number": ["N14228", …], …}`, one value for each row.

        `lock` is the path of a lock, which is read here, or a fingerprint, that the features have to have.
        """
        return self._run(self._calls.online(entities, features, lock))

    def get_historical_features(
        self,
        spine: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        incomplete: Incomplete = "error",
        availability: Availability = "declared",
        lock: GivenLock | None = None,
    ) -> RemoteTrainingSet:
        """Return the features of each spine row as of its timestamp, received in full when this returns.

        `spine` may be all that `FeatureStore` takes; SQL and paths are read here, not by the service. So is the file of a `lock`.
        """
        asked = Training(features, timestamp_column, incomplete, availability, lock)
        return self._run(self._calls.historical(asked, spine_body(spine)))

    def push(self, source: str, rows: Any, idempotency_key: str | None = None) -> Receipt:
        """Push rows of a push source, of any kind that `FeatureStore` takes; they are logged durably when this returns.

        A call with the key of an earlier one changes nothing. Without one each call has its own, with which it is tried again.
        """
        return self._run(self._calls.push(source, push_body(rows), idempotency_key))

    def create_training_set(
        self,
        spine: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        incomplete: Incomplete = "error",
        availability: Availability = "declared",
        lock: GivenLock | None = None,
        idempotency_key: str | None = None,
    ) -> TrainingSetJob:
        """Have a training set computed and kept by the service, as a job that outlives this call and the server.

        Calls with one `idempotency_key` make one job, that of the first.
        """
        asked = Training(features, timestamp_column, incomplete, availability, lock)
        return self._run(self._calls.create_training_set(asked, spine_body(spine), idempotency_key))

    def training_sets(self) -> list[TrainingSetJob]:
        """Return the training sets that the service keeps, newest first."""
        return self._run(self._calls.training_sets())

    def training_set(self, id: str) -> TrainingSetJob:  # noqa: A002 (the service's name for it)
        """Return how far one of them is."""
        return self._run(self._calls.training_set(id))

    def wait_for_training_set(self, id: str, *, timeout_seconds: float = 3600.0) -> TrainingSetJob:  # noqa: A002
        """Return one of them once it is over, however it ended; ServiceError if that takes longer."""
        return self._run(self._calls.wait_for_training_set(id, timeout_seconds))

    def fetch_training_set(self, id: str, path: str | Path) -> int:  # noqa: A002
        """Write the rows of a completed one to a Parquet file, which appears when it is complete; returns its bytes."""
        return self._run(self._calls.fetch_training_set(id, Path(path)))

    def cancel_training_set(self, id: str) -> TrainingSetJob:  # noqa: A002
        """Cancel one that is not over."""
        return self._run(self._calls.training_set(id, "POST", "/cancel"))

    def delete_training_set(self, id: str) -> TrainingSetJob:  # noqa: A002
        """Delete one with its files; returns it as it was."""
        return self._run(self._calls.delete_training_set(id))

    def overview(self) -> dict[str, Any]:
        """Return what is applied, by name."""
        return self._run(self._calls.read(""))

    def definitions(self, kind: str) -> list[dict[str, Any]]:
        """Return the definitions of a kind: entities, sources, feature-views, aliases or feature-services."""
        return self._run(self._calls.definition(kind, None))

    def definition(self, kind: str, name: str) -> dict[str, Any]:
        """Return one definition of such a kind; of a view with its versions, of a service with its keys and columns."""
        return self._run(self._calls.definition(kind, name))

    def versions(self, view: str | None = None) -> list[dict[str, Any]]:
        """Return versions of views, oldest first."""
        return list(self._run(self._calls.read("/versions", {"view": view}))["versions"])

    def runs(self, limit: int = 50, view: str | None = None) -> list[dict[str, Any]]:
        """Return the newest runs, newest first."""
        return list(self._run(self._calls.read("/runs", {"view": view, "limit": limit}))["runs"])

    def freshness(self) -> dict[str, Any]:
        """Return how far each view's watermark is behind now."""
        return self._run(self._calls.read("/freshness"))

    def _run(self, steps: Exchange[_T]) -> _T:
        got: Answer | Failure | None = None
        try:
            while True:
                step = steps.send(got)
                if isinstance(step, Request):
                    got = self._answer(step)
                else:
                    time.sleep(step)
                    got = None
        except StopIteration as done:
            result: _T = done.value
            return result
        except OSError as reason:  # the answer cannot be kept, which only the exchange can say well
            steps.throw(reason)
            raise

    def _answer(self, request: Request) -> Answer | Failure:
        try:
            built = self._http.build_request(content=_content(request), **self._sent(request))
            response = self._http.send(built, stream=True)
            try:
                answer = _begun(request, response)
                for chunk in response.iter_bytes():
                    answer.content.write(chunk)
                answer.content.flush()
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return failure_of(error)
        return answer


class AsyncFeatureStoreClient(_Client):
    """The same for an event loop: its methods are awaited, with the same arguments, results and errors as `FeatureStoreClient`'s.

    Use it with `async with`, or close it with `aclose`.
    """

    def _open(self) -> None:
        self._http = httpx.AsyncClient(**self._settings)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def get_online_features(
        self, entities: Mapping[str, Sequence[Any]], features: Features, *, lock: GivenLock | None = None
    ) -> RemoteVectors:
        """Return the feature vectors of some entities."""
        return await self._run(self._calls.online(entities, features, lock))

    async def get_historical_features(
        self,
        spine: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        incomplete: Incomplete = "error",
        availability: Availability = "declared",
        lock: GivenLock | None = None,
    ) -> RemoteTrainingSet:
        """Return the features of each spine row as of its timestamp."""
        asked = Training(features, timestamp_column, incomplete, availability, lock)
        return await self._run(self._calls.historical(asked, await asyncio.to_thread(spine_body, spine)))

    async def push(self, source: str, rows: Any, idempotency_key: str | None = None) -> Receipt:
        """Push rows of a push source; they are logged durably when this returns."""
        body = await asyncio.to_thread(push_body, rows)
        return await self._run(self._calls.push(source, body, idempotency_key))

    async def create_training_set(
        self,
        spine: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        incomplete: Incomplete = "error",
        availability: Availability = "declared",
        lock: GivenLock | None = None,
        idempotency_key: str | None = None,
    ) -> TrainingSetJob:
        """Have a training set computed and kept by the service, as a job that outlives this call and the server.

        Calls with one `idempotency_key` make one job, that of the first.
        """
        asked = Training(features, timestamp_column, incomplete, availability, lock)
        body = await asyncio.to_thread(spine_body, spine)
        return await self._run(self._calls.create_training_set(asked, body, idempotency_key))

    async def training_sets(self) -> list[TrainingSetJob]:
        """Return the training sets that the service keeps, newest first."""
        return await self._run(self._calls.training_sets())

    async def training_set(self, id: str) -> TrainingSetJob:  # noqa: A002 (the service's name for it)
        """Return how far one of them is."""
        return await self._run(self._calls.training_set(id))

    async def wait_for_training_set(self, id: str, *, timeout_seconds: float = 3600.0) -> TrainingSetJob:  # noqa: A002
        """Return one of them once it is over, however it ended; ServiceError if that takes longer."""
        return await self._run(self._calls.wait_for_training_set(id, timeout_seconds))

    async def fetch_training_set(self, id: str, path: str | Path) -> int:  # noqa: A002
        """Write the rows of a completed one to a Parquet file, which appears when it is complete; returns its bytes."""
        return await self._run(self._calls.fetch_training_set(id, Path(path)))

    async def cancel_training_set(self, id: str) -> TrainingSetJob:  # noqa: A002
        """Cancel one that is not over."""
        return await self._run(self._calls.training_set(id, "POST", "/cancel"))

    async def delete_training_set(self, id: str) -> TrainingSetJob:  # noqa: A002
        """Delete one with its files; returns it as it was."""
        return await self._run(self._calls.delete_training_set(id))

    async def overview(self) -> dict[str, Any]:
        """Return what is applied, by name."""
        return await self._run(self._calls.read(""))

    async def definitions(self, kind: str) -> list[dict[str, Any]]:
        """Return the definitions of a kind."""
        return await self._run(self._calls.definition(kind, None))

    async def definition(self, kind: str, name: str) -> dict[str, Any]:
        """Return one definition of a kind."""
        return await self._run(self._calls.definition(kind, name))

    async def versions(self, view: str | None = None) -> list[dict[str, Any]]:
        """Return versions of views, oldest first."""
        return list((await self._run(self._calls.read("/versions", {"view": view})))["versions"])

    async def runs(self, limit: int = 50, view: str | None = None) -> list[dict[str, Any]]:
        """Return the newest runs, newest first."""
        return list((await self._run(self._calls.read("/runs", {"view": view, "limit": limit})))["runs"])

    async def freshness(self) -> dict[str, Any]:
        """Return how far each view's watermark is behind now."""
        return await self._run(self._calls.read("/freshness"))

    async def _run(self, steps: Exchange[_T]) -> _T:
        got: Answer | Failure | None = None
        try:
            while True:
                step = steps.send(got)
                if isinstance(step, Request):
                    got = await self._answer(step)
                else:
                    await asyncio.sleep(step)
                    got = None
        except StopIteration as done:
            result: _T = done.value
            return result
        except OSError as reason:  # the answer cannot be kept, which only the exchange can say well
            steps.throw(reason)
            raise

    async def _answer(self, request: Request) -> Answer | Failure:
        try:
            content = None if request.body is None else _in_turn(request.body)
            built = self._http.build_request(content=content, **self._sent(request))
            response = await self._http.send(built, stream=True)
            try:
                answer = _begun(request, response)
                async for chunk in response.aiter_bytes():
                    answer.content.write(chunk)
                answer.content.flush()
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return failure_of(error)
        return answer


def _content(request: Request) -> Any:
    return None if request.body is None else request.body.chunks()


async def _in_turn(body: Spool) -> AsyncIterator[bytes]:
    for chunk in body.chunks():
        yield chunk


def _begun(request: Request, response: httpx.Response) -> Answer:
    is_kept = request.target is not None and response.status_code == _OK and is_expected(request, response.headers)
    return Answer(response.status_code, response.headers, Spool(request.target if is_kept else None))
