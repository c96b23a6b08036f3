"""A file by its lines, its last lines, or its bytes."""

from __future__ import annotations

import contextlib
import os

from . import wire
from .connection import Refusal
from .slices import check_regular, facts, version
from .text import HEAD, Folder, Look, last_lines, transcoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from io import FileIO
    from typing import Any

    from .slices import Slices

COUNTED = 8 * 1024 * 1024  # bytes; the lines of larger files are not counted
SAMPLE = 64  # bytes that are sent of a file that is no text


class Source:
    """An open regular file, what it seems to be, and its text."""

    def __init__(self, file: FileIO, found: os.stat_result) -> None:
        self.file = file
        self.size = found.st_size
        self.head = file.read(HEAD) or b""
        self.look = look = Look(self.head, whole=len(self.head) < HEAD)
        self._facts = {
            **facts(found),
            "version": version(found),
            "encoding": look.encoding,
            "bom": bool(look.bom),
            "crlf": look.crlf,
            "media": look.media,
        }
        self._newlines = 0
        self._last = b"\n"

    @property
    def offsets(self) -> bool:
        """True when a position in the text is one in the file, but for the mark before it."""
        return self.look.encoding == "utf-8"

    @property
    def lines(self) -> int:
        """How many lines of the text were read."""
        return self._newlines + (self._last != b"\n")

    def blocks(self, start: int, size: int = wire.CHUNK) -> Generator[bytes, None, None]:
        """The bytes from `start` on, at most `size` at once."""
        # Large blocks are for who takes all as one: not the head, and then the rest behind it.
        block = self.head[start:] if size <= HEAD else b""
        if not block:
            self.file.seek(start)
        while block := block or self.file.read(size) or b"":
            yield block
            block = b""

    def text(self, start: int = 0) -> Generator[bytes, None, None]:
        """The text from the byte `start` of the file on, as UTF-8, block by block."""
        encoding = self.look.encoding
        assert encoding is not None  # it is text
        for block in transcoded(self.blocks(max(start, len(self.look.bom))), encoding):
            if block:
                self._newlines += block.count(b"\n")
                self._last = block[-1:]
                yield block

    def told(self, **result: Any) -> dict[str, Any]:
        """The END of a read."""
        nothing = {"text": False, "first_line": None, "lines": 0, "total": None, "more": False}
        return {**self._facts, **nothing, **result}


@contextlib.contextmanager
def opened(path: str) -> Generator[Source, None, None]:
    """The regular file `path`, open for reading."""
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        check_regular(path, found)
        with open(fd, "rb", buffering=0, closefd=False) as file:
            yield Source(file, found)
    finally:
        os.close(fd)


def read(path: str, request: dict[str, Any]) -> Slices:
    """What `Files.open_read` tells."""
    if "offset" in request:
        whole = bool(request.get("whole"))
        return read_bytes(path, int(request["offset"]), int(request["length"]), whole)
    max_bytes = int(request["max_bytes"])
    fold = max(int(request.get("fold", max_bytes)), 1)
    media_limit = int(request.get("media_limit", 0))
    if "tail" in request:
        return read_tail(path, int(request["tail"]), max_bytes, fold, media_limit)
    first, max_lines = int(request.get("first_line", 1)), int(request["max_lines"])
    return read_lines(path, first, max_lines, max_bytes, fold, media_limit)


def read_lines(
    path: str, first: int, max_lines: int, max_bytes: int, fold: int, media_limit: int
) -> Slices:
    """Lines `first`, `first`+1 ... of a text, as many as `max_lines` and `max_bytes` allow.

    Of a file that is no text, a picture or a document of up to `media_limit` bytes is sent whole,
    of all others the first bytes.
    """
    with opened(path) as source:
        if source.look.encoding is None:
            whole = source.look.media is not None and source.size <= media_limit
            return (yield from _send(source, 0, source.size if whole else SAMPLE))
        blocks = source.text()
        data, offset = yield from _skip_lines(blocks, first - 1)
        folder = Folder(fold, offset + len(source.look.bom) if source.offsets else None)
        range_ = _Range(max_lines, max_bytes)
        while data and not range_.full:
            lines = folder.feed(data)
            data = next(blocks, b"")
            yield from _pieces(range_.take(lines if data else lines + folder.finish()))
        more = range_.cut or bool(data)
        while source.size <= COUNTED and next(blocks, b""):
            yield b""
        return source.told(
            text=True,
            first_line=max(first, 1),
            lines=range_.lines,
            total=source.lines if source.size <= COUNTED else None,
            more=more,
        )


