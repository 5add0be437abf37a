from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.errors import CodeError, ConflictError, FeatureStoreError, NotFoundError, RollbackError
from featurestore.functions import code_hash, copy_name
from featurestore.repo import load_repo
from tests.conftest import NOON, TIME, Repo, at
from tests.repo_files import BASIS, HEADER, faults, write_repo

VIEWS = f"""{BASIS}
airport_weather = FeatureView("airport_weather", entities=[airport], source=weather, fields={{"temperature": Float64}})
"""
ON_DEMAND = f"""{HEADER}
from .lib.scale import celsius
from .views import airport_weather

@on_demand_feature_view(inputs=[airport_weather, RequestSource("r", {{"x": Float64}})], fields={{"c": Float64}})
def celsius_of(inputs):
    return {{"c": celsius(inputs["temperature"]) + 0 * inputs["x"]}}
"""
SCALE = "from .constants import ZERO\n\ndef celsius(f):\n    return (f - ZERO) / 1.8\n"
FILES = {"views": VIEWS, "on_demand": ON_DEMAND, "lib/scale": SCALE, "lib/constants": "ZERO = 32.0\n", "lib/other": "ONE = 1\n"}


# --- which code ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(tmp_path: Path) -> Callable[..., str]:
    """Write a repo with changed files, and return the hash of its function's code."""
    count = iter(range(100))

    def hashed(**changes: str) -> str:
        folder = write_repo(
            tmp_path / str(next(count)), **FILES | {name.replace("__", "/"): text for name, text in changes.items()}
        )
        return code_hash(folder, "on_demand.py")

    return hashed


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("on_demand", "0 * inputs", "1 * inputs"),
        ("lib/scale", "/ 1.8", "/ 1.80001"),
        ("lib/constants", "32.0", "32.5"),
        ("lib/constants", "32.0", "32.0  ; TWO = 2"),
        ("lib/constants", "ZERO = 32.0", '"""A docstring is code."""\nZERO = 32.0'),
    ],
)
def test_t10_code_that_a_function_reaches_is_in_its_hash(hashed: Callable[..., str], name: str, before: str, after: str) -> None:
    """A change of the function's own file, of a helper module, or of what that imports in its turn is another code."""
    assert hashed(**{name: FILES[name].replace(before, after)}) != hashed()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lib/other", "ONE = 2\n"),
        ("views", VIEWS + "\nanother = 1\n"),
        ("on_demand", ON_DEMAND.replace("fields={", 'description="Celsius", fields={')),
        ("on_demand", ON_DEMAND + '\nservice = FeatureService("service", features=[celsius_of])\n'),
        ("on_demand", ON_DEMAND + "\nfrom .views import airport\n"),
        ("lib/constants", "# Freezing, in Fahrenheit\n\nZERO = 32.0  # exactly\n\n"),
        ("on_demand", ON_DEMAND.replace("    return", "\n    # zero times x\n    return")),
    ],
)
def test_t10_other_files_comments_and_blank_lines_are_not(hashed: Callable[..., str], name: str, text: str) -> None:
    """Files and definitions that it does not use do not count, nor what the registry holds of it; nor do comments."""
    assert hashed(**{name: text}) == hashed()


def test_t10_a_hash_is_a_text_that_never_changes_by_itself(hashed: Callable[..., str]) -> None:
    """The same files have the same hash in every release and on every Python, or every upgrade would be a new version."""
    assert hashed() == "9d36d2f0931654395fbd156d3ab467e6"


def test_t10_packages_and_other_ways_to_import_are_reached(tmp_path: Path) -> None:
    """`from . import x`, a package's `__init__`, stars, and imports that other files pass on count."""
    files = {
        "fn": "from . import pack\nfrom .stars import *\nx = pack.f, g\n",
        "pack/__init__": "from .inner import f\n",
        "pack/inner": "f = 1\n",
        "stars": "g = 2\n",
        "unused": "h = 3\n",
    }
    before = code_hash(write_repo(tmp_path / "0", **files), "fn.py")
    changed = {
        name: code_hash(write_repo(tmp_path / f"1{number}", **files | {name: files[name] + "z = 1\n"}), "fn.py") != before
        for number, name in enumerate(files)
    }

    assert changed == {"fn": True, "pack/__init__": True, "pack/inner": True, "stars": True, "unused": False}


def test_t10_a_hash_sign_in_a_text_is_no_comment(tmp_path: Path) -> None:
    """Only comments are left out: a text that looks like one, or holds blank lines, is code."""
    texts = ['x = "a # b"\n', 'x = "a # c"\n', 'x = """a\n\nb"""\n', 'x = """a\nb"""\n']
    hashes = {code_hash(write_repo(tmp_path / str(number), fn=text), "fn.py") for number, text in enumerate(texts)}

    assert len(hashes) == 4


