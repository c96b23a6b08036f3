from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from box_mcp.capabilities.files import Files
from box_mcp.domain.box import BoxSpec, State, Terms
from box_mcp.domain.catalogue import MAX_MODEL, MAX_TEXT, Catalogue, Ceiling, Order, Profile
from box_mcp.domain.limits import Room
from box_mcp.domain.names import LOCAL, BoxId, Principal, mint_id
from box_mcp.domain.network import Mode, Network
from box_mcp.domain.plan import Act, Policy
from box_mcp.engines.base import Condition, Saved
from box_mcp.engines.fake import FakeImage
from box_mcp.errors import (
    BoxBroken,
    BoxLost,
    BoxNotFound,
    DiskFull,
    IllegalMove,
    ImageMissing,
    InvalidArgument,
    InvalidName,
    LimitReached,
    NameTaken,
    NoBoxYet,
    SnapshotNotFound,
    StoreUnusable,
)
from box_mcp.lifecycle import Caller, Lifecycle, pause_act
from tests.support.faults import (
    BoxdThatShoutsAtOnce,
    Dawdling,
    FaultyEngine,
    NoAnswer,
    Refusal,
    Stall,
)
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
async def serving(
    bench: Bench, policy: Policy | None = None, *, offer: Catalogue | None = None
) -> AsyncGenerator[Lifecycle, None]:
    """A server's lifecycle, whose pool is checked at the end."""
    async with bench.pool(policy or Policy(), SPEC) as pool:
        yield Lifecycle(pool, bench.store, bench.engine, offer or Catalogue(SPEC, SIZES))


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
            with pytest.raises(NoBoxYet):
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


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("env", {str(number): "x" * 1000 for number in range(1 + MAX_TEXT // 1000)}),
        ("setup", "x" * (MAX_TEXT + 1)),
        ("model", "x" * (MAX_MODEL + 1)),
    ],
)
async def test_texts_that_all_servers_would_carry_with_a_box_are_bounded(
    bench: Bench, name: str, given: Any
):
    async with serving(bench) as lifecycle:
        with pytest.raises(InvalidArgument) as refusal:
            await lifecycle.create(ME, Order(**{name: given}))
        assert refusal.value.name == name
        assert await lifecycle.known(ME) == []


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


@pytest.mark.parametrize("act", [Act.FREEZE, Act.STOP])
async def test_a_box_that_is_paused_so_already_is_left_as_it_is(bench: Bench, act: Act):
    async with serving(bench) as lifecycle:
        await call(lifecycle, ME)
        first = await lifecycle.pause(ME, None, act)
        assert await lifecycle.pause(ME, None, act) == first


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


# What can be ordered


NONE = Network(Mode.NONE)


def catalogue(**facts: Any) -> Catalogue:
    profile = Profile(
        size="large", env={"A": "profile", "B": "profile"}, setup="make", network=NONE, cwd="/app"
    )
    return Catalogue(SPEC, SIZES, profiles={"web": profile}, **facts)


@pytest.mark.parametrize(("usual", "profiled"), [(True, False), (False, True)])
def test_root_in_a_box_is_for_settings_and_their_profiles_to_give(usual: bool, profiled: bool):
    offer = Catalogue(
        replace(SPEC, sudo=usual), SIZES, profiles={"it": Profile(sudo=profiled), "as": Profile()}
    )
    assert offer.spec(Order()).sudo is offer.spec(Order(profile="as")).sudo is usual
    assert offer.spec(Order(profile="it")).sudo is profiled


def test_a_copy_of_a_box_with_root_has_it_only_while_some_box_may():
    order = Order(snapshot="it")
    assert Catalogue(SPEC, SIZES).spec(order, SPEC).sudo
    strict = Catalogue(replace(SPEC, sudo=False), SIZES)
    assert not strict.spec(order, SPEC).sudo
    assert replace(strict, profiles={"it": Profile(sudo=True)}).spec(order, SPEC).sudo


@pytest.mark.parametrize(
    ("profile", "wanted", "given"),
    [
        (None, None, None),
        (None, ["work"], ("work",)),
        (None, ["work", "work"], ("work",)),
        (None, [], ()),
        ("it", None, ("home",)),
        ("it", [], ()),
    ],
)
def test_an_order_takes_away_routes(
    profile: str | None, wanted: list[str] | None, given: tuple[str, ...] | None
):
    offer = Catalogue(
        SPEC, SIZES, profiles={"it": Profile(routes=("home",))}, routes=("work", "home")
    )
    spec = offer.spec(Order(profile=profile, routes=wanted))
    assert spec.routes == given
    assert offer.spec(Order(), spec).routes == given  # as of a snapshot
    assert BoxSpec.of(json.loads(json.dumps(spec.record()))) == spec


def test_an_order_gives_no_routes():
    offer = Catalogue(
        SPEC, SIZES, profiles={"it": Profile(routes=("home",))}, routes=("work", "home")
    )
    for order in (Order(routes=["play"]), Order(profile="it", routes=["work"])):
        with pytest.raises(InvalidArgument, match="none of this box's"):
            offer.spec(order)
    with pytest.raises(InvalidArgument, match="'work', which is none of this box's: home"):
        offer.spec(Order(routes=["work"]), replace(SPEC, routes=("home",)))


async def test_a_profile_is_a_template_and_what_is_asked_for_wins(bench: Bench):
    async with serving(bench, offer=catalogue()) as lifecycle:
        spec = (await lifecycle.create(ME, Order(profile="web", env={"A": "own"}))).box.spec
        assert (spec.size, spec.memory, spec.cwd) == ("large", 8 * 2**30, "/app")
        assert (spec.setup, spec.network) == ("make", NONE)
        assert dict(spec.env) == {"A": "own", "B": "profile"}
        order = Order(profile="web", size="small", setup="", network="full")
        spec = (await lifecycle.create(ME, order)).box.spec
        assert (spec.size, spec.setup, spec.network) == ("small", "", Network())


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (Order(profile="none"), "'profile' is not known: web"),
        (Order(network="open"), "'network' is none of full, allowlist, none"),
        (Order(env={"PATH": "/evil"}), "has PATH, which decides"),
        (Order(env={"LD_PRELOAD": "x.so"}), "has LD_PRELOAD, which decides"),
    ],
    ids=repr,
)
async def test_what_can_not_be_ordered_is_refused(bench: Bench, order: Order, words: str):
    async with serving(bench, offer=catalogue()) as lifecycle:
        with pytest.raises(InvalidArgument, match=re.escape(words)):
            await lifecycle.create(ME, order)
        assert not bench.engine.boxes


