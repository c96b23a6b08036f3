"""The trace that a client says its request is a part of: believed where it has the form of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

PARENT, STATE, BAGGAGE = "traceparent", "tracestate", "baggage"
MAX_STATE = 512  # characters

_PARENT = re.compile(r"[0-9a-f]{2}(-[0-9a-f]{32})(-[0-9a-f]{16})-[0-9a-f]{2}")
_MEMBER = r"[a-z0-9][a-z0-9_*/-]{0,240}(@[a-z][a-z0-9_*/-]{0,13})?=[!-+\--<>-~ ]{0,255}[!-+\--<>-~]"
_STATE = re.compile(rf"{_MEMBER}(,{_MEMBER})*")


async def believing(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware for before OpenTelemetry's, which fails at some values, and logs others."""
    if ctx.meta is not None and not {PARENT, STATE, BAGGAGE}.isdisjoint(ctx.meta):
        ctx = replace(ctx, meta=believed(ctx.meta))  # type: ignore[arg-type]
    return await call_next(ctx)


def believed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` without what is no trace; baggage is of no use here."""
    kept = {key: value for key, value in meta.items() if key not in (PARENT, STATE, BAGGAGE)}
    parent, state = meta.get(PARENT), meta.get(STATE)
    if isinstance(parent, str) and _PARENT.fullmatch(parent):
        kept[PARENT] = parent
        if isinstance(state, str) and len(state) <= MAX_STATE and _STATE.fullmatch(state):
            kept[STATE] = state
    return kept
