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


@dataclass(frozen=True)
class BoxView:
    """What a plan knows of one box; times on the clock that `View.now` is on."""

    id: BoxId
    state: State
    used: float
    since: float
    spare: bool = False
    connected: bool = False
    acting: bool = False
    claims: int = 0
    busy_since: float | None = None


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
    """Grant these waiting calls, do these acts, make so many spares, look again at `wake_at`."""

    grants: tuple[BoxId, ...] = ()
    acts: tuple[tuple[BoxId, Act], ...] = ()
    spares: int = 0
    wake_at: float | None = None


def make_plan(view: View, policy: Policy) -> Plan:
    """What should be done now; every waiter is granted, worked for, or its box is lost."""
    waited_for = set(view.waiters)
    grants: list[BoxId] = []
    acts: list[tuple[BoxId, Act]] = []
    wakes: list[float] = []
    for box in view.boxes:
        if box.acting:
            continue
        if box.id in waited_for:
            if (act := _towards_running(box, view.now)) is not None:
                acts.append((box.id, act))
            elif box.state is State.RUNNING:
                grants.append(box.id)
        elif box.claims == 0 and (step := next_step(box, policy)) is not None:
            due, act = step
            if due <= view.now:
                acts.append((box.id, act))
            else:
                wakes.append(due)
    spares = _missing_spares(view, policy)
    if spares and view.warm_from > view.now:
        wakes.append(view.warm_from)
        spares = 0
    return Plan(tuple(grants), tuple(acts), spares, min(wakes, default=None))


def next_step(box: BoxView, policy: Policy) -> tuple[float, Act] | None:
    """When idleness will take this box one step down the ladder, and which; None for never."""
    if box.spare:
        return None
    match box.state:
        case State.RUNNING:
            steps = ((policy.pause_after, Act.FREEZE),)
        case State.FROZEN:
            steps = ((policy.stop_after, Act.STOP),)
        case State.STOPPED:
            steps = ((policy.delete_after, Act.DELETE),)
        case _:
            return None
    for after, act in steps:
        if after is not None:
            idle_from = max(box.used, box.since)
            if box.busy_since is not None and act is Act.FREEZE:
                return max(idle_from + after, box.busy_since + policy.job_awake_max), act
            return idle_from + after, act
    return None


def choose_spare(boxes: Sequence[BoxView]) -> BoxId | None:
    """The spare to hand out: the one that has been ready for longest, or none."""
    ready = [box for box in boxes if box.spare and box.connected and not box.acting]
    return min(ready, key=lambda box: box.since).id if ready else None


def owned(boxes: Sequence[BoxView]) -> int:
    """How many boxes count against `Policy.max_boxes`."""
    return sum(not box.spare and box.state is not State.LOST for box in boxes)


def _towards_running(box: BoxView, now: float) -> Act | None:
    match box.state:
        case State.CREATED | State.STOPPED:
            return Act.START
        case State.FROZEN:
            return Act.THAW
        case State.RUNNING if not box.connected:
            return Act.CHECK
        case State.RUNNING if box.claims == 0 and now - box.used > TRUST:
            return Act.CHECK
        case _:
            return None


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
