"""Settings of a repo: `featurestore.toml`, overridden by environment variables; and where relative paths and URLs lead.

    setting          default                                    what it is
    project          (required)                                 the name of the repo's project
    now              the clock                                  a fixed present, for examples, tests and replays
    registry.url     sqlite:///.featurestore/registry.db        a SQLAlchemy URL
    offline.path     .featurestore/offline                      the folder of the offline tables
    offline.memory_limit  the half of the machine's             what materializing and training may take, such as 4GB
    offline.threads  the machine's                              how many threads they use
    offline.temp_directory  the system's                        where they spill what exceeds the memory
    online.url       embedded                                   embedded, or the URL of servers (online/topology.py)
    online.timeout_ms  2000                                     how long one answer of the online store may take
    server.max_body_bytes  16000000                             the largest body of a request, tables for training and pushes aside
    server.max_table_bytes  2000000000                          the largest body of a spine or a push
    server.max_rows  100000                                     how many entities one lookup may ask for
    server.max_features  1000                                   how many features one request may ask for
    server.max_nesting  16                                      how deep the JSON of a request may be nested
    server.request_timeout_ms  10000                            how long a request may take until its answer begins
    server.training_timeout_ms  600000                          the same for historical features and training sets
    server.training_processes  2                                how many training queries are computed at once
    server.training_queue  8                                    how many more may wait; what comes then is told to come again
    server.training_jobs  1                                     how many training-set jobs are computed beside them, 0 for none
    server.grace_seconds  10                                    how long a server that ends waits for requests that it has begun
    server.log_requests  failed                                 which requests leave a line in the log: failed or all
    server.cors_origins  []                                     the web origins whose pages may call it; in a variable as a,b
    serving_log.sample  0.0                                     the share of lookups that is logged, 0 for none, 1 for all
    serving_log.path  .featurestore/serving_log                 the folder of the serving log
    serving_log.max_size  1GB                                   what the log may take on disk; the oldest files go
    serving_log.queue_rows  100000                              how many rows may wait to be written; more are dropped and counted
    serving_log.flush_seconds  60.0                             how often what waits is written

A variable is named after its setting: `FEATURESTORE_ONLINE__URL` is `online.url`. Relative paths are relative to the repo.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnparsableError

from featurestore.clock import Clock, from_micros, parse_instant, system_clock, to_micros
from featurestore.errors import SettingsError, known_names

__all__ = ["FILE_NAME", "Settings", "load_settings", "redacted"]

FILE_NAME = "featurestore.toml"
_SIZE = re.compile(r"\s*(\d+)\s*([KMGTkmgt])B?\s*")
_LEAST_MEMORY = 256_000_000
_NO_DELTA_PATH = re.compile(r"%[0-9A-Fa-f]{2}|[\\\x00-\x1f\x7f]")
"""What delta-rs decodes in a path, or cannot read, however it is written."""
_SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)([^:?].*)")


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a size such as 512MB or 4GB, got {text!r}")
    return int(match[1]) * 1000 ** ("KMGT".index(match[2].upper()) + 1)


def _size(text: str) -> str:
    _bytes(text)
    return text


def _checked_size(text: str) -> str:
    if _bytes(text) < _LEAST_MEMORY:
        raise ValueError(f"{text} is too little; 256MB is the least")
    return text


def _folder(text: str) -> str:
    if "://" in text:
        raise ValueError("expected a folder of this machine or of a shared disk, a URL is none")
    return text


_Url = Annotated[str, Field(min_length=1)]
_Folder = Annotated[_Url, AfterValidator(_folder)]


def _listed(value: Any) -> Any:
    """Read a list out of a text: a JSON array, or with commas between."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RegistrySettings(_Section):
    """Where the applied state is kept."""

    url: _Url = "sqlite:///.featurestore/registry.db"


class OfflineSettings(_Section):
    """Where the tables are kept."""

    path: _Folder = ".featurestore/offline"
    memory_limit: Annotated[str, AfterValidator(_checked_size)] | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)
    temp_directory: _Folder | None = None

    @property
    def memory_bytes(self) -> int:
        """The memory limit in bytes."""
        if self.memory_limit is None:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        return _bytes(self.memory_limit)


class OnlineSettings(_Section):
    """Where rows are served from."""

    url: _Url = "embedded"
    timeout_ms: int = Field(default=2000, ge=1)


class ServerSettings(_Section):
    """What the HTTP service allows."""

    max_body_bytes: int = Field(default=16_000_000, ge=1)
    max_table_bytes: int = Field(default=2_000_000_000, ge=1)
    max_rows: int = Field(default=100_000, ge=1)
    max_features: int = Field(default=1000, ge=1)
    max_nesting: int = Field(default=16, ge=4, le=1000)
    request_timeout_ms: int = Field(default=10_000, ge=1)
    training_timeout_ms: int = Field(default=600_000, ge=1)
    training_processes: int = Field(default=2, ge=1, le=1024)
    training_queue: int = Field(default=8, ge=0)
    training_jobs: int = Field(default=1, ge=0, le=1024)
    grace_seconds: int = Field(default=10, ge=0)
    log_requests: Literal["failed", "all"] = "failed"
    cors_origins: Annotated[list[str], NoDecode, BeforeValidator(_listed)] = []


