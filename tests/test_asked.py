from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from featurestore.offline.asked import Asked


@pytest.mark.parametrize("span", [1, 1_000, 2**40, 2**61])
def test_what_is_asked_for_is_in_the_order_of_hashes_and_times(span: int) -> None:
    """However far the times lie apart: one integer holds a key and a time, or does not."""
    random = np.random.default_rng(4)
    keys, times = random.integers(0, 50, 2_000), random.integers(-span, span, 2_000)
    asked = Asked.of([pa.chunked_array([keys])], times)
    assert np.array_equal(np.sort(asked.rows), np.arange(2_000))
    assert np.array_equal(asked.times, times[asked.rows])
    assert np.array_equal(np.lexsort((asked.times, asked.hashes)), np.arange(2_000))
    assert np.array_equal(np.repeat(asked.keys[0].to_numpy(), np.diff(asked.runs)), keys[asked.rows])
    assert len(asked.runs) == 50 + 1
