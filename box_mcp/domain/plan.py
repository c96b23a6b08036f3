"""What should be done now: a pure function of all boxes, all waiters, the policy and the time.

The pool makes a plan whenever anything changed, carries it out, and makes the next. Nothing here
awaits, does I/O or reads a clock, so that Hypothesis can drive it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from box_mcp.domain.box import Move, State
from box_mcp.domain.limits import Room
from box_mcp.domain.names import BoxId, Principal

TRUST = 5.0  # s; a box unused for longer may have been touched behind our back: look first
EVICT_AFTER = 5.0  # s unused, before a box may be paused to make room for another
LOOK_AGAIN = 0.5  # s between two looks for room, which other servers may make
RECENT = 120.0  # s; how many boxes were asked for in this time is how many spares are wanted
SURPLUS_AFTER = 60.0  # s; a spare too many is kept for so long


class Act(StrEnum):
    """What the pool can do to one box; each is one task, and one at a time per box."""

    START = "start"
    THAW = "thaw"
    CHECK = "check"
    """Ask box and engine how things really are, and connect."""
    FREEZE = "freeze"
    STOP = "stop"
    DELETE = "delete"
    SAVE = "save"
    """Copy its files to an image; it stays as it is. Only ever asked for."""
    ATTACH = "attach"
    """Let it reach more or less of the network; it stays as it is. Only ever asked for."""


WAKING = (Act.START, Act.THAW)
LEAVING = (Act.FREEZE, Act.STOP, Act.DELETE)


@dataclass(frozen=True)
class Policy:
    """The settings that plans are made from; times in seconds, None switches a step off."""

    pause_after: float | None = 300.0
    stop_after: float | None = 3600.0
    delete_after: float | None = 7 * 86400.0
    orphan_after: float = 600.0
    job_awake_max: float = 3600.0
    warm_min: int = 0
    warm_max: int = 0
    room: Room = field(default_factory=Room)
    queue_timeout: float = 30.0


@dataclass(frozen=True)
class BoxView:
    """What a plan knows of one box; times on the clock that `View.now` is on.

    `heard` is when its daemon last answered or came to be connected. `doubtful` says that only the
    engine knows how the box really is. A command keeps it awake since `busy_since`, and where
    `job_kept` for as long as it runs. Idleness does nothing to it before `rest_until`. An
    `orphaned` box was frozen when its last server ended: nobody may come back for it.
    """

    id: BoxId
    state: State
    used: float
    since: float
    principal: Principal | None = None
    memory: int = 0
    heard: float = 0.0
    connected: bool = False
    doubtful: bool = False
    acting: bool = False
    act: Act | None = None
    claims: int = 0
    busy_since: float | None = None
    job_kept: bool = False
    rest_until: float = 0.0
    ttl: float | None = None
    keep_awake: bool = False
    orphaned: bool = False

    @property
    def spare(self) -> bool:
        """Whether the box is nobody's yet."""
        return self.principal is None

    @property
    def awake(self) -> bool:
        """Whether it uses CPU, or is about to."""
        return self.state is State.RUNNING or self.act in WAKING

    @property
    def held(self) -> int:
        """Bytes of memory that it may use as it is, or is about to."""
        return self.memory if self.awake or self.state is State.FROZEN else 0


@dataclass(frozen=True)
class Waiting:
    """A call that waits for a box since a moment."""

    box: BoxId
    since: float


@dataclass(frozen=True)
class View:
    """The whole pool at one moment. `waiters` are in the order in which they came."""

    now: float
    boxes: Sequence[BoxView]
    waiters: Sequence[Waiting]
    warm_from: float = 0.0
    """No spare is made before this time: the server has just started, or the last one failed."""
    creations: Sequence[float] = ()
    """When boxes were asked for lately."""


