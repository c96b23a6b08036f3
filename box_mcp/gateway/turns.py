"""How much boxes may ask of their routes at once, for how long, and what they hear beyond that."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio


@dataclass(frozen=True)
class Limits:
    """Times in seconds."""

    head: float = 60.0  # from one request to the end of the next one's head
    idle: float = 300.0  # of silence, of a box or an upstream; git's servers speak every 5 s
    cut: float = 600.0  # of silence that end a connection: an upstream's is told in words before
    connect: float = 15.0
    turn: float = 30.0  # until one of these many may begin
    of_box: int = 16  # requests at once; git-lfs has 8
    in_all: int = 256  # of which nobody has more than are still free, so 128


class Refused(Exception):
    """An answer of our own; `str` is for whoever is in the box, who may ask again at `location`."""

    def __init__(self, status: int, text: str, location: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.location = location


class Shares:
    """How many requests are under way in all. No principal has more than what is left for others.

    So whoever comes while one takes all that he gets finds as many free.
    """

    def __init__(self, in_all: int) -> None:
        self._free = in_all
        self._own: Counter[str] = Counter()
        self._waiting: list[tuple[str, anyio.Event]] = []  # none of whom there is room for

    async def acquire(self, who: str) -> None:
        """Waits until there is room for one more of this principal's."""
        if self._has_room(who):
            return self._give(who)
        waiter = who, anyio.Event()
        self._waiting.append(waiter)
        try:
            await waiter[1].wait()
        except BaseException:
            if waiter[1].is_set():  # it came with what ends the wait
                self.release(who)
            else:
                self._waiting.remove(waiter)
            raise

    def release(self, who: str) -> None:
        """After `acquire`. Of those who wait it is whose principal has fewest under way."""
        self._free += 1
        self._own[who] -= 1
        if not self._own[who]:
            del self._own[who]
        while fitting := [one for one in self._waiting if self._has_room(one[0])]:
            first = min(fitting, key=lambda one: self._own[one[0]])
            self._waiting.remove(first)
            self._give(first[0])
            first[1].set()

    def _has_room(self, who: str) -> bool:
        return self._own[who] < self._free

    def _give(self, who: str) -> None:
        self._free -= 1
        self._own[who] += 1


class Turns:
    """How many requests are under way at once, of a box and in all; `whose` tells the box's."""

    def __init__(self, limits: Limits, in_all: Shares, whose: Callable[[], str]) -> None:
        self._wait = limits.turn
        self._of_box = anyio.Semaphore(limits.of_box)
        self._in_all = in_all
        self._whose = whose

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[None, None]:
        """Waits until a request may begin, which the block then is; raises Refused."""
        who = self._whose()
        try:
            with anyio.fail_after(self._wait):
                await self._of_box.acquire()
                try:
                    await self._in_all.acquire(who)
                except BaseException:
                    self._of_box.release()
                    raise
        except TimeoutError:
            raise Refused(503, "too many requests are under way: try again later") from None
        try:
            yield
        finally:
            self._in_all.release(who)
            self._of_box.release()
