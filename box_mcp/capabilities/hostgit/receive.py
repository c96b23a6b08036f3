"""A box's branch into the user's repository: checked in a scratch repository, then taken in.

Blocking, as `run` is. Whatever comes, the user's repository gets one branch of the box's
own name, or nothing.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import IO

from box_mcp.capabilities.hostgit.bundle import NoBundle, read_head
from box_mcp.capabilities.hostgit.find import Repository
from box_mcp.capabilities.hostgit.going import BUNDLE, SPARED, Home, MissingHistory, Said
from box_mcp.capabilities.hostgit.run import GitCommandError, Leash, complaint
from box_mcp.capabilities.hostgit.scratch import Scratch, open_scratch
from box_mcp.domain.refs import HEADS
from box_mcp.errors import HostForbidden, RepositoryRefused

MAX_HASH = 64  # characters
HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def receive(
    leash: Leash, repository: Repository, directory: Path, said: Said, *, force: bool
) -> Home:
    """Takes the bundle in `directory`; without one, the commit that the box says.

    Raises RepositoryRefused, HostForbidden, MissingHistory where the bundle builds on what the
    user does not have any more, and GitCommandError.
    """
    scratch = open_scratch(leash, repository, directory)
    tip = _taken_in(scratch, directory / BUNDLE, said)
    before = scratch.named(HEADS + said.home)
    old = before.commit if before is not None else ""
    rewritten = bool(old) and not scratch.is_ancestor(old, tip)
    home = Home(repository, said.home, tip, old, rewritten)
    if old == tip:
        return home
    if rewritten:
        _check_rewrite(scratch, said, old, force=force)
    if where := _checked_out(scratch, HEADS + said.home):
        raise RepositoryRefused(
            str(repository),
            f"its branch {said.home} is checked out in {where}, and that is never touched",
            "Ask the user to check out another branch there, or push a branch of another name",
        )
    _bring_home(scratch, said.home, tip, old)
    return home


def _check_rewrite(scratch: Scratch, said: Said, old: str, *, force: bool) -> None:
    """Raises RepositoryRefused unless `old` may be replaced: by force, and nothing unseen."""
    has = f"its branch {said.home} has commits that the box's {said.branch} does not have"
    if not force:
        raise RepositoryRefused(
            str(scratch.repository),
            has,
            "The box's history was changed, or an earlier box had this name: force=true replaces "
            "it, if that is what the user wants",
        )
    if said.seen != old:
        raise RepositoryRefused(
            str(scratch.repository),
            f"{has}, and has never seen",
            "Somebody else added them, so they are not replaced by force either: ask the user to "
            f"rename that branch (`git branch -m {said.home} NAME`), or clone it again",
        )


def _taken_in(scratch: Scratch, bundle: Path, said: Said) -> str:
    """The commit, which is whole."""
    if not bundle.exists():
        if not HASH.fullmatch(said.tip) or scratch.missing([said.tip]):
            raise MissingHistory(said.tip[:MAX_HASH])
        scratch.check(said.tip)
        return said.tip
    with bundle.open("rb") as file:
        return _unpacked(scratch, file, said)


def _unpacked(scratch: Scratch, file: IO[bytes], said: Said) -> str:
    size = os.fstat(file.fileno()).st_size
    free = shutil.disk_usage(scratch.repository.objects).free
    if 3 * size > free - SPARED:  # it is there thrice for a moment
        raise HostForbidden(str(scratch.repository), "the user's disk is too full for it")
    try:
        head = read_head(file, scratch.object_format)
    except NoBundle as error:
        raise _refused(scratch, f"what the box sent is no proper bundle: {error}") from None
    if head.ref != HEADS + said.branch:
        raise _refused(scratch, "the box sent another branch than it said")
    if missing := scratch.missing(head.needed):
        raise MissingHistory(missing[0])
    try:
        scratch.take_in(file, head, size)
    except GitCommandError as error:
        raise _refused(scratch, f"git refuses what the box sent: {complaint(error)}") from None
    return head.tip


def _checked_out(scratch: Scratch, ref: str) -> str:
    """Where a branch is checked out; or nothing."""
    said = os.fsdecode(scratch.theirs.run("worktree", "list", "--porcelain"))
    for entry in said.split("\n\n"):
        lines = entry.splitlines()
        if f"branch {ref}" in lines:
            return lines[0].removeprefix("worktree ")
    return ""


def _bring_home(scratch: Scratch, branch: str, tip: str, old: str) -> None:
    try:
        scratch.bring_home(HEADS + branch, tip, old)
    except GitCommandError as error:
        refused = _refused(scratch, f"git does not take it as {branch}: {complaint(error)}")
        if scratch.named(f"{HEADS}box") is not None:
            refused.advice = "It has a branch `box`, beside which none can be called box/..."
        raise refused from None


def _refused(scratch: Scratch, reason: str) -> RepositoryRefused:
    return RepositoryRefused(str(scratch.repository), reason)
