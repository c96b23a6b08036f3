"""Tools that list and search directories in a box, and move, copy and delete what is in them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from stat import filemode
from typing import Annotated

from pydantic import Field

from box_mcp.capabilities.calls import checked_path
from box_mcp.capabilities.host import Carried
from box_mcp.capabilities.leftout import LeftOut
from box_mcp.capabilities.transfer import copy_between
from box_mcp.capabilities.trees import Case, Entry, File, Found, Line, Listing, Mode, Moved, told
from box_mcp.domain.access import Group
from box_mcp.domain.paths import ERRORS, parse, shown
from box_mcp.errors import InvalidArgument
from box_mcp.surface.sessions import BoxRef, Ctx, backend, caller, open_box
from box_mcp.surface.toolset import Toolset
from box_mcp.surface.transfer import BoxPath, Gitignore, Overwrite, bytes_progress, render
from box_mcp.surface.words import counted, visible

tools = Toolset(Group.FILES)

MAX_ENTRIES = 1000
MAX_FOUND = 2000
MAX_DEPTH = 64
MAX_CONTEXT = 20
MARKS = {"directory": "/", "symlink": "@", "other": "="}

Findings = Found[Line | File]
Destination = Annotated[str, Field(description="New path, or directory to put it into.")]
Cursor = Annotated[str, Field(description="Next page, from the header.")]


@tools.tool(reads=True)
async def file_list(
    ctx: Ctx,
    path: BoxPath = ".",
    box: BoxRef = None,
    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH, description="Levels.")] = 1,
    glob: Annotated[str, Field(description="Only such: *.py, src/**")] = "",
    hidden: Annotated[bool, Field(description="Dotfiles too.")] = True,
    gitignore: Gitignore = False,
    limit: Annotated[int, Field(ge=1, le=MAX_ENTRIES, description="Entries.")] = 200,
    cursor: Cursor = "",
) -> str:
    """List a directory in the box, not the user's machine, by name: mode, size in bytes, time of
    change (UTC), name; / marks directories, @ symlinks.
    """
    async with open_box(ctx, box) as opened:
        listing = await opened.trees.listing(
            path,
            limit=limit,
            depth=depth,
            glob=glob,
            hidden=hidden,
            gitignore=gitignore,
            cursor=cursor,
        )
        most = backend(ctx).limits.max_output
        return opened.reply(render_listing(path, listing, most, goes_on=bool(cursor)))


@tools.tool(reads=True, core=True)
async def file_search(
    pattern: Annotated[str, Field(description="Regular expression.")],
    ctx: Ctx,
    path: BoxPath = ".",
    box: BoxRef = None,
    mode: Annotated[Mode, Field(description="What is returned.")] = "matches",
    literal: Annotated[bool, Field(description="pattern is plain text.")] = False,
    case: Annotated[Case, Field(description="smart: ignored unless it has capitals.")] = "exact",
    glob: Annotated[str, Field(description="*.py, !*.min.js")] = "",
    type: Annotated[str, Field(description="py, ts, rust")] = "",  # noqa: A002 - ripgrep's word
    context: Annotated[int, Field(ge=0, le=MAX_CONTEXT, description="Lines around.")] = 0,
    hidden: Annotated[bool, Field(description="Dotfiles too.")] = False,
    gitignore: Gitignore = True,
    limit: Annotated[int, Field(ge=1, le=MAX_FOUND, description="Lines.")] = 200,
    cursor: Cursor = "",
) -> str:
    """Search files in the box, not the user's machine, with ripgrep: path:line:text for each match,
    or only files, or counts.
    """
    limits = backend(ctx).limits
    after = behind(cursor, mode)
    async with open_box(ctx, box) as opened:
        found = await opened.trees.search(
            Line if mode == "matches" else File,
            path,
            pattern,
            limit=limit,
            max_output=limits.max_output,
            mode=mode,
            literal=literal,
            case=case,
            glob=glob,
            file_type=type,
            context=context,
            hidden=hidden,
            gitignore=gitignore,
            after=after,
        )
        left_out = ("" if hidden else "hidden files", "what .gitignore hides" * gitignore)
        text = render_found(
            path, found, mode, gaps=context > 0, left_out=", ".join(filter(None, left_out))
        )
        return opened.reply(text)


@tools.tool(destroys=True)
async def file_move(
    source: BoxPath,
    destination: Destination,
    ctx: Ctx,
    box: BoxRef = None,
    overwrite: Overwrite = False,
) -> str:
    """Move or rename a file or directory in the box, not the user's machine. Missing directories
    are made; one that is not empty is never overwritten.
    """
    async with open_box(ctx, box) as opened:
        moved = await opened.trees.move(source, destination, overwrite=overwrite)
        return opened.reply(render_moved(f"moved {source} to", moved))


@tools.tool(destroys=True)
async def file_copy(
    source: BoxPath,
    destination: Destination,
    ctx: Ctx,
    box: BoxRef = None,
    to_box: Annotated[str, Field(description="Another box, for destination.")] = "",
    overwrite: Overwrite = False,
) -> str:
    """Copy a file or directory in the box, or to another of your boxes, not the user's machine.
    Modes, times and symlinks are kept.
    """
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(open_box(ctx, box))
        lifecycle = backend(ctx).lifecycle
        if not to_box or await lifecycle.find(caller(ctx), to_box) == opened.id:
            copied = await opened.trees.copy(source, destination, overwrite=overwrite)
            return opened.reply(render_moved(f"copied {source} to", copied))
        other = await stack.enter_async_context(open_box(ctx, to_box))
        place = checked_path("destination", destination)
        if place.endswith("/") or await other.trees.kind(destination) == "directory":
            place = posixpath.join(place, posixpath.basename(checked_path("source", source)))
        carried = await copy_between(
            opened.transfers,
            source,
            other.transfers,
            place,
            overwrite=overwrite,
            on_progress=bytes_progress(ctx),
        )
        what = f"copied {source} to {shown(place)} in {other.id}"
        return opened.reply(other.reply(render(what, Carried(carried, LeftOut()))))


@tools.tool(destroys=True)
async def file_delete(
    path: BoxPath,
    ctx: Ctx,
    box: BoxRef = None,
    recursive: Annotated[bool, Field(description="With all that is in it.")] = False,
) -> str:
    """Delete a file, symlink or directory in the box, not the user's machine, for good."""
    async with open_box(ctx, box) as opened:
        deleted = await opened.trees.delete(path, recursive=recursive)
        many = f" · {_entries(deleted.entries)}" if deleted.entries > 1 else ""
        return opened.reply(f"[deleted {_shown(deleted.path)}{many}]")


