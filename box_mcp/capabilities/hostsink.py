"""What comes out of a box on its way to the user's disk.

Nothing is believed that the box says. All of it goes into a new directory beside the place where
it belongs, and gets there only when all of it came and all of it was fine::

    <staging>/new        the file or tree, as it comes; links are made last, so nothing is written
                         through one
    <destination>        renamed to, or, where there is a directory already, merged with
"""

# ruff: noqa: PTH101, PTH102, PTH105, PTH208, PTH211
# Paths are plain text here: for thousands of small files, objects would cost more than the disk.

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from stat import S_ISDIR

import anyio
from anyio import to_thread

from box_mcp.boxd import parcel
from box_mcp.capabilities.hostroots import Place, is_junction
from box_mcp.capabilities.leftout import LeftOut
from box_mcp.domain.hostfiles import Tree, why_not_link, why_not_together
from box_mcp.domain.paths import ERRORS, shown
from box_mcp.errors import HostFailed, HostForbidden

logger = logging.getLogger(__name__)

STAGING = ".box-mcp-"  # what the names of staging directories begin with
PERMISSIONS = 0o775  # what is kept of a mode: nothing comes that everybody may write
OWNER_READS = 0o400
OWNER_ENTERS = 0o700  # a person must be able to look into what came, and to delete it
MAX_DEPTH = 128  # directories in each other; Python 3.11 removes trees by recursion
BINARY = getattr(os, "O_BINARY", 0)  # Windows would change line ends
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY
ADVICE = (
    "Download the parts that you need (gitignore=true leaves .git out), or show its content to "
    "the user instead"
)
TWICE = "the box sends two things of this name, as this disk reads names"
WINDOWS = os.name == "nt"


