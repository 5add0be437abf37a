"""The pace of a load beside lookups."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from featurestore.online import throttle as pace
from featurestore.online.throttle import Throttle
from tests.servers import HOST, server


def wait_for(is_so: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pause_of_whoever_reads_does_not_let_a_load_loose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load is gentle while somebody reads and in short pauses, and goes at full speed once nobody has read for a while."""
    monkeypatch.setattr(pace, "_QUIET_SECONDS", 5.0)  # a second is little where this machine stalls
    gentle = pace._GENTLE_ROWS
    with server(tmp_path) as made, redis.Redis(HOST, made.port) as client:
        throttle = Throttle([redis.Redis(HOST, made.port)])
        wait_for(lambda: throttle.frame_rows() > gentle)

        def read() -> bool:
            client.get("key")
            return throttle.frame_rows() == gentle

        wait_for(read)
        for _ in range(30):
            client.get("key")
        time.sleep(0.4)  # some looks find nobody
        assert throttle.frame_rows() == gentle
        wait_for(lambda: throttle.frame_rows() > gentle, 20)
        throttle.close()
