"""Feast beside ours: its environment, its process, and its server, all on the same machine and the same Redis."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.data import Bench
from benchmarks.rows import Cost
from benchmarks.servers import Server

__all__ = ["NAME", "Feast", "FeastError", "feast", "feast_loaded", "feast_served", "free_port"]

ROOT = Path(__file__).parents[1]
SCRATCH = ROOT / "benchmarks" / ".scratch"
NAME = "Feast"
_READY_SECONDS = 60
_LOADED = "benchmarks:feast"


class FeastError(Exception):
    """Feast could not do it; its own words."""


@dataclass(frozen=True)
class Feast:
    """The process of `feast_peer.py`."""

    process: subprocess.Popen[str]
    folder: Path
    python: Path

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """Let it do something, and return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise FeastError(f"it ended with code {self.process.wait()} in {do}")
        answer = json.loads(line)
        if "error" in answer:
            raise FeastError(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def cost(self, do: str, **what: Any) -> Cost:
        """Let it do something, and return what it measured."""
        return Cost(**self.ask(do, **what))


def environment() -> Path:
    """Return the Python of Feast's environment, which the first use makes."""
    python, is_complete = SCRATCH / "feast" / "bin" / "python", SCRATCH / "feast" / "is_complete"
    if not is_complete.exists():
        print("installing Feast into an environment of its own …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(SCRATCH / "feast")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-qq", "feast[redis,duckdb]"], check=True)
        is_complete.touch()  # last: an installation that was broken off is made anew
    return python


@cache
def feast(bench: Bench) -> Feast:
    """Return Feast's process over the bench's data and the same server as ours."""
    python, folder, latest = environment(), bench.folder / "feast", bench.folder / "latest.parquet"
    newest = f"SELECT * FROM '{bench.events}' QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY happened_at DESC) = 1"
    duckdb.execute(f"COPY ({newest}) TO '{latest}' (FORMAT parquet)")
    port = free_port()
    bench.store.online._client.config_set("port", port)  # noqa: SLF001 (Feast knows no Unix sockets)
    command = [
        str(python),
        "-W",
        "ignore",
        "-m",
        "benchmarks.feast_peer",
        str(folder),
        f"127.0.0.1:{port}",
        str(bench.events),
        str(latest),
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    bench.ending.callback(_end, process)
    return Feast(process, folder, python)


def feast_loaded(bench: Bench) -> Feast:
    """Return the same once the rows that lookups read are in the server, which rows about loading empty."""
    peer, client = feast(bench), bench.store.online._client  # noqa: SLF001 (the server is the same)
    if not client.exists(_LOADED):
        peer.cost("load")
        client.set(_LOADED, 1)
    return peer


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@cache
def feast_served(bench: Bench) -> Server:
    """Return Feast's server, with one worker that does not restart, as documented; it serves all rows, and ends with the bench."""
    peer, port = feast_loaded(bench), free_port()
    options = ["--no-access-log", "--workers", "1", "--max-requests", "0", "--max-requests-jitter", "0"]
    command = [str(peer.python.with_name("feast")), "-c", str(peer.folder), "serve", "-p", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    bench.ending.callback(_end, process)
    wait_until_answered(f"http://127.0.0.1:{port}/health", process)
    return Server(f"http://127.0.0.1:{port}", process.pid)


def wait_until_answered(url: str, process: subprocess.Popen[Any]) -> None:
    """Ask until the answer is good."""
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310 (our own loopback address)
            return
        time.sleep(0.005)
    raise FeastError(f"{url} does not answer")


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
