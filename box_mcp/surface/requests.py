"""What a request of MCP bears from its arrival to its end: in whose name it is, what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mcp import MCPError
from mcp_types import INTERNAL_ERROR

from box_mcp.domain.access import OWN, Grant

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

    from box_mcp.domain.names import BoxId

logger = logging.getLogger(__name__)

GRANT = "box_mcp.grant"
"""Where the ASGI scope of a request over HTTP has its grant."""

HOLDING = "box_mcp.holding"
"""Where it has what makes a context for the length of a call, which may outlast the request."""

ENDING = "box_mcp.ending"
"""Where it has what ends an answer that has no end of its own."""


@dataclass
class Account:
    """What came of a request: the boxes that it got hold of, and the name of what went wrong.

    `refused`: it may not do that, or not now.
    """

    boxes: list[BoxId] = field(default_factory=list)
    error: str = ""
    refused: bool = False


_current: ContextVar[Account | None] = ContextVar("account of the request", default=None)


def grant(request: ServerRequestContext[Any, Any]) -> Grant:
    """What the request's token lets it do, and in whose name.

    A request that came by no HTTP server is of whoever started this one. Use `granting` where all
    come by one.
    """
    over_http = request.request
    return OWN if over_http is None else over_http.scope[GRANT]


async def granting(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware of a server over HTTP: what bears no grant is nobody's, and gets no further.

    None such is known to come; but whatever loses its grant on the way would be taken for whoever
    started the server. The HTTP server hears how long the call takes: those of older clients go on
    when their connection has ended.
    """
    if ctx.request is None or GRANT not in ctx.request.scope:
        logger.error("A request of MCP bore no grant: %s", ctx.method)
        raise MCPError(INTERNAL_ERROR, "In whose name the request came is not known")
    with ctx.request.scope.get(HOLDING, nullcontext)():
        return await call_next(ctx)


def ends_by(request: ServerRequestContext[Any, Any], close: Callable[[], None]) -> None:
    """Has the HTTP server end the answer so, in place of breaking it off."""
    if request.request is not None:
        request.request.scope.setdefault(ENDING, []).append(close)


def begun() -> Account:
    """A new account, which the tasks of this request write to from now on."""
    _current.set(made := Account())
    return made


def noted(box: BoxId) -> None:
    """The request under way got hold of a box, or made, changed or deleted it."""
    if (account := _current.get()) is not None and box not in account.boxes:
        account.boxes.append(box)


def failed(error: Exception, *, refused: bool = False) -> None:
    """The request under way came to an end of this kind."""
    if (account := _current.get()) is not None:
        account.error, account.refused = type(error).__name__, refused