# --- faults of a repo ------------------------------------------------------------------------------------------------


def test_t09_a_repo_reports_all_faults_of_on_demand_views_at_once(tmp_path: Path) -> None:
    """Unknown inputs, unknown features, clashing types and cycles are faults with file, line, object and field."""
    text = f"""{HEADER}
from .views import airport_weather
one = RequestSource("one", {{"x": Int64}})
@on_demand_feature_view(inputs=["wether:temperature", "airport_weather:wind", one], fields={{"a": Int64}})
def unknown(inputs): return inputs
@on_demand_feature_view(inputs=["second:a"], fields={{"a": Int64}})
def first(inputs): return inputs
@on_demand_feature_view(inputs=["first:a", one], fields={{"a": Int64}})
def second(inputs): return inputs
@on_demand_feature_view(inputs=[airport_weather, RequestSource("keys", {{"origin": Int64}})], fields={{"a": Int64}})
def clash(inputs): return inputs
@on_demand_feature_view(inputs=[airport_weather, "airport_weather:temperature"], fields={{"a": Int64}})
def twice(inputs): return inputs
service = FeatureService("service", features=["clash:b", "lost:a"])
"""
    distinct = "inputs have distinct names, so give one of them another through an on-demand view of its own"
    known = "known: 'airport_weather', 'clash', 'first', 'second', 'unknown'"
    assert faults(write_repo(tmp_path / "repo", views=VIEWS, fn=text)) == [
        f"fn.py:15: twice: two inputs are named 'temperature'; {distinct}",
        f"fn.py:7: unknown.inputs: no feature view or alias 'wether'; {known}",
        "fn.py:7: unknown.inputs: view 'airport_weather' has no feature 'wind' (written as 'view:feature'); known: 'temperature'",
        "fn.py:9: first.inputs: the inputs form a cycle: first <- second <- first",
        "fn.py:11: second.inputs: the inputs form a cycle: second <- first <- second",
        "fn.py:13: clash.inputs: key column 'origin' is String in 'airport_weather' and Int64 in 'keys'; rename one with an alias",
        "fn.py:16: service.features: view 'clash' has no feature 'b' (written as 'view:feature'); known: 'a'",
        f"fn.py:16: service.features: no feature view or alias 'lost'; {known}",
    ]


VIEW = '\nimport math\nv = on_demand_feature_view(inputs=["airport_weather:temperature"], fields={"y": Int64}, name="v")'
FUNCTION = """
@on_demand_feature_view(inputs=[RequestSource("r", {{"x": Int64}})], fields={{"y": Int64}}{0})
{1}
""".format


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            VIEW + "(math.exp)",
            "fn.py:5: v.function: function 'exp' is not defined in this repo; define one here that calls it",
        ),
        (
            f"{VIEW}(lambda inputs: inputs)",
            (
                "fn.py:5: v.function: function '<lambda>' must stand at the top level of fn.py under its own name, to be found "
                "there again"
            ),
        ),
        (
            FUNCTION("", "def v(inputs):\n    from .views import airport\n    return {}"),
            "fn.py:5: v.function: fn.py:6 imports inside a function; move it to the top of the file",
        ),
        (FUNCTION("", "def v(a, b): return {}"), "fn.py:5: v.function: v must take one argument, the mapping of its input columns"),
        (FUNCTION(', mode="polars"', "def v(a): return {}"), "fn.py:5: v.mode: Input should be 'numpy' or 'arrow'"),
    ],
)
def test_t10_a_function_has_to_be_found_again(tmp_path: Path, text: str, expected: str) -> None:
    """What could not be loaded from a copy is a fault of the repo, not of the first lookup."""
    assert faults(write_repo(tmp_path / "repo", views=VIEWS, fn=HEADER + text)) == [expected]


# --- what is applied -------------------------------------------------------------------------------------------------

REPO_VIEWS = """
airport = Entity("airport", join_keys={"origin": String})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
airport_weather = FeatureView("airport_weather", entities=[airport], source=weather, refresh="1h", fields={"temperature": Float64})
plain = FeatureService("plain", features=[airport_weather])
scaled = FeatureService("scaled", features=["celsius_of:c"])
"""


@pytest.fixture
def served(repo: Repo) -> Repo:
    """A repo with an on-demand view over two helper modules, applied and materialized."""
    repo.write("weather.parquet", {"origin": ["EWR"], "observed_at": pa.array([at(NOON - 1)], TIME), "temperature": [50.0]})
    repo.define(REPO_VIEWS, "views.py")
    write_files(repo, "- ZERO) / 1.8")
    with FeatureStore(repo.folder, clock=lambda: repo.now) as store:
        store.apply()
        store.materialize()
    return repo


