"""What comes faster than it can be passed on, joined meanwhile: a few large pieces cost less."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable

import anyio

MOST = 256 * 1024  # bytes that wait to be passed on, and one piece more


async def pass_on(
    pieces: AsyncIterable[bytes], say: Callable[[bytes], Awaitable[object]], most: int = MOST
) -> None:
    """Has `say` take all of `pieces`, as soon as it can; raises what either raises."""
    gathering = _Gathering(most)
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(gathering.fill, pieces)
        try:
            while piece := await gathering.take():
                await say(piece)
        except Exception as error:  # noqa: BLE001 - as it is, not in a group
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Gathering:
    """Filled by one task, emptied by another."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting = bytearray()
        self._over = False
        self._failure: Exception | None = None
        self._filled = anyio.Event()
        self._emptied = anyio.Event()

    async def fill(self, pieces: AsyncIterable[bytes]) -> None:
        """Takes them in; `take` raises what they raise, behind all that came before."""
        try:
            async for piece in pieces:
                self._waiting += piece
                self._filled.set()
                if len(self._waiting) >= self._most:
                    self._emptied = anyio.Event()
                    await self._emptied.wait()
        except Exception as error:  # noqa: BLE001 - whoever takes hears of it
            self._failure = error
        self._over = True
        self._filled.set()

    async def take(self) -> bytes:
        """All that has come by now, at least something; nothing when no more will come."""
        while not (self._waiting or self._over):
            self._filled = anyio.Event()
            await self._filled.wait()
        if not self._waiting and self._failure is not None:
            raise self._failure
        taken, self._waiting = bytes(self._waiting), bytearray()
        self._emptied.set()
        return taken
