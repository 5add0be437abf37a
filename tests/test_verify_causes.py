"""Each cause of a difference is provoked, and named by the evidence that shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from featurestore import FeatureStore
from featurestore.errors import OnlineStoreError
from featurestore.online.keys import online_key
from featurestore.online.store import OnlineLoad
from featurestore.parity.findings import Cause, Kind, ViewParity
from featurestore.registry.schema import versions
from featurestore.registry.state import Version
from tests.conftest import HOUR, NOON, TIME, Repo, at

DOUBLED = "SELECT origin, observed_at, temperature * 2 AS temperature, gusts FROM weather"


def observe(repo: Repo, *rows: tuple[str, int, float | None]) -> None:
    """Write the weather: airport, time and temperature of each observation."""
    origins, times, temperatures = zip(*rows, strict=True)
    gusts = pa.array([7] * len(rows), pa.int64())
    observed = pa.array([at(time) for time in times], TIME)
    repo.write("weather.parquet", {"origin": origins, "observed_at": observed, "temperature": temperatures, "gusts": gusts})


EARLY = (("EWR", NOON - 3 * HOUR, 20.0), ("JFK", NOON - 2 * HOUR, 10.0))
LATER = (("EWR", NOON + HOUR // 2, 25.0), ("JFK", NOON + HOUR // 2, 15.0))


@pytest.fixture
def store(weather_repo: Repo) -> FeatureStore:
    """A store whose weather of the morning is materialized at noon: EWR 20 degrees, JFK 10."""
    observe(weather_repo, *EARLY)
    opened = weather_repo.open()
    opened.apply()
    opened.materialize()
    return opened


def version_of(store: FeatureStore) -> Version:
    """Return the version that serves."""
    [version] = [each for each in store.applied().versions if each.state == "serving"]
    return version


def client_of(store: FeatureStore) -> Any:
    """Return a client behind the store's back."""
    return store.online.topology.client(store.online.topology.layout().endpoints[0])


def stored_key(store: FeatureStore, airport: str) -> bytes:
    """Return the key of an airport's row."""
    return online_key(version_of(store).uid, airport.encode())


def copied(store: FeatureStore) -> dict[bytes, bytes]:
    """Return all that the server has."""
    client = client_of(store)
    return {key: client.get(key) for key in client.scan_iter()}


def restore(store: FeatureStore, content: Mapping[bytes, bytes]) -> None:
    """Let the server have a content, as one that was restored from a copy."""
    client_of(store).flushall()
    client_of(store).mset(content)


def verified(store: FeatureStore) -> ViewParity:
    """Verify all keys of the one view."""
    [view] = store.verify(keys=None).views
    return view


def found(view: ViewParity) -> list[tuple[str | None, Kind, Cause]]:
    """Return the airport, the kind and the cause of each difference, in the order of airports."""
    return sorted(((each.key.get("origin"), each.kind, each.cause) for each in view.examples), key=str)


def write(store: FeatureStore, airports: Sequence[str], temperature: float, run: int, event_time: int = NOON - 3 * HOUR) -> None:
    """Write rows online as a run of that number."""
    features = pa.table({"temperature": [temperature] * len(airports), "gusts": [7] * len(airports)})
    times = pa.chunked_array([pa.array([at(event_time)] * len(airports), TIME)])
    store.online.write(version_of(store), [pa.chunked_array([list(airports)])], features, times, run=run, now=NOON)


