"""What should be done now: a pure function of all boxes, all waiters, the policy and the time.

The pool makes a plan whenever anything changed, carries it out, and makes the next. Nothing here
awaits, does I/O or reads a clock, so that Hypothesis can drive it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from box_mcp.domain.box import Move, State
from box_mcp.domain.names import BoxId

TRUST = 5.0  # s; a box unused for longer may have been touched by another server: look first
NOTE_EVERY = 30.0  # s; how stale the time of use that other servers can read may get


class Act(StrEnum):
    """What the pool can do to one box; each is one task, and one at a time per box."""

    START = "start"
    THAW = "thaw"
    CHECK = "check"
    """Ask box and engine how things really are, and connect."""
    FREEZE = "freeze"
    STOP = "stop"
    DELETE = "delete"


@dataclass(frozen=True)
class Policy:
    """The settings that plans are made from; times in seconds, None switches a step off."""

    pause_after: float | None = 300.0
    stop_after: float | None = 3600.0
    delete_after: float | None = 7 * 86400.0
    job_awake_max: float = 3600.0
    warm: int = 1
    max_boxes: int = 50

    @property
    def note_every(self) -> float:
        """How often a use is written down: well before another server would call it idle."""
        return NOTE_EVERY if self.pause_after is None else min(NOTE_EVERY, self.pause_after / 3)


@dataclass(frozen=True)
class BoxView:
    """What a plan knows of one box; times on the clock that `View.now` is on.

    `noted` is the time of use that other servers can read, `heard` when its daemon last answered
    or came to be connected. `doubtful` says that only the engine
    knows how the box really is. Idleness does nothing to it before `rest_until`.
    """

    id: BoxId
    state: State
    used: float
    since: float
    noted: float = 0.0
    heard: float = 0.0
    spare: bool = False
    connected: bool = False
    doubtful: bool = False
    acting: bool = False
    claims: int = 0
    busy_since: float | None = None
    rest_until: float = 0.0


@dataclass(frozen=True)
class View:
    """The whole pool at one moment. `waiters` are the boxes that calls wait for."""

    now: float
    boxes: Sequence[BoxView]
    waiters: Sequence[BoxId]
    warm_from: float = 0.0
    """No spare is made before this time: the server has just started, or the last one failed."""


@dataclass(frozen=True)
class Plan:
    """Grant these waiting calls, do these acts, make so many spares, look again at `wake_at`.

    `notes` are the boxes whose use should be written down now, for other servers to see.
    """

    grants: tuple[BoxId, ...] = ()
    acts: tuple[tuple[BoxId, Act], ...] = ()
    notes: tuple[BoxId, ...] = ()
    spares: int = 0
    wake_at: float | None = None


def make_plan(view: View, policy: Policy) -> Plan:
    """What should be done now; every waiter is granted, worked for, or its box is lost."""
    now, waiters = view.now, set(view.waiters)
    settled = [box for box in view.boxes if not box.acting]
    called_for = [box for box in settled if box.id in waiters]
    idle = [box for box in settled if box.claims == 0 and box.id not in waiters]

    wanted = [(box, _towards_running(box, now)) for box in called_for]
    steps = [(box.id, step) for box in idle if (step := next_step(box, policy)) is not None]
    grants = [box.id for box, act in wanted if act is None and box.state is State.RUNNING]
    in_use = {*grants, *(box.id for box in settled if box.claims)}
    notes = [(box.id, due) for box in settled if (due := _next_note(box, box.id in in_use, policy))]
    spares = _missing_spares(view, policy)

    wakes = [due for _, (due, _) in steps if due > now]
    wakes += [due if due > now else now + policy.note_every for box, due in notes if box in in_use]
    wakes += [view.warm_from] if spares and view.warm_from > now else []
    return Plan(
        grants=tuple(grants),
        acts=(
            *((box.id, act) for box, act in wanted if act is not None),
            *((box, act) for box, (due, act) in steps if due <= now),
        ),
        notes=tuple(box for box, due in notes if due <= now),
        spares=spares if view.warm_from <= now else 0,
        wake_at=min(wakes, default=None),
    )


def next_step(box: BoxView, policy: Policy) -> tuple[float, Act] | None:
    """When idleness will take this box one step down the ladder, and which; None for never."""
    if box.spare:
        # Nobody misses a spare that is of no use any more.
        useless = box.doubtful or not box.connected
        return (box.rest_until, Act.DELETE) if useless else None
    match box.state:
        case State.RUNNING:
            after, act = policy.pause_after, Act.FREEZE
        case State.FROZEN:
            after, act = policy.stop_after, Act.STOP
        case State.CREATED | State.STOPPED:
            after, act = policy.delete_after, Act.DELETE
        case _:
            return None
    if after is None:
        return None
    due = max(box.used, box.since) + after
    if act is Act.FREEZE and box.busy_since is not None:
        due = max(due, box.busy_since + policy.job_awake_max)
    if act is Act.FREEZE and not box.connected:
        act = Act.CHECK  # a command may be running in it: its daemon knows
    return max(due, box.rest_until), act


def choose_spare(boxes: Sequence[BoxView]) -> BoxId | None:
    """The spare to hand out: the one that has been ready for longest, or none."""
    ready = [box for box in boxes if box.spare and box.connected and not box.acting]
    return min(ready, key=lambda box: box.since).id if ready else None


def owned(boxes: Sequence[BoxView]) -> int:
    """How many boxes count against `Policy.max_boxes`."""
    return sum(not box.spare and box.state is not State.LOST for box in boxes)


def _towards_running(box: BoxView, now: float) -> Act | None:
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


def _next_note(box: BoxView, in_use: bool, policy: Policy) -> float | None:
    """When the box's use should be written down; None when there is nothing to write."""
    if box.spare or not (in_use or box.used - box.noted >= policy.note_every):
        return None
    return box.noted + policy.note_every


def _missing_spares(view: View, policy: Policy) -> int:
    spares = sum(box.spare and box.state is not State.LOST for box in view.boxes)
    return max(0, policy.warm - spares)


MOVES = {
    Act.START: Move.START,
    Act.THAW: Move.THAW,
    Act.FREEZE: Move.FREEZE,
    Act.STOP: Move.STOP,
    Act.DELETE: Move.DELETE,
}
"""The move that each act makes when it succeeds; CHECK moves to whatever it finds."""
