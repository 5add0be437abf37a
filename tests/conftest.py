"""Repos and servers for the tests: real files, a real registry, a real server behind every online store."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.online import embedded
from tests.servers import Topologies

CHECKOUT = Path(__file__).parents[1]
TIME = pa.timestamp("us", "UTC")

HOUR = 3_600_000_000
NOON = 1_370_088_000_000_000  # 2013-06-01T12:00:00Z


def at(instant: int) -> dt.datetime:
    """Return an instant as an aware datetime."""
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=instant)


@dataclass
class Repo:
    """A repo in a temporary folder, with a clock that tests set."""

    folder: Path
    now: int = NOON
    stores: list[FeatureStore] = field(default_factory=list)

    def define(self, text: str, name: str = "definitions.py") -> None:
        """Write a file of definitions; what definitions need is imported already."""
        header = "from featurestore import *\nfrom featurestore.types import *\n\n"
        (self.folder / name).write_text(header + text)

    def write(self, name: str, columns: Mapping[str, Sequence[Any] | pa.Array] | pa.Table, schema: pa.Schema | None = None) -> None:
        """Write a Parquet file."""
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns), schema=schema)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)

    def open(self) -> FeatureStore:
        """Return a store over the repo; the fixture closes it."""
        store = FeatureStore(self.folder, clock=lambda: self.now)
        self.stores.append(store)
        return store


@pytest.fixture
def make_repo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Repo]]:
    """Make repos whose online servers end with the test; `--registry=postgresql` keeps each one's registry in a schema."""
    made: list[Repo] = []
    is_postgresql = request.config.getoption("--registry") == "postgresql"

    def make(name: str = "repo", settings: str = "") -> Repo:
        folder = tmp_path / name
        folder.mkdir()
        registry = f'registry.url = "{request.getfixturevalue("make_postgres_url")()}"\n' if is_postgresql else ""
        (folder / "featurestore.toml").write_text(f'project = "test"\n{registry}{settings}')
        made.append(Repo(folder))
        return made[-1]

    yield make
    for repo in made:
        for store in repo.stores:
            store.close()
        embedded.stop(repo.folder / ".featurestore" / "online")


@pytest.fixture
def repo(make_repo: Callable[..., Repo]) -> Repo:
    """One empty repo."""
    return make_repo()


WEATHER = """
airport = Entity("airport", join_keys={"origin": String})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at", delay="10m")
airport_weather = FeatureView(
    "airport_weather", entities=[airport], source=weather, refresh="1h", ttl="6h",
    fields=[Field("temperature", Float64), Field("gusts", Int64)],
)
flight_weather = FeatureService("flight_weather", features=[airport_weather])
"""


@pytest.fixture
def weather_repo(repo: Repo) -> Repo:
    """A repo with hourly weather at two airports: 10:30 and 11:00 at EWR, 11:30 at JFK; it is noon."""
    repo.define(WEATHER)
    repo.write(
        "weather.parquet",
        {
            "origin": ["EWR", "EWR", "JFK"],
            "observed_at": pa.array([at(NOON - 3 * HOUR // 2), at(NOON - HOUR), at(NOON - HOUR // 2)], TIME),
            "temperature": [20.5, 21.0, None],
            "gusts": pa.array([None, 2**53 + 1, 7], pa.int64()),
        },
    )
    return repo


def _unavailable(what: str) -> None:
    """Skip on a laptop; in CI fail, where what is missing could have been installed."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI has to run this")
    pytest.skip(what)


@pytest.fixture(scope="session")
def topologies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topologies]:
    """One online store of each kind, for all tests."""
    made = Topologies(tmp_path_factory.mktemp("servers"))
    with made.stack:
        yield made


KINDS = ("embedded", "redis-server", "unix", "tls", "acl", "sentinel", "sentinel-tls", "cluster", "cluster-tls", "container")


@pytest.fixture(params=KINDS)
def online_url(request: pytest.FixtureRequest, topologies: Topologies) -> Iterator[str]:
    """The URL of an online store of each kind that can run here: the same suite on all."""
    kind = request.param
    if ("tls" in kind or kind == "redis-server") and shutil.which("redis-server") is None:
        _unavailable("redis-server is not on the PATH")
    if kind == "embedded":
        yield kind
    elif kind == "container":
        yield from _container()
    else:
        yield topologies.url(kind)


def _container() -> Iterator[str]:
    docker = shutil.which("docker")
    answers = docker and subprocess.run([docker, "info"], capture_output=True, timeout=30, check=False).returncode == 0
    if not answers:
        pytest.skip("Docker does not answer, so no Redis container can be started")
    containers = pytest.importorskip("testcontainers.redis")
    with containers.RedisContainer() as container:
        yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"


# Fixtures of several files: the command lines' (test_cli_*) and the HTTP service's (test_server_*)

pytest_plugins = ["featurestore.testing.fixtures", "tests.commands", "tests.databases", "tests.service", "tests.logged"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the long runs be asked for."""
    parser.addoption("--registry", choices=["sqlite", "postgresql"], default="sqlite", help="where the repos of tests keep theirs")
    parser.addoption(
        "--kills", type=int, default=8, help="how many processes test_kills.py kills at random moments, for each database"
    )
    parser.addoption("--pushes", type=int, default=40_000, help="how many rows the pushers of test_races.py push")
    parser.addoption("--kill-seed", type=int, default=20131, help="which moments those are")
