"""What a client sends through a tunnel to a name: its TLS must want to speak to that name."""

from __future__ import annotations

import anyio

from box_mcp.domain.network import parse_host
from box_mcp.gateway.hello import Broken, More, Name, read_hello
from box_mcp.gateway.inlet import Inlet
from box_mcp.gateway.relay import CHUNK

MAX_TOLD = 100  # characters of another name


class Screened:
    """A client whose first bytes are looked at before they are received.

    Many names share an address, and a server shows what the name in the greeting stands for. When
    that is another one, or none, `complaint` says so and the stream breaks. What is no TLS passes.
    """

    def __init__(self, client: Inlet, name: str) -> None:
        self.complaint = ""
        self._client = client
        self._name = name
        self._passed = False

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        """Some bytes; raises anyio.EndOfStream at the end."""
        if not self._passed:
            self.complaint = await self._screen()
            self._passed = not self.complaint
        if self.complaint:
            raise anyio.BrokenResourceError
        return await self._client.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """Sends all of `item`."""
        await self._client.send(item)

    async def send_eof(self) -> None:
        """Nothing more will be sent."""
        await self._client.send_eof()

    async def _screen(self) -> str:
        """What is wrong with the first bytes; nothing if nothing is."""
        size = 1
        while True:
            while len(self._client.buffer) < size:
                if not await self._client.more():
                    return ""  # too few for a server to answer
            try:
                found = read_hello(self._client.buffer)
            except Broken:
                return "its TLS begins with no proper greeting"
            if isinstance(found, More):
                size = found.size
                continue
            return self._judge(found.text) if isinstance(found, Name) else ""

    def _judge(self, name: str) -> str:
        if not name:
            return "its TLS does not name the host (SNI)"
        if parse_host(name) != self._name:
            return f"its TLS is meant for {name[:MAX_TOLD]!r}"
        return ""
