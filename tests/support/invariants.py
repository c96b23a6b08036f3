"""A place to run pools in, which holds each to its rules when a test is done with it."""

# The rules are about what only the pool knows.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from box_mcp.domain.box import BoxSpec, State
from box_mcp.domain.names import LOCAL
from box_mcp.domain.plan import Policy
from box_mcp.engines.base import Condition
from box_mcp.engines.fake import FakeEngine
from box_mcp.events import ActFailed, BoxMoved
from box_mcp.pool import Pool
from box_mcp.slots import Slot
from tests.support.faults import StoreThatFails

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from pathlib import Path

    from box_mcp.domain.box import Box
    from box_mcp.domain.disk import Bounds
    from box_mcp.domain.names import BoxId, BoxName
    from box_mcp.engines.fake import FakeBox
    from box_mcp.events import Event
    from box_mcp.services import Service
    from box_mcp.worker import Setup

SPEC = BoxSpec("box-mcp:base", cpus=1, memory=2**30)
POLICY = Policy()
MANY_CYCLES = 500  # of the event loop; a cancellation that has to wait keeps it going round
PATIENCE = 10.0  # s; all that is waited for here takes milliseconds

CONDITIONS = {
    State.CREATED: (Condition.ABSENT, Condition.CREATED),
    State.RUNNING: (Condition.RUNNING,),
    State.FROZEN: (Condition.FROZEN,),
    State.STOPPED: (Condition.STOPPED,),
    State.LOST: (Condition.ABSENT,),
}


class FakeClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self._advanced = anyio.Event()

    def now(self) -> float:
        return self.time

    async def sleep_until(self, moment: float) -> None:
        await checkpoint()
        while self.time < moment:
            await self._advanced.wait()

    def advance(self, seconds: float) -> None:
        self.time += seconds
        advanced, self._advanced = self._advanced, anyio.Event()
        advanced.set()


class Bench:
    """An engine, a store and a clock; and the pools on them, checked at their end."""

    def __init__(self, path: Path, engine: FakeEngine | None = None) -> None:
        self.engine = engine or FakeEngine()
        self.path = path
        self.store = StoreThatFails(path / "state.db")
        self.clock = FakeClock()
        self.events: list[Event] = []
        self.pools: list[Pool] = []

    @asynccontextmanager
    async def pool(
        self,
        policy: Policy = POLICY,
        spares: BoxSpec | None = None,
        *,
        setup: Setup | None = None,
        services: Sequence[Service] = (),
        disk: Bounds | None = None,
    ) -> AsyncGenerator[Pool, None]:
        """A running pool, checked when the block is done, and again when it is closed."""
        pool = Pool(
            self.engine,
            self.store,
            self.path,
            policy,
            spares,
            setup=setup,
            services=services,
            disk=disk,
            hook=self.events.append,
            clock=self.clock,
        )
        with anyio.fail_after(PATIENCE):
            async with pool.open():
                self.pools.append(pool)
                yield pool
                await quiet()
                for each in self.pools:
                    await check(each, self.engine, self.store)
                check_lines(self.pools, self.engine)
                await check_records(self.pools, self.engine, self.store)
            self.pools.remove(pool)
            check_closed(pool, self.engine, alone=not self.pools)
            check_lines(self.pools, self.engine)

    def close(self) -> None:
        """Lets go of the store's file."""
        self.store.file.disconnect()

    async def pass_time(self, seconds: float) -> None:
        """Time passes, and all that it brings about comes to its end."""
        await quiet()
        self.clock.advance(seconds)
        await quiet()

    def fake(self, box: Box | BoxId) -> FakeBox:
        """The box as the engine has it."""
        return self.engine.boxes[box if isinstance(box, str) else box.id]

    def moves(self, box: Box) -> list[str]:
        """The states that it came to, in order."""
        return [
            event.after
            for event in self.events
            if isinstance(event, BoxMoved) and event.box == box.id
        ]

    def failures(self) -> list[str]:
        """The acts that failed."""
        return [event.act for event in self.events if isinstance(event, ActFailed)]