def write_files(repo: Repo, formula: str) -> None:
    """Write the on-demand view whose helper computes a formula."""
    (repo.folder / "lib").mkdir(exist_ok=True)
    (repo.folder / "on_demand.py").write_text(ON_DEMAND)
    (repo.folder / "lib" / "scale.py").write_text(SCALE.replace("- ZERO) / 1.8", formula))
    (repo.folder / "lib" / "constants.py").write_text("ZERO = 32.0\n")


ASKED: dict[str, list[Any]] = {"origin": ["EWR"], "x": [0.0]}


def celsius(store: FeatureStore) -> float:
    """Return what the service gives online, and check that a training set gives the same."""
    online = store.get_online_features(ASKED, "scaled").to_dict()["celsius_of__c"]
    spine = pa.table({**ASKED, "event_timestamp": pa.array([at(store.registry.serving().versions[0].watermark or 0)], TIME)})
    assert store.get_historical_features(spine, "scaled").to_dict()["celsius_of__c"] == online
    [value] = online
    assert isinstance(value, float)
    return value


def test_t10_the_registry_holds_a_reference_and_a_hash_and_no_code(served: Repo) -> None:
    """What is applied of an on-demand view is JSON: its inputs, its fields, and where its code is."""
    spec = served.open().applied().specs["on-demand feature view", "celsius_of"]

    assert spec == {
        "name": "celsius_of",
        "inputs": [
            {"view": "airport_weather", "features": None},
            {"request": "r", "fields": [{"name": "x", "type": "Float64"}]},
        ],
        "fields": [{"name": "c", "type": "Float64"}],
        "mode": "numpy",
        "code": {
            "file": "on_demand.py",
            "function": "celsius_of",
            "hash": code_hash(served.folder, "on_demand.py"),
            "copy": copy_name(served.folder),
        },
        "description": "",
        "owner": "",
        "tags": [],
    }