@dataclass(frozen=True)
class Plan:
    """Grant these waiting calls, do these acts, make so many spares, look again at `wake_at`.

    `refusals` are boxes that found no room for too long, with the limit that stands in the way.
    """

    grants: tuple[BoxId, ...] = ()
    acts: tuple[tuple[BoxId, Act], ...] = ()
    refusals: tuple[tuple[BoxId, str], ...] = ()
    spares: int = 0
    wake_at: float | None = None


def make_plan(view: View, policy: Policy) -> Plan:
    """What should be done now; every waiter is granted, worked for, queued, or its box is lost."""
    now = view.now
    waiters = {waiting.box for waiting in view.waiters}
    settled = {box.id: box for box in view.boxes if not box.acting}
    called_for = [settled[box] for box in in_turn(view) if box in settled]
    wanted = [(box, towards_running(box, now)) for box in called_for]
    waking = [(box, act) for box, act in wanted if act is not None and act in WAKING]
    entry = _let_in(waking, view, policy)

    idle = [box for box in settled.values() if box.claims == 0 and box.id not in waiters]
    steps = {box.id: step for box in idle if (step := next_step(box, policy)) is not None}
    spares = _missing_spares(view, policy)
    surplus = _surplus_spares(view, policy)

    acts = [(box.id, act) for box, act in wanted if act is Act.CHECK]
    acts += entry.acts
    taken = {box for box, _ in acts}
    acts += [(box, act) for box, (due, act) in steps.items() if due <= now and box not in taken]
    acts += [(box, Act.DELETE) for due, box in surplus if due <= now and box not in taken]
    wakes = [due for due, _ in (*steps.values(), *surplus)]
    wakes += [now + LOOK_AGAIN] if entry.queued else []
    wakes += [moment + RECENT for moment in view.creations if policy.warm_max > policy.warm_min]
    wakes += [view.warm_from] if spares else []
    return Plan(
        grants=tuple(b.id for b, act in wanted if act is None and b.state is State.RUNNING),
        acts=tuple(dict.fromkeys(acts)),
        refusals=tuple(entry.refused),
        spares=spares if view.warm_from <= now else 0,
        wake_at=min((moment for moment in wakes if moment > now), default=None),
    )


def ready(box: BoxView, now: float) -> bool:
    """Whether a call can have the box at once, whatever else there is."""
    return not box.acting and box.state is State.RUNNING and towards_running(box, now) is None


def towards_running(box: BoxView, now: float) -> Act | None:
    """What a call needs to be done to the box first; None for nothing, or nothing of use."""
    match box.state:
        case State.CREATED | State.FROZEN | State.STOPPED | State.RUNNING if box.doubtful:
            return Act.CHECK
        case State.CREATED | State.STOPPED:
            return Act.START
        case State.FROZEN:
            return Act.THAW
        case State.RUNNING if not box.connected:
            return Act.CHECK
        case State.RUNNING if box.claims == 0 and now - max(box.used, box.heard) > TRUST:
            return Act.CHECK
        case _:
            return None


def next_step(box: BoxView, policy: Policy) -> tuple[float, Act] | None:
    """When idleness will do something to this box, and what; None for never."""
    if box.spare:
        return _spare_step(box)
    steps = [step for step in (_next_down(box, policy), _expiry(box, policy)) if step is not None]
    due, act = min(steps, default=(math.inf, None))
    return None if act is None else (max(due, box.rest_until), act)


def _spare_step(box: BoxView) -> tuple[float, Act] | None:
    """Nobody misses a spare that is of no use any more; what others made is connected to."""
    match box.state:
        case State.RUNNING if not box.doubtful:
            return None if box.connected else (box.rest_until, Act.CHECK)
        case State.CREATED if not box.doubtful:
            return None  # its maker has not finished
        case _:
            return box.rest_until, Act.DELETE