def read_tail(path: str, count: int, max_bytes: int, fold: int, media_limit: int) -> Slices:
    """The last `count` lines of a text, of which the last fit into `max_bytes`.

    END's ``first_line`` and ``total`` are None when the file is too large for its lines to be
    counted. A file that is no text is sent as `read_lines` does.
    """
    with opened(path) as source:
        if source.look.encoding is None:
            whole = source.look.media is not None and source.size <= media_limit
            return (yield from _send(source, 0, source.size if whole else SAMPLE))
        start = 0
        if source.size > COUNTED and not source.look.encoding.startswith("utf-16"):
            start = yield from _start_of_last(source, count)
        at = max(start, len(source.look.bom))
        folder = Folder(fold, at if source.offsets else None)
        kept = bytearray()
        for number, block in enumerate(source.text(start)):
            if number:
                yield b""
            kept += folder.feed(block)
            if len(kept) > 2 * max_bytes:
                del kept[: _line_within(kept, max_bytes)]
        kept += folder.finish()
        if len(kept) > max_bytes:
            del kept[: _line_within(kept, max_bytes)]
        text = last_lines(bytes(kept), count)
        yield from _pieces(text)
        lines = _count_lines(text)
        total = source.lines if start == 0 else None
        first = None if total is None else max(total - lines + 1, 1)
        return source.told(text=True, first_line=first, lines=lines, total=total)


def read_bytes(path: str, offset: int, length: int, whole: bool) -> Slices:
    """At most `length` bytes from `offset` on; `whole` refuses a file that has more."""
    with opened(path) as source:
        if whole and source.size > length:
            raise Refusal("too_large", f"{path} has {source.size:,} bytes, over {length:,}")
        result = yield from _send(source, offset, length)
        if whole and result["more"]:
            raise Refusal("too_large", f"{path} grew beyond {length:,} bytes")
        return result


class _Range:
    """How much of a text may still be sent, in lines and bytes."""

    def __init__(self, max_lines: int, max_bytes: int) -> None:
        self.lines = 0
        self.cut = False
        self._max_lines = max_lines
        self._room = max_bytes

    @property
    def full(self) -> bool:
        return self.cut or self.lines >= self._max_lines

    def take(self, text: bytes) -> bytes:
        """The whole lines of `text` that fit; the very first one always does."""
        end, lines = len(text), _count_lines(text)
        if lines > self._max_lines - self.lines:
            end = _after_line(text, self._max_lines - self.lines)
        if end > self._room:
            end = text.rfind(b"\n", 0, self._room) + 1
            if not end and not self.lines:
                end = _after_line(text, 1)
        self.cut = end < len(text)
        self.lines += _count_lines(text[:end]) if self.cut else lines
        self._room -= end
        return text[:end]


def _send(source: Source, offset: int, length: int) -> Slices:
    source.file.seek(offset)
    while length > 0 and (data := source.file.read(min(length, wire.CHUNK))):
        length -= len(data)
        yield data
    return source.told(more=bool(source.file.read(1)))


def _pieces(data: bytes) -> Generator[bytes, None, None]:
    """`data` in pieces that may be sent; at least one, since each lets others have their turn."""
    for start in range(0, len(data) or 1, wire.CHUNK):
        yield data[start : start + wire.CHUNK]


def _count_lines(text: bytes) -> int:
    return text.count(b"\n") + (not text.endswith(b"\n") and bool(text))


def _after_line(data: bytes, count: int) -> int:
    """The position behind the `count`-th newline, or the end of `data`."""
    position = 0
    for _ in range(count):
        position = data.find(b"\n", position) + 1 or len(data)
    return position


def _line_within(text: bytearray, limit: int) -> int:
    """Where the first line begins that lies whole within the last `limit` bytes."""
    return text.find(b"\n", len(text) - limit - 1) + 1 or len(text) - limit


def _skip_lines(
    blocks: Generator[bytes, None, None], count: int
) -> Generator[bytes, None, tuple[bytes, int]]:
    """The rest of the block in which the line behind `count` lines begins, and its offset."""
    offset = 0
    for data in blocks:
        here = data.count(b"\n") if count > 0 else 0
        if count <= 0 or here > count or (here == count and not data.endswith(b"\n")):
            start = _after_line(data, count) if count > 0 else 0
            return data[start:], offset + start
        count -= here
        offset += len(data)
        yield b""
    return b"", offset


def _start_of_last(source: Source, count: int) -> Generator[bytes, None, int]:
    """Where the last `count` lines begin, found from the end on."""
    end = source.size
    source.file.seek(end - 1)
    count += source.file.read(1) == b"\n"
    while end > 0:
        start = max(end - wire.CHUNK, 0)
        source.file.seek(start)
        block = source.file.read(end - start) or b""
        here = block.count(b"\n")
        if here >= count:
            return start + len(block.rsplit(b"\n", count)[0]) + 1
        count -= here
        end = start
        yield b""
    return 0
