"""Parity: look values up online, recompute them offline as of the watermark, and compare them bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.errors import OfflineStoreError
from featurestore.offline.asked import Asked
from featurestore.offline.point_in_time import Values, values_at
from featurestore.offline.session import identifier, parquet, session
from featurestore.offline.tables import Snapshot
from featurestore.online.rows import RowCodec
from featurestore.online.store import OnlineRows, OnlineStore, Status
from featurestore.registry.state import Version

__all__ = ["ViewParity", "compare"]

_EXAMPLES = 5


@dataclass(frozen=True)
class ViewParity:
    """How the online rows of some keys compare with the offline values at the watermark.

    Counts are keys; `values` counts the features of the keys that are present on a side.
    """

    view: str
    compared: int
    values: int
    different: int
    missing_online: int
    extra_online: int
    examples: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every key has online what it has offline."""
        return not (self.different or self.missing_online or self.extra_online)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready data."""
        return asdict(self) | {"examples": list(self.examples)}


def compare(version: Version, snapshot: Snapshot, online: OnlineStore, *, keys: int) -> ViewParity:
    """Compare up to so many keys of a view, the first by key hash: the same ones each time, spread like random ones.

    A value is equal if its bits are: rows of both sides are packed in the online row format and compared as bytes.
    """
    assert version.watermark is not None
    columns = _sample(version, snapshot, keys)
    asked = Asked.of(columns, np.full(len(columns[0]), version.watermark))
    offline = values_at(version.view, snapshot, asked, version.view.feature_names)
    [found] = online.read([(version, columns)], now=version.watermark)
    return _compared(version, columns, offline, found)


def _compared(version: Version, keys: Sequence[pa.ChunkedArray], offline: Values, online: OnlineRows) -> ViewParity:
    fields = version.view.features
    codec = RowCodec(fields)
    is_online = online.statuses == Status.PRESENT
    present = pa.array(is_online)
    online_times = pa.chunked_array([online.event_times]).cast(pa.int64())
    online_times = pa.compute.if_else(present, online_times, pa.scalar(None, pa.int64()))
    offline_rows = codec.encode(offline.features, _filled(offline.event_times.cast(pa.int64())), 0)
    online_rows = codec.encode(
        pa.table(dict(zip([each.name for each in fields], online.features, strict=True))), _filled(online_times), 0
    )
    is_different = np.array([one != other for one, other in zip(offline_rows, online_rows, strict=True)], dtype=bool)
    missing, extra = offline.present & ~is_online, ~offline.present & is_online
    different = is_different & offline.present & is_online
    wrong = np.flatnonzero(missing | extra | different)[:_EXAMPLES]
    examples = tuple(
        ", ".join(f"{key.name}={column[int(row)].as_py()!r}" for key, column in zip(version.view.join_keys, keys, strict=True))
        for row in wrong
    )
    return ViewParity(
        version.view.name,
        len(offline.present),
        int((offline.present | is_online).sum()) * len(fields),
        int(different.sum()),
        int(missing.sum()),
        int(extra.sum()),
        examples,
    )


def _filled(times: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    return times.fill_null(0).to_numpy()


def _sample(version: Version, snapshot: Snapshot, keys: int) -> list[pa.ChunkedArray]:
    names = [key.name for key in version.view.join_keys]
    if not snapshot.files:
        return [pa.chunked_array([], key.type.arrow) for key in version.view.join_keys]
    columns = ", ".join(map(identifier, names))
    table = parquet(file.path for file in snapshot.files)
    query = f"SELECT {columns} FROM {table} GROUP BY __key_hash, {columns} ORDER BY __key_hash LIMIT {keys}"
    with session(OfflineStoreError, f"the table of view {version.view.name!r}") as connection:
        table = connection.sql(query).to_arrow_table()
    return [table[key.name].cast(key.type.arrow) for key in version.view.join_keys]
