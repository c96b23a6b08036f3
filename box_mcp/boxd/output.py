"""What a run printed: its first and last bytes in memory, all (up to a limit) in a log file."""

from __future__ import annotations

import collections
import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque

LOG_HEAD = 32 * 1024 * 1024  # bytes from a log's beginning that are kept
SEGMENT = 4 * 1024 * 1024  # bytes of each file behind them
SEGMENTS = 8  # of those the newest are kept: 64 MiB in all


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
    """A run's output in files, the first made when the first byte comes.

        p7.log            the first `LOG_HEAD` bytes
        p7.log.33554432   what begins at that offset, `SEGMENT` bytes at most; the newest are kept

    So an offset is a cursor for ever, and no file is larger than what it holds: a hole would be
    filled with zeros by whoever copies the file, the engine's commit included. `size` counts what
    was written; it stops to grow where the disk is full.
    """

    def __init__(self, path: str, uid: int, gid: int) -> None:
        self.path = path
        self.size = 0
        self._starts = [0]  # of the files, in order
        self._owner = (uid, gid)
        self._fd: int | None = None
        self._broken = False

    @property
    def dropped(self) -> int:
        """Bytes behind the first `LOG_HEAD` that are gone."""
        return self._starts[1] - LOG_HEAD if len(self._starts) > 1 else 0

    @property
    def kept(self) -> int:
        """Bytes that the files hold."""
        return self.size - self.dropped

    def write(self, data: bytes) -> None:
        """Appends, as far as the disk allows; a full disk must not stop the command."""
        try:
            while data and not self._broken:
                room = self._room()
                self.size += os.write(self._file(), data[:room])
                data = data[room:]
        except OSError:
            self._broken = True

    def read(self, start: int, limit: int) -> tuple[int, bytes]:
        """Where the first byte from `start` on is that is kept, and up to `limit` bytes from there.

        None where a file is gone or cut off: whoever is root in the box may do that.
        """
        if LOG_HEAD <= start < LOG_HEAD + self.dropped:
            start = LOG_HEAD + self.dropped
        data = b""
        for first, end in zip(self._starts, [*self._starts[1:], self.size]):
            place = start + len(data)
            if first <= place < end and len(data) < limit:
                wanted = min(limit - len(data), end - place)
                data += _read(self._name(first), place - first, wanted)
        return start, data

    def recover(self) -> None:
        """Learns from the files what an earlier boxd has written."""
        directory, name = os.path.split(self.path)
        parts = [other.rpartition(".") for other in os.listdir(directory)]
        later = [number for stem, _, number in parts if stem == name and _is_offset(number)]
        self._starts = [0, *sorted(map(int, later))]
        with contextlib.suppress(OSError):
            self.size = self._starts[-1] + os.stat(self._name(self._starts[-1])).st_size

    @property
    def files(self) -> str:
        """The one file, or a pattern for all."""
        return self.path + "*" * (len(self._starts) > 1)

    def changed(self) -> float:
        """When something was last written, in s since the epoch; 0 where nothing was."""
        try:
            return os.stat(self._name(self._starts[-1])).st_mtime
        except OSError:
            return 0.0

    def close(self) -> None:
        """No more will come; twice is fine."""
        self._close_file()
        self._broken = True

    def remove(self) -> None:
        """Deletes the files."""
        for start in self._starts:
            with contextlib.suppress(OSError):
                os.unlink(self._name(start))

    def _name(self, start: int) -> str:
        return f"{self.path}.{start}" if start else self.path

    def _room(self) -> int:
        start = self._starts[-1]
        return start + (SEGMENT if start else LOG_HEAD) - self.size

    def _file(self) -> int:
        if self._room() <= 0:
            self._close_file()
            self._starts.append(self.size)
            if len(self._starts) > 1 + SEGMENTS:
                os.unlink(self._name(self._starts.pop(1)))
        if self._fd is None:
            self._fd = self._create(self._name(self._starts[-1]))
        return self._fd

    def _create(self, path: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # somebody else's
        fd = os.open(path, flags, 0o640)
        if os.geteuid() == 0:
            os.fchown(fd, *self._owner)
        return fd

    def _close_file(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None


def _is_offset(text: str) -> bool:
    return text.isascii() and text.isdigit() and LOG_HEAD <= int(text) < 10**18


def _read(path: str, start: int, limit: int) -> bytes:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(fd, limit, start)
        finally:
            os.close(fd)
    return b""


def newest_line(recent: bytes) -> str:
    """The last line of `recent` that is not blank."""
    lines = [line for line in recent.replace(b"\r", b"\n").split(b"\n") if line.strip()]
    return lines[-1].decode(errors="replace") if lines else ""
