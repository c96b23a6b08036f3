"""The tools for git repositories in a box; all else that git can do is done by shell_run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Annotated, Any

from mcp_types import CallToolResult
from pydantic import Field

from box_mcp.capabilities.git import Git, History, Lease, Pace, Page, Target
from box_mcp.capabilities.shell import Outcome, Shell
from box_mcp.capabilities.terminal import legible
from box_mcp.capabilities.trees import told
from box_mcp.domain.access import Group
from box_mcp.domain.gitadvice import without_progress
from box_mcp.domain.gitoutput import (
    Change,
    Commit,
    Numbers,
    Status,
    Summary,
    parse_committed,
    parse_pushed,
    take_summary,
)
from box_mcp.domain.paths import ERRORS, shown
from box_mcp.domain.refs import (
    HOME,
    HOST,
    SHORT,
    parse_branch,
    parse_remote,
    parse_revision,
    parse_source,
)
from box_mcp.errors import GitFailed, InvalidArgument, WouldLose
from box_mcp.surface.consent import Consent, Question, asks, consenting, looks, warning
from box_mcp.surface.hostgit import clone_from_host, push_home
from box_mcp.surface.refusals import with_refusals
from box_mcp.surface.sessions import (
    BoxRef,
    Ctx,
    OpenBox,
    backend,
    look_into,
    meant,
    open_box,
)
from box_mcp.surface.shell import progress, render
from box_mcp.surface.tasks import hand_over
from box_mcp.surface.toolset import Toolset, record
from box_mcp.surface.trees import Cursor
from box_mcp.surface.words import counted, visible

tools = Toolset(Group.GIT)

LISTED = 100  # paths of each kind in a status
LISTED_LENGTH = 2500  # characters of them
FILES = 50  # of one commit that are named
MAX_COUNT = 500
DETACHED = (
    'a rebase goes on by shell_run("git rebase --continue"); else git_checkout with create=true '
    "keeps it"
)
MAX_LOST = 19  # commits that a forced push would overwrite and that are named
KEEP_COMMITS = (
    "git_push without force keeps them, once they are fetched and merged. Else tell the user what "
    'would be lost; once they agree: shell_run("git push --force-with-lease")'
)
DETAIL = 2000  # characters of what git or a hook says besides

Repository = Annotated[str, Field(description="Repository. Default: /workspace.")]
Paths = Annotated[Sequence[str], Field(description="Only these, from `path` on.")]


@tools.tool(open_world=True)
async def git_clone(
    url: Annotated[str, Field(description="Or host:/path of the user's machine.")],
    ctx: Ctx,
    path: Annotated[str, Field(description="Default: /workspace/NAME.")] = "",
    branch: Annotated[str, Field(description="Branch or tag to check out.")] = "",
    depth: Annotated[int | None, Field(ge=1, description="Only so many newest commits.")] = None,
    uncommitted: Annotated[
        bool, Field(description="Of host:, also what is not committed.")
    ] = False,
    box: BoxRef = None,
) -> str:
    """Clone a git repository in the box, not the user's machine. Private ones need no password:
    they work where the user's settings have a route.
    """
    wanted = parse_branch("branch", branch) if branch else None
    async with open_box(ctx, box) as opened:
        if url.startswith(HOST):
            if depth:
                raise InvalidArgument("depth", "is for URLs: the user's own comes whole")
            host_path = url.removeprefix(HOST)
            text = await clone_from_host(ctx, opened, host_path, path, wanted, uncommitted)
            return opened.reply(text)
        if uncommitted:
            raise InvalidArgument("uncommitted", "is for host:/path only")
        source = parse_source("url", url)
        with telling_refusals(ctx, opened, box):
            outcome = await Git(opened.shell).clone(
                source, path, branch=wanted, depth=depth, pace=pace(ctx)
            )
        return told_of(ctx, opened, box, outcome, lambda: render_cloned(url, outcome))


@tools.tool(reads=True)
async def git_status(ctx: Ctx, path: Repository = "", box: BoxRef = None) -> CallToolResult:
    """Tell branch, upstream and changes of a repository in the box, not the user's machine."""
    async with open_box(ctx, box) as opened:
        status = await Git(opened.shell).status(path)
        return record(described(status, opened.claim.news))


