"""What several servers on one machine agree on about a box, by one small file for each.

A server shares the lock of a box's file while a call of his runs in it, and has it alone while he
changes the box. The kernel takes the locks of a dead process away. The file holds how often the
box was changed, so that whoever comes next sees that he should look, and when it was used last.
All of it takes microseconds: no thread is needed. Where it can't be done, as on a full disk or when
no descriptor is left, StoreUnusable is raised.

The locks are flock(2) where there is that, else LockFileEx (portalocker). There nobody else can
read what is locked, so what the file says is in one beside it; nor can an open file be removed.
"""

from __future__ import annotations

import os
import secrets
import struct
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import portalocker
from portalocker import LockFlags
from portalocker.exceptions import LockException

from box_mcp.errors import StoreUnusable

SHARED = LockFlags.SHARED | LockFlags.NON_BLOCKING
ALONE = LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING
GENERATION = struct.Struct("<Q")  # at the beginning of the file; nothing there is zero
USED = struct.Struct("<d")  # behind it: seconds since the epoch
LOCK_RETRY = 0.01  # s between two tries for what another server has
UNNAMED = "unnamed-images"  # the ticket of all of them
GLANCE = 0.001  # s that a look at another server's file takes
WINDOWS = sys.platform == "win32"
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)


class Ticket:
    """The file of one box, opened when first needed. One for each box and process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._said: int | None = None  # the file with what it says, where that is another
        self._held: LockFlags | None = None

    def __repr__(self) -> str:
        held = {SHARED: "shared", ALONE: "taken", None: "free"}[self._held]
        return f"<Ticket {self._path.stem} {held}>"

    def share(self) -> bool:
        """Others may share, too, but nobody may take; False when another process has taken.

        Whoever has taken shares from then on.
        """
        return self._lock(SHARED)

    def take(self) -> bool:
        """Nobody else may share or take; False when another process does either.

        What was held before is then held still, if it was.
        """
        before = self._held
        if self._lock(ALONE):
            return True
        if before is not None:
            self._lock(before)
        return False

    def release(self) -> None:
        """Lets go, whatever was held."""
        if self._fd is not None and self._held is not None:
            portalocker.unlock(self._fd)
            self._held = None

    def generation(self) -> int:
        """How often the box was changed."""
        return int(self._read(GENERATION, 0))

    def bump(self) -> int:
        """Counts one change more; only for who has taken."""
        number = self.generation() + 1
        with _told(self._path):
            self._write(GENERATION.pack(number), 0)
        return number

    def used(self) -> float:
        """When some server used the box last, in seconds since the epoch; 0 for never."""
        return self._read(USED, GENERATION.size)

    def touch(self, now: float) -> None:
        """The box was used; time never goes back. What can't be written is known here only."""
        with suppress(OSError, StoreUnusable):
            if now > self.used():
                self._write(USED.pack(now), GENERATION.size)

    def close(self) -> None:
        """Lets go of the file."""
        opened, self._fd, self._said, self._held = (self._fd, self._said), None, None, None
        for fd in opened:
            if fd is not None:
                os.close(fd)

    def discard(self) -> None:
        """The box is no more; only for who has taken."""
        if WINDOWS:
            self.close()
            with suppress(OSError):  # others have it open, and are the next to remove it
                self._apart.unlink(missing_ok=True)
                self._path.unlink(missing_ok=True)
            return
        with _told(self._path), suppress(FileNotFoundError):
            self._path.unlink()
        self.close()

    def _lock(self, flags: LockFlags) -> bool:
        """Nothing is held any more where it returns False."""
        if flags is self._held:
            return True
        if WINDOWS:
            self.release()  # a lock of one's own is in the way, too
        while True:
            fd = self._open()
            try:
                portalocker.lock(fd, flags)
            except LockException:
                self._held = None  # flock(2) lets go of what it can't convert
                return False
            self._held = flags
            if os.fstat(fd).st_nlink:
                return True
            self.close()  # of a box that was deleted, and is perhaps made anew

    def _read(self, what: struct.Struct, offset: int) -> float:
        fd = self._at(offset)
        return what.unpack(os.read(fd, what.size).ljust(what.size, b"\0"))[0]

    def _write(self, data: bytes, offset: int) -> None:
        os.write(self._at(offset), data)

    def _at(self, offset: int) -> int:
        """The file with what is said, at that place."""
        lock = self._open()
        fd = lock if self._said is None else self._said
        os.lseek(fd, offset, os.SEEK_SET)
        return fd

    @property
    def _apart(self) -> Path:
        return self._path.with_suffix(".said")

    def _open(self) -> int:
        if self._fd is None:
            with _told(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if WINDOWS and self._said is None:
                    self._said = os.open(self._apart, FLAGS, 0o600)
                self._fd = os.open(self._path, FLAGS, 0o600)
        return self._fd


class Tickets:
    """The tickets of all boxes, in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ticket(self, name: str) -> Ticket:
        """The ticket of a box, or of whatever else servers must agree on."""
        return Ticket(self._directory / f"{name}.lock")

    @asynccontextmanager
    async def alone_with(self, what: str) -> AsyncGenerator[None, None]:
        """Keeps all others, in this server and in others, from the same for as long."""
        async with self._held(what, Ticket.take) as ticket:
            try:
                yield
            finally:
                ticket.discard()

    @asynccontextmanager
    async def sharing_images(self) -> AsyncGenerator[None, None]:
        """Keeps all servers from clearing away images that have no name, and no box yet."""
        async with self._held(UNNAMED, Ticket.share):
            yield

    @asynccontextmanager
    async def _held(
        self, what: str, hold: Callable[[Ticket], bool]
    ) -> AsyncGenerator[Ticket, None]:
        ticket = self.ticket(what)
        try:
            while not hold(ticket):  # noqa: ASYNC110 - another process has it
                await anyio.sleep(LOCK_RETRY)
            yield ticket
        finally:
            ticket.close()

    def names(self) -> set[str]:
        """What there are tickets of, some of them perhaps for nothing any more."""
        with _told(self._directory):
            return {path.stem for path in self._directory.glob("*.lock")}


class Presence:
    """That this server lives, for the others to see; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._ticket = Ticket(directory / f"{self._name}.lock")

    def __enter__(self) -> Self:
        while not self._ticket.take():  # another server looks whether this one lives
            time.sleep(GLANCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ticket.discard()

    def alone(self) -> bool:
        """Whether no other server lives."""
        return not self.others()

    def others(self) -> set[str]:
        """The other servers that live; what the dead left here is removed."""
        with _told(self._directory):
            others = [path for path in self._directory.glob("*.lock") if path.stem != self._name]
        return {path.stem for path in others if _lives(path)}


@contextmanager
def _told(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise StoreUnusable(path, error.strerror or str(error)) from error


def _lives(path: Path) -> bool:
    ticket = Ticket(path)
    if not ticket.take():
        ticket.close()
        return True
    ticket.discard()
    return False
