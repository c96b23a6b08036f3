from __future__ import annotations

import pytest

from box_mcp.domain.box import Box, BoxSpec, State
from box_mcp.domain.limits import Room, breached_by_new, breached_by_waking
from box_mcp.domain.names import LOCAL, Principal, mint_id

SOMEBODY = Principal("somebody")


def box(
    state: State = State.RUNNING, principal: Principal | None = LOCAL, *, memory: int = 1
) -> Box:
    spec = BoxSpec("box-mcp:base", cpus=1, memory=memory)
    return Box(mint_id(), spec, created=0.0, state=state, principal=principal)


def test_without_limits_there_is_always_room():
    many = [box() for _ in range(1000)]
    assert breached_by_new(many, box(), Room()) is None
    assert breached_by_waking(many, box(), Room()) is None
    assert not Room(boxes=1).crowds
    assert Room(own_memory=1).crowds


def test_one_box_more_than_the_limit_is_too_many():
    assert breached_by_new([box()], box(), Room(boxes=2)) is None
    assert breached_by_new([box(), box()], box(), Room(boxes=2)) == "boxes"


def test_spares_and_lost_boxes_and_the_box_itself_do_not_count():
    assert breached_by_new([box(principal=None), box(State.LOST)], box(), Room(boxes=1)) is None
    one = box()
    assert breached_by_new([one], one, Room(boxes=1)) is None
    assert breached_by_waking([one], one, Room(awake=1, memory=1)) is None


def test_a_limit_of_ones_own_counts_ones_own_only():
    others = [box(principal=SOMEBODY) for _ in range(5)]
    room = Room(own_boxes=1, own_awake=1, own_memory=1)
    assert breached_by_new(others, box(), room) is None
    assert breached_by_waking(others, box(), room) is None
    assert breached_by_new([*others, box()], box(), room) == "own_boxes"
    assert breached_by_waking([*others, box()], box(), room) == "own_awake"


@pytest.mark.parametrize(
    ("state", "broken"),
    [(State.RUNNING, "awake"), (State.FROZEN, None), (State.STOPPED, None)],
)
def test_only_what_runs_is_awake_spares_included(state: State, broken: str | None):
    for principal in (LOCAL, None):
        assert breached_by_waking([box(state, principal)], box(), Room(awake=1)) == broken


@pytest.mark.parametrize(
    ("state", "broken"),
    [(State.RUNNING, "memory"), (State.FROZEN, "memory"), (State.STOPPED, None)],
)
def test_what_is_frozen_holds_its_memory(state: State, broken: str | None):
    assert breached_by_waking([box(state, memory=3)], box(memory=2), Room(memory=4)) == broken
    assert breached_by_waking([box(state, memory=3)], box(memory=2), Room(memory=5)) is None
