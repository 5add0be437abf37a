"""The operations of the service as exchanges: one method for each, which both clients drive."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import orjson

from featurestore.client.bodies import ARROW, JSON, PARQUET, Features, asked_for, entity_columns, locked, rows_body
from featurestore.client.exchange import Exchange, Request, Retries, exchange
from featurestore.client.results import RemoteTrainingSet, RemoteVectors, TrainingSetJob
from featurestore.client.spool import Spool
from featurestore.clock import parse_instant
from featurestore.errors import NotFoundError, OfflineStoreError, ServiceError
from featurestore.receipt import Receipt

__all__ = ["Availability", "Calls", "GivenLock", "Incomplete", "Training"]

Incomplete = Literal["error", "stale", "null"]
Availability = Literal["declared", "measured"]
GivenLock = str | Path
_TRAINING_SETS = "/v1/training-sets"
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0
_SENT_ARROW = {"Content-Type": ARROW}


@dataclass(frozen=True)
class Training:
    """What is asked for of a training set."""

    features: Features
    timestamp_column: str
    incomplete: Incomplete
    availability: Availability
    lock: GivenLock | None

    def request(self, path: str, spine: tuple[str, Spool], headers: Mapping[str, str]) -> Request:
        """Return the request for it, of a spine given by its media type and its bytes."""
        names = ("timestamp_column", "incomplete", "availability")
        parameters = [*asked_for(self.features), *((name, getattr(self, name)) for name in names)]
        type_, body = spine
        return Request("POST", path, parameters, {"Content-Type": type_, **headers, **locked(self.lock)}, body, is_long=True)


@dataclass(frozen=True)
class Calls:
    """The operations."""

    retries: Retries

    def online(self, entities: Mapping[str, Sequence[Any]], features: Features, lock: GivenLock | None) -> Exchange[RemoteVectors]:
        """Look feature vectors up."""
        table = entity_columns(entities)
        parameters = [*asked_for(features), ("metadata", "true")]
        request = Request("POST", "/v1/online-features", parameters, _SENT_ARROW | locked(lock), rows_body(table))
        answer = yield from exchange(request, self.retries)
        return RemoteVectors(table, answer.content)

    def historical(self, asked: Training, spine: tuple[str, Spool]) -> Exchange[RemoteTrainingSet]:
        """Have a training set computed for a spine, given by its media type and its bytes."""
        request = asked.request("/v1/historical-features", spine, {"Accept": ARROW})
        answer = yield from exchange(request, self.retries)
        return RemoteTrainingSet(answer.content)

    def push(self, source: str, rows: Spool, idempotency_key: str | None) -> Exchange[Receipt]:
        """Push rows, given as an Arrow stream."""
        headers = _SENT_ARROW | {"Accept": JSON, "Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        request = Request("POST", f"/v1/push/{quote(source, safe='')}", headers=headers, body=rows)
        answer = yield from exchange(request, self.retries)
        found = orjson.loads(answer.content.content())
        arrival = parse_instant(found["arrival"])
        return Receipt(found["source"], arrival, found["rows"], found["erased"], found["online"])

    def create_training_set(
        self, asked: Training, spine: tuple[str, Spool], idempotency_key: str | None
    ) -> Exchange[TrainingSetJob]:
        """Have a training set computed and kept."""
        headers = {"Accept": JSON, "Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        answer = yield from exchange(asked.request(_TRAINING_SETS, spine, headers), self.retries)
        return TrainingSetJob.of(orjson.loads(answer.content.content()))

    def training_sets(self) -> Exchange[list[TrainingSetJob]]:
        """List the training sets that are kept."""
        answer = yield from exchange(Request("GET", _TRAINING_SETS), self.retries)
        return [TrainingSetJob.of(each) for each in orjson.loads(answer.content.content())["training_sets"]]

    def training_set(self, identifier: str, method: str = "GET", suffix: str = "") -> Exchange[TrainingSetJob]:
        """Read one of them, or do something with it."""
        request = Request(method, f"{_TRAINING_SETS}/{quote(identifier, safe='')}{suffix}")
        answer = yield from exchange(request, self.retries)
        return TrainingSetJob.of(orjson.loads(answer.content.content()))

    def delete_training_set(self, identifier: str) -> Exchange[TrainingSetJob]:
        """Delete one of them, and return it as it was."""
        job = yield from self.training_set(identifier)
        try:
            return (yield from self.training_set(identifier, "DELETE"))
        except NotFoundError:  # it is gone, by an attempt whose answer was lost
            return job

    def wait_for_training_set(self, identifier: str, timeout_seconds: float) -> Exchange[TrainingSetJob]:
        """Ask for one of them until it is over."""
        until, pause = time.monotonic() + timeout_seconds, _FIRST_PAUSE_SECONDS
        while not (job := (yield from self.training_set(identifier))).is_over:
            if time.monotonic() + pause > until:
                raise ServiceError(f"training set {identifier!r} is {job.state}, after {timeout_seconds:g} s")
            yield pause
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 1.5)
        return job

    def fetch_training_set(self, identifier: str, target: Path) -> Exchange[int]:
        """Receive the file of one of them; it appears when it is complete."""
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        path = f"{_TRAINING_SETS}/{quote(identifier, safe='')}/data"
        try:
            answer = yield from exchange(
                Request("GET", path, headers={"Accept": PARQUET}, is_long=True, target=partial), self.retries
            )
            answer.content.close()
            partial.replace(target)
        except OSError as reason:
            raise OfflineStoreError(f"cannot write {target}: {reason}") from reason
        finally:
            partial.unlink(missing_ok=True)
        return answer.content.size

    def read(self, path: str, parameters: Mapping[str, Any] | None = None) -> Exchange[dict[str, Any]]:
        """Read something of the registry."""
        given = [(name, str(value)) for name, value in (parameters or {}).items() if value is not None]
        answer = yield from exchange(Request("GET", f"/v1/registry{path}", given), self.retries)
        found: dict[str, Any] = orjson.loads(answer.content.content())
        return found

    def definition(self, kind: str, name: str | None) -> Exchange[Any]:
        """Read all definitions of a kind, or one of them."""
        if name is not None:
            return (yield from self.read(f"/{quote(kind, safe='')}/{quote(name, safe='')}"))
        listed = yield from self.read(f"/{quote(kind, safe='')}")
        return next(iter(listed.values()))
