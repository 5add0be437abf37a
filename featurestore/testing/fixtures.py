"""The test kit as a pytest plugin: `pytest_plugins = ["featurestore.testing.fixtures"]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from featurestore.testing.throwaway import Throwaway, throwaway_store

__all__ = ["make_throwaway_store"]


@pytest.fixture
def make_throwaway_store() -> Iterator[Callable[..., Throwaway]]:
    """Make throw-away stores, with the arguments of `throwaway_store`; they are removed with the test."""
    with ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> Throwaway:
            return stack.enter_context(throwaway_store(*arguments, **options))

        yield make
