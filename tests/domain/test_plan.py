from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from box_mcp.domain.box import TABLE, Move, State
from box_mcp.domain.limits import Room
from box_mcp.domain.names import LOCAL, BoxId, Principal
from box_mcp.domain.plan import (
    EVICT_AFTER,
    LOOK_AGAIN,
    MOVES,
    RECENT,
    SURPLUS_AFTER,
    TRUST,
    WAKING,
    Act,
    BoxView,
    Plan,
    Policy,
    View,
    Waiting,
    choose_spare,
    in_turn,
    make_plan,
    next_step,
    wanted_spares,
)

SOMEBODY = Principal("somebody")
NOW = 1_000_000.0
BOX = BoxId("box-aaaaaaaa")
OTHER = BoxId("box-bbbbbbbb")
POLICY = Policy(pause_after=300, stop_after=3600, delete_after=86400, job_awake_max=1800)


def box(state: State = State.RUNNING, *, ago: float = 0.0, **facts: object) -> BoxView:
    """A connected box that nobody has used for `ago` seconds."""
    then = NOW - ago
    view = BoxView(BOX, state, used=then, since=then, principal=LOCAL, memory=1, connected=True)
    return replace(view, **facts)  # pyright: ignore[reportArgumentType]  # facts of a BoxView


def plan(*boxes: BoxView, waiters: tuple[BoxId, ...] = (), policy: Policy = POLICY) -> Plan:
    return make_plan(View(NOW, boxes, [Waiting(waiter, NOW) for waiter in waiters]), policy)


def test_nothing_is_planned_for_nothing():
    assert plan() == Plan()


def test_a_call_for_a_running_connected_box_is_granted():
    assert plan(box(), waiters=(BOX,)).grants == (BOX,)


@pytest.mark.parametrize(
    ("state", "act"),
    [
        (State.CREATED, Act.START),
        (State.STOPPED, Act.START),
        (State.FROZEN, Act.THAW),
    ],
)
def test_a_call_wakes_its_box(state: State, act: Act):
    assert plan(box(state), waiters=(BOX,)) == Plan(acts=((BOX, act),))


def test_a_running_box_without_connection_is_looked_at_for_a_call():
    assert plan(box(connected=False), waiters=(BOX,)) == Plan(acts=((BOX, Act.CHECK),))


def test_a_box_that_was_long_unused_is_looked_at_before_it_is_granted():
    assert plan(box(ago=TRUST + 1), waiters=(BOX,)).acts == ((BOX, Act.CHECK),)
    assert plan(box(ago=TRUST + 1, heard=NOW), waiters=(BOX,)).grants == (BOX,)


def test_a_box_in_use_is_trusted_however_long_ago_that_began():
    assert plan(box(ago=TRUST + 1, claims=1), waiters=(BOX,)).grants == (BOX,)


@pytest.mark.parametrize("state", [State.CREATED, State.RUNNING, State.FROZEN, State.STOPPED])
def test_a_doubtful_box_is_looked_at_first_whatever_its_state(state: State):
    assert plan(box(state, doubtful=True), waiters=(BOX,)).acts == ((BOX, Act.CHECK),)


def test_nothing_is_planned_for_a_box_that_is_acted_on():
    assert plan(box(State.STOPPED, acting=True), waiters=(BOX,)) == Plan()


def test_two_calls_for_one_box_make_one_act():
    assert plan(box(State.FROZEN), waiters=(BOX, BOX)).acts == ((BOX, Act.THAW),)


def test_nothing_is_done_for_a_lost_box():
    assert plan(box(State.LOST, ago=10**9), waiters=(BOX,)) == Plan()


@pytest.mark.parametrize(
    ("state", "after", "act"),
    [
        (State.RUNNING, 300, Act.FREEZE),
        (State.FROZEN, 3600, Act.STOP),
        (State.STOPPED, 86400, Act.DELETE),
        (State.CREATED, 86400, Act.DELETE),
    ],
)
def test_an_idle_box_goes_one_step_down_the_ladder_when_its_time_has_come(
    state: State, after: float, act: Act
):
    assert plan(box(state, ago=after - 1)) == Plan(wake_at=NOW + 1)
    assert plan(box(state, ago=after)) == Plan(acts=((BOX, act),))


def test_idleness_counts_from_the_later_of_use_and_state():
    assert plan(box(ago=400, since=NOW - 100)).wake_at == NOW + 200
    assert plan(box(ago=400, used=NOW - 50)).wake_at == NOW + 250


