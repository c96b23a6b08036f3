"""Tools that read, write and edit files in a box."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NoBase64
from posixpath import join
from typing import Annotated, Any

from mcp_types import (
    BlobResourceContents,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    TextContent,
)
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from box_mcp.capabilities.files import Edit, Edited, Part, ReadFacts
from box_mcp.domain.access import Group
from box_mcp.domain.paths import WORKSPACE, parse
from box_mcp.domain.uris import file_uri
from box_mcp.errors import InvalidArgument
from box_mcp.surface.diffs import unified
from box_mcp.surface.sessions import BoxRef, Ctx, backend, open_box
from box_mcp.surface.toolset import Toolset
from box_mcp.surface.words import counted, visible

tools = Toolset(Group.FILES)

MAX_LINES = 2000
MIN_OUTPUT = 200
MAX_OUTPUT = 4 * 1024 * 1024
MAX_EDITS = 200
WRITTEN_OUT = r"control characters are written out, as \x1b; base64=true keeps them"
FOLD = 2000  # bytes of a line that are shown, at most
MEDIA_LIMIT = 5 * 1024 * 1024 * 3 // 4  # bytes, which are 5 MiB in base64: what models take
PDF = "application/pdf"

BoxPath = Annotated[str, Field(description="Path in the box; relative: in /workspace.")]
IfVersion = Annotated[
    str, Field(description="Refuse unless it has this version; new: unless there is none.")
]


OLD = ("old", "old_string", "old_str")  # the last ones are what other tools call them
NEW = ("new", "new_string", "new_str")
EDIT = (*OLD, *NEW, "replace_all")


class Replacement(BaseModel):
    """One of file_edit's edits."""

    model_config = ConfigDict(extra="forbid")

    old: Annotated[str, Field(validation_alias=AliasChoices(*OLD))]
    new: Annotated[str, Field(validation_alias=AliasChoices(*NEW))]
    replace_all: bool = False


def as_list(arguments: dict[str, Any]) -> dict[str, Any]:
    """A lone edit, given as such or as arguments of the call, as a list of one."""
    if "edits" not in arguments:
        edit = {name: value for name, value in arguments.items() if name in EDIT}
        others = {name: value for name, value in arguments.items() if name not in EDIT}
        return {**others, "edits": [edit]} if edit else arguments
    edits = arguments["edits"]
    if isinstance(edits, str) and edits.lstrip().startswith("{"):
        return {**arguments, "edits": f"[{edits}]"}
    return {**arguments, "edits": [edits]} if isinstance(edits, dict) else arguments