def render_listing(path: str, listing: Listing, most: int, *, goes_on: bool = False) -> str:
    """A line for each entry, in about `most` characters, and how to go on.

    `goes_on`: other entries came before.
    """
    facts = listing.facts
    lines = _fitting(listing, most)
    total = facts.total
    if total is None and not facts.more and not goes_on:
        total = len(listing.entries)
    parts = [path, "" if total is None else _entries(total)]
    last = facts.reached if facts.more else None
    if lines and (len(lines) < len(listing.entries) or (facts.more and last is None)):
        last = listing.entries[len(lines) - 1].path
    elif last is not None:
        parts.append("this takes long, so not all was looked at")
    if last is not None:
        parts.append(f'{len(lines):,} shown · more: cursor="{told(facts.directory, last)}"')
    if facts.unreadable:
        names = ", ".join(told(facts.directory, name) for name in facts.unreadable)
        parts.append(f"not readable: {names}")
    return "\n".join([f"[{' · '.join(filter(None, parts))}]", *lines])


def render_found(
    path: str, found: Findings, mode: Mode = "matches", *, gaps: bool = False, left_out: str = ""
) -> str:
    """The header, then a line for each line or file; `gaps` between what is not together.

    `left_out` is what was not searched, which who finds nothing should hear.
    """
    facts = found.facts
    parts = [_how_many(found, mode)]
    if not found.items and left_out and not facts.one_file:
        parts.append(f"not searched: {left_out}")
    if facts.more and found.items:
        parts.append(f'{len(found.items):,} shown · more: cursor="{_cursor(found)}"')
    if facts.unreadable:
        parts.append("some files are not readable")
    if facts.engine == "python":
        parts.append("without ripgrep, so slower")
    names = _names(path, found)
    return "\n".join(
        [f"[{' · '.join(parts)}]", *_lines(zip(names, found.items, strict=True), gaps)]
    )


