"""An operation on files, done in slices so that one large file never delays another call.

An operation is a generator: it yields bytes to send (as many as there is credit for) and returns
the result. What takes long, or reads what the server sends, is a `worker.Work` or a stream of its
own instead.
"""

from __future__ import annotations

import errno
import os
import stat

from . import wire
from .connection import Refusal, Stream
from .deadline import DEADLINE, set_deadline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, Callable

    from .connection import Connection
    from .identity import User
    from .loop import Loop

    Slices = Generator[bytes, None, "dict[str, Any]"]

CODES = {
    errno.ENOENT: "not_found",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EROFS: "denied",
    errno.EISDIR: "is_directory",
    errno.ENOTDIR: "not_directory",
    errno.EEXIST: "exists",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.ENAMETOOLONG: "invalid",
    errno.ELOOP: "invalid",
}
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


class Job(Stream):
    """Drives an operation's generator as credit and the line allow, one slice a turn."""

    def __init__(
        self, connection: Connection, number: int, loop: Loop, user: User, slices: Slices
    ) -> None:
        super().__init__(connection, number)
        self._loop = loop
        self._user = user
        self._slices = slices
        self._deadline = loop.time() + DEADLINE
        self._scheduled = False

    def on_credit(self) -> None:
        """Goes on."""
        if self.open and not self._scheduled:
            self._step()

    def on_cancel(self) -> None:
        """Nobody wants it any more."""
        self._slices.close()
        super().on_cancel()

    def on_disconnect(self) -> None:
        """Nobody waits any more."""
        self._slices.close()

    def _step(self) -> None:
        self._scheduled = False
        with self.connection.in_one_piece():  # what is small goes out with its end
            unfinished = self._send_slice() and self._send_slice()
        if unfinished:
            self._scheduled = True
            self._loop.call_later(0, self._step)

    def _send_slice(self) -> bool:
        """False when there is nothing more to do, for now or at all."""
        if not self.open or self.outgoing.left < wire.CHUNK:
            return False
        if self.connection.congested:
            self.connection.notify_when_clear(self)
            return False
        if self._loop.time() > self._deadline:
            self._slices.close()
            self.fail("too_slow", f"it was not done within {DEADLINE:g} s")
            return False
        try:
            with refusals(), self._user.rights():
                piece = next(self._slices)
        except StopIteration as stop:
            self.end(stop.value)
        except ValueError as error:  # a path that no file system can hold
            self.fail("invalid", str(error))
        except Refusal as refusal:
            self.fail(refusal.code, str(refusal))
        else:
            if piece:
                self.send(piece)
        return self.open


def printed(slices: Slices, what: str) -> dict[str, Any]:
    """The result, once all pieces are on standard output: for an operation in a worker."""
    set_deadline(DEADLINE, what)
    with open(1, "wb", closefd=False) as out:
        while True:
            try:
                out.write(next(slices))
            except StopIteration as stop:  # noqa: PERF203 - that is where the result is
                return stop.value


class refusals:  # noqa: N801 - reads as a phrase: `with refusals(): ...`
    """Turns an OSError inside into a Refusal, after calling `undo`."""

    def __init__(self, undo: Callable[[], None] | None = None) -> None:
        self._undo = undo

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            if self._undo is not None:
                self._undo()
            raise Refusal(*refusal_of(error)) from None


def refusal_of(error: OSError) -> tuple[str, str]:
    """Code and message for the server."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    about = f": {' -> '.join(names)}" if names else ""
    return CODES.get(error.errno or 0, "failed"), f"{error.strerror or error}{about}"


def hidden_in(directory: str) -> str:
    """A new name there, for what is made beside its place and then renamed."""
    return os.path.join(directory, f".box-{os.urandom(6).hex()}")


def check_regular(path: str, found: os.stat_result) -> None:
    """Raises Refusal unless `path` is a regular file."""
    if stat.S_ISDIR(found.st_mode):
        raise Refusal("is_directory", f"{path} is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise Refusal("not_a_file", f"{path} is a device, a pipe or a socket")


def facts(found: os.stat_result) -> dict[str, Any]:
    """What a listing and every read tell of a file; times in seconds since the epoch."""
    return {
        "kind": KINDS.get(stat.S_IFMT(found.st_mode), "other"),
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "modified": found.st_mtime,
    }


def version(found: os.stat_result) -> str:
    """A token that is another one whenever the file is replaced or changed.

    Two changes of the same size within one tick of the kernel's clock (4 ms) can't be told apart.
    """
    state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return format(hash(state) & (1 << 48) - 1, "012x")
