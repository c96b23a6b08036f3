"""An agent's whole work with a private repository, over MCP; then its box is searched for secrets.

Real servers: git's own behind a password, LFS, and an emulator of GitHub's API, all on loopback.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest

from box_mcp.engines.isolation import OWNER_LABEL
from box_mcp.engines.saving import SAVED_LABEL
from tests.support.client import docker, fresh_state, serving, until
from tests.support.github import API, serving_github
from tests.support.gitserver import TOKEN, USER, Content, serving_git
from tests.support.lfsserver import pointer, serve_lfs, tracked
from tests.support.needles import forms, leaks, search, search_box, search_image, search_tree

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.support.github import Hub
    from tests.support.gitserver import Server as GitServer
    from tests.support.lfsserver import Lfs

PLANT = """
echo "me:$PLANTED" | base64 -w0 > notes
(cd app && git hash-object -w --stdin < ../notes)
exec 9> gone
echo "$PLANTED" >&9
rm gone
echo $$ > planted
exec sleep 300
"""
"""Leaves a secret in all places where one can be."""

BEFORE, AFTER = os.urandom(300_000), os.urandom(200_000)
PLANTED = "ghp_TheBoxKnows/This+Other-Token="
COMMITS = 400


@dataclass
class Work:
    """What was done, by whom it was heard, and where traces of it may be."""

    directory: Path
    forge: GitServer
    hub: Hub
    lfs: Lfs
    box: str
    said: list[str]
    """What the tools answered."""

    @property
    def secrets(self) -> list[str]:
        """All that no box may know."""
        return [TOKEN, *self.lfs.tokens]


@pytest.fixture(scope="module")
async def work(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Work, None]:
    """Clone, change, commit, push, pull request; then somebody plants another secret."""
    directory = tmp_path_factory.mktemp("work")
    with ExitStack() as stack:
        forge = stack.enter_context(serving_git(directory / "git"))
        content = Content(COMMITS, extra=tracked({"large.bin": BEFORE}))
        url = forge.add("me/app.git", content)
        lfs = serve_lfs(forge, directory / "lfs")
        lfs.put(BEFORE)
        hub = stack.enter_context(
            serving_github(directory, {TOKEN: "me"}, ["me/app"], beside=forge.web)
        )
        (directory / "mine").mkdir()
        env = stack.enter_context(fresh_state(directory / "mine"))
        route: dict[str, Any] = {"upstream": forge.url, "repositories": ["me/*"], "forge": "github"}
        route |= {"credential": {"variable": "FORGE_TOKEN"}, "access": "write"}
        env |= {"BOX_MCP_ROUTES": json.dumps({"forge": route}), "FORGE_TOKEN": TOKEN}
        env["BOX_MCP_LOG_LEVEL"] = "DEBUG"  # it tells all that it ever tells
        env |= {"BOX_MCP_GIT_NAME": "Grace", "BOX_MCP_GIT_EMAIL": "grace@example.org"}
        (directory / "mine" / "large.bin").write_bytes(AFTER)
        env["BOX_MCP_HOST_ROOTS"] = json.dumps([str(directory / "mine")])
        async with serving(env) as server:
            box = str((await server.tell("box_create", name="worker", network="none"))["id"])
            there = {"path": "app"}
            over = {"overwrite": True}
            large, edits = str(directory / "mine" / "large.bin"), [{"old": "An", "new": "Our"}]
            calls: list[tuple[str, dict[str, Any]]] = [
                ("git_clone", {"url": url, **there}),
                ("git_log", {"count": 200, **there}),
                ("git_log", {"count": 500, "skip": 200, **there}),
                ("git_checkout", {"ref": "work", "create": True, **there}),
                ("file_edit", {"path": "app/README.md", "edits": edits}),
                ("file_upload", {"host_path": large, "destination": "app/large.bin", **over}),
                ("git_commit", {"message": "Ours, and larger", "all": True, **there}),
                ("git_push", there),
                ("git_status", there),
                ("pull_request_create", {"title": "Ours", "body": "Larger.", **there}),
                ("pull_request_create", {"title": "Ours", "body": "Larger.", **there}),
            ]
            said = [await server.say(tool, box="worker", **call) for tool, call in calls]
            links = await server.run("ls /sys/class/net", box="worker")
            assert links.split()[-1] == "lo"
            planted = {"env": {"PLANTED": PLANTED}, "background": True}
            await server.run(PLANT, box="worker", **planted)
            await server.pid_in("planted", box="worker")
            await server.tell("snapshot_create", name="afterwards", box="worker")
            yield Work(directory, forge, hub, lfs, box, said)
            await server.tell("snapshot_delete", name="afterwards")


async def test_the_work_has_arrived(work: Work):
    cloned, newest, older, *_, first, second = work.said

    def git(*arguments: str) -> str:
        return work.forge.git("me/app.git", *arguments)

    assert "app" in cloned
    assert f"{newest}{older}".count(" Ada: Change ") == COMMITS
    author, subject, parent = git("log", "-1", "--format=%an <%ae>%n%s%n%P", "work").splitlines()
    assert (author, subject) == ("Grace <grace@example.org>", "Ours, and larger")
    assert parent == git("rev-parse", "main")
    assert git("show", "work:README.md") == "# Our example"
    assert git("show", "work:large.bin") == pointer(AFTER).decode().strip()
    assert (work.lfs.directory / sha256(AFTER).hexdigest()).read_bytes() == AFTER
    (pull,) = work.hub.ask("/repos/me/app/pulls")
    assert (pull["title"], pull["head"]["ref"], pull["base"]["ref"]) == ("Ours", "work", "main")
    assert all(pull["html_url"] in answer for answer in (first, second))


async def test_the_box_has_no_secret_anywhere(work: Work):
    found = await anyio.to_thread.run_sync(search_box, work.box, [*work.secrets, PLANTED])
    assert [
        line for line in found if line.split()[-1].rpartition(":")[2] not in forms(PLANTED)
    ] == []
    places = {line.split(" of ")[0].split(" in ")[0].split(" /")[0] for line in found}
    assert places == {"environ", "memory", "open files", "file", "git objects"}


async def test_nor_has_a_snapshot_of_it(work: Work):
    owner = docker("inspect", "-f", f'{{{{index .Config.Labels "{OWNER_LABEL}"}}}}', work.box)
    image = docker("images", "--quiet", "--filter", f"label={SAVED_LABEL}={owner}")
    found = await anyio.to_thread.run_sync(search_image, image, [*work.secrets, PLANTED])
    assert found
    assert set(found) <= forms(PLANTED)


async def test_nor_has_what_the_engine_knows_of_it(work: Work):
    known = [docker(*say, work.box) for say in (("inspect",), ("logs",), ("diff",))]
    assert search([part.encode() for part in known], work.secrets) == []
    assert search([*[part.encode() for part in known], PLANTED.encode()], [PLANTED])


async def test_nor_has_the_client_or_anything_that_the_server_wrote(work: Work):
    assert len(work.lfs.tokens) >= 3
    assert not leaks("".join(work.said), work.secrets)
    assert "DEBUG" in (work.directory / "mine" / "server.log").read_text()
    assert search_tree(work.directory / "mine", work.secrets) == []
    assert search_tree(work.directory, work.secrets) == [str(work.directory / "github.json")]


PROPOSALS = 2


async def test_each_request_is_in_the_audit_log(work: Work):
    heard = [asked for asked in work.forge.web.asked if not asked.path.startswith(API)]

    async def uses() -> list[dict[str, Any]] | None:
        lines = (work.directory / "mine" / "state" / "audit.jsonl").read_text().splitlines()
        found = [entry for entry in map(json.loads, lines) if entry["event"] == "RouteUsed"]
        return found if len(found) >= len(heard) + PROPOSALS else None

    logged = await until(uses, "a line for each request")
    assert {(line["box"], line["principal"], line["route"]) for line in logged} == {
        (work.box, "local", "forge")
    }
    told = Counter((line["method"], line["path"], line["status"]) for line in logged)
    moved = Counter({one: told.pop(one) for one in [*told] if one[1].startswith("/.lfs/")})
    proposed = Counter({one: told.pop(one) for one in [*told] if one[1] == "/me/app"})
    objects = [asked for asked in heard if asked.path.startswith("/lfs-objects/")]
    git = [(asked.method, asked.path, asked.status) for asked in heard if asked not in objects]
    assert told == Counter(git)
    assert moved.total() == len(objects) >= 3
    assert proposed["propose", "/me/app", 200] == PROPOSALS
    assert {asked.who for asked in heard} == {USER, ""}
    assert {(line["method"], line["sent"]) for line in logged} >= {("PUT", len(AFTER))}
