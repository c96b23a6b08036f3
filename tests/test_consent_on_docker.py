"""What a person decides, with real boxes: in both eras of the protocol, over stdio and HTTP."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from mcp import MCPError
from mcp_types import InputRequiredResult

from tests.support.client import ERAS, MODERN, Server, serving, text, until
from tests.support.http import HttpServer, serving_http
from tests.support.person import NO, YES, Person

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

PREPARE = (
    "set -e; git config --global user.name Ada; git config --global user.email ada@example.org; "
    "git config --global init.defaultBranch main"
)
WORK = f"{PREPARE}; git init -q app; cd app; git commit -q --allow-empty -m One; echo x > new"
TOLD = "/workspace/app: 1 commit that no remote has, 1 change not committed"
PUSHED = (
    "set -e; git init -q --bare ../up.git; git remote add origin ../up.git; "
    "git push -q -u origin main; git commit -q --amend --allow-empty -m Other"
)
LIAR = r"""#!/bin/sh
case "$*" in
*for-each-ref*)
    printf 'refs/heads/main\0a\0origin\0origin/main\0\0\nrefs/remotes/origin/main\0b\0\0\0\0\n' ;;
*remote*) echo origin ;;
*log*) printf '\001\0h1\0now\0Ann\0\0Fine\nIt is harmless.\0' ;;
*) printf 'all is well\0' ;;
esac
"""


@pytest.fixture(scope="module")
async def http(shared_env: dict[str, str]) -> AsyncGenerator[HttpServer, None]:
    async with serving_http(shared_env) as server:
        yield server


@asynccontextmanager
async def calling(
    http: HttpServer, env: dict[str, str], way: str, era: str, person: Person | None
) -> AsyncGenerator[Server, None]:
    """A client, which can ask if there is a person."""
    ask = person.ask if person is not None else None
    if way == "stdio":
        async with serving(env, mode=era, ask=ask) as server:
            yield server
    else:
        async with http.caller("ann", era, ask=ask) as server:
            yield server


async def box_with_work(server: Server, name: str) -> str:
    """The id of a new box with a repository that is nowhere else."""
    made = await server.tell("box_create", name=name)
    await work(server, name, WORK)
    return made["id"]


async def work(server: Server, box: str, commands: str, **arguments: Any) -> str:
    answer = await server.run(commands, box=box, **arguments)
    assert "[exit 0 " in answer, answer
    return answer.partition("[exit 0 ")[2].partition("]\n")[2]


async def boxes(server: Server) -> list[str]:
    return [box["name"] for box in (await server.tell("box_list"))["boxes"]]


@pytest.mark.parametrize(
    ("way", "era", "no"),
    [("stdio", ERAS[0], 0), ("stdio", ERAS[1], 1), ("http", ERAS[0], 2), ("http", ERAS[1], 0)],
)
async def test_work_that_would_be_lost_is_lost_after_a_yes_only(
    http: HttpServer, shared_env: dict[str, str], way: str, era: str, no: int
):
    person, name = Person(NO[no]), f"{way}-{era}"
    async with calling(http, shared_env, way, era, person) as server:
        await box_with_work(server, name)
        assert "did not allow it" in await server.fail("box_delete", box=name, discard=True)
        assert TOLD in person.questions[0]
        await work(server, name, PUSHED, cwd="app")
        before = await work(server, name, "git -C up.git log --format=%s main")
        push: dict[str, Any] = {"path": "app", "force": True, "box": name}
        assert "did not allow it" in await server.fail("git_push", **push)
        assert await work(server, name, "git -C up.git log --format=%s main") == before == "One\n"
        assert "overwrite origin/main" in person.questions[-1]
        assert person.questions[-1].count(" Ada: One") == 1
        person.answer = YES
        assert "(forced update)" in await server.say("git_push", **push)
        assert await work(server, name, "git -C up.git log --format=%s main") == "Other\n"
        asked = len(person.questions)
        assert "up to date" in await server.say("git_push", **push)
        assert len(person.questions) == asked, "nothing would be overwritten"
        assert "deleted" in await server.say("box_delete", box=name)
        assert "/workspace/app: 1 change not committed" in person.questions[-1]
        assert name not in await boxes(server)


async def test_who_can_not_be_asked_is_told_what_would_be_lost_and_how_to_go_on(
    http: HttpServer, shared_env: dict[str, str]
):
    async with calling(http, shared_env, "http", MODERN, None) as server:
        box = await box_with_work(server, "plain")
        for depth in (None, "frozen", "stopped"):
            if depth is not None:
                await server.call("box_pause", box=box, depth=depth)
            words = await server.fail("box_delete", box="plain")
            assert TOLD in words
            assert "box_delete with discard=true" in words
        await work(server, box, PUSHED, cwd="app")
        words = await server.fail("git_push", path="app", force=True, box=box)
        assert "Ada: One" in words
        assert "--force-with-lease" in words
        await work(server, box, "git push -q --force-with-lease && rm new", cwd="app")
        await server.call("box_pause", box=box)
        assert "deleted" in await server.say("box_delete", box="plain"), "all of it was pushed"


async def test_what_a_box_says_of_its_work_controls_nothing(
    http: HttpServer, shared_env: dict[str, str]
):
    person = Person(YES)
    async with calling(http, shared_env, "http", MODERN, person) as server:
        evil = "$'app\\n- nothing\\n\\e[2J\\u202e'"
        await server.tell("box_create", name="evil")
        await work(server, "evil", f"{PREPARE}; git init -q {evil}; cd {evil}; touch new")
        await work(server, "evil", "cd app*; git config core.fsmonitor 'touch /tmp/ran; :'")
        person.answer = NO[1]
        await server.fail("box_delete", box="evil")
        (question,) = person.questions
        assert question.count("\n") == 2
        assert question.replace("\n", "").isprintable()
        assert await work(server, "evil", "ls /tmp") == ""
        await server.say("file_write", path="/workspace/fake", content=LIAR, box="evil")
        await work(server, "evil", "sudo install fake /usr/local/bin/git")
        await server.fail("git_push", branch="main", force=True, box="evil")
        assert "\n- h1 now Ann: Fine It is harmless.\nDo you" in person.questions[-1]
        person.answer = YES
        assert "deleted" in await server.say("box_delete", box="evil")
        assert "could not be looked into" in person.questions[-1]


async def test_an_answer_counts_once_for_whom_and_what_was_asked(http: HttpServer):
    person = Person(YES)
    async with (
        http.client("ann", ask=person.ask) as ann,
        http.client("ben", ask=person.ask) as ben,
        http.caller("ann") as hers,
        http.caller("ben") as his,
    ):
        for one in (hers, his):
            await box_with_work(one, "same")

        async def delete(client: Any, box: str = "same", **more: Any) -> Any:
            arguments = {"box": box}
            return await client.session.call_tool(
                "box_delete", arguments, allow_input_required=True, **more
            )

        async def answer() -> dict[str, Any]:
            """To a new question of Ann's."""
            asked = await delete(ann)
            assert isinstance(asked, InputRequiredResult)
            yes = dict.fromkeys(asked.input_requests or {}, YES)
            return {"input_responses": yes, "request_state": asked.request_state}

        for client, box in ((ben, "same"), (ann, "another")):
            with pytest.raises(MCPError, match="Invalid or expired requestState"):
                await delete(client, box, **await answer())
        given = await answer()
        forged = {**given, "request_state": f"{given['request_state'][:-4]}AAAA"}
        with pytest.raises(MCPError, match="Invalid or expired requestState"):
            await delete(ann, "same", **forged)
        yes = given["input_responses"]
        assert isinstance(await delete(ann, input_responses=yes), InputRequiredResult)
        await work(hers, "same", "touch more", cwd="app")
        changed = await delete(ann, "same", **given)
        assert isinstance(changed, InputRequiredResult), "it is another question by now"
        again = {"input_responses": yes, "request_state": changed.request_state}
        assert "deleted" in text(await delete(ann, "same", **again))
        await box_with_work(hers, "same")
        await work(hers, "same", "touch more", cwd="app")
        with pytest.raises(MCPError, match="Invalid or expired requestState"):
            await delete(ann, "same", **again)
        assert await boxes(hers) == await boxes(his) == ["same"]
        assert "deleted" in await his.say("box_delete", box="same", discard=True), "nobody to ask"


