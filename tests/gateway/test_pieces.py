"""Boxes may say much in very small pieces: others get their turn between these."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import h11

from box_mcp.gateway.exchange import Outcome
from box_mcp.gateway.incoming import Incoming
from box_mcp.gateway.inlet import Inlet
from box_mcp.gateway.passing import Passing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from box_mcp.gateway.passing import Headers

PIECES = 1000
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * PIECES + b"0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\n" + CHUNKED
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\n" + CHUNKED


class AtOnce:
    """A stream on which all has come already."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if not self._said:
            await anyio.sleep_forever()
        piece, self._said = self._said[:max_bytes], self._said[max_bytes:]
        return piece

    async def send(self, item: bytes) -> None:
        pass

    async def send_eof(self) -> None:
        pass


class Asker:
    """Takes an answer, and never waits."""

    def __init__(self) -> None:
        self.said = b""

    async def body(self) -> AsyncGenerator[bytes, None]:
        for piece in ():
            yield piece

    async def gone(self) -> None:
        await anyio.sleep_forever()

    async def begin(self, status: int, headers: Headers) -> None:
        pass

    async def say(self, piece: bytes) -> None:
        self.said += piece


async def turns_during(act: Callable[[], Awaitable[None]]) -> int:
    """How often somebody else gets a turn meanwhile."""
    turns = 0

    async def somebody() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(somebody)
            await act()
            group.cancel_scope.cancel()
    return turns


async def test_an_answer_of_a_box_in_very_many_pieces_holds_nobody_up():
    asker = Asker()

    async def act() -> None:
        request = h11.Request(method="GET", target="/", headers=[("Host", "x")])
        passing = Passing(AtOnce(ANSWER), lambda: None)
        assert await passing.run(request, asker) is Outcome.DONE

    assert await turns_during(act) > PIECES // 2
    assert asker.said == b"x" * PIECES


async def test_nor_does_a_request():
    async def act() -> None:
        request = await Incoming.next(Inlet(AtOnce(REQUEST), lambda: None))
        assert request is not None
        assert await request.read(PIECES) == b"x" * PIECES

    assert await turns_during(act) > PIECES // 2
