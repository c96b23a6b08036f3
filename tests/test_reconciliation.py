"""What becomes of boxes when engine, host or somebody else changes things behind the server's back.

All of it on a machine of the tests' own, whose engine may fail as it likes.
"""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio import to_thread

from box_mcp import roster, worker
from box_mcp.app import backend
from box_mcp.domain.catalogue import Order
from box_mcp.domain.names import LOCAL
from box_mcp.domain.plan import TRUST, Act
from box_mcp.engines.docker import DockerEngine
from box_mcp.errors import EngineStalled
from box_mcp.lifecycle import Caller
from box_mcp.settings import Settings
from tests.support.client import serving, text, under_way
from tests.support.client import until as until_true
from tests.support.engines import IMAGE, PATIENCE
from tests.support.second_engine import until

if TYPE_CHECKING:
    from tests.support.second_engine import Machine

SESSION = ("--session", "shared")
STARTED_AGAIN = "its files survived, its processes did not"
ME = Caller(LOCAL, "talk")
STALL = 15.0
"""Seconds: longer than the hastiest call waits, and shorter than all others."""
UNTOUCHED = "Boxes and their files are untouched"


async def test_after_the_host_lost_its_power_a_new_server_finds_all_boxes_stopped(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as server:
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
    async with serving(host_env, *SESSION) as server:
        listed = {box["name"]: box for box in (await server.tell("box_list"))["boxes"]}
        for name in NAMES:
            assert listed[name]["id"] == boxes[name]
            assert (listed[name]["state"], listed[name]["depth"]) == ("paused", "stopped")
            said = await server.run("cat file", box=name)
            assert STARTED_AGAIN in said
            assert said.endswith(f"{name}\n")


NAMES = ("running", "frozen", "stopped")


async def test_an_engine_that_is_restarted_ends_processes_and_keeps_files(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as server:
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
    host: Machine, host_env: dict[str, str]
):
    host.stop_engine()
    host.start_engine(live_restore=True)
    async with serving(host_env, *SESSION) as server:
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


@pytest.mark.parametrize("live_restore", [False, True])
async def test_an_engine_that_was_killed_is_told_and_after_its_return_all_files_are_there(
    host: Machine, host_env: dict[str, str], live_restore: bool
):
    if live_restore:
        host.stop_engine()
        host.start_engine(live_restore=True)
    async with serving(host_env, *SESSION) as server:
        own = await server.hostname()
        await server.tell("box_create", name="frozen")
        await server.run("echo frozen > file", box="frozen")
        await server.tell("box_pause", box="frozen")
        async with under_way(server) as call:
            pid = await server.pid_in("running")
            await to_thread.run_sync(host.stop_engine, signal.SIGKILL)
        assert call.failed
        assert f"The box {own} went away during the call" in call.answer
        assert "Repeat the call" in call.answer
        assert UNTOUCHED in await server.fail("shell_run", command="true", box="frozen")
        host.start_engine(live_restore=live_restore)
        after = await server.run("cat kept")
        assert after.endswith("kept\n")
        frozen = await server.run("cat file", box="frozen")
        assert frozen.endswith("frozen\n")
        assert [STARTED_AGAIN in said for said in (after, frozen)] == [not live_restore] * 2
        assert not live_restore or await server.lives(pid)
        assert await server.hostname() == own
        assert len(host.containers()) == 2


async def test_an_engine_that_stalls_for_a_while_holds_calls_up_and_nothing_is_done_twice(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as server:
        for name in ("idle", "hasty"):
            await server.tell("box_create", name=name)
            await server.run("echo kept > kept", box=name)
        await anyio.sleep(TRUST + 0.5)
        for box in (None, "hasty"):
            await server.run("true", box=box)
        said: dict[str, str] = {}

        async def call(what: str, tool: str, **arguments: object) -> None:
            said[what] = text(await server.call(tool, **arguments))

        run, once = partial(call, tool="shell_run"), "echo once >> log; cat log"
        async with anyio.create_task_group() as group:
            with host.stalled():
                group.start_soon(partial(run, "own", command=once))
                group.start_soon(partial(run, "hasty", command=once, box="hasty", yield_after=1))
                group.start_soon(partial(run, "idle", command="cat kept", box="idle"))
                group.start_soon(partial(call, "new", "box_create", name="new"))
                group.start_soon(partial(call, "saved", "snapshot_create", name="it", box="idle"))
                group.start_soon(partial(call, "list", "box_list"))
                await anyio.sleep(STALL)
                assert list(said) == ["hasty"]
        assert "went away during the call: it gave no answer within 11 s" in said["hasty"]
        assert "Check first what the interrupted call already did" in said["hasty"]
        assert said["own"].endswith("]\nonce\n")
        assert said["idle"].endswith("]\nkept\n")
        for box in (None, "hasty"):
            assert (await server.run("cat log", box=box)).endswith("]\nonce\n")
        boxes = (await server.tell("box_list"))["boxes"]
        assert {box["state"] for box in boxes} == {"running"}
        assert len(boxes) == len(host.containers()) == len(host.networks()) == 4
        await server.say("snapshot_delete", name="it")
        assert len(host.images()) == 1


async def test_an_engine_that_stalls_for_too_long_is_told_and_leaves_nothing_half_made(
    host: Machine, host_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(roster, "ACT_RETRY", 3.0)
    monkeypatch.setattr(worker, "ACT_RETRY", 3.0)
    monkeypatch.setenv("DOCKER_HOST", host.host)
    state = Path(host_env["BOX_MCP_STATE_DIR"])
    settings = Settings(image=IMAGE, state_dir=state, warm_max=0, warm_min=0)
    engine = DockerEngine(settings.isolation(), timeout=1)
    await to_thread.run_sync(lambda: engine.api)  # whose first call asks for a version
    monkeypatch.setattr(engine, "_timeout", PATIENCE)
    async with backend(settings, engine=engine) as running:
        lifecycle = running.lifecycle
        await lifecycle.create(ME, Order("it"))
        await lifecycle.pause(ME, "it", Act.FREEZE)
        with host.stalled(), pytest.MonkeyPatch.context() as impatient:
            impatient.setattr(engine, "_timeout", 1)
            for request in (
                lambda: lifecycle.resume(ME, "it"),
                lambda: lifecycle.create(ME, Order("new")),
                lambda: lifecycle.snapshot(ME, "state", "it"),
            ):
                with pytest.raises(EngineStalled) as stall:
                    await request()
                assert "within 1 s" in stall.value.explain()
                assert UNTOUCHED in stall.value.explain()
            (report,) = await lifecycle.list(ME)
            assert report.notes[0].startswith("as last known: The container engine did not")
        await lifecycle.resume(ME, "it")
        assert [report.box.name for report in await lifecycle.list(ME)] == ["it"]
        await lifecycle.create(ME, Order("new"))

        def rest() -> bool:
            return len(host.containers()) == len(host.networks()) == 2

        await to_thread.run_sync(until, rest, "the end of what was begun")
        assert len(host.images()) == 1


async def test_boxes_live_on_without_their_image_and_a_new_one_names_the_remedy(
    host: Machine, host_env: dict[str, str]
):
    host_env["BOX_MCP_IMAGE"] = "test:standard"
    host.docker("commit", host.docker("create", IMAGE, "true"), "test:standard")
    host.docker("container", "prune", "-f")
    async with serving(host_env, *SESSION) as server:
        await server.run("echo kept > kept")
        await server.tell("box_pause", depth="stopped")
        host.docker("rmi", "-f", "test:standard")
        said = await server.fail("box_create", name="new")
        assert "The engine has no image 'test:standard'" in said
        assert "No box was made; existing boxes are untouched" in said
        assert "Build the standard image with `box-mcp image build`" in said
        assert len(host.containers()) == 1

        assert (await server.run("cat kept")).endswith("kept\n")
        assert "A /workspace/kept" in await server.say("box_changes")
        await server.tell("snapshot_create", name="state")
        await server.tell("box_create", name="restored", snapshot="state")
        look = "cat kept; id -un; pwd"
        restored = await server.run(look, box="restored")
        assert restored.endswith("kept\nbox\n/workspace\n")
        assert restored.split("]")[-1] == (await server.run(look)).split("]")[-1]
        await server.say("snapshot_delete", name="state")


async def test_a_snapshot_whose_image_was_deleted_is_no_more_and_its_boxes_live_on(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as server:
        await server.run("echo kept > kept")
        await server.tell("snapshot_create", name="state")
        await server.tell("box_create", name="restored", snapshot="state")
        await server.tell("box_pause", box="restored", depth="stopped")
        host.docker("rmi", "-f", host.docker("images", "-q", "--filter", "label=box_mcp.saved"))
        assert (await server.tell("snapshot_list"))["snapshots"] == []
        for tool, argument in (("box_create", "snapshot"), ("snapshot_delete", "name")):
            said = await server.fail(tool, **{argument: "state"})
            assert "You have no snapshot 'state'. `snapshot_list` shows yours." in said
        assert (await server.run("cat kept", box="restored")).endswith("kept\n")
        await server.tell("snapshot_create", name="state", box="restored")
        (copy,) = (await server.tell("box_fork", box="restored"))["boxes"]
        assert (await server.run("cat kept", box=copy["id"])).endswith("kept\n")


async def test_a_stopped_box_whose_network_was_pruned_gets_a_new_one(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as server:
        await server.run("echo kept > kept")
        await server.tell("box_create", name="offline", network="none")
        for box in (None, "offline"):
            await server.tell("box_pause", box=box, depth="stopped")
        host.docker("network", "prune", "-f")
        assert (await server.run("cat kept; ls /sys/class/net | wc -l")).endswith("kept\n2\n")
        assert (await server.run("ls /sys/class/net", box="offline")).endswith("]\nlo\n")


async def test_a_frozen_box_that_somebody_woke_stopped_or_removed_is_found_so(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as server:
        boxes = {name: (await server.tell("box_create", name=name))["id"] for name in MEDDLING}
        for name, acts in MEDDLING.items():
            await server.run("echo kept > kept", box=name)
            await server.tell("box_pause", box=name)
            for act in acts:
                host.docker(*act.split(), boxes[name])
        listed = {box["name"]: box for box in (await server.tell("box_list"))["boxes"]}
        assert {name: listed[name]["state"] for name in listed} == {
            "woken": "running",
            "stopped": "paused",
            "removed": "lost",
        }
        assert listed["stopped"]["depth"] == "stopped"

        async def idle() -> bool:  # as soon as its daemon has told that its command has ended
            return "idle, next: freeze" in (await server.tell("box_info", box="woken"))["note"]

        await until_true(idle, "idleness of the box that was woken")
        woken = await server.run("cat kept", box="woken")
        assert woken.endswith("kept\n")
        assert STARTED_AGAIN not in woken
        stopped = await server.run("cat kept", box="stopped")
        assert stopped.endswith("kept\n")
        assert STARTED_AGAIN in stopped
        removed = await server.fail("shell_run", command="true", box="removed")
        assert f"The box {boxes['removed']} is lost: " in removed
        assert "Its files are gone with it; snapshots and other boxes are untouched" in removed
        await server.say("box_delete", box="removed")


MEDDLING = {"woken": ["unpause"], "stopped": ["unpause", "kill"], "removed": ["rm -f"]}


async def test_boxes_of_a_server_that_was_killed_stop_by_themselves_and_frozen_ones_by_the_next(
    host: Machine, host_env: dict[str, str]
):
    host_env["BOX_MCP_ORPHAN_AFTER"] = "2"
    async with serving(host_env, *SESSION) as server:
        frozen = (await server.tell("box_create", name="frozen"))["id"]
        running = (await server.tell("box_create", name="running"))["id"]
        await server.run("echo kept > kept", box="frozen")
        await server.tell("box_pause", box="frozen")
        server.process.kill()
    # A daemon that is late by a second takes that for a freeze, and gives half a minute more.
    until(lambda: host.state(running) == "exited", "the end of the running box", 2 * PATIENCE)
    assert host.state(frozen) == "paused"
    async with serving(host_env, "--session", "of another client") as another:

        async def stopped() -> bool:
            return host.state(frozen) == "exited"

        await until_true(stopped, "the end of the frozen box")
        said = await another.run("cat kept", box="frozen")
        assert STARTED_AGAIN in said
        assert said.endswith("kept\n")
