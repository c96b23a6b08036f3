"""A parcel from standard input as files; a task for a worker.

All is made in a directory beside its place, of a hidden name, and put in place once all of it has
come: whatever happens before, nothing there is changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from .connection import Refusal
from .deadline import clear_up_in_peace
from .packing import Tally
from .parcel import DIRECTORY, FILE, ParcelError, Sink, Unpacker
from .slices import hidden_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .parcel import Entry

RECEIVED = 64 * 1024  # bytes at once; more does not stay in the processor's cache
SMALL = 256 * 1024  # bytes; smaller files are written at once
MAX_CONFLICTS = 5  # names that are told
INPUT = 0
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack(path: str, overwrite: bool) -> dict[str, Any]:
    """Makes what comes be `path`; its parents are made.

    A directory joins one that is there. Other things that are there are replaced with `overwrite`
    only, and never by something of another kind; links are never followed, but for `path` itself.
    """
    os.umask(0)
    unpacking = _Unpacking(path, overwrite)
    unpacker = Unpacker(unpacking)
    buffer = memoryview(bytearray(RECEIVED))
    try:
        while not unpacker.ended:
            count = os.readv(INPUT, [buffer])
            if not count:
                raise Refusal("failed", "what was sent ended too early")
            unpacker.feed(buffer[:count])
        unpacking.put_in_place()
    except ParcelError as error:
        raise Refusal("invalid", f"what was sent can't be unpacked: {error}") from None
    except OSError as error:
        unpacking.correct(error)
        raise
    finally:
        clear_up_in_peace()
        unpacking.clear_up()
    return unpacking.tally.told()


class _Unpacking(Sink):
    """Makes files beside the place, then moves them there."""

    def __init__(self, path: str, overwrite: bool) -> None:
        self.tally = Tally()
        self._path = path
        self._overwrite = overwrite
        self._place = ""
        self._stage = ""
        self._is_tree = False
        self._joins = False
        self._directories: list[Entry] = []
        self._joined: set[bytes] = set()
        self._stage_fd = -1
        self._fd = -1
        self._pieces: list[bytes] = []

    def begin(self, entry: Entry) -> None:
        self.tally.count(entry)
        if not self._stage:
            self._choose_place(entry)
        if entry.kind == DIRECTORY:
            self._make_directory(entry)
        elif entry.size > SMALL:
            self._fd = self._open(entry)

    def content(self, data: memoryview) -> None:
        if self._fd < 0:
            self._pieces.append(bytes(data))
            return
        while data:
            data = data[os.write(self._fd, data) :]

    def finish(self, entry: Entry) -> None:
        times = (entry.modified, entry.modified)
        if entry.kind == FILE:
            if self._fd < 0:
                self._fd = self._open(entry)
                data, self._pieces = b"".join(self._pieces), []
                self.content(memoryview(data))
            os.utime(self._fd, ns=times)
            fd, self._fd = self._fd, -1
            os.close(fd)
        elif entry.kind != DIRECTORY:
            target, self._pieces = b"".join(self._pieces), []
            os.symlink(target, self._name(entry), dir_fd=self._base())
            os.utime(self._name(entry), ns=times, dir_fd=self._base(), follow_symlinks=False)

    def put_in_place(self) -> None:
        if not self._is_tree:
            self._put_file()
        elif self._joins:
            self._join()
        else:
            try:
                os.rename(self._stage, self._place)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise self._exists() from None
            self._dress(self._stage_fd)

    def correct(self, error: OSError) -> None:
        """Has it name the place, not what is beside it for a while."""
        if error.filename in (self._stage, os.fsencode(self._stage)):
            error.filename = self._path

    def clear_up(self) -> None:
        """Nothing is left of what is not in place."""
        if not self._is_tree:
            with contextlib.suppress(OSError):
                os.unlink(self._stage)
        elif self._joins or os.path.lexists(self._stage):
            import shutil

            with contextlib.suppress(RecursionError):
                shutil.rmtree(self._stage, ignore_errors=True)

    def _choose_place(self, entry: Entry) -> None:
        self._is_tree = entry.kind == DIRECTORY
        follow = entry.kind in (DIRECTORY, FILE)
        parent, name = os.path.split(self._path)
        parent = os.path.realpath(parent)
        self._place = os.path.realpath(self._path) if follow else os.path.join(parent, name)
        found = _status(self._place)
        if found is not None:
            self._check_place(found)
        self._joins = self._is_tree and found is not None
        home = self._place if self._joins else os.path.dirname(self._place)
        os.makedirs(home, 0o755, exist_ok=True)
        self._stage = hidden_in(home)

    def _check_place(self, found: os.stat_result) -> None:
        """Raises when what is there can't make room."""
        if self._is_tree:
            if not stat.S_ISDIR(found.st_mode):
                raise Refusal("not_directory", f"{self._path} is there, and no directory")
        elif stat.S_ISDIR(found.st_mode):
            raise Refusal("is_directory", f"{self._path} is a directory")
        elif not self._overwrite:
            raise self._exists()
        else:
            _check_replaceable(found, self._path, None)

    def _make_directory(self, entry: Entry) -> None:
        if self._stage_fd < 0:
            os.mkdir(self._stage, 0o700)
            self._stage_fd = os.open(self._stage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        else:
            os.mkdir(entry.path, 0o700, dir_fd=self._stage_fd)
        self._directories.append(entry)

    def _open(self, entry: Entry) -> int:
        return os.open(self._name(entry), NEW, entry.mode & 0o777, dir_fd=self._base())

    def _name(self, entry: Entry) -> bytes:
        return entry.path or os.fsencode(self._stage)

    def _base(self) -> int | None:
        return self._stage_fd if self._stage_fd >= 0 else None

    def _put_file(self) -> None:
        if self._overwrite:
            return os.rename(self._stage, self._place)
        try:
            os.link(self._stage, self._place, follow_symlinks=False)
        except FileExistsError:
            raise self._exists() from None

    def _exists(self, names: str = "") -> Refusal:
        return Refusal("exists", f"{names or self._path} exists: nothing was changed")

    def _join(self) -> None:
        """Moves what came into the directory that is there, when nothing speaks against it."""
        place = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._check_conflicts(place)
            self._joined.add(b"")
            for name, _, _ in self._moves(place):
                os.rename(name, name, src_dir_fd=self._stage_fd, dst_dir_fd=place)
            self._dress(place)
        finally:
            os.close(place)

    def _check_conflicts(self, place: int) -> None:
        conflicts: list[str] = []
        count = 0
        for name, is_directory, found in self._moves(place):
            if found is None:
                continue
            if self._overwrite and not is_directory and not stat.S_ISDIR(found.st_mode):
                _check_replaceable(found, os.fsdecode(name), place)
                continue
            count += 1
            if count <= MAX_CONFLICTS:
                conflicts.append(name.decode(errors="backslashreplace"))
        if count:
            names = ", ".join(conflicts)
            more = f" and {count - MAX_CONFLICTS} more" if count > MAX_CONFLICTS else ""
            raise self._exists(f"In {self._path}, {names}{more}")

    def _moves(self, place: int) -> Iterator[tuple[bytes, bool, os.stat_result | None]]:
        """What has to be moved, whether it is a directory, and what is there already.

        A directory that can join one is not moved; what is in it is.
        """
        waiting = [b""]
        while waiting:
            directory = waiting.pop()
            prefix = directory + b"/" if directory else b""
            fd = os.open(directory or b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._stage_fd)
            try:
                with os.scandir(fd) as entries:
                    known = [
                        (os.fsencode(one.name), one.is_dir(follow_symlinks=False))
                        for one in entries
                    ]
            finally:
                os.close(fd)
            for name, is_directory in known:
                found = _status(prefix + name, place)
                if is_directory and found is not None and stat.S_ISDIR(found.st_mode):
                    self._joined.add(prefix + name)
                    waiting.append(prefix + name)
                else:
                    yield prefix + name, is_directory, found

    def _dress(self, place: int) -> None:
        """Gives the new directories their modes and times, the deepest first."""
        for entry in reversed(self._directories):
            if entry.path not in self._joined:
                name = entry.path or b"."
                os.chmod(name, entry.mode, dir_fd=place)
                os.utime(name, ns=(entry.modified, entry.modified), dir_fd=place)


def _status(path: str | bytes, base: int | None = None) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=base, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _check_replaceable(found: os.stat_result, path: str, base: int | None) -> None:
    """Raises when a file must not be replaced, though its directory would allow it."""
    if stat.S_ISLNK(found.st_mode):
        return
    if not stat.S_ISREG(found.st_mode):
        raise Refusal("invalid", f"{path} is no regular file")
    if not os.access(path, os.W_OK, dir_fd=base, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
