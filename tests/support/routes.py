"""Credential routes as a box has them, on loopback, without a box."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio

from box_mcp.domain.box import Box, BoxSpec
from box_mcp.domain.names import LOCAL, BoxId
from box_mcp.domain.routes import Access, Credential, Route, parse_upstream
from box_mcp.gateway.routes import Routes
from box_mcp.gateway.turns import Limits
from tests.support.egress import Door, reachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from box_mcp.events import Event, RouteUsed

HOST = "Host: 127.0.0.1:3129"
AS_IN_A_BOX = ("-c", f"http.extraHeader={HOST}")
"""git's options: these routes listen on another port than a box's do."""


@dataclass
class Place(Door):
    """A box's routes, and what may be changed about the box."""

    box: Box
    events: list[RouteUsed] = field(default_factory=list["RouteUsed"])
    heard: anyio.Event = field(default_factory=anyio.Event)
    """Set when a request has been told of; made anew by `next`."""

    async def told(self, count: int) -> list[RouteUsed]:
        """What was told, as soon as it is so much."""
        with anyio.fail_after(10):
            while len(self.events) < count:
                await self.heard.wait()
        return self.events

    def hook(self, event: Event) -> None:
        """As Hook."""
        self.events.append(event)  # pyright: ignore[reportArgumentType]  # routes tell nothing else
        self.heard.set()
        self.heard = anyio.Event()


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request as a box sends it."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", HOST, *headers, "", ""]).encode()


def route(name: str, url: str, **more: Any) -> Route:
    """A route that may do all that it can, with a credential from the variable SECRET."""
    credential = Credential(variable="SECRET")
    return replace(Route(name, parse_upstream(url), credential, access=Access.WRITE), **more)


@asynccontextmanager
async def routes(
    *known: Route, authorities: Path | None = None, limits: Limits | None = None
) -> AsyncGenerator[Place, None]:
    """Routes that serve a box of `LOCAL`."""
    spec = BoxSpec("image", 1, 1 << 30)
    box = Box(BoxId("box-aaaaaaaa"), spec, created=1.0, principal=LOCAL)
    place = Place(box)
    made = Routes(known, place.hook, authorities=authorities, limits=limits)
    async with (
        made.serving(lambda: place.box) as serve,
        reachable(serve) as place.port,
    ):
        yield place
