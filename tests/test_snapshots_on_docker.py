"""Snapshots and forks on a real engine: over crashes, in crowds, and two hundred times in a row."""

from __future__ import annotations

import itertools
import json
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import to_thread

from box_mcp.app import backend
from box_mcp.domain.catalogue import Order
from box_mcp.domain.names import LOCAL, Principal
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.isolation import Isolation
from box_mcp.engines.saving import MAX_LAYERS
from box_mcp.errors import NameTaken, SnapshotNotFound
from box_mcp.lifecycle import Caller
from box_mcp.settings import Settings
from tests.support.client import Server, serving
from tests.support.engines import IMAGE, RUN, Workshop, channel_to, said, workshop
from tests.support.second_engine import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.second_engine import Machine

TIMES = 200
STARTED_EVERY = 20
ABOUT = {"box_mcp.snapshot": "{}"}
SESSION = ("--session", "shared")
LARGE = "head -c 200M /dev/urandom > large; sha256sum large > sum"
"""Takes the engine some of a second to save."""


@asynccontextmanager
async def shop_on(host: Machine, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Workshop]:
    """A workshop on that machine."""
    monkeypatch.setenv("DOCKER_HOST", host.host)
    async with workshop(DockerEngine(Isolation(owner=f"test-{RUN}"))) as shop:
        yield shop


async def names(server: Server) -> list[str]:
    """The snapshots that there are."""
    return [one["name"] for one in (await server.tell("snapshot_list"))["snapshots"]]


def make_none(*_: object) -> None:
    """In the place of a network, which takes the engine longer than all else.

    Boxes that are started get one all the same: theirs seem to have been pruned.
    """


