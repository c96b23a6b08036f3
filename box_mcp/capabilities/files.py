"""Files in a box: read by lines, written whole, listed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from box_mcp.capabilities.calls import Count, Said, answering, at_most, checked_path, parsed
from box_mcp.channel import Channel
from box_mcp.errors import BoxBroken

MAX_LISTING = 4 * 1024 * 1024  # bytes of directory entries that are taken from a box
FILE_TIMEOUT = 50.0  # s for work on one file; clients give calls up after 60


class Facts(Said):
    """What boxd tells of a file; `modified` is in seconds since the epoch."""

    kind: str
    size: Count
    mode: Annotated[int, Field(ge=0, le=0o7777)]
    modified: Annotated[float, Field(allow_inf_nan=False)]


class Entry(Facts):
    """One entry of a directory."""

    name: str


class ReadFacts(Facts):
    """The END of a read: `lines` came, `more` tells whether the file goes on."""

    lines: Count
    more: bool


class WriteFacts(Said):
    """The END of a write."""

    size: Count
    created: bool


class ListFacts(Said):
    """The END of a listing."""

    total: Count


@dataclass(frozen=True)
class Lines:
    """Some whole lines of a file, as bytes."""

    facts: ReadFacts
    content: bytes


@dataclass(frozen=True)
class Listing:
    """A directory's entries by name; `total` may be more than were asked for."""

    entries: list[Entry]
    total: int


class Files:
    """File work through one channel. Relative paths start at the box's working directory.

    Every method raises CallRefused when the box's user can't do it, InvalidArgument, BoxBroken
    when the box answers nonsense, and what channels raise.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def read(self, path: str, first_line: int, max_lines: int, max_bytes: int) -> Lines:
        """At most `max_lines` lines and `max_bytes` bytes, from line `first_line` (from 1) on."""
        arguments = {"first_line": first_line, "max_lines": max_lines, "max_bytes": max_bytes}
        content, result = await self._fetch("read", path, max_bytes, arguments)
        return Lines(parsed(self._channel.box, ReadFacts, result), content)

    async def write(self, path: str, content: bytes) -> WriteFacts:
        """Makes the file hold exactly `content`, in one step; parents are made."""
        result = await write_bytes(self._channel, path, content)
        return parsed(self._channel.box, WriteFacts, result)

    async def list(self, path: str, limit: int) -> Listing:
        """The first `limit` entries by name."""
        content, result = await self._fetch("list", path, MAX_LISTING, {"limit": limit})
        lines = content.splitlines()
        at_most(self._channel.box, len(lines), limit)
        facts = parsed(self._channel.box, ListFacts, result)
        return Listing([self._entry(line) for line in lines], facts.total)

    async def _fetch(
        self, op: str, path: str, limit: int, arguments: dict[str, Any]
    ) -> tuple[bytes, dict[str, object] | None]:
        """What the request `op` sends, at most `limit` bytes, and its END's object."""
        content = bytearray()
        path = checked_path("path", path)
        async with self._channel.call(op, path=path, **arguments) as call:
            async with answering(self._channel, FILE_TIMEOUT):
                async for _, item in call.labelled():
                    if isinstance(item, bytes):
                        content += item
                        at_most(self._channel.box, len(content), limit)
            return bytes(content), call.result

    def _entry(self, line: bytes) -> Entry:
        # json, not pydantic's parser: names that are no UTF-8 travel as lone surrogates.
        try:
            entry = json.loads(line)
            name = os.fsencode(entry["name"]).decode(errors="backslashreplace")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BoxBroken(self._channel.box, "its daemon sent no proper listing") from None
        return parsed(self._channel.box, Entry, {**entry, "name": name})


async def write_bytes(channel: Channel, path: str, content: bytes) -> dict[str, object]:
    """Sends `content` to be the file `path`; the END's object, unparsed."""
    async with answering(channel, FILE_TIMEOUT):
        return await channel.request("write", upload=content, path=checked_path("path", path))