@pytest.mark.parametrize("state", [State.RUNNING, State.FROZEN, State.STOPPED])
def test_a_step_that_is_switched_off_never_comes(state: State):
    off = replace(POLICY, pause_after=None, stop_after=None, delete_after=None)
    assert plan(box(state, ago=10**9), policy=off) == Plan()


def test_a_claimed_box_is_not_paused():
    assert not plan(box(ago=10**6, claims=1)).acts


def test_a_busy_box_is_not_frozen_before_its_time():
    busy = box(ago=1000, busy_since=NOW - 1000)
    assert plan(busy) == Plan(wake_at=NOW + 800)
    assert plan(replace(busy, busy_since=NOW - 1800)).acts == ((BOX, Act.FREEZE),)


def test_a_box_without_connection_is_asked_whether_it_is_busy_before_it_is_frozen():
    assert plan(box(ago=300, connected=False)).acts == ((BOX, Act.CHECK),)


def test_idleness_lets_a_box_rest_after_a_failure_but_a_call_does_not():
    resting = box(ago=10**6, rest_until=NOW + 60)
    assert plan(resting) == Plan(wake_at=NOW + 60)
    assert plan(resting, waiters=(BOX,)).acts == ((BOX, Act.CHECK),)


def test_an_orphaned_box_keeps_its_memory_no_longer_than_a_running_one_without_server():
    frozen = box(State.FROZEN, orphaned=True)
    assert next_step(frozen, POLICY) == (NOW + 600, Act.STOP)
    assert next_step(frozen, replace(POLICY, stop_after=60)) == (NOW + 60, Act.STOP)
    assert next_step(frozen, replace(POLICY, stop_after=None)) is None


# What its maker wanted


def test_a_box_that_is_kept_awake_is_never_paused():
    assert plan(box(keep_awake=True, ago=10**9)) == Plan()


@pytest.mark.parametrize("state", [State.RUNNING, State.FROZEN, State.STOPPED])
def test_a_box_with_an_end_is_deleted_when_unused_for_so_long(state: State):
    off = replace(POLICY, pause_after=None, stop_after=None)
    short = box(state, ago=50, ttl=60.0, since=NOW)
    assert plan(short, policy=off) == Plan(wake_at=NOW + 10)
    assert plan(replace(short, used=NOW - 60), policy=off).acts == ((BOX, Act.DELETE),)


def test_a_box_with_an_end_is_paused_before_it():
    assert next_step(box(ttl=10**6), POLICY) == (NOW + 300, Act.FREEZE)
    assert next_step(box(State.STOPPED, ttl=10**6), POLICY) == (NOW + 10**6, Act.DELETE)


def test_a_box_is_not_deleted_at_its_end_under_a_command():
    busy = box(ago=100, ttl=60.0, busy_since=NOW - 100, keep_awake=True)
    assert next_step(busy, POLICY) == (NOW - 100 + POLICY.job_awake_max, Act.DELETE)


def test_a_box_without_connection_is_asked_whether_it_is_busy_before_its_end():
    unknown = box(ago=60, ttl=60.0, connected=False, keep_awake=True)
    assert next_step(unknown, POLICY) == (NOW, Act.CHECK)


# Spares


def spare(state: State = State.RUNNING, *, ago: float = 0.0, **facts: object) -> BoxView:
    return box(state, ago=ago, principal=None, **facts)


def spares(least: int, most: int | None = None) -> Policy:
    return replace(POLICY, warm_min=least, warm_max=least if most is None else most)


def test_missing_spares_are_made_but_not_before_their_time():
    policy = spares(2)
    assert make_plan(View(NOW, [spare()], []), policy) == Plan(spares=1)
    assert make_plan(View(NOW, [spare()], [], warm_from=NOW + 5), policy) == Plan(wake_at=NOW + 5)
    assert make_plan(View(NOW, [spare(), spare(id=OTHER)], []), policy) == Plan()


def test_a_spare_that_is_being_made_is_not_missing():
    made = spare(State.CREATED, connected=False, acting=True)
    assert make_plan(View(NOW, [made], []), spares(1)) == Plan()


def test_as_many_spares_are_kept_as_boxes_were_asked_for_lately():
    lately = [NOW - 1000, NOW - RECENT - 1, NOW - 100, NOW - 1, NOW]
    view = View(NOW, [], [], creations=lately)
    assert wanted_spares(view, spares(1, 2)) == 2
    assert wanted_spares(view, spares(1, 10)) == 3
    assert wanted_spares(view, spares(5, 10)) == 5
    assert wanted_spares(replace(view, creations=()), spares(0, 10)) == 0


