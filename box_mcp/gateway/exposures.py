"""The exposed ports of one server, however people reach them, and the connections through them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from http import HTTPStatus
from typing import Generic, TypeVar

import anyio

from box_mcp.domain.box import State
from box_mcp.domain.names import BoxId
from box_mcp.errors import BoxError, CallRefused
from box_mcp.events import BoxMoved, Event
from box_mcp.gateway.admission import Answer
from box_mcp.slots import Claim

MAX_PORTS = 64  # exposed by one server, or for one caller of a shared one
MAX_CONNECTIONS = 128  # of one port; a browser opens 6, and one for each WebSocket
IDLE = 300.0  # s of silence that end a connection: as long as browsers keep one that is unused

OpenClaim = Callable[[], AbstractAsyncContextManager[Claim]]
"""Holds the box awake and connected; raises as `Pool.claim`."""


class Door:
    """A port of a box that is open to people, with the connections through it."""

    def __init__(self, box: BoxId, port: int, url: str, claim: OpenClaim) -> None:
        self.box = box
        self.port = port
        self.url = url
        self.claim = claim
        self._connections: dict[anyio.CancelScope, anyio.Event] = {}

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    @contextmanager
    def connection(self) -> Generator[anyio.CancelScope, None, None]:
        """A connection for the length of the block, which `hang_up` cancels."""
        scope, ended = anyio.CancelScope(), anyio.Event()
        self._connections[scope] = ended
        try:
            with scope:
                yield scope
        finally:
            del self._connections[scope]
            ended.set()

    def end(self) -> None:
        """Lets nobody in any more, and ends what is under way."""
        for scope in self._connections:
            scope.cancel()

    async def ended(self) -> None:
        """Waits until nothing is left of what `end` has ended."""
        await self.hang_up()

    async def hang_up(self) -> None:
        """Ends all connections, and waits until they have."""
        connections = list(self._connections.items())
        for scope, _ in connections:
            scope.cancel()
        for _, ended in connections:
            await ended.wait()


AnyDoor = TypeVar("AnyDoor", bound=Door)


class Exposures(Generic[AnyDoor]):
    """All exposed ports of one server."""

    def __init__(self) -> None:
        self.doors: dict[tuple[BoxId, int], AnyDoor] = {}

    def __repr__(self) -> str:
        connections = sum(door.connections for door in self.doors.values())
        return f"<{type(self).__name__} {len(self.doors)}, {connections} connections>"

    def of(self, box: BoxId) -> list[AnyDoor]:
        """What is open of a box."""
        return [door for door in self.doors.values() if door.box == box]

    async def close(self, box: BoxId, port: int) -> bool:
        """Closes a port, and what goes through it; False when it was not open."""
        door = self.doors.get((box, port))
        if door is None:
            return False
        self.forget(door)
        await door.ended()
        return True

    async def hang_up(self, box: BoxId) -> None:
        """Ends all connections to a box, which hold it awake; its ports stay open."""
        async with anyio.create_task_group() as group:
            for door in self.of(box):
                group.start_soon(door.hang_up)

    def notice(self, event: Event) -> None:
        """Hears of what happens to boxes: the ports of one that is gone are closed."""
        if isinstance(event, BoxMoved) and event.after in (State.DELETED, State.LOST):
            for door in list(self.doors.values()):
                if door.box == event.box:
                    self.forget(door)

    def forget(self, door: AnyDoor) -> None:
        """Closes a port without waiting."""
        door.end()
        if self.doors.get((door.box, door.port)) is door:
            del self.doors[door.box, door.port]


def unreached(door: Door, error: BoxError) -> Answer:
    """What is said where the box, or the server in it, can't be reached."""
    if not isinstance(error, CallRefused):
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, error.explain())
    if error.code != "not_listening":
        return Answer(HTTPStatus.BAD_GATEWAY, f"port {door.port} in {door.box}: {error}")
    text = f"nobody listens on port {door.port} in {door.box}: start a server there, then try again"
    return Answer(HTTPStatus.BAD_GATEWAY, text)


def crowded(most: int = MAX_CONNECTIONS, what: str = "this port") -> Answer:
    """What is said where there are as many connections as there may be."""
    text = f"{most} connections to {what} are open already"
    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, text)
