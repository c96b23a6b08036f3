"""A file that is replaced in one step."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from .connection import Refusal, Stream
from .slices import refusals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .connection import Connection
    from .identity import User


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
