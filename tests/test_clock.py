from __future__ import annotations

import datetime as dt
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import clock
from featurestore.testing import oracle

US = dt.timedelta(microseconds=1)
SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
JUNE_1 = 1_370_044_800_000_000  # 2013-06-01T00:00:00Z
INSTANTS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)  # the years 1 to 9999


DURATIONS = [
    ("1us", US, "1us"),
    ("1500us", 1_500 * US, "1500us"),
    ("1000us", dt.timedelta(milliseconds=1), "1ms"),
    ("250ms", dt.timedelta(milliseconds=250), "250ms"),
    ("90s", dt.timedelta(seconds=90), "90s"),
    ("60s", dt.timedelta(minutes=1), "1m"),
    ("15m", dt.timedelta(minutes=15), "15m"),
    ("90m", dt.timedelta(minutes=90), "90m"),
    ("60m", dt.timedelta(hours=1), "1h"),
    ("6h", dt.timedelta(hours=6), "6h"),
    ("24h", dt.timedelta(days=1), "1d"),
    ("1d", dt.timedelta(days=1), "1d"),
    ("36h", dt.timedelta(hours=36), "36h"),
    ("30d", dt.timedelta(days=30), "30d"),
    ("1w", dt.timedelta(days=7), "7d"),
    (" 2 h ", dt.timedelta(hours=2), "2h"),
    (dt.timedelta(hours=48), dt.timedelta(days=2), "2d"),
]


@pytest.mark.parametrize(("written", "duration", "printed"), DURATIONS)
def test_a_duration_is_read_and_printed_with_its_largest_unit(
    written: str | dt.timedelta, duration: dt.timedelta, printed: str
) -> None:
    """A duration is a whole number and a unit, or a timedelta; it prints with the largest unit that divides it (T1)."""
    assert clock.parse_duration(written) == duration
    assert clock.duration_text(duration) == printed


def test_24h_and_1d_are_the_same_duration() -> None:
    """`24h` and `1d` are equal and both print as `1d` (T1)."""
    assert clock.parse_duration("24h") == clock.parse_duration("1d")
    assert clock.duration_text(clock.parse_duration("24h")) == "1d"


@given(st.timedeltas(min_value=US))
@settings(deadline=None)
def test_a_printed_duration_reads_back_as_itself(duration: dt.timedelta) -> None:
    """No duration loses a microsecond when it is printed and read."""
    assert clock.parse_duration(clock.duration_text(duration)) == duration


@pytest.mark.parametrize("written", ["", "5", "h", "1.5h", "-5m", "5 minutes", "1h30m", "1H", "P1D", 5, 1.5, None])
def test_what_is_no_duration_is_refused(written: Any) -> None:
    """Anything else is a ValueError that shows how durations are written."""
    with pytest.raises(ValueError, match="expected a duration such as '15m', '6h' or '30d', got"):
        clock.parse_duration(written)


def test_a_duration_longer_than_python_counts_is_refused() -> None:
    """A duration beyond timedelta's range is a ValueError, not an OverflowError."""
    with pytest.raises(ValueError, match="the duration '9999999999d' is too long"):
        clock.parse_duration("9999999999d")


def test_the_length_of_a_duration_is_exact() -> None:
    """A duration's length is a whole number of microseconds, and no duration has none."""
    assert clock.duration_micros(dt.timedelta(days=999_999, microseconds=1)) == 999_999 * DAY + 1
    assert clock.duration_micros(None) == 0


MOMENTS = [
    ("1970-01-01T00:00:00", 0),
    ("1970-01-01T00:00:00+00:00", 0),
    ("1969-12-31T23:59:59.999999", -1),
    ("2013-06-01T00:00:00", JUNE_1),
    ("2013-06-01T00:00:00+00:00", JUNE_1),
    ("2013-06-01T02:00:00+02:00", JUNE_1),
    ("2013-05-31T20:00:00-04:00", JUNE_1),
    ("2013-06-01T10:30:00+10:30", JUNE_1),
    ("0001-01-01T00:00:00", -62_135_596_800_000_000),
    ("9999-12-31T23:59:59.999999", 253_402_300_799_999_999),
]


@pytest.mark.parametrize(("moment", "instant"), MOMENTS)
def test_a_naive_time_is_utc_and_an_aware_one_is_converted(moment: str, instant: int) -> None:
    """A datetime's instant is microseconds since 1970 in UTC; without a zone it is read as UTC (T1)."""
    assert clock.to_micros(dt.datetime.fromisoformat(moment)) == instant
    assert clock.parse_instant(dt.datetime.fromisoformat(moment)) == instant


def test_a_naive_time_is_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time zone of the process has no say in how a naive time is read."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-10:30")
        time.tzset()
        assert clock.to_micros(dt.datetime.fromisoformat("2013-06-01")) == JUNE_1
        assert clock.parse_instant("2013-06-01") == JUNE_1
    time.tzset()


