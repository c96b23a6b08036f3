"""Whether boxes can be had: what else goes wrong with the look ends no server."""

from __future__ import annotations

import anyio

from box_mcp.surface.http.health import FRESH, Readiness


async def test_a_look_that_fails_in_a_way_that_nobody_knows_is_no_more_than_a_no():
    now, trouble = [0.0], list[Exception]([RuntimeError("can't start new thread")])

    async def look() -> None:
        if trouble:
            raise trouble.pop()

    readiness = Readiness(look, now=lambda: now[0])
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            assert not await readiness.ready(group)
            now[0] += FRESH
            assert await readiness.ready(group)