@tools.tool(reads=True)
async def git_diff(
    ctx: Ctx,
    path: Repository = "",
    ref: Annotated[str, Field(description="Since this commit; a..b: between two.")] = "",
    staged: Annotated[bool, Field(description="What is staged instead.")] = False,
    paths: Paths = (),
    stat: Annotated[bool, Field(description="Only lines counted for each file.")] = False,
    cursor: Cursor = "",
    box: BoxRef = None,
) -> str:
    """Show unstaged changes, or what is staged or between commits, in the box, not the user's
    machine.
    """
    limit = backend(ctx).limits.max_output
    revision = parse_revision("ref", ref) if ref else None
    if staged and ".." in ref:
        raise InvalidArgument("staged", "is for one ref: a range a..b has no index")
    async with open_box(ctx, box) as opened:
        git = Git(opened.shell)
        if cursor:
            page = await git.diff_page(cursor, limit)
        else:
            page = await git.diff(
                path, staged=staged, revision=revision, paths=paths, stat=stat, limit=limit
            )
        root = await git.top(path) if any(map(odd, page.numbers or ())) else b"/"
        return opened.reply(render_diff(page, root))


@tools.tool(reads=True)
async def git_log(
    ctx: Ctx,
    path: Repository = "",
    ref: Annotated[str, Field(description="Branch, tag, commit or a..b. Default: HEAD.")] = "",
    paths: Paths = (),
    count: Annotated[int, Field(ge=1, le=MAX_COUNT, description="Most commits.")] = 20,
    skip: Annotated[int, Field(ge=0, description="Leave out so many newest.")] = 0,
    body: Annotated[bool, Field(description="Whole messages.")] = False,
    stat: Annotated[bool, Field(description="Changed files.")] = False,
    box: BoxRef = None,
) -> str:
    """List commits in the box, not the user's machine: hash, date (UTC), author, subject."""
    revision = parse_revision("ref", ref) if ref else None
    async with open_box(ctx, box) as opened:
        git = Git(opened.shell)
        history = await git.log(
            path, revision=revision, paths=paths, count=count, skip=skip, body=body, stat=stat
        )
        files = chain.from_iterable(commit.files for commit in history.commits)
        root = await git.top(path) if any(map(odd, files)) else b"/"
        return opened.reply(render_log(history, skip, backend(ctx).limits.max_output, root))


@tools.tool()
async def git_commit(
    message: Annotated[str, Field(description="With amend, empty keeps the old one.")],
    ctx: Ctx,
    path: Repository = "",
    paths: Paths = (),
    all: Annotated[  # noqa: A002 - git's word
        bool, Field(description="Every change, new files too.")
    ] = False,
    amend: Annotated[bool, Field(description="Replace the last commit.")] = False,
    sign_off: Annotated[bool, Field(description="Add Signed-off-by.")] = False,
    box: BoxRef = None,
) -> str:
    """Commit what is staged, or paths, or all, in the box, not the user's machine."""
    async with open_box(ctx, box) as opened:
        outcome = await Git(opened.shell).commit(
            path,
            message=message,
            paths=paths,
            everything=all,
            sign_off=sign_off,
            amend=amend,
            pace=pace(ctx),
        )
        return told_of(ctx, opened, box, outcome, lambda: render_committed(outcome))


@tools.tool()
async def git_checkout(
    ref: Annotated[str, Field(description="Branch, tag or commit.")],
    ctx: Ctx,
    path: Repository = "",
    create: Annotated[bool, Field(description="Make it as a new branch.")] = False,
    start: Annotated[str, Field(description="Where a new one starts. Default: HEAD.")] = "",
    box: BoxRef = None,
) -> str:
    """Switch branches in the box, not the user's machine. Loses no changes."""
    if start and not create:
        raise InvalidArgument("start", "is for create=true only")
    branch = parse_branch("ref", ref) if create else None
    revision = parse_revision("start" if create else "ref", (start or "HEAD") if create else ref)
    async with open_box(ctx, box) as opened:
        git = Git(opened.shell)
        others = await git.namesakes(path, branch) if branch and not start else []
        try:
            outcome = await git.checkout(path, revision=revision, create=branch, pace=pace(ctx))
        except GitFailed as failed:
            if create or "invalid reference" not in failed.said:
                raise
            raise await with_namesakes(git, path, ref, failed) from None
        return told_of(ctx, opened, box, outcome, lambda: render_checked_out(outcome, ref, others))