def test_a_spare_too_many_goes_after_a_while_and_the_oldest_first():
    old, young = spare(ago=50), spare(id=OTHER, ago=20)
    assert plan(old, young, policy=spares(1)) == Plan(wake_at=NOW + SURPLUS_AFTER - 50)
    old = replace(old, since=NOW - SURPLUS_AFTER)
    assert plan(old, young, policy=spares(1)).acts == ((BOX, Act.DELETE),)


@pytest.mark.parametrize("state", [State.FROZEN, State.STOPPED, State.LOST])
def test_a_spare_that_does_not_run_is_deleted(state: State):
    assert plan(spare(state), policy=spares(1)).acts == ((BOX, Act.DELETE),)


def test_a_doubtful_spare_is_deleted():
    assert plan(spare(doubtful=True), policy=spares(1)).acts == ((BOX, Act.DELETE),)
    half_made = spare(State.CREATED, doubtful=True)
    assert plan(half_made, policy=spares(1)).acts == ((BOX, Act.DELETE),)


def test_a_spare_of_another_server_is_connected_to():
    assert plan(spare(connected=False), policy=spares(1)).acts == ((BOX, Act.CHECK),)
    assert plan(spare(State.CREATED, connected=False), policy=spares(1)).acts == ()


def test_a_spare_does_not_grow_old():
    assert plan(spare(ago=10**9), policy=spares(1)) == Plan()


def test_the_spare_that_waited_longest_is_chosen():
    assert choose_spare([spare(), spare(id=OTHER, since=NOW - 10)]) == OTHER


def test_no_spare_is_chosen_that_is_not_ready():
    unready = [spare(connected=False), spare(acting=True), spare(doubtful=True)]
    assert choose_spare([*unready, spare(State.FROZEN), box()]) is None


# Room

ONE_AWAKE = replace(POLICY, room=Room(awake=1), queue_timeout=30)


def queue(*waiters: tuple[BoxId, float], boxes: list[BoxView], policy: Policy) -> Plan:
    return make_plan(View(NOW, boxes, [Waiting(box, since) for box, since in waiters]), policy)


def test_a_box_that_finds_no_room_waits_and_is_refused_in_the_end():
    boxes = [box(claims=1), box(State.STOPPED, id=OTHER)]
    assert queue((OTHER, NOW), boxes=boxes, policy=ONE_AWAKE) == Plan(wake_at=NOW + LOOK_AGAIN)
    late = queue((OTHER, NOW - 30), boxes=boxes, policy=ONE_AWAKE)
    assert late.refusals == ((OTHER, "awake"),)


def test_the_box_that_was_idle_for_longest_is_frozen_to_make_room():
    policy = replace(POLICY, room=Room(awake=2))
    older = box(id=BoxId("box-cccccccc"), ago=20)
    boxes = [box(ago=10), older, box(State.FROZEN, id=OTHER)]
    made = queue((OTHER, NOW), boxes=boxes, policy=policy)
    assert made.acts == ((older.id, Act.FREEZE),)
    freezing = [boxes[0], replace(older, acting=True, act=Act.FREEZE), boxes[2]]
    assert queue((OTHER, NOW), boxes=freezing, policy=policy).acts == ()


def test_a_box_in_use_of_any_kind_is_not_paused_to_make_room():
    waiting = box(State.STOPPED, id=OTHER)
    for one in (
        box(ago=10, claims=1),
        box(ago=10, busy_since=NOW - 10),
        box(ago=10, keep_awake=True),
        box(ago=EVICT_AFTER - 1),
        box(ago=10, doubtful=True, rest_until=NOW + 1),
    ):
        assert queue((OTHER, NOW), boxes=[one, waiting], policy=ONE_AWAKE).acts == ()


def test_a_box_of_which_nobody_knows_whether_it_is_in_use_is_looked_at_to_make_room():
    waiting = box(State.STOPPED, id=OTHER)
    policy = replace(ONE_AWAKE, pause_after=None)  # so nothing else would ever look
    for one in (box(ago=10, connected=False), box(ago=10, doubtful=True)):
        made = queue((OTHER, NOW), boxes=[one, waiting], policy=policy)
        assert made.acts == ((one.id, Act.CHECK),)


