"""Directories in a box: listed, searched, and what is in them moved, copied, deleted."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, cast

from pydantic import AfterValidator, Field

from box_mcp.capabilities.calls import (
    MAX_PATH,
    Count,
    Model,
    Said,
    at_most,
    checked_path,
    collected,
    parsed,
)
from box_mcp.capabilities.files import Facts
from box_mcp.channel import Channel
from box_mcp.domain.paths import ERRORS, shown
from box_mcp.errors import BoxBroken, CallRefused, InvalidArgument

MAX_PAGE = 4 * 1024 * 1024  # bytes of a listing that are taken from a box; it stops at one
PER_CHARACTER = 6  # bytes that JSON may need for one
PER_LINE = 200  # bytes of JSON around a line that was found
MAX_TEXT = 400  # characters of it

Mode = Literal["matches", "files", "count"]
Case = Literal["exact", "smart", "ignore"]
Text = Annotated[str, AfterValidator(lambda text: text.encode().decode())]  # no lone surrogates
Name = Annotated[bytes, Field(min_length=1, max_length=MAX_PATH)]

PATHS = frozenset({"path", "target", "directory", "reached", "unreadable"})
"""Where boxes tell paths, which may hold any bytes."""


class Entry(Facts):
    """Something in a directory; `path` is relative to that, `target` a link's own text."""

    path: Name
    target: Name | None = None


class Line(Said):
    """A line of a file; `hit` is False for one that is only near a match."""

    path: Name
    line: Count
    hit: bool
    text: Text


class File(Said):
    """A file that has a match, or `count` lines with one."""

    path: Name
    count: Count | None = None


class ListFacts(Said):
    """The END of a listing."""

    directory: Name
    more: bool
    total: Count | None
    reached: Name | None = None
    unreadable: Annotated[list[Name], Field(max_length=10)]


class SearchFacts(Said):
    """The END of a search; see `Found`."""

    directory: Name
    one_file: bool
    engine: Literal["ripgrep", "python"]
    unreadable: bool
    more: bool
    matches: Count | None
    files: Count | None


class Moved(Said):
    """What was moved or copied is at `path` now; sizes are known where each file was copied."""

    path: Name
    kind: str
    entries: Count | None = None
    size: Count | None = None
    skipped: Count = 0


class Deleted(Said):
    """What is gone, and how much with it."""

    path: Name
    entries: Count


@dataclass(frozen=True)
class Listing:
    """Some entries in the order of their names; `more` of them follow, of `total` if known."""

    facts: ListFacts
    entries: list[Entry]


@dataclass(frozen=True)
class Found(Generic[Model]):
    """What a search found: lines, or files; `facts` tell of all, if that was not too much."""

    facts: SearchFacts
    items: list[Model]