def _next_down(box: BoxView, policy: Policy) -> tuple[float, Act] | None:
    """One step down the ladder."""
    idle_since = max(box.used, box.since)
    match box.state:
        case State.RUNNING if policy.pause_after is not None and not _kept_awake(box):
            due = max(idle_since + policy.pause_after, _free(box, policy))
            # A command may be running in a box without connection: its daemon knows.
            return due, Act.FREEZE if box.connected else Act.CHECK
        case State.FROZEN if box.orphaned and policy.stop_after is not None:
            return idle_since + min(policy.stop_after, policy.orphan_after), Act.STOP
        case State.FROZEN if policy.stop_after is not None:
            return idle_since + policy.stop_after, Act.STOP
        case State.CREATED | State.STOPPED if policy.delete_after is not None and box.ttl is None:
            return idle_since + policy.delete_after, Act.DELETE
        case _:
            return None


def _expiry(box: BoxView, policy: Policy) -> tuple[float, Act] | None:
    """The end that its maker set it."""
    if box.ttl is None or box.state is State.LOST or box.job_kept:
        return None
    due = max(box.used + box.ttl, _free(box, policy))
    unknown = box.state is State.RUNNING and not box.connected
    return due, Act.CHECK if unknown else Act.DELETE


def _kept_awake(box: BoxView) -> bool:
    return box.keep_awake or box.job_kept


def _free(box: BoxView, policy: Policy) -> float:
    """When a command in it keeps it awake no longer."""
    return -math.inf if box.busy_since is None else box.busy_since + policy.job_awake_max


def choose_spare(boxes: Sequence[BoxView]) -> BoxId | None:
    """The spare to hand out: the one that has been ready for longest, or none."""
    sound = [box for box in boxes if box.spare and box.connected and not box.doubtful]
    usable = [box for box in sound if not box.acting and box.state is State.RUNNING]
    return min(usable, key=lambda box: box.since).id if usable else None


def in_turn(view: View) -> list[BoxId]:
    """The boxes waited for: first come, first served, but principals take turns."""
    principals = {box.id: box.principal for box in view.boxes}
    turns = Counter[Principal | None]()
    numbered: list[tuple[int, BoxId]] = []
    for box in dict.fromkeys(waiting.box for waiting in view.waiters):
        principal = principals.get(box)
        numbered.append((turns[principal], box))
        turns[principal] += 1
    return [box for _, box in sorted(numbered, key=lambda one: one[0])]


# Room for all


@dataclass
class _Entry:
    """Which calls' boxes may wake, whose have to wait, and what is paused for them."""

    acts: list[tuple[BoxId, Act]]
    refused: list[tuple[BoxId, str]]
    queued: bool = False


class _Crowd:
    """What all boxes use; `principal` counts for the limits of its own."""

    def __init__(self, boxes: Iterable[BoxView], room: Room) -> None:
        self._room = room
        self.boxes = {box.id: box for box in boxes}
        self._rising: dict[BoxId, BoxView] = {}

    def enter(self, box: BoxView) -> None:
        self._rising[box.id] = box

    def breach(self, box: BoxView) -> str | None:
        """The limit that would be broken if `box` woke now: a field's name of Room."""
        room = self._room
        own = [other for other in self._others(box) if other.principal == box.principal]
        for prefix, others in (("", list(self._others(box))), ("own_", own)):
            awake: int | None = getattr(room, f"{prefix}awake")
            memory: int | None = getattr(room, f"{prefix}memory")
            if awake is not None and sum(map(self._awake, others)) >= awake:
                return f"{prefix}awake"
            if memory is not None and sum(map(self._held, others)) + box.memory > memory:
                return f"{prefix}memory"
        return None

    def _others(self, box: BoxView) -> Iterable[BoxView]:
        return (other for other in self.boxes.values() if other.id != box.id)

    def _awake(self, box: BoxView) -> bool:
        return box.awake or box.id in self._rising

    def _held(self, box: BoxView) -> int:
        return box.memory if box.id in self._rising else box.held


