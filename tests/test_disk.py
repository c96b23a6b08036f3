"""The disk is watched: boxes that fill it are stopped, and whoever comes next hears why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from box_mcp.disk import FALL, LOOK_EVERY, DiskWatch
from box_mcp.domain.box import State
from box_mcp.domain.disk import GIB, GRACE, Bounds
from box_mcp.domain.names import LOCAL, BoxId
from box_mcp.engines.base import Usage
from box_mcp.engines.fake import FakeEngine
from tests.support.invariants import Bench, running_box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOUNDS = Bounds(20 * GIB, 2 * GIB)
ONE, OTHER = BoxId("box-00000001"), BoxId("box-00000002")


class EngineThatMeasures(FakeEngine):
    """Says that boxes have so many bytes of files, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[BoxId, int] = {}
        self.asked: list[BoxId] = []
        self.free = 100 * GIB

    async def usage(self, box: BoxId) -> Usage:
        self.asked.append(box)
        return Usage(0, self.sizes.get(box, 0))


class Watch:
    """A watch on boxes that run, and whom it stopped."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self.engine = EngineThatMeasures()
        self.stopped: list[BoxId] = []
        self.can_stop = True
        self._watch = DiskWatch(self.engine, bounds, self._stop)
        self._now = 0.0

    async def _stop(self, box: BoxId, reason: str) -> bool:
        assert reason
        self.stopped.append(box)
        return self.can_stop

    async def after(self, seconds: float, *running: BoxId, frozen: tuple[BoxId, ...] = ()) -> int:
        """Looks, and tells how many boxes were measured."""
        before = len(self.engine.asked)
        self._now += seconds
        await self._watch.look(running, frozen, self._now)
        return len(self.engine.asked) - before


@pytest.fixture
def watch() -> Watch:
    return Watch()


async def test_a_box_is_measured_now_and_then(watch: Watch):
    assert await watch.after(2, ONE) == 1
    assert await watch.after(2, ONE, OTHER) == 1
    assert await watch.after(LOOK_EVERY, ONE, OTHER) == 2
    assert await watch.after(LOOK_EVERY) == 0


async def test_boxes_are_measured_at_once_when_the_disk_is_being_filled(watch: Watch):
    assert await watch.after(2, ONE) == 1
    watch.engine.free -= FALL + 1
    assert await watch.after(2, ONE) == 1
    assert await watch.after(2, ONE) == 0
    watch.engine.free = GIB
    assert await watch.after(2, ONE) == 1
    assert await watch.after(2, ONE) == 1


async def test_a_box_that_became_too_large_is_stopped_once_and_may_then_be_cleared_up(
    watch: Watch,
):
    await watch.after(2, ONE)
    watch.engine.sizes[ONE] = 21 * GIB
    await watch.after(LOOK_EVERY, ONE)
    assert watch.stopped == [ONE]
    await watch.after(2)
    for size in (21 * GIB, 21 * GIB + GRACE, 19 * GIB):
        watch.engine.sizes[ONE] = size
        await watch.after(LOOK_EVERY, ONE)
    assert watch.stopped == [ONE]
    watch.engine.sizes[ONE] = 21 * GIB  # it was small enough meanwhile
    await watch.after(LOOK_EVERY, ONE)
    assert watch.stopped == [ONE, ONE]
    await watch.after(2)
    watch.engine.sizes[ONE] = 22 * GIB + 1
    await watch.after(LOOK_EVERY, ONE)
    assert watch.stopped == [ONE, ONE, ONE]


async def test_a_box_that_was_filled_before_anybody_looked_is_stopped(watch: Watch):
    watch.engine.sizes[ONE] = 21 * GIB
    await watch.after(2, ONE)
    assert watch.stopped == [ONE]


async def test_a_box_that_could_not_be_stopped_is_tried_again(watch: Watch):
    await watch.after(2, ONE)
    watch.engine.sizes[ONE] = 21 * GIB
    watch.can_stop = False
    await watch.after(LOOK_EVERY, ONE)
    await watch.after(2, ONE)
    assert watch.stopped == [ONE, ONE]


async def test_what_a_box_was_before_it_was_frozen_is_remembered(watch: Watch):
    await watch.after(2, ONE)
    watch.engine.sizes[ONE] = 21 * GIB
    await watch.after(LOOK_EVERY, frozen=(ONE,))
    assert watch.stopped == []
    await watch.after(2, ONE)
    assert watch.stopped == [ONE]


async def test_nothing_is_asked_where_nothing_bounds_boxes():
    watch = Watch(Bounds(None, 0))
    assert await watch.after(LOOK_EVERY, ONE) == 0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, EngineThatMeasures())
    yield made
    made.close()


async def test_the_next_call_starts_the_box_again_and_hears_why_it_was_stopped(bench: Bench):
    engine = bench.engine
    assert isinstance(engine, EngineThatMeasures)
    async with bench.pool(disk=BOUNDS) as pool:
        box = await running_box(pool)
        await bench.pass_time(2)
        engine.sizes[box.id] = 21 * GIB
        await bench.pass_time(LOOK_EVERY)
        known = await pool.box(box.id, LOCAL)
        assert known.state is State.STOPPED
        assert known.reason.startswith("its files take 21 GiB, more than the 20 GiB it may have")
        async with pool.claim(box.id, LOCAL) as claim:
            assert "[the box had been stopped (its files take 21 GiB, more" in claim.news
        await bench.pass_time(LOOK_EVERY)
        assert (await pool.box(box.id, LOCAL)).state is State.RUNNING


async def test_a_box_is_stopped_under_a_running_call(bench: Bench):
    engine = bench.engine
    assert isinstance(engine, EngineThatMeasures)
    async with bench.pool(disk=BOUNDS) as pool:
        box = await running_box(pool)
        async with pool.claim(box.id, LOCAL):
            await bench.pass_time(2)
            engine.sizes[box.id] = 21 * GIB
            await bench.pass_time(LOOK_EVERY)
            assert (await pool.box(box.id, LOCAL)).state is State.STOPPED
        async with pool.claim(box.id, LOCAL) as claim:
            assert claim.channel.open
