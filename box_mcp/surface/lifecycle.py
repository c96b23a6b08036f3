"""Tools that make, show, pause and delete boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Literal

import anyio
from mcp_types import CallToolResult
from pydantic import BaseModel, Field, SerializeAsAny

from box_mcp.capabilities.shell import Shell
from box_mcp.capabilities.unpushed import unpushed
from box_mcp.domain.access import Group
from box_mcp.domain.box import State, Terms
from box_mcp.domain.catalogue import Order
from box_mcp.domain.snapshots import Snapshot
from box_mcp.engines.base import Change, ChangeKind, Saved
from box_mcp.errors import BoxError, BoxLost, BoxNotFound, InvalidArgument, WouldLose
from box_mcp.lifecycle import MAX_FORKS, Report, pause_act
from box_mcp.surface.consent import (
    Consent,
    Question,
    asks,
    can_ask,
    consenting,
    looks,
    question,
    warning,
)
from box_mcp.surface.refusals import listed
from box_mcp.surface.requests import noted
from box_mcp.surface.sessions import BoxRef, Ctx, backend, caller, look_into, meant
from box_mcp.surface.toolset import Toolset, record
from box_mcp.surface.words import reach

tools = Toolset(Group.LIFECYCLE)

MIB = 1024**2
HEADER_ROOM = 200  # characters
LABELS_LIMIT = 4000  # characters; box_list shows them all
LETTERS = {ChangeKind.ADDED: "A", ChangeKind.CHANGED: "M", ChangeKind.DELETED: "D"}

LOOK_TIMEOUT = 20.0  # s for waking a box and looking for work in it

KEEP_WORK = (
    "Push or commit it where it is wanted. Else tell the user what would be lost; once they agree, "
    "box_delete with discard=true deletes it"
)

SomeBox = Annotated[str, Field(description="Id or name of a box.")]


class BoxState(BaseModel):
    """What other tools' schemas say of a box, though they tell as much as `box_list` does."""

    id: str
    name: str | None
    state: str
    depth: str | None
    note: str


class BoxInfo(BoxState):
    """A box as callers see it."""

    image: str
    size: str
    cpus: float
    memory_mib: int
    network: str
    labels: dict[str, str]
    created: str
    last_used: str


class BoxDetail(BoxInfo):
    """The same with what the box holds now, None for what the engine can't tell; with where its
    ports are for the user, what its network policy refused, and which agent works in it.
    """

    memory_held_mib: float | None
    disk_held_mib: float | None
    ports: list[str]
    refused: list[str]
    routes: list[str]
    harness: str
    model: str


class Boxes(BaseModel):
    """Several boxes."""

    boxes: list[SerializeAsAny[BoxState]]


class SnapshotInfo(BaseModel):
    """A snapshot as callers see it."""

    name: str
    origin: str
    created: str
    size_mib: float
    added_mib: float


async def may_create(
    ctx: Ctx,
    name: str | None,
    reuse: bool,
    profile: str | None,
    image: str | None,
    keep_awake: bool,
    network: str | None,
    allow: Sequence[str] | None,
) -> Question:
    """Asks for what is beyond the settings' ceiling, unless nothing is to be made."""
    lifecycle = backend(ctx).lifecycle
    if reuse and name is not None:
        with suppress(BoxNotFound):
            await lifecycle.find(caller(ctx), name)
            return None
    terms = Terms(keep_awake=keep_awake)
    order = Order(profile=profile, image=image, network=network, allow=allow, terms=terms)
    return question(ctx, "make a box", lifecycle.catalogue.beyond(order))


