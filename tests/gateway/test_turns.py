"""How many requests of boxes are under way at once: of one box, of one principal, and in all."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import count
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.domain.box import Box, BoxSpec
from box_mcp.domain.names import BoxId, Principal
from box_mcp.gateway.serving import Serving
from box_mcp.gateway.turns import Limits, Refused, Shares, Turns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

LIMITS = Limits(turn=0.05, of_box=4, in_all=16)
SPEC = BoxSpec("image", 1, 1 << 30)


class Server:
    """Serves boxes, whose requests stay under way until all is over."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._serving = Serving(LIMITS, None)
        self._stack = stack
        self._numbers = count(10_000_000)

    async def box(self, who: str) -> Turns:
        """The turns of one box more."""
        box = Box(BoxId(f"box-{next(self._numbers)}"), SPEC, 1.0, principal=Principal(who))
        made: list[Turns] = []

        def host(_: object, turns: Turns) -> object:
            made.append(turns)
            return None

        await self._stack.enter_async_context(self._serving.one(lambda: box, host))  # pyright: ignore[reportArgumentType]
        return made[0]

    async def all(self, who: str, boxes: int = 8) -> int:
        """How many requests this principal gets under way by as many boxes."""
        begun = 0
        for _ in range(boxes):
            turns = await self.box(who)
            try:
                for _ in range(LIMITS.of_box + 1):
                    await self._stack.enter_async_context(turns.one())
                    begun += 1
            except Refused:
                continue
        return begun


@pytest.fixture
async def server() -> AsyncGenerator[Server, None]:
    async with AsyncExitStack() as stack:
        yield Server(stack)


async def test_who_has_many_boxes_leaves_as_many_requests_to_others(server: Server):
    assert await server.all("token:ann") == 8, "half of all"
    assert await server.all("token:bob") == 4
    assert await server.all("token:cedric") == 2
    assert await server.all("token:dora") == 1
    assert await server.all("token:ann") == 0


async def test_of_those_who_wait_it_is_whose_principal_has_fewest():
    shares, begun = Shares(6), list[str]()

    async def ask(who: str) -> None:
        await shares.acquire(who)
        begun.append(who)

    async with anyio.create_task_group() as group:
        for who in ("ann", "ann", "ann", "bob", "bob", "ann", "bob", "cedric"):
            group.start_soon(ask, who)
            await anyio.wait_all_tasks_blocked()
        assert begun == ["ann", "ann", "ann", "bob", "bob", "cedric"]
        shares.release("cedric")
        await anyio.wait_all_tasks_blocked()
        assert begun[6:] == [], "each of those who wait has more than is left"
        shares.release("bob")
        await anyio.wait_all_tasks_blocked()
        assert begun[6:] == ["bob"], "ann came first, and has more"
        shares.release("bob")
        shares.release("ann")
        await anyio.wait_all_tasks_blocked()
        assert begun[7:] == ["ann"]


async def test_who_gives_up_waiting_takes_nothing_along():
    shares = Shares(1)

    async def ask() -> None:
        await shares.acquire("bob")
        try:
            await anyio.sleep_forever()
        finally:
            shares.release("bob")

    for heard in (False, True):
        await shares.acquire("ann")
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            if heard:
                shares.release("ann")  # it is bob's, who is not told in time
            group.cancel_scope.cancel()
        if not heard:
            shares.release("ann")
    with anyio.fail_after(1):
        await shares.acquire("cedric")
