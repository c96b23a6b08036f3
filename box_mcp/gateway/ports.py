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
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

from box_mcp.capabilities.tunnels import connect
from box_mcp.domain.box import State
from box_mcp.domain.names import BoxId
from box_mcp.errors import BoxError, BoxLost, BoxNotFound, CallRefused, LimitReached, NoPort
from box_mcp.events import BoxMoved, Event
from box_mcp.gateway.admission import Address, Answer, Doorkeeper, hosts_of
from box_mcp.gateway.relay import CHUNK, DEAD, relay
from box_mcp.slots import Claim

logger = logging.getLogger(__name__)

MAX_PORTS = 64  # exposed by one server
MAX_CONNECTIONS = 128  # of one port; a browser opens 6, and one for each WebSocket
HEAD_TIMEOUT = 10.0  # s for a request's head; browsers open connections ahead of need
IDLE = 300.0  # s of silence that end a connection: as long as browsers keep one that is unused
LINGER = 1.0  # s for a refused client to read why
REST = 1.0  # s until the next try when the machine has no descriptor left for a connection
BACKLOG = 64
TRIES = 8  # numbers that are tried until one is free for both IPv4 and IPv6

OpenClaim = Callable[[], AbstractAsyncContextManager[Claim]]
"""Holds the box awake and connected; raises as `Pool.claim`."""


@dataclass(frozen=True)
class Exposure:
    """A port of a box, and where the user finds it."""

    box: BoxId
    port: int
    address: Address


class _Door:
    """An exposure under way, with the connections through it."""

    def __init__(self, exposure: Exposure, claim: OpenClaim) -> None:
        self.exposure = exposure
        self.claim = claim
        self.scope = anyio.CancelScope()
        self.closed = anyio.Event()
        self.connections: dict[anyio.CancelScope, anyio.Event] = {}


class Ports:
    """All exposed ports of one server."""

    def __init__(self) -> None:
        self._doors: dict[tuple[BoxId, int], _Door] = {}
        self._tasks: TaskGroup

    def __repr__(self) -> str:
        connections = sum(len(door.connections) for door in self._doors.values())
        return f"<Ports {len(self._doors)}, {connections} connections>"

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
        if (known := self._doors.get((box, port))) is not None:
            return known.exposure
        if len(self._doors) >= MAX_PORTS:
            raise LimitReached("ports", MAX_PORTS)
        sockets = _listening(port)
        address = Address(hosts_of(box, name), sockets[0].getsockname()[1])
        door = _Door(Exposure(box, port, address), claim)
        self._doors[box, port] = door
        self._tasks.start_soon(self._serve, door, sockets)
        return door.exposure

    async def close(self, box: BoxId, port: int) -> bool:
        """Closes a port, and what goes through it; False when it was not open."""
        door = self._doors.get((box, port))
        if door is None:
            return False
        self._forget(door)
        await door.closed.wait()
        return True

    def of(self, box: BoxId) -> list[Exposure]:
        """What is open of a box."""
        return [door.exposure for (owner, _), door in self._doors.items() if owner == box]

    async def hang_up(self, box: BoxId) -> None:
        """Ends all connections to a box, which hold it awake; its ports stay open."""
        doors = [door for (owner, _), door in self._doors.items() if owner == box]
        ends = [one for door in doors for one in door.connections.items()]
        for scope, _ in ends:
            scope.cancel()
        for _, ended in ends:
            await ended.wait()

    def notice(self, event: Event) -> None:
        """Hears of what happens to boxes: the ports of one that is gone are closed."""
        if isinstance(event, BoxMoved) and event.after in (State.DELETED, State.LOST):
            for (owner, _), door in list(self._doors.items()):
                if owner == event.box:
                    self._forget(door)

    def _forget(self, door: _Door) -> None:
        door.scope.cancel()
        key = (door.exposure.box, door.exposure.port)
        if self._doors.get(key) is door:
            del self._doors[key]

    async def _serve(self, door: _Door, sockets: list[socket.socket]) -> None:
        try:
            with door.scope:
                async with anyio.create_task_group() as group:
                    for one in sockets:
                        group.start_soon(self._accept, door, one, group)
        finally:
            for one in sockets:
                one.close()
            door.closed.set()

    async def _accept(self, door: _Door, listener: socket.socket, group: TaskGroup) -> None:
        while True:
            try:
                stream = await _next_connection(listener)
            except OSError as error:
                logger.warning("no connection to %s: %s", door.exposure.address.url, error)
                await anyio.sleep(REST)
            else:
                if stream is not None:
                    group.start_soon(self._connection, door, stream)

    async def _connection(self, door: _Door, stream: SocketStream) -> None:
        scope, ended = anyio.CancelScope(), anyio.Event()
        door.connections[scope] = ended
        try:
            with scope, suppress(*DEAD):
                async with stream:
                    await self._attend(door, stream)
        except Exception:
            logger.exception("a connection to %s failed", door.exposure.address.url)
        finally:
            del door.connections[scope]
            ended.set()

    async def _attend(self, door: _Door, stream: SocketStream) -> None:
        if len(door.connections) > MAX_CONNECTIONS:
            text = f"{MAX_CONNECTIONS} connections to this port are open already"
            return await _reply(stream, Answer(HTTPStatus.SERVICE_UNAVAILABLE, text))
        keeper = Doorkeeper(door.exposure.address)
        head = await _head(stream, keeper)
        if keeper.answer is not None:
            await _reply(stream, keeper.answer)
        elif keeper.passed:
            await self._lead_in(door, stream, head)

    async def _lead_in(self, door: _Door, stream: SocketStream, head: bytes) -> None:
        box, port = door.exposure.box, door.exposure.port
        error: BoxError | None = None
        arrived = False
        try:
            async with door.claim() as claim, connect(claim.channel, port) as tunnel:
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
            await _reply(stream, _unreached(box, port, error))
        if isinstance(error, BoxNotFound | BoxLost):  # perhaps another server did it
            self._forget(door)


def _reset_at_end(stream: SocketStream, wanted: bool) -> None:
    """Whether its end will be a reset: else half an answer could be taken for a whole one."""
    layout = "hh" if sys.platform == "win32" else "ii"
    raw: socket.socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
    with suppress(OSError):  # it has ended already
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(layout, wanted, 0))


def _unreached(box: BoxId, port: int, error: BoxError) -> Answer:
    if not isinstance(error, CallRefused):
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, error.explain())
    if error.code != "not_listening":
        return Answer(HTTPStatus.BAD_GATEWAY, f"port {port} in {box}: {error}")
    text = f"nobody listens on port {port} in {box}: start a server there, then try again"
    return Answer(HTTPStatus.BAD_GATEWAY, text)


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
