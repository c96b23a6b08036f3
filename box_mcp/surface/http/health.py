"""Whether the server is there, and whether it can do anything; for who looks after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from box_mcp.errors import BoxError

logger = logging.getLogger(__name__)

FRESH = 5.0  # s that a look at the engine holds, so that who asks often does not burden it
LOOK_TIMEOUT = 10.0  # s for one look
PATIENCE = 0.5  # s that who asks waits for one


class Readiness:
    """Whether boxes can be had, by a `look` at the engine that raises BoxError where they can't."""

    def __init__(
        self, look: Callable[[], Awaitable[object]], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._look = look
        self._now = now
        self._found = False
        self._looked: float | None = None
        self._under_way: anyio.Event | None = None

    async def ready(self, tasks: TaskGroup) -> bool:
        """What the latest look found; `tasks` makes another where that is some time ago.

        It waits for that only a moment.
        """
        fresh = self._looked is not None and self._now() - self._looked < FRESH
        if not fresh and self._under_way is None:
            self._under_way = anyio.Event()
            tasks.start_soon(self._look_again, self._under_way)
        if self._under_way is not None:
            with anyio.move_on_after(PATIENCE):
                await self._under_way.wait()
        return self._found

    async def _look_again(self, done: anyio.Event) -> None:
        found = False
        try:
            with anyio.move_on_after(LOOK_TIMEOUT):
                await self._look()
                found = True
        except BoxError as error:
            logger.warning("not ready: %s", error)
        except Exception:  # the server goes on, whatever it is: no thread was to be had, perhaps
            logger.exception("whether boxes can be had could not be found out")
        finally:
            self._found, self._looked, self._under_way = found, self._now(), None
            done.set()
