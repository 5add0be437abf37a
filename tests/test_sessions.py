"""The process's one DuckDB database, whose bounds every store sets anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SPILLING = """
import logging, pathlib, sys
from featurestore.errors import SourceError
from featurestore.offline.session import configure, session

logging.basicConfig(format="%(message)s")
first, second = map(pathlib.Path, sys.argv[1:])

def settings():
    with session(SourceError, "a query") as connection:
        return connection.execute("SELECT current_setting('temp_directory'), current_setting('threads')").fetchone()

configure(memory_bytes=60_000_000, threads=1, temp_folder=first)
with session(SourceError, "a query") as connection:
    rows = "SELECT i, hash(i) AS h, repeat('x', 20) || i AS s FROM range(2_000_000) t(i)"
    connection.execute(f"CREATE TEMP TABLE sorted AS SELECT * FROM ({rows}) ORDER BY h")
    assert any(first.iterdir())
for folder, threads in ((first, 2), (second, 3), (second, 4)):
    configure(memory_bytes=60_000_000, threads=threads, temp_folder=folder)
    assert settings() == (str(first), threads)
"""


def test_a_process_that_has_spilled_opens_the_next_store(tmp_path: Path) -> None:
    """DuckDB keeps its temporary folder once it is used: to be asked for the same again is nothing, for another one a warning."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    found = subprocess.run([sys.executable, "-c", SPILLING, *folders], capture_output=True, text=True, timeout=120, check=False)

    assert found.returncode == 0, found.stderr
    [warning] = found.stderr.splitlines()
    assert warning.startswith(f"offline.temp_directory = {folders[1]} has no effect in this process: ")
