"""Whose request is begun next: nobody waits long because another has very many at once.

All requests share one thread. Of each principal's, a few are begun at a time; one that is not
answered soon is taken to wait for something else than this thread, and makes way for the next.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

AT_ONCE = 2
SOON = 0.005  # s


class Turns:
    """One for all requests."""

    def __init__(self, at_once: int = AT_ONCE, soon: float = SOON) -> None:
        self._at_once = at_once
        self._soon = soon
        self._begun: Counter[str] = Counter()
        self._waiting: dict[str, deque[anyio.Event]] = {}

    def __repr__(self) -> str:
        waiting = sum(map(len, self._waiting.values()))
        return f"<Turns {self._begun.total()} begun, {waiting} waiting>"

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncGenerator[None, None]:
        """Waits for the turn of a request, which lasts for the block, or a short while of it."""
        await self._come(who)
        over = False

        def end() -> None:
            nonlocal over
            if not over:
                over = True
                self._next(who)

        timer = asyncio.get_running_loop().call_later(self._soon, end)
        try:
            yield
        finally:
            timer.cancel()
            end()

    async def _come(self, who: str) -> None:
        if self._begun[who] < self._at_once:
            self._begun[who] += 1
            return
        mine = anyio.Event()
        waiting = self._waiting.setdefault(who, deque())
        waiting.append(mine)
        try:
            await mine.wait()
        except BaseException:
            if mine.is_set():
                self._next(who)
            else:
                waiting.remove(mine)
            raise

    def _next(self, who: str) -> None:
        """One turn is over: another begins in its place, if there is any."""
        if waiting := self._waiting.get(who):
            waiting.popleft().set()
            return
        self._waiting.pop(who, None)
        self._begun[who] -= 1
        if not self._begun[who]:
            del self._begun[who]
