from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.definitions import FeatureView
from featurestore.offline import asked as asking
from featurestore.offline import tables
from featurestore.offline.keys import Encoded, encoded, hashed
from tests.histories import (
    ABSENT,
    DAY,
    HOUR,
    LAST,
    SECOND,
    US,
    History,
    Interval,
    Landing,
    Row,
    answers,
    ask,
    at,
    batch_source,
    cut_histories,
    delays,
    histories,
    landing,
    materialize,
    materialized,
    mismatches,
    numbers,
    set_bucket_rows,
    source_schema,
    write_files,
)

# --- generated histories against the oracle --------------------------------------------------------------------------


@given(histories())
@settings(max_examples=150, deadline=None)
def test_values_are_those_of_the_oracle(history: History) -> None:
    """On any history the library and the naive reading of the contract answer alike, at every time that matters."""
    with materialized(history) as snapshot:
        assert mismatches(history, snapshot) == []


@given(histories(is_reordered=True))
@settings(max_examples=100, deadline=None)
def test_values_that_become_visible_when_written_are_those_of_the_oracle(history: History) -> None:
    """With `visible_from="created_time"`, late rows and corrections count from when they were written (T3, T4)."""
    with materialized(history) as snapshot:
        assert mismatches(history, snapshot) == []


@given(cut_histories())
@settings(max_examples=80, deadline=None)
def test_the_way_a_history_is_cut_into_runs_changes_nothing(cut: tuple[History, list[Interval]]) -> None:
    """Intervals in any order, overlapping or repeated, leave the same table as one run over everything (T7)."""
    history, intervals = cut
    kept = [row for row in history.rows if _is_stored(history.view, row)]

    with materialized(history, intervals) as snapshot:
        assert snapshot.rows == len(kept)
        assert mismatches(history, snapshot) == []


def _is_stored(view: FeatureView, row: Row) -> bool:
    return row["landed"] is not None and all(row[key.name] is not None for key in view.join_keys)


Hash = Callable[[Sequence[Encoded]], npt.NDArray[np.int64]]


def constant(value: int) -> Hash:
    """Return a hash that is the same for all keys."""
    return lambda columns: np.full(len(columns[0].codes), value, dtype=np.int64)


HASHES: dict[str, Hash] = {
    "one bit": lambda columns: hashed(columns) & 1,
    "sign": lambda columns: hashed(columns) >> 63,
    "the ends": lambda columns: np.where(hashed(columns) & 1, -(2**63), 2**63 - 1),
    "zero": constant(0),
    "the least": constant(-(2**63)),
    "the greatest": constant(2**63 - 1),
    "a quarter": constant(2**62),
}


@given(cut_histories(most_cuts=2), st.sampled_from(sorted(HASHES)), st.sampled_from([1, 2, 5, 2_000_000]))
@settings(max_examples=100, deadline=None)
def test_keys_whose_hashes_collide_stay_apart(cut: tuple[History, list[Interval]], name: str, bucket_rows: int) -> None:
    """Different keys of one hash, in several files and in buckets of any size, keep their own values (T5)."""
    history, intervals = cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "key_hash", lambda columns: HASHES[name]([encoded(column) for column in columns]))
        patch.setattr(asking, "hashed", HASHES[name])
        set_bucket_rows(patch, bucket_rows)
        with materialized(history, intervals) as snapshot:
            assert mismatches(history, snapshot) == []


@given(cut_histories(most_cuts=1))
@settings(max_examples=40, deadline=None)
def test_the_size_of_buckets_changes_nothing(cut: tuple[History, list[Interval]]) -> None:
    """Whether a table is one bucket or more of them than it has rows, the answers are identical."""
    history, intervals = cut
    asked = history.asked()
    with materialized(history, intervals) as snapshot:
        whole = ask(history.view, snapshot, asked)
        for bucket_rows in (1, 3):
            with pytest.MonkeyPatch.context() as patch:
                set_bucket_rows(patch, bucket_rows)
                parts = ask(history.view, snapshot, asked)
            assert parts.features.equals(whole.features)
            assert parts.event_times.equals(whole.event_times)
            assert parts.present.tolist() == whole.present.tolist()


