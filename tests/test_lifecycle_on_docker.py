"""The lifecycle's tools over stdio, on real Docker, by one server and by several."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.engines.saving import SAVED_LABEL
from box_mcp.settings import Settings
from tests.support import client
from tests.support.client import Server, container_state, docker, remove_boxes, serving, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator


@pytest.fixture
def env(server_env: dict[str, str], tmp_path: Path) -> Generator[dict[str, str], None, None]:
    """A server's variables; snapshots that a test leaves go with its boxes."""
    yield server_env
    remove_boxes(tmp_path)
    owner = Settings(state_dir=Path(server_env["BOX_MCP_STATE_DIR"])).isolation().owner
    if left := docker("images", "-q", "--filter", f"label={SAVED_LABEL}={owner}").split():
        docker("rmi", "-f", *dict.fromkeys(left))


async def test_a_box_is_made_as_ordered(env: dict[str, str]):
    async with serving(env) as server:
        made = await server.tell(
            "box_create",
            name="web",
            size="small",
            env={"GREETING": "hello"},
            setup="echo $GREETING > setup-was-here",
            labels={"for": "tests"},
            ttl=3600,
            keep_awake=True,
            network="none",
        )
        assert (made["name"], made["size"], made["network"]) == ("web", "small", "none")
        assert made["labels"] == {"for": "tests"}
        await until(noted(server, "web", "kept awake as asked for"), "the end of its setup")
        said = await server.run("cat setup-was-here; ls /sys/class/net", box="web")
        assert said.endswith("hello\nlo\n")
        again = await server.tell("box_create", name="web", reuse=True)
        assert again["id"] == made["id"]
        assert "was there already" in again["note"]
        assert "is taken already" in await server.fail("box_create", name="web")


async def test_a_setup_that_fails_is_told_with_its_output_and_the_box_stays(env: dict[str, str]):
    async with serving(env) as server:
        await server.tell("box_create", name="it", setup="echo trouble; touch half-done; exit 3")
        said = await server.run("ls", box="it")
        assert "[the setup of this box failed with exit status 3" in said
        assert "trouble\n" in said
        assert said.endswith("half-done\n")
        assert "setup" not in await server.run("true", box="it")


async def test_a_snapshot_is_made_listed_restored_and_deleted(env: dict[str, str]):
    async with serving(env) as server:
        await server.tell("box_create", name="it")
        await server.run("echo saved > file", box="it")
        made = await server.tell("snapshot_create", name="state", box="it")
        assert made["size_mib"] > made["added_mib"] > 0
        await server.say("box_delete", box="it")
    async with serving(env) as server:
        (listed,) = (await server.tell("snapshot_list"))["snapshots"]
        assert listed["name"] == "state"
        box = (await server.tell("box_create", snapshot="state"))["id"]
        assert (await server.run("cat file", box=box)).endswith("saved\n")
        await server.say("snapshot_delete", name="state")
        assert (await server.tell("snapshot_list"))["snapshots"] == []
        assert "You have no snapshot 'state'" in await server.fail("box_create", snapshot="state")
        await server.say("box_pause", box=box, depth="stopped")
        assert (await server.run("cat file", box=box)).endswith("saved\n")


async def test_forks_start_from_one_state_and_differ_from_then_on(env: dict[str, str]):
    async with serving(env) as server:
        await server.tell("box_create", name="it")
        await server.run("echo origin > file", box="it")
        forks = [box["id"] for box in (await server.tell("box_fork", box="it", count=3))["boxes"]]
        async with anyio.create_task_group() as group:
            for fork in forks:
                group.start_soon(say_who, server, fork)
        for fork in forks:
            assert (await server.run("cat file", box=fork)).endswith(f"origin\n{fork}\n")
        assert (await server.run("cat file", box="it")).endswith("]\norigin\n")


async def say_who(server: Server, box: str) -> None:
    await server.run(f"echo {box} >> file", box=box)


async def test_changes_are_listed(env: dict[str, str]):
    async with serving(env) as server:
        await server.run("touch added; sudo rm /etc/motd; echo >> ~/.profile")
        said = await server.say("box_changes")
        for line in ("A /workspace/added", "D /etc/motd", "M /home/box/.profile"):
            assert line in said.splitlines()
        said = await server.say("box_changes", under="/workspace")
        assert said == "[2 changed paths under /workspace]\nM /workspace\nA /workspace/added"


