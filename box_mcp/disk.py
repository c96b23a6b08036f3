"""Watches what running boxes write, so that none fills the engine's disk for all.

To measure a box costs the more, the more files it has. So each is looked at again only after many
times as long as the last look took; sooner when the disk is being filled, which costs no look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from time import perf_counter

from box_mcp.domain.disk import Bounds, Growth, Size, Space, to_stop
from box_mcp.domain.names import BoxId
from box_mcp.engines.base import Engine
from box_mcp.errors import BoxError

LOOK_EVERY = 10.0  # s between two looks at one box
REST = 50  # times as long as all looks took until the next: two per cent of a core
URGENT_REST = 5  # times, when the disk is being filled
FALL = 256 * 1024**2  # bytes that the disk may lose between two glances


@dataclass
class Watched:
    """A running box: how it grew, and when it may be looked at again."""

    growth: Growth
    looked: float
    took: float


class DiskWatch:
    """Knows the boxes that one server is connected to.

    `stop` ends one for a reason, and tells whether it could.
    """

    def __init__(
        self, engine: Engine, bounds: Bounds, stop: Callable[[BoxId, str], Awaitable[bool]]
    ) -> None:
        self._engine = engine
        self._bounds = bounds
        self._stop = stop
        self._watched: dict[BoxId, Watched] = {}
        self._excused: dict[BoxId, int] = {}
        self._free: int | None = None

    async def look(self, running: Collection[BoxId], frozen: Collection[BoxId], now: float) -> None:
        """Looks at the disk and at those boxes whose turn it is, and stops whom it has to.

        Cheap when nothing is due; call it every few seconds. Raises the engine's errors.
        """
        if self._bounds.box is None and not self._bounds.free:
            return
        alive = {*running, *frozen}
        self._watched = {box: seen for box, seen in self._watched.items() if box in alive}
        if not running:
            return
        space = Space(await self._engine.free_disk(), await self._engine.free_files())
        urgent = space.short(self._bounds) or self._fell(space)
        for box in running:
            if self._is_due(box, len(running), now, urgent):
                await self._measure(box, now)
        growths = {box: self._watched[box].growth for box in running if box in self._watched}
        for box, why in to_stop(growths, self._bounds, space):
            if await self._stop(box, why):
                self._excused[box] = growths[box].now.bytes
                self._watched.pop(box, None)

    def _fell(self, space: Space) -> bool:
        """Whether somebody wrote much since it last fell so much."""
        before, now = self._free, space.bytes
        if before is None or now is None or now > before or now < before - FALL:
            self._free = now
        return before is not None and now is not None and now < before - FALL

    def _is_due(self, box: BoxId, boxes: int, now: float, urgent: bool) -> bool:
        seen = self._watched.get(box)
        if seen is None:
            return True
        all_take = seen.took * boxes
        rest = all_take * URGENT_REST if urgent else max(LOOK_EVERY, all_take * REST)
        return now - seen.looked >= rest

    async def _measure(self, box: BoxId, now: float) -> None:
        started = perf_counter()
        try:
            usage = await self._engine.usage(box)
        except BoxError:  # it may be gone meanwhile, which others find out
            return
        if usage.disk is None:
            return
        size, took = Size(usage.disk, usage.files), perf_counter() - started
        if size.bytes <= (self._bounds.box or 0):
            self._excused.pop(box, None)
        before = self._watched[box].growth.now if box in self._watched else size
        growth = Growth(before, size, self._excused.get(box, 0))
        self._watched[box] = Watched(growth, now, took)
