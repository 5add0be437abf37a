"""Processes for training stand back from lookups, as far as this system lets them."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}.get(platform.machine(), -1)
READS = """
import ctypes, json, os, struct, sys, threading
from featurestore_server.priority import stand_back

def found():  # niceness and, with sched_getattr(2), the slice of this thread; zero on a Linux without
    attributes = ctypes.create_string_buffer(48)
    ctypes.CDLL(None).syscall(int(sys.argv[1]), 0, attributes, 48, 0)
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), struct.unpack("=IIQiIQQQ", attributes.raw)[5]

before = found()
stand_back()
threads = []
thread = threading.Thread(target=lambda: threads.append(found()))
thread.start()
thread.join()
print(json.dumps([before, found(), threads[0], os.getsid(0) == os.getpid()]))
"""


@pytest.fixture(scope="module")
def found() -> Any:
    """What a process said of itself before and after, and of a thread that it started then, and whether it leads a session."""
    command = [sys.executable, "-P", "-c", READS, str(SCHED_GETATTR)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_it_is_nicer(found: Any) -> None:
    """Its threads, too."""
    (before, _), (after, _), (thread, _), _ = found
    assert after == thread == min(before + 15, 19)


def test_it_runs_in_long_slices(found: Any) -> None:
    """Longer than those of others, so that these need not wait for it; a Linux before 6.12 has no slices of one's own."""
    (_, before), (_, after), (_, thread), _ = found
    assert after == thread == (4_000_000 if before else 0)
    assert after >= before


def test_its_session_is_nice_too(found: Any) -> None:
    """Where sessions share the processors; that of who started it stays as it was."""
    assert found[-1] == AUTOGROUP.exists()
    if AUTOGROUP.exists():
        before = AUTOGROUP.read_text("ascii")
        code = "from featurestore_server.priority import *; stand_back(); print(open('/proc/self/autogroup').read())"
        shown = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout
        assert shown.strip().endswith(" nice 15")
        assert AUTOGROUP.read_text("ascii") == before


def test_one_that_leads_a_session_leaves_that_as_it_is() -> None:
    """It may hold others' processes; so a second time changes nothing more."""
    code = "from featurestore_server.priority import *; stand_back(); print(*open('/proc/self/autogroup')) if {} else None"
    command = [sys.executable, "-P", "-c", code.format(AUTOGROUP.exists())]
    shown = subprocess.run(command, check=True, start_new_session=True, capture_output=True, text=True).stdout
    assert shown.strip().endswith(" nice 0" if AUTOGROUP.exists() else "")
