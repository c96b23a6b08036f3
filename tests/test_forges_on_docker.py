"""A private repository cloned, changed, pushed and proposed, all by an agent's tools.

git's servers are real (`git http-backend`). GitHub's API is an emulator's, GitLab's a stand-in's,
each on the same address as its repositories.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.client import PATIENCE, Server, fresh_state, serving
from tests.support.github import Hub, serving_github
from tests.support.gitlab import Lab, serving_gitlab
from tests.support.gitserver import TOKEN, Content, serving_git
from tests.support.gitserver import Server as GitServer
from tests.support.webserver import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

SESSION = ("--session", "forges")
SMALL = Content(commits=3, files=3, branches=(), tags=())


@dataclass
class Scene:
    """An agent's server, and the forges."""

    agent: Server
    env: Mapping[str, str]
    """The server's."""
    git: GitServer
    hub: Hub
    lab: Lab

    def branches(self, name: str = "me/it.git") -> dict[str, str]:
        """What the git server has, with commits."""
        listed = self.git.git(name, "for-each-ref", "--format=%(refname:short) %(objectname)")
        return dict(line.split() for line in listed.splitlines())

    async def begun(self, branch: str) -> str:
        """A new branch with a commit of its own, whose hash this is."""
        await self.agent.run(f"git checkout -q -b '{branch}' --no-track origin/main", cwd="it")
        return await self.committed()

    async def committed(self) -> str:
        """The hash of a new commit."""
        commit = "date +%N >now && git add . && git commit -q -m 'Now' && git rev-parse HEAD"
        return (await self.agent.run(commit, cwd="it")).split()[-1]

    def proposals(self) -> list[dict[str, Any]]:
        """What the forge was asked for: pull requests."""
        return [sent for asked, sent in self.hub.said if asked.endswith("/pulls")]


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Scene, None]:
    directory = tmp_path_factory.mktemp("forges")
    names = ("me/it", "me/other", "team/it")
    with (
        serving_git(directory / "git") as git,
        serving_github(directory, {TOKEN: "me"}, names, ["ada"], beside=git.web) as hub,
        serving_git(directory / "lab") as other,
        serving_gitlab({TOKEN: "me"}, ["ada"], beside=other.web) as lab,
        fresh_state(directory) as env,
    ):
        for name in names:
            git.add(f"{name}.git", SMALL)
        other.add_copy("me/sub/it.git", git.root / "me/it.git")
        lab.add("me/sub/it")
        common = {
            "credential": {"variable": "FORGE_TOKEN"},
            "repositories": ["me/*"],
            "access": "write",
        }
        routes = {
            "work": {"upstream": hub.url, "forge": "github", **common},
            "lab": {"upstream": lab.url, "forge": "gitlab", **common},
        }
        more = {"BOX_MCP_ROUTES": json.dumps(routes), "FORGE_TOKEN": TOKEN}
        more |= {"BOX_MCP_GIT_NAME": "Ada", "BOX_MCP_GIT_EMAIL": "ada@example.org"}
        env |= {**more, "BOX_MCP_NETWORK": "none"}
        async with serving(env, *SESSION) as agent:
            await agent.say("git_clone", url=f"{hub.url}/me/it.git")
            yield Scene(agent, env, git, hub, lab)


@pytest.fixture(autouse=True)
def healed(scene: Scene) -> Iterator[None]:
    scene.hub.said.clear()
    yield
    scene.hub.web.heal()


async def test_a_branch_is_pushed_and_its_pull_request_opened_by_one_call(scene: Scene):
    commit = await scene.begun("fix/ä#1%2B")
    wanted: dict[str, Any] = {"title": "Mend it", "body": "So.", "labels": ["bug"], "path": "it"}
    told = await scene.agent.say("pull_request_create", **wanted, reviewers=["@ada", "nobody"])
    header, *lines = told.splitlines()
    assert "[pull request 1 opened: " in header
    assert f"{scene.hub.url}/api/v3/me/it/pull/1" in header
    assert "fix/ä#1%2B into main" in header
    assert "pushed to me/it: [new branch]" in header
    assert lines == ["not added: reviewer nobody: Validation failed"]
    assert TOKEN not in told
    assert scene.branches()["fix/ä#1%2B"] == commit
    (asked,) = scene.proposals()
    assert (asked["head"], asked["base"], asked["title"]) == ("fix/ä#1%2B", "main", "Mend it")

    again = await scene.agent.say("pull_request_create", **wanted)
    assert "[pull request 1 was there already" in again
    assert "[up to date]" in again
    later = await scene.committed()
    assert f"{commit[:7]}..{later[:7]}" in await scene.agent.say("pull_request_create", **wanted)
    assert scene.branches()["fix/ä#1%2B"] == later
    assert len(scene.proposals()) == 1


async def test_a_branch_on_another_remote_is_proposed_to_the_repository_that_is_named(scene: Scene):
    commit = await scene.begun("from-fork")
    await scene.agent.run("git remote add fork git@127.0.0.1:me/other.git", cwd="it")
    fork: dict[str, Any] = {"remote": "fork", "repository": "me/it"}
    told = await scene.agent.say("pull_request_create", title="T", path="it", draft=True, **fork)
    assert "pushed to me/other: [new branch]" in told
    assert scene.branches("me/other.git")["from-fork"] == commit
    assert "from-fork" not in scene.branches()
    (asked,) = scene.proposals()
    assert (asked["head"], asked["head_repo"], asked["draft"]) == ("me:from-fork", "other", True)


