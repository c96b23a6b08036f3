"""A server in this process whose callers bring tokens, as over HTTP, without any HTTP."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mcp import Client

from box_mcp.domain.access import Grant, parse_scope
from box_mcp.domain.names import Principal
from box_mcp.surface.requests import GRANT
from tests.support.client import MODERN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from mcp.server import MCPServer
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

    from box_mcp.surface.sessions import Backend

ME, YOU = Principal("me"), Principal("you")


def grant(*scopes: str, principal: Principal = ME) -> Grant:
    """What a token of these scopes lets one do; of all where there are none."""
    return Grant(principal, tuple(map(parse_scope, scopes or ["boxes"])), "token-id")


@dataclass
class Bearers:
    """A server, and whose token the next request has."""

    server: MCPServer[Backend]
    given: Grant = field(default_factory=grant)
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        inner = self.server._lowlevel_server  # pyright: ignore[reportPrivateUsage]
        inner.middleware.insert(0, self._laid)

    async def _laid(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        request = SimpleNamespace(scope={GRANT: self.given}, headers=self.headers)
        return await call_next(replace(ctx, request=request))

    @asynccontextmanager
    async def client(self, era: str = MODERN, **more: Any) -> AsyncGenerator[Client, None]:
        """Somebody who is connected."""
        async with Client(self.server, mode=era, **more) as client:
            yield client
