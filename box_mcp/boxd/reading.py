"""A file by its lines."""

from __future__ import annotations

import os
import stat

from . import wire
from .connection import Refusal
from .slices import facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from io import FileIO

    from .slices import Slices


def read_lines(path: str, first: int, max_lines: int, max_bytes: int) -> Slices:
    """Lines `first`, `first`+1 ... of a regular file, cut at `max_lines` or `max_bytes`."""
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            kind = "is_directory" if stat.S_ISDIR(found.st_mode) else "not_a_file"
            raise Refusal(kind, f"{path} is no regular file")
        data = yield from _skip_lines(file, first - 1)
        lines = sent = 0
        last = b"\n"
        while data and lines < max_lines and sent < max_bytes:
            piece = data[: min(_after_line(data, max_lines - lines), max_bytes - sent)]
            yield piece
            sent += len(piece)
            lines += piece.count(b"\n")
            last = piece[-1:]
            data = data[len(piece) :] or file.read(wire.CHUNK)
        unfinished = last != b"\n"
        return {**facts(found), "lines": lines + unfinished, "more": bool(data)}


def _after_line(data: bytes, count: int) -> int:
    """The position behind the `count`-th newline, or the end of `data`."""
    if data.count(b"\n") < count:
        return len(data)
    position = 0
    for _ in range(count):
        position = data.find(b"\n", position) + 1
    return position


def _skip_lines(file: FileIO, count: int) -> Generator[bytes, None, bytes]:
    data = file.read(wire.CHUNK)
    while data and count > 0:
        here = data.count(b"\n")
        if here < count:
            count -= here
            data = file.read(wire.CHUNK)
            yield b""
            continue
        data = data[_after_line(data, count) :] or file.read(wire.CHUNK)
        count = 0
    return data
