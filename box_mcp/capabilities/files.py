"""Files in a box: read by lines, written whole, listed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from box_mcp.channel import Channel
from box_mcp.errors import BoxBroken

MAX_LISTING = 4 * 1024 * 1024  # bytes of directory entries that are taken from a box


class Facts(BaseModel):
    """What boxd tells of a file, parsed strictly; `modified` is in seconds since the epoch."""

    model_config = ConfigDict(frozen=True, strict=True)

    kind: str
    size: int
    mode: int
    modified: float


class Entry(Facts):
    """One entry of a directory."""

    name: str


class ReadFacts(Facts):
    """The END of a read: `lines` came, `more` tells whether the file goes on."""

    lines: int
    more: bool


class WriteFacts(BaseModel):
    """The END of a write."""

    model_config = ConfigDict(frozen=True, strict=True)

    size: int
    created: bool


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


Model = TypeVar("Model", bound=BaseModel)


class Files:
    """File work through one channel. Relative paths start at the box's working directory.

    Every method raises CallRefused when the box's user can't do it, and what channels raise.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def read(self, path: str, first_line: int, max_lines: int, max_bytes: int) -> Lines:
        """At most `max_lines` lines and `max_bytes` bytes, from line `first_line` (from 1) on."""
        arguments = {"first_line": first_line, "max_lines": max_lines, "max_bytes": max_bytes}
        content = bytearray()
        async with self._channel.call("read", path=path, **arguments) as call:
            async for _, item in call.labelled():
                if isinstance(item, bytes):
                    content += item
                    self._bound(len(content), max_bytes)
            return Lines(self._parse(ReadFacts, call.result), bytes(content))

    async def write(self, path: str, content: bytes) -> WriteFacts:
        """Makes the file hold exactly `content`, in one step; parents are made."""
        return self._parse(WriteFacts, await write_bytes(self._channel, path, content))

    async def list(self, path: str, limit: int) -> Listing:
        """The first `limit` entries by name."""
        content = bytearray()
        async with self._channel.call("list", path=path, limit=limit) as call:
            async for _, item in call.labelled():
                if isinstance(item, bytes):
                    content += item
                    self._bound(len(content), MAX_LISTING)
            total = (call.result or {}).get("total")
        entries = [self._parse_line(line) for line in content.splitlines()]
        return Listing(entries, total if isinstance(total, int) else len(entries))

    def _bound(self, size: int, limit: int) -> None:
        if size > limit:
            raise BoxBroken(self._channel.box, "its daemon sent more than was asked for")

    def _parse_line(self, line: bytearray) -> Entry:
        # json, not pydantic's parser: names that are no UTF-8 travel as lone surrogates.
        try:
            entry = json.loads(line)
            name = os.fsencode(entry["name"]).decode(errors="backslashreplace")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BoxBroken(self._channel.box, "its daemon sent no proper listing") from None
        return self._parse(Entry, {**entry, "name": name})

    def _parse(self, model: type[Model], result: dict[str, object] | None) -> Model:
        try:
            return model.model_validate(result)
        except ValidationError:
            raise BoxBroken(self._channel.box, "its daemon sent no proper result") from None


async def write_bytes(channel: Channel, path: str, content: bytes) -> dict[str, object]:
    """Sends `content` to be the file `path`; the END's object, unparsed."""
    async with channel.call("write", path=path) as call:
        await call.send(content)
        await call.finish()
        return await call.wait()
