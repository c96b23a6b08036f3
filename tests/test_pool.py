from __future__ import annotations

import os
import resource
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from box_mcp import channel as channels
from box_mcp import pool as pools
from box_mcp import slots
from box_mcp import worker as workers
from box_mcp.channel import Channel
from box_mcp.domain.box import Box, BoxSpec, Move, State
from box_mcp.domain.limits import Room
from box_mcp.domain.names import LOCAL, BoxId, BoxName, Principal, mint_id
from box_mcp.domain.plan import Act, Plan, Policy, View, make_plan
from box_mcp.engines.base import Condition
from box_mcp.engines.fake import FakeEngine, FakeLine
from box_mcp.errors import (
    BoxBroken,
    BoxError,
    BoxLost,
    BoxNotFound,
    CallInterrupted,
    EngineError,
    EngineStalled,
    IllegalMove,
    ImageMissing,
    ImageUnusable,
    LimitReached,
    NameTaken,
    ServerClosed,
    StoreUnusable,
)
from box_mcp.events import BoxAsked, BoxClaimed
from box_mcp.pool import Pool
from box_mcp.roster import DOOMED
from box_mcp.slots import Save
from box_mcp.store import Store
from box_mcp.tickets import Presence, Tickets
from tests.support.faults import (
    BadLine,
    BoxdThatFloods,
    BoxdThatHangsUp,
    BoxdThatNeverGreets,
    BoxdThatShoutsAfterwards,
    BoxdThatShoutsAtOnce,
    BoxdThatSpeaksNonsense,
    Dawdling,
    DeathAtStart,
    Fault,
    FaultyEngine,
    HalfDone,
    LateAnswer,
    NoAnswer,
    Refusal,
    Stall,
    StoreThatRecordsSlowly,
    Stumble,
)
from tests.support.invariants import SPEC, Bench, cancelled_after, quiet, running_box, use

SOMEBODY = Principal("somebody")
WARM = Policy(warm_min=1, warm_max=1)
IT = BoxName("it")
HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """What the pool waits for in real time hardly ever comes in these tests."""
    monkeypatch.setattr(slots, "PING_TIMEOUT", 0.15)
    monkeypatch.setattr(pools, "EXIT_GRACE", 0.25)
    monkeypatch.setattr(channels, "HELLO_TIMEOUT", 0.15)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def bench_of(tmp_path: Path) -> Iterator[Callable[[Fault], Bench]]:
    """Benches whose engine has a fault."""
    made: list[Bench] = []

    def make(fault: Fault) -> Bench:
        made.append(Bench(tmp_path / str(len(made)), FaultyEngine(fault)))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


# A box and its calls


async def test_the_first_claim_starts_a_new_box(bench: Bench):
    async with bench.pool() as pool:
        box = await pool.create(LOCAL, IT, SPEC)
        assert box.state is State.CREATED
        async with pool.claim(box.id, LOCAL) as claim:
            assert claim.box.state is State.RUNNING
            assert claim.news == ""
            assert (await claim.channel.request("stat", path="/"))["kind"] == "directory"
        assert bench.moves(box) == ["running"]
        assert (await bench.store.box(box.id)) == await pool.box(box.id, LOCAL)


