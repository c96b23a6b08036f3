"""Ports of boxes on the user's machine: ``http://<box-id>.localhost:N/`` leads to one in the box.

A listener on the machine's loopback, in this server's process, for as long as that lives. Each
connection is looked at by `admission`, claims the box, which wakes it, and is then bytes both
ways to a TCP port in the box, also to what listens on the box's own loopback: keep-alive, streams
and WebSockets pass as they are. What can't be reached is answered in words, as plain text.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

from box_mcp.capabilities.tunnels import connect
from box_mcp.domain.names import BoxId
from box_mcp.errors import BoxError, BoxLost, BoxNotFound, LimitReached, NoPort
from box_mcp.gateway.admission import Address, Answer, Doorkeeper, hosts_of
from box_mcp.gateway.exposures import (
    IDLE,
    MAX_CONNECTIONS,
    MAX_PORTS,
    Door,
    Exposures,
    OpenClaim,
    crowded,
    unreached,
)
from box_mcp.gateway.relay import CHUNK, DEAD, relay

logger = logging.getLogger(__name__)

HEAD_TIMEOUT = 10.0  # s for a request's head; browsers open connections ahead of need
LINGER = 1.0  # s for a refused client to read why
REST = 1.0  # s until the next try when the machine has no descriptor left for a connection
BACKLOG = 64
TRIES = 8  # numbers that are tried until one is free for both IPv4 and IPv6


class Exposure(Door):
    """A port of a box, and where on their machine the user finds it."""

    def __init__(self, box: BoxId, port: int, address: Address, claim: OpenClaim) -> None:
        super().__init__(box, port, address.url, claim)
        self.address = address
        self.scope = anyio.CancelScope()
        self.closed = anyio.Event()

    def end(self) -> None:
        """As any door; and nobody listens any more."""
        self.scope.cancel()

    async def ended(self) -> None:
        """Waits until the machine's port is free again."""
        await self.closed.wait()


class Ports(Exposures[Exposure]):
    """All exposed ports of one server on the machine's loopback."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks: TaskGroup

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Runs them; at exit all listeners and connections end."""
        async with anyio.create_task_group() as self._tasks:
            try:
                yield
            finally:
                self._tasks.cancel_scope.cancel()

    def expose(self, claim: OpenClaim, box: BoxId, name: str | None, port: int) -> Exposure:
        """Opens a port of a box to the user; one that is open already stays as it is.

        Raises LimitReached and NoPort.
        """
        if (known := self.doors.get((box, port))) is not None:
            return known
        if len(self.doors) >= MAX_PORTS:
            raise LimitReached("ports", MAX_PORTS)
        sockets = _listening(port)
        address = Address(hosts_of(box, name), sockets[0].getsockname()[1])
        door = self.doors[box, port] = Exposure(box, port, address, claim)
        self._tasks.start_soon(self._serve, door, sockets)
        return door

    async def _serve(self, door: Exposure, sockets: list[socket.socket]) -> None:
        try:
            with door.scope:
                async with anyio.create_task_group() as group:
                    for one in sockets:
                        group.start_soon(self._accept, door, one, group)
        finally:
            for one in sockets:
                one.close()
            door.closed.set()

    async def _accept(self, door: Exposure, listener: socket.socket, group: TaskGroup) -> None:
        while True:
            try:
                stream = await _next_connection(listener)
            except OSError as error:
                logger.warning("no connection to %s: %s", door.url, error)
                await anyio.sleep(REST)
            else:
                if stream is not None:
                    group.start_soon(self._connection, door, stream)

    async def _connection(self, door: Exposure, stream: SocketStream) -> None:
        try:
            with door.connection(), suppress(*DEAD):
                async with stream:
                    await self._attend(door, stream)
        except Exception:
            logger.exception("a connection to %s failed", door.url)

    async def _attend(self, door: Exposure, stream: SocketStream) -> None:
        if door.connections > MAX_CONNECTIONS:
            return await _reply(stream, crowded())
        keeper = Doorkeeper(door.address)
        head = await _head(stream, keeper)
        if keeper.answer is not None:
            await _reply(stream, keeper.answer)
        elif keeper.passed:
            await self._lead_in(door, stream, head)

    async def _lead_in(self, door: Exposure, stream: SocketStream, head: bytes) -> None:
        error: BoxError | None = None
        arrived = False
        try:
            async with door.claim() as claim, connect(claim.channel, door.port) as tunnel:
                arrived = True
                _reset_at_end(stream, True)
                await tunnel.send(head)
                if await relay(stream, tunnel, IDLE):
                    _reset_at_end(stream, False)
                else:
                    await tunnel.abort()
        except BoxError as failure:
            error = failure
        if error is None:
            return
        if not arrived:
            await _reply(stream, unreached(door, error))
        if isinstance(error, BoxNotFound | BoxLost):  # perhaps another server did it
            self.forget(door)


def _reset_at_end(stream: SocketStream, wanted: bool) -> None:
    """Whether its end will be a reset: else half an answer could be taken for a whole one."""
    layout = "hh" if sys.platform == "win32" else "ii"
    raw: socket.socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
    with suppress(OSError):  # it has ended already
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(layout, wanted, 0))


async def _next_connection(listener: socket.socket) -> SocketStream | None:
    """What `listener` is asked for next; None where that was given up again. Raises OSError.

    Nothing is lost where it is cancelled.
    """
    await anyio.wait_readable(listener)
    try:
        accepted, _ = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    try:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with anyio.CancelScope(shield=True):
            return await SocketStream.from_socket(accepted)
    except (OSError, ValueError):
        accepted.close()
        return None


async def _head(stream: SocketStream, keeper: Doorkeeper) -> bytes:
    """What came until `keeper` decided, or nothing more came, or too late."""
    head = b""
    with anyio.move_on_after(HEAD_TIMEOUT), suppress(anyio.EndOfStream):
        while not keeper.decided:
            data = await stream.receive(CHUNK)
            head += data
            keeper.take(data)
    return head


async def _reply(stream: SocketStream, answer: Answer) -> None:
    """Answers and ends the connection, in a way that leaves the answer readable.

    Closed with something unread, it would end with a reset that overtakes the answer.
    """
    await stream.send(answer.page())
    await stream.send_eof()
    with anyio.move_on_after(LINGER), suppress(anyio.EndOfStream):
        while True:
            await stream.receive(CHUNK)


def _listening(preferred: int) -> list[socket.socket]:
    """Sockets that listen on the machine's loopback, on one number for IPv4 and IPv6.

    It is `preferred` if that is free.
    """
    refusal = ""
    for port in (preferred, *[0] * TRIES):
        sockets: list[socket.socket] = []
        try:
            sockets.append(_bound(socket.AF_INET, "127.0.0.1", port))
            if _speaks_six():
                sockets.append(_bound(socket.AF_INET6, "::1", sockets[0].getsockname()[1]))
        except OSError as error:
            refusal = str(error)
            for one in sockets:
                one.close()
        else:
            return sockets
    raise NoPort(refusal)


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    """A socket that listens there; never beside somebody else's, whatever the system allows."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if sys.platform == "win32":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        elif sys.platform == "linux":  # elsewhere it would bind beside a listener on all addresses
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _speaks_six() -> bool:
    """Whether this machine has an IPv6 loopback."""
    if not socket.has_ipv6:
        return False
    with suppress(OSError):
        _bound(socket.AF_INET6, "::1", 0).close()
        return True
    return False
