"""How many tools somebody may call in a minute, whatever becomes of the calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext

from box_mcp.domain.rates import Rates
from box_mcp.errors import TooManyCalls
from box_mcp.surface.failures import as_result
from box_mcp.surface.requests import failed, grant


def pacing(per_minute: int, clock: Callable[[], float] = time.monotonic) -> ServerMiddleware[Any]:
    """Middleware that refuses calls of tools which come too often, by whatever token of one's."""
    rates = Rates(per_minute)

    async def paced(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.method != "tools/call" or ctx.request_id is None:
            return await call_next(ctx)
        if wait := rates.take(grant(ctx).principal, clock()):
            error = TooManyCalls(per_minute, wait)
            failed(error, refused=True)
            return as_result(error)
        return await call_next(ctx)

    return paced
