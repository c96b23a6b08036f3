"""Tells of changes: of a file's content, and of what a directory holds.

A path is watched as a whole: the kernel tells of changes of an inode, so the directories on the
way are watched too, and each change is followed by a look at what the path leads to now. A file
that is replaced by another, or deleted and made again, or has yet to be made, is no special case.

    something happens ── SETTLE ──▶ collect, look again, tell ── TELL_EVERY - SETTLE ──▶ listen
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct

from .connection import Refusal, Stream
from .slices import refusals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from .connection import Connection
    from .identity import User
    from .loop import Loop

SETTLE = 0.05  # s; what belongs together is told together, and mostly after its end
TELL_EVERY = 0.25  # s; however much happens, nothing is told more often
BUFFER = 64 * 1024  # bytes of events that are taken in one go, about 2 ms of work
MOST_BUFFERS = 8  # before anything is told; what is left in the queue is merged by the kernel

# <sys/inotify.h>
MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF = 0x400, 0x800
Q_OVERFLOW, IGNORED = 0x4000, 0x8000
ONLYDIR = 0x1000000
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name behind it

# An inode has one mask for all who watch it, so there are two, told apart by what it is.
OF_FILES = MODIFY | ATTRIB | CLOSE_WRITE | DELETE_SELF | MOVE_SELF
OF_DIRECTORIES = MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | ONLYDIR

ALL = b""
"""In place of a name: whatever happens there."""

LIMITS = {
    errno.EMFILE: "descriptors, or of inotify instances (fs.inotify.max_user_instances),",
    errno.ENFILE: "descriptors",
    errno.ENOSPC: "inotify watches (fs.inotify.max_user_watches)",
}


class Watch(Stream):
    """The stream of a `watch` request: a NOTE when it begins, one after changes, no END."""

    def __init__(self, connection: Connection, number: int, watcher: Watcher, path: str) -> None:
        super().__init__(connection, number)
        self.path = os.fsencode(path)
        self.names: dict[int, set[bytes]] = {}
        """The kernel's watches that it needs, and which names there matter."""
        self._watcher = watcher
        watcher.begin(self)
        self.note({"watching": True})

    def tell(self) -> None:
        """Something changed."""
        if self.connection.congested:
            return self.connection.notify_when_clear(self)
        self.note({"newest": "changed"})  # replaces one that nobody has read yet

    def on_credit(self) -> None:
        """The line is clear again."""
        self.tell()

    def on_cancel(self) -> None:
        """Nobody wants to know any more."""
        self._watcher.leave(self)
        super().on_cancel()

    def on_disconnect(self) -> None:
        """Nobody wants to know any more."""
        self._watcher.leave(self)


