"""A box's branch, looked at and merged by the user, in the user's own repository.

What is merged came out of a box. So nothing that it brings is run on the way: no hooks (a branch
may bring new ones, where they are kept in the repository), no filters, no drivers for merges or
diffs, no submodules. A merge happens wholly or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, TypeVar

from box_mcp.capabilities.hostgit.carrying import leashed
from box_mcp.domain.hostfiles import why_not_write
from box_mcp.domain.paths import shown
from box_mcp.domain.refs import FROM_BOXES, HEADS, SHORT, parse_branch
from box_mcp.errors import HostFailed, RepositoryRefused

if TYPE_CHECKING:
    from box_mcp.capabilities.hostgit.run import Guarded, Leash

T = TypeVar("T")

NAMED = 10  # files or branches that a message tells
UNDER_WAY = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")
PLAIN = ("--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short")


@dataclass(frozen=True)
class Difference:
    """What a box's branch did since it left the user's: as text, and which files act unasked."""

    branch: str
    text: str
    acting: Sequence[str]


@dataclass(frozen=True)
class Coming:
    """What a merge would bring: up to which commit, and which files that act unasked."""

    commit: str
    acting: Sequence[str]


@dataclass(frozen=True)
class Merged:
    """A branch that was merged into another; `unfiltered` are files that git's filters wait for."""

    branch: str
    into: str
    commit: str
    summary: str
    unfiltered: Sequence[str]


async def difference(path: Path, name: str, *, stat: bool) -> Difference:
    """Raises RepositoryRefused where there is no such branch, and HostFailed."""

    def work(here: Here) -> Difference:
        form = ("--stat=100",) if stat else ("--patch",)
        said = here.git.run("diff", *PLAIN, *form, f"HEAD...{here.ref}", "--")
        return Difference(here.branch, said.decode(errors="replace"), list(here.acting()))

    return await _in_repository(path, name, work)


async def coming(path: Path, name: str) -> Coming:
    """What a merge of a box's branch would bring.

    Raises RepositoryRefused where it can't be merged as things are, and HostFailed.
    """

    def work(here: Here) -> Coming:
        _fit_to_merge(here)
        return Coming(here.git.line("rev-parse", here.ref), list(here.acting()))

    return await _in_repository(path, name, work)


async def merge(path: Path, name: str, commit: str) -> Merged:
    """Merges a box's branch into the one that is checked out, if it is still at `commit`.

    Raises as `coming` does, also where both sides changed the same.
    """

    def work(here: Here) -> Merged:
        into = _fit_to_merge(here)
        if here.git.line("rev-parse", here.ref) != commit:
            raise here.refused(f"{here.branch} was changed meanwhile", "Look at it again")
        before = here.git.line("rev-parse", "HEAD")
        _merge(here, commit)
        return _merged(here, into, before)

    return await _in_repository(path, name, work)


@dataclass(frozen=True)
class Here:
    """The user's repository, and a branch of it that came from a box."""

    git: Guarded
    top: Path
    git_dir: Path
    branch: str
    bare: bool

    @property
    def ref(self) -> str:
        """Its whole name."""
        return HEADS + self.branch

    def refused(self, reason: str, advice: str = "") -> RepositoryRefused:
        """For this repository."""
        return RepositoryRefused(shown(str(self.top)), reason, advice)

    def paths(self, *arguments: str) -> list[str]:
        """What a command prints with ``-z``."""
        said = self.git.run(*arguments)
        return [os.fsdecode(one) for one in said.split(b"\0") if one]

    def changed(self, between: str) -> list[str]:
        """Files that differ."""
        return self.paths("diff", *PLAIN, "--no-renames", "--name-only", "-z", between, "--")

    def acting(self) -> Iterator[str]:
        """Files that the branch changes and that act without being run, each with how."""
        for path in self.changed(f"HEAD...{self.ref}"):
            if why := why_not_write(path):
                yield f"{shown(path)}: {why}"


async def _in_repository(path: Path, name: str, work: Callable[[Here], T]) -> T:
    branch = FROM_BOXES + parse_branch("NAME", name.removeprefix(FROM_BOXES))

    def run(leash: Leash) -> T:
        return work(_here(leash, path.resolve(), branch))

    return await leashed(shown(str(path)), run)


