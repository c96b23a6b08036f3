from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from box_mcp.gateway.tally import MAX_TARGETS, Tally, told


def counted(*targets: str) -> Tally:
    tally = Tally()
    for target in targets:
        tally.add(target, "no rule allows it")
    return tally


def test_nothing_refused_is_told_by_nothing():
    tally = Tally()
    assert tally.since() == ()
    assert told(tally.since(tally.mark())) == ""


def test_refusals_are_told_in_one_line():
    assert told(counted("a:1").since()) == "1 connection refused: a:1"
    assert told(counted("a:1", "b:2", "a:1").since()) == "3 connections refused: b:2, a:1 (2)"


def test_only_the_latest_of_many_are_named():
    line = told(counted(*(f"x{number}:1" for number in range(20))).since())
    assert line.startswith("20 connections refused: x12:1, ")
    assert line.endswith(", x19:1 and 12 more")


def test_only_what_came_after_a_mark_counts():
    tally = counted("a:1", "a:1", "b:2")
    mark = tally.mark()
    assert tally.since(mark) == ()
    tally.add("a:1", "another reason")
    tally.add("c:3", "x")
    assert [(one.target, one.count) for one in tally.since(mark)] == [("a:1", 1), ("c:3", 1)]
    assert tally.since(mark)[0].reason == "another reason"


@given(st.lists(st.integers(0, MAX_TARGETS + 20)), st.lists(st.integers(0, MAX_TARGETS + 20)))
def test_a_tally_is_bounded_and_never_counts_too_much(before: list[int], after: list[int]):
    tally = counted(*map(str, before))
    mark = tally.mark()
    for target in after:
        tally.add(str(target), "x")
    found = {one.target: one.count for one in tally.since(mark)}
    assert len(tally.since()) <= MAX_TARGETS
    assert all(0 < count <= after.count(int(target)) for target, count in found.items())
    if len({*before, *after}) <= MAX_TARGETS:
        assert sum(found.values()) == len(after)


def test_one_that_was_forgotten_counts_from_the_start():
    tally = counted("a:1", "a:1", "a:1")
    mark = tally.mark()
    for number in range(MAX_TARGETS):
        tally.add(f"x{number}:1", "x")
    tally.add("a:1", "x")
    assert {one.target: one.count for one in tally.since(mark)}["a:1"] == 1