@dataclass(frozen=True)
class Overwriting:
    """A forced push, and the commits that its remote branch would lose, a line for each."""

    target: Target
    commits: Sequence[str]


async def overwritten(
    ctx: Ctx, remote: str, branch: str, force: bool, path: str, box: str | None
) -> Overwriting | None:
    """What a forced push would overwrite; None for any other, and for one to the user's machine.

    There it rewrites a branch that is for this box alone.
    """
    if not force:
        return None
    wanted = parse_branch("branch", branch) if branch else None
    named = parse_remote("remote", remote) if remote else None
    async with look_into(ctx, await meant(ctx, box)) as claim:
        git = Git(Shell(claim.channel, claim.box.spec.cwd))
        target = await git.target(path, remote=named, branch=wanted)
        if target.remote == HOME:
            return None
        lost = await git.overwritten(path, target, MAX_LOST)
        lines = [commit_block(b"/", commit) for commit in lost.commits]
        return Overwriting(target, [*lines, *(["and older ones"] if lost.more else [])])


Lost = Annotated[Overwriting | None, looks(overwritten)]


async def may_push(ctx: Ctx, lost: Lost) -> Question:
    """Asks before commits of a remote branch are overwritten."""
    if lost is None:
        return None
    where = f"{visible(lost.target.lease.name)} by a forced push"
    return warning(ctx, f"overwrite {where}", lost.commits)


@tools.tool(destroys=True, open_world=True)
async def git_push(
    ctx: Ctx,
    lost: Lost,
    answer: Annotated[Consent, asks(may_push)],
    remote: Annotated[
        str, Field(description="Default: the branch's own, else origin. host: the user's.")
    ] = "",
    branch: Annotated[str, Field(description="Default: the current one.")] = "",
    force: Annotated[bool, Field(description="Overwrite what was last fetched, no more.")] = False,
    path: Repository = "",
    box: BoxRef = None,
) -> str:
    """Push a branch of a repository in the box, not the user's machine; sets its upstream if it has
    none.
    """
    if lost is not None:
        with consenting(answer, KEEP_COMMITS) as approved:
            if lost.commits and not approved:
                raise WouldLose(f"push {lost.target.branch} by force", lost.commits)
    wanted = parse_branch("branch", branch) if branch else None
    async with open_box(ctx, box) as opened:
        git = Git(opened.shell)
        named = parse_remote("remote", remote) if remote else None
        target = lost.target if lost else await git.target(path, remote=named, branch=wanted)
        if target.remote == HOME:
            return opened.reply(await push_home(ctx, opened, path, target.branch, force))
        with telling_refusals(ctx, opened, box):
            outcome = await git.push(path, target, force=force, pace=pace(ctx))
        return told_of(ctx, opened, box, outcome, lambda: render_pushed(outcome, target, force))


def pace(ctx: Ctx) -> Pace:
    """How patient a call is, by the settings."""
    limits = backend(ctx).limits
    return Pace(limits.yield_after, limits.max_output, progress(ctx))


def told_of(
    ctx: Ctx, opened: OpenBox, box: str | None, outcome: Outcome, done: Callable[[], str]
) -> str:
    """What `done` says when git has ended; else a task, or its process id and how to go on."""
    if hand_over(ctx, opened, outcome, backend(ctx).limits.max_output):
        return ""
    text = render(outcome, box=box) if outcome.record.running else done()
    return opened.reply(with_refusals(ctx, opened, box, text))


@contextmanager
def telling_refusals(ctx: Ctx, opened: OpenBox, box: str | None) -> Generator[None, None, None]:
    """Has a failure inside tell what the box was refused meanwhile."""
    try:
        yield
    except GitFailed as failed:
        failed.said = with_refusals(ctx, opened, box, failed.said)
        raise


