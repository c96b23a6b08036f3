"""The tools that move files between the user's machine and a box: no others touch the first."""

from __future__ import annotations

import posixpath
from typing import Annotated

import anyio
from anyio import to_thread
from mcp import MCPError
from mcp_types import ListRootsRequest, ListRootsResult
from pydantic import Field, ValidationError

from box_mcp.capabilities.calls import checked_path
from box_mcp.capabilities.crossing import OnProgress
from box_mcp.capabilities.host import Carried, fetch, prepare, send
from box_mcp.capabilities.hostroots import HostRoots, Place, find_roots
from box_mcp.domain.access import Group
from box_mcp.domain.paths import shown
from box_mcp.errors import NoHostDirectory
from box_mcp.surface.sessions import BoxRef, Ctx, backend, open_box
from box_mcp.surface.shell import printable
from box_mcp.surface.toolset import Toolset
from box_mcp.surface.words import counted

tools = Toolset(Group.FILES)

ROOTS_TIMEOUT = 5.0  # s for a client to tell its directories; it knows them
TOLD = 20  # things that a box left out and that are told
TOLD_LENGTH = 200  # characters of each
MIB = 1024**2

HostPath = Annotated[str, Field(description="On the user's machine; relative: in the project.")]
BoxPath = Annotated[str, Field(description="Path in the box.")]
Gitignore = Annotated[bool, Field(description="Leave out what .gitignore hides.")]
Overwrite = Annotated[bool, Field(description="Replace existing files.")]


@tools.tool(destroys=True)
async def file_upload(
    host_path: HostPath,
    ctx: Ctx,
    destination: Annotated[
        str, Field(description="Default: /workspace/NAME. A directory joins one that is there.")
    ] = "",
    box: BoxRef = None,
    overwrite: Overwrite = False,
    gitignore: Gitignore = False,
) -> str:
    """Copy a file or directory from the user's machine (the project, or what host_roots allows)
    into the box, but no credentials and .git. Minutes are too long for clients: upload parts.
    """
    roots = await allowed(ctx)
    place = await to_thread.run_sync(roots.to_read, host_path)
    source = await prepare(place, gitignore=gitignore)
    target = destination or "./"  # whatever the name is, such as ~
    async with open_box(ctx, box) as opened:
        if target.endswith("/"):
            target += place.path.name
        elif not source.is_directory and await opened.trees.kind(target) == "directory":
            target += f"/{place.path.name}"
        carried = await send(
            source, opened.transfers, target, overwrite=overwrite, on_progress=bytes_progress(ctx)
        )
        return opened.reply(
            render(f"uploaded {told(place)} to {shown(target.removeprefix('./'))}", carried)
        )


@tools.tool(destroys=True)
async def file_download(
    path: BoxPath,
    ctx: Ctx,
    host_path: Annotated[str, Field(description="Default: NAME in the project.")] = "",
    box: BoxRef = None,
    overwrite: Overwrite = False,
    gitignore: Gitignore = False,
) -> str:
    """Copy a file or directory from the box to the user's machine (the project, or what host_roots
    allows), all or nothing. Refuses .git and settings of shells, editors and agents.
    """
    roots = await allowed(ctx)
    name = posixpath.basename(checked_path("path", path).rstrip("/"))
    async with open_box(ctx, box) as opened:
        found = await opened.transfers.survey(path, gitignore=gitignore)
        inside = found.kind != "directory"
        place = await to_thread.run_sync(lambda: roots.to_write(host_path, name, inside=inside))
        carried = await fetch(
            opened.transfers,
            path,
            found,
            place,
            overwrite=overwrite,
            gitignore=gitignore,
            on_progress=bytes_progress(ctx),
        )
        return opened.reply(render(f"downloaded {shown(path)} to {told(place)}", carried))


async def allowed(ctx: Ctx) -> HostRoots:
    """The directories of the user's machine that this call may touch; at least one.

    Raises NoHostDirectory.
    """
    host = backend(ctx).host
    if host is None:
        raise NoHostDirectory(
            "this server is used over HTTP, and is on another machine",
            "Read files as resources box://BOX/files/PATH, or by file_read; write by file_write",
        )
    client = await client_roots(ctx)
    roots = await to_thread.run_sync(find_roots, host.named, client, host.project)
    roots.require()
    return roots


async def client_roots(ctx: Ctx) -> list[str]:
    """URLs of the directories that an older client works in; newer ones do not tell them so."""
    declared = ctx.client_capabilities
    if declared is None or declared.roots is None or not ctx.session.can_send_request:
        return []
    try:
        with anyio.fail_after(ROOTS_TIMEOUT):
            answer = await ctx.session.send_request(ListRootsRequest(), ListRootsResult)
    except (MCPError, TimeoutError, ValidationError):
        return []
    return [str(root.uri) for root in answer.roots]


def bytes_progress(ctx: Ctx) -> OnProgress:
    """Reports how far a transfer is, and with what."""
    beats = 0

    async def report(done: int, total: int, name: str) -> None:
        nonlocal beats
        beats += 1  # progress must grow, also from one empty file to the next
        message = f"{done / MIB:,.1f} of {total / MIB:,.1f} MiB {printable(name)}"
        await ctx.report_progress(done + beats, max(total, done) + beats, message)

    return report


def told(place: Place) -> str:
    """A path of the user's machine for a header."""
    return shown(str(place.path))


def render(what: str, carried: Carried) -> str:
    """A header on what went over, then what did not, and why."""
    moved = carried.moved
    things = [
        (moved.files, counted(moved.files, "file")),
        (moved.directories, counted(moved.directories, "directory", "directories")),
        (moved.links, counted(moved.links, "link")),
    ]
    amounts = ", ".join(words for count, words in things if count)
    size = counted(moved.bytes, "byte")
    lines = [f"[{what} · {amounts} · {size} in {moved.seconds:.1f} s]", *carried.left_out.lines()]
    lines += [f"left out: {printable(one)[:TOLD_LENGTH]}" for one in moved.left_out[:TOLD]]
    more = len(moved.left_out[TOLD:]) + moved.more_left_out
    if more:
        lines.append(f"left out: {more:,} more")
    return "\n".join(lines)