def test_late_rows_are_a_difference_until_they_are_healed(weather_repo: Repo, store: FeatureStore) -> None:
    """An observation of 10:30 that comes after noon belongs to the value at noon (T3), which serving lacks; a run heals it."""
    observe(weather_repo, *EARLY, ("EWR", NOON - 3 * HOUR // 2, 22.0), ("LGA", NOON - 2 * HOUR, 5.0))
    view = verified(store)
    assert found(view) == [("EWR", Kind.DIFFERENT, Cause.LATE_ROWS), ("LGA", Kind.MISSING, Cause.LATE_ROWS)]
    assert [each.values["temperature"] for each in view.examples if each.key == {"origin": "EWR"}] == [(20.0, 22.0)]
    assert (view.compared, view.equal, view.notes[0][:25]) == (3, 1, "the source has 2 late row")

    store.materialize(start=at(NOON - 3 * HOUR), end=at(NOON))
    assert found(verified(store)) == []


def test_a_correction_in_place_is_a_late_row(weather_repo: Repo, store: FeatureStore) -> None:
    """A row that was written anew with another value is one that the table lacks."""
    observe(weather_repo, EARLY[0], ("JFK", NOON - 2 * HOUR, 11.0))
    assert found(verified(store)) == [("JFK", Kind.DIFFERENT, Cause.LATE_ROWS)]


def test_late_rows_that_change_no_value_are_no_difference(weather_repo: Repo, store: FeatureStore) -> None:
    """A row that is late and older than the one that counts is worth a note, and no more."""
    observe(weather_repo, *EARLY, ("EWR", NOON - 4 * HOUR, 1.0))
    view = verified(store)
    assert (found(view), len(view.notes)) == ([], 1)


def test_code_that_gives_other_values_of_the_same_files_has_changed(store: FeatureStore) -> None:
    """The source's files are those that the last run read, and the version's SQL gives other rows of them than the table has."""
    engine = sa.create_engine(store.settings.registry_url)
    with engine.begin() as connection:
        [spec] = connection.execute(sa.select(versions.c.spec)).scalars()
        connection.execute(sa.update(versions).values(spec=json.dumps(json.loads(spec) | {"sql": DOUBLED})))
    engine.dispose()
    view = verified(store)
    assert found(view) == [("EWR", Kind.DIFFERENT, Cause.CHANGED_CODE), ("JFK", Kind.DIFFERENT, Cause.CHANGED_CODE)]
    assert "the source's files are those that run 1 read" in view.examples[0].evidence


def test_a_row_that_its_ttl_has_outlived_is_not_missed(weather_repo: Repo, store: FeatureStore) -> None:
    """A row that the server has collected after its TTL is named, and is no failure; before that its absence is one."""
    client_of(store).delete(stored_key(store, "EWR"))
    assert found(verified(store)) == [("EWR", Kind.MISSING, Cause.WRITE_OUTSIDE)]

    weather_repo.now = NOON + 3 * HOUR + 1  # ttl is 6h, the observation of 9:00
    view = verified(store)
    assert found(view) == [("EWR", Kind.MISSING, Cause.TTL)]
    assert (view.missing_online, view.differences, view.is_equal) == (1, 0, True)


def test_a_server_that_lost_its_data_is_stale(store: FeatureStore) -> None:
    """Without the marker every key is missing, because the server lost them."""
    client_of(store).flushall()
    view = verified(store)
    assert found(view) == [("EWR", Kind.MISSING, Cause.STALE), ("JFK", Kind.MISSING, Cause.STALE)]
    assert view.examples[0].evidence == "the online store names none as its last load, the registry run 1: it lost rows"

    store.sync()
    assert verified(store).is_equal


def test_a_server_restored_from_an_older_copy_is_stale(weather_repo: Repo, store: FeatureStore) -> None:
    """The marker names an older run than the registry, and the rows are what that run wrote."""
    before = copied(store)
    observe(weather_repo, *EARLY, *LATER)
    weather_repo.now += 2 * HOUR
    store.materialize()
    assert verified(store).is_equal
    restore(store, before)
    view = verified(store)
    assert found(view) == [("EWR", Kind.DIFFERENT, Cause.STALE), ("JFK", Kind.DIFFERENT, Cause.STALE)]
    assert "names run 1 as its last load, the registry run 2; the row is what run 1 wrote" in view.examples[0].evidence


def test_rows_of_a_run_that_never_completed_are_stale(
    weather_repo: Repo, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended with some rows written is ahead of the last completed load with those; the next run settles it."""
    observe(weather_repo, *EARLY, *LATER)
    weather_repo.now += 2 * HOUR
    with monkeypatch.context() as patch:
        patch.setattr(OnlineLoad, "finish", _flushing)
        with pytest.raises(OnlineStoreError, match="gone"):
            store.materialize()
    view = verified(store)
    assert found(view) == [("EWR", Kind.DIFFERENT, Cause.STALE), ("JFK", Kind.DIFFERENT, Cause.STALE)]
    assert view.examples[0].evidence == "run 2 wrote it, and ended before its load was complete"
    store.sync()
    assert verified(store).is_equal


def _flushing(load: OnlineLoad) -> None:
    load.flush()
    raise OnlineStoreError("gone")


def test_a_table_that_no_load_has_followed_is_stale(
    weather_repo: Repo, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late rows that were healed offline, by a run whose load failed, are a matter of the load."""
    observe(weather_repo, *EARLY, ("EWR", NOON - 3 * HOUR // 2, 22.0))
    with monkeypatch.context() as patch:
        patch.setattr(OnlineLoad, "write", lambda *_: _flushing)
        patch.setattr(OnlineLoad, "finish", _flushing)
        with pytest.raises(OnlineStoreError, match="gone"):
            store.materialize(start=at(NOON - 3 * HOUR), end=at(NOON))
    view = verified(store)
    assert found(view) == [("EWR", Kind.DIFFERENT, Cause.STALE)]
    assert view.examples[0].evidence == "the table has changed since run 1 loaded it, and no load has followed"


def test_a_row_of_another_version_is_named_as_that(weather_repo: Repo, store: FeatureStore) -> None:
    """Under the serving version's key stands what the version before gives: names were not flipped for whoever wrote it."""
    definitions = weather_repo.folder / "definitions.py"
    definitions.write_text(definitions.read_text().replace('ttl="6h",', f'ttl="6h", sql="{DOUBLED}",'))
    store.apply()
    store.materialize()
    assert (version_of(store).number, verified(store).is_equal) == (2, True)
    [run] = {load.run for load in store.registry.loads(version_of(store))}
    write(store, ["EWR"], 20.0, run)
    view = verified(store)
    assert found(view) == [("EWR", Kind.DIFFERENT, Cause.NOT_FLIPPED)]
    assert view.examples[0].evidence == "the row is what version 1 gives, and the name means version 2"


def test_a_value_overwritten_by_hand_is_a_write_outside_the_store(store: FeatureStore) -> None:
    """Under a true header it shows in what the run of that header wrote."""
    key, client = stored_key(store, "EWR"), client_of(store)
    client.set(key, client.get(key)[:-1] + b"\x01")
    view = verified(store)
    assert found(view) == [("EWR", Kind.DIFFERENT, Cause.WRITE_OUTSIDE)]
    assert view.examples[0].values == {"gusts": (7 + 2**56, 7)}
    assert view.examples[0].evidence == "its header names run 1, which wrote something else"


def test_a_row_of_no_run_is_a_write_outside_the_store(store: FeatureStore) -> None:
    """Its header names a run that the version never had, whether the key is one of the table or not."""
    write(store, ["EWR", "ZZZ"], 1.0, 999)
    view = verified(store)
    assert found(view) == [("EWR", Kind.DIFFERENT, Cause.WRITE_OUTSIDE), ("ZZZ", Kind.EXTRA, Cause.WRITE_OUTSIDE)]
    assert "run 999, which is none of this version's" in view.examples[0].evidence


@pytest.mark.parametrize("row", [b"", b"hello", b"\x01" * 500, b"\x07" + b"\0" * 33])
def test_what_is_no_row_is_a_write_outside_the_store(store: FeatureStore, row: bytes) -> None:
    """Bytes that are none of the format do not keep the others from being compared."""
    client_of(store).set(stored_key(store, "EWR"), row)
    view = verified(store)
    assert found(view) == [("EWR", Kind.MISSING, Cause.WRITE_OUTSIDE)]
    assert (view.compared, view.equal) == (2, 1)


def test_a_key_that_is_none_of_the_view_is_extra(store: FeatureStore) -> None:
    """A key in the version's space that no lookup could ask for, as one with a wrong tag, is shown by its bytes."""
    name = version_of(store).uid.encode() + b"{AAA}EWR"
    client_of(store).set(name, b"x")
    view = verified(store)
    assert found(view) == [(None, Kind.EXTRA, Cause.WRITE_OUTSIDE)]
    assert repr(name) in view.examples[0].evidence


def test_an_older_row_put_back_is_unknown(weather_repo: Repo, store: FeatureStore) -> None:
    """Where nothing shows how a row of an earlier run came to stand there, no cause is made up."""
    before = client_of(store).get(stored_key(store, "EWR"))
    observe(weather_repo, *EARLY, *LATER)
    weather_repo.now += 2 * HOUR
    store.materialize()
    client_of(store).set(stored_key(store, "EWR"), before)
    view = verified(store)
    assert found(view) == [("EWR", Kind.DIFFERENT, Cause.UNKNOWN)]
    assert view.examples[0].evidence == "the row is what run 1 wrote; a later run should have replaced it"


def test_a_run_under_way_is_no_difference(weather_repo: Repo, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a run has written which goes on are compared with what it gives."""
    observe(weather_repo, *EARLY, *LATER)
    weather_repo.now += 2 * HOUR
    seen: list[ViewParity] = []
    finish = OnlineLoad.finish

    def looked_at(load: OnlineLoad) -> None:
        load.flush()
        seen.append(verified(weather_repo.open()))
        finish(load)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineLoad, "finish", looked_at)
        store.materialize()
    assert [(view.compared, view.differences, view.watermark) for view in seen] == [(2, 0, NOON)]
    assert verified(store).watermark == weather_repo.now
