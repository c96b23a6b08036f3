"""Where a repository of the user's machine has its data; all of it must be where tools may look.

Found out by looking at names and small files only: git is not asked before it is known that no
part of the repository lies outside of the allowed directories. What looks like one may have been
written by anybody, as a directory of a project that was cloned from somewhere: a link in it to
another repository's objects and refs would be a way to all of that.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from box_mcp.capabilities.hostroots import HostRoots, is_elsewhere, is_junction
from box_mcp.domain.paths import shown
from box_mcp.errors import HostFailed, HostForbidden, InvalidArgument

DOT_GIT = ".git"
BARE = ("HEAD", "objects", "refs")
MAX_POINTER = 64 * 1024  # bytes of a file that says where something is
MAX_ALTERNATES = 100  # directories from which objects are borrowed, one from the other
WINDOWS = os.name == "nt"
UNUSED = frozenset(("hooks", "lfs", "modules", "rr-cache"))
"""Of a repository's data, what is never looked at here: it may be kept anywhere."""


@dataclass(frozen=True)
class Repository:
    """One that is the user's own, by resolved paths.

    `git_dir` is that of this checkout, `common` has refs and objects; they differ in linked
    worktrees. A bare one has no `checkout`.
    """

    path: Path
    git_dir: Path
    common: Path
    objects: Path
    checkout: Path | None

    @property
    def shallow(self) -> Path:
        """The file that says where its history was cut off, if it was."""
        return self.common / "shallow"

    def __str__(self) -> str:
        return shown(str(self.path))


def find_repository(roots: HostRoots, text: str) -> Repository:
    """The repository at the path that `text` means; blocking.

    Raises as `HostRoots.to_read`, also for one that has a part elsewhere.
    """
    place = roots.to_read(text)
    try:
        return _found(roots, place.path)
    except OSError as error:
        raise HostFailed(shown(str(place.path)), str(error.strerror or error)) from None
    except ValueError as error:
        raise HostFailed(shown(str(place.path)), f"it is no repository: {error}") from None


def _found(roots: HostRoots, path: Path) -> Repository:
    checkout: Path | None = path
    dot_git = path / DOT_GIT
    if os.path.lexists(dot_git):
        git_dir = _followed(roots, path, dot_git)
    elif all((path / name).exists() for name in BARE):
        git_dir, checkout = path, None
    else:
        raise InvalidArgument("url", f"is {shown(str(path))}, {_no_repository(roots, path)}")
    common = _common(roots, path, git_dir)
    objects = _within(roots, path, common / "objects")
    lenders = _check_alternates(roots, path, objects)
    _check_links(roots, path, (git_dir, common), (objects, *lenders))
    return Repository(path, git_dir, common, objects, checkout)


def _followed(roots: HostRoots, path: Path, dot_git: Path) -> Path:
    """Where ``.git`` leads: it is the directory itself, a link, or a file that names it."""
    found = _within(roots, path, dot_git)
    if not found.is_file():
        return found
    pointer = _pointer(found)
    if not pointer.startswith("gitdir:"):
        raise ValueError("its .git says nothing that git understands")
    return _within(roots, path, path / pointer.removeprefix("gitdir:").lstrip())


def _common(roots: HostRoots, path: Path, git_dir: Path) -> Path:
    pointer = git_dir / "commondir"
    if not os.path.lexists(pointer):
        return git_dir
    return _within(roots, path, git_dir / _pointer(_within(roots, path, pointer)))


def _check_alternates(roots: HostRoots, path: Path, objects: Path) -> set[Path]:
    """All directories that objects are borrowed from, too; raises unless they may be read."""
    waiting, seen = [objects], {objects}
    while waiting:
        lender = waiting.pop()
        for line in _lenders(_within(roots, path, lender / "info" / "alternates")):
            found = _within(roots, path, lender / line)
            if found not in seen:
                seen.add(found)
                waiting.append(found)
        if len(seen) > MAX_ALTERNATES:
            raise ValueError("it borrows objects from too many others")
    return seen


def _check_links(
    roots: HostRoots, path: Path, git_dirs: Iterable[Path], objects: Iterable[Path]
) -> None:
    """Raises unless all that links in these directories lead to may be read."""
    waiting = [*objects]
    for git_dir in git_dirs:
        waiting += _entered(roots, path, git_dir, UNUSED)
    seen: set[Path] = set()
    while waiting:
        if (directory := waiting.pop()) not in seen:
            seen.add(directory)
            waiting += _entered(roots, path, directory)


def _entered(
    roots: HostRoots, path: Path, directory: Path, unused: Container[str] = ()
) -> Iterator[Path]:
    """The directories in one, resolved, if it is there; raises as `_within` does."""
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name in unused:
                continue
            if _is_link(entry):
                found = _within(roots, path, directory / entry.name)
                if found.is_dir():
                    yield found
            elif entry.is_dir(follow_symlinks=False):
                yield directory / entry.name


def _is_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() or (WINDOWS and is_junction(entry.stat(follow_symlinks=False)))


def _lenders(alternates: Path) -> list[str]:
    """What a file of alternates names."""
    if not alternates.exists():
        return []
    named = [line for line in _pointer(alternates).split("\n") if line and line[0] != "#"]
    if any(line.startswith('"') for line in named):
        raise ValueError("it borrows objects from a directory with an odd name")
    return named


def _within(roots: HostRoots, path: Path, part: Path) -> Path:
    """A part of the repository, resolved; raises HostForbidden unless it is in an allowed place."""
    if is_elsewhere(part, roots.directories):
        raise _outside(path, part)
    resolved = part.resolve()
    if not any(resolved.is_relative_to(root) for root in roots.directories):
        raise _outside(path, resolved)
    return resolved


def _outside(path: Path, part: Path) -> HostForbidden:
    return HostForbidden(
        shown(str(path)),
        f"a part of this repository, {shown(str(part))}, is outside of the directories that may "
        "be touched",
        "It is a linked worktree, a submodule, has links, or borrows objects from another "
        "repository: ask the user to add that one to `host_roots` in box_mcp's settings, or to "
        "make a whole clone",
    )


def _pointer(file: Path) -> str:
    with file.open("rb") as opened:
        text = os.fsdecode(opened.read(MAX_POINTER + 1))
    if len(text) > MAX_POINTER:
        raise ValueError(f"{file.name} is too long")
    return text.rstrip("\r\n")


def _no_repository(roots: HostRoots, path: Path) -> str:
    """Words for what is none, with the one that it is in."""
    for above in path.parents:
        if not any(above.is_relative_to(root) for root in roots.directories):
            break
        if (above / DOT_GIT).exists():
            return f"which is a directory of the repository {shown(str(above))}: name that one"
    return "where there is no git repository"
