"""How much there may be, in all and for each principal, and which limit a box would break."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from box_mcp.domain.box import Box, State

HOLDS_MEMORY = (State.RUNNING, State.FROZEN)
ABOUT_TO_RUN = "about to run"
"""The recorded reason of a box that counts as running, though it does not run yet."""


@dataclass(frozen=True)
class Room:
    """Limits; None for none. `memory` is in bytes, the sum of the sizes of boxes that hold any.

    Those that begin with ``own_`` hold for each principal.
    """

    boxes: int | None = None
    awake: int | None = None
    memory: int | None = None
    own_boxes: int | None = None
    own_awake: int | None = None
    own_memory: int | None = None

    @property
    def crowds(self) -> bool:
        """Whether a box may have to wait before it wakes."""
        return any((self.awake, self.memory, self.own_awake, self.own_memory))


def breached_by_new(boxes: Iterable[Box], box: Box, room: Room) -> str | None:
    """The limit that would be broken if `box` were one more: a field's name of Room.

    Spares and lost boxes do not count.
    """
    others = [one for one in boxes if one.id != box.id and one.principal is not None]
    alive = [one for one in others if one.state is not State.LOST]
    return _first_broken(
        {"boxes": (room.boxes, len)}, {"own_boxes": (room.own_boxes, len)}, alive, box
    )


def breached_by_waking(boxes: Iterable[Box], box: Box, room: Room) -> str | None:
    """The limit that would be broken if `box` ran now: a field's name of Room."""
    others = [one for one in boxes if one.id != box.id]

    def counted(some: list[Box], *states: State) -> list[Box]:
        return [one for one in some if one.state in states or one.reason == ABOUT_TO_RUN]

    def awake(some: list[Box]) -> int:
        return len(counted(some, State.RUNNING))

    def memory(some: list[Box]) -> int:
        held = sum(one.spec.memory for one in counted(some, *HOLDS_MEMORY))
        return held + box.spec.memory - 1

    return _first_broken(
        {"awake": (room.awake, awake), "memory": (room.memory, memory)},
        {"own_awake": (room.own_awake, awake), "own_memory": (room.own_memory, memory)},
        others,
        box,
    )


Measure = Callable[[list[Box]], int]
"""How much of something others use; with `box`, it is at least one more."""


def _first_broken(
    for_all: dict[str, tuple[int | None, Measure]],
    own: dict[str, tuple[int | None, Measure]],
    others: list[Box],
    box: Box,
) -> str | None:
    mine = [one for one in others if one.principal == box.principal]
    for limits, some in ((for_all, others), (own, mine)):
        for name, (limit, measure) in limits.items():
            if limit is not None and measure(some) >= limit:
                return name
    return None
