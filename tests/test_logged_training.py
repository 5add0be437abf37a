from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import InputError, NotFoundError, SpineError
from featurestore.testing import Throwaway
from tests.conftest import HOUR, NOON, at
from tests.logged import GUSTS, SERVICE, TEMPERATURE, feel, labels, look_up


def test_labels_get_the_values_as_they_were_served(logged_weather: Throwaway) -> None:
    """A row for each label whose request is logged, in the labels' order, duplicates kept, with the very bits that were served."""
    look_up(logged_weather, "EWR", "JFK", None)
    logged_weather.clock.advance("1h")
    look_up(logged_weather, "JFK")  # which training would see; serving did not have it
    logged_weather.store.materialize()
    logged_weather.store.serving_log.flush()  # type: ignore[union-attr]
    asked = labels(
        ("JFK", NOON + HOUR, 1), ("EWR", NOON, 2), ("EWR", NOON + 1, 3), (None, NOON, 4), ("EWR", NOON, 5), ("JFK", NOON, 6)
    )
    found = logged_weather.store.training_set_from_log(SERVICE, asked)
    assert found.unmatched == 1
    assert found.to_dict() == {
        "label": [1, 2, 4, 5, 6], "origin": ["JFK", "EWR", None, "EWR", "JFK"],
        "event_timestamp": [at(NOON + HOUR), at(NOON), at(NOON), at(NOON), at(NOON)],
        TEMPERATURE: [None, 21.0, None, 21.0, None], GUSTS: [None, 2**53 + 1, None, 2**53 + 1, None],
    }  # fmt: skip
    trained = logged_weather.store.get_historical_features(asked, SERVICE).to_arrow()
    assert found.to_arrow().schema == trained.schema
    assert trained[GUSTS].to_pylist()[0] == 7


def test_a_tolerance_takes_the_last_request_before_the_label(logged_weather: Throwaway) -> None:
    """Labels that carry a later time find the newest request that is at most so much older; never one after the label."""
    for minutes in (0, 10, 20):
        logged_weather.clock.set(NOON + minutes * 60_000_000)
        logged_weather.store.materialize()
        look_up(logged_weather, "JFK")
    logged_weather.store.serving_log.flush()  # type: ignore[union-attr]
    minute = 60_000_000
    asked = labels(
        ("JFK", NOON + 9 * minute, 1), ("JFK", NOON + 19 * minute, 2), ("JFK", NOON + 25 * minute, 3), ("JFK", NOON - 1, 4)
    )
    found = logged_weather.store.training_set_from_log(SERVICE, asked, tolerance="9m")
    assert found.to_dict()["label"] == [1, 2, 3]
    assert found.to_dict()[GUSTS] == [None, 7, 7]
    assert logged_weather.store.training_set_from_log(SERVICE, asked, tolerance="4m").to_dict()["label"] == []


def test_labels_may_have_some_of_the_columns_and_come_in_any_form(logged_weather: Throwaway, tmp_path: Path) -> None:
    """`on` says by which columns requests are found; a spine's forms are labels' forms; the result goes to pandas and Parquet."""
    look_up(logged_weather, "EWR", "JFK")
    logged_weather.store.serving_log.flush()  # type: ignore[union-attr]
    asked = labels(("EWR", NOON, 1))
    found = logged_weather.store.training_set_from_log(SERVICE, asked.to_pandas(), on=["origin"])
    assert found.to_pandas()[GUSTS].tolist() == [2**53 + 1]
    assert found.to_parquet(tmp_path / "set.parquet") == 1
    assert pq.read_table(tmp_path / "set.parquet").equals(found.to_arrow())
    with pytest.raises(InputError, match="no column 'tail'"):
        logged_weather.store.training_set_from_log(SERVICE, asked, on=["tail"])
    with pytest.raises(SpineError, match="'origin'"):
        logged_weather.store.training_set_from_log(SERVICE, asked.drop_columns("origin"))
    with pytest.raises(SpineError, match=TEMPERATURE):
        logged_weather.store.training_set_from_log(SERVICE, asked.append_column(TEMPERATURE, pa.array([1.0])))


def test_a_log_of_other_definitions_is_not_mixed_in(logged_weather: Throwaway) -> None:
    """By default what the service means now is read; other fingerprints have to be named, and the error says which there are."""
    look_up(logged_weather, "EWR")
    store = logged_weather.store
    before = store.selection(SERVICE).fingerprint()
    file = logged_weather.folder / "definitions.py"
    file.write_text(file.read_text().replace('ttl="6h"', 'ttl="30m"'))
    store.apply()
    store.materialize()
    store.serving_log.flush()  # type: ignore[union-attr]
    asked = labels(("EWR", NOON, 1))
    with pytest.raises(NotFoundError, match=before):
        store.training_set_from_log(SERVICE, asked)
    assert store.training_set_from_log(SERVICE, asked, fingerprint=before).to_dict()[GUSTS] == [2**53 + 1]


def test_t14_training_on_a_log_leaves_erased_entities_out(logged_weather: Throwaway) -> None:
    """An erased entity's requests are gone from it."""
    look_up(logged_weather, "EWR", "JFK")
    logged_weather.store.serving_log.flush()  # type: ignore[union-attr]
    logged_weather.store.delete_entities("airport", {"origin": ["EWR"]})
    found = logged_weather.store.training_set_from_log(SERVICE, labels(("EWR", NOON, 1), ("JFK", NOON, 2)))
    assert (found.to_dict()["origin"], found.unmatched) == (["JFK"], 1)


def test_an_impure_function_is_logged_as_it_was_served(comfort: Throwaway, monkeypatch: pytest.MonkeyPatch) -> None:
    """On-demand features are computed once for a lookup, so the log has what the caller got."""
    calls = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(comfort.store.functions, "of", lambda _: lambda inputs: {"warmth": inputs["distance"] + next(calls)})
        served = feel(comfort.store, ["EWR"], [2.0])
        comfort.store.serving_log.flush()  # type: ignore[union-attr]
    found = comfort.store.training_set_from_log("comfortable", labels(("EWR", NOON, 1)), on=["origin"])
    assert found.to_dict()["comfort__warmth"] == served == [2.0]
