"""Files and trees given another name, copied, deleted."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat

from .connection import Refusal
from .deadline import clear_up_in_peace, set_deadline
from .parcel import MODES
from .slices import facts, hidden_in, refusal_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from .worker import Task

RENAME_NOREPLACE = 1  # <linux/fs.h>
AT_FDCWD = -100  # <fcntl.h>
BLOCK = 1024 * 1024  # bytes copied at once
UNDO_AFTER = 35.0  # s, after which a copy is taken back; clients give calls up after 60
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class Transfer:
    """Something that is to be, or to be also, elsewhere. Raises Refusal when it can't be.

    `source` and `place` are where the two names really are, their directories' links followed.
    """

    def __init__(self, source: str, destination: str, overwrite: bool) -> None:
        self.source = located(source)
        self.place = located(destination)
        self.overwrite = overwrite
        self.found = os.lstat(self.source)
        inside = os.path.join(self.source, "")
        if stat.S_ISDIR(self.found.st_mode) and self.place.startswith(inside):
            raise Refusal("invalid", f"{self.place} is inside {self.source}")
        self._check_place()

    def told(self, **more: Any) -> dict[str, Any]:
        """The END."""
        return {"path": self.place, "kind": facts(self.found)["kind"], **more}

    def arrive(self, path: str) -> None:
        """Gives `path` its place; in one step, and over nothing that must stay.

        Where neither C library nor file system know renameat2(2), somebody who makes the place
        between the look and the rename is overwritten.
        """
        try:
            if self.overwrite or not _renamed_to_new(path, self.place):
                self._check_place()
                os.rename(path, self.place)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise Refusal("exists", f"{self.place} exists") from None
            raise

    def make_parents(self) -> None:
        """Makes the directories that `place` is in."""
        os.makedirs(os.path.dirname(self.place), exist_ok=True)

    def _check_place(self) -> None:
        try:
            there = os.lstat(self.place)
        except FileNotFoundError:
            return
        if os.path.samestat(there, self.found):
            raise Refusal("exists", f"{self.source} and {self.place} are the same")
        if not self.overwrite:
            raise Refusal("exists", f"{self.place} exists")
        if stat.S_ISDIR(there.st_mode) and not _is_empty(self.place):
            raise Refusal("exists", f"{self.place} is a directory that is not empty")


def rename(transfer: Transfer) -> bool:
    """Moves it at once, if a rename can do that; False where that takes a copy."""
    transfer.make_parents()
    try:
        transfer.arrive(transfer.source)
    except OSError as error:
        if error.errno == errno.EXDEV:  # also for directories of an image's layers
            return False
        raise
    return True


def copying(transfer: Transfer, *, keep_source: bool) -> Task:
    """A worker's task: all of it is at its place afterwards, or nothing is."""

    def copy(_tell: object) -> dict[str, Any]:
        set_deadline(UNDO_AFTER, "the copy")
        transfer.make_parents()
        temporary = hidden_in(os.path.dirname(transfer.place))
        try:
            copied = _Copy()
            copied.tree(transfer.source, temporary)
            transfer.arrive(temporary)
        except BaseException:
            clear_up_in_peace()
            with contextlib.suppress(OSError, Refusal):
                remove_tree(temporary)
            raise
        if not keep_source:
            _leave(transfer)
        return transfer.told(entries=copied.entries, size=copied.size, skipped=copied.skipped)

    return copy


def _leave(transfer: Transfer) -> None:
    try:
        remove_tree(transfer.source)
    except Refusal as refusal:
        words = f"All of it is copied to {transfer.place}, but could not be deleted where it was"
        raise Refusal(refusal.code, f"{words}: {refusal}") from None


