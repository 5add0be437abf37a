"""Which keys are compared: those of the table, of the online store, and of late rows, in the order of their hashes.

A sample is deterministic: the keys of the table with the least hashes, so many of them, and whatever else has a hash no greater.
Keys are kept in files of a temporary folder, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.definitions import FeatureView
from featurestore.errors import OfflineStoreError
from featurestore.offline.keys import key_hash
from featurestore.offline.late import LateRows
from featurestore.offline.session import identifier, parquet, session
from featurestore.offline.tables import Snapshot
from featurestore.online.store import OnlineStore, keys_of
from featurestore.registry.state import Version

__all__ = ["KeySample", "least_hashes"]

_ALL = 2**63 - 1
_KEPT_BATCH = 65_536


def least_hashes(view: FeatureView, snapshot: Snapshot, keys: int | None) -> int:
    """Return the hash up to which keys are compared: that of so many of the table's; that of all where it has fewer."""
    if keys is None or not snapshot.files:
        return _ALL
    table = parquet(file.path for file in snapshot.files)
    query = f"SELECT count(*), max(h) FROM (SELECT DISTINCT __key_hash AS h FROM {table} ORDER BY h LIMIT {keys})"
    with session(OfflineStoreError, f"the table of view {view.name!r}") as connection:
        found = connection.execute(query).fetchone()
    assert found is not None
    return int(found[1]) if found[0] == keys else _ALL


@dataclass
class KeySample:
    """The keys of one version with a hash of at most `cut`; `foreign` are stored keys that are none of the view's."""

    version: Version
    cut: int
    folder: Path
    foreign: list[bytes] = field(default_factory=list)

    @property
    def _view(self) -> FeatureView:
        return self.version.view

    def _schema(self) -> pa.Schema:
        return pa.schema([*((key.name, key.type.arrow) for key in self._view.join_keys), ("__key_hash", pa.int64())])

    def scan(self, online: OnlineStore) -> int:
        """Note the keys that the online store has rows for, whatever these are; returns how many were seen."""
        codec, seen = keys_of(self.version), 0
        with pq.ParquetWriter(self._online, self._schema()) as writer:
            held: list[pa.Table] = []
            for page in online.keys(self.version):
                seen += len(page)
                columns, places = codec.columns(page)
                if len(places) < len(page):
                    self.foreign += sorted(set(page) - {page[place] for place in places})
                held.append(self._within_cut(columns))
                if sum(map(len, held)) > _KEPT_BATCH:
                    writer.write_table(pa.concat_tables(held))
                    held = []
            if held:
                writer.write_table(pa.concat_tables(held))
        return seen

    @property
    def _online(self) -> Path:
        return self.folder / "online.parquet"

    def _within_cut(self, columns: list[pa.ChunkedArray]) -> pa.Table:
        if not len(columns[0]):
            return self._schema().empty_table()
        hashes = key_hash(columns)
        table = pa.table([*columns, pa.array(hashes)], schema=self._schema())
        return table if self.cut == _ALL else table.filter(pa.array(hashes <= self.cut))

    def chunks(self, snapshot: Snapshot, late: LateRows | None, rows: int) -> Iterator[list[pa.ChunkedArray]]:
        """Give the distinct keys, about so many at a time.

        Raises:
            OfflineStoreError: a file cannot be read.

        """
        names = [key.name for key in self._view.join_keys]
        listed = ", ".join(map(identifier, names))
        parts = [f"SELECT __key_hash, {listed} FROM {parquet([self._online])}"]
        if snapshot.files:
            parts.append(f"SELECT __key_hash, {listed} FROM {parquet(file.path for file in snapshot.files)}")
        if late is not None:
            parts.append(f"SELECT __key_hash, {listed} FROM {parquet([self._hashed(late)])}")
        query = f"""SELECT {listed} FROM ({" UNION ALL ".join(parts)}) WHERE __key_hash <= {self.cut}
            GROUP BY __key_hash, {listed} ORDER BY __key_hash, {listed}"""
        with session(OfflineStoreError, f"the keys of view {self._view.name!r}") as connection:
            for found in connection.sql(query).to_arrow_reader(rows):
                table = pa.Table.from_batches([found])
                if len(table):
                    yield [table[key.name].cast(key.type.arrow) for key in self._view.join_keys]

    def _hashed(self, late: LateRows) -> Path:
        """Write the keys of late rows with their hashes."""
        path, names = self.folder / "late_keys.parquet", [key.name for key in self._view.join_keys]
        with pq.ParquetFile(late.path) as found, pq.ParquetWriter(path, self._schema()) as writer:
            for batch in found.iter_batches(_KEPT_BATCH, columns=names):
                table = pa.Table.from_batches([batch])
                columns = [table[key.name].cast(key.type.arrow) for key in self._view.join_keys]
                writer.write_table(pa.table([*columns, pa.array(np.asarray(key_hash(columns)))], schema=self._schema()))
        return path
