"""The user's own repository in real boxes, by the tools; and what the user does with the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.client import serving
from tests.support.commands import box_mcp
from tests.support.usergit import commit, contents, git, refs, repository_at

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from tests.support.client import Server

pytestmark = pytest.mark.anyio

IDENTITY = {"BOX_MCP_GIT_NAME": "An Agent", "BOX_MCP_GIT_EMAIL": "agent@example.com"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's project: a repository with a change that is not committed."""
    project = repository_at(tmp_path_factory.mktemp("user") / "app")
    commit(project, "calc.py", "def add(a, b):\n    return a - b\n")
    git(project, "remote", "add", "origin", "https://me:secret@git.example.com/me/app.git")
    (project / "notes.txt").write_text("not committed\n")
    (project / ".env").write_text("TOKEN=secret\n")
    yield project
    assert (project / ".env").read_text() == "TOKEN=secret\n"


@pytest.fixture
async def server(shared_env: dict[str, str], project: Path) -> AsyncGenerator[Server, None]:
    """A server that Claude Code would have started in the project."""
    env = {**shared_env, **IDENTITY, "CLAUDE_PROJECT_DIR": str(project)}
    async with serving(env, "--session", "hostgit") as server:
        yield server


async def test_work_goes_into_a_box_and_comes_home_and_the_user_takes_it(
    server: Server, project: Path
):
    main = git(project, "rev-parse", "main")
    before = contents(project)
    await server.tell("box_create", name="fix-login")
    cloned = await server.say("git_clone", url="host:", uncommitted=True, box="fix-login")
    assert contents(project) == before
    assert f"[cloned host:{project} to app · branch main at {main[:10]}]" in cloned
    assert "What was not committed is one commit on the branch uncommitted" in cloned
    assert "left out, it holds variables that are often secret: .env" in cloned
    assert "secret" not in await server.run("cat app/.git/config", box="fix-login")
    await server.run("cd app && sed -i 's/a - b/a + b/' calc.py", box="fix-login")
    await server.say("git_commit", path="app", message="Add", all=True, box="fix-login")
    pushed = await server.say("git_push", remote="host", path="app", box="fix-login")
    assert f"[pushed main to box/fix-login in {project} · 1 new commit, now at " in pushed
    assert "`box-mcp merge fix-login`" in pushed
    assert refs(project).keys() == {"refs/heads/main", "refs/heads/box/fix-login"}
    assert git(project, "rev-parse", "main", "box/fix-login~1").split() == [main, main]
    assert git(project, "log", "-1", "--format=%an <%ae>", "box/fix-login") == (
        "An Agent <agent@example.com>"
    )
    assert "+    return a + b" in box_mcp("diff", "fix-login", "--repo", str(project)).stdout
    said = box_mcp("merge", "fix-login", "--repo", str(project)).stdout
    assert said.startswith("Merged box/fix-login into main, now at ")
    assert (project / "calc.py").read_text() == "def add(a, b):\n    return a + b\n"
    assert (project / "notes.txt").read_text() == "not committed\n"
    again = await server.say("git_push", remote="host", path="app", box="fix-login")
    assert "[nothing to push: box/fix-login" in again


async def test_forks_and_snapshots_bring_work_home_under_their_own_names(
    server: Server, project: Path
):
    before = refs(project)
    (fork,) = (await server.tell("box_fork", box="fix-login"))["boxes"]
    await server.tell("snapshot_create", name="saved", box="fix-login")
    await server.tell("box_create", name="third", snapshot="saved")
    await server.tell("snapshot_delete", name="saved")
    for name in (fork["id"], "third"):
        await server.run(f"cd app && echo {name} > {name}", box=name)
        await server.say("git_commit", path="app", message=name, all=True, box=name)
        await server.say("git_push", remote="host", path="app", box=name)
        assert git(project, "show", f"box/{name}:{name}") == name
    assert before.items() <= refs(project).items()


async def test_what_was_not_cloned_from_there_can_not_be_pushed_there(
    server: Server, project: Path
):
    before = refs(project)
    await server.run(
        f"git init -q -b main w && cd w && git remote add host host:{project} && "
        "git config remote.host.proof 0000 && git commit -q --allow-empty -m x",
        box="third",
    )
    for remote in ("host", ""):
        refused = await server.fail("git_push", remote=remote, path="w", box="third")
        assert "did not come from there" in refused
    refused = await server.fail("git_clone", url="host:", path="x", depth=1, box="third")
    assert "'depth' is for URLs" in refused
    assert refs(project) == before
