"""So many a minute: for each alone, all at once if one likes, in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.rates import MINUTE, Rates


def test_a_minutes_worth_may_be_used_at_once_and_no_more():
    rates = Rates(3)
    assert [rates.take("ann", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert rates.take("ann", 0.0) == pytest.approx(20.0)
    assert rates.take("ben", 0.0) == 0.0


def test_whoever_waits_as_long_as_told_gets_the_next_one_only():
    rates = Rates(3)
    for _ in range(3):
        rates.take("ann", 0.0)
    assert rates.wait("ann", 20.1) == 0.0
    assert rates.take("ann", 20.1) == 0.0
    assert rates.take("ann", 20.1) > 19


def test_who_asks_how_long_to_wait_uses_nothing_up():
    rates = Rates(1)
    assert [rates.wait("ann", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_without_a_limit_nothing_is_counted():
    rates = Rates(None)
    assert all(rates.take("ann", 0.0) == 0.0 for _ in range(1000))
    assert len(rates) == 0


def test_of_many_keys_those_are_forgotten_that_were_not_used_for_longest():
    rates = Rates(1, most=2)
    for key in ("ann", "ben", "ann", "cem"):
        rates.take(key, 0.0)
    assert len(rates) == 2
    assert rates.take("ann", 0.0) > 0
    assert rates.take("ben", 0.0) == 0.0


@given(
    st.integers(1, 50),
    st.lists(st.floats(-5, 30, allow_nan=False), max_size=60),
)
def test_in_no_time_are_there_more_than_were_allowed(limit: int, steps: list[float]):
    rates, now, taken, earliest, latest = Rates(limit), 1000.0, 0, 1000.0, 1000.0
    for step in steps:  # clocks may go backwards
        now += step
        earliest, latest = min(earliest, now), max(latest, now)
        taken += rates.take("ann", now) == 0
    slack = sum(-step for step in steps if step < 0) * limit / MINUTE
    assert taken <= limit + (latest - earliest) * limit / MINUTE + slack + 1
