"""Files of definitions in a repo that has the weather as Parquet, and the faults found in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.definitions import Definition
from featurestore.errors import DefinitionError
from featurestore.repo import load_repo
from tests.conftest import TIME

HEADER = "from featurestore import *\nfrom featurestore.types import *\n"
# The lines of a file: 1 and 2 import, 3 and 4 define what follows, so a test's own text begins in line 5.
BASIS = f"""{HEADER}airport = Entity("airport", join_keys={{"origin": String}})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
"""
VIEW = 'FeatureView("{0}", entities=[airport], source=weather, fields={{"temperature": Float64}})'.format

Fill = Callable[..., Path]


def write_repo(folder: Path, /, **files: str | bytes) -> Path:
    """Write files of Python into a repo that has the weather as Parquet, and return its folder."""
    columns = {
        "origin": ["EWR"],
        "observed_at": pa.array([0], TIME),
        "temperature": [20.5],
        "gusts": [7],
        "sky": pa.array([None], pa.decimal128(9, 2)),
    }
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "weather.parquet")
    for name, content in files.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def names(definitions: list[Definition]) -> list[tuple[str, str]]:
    """Return the kinds and names of definitions, sorted."""
    return sorted((type(each).__name__, each.name) for each in definitions)


def faults(folder: Path) -> list[str]:
    """Return the faults of a repo as texts, the folder's own name left out."""
    with pytest.raises(DefinitionError) as error:
        load_repo(folder)
    return [str(fault).replace(str(folder), "…") for fault in error.value.faults]
