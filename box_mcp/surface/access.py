"""What a token lets its bearer do: looked at before anything else of a request is.

`tools/list` is the same for all, so that clients may keep it; what a token is not for is refused
when it is called, with words that say what it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp_types import INVALID_REQUEST, CallToolResult, TextContent

from box_mcp.domain.access import Grant, Group, Scope
from box_mcp.errors import BoxError, NotPermitted
from box_mcp.surface.failures import legible
from box_mcp.surface.requests import failed, grant


@dataclass(frozen=True)
class Need:
    """What a request takes: one of these groups, to read or to change."""

    groups: tuple[Group, ...]
    reads: bool

    def met_by(self, given: Grant) -> bool:
        """Whether a token is for it."""
        return any(given.allows(group, reads=self.reads) for group in self.groups)

    def __str__(self) -> str:
        return str(Scope(self.groups[0], self.reads))


FILES = Need((Group.FILES,), reads=True)
FOLLOWING = Need((Group.SHELL, Group.AGENT), reads=True)
ENDING = Need((Group.SHELL, Group.AGENT), reads=False)

OF_METHODS = {
    "resources/list": FILES,
    "resources/read": FILES,
    "resources/subscribe": FILES,
    "resources/unsubscribe": FILES,
    "subscriptions/listen": FILES,
    "completion/complete": FILES,
    "tasks/get": FOLLOWING,
    "tasks/update": ENDING,
    "tasks/cancel": ENDING,
}
"""Beside calls of tools; all other requests tell the same to anybody who has a token."""


def permitting(tools: Mapping[str, Need]) -> ServerMiddleware[Any]:
    """Middleware that refuses what a request's grant does not cover."""

    async def permitted(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        params = ctx.params or {}
        if ctx.method == "tools/call":
            need = tools.get(str(params.get("name")))
            refuse = _as_result
        else:
            need = OF_METHODS.get(ctx.method)
            refuse = _as_error
        given = grant(ctx)
        if need is not None and not need.met_by(given):
            what = str(params.get("name")) if ctx.method == "tools/call" else ctx.method
            error = NotPermitted(what, str(need), [str(one) for one in given.scopes])
            failed(error, refused=True)
            return refuse(error)
        return await call_next(ctx)

    return permitted


Refuse = Callable[[BoxError], HandlerResult]


def _as_result(error: BoxError) -> HandlerResult:
    return CallToolResult(content=[TextContent(text=legible(error.explain()))], is_error=True)


def _as_error(error: BoxError) -> HandlerResult:
    raise MCPError(INVALID_REQUEST, legible(error.explain()))
