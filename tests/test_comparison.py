from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.parity.comparison import differing
from featurestore.types import Array, Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType

NAN = float("nan")
OTHER_NAN = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_BEEF))[0]


@pytest.mark.parametrize(
    ("type_", "one", "other", "expected"),
    [
        (Int64, [1, None, None, 2**53 + 1], [1, None, 0, 2**53], [False, False, True, True]),
        (Int32, [0, -1], [None, -1], [True, False]),
        (Bool, [True, False, None], [True, True, None], [False, True, False]),
        (Float64, [NAN, 0.0, 1.0, None, NAN], [OTHER_NAN, -0.0, 1.0000000000000002, NAN, 1.0], [False, True, True, True, True]),
        (Float32, [NAN, 0.5], [NAN, 0.25], [False, True]),
        (String, ["a", "", None, "\u00e9"], ["a", None, None, "e\u0301"], [False, True, False, True]),
        (Bytes, [b"\0", b""], [b"\0\0", b""], [True, False]),
        (Date, [1, 2], [1, 3], [False, True]),
        (Timestamp, [1, None], [2, None], [True, False]),
        (Array(Float64), [[NAN, 0.0], [1.0], [], None], [[OTHER_NAN, 0.0], [1.0, 1.0], None, None], [False, True, True, False]),
        (Array(Float64), [[0.0], [None, NAN]], [[-0.0], [None, OTHER_NAN]], [True, False]),
        (Array(String), [["a", None], ["ab", "c"]], [["a", None], ["a", "bc"]], [False, True]),
        (Array(Int64), [[1, None], [0]], [[1, 0], [0]], [True, False]),
    ],
)
def test_values_are_equal_if_their_bits_are_and_nan_is_one_value(
    type_: ValueType, one: list[Any], other: list[Any], expected: list[bool]
) -> None:
    """The rule of docs/parity.md: bit for bit, any NaN equals any NaN, zeros of both signs differ, null is equal to null alone."""
    first, second = (pa.array(values, type_.arrow) for values in (one, other))
    assert differing(first, second, type_).tolist() == expected
    cut = [pa.chunked_array([column.slice(0, 1), column.slice(1)]) for column in (first, second)]
    assert differing(cut[0], cut[1], type_).tolist() == expected
    assert differing(first.slice(1), second.slice(1), type_).tolist() == expected[1:]


def test_payloads_of_nan_are_really_different_bits() -> None:
    """The NaNs of the table above are two, so that their equality says something."""
    column = pa.array([NAN, OTHER_NAN], pa.float64())
    assert len(set(np.asarray(column).view(np.int64).tolist())) == 2
