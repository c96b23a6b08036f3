"""Between clients and a server: keeps what clients say, and finds a server again that has moved."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketAttribute

from tests.support.proxy import GONE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyio.abc import SocketStream


@dataclass
class Tap:
    """Clients connect to `url`; what they send there goes on to the server of another."""

    url: str
    server: str
    said: bytearray = field(default_factory=bytearray)
    """By all clients, in the order in which it came."""

    def header(self, name: str) -> list[str]:
        """The values of a header, in all requests."""
        found = re.findall(rb"(?im)^%s:[ \t]*(.*?)\r$" % re.escape(name.encode()), self.said)
        return [value.decode() for value in found]

    async def join(self, client: SocketStream) -> None:
        """Serves a client until either end has enough."""
        port = urlsplit(self.server).port
        assert port
        async with client:
            with suppress(OSError):  # it is away
                async with (
                    await anyio.connect_tcp("127.0.0.1", port) as server,
                    anyio.create_task_group() as group,
                ):
                    group.start_soon(_pass_on, client, server, self.said)
                    await _pass_on(server, client, bytearray())
                    group.cancel_scope.cancel()


async def _pass_on(source: SocketStream, sink: SocketStream, heard: bytearray) -> None:
    with suppress(*GONE):
        async for piece in source:
            heard += piece
            await sink.send(piece)
    with suppress(*GONE):
        await sink.send_eof()


@asynccontextmanager
async def tapped(server: str) -> AsyncGenerator[Tap, None]:
    """A tap before the server of this URL, for the length of the block."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        tap = Tap(f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/mcp", server)
        group.start_soon(listener.serve, tap.join)
        yield tap
        group.cancel_scope.cancel()
