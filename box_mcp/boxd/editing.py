"""A file whose text is edited: all edits or none, in one step.

The text is worked on as the bytes that it is, so what is not replaced stays as it was: odd bytes,
the mark at its beginning, line ends. Only UTF-16, in which a byte says little, is turned into UTF-8
and back.
"""

from __future__ import annotations

import json

from . import wire
from .connection import Refusal
from .edits import MAX_SIZE, Edit, Unmatched, apply, hunks
from .reading import opened
from .slices import Job
from .text import transcoded
from .writing import Replacement, check_version, writable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .connection import Connection
    from .edits import Hunk
    from .identity import User
    from .loop import Loop
    from .slices import Slices

MAX_REQUEST = 4 * 1024 * 1024  # bytes of all edits, as JSON
BLOCK = 1024 * 1024  # bytes that are read or written before others get their turn


class Editing(Job):
    """An edit of one file; it begins when the server has sent all of it."""

    def __init__(
        self,
        connection: Connection,
        number: int,
        loop: Loop,
        user: User,
        path: str,
        request: dict[str, Any],
    ) -> None:
        self._edits = bytearray()
        self._complete = False
        slices = edit_file(path, user, self._edits, request)
        super().__init__(connection, number, loop, user, slices)

    def on_data(self, _label: int, data: bytes, /) -> None:
        """More of the edits."""
        if len(self._edits) + len(data) > MAX_REQUEST:
            raise Refusal("too_large", f"the edits are over {MAX_REQUEST:,} bytes")
        self._edits += data
        self.consumed(len(data))

    def on_finish(self) -> None:
        """All edits are there."""
        self._complete = True
        self.on_credit()

    def on_credit(self) -> None:
        """Goes on, once it has begun."""
        if self._complete:
            super().on_credit()


def edit_file(path: str, user: User, request: bytearray, options: dict[str, Any]) -> Slices:
    """Does the edits that `request` holds as JSON, and sends the hunks, a JSON array a line each.

    Of these, as many as fit into the option ``max_bytes``. The options ``if_version`` and
    ``dry_run`` may be absent.
    """
    max_bytes = int(options["max_bytes"])
    edits = _parsed(request)
    with opened(path) as source:
        encoding, bom = source.look.encoding, source.look.bom
        if encoding is None:
            raise Refusal("binary", f"{path} is no text")
        if source.size > MAX_SIZE:
            raise Refusal("too_large", f"{path} has {source.size:,} bytes, over {MAX_SIZE:,}")
        result = source.told()
        check_version(path, writable(path), options.get("if_version"))
        inner = "utf-8" if encoding.startswith("utf-16") else encoding
        try:
            blocks = source.blocks(len(bom), BLOCK)
            old = yield from _whole(transcoded(blocks, encoding, inner, "strict"))
        except UnicodeDecodeError as error:
            raise Refusal("binary", f"{path} is no proper {encoding}: {error.reason}") from None
    try:
        new, spans, places = yield from apply(old, edits, inner, crlf=source.look.crlf)
    except Unmatched as unmatched:
        return {**result, "done": False, **unmatched.told}
    if not options.get("dry_run"):
        text = transcoded(_pieces(new), inner, encoding, "strict")
        result.update((yield from _replace(path, user, result["version"], bom, text)))
    count = yield from _send(hunks(old, new, spans), inner, max_bytes)
    return {**result, "done": True, "places": places, "hunks": count}


def _parsed(request: bytearray) -> list[Edit]:
    try:
        edits = [(e["old"], e["new"], e["all"] is True) for e in json.loads(request)]
        return [Edit(str(old), str(new), everywhere) for old, new, everywhere in edits]
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal("invalid", f"malformed edits: {error!r}") from None


def _replace(
    path: str, user: User, version: str, bom: bytes, text: Generator[bytes, None, None]
) -> Slices:
    """Puts the text into the place of the file, if that is still what was read."""
    replacement = Replacement(path, user, version)
    try:
        replacement.write(bom)
        for piece in text:
            replacement.write(piece)
            yield b""
        return replacement.commit()
    finally:
        replacement.discard()


def _send(
    changes: Generator[Hunk, None, None], encoding: str, max_bytes: int
) -> Generator[bytes, None, int]:
    """Sends the hunks for which there is room; returns how many there are."""
    count = 0
    for old_line, new_line, old, new in changes:
        count += 1
        line = b""
        if len(old) + len(new) <= min(max_bytes, wire.CHUNK):
            shown = [text.decode(encoding, "replace") for text in (old, new)]
            line = json.dumps([old_line, new_line, *shown]).encode() + b"\n"
        if len(line) > min(max_bytes, wire.CHUNK):
            line = b""
        max_bytes -= len(line)
        yield line
    return count


def _whole(pieces: Generator[bytes, None, None]) -> Generator[bytes, None, bytes]:
    data: list[bytes] = []
    for piece in pieces:
        data.append(piece)
        yield b""
    return b"".join(data)


def _pieces(data: bytes) -> Generator[bytes, None, None]:
    for start in range(0, len(data), BLOCK):
        yield data[start : start + BLOCK]
