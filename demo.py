"""The whole product on real data: what `make demo` runs.

Flights out of New York in 2013, as `definitions/` declares them: plan, apply, materialize, serve, look up, train, verify. A second
run is incremental. State goes into `definitions/.featurestore/`; `featurestore --repo definitions teardown` removes it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Column, Table

from featurestore import FeatureStore
from featurestore.errors import FeatureStoreError

REPO = Path(__file__).parent / "definitions"
SERVICE = "departure_delay_v2"
LOCK = REPO / "model" / "features.lock"
TRAINING_ROWS = 50_000

console = Console(highlight=False, width=max(Console().width, 130))


def main() -> int:
    """Run the demo; 0 if everything agreed."""
    started = time.perf_counter()
    with FeatureStore(REPO) as store:
        try:
            compared = run(store)
        except KeyboardInterrupt:
            console.print("demo: interrupted")
            return 130
        except FeatureStoreError as reason:
            console.print(f"demo: failed: {reason}", markup=False)
            return 1
        finally:
            store.stop()
    if compared is None:
        console.print("demo: failed: serving and training disagree, see above")
        return 1
    console.print(f"demo: ok ({compared:,} values equal online and offline, {time.perf_counter() - started:.1f} s)")
    return 0


def run(store: FeatureStore) -> int | None:
    """Go through the steps; returns how many values agreed, None if any did not."""
    apply_definitions(store)
    materialize(store)
    with server() as url:
        look_up(url)
        training = train(store)
        same_over_http = train_over_http(url, training)
    compared = verify(store)
    return compared if same_over_http else None


@contextmanager
def step(title: str) -> Iterator[list[str]]:
    """Print a step's title, what it found, and how long it took."""
    found: list[str] = []
    console.print(f"[bold]{title}[/bold]")
    begun = time.perf_counter()
    yield found
    console.print(f"  {', '.join(found)}  [dim]{time.perf_counter() - begun:.2f} s[/dim]\n")


def apply_definitions(store: FeatureStore) -> None:
    """Compare definitions/ with the registry and apply what is new."""
    with step("1. Plan and apply the definitions in definitions/") as found:
        plan = store.apply(store.plan())
        found += [f"{len(plan.changes)} definitions changed", f"{len(plan.new_versions)} new versions of feature views"]


def materialize(store: FeatureStore) -> None:
    """Bring every view up to the example's present, offline and online."""
    table = Table("view", "visible until", "rows", "skipped", "late", "online keys written", box=None, pad_edge=False)
    with step("2. Materialize: Parquet files to Delta tables, and the latest row of each key to the online store") as found:
        reports = store.materialize()
        for report in reports:
            skipped = report.null_keys + report.null_times
            cells = [report.rows, skipped, report.late, report.online_written]
            table.add_row(report.view, report.to_dict()["end"], *(f"{cell:,}" for cell in cells))
        console.print(table)
        found += [f"{sum(report.rows for report in reports):,} rows offline", "skipped rows have no key or no event time"]


@contextmanager
def server() -> Iterator[str]:
    """Run the HTTP service on a free port."""
    command = [sys.executable, "-m", "featurestore_server", "--repo", str(REPO), "--port", "0", "--json"]
    # A session of its own, so that Ctrl-C reaches the demo alone, which then ends the server.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        with step("3. Serve it over HTTP") as found:
            line = process.stdout.readline()
            if not line:
                raise FeatureStoreError("the HTTP service did not start")
            url = json.loads(line)["url"]
            found.append(url)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def look_up(url: str) -> None:
    """Ask for the feature vectors of five flights, as a model would before they leave."""
    flights: dict[str, list[Any]] = {
        "tail_number": ["N14228", "N24211", "N619AA", "N804JB", "N668DN"],
        "origin": ["EWR", "LGA", "JFK", "JFK", "LGA"],
        "destination": ["IAH", "IAH", "MIA", "BQN", "ATL"],
        "carrier": ["UA", "UA", "AA", "B6", "DL"],
        # What no view knows, for the features that are computed when they are asked for.
        "distance": [1400, 1416, 1089, 1576, 762],
        "planned_minutes": [255, 247, 200, 238, 156],
        "scheduled_at": ["2013-12-31T01:15:00Z"] * 5,
    }
    with step("4. Look up five flights, as the model's lock says it: POST /v1/online-features") as found:
        lock = {"Feature-Service-Fingerprint": json.loads(LOCK.read_text("utf-8"))["fingerprint"]}
        answer = post(f"{url}/v1/online-features", {"feature_service": SERVICE, "entities": flights}, lock)["features"]
        table = Table(Column("feature", no_wrap=True), *flights["tail_number"], box=None, pad_edge=False)
        for name, values in answer.items():
            table.add_row(name, *("" if value is None else str(value) for value in values))
        console.print(table)
        found.append(f"{len(answer)} features of 5 flights in one request")


