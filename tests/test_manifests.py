from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.errors import InputError, SpineError
from tests.conftest import Repo
from tests.spines import ANSWER, ASKED, GUSTS, KINDS, SERVICE, features, offline_weather


@pytest.fixture
def store(weather_repo: Repo) -> FeatureStore:
    """A store with the weather of `conftest.py`, materialized until noon; nothing of it is served online."""
    return offline_weather(weather_repo)


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_is_made_again_from_any_form_of_its_spine(store: FeatureStore, tmp_path: Path, kind: str) -> None:
    """The manifest beside a written set accepts its spine in every form, and gives the values that were written."""
    path = tmp_path / "set.parquet"
    store.get_historical_features(ASKED, SERVICE).to_parquet(path)

    assert features(store, KINDS[kind](ASKED, tmp_path), as_of_manifest=path) == ANSWER


def categories(*values: str | None, order: str = "ABC") -> pa.Array:
    """Return texts as a dictionary with its entries in an order."""
    return pa.DictionaryArray.from_arrays([None if value is None else order.index(value) for value in values], list(order))


def nested(column: pa.Array) -> list[pa.Array]:
    """Return a column in lists of each kind, in structs and in maps."""
    places = range(len(column) + 1)
    return [
        pa.ListArray.from_arrays(places, column), pa.LargeListArray.from_arrays(places, column),
        pa.FixedSizeListArray.from_arrays(column, 1), pa.StructArray.from_arrays([column], ["x"]),
        pa.MapArray.from_arrays(places, pa.array(range(len(column))), column),
    ]  # fmt: skip


def test_a_spine_with_dictionaries_is_told_by_its_values(store: FeatureStore, tmp_path: Path) -> None:
    """The order of categories is no part of a spine, nor is it whether its texts are categories; the values are."""
    path = tmp_path / "set.parquet"
    made, reordered, plain = categories("A", "B", None), categories("A", "B", None, order="CBA"), pa.array(["A", "B", None])
    other = pa.DictionaryArray.from_arrays(made.indices, ["B", "A", "C"])

    for made_of, same, different in [
        (made, [reordered, plain, plain.cast(pa.large_string())], other),
        *((one, [two, three], four) for one, two, three, four in zip(*map(nested, (made, reordered, plain, other)), strict=True)),
    ]:
        spine = ASKED.slice(0, 3)
        store.get_historical_features(spine.append_column("note", made_of), SERVICE).to_parquet(path)
        for column in same:
            assert features(store, spine.append_column("note", column), as_of_manifest=path) == ANSWER[:3]
        with pytest.raises(InputError, match="their hashes differ"):
            store.get_historical_features(spine.append_column("note", different), SERVICE, as_of_manifest=path)


def test_what_is_not_the_manifests_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    """Another spine, other features and a file without a manifest are one clear error each."""
    path = tmp_path / "set.parquet"
    store.get_historical_features(ASKED, SERVICE).to_parquet(path)

    with pytest.raises(InputError, match="the spine is not the one of the manifest: their hashes differ"):
        store.get_historical_features(ASKED.slice(1), SERVICE, as_of_manifest=path)
    with pytest.raises(InputError, match=r"the manifest is of 'flight_weather'"):
        store.get_historical_features(ASKED, [GUSTS.replace("__", ":")], as_of_manifest=path)
    with pytest.raises(InputError, match=r"no manifest at .*none\.parquet\.manifest\.json; `to_parquet` writes it"):
        store.get_historical_features(ASKED, SERVICE, as_of_manifest=tmp_path / "none.parquet")


def test_a_training_set_does_not_replace_its_spine(store: FeatureStore, tmp_path: Path) -> None:
    """The file that a spine is read from stays as it is; where SQL has read it, the manifest is of what it was."""
    path = tmp_path / "spine.parquet"
    pq.write_table(ASKED, path)
    before = path.read_bytes()
    for name in (path, str(path), tmp_path / ".." / tmp_path.name / path.name):
        with pytest.raises(SpineError, match="is the spine; write the training set to another file"):
            store.get_historical_features(path, SERVICE).to_parquet(name)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))

    store.get_historical_features(f"SELECT * FROM '{path}'", SERVICE).to_parquet(path)
    again = store.get_historical_features(ASKED, SERVICE, as_of_manifest=path)
    assert again.to_arrow().to_pydict() == pq.read_table(path).to_pydict()
