"""Models for boxes: what they ask is answered with a key of the host's, metered, and paid for.

A box reaches them on its own loopback, in every network mode; nothing secret is ever there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from box_mcp.capabilities import tunnels
from box_mcp.channel import Channel
from box_mcp.domain.box import Box
from box_mcp.domain.models import (
    KEY_VARIABLES,
    KEYLESS,
    MODELS_PORT,
    Dialect,
    ModelRoute,
    Prices,
)
from box_mcp.domain.names import LOCAL
from box_mcp.events import Hook
from box_mcp.gateway.credentials import Secrets
from box_mcp.gateway.models.asking import Means
from box_mcp.gateway.models.paying import Purse
from box_mcp.gateway.serving import Serve, Serving
from box_mcp.gateway.turns import Limits, Turns
from box_mcp.gateway.upstream import Lines
from box_mcp.ledger import Ledger

SILENCE = 600.0  # s; an answer that does not stream may take as long

URL_VARIABLES = {
    Dialect.ANTHROPIC: "ANTHROPIC_BASE_URL",
    Dialect.OPENAI: "OPENAI_BASE_URL",
}
"""Where programs look for a server."""


class Models:
    """All models of this server, as a `Service` for its boxes.

    `hook` hears of each request. `authorities` (PEM) are believed beside the usual ones.
    `max_cost_per_day` is what one principal may spend on a day (UTC), in US dollars.
    """

    def __init__(
        self,
        routes: Sequence[ModelRoute],
        prices: Prices,
        ledger: Ledger,
        hook: Hook,
        *,
        secrets: Secrets | None = None,
        authorities: Path | None = None,
        max_cost_per_day: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._routes = tuple(routes)
        self._purse = Purse(ledger, prices, max_cost_per_day)
        self._hook = hook
        self._serving = Serving(limits or Limits(idle=SILENCE, cut=2 * SILENCE), authorities)
        self._secrets = secrets or Secrets()

    def of(self, box: Box) -> tuple[ModelRoute, ...]:
        """Those that a box may use; of a spare, those that its owner-to-be is likely to have."""
        principal = box.principal or LOCAL
        return tuple(route for route in self._routes if route.serves(principal))

    def choose(self, box: Box, dialects: Sequence[Dialect], model: str = "") -> ModelRoute | None:
        """By which of its routes a box has a model; `dialects` are those understood, best first."""
        routes = [route for route in self.of(box) if route.offers(model)]
        found = (route for dialect in dialects for route in routes if route.dialect is dialect)
        return next(found, None)

    def way(self, box: Box, /) -> object:
        """As `Service`."""
        return tuple(route.name for route in self.of(box)) or None

    async def attend(
        self,
        channel: Channel,
        box: Callable[[], Box],
        /,
        *,
        task_status: TaskStatus[None] = TASK_STATUS_IGNORED,
    ) -> None:
        """As `Service`; raises what `tunnels.listen` raises."""
        env = environment(self.of(box()))
        async with self.serving(box) as serve:
            await tunnels.listen(channel, MODELS_PORT, env, serve, task_status=task_status)

    def serving(self, box: Callable[[], Box]) -> AbstractAsyncContextManager[Serve]:
        """What serves the connections of a box."""

        def host(lines: Lines, turns: Turns) -> Means:
            return Means(
                box,
                lambda: self._usable(box()),
                self._secrets,
                self._purse,
                lines,
                self._hook,
                self._serving.limits,
                turns,
            )

        return self._serving.one(box, host)

    def _usable(self, box: Box) -> tuple[ModelRoute, ...]:
        """Those that it may use now: nobody's box may use none."""
        return self.of(box) if box.principal is not None else ()


def environment(routes: Sequence[ModelRoute]) -> Mapping[str, str]:
    """What tells programs in a box of its models: the first of each dialect."""
    env: dict[str, str] = {}
    for route in routes:
        if (url := URL_VARIABLES.get(route.dialect)) and url not in env:
            env |= {url: route.base_url, KEY_VARIABLES[route.dialect]: KEYLESS}
    return env