def behind(cursor: str, mode: Mode) -> tuple[str, int] | None:
    """The path and the line that a page of a search follows."""
    if not cursor or mode != "matches":
        return (cursor, 0) if cursor else None
    path, _, line = cursor.rpartition(":")
    if not path or not (line.isascii() and line.isdigit()):
        raise InvalidArgument("cursor", "is none of a search with this mode")
    return path, int(line)


def render_moved(what: str, moved: Moved) -> str:
    """Where something is now, and how much it was, if that was counted."""
    parts = [f"{what} {_shown(moved.path)}"]
    if moved.entries is not None and moved.entries > 1:
        parts.append(_entries(moved.entries))
    if moved.size is not None:
        parts.append(counted(moved.size, "byte"))
    if moved.skipped:
        parts.append(f"{moved.skipped:,} sockets, pipes or devices were left out")
    return f"[{' · '.join(parts)}]"


def moment(seconds: float) -> str:
    """A file's time in UTC; files can bear times that no calendar has."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "????-??-?? ??:??"


def _fitting(listing: Listing, most: int) -> list[str]:
    """The lines of as many entries as fit into `most` characters; at least one."""
    lines: list[str] = []
    size = 0
    for entry in listing.entries:
        line = _line(listing.facts.directory, entry)
        size += len(line) + 1
        if lines and size > most:
            break
        lines.append(line)
    return lines


def _line(directory: bytes, entry: Entry) -> str:
    name = told(directory, entry.path) + MARKS.get(entry.kind, "")
    if entry.target is not None:
        name += f" -> {_shown(entry.target)}"
    return f"{filemode(entry.mode)[1:]} {entry.size:>10} {moment(entry.modified)} {name}"


def _shown(path: bytes) -> str:
    return shown(path.decode(errors=ERRORS))


def _entries(count: int) -> str:
    return counted(count, "entry", "entries")


def _how_many(found: Findings, mode: Mode) -> str:
    facts = found.facts
    if facts.matches is None or facts.files is None:
        return "too many to count"
    if not facts.matches:
        return "no matches"
    files = counted(facts.files, "file")
    return files if mode == "files" else f"{counted(facts.matches, 'match', 'matches')} in {files}"


def _cursor(found: Findings) -> str:
    last = found.items[-1]
    path = told(found.facts.directory, last.path)
    return f"{path}:{last.line}" if isinstance(last, Line) else path


def _names(path: str, found: Findings) -> Iterator[str]:
    """The items' paths, as tools take them."""
    base = parse(path)
    for item in found.items:
        name = item.path.decode(errors=ERRORS)
        if found.facts.one_file:
            name = base
        elif base != ".":
            name = posixpath.join(base, name)
        yield (
            name if name.isprintable() else _shown(posixpath.join(found.facts.directory, item.path))
        )


def _lines(items: Iterable[tuple[str, Line | File]], gaps: bool) -> Iterator[str]:
    last: tuple[str, int] | None = None
    for name, item in items:
        if isinstance(item, File):
            yield name if item.count is None else f"{name}:{item.count}"
            continue
        if gaps and last not in (None, (name, item.line - 1)):
            yield "--"
        last = name, item.line
        mark = ":" if item.hit else "-"
        text = visible(item.text.removesuffix("\r"))
        yield f"{name}{mark}{item.line}{mark}{text}"