async def with_namesakes(git: Git, path: str, ref: str, failed: GitFailed) -> GitFailed:
    """`failed`, with the remote branches that may have been meant."""
    try:
        names = await git.namesakes(path, parse_branch("ref", ref))
    except InvalidArgument:
        return failed
    if not names:
        return failed
    at = f', path="{path}"' if path else ""
    call = f'git_checkout(ref="{ref}", create=true, start="{names[0]}"{at})'
    reason = f"there is no branch {ref!r} here, but {', '.join(names)}, and none is made unasked"
    return GitFailed(failed.what, reason, f"{call} makes one that follows it")


def described(status: Status, news: str) -> dict[str, Any]:
    """A status as callers see it: of each kind as many paths as one likes to read, and how many."""
    kinds = {
        "staged": status.staged,
        "unstaged": status.unstaged,
        "untracked": status.untracked,
        "conflicts": status.conflicts,
    }
    lists = {name: some(status.root, changes) for name, changes in kinds.items()}
    counts = {name: len(changes) for name, changes in kinds.items()}
    cut = any(len(lists[name]) < count for name, count in counts.items())
    return {
        "root": told(b"/", status.root) or "/",
        "branch": status.branch and visible(status.branch),
        "commit": status.commit and status.commit[:SHORT],
        "upstream": status.upstream and visible(status.upstream),
        "ahead": status.ahead,
        "behind": status.behind,
        "clean": status.clean,
        "state": status.state,
        "stashes": status.stashed,
        "counts": counts,
        **lists,
        **({"note": "lists are cut, counts are not"} if cut else {}),
        **({"news": news} if news else {}),
    }


def some(root: bytes, changes: Sequence[Change]) -> list[str]:
    """As many as one likes to read."""
    lines = [change_line(root, change) for change in changes[:LISTED]]
    lengths = accumulate(map(len, lines))
    return [line for line, length in zip(lines, lengths, strict=True) if length <= LISTED_LENGTH]


def change_line(root: bytes, change: Change) -> str:
    """A change as git-status shows it shortly; untracked paths without a mark."""
    path = told(root, change.path)
    if change.letter == "?":
        return path
    before = f"{told(root, change.before)} -> " if change.before is not None else ""
    return f"{change.letter} {before}{path}"


def odd(one: Numbers) -> bool:
    """Whether a path can't be told as it is, but from the root on."""
    return not all(shown(path) == path for path in map(as_text, (one.path, one.before or b"")))


def as_text(path: bytes) -> str:
    """A path that a box told, as text that may hold what is none."""
    return path.decode(errors=ERRORS)


def render_diff(page: Page, root: bytes = b"/") -> str:
    """How much it is, which part is shown, and that."""
    if not page.total:
        return "[no differences · untracked files are never part of a diff]"
    parts = [amount(page.summary)] if page.summary else []
    if page.cursor or page.start:
        parts.append(f"bytes {page.start:,}-{page.end:,} of {page.total:,}")
    if page.cursor:
        parts.append(f'more: cursor="{page.cursor}"')
    whole = f"{page.total:,} bytes"  # of files in conflict only, which git does not count
    header = f"[{' · '.join(parts) or whole}]"
    if page.numbers is not None:
        return "\n".join([header, *(numbers_line(root, one) for one in page.numbers)])
    return f"{header}\n{visible(page.text.decode(errors='backslashreplace'))}"


def amount(summary: Summary) -> str:
    """How much a diff is, in a few words."""
    return f"{counted(summary.files, 'file')} changed, +{summary.added:,} -{summary.deleted:,}"


def numbers_line(root: bytes, one: Numbers) -> str:
    """What a file gained and lost."""
    path = told(root, one.path)
    before = f"{told(root, one.before)} -> " if one.before is not None else ""
    if one.added is None or one.deleted is None:
        return f"binary {before}{path}"
    return f"+{one.added} -{one.deleted} {before}{path}"


def render_log(history: History, skip: int, most: int, root: bytes = b"/") -> str:
    """Commits in about `most` characters, at least one, and how to go on."""
    blocks: list[str] = []
    size = 0
    for commit in history.commits:
        block = commit_block(root, commit)
        size += len(block) + 1
        if blocks and size > most:
            break
        blocks.append(block[:most])
    more = history.more or len(blocks) < len(history.commits)
    header = counted(len(blocks), "commit") if blocks else "no commits"
    following = f" · more: skip={skip + len(blocks)}" if more else ""
    return "\n".join([f"[{header}{following}]", *blocks])


