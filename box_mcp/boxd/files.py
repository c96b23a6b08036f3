"""Opens the streams of file requests. All of it is done with the rights of the box's user."""

from __future__ import annotations

from .connection import Refusal, Stream
from .listing import list_directory, status
from .reading import read_lines
from .slices import Job
from .writing import Writing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .connection import Connection
    from .identity import User
    from .loop import Loop
    from .slices import Slices


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