@pytest.mark.parametrize(
    ("name", "value"),
    [("GITHUB_TOKEN", "x"), ("A", "ghp_1234"), ("OPENAI_API_KEY", "x"), ("X", "sk-ant-123")],
)
async def test_what_looks_like_a_secret_is_warned_about(bench: Bench, name: str, value: str):
    async with serving(bench) as lifecycle:
        report = await lifecycle.create(ME, Order(env={name: value, "LANG": "C"}))
        assert report.notes[0].startswith(f"{name} looks like a secret")
        assert (await lifecycle.create(ME, Order(env={"LANG": "C"}))).notes == ()


async def test_a_box_keeps_what_its_maker_wanted(bench: Bench):
    terms = Terms(labels={"for": "tests"}, ttl=60.0, keep_awake=True)
    async with serving(bench) as lifecycle:
        made = await lifecycle.create(ME, Order(terms=terms))
        assert (made.box.terms, made.next_act) == (terms, Act.DELETE)
        await bench.pass_time(59)
        assert bench.fake(made.box).condition is Condition.RUNNING
        await bench.pass_time(1)
        assert await lifecycle.list(ME) == []


@pytest.mark.parametrize("allowed", [True, False])
async def test_forks_are_kept_awake_only_where_tools_may_do_that(bench: Bench, allowed: bool):
    async with serving(bench) as lifecycle:
        offer = lifecycle.catalogue
        lifecycle.catalogue = replace(offer, ceiling=Ceiling(keep_awake=allowed))
        await lifecycle.create(ME, Order("it", terms=Terms(keep_awake=True), approved=True))
        (fork,) = await lifecycle.fork(ME, "it", 1)
        assert fork.box.terms.keep_awake is allowed