def _let_in(waking: Sequence[tuple[BoxView, Act]], view: View, policy: Policy) -> _Entry:
    """Lets boxes wake in their turn as far as there is room, and makes room for the first others.

    Whoever finds none because of a limit for all is waited for by all behind him: else a large
    box would never come in.
    """
    entry, crowd = _Entry([], []), _Crowd(view.boxes, policy.room)
    since = {waiting.box: waiting.since for waiting in reversed(view.waiters)}
    full: set[str | Principal | None] = set()
    for box, act in waking:
        if "all" in full or box.principal in full:
            limit = "awake"
        elif (limit := crowd.breach(box)) is None:
            crowd.enter(box)
            entry.acts.append((box.id, act))
            continue
        else:
            own = limit.startswith("own_")
            full.add(box.principal if own else "all")
            entry.acts += _make_room(limit, box.principal if own else None, view)
        if view.now - since[box.id] >= policy.queue_timeout:
            entry.refused.append((box.id, limit))
        entry.queued = True
    return entry


def _make_room(limit: str, principal: Principal | None, view: View) -> list[tuple[BoxId, Act]]:
    """Pauses the box that was unused for longest; nothing while another is being paused.

    Where none is known to be awake and idle, one of which that is not known is looked at.
    """
    waited_for = {waiting.box for waiting in view.waiters}
    memory = limit.endswith("memory")
    states = (State.RUNNING, State.FROZEN) if memory else (State.RUNNING,)
    scope = [box for box in view.boxes if principal in (None, box.principal)]
    scope = [box for box in scope if box.state in states]
    if any(box.act in LEAVING for box in scope):
        return []
    at_rest = [box for box in scope if box.id not in waited_for and _at_rest(box, view.now)]
    idle = [box for box in at_rest if _known(box)]
    if not idle:
        return [(box.id, Act.CHECK) for box in at_rest[:1]]
    first = min(idle, key=lambda box: (not box.spare, box.state is State.RUNNING, box.used))
    if first.spare:
        return [(first.id, Act.DELETE)]
    return [(first.id, Act.STOP if memory else Act.FREEZE)]


def _at_rest(box: BoxView, now: float) -> bool:
    at_rest = not box.acting and box.claims == 0 and box.busy_since is None
    unused = now - box.used >= EVICT_AFTER and now >= box.rest_until
    return at_rest and unused and not box.keep_awake


def _known(box: BoxView) -> bool:
    """Whether it can be paused without a look at it first."""
    return box.state is State.FROZEN or (box.connected and not box.doubtful)


# Spares


def wanted_spares(view: View, policy: Policy) -> int:
    """As many as were asked for lately, within what the policy allows."""
    recent = sum(view.now - moment < RECENT for moment in view.creations)
    return max(policy.warm_min, min(policy.warm_max, recent))


def _spares(view: View) -> list[BoxView]:
    return [box for box in view.boxes if box.spare and box.state is not State.LOST]


def _missing_spares(view: View, policy: Policy) -> int:
    missing = max(0, wanted_spares(view, policy) - len(_spares(view)))
    room = policy.room.awake
    if room is not None:
        missing = min(missing, room - sum(box.awake for box in view.boxes))
    return max(0, missing)


def _surplus_spares(view: View, policy: Policy) -> list[tuple[float, BoxId]]:
    """The spares that are too many, and when each goes: the youngest stay."""
    ready = sorted((box for box in _spares(view) if not box.acting), key=lambda box: box.since)
    surplus = max(0, len(_spares(view)) - wanted_spares(view, policy))
    return [(box.since + SURPLUS_AFTER, box.id) for box in ready[:surplus]]


MOVES = {
    Act.START: Move.START,
    Act.THAW: Move.THAW,
    Act.FREEZE: Move.FREEZE,
    Act.STOP: Move.STOP,
    Act.DELETE: Move.DELETE,
}
"""The move that each act makes when it succeeds; CHECK moves to whatever it finds."""

PAUSED = {Act.FREEZE: State.FROZEN, Act.STOP: State.STOPPED}
"""The acts that leave a box as it is which is so already."""
