"""The real server over stdio, the SDK's own client in both protocol eras, real boxes."""

from __future__ import annotations

import contextlib
import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.support.client import (
    COMMAND,
    ERAS,
    Server,
    container_state,
    serving,
    text,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

SESSION = ("--session", "shared")
BOTH_ERAS = pytest.mark.parametrize("era", ERAS)


def shared(env: dict[str, str], era: str = ERAS[-1]) -> AbstractAsyncContextManager[Server]:
    """A server of the session that tests share a box in."""
    return serving(env, *SESSION, mode=era)


@pytest.fixture(scope="module")
async def server(shared_env: dict[str, str]) -> AsyncGenerator[Server, None]:
    """Of that session, for all tests that need no server of their own."""
    async with shared(shared_env) as server:
        yield server


@BOTH_ERAS
async def test_the_first_call_makes_the_sessions_box_and_says_so(
    server_env: dict[str, str], era: str
):
    async with serving(server_env, mode=era) as server:
        first = await server.run("echo hello; whoami; pwd")
        news, header, *output = first.splitlines()
        made = re.fullmatch(
            r"\[made the box (box-\w{8}) for this session; calls without `box` use it\]", news
        )
        assert made is not None
        assert re.fullmatch(r"\[exit 0 · \d+\.\d\d s\]", header)
        assert output == ["hello", "box", "/workspace"]
        assert "made the box" not in await server.run("true")
        assert await server.hostname() == made[1]
        assert (await server.tell("box_info"))["id"] == made[1]


@BOTH_ERAS
async def test_a_box_is_made_listed_paused_resumed_and_deleted(
    server_env: dict[str, str], era: str
):
    async with serving(server_env, mode=era) as server:
        made = await server.tell("box_create", name="work", size="small", env={"GREETING": "hi"})
        assert (made["name"], made["state"], made["size"]) == ("work", "running", "small")
        assert (made["cpus"], made["memory_mib"]) == (1.0, 1024)
        assert (await server.run("echo $GREETING", box="work")).endswith("hi\n")

        other = await server.tell("box_create")
        listed = (await server.tell("box_list"))["boxes"]
        assert [box["id"] for box in listed] == [made["id"], other["id"]]

        paused = await server.tell("box_pause", box="work")
        assert (paused["state"], paused["depth"]) == ("paused", "frozen")
        assert container_state(made["id"]) == "paused"
        assert (await server.tell("box_resume", box=made["id"]))["state"] == "running"
        stopped = await server.tell("box_pause", box="work", depth="stopped")
        assert (stopped["state"], stopped["depth"]) == ("paused", "stopped")
        assert container_state(made["id"]) == "exited"

        assert made["id"] in await server.say("box_delete", box="work")
        assert "You have no box 'work'" in await server.fail("box_info", box="work")
        listed = (await server.tell("box_list"))["boxes"]
        assert [box["id"] for box in listed] == [other["id"]]


async def test_a_command_wakes_a_frozen_box_and_its_processes_lived_on(server: Server):
    await server.run("sleep 300 & echo $! > sleeper")
    sleeper = await server.pid_in("sleeper")
    assert (await server.tell("box_pause"))["depth"] == "frozen"
    assert await server.lives(sleeper)
    await server.run(f"kill {sleeper}")


async def test_a_command_starts_a_stopped_box_and_hears_what_survived(server: Server):
    await server.run("echo kept > kept; sleep 300 & echo $! > sleeper")
    sleeper = await server.pid_in("sleeper")
    assert (await server.tell("box_pause", depth="stopped"))["depth"] == "stopped"
    answer = await server.run("cat kept")
    assert "its files survived, its processes did not" in answer
    assert answer.endswith("kept\n")
    assert not await server.lives(sleeper)
    assert "survived" not in await server.run("true")


@BOTH_ERAS
async def test_a_file_is_written_read_by_lines_and_listed(shared_env: dict[str, str], era: str):
    content = "".join(f"{n} ä\n" for n in range(1, 6))
    async with shared(shared_env, era) as server:
        await server.run("rm -rf files")
        written = await server.say("file_write", path="files/deep/list", content=content)
        assert "[created files/deep/list · 25 bytes · version " in written
        again = await server.say("file_write", path="files/deep/list", content=content)
        assert again.startswith("[replaced files/deep/list · 25 bytes · version ")
        version = again.split()[-1].removesuffix("]")

        whole = await server.say("file_read", path="/workspace/files/deep/list")
        about = f"files/deep/list · 25 bytes · version {version} · lines"
        assert whole == f"[/workspace/{about} 1-5 of 5]\n{content}"
        part = await server.say("file_read", path="files/deep/list", first_line=2, max_lines=2)
        header, *lines = part.splitlines()
        assert header == f"[{about} 2-3 of 5 · more: first_line=4]"
        assert lines == ["2 ä", "3 ä"]

        await server.run("ln -s deep files/link; mkdir files/empty")
        header, *entries = (await server.say("file_list", path="files")).splitlines()
        assert header == "[files · 3 entries]"
        shown = [entry.split(None, 4)[4] for entry in entries]
        assert shown == ["deep/", "empty/", "link@ -> deep"]
        assert "No such file" in await server.fail("file_read", path="files/none")


@pytest.mark.parametrize("content", ['{"a": 1}', "[1, 2]", "null", "true", '"x"', "17"])
async def test_text_that_happens_to_be_json_stays_text(server: Server, content: str):
    await server.say("file_write", path="json", content=content)
    assert (await server.run("cat; cat json", stdin=content)).endswith(f"]\n{content * 2}")


async def test_a_relative_cwd_starts_at_the_workspace(server: Server):
    await server.run("mkdir -p below")
    assert (await server.run("pwd", cwd="below")).endswith("]\n/workspace/below\n")
    assert (await server.run("pwd", cwd="/tmp")).endswith("]\n/tmp\n")
    assert (await server.run("pwd", cwd="~")).endswith("]\n/home/box\n")


@BOTH_ERAS
async def test_output_lines_come_as_progress_while_the_command_runs(
    shared_env: dict[str, str], era: str
):
    lines: list[str | None] = []
    values: list[float] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        lines.append(message)
        values.append(progress)

    script = (
        "rm -f second third; echo first line;"
        "until [ -e second ]; do sleep .02; done; printf '\\e[1msecond\\a line\\n';"
        "until [ -e third ]; do sleep .02; done; echo third line"
    )
    async with shared(shared_env, era) as server:
        answers: list[str] = []

        async def call() -> None:
            arguments = {"command": script, "timeout": 60}
            result = await server.client.call_tool(
                "shell_run", arguments, progress_callback=progressed
            )
            answers.append(text(result))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            for shown, following in (("first line", "second"), ("second line", "third")):
                await until(partial(_in, lines, shown), f"{shown!r} as progress")
                assert not answers
                await server.say("file_write", path=following, content="")
        (answer,) = answers
        assert answer.endswith("]\nfirst line\nsecond line\nthird line\n")
        assert values == sorted(set(values))


async def test_a_long_command_goes_on_behind_a_call_that_returned(server: Server):
    script = "rm -f finish; echo started; until [ -e finish ]; do sleep .02; done; echo done"
    answer = await server.run(script, yield_after=1.5)
    header, *output = answer.splitlines()
    assert output == ["started"]
    found = re.search(r"running for \d+ s as (p\d+), and goes on", header)
    assert found is not None, header
    assert "awake because commands run in it" in (await server.tell("box_info"))["note"]
    await server.say("file_write", path="finish", content="")
    whole = await server.say("process_output", id=found[1], cursor=0, until="exit", wait=20)
    assert whole.startswith(f"[{found[1]} exit 0 · ")
    assert whole.endswith("]\nstarted\ndone\n")


async def test_a_timeout_ends_the_whole_tree(server: Server):
    script = "(setsid sleep 300 & echo $! > child; wait) & echo before; sleep 300"
    answer = await server.run(script, timeout=1.5)
    assert "timed out: its whole process tree was ended (killed by SIGTERM)" in answer
    assert answer.endswith("]\nbefore\n")
    assert not await server.lives(await server.pid_in("child"))


@BOTH_ERAS
async def test_a_cancelled_call_ends_the_whole_tree_and_the_box_stays(
    shared_env: dict[str, str], era: str
):
    async with shared(shared_env, era) as server:
        await server.run("rm -f child")
        script = "(setsid sleep 300 & echo $! > child; wait) & sleep 300"
        child = 0
        async with anyio.create_task_group() as group:
            group.start_soon(partial(server.run, script))
            child = await server.pid_in("child")
            assert await server.lives(child)
            group.cancel_scope.cancel()

        async def gone() -> bool:
            return not await server.lives(child)

        await until(gone, "the end of the tree")
        box = await server.hostname()
        assert container_state(box) == "running"
        assert not re.search("ERROR|Traceback", server.log.read_text())


async def test_calls_in_one_box_run_side_by_side(server: Server):
    await server.run("rm -f met-*")
    meet = "touch met-{}; until [ -e met-{} ]; do sleep .02; done"
    async with anyio.create_task_group() as group:
        group.start_soon(partial(server.run, meet.format("a", "b"), timeout=20))
        group.start_soon(partial(server.run, meet.format("b", "a"), timeout=20))


async def test_an_idle_box_pauses_by_itself_and_the_next_call_wakes_it(server_env: dict[str, str]):
    server_env["BOX_MCP_PAUSE_AFTER"] = "0.3"
    async with serving(server_env) as server:
        await server.run("echo kept > kept")
        info: dict[str, Any] = {}

        async def paused() -> bool:
            info.update(await server.tell("box_info"))
            return info["state"] == "paused"

        await until(paused, "an idle box paused")
        assert (info["depth"], "(idle)" in info["note"]) == ("frozen", True)
        assert container_state(info["id"]) == "paused"
        said = await server.run("cat kept")
        assert said.startswith("[exit 0 · ")
        assert said.endswith("]\nkept\n")


async def test_a_box_with_a_command_under_way_does_not_pause(server_env: dict[str, str]):
    server_env["BOX_MCP_PAUSE_AFTER"] = "0.3"
    async with serving(server_env) as server:
        await server.run("until [ -e end ]; do sleep .02; done", yield_after=0.1)
        box = (await server.tell("box_info"))["id"]
        ticks = await server.run("sleep 1; echo awake")  # a whole second beyond the patience
        assert ticks.endswith("awake\n")
        assert container_state(box) == "running"


async def test_a_session_has_one_box_whichever_server_serves_it(server_env: dict[str, str]):
    async with serving(server_env, "--session", "one") as server:
        first = await server.hostname()
    async with (
        serving(server_env, "--session", "one") as again,
        serving(server_env, "--session", "two") as other,
    ):
        assert await again.hostname() == first
        assert await other.hostname() != first


async def test_the_clients_session_variable_chooses_the_box(server_env: dict[str, str]):
    env = {**server_env, "CLAUDE_CODE_SESSION_ID": "5f1c"}
    async with serving(env) as server:
        first = await server.hostname()
    async with serving(env) as again, serving(env, "--session", "named") as named:
        assert await again.hostname() == first
        assert await named.hostname() != first


@BOTH_ERAS
async def test_a_thread_id_in_a_requests_meta_chooses_the_box(server_env: dict[str, str], era: str):
    async with serving(server_env, mode=era) as server:
        first = await server.hostname(meta={"threadId": "a"})
        second = await server.hostname(meta={"threadId": "b"})
        assert first != second
        assert await server.hostname(meta={"threadId": "a"}) == first


async def test_two_servers_on_one_state_directory_share_the_boxes(server_env: dict[str, str]):
    async with serving(server_env) as one, serving(server_env) as two:
        made = await one.tell("box_create", name="ours")
        assert [box["id"] for box in (await two.tell("box_list"))["boxes"]] == [made["id"]]
        await one.say("file_write", path="note", content="from one", box="ours")
        assert (await two.say("file_read", path="note", box="ours")).endswith("from one")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(one.run, "until [ -e go ]; do sleep .02; done", box="ours"))
            await two.run("touch go", box=made["id"])
        assert "The name 'ours' is taken already" in await two.fail("box_create", name="ours")