def test_memory_is_made_by_stopping_what_is_frozen_first():
    policy = replace(POLICY, room=Room(memory=2))
    frozen = box(State.FROZEN, id=BoxId("box-cccccccc"), ago=10)
    boxes = [box(ago=100), frozen, box(State.STOPPED, id=OTHER)]
    assert queue((OTHER, NOW), boxes=boxes, policy=policy).acts == ((frozen.id, Act.STOP),)


def test_a_frozen_box_needs_no_new_memory():
    policy = replace(POLICY, room=Room(memory=1))
    assert queue((BOX, NOW), boxes=[box(State.FROZEN)], policy=policy).acts == ((BOX, Act.THAW),)


def test_a_spare_makes_room_before_anybodys_box():
    boxes = [spare(), box(State.STOPPED, id=OTHER)]
    policy = replace(ONE_AWAKE, warm_min=1, warm_max=1)
    made = queue((OTHER, NOW), boxes=[replace(boxes[0], used=NOW - 9), boxes[1]], policy=policy)
    assert made.acts == ((BOX, Act.DELETE),)


def test_principals_take_turns():
    greedy = [box(State.STOPPED, id=BoxId(f"box-{n:08}")) for n in range(3)]
    modest = box(State.STOPPED, id=OTHER, principal=SOMEBODY)
    waiters = [Waiting(one.id, NOW) for one in (*greedy, modest)]
    order = in_turn(View(NOW, [*greedy, modest], waiters))
    assert order == [greedy[0].id, OTHER, greedy[1].id, greedy[2].id]


def test_a_principals_own_limit_keeps_nobody_else_waiting():
    policy = replace(POLICY, room=Room(awake=10, own_awake=1))
    mine = box(State.STOPPED, id=OTHER)
    somebodys = box(State.STOPPED, id=BoxId("box-cccccccc"), principal=SOMEBODY)
    boxes = [box(claims=1), mine, somebodys]
    made = queue((OTHER, NOW), (somebodys.id, NOW), boxes=boxes, policy=policy)
    assert made.acts == ((somebodys.id, Act.START),)


def test_nobody_overtakes_who_waits_for_a_limit_of_all():
    policy = replace(POLICY, room=Room(memory=4))
    large = box(State.STOPPED, id=OTHER, memory=4)
    small = box(State.STOPPED, id=BoxId("box-cccccccc"))
    boxes = [box(claims=1), large, small]
    assert queue((OTHER, NOW), (small.id, NOW), boxes=boxes, policy=policy).acts == ()


# The model: acts come to their end in any order, time passes, calls come and go.

IDLE = (Act.FREEZE, Act.STOP, Act.DELETE)
POLICIES = st.builds(
    Policy,
    pause_after=st.sampled_from([None, 10.0, 300.0]),
    stop_after=st.sampled_from([None, 60.0, 3600.0]),
    delete_after=st.sampled_from([None, 600.0, 86400.0]),
    job_awake_max=st.sampled_from([30.0, 3600.0]),
    warm_min=st.integers(0, 1),
    warm_max=st.integers(1, 3),
    room=st.builds(
        Room,
        awake=st.sampled_from([None, 1, 3]),
        memory=st.sampled_from([None, 2]),
        own_awake=st.sampled_from([None, 1]),
    ),
)


@dataclass
class Model:
    """A pool without I/O: boxes as views, acts under way, waiting calls."""

    policy: Policy = POLICY
    now: float = NOW
    boxes: dict[BoxId, BoxView] = field(default_factory=dict[BoxId, BoxView])
    acting: dict[BoxId, Act] = field(default_factory=dict[BoxId, Act])
    waiters: list[BoxId] = field(default_factory=list[BoxId])
    plan: Plan = field(default_factory=Plan)
    count: int = 0

    def view(self) -> View:
        waiters = [Waiting(box, self.now) for box in self.waiters]
        return View(self.now, list(self.boxes.values()), waiters)

    def change(self, box: BoxId, **facts: object) -> None:
        changed = replace(self.boxes[box], **facts)  # pyright: ignore[reportArgumentType]
        self.boxes[box] = changed

    def add(self, *, spare: bool) -> BoxId:
        self.count += 1
        name = BoxId(f"box-{self.count:08}")
        principal = None if spare else (LOCAL, SOMEBODY)[self.count % 2]
        self.boxes[name] = BoxView(name, State.CREATED, self.now, self.now, principal, memory=1)
        return name

    def begin(self, box: BoxId, act: Act) -> None:
        self.acting[box] = act
        self.change(box, acting=True, act=act)

    def move(self, box: BoxId, move: Move) -> None:
        state = TABLE[self.boxes[box].state, move]  # KeyError: the plan asked for what can't be
        if state is State.DELETED:
            del self.boxes[box]
        else:
            self.change(box, state=state, since=self.now)