@tools.tool(reads=True, core=True)
async def file_read(
    path: BoxPath,
    ctx: Ctx,
    box: BoxRef = None,
    first_line: Annotated[int, Field(ge=1, description="Counts from 1.")] = 1,
    max_lines: Annotated[int, Field(ge=1, description="Most lines.")] = MAX_LINES,
    tail: Annotated[int, Field(ge=0, description="Only this many last lines.")] = 0,
    line_numbers: Annotated[bool, Field(description="Number the lines.")] = False,
    offset: Annotated[int, Field(ge=0, description="Read bytes from here, not lines.")] = 0,
    length: Annotated[int, Field(ge=0, description="Bytes to read.")] = 0,
    base64: Annotated[bool, Field(description="Read bytes, as base64.")] = False,
    max_output: Annotated[int, Field(ge=0, le=MAX_OUTPUT, description="Most bytes to return.")] = 0,
) -> str | list[ContentBlock]:
    """Read a file in the box, not the user's machine: text by lines, images and PDFs as such.
    The header tells size, version and range; long files come in parts, and it names the next
    first_line.
    """
    most = max(max_output or backend(ctx).limits.max_output, MIN_OUTPUT)
    slicing = bool(offset or length or base64)
    if tail and (slicing or first_line > 1):
        raise InvalidArgument("tail", "can't be combined with first_line, offset, length or base64")
    if slicing and first_line > 1:
        raise InvalidArgument("first_line", "can't be combined with offset, length or base64")
    async with open_box(ctx, box) as opened:
        if slicing:
            fits = most * 3 // 4 if base64 else most
            part = await opened.files.slice(path, offset, min(length or fits, fits))
            return opened.reply(render_bytes(path, offset, part, base64=base64))
        limits = {"fold": min(FOLD, most // 2), "media_limit": MEDIA_LIMIT}
        if tail:
            part = await opened.files.tail(path, tail, most, **limits)
        else:
            part = await opened.files.read(path, first_line, max_lines, most, **limits)
        if part.facts.media is not None and not part.facts.more:
            text = opened.reply(f"[{heading(path, part.facts)}]")
            return [TextContent(text=text), media(opened.id, path, part)]
        return opened.reply(render_part(path, first_line, part, line_numbers=line_numbers))


@tools.tool(destroys=True, core=True)
async def file_write(
    path: BoxPath,
    content: Annotated[str, Field(description="Whole content, or what is added.")],
    ctx: Ctx,
    box: BoxRef = None,
    append: Annotated[bool, Field(description="Add to its end.")] = False,
    base64: Annotated[bool, Field(description="content is base64.")] = False,
    if_version: IfVersion = "",
) -> str:
    """Write a file in the box, not the user's machine: makes it, or replaces all of it in one
    step, keeping its mode and owner. Missing directories are made.
    """
    if path.endswith("/"):
        raise InvalidArgument("path", "ends with a slash, as only directories' do: name the file")
    data = decoded(content) if base64 else content.encode(errors="surrogatepass")
    async with open_box(ctx, box) as opened:
        done = await opened.files.write(path, data, append=append, if_version=if_version or None)
        how = "created" if done.created else "appended to" if append else "replaced"
        size = counted(done.size, "byte")
        return opened.reply(f"[{how} {path} · {size} · version {done.version}]")


@tools.tool(destroys=True, core=True, repair=as_list)
async def file_edit(
    path: BoxPath,
    edits: Annotated[
        list[Replacement],
        Field(min_length=1, max_length=MAX_EDITS, description="Done in turn."),
    ],
    ctx: Ctx,
    box: BoxRef = None,
    if_version: IfVersion = "",
    dry_run: Annotated[bool, Field(description="Only show what would change.")] = False,
) -> str:
    """Edit a text file in the box, not the user's machine, by exact replacements, all or none.
    `old` must be in the file once, white space included, unless replace_all. Returns a diff.
    """
    asked = [Edit(edit.old, edit.new, edit.replace_all) for edit in edits]
    most = backend(ctx).limits.max_output
    async with open_box(ctx, box) as opened:
        edited = await opened.files.edit(
            path, asked, max_diff=2 * most, if_version=if_version or None, dry_run=dry_run
        )
        return opened.reply(render_edited(path, edited, most, dry_run=dry_run))


def heading(path: str, facts: ReadFacts) -> str:
    """What every reading of a file begins with: where it is and what it is."""
    parts = [path, counted(facts.size, "byte"), f"version {facts.version}"]
    if facts.media is not None:
        parts.append(facts.media)
    elif facts.encoding == "utf-8" and facts.bom:
        parts.append("utf-8 with BOM")
    elif facts.encoding not in (None, "utf-8"):
        parts.append(facts.encoding)
    if facts.crlf:
        parts.append("CRLF")
    return " · ".join(parts)


def render_part(path: str, first_line: int, part: Part, *, line_numbers: bool = False) -> str:
    """The header and the lines, or words on why there are none."""
    facts = part.facts
    head = heading(path, facts)
    if not facts.text:
        return f"[{head} · {_no_text(part)}]"
    if facts.lines == 0:
        lines = "" if facts.total is None else f", it has {facts.total} lines"
        what = "empty" if facts.size == 0 else f"ends before line {first_line}{lines}"
        return f"[{head} · {what}]"
    text = part.content.decode(errors="replace")
    if facts.crlf:
        text = text.replace("\r\n", "\n")
    total = "" if facts.total is None else f" of {facts.total}"
    if facts.first_line is None:
        return (
            f"[{head} · the last {facts.lines} lines, too many come before to be counted]\n"
            f"{visible(text)}"
        )
    following = facts.first_line + facts.lines
    range_ = f"lines {facts.first_line}-{following - 1}{total}"
    more = f" · more: first_line={following}" if facts.more else ""
    if (written := visible(text)) != text:
        text, more = written, f" · {WRITTEN_OUT}{more}"
    if line_numbers:
        text = numbered(text, facts.first_line)
    return f"[{head} · {range_}{more}]\n{text}"


def render_bytes(path: str, offset: int, part: Part, *, base64: bool) -> str:
    """The header and the bytes, as base64 or as the text that they are."""
    facts, end = part.facts, offset + len(part.content)
    head = f"{heading(path, facts)} · bytes {offset}-{end}"
    more = f" · more: offset={end}" if facts.more else ""
    if not part.content and offset:
        return f"[{heading(path, facts)} · ends before offset {offset}]"
    if base64:
        return f"[{head} as base64{more}]\n{b64encode(part.content).decode()}"
    if facts.encoding is None:
        return f"[{head} · binary: read it with base64=true]"
    text = part.content.decode(facts.encoding, errors="replace")
    if (written := visible(text)) != text:
        head += f" · {WRITTEN_OUT}"
    return f"[{head}{more}]\n{written}"


def render_edited(path: str, edited: Edited, most: int, *, dry_run: bool) -> str:
    """The header and the diff, as much as fits into `most` characters."""
    facts = edited.facts
    places = counted(facts.places, "replacement")
    if dry_run:
        head = f"dry run, {path} is unchanged · {places} possible"
    else:
        head = f"edited {path} · {places} · {counted(facts.size, 'byte')}"
    diff = visible("".join(unified(hunk) for hunk in edited.hunks))
    cut = diff[:most].rpartition("\n")[0] + "\n" if len(diff) > most else diff
    missing = facts.hunks > len(edited.hunks) or len(cut) < len(diff)
    note = " · too much changed to be shown whole" if missing else ""
    return f"[{head} · version {facts.version}{note}]\n{cut}"


def media(box: str, path: str, part: Part) -> ImageContent | EmbeddedResource:
    """A picture or a document as clients take it."""
    data, kind = b64encode(part.content).decode(), part.facts.media or ""
    if kind != PDF:
        return ImageContent(data=data, mime_type=kind)
    uri = file_uri(box, join(WORKSPACE, parse(path)))
    return EmbeddedResource(resource=BlobResourceContents(uri=uri, blob=data, mime_type=kind))


def numbered(text: str, first: int) -> str:
    """The lines of `text` with their numbers, from `first` on, and a tab before each."""
    lines = text.removesuffix("\n").split("\n")
    end = "\n" if text.endswith("\n") else ""
    return "\n".join(f"{n}\t{line}" for n, line in enumerate(lines, first)) + end


def decoded(content: str) -> bytes:
    """The bytes that base64 stands for, which may have line breaks in it."""
    try:
        return b64decode("".join(content.split()), validate=True)
    except (NoBase64, ValueError) as error:
        raise InvalidArgument("content", f"is no base64: {error}") from None


def _no_text(part: Part) -> str:
    if part.facts.media is not None:
        return (
            f"over {MEDIA_LIMIT:,} bytes, too large to be shown: make a smaller one with "
            "shell_run, or read its bytes with base64=true, offset and length"
        )
    first = part.content[:16].hex(" ")
    return f"binary, begins with {first}: read its bytes with base64=true, offset and length"
