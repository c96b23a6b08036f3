"""Lines on disk of which each bears the hash of the one before, over files and over servers.

    audit.jsonl.2    lines   1 to 800     full
    audit.jsonl.1    lines 801 to 1590    full
    audit.jsonl      lines 1591 ...       the present file
    audit.jsonl.head the number and hash of the last line
    audit.jsonl.lock whoever has it writes

A line is an object of JSON with its number `n` first and, at its end, `prev`: the hash of the line
before. A head that is beyond the last line tells that lines were cut off, or lost by a power cut.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import portalocker
from portalocker.exceptions import LockException

MAX_LINE = 128 * 1024  # bytes; ours are shorter, whatever is in them
LOCK_RETRY = 0.002  # s
HEAD = re.compile(rb"(\d{20}) ([0-9a-f]{64})\n")

_private = partial(os.open, mode=0o600)


@dataclass(frozen=True)
class Head:
    """The last line: its number, and its hash; of no line at all to begin with."""

    n: int = 0
    hash: str = ""

    def __str__(self) -> str:
        return f"{self.n}:{self.hash}"

    def next(self, line: bytes, n: int | None = None) -> Head:
        """After one more line, without its end."""
        return Head(self.n + 1 if n is None else n, digest(line))


def digest(line: bytes) -> str:
    """What the next line bears of this one, without its end."""
    return sha256(line).hexdigest()


def number(line: bytes) -> int | None:
    """The number that a line bears; None if it is none of ours."""
    link = links(line)
    return link and link[0]


def links(line: bytes) -> tuple[int, str] | None:
    """The number of a line and the hash that it bears; None if it is none of ours."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match entry:
        case {"n": int(n), "prev": str(prev)} if n > 0:
            return n, prev
        case _:
            return None


class Files:
    """Where a chain lies."""

    def __init__(self, path: Path) -> None:
        self.present = path
        self.head = path.with_name(f"{path.name}.head")
        self._lock = path.with_name(f"{path.name}.lock")

    @property
    def written(self) -> bool:
        """Whether servers write here: else it is a copy, perhaps where nobody may write."""
        return self._lock.exists()

    def older(self, age: int) -> Path:
        """The full file of this age, from 1 on."""
        return self.present.with_name(f"{self.present.name}.{age}")

    def ages(self) -> list[int]:
        """Of the full files that are there, the newest first."""
        suffixes = (
            path.name.removeprefix(f"{self.present.name}.")
            for path in self.present.parent.glob(f"{self.present.name}.*")
        )
        return sorted(int(suffix) for suffix in suffixes if suffix.isascii() and suffix.isdigit())

    def stored_head(self) -> Head | None:
        """What the last writer left, if that can be read."""
        with suppress(OSError):
            found = HEAD.fullmatch(self.head.read_bytes())
            return found and Head(int(found[1]), found[2].decode())
        return None

    @contextmanager
    def alone(self, patience: float) -> Generator[None, None, None]:
        """No other server writes meanwhile; raises TimeoutError when one does for too long."""
        lock = portalocker.Lock(
            self._lock, "a", timeout=patience, check_interval=LOCK_RETRY, opener=_private
        )
        try:
            lock.acquire()
        except LockException:
            raise TimeoutError("another server has been writing for too long") from None
        try:
            yield
        finally:
            lock.release()


class Chain:
    """Appends to the chain at `path`: to files of `max_size` bytes, of which the newest stay."""

    def __init__(self, path: Path, max_size: int, files: int) -> None:
        self._files = Files(path)
        self._max_size = max_size
        self._kept = files - 1  # beside the present one
        self._head = Head()
        self._known: tuple[int, int] | None = None  # inode and size of the file that ends with it

    def append(self, waiting: deque[Mapping[str, Any]], patience: float) -> None:
        """Writes what waits, and takes it from there; raises OSError where that is not possible.

        What is still there then was not written.
        """
        if not waiting:
            return
        self._files.present.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._files.alone(patience):
            while waiting:
                if not self._fill(waiting):
                    self._rotate()

    def _fill(self, waiting: deque[Mapping[str, Any]]) -> bool:
        """Writes what the present file takes; False when it is full."""
        # Path.open takes no opener.
        with open(self._files.present, "a+b", buffering=0, opener=_private) as file:
            about = os.fstat(file.fileno())
            size, head, first = about.st_size, self._head, b""
            if (about.st_ino, size) != self._known:
                head, first = self._last(file.fileno(), size)
            lines, end = [first], size + len(first)
            for entry in waiting:
                line = _line(entry, head)
                if end + len(line) >= self._max_size and end:
                    break
                lines.append(line + b"\n")
                head, end = head.next(line), end + len(line) + 1
            self._write(file.fileno(), size, b"".join(lines))
            self._head, self._known = head, (about.st_ino, end)
        self._tell_head()
        for _ in lines[1:]:
            waiting.popleft()
        return not waiting

    def _write(self, fd: int, size: int, piece: bytes) -> None:
        view, self._known = memoryview(piece), None
        try:
            while view:
                view = view[os.write(fd, view) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, size)  # half of a line would be a riddle to its readers
            raise

    def _last(self, fd: int, size: int) -> tuple[Head, bytes]:
        """The last line, and what is to be written first: the end of one that was cut off."""
        told = self._files.stored_head() or Head()
        known = self._head if self._head.n >= told.n else told
        if size == 0:
            return max(known, self._last_of_older(), key=_number), b""
        found, whole = _last_in(fd, size, known)
        # What was written, and is not there any more, is to be missed.
        return (known if known.n >= found.n else found), b"" if whole else b"\n"

    def _last_of_older(self) -> Head:
        for age in self._files.ages()[:1]:
            with suppress(OSError), self._files.older(age).open("rb", buffering=0) as file:
                if size := os.fstat(file.fileno()).st_size:
                    return _last_in(file.fileno(), size, Head())[0]
        return Head()

    def _tell_head(self) -> None:
        """That this fails is no reason to write the lines again."""
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)
            fd = _private(self._files.head, flags)
            try:
                os.write(fd, b"%020d %s\n" % (self._head.n, self._head.hash.encode()))
            finally:
                os.close(fd)

    def _rotate(self) -> None:
        """The present file becomes the newest of the full ones, and the oldest goes.

        Names are changed from the oldest on, so that a crash in between loses none.
        """
        older = self._files.older
        free = next(age for age in count(1) if not older(age).exists())
        for age in range(free - 1, 0, -1):
            older(age).replace(older(age + 1))
        self._files.present.replace(older(1))
        for age in self._files.ages()[self._kept :]:
            older(age).unlink(missing_ok=True)


def _number(head: Head) -> int:
    return head.n


def _last_in(fd: int, size: int, known: Head) -> tuple[Head, bool]:
    """The last line of a file, and whether it is whole.

    One that is none of ours is counted: the next will bear its hash all the same.
    """
    at = max(0, size - MAX_LINE)
    os.lseek(fd, at, os.SEEK_SET)
    end = b""
    while piece := os.read(fd, MAX_LINE):
        end += piece
    *lines, torn = end.split(b"\n")
    ours = next((n for line in reversed(lines) if (n := number(line)) is not None), 0)
    before = ours or known.n
    if torn:
        return Head(before + 1, digest(torn)), False
    last = lines[-1]
    n = number(last)
    return Head(before + 1 if n is None else n, digest(last)), True


def _line(entry: Mapping[str, Any], head: Head) -> bytes:
    return json.dumps({"n": head.n + 1, **entry, "prev": head.hash}, default=str).encode()
