"""What a token lets its bearer do: looked at before anything else of a request is.

`tools/list` is the same for all, so that clients may keep it; what a token is not for is refused
when it is called, with words that say what it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp_types import INVALID_REQUEST

from box_mcp.domain.access import Grant, Group, Scope
from box_mcp.domain.runs import is_run_id
from box_mcp.errors import NotPermitted
from box_mcp.surface.failures import as_result, legible
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
        return " or ".join(str(Scope(group, self.reads)) for group in self.groups)


FILES = Need((Group.FILES,), reads=True)

OF_FILES = frozenset(
    {
        *("resources/list", "resources/read", "resources/subscribe", "resources/unsubscribe"),
        "completion/complete",
    }
)
LISTEN = "subscriptions/listen"
READING = "tasks/get"
OF_TASKS = frozenset({READING, "tasks/update", "tasks/cancel"})

COMMANDS = (Group.SHELL, Group.GIT)
"""Whose tools answer with tasks that are commands; those of agents' runs have ids of their own."""


def needed(tools: Mapping[str, Need], method: str, params: Mapping[str, Any]) -> Need | None:
    """What a request takes; None where it tells the same to anybody who has a token.

    `tools` are what tools take. Whose a box is, is asked later, and is another question.
    """
    if method == "tools/call":
        return tools.get(str(params.get("name")))
    if method in OF_TASKS:
        run = is_run_id(str(params.get("taskId")))
        return Need((Group.AGENT,) if run else COMMANDS, reads=method == READING)
    listens = method == LISTEN and _names_resources(params.get("notifications"))
    return FILES if listens or method in OF_FILES else None


def told_by_head(tools: Mapping[str, Need], method: str, name: str) -> Need | None:
    """As `needed`, where a request's method and the name of its tool tell it; else None."""
    return None if method in OF_TASKS else needed(tools, method, {"name": name})


def permitting(tools: Mapping[str, Need]) -> ServerMiddleware[Any]:
    """Middleware that refuses what a request's grant does not cover: tools as tools do."""

    async def permitted(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        params, given = ctx.params or {}, grant(ctx)
        need = needed(tools, ctx.method, params)
        if need is None or need.met_by(given):
            return await call_next(ctx)
        calls = ctx.method == "tools/call"
        what = str(params.get("name")) if calls else ctx.method
        error = NotPermitted(what, str(need), [str(one) for one in given.scopes])
        failed(error, refused=True)
        if calls:
            return as_result(error)
        raise MCPError(INVALID_REQUEST, legible(error.explain()))

    return permitted


def _names_resources(wanted: object) -> bool:
    """Whether who wants to hear of changes wants to hear of certain resources'.

    Clients ask for news of whole lists unasked: who may not have them hears of none.
    """
    return isinstance(wanted, dict) and bool(cast("Any", wanted).get("resourceSubscriptions"))
