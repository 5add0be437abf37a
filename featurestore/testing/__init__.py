"""Test your own definitions: a throw-away store under a virtual clock, the naive oracle, and what to assert.

    with throwaway_store("definitions", now="2013-06-01T12:00:00Z") as thrown:
        thrown.store.apply()
        thrown.store.materialize()
        assert_parity(thrown.store, "departure_delay_v1")

`pytest_plugins = ["featurestore.testing.fixtures"]` in a `conftest.py` gives the same as a fixture, `make_throwaway_store`. Nothing
else registers it, so a pytest that does not ask for it does not pay for it.
"""

from featurestore.testing.assertions import assert_parity, assert_point_in_time
from featurestore.testing.throwaway import Throwaway, VirtualClock, throwaway_store

__all__ = ["Throwaway", "VirtualClock", "assert_parity", "assert_point_in_time", "throwaway_store"]
