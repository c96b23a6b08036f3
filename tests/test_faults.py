"""What a client hears when something is killed, paused or taken away under its call, and after."""

from __future__ import annotations

import json
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import anyio

from tests.support.client import (
    COMMAND,
    PATIENCE,
    container_state,
    docker,
    kill_boxd,
    serving,
    under_way,
    until,
)
from tests.support.proxy import engine_proxy

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import SocketStream

SESSION = ("--session", "shared")

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}
RUN_TRUE = {
    "jsonrpc": "2.0",
    "id": 2,
    "method": "tools/call",
    "params": {"name": "shell_run", "arguments": {"command": "true"}},
}


async def test_a_killed_boxd_is_told_and_the_next_call_finds_the_files(shared_env: dict[str, str]):
    async with serving(shared_env, *SESSION) as server:
        box = await server.hostname()
        async with under_way(server) as call:
            kill_boxd(box)
        assert call.failed
        assert f"The box {box} went away during the call: its daemon ended." in call.answer
        assert "Files written so far are kept; processes in the box may have ended." in call.answer
        assert "Repeat the call" in call.answer
        after = await server.run("cat kept")
        assert "its files survived, its processes did not" in after
        assert after.endswith("kept\n")


async def test_a_killed_container_is_told_and_the_next_call_finds_the_files(
    shared_env: dict[str, str],
):
    async with serving(shared_env, *SESSION) as server:
        box = await server.hostname()
        async with under_way(server) as call:
            docker("kill", box)
        assert call.failed
        assert f"The box {box} went away during the call" in call.answer
        after = await server.run("cat kept")
        assert "its files survived, its processes did not" in after
        assert after.endswith("kept\n")


async def test_a_killed_server_leaves_its_command_to_the_next_server(shared_env: dict[str, str]):
    async with serving(shared_env, *SESSION) as server:
        script = "echo $$ > running; echo first; until [ -e go ]; do sleep .02; done; echo second"
        await server.run("rm -f go")
        async with under_way(server, script) as call:
            pid = await server.pid_in("running")
            box = await server.hostname()
            started = docker("inspect", "-f", "{{.State.StartedAt}}", box)
            server.process.kill()
        assert [error.error.message for error in call.errors] == ["Connection closed"]
    async with serving(shared_env, *SESSION) as another:
        assert await another.hostname() == box
        assert docker("inspect", "-f", "{{.State.StartedAt}}", box) == started
        assert await another.lives(pid)
        log = (await another.run("grep -lx first /var/log/box_mcp/*.log")).split()[-1]
        await another.run("touch go")

        async def logged() -> bool:
            return (await another.run(f"cat {log}")).endswith("]\nfirst\nsecond\n")

        await until(logged, "the end of the command in its log")

        async def gone() -> bool:
            return not await another.lives(pid)

        await until(gone, "the end of the command")


async def test_a_container_frozen_under_a_call_is_told_and_woken_by_the_next(
    shared_env: dict[str, str],
):
    async with serving(shared_env, *SESSION) as server:
        box = await server.hostname()
        # Long enough for what is done in the block, or the call returns before that.
        async with under_way(server, yield_after=4) as call:
            pid = await server.pid_in("running")
            docker("pause", box)
        assert call.failed
        assert f"The box {box} went away during the call: it gave no answer within" in call.answer
        assert (await server.run("cat kept")).endswith("kept\n")
        assert await server.lives(pid)
        await server.run(f"kill {pid}")


async def test_a_container_stopped_between_two_calls_is_started_again(shared_env: dict[str, str]):
    async with serving(shared_env, *SESSION) as server:
        box = await server.hostname()
        await server.run("echo kept > kept")
        docker("stop", "-t", "0", box)
        await server.misses()
        after = await server.run("cat kept")
        assert "its files survived, its processes did not" in after
        assert after.endswith("kept\n")


