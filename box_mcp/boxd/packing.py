"""A file or a tree as a parcel on standard output, and what it will hold; tasks for a worker."""

from __future__ import annotations

import os
import stat

from .connection import Refusal
from .deadline import DEADLINE, set_deadline
from .ignore import NOTHING
from .parcel import DIRECTORY, FILE, LAST, LINK, Entry
from .walking import read_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .ignore import Ignore

SMALL = 64 * 1024  # bytes; smaller files are sent together
GATHERED = 256 * 1024  # bytes that are sent together
CHUNK = 64 * 1024  # bytes of a large file at once; more does not stay in the processor's cache
MAX_LEFT_OUT = 20  # names that are told
MAX_TOLD = 300  # characters of one: all of them must fit into a frame
OUTPUT = 1


class Item:
    """Something found in a tree; `path` is relative to the top, empty for that itself."""

    __slots__ = ("found", "full", "path")

    def __init__(self, path: str, full: str, found: os.stat_result) -> None:
        self.path = path
        self.full = full
        self.found = found


class Tally:
    """How much there is, and what was left out and why."""

    def __init__(self) -> None:
        self.files = self.directories = self.links = self.bytes = 0
        self._left_out: list[str] = []
        self._more = 0

    def count(self, entry: Entry) -> None:
        """One more."""
        self.files += entry.kind == FILE
        self.directories += entry.kind == DIRECTORY
        self.links += entry.kind == LINK
        self.bytes += entry.size

    def leave_out(self, path: str, why: str | None) -> None:
        """One that is not as it should be, or not there at all."""
        if len(self._left_out) < MAX_LEFT_OUT:
            name = os.fsencode(path).decode(errors="backslashreplace")
            shown = name if len(name) <= MAX_TOLD else f"...{name[-MAX_TOLD:]}"
            self._left_out.append(f"{shown}: {why}")
        else:
            self._more += 1

    def told(self) -> dict[str, Any]:
        """For an END; `left_out` has the first few, `more_left_out` is how many others."""
        return {
            "files": self.files,
            "directories": self.directories,
            "links": self.links,
            "bytes": self.bytes,
            "left_out": self._left_out,
            "more_left_out": self._more,
        }


def survey(path: str, gitignore: bool) -> dict[str, Any]:
    """What `pack` would send: ``kind`` (of the top), and a `Tally`."""
    set_deadline(DEADLINE, "counting what it holds")
    tally = Tally()
    kind = ""
    for item in _walk(path, gitignore, tally):
        entry = _entry(item)
        if entry is None:
            tally.leave_out(item.path, _why_not(item))
        else:
            tally.count(entry)
        kind = kind or ("directory" if stat.S_ISDIR(item.found.st_mode) else "file")
    return {"kind": kind, **tally.told()}


def pack(path: str, gitignore: bool, receipt: bool) -> dict[str, Any]:
    """Sends all of it; a `receipt` is a byte that is waited for then, or the end of input.

    A link that is named as `path` is followed, those within it are sent as links. Devices, FIFOs,
    sockets and what can't be read are left out and told. A file that shrinks meanwhile is filled
    up with zeros, and told.
    """
    packer = _Packer(OUTPUT)
    for item in _walk(path, gitignore, packer.tally):
        packer.add(item)
    packer.send(LAST.packed())
    packer.flush()
    if receipt:
        os.read(0, 1)
    return packer.tally.told()


