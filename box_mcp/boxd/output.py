"""What a run printed: its first and last bytes in memory, all (up to a limit) in a log file."""

from __future__ import annotations

import collections
import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque

LOG_LIMIT = 64 * 1024 * 1024  # bytes of one log file; what comes later is counted, not kept
NEWEST_LIMIT = 400  # bytes of the newest line that are told as progress


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

    def newest_line(self) -> str:
        """The last line that is not blank, as far as it is in reach."""
        pieces = self._tail or self._head
        recent = b"".join(data[-NEWEST_LIMIT:] for _, data in list(pieces)[-8:])
        lines = [line for line in recent.replace(b"\r", b"\n").split(b"\n") if line.strip()]
        return lines[-1][-NEWEST_LIMIT:].decode(errors="replace") if lines else ""

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
    """A run's whole output in one file, made when the first byte comes."""

    def __init__(self, path: str, uid: int, gid: int) -> None:
        self.path = path
        self.size = 0
        self._owner = (uid, gid)
        self._fd: int | None = None
        self._broken = False

    def write(self, data: bytes) -> None:
        """Appends, as far as limit and disk allow; a full disk must not stop the command."""
        room = LOG_LIMIT - self.size
        if self._broken or room <= 0:
            return
        try:
            if self._fd is None:
                self._fd = self._create()
            self.size += os.write(self._fd, data[:room])
        except OSError:
            self._broken = True

    def close(self) -> None:
        """No more will come; twice is fine."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
        self._broken = True

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)  # an earlier boxd's, before the container was started again
        fd = os.open(self.path, flags, 0o640)
        if os.geteuid() == 0:
            os.fchown(fd, *self._owner)
        return fd
