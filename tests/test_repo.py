from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from featurestore.repo import load_repo
from tests.repo_files import BASIS, HEADER, VIEW, Fill, faults, names, write_repo


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Write files of Python into a repo that has the weather as Parquet, and return its folder."""
    return partial(write_repo, tmp_path / "repo")


ALL = [("Entity", "airport"), ("FeatureView", "conditions"), ("FileSource", "weather")]


def test_files_import_each_other_relatively(fill: Fill) -> None:
    """Files of a repo, and of its subfolders, import each other by relative imports, in any order."""
    files = {
        "views": f"{HEADER}from .basis import airport, weather\nfrom .deep.down import SUFFIX\nv = {VIEW('conditions')}",
        "basis": BASIS,
        "deep/down": "from ..basis import airport\nfrom . import beside\nSUFFIX = beside.SUFFIX",
        "deep/beside": "SUFFIX = 'x'",
    }

    assert names(load_repo(fill(**files))) == ALL


def test_a_package_of_a_repo_has_an_init(fill: Fill) -> None:
    """A subfolder may have an `__init__.py`; its names are imported from the folder."""
    files = {
        "parts/__init__": f"{HEADER}from .sources import weather\nairport = Entity('airport', join_keys={{'origin': String}})",
        "parts/sources": f"{HEADER}weather = FileSource('weather', path='weather.parquet', event_time='observed_at')",
        "views": f"{HEADER}from . import parts\nfrom .parts import airport, weather\nv = {VIEW('conditions')}",
        "check": "from . import parts\nfrom .parts import sources\nassert parts.weather is sources.weather",
    }

    assert names(load_repo(fill(**files))) == ALL


SKIPPED = [".venv/lib", ".featurestore/copy", "deep/.hidden/more", "__pycache__/old", "node_modules/tool", "venv/lib", ".draft"]


@pytest.mark.parametrize("place", SKIPPED)
def test_hidden_and_foreign_folders_are_skipped(fill: Fill, place: str) -> None:
    """Files in hidden folders, environments and caches are no definitions, whatever they hold."""
    assert names(load_repo(fill(**{"basis": BASIS, place: "1 / 0"}))) == [("Entity", "airport"), ("FileSource", "weather")]


def test_a_repo_inside_a_hidden_folder_is_loaded(tmp_path: Path, fill: Fill) -> None:
    """Only what is hidden within the repo is skipped, wherever the repo is."""
    hidden = tmp_path / ".work"
    fill(basis=BASIS).rename(hidden)

    assert names(load_repo(hidden)) == [("Entity", "airport"), ("FileSource", "weather")]


def test_a_repo_is_not_on_the_path(fill: Fill) -> None:
    """A repo is no place for absolute imports, and loading it leaves `sys.path` and the finders as they were."""
    before = list(sys.path), list(sys.meta_path)
    folder = fill(basis=BASIS, views="import basis")

    assert faults(folder) == ["views.py:1: basis: ModuleNotFoundError: No module named 'basis'"]
    assert (list(sys.path), list(sys.meta_path)) == before


def test_a_file_may_have_the_name_of_any_module(fill: Fill) -> None:
    """A file `json.py` hides nothing: absolute imports give the library, relative ones the file."""
    files = {"json": "HERE = True", "views": f"{BASIS}import json\nfrom .json import HERE\nassert json.dumps(HERE) == 'true'"}

    assert names(load_repo(fill(**files))) == [("Entity", "airport"), ("FileSource", "weather")]


def test_two_loads_share_no_modules(fill: Fill) -> None:
    """Each load runs the files anew, so a change of a file is seen and two repos with the same file names do not meet."""
    folder = fill(basis=BASIS, views=f"{HEADER}from .basis import *\nv = {VIEW('one')}")
    first = load_repo(folder)
    second = load_repo(fill(views=f"{HEADER}from .basis import *\nv = {VIEW('two')}"))

    assert [("FeatureView", "one") in names(first), ("FeatureView", "two") in names(second)] == [True, True]
    assert ("FeatureView", "one") not in names(second)


def test_loading_writes_nothing(fill: Fill) -> None:
    """Loading leaves no byte code and no other file in the folder."""
    folder = fill(basis=BASIS, **{"deep/down": "from ..basis import airport"})
    before = sorted(folder.rglob("*"))
    load_repo(folder)

    assert sorted(folder.rglob("*")) == before


def test_a_file_knows_where_it_is(fill: Fill) -> None:
    """`__file__` is the file, so definitions can find their neighbours."""
    text = f"{BASIS}from pathlib import Path\nassert Path(__file__).name == 'basis.py'\nassert Path(__file__).parent.name == 'repo'"

    assert names(load_repo(fill(basis=text))) == [("Entity", "airport"), ("FileSource", "weather")]


def test_code_of_a_file_is_compiled_as_it_is_written(fill: Fill) -> None:
    """The library's own `from __future__` imports do not reach into definitions: annotations are what Python makes them."""
    text = f"{BASIS}def late(minutes: int) -> bool: ...\nassert late.__annotations__ == {{'minutes': int, 'return': bool}}"

    assert names(load_repo(fill(basis=text))) == [("Entity", "airport"), ("FileSource", "weather")]


def test_everything_reachable_is_collected_once(fill: Fill) -> None:
    """What definitions refer to belongs to the repo, named or not; the same value in two files is one definition."""
    inner = """FeatureService("service", features=[
    FeatureView("inner", entities=[Entity("airport", join_keys={"origin": String})],
                source=FileSource("weather", path="weather.parquet", event_time="observed_at"), fields={"gusts": Int64}
    ).alias("there", join_keys={"origin": "destination"})["gusts"],
])"""
    folder = fill(basis=BASIS, service=f"{HEADER}service = {inner}", again=f"from .basis import *\nplace = airport\n{BASIS}")

    assert names(load_repo(folder)) == [
        ("Alias", "there"),
        ("Entity", "airport"),
        ("FeatureService", "service"),
        ("FeatureView", "inner"),
        ("FileSource", "weather"),
    ]


ODD_NAMES = ["my-views", "2013", "views.v2", "v1.0/views"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_whose_name_is_no_module_name_is_loaded(fill: Fill, name: str) -> None:
    """Files that nothing can import by name are loaded all the same."""
    assert names(load_repo(fill(**{name: BASIS}))) == [("Entity", "airport"), ("FileSource", "weather")]


def test_a_file_and_a_folder_may_have_one_name(fill: Fill) -> None:
    """`weather.py` beside a folder `weather` keeps neither from being loaded."""
    files = {"weather": BASIS, "weather/views": f'{HEADER}runways = FileSource("runways", path="weather.parquet")'}

    assert names(load_repo(fill(**files))) == [("Entity", "airport"), ("FileSource", "runways"), ("FileSource", "weather")]