async def test_memory_is_really_given_back_when_a_box_stops(env: dict[str, str]):
    async with serving(env) as server:
        hog = "python3 -c 'import time; x = b\"x\" * 60_000_000; print(flush=True); time.sleep(99)'"
        await server.run(f"(nohup {hog} 2>&1 &) | head -n 1")
        assert (await server.tell("box_info"))["memory_held_mib"] > 57
        await server.tell("box_pause")
        frozen = await server.tell("box_info")
        assert frozen["memory_held_mib"] > 57
        assert "processes and memory are kept" in frozen["note"]
        await server.tell("box_resume")
        await server.tell("box_pause", depth="stopped")
        assert (await server.tell("box_info"))["memory_held_mib"] == 0


async def test_a_limit_on_running_boxes_freezes_the_idle_and_queues_the_rest(env: dict[str, str]):
    env |= {"BOX_MCP_MAX_RUNNING": "1", "BOX_MCP_QUEUE_TIMEOUT": "2"}
    async with serving(env) as server:
        first = (await server.tell("box_create", name="first"))["id"]
        async with anyio.create_task_group() as group:
            group.start_soon(partial(server.call, "shell_run", command="sleep 60", box="first"))
            await until(noted(server, "first", "commands run"), "a command runs")
            said = await server.fail("box_create", name="second")
            assert "The limit of 1 running boxes is reached" in said
            group.cancel_scope.cancel()
        await anyio.sleep(5.5)  # a box that was just used is not paused for another
        await server.tell("box_create", name="second")
        assert container_state(first) == "paused"


def noted(server: Server, box: str, words: str) -> Callable[[], Awaitable[bool]]:
    """Whether a note on a box has these words; its daemon tells when commands begin and end."""

    async def look() -> bool:
        return words in (await server.tell("box_info", box=box))["note"]

    return look


# Several servers


async def test_four_servers_share_boxes_and_spares_and_one_that_is_killed_is_not_missed(
    env: dict[str, str],
):
    env["BOX_MCP_WARM_MAX"] = "1"
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(env)) for _ in range(4)]
        box = (await servers[0].tell("box_create", name="shared"))["id"]
        for number, server in enumerate(servers):
            await server.run(f"echo {number} >> file", box="shared")
        os.kill(servers[0].process.pid, signal.SIGKILL)
        for server in servers[1:]:
            assert (await server.run("cat file", box=box)).endswith("0\n1\n2\n3\n")
        await servers[1].say("box_delete", box="shared")
        assert "You have no box" in await servers[2].fail("shell_run", command="true", box=box)


async def test_a_box_in_a_call_of_one_server_is_neither_paused_nor_deleted_by_another(
    env: dict[str, str],
):
    async with serving(env) as one, serving(env) as two:
        await one.tell("box_create", name="it")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(one.call, "shell_run", command="sleep 60", box="it"))
            await until(noted(one, "it", "commands run"), "a command runs")
            for tool in ("box_pause", "box_delete"):
                said = await two.fail(tool, box="it")
                assert "in use by a call of another server" in said
            os.kill(one.process.pid, signal.SIGKILL)
            group.cancel_scope.cancel()
        await two.tell("box_pause", box="it", depth="stopped")
        await two.say("box_delete", box="it")


async def test_what_a_killed_server_left_running_is_paused_by_another(env: dict[str, str]):
    env["BOX_MCP_PAUSE_AFTER"] = "3"
    async with serving(env) as one, serving(env):
        box = (await one.tell("box_create"))["id"]
        os.kill(one.process.pid, signal.SIGKILL)

        async def paused() -> bool:
            return container_state(box) == "paused"

        await until(paused, "the other server pauses it")


PATIENT = "from box_mcp import app, cli, pool; pool.EXIT_GRACE = app.TIDY_TIMEOUT = 20; cli.main()"
"""A server that a busy engine does not keep from tidying up when it ends."""


async def test_frozen_boxes_do_not_keep_their_memory_when_the_last_server_has_ended(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client, "COMMAND", [sys.executable, "-c", PATIENT, "serve"])
    async with serving(env) as server:
        box = (await server.tell("box_create"))["id"]
        await server.tell("box_pause", box=box)
        assert container_state(box) == "paused"
    assert container_state(box) == "exited"