class HostSink(parcel.Sink):
    """Takes a file or tree for `place`; `commit` puts it there, `close` removes what is staged.

    Without `overwrite` nothing may be at `place`. With it, files are replaced, directories are
    merged, and a file never replaces a directory nor the other way round. All methods block, and
    raise HostForbidden and HostFailed.
    """

    def __init__(self, place: Place, *, overwrite: bool, windows: bool = WINDOWS) -> None:
        self._place = place
        self._overwrite = overwrite
        self._tree = Tree(place.named, windows=windows)
        self._directories: dict[str, parcel.Entry] = {}
        self._links: list[tuple[str, bytes]] = []
        self._fd = -1
        self._link = bytearray()
        self.left_out = LeftOut()
        self._failures = _Failures(place.path)
        self._refuse_existing()
        with self._failures:
            above = next(path for path in place.path.parents if path.is_dir())
            self._staging = tempfile.mkdtemp(prefix=STAGING, dir=above)
        self._new = f"{self._staging}{os.sep}new"

    @property
    def room(self) -> int:
        """Bytes that the disk has left."""
        with self._failures:
            return shutil.disk_usage(self._staging).free

    def begin(self, entry: parcel.Entry, /) -> None:
        """Makes the directory or file; the path is checked by its meaning, not by its form."""
        path = entry.path.decode(errors=ERRORS)
        self.check(path)
        self._failures.path = self._final(path)
        with self._failures:
            try:
                if entry.kind == parcel.DIRECTORY:
                    os.mkdir(self._staged(path), OWNER_ENTERS)
                    self._directories[path] = entry
                elif entry.kind == parcel.FILE:
                    self._fd = os.open(self._staged(path), CREATE, 0o600)
            except FileExistsError:
                raise HostForbidden(shown(self._final(path)), TWICE) from None

    def check(self, path: str) -> None:
        """Raises HostForbidden unless the name of an entry is one to write."""
        why = self._tree.why_not(path)
        if not why and path.count("/") >= MAX_DEPTH:
            why = f"it is more than {MAX_DEPTH} directories deep"
        if why:
            name = shown(self._final(path))
            raise HostForbidden(name, f"{why}, so nothing of a box is written there", ADVICE)

    def content(self, data: memoryview, /) -> None:
        """Writes it."""
        if self._fd < 0:
            self._link += data
            return
        with self._failures:
            while data:
                data = data[os.write(self._fd, data) :]

    def finish(self, entry: parcel.Entry, /) -> None:
        """Gives a file its mode and time; links are only remembered."""
        path = entry.path.decode(errors=ERRORS)
        if entry.kind == parcel.FILE:
            with self._failures:
                if not WINDOWS:
                    _dress(self._fd, entry)
                self._end_file()
                if WINDOWS:  # closing a file there would change its time
                    _dress(self._staged(path), entry)
        elif entry.kind == parcel.LINK:
            target, self._link = bytes(self._link), bytearray()
            self._keep_link(path, target)

    def commit(self) -> None:
        """Puts all of it where it belongs."""
        self._make_links()
        with self._failures:
            for path, entry in reversed(self._directories.items()):
                _dress(self._staged(path), entry)
            if not os.path.lexists(self._new):
                raise HostForbidden(self._failures.path, "it is a link that leads out")
            self._refuse_existing()
            self._refuse_repositories()
            moves = list(self._moves(self._new, str(self._place.path)))
            self._place.path.parent.mkdir(parents=True, exist_ok=True)
        for done, (staged, final) in enumerate(moves):
            try:
                os.replace(staged, final)
            except OSError as error:
                detail = f"{error.strerror}; {done} of {len(moves)} were put in place before"
                raise HostFailed(shown(final), detail) from error

    def close(self) -> None:
        """Removes what is staged: all of it, unless it was committed. Raises nothing."""
        if self._fd >= 0:
            with suppress(OSError):
                self._end_file()
        shutil.rmtree(self._staging, ignore_errors=True)
        if os.path.lexists(self._staging):
            logger.warning("can't remove %s, where a download was begun", self._staging)

    def _end_file(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _staged(self, path: str) -> str:
        return f"{self._new}{os.sep}{path}" if path else self._new

    def _final(self, path: str) -> str:
        return f"{self._place.path}{os.sep}{path}" if path else str(self._place.path)

    def _keep_link(self, path: str, target: bytes) -> None:
        why = why_not_link(path, target.decode(errors=ERRORS))
        if b"\0" in target:
            why = "it is a link to what can't be"
        if why:
            self.left_out.add(path, why)
        else:
            self._links.append((path, target))

    def _make_links(self) -> None:
        for path, target in self._links:
            try:
                os.symlink(os.fsdecode(target), self._staged(path))
            except FileExistsError:
                raise HostForbidden(shown(self._final(path)), TWICE) from None
            except OSError as error:  # Windows: only for who has the right to make links
                self.left_out.add(path, f"a link can't be made ({error.strerror})")

    def _refuse_existing(self) -> None:
        path = self._place.path
        if not self._overwrite and os.path.lexists(path):
            raise HostForbidden(
                shown(str(path)),
                "it exists",
                "Pass overwrite=true to replace files, and to merge with a directory",
            )

    def _refuse_repositories(self) -> None:
        """Raises HostForbidden where it would become part of a repository that is there."""
        added = {self._place.path.name}
        for above in self._place.path.parents:
            _refuse_repository(str(above), added)
            if above == self._place.root:
                break
            added = {above.name}

    def _moves(self, staged: str, final: str) -> Iterator[tuple[str, str]]:
        """What is renamed to what; raises HostForbidden where kinds do not go together."""
        try:
            there = os.lstat(final)
        except FileNotFoundError:
            yield staged, final
            return
        directory = S_ISDIR(os.lstat(staged).st_mode)
        if directory != (S_ISDIR(there.st_mode) and not is_junction(there)):
            kinds = "it is a directory in the box, and none here"
            if not directory:
                kinds = "it is a directory here, and none in the box"
            raise HostForbidden(shown(final), kinds)
        if not directory:
            yield staged, final
            return
        names = os.listdir(staged)
        _refuse_repository(final, names)
        for name in names:
            yield from self._moves(f"{staged}{os.sep}{name}", f"{final}{os.sep}{name}")


class _Failures:
    """Turns an OSError inside into a HostFailed that names what was last under way."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise HostFailed(shown(self.path), str(error.strerror or error)) from error


def _refuse_repository(directory: str, added: Iterable[str]) -> None:
    """Raises HostForbidden when a directory is a bare git repository, or would become one."""
    with suppress(FileNotFoundError):
        if why := why_not_together((*added, *os.listdir(directory))):
            raise HostForbidden(shown(directory), why, ADVICE)


def _dress(where: int | str, entry: parcel.Entry) -> None:
    """Mode and time, as far as this system has them."""
    least = OWNER_ENTERS if entry.kind == parcel.DIRECTORY else OWNER_READS
    if not WINDOWS:
        os.chmod(where, entry.mode & PERMISSIONS | least)
    with suppress(OSError, OverflowError):  # times that this disk does not know
        os.utime(where, ns=(entry.modified, entry.modified))


@asynccontextmanager
async def landing(place: Place, *, overwrite: bool) -> AsyncGenerator[HostSink, None]:
    """A sink for the length of the block; whatever was not committed is removed then."""
    sink = await to_thread.run_sync(lambda: HostSink(place, overwrite=overwrite))
    try:
        yield sink
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(sink.close)
