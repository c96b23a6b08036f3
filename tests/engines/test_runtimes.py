"""Boxes on another OCI runtime, and on an engine that remaps users: walls hold there, too."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.engines.base import Condition
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.isolation import MASKED_PATHS, Isolation
from tests.support.engines import Workshop, channel_to, run, said, workshop
from tests.support.second_engine import SUBORDINATE
from tests.support.walls import ATTACKS, SHOWN, WRITABLE, allowed_calls, as_root, refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from box_mcp.channel import Channel
    from tests.support.second_engine import Machine


@asynccontextmanager
async def shop_on(
    machine: Machine, options: Isolation | None = None
) -> AsyncGenerator[Workshop, None]:
    """Boxes on the machine's engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", machine.host)
        async with workshop(DockerEngine(options)) as shop:
            yield shop
    machine.recover()
    machine.clear()


async def lives(shop: Workshop) -> None:
    """Makes boxes with and without sudo, and does to them all that is done to boxes."""
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        assert await said(channel, "id -un; sudo -n id -u; stat -c %U . /opt/box_mcp") == (
            "box\n0\nbox\nroot"
        )
        await walls_hold(channel)
        await said(channel, "echo kept > kept; sudo sh -c 'echo roots > /etc/roots'")
        async with anyio.create_task_group() as group:
            group.start_soon(run, channel, "sleep 1; touch woken")
            await shop.engine.freeze(box)
            assert await shop.condition(box) is Condition.FROZEN
            await shop.engine.thaw(box)
        assert await said(channel, "ls kept woken") == "kept\nwoken"
    saved = await shop.engine.save(box, None, {})
    await shop.engine.stop(box)
    await shop.engine.start(box)
    copy = await shop.running(image=saved.image)
    for one in (box, copy):
        async with channel_to(shop.engine, one) as channel:
            assert await said(channel, "cat kept /etc/roots") == "kept\nroots"
            assert await said(channel, "stat -c %U kept /etc/roots") == "box\nroot"
    strict = await shop.running(sudo=False)
    async with channel_to(shop.engine, strict) as channel:
        assert (await run(channel, "sudo -n true")).failed
        status = "cat /proc/[0-9]*/status 2>/dev/null | grep -E '^({})' | cut -f2 | sort -u | xargs"
        assert await said(channel, status.format("CapEff|CapPrm|CapBnd")) == "0000000000000000"
        assert await said(channel, status.format("NoNewPrivs")) == "1"


async def walls_hold(channel: Channel) -> None:
    """What `test_isolation` looks at one by one."""
    allowed = [
        name for name, attack in ATTACKS.items() if not await refused(channel, f"sudo -n {attack}")
    ]
    assert allowed == []
    assert await allowed_calls(channel) == []
    assert await as_root(channel, WRITABLE) == ""
    assert await as_root(channel, SHOWN.format(paths=MASKED_PATHS)) == ""
    assert await said(channel, "sudo find / -xdev -type b") == ""
    assert await said(channel, "cut -d: -f3 /proc/1/cgroup | sort -u") == "/"


async def test_boxes_live_on_crun_and_its_walls_hold(host: Machine):
    if shutil.which("crun") is None:
        pytest.skip("crun is not installed")
    async with shop_on(host, Isolation(runtime="crun")) as shop:
        await lives(shop)
        used = host.docker("inspect", "-f", "{{.HostConfig.Runtime}}", *shop.made)
        assert set(used.split()) == {"crun"}


async def test_boxes_live_on_an_engine_that_remaps_users_and_their_root_is_not_the_hosts(
    host: Machine,
):
    host.stop_engine()
    host.start_engine(remapped=True)
    host.load_image()
    async with shop_on(host) as shop:
        await lives(shop)
        async with channel_to(shop.engine, shop.made[0]) as channel:
            ids = (await said(channel, "cat /proc/self/uid_map")).split()
            assert ids[:2] == ["0", str(SUBORDINATE)]
