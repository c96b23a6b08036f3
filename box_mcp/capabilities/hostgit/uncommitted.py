"""What a user has changed and not committed, as a commit that only a scratch repository has.

Made with an index of its own, from a copy of the user's, so nothing is written there. What git
ignores stays where it is, and so does what may hold secrets, what a filter of git's (such as LFS)
would have to change first, and what is another repository. Blocking.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from box_mcp.capabilities.hostgit.run import Guarded
from box_mcp.capabilities.hostgit.scratch import Scratch, fresh_objects
from box_mcp.capabilities.leftout import LeftOut
from box_mcp.domain.hostfiles import why_not_read
from box_mcp.errors import HostForbidden

BRANCH = "uncommitted"
MESSAGE = "What was not committed in the user's repository"
NAME, EMAIL = "box_mcp", "box-mcp@localhost"
"""Who commits, where the user's git does not know who the user is."""

FORGET = ("update-index", "--force-remove", "-z", "--stdin")
STAGE = ("update-index", "--add", "--remove", "--replace", "-z", "--stdin")
SPARSE = "info/sparse-checkout"
RULES = ("info/exclude", "info/attributes")
LIKE_THEIRS = (
    *("core.autocrlf", "core.checkstat", "core.eol", "core.excludesfile", "core.filemode"),
    *("core.ignorecase", "core.precomposeunicode", "core.sparsecheckout"),
    *("core.sparsecheckoutcone", "core.symlinks", "core.trustctime", "user.email", "user.name"),
)
"""Settings of the user's repository that say how files on its disk are to be read."""


@dataclass(frozen=True)
class Change:
    """Of one path: the hash of what was there before, or empty, and whether nothing is now."""

    before: str = ""
    gone: bool = False


def commit_changes(scratch: Scratch, left_out: LeftOut, room: int) -> str:
    """The commit; or nothing, where all that may go is committed.

    Raises HostForbidden where the files are more than `room` bytes.
    """
    top = scratch.repository.checkout
    if top is None:
        return ""
    own, filters = _settings(scratch.theirs), scratch.theirs.filters()
    git = _looking_at(scratch, top, own).without(filters)
    _know_the_disk(git, scratch.commit)
    changes = _changes(git)
    chosen = list(_chosen(changes, git.filtered(changes, filters), top, left_out))
    if not chosen:
        return ""
    if sum(_size(top / os.fsdecode(path)) for path in chosen) > room:
        raise HostForbidden(
            str(scratch.repository),
            f"what is not committed is more than the {room / 1024**2:,.0f} MiB that the disk "
            "can spare",
            "Clone without it, or ask the user to have git ignore what is large",
        )
    fresh = fresh_objects(scratch.directory.parent)
    before = "\n".join({changes[path].before for path in chosen} - {""})
    git.run("pack-objects", "--quiet", str(fresh / "pack" / "pack"), stdin=before.encode())
    writing = git.also(GIT_OBJECT_DIRECTORY=fresh)
    gone = [path for path in chosen if changes[path].gone]
    there = [path for path in chosen if not changes[path].gone]
    writing.run(*FORGET, stdin=b"".join(path + b"\0" for path in gone))
    writing.run(*STAGE, stdin=b"".join(path + b"\0" for path in there))
    tree = writing.line("write-tree", "--missing-ok")
    if scratch.commit and tree == git.line("rev-parse", f"{scratch.commit}^{{tree}}"):
        return ""
    text = _commit(tree, scratch.commit, own)
    said = writing.run("hash-object", "-t", "commit", "-w", "--stdin", stdin=text.encode())
    return said.decode().strip()


def side_branch(scratch: Scratch) -> str:
    """A name that the user has no branch of."""
    taken = set(scratch.branches())
    names = (BRANCH, *(f"{BRANCH}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _looking_at(scratch: Scratch, top: Path, own: Mapping[str, str]) -> Guarded:
    """A git in the scratch repository, with the user's files and what is known of them."""
    git_dir, common = scratch.repository.git_dir, scratch.repository.common
    index = scratch.directory / "index"
    (scratch.directory / "info").mkdir(exist_ok=True)
    shared = [path.name for path in git_dir.glob("sharedindex.*")]
    for source, names in ((git_dir, ("index", *shared, SPARSE)), (common, RULES)):
        for name in names:
            with suppress(FileNotFoundError):
                shutil.copyfile(source / name, scratch.directory / name)
    return scratch.git.also(
        "core.bare=false",
        "core.safecrlf=false",
        "core.untrackedCache=false",
        *(f"{name}={value}" for name, value in own.items()),
        GIT_INDEX_FILE=index,
        GIT_WORK_TREE=top,
    )


def _know_the_disk(git: Guarded, commit: str) -> None:
    """Has the index tell what differs from a commit: so what is staged is a change as any."""
    git.run("read-tree", *(("--reset", commit) if commit else ("--empty",)))
    git.run("update-index", "-q", "--refresh", good=(0, 1))


def _changes(git: Guarded) -> dict[bytes, Change]:
    """What was changed, added and removed, by path below the top."""
    told = git.run("diff-files", "-z", "--no-abbrev", "--ignore-submodules=all").split(b"\0")
    changed = zip(told[::2], told[1::2], strict=False)
    added = git.run("ls-files", "-z", "--others", "--exclude-standard").split(b"\0")
    changes = {path: Change(*_fields(fields.decode())) for fields, path in changed}
    return {**dict.fromkeys((path for path in added if path), Change()), **changes}


def _fields(line: str) -> tuple[str, bool]:
    """Of ``:<mode> <mode> <hash> <hash> <status>``: the hash before, and whether it is gone."""
    _, _, before, _, status = line.split()
    return before, status == "D"


def _chosen(
    changes: Iterable[bytes], filtered: Mapping[bytes, str], top: Path, left_out: LeftOut
) -> Iterator[bytes]:
    """The paths of what may go."""
    for path in sorted(changes):
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
    try:
        mode = (top / name).lstat().st_mode
    except OSError:  # it is gone
        return ""
    if stat.S_ISREG(mode):
        return "" if os.access(top / name, os.R_OK) else "it can't be read"
    return "" if stat.S_ISLNK(mode) or stat.S_ISDIR(mode) else "it is neither file nor directory"


def _settings(git: Guarded) -> dict[str, str]:
    """Those of LIKE_THEIRS that the user has, by lower-case names."""
    pattern = "|".join(name.replace(".", r"\.") for name in LIKE_THEIRS)
    said = os.fsdecode(git.run("config", "-z", "--get-regexp", f"^({pattern})$", good=(0, 1)))
    pairs = (one.partition("\n") for one in said.split("\0") if one)
    return {name: value if equals else "true" for name, equals, value in pairs}


def _commit(tree: str, parent: str, own: Mapping[str, str]) -> str:
    """A commit as git keeps it, in the user's name."""
    name, email = (
        "".join(one for one in own.get(key, "") if one.isprintable() and one not in "<>")
        for key in ("user.name", "user.email")
    )
    who = f"{name or NAME} <{email or EMAIL}> {int(time.time())} +0000"
    above = f"parent {parent}\n" if parent else ""
    return f"tree {tree}\n{above}author {who}\ncommitter {who}\n\n{MESSAGE}\n"


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
