from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from featurestore.errors import RegistryError, RunInProgressError
from featurestore.registry.lease import holder, lease
from featurestore.registry.registry import Registry
from featurestore.registry.state import Coverage, Loaded
from tests.conftest import NOON
from tests.databases import Open
from tests.registries import apply, view

REGISTRY_HOLDER = """
import sys, time
from featurestore.registry.registry import Registry
registry = Registry(sys.argv[1], "test", "the-registry")
with registry.lease(registry.applied().versions[0]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_exclude_each_other_on_one_version(open_registry: Open, database_url: str) -> None:
    """On both databases the second is told who holds the lease, others are free, and SIGKILL frees it."""
    registry = open_registry()
    apply(registry, view("a"), view("b"))
    one, other = registry.applied().versions
    assert registry.lease_holder(one) is None
    with subprocess.Popen([sys.executable, "-c", REGISTRY_HOLDER, database_url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunInProgressError, match=rf"view 'a' is being materialized by process {process.pid} .*since 20"):
            registry.lease(one).__enter__()
        assert (registry.lease_holder(one) or "").startswith(f"process {process.pid} ")
        with registry.lease(other):
            assert (registry.lease_holder(other) or "").startswith(f"process {os.getpid()} ")
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    for _ in range(100):  # a server notices the end of a session a moment later
        if registry.lease_holder(one) is None:
            break
        time.sleep(0.05)
    with registry.lease(one), pytest.raises(RunInProgressError), registry.lease(one):
        pass
    assert registry.lease_holder(one) is None


def test_a_session_that_the_server_ends_frees_its_lease(postgres_url: str) -> None:
    """A server that ends a session, or was restarted, gives its lease to the next; the first ends without an error of its own."""
    with closing(Registry(postgres_url, "test", "the-registry")) as registry:
        apply(registry, view("a"))
        [version] = registry.applied().versions
        with registry.lease(version):
            engine = sa.create_engine(postgres_url)
            with engine.begin() as connection:
                query = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                assert connection.exec_driver_sql(query).scalars().all() == [True]
            engine.dispose()
            for _ in range(100):
                if registry.lease_holder(version) is None:
                    break
                time.sleep(0.05)
            with registry.lease(version):
                assert registry.lease_holder(version) is not None
        assert registry.lease_holder(version) is None


def test_whoever_lost_the_lease_unnoticed_records_nothing(open_registry: Open) -> None:
    """A run that another one has closed can neither cover nor complete: the later one's record stands."""
    registry = open_registry()
    apply(registry, view("a"))
    [version] = registry.applied().versions
    lost = registry.start_run(version, None, NOON, now=NOON)
    later = registry.start_run(version, None, NOON, now=NOON)
    registry.cover(version, Coverage(0, NOON), 2, later)
    with pytest.raises(RunInProgressError, match="view 'a' has been taken over by another run since this one lost its lease"):
        registry.cover(version, Coverage(0, NOON - 1), 1, lost)
    with pytest.raises(RunInProgressError):
        registry.finish_run(version, lost, now=NOON, report={}, loaded=Loaded(lost, 1, NOON))
    registry.finish_run(version, later, now=NOON, report={}, loaded=Loaded(later, 2, NOON))
    [after] = registry.applied().versions
    assert (after.coverage, after.table_version, after.loaded) == (Coverage(0, NOON), 2, Loaded(later, 2, NOON))


HOLDER = """
import sys, time
from pathlib import Path
from featurestore.registry.lease import lease
with lease(Path(sys.argv[1]), "uid", "view 'a'"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_holder_of_a_lease_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    """A lease names the process that has it, and is free as soon as that process ends, even by SIGKILL."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunInProgressError) as error, lease(tmp_path, "uid", "view 'a'"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)

    assert str(error.value).startswith(f"view 'a' is being materialized by process {holder.pid} since 20")
    assert str(error.value).endswith("Z; wait until it ends, or end it")
    with lease(tmp_path, "uid", "view 'a'"):
        pass


def test_a_thread_does_not_share_the_lease_of_another(tmp_path: Path) -> None:
    """Two holders in one process exclude each other too; another name is another lease; it is free again after its end."""
    with lease(tmp_path, "uid", "view 'a'"):
        with lease(tmp_path, "other", "view 'b'"):
            pass
        with (
            pytest.raises(RunInProgressError, match=f"view 'a' is being materialized by process {os.getpid()} since "),
            lease(tmp_path, "uid", "view 'a'"),
        ):
            pass
    with lease(tmp_path, "uid", "view 'a'"), pytest.raises(RunInProgressError), lease(tmp_path, "uid", "view 'a'"):
        pass


def test_who_only_looks_is_taken_for_no_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two who look at a lease at once both find it free, and who wants it waits until they have looked."""
    with lease(tmp_path, "uid", "view 'a'"):
        pass
    with (tmp_path / "uid.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert holder(tmp_path, "uid") is None
        monkeypatch.setattr(time, "sleep", lambda _: looking.close())
        with lease(tmp_path, "uid", "view 'a'"):
            assert looking.closed
            assert (holder(tmp_path, "uid") or "").startswith(f"process {os.getpid()} since ")


def test_an_error_inside_frees_the_lease(tmp_path: Path) -> None:
    """A run that fails gives its lease back."""
    with pytest.raises(ZeroDivisionError), lease(tmp_path, "uid", "view 'a'"):
        raise ZeroDivisionError
    with lease(tmp_path, "uid", "view 'a'"):
        pass


def test_a_folder_without_room_for_leases_is_a_registry_error(tmp_path: Path) -> None:
    """Where no lock can be made, the error names the folder."""
    (tmp_path / "file").touch()

    with pytest.raises(RegistryError, match="cannot make the lock for view 'a' in "), lease(tmp_path / "file", "uid", "view 'a'"):
        pass
