"""A tree of files as one stream of bytes, in either direction between a server and a box; no I/O.

Not tar, since what comes out of a box is untrusted: here nothing can be said that would be
dangerous to believe. There are directories, regular files and symbolic links, below one place, by
names without dots; no devices, hard links, owners, sparse files or extensions::

    u8 kind | u16 mode | u64 size | i64 modified (ns since the epoch) | u16 length of the path
    the path, below the place where the tree goes, parts divided by "/", empty for the place itself
    `size` bytes: a file's content, or where a link points to

The first entry is the place itself, and a directory comes before what is in it, once: so nothing
can be put behind a link. The last entry's kind is 0, and all else of it. Both ends import this
module; see `wire`.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Buffer = Union[bytes, bytearray, memoryview]

END, DIRECTORY, FILE, LINK = range(4)
MAX_PATH = 4096  # bytes; the kernel's own limit (PATH_MAX)
MAX_NAME = 255  # bytes of one part of it; as much
MODES = 0o1777  # what is kept of a mode: never setuid or setgid
MAX_BYTES = 2**63 - 1  # bytes of content; a file's size is no larger anywhere
MAX_ENTRIES = 1_000_000  # in one stream
MAX_HELD = 32 * 1024**2  # bytes of directories' and links' paths, and where links point to

_HEADER = struct.Struct("!BHQqH")


class ParcelError(Exception):
    """The other end broke the format."""


class TooMuch(ParcelError):
    """More comes than whoever receives it wants."""


class Entry:
    """One directory, file or link; `path` is as in the format, `size` in bytes."""

    __slots__ = ("kind", "mode", "modified", "path", "size")

    def __init__(self, kind: int, mode: int, size: int, modified: int, path: bytes) -> None:
        self.kind = kind
        self.mode = mode & MODES
        self.size = size
        self.modified = modified
        self.path = path

    def __repr__(self) -> str:
        return f"<Entry {self.kind} {self.mode:o} {self.size} bytes {self.path!r}>"

    def packed(self) -> bytes:
        """Its header; `size` bytes must follow."""
        fixed = _HEADER.pack(self.kind, self.mode, self.size, self.modified, len(self.path))
        return fixed + self.path


LAST = Entry(END, 0, 0, 0, b"")


class Sink:
    """Where a stream goes. Whatever these raise comes out of `Unpacker.feed`."""

    def begin(self, entry: Entry, /) -> None:
        """An entry comes; its content, if any, follows."""

    def content(self, data: memoryview, /) -> None:
        """More of the content of the entry that began last; only good until this returns."""

    def finish(self, entry: Entry, /) -> None:
        """All of its content came."""


class Unpacker:
    """Parses a stream, strictly, holding no more of it than a header and its directories' paths.

    More than `max_bytes` of content, by what the entries say, or more than `max_entries` are
    refused before they reach the sink. So is more than `MAX_HELD` of what sinks have to hold until
    the end: all of directories and links.
    """

    def __init__(
        self, sink: Sink, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES
    ) -> None:
        self.ended = False
        self._sink = sink
        self._bytes_left = max_bytes
        self._entries_left = max_entries
        self._held_left = MAX_HELD
        self._directories: set[bytes] | None = None
        self._header = b""
        self._entry: Entry | None = None
        self._left = 0

    def feed(self, data: Buffer) -> None:
        """Takes more of the stream; raises ParcelError, also for anything behind its end."""
        view = memoryview(data)
        while view:
            if self.ended:
                raise ParcelError("something came behind the end of the files")
            view = self._take_content(view) if self._entry else self._take_header(view)

    def _take_content(self, view: memoryview) -> memoryview:
        assert self._entry is not None
        piece = view[: self._left]
        self._sink.content(piece)
        self._left -= len(piece)
        if not self._left:
            entry, self._entry = self._entry, None
            self._sink.finish(entry)
        return view[len(piece) :]

    def _take_header(self, view: memoryview) -> memoryview:
        held = len(self._header)
        header = self._header + bytes(view[: _HEADER.size + MAX_PATH - held])
        length = _HEADER.unpack_from(header)[4] if len(header) >= _HEADER.size else MAX_PATH
        size = _HEADER.size + length
        if length > MAX_PATH:
            raise ParcelError("a path is too long")
        if len(header) < size:
            self._header = header
            return view[len(view) :]
        self._header = b""
        self._begin(_parsed(header[:size]))
        return view[size - held :]

    def _begin(self, entry: Entry) -> None:
        if entry.kind == END:
            if self._directories is None:
                raise ParcelError("there is nothing in it")
            self.ended = True
            return
        self._admit(entry)
        self._sink.begin(entry)
        if entry.size:
            self._entry, self._left = entry, entry.size
        else:
            self._sink.finish(entry)

    def _admit(self, entry: Entry) -> None:
        directories = self._directories
        if directories is None:
            if entry.path:
                raise ParcelError("the first entry is below the place where all goes")
            directories = self._directories = set()
        elif not entry.path or entry.path.rpartition(b"/")[0] not in directories:
            raise ParcelError(f"{entry.path!r} is in no directory that came before")
        self._bytes_left -= entry.size
        self._entries_left -= 1
        if entry.kind != FILE:
            self._held_left -= len(entry.path) + entry.size
        if min(self._bytes_left, self._entries_left, self._held_left) < 0:
            raise TooMuch("there is more of it than is taken")
        if entry.kind == DIRECTORY:
            if entry.path in directories:
                raise ParcelError(f"{entry.path!r} comes twice")
            directories.add(entry.path)


def _parsed(header: bytes) -> Entry:
    kind, mode, size, modified, _ = _HEADER.unpack_from(header)
    entry = Entry(kind, mode, size, modified, header[_HEADER.size :])
    if kind > LINK:
        raise ParcelError(f"there are no entries of kind {kind}")
    if kind == END and header != LAST.packed():
        raise ParcelError("the end bears a name or a size")
    if kind == DIRECTORY and size:
        raise ParcelError("a directory has content")
    if kind == LINK and not 0 < size <= MAX_PATH:
        raise ParcelError("a link points nowhere, or too far")
    check_path(entry.path)
    return entry


def check_path(path: bytes) -> None:
    """Raises ParcelError unless `path` is surely below the place where it goes, or that place."""
    parts = path.split(b"/") if path else []
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise ParcelError(f"{path!r} is no path of an entry")
    if any(len(part) > MAX_NAME for part in parts):
        raise ParcelError("a name is too long")
