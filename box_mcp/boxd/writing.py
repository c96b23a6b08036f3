"""Files that are replaced in one step, or added to."""

from __future__ import annotations

import contextlib
import errno
import os

from .connection import Refusal, Stream
from .slices import check_regular, hidden_in, refusals, version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .connection import Connection
    from .identity import User

NEW = "new"  # the `if_version` of what must not be there yet
FLUSHED = 1024 * 1024  # bytes after which they are forced to the disk, so that no wait gets long
MAX_APPENDED = 8 * 1024 * 1024  # bytes that are added at once


class Replacement:
    """What is to take the place of the file `path`: until `commit`, that stays as it is.

    It gets the old file's mode without setuid and setgid, and its owner where boxd is root; its
    extended attributes and hard links stay with the old one. Raises OSError and Refusal, and so
    does `commit`. Whoever gives up calls `discard`.
    """

    def __init__(self, path: str, user: User, if_version: str | None) -> None:
        self._user = user
        self._if_version = if_version
        self._size = self._flushed = 0
        with user.rights():
            self._path = os.path.realpath(path)
            self._old = writable(self._path)
            check_version(self._path, self._old, if_version)
            self._fd, self._temporary = _beside(self._path)

    def write(self, data: bytes) -> None:
        """Adds to it."""
        self._size += len(data)
        while data:
            data = data[os.write(self._fd, data) :]
        if self._size - self._flushed >= FLUSHED:
            self._flushed = self._size
            os.fdatasync(self._fd)

    def commit(self) -> dict[str, Any]:
        """Puts it into its place, in one step."""
        if self._old is not None:
            self._inherit(self._old)
        os.fsync(self._fd)
        with self._user.rights():
            if self._if_version is not None:
                check_version(self._path, _found(self._path), self._if_version)
            if self._if_version == NEW:
                self._link()
            else:
                os.rename(self._temporary, self._path)
        self._temporary = ""
        result = {
            "size": self._size,
            "created": self._old is None,
            "version": version(os.fstat(self._fd)),
        }
        os.close(self._fd)
        return result

    def _link(self) -> None:
        """Gives it its place, which unlike a rename never replaces."""
        try:
            os.link(self._temporary, self._path)
        except FileExistsError:
            check_version(self._path, _found(self._path), NEW)
            raise
        os.unlink(self._temporary)

    def discard(self) -> None:
        """Removes it, unless it took its place; twice is fine."""
        temporary, self._temporary = self._temporary, ""
        if temporary:
            os.close(self._fd)
            with contextlib.suppress(OSError), self._user.rights():
                os.unlink(temporary)

    def _inherit(self, old: os.stat_result) -> None:
        mine = os.fstat(self._fd)
        if (mine.st_uid, mine.st_gid) != (old.st_uid, old.st_gid) and os.getuid() == 0:
            user = os.geteuid()
            os.seteuid(0)
            try:
                os.fchown(self._fd, old.st_uid, old.st_gid)
                os.fchmod(self._fd, old.st_mode & 0o1777)
            finally:
                os.seteuid(user)
        else:
            os.fchmod(self._fd, old.st_mode & 0o1777)


class Writing(Stream):
    """A file whose new content the server sends."""

    def __init__(
        self, connection: Connection, number: int, path: str, user: User, if_version: str | None
    ) -> None:
        super().__init__(connection, number)
        with refusals():
            self._replacement = Replacement(path, user, if_version)

    def on_data(self, _label: int, data: bytes, /) -> None:
        """More of the content."""
        if self.open:
            with refusals(self._replacement.discard):
                self._replacement.write(data)
            self.consumed(len(data))

    def on_finish(self) -> None:
        """All is there: the file takes its place."""
        try:
            with refusals():
                self.end(self._replacement.commit())
        finally:
            self._replacement.discard()

    def on_cancel(self) -> None:
        """The file stays as it was."""
        self._replacement.discard()
        super().on_cancel()

    def on_disconnect(self) -> None:
        """The file stays as it was."""
        self._replacement.discard()


class Appending(Stream):
    """A file to whose end the server adds, all or nothing: first all of it is waited for."""

    def __init__(
        self, connection: Connection, number: int, path: str, user: User, if_version: str | None
    ) -> None:
        super().__init__(connection, number)
        self._user = user
        self._if_version = if_version
        self._data = bytearray()
        with refusals(), user.rights():
            self._path = os.path.realpath(path)
            check_version(self._path, writable(self._path), if_version)

    def on_data(self, _label: int, data: bytes, /) -> None:
        """More of what is added."""
        if len(self._data) + len(data) > MAX_APPENDED:
            self._data.clear()
            raise Refusal("too_large", f"{MAX_APPENDED:,} bytes can be added at once, at most")
        self._data += data
        self.consumed(len(data))

    def on_finish(self) -> None:
        """All is there."""
        with refusals():
            result = self._append()
        self.end(result)

    def _append(self) -> dict[str, Any]:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._user.rights():
            old = writable(self._path)
            check_version(self._path, old, self._if_version)
            if old is None:
                _make_parents(self._path)
                flags |= os.O_CREAT | (os.O_EXCL if self._if_version == NEW else 0)
            fd = os.open(self._path, flags, 0o644)
        try:
            _add(fd, self._data)
            os.fsync(fd)
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return {"size": found.st_size, "created": old is None, "version": version(found)}


def writable(path: str) -> os.stat_result | None:
    """The regular file `path`, which the user may write; None when there is nothing."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(fd)
        check_regular(path, found)
        # Not by `path`, which may lead to another file by now: what is told of one file and may be
        # done to another would let the user make files that are root's.
        if not os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    finally:
        os.close(fd)
    return found


def check_version(path: str, found: os.stat_result | None, wanted: str | None) -> None:
    """Raises Refusal unless the file's version is `wanted`; None is any."""
    is_now = NEW if found is None else version(found)
    if wanted in (None, is_now):
        return
    if found is None:
        raise Refusal("changed", f"{path} does not exist, so it has not version {wanted}")
    if wanted == NEW:
        raise Refusal("changed", f"{path} exists already (version {is_now})")
    raise Refusal("changed", f"{path} has changed: its version is {is_now} now, not {wanted}")


def _add(fd: int, data: bytearray) -> None:
    """Adds `data` behind the end, or nothing: what did not fit is cut off again."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError:
        end = os.lseek(fd, 0, os.SEEK_CUR)
        if rest.nbytes < len(data) and os.fstat(fd).st_size == end:  # nobody has added since
            os.ftruncate(fd, end - (len(data) - rest.nbytes))
        raise


def _found(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _beside(path: str) -> tuple[int, str]:
    """A new file in the directory of `path`, which is made if need be."""
    temporary = hidden_in(os.path.dirname(path))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(temporary, flags, 0o644), temporary
    except FileNotFoundError:
        _make_parents(path)
    except PermissionError:
        raise _nothing_new(path, errno.EACCES) from None
    try:
        return os.open(temporary, flags, 0o644), temporary
    except FileNotFoundError:  # in /proc nobody can
        raise _nothing_new(path, errno.ENOTSUP) from None


def _nothing_new(path: str, number: int) -> OSError:
    return OSError(number, "No new file can be made here", os.path.dirname(path))


def _make_parents(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
