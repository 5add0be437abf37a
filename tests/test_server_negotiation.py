from __future__ import annotations

import pytest

from featurestore_server.negotiation import accepted_type
from featurestore_server.problems import ProblemError


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "a/b"),
        ("", "a/b"),
        ("*/*", "a/b"),
        ("x/y", "x/y"),
        ("X/Y", "x/y"),
        ("x/*", "x/y"),
        ("a/b;q=0.1, x/y", "x/y"),
        ("a/b;q=0.1, */*", "x/y"),
        ("*/*, a/b;q=0", "x/y"),
        ("x/y;q=0.5, a/b; charset=utf-8; q=0.6", "a/b"),
        ("x/y, a/b", "a/b"),
        ("x/y;q=high", "x/y"),
        ("text/html", None),
        ("a/b;q=0", None),
    ],
)
def test_negotiation(accept: str | None, expected: str | None) -> None:
    """The most wanted of the types offered is chosen, the first of several; the most specific range decides on each."""
    if expected is None:
        with pytest.raises(ProblemError):
            accepted_type(accept, ["a/b", "x/y"])
    else:
        assert accepted_type(accept, ["a/b", "x/y"]) == expected
