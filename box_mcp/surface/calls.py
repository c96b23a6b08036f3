"""What is told of each request of MCP: who asked what, of which boxes, and how it ended."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any, cast

from anyio import get_cancelled_exc_class
from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp_types import CallToolResult
from mcp_types.methods import is_input_required
from pydantic import ValidationError
from pydantic_core import to_json

from box_mcp.events import CallEnded
from box_mcp.surface.requests import Account, begun, grant

TOLD = frozenset(
    {
        *("tools/call", "resources/read", "resources/subscribe", "subscriptions/listen"),
        *("tasks/get", "tasks/update", "tasks/cancel", "completion/complete"),
    }
)
"""Requests that act or look at what is somebody's; the rest is the same for all."""

SUBJECTS = {
    "tools/call": "name",
    **dict.fromkeys(("resources/read", "resources/subscribe"), "uri"),
    **dict.fromkeys(("tasks/get", "tasks/update", "tasks/cancel"), "taskId"),
}
"""By what a request says what it is about; whatever else it says, nobody heeds."""
MAX_SUBJECT = 200  # characters of what a request names
PIECE = 1 << 16  # characters of a text that are hashed at once


async def told(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware: emits `CallEnded` for each request of `TOLD`."""
    if ctx.method not in TOLD or ctx.request_id is None:
        return await call_next(ctx)
    account, began, outcome = begun(), time.perf_counter(), "failed"
    try:
        result = await call_next(ctx)
        outcome = _outcome(result, account)
    except get_cancelled_exc_class():
        outcome = "cancelled"
        raise
    except (MCPError, ValidationError) as error:
        outcome = "refused" if account.refused else "invalid"
        account.error = account.error or type(error).__name__
        raise
    except Exception as mistake:
        account.error = type(mistake).__name__
        raise
    else:
        return result
    finally:
        _tell(ctx, account, outcome, time.perf_counter() - began)


def _outcome(result: HandlerResult, account: Account) -> str:
    match result:
        case CallToolResult(is_error=True) | {"isError": True}:
            return "refused" if account.refused else "error"
        case _:
            return "asked" if is_input_required(result) else "ok"


def _tell(
    ctx: ServerRequestContext[Any, Any], account: Account, outcome: str, seconds: float
) -> None:
    given, params = grant(ctx), ctx.params or {}
    ctx.lifespan_context.hook(
        CallEnded(
            given.principal,
            given.token,
            ctx.method,
            str(params.get(SUBJECTS.get(ctx.method, ""), ""))[:MAX_SUBJECT],
            tuple(account.boxes),
            digest(params.get("arguments", {})),
            outcome,
            account.error,
            seconds,
        )
    )


def digest(arguments: Any) -> str:
    """Tells arguments apart that a log must not show: the first half of a SHA-256, in hex.

    A file's whole content may be among them: texts are taken in pieces, never copied whole.
    """
    named = cast("dict[str, Any]", arguments if isinstance(arguments, dict) else {"": arguments})
    seen = sha256()
    for name in sorted(named):
        seen.update(to_json(name))
        match named[name]:
            case str(text):
                seen.update(b"%d:" % len(text))
                for start in range(0, len(text), PIECE):
                    seen.update(text[start : start + PIECE].encode(errors="surrogatepass"))
            case value:
                seen.update(to_json(value, fallback=repr))
    return seen.hexdigest()[:32]