@tools.tool(core=True, structured=True)
async def box_create(
    ctx: Ctx,
    answer: Annotated[Consent, asks(may_create)],
    name: Annotated[
        str | None,
        Field(description="A unique name, which other calls take as `box`."),
    ] = None,
    reuse: Annotated[bool, Field(description="Return your box of this name, if any.")] = False,
    profile: Annotated[
        str | None,
        Field(description="A template of the settings; a wrong name lists them."),
    ] = None,
    image: Annotated[str | None, Field(description="Image with python3. Default: Debian.")] = None,
    snapshot: Annotated[
        str | None,
        Field(description="Start as this snapshot, without image and profile."),
    ] = None,
    size: Annotated[
        str | None, Field(description="small, medium (default), large, or what settings define.")
    ] = None,
    env: Annotated[
        dict[str, str] | None,
        Field(description="Variables for all commands in it. No secrets: they would stay."),
    ] = None,
    setup: Annotated[
        str | None,
        Field(description="Command to run once in it, such as `npm ci`."),
    ] = None,
    labels: Annotated[dict[str, str] | None, Field(description="Notes, shown by box_list.")] = None,
    ttl: Annotated[
        float | None,
        Field(gt=0, description="Seconds unused until it is deleted. Default: a week."),
    ] = None,
    keep_awake: Annotated[
        bool, Field(description="Never pause it when idle: for servers.")
    ] = False,
    network: Annotated[
        Literal["full", "allowlist", "none"] | None,
        Field(description="What it may reach: all that is public, what allow lists, nothing."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        Field(description="Such as *.example.org, example.org:8443. Else ports 80, 443."),
    ] = None,
    routes: Annotated[
        list[str] | None,
        Field(description="Only these of the settings' credential routes. Default: all."),
    ] = None,
    harness: Annotated[
        str | None, Field(description="Coding agent that agent_run takes in it by default.")
    ] = None,
    model: Annotated[str | None, Field(description="Model of this agent.")] = None,
) -> BoxState:
    """Make a box: an isolated Linux container with its own files, processes and network.

    Only for separate, named or special work: without `box`, calls use this session's own box,
    made on first use.
    """
    terms = Terms(labels=checked_labels(labels or {}), ttl=ttl, keep_awake=keep_awake)
    with consenting(answer) as approved:
        order = Order(
            name=name,
            reuse=reuse,
            profile=profile,
            snapshot=snapshot,
            image=image,
            size=size,
            env=env or {},
            setup=setup,
            network=network,
            allow=allow,
            routes=routes,
            harness=harness,
            model=model,
            terms=terms,
            approved=approved,
        )
        made = await backend(ctx).lifecycle.create(caller(ctx), order)
    noted(made.box.id)
    return describe(made)


@tools.tool(reads=True, structured=True)
async def box_list(ctx: Ctx) -> Boxes:
    """List your boxes, oldest first, paused ones included."""
    reports = await backend(ctx).lifecycle.list(caller(ctx))
    return Boxes(boxes=[describe(report) for report in reports])


@tools.tool(reads=True, structured=True)
async def box_info(ctx: Ctx, box: BoxRef = None) -> BoxDetail:
    """Tell a box's state and why, what is next, what it holds, its exposed ports, its credential
    routes, and refused connections. Does not wake it.
    """
    server, who, known = backend(ctx), caller(ctx), await meant(ctx, box)
    report, held = await server.lifecycle.info(who, known), await server.lifecycle.usage(who, known)
    return BoxDetail(
        **describe(report).model_dump(),
        memory_held_mib=mib(held.memory),
        disk_held_mib=mib(held.disk),
        ports=[f"{one.url} leads to {one.port}" for one in server.ports.of(report.box.id)],
        refused=listed(server.proxies.egress(report.box.id).refused.since(), report.box.network),
        routes=[str(route) for route in server.routes.of(report.box)],
        harness=report.box.spec.harness,
        model=report.box.spec.model,
    )


@tools.tool(repeatable=True)
async def box_pause(
    ctx: Ctx,
    box: BoxRef = None,
    depth: Annotated[
        Literal["frozen", "stopped"],
        Field(description="frozen: processes and memory are kept, no CPU. stopped: files only."),
    ] = "frozen",
) -> CallToolResult:
    """Pause a box. Rarely needed: idle boxes pause by themselves, and calls wake them."""
    server, who, known = backend(ctx), caller(ctx), await meant(ctx, box)
    await server.ports.hang_up(known)
    paused = describe(await server.lifecycle.pause(who, known, pause_act(depth)))
    return record(paused.model_dump())


@tools.tool(repeatable=True)
async def box_resume(ctx: Ctx, box: BoxRef = None) -> CallToolResult:
    """Wake a paused box now. Rarely needed: any call wakes it."""
    resumed = describe(await backend(ctx).lifecycle.resume(caller(ctx), await meant(ctx, box)))
    return record(resumed.model_dump())


async def work_in(ctx: Ctx, box: str, discard: bool) -> Sequence[str]:
    """What would be lost with a box: work that is nowhere else, as far as it can be told.

    A paused box is woken for it. Nobody looks where the user has agreed, and can't be asked here.
    """
    if discard and not can_ask(ctx):
        return ()
    server, who, known = backend(ctx), caller(ctx), await meant(ctx, box)
    report = await server.lifecycle.info(who, known)
    if report.box.state in (State.CREATED, State.LOST):
        return ()
    runs = await server.agents.runs(who.principal, known)
    agents = [
        f"the work of a coding agent, {run.id}, whose end nobody has seen"
        for run in runs
        if run.ended is None
    ]
    try:
        with anyio.fail_after(LOOK_TIMEOUT):
            async with look_into(ctx, known) as claim:
                found = await unpushed(Shell(claim.channel, claim.box.spec.cwd))
    except BoxLost:
        return ()
    except BoxNotFound:
        raise
    except (BoxError, TimeoutError, ValueError) as error:
        why = str(error) or "it took too long"
        return [*agents, f"whatever is in it, which could not be looked into: {why}"]
    return [*agents, *map(str, found)]


Work = Annotated[Sequence[str], looks(work_in)]


async def may_delete(ctx: Ctx, box: str, work: Work) -> Question:
    """Asks before work is lost."""
    return warning(ctx, f"delete the box {box}", work)


@tools.tool(destroys=True)
async def box_delete(
    box: SomeBox,
    ctx: Ctx,
    work: Work,
    answer: Annotated[Consent, asks(may_delete)],
    discard: Annotated[  # noqa: ARG001 - for `work_in`
        bool, Field(description="Also unpushed work, once the user agreed.")
    ] = False,
) -> str:
    """Delete a box with all its files and processes, for good."""
    with consenting(answer, KEEP_WORK) as approved:
        if work and not approved:
            raise WouldLose(f"delete {box}", work)
    deleted = await backend(ctx).lifecycle.delete(caller(ctx), await meant(ctx, box))
    return (
        f"[deleted {deleted.id}{f' ({deleted.name})' if deleted.name else ''} with all its files]"
    )


@tools.tool(structured=True)
async def box_fork(
    ctx: Ctx,
    box: BoxRef = None,
    count: Annotated[
        int, Field(ge=1, le=MAX_FORKS, description=f"How many, {MAX_FORKS} at most.")
    ] = 1,
) -> Boxes:
    """Copy a box with all its files into new running boxes, to try several ways from one state.

    Processes are not copied, nor the name. The original goes on untouched.
    """
    made = await backend(ctx).lifecycle.fork(caller(ctx), await meant(ctx, box), count)
    for report in made:
        noted(report.box.id)
    return Boxes(boxes=[describe(report) for report in made])


@tools.tool(reads=True)
async def box_changes(
    ctx: Ctx,
    box: BoxRef = None,
    under: Annotated[str, Field(description="Only in this directory.")] = "/",
) -> str:
    """List the paths that were added (A), changed (M) or deleted (D) since the box was made.

    A box from a snapshot is compared with that. Does not wake the box.
    """
    lifecycle = backend(ctx).lifecycle
    found = await lifecycle.changes(caller(ctx), await meant(ctx, box))
    prefix = under.rstrip("/") + "/"
    paths = [one for one in found if (one.path + "/").startswith(prefix)]
    return changes_text(paths, under, backend(ctx).limits.max_output)


@tools.tool()
async def snapshot_create(
    ctx: Ctx,
    name: Annotated[str, Field(description="A new name.")],
    box: BoxRef = None,
) -> CallToolResult:
    """Save all files and settings of a box, not its processes, under a name.

    `box_create(snapshot=name)` makes boxes from it, also when the first is gone.
    """
    known = await meant(ctx, box)
    snapshot, saved = await backend(ctx).lifecycle.snapshot(caller(ctx), name, known)
    return record(describe_snapshot(snapshot, saved).model_dump())


@tools.tool(reads=True)
async def snapshot_list(ctx: Ctx) -> CallToolResult:
    """List the snapshots of your boxes, oldest first, with origin and size."""
    found = await backend(ctx).lifecycle.snapshots(caller(ctx))
    return record({"snapshots": [describe_snapshot(*one).model_dump() for one in found]})


@tools.tool(destroys=True)
async def snapshot_delete(
    ctx: Ctx, name: Annotated[str, Field(description="Name of a snapshot.")]
) -> str:
    """Delete a snapshot for good. A box made from it goes on."""
    deleted = await backend(ctx).lifecycle.delete_snapshot(caller(ctx), name)
    return f"[deleted the snapshot {deleted.name}]"


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
        network=reach(box.network),
        labels=dict(box.terms.labels),
        created=moment(box.created),
        last_used=moment(box.used),
        note=note(report),
    )


