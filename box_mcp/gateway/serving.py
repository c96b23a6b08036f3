"""What all that answers HTTP for boxes has in common: lines to upstreams, and how many at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from box_mcp.domain.box import Box
from box_mcp.gateway.conversing import Host, converse
from box_mcp.gateway.relay import Duplex
from box_mcp.gateway.turns import Limits, Shares, Turns
from box_mcp.gateway.upstream import Authorities, Lines

Serve = Callable[[Duplex], Awaitable[None]]
"""Serves one connection of a box, as `converse` does."""


class Serving:
    """Serves the boxes of one server within `limits`; these share what is allowed in all.

    `authorities` (PEM) are believed beside the usual ones.
    """

    def __init__(self, limits: Limits, authorities: Path | None) -> None:
        self.limits = limits
        self._authorities = Authorities(authorities)
        self._in_all = Shares(limits.in_all)

    @asynccontextmanager
    async def one(
        self, box: Callable[[], Box], host: Callable[[Lines, Turns], Host]
    ) -> AsyncGenerator[Serve, None]:
        """What serves the connections of a box; `host` is made with the box's lines and turns."""

        def whose() -> str:
            return box().principal or ""

        lines = Lines(self._authorities, connect=self.limits.connect, idle=self.limits.idle)
        async with lines.open():
            yield partial(converse, host(lines, Turns(self.limits, self._in_all, whose)))
