from __future__ import annotations

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
from featurestore.registry.lease import lease
from featurestore.registry.registry import Registry
from featurestore.registry.state import Coverage, Loaded
from tests.conftest import NOON
from tests.databases import Open
from tests.registries import apply, view

REGISTRY_HOLDER = """
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
