"""Credential routes: what boxes ask of git servers, answered with a credential of the host's.

A box reaches them on its own loopback, in every network mode; nothing secret is ever there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from box_mcp.capabilities import tunnels
from box_mcp.channel import Channel
from box_mcp.domain.box import Box
from box_mcp.domain.gitconfig import Identity, gitconfig
from box_mcp.domain.names import LOCAL
from box_mcp.domain.remotes import ROUTES_PORT
from box_mcp.domain.routes import Route
from box_mcp.events import Hook
from box_mcp.gateway.asking import Means
from box_mcp.gateway.credentials import Secrets
from box_mcp.gateway.forges.asking import Forges
from box_mcp.gateway.lfs import Actions
from box_mcp.gateway.serving import Serve, Serving
from box_mcp.gateway.turns import Limits, Turns
from box_mcp.gateway.upstream import Lines

WhoIs = Callable[[], Awaitable[Identity | None]]
"""Tells in whose name boxes commit, where that is known."""


async def nobody() -> None:
    """As WhoIs, where it is not known."""


class Routes:
    """All routes of this server, as a `Service` for its boxes.

    `hook` hears of each request. `authorities` (PEM) are believed beside the usual ones.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        hook: Hook,
        who_is: WhoIs = nobody,
        *,
        secrets: Secrets | None = None,
        authorities: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._routes = tuple(routes)
        self._who_is = who_is
        self._hook = hook
        self._serving = Serving(limits or Limits(), authorities)
        self._secrets = secrets or Secrets()
        self._actions = Actions()
        self.forges = Forges(self._secrets, hook, authorities)

    def of(self, box: Box) -> tuple[Route, ...]:
        """Those that a box may use; of a spare, those that its owner-to-be is likely to have."""
        principal = box.principal or LOCAL
        return tuple(
            route
            for route in self._routes
            if route.serves(principal)
            and (box.spec.routes is None or route.name in box.spec.routes)
        )

    def way(self, box: Box, /) -> object:
        """As `Service`."""
        return tuple(route.name for route in self.of(box))

    async def attend(
        self,
        channel: Channel,
        box: Callable[[], Box],
        /,
        *,
        task_status: TaskStatus[None] = TASK_STATUS_IGNORED,
    ) -> None:
        """As `Service`; raises what `tunnels.listen` raises."""
        files = {"GIT_CONFIG_SYSTEM": gitconfig(self.of(box()), await self._who_is())}
        async with self.serving(box) as serve:
            await tunnels.listen(
                channel, ROUTES_PORT, {}, serve, files=files, task_status=task_status
            )

    def serving(self, box: Callable[[], Box]) -> AbstractAsyncContextManager[Serve]:
        """What serves the connections of a box."""

        def host(lines: Lines, turns: Turns) -> Means:
            return Means(
                box,
                lambda: self._usable(box()),
                self._secrets,
                self._actions,
                lines,
                self._hook,
                self._serving.limits,
                turns,
            )

        return self._serving.one(box, host)

    def _usable(self, box: Box) -> tuple[Route, ...]:
        """Those that it may use now: nobody's box may use none."""
        return self.of(box) if box.principal is not None else ()
