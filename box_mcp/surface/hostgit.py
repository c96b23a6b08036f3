"""What git_clone and git_push do with repositories of the user's own machine."""

from __future__ import annotations

from collections.abc import Iterator

from box_mcp.capabilities.hostgit.box import answers
from box_mcp.capabilities.hostgit.carrying import HostGit
from box_mcp.capabilities.hostgit.going import Going, Home, Said
from box_mcp.capabilities.shell import Outcome
from box_mcp.domain.names import LOCAL
from box_mcp.domain.paths import shown
from box_mcp.domain.refs import FROM_BOXES, SHORT
from box_mcp.surface.sessions import Ctx, OpenBox, backend
from box_mcp.surface.shell import printable
from box_mcp.surface.transfer import MIB, allowed
from box_mcp.surface.words import counted


async def clone_from_host(
    ctx: Ctx, opened: OpenBox, host_path: str, path: str, branch: str | None, uncommitted: bool
) -> str:
    """Brings a repository of the user's into the box, and tells so."""
    steps = Steps(ctx)
    git = await _host_git(ctx, opened, steps)
    going, outcome = await git.clone(
        host_path or ".",
        path,
        branch,
        uncommitted=uncommitted,
        yield_after=backend(ctx).limits.yield_after,
        on_output=steps.output,
    )
    lines = list(_cloned(going, path or going.name, outcome))
    if uncommitted and not going.side:
        lines.append("There was nothing uncommitted that could come along.")
    return "\n".join(lines)


async def push_home(
    ctx: Ctx, opened: OpenBox, repo_path: str, branch: str | None, force: bool
) -> str:
    """Brings a branch of the box home into the user's repository, and tells how to get it there."""
    git = await _host_git(ctx, opened, Steps(ctx))
    said, home = await git.push(repo_path or ".", branch, force=force)
    return "\n".join(_pushed(said, home))


class Steps:
    """Tells the client how far it is, in one row of growing numbers."""

    def __init__(self, ctx: Ctx) -> None:
        self._ctx = ctx
        self._told = 0

    async def say(self, message: str) -> None:
        """One step more."""
        self._told += 1
        await self._ctx.report_progress(self._told, message=printable(message))

    async def beat(self) -> None:
        """Still at work on the user's machine."""
        await self.say("git is at work on the user's machine")

    async def bytes(self, done: int, total: int, name: str) -> None:
        """As OnProgress."""
        await self.say(f"{done / MIB:,.1f} of {total / MIB:,.1f} MiB {name}")

    async def output(self, line: str, _printed: int) -> None:
        """As OnOutput."""
        await self.say(line or "git is at work in the box")


async def _host_git(ctx: Ctx, opened: OpenBox, steps: Steps) -> HostGit:
    server = backend(ctx)
    roots = await allowed(ctx)
    assert server.host is not None, "none may be touched without"
    return HostGit(
        roots,
        server.host.state_dir,
        opened.claim.box.principal or LOCAL,
        opened.claim.box,
        opened.shell,
        opened.transfers,
        steps.bytes,
        steps.beat,
    )


def _cloned(going: Going, path: str, outcome: Outcome) -> Iterator[str]:
    at = f"branch {going.branch}" if going.branch else "no branch"
    commit = f"at {going.commit[:SHORT]}" if going.commit else "without a commit yet"
    if outcome.record.running:
        yield (
            f"[cloning {going.home} to {shown(path)} still goes on as {outcome.record.id}: "
            "process_output waits for its end]"
        )
    else:
        yield f"[cloned {going.home} to {shown(path)} · {at} {commit}]"
    if going.side:
        yield (
            f"What was not committed is one commit on the branch {going.side}: check it out, or "
            f"`git cherry-pick --no-commit {going.side}`."
        )
    yield from going.left_out.lines()
    if going.shallow:
        yield "The user's repository is shallow, and so is this one."
    told = answers(outcome)
    if "submodules" in told:
        yield "It has submodules, which are empty: `git submodule update --init` fetches them."
    if "lfs" in told:
        yield "Files in git LFS are pointers only: `git lfs pull` fetches them from origin."
    if not going.origin:
        yield "It has no remote `origin`: the user's has none that a box could reach."
    yield 'git_push(remote="host") brings commits home, as a branch box/... of their repository.'


def _pushed(said: Said, home: Home) -> Iterator[str]:
    name = home.branch.removeprefix(FROM_BOXES)
    where = f"{home.branch} in {home.repository}"
    if home.before == home.tip:
        yield f"[nothing to push: {where} has {said.branch} already, at {home.tip[:SHORT]}]"
    else:
        new = counted(said.new, "new commit") if said.new else "nothing in it is new to the user"
        yield f"[pushed {said.branch} to {where} · {new}, now at {home.tip[:SHORT]}]"
    if home.rewritten:
        yield f"It was at {home.before}, and that is no part of it any more."
    if said.lfs:
        yield (
            "Files in git LFS come home as pointers: `git lfs push origin` in the box takes their "
            "new contents to origin."
        )
    yield (
        f"In their repository the user sees it by `box-mcp diff {name}` and takes it by "
        f"`box-mcp merge {name}`, or `git merge {home.branch}`. Here it is host/{home.branch}."
    )