async def test_a_box_of_a_name_is_reused_when_that_is_asked_for(bench: Bench):
    async with serving(bench) as one, serving(bench) as two:
        first = await one.create(ME, Order("it", reuse=True))
        assert first.notes == ()
        await one.pause(ME, "it", Act.STOP)
        again = await two.create(MYSELF, Order("it", reuse=True))
        assert (again.box.id, again.box.state) == (first.box.id, State.RUNNING)
        assert "was there already under this name" in again.notes[0]
        assert (await two.create(SOMEBODY, Order("it", reuse=True))).box.id != first.box.id


async def test_servers_that_reuse_a_name_at_once_have_one_box(bench: Bench):
    async with serving(bench) as one, serving(bench) as two:
        made: set[str] = set()

        async def make(lifecycle: Lifecycle) -> None:
            made.add((await lifecycle.create(ME, Order("it", reuse=True))).box.id)

        async with anyio.create_task_group() as group:
            for lifecycle in (one, two, one, two):
                group.start_soon(make, lifecycle)
        assert len(made) == 1


async def test_nothing_is_made_on_a_disk_that_is_nearly_full(bench: Bench):
    async with serving(bench, offer=catalogue(min_free_disk=2 * 2**30)) as lifecycle:
        box = (await lifecycle.create(ME, Order())).box.id
        bench.engine.free = 2**30
        for request in (
            lambda: lifecycle.create(ME, Order()),
            lambda: lifecycle.snapshot(ME, "it", box),
            lambda: lifecycle.fork(ME, box, 1),
        ):
            with pytest.raises(DiskFull, match=r"1\.0 GiB left, less than the 2\.0 GiB"):
                await request()
        assert [report.box.id for report in await lifecycle.list(ME)] == [box]
        assert await bench.engine.saved() == []


# Snapshots and forks


async def write(lifecycle: Lifecycle, ref: str, content: bytes) -> None:
    async with lifecycle.open(ME, ref) as claim:
        await Files(claim.channel).write("file", content)


async def content(lifecycle: Lifecycle, ref: str, caller: Caller = ME) -> bytes:
    async with lifecycle.open(caller, ref) as claim:
        return (await Files(claim.channel).read("file", 1, 9, 99)).content


async def test_a_snapshot_outlives_its_box_with_files_and_settings(bench: Bench):
    async with serving(bench) as lifecycle:
        order = Order("it", size="large", env={"A": "1"}, setup="make", network="none")
        box = (await lifecycle.create(ME, order)).box
        await write(lifecycle, box.id, b"saved\n")
        await lifecycle.snapshot(ME, "state", "it")
        await lifecycle.delete(ME, "it")
        made = (await lifecycle.create(MYSELF, Order(snapshot="state", env={"B": "2"}))).box
        assert await content(lifecycle, made.id, MYSELF) == b"saved\n"
        spec = made.spec
        assert (spec.size, spec.network, dict(spec.env)) == ("large", NONE, {"A": "1", "B": "2"})
        assert spec.setup == "", "it was run already"


