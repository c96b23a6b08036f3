"""What a run printed: its first and last bytes in memory, all (up to a limit) in a log file."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque

LOG_LIMIT = 64 * 1024 * 1024  # bytes that one log keeps
LOG_HEAD = 1024 * 1024  # bytes from a log's beginning that it never drops
HOLE_STEP = 4 * 1024 * 1024  # bytes dropped at once
PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE; <linux/falloc.h>
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_libc = ctypes.CDLL(None, use_errno=True)


class Excerpt:
    """The first `head` and the last `tail` bytes of a flow of labelled pieces, in order."""

    def __init__(self, head: int, tail: int) -> None:
        self._head_room = head
        self._tail_limit = tail
        self._head: deque[tuple[int, bytearray]] = collections.deque()
        self._tail: deque[tuple[int, bytearray]] = collections.deque()
        self._tail_size = 0
        self.skipped = 0

    def add(self, label: int, data: bytes) -> None:
        """Takes the next piece."""
        if self._head_room:
            kept = data[: self._head_room]
            _append(self._head, label, kept)
            self._head_room -= len(kept)
            data = data[len(kept) :]
        if data:
            excess = max(0, len(data) - self._tail_limit)
            _append(self._tail, label, data[excess:])
            self.skipped += excess
            self._tail_size += len(data) - excess
            self._trim()

    def head(self) -> list[tuple[int, bytes]]:
        """The first pieces, as (label, bytes)."""
        return [(label, bytes(data)) for label, data in self._head]

    def tail(self) -> list[tuple[int, bytes]]:
        """The last pieces, as (label, bytes); `skipped` bytes lie between head and these."""
        return [(label, bytes(data)) for label, data in self._tail]

    def _trim(self) -> None:
        while (excess := self._tail_size - self._tail_limit) > 0:
            data = self._tail[0][1]
            dropped = min(excess, len(data))
            del data[:dropped]
            if not data:
                self._tail.popleft()
            self._tail_size -= dropped
            self.skipped += dropped


def _append(pieces: deque[tuple[int, bytearray]], label: int, data: bytes) -> None:
    """Joins pieces of one label: a command that prints single bytes must not cost 100 each."""
    if pieces and pieces[-1][0] == label:
        pieces[-1][1].extend(data)
    elif data:
        pieces.append((label, bytearray(data)))


class Log:
    """A run's output in one file, made when the first byte comes; an offset is a cursor for ever.

    Beyond `LOG_LIMIT` the oldest bytes behind the first `LOG_HEAD` are dropped: a hole grows in
    the file, and what is left stays where it was. `size` counts what was written; it stops to grow
    where the disk is full, or the file system knows no holes.
    """

    def __init__(self, path: str, uid: int, gid: int) -> None:
        self.path = path
        self.size = 0
        self.hole = LOG_HEAD  # where the dropped bytes end
        self._owner = (uid, gid)
        self._fd: int | None = None
        self._broken = False

    @property
    def dropped(self) -> int:
        """Bytes behind the first `LOG_HEAD` that are gone."""
        return self.hole - LOG_HEAD

    @property
    def kept(self) -> int:
        """Bytes that the file holds."""
        return self.size - self.dropped

    def write(self, data: bytes) -> None:
        """Appends, as far as the disk allows; a full disk must not stop the command."""
        if self._broken:
            return
        try:
            if self._fd is None:
                self._fd = self._create()
            if self.kept + len(data) > LOG_LIMIT:
                self._drop()
            self.size += os.write(self._fd, data)
        except OSError:
            self._broken = True

    def read(self, start: int, limit: int) -> tuple[int, bytes]:
        """Where the first byte from `start` on is that is kept, and up to `limit` bytes from there.

        None where the file is gone: whoever is root in the box may remove it.
        """
        if LOG_HEAD <= start < self.hole:
            start = self.hole
        if start < LOG_HEAD < self.hole:
            limit = min(limit, LOG_HEAD - start)
        with contextlib.suppress(OSError):
            fd = os.open(self.path, READ_FLAGS)
            try:
                return start, os.pread(fd, limit, start)
            finally:
                os.close(fd)
        return start, b""

    def close(self) -> None:
        """No more will come; twice is fine."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
        self._broken = True

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)  # somebody else's
        fd = os.open(self.path, flags, 0o640)
        if os.geteuid() == 0:
            os.fchown(fd, *self._owner)
        return fd

    def _drop(self) -> None:
        offset, length = ctypes.c_int64(self.hole), ctypes.c_int64(HOLE_STEP)
        if _libc.fallocate(self._fd, PUNCH_HOLE, offset, length) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")
        self.hole += HOLE_STEP


def newest_line(recent: bytes) -> str:
    """The last line of `recent` that is not blank."""
    lines = [line for line in recent.replace(b"\r", b"\n").split(b"\n") if line.strip()]
    return lines[-1].decode(errors="replace") if lines else ""
