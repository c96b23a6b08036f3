"""How much boxes may ask of their routes at once, for how long, and what they hear beyond that."""

from __future__ import annotations

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
    in_all: int = 128


class Refused(Exception):
    """An answer of our own; `str` is for whoever is in the box, who may ask again at `location`."""

    def __init__(self, status: int, text: str, location: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.location = location


class Turns:
    """How many requests are under way at once, of a box and in all."""

    def __init__(self, limits: Limits, in_all: anyio.Semaphore) -> None:
        self._wait = limits.turn
        self._of_box = anyio.Semaphore(limits.of_box)
        self._in_all = in_all

    async def take(self) -> None:
        """Waits for one; raises Refused."""
        try:
            with anyio.fail_after(self._wait):
                await self._of_box.acquire()
                try:
                    await self._in_all.acquire()
                except BaseException:
                    self._of_box.release()
                    raise
        except TimeoutError:
            raise Refused(503, "too many requests are under way: try again later") from None

    def give_back(self) -> None:
        """After `take`."""
        self._in_all.release()
        self._of_box.release()