class _Packer:
    """Sends items to a descriptor, the small ones many at once."""

    def __init__(self, fd: int) -> None:
        self.tally = Tally()
        self._fd = fd
        self._gathered = bytearray()
        self._buffer = memoryview(bytearray(CHUNK))

    def add(self, item: Item) -> None:
        entry = _entry(item)
        if entry is None:
            return self.tally.leave_out(item.path, _why_not(item))
        target = b""
        fd = -1
        try:
            if entry.kind == FILE:
                # What was a file when its directory was read may be something else by now.
                fd = os.open(item.full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
            elif entry.kind == LINK:
                target = os.fsencode(os.readlink(item.full))
        except OSError as error:
            if not item.path:
                raise
            return self.tally.leave_out(item.path, error.strerror)
        if fd >= 0:
            return self._add_file(item, fd)
        entry.size = len(target)
        self._begin(entry)
        self.send(target)

    def send(self, data: bytes) -> None:
        self._gathered += data
        if len(self._gathered) >= GATHERED:
            self.flush()

    def flush(self) -> None:
        with memoryview(self._gathered) as view:
            _write_all(self._fd, view)
        self._gathered.clear()

    def _begin(self, entry: Entry) -> None:
        self.tally.count(entry)
        self.send(entry.packed())

    def _add_file(self, item: Item, fd: int) -> None:
        try:
            item.found = os.fstat(fd)
            entry = _entry(item)
            if entry is None or entry.kind != FILE:
                return self.tally.leave_out(item.path, "it was replaced meanwhile")
            data = os.read(fd, entry.size) if entry.size <= SMALL else b""
            self._begin(entry)
            self.send(data)
            left = entry.size - len(data)
            if left:
                self.flush()
                left = self._send_file(fd, left)
        finally:
            os.close(fd)
        if left:
            self.tally.leave_out(item.path, "it shrank meanwhile, and ends in zeros now")
            while left:
                zeros = bytes(min(left, GATHERED))
                self.send(zeros)
                left -= len(zeros)

    def _send_file(self, fd: int, left: int) -> int:
        """Sends the rest of a file; how much of it was missing."""
        while left:
            count = os.readv(fd, [self._buffer[: min(left, CHUNK)]])
            if not count:
                break
            _write_all(self._fd, self._buffer[:count])
            left -= count
        return left


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _entry(item: Item) -> Entry | None:
    """How it is told of in a parcel; None when it can't be in one."""
    found = item.found
    mode = found.st_mode
    if stat.S_ISREG(mode):
        kind, size = FILE, found.st_size
    elif stat.S_ISDIR(mode):
        kind, size = DIRECTORY, 0
    elif stat.S_ISLNK(mode):
        kind, size = LINK, found.st_size or 1  # some file systems don't tell; it is read anyway
    else:
        return None
    return Entry(kind, stat.S_IMODE(mode), size, found.st_mtime_ns, os.fsencode(item.path))


def _why_not(item: Item) -> str:
    mode = item.found.st_mode
    if stat.S_ISFIFO(mode):
        return "it is a FIFO"
    return "it is a socket" if stat.S_ISSOCK(mode) else "it is a device"


def _walk(path: str, gitignore: bool, tally: Tally) -> Iterator[Item]:
    """The top and all below it, directories before what is in them."""
    full = os.path.realpath(path)
    top = Item("", full, os.stat(full))
    if not stat.S_ISDIR(top.found.st_mode) and not stat.S_ISREG(top.found.st_mode):
        raise Refusal("not_a_file", f"{path} is neither a file nor a directory: {_why_not(top)}")
    yield top
    waiting = [(top, _rules_of(top, None) if gitignore else None)]
    while waiting:
        directory, ignore = waiting.pop()
        if not stat.S_ISDIR(directory.found.st_mode):
            continue
        for item in _within(directory, tally):
            is_directory = stat.S_ISDIR(item.found.st_mode)
            if ignore is not None and (
                (is_directory and item.path.rpartition("/")[2] == ".git")
                or ignore.hides(item.path, is_directory)
            ):
                continue
            yield item
            if is_directory:
                waiting.append((item, _rules_of(item, ignore) if ignore is not None else None))


def _within(directory: Item, tally: Tally) -> list[Item]:
    """What a directory holds."""
    prefix = f"{directory.path}/" if directory.path else ""
    try:
        with os.scandir(directory.full) as entries:
            return [
                Item(prefix + entry.name, entry.path, found)
                for entry in entries
                if (found := _status(entry)) is not None
            ]
    except OSError as error:
        if not directory.path:
            raise
        tally.leave_out(directory.path, error.strerror)
        return []


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """None when it was deleted just now."""
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


def _rules_of(directory: Item, above: Ignore | None) -> Ignore:
    """What holds in a directory."""
    text = read_rules(directory.full)
    above = above or NOTHING
    return above.below(directory.path, text) if text else above