class Watcher:
    """All watches of a box, by one inotify instance that is there while there are any."""

    def __init__(self, loop: Loop, user: User) -> None:
        self._loop = loop
        self._user = user
        self._inotify: Inotify | None = None
        self._watched: dict[int, set[Watch]] = {}
        self._changed: set[Watch] = set()
        self._buffers = 0

    def begin(self, watch: Watch) -> None:
        """Watches from now on; raises Refusal."""
        try:
            if self._inotify is None:
                with refusals_at_limits(), self._user.rights():  # on the user's account
                    self._inotify = Inotify()
                self._listen()
            self._follow(self._inotify, watch)
        except BaseException:
            self.leave(watch)
            raise

    def leave(self, watch: Watch) -> None:
        """Watches no more; twice is fine."""
        self._need(watch, {})
        self._changed.discard(watch)
        if not self._watched and self._inotify is not None:
            self._loop.on_readable(self._inotify.fd, None)
            self._inotify.close()
            self._inotify = None

    def _follow(self, inotify: Inotify, watch: Watch) -> None:
        """Watches what the path leads to now, and the way there as far as it may be read."""
        names: dict[int, set[bytes]] = {}
        with refusals_at_limits(), self._user.rights():
            for directory, name in steps(watch.path):
                with passing(errno.EACCES, errno.ENOENT, errno.ENOTDIR):
                    number = inotify.add(directory, OF_DIRECTORIES)
                    names.setdefault(number, set()).add(name)
            with passing(errno.ENOENT, errno.ENOTDIR):
                names.setdefault(inotify.add_any(watch.path), set()).add(ALL)
        self._need(watch, names)

    def _need(self, watch: Watch, names: dict[int, set[bytes]]) -> None:
        before, watch.names = watch.names, names
        for number in names:
            self._watched.setdefault(number, set()).add(watch)
        for number in before.keys() - names.keys():
            watches = self._watched.get(number, set())
            watches.discard(watch)
            if not watches and self._watched.pop(number, None) is not None:
                assert self._inotify is not None  # something is watched
                self._inotify.remove(number)

    def _listen(self) -> None:
        if self._inotify is not None:
            self._loop.on_readable(self._inotify.fd, self._something_happened)

    def _something_happened(self) -> None:
        assert self._inotify is not None  # it is listened to
        self._loop.on_readable(self._inotify.fd, None)
        self._loop.call_later(SETTLE, self._collect)

    def _collect(self) -> None:
        if self._inotify is None:
            return
        data = self._inotify.read()
        for number, mask, name in events(data):
            self._take(number, mask, name)
        self._buffers += 1
        if len(data) > BUFFER // 2 and self._buffers < MOST_BUFFERS:
            self._loop.call_later(0, self._collect)
            return
        self._buffers = 0
        self._tell()
        self._loop.call_later(TELL_EVERY - SETTLE, self._listen)

    def _take(self, number: int, mask: int, name: bytes) -> None:
        if mask & Q_OVERFLOW:
            for watches in self._watched.values():
                self._changed |= watches
        for watch in self._watched.get(number, ()):
            if not name or not watch.names[number].isdisjoint((ALL, name)):
                self._changed.add(watch)
        if mask & IGNORED:  # the inode is gone, and with it the kernel's watch
            for watch in self._watched.pop(number, ()):
                del watch.names[number]

    def _tell(self) -> None:
        changed, self._changed = self._changed, set()
        for watch in changed:
            if self._inotify is None or not watch.open:
                continue
            try:
                self._follow(self._inotify, watch)
            except Refusal as refusal:
                self.leave(watch)
                watch.fail(refusal.code, str(refusal))
            else:
                watch.tell()


class Inotify:
    """The kernel's interface, by the C library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self.fd = self._checked(self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, path: bytes, mask: int) -> int:
        """The number of a watch on the inode that `path` leads to; raises OSError."""
        return self._checked(self._library.inotify_add_watch(self.fd, path, mask), path)

    def add_any(self, path: bytes) -> int:
        """As `add`, for whatever it is."""
        with passing(errno.ENOTDIR):
            return self.add(path, OF_DIRECTORIES)
        return self.add(path, OF_FILES)

    def remove(self, number: int) -> None:
        """Ends a watch, which may have ended by itself."""
        self._library.inotify_rm_watch(self.fd, number)

    def read(self) -> bytes:
        """Events, as many as a buffer holds."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.fd, BUFFER)
        return b""

    def close(self) -> None:
        """Ends all."""
        os.close(self.fd)

    def _checked(self, result: int, path: bytes | None = None) -> int:
        if result < 0:
            number = ctypes.get_errno()
            about = None if path is None else os.fsdecode(path)
            raise OSError(number, os.strerror(number), about)
        return result


@contextlib.contextmanager
def passing(*numbers: int) -> Generator[None, None, None]:
    """Leaves the block, and goes on, at an OSError of one of these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


@contextlib.contextmanager
def refusals_at_limits() -> Generator[None, None, None]:
    """Turns an OSError into a Refusal that says which limit is reached, if it is one."""
    with refusals():
        try:
            yield
        except OSError as error:
            if (what := LIMITS.get(error.errno or 0)) is None:
                raise
            raise Refusal("too_many", f"the limit of {what} is reached on this machine") from None


def steps(path: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Each directory on the way to an absolute `path`, and the name that leads on from there."""
    directory = b""
    for name in path.split(b"/")[1:]:
        if name:
            yield directory or b"/", name
            directory += b"/" + name


def events(data: bytes) -> Iterable[tuple[int, int, bytes]]:
    """The watch, the mask and the name of each."""
    start = 0
    while start < len(data):
        number, mask, _, length = EVENT.unpack_from(data, start)
        start += EVENT.size + length
        yield number, mask, data[start - length : start].rstrip(b"\0")