async def test_snapshots_are_each_principals_own(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        await lifecycle.snapshot(ME, "state", "it")
        with pytest.raises(NameTaken, match="taken already"):
            await lifecycle.snapshot(MYSELF, "state", "it")
        assert await lifecycle.snapshots(SOMEBODY) == []
        for request in (
            lambda: lifecycle.delete_snapshot(SOMEBODY, "state"),
            lambda: lifecycle.create(SOMEBODY, Order(snapshot="state")),
            lambda: lifecycle.create(ME, Order(snapshot="No Name")),
        ):
            with pytest.raises(SnapshotNotFound):
                await request()
        await lifecycle.create(SOMEBODY, Order("it"))
        await lifecycle.snapshot(SOMEBODY, "state", "it")
        assert len(await bench.engine.saved()) == 2


async def test_a_deleted_snapshot_is_no_more_and_its_boxes_go_on(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        snapshot, _ = await lifecycle.snapshot(ME, "state", "it")
        assert [known for known, _ in await lifecycle.snapshots(ME)] == [snapshot]
        made = (await lifecycle.create(ME, Order(snapshot="state"))).box
        await lifecycle.delete_snapshot(ME, "state")
        assert await lifecycle.snapshots(ME) == []
        with pytest.raises(SnapshotNotFound):
            await lifecycle.delete_snapshot(ME, "state")
        await call(lifecycle, ME, made.id)
        await lifecycle.snapshot(ME, "state", made.id)


async def test_of_two_snapshots_of_one_name_at_once_one_is_made(bench: Bench):
    async with serving(bench) as one, serving(bench) as two:
        await one.create(ME, Order("it"))
        refusals: list[NameTaken] = []

        async def save(lifecycle: Lifecycle) -> None:
            try:
                await lifecycle.snapshot(ME, "state", "it")
            except NameTaken as refusal:
                refusals.append(refusal)

        async with anyio.create_task_group() as group:
            group.start_soon(save, one)
            group.start_soon(save, two)
        assert len(refusals) == 1
        assert len(await one.snapshots(ME)) == 1


async def test_a_cancelled_snapshot_keeps_its_name_until_it_is_made(tmp_path: Path):
    stall = Stall("save")
    bench = Bench(tmp_path, FaultyEngine(stall))
    async with serving(bench) as lifecycle:
        first = (await lifecycle.create(ME, Order("first"))).box
        await lifecycle.create(ME, Order("second"))
        async with anyio.create_task_group() as group:
            group.start_soon(lifecycle.snapshot, ME, "state", "first")
            await stall.reached.wait()
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            group.start_soon(refused, NameTaken, lifecycle.snapshot(ME, "state", "second"))
            await quiet()
            stall.heal()
        assert [known.origin for known, _ in await lifecycle.snapshots(ME)] == [first.id]
    bench.close()


async def refused(error: type[Exception], call: Awaitable[object]) -> None:
    """Waits for the call to fail so."""
    with pytest.raises(error):
        await call


async def test_a_fork_has_what_its_origin_had_and_goes_its_own_way(bench: Bench):
    async with serving(bench) as lifecycle:
        box = (await lifecycle.create(ME, Order("it", env={"A": "1"}))).box
        await write(lifecycle, "it", b"origin\n")
        forks = [report.box for report in await lifecycle.fork(ME, "it", 3)]
        assert len({fork.id for fork in forks} | {box.id}) == 4
        assert {fork.state for fork in forks} == {State.RUNNING}
        await write(lifecycle, forks[0].id, b"fork\n")
        assert (
            await content(lifecycle, "it") == await content(lifecycle, forks[1].id) == b"origin\n"
        )
        assert [fork.spec.env for fork in forks] == [{"A": "1"}] * 3
        assert await lifecycle.snapshots(ME) == []
        for fork in forks:
            await lifecycle.delete(ME, fork.id)
        assert await bench.engine.saved() == [], "the copy goes with the last fork"


async def test_a_fork_that_finds_no_place_leaves_nothing(bench: Bench):
    async with serving(bench, Policy(room=Room(boxes=3))) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        with pytest.raises(LimitReached):
            await lifecycle.fork(ME, "it", 5)
        await quiet()
        assert len(await lifecycle.list(ME)) == 1
        assert await bench.engine.saved() == []


@pytest.mark.parametrize("count", [0, -1, 1000])
async def test_a_fork_of_no_use_is_refused(bench: Bench, count: int):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        with pytest.raises(InvalidArgument, match="count"):
            await lifecycle.fork(ME, "it", count)


async def test_what_a_box_holds_and_what_changed_in_it_is_told(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        await write(lifecycle, "it", b"12345")
        assert (await lifecycle.usage(ME, "it")).disk == 5
        assert [one.path for one in await lifecycle.changes(ME, "it")] == ["/workspace/file"]
        await lifecycle.pause(ME, "it", Act.STOP)
        assert (await lifecycle.usage(ME, "it")).memory == 0
        for request in (lifecycle.usage, lifecycle.changes):
            with pytest.raises(BoxNotFound):
                await request(SOMEBODY, "it")


async def test_nothing_is_told_of_a_box_that_another_server_is_deleting(tmp_path: Path):
    deletion = Dawdling("delete")
    bench = Bench(tmp_path, FaultyEngine(deletion))
    async with serving(bench) as here, serving(bench) as there:
        await here.create(ME, Order("it"))
        await write(here, "it", b"12345")
        async with anyio.create_task_group() as group:
            group.start_soon(here.delete, ME, "it")
            await deletion.reached.wait()
            await quiet()
            for request in (there.usage, there.changes):
                with pytest.raises(BoxNotFound):
                    await request(ME, "it")
            deletion.heal()
        assert await there.list(ME) == []
    bench.close()


@pytest.mark.parametrize("found", [Condition.STOPPED, Condition.FROZEN, Condition.ABSENT])
async def test_boxes_are_told_as_the_engine_has_them_and_a_removed_one_as_lost(
    bench: Bench, found: Condition
):
    async with serving(bench) as lifecycle:
        box = (await lifecycle.create(ME, Order("it"))).box
    bench.fake(box).end("rebooted")
    bench.fake(box).condition = found
    if found is Condition.ABSENT:
        await bench.engine.delete(box.id)
    state = {Condition.FROZEN: State.FROZEN, Condition.STOPPED: State.STOPPED}.get(found)
    async with serving(bench) as one, serving(bench) as two:
        (listed,) = await one.list(ME)
        told = await two.info(ME, "it")
        assert {listed.box.state, told.box.state} == {state or State.LOST}
        assert listed.notes == told.notes == ()
        if found is Condition.ABSENT:
            assert "the engine has no such box" in told.box.reason


@pytest.mark.parametrize("what", ["pause", "snapshot", "changes"])
async def test_what_needs_a_box_that_somebody_removed_says_that_it_is_lost(bench: Bench, what: str):
    async with serving(bench) as lifecycle:
        box = (await lifecycle.create(ME, Order("it"))).box
        await lifecycle.pause(ME, "it", Act.STOP)
        await bench.engine.delete(box.id)
        requests = {
            "pause": lambda: lifecycle.pause(ME, "it", Act.FREEZE),
            "snapshot": lambda: lifecycle.snapshot(ME, "state", "it"),
            "changes": lambda: lifecycle.changes(ME, "it"),
        }
        with pytest.raises(IllegalMove if what == "pause" else BoxLost):
            await requests[what]()
        assert (await lifecycle.info(ME, "it")).box.state is State.LOST
        await lifecycle.delete(ME, "it")


async def test_a_box_that_somebody_woke_is_told_as_running_and_idles_again(bench: Bench):
    async with serving(bench) as lifecycle:
        box = (await lifecycle.create(ME, Order("it"))).box
        await lifecycle.pause(ME, "it", Act.FREEZE)
        bench.fake(box).condition = Condition.RUNNING
        report = await lifecycle.info(ME, "it")
        assert (report.box.state, report.next_act) == (State.RUNNING, Act.FREEZE)
        await bench.pass_time(301)
        assert (await lifecycle.info(ME, "it")).box.state is State.FROZEN


async def test_without_an_engine_boxes_are_told_as_last_known_and_that_is_said(tmp_path: Path):
    fault = Refusal("look at")
    fault.ill = False
    bench = Bench(tmp_path, FaultyEngine(fault))
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        fault.ill = True
        (listed,) = await lifecycle.list(ME)
        assert listed.box.state is State.RUNNING
        assert listed.notes[0].startswith("as last known: The container engine refused to look at")
    bench.close()


# What could not be given


async def test_a_box_that_found_no_room_in_time_leaves_nothing_and_its_name_is_free(bench: Bench):
    policy = Policy(room=Room(awake=1), queue_timeout=20)
    refusals: list[LimitReached] = []

    async def create(lifecycle: Lifecycle) -> None:
        with pytest.raises(LimitReached) as refused:
            await lifecycle.create(ME, Order("it"))
        refusals.append(refused.value)

    async with serving(bench, policy) as lifecycle, serving(bench, policy) as other:
        first, _ = await call(lifecycle, ME)
        async with lifecycle.open(ME, first), anyio.create_task_group() as group:
            group.start_soon(create, lifecycle)
            await quiet()
            assert len(await other.list(ME)) == 2
            await bench.pass_time(21)
        await quiet()
        assert len(refusals) == 1
        for each in (lifecycle, other):
            assert [report.box.id for report in await each.list(ME)] == [first]
        assert [box.id for box in await bench.store.boxes()] == [first]
        await lifecycle.pause(ME, first, Act.STOP)
        assert (await lifecycle.create(ME, Order("it"))).box.name == "it"


async def test_a_box_that_ended_before_it_could_be_given_is_deleted(bench: Bench):
    async with serving(bench) as lifecycle:
        bench.engine.line_type = BoxdThatShoutsAtOnce
        with pytest.raises(BoxBroken):
            await lifecycle.create(ME, Order("it"))
        await quiet()
        assert await lifecycle.list(ME) == []
        assert not bench.engine.boxes


async def test_forks_that_can_not_be_undone_are_nobodys_and_go_when_the_engine_is_well(
    tmp_path: Path,
):
    fault = NoAnswer("delete")
    bench = Bench(tmp_path, FaultyEngine(fault))
    policy = Policy(room=Room(boxes=3))
    async with serving(bench, policy) as lifecycle, serving(bench, policy) as other:
        await lifecycle.create(ME, Order("it"))
        with pytest.raises(LimitReached):
            await lifecycle.fork(ME, "it", 5)
        assert len(bench.engine.boxes) == 3
        for each in (lifecycle, other):
            assert [report.box.name for report in await each.list(ME)] == ["it"]
        fault.heal()
        await bench.pass_time(61)
        assert len(bench.engine.boxes) == 1
        await bench.pass_time(3)
        assert await bench.engine.saved() == []
        assert len(await other.list(ME)) == 1
    bench.close()


async def test_an_image_goes_though_the_fork_made_of_it_was_removed_behind_our_back(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        (fork,) = await lifecycle.fork(ME, "it", 1)
        await bench.engine.delete(fork.box.id)
        bench.engine.saves[fork.box.spec.image] = image = FakeImage(
            Saved(fork.box.spec.image, {}, 0, 0, 0), "box-mcp:base", {}
        )
        await quiet()
        assert (await lifecycle.info(ME, fork.box.id)).box.state is State.LOST
        await lifecycle.delete(ME, fork.box.id)
        assert bench.engine.saves == {fork.box.spec.image: image}
        await bench.pass_time(3)
        assert bench.engine.saves == {}


async def test_a_fork_can_be_cancelled_at_any_moment(tmp_path: Path):
    cycles = 0
    while True:
        bench = Bench(tmp_path / str(cycles))
        async with serving(bench) as lifecycle:
            await lifecycle.create(ME, Order("it"))
            cut = await cancelled_after(cycles, partial(lifecycle.fork, ME, "it", 2))
            await bench.pass_time(3)
            used = {box.spec.image for box in await bench.store.boxes()}
            assert set(bench.engine.saves) <= used
            if cut:
                assert [report.box.name for report in await lifecycle.list(ME)] == ["it"]
        bench.close()
        if not cut:
            return
        cycles += 1


async def test_boxes_are_not_lost_because_somebody_asked_another_engine_for_them(bench: Bench):
    async with serving(bench) as lifecycle:
        for name in ("one", "two"):
            await lifecycle.create(ME, Order(name))
    hidden = dict(bench.engine.boxes)
    bench.engine.boxes.clear()
    async with serving(bench) as lifecycle:
        for report in await lifecycle.list(ME):
            assert report.box.state is State.RUNNING
            assert "it has none of them; perhaps it is another engine" in report.notes[0]
        bench.engine.boxes.update(hidden)
        for report in await lifecycle.list(ME):
            assert (report.box.state, report.notes) == (State.RUNNING, ())
