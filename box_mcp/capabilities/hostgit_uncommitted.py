"""What a user has changed and not committed, as a commit that only a scratch repository has.

Made with an index of its own, from a copy of the user's, so nothing is written there. What git
ignores stays where it is, and so does what may hold secrets, what a filter of git's (such as LFS)
would have to change first, and what is another repository. Blocking.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from box_mcp.capabilities.hostgit_run import Guarded
from box_mcp.capabilities.hostgit_scratch import Scratch
from box_mcp.capabilities.leftout import LeftOut
from box_mcp.domain.hostfiles import why_not_read
from box_mcp.errors import HostForbidden

BRANCH = "uncommitted"
MESSAGE = "What was not committed in the user's repository"
NAME, EMAIL = "box_mcp", "box-mcp@localhost"
"""Who commits, where the user's git does not know who the user is."""

SPARSE = "info/sparse-checkout"
RULES = ("info/exclude", "info/attributes")
LIKE_THEIRS = (
    *("core.autocrlf", "core.checkstat", "core.eol", "core.excludesfile", "core.filemode"),
    *("core.ignorecase", "core.precomposeunicode", "core.sparsecheckout"),
    *("core.sparsecheckoutcone", "core.symlinks", "core.trustctime", "user.email", "user.name"),
)
"""Settings of the user's repository that say how files on its disk are to be read."""


def commit_changes(scratch: Scratch, left_out: LeftOut, room: int) -> str:
    """The commit; or nothing, where all that may go is committed.

    Raises HostForbidden where the files are more than `room` bytes.
    """
    top = scratch.repository.checkout
    if top is None:
        return ""
    git = _looking_at(scratch, top)
    chosen = list(_chosen(git, scratch, top, left_out))
    if not chosen:
        return ""
    if sum(_size(top / os.fsdecode(path)) for path in chosen) > room:
        raise HostForbidden(
            str(scratch.repository),
            f"what is not committed is more than the {room / 1024**2:,.0f} MiB that the disk "
            "can spare",
            "Clone without it, or ask the user to have git ignore what is large",
        )
    git.run(
        *("update-index", "--add", "--remove", "--replace", "--ignore-skip-worktree-entries"),
        *("-z", "--stdin"),
        stdin=b"".join(path + b"\0" for path in chosen),
    )
    tree = git.line("write-tree")
    if scratch.commit and tree == git.line("rev-parse", f"{scratch.commit}^{{tree}}"):
        return ""
    parents = ("-p", scratch.commit) if scratch.commit else ()
    return git.line("commit-tree", *parents, "-m", MESSAGE, tree)


def side_branch(scratch: Scratch) -> str:
    """A name that the user has no branch of."""
    taken = set(scratch.branches())
    names = (BRANCH, *(f"{BRANCH}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _looking_at(scratch: Scratch, top: Path) -> Guarded:
    """A git in the scratch repository with the user's files, and what is known of those on disk.

    Its index is that of the commit which is checked out, so what is staged is a change as any.
    """
    git_dir, common = scratch.repository.git_dir, scratch.repository.common
    index = scratch.directory / "index"
    (scratch.directory / "info").mkdir(exist_ok=True)
    shared = [path.name for path in git_dir.glob("sharedindex.*")]
    for source, names in ((git_dir, ("index", *shared, SPARSE)), (common, RULES)):
        for name in names:
            with suppress(FileNotFoundError):
                shutil.copyfile(source / name, scratch.directory / name)
    own = _settings(scratch.theirs)
    git = scratch.git.also(
        "core.bare=false",
        "core.untrackedCache=false",
        *(f"{name}={value}" for name, value in own.items()),
        GIT_INDEX_FILE=index,
        GIT_WORK_TREE=top,
        **_identity(own),
    ).without(scratch.theirs.filters())
    git.run("read-tree", *(("--reset", scratch.commit) if scratch.commit else ("--empty",)))
    git.run("update-index", "-q", "--refresh", good=(0, 1))
    return git


def _chosen(git: Guarded, scratch: Scratch, top: Path, left_out: LeftOut) -> Iterator[bytes]:
    """The paths, below the top, of what was changed, added and removed and may go."""
    changed = git.run("diff-files", "-z", "--name-only", "--ignore-submodules=all")
    added = git.run("ls-files", "-z", "--others", "--exclude-standard")
    paths = sorted({path for path in (changed + added).split(b"\0") if path})
    filtered = _filtered(git, paths, scratch.theirs.filters())
    for path in paths:
        name = os.fsdecode(path)
        if why := _why_not(top, name, filtered.get(path, "")):
            left_out.add(name, why)
        else:
            yield path


def _why_not(top: Path, name: str, by: str) -> str:
    """Why a change stays where it is; or nothing."""
    if why := why_not_read(f"{top.name}/{name}"):
        return f"it holds {why}"
    if name.endswith("/"):
        return "it is a repository of its own"
    if by:
        return f"git's filter {by} has to be run on it, which is not done here"
    path = top / name
    if path.is_file() and not os.access(path, os.R_OK):
        return "it can't be read"
    return ""


def _filtered(git: Guarded, paths: list[bytes], known: set[str]) -> dict[bytes, str]:
    """By path, the filter that git would run on it, of those that it knows."""
    if not known or not paths:
        return {}
    said = git.run("check-attr", "-z", "--stdin", "filter", stdin=b"\0".join((*paths, b"")))
    path, _, name = (said.split(b"\0")[offset::3] for offset in range(3))
    found = zip(path, map(os.fsdecode, name), strict=False)
    return {one: by for one, by in found if by in known}


def _settings(git: Guarded) -> dict[str, str]:
    """Those of LIKE_THEIRS that the user has, by lower-case names."""
    pattern = "|".join(name.replace(".", r"\.") for name in LIKE_THEIRS)
    said = os.fsdecode(git.run("config", "-z", "--get-regexp", f"^({pattern})$", good=(0, 1)))
    pairs = (one.partition("\n") for one in said.split("\0") if one)
    return {name: value if equals else "true" for name, equals, value in pairs}


def _identity(own: dict[str, str]) -> dict[str, str]:
    name, email = own.get("user.name", NAME), own.get("user.email", EMAIL)
    roles = ("AUTHOR", "COMMITTER")
    return {
        f"GIT_{role}_{what}": value
        for role in roles
        for what, value in (("NAME", name), ("EMAIL", email))
    }


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
