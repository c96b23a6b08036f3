"""Files in boxes as MCP resources: listed, read, completed.

The SDK's own resources don't know who asks, so handlers of ours take their place. Neither listing
nor completing wakes a box; reading does.
"""

from __future__ import annotations

import base64
import json
import posixpath
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    BlobResourceContents,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    ResourceTemplateReference,
    TextResourceContents,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from box_mcp.capabilities.files import Files
from box_mcp.capabilities.trees import Entry, Trees
from box_mcp.domain.box import Box, State
from box_mcp.domain.media import DIRECTORY, JSON, as_text, media_type
from box_mcp.domain.paths import ERRORS, WORKSPACE
from box_mcp.domain.uris import TEMPLATE, file_uri, parse_file_uri, quoted, unquoted
from box_mcp.errors import BoxError, BoxNotFound, CallRefused, InvalidArgument
from box_mcp.slots import Claim
from box_mcp.surface.failures import MAX_QUOTE, legible
from box_mcp.surface.sessions import Backend, Ctx, backend, caller, look_into

Request = ServerRequestContext[Backend, Any]

MAX_BYTES = 8 * 1024 * 1024  # of a file that is read, always whole
MAX_ENTRIES = 1000  # of a directory that is read
PAGE = 100  # boxes in one answer
MAX_VALUES = 100  # completions in one answer, as specified
MAX_LOOKED_AT = 5000  # entries of a directory among which completions are looked for
NOT_FOUND_BEFORE_2026 = -32002  # what older protocols have for it
NOWHERE = ("not_found", "not_directory", "invalid")  # refusals of paths that lead to nothing

FILE = ResourceTemplate(
    name="box-file",
    title="File in a box",
    uri_template=TEMPLATE,
    description=(
        "A file or directory in one of your boxes: `box` is an id or a name, `path` its path "
        "without the leading slash, percent-encoded where it is no plain text. Directories come "
        "as JSON with the URIs of what they hold."
    ),
)


@dataclass(frozen=True)
class Place:
    """What a URI means: a path in a box that is held awake. `box` is the id or name in the URI."""

    claim: Claim
    box: str
    path: str


async def list_resources(ctx: Request, params: PaginatedRequestParams) -> ListResourcesResult:
    """The workspace of each of the caller's boxes, oldest first."""
    after = _position(params.cursor)
    boxes = [box for box in await _known(ctx) if (box.created, box.id) > after]
    page = boxes[:PAGE]
    more = len(boxes) > PAGE
    return ListResourcesResult(
        resources=[_workspace(box) for box in page],
        next_cursor=f"{page[-1].created!r} {page[-1].id}" if more else None,
    )


async def list_templates(
    _: Request, _params: PaginatedRequestParams
) -> ListResourceTemplatesResult:
    """The only one."""
    return ListResourceTemplatesResult(resource_templates=[FILE])


async def read(ctx: Request, params: ReadResourceRequestParams) -> ReadResourceResult:
    """A whole file, as text if it is that, or what a directory holds."""
    async with opened(ctx, params.uri) as place:
        try:
            _, content = await Files(place.claim.channel).fetch(place.path, MAX_BYTES)
        except CallRefused as error:
            if error.code != "is_directory":
                raise
            listing = await _listing(place)
            return ReadResourceResult(
                contents=[TextResourceContents(uri=params.uri, mime_type=JSON, text=listing)]
            )
    text = as_text(content)
    media = media_type(posixpath.basename(place.path), content, text=text is not None)
    if text is not None:
        found = TextResourceContents(uri=params.uri, mime_type=media, text=text)
    else:
        blob = base64.b64encode(content).decode()
        found = BlobResourceContents(uri=params.uri, mime_type=media, blob=blob)
    return ReadResourceResult(contents=[found])


async def complete(ctx: Request, params: CompleteRequestParams) -> CompleteResult:
    """Boxes, and paths in a box that runs."""
    about, argument = params.ref, params.argument
    if not isinstance(about, ResourceTemplateReference) or about.uri != TEMPLATE:
        raise MCPError(INVALID_PARAMS, f"Nothing can be completed but {TEMPLATE}")
    boxes = await _known(ctx)
    if argument.name == "box":
        return _completed(_boxes_like(argument.value, boxes))
    if argument.name != "path":
        raise MCPError(INVALID_PARAMS, f"{TEMPLATE} has no {argument.name[:MAX_QUOTE]!r}")
    meant = ((params.context and params.context.arguments) or {}).get("box", "")
    awake = [box.id for box in boxes if box.state is State.RUNNING and meant in (box.id, box.name)]
    if not awake:
        return _completed([])
    try:
        async with look_into(Ctx(request_context=ctx), awake[0]) as claim:
            return await _paths_like(argument.value, claim)
    except BoxError:  # no such directory, or one that may not be read
        return _completed([])


