"""A store that is thrown away: a copy of a definitions folder, everything that it makes beside it, and a clock that tests set."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.clock import duration_micros, instant_text, parse_duration, parse_instant
from featurestore.settings import FILE_NAME, OfflineSettings, OnlineSettings, RegistrySettings, ServingLogSettings, load_settings
from featurestore.store import FeatureStore, Moment

__all__ = ["Throwaway", "VirtualClock", "throwaway_store"]

_NEVER = 1e9
_LEFT_OUT = (".featurestore", ".git", ".venv", "venv", "node_modules", "__pycache__")


class VirtualClock:
    """A present that stands still until it is set: microseconds, as every clock of a store."""

    def __init__(self, now: Moment) -> None:
        self._now = parse_instant(now)

    def __call__(self) -> int:
        """Return the present, in microseconds."""
        return self._now

    def __repr__(self) -> str:
        return f"VirtualClock({instant_text(self._now)!r})"

    def set(self, moment: Moment) -> int:
        """Set the present: a datetime, an ISO 8601 text, or microseconds. Returns it in microseconds."""
        self._now = parse_instant(moment)
        return self._now

    def advance(self, duration: dt.timedelta | str) -> int:
        """Move the present on by a duration such as `"90m"`. Returns it in microseconds."""
        self._now = parse_instant(self._now + duration_micros(parse_duration(duration)))
        return self._now


@dataclass(frozen=True)
class Throwaway:
    """A throw-away store, its clock, and its folder: the copy of the definitions, which tests may change."""

    store: FeatureStore
    clock: VirtualClock
    folder: Path

    def write(self, path: str, rows: pa.Table | Sequence[Mapping[str, Any]], schema: pa.Schema | None = None) -> None:
        """Write a Parquet file of a source, in place of the one that is there; `path` is relative to the folder."""
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link is replaced, never written through
        pq.write_table(table, target)


@contextmanager
def throwaway_store(
    folder: str | Path, *, now: Moment | None = None, leave_out: Sequence[str] = (), logged: float | None = None
) -> Iterator[Throwaway]:
    """Give a store over a copy of a definitions folder, with an embedded online server of its own; all is removed at the end.

    Registry, tables and online store are in the copy, whatever the folder's settings or variables of the environment say, so a test
    cannot reach what serves. `now` is the virtual clock's present; by default the settings' `now`, or the machine's. Files whose
    names match a pattern of `leave_out` are not copied, such as data that `Throwaway.write` replaces. A source whose path is
    absolute is read where it is. `logged` is the share of lookups that goes into the serving log, which then waits for
    `verify_log`, `training_set_from_log` or the end; by default the settings'.

    Raises:
        SettingsError: the folder has no `featurestore.toml`, or it holds something unusable.

    """
    given = load_settings(Path(folder))
    clock = VirtualClock(given.clock() if now is None else now)
    made = Path(tempfile.mkdtemp(prefix="featurestore-test-"))
    try:
        copy = shutil.copytree(given.root, made / "repo", ignore=shutil.ignore_patterns(*_LEFT_OUT, *leave_out))
        (copy / FILE_NAME).write_text(f'project = "{given.project}"\n')
        log = {} if logged is None else {"sample": logged, "flush_seconds": _NEVER}
        parts = {
            "root": copy.resolve(),
            "now": None,
            "registry": RegistrySettings(),
            "offline": OfflineSettings(),
            "online": OnlineSettings(),
            "serving_log": given.serving_log.model_copy(update={"path": ServingLogSettings().path, **log}),
        }
        store = FeatureStore(given.model_copy(update=parts), clock=clock)
        try:
            yield Throwaway(store, clock, copy)
        finally:
            store.close()
            store.stop()
    finally:
        shutil.rmtree(made, ignore_errors=True)
