from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from featurestore.offline.tables import OfflineTable, Snapshot
from featurestore.testing import oracle
from featurestore.types import Int64
from tests.histories import (
    EVERYTHING,
    FIRST,
    LAST,
    UTC_TIME,
    answers,
    ask,
    at,
    batch_source,
    define,
    delays,
    differences,
    landing,
    materialize,
    source_schema,
    write_files,
)


def test_a_table_that_was_never_written_gives_absent_values(tmp_path: Path) -> None:
    """Before the first run every value is absent."""
    view = delays()
    snapshot = OfflineTable(tmp_path / "table", view).snapshot()

    assert snapshot == Snapshot(-1)
    assert answers(ask(view, snapshot, [(("a",), LAST)])) == [None]


def test_a_run_replaces_its_interval_and_nothing_else(tmp_path: Path) -> None:
    """A later run takes over what the source gained, lost and corrected in `(start, end]`, both bounds included (T7)."""
    view = delays()
    landed = ["09:00", "10:00", "11:00", "12:00", "13:00"]
    asked = [(("a",), at(text)) for text in landed] + [(("b",), LAST)]
    write_files(tmp_path, source_schema(view), [[landing(n, text) for n, text in enumerate(landed)]])
    before = materialize(view, tmp_path)
    changed = [landing(10 + n, text) for n, text in enumerate(landed) if text != "11:00"]
    late = landing(20, "11:30", tail="b")
    pq.write_table(pa.Table.from_pylist([*changed, late], source_schema(view)), tmp_path / "landings" / "00.parquet")

    after = materialize(view, tmp_path, [(at("10:00"), at("12:00"))])

    found = answers(ask(view, after, asked))
    assert [row and row["n"] for row in found] == [0, 1, 1, 13, 4, 20]
    assert [row and row["n"] for row in answers(ask(view, before, asked))] == [0, 1, 2, 3, 4, None]
    assert OfflineTable(tmp_path / "table", view).snapshot(before.version) == before


def test_no_version_of_a_table_is_forgotten_behind_our_back(tmp_path: Path) -> None:
    """Training sets name the versions that they read, so the table says that its log is not cleaned up by whoever writes it."""
    view = delays()
    write_files(tmp_path, source_schema(view), [[landing(1)]])
    materialize(view, tmp_path)

    assert DeltaTable(tmp_path / "table").metadata().configuration["delta.enableExpiredLogCleanup"] == "false"


def test_an_interval_holds_its_end_and_not_its_start(tmp_path: Path) -> None:
    """Whatever `(start, end]` is replaced by what it holds, rows on its bounds are neither lost nor doubled (T2, T7)."""
    view = delays()
    rows = [landing(n, text) for n, text in enumerate(["10:00", "10:00:00.000001", "11:00"])]
    write_files(tmp_path, source_schema(view), [rows])
    edges = sorted({FIRST, LAST, *(oracle.instant(row["landed"]) + us for row in rows for us in (-1, 0))})
    asked = [(("a",), t) for t in edges]

    for interval in itertools.combinations(edges, 2):
        snapshot = materialize(view, tmp_path, [EVERYTHING, interval])
        assert snapshot.rows == 3, interval
        assert differences(view, rows, snapshot, asked) == [], interval


@pytest.mark.parametrize("is_reordered", [False, True], ids=["at once", "when written"])
@pytest.mark.parametrize("key_count", [1, 7, 40_000])
def test_a_table_of_many_row_groups_is_read_where_it_matters(tmp_path: Path, key_count: int, is_reordered: bool) -> None:
    """Keys that span row groups and row groups that span keys: what is skipped in reading is never the answer."""
    # Row n is of the key n % key_count and lands at n; so the value at t is the greatest n <= t of the key asked for.
    rows = 260_000
    view = define({"k": Int64}, {"n": Int64}, batch_source(visible_from_created=is_reordered))
    order = np.random.default_rng(7).permutation(rows)
    landed = pa.array(order).cast(UTC_TIME)
    columns = {"k": order % key_count, "landed": landed, "written": landed, "n": order}
    (tmp_path / "landings").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "landings" / "00.parquet")
    snapshot = materialize(view, tmp_path, [(FIRST, 250_000), (250_000, LAST)])
    generator = random.Random(7)
    asked = [((generator.randrange(key_count),), generator.randrange(-10, rows + 10)) for _ in range(2_000)]
    asked += [((generator.randrange(key_count),), 5) for _ in range(10)]

    for part in (asked, asked[-10:], asked[:1]):
        wanted = [_greatest(key, min(t, rows - 1), key_count) for (key,), t in part]
        assert ask(view, snapshot, part).features["n"].to_pylist() == wanted


def _greatest(key: int, most: int, key_count: int) -> int | None:
    number = most - (most - key) % key_count
    return number if number >= 0 else None
