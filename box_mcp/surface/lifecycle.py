"""Tools that make, show, pause and delete boxes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from box_mcp.domain.box import State
from box_mcp.lifecycle import Report, pause_act
from box_mcp.surface.sessions import BoxRef, Ctx, backend, caller
from box_mcp.surface.toolset import Toolset

tools = Toolset()

MIB = 1024**2

SomeBox = Annotated[str, Field(description="Id or name of a box.")]


class BoxInfo(BaseModel):
    """A box as callers see it."""

    id: str
    name: str | None
    state: str
    depth: str | None
    image: str
    size: str
    cpus: float
    memory_mib: int
    created: str
    last_used: str
    note: str


class BoxList(BaseModel):
    """All boxes of the caller."""

    boxes: list[BoxInfo]


@tools.tool(core=True, structured=True)
async def box_create(
    ctx: Ctx,
    name: Annotated[
        str | None,
        Field(description="A name of your own, unique, usable wherever a box is asked for."),
    ] = None,
    image: Annotated[
        str | None, Field(description="Image with python3. Default: the standard Debian image.")
    ] = None,
    size: Annotated[str | None, Field(description="small, medium (default) or large.")] = None,
    env: Annotated[
        dict[str, str] | None,
        Field(description="Variables for all commands in it. No secrets: they would stay."),
    ] = None,
) -> BoxInfo:
    """Make a new box: an isolated Linux container with its own files, processes and network.

    Only needed for separate or named work: without `box`, every call uses this session's own box,
    which is made on first use.
    """
    return describe(await backend(ctx).lifecycle.create(caller(ctx), name, image, size, env))


@tools.tool(reads=True, structured=True)
async def box_list(ctx: Ctx) -> BoxList:
    """List your boxes, oldest first, paused ones included."""
    reports = await backend(ctx).lifecycle.list(caller(ctx))
    return BoxList(boxes=[describe(report) for report in reports])


@tools.tool(reads=True, structured=True)
async def box_info(ctx: Ctx, box: BoxRef = None) -> BoxInfo:
    """Tell one box's state, size and age, why it is awake or paused, and what comes next.

    Does not wake it.
    """
    return describe(await backend(ctx).lifecycle.info(caller(ctx), box))


@tools.tool(repeatable=True, structured=True)
async def box_pause(
    ctx: Ctx,
    box: BoxRef = None,
    depth: Annotated[
        Literal["frozen", "stopped"],
        Field(description="frozen: processes and memory are kept, no CPU. stopped: files only."),
    ] = "frozen",
) -> BoxInfo:
    """Pause a box. Rarely needed: idle boxes pause by themselves, and any later call wakes them."""
    return describe(await backend(ctx).lifecycle.pause(caller(ctx), box, pause_act(depth)))


@tools.tool(repeatable=True, structured=True)
async def box_resume(ctx: Ctx, box: BoxRef = None) -> BoxInfo:
    """Wake a paused box now. Not needed before other calls: they wake it themselves."""
    return describe(await backend(ctx).lifecycle.resume(caller(ctx), box))


@tools.tool(destroys=True)
async def box_delete(box: SomeBox, ctx: Ctx) -> str:
    """Delete a box with all its files and processes, for good. It must be named explicitly."""
    deleted = await backend(ctx).lifecycle.delete(caller(ctx), box)
    return (
        f"[deleted {deleted.id}{f' ({deleted.name})' if deleted.name else ''} with all its files]"
    )


def describe(report: Report) -> BoxInfo:
    """What callers are told of a box."""
    box = report.box
    paused = box.state in (State.FROZEN, State.STOPPED)
    return BoxInfo(
        id=box.id,
        name=box.name,
        state=box.state.public,
        depth=box.state.value if paused else None,
        image=box.spec.image,
        size=box.spec.size,
        cpus=box.spec.cpus,
        memory_mib=box.spec.memory // MIB,
        created=moment(box.created),
        last_used=moment(box.used),
        note=note(report),
    )


def note(report: Report) -> str:
    """Why the box is as it is, and what comes next."""
    box = report.box
    since = f"{box.state} since {moment(box.since)}{f' ({box.reason})' if box.reason else ''}"
    if report.busy and box.state is State.RUNNING:
        return f"{since}; awake because commands run in it"
    if report.next_act is None or report.next_at is None:
        return since
    return f"{since}; idle, next: {report.next_act} at {moment(report.next_at)}"


def moment(seconds: float) -> str:
    """Seconds since the epoch as a UTC time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