async def test_an_unknown_box_is_refused_with_the_way_to_find_ones_own(server: Server):
    for box in ("nonesuch", "box-aaaaaaaa", "Not A Name!", ""):
        said = await server.fail("shell_run", command="true", box=box)
        assert f"You have no box {box!r}." in said
        assert "`box_list` shows your boxes" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"command": "true", "timeout": -1}, ["`timeout` should be greater than 0, but was -1"]),
        ({"comand": "true"}, ["`command` is missing", "did you mean `command`?"]),
        ({"command": "true", "timeout_seconds": 5}, ["there is no argument `timeout_seconds`"]),
        ({"command": ["ls"]}, ["`command` should be a valid string", '["ls"]']),
        ({"command": "true", "env": {"A": 1}}, ["`env.A` should be a valid string, but was 1"]),
        ({"command": "true", "max_output": "many"}, ["`max_output`", "integer", '"many"']),
        ({"command": "true", "env": {"A=B": "1"}}, ["'env' has 'A=B', which can't be a variable"]),
        ({"command": "true", "cwd": "/x" * 3000}, ["'cwd' is longer than 4,096 bytes"]),
        ({"command": "a\0b"}, ["'command' has a NUL character"]),
        ({"command": "true", "cwd": "/none"}, ["No such file or directory: /none"]),
    ],
    ids=lambda value: ",".join(value)[:30],
)
async def test_a_wrong_argument_is_named_with_what_is_wrong_and_what_there_is(
    server: Server, arguments: dict[str, Any], words: list[str]
):
    said = await server.fail("shell_run", **arguments)
    for word in words:
        assert word in said
    assert "pydantic" not in said
    assert len(said) < 1000


