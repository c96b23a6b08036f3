"""Which box is to be stopped for the sake of the engine's disk: pure decisions.

It is stopped, not frozen: a frozen one would go on filling the disk at its next call, before
anybody heard why. A stopped one keeps its files, and the next call hears why no process is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from box_mcp.domain.names import BoxId

GIB = 1024**3
GRACE = GIB
"""Bytes that a box which is too large may grow by all the same: room to find out and delete."""
MANY = 64 * 1024**2
"""Bytes that a box must have grown by to be the one that fills the disk."""
MANY_FILES = 10_000
FEWEST_FILES = 50_000
"""With fewer that can still be made, the disk is full: engine and boxes could make none soon."""


@dataclass(frozen=True)
class Bounds:
    """`box` is how many bytes one may have, None for all; so many are to stay `free` in all."""

    box: int | None
    free: int


@dataclass(frozen=True)
class Space:
    """Bytes and files that there is still room for; None for what can't be told."""

    bytes: int | None
    files: int | None

    def short(self, bounds: Bounds) -> bool:
        """Whether something has to be done at once."""
        few = self.files is not None and self.files < FEWEST_FILES
        return bounds.free > 0 and (few or (self.bytes is not None and self.bytes < bounds.free))


@dataclass(frozen=True)
class Size:
    """What a box has of its own: bytes, and files if that is known."""

    bytes: int
    files: int | None = None


@dataclass(frozen=True)
class Growth:
    """A box at the last look but one, and now; `excused` are bytes that it was stopped for."""

    before: Size
    now: Size
    excused: int = 0


def to_stop(
    boxes: Mapping[BoxId, Growth], bounds: Bounds, space: Space
) -> Iterable[tuple[BoxId, str]]:
    """The boxes that are to be stopped, with the reason in words."""
    large = {box: too_large(growth, bounds) for box, growth in boxes.items()}
    found = [(box, why) for box, why in large.items() if why]
    if found or not space.short(bounds):
        return found
    few = space.files is not None and space.files < FEWEST_FILES
    filling = {box: grown for box, growth in boxes.items() if (grown := _grown(growth, few))}
    if not filling:
        return ()
    worst = max(filling, key=filling.__getitem__)
    return ((worst, _filled(boxes[worst], space, few)),)


def too_large(growth: Growth, bounds: Bounds) -> str:
    """Why a box may not go on; empty when it may.

    One that was stopped for that is stopped again only if it grew since.
    """
    if bounds.box is None or growth.now.bytes <= bounds.box:
        return ""
    if growth.excused and growth.now.bytes <= growth.excused + GRACE:
        return ""
    return (
        f"its files take {gib(growth.now.bytes)}, more than the {gib(bounds.box)} it may have: "
        "delete what it does not need, or it is stopped again when it grows"
    )


def _grown(growth: Growth, few: bool) -> int:
    """By how many files, or bytes, if that is many."""
    if few and growth.now.files is not None:
        grown = growth.now.files - (growth.before.files or 0)
        return grown if grown >= MANY_FILES else 0
    grown = growth.now.bytes - growth.before.bytes
    return grown if grown >= MANY else 0


def _filled(growth: Growth, space: Space, few: bool) -> str:
    if few and growth.now.files is not None:
        return (
            f"it has {growth.now.files:,} files of its own, and the engine's disk has room for "
            f"{space.files:,} more only: delete some"
        )
    return (
        f"its files grew to {gib(growth.now.bytes)}, and the engine's disk has only "
        f"{gib(space.bytes or 0)} free: delete what it does not need"
    )


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / GIB:.1f} GiB".replace(".0 ", " ")
