"""Tools that read, write and list files in a box."""

from __future__ import annotations

from datetime import UTC, datetime
from stat import filemode
from typing import Annotated

from pydantic import Field

from box_mcp.capabilities.files import Entry, Lines, Listing
from box_mcp.surface.sessions import BoxRef, Ctx, backend, open_box
from box_mcp.surface.toolset import Toolset

tools = Toolset()

MAX_LINES = 2000
MAX_ENTRIES = 1000
KIND_LETTERS = {"directory": "/", "symlink": "@", "other": "="}

BoxPath = Annotated[str, Field(description="Path in the box; relative ones start at /workspace.")]


@tools.tool(reads=True, core=True)
async def file_read(
    path: BoxPath,
    ctx: Ctx,
    box: BoxRef = None,
    first_line: Annotated[
        int, Field(ge=1, description="First line to return; lines count from 1.")
    ] = 1,
    max_lines: Annotated[
        int, Field(ge=1, le=MAX_LINES, description="Most lines to return.")
    ] = MAX_LINES,
) -> str:
    """Read a text file in the box (not on the user's machine). Returns a header line with size and
    range, then the lines as they are. Long files come in parts: the header names the next
    first_line.
    """
    async with open_box(ctx, box) as opened:
        lines = await opened.files.read(path, first_line, max_lines, backend(ctx).limits.max_output)
        return opened.reply(render_lines(path, first_line, lines))


@tools.tool(destroys=True, repeatable=True, core=True)
async def file_write(
    path: BoxPath,
    content: Annotated[str, Field(description="The whole new content, as text.")],
    ctx: Ctx,
    box: BoxRef = None,
) -> str:
    """Write a text file in the box (not on the user's machine): makes it, or replaces all of it
    in one step, keeping its mode. Missing directories are made.
    """
    async with open_box(ctx, box) as opened:
        written = await opened.files.write(path, content.encode(errors="surrogatepass"))
        how = "created" if written.created else "replaced"
        return opened.reply(f"[{how} {path} · {written.size:,} bytes]")


@tools.tool(reads=True)
async def file_list(
    ctx: Ctx,
    path: BoxPath = ".",
    box: BoxRef = None,
    limit: Annotated[int, Field(ge=1, le=MAX_ENTRIES, description="Most entries to return.")] = 200,
) -> str:
    """List a directory in the box (not on the user's machine), sorted by name: mode, size in bytes,
    time of change (UTC) and name; / marks directories, @ symlinks.
    """
    async with open_box(ctx, box) as opened:
        return opened.reply(render_listing(path, await opened.files.list(path, limit)))


def render_lines(path: str, first_line: int, lines: Lines) -> str:
    """The header and the text, or words on why there is no text."""
    facts = lines.facts
    if b"\0" in lines.content:
        advice = "binary: use shell_run with xxd, file or base64 to look into it"
        return f"[{path} · {facts.size:,} bytes · {advice}]"
    if facts.lines == 0:
        what = "empty" if facts.size == 0 else f"ends before line {first_line}"
        return f"[{path} · {facts.size:,} bytes · {what}]"
    following = first_line + facts.lines
    last = f"lines {first_line}-{following - 1}"
    if facts.more and not lines.content.endswith(b"\n"):
        last += f", the last one cut · continue with: tail -n +{following - 1} {path} | cut -c..."
    elif facts.more:
        last += f" · more: first_line={following}"
    return f"[{path} · {facts.size:,} bytes · {last}]\n{lines.content.decode(errors='replace')}"


def render_listing(path: str, listing: Listing) -> str:
    """A line for each entry, and how many are left out."""
    left_out = listing.total - len(listing.entries)
    more = f", the first {len(listing.entries)} shown" if left_out > 0 else ""
    return "\n".join([f"[{path} · {listing.total} entries{more}]", *map(_line, listing.entries)])


def _line(entry: Entry) -> str:
    mark = KIND_LETTERS.get(entry.kind, "")
    mode = filemode(entry.mode)[1:]
    return f"{mode} {entry.size:>10} {_moment(entry.modified)} {one_line(entry.name)}{mark}"


def _moment(seconds: float) -> str:
    """A file's time in UTC; files can bear times that no calendar has."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "????-??-?? ??:??"


def one_line(name: str) -> str:
    """`name` with control characters escaped: a line break in it must not look like an entry."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
