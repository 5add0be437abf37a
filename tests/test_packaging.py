from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

CHECKOUT = Path(__file__).parents[1]
HEAVY = {"alembic", "deltalake", "duckdb", "fastapi", "numpy", "pandas", "pyarrow", "redis", "sqlalchemy"}
HELP = """
import sys
sys.argv = ["featurestore", "--help"]
from featurestore.cli import main
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
"""
CLIENT = """
from featurestore import AsyncFeatureStoreClient, FeatureStoreClient
from featurestore.errors import ServiceError
try:
    FeatureStoreClient("http://127.0.0.1:1", retries=0).overview()
except ServiceError:
    AsyncFeatureStoreClient("http://127.0.0.1:1")
"""


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the paths inside the wheel that this checkout builds."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=CHECKOUT, check=True, stdout=subprocess.PIPE)
    (wheel,) = folder.glob("*.whl")
    return ZipFile(wheel).namelist()


def test_the_wheel_holds_two_packages(wheel_names: list[str]) -> None:
    """The wheel holds the library, the server and its own metadata: no tests, no examples, no folder `server`."""
    top_level = {name.split("/")[0] for name in wheel_names}

    assert {name for name in top_level if not name.endswith(".dist-info")} == {"featurestore", "featurestore_server"}
    assert sum(name.endswith(".dist-info") for name in top_level) == 1


@pytest.mark.parametrize("package", ["featurestore", "featurestore_server"])
def test_each_package_says_that_it_is_typed(wheel_names: list[str], package: str) -> None:
    """Both packages carry `py.typed`, so type checkers read their annotations."""
    assert f"{package}/py.typed" in wheel_names


def _loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after the code."""
    report = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-P", "-c", code + report], check=True, stdout=subprocess.PIPE, text=True)
    return {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        pytest.param("import featurestore", HEAVY, id="import featurestore"),
        pytest.param(HELP, HEAVY, id="featurestore --help"),
        pytest.param(CLIENT, HEAVY, id="FeatureStoreClient"),
    ],
)
def test_what_is_light_stays_light(code: str, unwanted: set[str]) -> None:
    """Importing the library, asking for help and making a client load none of the packages they do not need."""
    loaded = _loaded_by(code)

    assert "featurestore" in loaded
    assert loaded & unwanted == set()