class _Copy:
    """A tree being copied; what is neither file, directory nor link is skipped."""

    def __init__(self) -> None:
        self.entries = self.size = self.skipped = 0

    def tree(self, source: str, target: str) -> None:
        directories: list[tuple[str, os.stat_result]] = []
        waiting = [(source, target)]
        while waiting:
            source, target = waiting.pop()
            found = os.lstat(source)
            if stat.S_ISDIR(found.st_mode):
                os.mkdir(target, 0o700)
                directories.append((target, found))
                waiting += [(f"{source}/{n}", f"{target}/{n}") for n in os.listdir(source)]
            elif stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(source), target)
                _keep_times(target, found)
            elif stat.S_ISREG(found.st_mode):
                self._file(source, target)
            else:
                self.skipped += 1
                continue
            self.entries += 1
        for target, found in reversed(directories):
            os.chmod(target, found.st_mode & MODES)
            _keep_times(target, found)

    def _file(self, source: str, target: str) -> None:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(source, flags), "rb", buffering=0) as reader:
            found = os.fstat(reader.fileno())
            with open(target, "xb", buffering=0, opener=_private) as writer:
                while data := memoryview(reader.read(BLOCK) or b""):
                    self.size += len(data)
                    while data:
                        data = data[writer.write(data) :]
                os.fchmod(writer.fileno(), found.st_mode & MODES)
        _keep_times(target, found)


def _is_empty(directory: str) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _keep_times(path: str, found: os.stat_result) -> None:
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def delete(path: str) -> bool:
    """Deletes a file, a link or an empty directory; False when it is one that is not empty."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return True
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def deleting(path: str) -> Task:
    """A worker's task: deletes a directory with all that is in it."""

    def task(_tell: object) -> dict[str, Any]:
        set_deadline(UNDO_AFTER, "the deletion")
        return {"path": path, "entries": remove_tree(path)}

    return task


def remove_tree(path: str) -> int:
    """Deletes all of it, following no link; returns how much that was.

    Raises Refusal, which tells how much is deleted, at the first thing that can't be.
    """
    removal = _Removal()
    try:
        removal.run(path)
    except OSError as error:
        code, _ = refusal_of(error)
        where = "/".join([os.path.dirname(path).rstrip("/"), *removal.names])
        words = f"{error.strerror}: {where}; {removal.count} entries were deleted before"
        raise Refusal(code, words) from None
    except Refusal as late:
        raise Refusal(late.code, f"{late}; {removal.count} entries are deleted so far") from None
    return removal.count


class _Removal:
    """A tree being deleted by descriptors, so that nobody can lead it elsewhere by a link."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []
        """Where it is."""

    def run(self, path: str) -> None:
        directory, name = os.path.split(path)
        with contextlib.ExitStack() as stack:
            fds = [os.open(directory, DIRECTORY & ~os.O_NOFOLLOW)]
            stack.callback(lambda: [os.close(fd) for fd in fds])
            waiting = [[name]]
            while waiting:
                if waiting[-1]:
                    self._remove(waiting, fds)
                else:
                    waiting.pop()
                    if len(fds) > 1:
                        os.close(fds.pop())
                        os.rmdir(self.names[-1], dir_fd=fds[-1])
                        self._done()

    def _remove(self, waiting: list[list[str]], fds: list[int]) -> None:
        self.names.append(waiting[-1].pop())
        try:
            os.unlink(self.names[-1], dir_fd=fds[-1])
        except IsADirectoryError:
            fds.append(os.open(self.names[-1], DIRECTORY, dir_fd=fds[-1]))
            waiting.append(os.listdir(fds[-1]))
        else:
            self._done()

    def _done(self) -> None:
        self.names.pop()
        self.count += 1


def located(path: str) -> str:
    """`path` with the links in its directory followed, but not its own."""
    directory, name = os.path.split(path)
    return os.path.join(os.path.realpath(directory), name)


def check_is_free(path: str, kept: Iterable[str]) -> None:
    """Raises Refusal for `kept` directories and those that they are in, by whatever name."""
    found = os.lstat(path)
    for directory in _with_parents(kept):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, os.stat(directory)):
                words = "is kept: it is the workspace or the user's home, or what they are in"
                raise Refusal("kept", f"{path} {words}")


def _with_parents(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        yield path
        if (parent := os.path.dirname(path)) != path:
            yield from _with_parents([parent])


def _renamed_to_new(source: str, target: str) -> bool:
    """Renames, unless `target` exists; False where nobody can do that in one step."""
    try:
        renameat2 = _libc.renameat2
    except AttributeError:  # a C library that is not glibc
        return False
    names = os.fsencode(source), os.fsencode(target)
    if renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):  # a file system, or kernel, that can't
        return False
    raise OSError(number, os.strerror(number), source, None, target)
