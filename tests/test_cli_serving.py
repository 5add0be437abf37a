from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from tests.commands import COLUMNS, Result, Run, in_process

# get-online

LOOKED_UP = """\
sensor_id  machine_health__temperature  machine_health__vibration  machine_health__restarts
pump_1     58.22                        0.215                      2
pump_3     OUTSIDE_MAX_AGE              OUTSIDE_MAX_AGE            OUTSIDE_MAX_AGE
pump_9     NOT_FOUND                    NOT_FOUND                  NOT_FOUND
null       NOT_FOUND                    NOT_FOUND                  NOT_FOUND
OUTSIDE_MAX_AGE: the newest value is older than the view's ttl.
"""


def test_get_online_shows_a_row_for_each_entity(ask: Run) -> None:
    """Features stand beside their keys; where there is no value stands the reason."""
    shown = ask("get-online", "machine_health_v1", "-k", "sensor_id=pump_1,pump_3,pump_9,").out

    assert [line.split() for line in shown.splitlines()] == [line.split() for line in LOOKED_UP.splitlines()]


def test_get_online_in_json(ask: Run) -> None:
    """JSON gives features by column, and by view the statuses and event times."""
    found = ask("get-online", "machine_health_v1", "--key", "sensor_id=pump_1", "-k", "sensor_id=pump_3", "--json")

    assert found.json() == {
        "features": dict(zip(COLUMNS, ([58.22, None], [0.215, None], [2, None]), strict=True)),
        "statuses": {"machine_health": ["PRESENT", "OUTSIDE_MAX_AGE"]},
        "event_times": {"machine_health": ["2024-01-02T23:00:00Z", "2024-01-02T05:00:00Z"]},
    }


def test_get_online_takes_a_list_of_features(ask: Run) -> None:
    """Features separated by commas stand for a service."""
    found = ask("get-online", "machine_health:restarts, machine_health:vibration", "-k", "sensor_id=pump_2", "--json").json()

    assert found["features"] == {"machine_health__restarts": [3], "machine_health__vibration": [0.347]}


TYPED = """\
from featurestore import *
from featurestore.types import *

e = Entity("e", join_keys={"i": Int64, "s": Int32, "b": Bool, "d": Date, "t": Timestamp, "x": Bytes, "n": String})
f = FileSource("f", path="f.parquet")
features = {"blob": Bytes, "list": Array(Float64), "day": Date, "at": Timestamp}
svc = FeatureService("svc", features=[FeatureView("v", entities=[e], source=f, fields=features)])
"""

KEYS = {
    "i": "9007199254740993",
    "s": "-7",
    "b": "true",
    "d": "2024-01-01",
    "t": "2024-01-01T00:00:00Z",
    "x": "/wA=",
    "n": '["a,b"]',
}


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repo whose key has a column of each type that a key can have."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "featurestore.toml").write_text('project = "typed"\n')
    (folder / "definitions.py").write_text(TYPED)
    at = pa.array([1704067200000000], pa.timestamp("us", "UTC"))
    keys = {"i": [2**53 + 1], "s": pa.array([-7], pa.int32()), "b": [True], "d": at.cast(pa.date32()), "t": at, "x": [b"\xff\x00"]}
    features = {"n": ["a,b"], "blob": [b"\x01\x02"], "list": [[0.5, None]], "day": at.cast(pa.date32()), "at": at}
    pq.write_table(pa.table(keys | features), folder / "f.parquet")
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize()
        yield folder
        store.stop()


def key_options(**others: str) -> list[str]:
    """Return the options that ask for the one row, some keys replaced."""
    return [word for name, value in (KEYS | others).items() for word in ("-k", f"{name}={value}")]