class PlannedPool(RuleBasedStateMachine):
    """Carries plans out on the model, and checks each against the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    @rule(policy=POLICIES)
    @precondition(lambda self: not self.model.count)
    def start(self, policy: Policy) -> None:
        self.model.policy = policy

    @rule()
    def somebody_makes_a_box(self) -> None:
        self.model.add(spare=False)
        self.replan()

    @rule(data=st.data())
    @precondition(lambda self: self.model.boxes)
    def a_call_comes(self, data: st.DataObject) -> None:
        box = self.pick(data)
        if not self.model.boxes[box].spare and self.model.boxes[box].state is not State.LOST:
            self.model.waiters.append(box)
        self.replan()

    @rule(data=st.data())
    @precondition(lambda self: self.model.waiters)
    def a_waiting_call_is_cancelled(self, data: st.DataObject) -> None:
        self.model.waiters.remove(data.draw(st.sampled_from(self.model.waiters)))
        self.replan()

    @rule(data=st.data())
    @precondition(lambda self: any(box.claims for box in self.model.boxes.values()))
    def a_call_ends(self, data: st.DataObject) -> None:
        claimed = [box for box in self.model.boxes.values() if box.claims]
        box = data.draw(st.sampled_from(claimed))
        self.model.change(box.id, claims=box.claims - 1, used=self.model.now)
        self.replan()

    @rule(data=st.data(), works=st.booleans())
    @precondition(lambda self: self.model.acting)
    def an_act_ends(self, data: st.DataObject, works: bool) -> None:
        box = data.draw(st.sampled_from(sorted(self.model.acting)))
        if works:
            self.end_act(box)
        else:
            model = self.model
            del model.acting[box]
            model.waiters = [waiter for waiter in model.waiters if waiter != box]
            model.change(box, acting=False, act=None, doubtful=True, rest_until=model.now + 60)
        self.replan()

    @rule()
    @precondition(lambda self: self.model.acting)
    def all_acts_end_well(self) -> None:
        for _ in range(4):  # look, start, connect: no call waits for more, but for room
            for box in list(self.model.acting):
                self.end_act(box)
            self.replan()
        if not self.model.policy.room.crowds:
            assert not self.model.waiters

    @rule()
    @precondition(lambda self: self.model.waiters)
    def all_but_the_waiting_come_to_rest(self) -> None:
        """Whoever waits for room gets it, when nobody needs it any more."""
        for _ in range(4 * len(self.model.boxes) + 8):
            for box in self.model.boxes.values():
                self.model.change(box.id, claims=0, busy_since=None)
            self.model.now += EVICT_AFTER
            self.replan()
            for box in list(self.model.acting):
                self.end_act(box)
        self.replan()
        assert not self.model.waiters

    def end_act(self, box: BoxId) -> None:
        model = self.model
        act = model.acting.pop(box)
        model.change(box, acting=False, act=None)
        if act is Act.CHECK:
            connected = model.boxes[box].state is State.RUNNING
            model.change(box, doubtful=False, heard=model.now, connected=connected)
            return
        model.move(box, MOVES[act])
        if box in model.boxes:
            connected = model.boxes[box].state in (State.RUNNING, State.FROZEN)
            model.change(box, connected=connected, heard=model.now, doubtful=False)
        else:
            model.waiters = [waiter for waiter in model.waiters if waiter != box]

    @rule(data=st.data())
    @precondition(lambda self: self.model.boxes)
    def a_box_becomes_busy_or_idle(self, data: st.DataObject) -> None:
        box = self.model.boxes[self.pick(data)]
        if box.state is State.RUNNING and box.connected:
            busy_since = self.model.now if box.busy_since is None else None
            self.model.change(box.id, busy_since=busy_since, used=self.model.now)
        self.replan()

    @rule(data=st.data(), lost=st.booleans())
    @precondition(lambda self: self.model.boxes)
    def a_connection_breaks_or_a_box_is_lost(self, data: st.DataObject, lost: bool) -> None:
        box = self.pick(data)
        self.model.change(box, connected=False, doubtful=True, busy_since=None)
        if lost and box not in self.model.acting and self.model.boxes[box].state is not State.LOST:
            self.model.move(box, Move.LOSE)
            self.model.waiters = [waiter for waiter in self.model.waiters if waiter != box]
        self.replan()

    @rule(seconds=st.sampled_from([0.5, 5.0, 29.0, 301.0, 3601.0]))
    def time_passes(self, seconds: float) -> None:
        """Nobody looks at the boxes but when a plan said so."""
        then = self.model.now + seconds
        while (wake_at := self.model.plan.wake_at) is not None and wake_at <= then:
            self.model.now = wake_at
            self.replan()
        self.model.now = then

    def pick(self, data: st.DataObject) -> BoxId:
        return data.draw(st.sampled_from(sorted(self.model.boxes)))

    def replan(self) -> None:
        """Checks a plan and carries it out; what it leaves is done when its time comes."""
        view = self.model.view()
        plan = self.model.plan = make_plan(view, self.model.policy)
        assert plan == make_plan(view, self.model.policy), "a plan depends on nothing else"
        self.check_acts(view, plan)
        self.check_waiters(view, plan)
        self.check_room(view, plan)
        self.check_times(view, plan)
        self.carry_out(plan)
        again = make_plan(self.model.view(), self.model.policy)
        assert replace(again, wake_at=None) == Plan(), "nothing is left to do"

    def carry_out(self, plan: Plan) -> None:
        model = self.model
        for box in plan.grants:
            claims = model.waiters.count(box)
            model.waiters = [waiter for waiter in model.waiters if waiter != box]
            model.change(box, claims=model.boxes[box].claims + claims, used=model.now)
        for box, act in plan.acts:
            model.begin(box, act)
        for _ in range(plan.spares):
            model.begin(model.add(spare=True), Act.START)

    def check_acts(self, view: View, plan: Plan) -> None:
        boxes = {box.id: box for box in view.boxes}
        waiters = {waiting.box for waiting in view.waiters}
        assert len({box for box, _ in plan.acts}) == len(plan.acts), "one act per box"
        for name, act in plan.acts:
            box = boxes[name]
            assert not box.acting
            assert act is Act.CHECK or (box.state, MOVES[act]) in TABLE
            if act in IDLE:
                assert not box.claims
                assert name not in waiters
            if act is Act.FREEZE and box.busy_since is not None:
                assert view.now >= box.busy_since + self.model.policy.job_awake_max
            if act is Act.DELETE and not box.spare:
                assert box.state in (State.STOPPED, State.CREATED)

    def check_waiters(self, view: View, plan: Plan) -> None:
        boxes = {box.id: box for box in view.boxes}
        acting = {box for box, _ in plan.acts}
        for name in {waiting.box for waiting in view.waiters}:
            box = boxes[name]
            granted = name in plan.grants
            helped = granted + (name in acting) + box.acting
            assert helped == 1 or (helped == 0 and self.model.policy.room.crowds)
            if granted:
                assert box.state is State.RUNNING
                assert box.connected
                assert not box.doubtful
        assert set(plan.grants) <= {waiting.box for waiting in view.waiters}

    def check_room(self, view: View, plan: Plan) -> None:
        """No plan wakes more than there is room for."""
        waking = {box for box, act in plan.acts if act in WAKING}
        room = self.model.policy.room
        awake = [box for box in view.boxes if box.awake or box.id in waking]
        if room.awake is not None and waking:
            assert len(awake) <= room.awake
        held = sum(box.memory if box.id in waking else box.held for box in view.boxes)
        if room.memory is not None and any(act is Act.START for _, act in plan.acts):
            assert held <= room.memory

    def check_times(self, view: View, plan: Plan) -> None:
        assert plan.wake_at is None or plan.wake_at > view.now
        due = [
            step[0]
            for box in view.boxes
            if not box.acting
            and not box.claims
            and box.id not in {waiting.box for waiting in view.waiters}
            and (step := next_step(box, self.model.policy)) is not None
            and step[0] > view.now
        ]
        assert not due or (plan.wake_at is not None and plan.wake_at <= min(due))

    @invariant()
    def there_are_never_too_many_spares(self) -> None:
        spares = [box for box in self.model.boxes.values() if box.spare]
        kept = [box for box in spares if box.state is not State.LOST]
        assert len(kept) <= max(self.model.policy.warm_min, self.model.policy.warm_max)


PlannedPool.TestCase.settings = settings(max_examples=120, stateful_step_count=50, database=None)
test_every_plan_keeps_the_rules = PlannedPool.TestCase