@asynccontextmanager
async def opened(ctx: Request, uri: str) -> AsyncGenerator[Place, None]:
    """What a URI means, for the length of the block; raises MCPError for all that goes wrong."""
    try:
        box, path = parse_file_uri(uri)
        async with look_into(Ctx(request_context=ctx), box) as claim:
            yield Place(claim, box, path)
    except (ValueError, BoxNotFound, InvalidArgument):
        raise _not_found(ctx, uri) from None
    except BoxError as error:
        if isinstance(error, CallRefused) and error.code in NOWHERE:
            raise _not_found(ctx, uri) from None
        raise MCPError(INTERNAL_ERROR, _words(error), {"uri": uri}) from error


def _words(error: BoxError) -> str:
    if isinstance(error, CallRefused) and error.code == "too_large":
        most = f"{MAX_BYTES // 1024**2} MiB"
        return legible(f"{error}; a resource has at most {most}: read parts of it with `file_read`")
    return legible(error.explain())


def _not_found(ctx: Request, uri: str) -> MCPError:
    """Nothing is there, or it is somebody else's: the same answer to both."""
    modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
    code = INVALID_PARAMS if modern else NOT_FOUND_BEFORE_2026
    return MCPError(code, f"There is no resource {legible(uri)!r}", {"uri": legible(uri)})


async def _known(ctx: Request) -> list[Box]:
    """The caller's boxes that have files, oldest first."""
    wrapped = Ctx(request_context=ctx)
    boxes = await backend(wrapped).lifecycle.known(caller(wrapped))
    here = [box for box in boxes if box.state is not State.LOST]
    return sorted(here, key=lambda box: (box.created, box.id))


def _workspace(box: Box) -> Resource:
    return Resource(
        uri=file_uri(box.id, box.spec.cwd or WORKSPACE, directory=True),
        name=box.name or box.id,
        title=f"Workspace of the box {box.name or box.id}",
        mime_type=DIRECTORY,
    )


def _position(cursor: str | None) -> tuple[float, str]:
    """When the last box of the page before was made, and its id."""
    if cursor is None:
        return -1.0, ""
    created, _, box = cursor.partition(" ")
    try:
        return float(created), box
    except ValueError:
        raise MCPError(INVALID_PARAMS, f"{cursor[:MAX_QUOTE]!r} is no cursor of ours") from None


async def _listing(place: Place) -> str:
    """A directory as JSON."""
    listing = await Trees(place.claim.channel).listing(place.path, limit=MAX_ENTRIES)
    entries = [_entry(place, entry) for entry in listing.entries]
    return json.dumps({"entries": entries, "more": listing.facts.more}, ensure_ascii=False)


def _entry(place: Place, entry: Entry) -> dict[str, Any]:
    path = posixpath.join(place.path, entry.path.decode(errors=ERRORS))
    return {
        "name": entry.path.decode(errors="backslashreplace"),
        "kind": entry.kind,
        "size": entry.size,
        "uri": file_uri(place.box, path, directory=entry.kind == "directory"),
    }


def _boxes_like(text: str, boxes: Iterable[Box]) -> list[str]:
    """Names and ids with `text` in them, those that begin with it first."""
    names = [name for box in reversed(list(boxes)) for name in (box.name, box.id) if name]
    return sorted((name for name in names if text in name), key=lambda name: name.find(text) > 0)


async def _paths_like(text: str, claim: Claim) -> CompleteResult:
    """Paths that begin with `text`, which is quoted as they are."""
    start, slash, beginning = text.rpartition("/")
    beginning = unquoted(beginning)
    listing = await Trees(claim.channel).listing(
        "/" + unquoted(start).lstrip("/"), limit=MAX_LOOKED_AT, hidden=beginning.startswith(".")
    )
    names = [(entry.path.decode(errors=ERRORS), entry.kind) for entry in listing.entries]
    values = [
        start + slash + quoted(name) + ("/" if kind == "directory" else "")
        for name, kind in names
        if name.startswith(beginning)
    ]
    return _completed(values, unseen=listing.facts.more)


def _completed(values: Sequence[str], *, unseen: bool = False) -> CompleteResult:
    return CompleteResult(
        completion=Completion(
            values=list(values[:MAX_VALUES]),
            total=None if unseen else len(values),
            has_more=unseen or len(values) > MAX_VALUES,
        )
    )
