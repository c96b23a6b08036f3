from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from box_mcp.domain.box import State
from box_mcp.domain.catalogue import Catalogue, Order
from box_mcp.domain.limits import Room
from box_mcp.domain.names import LOCAL, BoxId, Principal, mint_id
from box_mcp.domain.plan import Act, Policy
from box_mcp.engines.base import Condition
from box_mcp.errors import (
    BoxLost,
    BoxNotFound,
    IllegalMove,
    ImageMissing,
    InvalidArgument,
    InvalidName,
    LimitReached,
    NameTaken,
    StoreUnusable,
)
from box_mcp.lifecycle import Caller, Lifecycle, pause_act
from tests.support.invariants import SPEC, Bench, cancelled_after, quiet

ME = Caller(LOCAL, "talk")
MYSELF = Caller(LOCAL, "another talk")
SOMEBODY = Caller(Principal("somebody"), "talk")
SIZES = {"small": (1.0, 2**30), "large": (4.0, 8 * 2**30)}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@asynccontextmanager
async def serving(bench: Bench, policy: Policy | None = None) -> AsyncGenerator[Lifecycle, None]:
    """A server's lifecycle, whose pool is checked at the end."""
    async with bench.pool(policy or Policy(), SPEC) as pool:
        yield Lifecycle(pool, bench.store, bench.engine, Catalogue(SPEC, SIZES))


async def call(lifecycle: Lifecycle, caller: Caller, ref: str | None = None) -> tuple[str, str]:
    """A call; returns the box that it was in, and its news."""
    async with lifecycle.open(caller, ref) as claim:
        await claim.channel.request("stat", path="/")
        return claim.box.id, claim.news


# A conversation's own box


async def test_the_first_call_of_a_conversation_makes_its_box_and_says_so(bench: Bench):
    async with serving(bench) as lifecycle:
        box, news = await call(lifecycle, ME)
        assert news == f"[made the box {box} for this session; calls without `box` use it]"
        assert await call(lifecycle, ME) == (box, "")
        assert [report.box.id for report in await lifecycle.list(ME)] == [box]


async def test_first_calls_at_once_share_one_box(bench: Bench):
    boxes: set[str] = set()

    async def first(lifecycle: Lifecycle) -> None:
        boxes.add((await call(lifecycle, ME))[0])

    async with serving(bench) as lifecycle:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(first, lifecycle)
        assert len(boxes) == 1
        assert len(bench.engine.boxes) == 1


async def test_each_conversation_and_each_principal_has_its_own(bench: Bench):
    async with serving(bench) as lifecycle:
        boxes = {(await call(lifecycle, caller))[0] for caller in (ME, MYSELF, SOMEBODY)}
        assert len(boxes) == 3
        assert len(await lifecycle.list(ME)) == 2


async def test_a_conversation_finds_its_box_on_another_server(bench: Bench):
    async with serving(bench) as one, serving(bench) as two:
        box, _ = await call(one, ME)
        assert await call(two, ME) == (box, "")
    async with serving(bench) as three:
        assert await call(three, ME) == (box, "")


async def test_a_new_box_is_made_when_the_own_one_was_deleted(bench: Bench):
    async with serving(bench) as lifecycle:
        box, _ = await call(lifecycle, ME)
        await lifecycle.delete(ME, box)
        other, news = await call(lifecycle, ME)
        assert other != box
        assert "made the box" in news


async def test_what_another_server_made_after_a_deletion_is_found(bench: Bench):
    async with serving(bench) as one, serving(bench) as two:
        box, _ = await call(one, ME)
        await call(two, ME)
        await two.delete(ME, box)
        new, _ = await call(two, ME)
        await one.list(ME)
        assert await call(one, ME) == (new, "")


async def test_a_new_box_is_made_when_the_own_one_is_lost(bench: Bench):
    async with serving(bench) as lifecycle:
        box, _ = await call(lifecycle, ME)
        await bench.engine.delete(BoxId(box))
        await quiet()
        with pytest.raises(BoxLost):
            await call(lifecycle, ME)
        other, _ = await call(lifecycle, ME)
        assert other != box


