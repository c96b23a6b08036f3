"""A duplex stream whose beginning can be looked at before it is taken."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from box_mcp.gateway.relay import CHUNK, Duplex


class Inlet:
    """What came and was not taken yet is in `buffer`. Tells `touched` when bytes pass."""

    def __init__(self, stream: Duplex, touched: Callable[[], None]) -> None:
        self.buffer = bytearray()
        self._stream = stream
        self._touched = touched

    async def more(self) -> bool:
        """Adds to the buffer what comes next; False when nothing will come any more."""
        try:
            self.buffer += await self._stream.receive(CHUNK)
        except anyio.EndOfStream:
            return False
        self._touched()
        return True

    def take(self, size: int | None = None) -> bytes:
        """The first bytes of the buffer, or all of it."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    async def exactly(self, size: int) -> bytes:
        """So many bytes; raises anyio.EndOfStream when not as many come."""
        while len(self.buffer) < size:
            if not await self.more():
                raise anyio.EndOfStream
        return self.take(size)

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        """Some bytes; raises anyio.EndOfStream at the end."""
        if self.buffer:
            return self.take(max_bytes)
        data = await self._stream.receive(max_bytes)
        self._touched()
        return data

    async def send(self, item: bytes) -> None:
        """Sends all of `item`."""
        if item:
            await self._stream.send(item)
            self._touched()

    async def send_eof(self) -> None:
        """Nothing more will be sent."""
        await self._stream.send_eof()
