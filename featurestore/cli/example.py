"""The repo that `init` writes: small, commented, and working at once. Every file is made in memory before the first is written."""

from __future__ import annotations

import datetime as dt
import math
import re
from contextlib import suppress
from pathlib import Path

from featurestore.errors import FeatureStoreError, InputError

__all__ = ["NEXT", "create", "foreign_definitions"]

_SPINE = "SELECT sensor_id, measured_at AS event_timestamp FROM 'data/readings.parquet' WHERE measured_at >= '2024-01-02 22:00:00'"

NEXT = (
    ("plan",),
    ("apply",),
    ("materialize",),
    ("status",),
    ("get-online", "machine_health_v1", "-k", "sensor_id=pump_1,pump_2,pump_3"),
    ("get-historical", "machine_health_v1", "--spine", _SPINE),
    ("stop",),
)
"""Commands that work in the new repo, in this order."""

_SETTINGS = """\
# The settings of this repo. Only the project's name is needed; everything else has a default under .featurestore/.
project = "{project}"

# The example's readings end with the second of January 2024, so it lives at the moment after: "now" is this instant for every
# command, and what they print is the same on every machine and every day. Remove the line when you bring data of your own.
now = "2024-01-03T00:00:00Z"
"""

_DEFINITIONS = '''\
"""What this repo defines. `featurestore plan` says what changes here would do, `featurestore apply` does it."""

from featurestore import Entity, FeatureService, FeatureView, Field, FileSource
from featurestore.types import Float64, Int64, String

# What features describe, and the column that identifies one of them.
sensor = Entity("sensor", join_keys={"sensor_id": String}, description="A sensor on a machine")

# Where rows come from: Parquet, and which column says when a row became true.
readings = FileSource(
    "readings",
    path="data/readings.parquet",
    event_time="measured_at",
    delay="5m",  # a reading reaches us five minutes after it was taken: neither training nor serving sees it before
    description="One reading an hour of each sensor",
)

# Which columns are features, and how fresh they are. `refresh`: you run `featurestore materialize` every hour, so a value is
# served from the next full hour on (plus the delay), and training sees it at the same moment, not earlier. `ttl`: a reading that
# is older than twelve hours says nothing any more; pump_3 has been silent for longer.
machine_health = FeatureView(
    "machine_health",
    entities=[sensor],
    source=readings,
    fields=[Field("temperature", Float64), Field("vibration", Float64), Field("restarts", Int64)],
    refresh="1h",
    ttl="12h",
    description="The latest reading of a sensor",
)

# What one version of a model asks for, in training and in serving alike.
machine_health_v1 = FeatureService(
    "machine_health_v1", features=[machine_health], description="Will this machine fail within a day?"
)
'''

_IGNORED = """\
# What featurestore makes: registry, offline tables, online rows. `featurestore teardown` removes it.
.featurestore/
__pycache__/
"""

_START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
_HOURS = {"pump_1": 48, "pump_2": 48, "pump_3": 30}


def create(folder: Path) -> tuple[str, list[str]]:
    """Write the example into a folder, which is made if need be; returns the project's name and the files written.

    An existing .gitignore is left as it is. If anything fails, nothing is left.

    Raises:
        InputError: files of these names exist already.

    """
    project = _project(folder.resolve().name)
    files = {
        "featurestore.toml": _SETTINGS.format(project=project).encode(),
        "definitions.py": _DEFINITIONS.encode(),
        "data/readings.parquet": _readings(),
        ".gitignore": _IGNORED.encode(),
    }
    if taken := [name for name in files if name != ".gitignore" and (folder / name).exists()]:
        verb = "exist" if len(taken) > 1 else "exists"
        raise InputError(f"{', '.join(taken)} {verb} already in {folder}; choose another folder: featurestore init DIR")
    if (folder / ".gitignore").exists():
        del files[".gitignore"]
    try:
        _write_all(folder, files)
    except OSError as reason:
        raise FeatureStoreError(f"cannot write the example into {folder}: {reason}") from reason
    return project, list(files)


def foreign_definitions(folder: Path) -> list[str]:
    """Name the Python files that were in a folder before: they will be loaded as definitions too."""
    files = [file.relative_to(folder) for file in folder.rglob("*.py")]
    skipped = ("venv", "node_modules", "__pycache__")  # as loading skips them
    return sorted(
        str(file)
        for file in files
        if file != Path("definitions.py") and not any(part.startswith(".") or part in skipped for part in file.parts)
    )


def _project(folder_name: str) -> str:
    """Make a folder's name one that a project can have."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", folder_name).strip("_-")[:63]
    return name if name[:1].isalpha() else f"project_{name}"[:63].rstrip("_-")


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    made: list[Path] = []
    try:
        for name, content in files.items():
            path = folder / name
            for parent in reversed(path.parents):
                if not parent.exists():
                    parent.mkdir()
                    made.append(parent)
            with path.open("xb") as file:
                made.append(path)
                file.write(content)
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def _readings() -> bytes:
    """Return the example's readings as Parquet: smooth curves with a small, exactly repeatable unrest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_reading(sensor, place, hour) for place, (sensor, hours) in enumerate(_HOURS.items()) for hour in range(hours)]
    schema = pa.schema(
        {
            "sensor_id": pa.string(),
            "measured_at": pa.timestamp("us", "UTC"),
            "temperature": pa.float64(),
            "vibration": pa.float64(),
            "restarts": pa.int64(),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return bytes(sink.getvalue())


def _reading(sensor: str, place: int, hour: int) -> dict[str, object]:
    unrest = (hour * 37 + place * 11) % 17 / 17
    return {
        "sensor_id": sensor,
        "measured_at": _START + dt.timedelta(hours=hour),
        "temperature": round(60 + 5 * place + 8 * math.sin(hour / 24 * math.tau) + unrest, 2),
        "vibration": round(0.2 + 0.1 * place + 0.05 * unrest, 3),
        "restarts": hour // (20 - 5 * place),
    }
