"""What becomes of boxes when engine, host or somebody else changes things behind the server's back.

All of it on a machine of the tests' own, whose engine may fail as it likes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from anyio import to_thread

from box_mcp.domain.names import LOCAL
from box_mcp.lifecycle import Caller
from tests.support.client import fresh_state, serving, under_way
from tests.support.second_engine import Machine, machine, usable

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = pytest.mark.skipif(
    not usable, reason="a second engine takes root, dockerd, unshare and nsenter"
)

SESSION = ("--session", "shared")
STARTED_AGAIN = "its files survived, its processes did not"
ME = Caller(LOCAL, "talk")
STALL = 30.0
UNTOUCHED = "Boxes and their files are untouched"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Generator[Machine, None, None]:
    """A machine for all tests here."""
    with machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


@pytest.fixture
def env(host: Machine, tmp_path: Path) -> Generator[dict[str, str], None, None]:
    """Variables of a server on that machine, which is well and empty again afterwards."""
    with fresh_state(tmp_path) as env:
        env["DOCKER_HOST"] = host.host
        yield env
        host.recover()
        host.clear()


async def test_after_the_host_lost_its_power_a_new_server_finds_all_boxes_stopped(
    host: Machine, env: dict[str, str]
):
    async with serving(env, *SESSION) as server:
        boxes = {name: (await server.tell("box_create", name=name))["id"] for name in NAMES}
        for name in NAMES:
            await server.run(f"echo {name} > file; sync", box=name)
        await server.tell("box_pause", box="frozen")
        await server.tell("box_pause", box="stopped", depth="stopped")
        async with under_way(server) as call:
            await to_thread.run_sync(host.power_off)
        assert call.failed
        assert "went away during the call" in call.answer
        said = await server.fail("shell_run", command="true", box="frozen")
        assert f"No container engine answers at {host.host}" in said
        assert f"{UNTOUCHED}. Start Docker" in said
        server.process.kill()  # it would not have outlived its host
    host.power_on()
    host.start_engine()
    async with serving(env, *SESSION) as server:
        listed = {box["name"]: box for box in (await server.tell("box_list"))["boxes"]}
        for name in NAMES:
            assert listed[name]["id"] == boxes[name]
            assert (listed[name]["state"], listed[name]["depth"]) == ("paused", "stopped")
            said = await server.run("cat file", box=name)
            assert STARTED_AGAIN in said
            assert said.endswith(f"{name}\n")


NAMES = ("running", "frozen", "stopped")


async def test_an_engine_that_is_restarted_ends_processes_and_keeps_files(
    host: Machine, env: dict[str, str]
):
    async with serving(env, *SESSION) as server:
        own = await server.hostname()
        for name in ("frozen", "stopped"):
            await server.tell("box_create", name=name)
            await server.run(f"echo {name} > file", box=name)
        await server.tell("box_pause", box="frozen")
        await server.tell("box_pause", box="stopped", depth="stopped")
        async with under_way(server) as call:
            await to_thread.run_sync(host.stop_engine)
        assert call.failed
        assert f"The box {own} went away during the call" in call.answer
        assert "Files written so far are kept" in call.answer
        said = await server.fail("box_create", name="another")
        assert "No container engine answers at" in said
        assert UNTOUCHED in said
        host.start_engine()
        after = await server.run("cat kept")
        assert STARTED_AGAIN in after
        assert after.endswith("kept\n")
        for name in ("frozen", "stopped"):
            after = await server.run("cat file", box=name)
            assert STARTED_AGAIN in after
            assert after.endswith(f"{name}\n")
        await server.tell("box_create", name="another")
        assert len(host.containers()) == 4


async def test_an_engine_that_is_restarted_with_live_restore_leaves_processes_alone(
    host: Machine, env: dict[str, str]
):
    host.stop_engine()
    host.start_engine(live_restore=True)
    async with serving(env, *SESSION) as server:
        await server.tell("box_create", name="frozen")
        await server.run("nohup sleep 300 > /dev/null & echo $! > pid", box="frozen")
        frozen_pid = await server.pid_in("pid", box="frozen")
        await server.tell("box_pause", box="frozen")
        own = await server.hostname()
        async with under_way(server) as call:
            pid = await server.pid_in("running")
            await to_thread.run_sync(host.stop_engine)
        assert call.failed
        assert f"The box {own} went away during the call" in call.answer
        host.start_engine(live_restore=True)
        after = await server.run("cat kept")
        assert "processes did not" not in after
        assert after.endswith("kept\n")
        assert await server.lives(pid)
        assert await server.lives(frozen_pid, box="frozen")
