"""The operations of the service as exchanges: one method for each, which both clients drive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import orjson

from featurestore.client.bodies import ARROW, Features, asked_for, entity_columns, rows_body
from featurestore.client.exchange import Exchange, Request, Retries, exchange
from featurestore.client.results import RemoteTrainingSet, RemoteVectors
from featurestore.client.spool import Spool

__all__ = ["Calls", "Incomplete"]

Incomplete = Literal["error", "stale", "null"]
_SENT_ARROW = {"Content-Type": ARROW}


@dataclass(frozen=True)
class Calls:
    """The operations."""

    retries: Retries

    def online(self, entities: Mapping[str, Sequence[Any]], features: Features) -> Exchange[RemoteVectors]:
        """Look feature vectors up."""
        table = entity_columns(entities)
        parameters = [*asked_for(features), ("metadata", "true")]
        request = Request("POST", "/v1/online-features", parameters, _SENT_ARROW, rows_body(table))
        answer = yield from exchange(request, self.retries)
        return RemoteVectors(table, answer.content)

    def historical(
        self, spine: tuple[str, Spool], features: Features, timestamp_column: str, incomplete: Incomplete
    ) -> Exchange[RemoteTrainingSet]:
        """Have a training set computed for a spine, given by its media type and its bytes."""
        parameters = [*asked_for(features), ("timestamp_column", timestamp_column), ("incomplete", incomplete)]
        type_, body = spine
        headers = {"Content-Type": type_, "Accept": ARROW}
        request = Request("POST", "/v1/historical-features", parameters, headers, body, is_long=True)
        answer = yield from exchange(request, self.retries)
        return RemoteTrainingSet(answer.content)

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