def train(store: FeatureStore) -> pa.Table:
    """Build a point-in-time training set: what was known of each flight when it was scheduled to leave."""
    spine = f"""
        SELECT flight_id, tail_number, origin, destination, carrier, scheduled_at AS event_timestamp,
               scheduled_at, CAST(distance AS DOUBLE) AS distance,
               date_diff('minute', scheduled_at, arrived_at) - CAST(arrival_delay AS DOUBLE) AS planned_minutes,
               arrived_at, arrival_delay AS label
        FROM '{REPO}/data/flights.parquet'
        WHERE flight_id % 6 = 0 AND scheduled_at < TIMESTAMPTZ '2013-12-30 00:00:00+00'
        ORDER BY flight_id LIMIT {TRAINING_ROWS}"""
    with step(f"5. A training set for {TRAINING_ROWS:,} flights, each as of its scheduled departure") as found:
        training = store.get_historical_features(spine, SERVICE, lock=LOCK).to_arrow()
        landings = training["last_landing__arrival_delay"]
        found += [f"{len(training):,} rows x {training.num_columns} columns", f"{landings.null_count:,} without a landing so far"]
    if len(training) != TRAINING_ROWS:
        raise FeatureStoreError(f"the training set has {len(training)} rows, the spine {TRAINING_ROWS}")
    return training


def train_over_http(url: str, training: pa.Table) -> bool:
    """Ask for the first rows of the training set over HTTP; they are the same."""
    with step("6. The first 5 of them over HTTP: POST /v1/historical-features") as found:
        first = training.slice(0, 5)
        keys = ["tail_number", "origin", "destination", "carrier", "distance", "planned_minutes"]
        entities = {name: first[name].to_pylist() for name in keys}
        entities |= {name: [time.isoformat() for time in first[name].to_pylist()] for name in ("event_timestamp", "scheduled_at")}
        answer = post(f"{url}/v1/historical-features", {"feature_service": SERVICE, "entities": entities})["features"]
        names = [name for name in training.column_names if "__" in name]
        is_same = all(answer[name] == first[name].to_pylist() for name in names)
        found.append("the same values as in Python" if is_same else "NOT the same values as in Python")
    return is_same


def verify(store: FeatureStore) -> int | None:
    """Compare what is served with what training sees at the watermark, bit for bit."""
    table = Table("view", "keys", "values", "different", "missing online", "extra online", box=None, pad_edge=False)
    with step("7. Verify every key of every view: online against offline at the watermark") as found:
        parity = store.verify(keys=None)
        for each in parity.views:
            counts = [each.different, each.missing_online, each.extra_online]
            table.add_row(each.view, *(f"{cell:,}" for cell in [each.compared, each.compared * len(each.features), *counts]))
        console.print(table)
        for view in parity.views:
            for example in view.examples:
                console.print(f"  {view.view} {dict(example.key)}: {example.cause.value}, {example.evidence}", markup=False)
        found.append(f"{parity.compared:,} keys compared, {parity.differences:,} differ")
    return parity.values if parity.is_equal and parity.compared else None


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    """Send JSON and return the JSON that comes back."""
    given = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), given)  # noqa: S310 (our own loopback address)
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main())