async def test_a_container_frozen_and_stopped_boxes_wake_for_another_server(
    shared_env: dict[str, str],
):
    async with serving(shared_env, *SESSION) as server:
        box = await server.hostname()
        await server.run("echo kept > kept")
    docker("pause", box)
    async with serving(shared_env, *SESSION) as another:
        assert (await another.run("cat kept")).endswith("kept\n")
        assert container_state(box) == "running"
    docker("stop", "-t", "0", box)
    async with serving(shared_env, *SESSION) as another:
        assert (await another.run("cat kept")).endswith("kept\n")


async def test_a_removed_container_is_told_as_lost_and_the_session_gets_a_new_box(
    server_env: dict[str, str],
):
    async with serving(server_env, *SESSION) as server:
        named = await server.tell("box_create", name="named")
        docker("rm", "-f", named["id"])
        await server.misses(box="named")
        said = await server.fail("shell_run", command="true", box="named")
        assert f"The box {named['id']} is lost: " in said
        assert "Its files are gone with it" in said
        assert "Make a new box with `box_create`" in said
        assert (await server.tell("box_info", box="named"))["state"] == "lost"
        await server.say("box_delete", box="named")

        own = await server.hostname()
        async with under_way(server) as call:
            docker("rm", "-f", own)
        assert call.failed
        assert f"The box {own} went away during the call" in call.answer
        assert f"The box {own} is lost: " in await server.fail("shell_run", command="true")
        assert "[made the box " in await server.run("true")
        assert await server.hostname() != own


async def test_an_engine_that_goes_away_is_told_and_its_return_is_enough(
    server_env: dict[str, str], tmp_path: Path
):
    async with engine_proxy(tmp_path / "engine.sock") as (proxy, mend):
        server_env["DOCKER_HOST"] = proxy.host
        async with serving(server_env, *SESSION) as server:
            box = await server.hostname()
            async with under_way(server) as call:
                pid = await server.pid_in("running")
                proxy.cut()
            assert call.failed
            assert f"The box {box} went away during the call" in call.answer
            said = await server.fail("shell_run", command="true")
            assert f"No container engine answers at {proxy.host}" in said
            assert "Boxes and their files are untouched. Start Docker" in said
            await mend()
            assert (await server.run("cat kept")).endswith("kept\n")
            assert await server.lives(pid)
            assert await server.hostname() == box


async def test_a_server_whose_engine_never_answers_still_ends_when_its_client_hangs_up(
    server_env: dict[str, str], tmp_path: Path
):
    asked = anyio.Event()

    async def keep_waiting(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            asked.set()
            await anyio.sleep_forever()

    server_env["DOCKER_HOST"] = f"unix://{tmp_path / 'engine'}"
    listener = await anyio.create_unix_listener(tmp_path / "engine")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, keep_waiting)
        async with await anyio.open_process(COMMAND, env=server_env, stderr=DEVNULL) as server:
            assert server.stdin is not None
            for message in (INITIALIZE, INITIALIZED, RUN_TRUE):
                await server.stdin.send(json.dumps(message).encode() + b"\n")
            with anyio.fail_after(PATIENCE):
                await asked.wait()
            await server.stdin.aclose()
            with anyio.fail_after(PATIENCE / 3):  # the engine's own time-out is far longer
                assert await server.wait() == 0
        group.cancel_scope.cancel()


async def test_a_full_disk_in_the_box_is_told_and_nothing_is_lost(shared_env: dict[str, str]):
    async with serving(shared_env, *SESSION) as server:
        await server.run("echo old > /dev/shm/file")
        filled = await server.run("cat /dev/zero > /dev/shm/filler; true")
        assert "No space left on device" in filled
        said = await server.fail("file_write", path="/dev/shm/file", content="new" * 100_000)
        assert "No space left on device" in said
        assert (await server.run("cat /dev/shm/file; rm /dev/shm/filler")).endswith("old\n")


async def test_a_boxd_killed_again_and_again_comes_back_each_time(shared_env: dict[str, str]):
    async with serving(shared_env, *SESSION) as server:
        box = await server.hostname()
        for turn in range(3):
            await server.run(f"echo {turn} >> turns")
            kill_boxd(box)
            await server.misses()
        assert (await server.run("cat turns; rm turns")).endswith("0\n1\n2\n")
        assert await server.hostname() == box
