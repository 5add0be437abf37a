"""Leases: runs on one view version exclude each other, by a lock that the kernel frees when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.errors import RegistryError, RunInProgressError

__all__ = ["lease"]


@contextmanager
def lease(folder: Path, name: str, what: str) -> Iterator[None]:
    """Hold the lease of a name, `what` being its name for people.

    Raises:
        RunInProgressError: another process, or another thread of this one, holds it; says which and since when.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as reason:
        raise RegistryError(f"cannot make the lock for {what} in {folder}: {reason}") from reason
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace") or "a process that just began"
            raise RunInProgressError(f"{what} is being materialized by {holder}; wait until it ends, or end it") from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}".encode(), 0)
        yield
    finally:
        os.close(file)