def commit_block(root: bytes, commit: Commit) -> str:
    """A line, then what else was asked for."""
    refs = f" ({commit.refs})" if commit.refs else ""
    lines = [f"{commit.name} {commit.date} {commit.author}: {commit.subject}{refs}"]
    lines += [f"    {line}".rstrip() for line in commit.body.rstrip().splitlines()]
    lines += [f"  {numbers_line(root, one)}" for one in commit.files[:FILES]]
    if (more := len(commit.files) - FILES) > 0:
        lines.append(f"  and {more:,} files more")
    return visible("\n".join(lines))


def render_cloned(url: str, outcome: Outcome) -> str:
    """Where it is, what is checked out, and what is missing."""
    fields = [*outcome.stdout.split(b"\0"), *[b""] * 5]
    place, submodules, shallow, name, refs, subject = fields[:6]
    into = shown(as_text(place))
    parts = [f"cloned {url} into {into}"]
    if name:
        current = [ref for ref in decoded(refs).split(", ") if ref.startswith("HEAD -> ")]
        branch = current[0].removeprefix("HEAD -> ") if current else "no branch"
        parts.append(visible(f"{branch} at {decoded(name)} {decoded(subject).rstrip()}"))
    else:
        parts.append("it has no commit yet")
    if shallow:
        fetch = 'or "git fetch origin NAME:NAME" for another branch'
        parts.append(f'shallow: shell_run("git fetch --unshallow", cwd="{into}") deepens, {fetch}')
    if submodules:
        parts.append('its submodules: shell_run("git submodule update --init --recursive")')
    return f"[{' · '.join(parts)}]"


def render_committed(outcome: Outcome) -> str:
    """Branch and hash, how much changed, and what git and hooks said besides."""
    first, _, rest = outcome.stdout.partition(b"\n")
    summary, rest = take_summary(rest + b"\n")
    subject = decoded(first).partition("] ")[2]
    try:
        branch, name = parse_committed(outcome.stdout)
    except ValueError:  # lost among what hooks have said
        parts = ["committed", "git_log tells what"]
    else:
        where = f"on {branch}" if branch else f"on no branch (detached HEAD): {DETACHED}"
        parts = [f"committed {name} {where}", *([amount(summary)] if summary else [])]
    lines = [line for line in decoded(rest).splitlines() if line.strip()]
    hooks = without_progress(legible(outcome.stderr))
    return "\n".join(
        [f"[{' · '.join(map(visible, parts))}]", visible(subject), *map(visible, lines), hooks]
    ).rstrip()[: 2 * DETAIL]


def render_checked_out(outcome: Outcome, ref: str, others: Sequence[str]) -> str:
    """Which branch it is now, and what git said of it."""
    said = legible(outcome.head + outcome.tail).strip()
    parts = [f"checked out {ref}"]
    if others:
        names = ", ".join(map(visible, others))
        parts.append(f"a new branch from HEAD, though there is {names}: pass start to follow it")
    return f"[{' · '.join(parts)}]\n{without_progress(said)}"


def render_pushed(outcome: Outcome, target: Target, force: bool) -> str:
    """What became of the branch, and what the remote said."""
    done = next(iter(parse_pushed(outcome.stdout)), None)
    how = done.summary if done else "pushed"
    parts = [f"{target.branch} to {target.remote}: {visible(how)}"]
    if target.tracks:
        parts.append(f"upstream set to {target.remote}/{target.branch}")
    elif target.upstream and target.upstream != target.lease.name:
        parts.append(f"its upstream is {visible(target.upstream)}")
    if force:
        parts.append(f"lease: {lease_words(target.lease)}")
    said = without_progress(legible(outcome.stderr))
    remote = [line for line in said.splitlines() if line.startswith("remote:")]
    return "\n".join([f"[{' · '.join(parts)}]", *remote])


def lease_words(lease: Lease) -> str:
    """What a forced push was allowed to overwrite."""
    if lease.commit is None:
        return f"{lease.name} was never fetched, so there might be none"
    return f"{lease.name} was {lease.commit} when last fetched"


def decoded(said: bytes) -> str:
    """What git said as text; bytes that are none are written out."""
    return said.decode(errors="backslashreplace")
