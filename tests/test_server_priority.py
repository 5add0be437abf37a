"""Processes for training stand back from lookups, as far as this system lets them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
READS = """
import ctypes, json, os, struct, sys, threading
from featurestore_server.priority import stand_back

def attributes():  # sched_getattr(2) of this thread: size, policy, flags, niceness, priority, runtime
    found = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(int(sys.argv[1]), 0, found, 48, 0) == 0
    return struct.unpack("=IIQiIQQQ", found.raw)[1:6]

before = attributes()
stand_back()
threads = []
thread = threading.Thread(target=lambda: threads.append(attributes()))
thread.start()
thread.join()
print(json.dumps([before, attributes(), threads[0], os.getsid(0) == os.getpid()]))
"""


@pytest.fixture(scope="module")
def found() -> Any:
    """What a process said of itself and of a thread that it started after."""
    number = {"x86_64": "315", "aarch64": "275"}.get(platform.machine())
    if sys.platform != "linux" or number is None:
        pytest.skip("sched_getattr is Linux's, by a number that this test does not know here")
    command = [sys.executable, "-P", "-c", READS, number]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_it_is_nicer_and_in_a_session_of_its_own(found: Any) -> None:
    """Its threads, too."""
    before, after, thread, leads = found
    assert after[2] == thread[2] == min(before[2] + 15, 19)
    assert leads


def test_it_runs_in_long_slices(found: Any) -> None:
    """Longer than those of others, so that these need not wait for it, and no longer than a few milliseconds."""
    before, after, thread, _ = found
    if not before[4]:
        pytest.skip("this Linux has no slices of one's own (6.12 has)")
    assert before[4] < after[4] == thread[4] == 3_000_000


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this Linux has no autogroups")
def test_its_session_is_nice_too() -> None:
    """And that of who started it stays as it was."""
    before = AUTOGROUP.read_text("ascii")
    code = "from featurestore_server.priority import *; stand_back(); print(open('/proc/self/autogroup').read())"
    shown = ""
    for _ in range(10):  # Linux takes one such wish in a tenth of a second from whoever is not root
        shown = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        if shown.endswith(" nice 15"):
            break
    assert shown.endswith(" nice 15")
    assert AUTOGROUP.read_text("ascii") == before


def test_a_second_time_it_does_not_fail() -> None:
    """A process that leads its session already makes none, and leaves that as it is."""
    code = "from featurestore_server.priority import *; stand_back(); stand_back()"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, start_new_session=True)
    assert os.getpriority(os.PRIO_PROCESS, 0) < 15
