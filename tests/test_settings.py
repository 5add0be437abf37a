from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore import FeatureStore
from featurestore.clock import system_clock
from featurestore.errors import FeatureStoreError, SettingsError
from featurestore.settings import FILE_NAME, Settings, load_settings, redacted

Load = Callable[..., Settings]
NOON = dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test without the variables that the machine may have."""
    for name in os.environ:
        if name.upper().startswith("FEATURESTORE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load the settings of a repo whose file has a text, with some variables set."""

    def loaded(text: str | bytes = 'project = "test"', **variables: str) -> Settings:
        (tmp_path / FILE_NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return load_settings(tmp_path)

    return loaded


def message(load: Load, tmp_path: Path, text: str | bytes, **variables: str) -> str:
    """Return the words of the SettingsError that a file and variables give, the folder's name left out."""
    with pytest.raises(SettingsError) as error:
        load(text, **variables)
    return str(error.value).replace(str(tmp_path), "…")


def flat(settings: Settings) -> dict[str, Any]:
    """Return the settings by their documented names."""
    return {
        "project": settings.project,
        "now": settings.now,
        "registry.url": settings.registry.url,
        "offline.path": settings.offline.path,
        "offline.memory_limit": settings.offline.memory_limit,
        "offline.threads": settings.offline.threads,
        "offline.temp_directory": settings.offline.temp_directory,
        "online.url": settings.online.url,
        "online.timeout_ms": settings.online.timeout_ms,
        **{f"server.{name}": value for name, value in settings.server.model_dump().items()},
        **{f"serving_log.{name}": value for name, value in settings.serving_log.model_dump().items()},
    }


DEFAULTS: dict[str, Any] = {
    "project": "test",
    "now": None,
    "registry.url": "sqlite:///.featurestore/registry.db",
    "offline.path": ".featurestore/offline",
    "offline.memory_limit": None,
    "offline.threads": None,
    "offline.temp_directory": None,
    "online.url": "embedded",
    "online.timeout_ms": 2000,
    "server.max_body_bytes": 16_000_000,
    "server.max_table_bytes": 2_000_000_000,
    "server.max_rows": 100_000,
    "server.max_features": 1000,
    "server.max_nesting": 16,
    "server.request_timeout_ms": 10_000,
    "server.training_timeout_ms": 600_000,
    "server.training_processes": 2,
    "server.training_queue": 8,
    "server.training_jobs": 1,
    "server.grace_seconds": 10,
    "server.log_requests": "failed",
    "server.cors_origins": [],
    "serving_log.sample": 0.0,
    "serving_log.path": ".featurestore/serving_log",
    "serving_log.max_size": "1GB",
    "serving_log.queue_rows": 100_000,
    "serving_log.flush_seconds": 60.0,
}


def test_only_the_project_is_required(load: Load) -> None:
    """A file with a project is enough; everything else has the documented default."""
    assert flat(load()) == DEFAULTS


def test_the_file_sets_everything(load: Load) -> None:
    """Each setting can be written in the file, nested ones in sections."""
    text = """
project = "flights-2"
now = 2013-06-01T12:00:00Z
[registry]
url = "postgresql+psycopg://me@db/fs"
[offline]
path = "/data/offline"
memory_limit = "4GB"
threads = 3
temp_directory = "/scratch"
[online]
url = "redis://cache:6379/1"
timeout_ms = 50
[server]
max_body_bytes = 1
max_table_bytes = 2
max_rows = 3
max_features = 4
max_nesting = 5
request_timeout_ms = 6
training_timeout_ms = 7
training_processes = 4
training_queue = 0
training_jobs = 0
grace_seconds = 0
log_requests = "all"
cors_origins = ["https://a.example"]
[serving_log]
sample = 0.5
path = "/data/log"
max_size = "5MB"
queue_rows = 6
flush_seconds = 7.5
"""

    assert flat(load(text)) == {
        "project": "flights-2",
        "now": NOON,
        "registry.url": "postgresql+psycopg://me@db/fs",
        "offline.path": "/data/offline",
        "offline.memory_limit": "4GB",
        "offline.threads": 3,
        "offline.temp_directory": "/scratch",
        "online.url": "redis://cache:6379/1",
        "online.timeout_ms": 50,
        "server.max_body_bytes": 1,
        "server.max_table_bytes": 2,
        "server.max_rows": 3,
        "server.max_features": 4,
        "server.max_nesting": 5,
        "server.request_timeout_ms": 6,
        "server.training_timeout_ms": 7,
        "server.training_processes": 4,
        "server.training_queue": 0,
        "server.training_jobs": 0,
        "server.grace_seconds": 0,
        "server.log_requests": "all",
        "server.cors_origins": ["https://a.example"],
        "serving_log.sample": 0.5,
        "serving_log.path": "/data/log",
        "serving_log.max_size": "5MB",
        "serving_log.queue_rows": 6,
        "serving_log.flush_seconds": 7.5,
    }


VARIABLES = [
    ("FEATURESTORE_PROJECT", "other", "project", "other"),
    ("FEATURESTORE_NOW", "2013-06-01T12:00:00Z", "now", NOON),
    ("FEATURESTORE_REGISTRY__URL", "sqlite:///r.db", "registry.url", "sqlite:///r.db"),
    ("FEATURESTORE_OFFLINE__PATH", "tables", "offline.path", "tables"),
    ("FEATURESTORE_OFFLINE__MEMORY_LIMIT", "512MB", "offline.memory_limit", "512MB"),
    ("FEATURESTORE_OFFLINE__THREADS", "1", "offline.threads", 1),
    ("FEATURESTORE_OFFLINE__TEMP_DIRECTORY", "spill", "offline.temp_directory", "spill"),
    ("FEATURESTORE_ONLINE__URL", "redis://b", "online.url", "redis://b"),
    ("FEATURESTORE_ONLINE__TIMEOUT_MS", "7", "online.timeout_ms", 7),
    ("FEATURESTORE_SERVER__MAX_BODY_BYTES", "1", "server.max_body_bytes", 1),
    ("FEATURESTORE_SERVER__MAX_TABLE_BYTES", "2", "server.max_table_bytes", 2),
    ("FEATURESTORE_SERVER__MAX_ROWS", "3", "server.max_rows", 3),
    ("FEATURESTORE_SERVER__MAX_FEATURES", "4", "server.max_features", 4),
    ("FEATURESTORE_SERVER__MAX_NESTING", "5", "server.max_nesting", 5),
    ("FEATURESTORE_SERVER__REQUEST_TIMEOUT_MS", "6", "server.request_timeout_ms", 6),
    ("FEATURESTORE_SERVER__TRAINING_TIMEOUT_MS", "7", "server.training_timeout_ms", 7),
    ("FEATURESTORE_SERVER__TRAINING_PROCESSES", "1", "server.training_processes", 1),
    ("FEATURESTORE_SERVER__TRAINING_QUEUE", "0", "server.training_queue", 0),
    ("FEATURESTORE_SERVER__TRAINING_JOBS", "0", "server.training_jobs", 0),
    ("FEATURESTORE_SERVER__GRACE_SECONDS", "0", "server.grace_seconds", 0),
    ("FEATURESTORE_SERVER__LOG_REQUESTS", "all", "server.log_requests", "all"),
    ("FEATURESTORE_SERVER__CORS_ORIGINS", '["https://a.example"]', "server.cors_origins", ["https://a.example"]),
    ("FEATURESTORE_SERVING_LOG__SAMPLE", "0.25", "serving_log.sample", 0.25),
    ("FEATURESTORE_SERVING_LOG__PATH", "log", "serving_log.path", "log"),
    ("FEATURESTORE_SERVING_LOG__MAX_SIZE", "2GB", "serving_log.max_size", "2GB"),
    ("FEATURESTORE_SERVING_LOG__QUEUE_ROWS", "8", "serving_log.queue_rows", 8),
    ("FEATURESTORE_SERVING_LOG__FLUSH_SECONDS", "9", "serving_log.flush_seconds", 9.0),
]


@pytest.mark.parametrize(("variable", "value", "setting", "expected"), VARIABLES)
def test_a_variable_wins_over_the_file(load: Load, variable: str, value: str, setting: str, expected: Any) -> None:
    """Every setting has a variable, which wins over the file and leaves all other settings as the file has them."""
    text = """
project = "test"
now = 2000-01-01T00:00:00Z
[registry]
url = "sqlite:///a.db"
[offline]
path = "a"
[online]
url = "redis://a"
timeout_ms = 5
"""
    before = flat(load(text))

    assert flat(load(text, **{variable: value})) == before | {setting: expected}


ORIGINS = [
    ("https://a.example", ["https://a.example"]),
    ("https://a.example, https://b.example", ["https://a.example", "https://b.example"]),
    ('["https://a.example"]', ["https://a.example"]),
    ("", []),
]


@pytest.mark.parametrize(("text", "origins"), ORIGINS)
def test_origins_are_written_with_commas_between(load: Load, text: str, origins: list[str]) -> None:
    """A variable holds one origin or several, or a JSON array."""
    assert load(FEATURESTORE_SERVER__CORS_ORIGINS=text).server.cors_origins == origins


def test_a_variable_can_give_what_the_file_must_have(load: Load) -> None:
    """A project given by the environment need not be in the file."""
    assert load("", FEATURESTORE_PROJECT="test").project == "test"


def test_every_setting_is_in_the_tables_above(load: Load) -> None:
    """Every setting that there is has a default, a place in the file and a variable in this file's tables."""
    dumped = load().model_dump(exclude={"root"})
    names = {
        f"{name}.{part}" if isinstance(value, dict) else name
        for name, value in dumped.items()
        for part in (value if isinstance(value, dict) else [""])
    }

    assert names == set(DEFAULTS) == {setting for _, _, setting, _ in VARIABLES}


@pytest.mark.parametrize("variable", ["FEATURESTORE_ROOT", "FEATURESTORE_REPO", "FEATURESTORE_SERVER_WORKERS"])
def test_no_variable_moves_the_repo(load: Load, tmp_path: Path, variable: str) -> None:
    """Where the repo is comes from who loads it; variables that are no settings change nothing."""
    settings = load(**{variable: "/elsewhere"})

    assert settings.root == tmp_path
    assert flat(settings) == DEFAULTS


# Paths


def test_relative_paths_are_relative_to_the_repo(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths lead into the repo's folder, whatever the current one is, also if the repo was named relatively."""
    monkeypatch.chdir(tmp_path)
    load()
    settings = load_settings(Path())
    monkeypatch.chdir("/")

    assert settings.root == tmp_path
    assert settings.state == tmp_path / ".featurestore"
    assert settings.offline_folder == tmp_path / ".featurestore/offline"
    assert settings.registry_url == f"sqlite:///{tmp_path}/.featurestore/registry.db"


PATHS = [
    ("sqlite:///registry.db", "sqlite:///{root}/registry.db"),
    ("sqlite:///../shared/registry.db", "sqlite:///{root}/../shared/registry.db"),
    ("sqlite:////var/registry.db", "sqlite:////var/registry.db"),
    ("sqlite+pysqlite:///registry.db", "sqlite+pysqlite:///{root}/registry.db"),
    ("postgresql+psycopg://me:secret@db/fs", "postgresql+psycopg://me:secret@db/fs"),
]


@pytest.mark.parametrize(("url", "expected"), PATHS)
def test_a_registry_in_a_file_is_relative_to_the_repo(load: Load, tmp_path: Path, url: str, expected: str) -> None:
    """A relative SQLite file lies in the repo, an absolute one and a server stay where they are."""
    assert load(FEATURESTORE_REGISTRY__URL=url).registry_url == expected.format(root=tmp_path)


@pytest.mark.parametrize(("path", "expected"), [("tables", "{root}/tables"), ("/data/tables", "/data/tables")])
def test_the_offline_folder_is_relative_to_the_repo(load: Load, tmp_path: Path, path: str, expected: str) -> None:
    """A relative offline path leads into the repo, an absolute one stays."""
    assert str(load(FEATURESTORE_OFFLINE__PATH=path).offline_folder) == expected.format(root=tmp_path)


# The present


@pytest.mark.parametrize("name", ["feature%2Fbranch", "a%20b", "a\\b", "a\nb", "a\x7fb"])
def test_a_path_that_delta_tables_cannot_have_is_refused(tmp_path: Path, name: str) -> None:
    """It would apply, and fail in every run; the offline tables can be elsewhere."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "featurestore.toml").write_text('project = "flights"\n')
    with pytest.raises(SettingsError, match=r"offline tables cannot be in .*; set offline.path to another folder, or move"):
        load_settings(folder)
    (folder / "featurestore.toml").write_text(f'project = "flights"\noffline.path = "{tmp_path}/100%/tables"\n')
    assert load_settings(folder).offline_folder == tmp_path / "100%/tables"


@pytest.mark.parametrize("now", ["2013-06-01T12:00:00Z", '"2013-06-01T12:00:00"', "2013-06-01T14:00:00+02:00", "1370088000000000"])
def test_now_fixes_the_clock(load: Load, now: str) -> None:
    """`now` is the present for good, in UTC however it is written."""
    settings = load(f'project = "test"\nnow = {now}')

    assert settings.now == NOON
    assert [settings.clock(), settings.clock()] == [1_370_088_000_000_000] * 2


def test_without_now_the_clock_is_the_machines(load: Load) -> None:
    """The present is the machine's unless `now` is set."""
    assert load().clock is system_clock


# Faults

FOLDERS = {
    "FEATURESTORE_OFFLINE__PATH": "offline.path",
    "FEATURESTORE_OFFLINE__TEMP_DIRECTORY": "offline.temp_directory",
    "FEATURESTORE_SERVING_LOG__PATH": "serving_log.path",
}
NO_FOLDER = "expected a folder of this machine or of a shared disk, a URL is none"
FAULTS: list[tuple[str, dict[str, str], list[str]]] = [
    ("", {}, ["project: Field required"]),
    ('project = ""', {}, ["project: String should match pattern '^[A-Za-z][A-Za-z0-9_-]{0,62}$'"]),
    ("project = 3", {}, ["project: Input should be a valid string"]),
    ('project = "p"\ncolour = 1', {}, ["colour: Extra inputs are not permitted"]),
    ('project = "p"\n[onlin]\nurl = "x"', {}, ["onlin: Extra inputs are not permitted"]),
    ('project = "p"\n[online]\nulr = "x"', {}, ["online.ulr: Extra inputs are not permitted"]),
    (
        'project = "p"\n[online]\ntimeout_ms = "soon"',
        {},
        ["online.timeout_ms: Input should be a valid integer, unable to parse string as an integer"],
    ),
    ('project = "p"\n[online]\ntimeout_ms = 0', {}, ["online.timeout_ms: Input should be greater than or equal to 1"]),
    ('project = "p"\nonline = 3', {}, ["online: Input should be a valid dictionary or instance of OnlineSettings"]),
    ('project = "p"\nnow = "noon"', {}, ["now: Value error, expected a timestamp such as 2013-06-01T12:00:00Z, got 'noon'"]),
    ('project = "p"\nnow = true', {}, ["now: Value error, expected a timestamp such as 2013-06-01T12:00:00Z, got True"]),
    (
        "colour = 1\n[online]\ntimeout_ms = 0\n[registry]\nurl = 3",
        {},
        [
            "project: Field required",
            "registry.url: Input should be a valid string",
            "online.timeout_ms: Input should be greater than or equal to 1",
            "colour: Extra inputs are not permitted",
        ],
    ),
    (
        'project = "p"',
        {"FEATURESTORE_ONLINE__TIMEOUT_MS": "x"},
        ["online.timeout_ms: Input should be a valid integer, unable to parse string as an integer"],
    ),
    *(
        ('project = "p"', {variable: "s3://bucket/x"}, [f"{setting}: Value error, {NO_FOLDER}"])
        for variable, setting in FOLDERS.items()
    ),
    *(
        ('project = "p"', {variable: ""}, [f"{setting}: String should have at least 1 character"])
        for variable, setting in {
            **FOLDERS,
            "FEATURESTORE_ONLINE__URL": "online.url",
            "FEATURESTORE_REGISTRY__URL": "registry.url",
        }.items()
    ),
    ('project = "p"', {"FEATURESTORE_ONLINE__ULR": "x"}, ["online.ulr: Extra inputs are not permitted"]),
    (
        'project = "p"',
        {"FEATURESTORE_SERVER__CORS_ORIGINS": "[https://a.example]"},
        ["server.cors_origins: Value error, Expecting value: line 1 column 2 (char 1)"],
    ),
    ('project = "p"', {"FEATURESTORE_PROJECT": "a b"}, ["project: String should match pattern '^[A-Za-z][A-Za-z0-9_-]{0,62}$'"]),
]


@pytest.mark.parametrize(("text", "variables", "faults"), FAULTS)
def test_every_unusable_setting_is_named(
    load: Load, tmp_path: Path, text: str, variables: dict[str, str], faults: list[str]
) -> None:
    """Unknown settings and wrong types are all named at once, as they are written, with file and variables as the places."""
    place, *found = message(load, tmp_path, text, **variables).split(": ", 1)

    assert place == "…/featurestore.toml and FEATURESTORE_* variables"
    assert sorted(found[0].split("; ")) == sorted(faults)


@pytest.mark.parametrize("variable", ["FEATURESTORE_ONLIN__URL", "featurestore_onlin__url"])
def test_a_section_that_there_is_not_is_a_fault(load: Load, tmp_path: Path, variable: str) -> None:
    """A variable whose section is misspelt is refused as one whose setting is; its value is not shown."""
    words = message(load, tmp_path, 'project = "p"', **{variable: "redis://:hunter2@cache"})

    assert words.startswith(f"{variable}: no section 'onlin'; did you mean 'online'?")
    assert "hunter2" not in words


def test_the_root_is_no_setting(load: Load, tmp_path: Path) -> None:
    """Where the repo lies cannot be written into its own file."""
    assert message(load, tmp_path, 'project = "p"\nroot = "/"') == "…/featurestore.toml: unknown setting 'root'"


def test_a_moment_beyond_the_calendar_is_refused(load: Load, tmp_path: Path) -> None:
    """A `now` that no datetime can hold is named like any other unusable setting."""
    assert "now: " in message(load, tmp_path, 'project = "p"\nnow = 1000000000000000000')


@pytest.mark.parametrize("value", ["redis://:hunter2@cache", "{", "3"])
def test_a_variable_for_a_whole_section_is_a_fault(load: Load, tmp_path: Path, value: str) -> None:
    """`FEATURESTORE_ONLINE=redis://…` lacks the setting's name: it is refused by the section's name, without its value."""
    words = message(load, tmp_path, 'project = "p"', FEATURESTORE_ONLINE=value)

    assert "online" in words
    assert "hunter2" not in words


def test_without_a_file_the_message_says_what_to_do(tmp_path: Path) -> None:
    """A folder that is no repo is named, with the ways to name another one or to start one."""
    with pytest.raises(SettingsError) as error:
        FeatureStore(tmp_path)

    assert str(error.value) == (
        f"no featurestore.toml in {tmp_path}; name the repo with --repo or FEATURESTORE_REPO, or start one with `featurestore init`"
    )


def test_a_folder_that_does_not_exist_is_no_repo(tmp_path: Path) -> None:
    """A missing folder is reported like one without a file."""
    with pytest.raises(SettingsError, match=r"no featurestore\.toml in .*/missing; "):
        load_settings(tmp_path / "missing")


BROKEN = [
    ("project = ", "Invalid value"),
    ('project = "a"\nproject = "b"', "Cannot overwrite a value"),
    ("project = 'é'".encode("latin-1"), "'utf-8' codec can't decode byte 0xe9 in position 11: invalid continuation byte"),
]


@pytest.mark.parametrize(("text", "reason"), BROKEN, ids=["no value", "twice", "not UTF-8"])
def test_broken_toml_is_reported_with_its_place(load: Load, tmp_path: Path, text: str | bytes, reason: str) -> None:
    """A file that is no TOML is reported with the parser's words."""
    assert message(load, tmp_path, text).startswith(f"cannot read …/featurestore.toml: {reason}")


def test_a_folder_in_the_files_place_is_reported(tmp_path: Path) -> None:
    """A `featurestore.toml` that cannot be read as a file is a settings error."""
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(SettingsError, match=r"cannot read .*/featurestore.toml: "):
        load_settings(tmp_path)


def test_settings_are_frozen(load: Load) -> None:
    """Settings that are loaded do not change."""
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.project = "other"
    with pytest.raises(ValueError, match="frozen"):
        settings.online.url = "redis://b"


# Secrets

URLS = [
    ("embedded", "embedded"),
    ("redis://cache:6379/0", "redis://cache:6379/0"),
    ("redis://me@cache", "redis://me@cache"),
    ("redis://:hunter2@cache", "redis://:***@cache"),
    ("redis://me:hunter2@cache:6379/0", "redis://me:***@cache:6379/0"),
    ("rediss://me:hunter2@cache", "rediss://me:***@cache"),
    ("postgresql+psycopg://me:hunter2@db:5432/fs", "postgresql+psycopg://me:***@db:5432/fs"),
    ("redis://me:hunter%402@cache", "redis://me:***@cache"),
    ("redis://:hun:ter2@cache", "redis://:***@cache"),
    ("redis://:hunt@er2@cache", "redis://:***@cache"),
    ("redis://:hun/ter2@cache", "redis://:***@cache"),
    ("redis+sentinel://:hunter2@a:1,b:2/main", "redis+sentinel://:***@a:1,b:2/main"),
    ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock?password=***"),
    ("unix://me@/run/redis.sock?db=1&password=hunter2", "unix://me@/run/redis.sock?db=1&password=***"),
    ("redis://cache?password=hunter2&db=1", "redis://cache?password=***&db=1"),
]


@pytest.mark.parametrize(("url", "shown"), URLS)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    """A URL is shown without its password, however it is written, and otherwise as it is."""
    assert redacted(url) == shown


UNUSABLE = [
    {"FEATURESTORE_ONLINE__URL": "http://me:hunter2@cache"},
    {"FEATURESTORE_ONLINE__URL": "redis://me:hunter2@cache:port"},
    {"FEATURESTORE_ONLINE__URL": "redis://me:hunter2@127.0.0.1:1"},
    {"FEATURESTORE_ONLINE__URL": "redis://127.0.0.1:1?password=hunter2"},
    {"FEATURESTORE_ONLINE__URL": "unix:///nowhere/redis.sock?password=hunter2"},
    {"FEATURESTORE_REGISTRY__URL": "nosuch://me:hunter2@db/fs"},
    {"FEATURESTORE_REGISTRY__URL": "me:hunter2@db/fs"},
]


def _use(store: FeatureStore) -> None:
    store.registry.applied()
    store.online.ping()


@pytest.mark.parametrize("variables", UNUSABLE, ids=lambda each: next(iter(each.values())))
def test_no_message_holds_a_password(load: Load, tmp_path: Path, variables: dict[str, str]) -> None:
    """Neither the message nor the trace of what a wrong URL leads to holds the password."""
    load(**variables)
    with FeatureStore(tmp_path) as store, pytest.raises(FeatureStoreError) as error:
        _use(store)

    assert "hunter2" not in str(error.value)
    assert "hunter2" not in "".join(traceback.format_exception_only(error.value))


LIMITED = """
import sys
from featurestore import FeatureStore
from featurestore.errors import SettingsError
from featurestore.offline.session import session

with FeatureStore(sys.argv[1]), session(SettingsError, "limits") as connection:
    for name in ("memory_limit", "threads", "temp_directory"):
        print(connection.execute(f"SELECT current_setting('{name}')").fetchone()[0])
"""


def test_the_limits_reach_duckdb(tmp_path: Path) -> None:
    """Memory, threads and the folder for what exceeds them are DuckDB's own limits once a store of the repo is open."""
    limits = f'[offline]\nmemory_limit = "300MB"\nthreads = 1\ntemp_directory = "{tmp_path}"\n'
    (tmp_path / FILE_NAME).write_text(f'project = "test"\n{limits}', "utf-8")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n") == ["286.1 MiB", "1", str(tmp_path), ""]
