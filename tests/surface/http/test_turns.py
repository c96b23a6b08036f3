"""Turns: whose request is begun next."""

from __future__ import annotations

import anyio
from anyio.lowlevel import checkpoint

from box_mcp.surface.http.turns import Turns

NEVER = 60.0  # s
MANY = 50


async def cycles() -> None:
    for _ in range(5):
        await checkpoint()


class Crowd:
    """Requests that are answered when they are let go."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[str] = []
        self.all, self.go = anyio.Event(), anyio.Event()

    async def ask(self, who: str) -> None:
        async with self.turns.turn(who):
            self.begun.append(who)
            if len(self.begun) == MANY:
                self.all.set()
            await self.go.wait()


async def test_of_one_principal_a_few_are_begun_at_once_and_others_are_not_held_up():
    crowd = Crowd(Turns(at_once=3, soon=NEVER))
    async with anyio.create_task_group() as group:
        for _ in range(MANY):
            group.start_soon(crowd.ask, "many")
        await cycles()
        group.start_soon(crowd.ask, "one")
        await cycles()
        assert crowd.begun == ["many"] * 3 + ["one"]
        crowd.go.set()
    assert crowd.begun.count("many") == MANY
    assert str(crowd.turns) == "<Turns 0 begun, 0 waiting>"


async def test_those_that_wait_for_something_else_make_way():
    crowd = Crowd(Turns(at_once=2, soon=0.01))
    async with anyio.create_task_group() as group:
        for _ in range(MANY):
            group.start_soon(crowd.ask, "many")
        with anyio.fail_after(10):
            await crowd.all.wait()
        crowd.go.set()
    assert str(crowd.turns) == "<Turns 0 begun, 0 waiting>"


async def test_requests_that_are_given_up_leave_their_place_to_others():
    crowd = Crowd(Turns(at_once=1, soon=NEVER))
    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as given_up:
            given_up.start_soon(crowd.ask, "many")
            await cycles()
            given_up.start_soon(crowd.ask, "many")
            await cycles()
            group.start_soon(crowd.ask, "many")
            await cycles()
            assert crowd.begun == ["many"]
            given_up.cancel_scope.cancel()
        await cycles()
        assert crowd.begun == ["many", "many"]
        crowd.go.set()
    assert str(crowd.turns) == "<Turns 0 begun, 0 waiting>"