@BOTH_ERAS
async def test_without_an_engine_the_tools_are_listed_and_calls_tell_the_remedy(
    server_env: dict[str, str], era: str
):
    server_env["DOCKER_HOST"] = "unix:///nonexistent/engine.sock"
    async with serving(server_env, mode=era) as server:
        tools = (await server.client.list_tools()).tools
        assert "shell_run" in {tool.name for tool in tools}
        for tool, arguments in (("shell_run", {"command": "true"}), ("box_create", {})):
            said = await server.fail(tool, **arguments)
            assert "No container engine answers at unix:///nonexistent/engine.sock" in said
            assert "Start Docker" in said
            assert "`box-mcp doctor`" in said
        assert (await server.tell("box_list"))["boxes"] == []


async def test_a_server_whose_client_hangs_up_ends_at_once_and_quietly(server_env: dict[str, str]):
    async with serving(server_env) as server:
        await server.client.list_tools()
        process, log = server.process, server.log
    assert not process.is_running()
    assert "Traceback" not in log.read_text()


async def test_a_client_that_hangs_up_gives_its_call_up_and_the_next_one_is_told(
    server_env: dict[str, str],
):
    about = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "a test", "version": "1"},
    }
    slow = {"name": "shell_run", "arguments": {"command": "echo begun; echo $$ > slow; sleep 300"}}
    messages: list[dict[str, Any]] = [
        {"id": 0, "method": "initialize", "params": about},
        {"method": "notifications/initialized"},
        {"id": 1, "method": "tools/call", "params": slow},
    ]
    lines = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)
    async with serving(server_env, *SESSION) as watching:
        await watching.hostname()
        async with await anyio.open_process([*COMMAND, *SESSION], env=server_env) as leaving:
            assert leaving.stdin is not None
            await leaving.stdin.send(lines.encode())
            pid = await watching.pid_in("slow")
            await leaving.stdin.aclose()
            assert await leaving.wait() == 0
        assert not await watching.lives(pid)
        known = await watching.say("process_list")
        (ended,) = re.findall(r"^(p\d+) .*its call was given up", known, re.MULTILINE)
        assert "begun" in await watching.say("process_output", id=ended)


async def _in(lines: list[str | None], shown: str) -> bool:
    with contextlib.suppress(ValueError):
        return lines.index(shown) >= 0
    return False
