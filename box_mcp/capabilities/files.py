"""Files in a box: read, written, edited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from anyio import to_thread
from pydantic import Field

from box_mcp.capabilities.calls import Count, Said, collected, parsed
from box_mcp.capabilities.nearest import explain
from box_mcp.channel import Channel
from box_mcp.errors import BoxBroken, CallRefused

MAX_MARKER = 100  # bytes that tell behind a folded line how much was left out
MAX_SEARCHED = 16 * 1024 * 1024  # bytes of a file in which what an edit missed is looked for


class Facts(Said):
    """What boxd tells of a file; `modified` is in seconds since the epoch."""

    kind: str
    size: Count
    mode: Annotated[int, Field(ge=0, le=0o7777)]
    modified: Annotated[float, Field(allow_inf_nan=False)]


Version = Annotated[str, Field(pattern=r"^[0-9a-f]{1,16}$")]
Encoding = Literal["utf-8", "utf-16-le", "utf-16-be", "cp1252", "latin-1"]
Media = Literal["image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"]


class ReadFacts(Facts):
    """The END of a read.

    `text`: whole lines came, as UTF-8, from `first_line` on (None when that is not known); else
    bytes. `total` are the file's lines, if counted; `more` tells whether the file goes on.
    `encoding` is None for a file that is no text, `crlf` tells how most of its lines end.
    """

    version: Version
    encoding: Encoding | None
    bom: bool
    crlf: bool
    media: Media | None
    text: bool
    first_line: Count | None
    lines: Count
    total: Count | None
    more: bool


class WriteFacts(Said):
    """The END of a write."""

    size: Count
    created: bool
    version: Version


class EditFacts(Said):
    """The END of an edit that was done, or could be: `places` were replaced."""

    size: Count
    version: Version
    places: Count
    hunks: Count


class Mismatch(Said):
    """The END of an edit that was not done: the `edit`-th matches `matches` places."""

    edit: Annotated[int, Field(ge=1)]
    matches: Count
    lines: Annotated[list[Count], Field(max_length=100)]


class Hunk(Said):
    """Lines that changed with some around them; `old_line`, `new_line` number the first ones."""

    old_line: Count
    new_line: Count
    old: str
    new: str


@dataclass(frozen=True)
class Part:
    """Some of a file: whole lines as UTF-8, or bytes."""

    facts: ReadFacts
    content: bytes


@dataclass(frozen=True)
class Edit:
    """`old` is to become `new`: at the one place where it is, or everywhere."""

    old: str
    new: str
    replace_all: bool = False


@dataclass(frozen=True)
class Edited:
    """What an edit did; of `facts.hunks` changes these were small enough to be told."""

    facts: EditFacts
    hunks: list[Hunk]


class Files:
    """File work through one channel. Relative paths start at the box's working directory.

    Every method raises CallRefused when the box's user can't do it, InvalidArgument, BoxBroken
    when the box answers nonsense, and what channels raise.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def read(
        self,
        path: str,
        first_line: int,
        max_lines: int,
        max_bytes: int,
        *,
        fold: int | None = None,
        media_limit: int = 0,
    ) -> Part:
        """At most `max_lines` lines and `max_bytes` bytes, from line `first_line` (from 1) on.

        Lines longer than `fold` bytes keep their beginning only. Of a file that is no text its
        first bytes; a picture or document of at most `media_limit` bytes whole.
        """
        lines = {"first_line": first_line, "max_lines": max_lines}
        return await self._lines(path, max_bytes, fold, media_limit, lines)

    async def tail(
        self,
        path: str,
        lines: int,
        max_bytes: int,
        *,
        fold: int | None = None,
        media_limit: int = 0,
    ) -> Part:
        """The last `lines` lines, of which the last `max_bytes` bytes; else as `read`."""
        return await self._lines(path, max_bytes, fold, media_limit, {"tail": lines})

    async def slice(self, path: str, offset: int, length: int) -> Part:
        """At most `length` bytes of the file as they are, from `offset` on."""
        return await self._part(path, length, {"offset": offset, "length": length})

    async def fetch(self, path: str, limit: int) -> tuple[ReadFacts, bytes]:
        """The whole file as it is; raises CallRefused (``too_large``) beyond `limit` bytes."""
        arguments = {"offset": 0, "length": limit, "whole": True}
        part = await self._part(path, limit, arguments)
        return part.facts, part.content

    async def write(
        self, path: str, content: bytes, *, append: bool = False, if_version: str | None = None
    ) -> WriteFacts:
        """Makes the file hold exactly `content`, or has it added; all or nothing. Parents are made.

        Raises CallRefused (``changed``) when the file has another version than `if_version`,
        ``new`` being that of no file at all.
        """
        options = _given(append=append or None, if_version=if_version)
        result = await write_bytes(self._channel, path, content, **options)
        return parsed(self._channel.box, WriteFacts, result)

    async def edit(
        self,
        path: str,
        edits: Sequence[Edit],
        *,
        max_diff: int,
        if_version: str | None = None,
        dry_run: bool = False,
    ) -> Edited:
        """Does all edits, one after the other, or none; changes are told in `max_diff` bytes.

        Raises CallRefused, with words about the nearest text (``no_match``) or the lines
        (``many_matches``), when an edit does not match one place.
        """
        asked = [{"old": edit.old, "new": edit.new, "all": edit.replace_all} for edit in edits]
        options = _given(if_version=if_version, dry_run=dry_run or None)
        content, result = await collected(
            self._channel,
            "edit",
            path,
            max_diff,
            upload=json.dumps(asked).encode(),
            max_bytes=max_diff,
            **options,
        )
        box = self._channel.box
        if (result or {}).get("done") is True:
            return Edited(
                parsed(box, EditFacts, result), [self._hunk(line) for line in content.splitlines()]
            )
        mismatch = parsed(box, Mismatch, result)
        if mismatch.edit > len(edits):
            raise BoxBroken(box, "its daemon speaks of an edit that there is not")
        raise await self._mismatched(path, edits, mismatch)

    async def _lines(
        self, path: str, max_bytes: int, fold: int | None, media_limit: int, lines: dict[str, int]
    ) -> Part:
        fold = fold or max_bytes
        limit = max(max_bytes, fold + MAX_MARKER, media_limit)
        limits = {"max_bytes": max_bytes, "fold": fold, "media_limit": media_limit}
        return await self._part(path, limit, {**lines, **limits})

    async def _part(self, path: str, limit: int, arguments: dict[str, Any]) -> Part:
        content, result = await collected(self._channel, "read", path, limit, **arguments)
        return Part(parsed(self._channel.box, ReadFacts, result), content)

    async def _mismatched(self, path: str, edits: Sequence[Edit], found: Mismatch) -> CallRefused:
        """The words for an edit that was not done."""
        which = f"Edit {found.edit} of {len(edits)}" if len(edits) > 1 else "The edit"
        code = "many_matches" if found.matches else "no_match"
        if found.matches:
            lines = ", ".join(str(line) for line in found.lines)
            more = " and others" if found.matches > len(found.lines) else ""
            why = (
                f"{which} matches {found.matches} places in {path}, on lines {lines}{more}; "
                "nothing was changed. Add lines around it to `old` until it is one place, or set "
                "replace_all=true"
            )
            return CallRefused(code, why)
        said = f"{which} matches nothing in {path}; nothing was changed"
        try:
            facts, raw = await self.fetch(path, MAX_SEARCHED)
        except CallRefused:  # it has gone, or grown, since
            return CallRefused(code, said)

        def search() -> str:
            text = raw.decode(facts.encoding or "utf-8", errors="replace")
            return explain(text, edits[found.edit - 1].old)

        return CallRefused(code, f"{said}. {await to_thread.run_sync(search)}")

    def _hunk(self, line: bytes) -> Hunk:
        try:
            said = dict(zip(Hunk.model_fields, json.loads(line), strict=True))
            json.dumps(said, ensure_ascii=False).encode()  # half a character can't be shown
        except (ValueError, TypeError, RecursionError):
            raise BoxBroken(self._channel.box, "its daemon sent no proper change") from None
        return parsed(self._channel.box, Hunk, said)


async def write_bytes(
    channel: Channel, path: str, content: bytes, **options: Any
) -> dict[str, Any] | None:
    """Sends `content` to be the file `path`; the END's object, unparsed."""
    _, result = await collected(channel, "write", path, 0, upload=content, **options)
    return result


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
