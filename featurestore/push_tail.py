"""Reading a push view as of now: its table, and behind it the rest of the log as one more file in the table's order."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import OfflineStoreError
from featurestore.offline.erased import without_erased
from featurestore.offline.push_log import decoded, together
from featurestore.offline.session import parquet
from featurestore.offline.tables import OfflineTable, Snapshot
from featurestore.push import FIRST, Pushing
from featurestore.registry.pushes import Pushed
from featurestore.registry.state import Version

__all__ = ["with_tail"]


def with_tail(pushing: Pushing, version: Version, table: Snapshot, covered_until: int | None, until: int) -> Snapshot:
    """Return a version's table with all that has arrived since it was covered, until a sealed instant.

    The files of the rest are temporary, and go with the snapshot.

    Raises:
        OfflineStoreError: the log cannot be read, or the rest cannot be written.

    """
    after = FIRST if covered_until is None else covered_until
    state, waiting = pushing.registry.pushes.since(version.view.source.name, after)
    waiting = [push for push in waiting if push.arrival <= until]
    if not waiting and not any(file.last > after and file.first <= until for file in state.files):
        return replace(table, covered_until=after)
    folder = Path(tempfile.mkdtemp(prefix="featurestore-pushed-", dir=pushing.settings.temp_folder))
    try:
        rest = _written(waiting, folder) if waiting else None
        rows = without_erased(pushing.rows_of(version, state, (after, until), rest), pushing.registry.erasures.tombstones())
        files = OfflineTable(folder, version.view).write_sorted(rows, after, until)
    except (OSError, pa.ArrowException) as reason:
        shutil.rmtree(folder, ignore_errors=True)
        raise OfflineStoreError(
            f"cannot write the rest of the log of {version.view.source.name!r} to {folder}: {reason}"
        ) from reason
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    whole = replace(table, files=(*table.files, *files), covered_until=after)
    weakref.finalize(whole, shutil.rmtree, folder, ignore_errors=True)
    return whole


def _written(waiting: Sequence[Pushed], folder: Path) -> tuple[str, Sequence[str]]:
    """Write rows that are in no file to one; returns it as a table of SQL, and its columns."""
    path, rows = folder / "rest", together([decoded(push) for push in waiting])
    pq.write_table(rows, path)
    return parquet([path]), rows.column_names