async def test_an_own_box_that_could_not_start_is_made_anew_by_the_next_call(bench: Bench):
    async with serving(bench) as lifecycle:
        bench.engine.images.clear()
        with pytest.raises(ImageMissing):
            await call(lifecycle, ME)
        bench.engine.images["box-mcp:base"] = True
        _, news = await call(lifecycle, ME)
        assert "made the box" in news


async def test_a_first_call_can_be_cancelled_at_any_moment(tmp_path: Path):
    cycles, cancelled = 0, True
    while cancelled:
        bench = Bench(tmp_path / str(cycles))
        async with serving(bench) as lifecycle:
            cancelled = await cancelled_after(cycles, lambda: call(lifecycle, ME))
            await quiet()
            box, _ = await call(lifecycle, ME)
            assert [report.box.id for report in await lifecycle.list(ME)] == [box]
        bench.close()
        cycles += 1
    assert cycles > 5


async def test_a_conversation_whose_box_can_not_be_noted_keeps_it_as_long_as_the_server_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    async with serving(bench) as lifecycle:

        async def fail(*_: object) -> None:
            raise StoreUnusable(tmp_file, "disk full")

        tmp_file = Path("state.db")
        with monkeypatch.context() as patch:
            patch.setattr(bench.store, "set_own_box", fail)
            with pytest.raises(StoreUnusable):
                await call(lifecycle, ME)
        await call(lifecycle, ME)
        assert len(await lifecycle.list(ME)) == 1


# Which box is meant


async def test_a_box_is_found_by_id_and_by_name(bench: Bench):
    async with serving(bench) as lifecycle:
        made = await lifecycle.create(ME, Order("it"))
        assert made.box.state is State.RUNNING
        for ref in ("it", made.box.id):
            assert await lifecycle.find(MYSELF, ref) == made.box.id
            assert (await call(lifecycle, MYSELF, ref))[0] == made.box.id


@pytest.mark.parametrize("kind", ["id", "name"])
async def test_what_is_somebody_elses_is_as_unknown_as_what_is_not(bench: Bench, kind: str):
    async with serving(bench) as lifecycle:
        box = (await lifecycle.create(ME, Order("it"))).box
        ref, unknown = (box.id, mint_id()) if kind == "id" else ("it", "that")
        for request in (lifecycle.find, lifecycle.info, lifecycle.delete, lifecycle.resume):
            messages: list[str] = []
            for name in (ref, unknown):
                with pytest.raises(BoxNotFound) as refusal:
                    await request(SOMEBODY, name)
                messages.append(refusal.value.explain().replace(repr(name), ""))
            assert messages[0] == messages[1]
        assert await lifecycle.list(SOMEBODY) == []


@pytest.mark.parametrize("ref", ["", "No Name", "../x", "box-ABCDEFGH"])
async def test_what_can_be_no_name_is_not_found(bench: Bench, ref: str):
    async with serving(bench) as lifecycle:
        with pytest.raises(BoxNotFound):
            await lifecycle.find(ME, ref)


async def test_a_conversation_without_a_box_is_told_so_and_none_is_made(bench: Bench):
    async with serving(bench) as lifecycle:
        for request in (lifecycle.info, lifecycle.resume):
            with pytest.raises(BoxNotFound, match="it has made none yet"):
                await request(ME, None)
        assert not bench.engine.boxes


