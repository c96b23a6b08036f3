"""A file or tree of the user's machine on its way into a box.

What must not leave the machine is left out by `domain.hostfiles`, links that lead out of the tree
are too, and none is followed.
"""

# ruff: noqa: PTH115, PTH116
# Paths are plain text here: for thousands of small files, objects would cost more than the disk.

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import IO, NamedTuple

from box_mcp.boxd import parcel
from box_mcp.boxd.ignore import Ignore
from box_mcp.capabilities.hostroots import Place, is_junction
from box_mcp.capabilities.leftout import LeftOut
from box_mcp.domain.hostfiles import stays_inside, why_not_read
from box_mcp.domain.paths import shown
from box_mcp.errors import HostFailed, HostForbidden

MAX_ENTRIES = 250_000  # of one upload; what is known of each takes some 150 bytes
MAX_IGNORE = 1024 * 1024  # bytes of one .gitignore
MAX_SECONDS = 50.0  # for finding out what there is; clients give calls up after 60
READ_WHOLE = 64 * 1024  # bytes; smaller files are read at once
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # nor a FIFO's patience
KINDS = {
    stat.S_IFREG: parcel.FILE,
    stat.S_IFDIR: parcel.DIRECTORY,
    stat.S_IFLNK: parcel.LINK,
}


class Found(NamedTuple):
    """Something to send: its kind, and its path below the top."""

    kind: int
    path: str


class HostSource:
    """All that is sent of `place`, found out at once; a `transfer.Source`. Its methods block.

    Raises HostForbidden where there is too much, and HostFailed when the top can't be read.
    """

    def __init__(
        self,
        place: Place,
        *,
        gitignore: bool = False,
        max_entries: int = MAX_ENTRIES,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        self._named = place.named
        self._top = str(place.path)
        self._max_entries = max_entries
        self._deadline = time.monotonic() + max_seconds
        self.left_out = LeftOut()
        self.size = 0
        try:
            self.is_directory = place.path.is_dir()
            self._found = [Found(parcel.DIRECTORY if self.is_directory else parcel.FILE, "")]
            if self.is_directory:
                self._look_through(Ignore() if gitignore else None)
            else:
                self.size = os.stat(self._top).st_size
        except OSError as error:
            raise HostFailed(shown(self._top), str(error.strerror)) from error

    def __len__(self) -> int:
        return len(self._found)

    def entries(self) -> Iterator[tuple[parcel.Entry, IO[bytes] | bytes | None]]:
        """Directories before what is in them, by name; what can't be read any more is left out."""
        gone: set[str] = set()
        for kind, path in self._found:
            if gone and path.rpartition("/")[0] in gone:
                gone.add(path)
                continue
            with ExitStack() as closing:
                try:
                    found = self._opened(kind, path, closing)
                except OSError as error:
                    if not path:
                        raise HostFailed(shown(self._top), str(error.strerror)) from error
                    self.left_out.add(path, _reason(error))
                    gone.add(path)
                else:
                    yield found

    def _look_through(self, ignore: Ignore | None) -> None:
        """Finds all there is, one directory after the other."""
        waiting = [("", ignore)]
        while waiting:
            directory, above = waiting.pop()
            rules = above and self._rules_of(directory, above)
            found = list(self._within(directory, rules))
            below = (path for kind, path in reversed(found) if kind == parcel.DIRECTORY)
            waiting += [(path, rules) for path in below]

    def _within(self, directory: str, ignore: Ignore | None) -> Iterator[Found]:
        """What a directory holds, sorted; it is remembered to be sent."""
        prefix = f"{directory}/" if directory else ""
        try:
            with os.scandir(self._at(directory)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if not directory:
                raise
            return self.left_out.add(directory, _reason(error))
        for entry in entries:
            self._check_time()
            path = prefix + entry.name
            found = entry.stat(follow_symlinks=False)
            kind = KINDS.get(stat.S_IFMT(found.st_mode), parcel.END)
            if ignore is not None and ignore.hides(path, kind == parcel.DIRECTORY):
                continue
            if why := self._why_not(path, kind, found):
                self.left_out.add(path, why)
                continue
            self._remember(Found(kind, path), found.st_size)
            yield self._found[-1]

    def _remember(self, found: Found, size: int) -> None:
        self._found.append(found)
        if found.kind == parcel.FILE:
            self.size += size
        if len(self._found) > self._max_entries:
            raise HostForbidden(
                shown(self._top),
                f"it holds more than {self._max_entries:,} files",
                "Upload its parts, or what git does not ignore (gitignore=true)",
            )

    def _check_time(self) -> None:
        """Nothing else ends this thread, which slow disks and wicked .gitignore files hold up."""
        if time.monotonic() > self._deadline:
            raise HostFailed(shown(self._top), "there is too much to be looked through in time")

    def _why_not(self, path: str, kind: int, found: os.stat_result) -> str:
        """Why something stays here; or nothing."""
        if kind == parcel.END:
            return "it is neither file nor directory"
        if why := why_not_read(f"{self._named}/{path}"):
            return f"it holds {why}"
        if kind == parcel.LINK and not stays_inside(path, os.readlink(self._at(path))):
            return "it is a link that leads out of what is uploaded"
        if is_junction(found):
            return "it is a junction, which leads elsewhere"
        try:
            parcel.check_path(os.fsencode(path))
        except parcel.ParcelError:
            return "no box can have such a name"
        return ""

    def _opened(
        self, kind: int, path: str, closing: ExitStack
    ) -> tuple[parcel.Entry, IO[bytes] | bytes | None]:
        """An entry with its content as they are now; raises OSError where that is another kind."""
        where = self._at(path)
        file = None
        if kind == parcel.FILE:
            opened = open(where, "rb", buffering=0, opener=_open)  # noqa: SIM115 - in `closing`
            file = closing.enter_context(opened)
        found = os.fstat(file.fileno()) if file else os.lstat(where)
        if KINDS.get(stat.S_IFMT(found.st_mode)) != kind:
            raise OSError(0, "it was replaced meanwhile")
        content, size = file, found.st_size if file else 0
        if kind == parcel.LINK:
            content = os.fsencode(os.readlink(where))
        elif file and size <= READ_WHOLE:
            content = file.read(size)
        if isinstance(content, bytes):
            size = len(content)  # it may have shrunk meanwhile
        mode, modified = stat.S_IMODE(found.st_mode), found.st_mtime_ns
        return parcel.Entry(kind, mode, size, modified, os.fsencode(path)), content

    def _rules_of(self, directory: str, above: Ignore) -> Ignore:
        with (
            suppress(OSError),
            open(self._at(f"{directory}/.gitignore"), "rb", opener=_open) as file,
        ):
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return above.below(directory, file.read(MAX_IGNORE))
        return above

    def _at(self, path: str) -> str:
        return f"{self._top}{os.sep}{path}" if path else self._top


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | NO_LINK)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