def _here(leash: Leash, path: Path, branch: str) -> Here:
    from box_mcp.capabilities.hostgit.run import GitCommandError, complaint, guarded

    nothing = Path(tempfile.gettempdir()) / f"box-mcp-{token_hex(16)}"
    git = guarded(leash, path, nothing)
    try:
        bare = git.line("rev-parse", "--is-bare-repository") == "true"
        top = path if bare else Path(git.line("rev-parse", "--show-toplevel"))
        git_dir = Path(git.line("rev-parse", "--absolute-git-dir"))
    except GitCommandError as error:
        failed = HostFailed(shown(str(path)), complaint(error))
        failed.advice = "Run it in your repository, or name that with --repo"
        raise failed from None
    git = guarded(leash, top, nothing).without(git.filters()).also("merge.default=text")
    drivers = git.keys(r"^merge\..*\.driver$")
    here = Here(
        git.overriding(dict.fromkeys(drivers, "false")),
        top,
        git_dir,
        branch,
        bare,
    )
    known = os.fsdecode(git.run("for-each-ref", "--format=%(refname)", HEADS + FROM_BOXES)).split()
    if here.ref not in known:
        names = ", ".join(ref.removeprefix(HEADS + FROM_BOXES) for ref in known[:NAMED])
        there = f"From boxes it has: {names}" if names else "No box has pushed to it yet"
        raise here.refused(f"it has no branch {branch}", there)
    return here


def _fit_to_merge(here: Here) -> str:
    """The branch that is checked out; raises RepositoryRefused unless it can be merged into."""
    if here.bare:
        raise here.refused("it is bare, with nothing checked out to merge into")
    into = here.git.line("symbolic-ref", "--quiet", "HEAD", good=(0, 1))
    if not into:
        raise here.refused("no branch is checked out", "`git switch` to one")
    if into == here.ref:
        raise here.refused(
            f"{here.branch} itself is checked out", "`git switch` to the branch that is to have it"
        )
    if any((here.git_dir / name).exists() for name in UNDER_WAY):
        raise here.refused("a merge, rebase or the like is under way", "Finish or abort it first")
    changes = here.paths(
        "status", "--porcelain", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules"
    )
    if changes:
        files = ", ".join(shown(one[3:]) for one in changes[:NAMED])
        raise here.refused(f"it has uncommitted changes ({files})", "Commit or stash them first")
    if not here.git.line("rev-list", "--max-count=1", here.ref, "--not", "HEAD"):
        raise here.refused(f"{into.removeprefix(HEADS)} has all of {here.branch} already")
    return into.removeprefix(HEADS)


def _merge(here: Here, commit: str) -> None:
    from box_mcp.capabilities.hostgit.run import GitCommandError, complaint

    _refuse_conflicts(here, _foreseen(here, commit))
    quiet = ("--quiet", "--no-edit", "--no-stat", "--no-autostash", "--no-rerere-autoupdate")
    try:
        here.git.run("merge", *quiet, "-m", f"Merge branch '{here.branch}'", commit)
    except GitCommandError as error:
        if (here.git_dir / "MERGE_HEAD").exists():
            conflicts = here.paths("diff", *PLAIN, "--name-only", "--diff-filter=U", "-z")
            here.git.run("merge", "--abort")
            _refuse_conflicts(here, conflicts)
        raise here.refused(f"git does not merge it: {complaint(error)}") from None


def _foreseen(here: Here, commit: str) -> list[str]:
    """Files on which a merge would end in a conflict, as far as this git can tell beforehand."""
    from box_mcp.capabilities.hostgit.run import GitCommandError

    try:
        form = ("--write-tree", "--no-messages", "--name-only", "-z")
        told = here.git.run("merge-tree", *form, "HEAD", commit, good=(0, 1))
    except GitCommandError:  # it is older than 2.38: the merge will show
        return []
    _, *files = (os.fsdecode(one) for one in told.split(b"\0") if one)
    return files


def _refuse_conflicts(here: Here, files: Sequence[str]) -> None:
    if files:
        raise here.refused(
            f"both sides changed the same in {', '.join(shown(one) for one in files[:NAMED])}",
            f"`git merge {here.branch}` begins the merge and leaves these to you; or ask for the "
            "branch to be brought up to date in the box first",
        )


def _merged(here: Here, into: str, before: str) -> Merged:
    commit = here.git.line("rev-parse", "HEAD")
    waiting: list[str] = []
    if filters := here.git.filters():
        changed = map(os.fsencode, here.changed(f"{before}..{commit}"))
        waiting = [shown(os.fsdecode(path)) for path in here.git.filtered(changed, filters)]
    summary = here.git.line("diff", *PLAIN, "--shortstat", f"{before}..{commit}", "--")
    return Merged(here.branch, into, commit[:SHORT], summary.strip(), waiting)
