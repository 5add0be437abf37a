"""What a request may cost: the limits of `[server]` in featurestore.toml. Beyond one is a 413 that names it; too late is a 503."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from featurestore.settings import ServerSettings
from featurestore_server.problems import ProblemError

__all__ = ["Limits"]

_TABLES = ("/v1/historical-features", "/v1/training-sets", "/v1/push")
_TRAINING = ("/v1/historical-features", "/v1/training-sets")


class Limits:
    """The limits of one service."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.body_bytes, self.rows, self.features = settings.max_body_bytes, settings.max_rows, settings.max_features
        self.seconds = settings.request_timeout_ms / 1000

    def bytes_of(self, path: str) -> tuple[str, int]:
        """Return the setting that limits bodies of a route, and the most bytes that it allows."""
        is_table = path.startswith(_TABLES)
        return ("max_table_bytes", self._settings.max_table_bytes) if is_table else ("max_body_bytes", self.body_bytes)

    def seconds_of(self, path: str) -> tuple[str, float]:
        """Return the setting that limits how long a route may take until its answer begins, and the seconds."""
        if path.startswith(_TRAINING):
            return "training_timeout_ms", self._settings.training_timeout_ms / 1000
        return "request_timeout_ms", self.seconds

    def check_body(self, size: int) -> None:
        """Raise ProblemError if the body of a lookup is too large."""
        if size > self.body_bytes:
            raise exceeded("max_body_bytes", self.body_bytes, f"a body of {size} bytes")

    def check_rows(self, rows: int) -> None:
        """Raise ProblemError if a lookup asks for too many entities."""
        if rows > self.rows:
            raise exceeded("max_rows", self.rows, f"{rows} entities")

    def check_features(self, features: int) -> None:
        """Raise ProblemError if a request asks for too many features."""
        if features > self.features:
            raise exceeded("max_features", self.features, f"{features} features")

    def check_nesting(self, parsed: Any) -> None:
        """Raise ProblemError if JSON is nested too deep."""
        level = [parsed]
        for _ in range(self._settings.max_nesting + 1):
            level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
            if not level:
                return
        raise exceeded("max_nesting", self._settings.max_nesting, "JSON nested deeper")


def exceeded(setting: str, limit: int, what: str) -> ProblemError:
    """Return the refusal of what is beyond a limit."""
    return ProblemError("too-large", f"{what}: server.{setting} is {limit}", name=f"server.{setting}", limit=limit)


def late(setting: str, seconds: float) -> ProblemError:
    """Return the refusal of what takes too long."""
    limit = round(seconds * 1000)
    return ProblemError("too-slow", f"no answer in time: server.{setting} is {limit}", name=f"server.{setting}", limit=limit)


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
