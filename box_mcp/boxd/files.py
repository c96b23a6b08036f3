"""File work in the box, done in slices so that one large file never delays another call.

An operation is a generator: it yields bytes to send (as many as there is credit for) and returns
the result. `write` is the exception, since there the bytes come from the server.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat

from . import wire
from .connection import Refusal, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from io import FileIO
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
BATCH = 32  # directory entries per slice; with the longest names still below wire.CHUNK


class Files:
    """Opens the streams of file requests."""

    def __init__(self, loop: Loop, root: str, user: User) -> None:
        self._loop = loop
        self._root = root
        self._user = user

    def open_read(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, first_line, max_lines, max_bytes`` → the bytes of those whole lines.

        END: the file's facts, ``lines`` sent, ``more`` (the file goes on behind them).
        """
        return self._job(
            connection,
            number,
            read_lines(
                self._path(request),
                int(request.get("first_line", 1)),
                int(request["max_lines"]),
                int(request["max_bytes"]),
            ),
        )

    def open_list(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, limit`` → one JSON object a line for each entry, sorted by name.

        END: ``total`` entries, of which at most ``limit`` were sent.
        """
        return self._job(
            connection, number, list_directory(self._path(request), int(request["limit"]))
        )

    def open_stat(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path`` → END with the facts of what is there."""
        return self._job(connection, number, status(self._path(request)))

    def open_write(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path``, then DATA, then FINISH → the file holds exactly the data, or is as before."""
        return Writing(connection, number, self._path(request), self._user)

    def _job(self, connection: Connection, number: int, slices: Slices) -> Stream:
        job = Job(connection, number, self._loop, self._user, slices)
        job.on_credit()
        return job

    def _path(self, request: dict[str, Any]) -> str:
        path = str(request["path"])
        if "\0" in path:
            raise Refusal("invalid", "a path can't contain a NUL byte")
        return self._user.path(self._root, path)


class Job(Stream):
    """Drives an operation's generator as credit and the line allow, one slice a turn."""

    def __init__(
        self, connection: Connection, number: int, loop: Loop, user: User, slices: Slices
    ) -> None:
        super().__init__(connection, number)
        self._loop = loop
        self._user = user
        self._slices = slices
        self._scheduled = False

    def on_credit(self) -> None:
        """Goes on."""
        if self.open and not self._scheduled:
            self._step()

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


class Writing(Stream):
    """A file being replaced: written beside its place, then renamed over it."""

    def __init__(self, connection: Connection, number: int, path: str, user: User) -> None:
        super().__init__(connection, number)
        self._user = user
        self._size = 0
        self._temporary: str | None = None
        with refusals(), user.rights():
            self._path = os.path.realpath(path)
            self._mode = self._existing_mode()
            self._create()

    def on_data(self, _label: int, data: bytes, /) -> None:
        """More of the content."""
        with refusals(self._discard):
            while data and self.open:
                written = os.write(self._fd, data)
                self._size += written
                self.consumed(written)
                data = data[written:]

    def on_finish(self) -> None:
        """All is there: the file takes its place in one step."""
        with refusals(self._discard), self._user.rights():
            if self._mode is not None:
                os.fchmod(self._fd, self._mode)
            assert self._temporary is not None
            os.rename(self._temporary, self._path)
            self._temporary = None
        os.close(self._fd)
        self.end({"size": self._size, "created": self._mode is None})

    def on_cancel(self) -> None:
        """The file stays as it was."""
        self._discard()
        super().on_cancel()

    def on_disconnect(self) -> None:
        """The file stays as it was."""
        self._discard()

    def _existing_mode(self) -> int | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise Refusal(
                "is_directory" if stat.S_ISDIR(found.st_mode) else "invalid",
                f"{self._path} is no regular file",
            )
        if not os.access(self._path, os.W_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self._path)
        return stat.S_IMODE(found.st_mode)

    def _create(self) -> None:
        directory = os.path.dirname(self._path)
        temporary = os.path.join(directory, f".box-{os.urandom(6).hex()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(temporary, flags, 0o644)
        except FileNotFoundError:
            os.makedirs(directory, exist_ok=True)
            self._fd = os.open(temporary, flags, 0o644)
        self._temporary = temporary

    def _discard(self) -> None:
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            os.close(self._fd)
            with contextlib.suppress(OSError), self._user.rights():
                os.unlink(temporary)


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
    about = f": {error.filename}" if error.filename is not None else ""
    return CODES.get(error.errno or 0, "failed"), f"{error.strerror or error}{about}"


def facts(found: os.stat_result) -> dict[str, Any]:
    """What a listing and every read tell of a file; times in seconds since the epoch."""
    return {
        "kind": KINDS.get(stat.S_IFMT(found.st_mode), "other"),
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "modified": found.st_mtime,
    }


def status(path: str) -> Slices:
    """The facts of `path`, symlinks not followed."""
    yield from ()
    found = facts(os.lstat(path))
    if found["kind"] == "symlink":
        found["target"] = os.readlink(path)
    return found


def list_directory(path: str, limit: int) -> Slices:
    """The entries of a directory as JSON lines."""
    names = sorted(os.listdir(path))
    for start in range(0, min(len(names), limit), BATCH):
        lines: list[str] = []
        for name in names[start : min(start + BATCH, limit)]:
            try:
                found = facts(os.lstat(os.path.join(path, name)))
            except FileNotFoundError:
                continue
            lines.append(json.dumps({"name": name, **found}) + "\n")
        yield "".join(lines).encode()
    return {"total": len(names)}


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
