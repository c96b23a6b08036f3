"""Bounds what somebody can have written down, as by asking for what is refused.

What was done must not be forgotten for all that is refused: of the latter, what is more than some
is counted only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from box_mcp.events import CallEnded, Event, ModelUsed, RequestRefused, RouteUsed

BURST = 200.0  # of one kind: refusals of one principal, or of all without one; lines of one place
AGAIN = 0.1  # more of them a second: some 10 MiB a day


@dataclass
class Room:
    """For how much of one kind there still is room, as it was `at` a moment."""

    at: float
    left: float = BURST
    left_out: int = 0

    def take(self, now: float) -> bool:
        """Whether there was room for one more; if not, it is counted."""
        self.left = min(BURST, self.left + (now - self.at) * AGAIN)
        self.at = now
        if self.left < 1:
            self.left_out += 1
            return False
        self.left -= 1
        return True


class Bounds:
    """Tells which refusals there is room for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rooms: dict[str, Room] = {}

    def take(self, event: Event) -> bool:
        """Whether it is to be written down; if not, it is counted."""
        if not _is_refusal(event):
            return True
        now = self._clock()
        return self._rooms.setdefault(_whose(event), Room(now)).take(now)

    def left_out(self, event: Event) -> int:
        """How many refusals of the same principal were counted only; they are told then."""
        room = self._rooms.get(_whose(event))
        if room is None:
            return 0
        count, room.left_out = room.left_out, 0
        return count

    def rest(self) -> dict[str, int]:
        """The same of every principal of whom there are any."""
        found = {whose: room.left_out for whose, room in self._rooms.items() if room.left_out}
        self._rooms.clear()
        return found


def _is_refusal(event: Event) -> bool:
    match event:
        case RouteUsed() | ModelUsed():
            return not event.asked  # the upstream heard nothing of it
        case CallEnded():
            return event.outcome in ("refused", "invalid")
        case RequestRefused():
            return True
        case _:
            return False


def _whose(event: Event) -> str:
    return getattr(event, "principal", "")
