"""The way out of a box without a network of its own: a proxy on the host.

Whoever is in the box speaks SOCKS 5 or HTTP to it. Names are looked up here, and what they lead to
is judged and then connected to, without another look-up.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from box_mcp.domain.network import Network, Surroundings
from box_mcp.gateway import http, socks
from box_mcp.gateway.dialling import LookUp, Resolver
from box_mcp.gateway.relay import DEAD, Duplex
from box_mcp.gateway.tally import Tally
from box_mcp.gateway.visit import Visit
from box_mcp.gateway.ways import Limits, Ways


class Egress:
    """The proxy of one box. `policy` tells what it may reach, whenever that is asked."""

    def __init__(
        self,
        policy: Callable[[], Network],
        surroundings: Surroundings | None = None,
        *,
        look_up: LookUp | None = None,
        limits: Limits | None = None,
    ) -> None:
        look_up = look_up or Resolver().look_up
        self._ways = Ways(policy, surroundings or Surroundings(), look_up, limits or Limits())
        self._visits: set[Visit] = set()

    def __repr__(self) -> str:
        return f"<Egress {len(self._visits)} connections, {self.refused.total} refused>"

    @property
    def refused(self) -> Tally:
        """What was refused, since this server began."""
        return self._ways.tally

    async def serve(self, stream: Duplex) -> None:
        """Serves one connection, and leaves closing it to the caller.

        Raises anyio.BrokenResourceError when it ended before all was said.
        """
        scope = anyio.CancelScope()
        visit = Visit(stream, self._ways, scope)
        self._visits.add(visit)
        try:
            with scope:
                await _serve(visit)
        except (anyio.EndOfStream, *DEAD):
            visit.sound = False
        finally:
            self._visits.remove(visit)
        if scope.cancelled_caught or not visit.sound:
            raise anyio.BrokenResourceError

    def enforce(self) -> None:
        """Cuts the connections that are not allowed any more."""
        for visit in tuple(self._visits):
            visit.enforce()

    def cut(self) -> None:
        """Cuts all connections."""
        for visit in tuple(self._visits):
            visit.cut()


async def _serve(visit: Visit) -> None:
    if not await visit.client.more():
        return
    first = visit.client.buffer[0]
    await (socks if first == socks.VERSION else http).converse(visit)