def test_get_online_reads_keys_in_their_types(run: Run, typed: Path) -> None:
    """Keys are read as their declared types, values with commas as JSON; answers are in the types' JSON forms."""
    found = run("get-online", "svc", *key_options(), "--json", repo=typed).json()

    assert found["statuses"] == {"v": ["PRESENT"]}
    assert found["features"] == {
        "v__blob": ["AQI="], "v__list": [[0.5, None]], "v__day": ["2024-01-01"], "v__at": ["2024-01-01T00:00:00Z"]
    }  # fmt: skip
    shown = run("get-online", "svc", *key_options(), repo=typed).out.splitlines()[1]
    assert shown.split() == [*list(KEYS.values())[:-1], "a,b", "AQI=", "[0.5,", "null]", "2024-01-01", "2024-01-01T00:00:00Z"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("i", "1.5", "key 'i' is Int64, and '1.5' is none"),
        ("i", "9223372036854775808", "key 'i' holds a value that is no Int64"),
        ("i", "[true]", "key 'i' is Int64, and True is none"),
        ("i", "007", "key 'i' is Int64, and '007' is none"),
        ("b", "yes", "key 'b' is Bool, and 'yes' is none"),
        ("d", "1.1.2024", "key 'd' is Date, and '1.1.2024' is none"),
        ("t", "noon", "key 't' is Timestamp, and 'noon' is none"),
        ("x", "%", "key 'x' is Bytes, and '%' is none"),
        ("n", "[1]", "key 'n' is String, and 1 is none"),
        ("n", '["a"', "key 'n' begins with [ and is no JSON array"),
        ("n", "a,b", "key columns differ in length"),
    ],
)
def test_get_online_refuses_keys_of_wrong_types(run: Run, typed: Path, key: str, value: str, message: str) -> None:
    """What is no value of a key's type is refused with the key's name and type."""
    found = run("get-online", "svc", *key_options(**{key: value}), "--json", repo=typed).error()

    assert found["code"] == "input"
    assert found["message"].startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["machine_health_v2"], "no feature service 'machine_health_v2'; did you mean 'machine_health_v1'?"),
        (["machine_health:restart"], "no feature of view 'machine_health' named 'restart'; did you mean 'restarts'?"),
        (["machine_helth:restarts"], "no feature view 'machine_helth'; did you mean 'machine_health'?"),
        (["machine_health_v1"], "key 'sensor_id' is missing; the keys are 'sensor_id'"),
        (["machine_health_v1", "-k", "sensor=a"], "'sensor' is no key of the features asked for; did you mean 'sensor_id'?"),
    ],
)
def test_get_online_names_the_nearest(ask: Run, arguments: list[str], message: str) -> None:
    """Unknown services, views, features and keys are refused with the nearest known name."""
    assert ask("get-online", *arguments) == Result(1, "", f"error: {message}\n")


def test_redis_that_does_not_answer(ask: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that is not there is named with what to look at, its password hidden."""
    monkeypatch.setenv("FEATURESTORE_ONLINE__URL", "redis://me:secret@127.0.0.1:1")
    arguments = ["get-online", "machine_health_v1", "-k", "sensor_id=pump_1"]

    result = ask(*arguments)

    assert result.code == 1
    assert "the online store redis://me:***@127.0.0.1:1 does not answer" in result.err
    assert "secret" not in result.err
    assert ask(*arguments, "--json").error()["code"] == "online-store"


# serve


def test_serve_becomes_the_server(plant: Path, tmp_path: Path) -> None:
    """`serve` replaces itself by the server's module, which gets the options, and no module of the repo."""
    package = tmp_path / "featurestore_server"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import os, sys; print(os.getcwd(), *sys.argv[1:], sys.flags.safe_path)")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    result = in_process("serve", "--port", "8123", "--json", "--debug", cwd=plant, PYTHONPATH=paths)

    assert result == Result(0, f"{plant} --repo . --host 127.0.0.1 --port 8123 --workers 1 --json --debug True\n")


@pytest.mark.parametrize("missing", ["featurestore_server", "fastapi", "uvicorn"])
def test_serve_without_its_packages(ask: Run, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without the server or what it needs, serve says what to install."""
    monkeypatch.setattr("featurestore.cli.serving.find_spec", lambda name: None if name == missing else object())

    found = ask("serve", "--json").error()

    assert found["code"] == "missing-dependency"
    assert found["message"].endswith("pip install 'featurestore[server]'")


def test_serve_checks_the_repo_first(run: Run, tmp_path: Path) -> None:
    """`serve` without a repo fails as every command does."""
    assert run("serve", "--json", repo=tmp_path).error()["code"] == "settings"