# --- the rules, one by one -------------------------------------------------------------------------------------------


def test_a_row_is_visible_at_its_visible_time_and_not_a_microsecond_before(tmp_path: Path) -> None:
    """A row is visible at `t` if and only if its visible time is `<= t` (T2)."""
    times = [at("09:59:59.999999"), at("10:00"), at("10:00:00.000001"), LAST]

    assert numbers(tmp_path, delays(), [("10:00", None, 1)], times) == [ABSENT, 1, 1, 1]


def test_the_next_row_takes_over_at_its_visible_time(tmp_path: Path) -> None:
    """The row before is the answer up to the microsecond before the next one is visible (T2)."""
    landings: list[Landing] = [("10:00", None, 1), ("11:00", None, 2)]

    assert numbers(tmp_path, delays(), landings, [at("10:59:59.999999"), at("11:00")]) == [1, 2]


VISIBLE = [  # landed, written, refresh, delay, visible from
    ("10:20", None, None, None, "10:20"),
    ("10:20", None, None, 5 * 60 * SECOND, "10:25"),
    ("10:00", None, HOUR, None, "10:00"),
    ("10:00:00.000001", None, HOUR, None, "11:00"),
    ("09:59:59.999999", None, HOUR, None, "10:00"),
    ("10:00", None, HOUR, 5 * 60 * SECOND, "10:05"),
    ("10:20", None, HOUR, 5 * 60 * SECOND, "11:05"),
    ("10:20", None, DAY, HOUR, "2013-06-02T01:00"),
    ("10:20", None, 7 * DAY, None, "2013-06-06T00:00"),  # aligned to 1970-01-01, a Thursday
    ("10:20", "13:00", HOUR, None, "11:00"),  # a created time that nobody asked to wait for
    ("1969-12-31T23:00", None, HOUR, None, "1969-12-31T23:00"),
    ("1969-12-31T23:00:00.000001", None, HOUR, None, "1970-01-01T00:00"),
    ("1969-12-31T23:59:59.999999", None, HOUR, US, "1970-01-01T00:00:00.000001"),
    ("1900-01-01T00:30", None, HOUR, None, "1900-01-01T01:00"),
    ("0001-01-01T00:00", None, None, None, "0001-01-01T00:00"),
    ("0001-01-01T00:30", None, HOUR, None, "0001-01-01T01:00"),
]


@pytest.mark.parametrize(("landed", "written", "refresh", "delay", "visible"), VISIBLE)
def test_the_visible_time_is_the_next_refresh_plus_the_delay(
    tmp_path: Path, landed: str, written: str | None, refresh: int | None, delay: int | None, visible: str
) -> None:
    """`v = ceil(e, refresh) + delay`; an event time on the boundary stays, before 1970 as after (T3)."""
    view = delays(batch_source(delay=delay), refresh=refresh)

    assert numbers(tmp_path, view, [(landed, written, 1)], [at(visible) - 1, at(visible)]) == [ABSENT, 1]


VISIBLE_WHEN_WRITTEN = [  # landed, written, refresh, delay, visible from
    ("10:20", "11:40", None, None, "11:40"),
    ("10:20", "11:40", HOUR, None, "12:00"),
    ("10:20", "11:40", HOUR, 5 * 60 * SECOND, "12:05"),
    ("10:20", "12:00", HOUR, None, "12:00"),
    ("10:20", "12:00:00.000001", HOUR, None, "13:00"),
    ("10:20", None, HOUR, None, "11:00"),
    ("10:20", "09:00", HOUR, None, "11:00"),
    ("10:20", "1969-01-01T00:00", None, None, "10:20"),
    ("1969-12-31T10:20", "1969-12-31T11:40", HOUR, None, "1969-12-31T12:00"),
]