async def test_names_are_each_principals_own(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        with pytest.raises(NameTaken):
            await lifecycle.create(MYSELF, Order("it"))
        await lifecycle.create(SOMEBODY, Order("it"))


# What a box is made from


async def test_a_box_has_what_was_asked_for(bench: Bench):
    async with serving(bench) as lifecycle:
        spec = (await lifecycle.create(ME, Order(size="large", env={"A": "1"}))).box.spec
        assert (spec.size, spec.cpus, spec.memory) == ("large", 4.0, 8 * 2**30)
        assert dict(spec.env) == {"A": "1"}
        assert spec.image == SPEC.image


async def test_an_image_that_is_missing_leaves_no_box(bench: Bench):
    async with serving(bench) as lifecycle:
        with pytest.raises(ImageMissing):
            await lifecycle.create(ME, Order("it", image="no-such-image"))
        await quiet()
        assert await lifecycle.list(ME) == []


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0y"}, {"A\0B": "x"}], ids=repr)
async def test_what_can_be_no_variable_is_refused(bench: Bench, env: dict[str, str]):
    async with serving(bench) as lifecycle:
        with pytest.raises(InvalidArgument) as refusal:
            await lifecycle.create(ME, Order(env=env))
        assert refusal.value.name == "env"
        assert not bench.engine.boxes


async def test_an_unknown_size_is_refused_with_those_that_are_known(bench: Bench):
    async with serving(bench) as lifecycle:
        with pytest.raises(InvalidArgument, match="is none of small, large"):
            await lifecycle.create(ME, Order(size="huge"))


async def test_a_name_that_can_be_none_is_refused(bench: Bench):
    async with serving(bench) as lifecycle:
        with pytest.raises(InvalidName):
            await lifecycle.create(ME, Order("No Name"))


async def test_the_limit_holds_for_a_conversations_own_box_too(bench: Bench):
    async with serving(bench, Policy(room=Room(boxes=1))) as lifecycle:
        box, _ = await call(lifecycle, ME)
        with pytest.raises(LimitReached):
            await call(lifecycle, MYSELF)
        await lifecycle.delete(ME, box)
        await call(lifecycle, MYSELF)


# Pausing, looking, waking


async def test_a_box_is_paused_and_woken(bench: Bench):
    async with serving(bench) as lifecycle:
        box, _ = await call(lifecycle, ME)
        assert (await lifecycle.pause(ME, None, pause_act("frozen"))).box.state is State.FROZEN
        assert (await lifecycle.resume(ME, None)).box.state is State.RUNNING
        assert (await lifecycle.pause(ME, box, pause_act("stopped"))).box.state is State.STOPPED
        assert (await lifecycle.resume(ME, box)).box.state is State.RUNNING
        assert (await lifecycle.resume(ME, box)).box.state is State.RUNNING
        assert "its files survived" in (await call(lifecycle, ME))[1]


async def test_a_box_that_is_paused_so_already_is_not_paused_again(bench: Bench):
    async with serving(bench) as lifecycle:
        await call(lifecycle, ME)
        await lifecycle.pause(ME, None, Act.FREEZE)
        with pytest.raises(IllegalMove, match="is frozen: it can't freeze"):
            await lifecycle.pause(ME, None, Act.FREEZE)


async def test_an_unknown_depth_is_refused():
    with pytest.raises(InvalidArgument, match="is none of frozen, stopped"):
        pause_act("deep")


async def test_a_look_at_a_box_does_not_wake_it_and_tells_what_comes_next(bench: Bench):
    async with serving(bench) as lifecycle:
        box, _ = await call(lifecycle, ME)
        report = await lifecycle.info(ME, None)
        assert (report.busy, report.next_act) == (False, Act.FREEZE)
        await bench.pass_time(301)
        report = await lifecycle.info(ME, box)
        assert (report.box.state, report.next_act) == (State.FROZEN, Act.STOP)
        assert report.next_at == report.box.since + 3600
        assert bench.fake(report.box).condition is Condition.FROZEN


async def test_a_look_at_a_box_shows_what_another_server_did(bench: Bench):
    async with serving(bench) as one, serving(bench) as two:
        box, _ = await call(one, ME)
        await two.pause(ME, box, Act.STOP)
        assert (await one.info(ME, box)).box.state is State.STOPPED


async def test_a_deleted_box_is_reported_as_it_was(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        deleted = await lifecycle.delete(ME, "it")
        assert (deleted.name, deleted.state) == ("it", State.DELETED)
        with pytest.raises(BoxNotFound):
            await lifecycle.delete(ME, "it")
