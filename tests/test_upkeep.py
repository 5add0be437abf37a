from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import FeatureStore
from featurestore.materialize import offline_table
from featurestore.offline import manifests, upkeep
from tests.conftest import HOUR, NOON, TIME, Repo, at

AGGREGATED = """
from featurestore import *
from featurestore.types import *
airport = Entity("airport", join_keys={"origin": String})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
airport_weather = FeatureView("airport_weather", entities=[airport], source=weather, refresh="1h", aggregations=[
    Aggregation("temperature", "mean", ["2h", "1d"]), Aggregation("*", "count", ["3h"]),
])
"""


def write_weather(repo: Repo, temperature: float | None = None) -> None:
    """Write six hours of weather at EWR, the last at noon."""
    times = [at(NOON - each * HOUR) for each in range(6)]
    temperatures = [20.5 + each if temperature is None else temperature for each in range(6)]
    repo.write("weather.parquet", {"origin": ["EWR"] * 6, "observed_at": pa.array(times, TIME), "temperature": temperatures})


@pytest.fixture
def hourly(weather_repo: Repo) -> FeatureStore:
    """Return a store that has been fed by six runs, an hour apart, of windows over the weather."""
    write_weather(weather_repo)
    (weather_repo.folder / "definitions.py").write_text(AGGREGATED)
    store = weather_repo.open()
    store.apply()
    for hours in range(5, -1, -1):
        store.materialize(end=at(NOON - hours * HOUR))
    return store


def files(store: FeatureStore) -> list[Path]:
    """Return the files of the newest table, and whatever else lies beside them."""
    [version] = store.applied().versions
    return upkeep.data_files(offline_table(store.settings, version))


def trained(store: FeatureStore) -> Any:
    """Return what training sees at several hours."""
    spine = f"SELECT 'EWR' AS origin, make_timestamptz({NOON} - {HOUR} * range) AS event_timestamp FROM range(7)"
    return store.get_historical_features(spine, ["airport_weather:temperature_mean_2h", "airport_weather:count_3h"]).to_arrow()


def test_compaction_changes_no_value_and_loads_nothing_anew(hourly: FeatureStore) -> None:
    """Small files become one, every value keeps its bits, and the next run writes online only what has changed."""
    before = trained(hourly)
    [report] = hourly.compact()
    [version] = hourly.applied().versions

    assert report.compacted == 6
    assert len(hourly.snapshot(version).files) == 1
    assert trained(hourly).equals(before)
    [again] = hourly.materialize()
    assert (again.online_full, again.online_written) == (False, 0)
    assert all(each.is_equal for each in hourly.verify(keys=None).views)


def test_runs_compact_by_themselves(hourly: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that finds many small files puts them together at its end."""
    monkeypatch.setattr(upkeep, "_MANY_FILES", 5)
    before = trained(hourly)
    [report] = hourly.materialize()
    [version] = hourly.applied().versions

    assert (report.compacted, len(hourly.snapshot(version).files)) == (6, 1)
    assert trained(hourly).equals(before)
    assert [each.compacted for each in hourly.materialize()] == [0]


def test_a_load_that_compacts_is_on_record_by_the_table_that_stays(hourly: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was readable after a run that put files together is measured in the table it left, also when the others are gone."""
    monkeypatch.setattr(upkeep, "_MANY_FILES", 5)
    monkeypatch.setattr(upkeep.vacuum, "__kwdefaults__", {"kept_ms": -1})
    [report] = hourly.materialize()
    hourly.compact(vacuum=True)
    [version] = hourly.applied().versions
    spine = f"SELECT 'EWR' AS origin, make_timestamptz({NOON}) AS event_timestamp"
    found = hourly.get_historical_features(spine, ["airport_weather:temperature_mean_2h"], availability="measured").to_dict()

    assert version.loaded is not None
    assert (report.compacted, hourly.registry.loads(version)[-1].table_version) == (6, version.loaded.table_version)
    assert found["airport_weather__temperature_mean_2h"] == [21.0]


def test_vacuum_keeps_what_a_training_set_needs(hourly: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files of older versions stay while the file of a training set that read them is there, and for an hour in any case."""
    spine = f"SELECT 'EWR' AS origin, make_timestamptz({NOON}) AS event_timestamp"
    target = tmp_path / "training.parquet"
    asked = "airport_weather:temperature_mean_2h"
    hourly.get_historical_features(spine, [asked]).to_parquet(target)
    made = hourly.get_historical_features(spine, [asked]).to_arrow()
    [report] = hourly.compact(vacuum=True)
    assert (report.vacuumed, len(files(hourly))) == (0, 7)  # the hour has not passed

    monkeypatch.setattr(upkeep.vacuum, "__kwdefaults__", {"kept_ms": -1})
    assert [each.vacuumed for each in hourly.compact(vacuum=True)] == [0]
    assert hourly.get_historical_features(spine, [asked], as_of_manifest=target).to_arrow().equals(made)

    target.unlink()
    assert [each.vacuumed for each in hourly.compact(vacuum=True)] == [6]
    assert manifests.pinned(hourly.settings.offline_folder) == {}
    assert hourly.get_historical_features(spine, [asked]).to_arrow().equals(made)
    assert all(each.is_equal for each in hourly.verify(keys=None).views)


def test_a_training_set_is_made_again_after_corrections(hourly: FeatureStore, weather_repo: Repo, tmp_path: Path) -> None:
    """Later runs over corrected rows change what training sees, not what the manifest gives."""
    spine = f"SELECT 'EWR' AS origin, make_timestamptz({NOON}) AS event_timestamp"
    asked = ["airport_weather:temperature_mean_1d"]
    target = tmp_path / "training.parquet"
    hourly.get_historical_features(spine, asked).to_parquet(target)
    made = hourly.get_historical_features(spine, asked).to_arrow()
    write_weather(weather_repo, 99.0)
    hourly.materialize(start=at(NOON - 10 * HOUR))

    assert hourly.get_historical_features(spine, asked).to_dict()["airport_weather__temperature_mean_1d"] == [99.0]
    assert hourly.get_historical_features(spine, asked, as_of_manifest=target).to_arrow().equals(made)


def test_a_training_set_is_made_again_after_a_takeover(hourly: FeatureStore, weather_repo: Repo, tmp_path: Path) -> None:
    """A manifest means the versions that its set was made of, also when others serve, with the aliases and limits of then."""
    alias = 'away = airport_weather.alias("away", join_keys={"origin": "place"})\n'
    (weather_repo.folder / "definitions.py").write_text(AGGREGATED + alias)
    hourly.apply()
    rows = f"SELECT 'EWR' AS place, make_timestamptz({NOON} + {HOUR} * range) AS event_timestamp FROM range(2)"
    asked, target = ["away:temperature_mean_2h"], tmp_path / "training.parquet"
    before = hourly.get_historical_features(rows, asked, incomplete="null")
    before.to_parquet(target)
    made = before.to_arrow()
    assert made["away__temperature_mean_2h"].to_pylist() == [21.0, None]

    (weather_repo.folder / "definitions.py").write_text(
        AGGREGATED.replace('"2h"', '"3h", "2h"').replace("temperature", "humidity", 0)
    )
    write_weather(weather_repo, 50.0)
    hourly.apply()
    hourly.materialize()
    assert [version.state for version in hourly.applied().versions] == ["replaced", "serving"]
    assert hourly.get_historical_features(rows, asked, as_of_manifest=target).to_arrow().equals(made)