@pytest.mark.timeout(300)
async def test_a_box_that_was_saved_and_restored_two_hundred_times_in_a_row_still_works(
    host: Machine, host_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(DockerEngine, "_create_guarded_network", make_none)
    before = host.images()
    async with shop_on(host, monkeypatch) as shop:
        engine = shop.engine
        assert isinstance(engine, DockerEngine)
        api: Any = engine.api
        box, layers = await shop.created(), [0]
        async with anyio.create_task_group() as background:
            for number in range(1, TIMES + 1):
                if number % STARTED_EVERY == 0:
                    await engine.start(box)
                    async with channel_to(engine, box) as channel:
                        await said(channel, f"touch {number}")
                saved = await engine.save(box, f"number-{number}", ABOUT)
                about = await to_thread.run_sync(api.inspect_image, saved.image)
                layers.append(len(about["RootFS"]["Layers"]))
                background.start_soon(engine.delete, box)
                box = await shop.created(image=saved.image)
                background.start_soon(engine.drop, saved.image)
        await engine.start(box)
        async with channel_to(engine, box) as channel:
            files = (await said(channel, "ls")).split()
        assert {int(name) for name in files} == {*range(STARTED_EVERY, TIMES + 1, STARTED_EVERY)}
        assert max(layers) <= MAX_LAYERS
        flattened = [now for last, now in itertools.pairwise(layers) if now < last]
        assert flattened == [1, 1]
        await engine.delete(box)
        assert await engine.saved() == []
        assert host.images() == before


async def test_two_snapshots_of_a_box_at_once_and_under_a_running_command_are_both_whole(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as one, serving(host_env, *SESSION) as two:
        await one.run("head -c 100M /dev/urandom > large")  # lies between the two that are written
        write = "echo $i > new; mv new first; echo $i > new; mv new second"
        writer = f"i=0; until [ -e stop ]; do i=$((i + 1)); {write}; done"
        before = 0
        async with anyio.create_task_group() as group:
            group.start_soon(partial(one.run, writer))
            await two.pid_in("second")
            async with anyio.create_task_group() as savers:
                for server, name in ((one, "a"), (one, "b"), (two, "c")):
                    savers.start_soon(partial(server.tell, "snapshot_create", name=name))
            assert sorted(await names(one)) == ["a", "b", "c"]
            before = await number(two, "second")
            await two.run("touch stop")
        assert await number(one, "second") >= before
        for name in ("a", "b", "c"):
            await one.tell("box_create", name=name, snapshot=name)
            first, second = [await number(one, file, box=name) for file in ("first", "second")]
            assert first - 1 <= second <= first
            assert 0 < second <= before
            await one.say("snapshot_delete", name=name)


async def number(server: Server, file: str, **arguments: str) -> int:
    """What the file holds."""
    return int((await server.run(f"cat {file}", **arguments)).split()[-1])


async def test_of_two_snapshots_of_one_name_at_once_one_is_refused_and_nothing_is_left_of_it(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as one, serving(host_env, *SESSION) as two:
        await one.run("true")
        answers: list[bool] = []

        async def save(server: Server) -> None:
            result = await server.call("snapshot_create", name="it")
            answers.append(bool(result.is_error))

        async with anyio.create_task_group() as group:
            for server in (one, two):
                group.start_soon(save, server)
        assert sorted(answers) == [False, True]
        assert await names(two) == ["it"]
        await two.say("snapshot_delete", name="it")
        assert len(host.images()) == 1


@pytest.mark.parametrize("way", ["committed", "flattened"])
async def test_a_snapshot_whose_server_was_killed_over_it_is_whole_or_not_there(
    host: Machine, host_env: dict[str, str], way: str
):
    host_env["BOX_MCP_IMAGE"] = "test:image"
    host.docker("commit", host.docker("create", IMAGE, "true"), "test:image")
    host.docker("container", "prune", "-f")
    async with serving(host_env, *SESSION) as server:
        box = await server.hostname()
        await server.run(LARGE)
        if way == "flattened":  # as is all that has no image to be committed on
            await server.tell("box_pause", depth="stopped")
            host.docker("rmi", "-f", "test:image")
            await server.run("true")
        async with anyio.create_task_group() as group:
            saving = partial(host.await_event, "pause", box, time.time())
            group.start_soon(partial(server.call, "snapshot_create", name="it"))
            await to_thread.run_sync(saving)
            server.process.kill()
            group.cancel_scope.cancel()
    async with serving(host_env, *SESSION) as server:
        assert (await server.run("sha256sum -c sum")).endswith("large: OK\n")
        made = await names(server)
        assert made in ([], ["it"])
        if made:
            await server.tell("box_create", name="copy", snapshot="it")
            assert (await server.run("sha256sum -c sum", box="copy")).endswith("large: OK\n")
            await server.say("box_delete", box="copy")
            await server.say("snapshot_delete", name="it")
        await server.tell("snapshot_create", name="it")
        await server.say("snapshot_delete", name="it")
        await server.say("box_delete", box=box)
        host.docker("rmi", "test:image", check=False)
        await to_thread.run_sync(until, lambda: not host.leavings(), "the end of what is left")


async def test_a_snapshot_outlives_its_box_and_carries_its_settings(
    host: Machine, host_env: dict[str, str]
):
    host_env["BOX_MCP_PROFILES"] = json.dumps({"web": {"cwd": "/srv", "env": {"GREETING": "hi"}}})
    async with serving(host_env, *SESSION) as server:
        about = {"size": "small", "network": "none", "env": {"LINES": "two\nlines"}}
        await server.tell("box_create", name="it", profile="web", **about)
        await server.run("sudo touch kept || touch kept", box="it")
        await server.tell("snapshot_create", name="state", box="it")
        await server.say("box_delete", box="it")
        assert host.containers() == set()
    del host_env["BOX_MCP_PROFILES"]
    async with serving(host_env, *SESSION) as server:
        made = await server.tell("box_create", name="it", snapshot="state")
        assert (made["size"], made["network"]) == ("small", "none")
        look = "pwd; ls; ls /sys/class/net; printenv GREETING LINES"
        assert (await server.run(look, box="it")).endswith("/srv\nkept\nlo\nhi\ntwo\nlines\n")
        await server.say("snapshot_delete", name="state")


async def test_a_snapshot_belongs_to_its_principal(
    host: Machine, host_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOCKER_HOST", host.host)
    state = Path(host_env["BOX_MCP_STATE_DIR"])
    settings = Settings(image=IMAGE, state_dir=state, warm_min=0, warm_max=0)
    mine, others = (Caller(Principal(name), "talk") for name in (LOCAL, "somebody"))
    async with backend(settings) as running:
        lifecycle = running.lifecycle
        for caller in (mine, others):
            await lifecycle.create(caller, Order("it"))
        await lifecycle.snapshot(mine, "state", "it")
        assert await lifecycle.snapshots(others) == []
        with pytest.raises(SnapshotNotFound):
            await lifecycle.create(others, Order("copy", snapshot="state"))
        with pytest.raises(SnapshotNotFound):
            await lifecycle.delete_snapshot(others, "state")
        with pytest.raises(NameTaken):
            await lifecycle.snapshot(mine, "state", "it")
        await lifecycle.snapshot(others, "state", "it")
        await lifecycle.delete_snapshot(mine, "state")
        (left,) = await lifecycle.snapshots(others)
        assert left[0].principal == "somebody"
        await lifecycle.delete_snapshot(others, "state")


async def test_forks_are_made_side_by_side_with_all_settings_and_their_image_goes_with_the_last(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as server:
        await server.tell("box_create", name="it", size="small", env={"GREETING": "hi"})
        await server.run("echo kept > kept; nohup sleep 300 > /dev/null & echo $! > pid", box="it")
        forks = (await server.tell("box_fork", box="it", count=3))["boxes"]
        assert {box["size"] for box in forks} == {"small"}
        times = [host.times(box["id"]) for box in forks]
        assert max(created for created, _ in times) < max(started for _, started in times)
        assert sorted(created for created, _ in times)[1] < min(started for _, started in times)
        for box in forks:
            look = "cat kept; printenv GREETING; kill -0 $(cat pid) 2>/dev/null || echo alone"
            assert (await server.run(look, box=box["id"])).endswith("kept\nhi\nalone\n")
            assert await names(server) == []
        assert await server.lives(await server.pid_in("pid", box="it"), box="it")
        for left, box in zip((2, 2, 1), forks, strict=True):
            await server.say("box_delete", box=box["id"])
            assert len(host.images()) == left


async def test_changes_are_told_since_the_start_and_since_the_snapshot(
    host: Machine, host_env: dict[str, str]
):
    async with serving(host_env, *SESSION) as server:
        await server.run(
            "echo old > changed; touch deleted same; sudo rm /etc/motd || rm /etc/motd"
        )
        said = (await server.say("box_changes")).splitlines()
        for line in ("A /workspace/changed", "A /workspace/deleted", "D /etc/motd"):
            assert line in said
        await server.tell("snapshot_create", name="state")
        await server.tell("box_create", name="it", snapshot="state")
        assert await server.say("box_changes", box="it") == "[0 changed paths under /]"
        await server.run("set -e; echo new > changed; rm deleted; touch added", box="it")
        await server.tell("box_pause", box="it", depth="stopped")
        assert (await server.say("box_changes", box="it", under="/workspace")).splitlines() == [
            "[4 changed paths under /workspace]",
            "M /workspace",
            "A /workspace/added",
            "M /workspace/changed",
            "D /workspace/deleted",
        ]
        await server.say("snapshot_delete", name="state")