class ServingLogSettings(_Section):
    """What is logged of what is served."""

    sample: float = Field(default=0.0, ge=0, le=1)
    path: _Folder = ".featurestore/serving_log"
    max_size: Annotated[str, AfterValidator(_size)] = "1GB"
    queue_rows: int = Field(default=100_000, ge=1)
    flush_seconds: float = Field(default=60.0, gt=0)

    @property
    def most_bytes(self) -> int:
        """What the log may take, in bytes."""
        return _bytes(self.max_size)


class Settings(BaseSettings):
    """All settings of one repo, checked. `root` is the repo's folder."""

    model_config = SettingsConfigDict(
        env_prefix="FEATURESTORE_", env_nested_delimiter="__", extra="forbid", frozen=True, nested_model_default_partial_update=True
    )

    root: Path
    project: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")
    now: Annotated[dt.datetime, BeforeValidator(lambda value: from_micros(parse_instant(value)))] | None = None
    registry: RegistrySettings = RegistrySettings()
    offline: OfflineSettings = OfflineSettings()
    online: OnlineSettings = OnlineSettings()
    server: ServerSettings = ServerSettings()
    serving_log: ServingLogSettings = ServingLogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (pydantic's signature)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, which arrives as `init_settings`."""
        return env_settings, init_settings

    @property
    def state(self) -> Path:
        """The folder in which the repo keeps what it makes."""
        return self.root / ".featurestore"

    @property
    def registry_url(self) -> str:
        """The registry's URL with an absolute path."""
        file = _SQLITE_FILE.fullmatch(self.registry.url)
        return f"{file[1]}{self.root / file[2]}" if file else self.registry.url

    @property
    def offline_folder(self) -> Path:
        """The folder of the offline tables."""
        return self.root / self.offline.path

    @property
    def serving_log_folder(self) -> Path:
        """The folder of the serving log."""
        return self.root / self.serving_log.path

    @property
    def threads(self) -> int:
        """How many threads materializing and training use."""
        return self.offline.threads or len(os.sched_getaffinity(0))

    @property
    def temp_folder(self) -> Path | None:
        """Where they spill, none for the system's folder."""
        return None if self.offline.temp_directory is None else self.root / self.offline.temp_directory

    @property
    def clock(self) -> Clock:
        """The present: the machine's, or the fixed one that `now` sets."""
        if self.now is None:
            return system_clock
        instant = to_micros(self.now)
        return lambda: instant


def load_settings(root: Path) -> Settings:
    """Read the settings of the repo in a folder.

    Raises:
        SettingsError: no `featurestore.toml` there, or a setting is unknown or unusable; names each.

    """
    file = root / FILE_NAME
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"no {FILE_NAME} in {root}; name the repo with --repo or FEATURESTORE_REPO, or start one with `featurestore init`"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as reason:
        raise SettingsError(f"cannot read {file}: {reason}") from reason
    if "root" in values:
        raise SettingsError(f"{file}: unknown setting 'root'")
    _check_variables()
    try:
        # Set again, since a variable FEATURESTORE_ROOT must not move the repo.
        settings = Settings(root=root, **values).model_copy(update={"root": root.resolve()})
    except UnparsableError as reason:
        raise SettingsError(f"{reason}; set each setting by a variable of its own, as FEATURESTORE_ONLINE__URL") from None
    except ValidationError as reason:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in reason.errors(include_input=False)]
        raise SettingsError(f"{file} and FEATURESTORE_* variables: " + "; ".join(faults)) from None
    if found := _NO_DELTA_PATH.search(str(settings.offline_folder)):
        raise SettingsError(
            f"offline tables cannot be in {str(settings.offline_folder)!r}: Delta Lake's library takes {found[0]!r} in a path for "
            "something else; set offline.path to another folder, or move the repo"
        )
    return settings


def _check_variables() -> None:
    """Refuse variables of a section that there is not, which pydantic would take for those of another program."""
    sections = [name for name, each in Settings.model_fields.items() if isinstance(each.default, _Section)]
    for variable in sorted(os.environ):
        section, separator, _ = variable.upper().removeprefix("FEATURESTORE_").partition("__")
        if variable.upper().startswith("FEATURESTORE_") and separator and section.lower() not in sections:
            raise SettingsError(f"{variable}: no section {section.lower()!r}; {known_names(section.lower(), sections)}")


def redacted(url: str) -> str:
    """Return a URL without its password, fit for messages and logs."""
    without_user = re.sub(r"^((?:\w[\w+.-]*://)?+)([^/@:]*):(.*)@", r"\1\2:***@", url)
    return re.sub(r"([?&;]\w*password=)[^&;]*", r"\1***", without_user, flags=re.IGNORECASE)
