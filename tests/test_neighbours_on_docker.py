"""A box that takes all it can get: its neighbour, the server and often it itself still answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from benchmarks.neighbours import ATTACKS
from tests.support.client import Server, container_state, serving, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

PATIENCE = 15.0
"""Seconds for a call that takes milliseconds when nothing else goes on."""


@pytest.fixture(scope="module")
async def server(shared_env: dict[str, str]) -> AsyncGenerator[Server, None]:
    """With two small boxes: one is quiet, one will not be."""
    async with serving({**shared_env, "BOX_MCP_SIZE": "small", "BOX_MCP_WARM_MAX": "0"}) as server:
        await server.say("box_create", name="quiet")
        await server.say("box_create", name="villain")
        await server.say("file_write", box="villain", path="kept", content="in time")
        yield server


@pytest.mark.parametrize("attack", ATTACKS)
async def test_nobody_else_is_held_up_for_long(attack: str, server: Server):
    started = await server.tell("box_resume", box="villain")
    await server.say("shell_run", box="villain", command=ATTACKS[attack], background=True)
    with anyio.fail_after(PATIENCE):
        for number in range(20):
            said = await server.run(f"echo {number}", box="quiet")
            assert said.endswith(f"\n{number}\n")
        await server.say("file_write", box="quiet", path="note", content=attack)
        assert attack in await server.say("file_read", box="quiet", path="note")
        assert "in time" in await server.say("file_read", box="villain", path="kept")
        assert (await server.tell("box_info", box="villain"))["id"] == started["id"]
    with anyio.fail_after(PATIENCE):
        await server.say("box_pause", box="villain", depth="stopped")
    assert "in time" in await server.say("file_read", box="villain", path="kept")
    await server.run("rm -rf filler i[0-9]*", box="villain")


async def test_a_box_that_fills_the_disk_is_stopped_and_its_next_call_hears_why(
    server_env: dict[str, str],
):
    settings = {"BOX_MCP_BOX_DISK": "0.25", "BOX_MCP_WARM_MAX": "0"}
    async with serving({**server_env, **settings}) as server:
        box = str((await server.tell("box_create", name="villain"))["id"])
        fill = "dd if=/dev/zero of=filler bs=1M count=600 conv=fsync; sleep infinity"
        await server.say("shell_run", box=box, command=fill, background=True)

        async def stopped() -> bool:
            return container_state(box) == "exited"

        await until(stopped, "its end")
        about = await server.tell("box_info", box=box)
        assert about["state"] == "paused"
        told = "more than the 0.2 GiB it may have"
        assert told in await server.say("box_info", box=box)
        heard = await server.run("rm filler; echo $?", box=box)
        assert told in heard
        assert heard.endswith("\n0\n")
        assert told not in await server.run("true", box=box)


async def test_holes_in_files_fill_no_disk(server: Server):
    await server.run("truncate -s 1T hole", box="quiet")
    assert (await server.tell("box_info", box="quiet"))["disk_held_mib"] < 1024