@given(INSTANTS)
@settings(deadline=None)
def test_an_instant_survives_the_way_through_a_datetime(instant: int) -> None:
    """Microseconds and UTC datetimes are two writings of one instant, exactly, over all years that datetimes know."""
    moment = clock.from_micros(instant)

    assert moment.utcoffset() == dt.timedelta(0)
    assert clock.to_micros(moment) == oracle.instant(moment) == instant


@pytest.mark.parametrize("instant", [-62_135_596_800_000_001, 253_402_300_800_000_000])
def test_instants_beyond_the_years_of_datetimes_have_none(instant: int) -> None:
    """There is no datetime before the year 1 or after 9999: that is an OverflowError."""
    with pytest.raises(OverflowError):
        clock.from_micros(instant)


TEXTS = [
    ("2013-06-01", JUNE_1),
    ("2013-06-01T00:00:00", JUNE_1),
    ("2013-06-01 00:00:00", JUNE_1),
    ("2013-06-01T00:00:00Z", JUNE_1),
    ("2013-06-01T02:00:00+02:00", JUNE_1),
    ("2013-05-31T20:00:00.000001-04:00", JUNE_1 + 1),
    (JUNE_1, JUNE_1),
    (-1, -1),
]


@pytest.mark.parametrize(("written", "instant"), TEXTS)
def test_an_instant_is_read_from_iso_text_or_microseconds(written: str | int, instant: int) -> None:
    """An ISO 8601 text follows the rule for datetimes, an integer is microseconds."""
    assert clock.parse_instant(written) == instant


@pytest.mark.parametrize("written", ["", "yesterday", "2013-13-01", None, 1.5, True, dt.date(2013, 6, 1)])
def test_what_is_no_instant_is_refused(written: Any) -> None:
    """Anything else is a ValueError that shows how timestamps are written."""
    with pytest.raises(ValueError, match="expected a timestamp such as 2013-06-01T12:00:00Z, got"):
        clock.parse_instant(written)


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (JUNE_1, "2013-06-01T00:00:00Z"),
        (JUNE_1 + 1, "2013-06-01T00:00:00.000001Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (None, "the beginning"),
    ],
)
def test_an_instant_is_shown_in_utc(instant: int | None, text: str) -> None:
    """People see an instant as ISO 8601 text that ends in Z; none is the beginning."""
    assert clock.instant_text(instant) == text


BOUNDARIES = [  # instant, refresh, floor, ceil
    (0, 10, 0, 0),
    (1, 10, 0, 10),
    (9, 10, 0, 10),
    (10, 10, 10, 10),
    (11, 10, 10, 20),
    (-1, 10, -10, 0),
    (-9, 10, -10, 0),
    (-10, 10, -10, -10),
    (-11, 10, -20, -10),
    (-1, 1, -1, -1),
    (7, 0, 7, 7),
    (-7, 0, -7, -7),
    (JUNE_1, HOUR, JUNE_1, JUNE_1),
    (JUNE_1 + 1, HOUR, JUNE_1, JUNE_1 + HOUR),
    (JUNE_1 - 1, HOUR, JUNE_1 - HOUR, JUNE_1),
    (JUNE_1, 7 * DAY, JUNE_1 - 2 * DAY, JUNE_1 + 5 * DAY),  # weeks count from the epoch, a Thursday
]


@pytest.mark.parametrize(("instant", "refresh", "floor", "ceil"), BOUNDARIES)
def test_floor_and_ceil_meet_the_boundaries_around_an_instant(instant: int, refresh: int, floor: int, ceil: int) -> None:
    """Boundaries are aligned to the epoch on both its sides, one on a boundary stays, without refresh all stay (T3)."""
    assert clock.floor(instant, refresh) == floor
    assert clock.ceil(instant, refresh) == ceil


@given(INSTANTS, st.integers(1, 400 * DAY))
@settings(deadline=None)
def test_floor_and_ceil_are_the_nearest_multiples(instant: int, refresh: int) -> None:
    """`floor` is the greatest multiple of refresh that is not above, `ceil` the least that is not below."""
    floor, ceil = clock.floor(instant, refresh), clock.ceil(instant, refresh)

    assert floor % refresh == ceil % refresh == 0
    assert instant - refresh < floor <= instant <= ceil < instant + refresh


def test_the_system_clock_counts_microseconds_of_the_present() -> None:
    """The default clock gives the present in microseconds, as an int."""
    before = dt.datetime.now(dt.UTC)
    now = clock.system_clock()
    after = dt.datetime.now(dt.UTC)

    assert isinstance(now, int)
    assert clock.to_micros(before) <= now <= clock.to_micros(after)