async def test_a_box_serves_several_calls_at_once(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        async with pool.claim(box.id, LOCAL) as first, pool.claim(box.id, LOCAL) as second:
            assert first.channel is second.channel
            assert pool.statistics().claims == 2
        assert pool.statistics().claims == 0


async def test_calls_that_wait_for_one_box_wake_it_once(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await bench.pass_time(301)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(use, pool, box.id)
        assert bench.moves(box) == ["running", "frozen", "running"]


async def test_boxes_are_woken_side_by_side(bench_of: Callable[[Fault], Bench]):
    fault = Stall("thaw")
    fault.ill = False
    bench = bench_of(fault)
    async with bench.pool() as pool:
        slow, quick = await running_box(pool), await running_box(pool)
        await pool.act(slow.id, LOCAL, Act.FREEZE)
        fault.ill = True
        async with anyio.create_task_group() as group:
            group.start_soon(use, pool, slow.id)
            await quiet()
            await use(pool, quick.id)
            fault.heal()


async def test_of_many_boxes_the_first_are_up_before_the_last_are_begun(
    bench_of: Callable[[Fault], Bench],
):
    fault = Stall("start")
    bench = bench_of(fault)
    async with bench.pool() as pool:
        boxes = [await pool.create(LOCAL, None, SPEC) for _ in range(workers.START_AT_ONCE + 2)]
        async with anyio.create_task_group() as group:
            for box in boxes:
                group.start_soon(use, pool, box.id)
            await quiet()
            assert len(bench.engine.boxes) == workers.START_AT_ONCE
            fault.heal()
        assert {bench.fake(box).condition for box in boxes} == {Condition.RUNNING}


async def test_a_call_to_a_running_box_costs_no_plan_of_all_boxes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    planned: list[View] = []

    def counted(view: View, policy: Policy) -> Plan:
        planned.append(view)
        return make_plan(view, policy)

    async with bench.pool() as pool:
        box = await running_box(pool)
        monkeypatch.setattr(pools, "make_plan", counted)
        async with pool.claim(box.id, LOCAL):
            bench.fake(box).set_busy(True)
            await quiet()
        assert pool.outlook(box)[0]
        bench.fake(box).set_busy(False)
        await quiet()
        assert not pool.outlook(box)[0]
        assert planned == []


async def test_a_call_has_a_thawing_box_when_its_boxd_answers_before_the_engine_says_so(
    bench_of: Callable[[Fault], Bench],
):
    fault = Dawdling("thaw")
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        await pool.act(box.id, LOCAL, Act.FREEZE)
        async with pool.claim(box.id, LOCAL) as claim:
            assert claim.box.state is State.RUNNING
            assert (pool.statistics().claims, pool.statistics().acting) == (1, 1)
            assert (await bench.store.box(box.id)) == await pool.box(box.id, LOCAL)
        fault.heal()
        await pool.act(box.id, LOCAL, Act.FREEZE)
        assert bench.moves(box) == ["running", "frozen", "running", "frozen"]


async def test_a_call_for_an_unknown_box_or_somebody_elses_hears_the_same(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        for name in (box.id, mint_id()):
            with pytest.raises(BoxNotFound) as refusal:
                await pool.claim(name, SOMEBODY).__aenter__()
            assert str(refusal.value) == f"You have no box {name!r}"
            with pytest.raises(BoxNotFound):
                await pool.act(name, SOMEBODY, Act.DELETE)
        assert await pool.boxes(SOMEBODY) == []


async def test_a_failing_call_releases_its_box(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        with pytest.raises(RuntimeError, match="in the call"):
            async with pool.claim(box.id, LOCAL):
                raise RuntimeError("in the call")
        assert pool.statistics().claims == 0


async def test_each_claim_is_told_of_with_what_it_waited_for(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await use(pool, box.id)
        await bench.pass_time(301)
        await use(pool, box.id)
    claims = [event for event in bench.events if isinstance(event, BoxClaimed)]
    assert [claim.was for claim in claims] == ["created", "running", "frozen"]
    assert {(claim.box, claim.principal) for claim in claims} == {(box.id, LOCAL)}


async def test_what_is_asked_of_a_box_is_told_too(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
    asked = [event for event in bench.events if isinstance(event, BoxAsked)]
    assert [(one.box, one.request, one.outcome) for one in asked] == [(box.id, "stat", "ok")]


async def test_repr_and_statistics_tell_the_state(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        box = await running_box(pool)
        await bench.pass_time(3)
        assert f"<Slot {box.id} running claims=0>" in repr(pool)
        assert repr(pool).endswith("0 waiting>")
        assert pool.statistics() == pools.Statistics(1, 1, 0, 0, 0, {State.RUNNING: 1})


# Idleness


async def test_an_idle_box_is_frozen_stopped_and_deleted(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await bench.pass_time(299)
        assert bench.moves(box) == ["running"]
        await bench.pass_time(2)
        assert bench.fake(box).condition is Condition.FROZEN
        await bench.pass_time(HOUR + 1)
        assert bench.fake(box).condition is Condition.STOPPED
        await bench.pass_time(7 * DAY + 1)
        assert bench.moves(box) == ["running", "frozen", "stopped", "deleted"]
        assert not bench.engine.boxes
        assert await pool.boxes(LOCAL) == []
        assert await bench.store.boxes() == []


async def test_each_use_puts_idleness_off(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        for _ in range(4):
            await bench.pass_time(200)
            await use(pool, box.id)
        assert bench.moves(box) == ["running"]
        assert (await pool.box(box.id, LOCAL)).used == bench.clock.now()


async def test_a_step_that_is_switched_off_is_not_taken(bench: Bench):
    async with bench.pool(Policy(pause_after=None)) as pool:
        box = await running_box(pool)
        await bench.pass_time(30 * DAY)
        assert bench.moves(box) == ["running"]


async def test_a_box_is_not_frozen_under_a_running_call(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        async with pool.claim(box.id, LOCAL):
            await bench.pass_time(HOUR)
            assert bench.fake(box).condition is Condition.RUNNING
        await bench.pass_time(299)
        assert bench.fake(box).condition is Condition.RUNNING
        await bench.pass_time(1)
        assert bench.fake(box).condition is Condition.FROZEN


async def test_a_busy_box_is_frozen_when_its_longest_time_is_over(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        bench.fake(box).set_busy(True)
        await bench.pass_time(HOUR - 1)
        assert bench.fake(box).condition is Condition.RUNNING
        busy, step = pool.outlook(box)
        assert (busy, step) == (True, (bench.clock.now() + 1, Act.FREEZE))
        await bench.pass_time(1)
        assert bench.fake(box).condition is Condition.FROZEN


async def test_a_box_idles_from_the_end_of_its_last_command(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        bench.fake(box).set_busy(True)
        await bench.pass_time(1000)
        bench.fake(box).set_busy(False)
        await bench.pass_time(299)
        assert bench.fake(box).condition is Condition.RUNNING
        await bench.pass_time(1)
        assert bench.fake(box).condition is Condition.FROZEN


async def test_a_new_server_asks_an_idle_box_whether_it_is_busy_before_it_freezes_it(bench: Bench):
    async with bench.pool() as pool:
        busy, idle = await running_box(pool), await running_box(pool)
        bench.fake(busy).set_busy(True)
    bench.clock.advance(301)
    async with bench.pool():
        await bench.pass_time(3)
        assert bench.fake(idle).condition is Condition.FROZEN
        assert bench.fake(busy).condition is Condition.RUNNING


async def test_a_new_server_finds_that_an_idle_box_has_stopped_itself(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
    bench.fake(box).end("exit code 0")
    bench.clock.advance(301)
    async with bench.pool() as pool:
        await bench.pass_time(3)
        assert (await pool.box(box.id, LOCAL)).state is State.STOPPED


async def test_a_new_server_does_nothing_unasked_at_once(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
    bench.clock.advance(DAY)
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(1)
        assert pool.statistics().spares == 0
        assert bench.fake(box).condition is Condition.RUNNING


async def test_time_that_goes_back_confuses_nobody(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await bench.pass_time(301)
        bench.clock.time -= DAY
        await use(pool, box.id)
        bench.fake(box).end("killed")
        await quiet()
        assert "killed" in await use(pool, box.id)
        await pool.act(box.id, LOCAL, Act.STOP)
        assert (await bench.store.boxes())[0].state is State.STOPPED


# Waking


async def test_a_call_wakes_a_frozen_box_with_all_that_it_held(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        boot = bench.fake(box).boot
        await bench.pass_time(301)
        assert await use(pool, box.id) == ""
        assert bench.fake(box).boot == boot


async def test_a_call_starts_a_stopped_box_and_hears_what_survived(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await pool.act(box.id, LOCAL, Act.STOP)
        assert "its files survived, its processes did not" in await use(pool, box.id)
        assert await use(pool, box.id) == ""


async def test_a_new_server_starts_a_stopped_box_with_the_same_news(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await pool.act(box.id, LOCAL, Act.STOP)
    async with bench.pool() as pool:
        assert "its files survived" in await use(pool, box.id)


@pytest.mark.parametrize("act", [None, Act.FREEZE, Act.STOP])
async def test_a_new_server_wakes_a_box_whatever_became_of_it_meanwhile(
    bench: Bench, act: Act | None
):
    async with bench.pool() as pool:
        box = await running_box(pool)
        if act is not None:
            await pool.act(box.id, LOCAL, act)
    for change in (Condition.FROZEN, Condition.RUNNING, Condition.STOPPED):
        if change is Condition.STOPPED:
            bench.fake(box).end("rebooted")
        bench.fake(box).condition = change
        async with bench.pool() as pool:
            await use(pool, box.id)


async def test_a_call_that_comes_while_a_box_is_frozen_wakes_it(
    bench_of: Callable[[Fault], Bench],
):
    fault = Stall("freeze")
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        await bench.pass_time(301)
        async with anyio.create_task_group() as group:
            group.start_soon(use, pool, box.id)
            await quiet()
            assert pool.statistics().waiters == 1
            fault.heal()
        assert bench.moves(box) == ["running", "frozen", "running"]


async def test_a_box_that_is_woken_on_request_keeps_its_news_for_the_next_call(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await pool.act(box.id, LOCAL, Act.STOP)
        await pool.wake(box.id, LOCAL)
        assert (await pool.box(box.id, LOCAL)).state is State.RUNNING
        assert "its files survived" in await use(pool, box.id)


# Behind our back


async def test_a_box_that_was_killed_is_started_again_with_news(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        bench.fake(box).end("out of memory")
        await quiet()
        assert "out of memory" in await use(pool, box.id)
        assert bench.moves(box) == ["running", "stopped", "running"]


async def test_a_box_that_was_killed_while_frozen_is_started_again_with_news(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await bench.pass_time(301)
        bench.fake(box).end("rebooted")
        await quiet()
        assert "rebooted" in await use(pool, box.id)


async def test_a_box_that_was_frozen_is_found_so_and_thawed(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        bench.fake(box).condition = Condition.FROZEN
        await bench.pass_time(10)
        assert await use(pool, box.id) == ""
        assert bench.moves(box) == ["running", "frozen", "running"]


@pytest.mark.parametrize("state", [State.RUNNING, State.FROZEN, State.STOPPED])
async def test_a_box_that_was_removed_is_lost_and_says_so(bench: Bench, state: State):
    async with bench.pool() as pool:
        box = await running_box(pool)
        if state is not State.RUNNING:
            await pool.act(box.id, LOCAL, Act.FREEZE if state is State.FROZEN else Act.STOP)
        await bench.engine.delete(box.id)
        await quiet()
        for _ in range(2):
            with pytest.raises(BoxLost) as loss:
                await use(pool, box.id)
            assert "the engine has no such box" in loss.value.reason
        assert [box.state for box in await pool.boxes(LOCAL)] == [State.LOST]
        await pool.act(box.id, LOCAL, Act.DELETE)
        assert await pool.boxes(LOCAL) == []


async def test_pausing_a_box_that_was_removed_says_that_it_is_lost(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await bench.engine.delete(box.id)
        await quiet()
        with pytest.raises(BoxLost):
            await pool.act(box.id, LOCAL, Act.FREEZE)


async def test_a_lost_box_can_be_deleted_though_the_engine_has_one_of_its_id(
    bench_of: Callable[[Fault], Bench],
):
    fault = Refusal("delete")
    fault.ill = False
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        hidden = bench.engine.boxes.pop(box.id)
        hidden.end("hidden")
        await quiet()
        with pytest.raises(BoxLost):
            await use(pool, box.id)
        hidden.condition = Condition.STOPPED
        bench.engine.boxes[box.id] = hidden
        fault.ill = True
        with pytest.raises(EngineError):
            await pool.act(box.id, LOCAL, Act.DELETE)
        fault.heal()
        await pool.act(box.id, LOCAL, Act.DELETE)
        assert not bench.engine.boxes
        assert bench.failures() == ["delete"]


# Spares


async def test_a_spare_is_made_a_moment_after_the_start_and_belongs_to_nobody(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        await quiet()
        assert pool.statistics().spares == 0
        await bench.pass_time(2)
        assert pool.statistics().spares == 1
        assert [box.principal for box in await bench.store.boxes()] == [None]
        assert await pool.boxes(LOCAL) == []


async def test_a_new_box_takes_the_spare_and_another_is_made(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(2)
        (spare,) = bench.engine.boxes
        box = await pool.create(LOCAL, IT, SPEC)
        assert (box.id, box.state, box.name) == (spare, State.RUNNING, "it")
        assert await use(pool, box.id) == ""
        await quiet()
        assert pool.statistics().spares == 1
        assert bench.moves(box) == ["running"]


async def test_a_box_that_differs_takes_no_spare(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(2)
        (spare,) = bench.engine.boxes
        box = await running_box(pool, spec=BoxSpec("box-mcp:base", cpus=2, memory=2**30))
        assert box.id != spare


async def test_two_boxes_never_share_a_spare(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(2)
        made: list[Box] = []

        async def make() -> None:
            made.append(await running_box(pool))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(make)
        assert len({box.id for box in made}) == 3


async def test_spares_go_with_their_server(bench: Bench):
    async with bench.pool(Policy(warm_min=3, warm_max=3), SPEC):
        await bench.pass_time(2)
        assert len(bench.engine.boxes) == 3
    assert not bench.engine.boxes


@pytest.mark.parametrize("operation", ["create", "start", "connect to"])
async def test_a_spare_that_is_half_made_goes_with_its_server(
    operation: str, bench_of: Callable[[Fault], Bench]
):
    fault = Stall(operation)
    bench = bench_of(fault)
    pool = Pool(bench.engine, bench.store, bench.path, WARM, SPEC, clock=bench.clock)
    with anyio.fail_after(20):
        async with pool.open():
            bench.clock.advance(2)
            await fault.reached.wait()
    assert not bench.engine.boxes


async def test_a_spare_that_died_is_replaced(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(2)
        (spare,) = bench.engine.boxes
        bench.fake(spare).end("killed")
        await quiet()
        assert pool.statistics().spares == 1
        assert spare not in bench.engine.boxes


async def test_a_spare_that_fails_is_tried_again_later(bench_of: Callable[[Fault], Bench]):
    fault = Refusal("create")
    bench = bench_of(fault)
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(29)
        await bench.pass_time(29)
        assert bench.failures() == ["start"]
        fault.heal()
        await bench.pass_time(1)
        assert pool.statistics().spares == 1


async def test_a_callers_wrong_image_does_not_put_spares_off(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        box = await pool.create(LOCAL, None, BoxSpec("no-such-image", cpus=1, memory=2**30))
        with pytest.raises(ImageMissing):
            await use(pool, box.id)
        await bench.pass_time(2)
        assert pool.statistics().spares == 1


async def test_an_unusable_spare_that_can_not_be_deleted_is_tried_again_later(
    bench_of: Callable[[Fault], Bench],
):
    fault = Refusal("delete")
    bench = bench_of(fault)
    async with bench.pool(WARM, SPEC):
        await bench.pass_time(2)
        (spare,) = bench.engine.boxes
        bench.fake(spare).end("killed")
        await bench.pass_time(1)
        await bench.pass_time(30)
        assert bench.failures() == ["delete"]
        fault.heal()
        await bench.pass_time(60)
        assert spare not in bench.engine.boxes


async def test_a_refused_name_leaves_the_spare_a_spare(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool, bench.pool() as other:
        await bench.pass_time(2)
        before = set(bench.engine.boxes)

        async def make_both() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(running_box, other, IT)
                group.start_soon(running_box, pool, IT)

        with pytest.RaisesGroup(NameTaken):
            await make_both()
        await quiet()
        assert before <= set(bench.engine.boxes)
        assert pool.statistics().spares == 1


# Making boxes


async def test_a_name_is_taken_once(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool, IT)
        with pytest.raises(NameTaken) as refusal:
            await pool.create(LOCAL, IT, SPEC)
        assert refusal.value.holder == box.id
        await pool.create(SOMEBODY, IT, SPEC)


async def test_a_name_is_free_again_when_its_box_is_deleted(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool, IT)
        await pool.act(box.id, LOCAL, Act.DELETE)
        await running_box(pool, IT)


async def test_no_more_boxes_than_the_limit_are_made(bench: Bench):
    async with bench.pool(Policy(room=Room(boxes=2))) as pool:
        box = await running_box(pool)
        await running_box(pool)
        with pytest.raises(LimitReached) as refusal:
            await pool.create(LOCAL, None, SPEC)
        assert refusal.value.limit == 2
        await pool.act(box.id, LOCAL, Act.DELETE)
        await running_box(pool)


async def test_the_limit_holds_for_boxes_that_are_made_at_once(bench: Bench):
    async with bench.pool(Policy(room=Room(boxes=2))) as pool:

        async def make_three() -> None:
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(pool.create, LOCAL, None, SPEC)

        with pytest.RaisesGroup(LimitReached):
            await make_three()


async def test_a_box_that_can_not_start_leaves_nothing_behind(tmp_path: Path):
    bench = Bench(tmp_path, FakeEngine({"no-python": False}))
    async with bench.pool() as pool:
        box = await pool.create(LOCAL, IT, BoxSpec("no-python", cpus=1, memory=2**30))
        with pytest.raises(ImageUnusable):
            await use(pool, box.id)
        await quiet()
        assert not bench.engine.boxes
        assert await bench.store.boxes() == []
        with pytest.raises(BoxNotFound):
            await use(pool, box.id)
    bench.close()


async def test_a_box_that_dies_at_its_start_is_explained_by_its_last_words(
    bench_of: Callable[[Fault], Bench],
):
    bench = bench_of(DeathAtStart())
    async with bench.pool() as pool:
        box = await pool.create(LOCAL, None, SPEC)
        with pytest.raises(BoxBroken, match="no space left"):
            await use(pool, box.id)
        await quiet()
        assert not bench.engine.boxes


async def test_a_box_is_not_touched_before_it_is_recorded(tmp_path: Path, bench: Bench):
    store = bench.store = StoreThatRecordsSlowly(tmp_path / "state.db")
    async with bench.pool(Policy(warm_min=1, warm_max=1, room=Room(boxes=1)), SPEC) as pool:
        await bench.pass_time(2)
        (spare,) = bench.engine.boxes
        async with anyio.create_task_group() as group:
            group.start_soon(pool.create, LOCAL, IT, SPEC)
            await store.reached.wait()
            await bench.pass_time(301)
            assert await pool.boxes(LOCAL) == []
            assert bench.fake(spare).condition is Condition.RUNNING
            with pytest.raises(BoxNotFound):
                await use(pool, spare)
            store.go_on.set()
        assert [box.id for box in await pool.boxes(LOCAL)] == [spare]


async def test_a_box_that_can_not_be_recorded_is_not_made(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(2)
        bench.store.ill = True
        with pytest.raises(StoreUnusable):
            await pool.create(LOCAL, IT, SPEC)
        bench.store.ill = False
        assert pool.statistics().boxes == 0
        await running_box(pool, IT)


async def test_boxes_are_of_use_though_their_states_can_not_be_recorded(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        bench.store.ill = True
        async with pool.claim(box.id, LOCAL):
            await bench.pass_time(100)
        bench.fake(box).end("killed")
        await quiet()
        assert "killed" in await use(pool, box.id)
        bench.store.ill = False
        await pool.act(box.id, LOCAL, Act.FREEZE)
        assert "record" in bench.failures()


@contextmanager
def no_descriptor_left() -> Generator[None]:
    """This process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_a_descriptor_left_boxes_serve_on_and_the_rest_is_made_up_for(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        box, frozen = await running_box(pool), await running_box(pool)
        await pool.act(frozen.id, LOCAL, Act.FREEZE)
        with no_descriptor_left():
            for _ in range(3):
                await bench.pass_time(2)  # what is looked after, and spares
            assert await use(pool, box.id) == await use(pool, frozen.id) == ""
            with pytest.raises(StoreUnusable, match="Too many open files"):
                await pool.create(LOCAL, IT, SPEC)
            await bench.pass_time(HOUR)
        assert pool.statistics().boxes == 2
        await bench.pass_time(60)
        await running_box(pool, IT)
        assert pool.statistics().spares == 1


async def test_who_waits_hears_that_no_descriptor_is_left(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        (slot,) = pool._roster.slots.values()  # pyright: ignore[reportPrivateUsage]
        slot.ticket.close()
        with no_descriptor_left(), pytest.raises(StoreUnusable, match="Too many open files"):
            await use(pool, box.id)
        assert pool.statistics().waiters == 0
        assert await use(pool, box.id) == ""


async def test_a_box_nobody_ever_used_expires(bench: Bench):
    async with bench.pool() as pool:
        await pool.create(LOCAL, IT, SPEC)
        await bench.pass_time(7 * DAY)
        assert await pool.boxes(LOCAL) == []


# What callers ask for


async def test_a_box_is_paused_on_request(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        frozen = await pool.act(box.id, LOCAL, Act.FREEZE)
        assert (frozen.state, frozen.reason) == (State.FROZEN, "asked for")
        stopped = await pool.act(box.id, LOCAL, Act.STOP)
        assert stopped.state is State.STOPPED


async def test_what_the_table_does_not_know_is_refused(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await pool.act(box.id, LOCAL, Act.STOP)
        with pytest.raises(IllegalMove, match="it can't freeze"):
            await pool.act(box.id, LOCAL, Act.FREEZE)
        assert bench.fake(box).condition is Condition.STOPPED


async def test_a_box_in_use_is_not_paused_but_can_be_deleted(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        async with pool.claim(box.id, LOCAL) as claim:
            for act in (Act.FREEZE, Act.STOP):
                with pytest.raises(IllegalMove, match="in use by a running call"):
                    await pool.act(box.id, LOCAL, act)
            await pool.act(box.id, LOCAL, Act.DELETE)
            bench.clock.advance(100)
            with pytest.raises(CallInterrupted):
                await claim.channel.request("stat", path="/")
        await quiet()
        assert await bench.store.boxes() == []
        assert await pool.boxes(LOCAL) == []


async def test_a_request_waits_for_what_is_under_way(bench_of: Callable[[Fault], Bench]):
    fault = Stall("freeze")
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(pool.act, box.id, LOCAL, Act.FREEZE)
            await fault.reached.wait()
            group.start_soon(pool.act, box.id, LOCAL, Act.STOP)
            await quiet()
            fault.heal()
        assert bench.moves(box) == ["running", "frozen", "stopped"]


async def test_each_request_hears_of_its_own_failure(bench_of: Callable[[Fault], Bench]):
    class StallInVain(Stall):
        async def before(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
            await super().before(engine, operation, box)
            raise EngineStalled("freeze a box", 60)

    fault = StallInVain("freeze")
    bench = bench_of(fault)
    heard: list[str] = []

    async def ask(act: Act) -> None:
        try:
            heard.append((await pool.act(box.id, LOCAL, act)).state)
        except EngineStalled:
            heard.append("stalled")

    async with bench.pool() as pool:
        box = await running_box(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, Act.FREEZE)
            await fault.reached.wait()
            group.start_soon(ask, Act.STOP)
            await quiet()
            fault.heal()
        assert sorted(heard) == ["stalled", "stopped"]


async def test_a_box_that_was_deleted_while_a_request_waited_is_not_found(
    bench_of: Callable[[Fault], Bench],
):
    fault = Stall("delete")
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)

        async def pause() -> None:
            with pytest.raises(BoxNotFound):
                await pool.act(box.id, LOCAL, Act.FREEZE)

        async def call() -> None:
            with pytest.raises(BoxNotFound):
                await use(pool, box.id)

        async with anyio.create_task_group() as group:
            group.start_soon(pool.act, box.id, LOCAL, Act.DELETE)
            await fault.reached.wait()
            group.start_soon(pause)
            group.start_soon(call)
            await quiet()
            fault.heal()


async def test_a_list_that_was_read_before_does_not_bring_a_deleted_box_back(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)

        async def look() -> None:
            for _ in range(20):
                deleted = "deleted" in bench.moves(box)
                assert await pool.boxes(LOCAL) == [] or not deleted
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for _ in range(4):
                await anyio.lowlevel.checkpoint()
                group.start_soon(look)
            group.start_soon(pool.act, box.id, LOCAL, Act.DELETE)
        assert pool.outlook(box) == (False, None)


# When the engine fails

FAILURES = [Refusal, Stumble, NoAnswer]


@pytest.mark.parametrize("at_exit", [False, True])
async def test_what_is_left_of_a_failed_creation_is_deleted_when_the_engine_is_well_again(
    tmp_path: Path, at_exit: bool
):
    faults = HalfDone("create"), NoAnswer("delete")
    bench = Bench(tmp_path, FaultyEngine(*faults))
    async with bench.pool() as pool:
        with pytest.raises(EngineError):
            await running_box(pool, IT)
        assert len(bench.engine.boxes) == 1
        assert await pool.boxes(LOCAL) == []
        faults[0].heal()
        await running_box(pool, IT)  # the name is free
        assert len(bench.engine.boxes) == 2
        await bench.pass_time(61)
        assert len(bench.engine.boxes) == 2
        faults[1].heal()
        if not at_exit:
            await bench.pass_time(61)
            assert len(bench.engine.boxes) == 1
    assert len(bench.engine.boxes) == 1
    assert [box.name for box in await bench.store.boxes()] == [IT]
    bench.close()


async def test_what_a_stalled_engine_makes_after_all_is_deleted(tmp_path: Path):
    fault = LateAnswer("create")
    bench = Bench(tmp_path, FaultyEngine(fault))
    async with bench.pool() as one, bench.pool() as two:
        with pytest.raises(EngineStalled):
            await running_box(one, IT)
        assert not bench.engine.boxes
        (left,) = await bench.store.boxes()
        fault.heal()
        await bench.engine.create(left.id, SPEC)
        for pool in (one, two):
            assert await pool.boxes(LOCAL) == []
        await bench.pass_time(61)
        assert not bench.engine.boxes
        assert await bench.store.boxes() == []
        for pool in (one, two):
            assert await pool.boxes(LOCAL) == []
    bench.close()


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("operation", ["create", "start", "connect to"])
async def test_after_a_failed_creation_the_next_one_works(
    kind: type[Fault], operation: str, bench_of: Callable[[Fault], Bench]
):
    fault = kind(operation)
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await pool.create(LOCAL, IT, SPEC)
        with pytest.raises(BoxError):
            await use(pool, box.id)
        fault.heal()
        await running_box(pool, IT)
        assert len(bench.engine.boxes) == 1


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize(
    ("state", "operation"),
    [
        (State.FROZEN, "thaw"),
        (State.STOPPED, "start"),
        (State.STOPPED, "connect to"),
        (State.RUNNING, "look at"),
    ],
)
async def test_after_a_failed_awakening_the_next_call_works(
    kind: type[Fault],
    state: State,
    operation: str,
    bench_of: Callable[[Fault], Bench],
):
    fault = kind(operation)
    fault.ill = False
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        match state:
            case State.FROZEN:
                await pool.act(box.id, LOCAL, Act.FREEZE)
            case State.STOPPED:
                await pool.act(box.id, LOCAL, Act.STOP)
            case _:
                bench.fake(box).end("killed")
        await quiet()
        fault.ill = True
        with pytest.raises(BoxError):
            await use(pool, box.id)
        fault.heal()
        await use(pool, box.id)
        assert (await pool.box(box.id, LOCAL)).state is State.RUNNING


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("act", [Act.FREEZE, Act.STOP, Act.DELETE])
async def test_after_a_failed_request_the_next_call_works(
    kind: type[Fault], act: Act, bench_of: Callable[[Fault], Bench]
):
    fault = kind(act)
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        with pytest.raises(BoxError):
            await pool.act(box.id, LOCAL, act)
        await use(pool, box.id)
        fault.heal()
        await pool.act(box.id, LOCAL, act)


@pytest.mark.parametrize("act", [Act.FREEZE, Act.STOP])
async def test_after_a_request_that_may_have_worked_the_next_call_works(
    act: Act, bench_of: Callable[[Fault], Bench]
):
    fault = LateAnswer(act)
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        with pytest.raises(EngineStalled):
            await pool.act(box.id, LOCAL, act)
        fault.heal()
        await use(pool, box.id)


async def test_a_box_whose_freezing_failed_rests_before_it_is_tried_again(
    bench_of: Callable[[Fault], Bench],
):
    fault = Refusal("freeze")
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        since = box.since
        await bench.pass_time(301)
        await bench.pass_time(30)
        assert bench.failures() == ["freeze"]
        assert (await pool.box(box.id, LOCAL)).since == since
        fault.heal()
        await bench.pass_time(30)
        assert bench.fake(box).condition is Condition.FROZEN


# When a box's daemon is not what it should be


@pytest.mark.parametrize("line", [BoxdThatFloods, BoxdThatSpeaksNonsense])
async def test_a_box_that_breaks_the_rules_fails_its_call_and_is_started_anew_by_the_next(
    line: type[FakeLine], bench_of: Callable[[Fault], Bench]
):
    fault = BadLine(line)
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await pool.create(LOCAL, None, SPEC)
        with pytest.raises(BoxBroken):
            await use(pool, box.id)
        fault.heal()
        assert "its files survived" in await use(pool, box.id)


async def test_a_box_that_hangs_up_interrupts_its_call_and_serves_the_next(
    bench_of: Callable[[Fault], Bench],
):
    fault = BadLine(BoxdThatHangsUp)
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await pool.create(LOCAL, None, SPEC)
        with pytest.raises(CallInterrupted):
            await use(pool, box.id)
        fault.heal()
        assert await use(pool, box.id) == ""


async def test_a_box_that_breaks_the_rules_unasked_is_given_up_in_time(
    bench_of: Callable[[Fault], Bench],
):
    fault = BadLine(BoxdThatShoutsAfterwards)
    fault.ill = False
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        for act in (Act.STOP, None, Act.FREEZE):
            fault.ill = True
            if act is not None:
                await pool.act(box.id, LOCAL, act)
            bench.fake(box).end("killed")
            await quiet()
            with pytest.raises(BoxBroken):
                await use(pool, box.id)
            fault.heal()
            await use(pool, box.id)


@pytest.mark.parametrize("line", [BoxdThatNeverGreets, BoxdThatShoutsAtOnce])
async def test_a_new_box_without_a_proper_daemon_leaves_nothing_behind(
    line: type[FakeLine], bench_of: Callable[[Fault], Bench]
):
    fault = BadLine(line)
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await pool.create(LOCAL, None, SPEC)
        with pytest.raises(BoxBroken):
            await use(pool, box.id)
        await quiet()
        assert not bench.engine.boxes


@pytest.mark.parametrize("line", [BoxdThatNeverGreets, BoxdThatShoutsAtOnce])
@pytest.mark.parametrize("act", [None, Act.FREEZE, Act.STOP])
async def test_a_box_whose_daemon_went_bad_fails_calls_in_time_until_it_is_well(
    line: type[FakeLine], act: Act | None, bench_of: Callable[[Fault], Bench]
):
    fault = BadLine(line)
    fault.ill = False
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
    fault.ill = True
    async with bench.pool() as pool:
        if act is not None:
            await pool.act(box.id, LOCAL, act)
        for _ in range(2):
            with pytest.raises(BoxBroken):
                await use(pool, box.id)
        fault.heal()
        await use(pool, box.id)


# Cancellation

Scenario = Callable[[Bench, Pool, BoxId], Awaitable[object]]


async def _nothing(bench: Bench, pool: Pool, box: BoxId) -> None:
    pass


async def _freeze(bench: Bench, pool: Pool, box: BoxId) -> None:
    await pool.act(box, LOCAL, Act.FREEZE)


async def _stop(bench: Bench, pool: Pool, box: BoxId) -> None:
    await pool.act(box, LOCAL, Act.STOP)


async def _kill(bench: Bench, pool: Pool, box: BoxId) -> None:
    bench.fake(box).end("killed")
    await quiet()


async def _leave_idle(bench: Bench, pool: Pool, box: BoxId) -> None:
    await bench.pass_time(60)


@pytest.mark.parametrize("before", [_nothing, _freeze, _stop, _kill, _leave_idle])
async def test_a_call_can_be_cancelled_at_any_moment(before: Scenario, tmp_path: Path):
    cycles, cancelled = 0, True
    while cancelled:
        bench = Bench(tmp_path / str(cycles))
        async with bench.pool() as pool:
            box = await running_box(pool)
            await before(bench, pool, box.id)
            cancelled = await cancelled_after(cycles, lambda: use(pool, box.id))  # noqa: B023
            await quiet()
            assert pool.statistics().claims == 0
            await use(pool, box.id)
        bench.close()
        cycles += 1
    assert cycles > 1


async def test_a_call_that_makes_its_box_can_be_cancelled_at_any_moment(tmp_path: Path):
    for policy in (WARM, Policy()):
        cycles, cancelled = 0, True
        while cancelled:
            bench = Bench(tmp_path / f"{policy.warm_max}-{cycles}")
            async with bench.pool(policy, SPEC) as pool:
                await bench.pass_time(2)
                cancelled = await cancelled_after(cycles, lambda: running_box(pool, IT))
                await quiet()
                boxes = await pool.boxes(LOCAL)
                box = boxes[0] if boxes else await running_box(pool, IT)
                await use(pool, box.id)
                assert len(await pool.boxes(LOCAL)) == 1
            bench.close()
            cycles += 1
        assert cycles > 3


@pytest.mark.parametrize("act", [Act.FREEZE, Act.STOP, Act.DELETE])
async def test_a_request_can_be_cancelled_at_any_moment(act: Act, tmp_path: Path):
    cycles, cancelled = 0, True
    while cancelled:
        bench = Bench(tmp_path / str(cycles))
        async with bench.pool() as pool:
            box = await running_box(pool)
            cancelled = await cancelled_after(
                cycles,
                lambda: pool.act(box.id, LOCAL, act),  # noqa: B023
            )
            await quiet()
            if await pool.boxes(LOCAL):
                await use(pool, box.id)
        bench.close()
        cycles += 1
    assert cycles > 3


async def test_the_pool_can_be_closed_at_any_moment_of_a_boxs_making(tmp_path: Path):
    for cycles in range(40):
        bench = Bench(tmp_path / str(cycles))
        async with bench.pool(WARM, SPEC):
            pass  # the store's file is made

        async def make(pool: Pool) -> None:
            try:
                await running_box(pool, IT)
            except ServerClosed:
                return
            except CallInterrupted:
                return

        async with anyio.create_task_group() as group:
            pool = Pool(bench.engine, bench.store, bench.path, WARM, SPEC, clock=bench.clock)
            async with pool.open():
                bench.clock.advance(3)
                group.start_soon(make, pool)
                for _ in range(cycles):
                    await anyio.lowlevel.checkpoint()
        stored = {box.id for box in await bench.store.boxes()}
        assert set(bench.engine.boxes) <= stored, "what is left behind can be found again"
        async with bench.pool() as pool:
            bench.clock.advance(60)
            for box in stored:
                await use(pool, box)
            if not stored:
                await running_box(pool, IT)
        bench.close()


async def test_boxes_that_do_not_let_go_hold_up_none_of_the_others(
    bench_of: Callable[[Fault], Bench], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(channels, "CLOSE_TIMEOUT", 0.1)
    ending: list[FakeLine] = []

    class Unread(FakeLine):
        """As to a box that reads nothing any more: it ends when it is given up."""

        async def aclose(self) -> None:
            ending.append(self)
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await super().aclose()

    bench = bench_of(BadLine(Unread))
    async with bench.pool() as pool:
        for _ in range(3):
            await running_box(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(pool.let_go)
            await quiet()
            assert len(ending) == 3


async def test_news_that_a_failed_call_could_not_tell_is_told_by_the_next(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await pool.act(box.id, LOCAL, Act.STOP)
        with anyio.CancelScope() as scope:
            async with pool.claim(box.id, LOCAL):
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        with pytest.raises(RuntimeError):
            async with pool.claim(box.id, LOCAL):
                raise RuntimeError
        assert "its files survived" in await use(pool, box.id)
        assert await use(pool, box.id) == ""


async def test_cancelled_calls_do_not_stop_what_was_begun_for_them(
    bench_of: Callable[[Fault], Bench],
):
    fault = Stall("thaw")
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        await pool.act(box.id, LOCAL, Act.FREEZE)
        async with anyio.create_task_group() as group:
            group.start_soon(use, pool, box.id)
            await fault.reached.wait()
            group.cancel_scope.cancel()
        fault.heal()
        await quiet()
        assert bench.fake(box).condition is Condition.RUNNING


# The end


async def test_a_closed_pool_takes_no_more_requests(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
    for request in (
        lambda: pool.create(LOCAL, None, SPEC),
        lambda: use(pool, box.id),
        lambda: pool.act(box.id, LOCAL, Act.FREEZE),
    ):
        with pytest.raises(ServerClosed):
            await request()


async def test_running_boxes_outlive_their_server(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool, IT)
        boot = bench.fake(box).boot
    async with bench.pool() as pool:
        assert [known.name for known in await pool.boxes(LOCAL)] == ["it"]
        assert await use(pool, box.id) == ""
        assert bench.fake(box).boot == boot


async def test_the_end_of_the_pool_interrupts_running_calls(bench: Bench):
    interrupted: list[bool] = []

    async def call(pool: Pool, box: BoxId, begun: anyio.Event, go: anyio.Event) -> None:
        async with pool.claim(box, LOCAL) as claim:
            begun.set()
            await go.wait()
            try:
                await claim.channel.request("stat", path="/")
            except CallInterrupted:
                interrupted.append(True)

    pool = Pool(bench.engine, bench.store, bench.path, Policy(), clock=bench.clock)
    begun, go = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        async with pool.open():
            box = await running_box(pool)
            group.start_soon(call, pool, box.id, begun, go)
            await begun.wait()
        go.set()
    assert interrupted == [True]
    assert pool.statistics().claims == 0


@pytest.mark.parametrize(
    ("operation", "act"),
    [
        ("create", None),
        ("start", None),
        ("connect to", None),
        ("freeze", Act.FREEZE),
        ("stop", Act.STOP),
        ("delete", Act.DELETE),
    ],
)
async def test_the_end_of_the_pool_gives_up_what_hangs_and_the_next_server_goes_on(
    operation: str, act: Act | None, bench_of: Callable[[Fault], Bench]
):
    fault = Stall(operation)
    bench = bench_of(fault)
    heard: list[BoxError] = []

    async def ask(pool: Pool, box: BoxId) -> None:
        try:
            if act is None:
                await use(pool, box)
            else:
                await pool.act(box, LOCAL, act)
        except BoxError as error:
            heard.append(error)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            pool = Pool(bench.engine, bench.store, bench.path, Policy(), clock=bench.clock)
            async with pool.open():
                box = await pool.create(LOCAL, IT, SPEC)
                if act is not None:
                    await use(pool, box.id)
                group.start_soon(ask, pool, box.id)
                await fault.reached.wait()
    assert [type(error) for error in heard] == [ServerClosed]
    fault.heal()
    async with bench.pool() as pool:
        boxes = await pool.boxes(LOCAL)
        await use(pool, boxes[0].id) if boxes else await running_box(pool, IT)


async def test_acts_that_end_in_time_are_waited_for_at_the_end(
    bench_of: Callable[[Fault], Bench], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pools, "EXIT_GRACE", 5)
    fault = Stall("freeze")
    bench = bench_of(fault)

    async def heal() -> None:
        await quiet()
        fault.heal()

    async with anyio.create_task_group() as group:
        pool = Pool(bench.engine, bench.store, bench.path, Policy(), clock=bench.clock)
        async with pool.open():
            await running_box(pool)
            bench.clock.advance(301)
            await fault.reached.wait()
            group.start_soon(heal)
    (box,) = await bench.store.boxes()
    assert (box.state, box.reason) == (State.STOPPED, "the last server ended")


async def test_a_pool_whose_server_is_cancelled_tidies_up(bench: Bench):
    with anyio.CancelScope() as scope:
        pool = Pool(bench.engine, bench.store, bench.path, WARM, SPEC, clock=bench.clock)
        async with pool.open():
            bench.clock.advance(2)
            await quiet()
            assert len(bench.engine.boxes) == 1
            scope.cancel()
            await anyio.sleep_forever()
    assert not bench.engine.boxes


# Several servers on one machine


async def test_a_box_of_one_server_is_found_and_used_by_another(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one, IT)
        assert [known.id for known in await two.boxes(LOCAL)] == [box.id]
        async with one.claim(box.id, LOCAL), two.claim(box.id, LOCAL) as claim:
            await claim.channel.request("stat", path="/")
        assert len(bench.fake(box).lines) == 2


async def test_a_name_is_taken_for_all_servers(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one, IT)
        with pytest.raises(NameTaken) as refusal:
            await two.create(LOCAL, IT, SPEC)
        assert refusal.value.holder == box.id


async def test_the_limit_holds_for_all_servers(bench: Bench):
    policy = Policy(room=Room(boxes=1))
    async with bench.pool(policy) as one, bench.pool(policy) as two:
        await running_box(one)
        with pytest.raises(LimitReached):
            await two.create(LOCAL, None, SPEC)


@pytest.mark.parametrize("pause_after", [300.0, 12.0])
async def test_a_box_is_not_frozen_under_the_running_call_of_another_server(
    bench: Bench, pause_after: float
):
    policy = Policy(pause_after=pause_after)
    async with bench.pool(policy) as one, bench.pool(policy) as two:
        box = await running_box(one)
        async with two.claim(box.id, LOCAL):
            for _ in range(40):
                await bench.pass_time(pause_after / 10)
                assert bench.fake(box).condition is Condition.RUNNING
        await bench.pass_time(pause_after * 1.4)
        assert bench.fake(box).condition is Condition.FROZEN


async def test_a_call_of_another_server_waits_for_the_freezing_and_thaws_the_box(
    bench_of: Callable[[Fault], Bench],
):
    fault = Stall("freeze")
    bench = bench_of(fault)
    async with bench.pool() as one, bench.pool(Policy(pause_after=None)) as two:
        box = await running_box(one)
        await use(two, box.id)
        await bench.pass_time(301)
        assert fault.reached.is_set()
        async with anyio.create_task_group() as group:
            group.start_soon(use, two, box.id)
            await quiet()
            assert two.statistics().acting == 1
            fault.heal()
        assert bench.moves(box) == ["running", "frozen", "running"]


async def test_a_box_in_use_by_another_server_is_neither_stopped_nor_deleted(bench: Bench):
    policy = Policy(stop_after=600, delete_after=1200)
    async with bench.pool(policy) as one, bench.pool(Policy()) as two:
        box = await running_box(one)
        await one.act(box.id, LOCAL, Act.FREEZE)
        await use(two, box.id)
        for _ in range(30):
            await bench.pass_time(100)
            await use(two, box.id)
            assert bench.fake(box).condition is Condition.RUNNING
        assert "frozen" in bench.moves(box)
        await use(one, box.id)


async def test_a_box_that_another_server_paused_is_known_to_be_so(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one)
        await use(two, box.id)
        await two.act(box.id, LOCAL, Act.STOP)
        assert (await one.boxes(LOCAL))[0].state is State.STOPPED
        assert "its files survived" in await use(one, box.id)
        await two.act(box.id, LOCAL, Act.FREEZE)
        assert (await one.box(box.id, LOCAL, fresh=True)).state is State.FROZEN
        assert (await one.act(box.id, LOCAL, Act.FREEZE)).state is State.FROZEN


@pytest.mark.parametrize("act", [Act.FREEZE, Act.STOP])
async def test_a_call_wakes_a_box_that_another_server_paused_or_woke(bench: Bench, act: Act):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one)
        await one.act(box.id, LOCAL, act)
        await use(two, box.id)
        await two.act(box.id, LOCAL, Act.STOP if act is Act.FREEZE else Act.FREEZE)
        await bench.pass_time(10)
        await use(one, box.id)
        await use(two, box.id)


async def test_a_box_that_another_server_deleted_is_not_found(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        boxes = [await running_box(one) for _ in range(3)]
        for box in boxes:
            await use(two, box.id)
            await two.act(box.id, LOCAL, Act.DELETE)
        await quiet()
        with pytest.raises(BoxNotFound):
            await use(one, boxes[0].id)
        with pytest.raises(BoxNotFound):
            await one.box(boxes[1].id, LOCAL, fresh=True)
        assert await one.boxes(LOCAL) == []


async def test_a_box_in_a_call_of_another_server_is_not_paused_or_deleted_on_request(
    bench: Bench,
):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one)
        await two.boxes(LOCAL)
        async with one.claim(box.id, LOCAL):
            for act in (Act.FREEZE, Act.STOP, Act.DELETE):
                with pytest.raises(IllegalMove, match="in use by a call of another server"):
                    await two.act(box.id, LOCAL, act)
        await two.act(box.id, LOCAL, Act.DELETE)
        with pytest.raises(BoxNotFound):
            await use(one, box.id)
        await bench.pass_time(100)
        assert await bench.store.boxes() == []


async def test_a_call_of_another_server_that_ends_soon_is_waited_for(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one)
        await two.boxes(LOCAL)
        async with anyio.create_task_group() as group, one.claim(box.id, LOCAL):
            group.start_soon(two.act, box.id, LOCAL, Act.STOP)
            await quiet()
        assert bench.fake(box).condition is Condition.STOPPED


async def test_a_box_that_another_server_is_making_is_left_to_it(
    bench_of: Callable[[Fault], Bench],
):
    fault = Stall("start")
    bench = bench_of(fault)
    async with bench.pool() as one, bench.pool() as two:
        box = await one.create(LOCAL, IT, SPEC)
        async with anyio.create_task_group() as group:
            group.start_soon(use, one, box.id)
            await fault.reached.wait()
            group.start_soon(use, two, box.id)
            await quiet()
            fault.heal()
        assert bench.moves(box) == ["running"]


@pytest.mark.parametrize("half_made", [False, True])
async def test_a_box_whose_maker_died_is_made_by_the_next_server(bench: Bench, half_made: bool):
    box = Box(mint_id(), SPEC, bench.clock.now(), principal=LOCAL)
    async with bench.pool() as pool:
        await bench.store.add(box, Room())
        if half_made:
            await bench.engine.create(box.id, SPEC)
        bench.clock.advance(20)
        assert await use(pool, box.id) == ""


async def test_news_of_another_server_waits_for_the_end_of_what_is_under_way(
    bench_of: Callable[[Fault], Bench],
):
    fault = Stall("freeze")
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        async with anyio.create_task_group() as group:
            group.start_soon(pool.act, box.id, LOCAL, Act.FREEZE)
            await fault.reached.wait()
            await bench.store.save(box.moved(Move.FREEZE, bench.clock.now() + 10, "elsewhere"))
            for look in (pool.box(box.id, LOCAL, fresh=True), pool.boxes(LOCAL)):
                await look
                assert (await pool.box(box.id, LOCAL)).state is State.RUNNING
            fault.heal()
        assert (await pool.box(box.id, LOCAL, fresh=True)).reason == "elsewhere"


async def test_a_request_is_done_though_another_server_used_the_box(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one)
        await bench.pass_time(100)
        await use(two, box.id)
        assert (await one.act(box.id, LOCAL, Act.FREEZE)).state is State.FROZEN


async def test_it_all_works_on_real_threads_and_the_real_clock(tmp_path: Path):
    engine = FakeEngine()
    stores = Store(tmp_path / "state.db"), Store(tmp_path / "state.db")
    policy = Policy()
    with anyio.fail_after(10):
        async with (
            Pool(engine, stores[0], tmp_path, policy).open() as one,
            Pool(engine, stores[1], tmp_path, policy).open() as two,
        ):
            box = await running_box(one, IT)
            async with anyio.create_task_group() as group:
                for pool in (one, two) * 5:
                    group.start_soon(use, pool, box.id)
            await two.act(box.id, LOCAL, Act.STOP)
            assert "its files survived" in await use(one, box.id)
            await one.act(box.id, LOCAL, Act.DELETE)
    for store in stores:
        await store.aclose()
    assert not engine.boxes


# Spares of several servers


async def test_servers_share_spares(bench: Bench):
    async with bench.pool(WARM, SPEC) as one:
        await bench.pass_time(3)
        async with bench.pool(WARM, SPEC) as two:
            await bench.pass_time(3)
            assert (
                one.statistics().spares == two.statistics().spares == len(bench.engine.boxes) == 1
            )
            (spare,) = bench.engine.boxes
            box = await running_box(two, IT)
            assert box.id == spare
            assert await use(one, box.id) == ""


async def test_a_spare_is_one_servers_box_only(bench: Bench):
    async with bench.pool(WARM, SPEC) as one, bench.pool(WARM, SPEC) as two:
        await bench.pass_time(3)
        made: list[BoxId] = []

        async def make(pool: Pool) -> None:
            made.append((await running_box(pool)).id)

        async with anyio.create_task_group() as group:
            for pool in (one, two, one, two):
                group.start_soon(make, pool)
        assert len(set(made)) == 4


async def test_a_spare_that_another_server_was_faster_to_give_away_keeps_its_name(bench: Bench):
    async with bench.pool(WARM, SPEC) as one:
        await bench.pass_time(3)
        async with bench.pool(WARM, SPEC) as two:
            await bench.pass_time(3)
            first = await one.create(LOCAL, None, SPEC)
            second = await two.create(LOCAL, IT, SPEC)
            names = {box.id: box.name for box in await two.boxes(LOCAL)}
            assert names == {first.id: None, second.id: IT}


async def test_spares_stay_while_another_server_lives(bench: Bench):
    async with bench.pool(WARM, SPEC) as one:
        async with bench.pool(WARM, SPEC):
            await bench.pass_time(3)
        await one.boxes(LOCAL)
        await bench.pass_time(3)
        assert one.statistics().spares >= 1
        await running_box(one)
    assert len(bench.engine.boxes) == 1


async def test_a_spare_whose_maker_died_over_it_is_removed(bench: Bench):
    half_made = Box(mint_id(), SPEC, bench.clock.now())
    await bench.store.add(half_made, Room())
    await bench.engine.create(half_made.id, SPEC)
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(3)
        assert half_made.id not in bench.engine.boxes
        assert pool.statistics().spares == 1


async def test_a_spare_that_hangs_is_not_handed_out_and_nobody_notices(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(3)
        (spare,) = bench.engine.boxes
        bench.fake(spare).condition = Condition.FROZEN
        await bench.pass_time(10)
        box = await running_box(pool)
        assert box.id != spare
        await quiet()
        assert spare not in bench.engine.boxes


async def test_more_spares_are_kept_when_more_boxes_are_asked_for(bench: Bench):
    async with bench.pool(Policy(warm_min=1, warm_max=3), SPEC) as pool:
        await bench.pass_time(3)
        assert pool.statistics().spares == 1
        for _ in range(5):
            await running_box(pool)
        await quiet()
        assert pool.statistics().spares == 3
        for _ in range(4):
            await bench.pass_time(61)
        assert pool.statistics().spares == 1


# Room


async def test_an_idle_box_is_frozen_for_a_call_that_needs_its_place(bench: Bench):
    async with bench.pool(Policy(room=Room(awake=1))) as pool:
        first = await running_box(pool)
        await bench.pass_time(5)
        second = await running_box(pool)
        assert bench.moves(first) == ["running", "frozen"]
        assert (await pool.box(first.id, LOCAL)).reason == "to make room"
        await bench.pass_time(5)
        await use(pool, first.id)
        assert bench.moves(second) == ["running", "frozen"]


async def test_a_call_waits_for_room_and_is_refused_when_none_comes(bench: Bench):
    async with bench.pool(Policy(room=Room(awake=1), queue_timeout=20)) as pool:
        first = await running_box(pool)
        second = await pool.create(LOCAL, None, SPEC)
        async with pool.claim(first.id, LOCAL), anyio.create_task_group() as group:
            group.start_soon(refused, pool, second.id)
            for _ in range(3):
                await bench.pass_time(10)
        await bench.pass_time(5)
        await use(pool, second.id)


async def test_room_is_counted_over_all_servers(bench: Bench):
    policy = Policy(room=Room(awake=1), queue_timeout=5)
    async with bench.pool(policy) as one, bench.pool(policy) as two:
        first = await running_box(one)
        async with one.claim(first.id, LOCAL):
            second = await two.create(LOCAL, None, SPEC)
            async with anyio.create_task_group() as group:
                group.start_soon(refused, two, second.id)
                for _ in range(8):
                    await anyio.sleep(0.12)
                    await bench.pass_time(1)
        assert bench.fake(first).condition is Condition.RUNNING
        assert second.id not in bench.engine.boxes


async def refused(pool: Pool, box: BoxId) -> None:
    with pytest.raises(LimitReached, match="The limit of 1 running boxes is reached"):
        await use(pool, box)


# The last server and the next


async def test_the_last_server_stops_frozen_boxes_and_no_other_does(bench: Bench):
    async with bench.pool():
        async with bench.pool() as two:
            box = await running_box(two)
            await two.act(box.id, LOCAL, Act.FREEZE)
        assert bench.fake(box).condition is Condition.FROZEN
    assert bench.fake(box).condition is Condition.STOPPED


async def test_a_box_that_was_frozen_when_its_last_server_died_is_stopped_by_the_next(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        other = await running_box(pool)
    for one in (box, other):
        await bench.engine.freeze(one.id)
        await bench.store.save(one.moved(Move.FREEZE, bench.clock.now()))
    async with bench.pool() as pool:
        await use(pool, other.id)
        await bench.pass_time(599)
        assert bench.fake(box).condition is Condition.FROZEN
        await bench.pass_time(10)
        assert bench.fake(box).condition is Condition.STOPPED
        assert bench.fake(other).condition is not Condition.STOPPED


async def test_what_a_dead_server_had_made_ahead_is_removed_while_others_live(bench: Bench):
    async with bench.pool(WARM, SPEC):
        doomed = Presence(bench.path / "servers").__enter__()
        await bench.pass_time(3)
        left = mint_id()
        await abandon(bench, left)
        await bench.pass_time(3)
        assert left in bench.engine.prepared  # nobody ended yet
        doomed.__exit__(None, None, None)
        await bench.pass_time(3)
        assert len(bench.engine.prepared - {left}) == len(bench.engine.prepared) == 2
        tickets = {path.stem for path in (bench.path / "boxes").iterdir()}
        assert tickets == bench.engine.boxes.keys() | bench.engine.prepared


async def test_what_servers_had_made_ahead_is_removed_by_the_next_to_start(bench: Bench):
    await abandon(bench, mint_id())
    async with bench.pool():
        await bench.pass_time(3)
        assert bench.engine.prepared == set()
        assert list((bench.path / "boxes").iterdir()) == []


async def test_what_another_server_has_made_ahead_is_left_to_it(bench: Bench):
    async with bench.pool(WARM, SPEC):
        await bench.pass_time(3)
        await bench.pass_time(3)
        ahead = set(bench.engine.prepared)
        assert len(ahead) == 2
        async with bench.pool():
            await bench.pass_time(3)
            assert bench.engine.prepared == ahead


async def test_what_was_made_ahead_and_can_not_be_removed_at_the_end_is_left_to_the_next(
    bench_of: Callable[[Fault], Bench],
):
    fault = Refusal("delete")
    fault.ill = False
    bench = bench_of(fault)
    async with bench.pool(replace(WARM, warm_min=0), SPEC):
        await bench.pass_time(3)
        await bench.pass_time(3)
        fault.ill = True
    assert bench.engine.prepared
    fault.heal()
    async with bench.pool():
        await bench.pass_time(3)
        assert bench.engine.prepared == set()


async def test_what_was_made_ahead_for_a_box_with_a_refused_name_is_for_the_next(bench: Bench):
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(3)
        await bench.pass_time(3)
        await running_box(pool, IT)
        await bench.pass_time(3)
        ahead = set(bench.engine.prepared)
        with pytest.raises(NameTaken):
            await pool.create(LOCAL, IT, replace(SPEC, cpus=2))
        assert bench.engine.prepared == ahead
        assert (await running_box(pool, spec=replace(SPEC, cpus=2))).id in ahead


async def test_a_box_without_a_record_stays(bench: Bench):
    stranger = mint_id()
    await bench.engine.create(stranger, SPEC)
    async with bench.pool():
        await bench.pass_time(3)
        assert stranger in bench.engine.boxes
        await bench.engine.delete(stranger)


@pytest.mark.parametrize("needed", [False, True])
async def test_a_copy_without_a_name_stays_only_if_a_box_needs_it(bench: Bench, needed: bool):
    async with bench.pool() as pool:
        box = await running_box(pool)
        saved = await bench.engine.save(box.id, None, {})
        named = await bench.engine.save(box.id, "named", {})
        if needed:
            await pool.create(LOCAL, None, replace(SPEC, image=saved.image))
        await bench.pass_time(3)
        assert bench.engine.saves.keys() == {named.image, *([saved.image] if needed else [])}


async def test_a_copy_that_is_about_to_be_needed_stays(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one)
        async with two.tickets.sharing_images():
            saved = await bench.engine.save(box.id, None, {})
            await bench.pass_time(3)
            assert saved.image in bench.engine.saves
        await bench.pass_time(3)
        assert saved.image not in bench.engine.saves


async def abandon(bench: Bench, box: BoxId) -> None:
    """Something made ahead, of a server that was killed."""
    await bench.engine.prepare(box)
    ticket = Tickets(bench.path / "boxes").ticket(box)
    assert ticket.take()
    ticket.close()


async def test_a_box_whose_server_died_over_stopping_it_is_started_by_the_next_call(bench: Bench):
    async with bench.pool() as pool:
        box = await running_box(pool)
        await pool.act(box.id, LOCAL, Act.FREEZE)
        await bench.engine.stop(box.id)
        assert "was started again" in await use(pool, box.id)


async def test_a_box_that_another_server_deleted_before_it_was_made_is_not_made(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await one.create(LOCAL, None, SPEC)
        await two.box(box.id, LOCAL)
        slot = two._roster.slots[box.id]  # pyright: ignore[reportPrivateUsage]
        await two._worker.begin(slot, Act.CHECK, "").done.wait()  # pyright: ignore[reportPrivateUsage]
        await one.act(box.id, LOCAL, Act.DELETE)
        with pytest.raises(BoxNotFound):
            await use(two, box.id)
        assert not bench.engine.boxes


async def test_a_spare_that_another_server_gives_away_is_found_while_it_is_looked_at(
    bench: Bench,
):
    async with bench.pool(WARM, SPEC) as one, bench.pool() as two:
        await bench.pass_time(3)
        (spare,) = bench.engine.boxes
        await two.boxes(LOCAL)
        slot = two._roster.slots[spare]  # pyright: ignore[reportPrivateUsage]
        job = two._worker.begin(slot, Act.CHECK, "")  # pyright: ignore[reportPrivateUsage]
        box = await one.create(LOCAL, IT, SPEC)
        assert (box.id, job.done.is_set()) == (spare, False)
        assert await two.named(IT, LOCAL) == spare


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("called", [False, True])
async def test_a_box_whose_server_died_over_its_deletion_is_deleted_by_the_next(
    bench: Bench, deleted: bool, called: bool
):
    async with bench.pool() as pool:
        box = await running_box(pool)
    await bench.store.save(box.noted(DOOMED, bench.clock.now()))
    if deleted:
        await bench.engine.delete(box.id)
    async with bench.pool() as pool:
        if called and deleted:
            with pytest.raises(BoxNotFound):
                await use(pool, box.id)
        elif called:
            await use(pool, box.id)
        await bench.pass_time(3)
        assert await pool.boxes(LOCAL) == await bench.store.boxes() == []
        assert not bench.engine.boxes


async def test_the_place_of_a_box_whose_server_died_over_waking_it_is_free_again(bench: Bench):
    policy = Policy(room=Room(awake=1), queue_timeout=5)
    now = bench.clock.now()
    dead = Box(mint_id(), SPEC, created=now, used=now, since=now, principal=LOCAL)
    await bench.store.add(dead, Room())
    assert await bench.store.reserve(dead, policy.room)
    async with bench.pool(policy) as pool:
        await bench.pass_time(3)
        await running_box(pool)
        await bench.pass_time(10)
        await use(pool, dead.id)  # it never ran, so nothing is lost


# Saving and setting up


async def allowed() -> None:
    """Nothing speaks against it."""


@pytest.mark.parametrize("act", [None, Act.FREEZE, Act.STOP])
async def test_a_box_is_saved_as_it_is_and_not_woken_for_it(bench: Bench, act: Act | None):
    async with bench.pool() as pool:
        box = await running_box(pool)
        if act is not None:
            await pool.act(box.id, LOCAL, act)
        before = bench.moves(box)
        saved = await pool.save(box.id, LOCAL, Save("tag", {"a": "b"}, allowed))
        assert bench.moves(box) == before
        assert [image.image for image in await bench.engine.saved()] == [saved.image]


async def test_a_box_in_use_here_and_elsewhere_is_saved(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one)
        async with one.claim(box.id, LOCAL), two.claim(box.id, LOCAL) as claim:
            await one.save(box.id, LOCAL, Save(None, {}, allowed))
            await claim.channel.request("stat", path="/")


async def test_a_box_that_stands_still_while_another_server_saves_it_is_waited_for(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one)
        fake = bench.fake(box)
        async with anyio.create_task_group() as group, one.tickets.alone_with(f"{box.id}-save"):
            fake.condition = Condition.FROZEN
            group.start_soon(use, two, box.id)
            await quiet()
            assert two.statistics().acting == 1
            fake.condition = Condition.RUNNING
        assert bench.moves(box) == [State.RUNNING]


async def test_a_box_that_never_ran_has_nothing_to_save(bench: Bench):
    async with bench.pool() as pool:
        box = await pool.create(LOCAL, None, SPEC)
        with pytest.raises(IllegalMove, match="save"):
            await pool.save(box.id, LOCAL, Save(None, {}, allowed))


async def test_a_failed_save_leaves_the_box_as_it_was(bench_of: Callable[[Fault], Bench]):
    fault = Refusal("save")
    bench = bench_of(fault)
    async with bench.pool() as pool:
        box = await running_box(pool)
        with pytest.raises(EngineError):
            await pool.save(box.id, LOCAL, Save(None, {}, allowed))
        await use(pool, box.id)
        fault.heal()
        await pool.save(box.id, LOCAL, Save(None, {}, allowed))


async def test_a_new_box_is_set_up_once_and_its_first_call_hears_of_it(bench: Bench):
    done: list[BoxId] = []

    async def setup(channel: Channel, box: Box) -> str:
        await channel.request("stat", path="/")
        done.append(box.id)
        return "[it was set up]"

    async with bench.pool(setup=setup) as pool:
        box = await pool.create(LOCAL, None, replace(SPEC, setup="make"))
        assert await use(pool, box.id) == "[it was set up]"
        assert await use(pool, box.id) == ""
        await pool.act(box.id, LOCAL, Act.STOP)
        await use(pool, box.id)
        await running_box(pool)
    assert done == [box.id]


async def test_a_box_is_found_by_its_name_on_every_server(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one, IT)
        assert await two.named(IT, LOCAL) == await one.named(IT, LOCAL) == box.id
        with pytest.raises(BoxNotFound):
            await one.named(IT, SOMEBODY)


async def test_what_one_server_makes_alone_no_other_makes_meanwhile(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        order: list[str] = []

        async def name(pool: Pool, word: str) -> None:
            async with pool.tickets.alone_with("it"):
                order.append(word)
                await anyio.sleep(0.02)
                order.append(word)

        async with anyio.create_task_group() as group:
            group.start_soon(name, one, "a")
            group.start_soon(name, two, "b")
        assert order in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


# What is left of boxes that are no more


async def test_no_ticket_outlives_its_box(bench: Bench):
    async with bench.pool() as one, bench.pool() as two:
        in_use, known_twice = await running_box(one), await running_box(one)
        await use(two, known_twice.id)
        async with one.claim(in_use.id, LOCAL):
            await one.act(in_use.id, LOCAL, Act.DELETE)
        await one.act(known_twice.id, LOCAL, Act.DELETE)
        with pytest.raises(BoxNotFound):
            await two.act(known_twice.id, LOCAL, Act.FREEZE)
        assert list((bench.path / "boxes").glob("box-*")) == []


async def test_other_servers_know_how_long_a_call_has_used_its_box(bench: Bench):
    """Else they would delete it as unused, if this server died in the middle of the call."""
    async with bench.pool() as one, bench.pool() as two:
        box = await running_box(one)
        for begun in (False, True):
            await bench.pass_time(100)
            async with one.claim(box.id, LOCAL):
                await bench.pass_time(100 if begun else 0)
                known = await two.box(box.id, LOCAL, fresh=True)
                assert known.used == bench.clock.now()


async def test_a_spare_that_found_no_room_is_tried_again_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "CROWDED_RETRY", 0)
    policy = replace(WARM, room=Room(awake=1))
    async with bench.pool(policy, SPEC) as one, bench.pool(policy) as two:
        box = await running_box(two)
        await bench.pass_time(3)
        assert set(bench.engine.boxes) == {box.id}
        await one.act(box.id, LOCAL, Act.STOP)
        await bench.pass_time(31)
        assert one.statistics().spares == 1
        assert len(bench.engine.boxes) == 2


async def test_another_box_makes_room_when_the_longest_unused_is_in_use_elsewhere(bench: Bench):
    policy = Policy(room=Room(awake=2))
    async with bench.pool(policy) as one, bench.pool(policy) as two:
        in_use, idle = await running_box(one), await running_box(one)
        async with two.claim(in_use.id, LOCAL), anyio.create_task_group() as group:
            await bench.pass_time(6)
            group.start_soon(running_box, one)
            for _ in range(3):
                await bench.pass_time(1)
        assert bench.fake(in_use).condition is Condition.RUNNING
        assert bench.fake(idle).condition is Condition.FROZEN


async def test_a_network_whose_making_failed_in_the_end_is_removed(
    bench_of: Callable[[Fault], Bench],
):
    fault = LateAnswer("prepare")
    bench = bench_of(fault)
    async with bench.pool(WARM, SPEC) as pool:
        await bench.pass_time(3)
        (left,) = bench.engine.prepared
        fault.heal()
        await bench.pass_time(31)
        await bench.pass_time(3)
        assert left not in bench.engine.prepared
        assert bench.engine.prepared == set(pool._roster.stock)  # pyright: ignore[reportPrivateUsage]
