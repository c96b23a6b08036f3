"""What a repository of the user's is made from in a box: a bundle, and words for the git there.

Blocking, as `run` is.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from box_mcp.capabilities.hostgit.find import Repository
from box_mcp.capabilities.hostgit.going import BUNDLE, SHALLOW, SPARED, Going
from box_mcp.capabilities.hostgit.run import Leash
from box_mcp.capabilities.hostgit.scratch import (
    DETACHED,
    ORIGIN,
    SIDE,
    TAGS,
    Scratch,
    open_scratch,
)
from box_mcp.capabilities.hostgit.uncommitted import commit_changes, side_branch
from box_mcp.capabilities.leftout import LeftOut
from box_mcp.domain.refs import HEADS
from box_mcp.errors import InvalidArgument

REMOTE_SCHEMES = ("http", "https", "ssh", "git+ssh", "ssh+git", "git")
MAX_TOLD = 20  # branches


def pack(
    leash: Leash,
    repository: Repository,
    directory: Path,
    wanted: str,
    proof: str,
    *,
    uncommitted: bool,
) -> Going:
    """Writes the bundle into `directory`; raises InvalidArgument where there is no such branch.

    And HostForbidden, HostFailed and GitCommandError.
    """
    scratch = open_scratch(leash, repository, directory)
    branch, commit = _checked_out(scratch, wanted)
    left_out, side = LeftOut(), ""
    followed = {one.upstream for one in scratch.refs}
    refs = [
        (one.commit, one.name)
        for one in scratch.refs
        if one.name.startswith((HEADS, TAGS)) or one.name in followed
    ]
    if commit and not branch:
        refs.append((commit, DETACHED))
    if uncommitted:
        room = max(shutil.disk_usage(directory).free - SPARED, 0)
        if changes := commit_changes(scratch, left_out, room):
            side = side_branch(scratch)
            refs.append((changes, SIDE + side))
    scratch.write_refs(refs)
    if refs:
        with (directory / BUNDLE).open("wb") as file:
            scratch.bundle(file)
    if scratch.shallow:
        (directory / SHALLOW).write_text(scratch.shallow)
    own = scratch.named(HEADS + branch) if branch else None
    upstream = own.upstream if own is not None else ""
    origin = origin_for_a_box(scratch.theirs.line("remote", "get-url", "origin", good=(0, 2, 128)))
    follows = origin and upstream.startswith(ORIGIN) and scratch.named(upstream)
    return Going(
        repository=scratch.repository,
        object_format=scratch.object_format,
        branch=branch,
        commit=commit,
        upstream=upstream.removeprefix("refs/remotes/") if follows else "",
        origin=origin,
        side=side,
        proof=proof,
        left_out=left_out,
        shallow=bool(scratch.shallow),
    )


def _checked_out(scratch: Scratch, wanted: str) -> tuple[str, str]:
    """The branch and the commit to check out; for a tag, and a commit on no branch, that only."""
    if not wanted:
        return scratch.head.removeprefix(HEADS), scratch.commit
    if (found := scratch.named(HEADS + wanted)) is not None:
        return wanted, found.commit
    if (tag := scratch.named(TAGS + wanted)) is not None:
        return "", scratch.theirs.line("rev-parse", "--verify", f"{tag.commit}^{{commit}}")
    branches = scratch.branches()
    told = ", ".join(branches[:MAX_TOLD]) + (", ..." if len(branches) > MAX_TOLD else "")
    there = f"it has {told}" if told else "it has none yet"
    raise InvalidArgument("branch", f"is {wanted!r}: {scratch.repository} has no such; {there}")


def origin_for_a_box(url: str) -> str:
    """A URL of the user's as a box may have it: without what may log in; empty for none."""
    if not url.isprintable() or " " in url or "::" in url.partition("/")[0]:
        return ""
    if "://" not in url:
        host, colon, _ = url.partition(":")
        is_path = not colon or "/" in host or "\\" in host or len(host.rpartition("@")[2]) < 2
        return "" if is_path or url.startswith("-") else url
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.scheme not in REMOTE_SCHEMES or not parts.hostname:
        return ""
    user, _, host = parts.netloc.rpartition("@")
    keeps_user = "ssh" in parts.scheme and user and ":" not in user
    netloc = f"{user}@{host}" if keeps_user else host
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))
