"""Tools that open pull requests and issues, with a credential that the box never sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, TypeVar

from pydantic import Field

from box_mcp.capabilities.git import Git, Pace
from box_mcp.capabilities.shell import Outcome
from box_mcp.domain.access import Group
from box_mcp.domain.gitoutput import parse_pushed
from box_mcp.domain.refs import Remote, parse_branch, parse_remote
from box_mcp.domain.remotes import Way
from box_mcp.domain.routes import Forge, Route
from box_mcp.errors import ForgeError, InvalidArgument
from box_mcp.gateway.forges.base import (
    Client,
    Made,
    Proposal,
    Report,
    called,
    found_way,
    named_way,
)
from box_mcp.surface.git import Repository, pace, telling_refusals
from box_mcp.surface.refusals import with_refusals
from box_mcp.surface.sessions import BoxRef, Ctx, OpenBox, backend, open_box
from box_mcp.surface.shell import render
from box_mcp.surface.toolset import Toolset
from box_mcp.surface.words import visible

tools = Toolset(Group.GIT)

ORIGIN = parse_remote("remote", "origin")
PUSH_SHARE = 0.5  # of the time that a call may take; the forge has its own

T = TypeVar("T")

Title = Annotated[str, Field(min_length=1, description="Title.")]
Body = Annotated[str, Field(description="Markdown.")]
Users = Annotated[Sequence[str], Field(description="User names.")]
Labels = Annotated[Sequence[str], Field(description="Labels.")]
Parent = Annotated[str, Field(description="OWNER/NAME, if not the remote's.")]


@tools.tool(open_world=True, repeatable=True)
async def pull_request_create(
    title: Title,
    ctx: Ctx,
    body: Body = "",
    base: Annotated[str, Field(description="Target branch. Default: the repository's own.")] = "",
    head: Annotated[str, Field(description="Default: current branch.")] = "",
    draft: Annotated[bool, Field(description="Draft.")] = False,
    reviewers: Users = (),
    labels: Labels = (),
    remote: Annotated[str, Field(description="Default: as of git_push.")] = "",
    repository: Parent = "",
    path: Repository = "",
    box: BoxRef = None,
) -> str:
    """Push a branch in the box, not the user's machine, and open its pull or merge request. One
    that is open is returned.
    """
    wanted = parse_branch("head", head) if head else None
    named = parse_remote("remote", remote) if remote else None
    into = parse_branch("base", base) if base else None
    async with open_box(ctx, box) as opened:
        git = Git(opened.shell)
        target = await git.target(path, remote=named, branch=wanted)
        source, goal = await places(ctx, opened, path, target.remote, repository)
        proposal = Proposal(
            repository=called(goal),
            base=into or await default_branch(ctx, opened, goal),
            source=called(source),
            head=target.branch,
            title=title,
            body=body,
            draft=draft,
            anywhere=not base,
            reviewers=names(reviewers),
            labels=tuple(labels),
        )
        check(proposal)
        with telling_refusals(ctx, opened, box):
            outcome = await git.push(path, target, force=False, pace=patience(ctx))
        if outcome.record.running:
            text = f"[repeat the call when the push has ended]\n{render(outcome, box=box)}"
            return opened.reply(with_refusals(ctx, opened, box, text))
        pushed = told_push(outcome, proposal)
        try:
            made = await ask(ctx, opened, goal, "propose", lambda forge: forge.propose(proposal))
        except ForgeError as error:
            error.survived = f"The branch is there ({pushed}). {error.survived}"
            raise
        return opened.reply(render_pull(goal.route, made, proposal, pushed))


@tools.tool(open_world=True, repeatable=True)
async def issue_create(
    title: Title,
    ctx: Ctx,
    body: Body = "",
    labels: Labels = (),
    assignees: Users = (),
    repository: Parent = "",
    path: Repository = "",
    box: BoxRef = None,
) -> str:
    """Open an issue for a repository in the box, not the user's machine. One that is alike is
    returned.
    """
    async with open_box(ctx, box) as opened:
        routes = backend(ctx).routes.of(opened.claim.box)
        if repository:
            goal = named_way(repository, routes)
        else:
            goal = found_way(await Git(opened.shell).push_url(path, ORIGIN), routes)
        report = Report(called(goal), title, body, tuple(labels), names(assignees))
        made = await ask(ctx, opened, goal, "report", lambda forge: forge.report(report))
        return opened.reply(render_made("issue", made, called(goal)))


async def places(
    ctx: Ctx, opened: OpenBox, path: str, remote: Remote, repository: str
) -> tuple[Way, Way]:
    """Where a remote is, and the repository that is meant: that, or another at the same forge."""
    routes = backend(ctx).routes.of(opened.claim.box)
    source = found_way(await Git(opened.shell).push_url(path, remote), routes)
    if not repository:
        return source, source
    others = [route for route in routes if route.api == source.route.api]
    return source, named_way(repository, [source.route, *others])


async def default_branch(ctx: Ctx, opened: OpenBox, goal: Way) -> str:
    """The one that pull requests go to where nobody says which."""
    name = called(goal)
    found = await ask(ctx, opened, goal, "read", lambda forge: forge.default_branch(name))
    return default_of(found)


def default_of(found: object) -> str:
    """What a forge says is a repository's default branch, if one can be called so."""
    try:
        return parse_branch("base", str(found or ""))
    except InvalidArgument:
        raise InvalidArgument("base", "must be given: the repository has no default") from None


async def ask(
    ctx: Ctx, opened: OpenBox, goal: Way, method: str, question: Callable[[Client], T]
) -> T:
    """What a forge answers for a box."""
    return await backend(ctx).routes.forges.ask(opened.claim.box, goal, method, question)


def names(users: Sequence[str]) -> tuple[str, ...]:
    """Users as forges call them, who are often written with an ``@``."""
    return tuple(user.removeprefix("@") for user in users)


def check(proposal: Proposal) -> None:
    """Raises InvalidArgument before a base would be pushed."""
    if proposal.head == proposal.base and not proposal.forked:
        told = f"is {proposal.head!r}, and so is the base: git_checkout(create=true) begins another"
        raise InvalidArgument("head", told)


def patience(ctx: Ctx) -> Pace:
    """How long a push is waited for: the forge takes its time, too."""
    usual = pace(ctx)
    return replace(usual, yield_after=usual.yield_after * PUSH_SHARE)


def told_push(outcome: Outcome, proposal: Proposal) -> str:
    """What became of a push, in a few words."""
    done = next(iter(parse_pushed(outcome.stdout)), None)
    return f"pushed to {proposal.source}: {done.summary if done else 'done'}"


def render_pull(route: Route, made: Made, proposal: Proposal, pushed: str) -> str:
    """As `render_made`, with the branches."""
    what = "merge request" if route.forge is Forge.GITLAB else "pull request"
    into = "" if made.existed else f" into {proposal.base}"
    return render_made(what, made, f"{proposal.head}{into} · {pushed}")


def render_made(what: str, made: Made, about: str) -> str:
    """Number and address first, then what could not be added."""
    how = "was there already, with a title and text of its own" if made.existed else "opened"
    header = f"[{what} {made.number} {how}: {made.url} · {about}]"
    return visible("\n".join([header, *(f"not added: {one}" for one in made.undone)]))