class Trees:
    """Work on directories through one channel. Relative paths start at the working directory.

    Every method raises CallRefused when the box's user can't do it, InvalidArgument, BoxBroken
    when the box answers nonsense, and what channels raise.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def box(self) -> str:
        """The id of the box."""
        return self._channel.box

    async def listing(
        self,
        path: str,
        *,
        limit: int,
        depth: int = 1,
        glob: str = "",
        hidden: bool = True,
        gitignore: bool = False,
        cursor: str = "",
    ) -> Listing:
        """At most `limit` of what is below `path`, by name and `depth` levels deep."""
        arguments: dict[str, Any] = {
            "depth": depth,
            "glob": glob,
            "hidden": hidden,
            "gitignore": gitignore,
        }
        after = checked_path("cursor", cursor) if cursor else None
        lines, end = await self._fetch(
            "list", path, MAX_PAGE, limit=limit, after=after, **arguments
        )
        entries = self._models(Entry, lines, limit)
        return Listing(parsed(self._channel.box, ListFacts, _as_bytes(end)), entries)

    async def search(
        self,
        model: type[Model],
        path: str,
        pattern: str,
        *,
        limit: int,
        max_output: int,
        mode: Mode = "matches",
        literal: bool = False,
        case: Case = "exact",
        glob: str = "",
        file_type: str = "",
        context: int = 0,
        hidden: bool = False,
        gitignore: bool = True,
        after: tuple[str, int] | None = None,
    ) -> Found[Model]:
        """Lines or files below `path` that match, `model` being what `mode` brings.

        At most `limit` of them, and about `max_output` characters; those that follow `after`,
        a path and a line.
        """
        if not pattern:
            raise InvalidArgument("pattern", "is empty")
        place, line = after or (None, 0)
        lines, end = await self._fetch(
            "search",
            path,
            PER_CHARACTER * (max_output + MAX_PATH + MAX_TEXT) + PER_LINE * limit,
            pattern=pattern,
            mode=mode,
            literal=literal,
            case=case,
            glob=glob,
            type=file_type,
            context=context,
            hidden=hidden,
            gitignore=gitignore,
            limit=limit,
            max_bytes=max_output,
            after=checked_path("cursor", place) if place else None,
            after_line=line,
        )
        items = self._models(model, lines, limit)
        return Found(parsed(self._channel.box, SearchFacts, _as_bytes(end)), items)

    async def move(self, source: str, destination: str, *, overwrite: bool = False) -> Moved:
        """Gives `source` another place; into `destination` where that is a directory."""
        return await self._place("move", source, destination, overwrite)

    async def copy(self, source: str, destination: str, *, overwrite: bool = False) -> Moved:
        """As `move`, but it stays where it is, too. All of it is copied, or nothing."""
        return await self._place("copy", source, destination, overwrite)

    async def delete(self, path: str, *, recursive: bool = False) -> Deleted:
        """Deletes a file, a link or a directory; one that is not empty with `recursive` only."""
        _, end = await self._fetch("delete", path, 0, recursive=recursive)
        return parsed(self._channel.box, Deleted, _as_bytes(end))

    async def kind(self, path: str) -> str | None:
        """What there is: ``file``, ``directory``, ``symlink`` or ``other``; None for nothing."""
        try:
            _, end = await self._fetch("stat", path, 0, name="destination")
        except CallRefused as refused:
            if refused.code in ("not_found", "not_directory"):
                return None
            raise
        return parsed(self._channel.box, Facts, _as_bytes(end)).kind

    async def _place(self, op: str, source: str, destination: str, overwrite: bool) -> Moved:
        place = checked_path("destination", destination)
        _, end = await self._fetch(
            op, source, 0, name="source", destination=place, overwrite=overwrite
        )
        return parsed(self._channel.box, Moved, _as_bytes(end))

    async def _fetch(
        self, op: str, path: str, most: int, *, name: str = "path", **arguments: Any
    ) -> tuple[list[bytes], dict[str, Any] | None]:
        """The lines that the request `op` sends, at most `most` bytes, and its END's object."""
        content, end = await collected(self._channel, op, path, most, name=name, **arguments)
        return content.split(b"\n")[:-1], end

    def _models(self, model: type[Model], lines: list[bytes], limit: int) -> list[Model]:
        at_most(self._channel.box, len(lines), limit)
        return [self._model(model, line) for line in lines]

    def _model(self, model: type[Model], line: bytes) -> Model:
        # json, not pydantic's parser: names that are no UTF-8 travel as lone surrogates.
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise BoxBroken(
                self._channel.box, f"its daemon sent no proper {model.__name__}"
            ) from None
        return parsed(self._channel.box, model, _as_bytes(said))


def told(directory: bytes, path: bytes) -> str:
    """`path`, relative to `directory`, as text that means the same to who is in that."""
    text = path.decode(errors=ERRORS)
    if text.isprintable():
        return text
    return shown(posixpath.join(directory, path).decode(errors=ERRORS))


def _as_bytes(said: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a box said, with paths as the bytes that they are."""
    if not isinstance(said, dict):
        return said
    return {name: _bytes(value) if name in PATHS else value for name, value in said.items()}


def _bytes(value: Any) -> Any:
    """`value` as bytes, if it is text that can be a path; anything else as it is."""
    if isinstance(value, list):
        return [_bytes(item) for item in cast("list[Any]", value)]
    try:
        return value.encode(errors=ERRORS) if isinstance(value, str) else value
    except UnicodeEncodeError:
        return value