@pytest.mark.parametrize(("landed", "written", "refresh", "delay", "visible"), VISIBLE_WHEN_WRITTEN)
def test_a_row_that_waits_to_be_written_is_known_from_the_later_of_both_times(
    tmp_path: Path, landed: str, written: str | None, refresh: int | None, delay: int | None, visible: str
) -> None:
    """With `visible_from="created_time"`, `known = max(e, created)`, and a null created time counts as `e` (T3)."""
    view = delays(batch_source(visible_from_created=True, delay=delay), refresh=refresh)

    assert numbers(tmp_path, view, [(landed, written, 1)], [at(visible) - 1, at(visible)]) == [ABSENT, 1]


LATEST: list[tuple[str, list[Landing], int | None]] = [
    ("the greatest event time", [("10:00", None, 1), ("12:00", None, 2), ("11:00", None, 3)], 2),
    ("event time before created time", [("10:00", "23:00", 1), ("10:00:00.000001", "01:00", 2)], 2),
    ("the greatest created time", [("10:00", "11:00", 1), ("10:00", "13:00", 2), ("10:00", "12:00", 3)], 2),
    ("a microsecond of created time", [("10:00", "11:00:00.000001", 1), ("10:00", "11:00", 2)], 1),
    ("null created first", [("10:00", "11:00", 1), ("10:00", None, 2)], 1),
    ("null created before 1969", [("10:00", "1969-01-01T00:00", 1), ("10:00", None, 2)], 1),
    ("null created before the year 1", [("10:00", "0001-01-01T00:00", 1), ("10:00", None, 2)], 1),
    ("the last row", [("10:00", "11:00", 1), ("10:00", "11:00", 3), ("10:00", "11:00", 2)], 2),
    ("the last row without created time", [("10:00", None, 3), ("10:00", None, 1)], 1),
    ("a null is a value", [("10:00", None, 1), ("11:00", None, None)], None),
]


@pytest.mark.parametrize("visible_from_created", [False, True], ids=["at once", "when written"])
@pytest.mark.parametrize(("landings", "n"), [case[1:] for case in LATEST], ids=[case[0] for case in LATEST])
def test_the_value_is_that_of_the_greatest_event_created_seq(
    tmp_path: Path, landings: list[Landing], n: int | None, visible_from_created: bool
) -> None:
    """Among visible rows the greatest `(event time, created time, seq)` wins, a null created time sorts first (T4)."""
    view = delays(batch_source(visible_from_created=visible_from_created))

    assert numbers(tmp_path, view, landings, [at("23:59:59")]) == [n]


def test_rows_that_tie_are_ordered_by_file_and_row(tmp_path: Path) -> None:
    """Of rows with equal times that of the last file wins, and within it the last row (T4, seq)."""
    view = delays()
    files = [[landing(n) for n in numbers_] for numbers_ in ([9, 8], [1, 3], [2, 4, 7], [])]
    write_files(tmp_path, source_schema(view), files)

    assert answers(ask(view, materialize(view, tmp_path), [(("a",), LAST)])) == [{"n": 7, "__event_time": at("10:00")}]


def test_without_created_time_a_column_of_that_kind_does_not_break_ties(tmp_path: Path) -> None:
    """A source that does not name a created time has none: the last row wins (T4)."""
    landings: list[Landing] = [("10:00", "13:00", 1), ("10:00", "12:00", 2)]

    assert numbers(tmp_path, delays(batch_source(is_created=False)), landings, [at("14:00")]) == [2]


def test_a_late_row_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    """A row that is written late counts from then on, but only if its event time is the greatest (T4)."""
    view = delays(batch_source(visible_from_created=True))
    landings: list[Landing] = [("10:00", "10:01", 1), ("09:00", "12:00", 2), ("11:00", "13:00", 3)]
    times = [at("10:00"), at("10:01"), at("12:00"), at("12:59:59.999999"), at("13:00")]

    assert numbers(tmp_path, view, landings, times) == [ABSENT, 1, 1, 1, 3]


