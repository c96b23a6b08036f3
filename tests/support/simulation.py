"""Time in which nobody waits: when all tasks do, it jumps to the next moment that one waits for.

What runs on such a loop takes as long as its work, and is the same whenever it is repeated.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    T = TypeVar("T")

TURN = 1e-3  # s that one turn of the loop takes: who keeps it turning can't hold time up
BEGINNING = 1_000_000.0  # s since the epoch


class _Jump(selectors.SelectSelector):
    """Does not wait, but says that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if timeout is None and not ready:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self.turns += 1
        self.now += max(TURN, 0.0 if ready else timeout or 0.0)
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop with a time of its own."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now

    @property
    def turns(self) -> int:
        """How often it went round: who has nothing to do does not make it."""
        return self._jump.turns

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it to its end; what else goes on goes on meanwhile, and stands still afterwards."""
        return self.run_until_complete(coroutine)

    def end(self) -> None:
        """Cancels what goes on, and closes the loop."""
        while tasks := asyncio.all_tasks(self):
            for task in tasks:
                task.cancel()
            self.run(_ended(tasks))
        self.close()


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


class LoopClock:
    """The time of the running loop, for pools."""

    def now(self) -> float:
        return BEGINNING + asyncio.get_running_loop().time()

    async def sleep_until(self, moment: float) -> None:
        if moment == math.inf:
            await anyio.sleep_forever()
        await anyio.sleep(max(0.0, moment - self.now()))