def test_t10_what_serves_is_the_code_that_was_applied(served: Repo) -> None:
    """The folder may change, become faulty or lose its files: another process goes on with the copy."""
    write_files(served, "this is no Python")
    (served.folder / "on_demand.py").unlink()
    program = (
        "import sys; from featurestore import FeatureStore\n"
        f"with FeatureStore({str(served.folder)!r}, clock=lambda: {served.now}) as store:\n"
        f"    print(store.get_online_features({ASKED!r}, 'scaled').to_dict()['celsius_of__c'])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.stderr) == ("[10.0]\n", "")


def test_t11_a_change_of_the_code_is_planned_and_flips_with_apply(served: Repo) -> None:
    """A changed helper is a change of the view; nothing has to be materialized, so it serves at once, online and offline."""
    store = served.open()
    assert celsius(store) == 10.0
    write_files(served, "- ZERO) / 2")
    assert celsius(served.open()) == 10.0
    plan = store.plan()
    [change] = plan.changes

    assert (plan.new_code, plan.new_versions) == (("celsius_of",), ())
    assert (change.action, change.name, [field.field for field in change.fields]) == ("change", "celsius_of", ["code.hash"])
    store.apply()
    assert celsius(store) == 9.0
    assert celsius(served.open()) == 9.0
    assert store.plan().is_empty


def test_t10_a_comment_or_another_file_is_no_change(served: Repo) -> None:
    """Only what the function reaches counts; the copy that is kept goes on."""
    scale = served.folder / "lib" / "scale.py"
    scale.write_text("# Of Fahrenheit\n" + scale.read_text())
    (served.folder / "lib" / "more.py").write_text("x = 1\n")
    store = served.open()

    assert store.plan().is_empty
    assert celsius(store) == 10.0


def test_t11_code_flips_together_with_the_versions_of_its_inputs(served: Repo) -> None:
    """New code beside a new version of an input waits for it: until then both are the old ones, whose copy no removal takes."""
    store = served.open()
    served.define(REPO_VIEWS.replace('fields={"temperature"', 'ttl="1d", fields={"temperature"'), "views.py")
    write_files(served, "- ZERO) / 2")
    store.apply()
    store.prune(now=True)

    assert celsius(store) == celsius(served.open()) == 10.0
    store.materialize()
    assert celsius(store) == 9.0


def test_t11_a_rollback_brings_the_code_back(served: Repo) -> None:
    """The code before serves again, and a second rollback returns to what it was rolled back from."""
    store = served.open()
    with pytest.raises(RollbackError, match="on-demand feature view 'celsius_of' has no version that served before"):
        store.rollback("celsius_of")
    write_files(served, "- ZERO) / 2")
    store.apply()
    store.prune(now=True)  # the copy that a rollback needs is kept
    shutil.rmtree(served.folder / "lib")

    assert store.rollback("celsius_of").objects == (("on-demand feature view", "celsius_of"),)
    assert celsius(store) == 10.0
    assert celsius(served.open()) == 10.0
    store.rollback("celsius_of")
    assert celsius(store) == 9.0
    with pytest.raises(NotFoundError, match="did you mean 'celsius_of'"):
        store.rollback("celsius")


def test_t10_copies_are_kept_as_long_as_they_are_needed(served: Repo) -> None:
    """The serving version, the one before, and the manifests of training sets need copies; others go."""
    store, copies = served.open(), served.folder / ".featurestore" / "code"
    spine = pa.table({**ASKED, "event_timestamp": pa.array([at(NOON)], TIME)})
    path = served.folder / "training.parquet"
    store.get_historical_features(spine, "scaled").to_parquet(path)
    names = [copy_name(served.folder)]
    for divisor in (2, 3, 4):
        write_files(served, f"- ZERO) / {divisor}")
        store.apply()
        names.append(copy_name(served.folder))

    def kept() -> list[int]:
        return [number for number, name in enumerate(names) if (copies / name).is_dir()]

    store.prune()
    assert kept() == [0, 1, 2, 3]  # not for an hour
    store.prune(now=True)
    assert kept() == [0, 2, 3]
    remade = store.get_historical_features(spine, "scaled", as_of_manifest=path)
    assert remade.to_dict()["celsius_of__c"] == [10.0]
    path.unlink()
    store.prune(now=True)
    assert kept() == [2, 3]


def test_t10_a_service_whose_code_is_gone_is_refused_and_others_go_on(served: Repo) -> None:
    """Without a copy, the folder serves if it has the same code; if not, the service is refused and says why."""
    shutil.rmtree(served.folder / ".featurestore" / "code")
    assert celsius(served.open()) == 10.0
    write_files(served, "- ZERO) / 2")
    store = served.open()
    for _ in range(2):
        with pytest.raises(
            CodeError, match=r"the code of on-demand view 'celsius_of' \(on_demand\.py, celsius_of, .* is not there: no"
        ):
            store.get_online_features(ASKED, "scaled")
    with pytest.raises(CodeError):
        store.get_historical_features(pa.table({**ASKED, "event_timestamp": pa.array([at(NOON)], TIME)}), "scaled")

    assert store.get_online_features({"origin": ["EWR"]}, "plain").to_dict()["airport_weather__temperature"] == [50.0]


def test_t10_a_copy_that_was_changed_is_not_run(served: Repo) -> None:
    """The hash is checked before anything is loaded."""
    [copy] = (served.folder / ".featurestore" / "code").iterdir()
    (copy / "lib" / "constants.py").write_text("ZERO = 0.0\n")
    write_files(served, "- ZERO) / 2")

    with pytest.raises(CodeError, match="is not there"):
        served.open().get_online_features(ASKED, "scaled")


def test_t10_code_that_cannot_be_loaded_here_says_why(served: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the code from being loaded on this machine, as a missing package would, is named with its file and line."""
    constants = served.folder / "lib" / "constants.py"
    constants.write_text("import os\nif 'BROKEN' in os.environ:\n    import no_such_package\nZERO = 32.0\n")
    served.open().apply()
    monkeypatch.setenv("BROKEN", "1")

    with pytest.raises(
        CodeError, match=r"lib/constants\.py:2: no_such_package: ModuleNotFoundError: No module named 'no_such_package'"
    ):
        served.open().get_online_features(ASKED, "scaled")


def test_t10_definitions_that_change_between_plan_and_apply_are_refused(served: Repo) -> None:
    """The copy has to be of the code that was planned."""
    store = served.open()
    write_files(served, "- ZERO) / 2")
    plan = store.plan()
    write_files(served, "- ZERO) / 3")

    with pytest.raises(ConflictError, match="the definitions have changed since this plan was made"):
        store.apply(plan)
    assert celsius(store) == 10.0


def test_t09_a_feature_that_an_input_lacks_now_is_an_error_by_name(served: Repo) -> None:
    """Lists are checked like services."""
    with pytest.raises(FeatureStoreError, match="no feature of view 'celsius_of' named 'd'"):
        served.open().get_online_features(ASKED, ["celsius_of:d"])


def test_on_demand_views_are_loaded_with_their_code(tmp_path: Path) -> None:
    """`load_repo` gives definitions that know where their code is; their functions can be called."""
    folder = write_repo(tmp_path / "repo", **FILES)
    [view] = [each for each in load_repo(folder) if each.name == "celsius_of"]

    assert view.code.hash == code_hash(folder, "on_demand.py")  # type: ignore[union-attr]
    assert view({"temperature": 212.0, "x": 1.0}) == {"c": 100.0}  # type: ignore[operator]
