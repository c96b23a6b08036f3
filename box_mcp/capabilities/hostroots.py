"""Which directories of the user's machine may be touched, and what a path there means.

All of it is decided by resolved paths: a link that leads out of the allowed directories is no way
out of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from box_mcp.domain.hostfiles import why_not_allow, why_not_on_windows, why_not_read, why_not_write
from box_mcp.domain.paths import SCHEME, parse, shown
from box_mcp.errors import HostFailed, HostForbidden, InvalidArgument, NoHostDirectory

ARGUMENT = "host_path"
JUNCTION = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT
ADVICE = (
    "Ask the user to name one: `host_roots` in box_mcp's settings, or BOX_MCP_HOST_ROOTS, such as "
    '["~/projects/app"]; then the server must be started again'
)


@dataclass(frozen=True)
class Host:
    """The user's machine as this server was told of it: directories, and the client's project.

    In `state_dir` this user's servers keep what is theirs.
    """

    named: tuple[Path, ...] = ()
    project: str | None = None
    state_dir: Path = Path()


@dataclass(frozen=True)
class Place:
    """A path of the user's machine, without links: `below` an allowed directory, the `root`."""

    root: Path
    below: str

    @property
    def path(self) -> Path:
        """The whole of it."""
        return self.root / self.below

    @property
    def named(self) -> str:
        """As rules on names see it: with the root's own name, since .config/fish is two names."""
        return f"{self.root.name}/{self.below}".rstrip("/")


@dataclass(frozen=True)
class HostRoots:
    """Directories that may be touched, resolved; `refused` tells why others may not."""

    directories: tuple[Path, ...]
    refused: tuple[str, ...] = ()

    def to_read(self, text: str) -> Place:
        """The file or directory that `text` means.

        Raises HostForbidden, HostFailed where there is none, NoHostDirectory and InvalidArgument.
        """
        asked = self._absolute(text)
        place = self._place(_resolved(asked), text)
        if why := why_not_read(place.named) or why_not_read(asked.name):
            raise HostForbidden(text, f"it holds {why}, which stays on the user's machine")
        try:
            place.path.stat()
        except OSError as error:
            raise HostFailed(shown(str(place.path)), str(error.strerror)) from None
        return place

    def to_write(self, text: str, name: str, *, inside: bool) -> Place:
        """Where something goes that is called `name` in the box: `text` itself.

        Or below that, where it is an allowed directory or ends with a slash, or where it is a
        directory and what comes is none (`inside`). Else its last part is not followed if it is a
        link. Raises as `to_read` does.
        """
        asked = self._absolute(text or ".")
        followed = _resolved(asked)
        ends_open = text.endswith(("/", os.sep)) or followed in self.directories
        if ends_open or (inside and followed.is_dir()):
            asked = followed / name
        place = self._place(_resolved(asked.parent) / asked.name, text)
        if asked.name in ("", "..") or not place.below:
            raise InvalidArgument(ARGUMENT, "must name the file or directory to be written")
        why = why_not_write(place.named)
        if not why and os.name == "nt":
            why = why_not_on_windows(asked.name)
        if why:
            raise HostForbidden(str(place.path), f"{why}, so nothing of a box is written there")
        return place

    def require(self) -> None:
        """Raises NoHostDirectory when there is none."""
        if not self.directories:
            raise NoHostDirectory("; ".join(self.refused) or "none is known", ADVICE)

    def _absolute(self, text: str) -> Path:
        self.require()
        try:
            path = parse(text)
        except ValueError as error:
            raise InvalidArgument(ARGUMENT, str(error)) from None
        if os.name == "nt" and text.startswith(SCHEME):
            path = path.lstrip("/")  # file:///C:/x
        asked = self.directories[0] / path
        with suppress(RuntimeError):  # there is no such user
            asked = self.directories[0] / Path(path).expanduser()
        if is_elsewhere(asked, self.directories):
            raise self._outside(text)
        return asked

    def _place(self, path: Path, text: str) -> Place:
        for root in self.directories:
            if path.is_relative_to(root):
                below = path.relative_to(root).as_posix()
                return Place(root, "" if below == "." else below)
        raise self._outside(text)

    def _outside(self, text: str) -> HostForbidden:
        allowed = f"Allowed: {', '.join(map(str, self.directories))}"
        return HostForbidden(text, "it is outside of the directories that may be touched", allowed)


def find_roots(named: Iterable[Path], client: Iterable[str], project: str | None) -> HostRoots:
    """The directories that settings have `named`, and those that the client has.

    Else the one that it started this server for. Never a home directory, nor what contains it.
    """
    candidates = [*client_directories(client), *named]
    if not candidates and project:
        candidates = [Path(project)]
    directories: list[Path] = []
    refused: list[str] = []
    for candidate in candidates:
        if why := why_not_root(candidate):
            refused.append(f"{candidate} {why}")
        else:
            directories.append(candidate.resolve())
    return HostRoots(tuple(dict.fromkeys(directories)), tuple(refused))


def client_directories(uris: Iterable[str]) -> list[Path]:
    """The paths of those that are ``file:`` URLs of this machine."""
    paths: list[Path] = []
    for uri in uris:
        with suppress(ValueError):
            if uri.startswith(SCHEME):
                path = parse(uri)
                paths.append(Path(path.lstrip("/") if os.name == "nt" else path))
    return paths


def why_not_root(directory: Path) -> str:
    """Why tools must not be let into a directory; or nothing."""
    try:
        resolved = directory.resolve(strict=True)
        homes = _homes()
        if not directory.is_absolute() or not resolved.is_dir():
            return "is not the whole path of a directory"
        if resolved.parent == resolved:
            return "is a whole disk"
        if any(resolved.samefile(above) for home in homes for above in (home, *home.parents)):
            return "is or contains the home directory"
    except (OSError, RuntimeError) as error:
        return f"can't be used ({getattr(error, 'strerror', None) or error})"
    if why := why_not_allow(str(resolved)):
        return f"is none that a box may have to do with ({why})"
    return ""


def is_elsewhere(path: PurePath, roots: Iterable[PurePath]) -> bool:
    """Whether `path` is on a machine that no root is on.

    Windows would log in there at the first look, by the user's name and what proves it.
    """
    known = {root.drive.casefold() for root in roots}
    return path.drive.startswith("\\\\") and path.drive.casefold() not in known


def is_junction(found: os.stat_result) -> bool:
    """Whether it is a link that Windows shows as a directory."""
    return getattr(found, "st_reparse_tag", 0) == JUNCTION


def _homes() -> Sequence[Path]:
    """The user's home by the variables and, where that differs, by the system."""
    homes: list[Path] = []
    with suppress(RuntimeError):
        homes.append(Path.home().resolve())
    with suppress(RuntimeError, KeyError, ImportError):
        import pwd

        homes.append(Path(pwd.getpwuid(os.getuid()).pw_dir).resolve())
    return [home for home in homes if home.exists()]


def _resolved(path: Path) -> Path:
    """Without links and dots; what does not exist is as it is named."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise HostFailed(str(path), f"it can't be followed ({error})") from None
