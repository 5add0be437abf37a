from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.offline.keys import ALGORITHM, key_hash
from featurestore.types import Bool, Bytes, Date, Int32, Int64, String, Timestamp, ValueType

NOON = dt.datetime(2013, 6, 1, 12, tzinfo=dt.UTC)
BEFORE_1970 = dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)

# Computed once by hand, value by value: `pandas.util.hash_array` of an object array of one text, or of an int64 array
# of one number, and Python's integers for the combination. Stored tables are sorted by them, so they may never change.
GOLDEN: list[tuple[ValueType, Any, int]] = [
    (String, "N14228", -633318604140620441),
    (String, "", 1760245841805064774),
    (String, "é", -1537934940950697753),
    (String, "東京", 1140849984431908510),
    (String, "a\0b", -8853923610631238450),
    (Bytes, b"N14228", -633318604140620441),
    (Bytes, b"", 1760245841805064774),
    (Bytes, b"\x00\xff", -7157263297202045433),
    (Int64, 0, 0),
    (Int64, 1, 6238072747940578789),
    (Int64, -1, -5417735806833148549),
    (Int64, 2**53, 3057020809720203516),
    (Int64, 2**53 + 1, 8114628312023455402),
    (Int64, -(2**63), 2720858781877447050),
    (Int64, 2**63 - 1, 6514504133438201533),
    (Int32, 11, 3774817245553408877),
    (Int32, -1, -5417735806833148549),
    (Bool, False, 0),
    (Bool, True, 6238072747940578789),
    (Date, dt.date(2013, 6, 1), -1227068397574771393),
    (Timestamp, NOON, 6142602244270378213),
    (Timestamp, BEFORE_1970, -5417735806833148549),
]

GOLDEN_COMPOSITES: list[tuple[list[ValueType], list[Any], int]] = [
    ([Int64, Int64], [1, 11], 2333892135017700516),
    ([Int64, Int64], [11, 1], 4504452177323306516),
    ([String, String], ["a", "bc"], -7836832559681038785),
    ([String, String], ["ab", "c"], -2418169494341465585),
    ([String, Int64], ["1", 11], -3172064018665044205),
    ([String, Int32], ["11", 1], 2135380623823684895),
    ([String, Timestamp, Bool], ["N14228", NOON, True], -5100549305655094101),
]


@pytest.mark.parametrize(("key", "value", "expected"), GOLDEN)
def test_the_hash_of_one_column_is_the_specified_one(key: ValueType, value: Any, expected: int) -> None:
    """Each key type hashes as the specification of `keys.py` says, for ever: stored tables are sorted by it."""
    assert key_hash([pa.array([value], type=key.arrow)]).tolist() == [expected]


@pytest.mark.parametrize(("keys", "values", "expected"), GOLDEN_COMPOSITES)
def test_the_hash_of_a_composite_key_is_the_specified_one(keys: list[ValueType], values: list[Any], expected: int) -> None:
    """Columns combine from left to right, so values swapped or cut elsewhere differ: ("a", "bc"), ("ab", "c")."""
    columns = [pa.array([value], type=key.arrow) for key, value in zip(keys, values, strict=True)]

    assert key_hash(columns).tolist() == [expected]


def test_the_algorithm_has_a_name() -> None:
    """The name that tables carry changes only together with the golden vectors."""
    assert ALGORITHM == "pandas-hash-array-1"


@pytest.mark.parametrize("key", [String, Bytes, Int64, Int32, Bool, Date, Timestamp])
def test_no_rows_have_no_hashes(key: ValueType) -> None:
    """Empty columns, even without a chunk, give an empty result of int64."""
    for empty in (pa.array([], type=key.arrow), pa.chunked_array([], type=key.arrow)):
        hashes = key_hash([empty])
        assert hashes.dtype == np.int64
        assert hashes.tolist() == []


def test_a_hash_depends_on_the_values_alone() -> None:
    """Chunks, slices, repetition and neighbours do not change the hash of a row."""
    values = ["N14228", "", "é", "N14228", "東京", "é"]
    whole = key_hash([pa.array(values)])
    chunks = pa.chunked_array([pa.array(values[:2]), pa.array([], pa.string()), pa.array(["x", *values[2:]]).slice(1)])

    assert key_hash([chunks]).tolist() == whole.tolist()
    assert [key_hash([pa.array([value])])[0] for value in values] == whole.tolist()
    assert whole[0] == whole[3]


def test_a_composite_hash_depends_on_the_values_alone() -> None:
    """Columns of one key may be chunked differently."""
    names, numbers = ["a", "ab", "a", "b"], [1, 11, 11, 2**53 + 1]
    whole = key_hash([pa.array(names), pa.array(numbers, pa.int64())])
    chunked_names = pa.chunked_array([names[:1], names[1:]])
    chunked_numbers = pa.chunked_array([numbers[:3], numbers[3:]])

    assert key_hash([chunked_names, chunked_numbers]).tolist() == whole.tolist()
    assert len(set(whole.tolist())) == 4
