"""A proxy as boxes have one, on loopback, with places of its own that it may lead to."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

import anyio
from anyio.abc import SocketAttribute

from box_mcp.domain.network import Mode, Network, Surroundings, parse_rules
from box_mcp.gateway.egress import Egress
from box_mcp.gateway.ways import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from anyio.abc import SocketStream

    from box_mcp.domain.network import Address

LOOPBACK = "127.0.0.1"
UNKNOWN = OSError(-2, "Name or service not known")
RESET = struct.pack("ii", 1, 0)  # what makes closing a socket a reset


class Door:
    """Where on loopback a box finds what serves it."""

    port = 0

    @property
    def url(self) -> str:
        """For programs."""
        return f"http://{LOOPBACK}:{self.port}"

    async def dial(self) -> SocketStream:
        """A connection to it."""
        return await anyio.connect_tcp(LOOPBACK, self.port)

    async def ask(self, request: bytes) -> bytes:
        """All that is answered to these bytes, up to the end."""
        async with await self.dial() as client:
            await client.send(request)
            return await everything(client)


@dataclass
class Place(Door):
    """A box's proxy, and what may be changed about it."""

    egress: Egress
    names: Mapping[str, Sequence[str]]
    network: Network
    asked: list[str] = field(default_factory=list[str])
    """Names that were looked up."""
    begun: anyio.Event = field(default_factory=anyio.Event)
    """Set when a name is asked for that never gets an answer."""

    @property
    def refused(self) -> dict[str, int]:
        """Targets, and how often."""
        return {one.target: one.count for one in self.egress.refused.since()}

    def set(self, *rules: str) -> None:
        """Changes the policy at once, as `network_policy` does."""
        self.network = Network(Mode.ALLOWLIST, parse_rules(rules))
        self.egress.enforce()

    async def tunnel(self, target: str) -> SocketStream:
        """A connection through the proxy, made by CONNECT."""
        client = await self.dial()
        await client.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = await until(client, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return client

    async def look_up(self, name: str) -> Sequence[Address]:
        """Knows `names` only; one without addresses is never answered."""
        self.asked.append(name)
        if name not in self.names:
            raise UNKNOWN
        if not self.names[name]:
            self.begun.set()
            await anyio.sleep_forever()
        return [ip_address(text) for text in self.names[name]]


@asynccontextmanager
async def proxy(
    *rules: str,
    names: Mapping[str, Sequence[str]] | None = None,
    surroundings: Surroundings | None = None,
    limits: Limits | None = None,
) -> AsyncGenerator[Place, None]:
    """A proxy that serves; by default the names ``*.example`` that are used lead to loopback."""
    known = {name: [LOOPBACK] for name in ("a.example", "b.example")} | dict(names or {})
    network = Network(Mode.ALLOWLIST, parse_rules(rules))

    def policy() -> Network:
        return place.network

    async def look_up(name: str) -> Sequence[Address]:
        return await place.look_up(name)

    egress = Egress(policy, surroundings, look_up=look_up, limits=limits)
    place = Place(egress, known, network)

    async with reachable(egress.serve) as place.port:
        yield place
    assert repr(egress).startswith("<Egress 0 connections")


@asynccontextmanager
async def reachable(
    serve: Callable[[SocketStream], Awaitable[None]],
) -> AsyncGenerator[int, None]:
    """The port of what serves a box; a connection that ended too early is reset, as in a box."""

    async def answer(stream: SocketStream) -> None:
        try:
            await serve(stream)
        except anyio.BrokenResourceError:
            raw = stream.extra(SocketAttribute.raw_socket)
            with suppress(OSError):  # the client may have closed it
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    async with listening(answer) as port:
        yield port


@asynccontextmanager
async def listening(
    answer: Callable[[SocketStream], Awaitable[None]], host: str = LOOPBACK, port: int = 0
) -> AsyncGenerator[int, None]:
    """The port of a listener, each of whose connections is served so, and closed."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await answer(stream)

    listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield listener.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()


async def echo(stream: SocketStream) -> None:
    """Sends back what comes, and its end."""
    async for data in stream:
        await stream.send(data)


async def everything(stream: SocketStream) -> bytes:
    """All that comes, up to the end."""
    return b"".join([data async for data in stream])


async def until(stream: SocketStream, end: bytes) -> bytes:
    """What comes up to these bytes, which are the last to come so far."""
    got = b""
    while not got.endswith(end):
        got += await stream.receive()
    return got