def test_a_late_row_is_the_value_until_a_newer_one_is_visible(tmp_path: Path) -> None:
    """What was visible first and what is newest are two things: the answer is the newest of what is visible (T4)."""
    view = delays(batch_source(visible_from_created=True))
    landings: list[Landing] = [("11:00", "15:00", 3), ("09:00", "14:00", 2), ("08:00", "08:00", 1)]

    assert numbers(tmp_path, view, landings, [at("13:59"), at("14:00"), at("14:59"), at("15:00")]) == [1, 2, 2, 3]


def test_a_correction_replaces_from_when_it_was_written(tmp_path: Path) -> None:
    """A row of the same event, written later, is unseen before it was written and the value afterwards (T3, T4)."""
    view = delays(batch_source(visible_from_created=True))
    landings: list[Landing] = [("10:00", "12:00", 2), ("10:00", "10:00", 1)]

    assert numbers(tmp_path, view, landings, [at("11:59:59.999999"), at("12:00")]) == [1, 2]


def test_ttl_equality_is_still_present(tmp_path: Path) -> None:
    """A value is absent if `t - event time > ttl`, and present at equality (T4)."""
    times = [at("11:00"), at("11:00:00.000001")]

    assert numbers(tmp_path, delays(ttl=HOUR), [("10:00", None, 1)], times) == [1, ABSENT]


def test_ttl_counts_from_the_event_time(tmp_path: Path) -> None:
    """Delay and refresh take from the time in which a value is present, they do not move its end (T4)."""
    view = delays(batch_source(delay=HOUR // 2), ttl=2 * HOUR, refresh=HOUR)
    times = [at("11:29:59.999999"), at("11:30"), at("12:20"), at("12:20:00.000001")]

    assert numbers(tmp_path, view, [("10:20", None, 1)], times) == [ABSENT, 1, 1, ABSENT]


def test_a_value_that_is_visible_after_its_ttl_is_never_present(tmp_path: Path) -> None:
    """With a delay longer than the TTL every value is absent, always (T4)."""
    view = delays(batch_source(delay=2 * HOUR), ttl=HOUR)

    assert numbers(tmp_path, view, [("10:00", None, 1)], [at("11:00"), at("12:00"), LAST]) == [ABSENT] * 3


def test_ttl_of_a_late_row_counts_from_its_event(tmp_path: Path) -> None:
    """A row written after its TTL is absent, and hides nothing that is newer (T4)."""
    view = delays(batch_source(visible_from_created=True), ttl=HOUR)
    landings: list[Landing] = [("11:30", "11:30", 1), ("10:00", "12:00", 2), ("14:00", "16:00", 3)]
    times = [at("12:00"), at("12:30"), at("12:30:00.000001"), at("16:00")]

    assert numbers(tmp_path, view, landings, times) == [1, 1, ABSENT, ABSENT]


def test_ttl_before_1970(tmp_path: Path) -> None:
    """The TTL is measured on instants of either sign alike (T4)."""
    times = [at("1969-12-31T23:59:59.999999"), at("1970-01-01T00:59:59.999999"), at("1970-01-01T01:00")]

    assert numbers(tmp_path, delays(ttl=HOUR), [("1969-12-31T23:59:59.999999", None, 1)], times) == [1, 1, ABSENT]


def test_expired_values_are_left_in_on_request(tmp_path: Path) -> None:
    """`ttl=False` answers as if the view had no TTL."""
    view = delays(ttl=HOUR)
    write_files(tmp_path, source_schema(view), [[landing(1)]])
    snapshot = materialize(view, tmp_path)
    asked = [(("a",), at("09:00")), (("a",), at("12:00")), (("b",), at("12:00"))]

    assert [row and row["n"] for row in answers(ask(view, snapshot, asked, ttl=False))] == [None, 1, None]
