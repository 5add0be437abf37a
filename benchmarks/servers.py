"""Servers that are measured, and what they use: processor time and memory of a process and all that it started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis

__all__ = ["Server", "empty", "served"]

ROOT = Path(__file__).parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A server that runs: where it answers, and its process."""

    url: str
    pid: int

    def processor(self) -> float:
        """Return the seconds of processor that its processes have used."""
        seconds = 0
        for pid in _family(self.pid):
            fields = _read(pid, "stat").rpartition(")")[2].split()
            seconds += sum(map(int, fields[11:13]))
        return seconds / _TICKS

    def forget_peak(self) -> None:
        """Let the peaks of its processes begin anew."""
        for pid in _family(self.pid):
            with suppress(OSError):  # one that has ended has none
                Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")

    def memory(self) -> int:
        """Return the bytes that its processes held at their peaks."""
        lines = [line for pid in _family(self.pid) for line in _read(pid, "status").splitlines()]
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextmanager
def served(*command: str, **variables: str) -> Iterator[Server]:
    """Run a module that serves and prints its URL, and end it."""
    environment = os.environ | variables
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        assert process.stdout is not None
        yield Server(json.loads(process.stdout.readline())["url"], process.pid)
    finally:
        process.terminate()
        process.wait(20)


def _family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    parents = {}
    for each in Path("/proc").glob("[0-9]*"):
        fields = _read(int(each.name), "stat").rpartition(")")[2].split()
        if fields:
            parents[int(each.name)] = int(fields[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _read(pid: int, name: str) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text("utf-8")
    return ""


def empty(client: redis.Redis) -> None:
    """Drop all rows, and wait until their memory is free: what follows would be charged for it."""
    client.flushall()
    while client.info("memory")["lazyfree_pending_objects"]:
        time.sleep(0.01)
