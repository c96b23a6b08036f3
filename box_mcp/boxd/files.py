"""Opens the streams of file requests. All of it is done with the rights of the box's user."""

from __future__ import annotations

import os

from . import packing, unpacking
from .connection import Refusal, Stream
from .editing import Editing
from .listing import list_tree, status
from .moving import Transfer, check_is_free, copying, delete, deleting, located, rename
from .reading import read
from .slices import Job, printed, refusals
from .watching import Watch, Watcher
from .worker import PipedWork, Work
from .writing import Appending, Writing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .connection import Connection
    from .identity import User
    from .loop import Loop
    from .slices import Slices
    from .worker import Meeting, Task


class Files:
    """Opens the streams of file requests."""

    def __init__(self, loop: Loop, root: str, user: User, meeting: Meeting) -> None:
        self._meeting = meeting
        self._loop = loop
        self._root = root
        self._user = user
        self._watcher = Watcher(loop, user)

    def open_read(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path``, and what of it → DATA.

        ``offset, length``: bytes; with ``whole``, more than that are refused. Else whole lines, as
        UTF-8, those of more than ``fold`` bytes folded: ``max_lines, max_bytes`` from
        ``first_line`` on, or the last ``tail`` ones that fit into ``max_bytes``; of a file that is
        no text its first bytes, but a picture or document of up to ``media_limit`` bytes whole.

        END: the file's facts, ``version, encoding, bom, crlf, media``; ``text`` (lines came, no
        bytes), ``first_line``, ``lines`` that came, ``total`` lines of a file that is not too
        large, ``more`` (the file goes on behind what came).
        """
        return self._job(connection, number, read(self._path(request), request))

    def open_list(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, depth, limit, hidden`` → one JSON object a line for each entry, by name.

        ``glob``: only what it matches; ``gitignore``: not what such files hide; ``after``: only
        what follows that path. END: ``directory`` that it is, ``more`` (others follow), ``total``
        of one that is shown whole, ``unreadable`` directories in it, and what it ``reached`` if
        that took so long that it is told before its time.
        """
        slices = list_tree(self._path(request), request)
        if request.get("glob") or request.get("gitignore"):  # which take long, or for ever
            return self._work(connection, number, {}, lambda _: printed(slices, "the listing"))
        return self._job(connection, number, slices)

    def open_search(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, pattern, gitignore, limit, max_bytes`` → one JSON object a line for each line.

        ``mode``: "matches", "files" or "count"; ``literal, case, glob, type, context, hidden``.
        ``after, after_line``: only what follows. END: the ``directory`` that paths are relative
        to, which ``engine`` it was, ``more`` (others follow), and of all that there are
        ``matches`` and ``files``, unless they are too many; ``unreadable``: some could not be read.
        """
        from .searching import search  # a box that searches nothing starts without

        return self._work(connection, number, {}, search(self._path(request), request))

    def open_move(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, destination, overwrite`` → END: the ``path`` where it is now, its ``kind``.

        Into `destination` where that is a directory or ends with a slash. What takes a copy also
        tells its ``entries``, ``size`` and how many were ``skipped``.
        """
        with refusals(), self._user.rights():
            check_is_free(located(self._path(request)), self._kept())
            transfer = self._transfer(request)
            done = rename(transfer)
        if not done:
            return self._work(connection, number, {}, copying(transfer, keep_source=False))
        return self._done(connection, number, transfer.told())

    def open_copy(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """As `move`, but it is also where it was."""
        with refusals(), self._user.rights():
            transfer = self._transfer(request)
        return self._work(connection, number, {}, copying(transfer, keep_source=True))

    def open_delete(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, recursive`` → END: the ``path`` that is gone, how many ``entries`` with it."""
        with refusals(), self._user.rights():
            path = located(self._path(request))
            check_is_free(path, self._kept())
            done = delete(path)
        if done:
            return self._done(connection, number, {"path": path, "entries": 1})
        if not request.get("recursive"):
            raise Refusal("not_empty", f"{path} is a directory that is not empty")
        return self._work(connection, number, {}, deleting(path))

    def open_stat(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path`` → END with the facts of what is there."""
        return self._job(connection, number, status(self._path(request)))

    def open_write(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path``, then DATA, then FINISH → the file holds exactly the data, or is as before.

        ``append``: it is added to. ``if_version``: only while the file has that version, or does
        not exist (``new``). END: ``size, created, version``.
        """
        kind = Appending if request.get("append") else Writing
        path = self._path(request)
        return kind(connection, number, path, self._user, request.get("if_version"))

    def open_edit(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, max_bytes, if_version, dry_run``, then DATA, then FINISH → an edited file.

        The data is a JSON array of ``{"old", "new", "all"}``. Back come lines of JSON, at most
        ``max_bytes`` of them: ``[old line number, new line number, old lines, new lines]``.

        END: as of a read, ``done``; then ``places`` replaced, ``hunks`` that there are, and unless
        it was a ``dry_run`` what a write tells; or else which ``edit`` it was, how many ``matches``
        it has, and on which ``lines``: then nothing was changed.
        """
        return Editing(connection, number, self._loop, self._user, self._path(request), request)

    def open_watch(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path`` → NOTE ``watching``, then NOTE ``newest`` after changes; no END.

        What there is, or comes to be: of a file its content, of a directory what it holds.
        """
        return Watch(connection, number, self._watcher, self._path(request))

    def open_survey(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, gitignore`` → END: what `pack` would send, and the ``kind`` of the path."""
        path, gitignore = self._path(request), bool(request["gitignore"])
        return self._work(connection, number, {}, lambda _: packing.survey(path, gitignore))

    def open_pack(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, gitignore, pipe`` → DATA: a parcel of it; END: how much of what it was.

        With `pipe`, a token, the parcel goes through a connection of its own, whose first byte is
        the server's, and the last one, too: when all has come.
        """
        path, gitignore = self._path(request), bool(request["gitignore"])
        piped = request.get("pipe") is not None
        return self._work(
            connection, number, request, lambda _: packing.pack(path, gitignore, piped)
        )

    def open_unpack(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """``path, overwrite, pipe``, then a parcel as DATA → all of it is there, or none.

        With `pipe`, a token, the parcel comes through a connection of its own, behind one byte.
        """
        path, overwrite = self._path(request), bool(request["overwrite"])
        return self._work(connection, number, request, lambda _: unpacking.unpack(path, overwrite))

    def _work(
        self, connection: Connection, number: int, request: dict[str, Any], task: Task
    ) -> Work:
        with refusals():
            if (token := request.get("pipe")) is None:
                return Work(connection, number, self._loop, self._user, task)
            where = (self._meeting, str(token))
            return PipedWork(connection, number, self._loop, self._user, task, *where)

    def _transfer(self, request: dict[str, Any]) -> Transfer:
        source, destination = self._path(request), self._path({"path": request["destination"]})
        if str(request["destination"]).endswith("/") or os.path.isdir(destination):
            destination = os.path.join(destination, os.path.basename(source))
        return Transfer(source, destination, bool(request.get("overwrite")))

    def _kept(self) -> list[str]:
        """What nobody may delete, by mistake, with all that is in it."""
        return [self._user.path(self._root, path) for path in (".", "~")]

    def _done(self, connection: Connection, number: int, result: dict[str, Any]) -> Stream:
        """A request that is answered already."""
        stream = Stream(connection, number)
        stream.end(result)
        return stream

    def _job(self, connection: Connection, number: int, slices: Slices) -> Stream:
        job = Job(connection, number, self._loop, self._user, slices)
        job.on_credit()
        return job

    def _path(self, request: dict[str, Any]) -> str:
        path = str(request["path"])
        if "\0" in path:
            raise Refusal("invalid", "a path can't contain a NUL byte")
        return self._user.path(self._root, path)
