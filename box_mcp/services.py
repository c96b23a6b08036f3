"""What a server does for its boxes while it is connected to them: the proxy, the routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import anyio
from anyio.abc import TaskStatus

from box_mcp.channel import Channel
from box_mcp.domain.box import Box


class Service(Protocol):
    """Serves what boxes ask of their server, for as long as they are connected."""

    def way(self, box: Box, /) -> object:
        """All of a box that decides how it is served; None where there is nothing to do."""
        ...

    async def attend(
        self, channel: Channel, box: Callable[[], Box], /, *, task_status: TaskStatus[None]
    ) -> None:
        """Runs until it is cancelled.

        It has started when the box's next command may count on it. `box` tells how the box is by
        now; when its way changes, this is cancelled and called anew.
        """
        ...


class Attended(TaskStatus[None]):
    """That a box is served in a `way`, in `scope`.

    It has `begun` when the box may count on it, or it failed; what it failed with is told
    elsewhere.
    """

    def __init__(self, way: object) -> None:
        self.way = way
        self.scope = anyio.CancelScope()
        self.begun = anyio.Event()
        self.ended = anyio.Event()

    def started(self, value: None = None) -> None:
        """Whoever waits for it goes on; twice is fine."""
        del value
        self.begun.set()