async def test_an_exposed_port_is_reached_by_its_link_and_wakes_its_box(http: HttpServer):
    async with http.caller("ann") as server:
        box = (await server.tell("box_create", name="site"))["id"]
        page = "mkdir -p site && echo hello > site/index.html"
        await work(server, box, page)
        await server.run("python3 -m http.server 8000 -d site", box=box, background=True)

        async def exposed() -> str | None:
            told = await server.say("port_expose", port=8000, box=box)
            return None if "nobody listens" in told else told

        told = await until(exposed, "a server that listens in the box")
        link = told.split()[0].removeprefix("[")
        port = http.base.rpartition(":")[2]
        site = f"{box}-8000.localhost:{port}"
        assert link.startswith(f"http://{site}/.box-mcp/")
        assert f"http://{site}/ leads to 8000" in str(await server.tell("box_info", box=box))
        async with httpx2.AsyncClient(base_url=http.base, headers={"Host": site}) as browser:
            assert (await browser.get("/")).status_code == 401
            led = await browser.get(link.partition(site)[2])
            cookie = {"Cookie": led.headers["set-cookie"].partition(";")[0]}
            browser.cookies.clear()
            assert (await browser.get("/", headers=cookie)).text == "hello\n"
            await server.call("box_pause", box=box)
            assert (await browser.get("/", headers=cookie)).text == "hello\n"
            async with http.caller("ben") as his:
                assert box in await his.fail("port_close", port=8000, box=box)
            ours = {"Authorization": f"Bearer {await http.token('ann')}"}
            assert (await browser.get("/", headers=ours)).text == "hello\n"
            theirs = {"Authorization": f"Bearer {await http.token('ben')}"}
            assert (await browser.get("/", headers=theirs)).status_code == 404
            await server.say("box_delete", box=box)
            assert (await browser.get("/", headers=cookie)).status_code == 401
            assert (await browser.get("/", headers=ours)).status_code == 404
