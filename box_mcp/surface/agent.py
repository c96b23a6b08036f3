"""Tools that have a coding agent work in a box."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import anyio
from mcp_types import CallToolResult
from pydantic import Field

from box_mcp.capabilities.agent.agents import OnAct, Wish
from box_mcp.domain.access import Group
from box_mcp.domain.runs import Run, is_run_id
from box_mcp.errors import BoxError, BoxLost, BoxNotFound, InvalidArgument
from box_mcp.surface.runs import (
    Facts,
    boxless,
    brief,
    fitting,
    line_of,
    of_run,
    place,
    told_event,
    whole,
)
from box_mcp.surface.sessions import BoxRef, Ctx, OpenBox, backend, caller, open_box
from box_mcp.surface.shell import MAX_TIMEOUT, MAX_WAIT, printable
from box_mcp.surface.tasks import hand_over_run
from box_mcp.surface.toolset import Toolset, record
from box_mcp.surface.words import visible

tools = Toolset(Group.AGENT)

MAX_EVENTS = 100  # of one call
MAX_RUNS = 20  # that a list shows, the newest
AROUND_EVENTS = 3000  # characters of a record beside its events, at most

RunRef = Annotated[str, Field(description="Run id.")]


@tools.tool(destroys=True, open_world=True)
async def agent_run(
    prompt: Annotated[str, Field(min_length=1, description="Its task.")],
    ctx: Ctx,
    harness: Annotated[
        str | None,
        Field(description="claude_code, codex, or one of the settings. Default: the box's."),
    ] = None,
    model: Annotated[str | None, Field(description="Default: the box's.")] = None,
    box: BoxRef = None,
    path: Annotated[str | None, Field(description="Where it works. Default: /workspace.")] = None,
    resume: Annotated[
        str | None, Field(description="Run or session id: goes on in that conversation.")
    ] = None,
    max_turns: Annotated[int | None, Field(ge=1, description="Most turns.")] = None,
    max_cost: Annotated[float | None, Field(gt=0, description="Most US dollars.")] = None,
    timeout: Annotated[
        float | None,
        Field(gt=0, le=MAX_TIMEOUT, description="Seconds until it is ended. Default: 3600."),
    ] = None,
    response_schema: Annotated[
        dict[str, Any] | None, Field(description="JSON Schema of the answer it must give.")
    ] = None,
    files: Annotated[
        dict[str, str] | None, Field(description="Contents by path, written first.")
    ] = None,
    append_system_prompt: Annotated[str, Field(description="Added to its system prompt.")] = "",
    background: Annotated[bool, Field(description="Return a run id at once.")] = False,
    mcp_servers: Annotated[
        dict[str, Any] | None, Field(description="For it, as in .mcp.json. It has none of yours.")
    ] = None,
    skills: Annotated[
        dict[str, str] | None, Field(description="For it: SKILL.md contents by name.")
    ] = None,
) -> CallToolResult:
    """Have a coding agent (Claude Code, Codex) do a task in the box, not the user's machine. Tells
    its final text or answer, files changed, commands, cost.

    It knows of this conversation only what prompt says, and needs no key. After 45 s the call
    returns while it goes on: follow it with agent_status.
    """
    server, wish = backend(ctx), Wish(
        prompt,
        harness=harness,
        model=model,
        path=path,
        resume=resume,
        max_turns=max_turns,
        max_cost=max_cost,
        timeout=timeout,
        schema=response_schema,
        system=append_system_prompt,
        files=files or {},
        servers=mcp_servers or {},
        skills=skills or {},
    )  # fmt: skip
    agents, limits = server.agents, server.limits
    returns = anyio.current_time() + limits.yield_after
    async with open_box(ctx, box or await box_of(ctx, resume)) as opened:
        here, on_act = place(opened), progress(ctx)
        run = await agents.start(here, wish, on_act, returns)
        with naming(run):
            if background:
                report = await agents.report(here, run)
            else:
                left = max(0.0, returns - anyio.current_time())
                report = await agents.follow(here, run, seconds=left, on_act=on_act, attended=True)
                hand_over_run(ctx, report)
        return record(whole(report, limits.max_output, opened.claim.news))


@tools.tool(reads=True)
async def agent_status(
    ctx: Ctx,
    run: Annotated[str | None, Field(description="Run id. Default: lists your runs.")] = None,
    cursor: Annotated[
        int | None, Field(ge=0, description="Show events from here on: 0, or as replies say.")
    ] = None,
    wait: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_WAIT,
            description="Seconds to wait, 45 at most, for its end; with cursor, for an event.",
        ),
    ] = 0,
) -> CallToolResult:
    """Tell how a coding agent in the box, not the user's machine, gets on, and what it did."""
    server = backend(ctx)
    agents, most = server.agents, server.limits.max_output
    patience = min(wait, server.limits.yield_after)

    async def tell(opened: OpenBox, found: Run) -> Facts:
        here, news = place(opened), opened.claim.news
        if cursor is not None:
            return await page(opened, found, cursor, patience, most)
        report = await agents.follow(here, found, seconds=patience, on_act=progress(ctx))
        return whole(report, most, news)

    async def page(opened: OpenBox, found: Run, start: int, wait: float, most: int) -> Facts:
        look = await agents.look(place(opened), found, start, wait=wait, limit=MAX_EVENTS)
        events = [told_event(event) for event in look.events]
        if (count := fitting(events, most - AROUND_EVENTS)) < len(events):
            again = await agents.look(place(opened), found, start, limit=count)
            look = replace(again, report=look.report)
            events = [told_event(event) for event in look.events]
        return brief(look, events, opened.claim.news)

    if run is None:
        runs = await agents.runs(caller(ctx).principal)
        return record({"runs": [line_of(one) for one in runs[:MAX_RUNS]]})
    return record(await of_run(ctx, run, tell, lambda report: boxless(report, most)))


@tools.tool(destroys=True, repeatable=True)
async def agent_cancel(ctx: Ctx, run: RunRef) -> CallToolResult:
    """End a coding agent in the box, not the user's machine. What it did stays."""
    server = backend(ctx)
    most = server.limits.max_output

    async def end(opened: OpenBox, found: Run) -> Facts:
        report = await server.agents.cancel(place(opened), found)
        return whole(report, most, opened.claim.news)

    return record(await of_run(ctx, run, end, lambda report: boxless(report, most)))


async def box_of(ctx: Ctx, resume: str | None) -> str | None:
    """The box of the run that is to go on, if it is the caller's; raises InvalidArgument."""
    if resume is None or not is_run_id(resume):
        return None
    run = await backend(ctx).agents.find(caller(ctx).principal, resume)
    try:
        return await backend(ctx).lifecycle.find(caller(ctx), run.box)
    except BoxNotFound:
        gone = f"is a run whose box {run.box} was deleted, with the conversation in it"
        raise InvalidArgument("resume", f"{gone}; pass a copy of that box, if any") from None


@contextmanager
def naming(run: Run) -> Generator[None, None, None]:
    """Has errors say which run there is already: who repeats the call has another agent at work."""
    try:
        yield
    except BoxLost:
        raise
    except BoxError as error:
        error.advice = (
            f'The run {run.id} has begun and may go on: agent_status(run="{run.id}") tells how it '
            "is, agent_cancel ends it. Do not repeat the call"
        )
        raise


def progress(ctx: Ctx) -> OnAct:
    """Reports what the agent does right now as progress."""
    beats = 0

    async def report(act: str, _count: int) -> None:
        nonlocal beats
        beats += 1  # progress must grow, also where an installation was before
        await ctx.report_progress(beats, message=printable(visible(act)) or "running")

    return report
