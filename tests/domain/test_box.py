from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from box_mcp.domain.box import TABLE, Box, BoxSpec, Move, State, Terms, way
from box_mcp.domain.names import LOCAL, BoxId, BoxName
from box_mcp.errors import IllegalMove

SPEC = BoxSpec("box-mcp:base", cpus=1, memory=2**30)
LEGAL = sorted(TABLE)
ILLEGAL = sorted(set(itertools.product(State, Move)) - set(TABLE))


def box(state: State = State.CREATED, **facts: object) -> Box:
    made = Box(BoxId("box-aaaaaaaa"), SPEC, created=100.0, state=state, used=100.0, since=100.0)
    return replace(made, **facts)  # pyright: ignore[reportArgumentType]  # facts of a Box


@pytest.mark.parametrize(("state", "move"), LEGAL)
def test_a_legal_move_changes_state_since_and_reason_only(state: State, move: Move):
    before = box(state, name=BoxName("it"), principal=LOCAL)
    after = before.moved(move, 200.0, "because")
    assert after == replace(before, state=TABLE[state, move], since=200.0, reason="because")


@pytest.mark.parametrize(("state", "move"), ILLEGAL)
def test_an_illegal_move_raises_and_changes_nothing(state: State, move: Move):
    before = box(state)
    copy = replace(before)
    with pytest.raises(IllegalMove) as refusal:
        before.moved(move, 200.0)
    assert (refusal.value.box, refusal.value.move, refusal.value.state) == (before.id, move, state)
    assert before == copy


def test_no_way_leads_out_of_deleted():
    assert not [move for state, move in TABLE if state is State.DELETED]


def test_a_lost_box_can_only_be_deleted():
    assert [move for state, move in LEGAL if state is State.LOST] == [Move.DELETE]


def test_every_box_that_is_not_deleted_can_be_deleted():
    assert all((state, Move.DELETE) in TABLE for state in State if state is not State.DELETED)


@pytest.mark.parametrize("now", [200.0, 300.0])
def test_a_later_state_has_a_later_time_though_the_clock_stands_or_goes_back(now: float):
    assert 300.0 < box(since=300.0).moved(Move.START, now).since < 300.001


def test_frozen_and_stopped_are_paused_to_callers():
    public = {state: state.public for state in State}
    assert public == {
        State.CREATED: "created",
        State.RUNNING: "running",
        State.FROZEN: "paused",
        State.STOPPED: "paused",
        State.LOST: "lost",
        State.DELETED: "deleted",
    }


def test_an_assigned_spare_is_somebodys_and_used_now():
    spare = box(State.RUNNING)
    assert spare.principal is None
    terms = Terms(labels={"a": "b"}, ttl=60.0)
    assert spare.assigned(LOCAL, BoxName("it"), 200.0, terms) == replace(
        spare, principal=LOCAL, name="it", used=200.0, terms=terms
    )


def test_a_spare_that_another_server_assigned_is_known_as_such():
    spare = box(State.RUNNING)
    assigned = spare.assigned(LOCAL, BoxName("it"), 200.0, Terms(keep_awake=True))
    assert spare.caught_up(assigned) == assigned
    assert assigned.caught_up(spare) == assigned


def test_the_time_of_use_never_goes_back():
    assert box(used=300.0).touched(200.0).used == 300.0
    assert box(used=300.0).touched(400.0).used == 400.0


def test_of_two_records_the_newer_state_is_right():
    ours = box(State.RUNNING, since=200.0, reason="a call came")
    theirs = box(State.FROZEN, since=300.0, reason="idle")
    assert ours.caught_up(theirs) == theirs
    assert theirs.caught_up(ours) == theirs


def test_of_two_records_the_later_use_is_right_whatever_their_states():
    ours = box(State.RUNNING, since=200.0, used=500.0)
    theirs = box(State.FROZEN, since=300.0, used=250.0)
    assert ours.caught_up(theirs) == replace(theirs, used=500.0)
    assert theirs.caught_up(ours) == replace(theirs, used=500.0)


def test_ways_are_shortest():
    assert way(State.RUNNING, State.RUNNING) == ()
    assert way(State.CREATED, State.FROZEN) == (Move.START, Move.FREEZE)
    assert way(State.FROZEN, State.STOPPED) == (Move.STOP,)
    assert way(State.STOPPED, State.FROZEN) == (Move.START, Move.FREEZE)
    assert way(State.RUNNING, State.LOST) == (Move.LOSE,)


@pytest.mark.parametrize(("start", "goal"), [*itertools.product(State, State)])
def test_a_way_is_legal_from_start_to_goal_or_there_is_none(start: State, goal: State):
    try:
        moves = way(start, goal)
    except ValueError:
        assert start in (State.LOST, State.DELETED) or goal is State.CREATED
        return
    state = start
    for move in moves:
        state = TABLE[state, move]
    assert state is goal