async def running_box(pool: Pool, name: BoxName | None = None, spec: BoxSpec = SPEC) -> Box:
    """A new box that was used once."""
    box = await pool.create(LOCAL, name, spec)
    await use(pool, box.id)
    return await pool.box(box.id, LOCAL)


async def use(pool: Pool, box: BoxId) -> str:
    """A call in the box; returns the news of it."""
    async with pool.claim(box, LOCAL) as claim:
        assert claim.box.id == box
        await claim.channel.request("stat", path="/")
        return claim.news


async def cancelled_after(cycles: int, function: Callable[[], Awaitable[object]]) -> bool:
    """Cancels a call when the event loop has gone round so often; False when it was done before."""

    scope = anyio.CancelScope()

    async def cut() -> None:
        for _ in range(cycles):
            await checkpoint()
        scope.cancel()

    async with anyio.create_task_group() as group:
        with scope:
            group.start_soon(cut)
            await function()
        group.cancel_scope.cancel()
    return scope.cancelled_caught


async def quiet() -> None:
    """Returns when every other task waits for something that only the caller can bring about."""
    loop = asyncio.get_running_loop()
    for _ in range(MANY_CYCLES):
        await checkpoint()
        if not loop._ready:  # type: ignore[attr-defined]  # there is no public way
            return


async def check(pool: Pool, engine: FakeEngine, store: StoreThatFails) -> None:
    """The rules that hold for a pool at rest."""
    assert not pool._roster.waiters
    stored = {box.id: box for box in await store.boxes()}
    for slot in pool._roster.slots.values():
        check_slot(slot, engine, stored)
    assert set(pool._roster.slots) <= set(stored)
    counted = pool.statistics()
    assert counted.boxes + counted.spares == len(pool._roster.slots)
    assert (counted.claims, counted.waiters, counted.acting) == (0, 0, 0)


def check_slot(slot: Slot, engine: FakeEngine, stored: dict[BoxId, Box]) -> None:
    box = slot.box
    assert slot.job is None, slot
    assert slot.claims == 0, slot
    assert slot.recorded, slot
    if stored[box.id].since == box.since:
        assert stored[box.id].state is box.state
        assert (stored[box.id].principal, stored[box.id].name) == (box.principal, box.name)
    else:
        assert stored[box.id].since > box.since, "only another server knows more than this one"
        return
    condition = engine.boxes[box.id].condition if box.id in engine.boxes else Condition.ABSENT
    assert condition in CONDITIONS[box.state] or slot.doubtful, (slot, condition)
    if slot.connected:
        assert box.state in (State.RUNNING, State.FROZEN), slot
    elif slot.spare:
        assert slot.doubtful, f"{slot} is a spare of no use, and nobody will delete it"


def check_lines(pools: list[Pool], engine: FakeEngine) -> None:
    """Every connection is in the hands of one pool."""
    held = [
        slot.channel._stream
        for pool in pools
        for slot in pool._roster.slots.values()
        if slot.channel is not None and slot.connected
    ]
    lines = [line for box in engine.boxes.values() for line in box.lines]
    assert set(map(id, lines)) == set(map(id, held))


async def check_records(pools: list[Pool], engine: FakeEngine, store: StoreThatFails) -> None:
    """Every box in the engine is known to somebody, and no record is of a box that is no more."""
    known = {box for pool in pools for box in pool._roster.slots}
    stored = {box.id: box.state for box in await store.boxes()}
    assert set(engine.boxes) <= known | set(stored)
    ghosts = {box: state for box, state in stored.items() if box not in engine.boxes}
    assert set(ghosts.values()) <= {State.CREATED, State.LOST}


def check_closed(pool: Pool, engine: FakeEngine, *, alone: bool) -> None:
    """What holds for a pool that was closed in peace."""
    assert not pool._roster.waiters
    assert all(slot.job is None and not slot.connected for slot in pool._roster.slots.values())
    if not alone:
        return
    spares = {slot.box.id for slot in pool._roster.slots.values() if slot.spare}
    assert not spares & set(engine.boxes), "a spare was left behind"