async def test_on_gitlab_it_is_a_merge_request(scene: Scene):
    await scene.begun("on-lab")
    await scene.agent.run(f"git remote add lab {scene.lab.url}/me/sub/it.git", cwd="it")
    wanted: dict[str, Any] = {"title": "T", "path": "it", "remote": "lab", "reviewers": ["ada"]}
    told = await scene.agent.say("pull_request_create", **wanted, draft=True)
    assert f"[merge request 1 opened: {scene.lab.url}/me/sub/it/-/merge_requests/1 · on-lab" in told
    (merge,) = scene.lab.projects[0].items["merge_requests"]
    assert (merge["title"], merge["reviewers"][0]["username"]) == ("Draft: T", "ada")
    assert "merge request 1 was there" in await scene.agent.say("pull_request_create", **wanted)


async def test_the_base_is_not_pushed_for_want_of_a_branch(scene: Scene):
    before = scene.branches()
    await scene.agent.run("git checkout -q -B main origin/main", cwd="it")
    await scene.committed()
    for base in ({}, {"base": "main"}):
        told = await scene.agent.fail("pull_request_create", title="T", path="it", **base)
        assert "git_checkout" in told
    assert "`title` " in await scene.agent.fail("pull_request_create", title="", path="it")
    assert scene.branches() == before


async def test_what_the_forge_refuses_after_the_push_says_what_is_there(scene: Scene):
    commit = await scene.begun("refused")
    body = b'{"message": "Resource not accessible by personal access token"}'
    scene.hub.web.fail(Trouble("POST /api/v3/repos/me/it/pulls", 403, body=body))
    told = await scene.agent.fail("pull_request_create", title="T", path="it", base="main")
    assert "does not let the credential of the route 'work' open a pull request in me/it" in told
    assert "not accessible by personal access token" in told
    assert "The branch is there (pushed to me/it: [new branch])" in told
    assert TOKEN not in told
    assert scene.branches()["refused"] == commit
    assert "opened: " in await scene.agent.say("pull_request_create", title="T", path="it")


async def test_a_push_that_is_refused_is_no_pull_request(scene: Scene):
    await scene.begun("overtaken")
    scene.git.git("me/it.git", "branch", "overtaken", "main~1")
    await scene.agent.run("git reset -q --hard origin/main~2", cwd="it")
    told = await scene.agent.fail("pull_request_create", title="T", path="it")
    assert "git did not push overtaken" in told
    assert scene.proposals() == []


async def test_a_push_that_takes_long_goes_on_and_the_call_is_repeated(scene: Scene):
    commit = await scene.begun("slow")
    scene.hub.web.fail(Trouble("POST /me/it.git/git-receive-pack", stall=True))
    async with serving({**scene.env, "BOX_MCP_YIELD_AFTER": "1"}, *SESSION) as impatient:
        told = await impatient.say("pull_request_create", title="T", path="it")
        assert "[repeat the call when the push has ended]" in told
        assert scene.proposals() == []
        scene.hub.web.heal()
        process = re.search(r'id="(p\d+)"', told)
        assert process
        await scene.agent.say("process_output", id=process[1], wait=PATIENCE, until="exit")
    assert scene.branches()["slow"] == commit
    assert "opened: " in await scene.agent.say("pull_request_create", title="T", path="it")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("HUB/team/it.git", "the route 'work' leads to me/* only, not to team/it"),
        ("https://github.com/me/it", "no route of this box leads there"),
        ("https://me:hush@github.com/me/it", "no route of this box leads there"),
        ("ext::sh -c 'touch /tmp/stolen'", "on no server"),
        ("/workspace/it", "on no server"),
    ],
)
async def test_a_remote_that_no_route_may_write_to_gets_nothing(scene: Scene, url: str, words: str):
    await scene.begun("elsewhere")
    place = url.replace("HUB", scene.hub.url)
    await scene.agent.run(f'git remote add elsewhere "{place}"', cwd="it")
    told = await scene.agent.fail("pull_request_create", title="T", path="it", remote="elsewhere")
    gone = "git remote remove elsewhere; git checkout -q main; git branch -D elsewhere; ls /tmp"
    assert "stolen" not in await scene.agent.run(gone, cwd="it")
    assert words in told
    assert "Nothing was pushed or made" in told
    assert "hush" not in told
    assert scene.hub.said == []
    assert "elsewhere" not in scene.branches("team/it.git")


async def test_an_issue_is_opened_where_the_repository_comes_from(scene: Scene):
    wanted: dict[str, Any] = {"title": "It broke", "body": "Like this.", "path": "it"}
    told = await scene.agent.say("issue_create", **wanted, labels=["bug"], assignees=["ada"])
    assert re.search(r"\[issue \d+ opened: http\S+ · me/it\]", told)
    assert "was there already" in await scene.agent.say("issue_create", **wanted)
    wanted["path"] = "/"
    assert "Pass its URL" in await scene.agent.fail("issue_create", **wanted, repository="me/other")
    url = f"{scene.hub.url}/me/other"
    elsewhere = await scene.agent.say("issue_create", **wanted, repository=url)
    assert "opened: " in elsewhere
    assert "me/other]" in elsewhere
    assert "not in a git repository" in await scene.agent.fail("issue_create", **wanted)
    told = await scene.agent.fail("issue_create", **wanted, repository="team/it")
    assert "leads to me/* only" in told


async def test_a_box_without_the_route_can_ask_for_nothing(scene: Scene):
    await scene.agent.tell("box_create", name="bare", routes=[])
    repository = f"git init -q x && cd x && git remote add origin {scene.hub.url}/me/it"
    await scene.agent.run(f"{repository} && git commit -q --allow-empty -m x", box="bare")
    for tool in ("pull_request_create", "issue_create"):
        told = await scene.agent.fail(tool, title="T", path="x", box="bare")
        assert "no route of this box leads there" in told
    assert scene.hub.said == []