def describe_snapshot(snapshot: Snapshot, saved: Saved) -> SnapshotInfo:
    """What callers are told of a snapshot."""
    return SnapshotInfo(
        name=snapshot.name or "",
        origin=snapshot.origin,
        created=moment(snapshot.created),
        size_mib=mib(saved.size) or 0.0,
        added_mib=mib(saved.added) or 0.0,
    )


def note(report: Report) -> str:
    """What the caller should know first, why the box is as it is, and what comes next."""
    return "; ".join((*report.notes, *_state_of(report)))


def _state_of(report: Report) -> list[str]:
    box = report.box
    said = [f"{box.state} since {moment(box.since)}{f' ({box.reason})' if box.reason else ''}"]
    if box.state is State.FROZEN:
        said.append("processes and memory are kept")
    if report.busy and box.state is State.RUNNING:
        said.append("awake because commands run in it")
    elif box.terms.keep_awake and box.state is State.RUNNING:
        said.append("kept awake as asked for")
    if report.next_act is not None and report.next_at is not None and not report.busy:
        said.append(f"idle, next: {report.next_act} at {moment(report.next_at)}")
    return said


def changes_text(changes: Sequence[Change], under: str, limit: int) -> str:
    """One line for each path, as many as fit into `limit` characters, after a header."""
    lines: list[str] = []
    room = limit - HEADER_ROOM
    for change in changes:
        line = f"{LETTERS[change.kind]} {printable(change.path)}"
        room -= len(line) + 1
        if room < 0:
            break
        lines.append(line)
    header = f"[{len(changes)} changed paths under {under}"
    if len(lines) < len(changes):
        header += f"; only the first {len(lines)} are shown: narrow it down with `under`"
    return "\n".join([f"{header}]", *lines])


def printable(path: str) -> str:
    """`path` on one line."""
    return path if path.isprintable() else repr(path)


def checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """`labels`, unless they are too many; raises InvalidArgument."""
    if sum(len(key) + len(value) for key, value in labels.items()) > LABELS_LIMIT:
        raise InvalidArgument("labels", f"are longer than {LABELS_LIMIT:,} characters together")
    return labels


def mib(size: int | None) -> float | None:
    """Bytes as MiB, to a tenth."""
    return None if size is None else round(size / MIB, 1)


def moment(seconds: float) -> str:
    """Seconds since the epoch as a UTC time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
