"""What a box may reach: who may change it, when it holds, and what servers agree on."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.lowlevel import checkpoint

from box_mcp.domain.box import State, Terms
from box_mcp.domain.catalogue import Catalogue, Ceiling, Order
from box_mcp.domain.limits import Room
from box_mcp.domain.names import LOCAL, BoxId, Principal
from box_mcp.domain.network import Mode, Network, parse_rules
from box_mcp.domain.plan import TRUST, Act, Policy
from box_mcp.errors import BeyondCeiling, BoxLost, BoxNotFound, EngineRefused
from box_mcp.events import NetworkChanged
from box_mcp.lifecycle import Caller, Lifecycle
from box_mcp.tickets import LOCK_RETRY
from box_mcp.worker import SERVE_TIMEOUT
from tests.support.faults import FaultyEngine, Refusal
from tests.support.invariants import SPEC, Bench, cancelled_after, quiet

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

    from anyio.abc import TaskStatus

    from box_mcp.channel import Channel
    from box_mcp.domain.box import Box
    from box_mcp.services import Service

ME = Caller(LOCAL, "talk")
SOMEBODY = Caller(Principal("somebody"), "talk")
NONE, FULL = Network(Mode.NONE), Network()
ONE = Network(Mode.ALLOWLIST, parse_rules(["one.example"]))
TWO = Network(Mode.ALLOWLIST, parse_rules(["one.example", "two.example:22"]))
CLOSED = Catalogue(SPEC, {}, ceiling=Ceiling(ONE, images=("*:base",), keep_awake=False))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, FaultyEngine())
    yield bench
    bench.close()


@asynccontextmanager
async def serving(
    bench: Bench, *services: Service, offer: Catalogue | None = None
) -> AsyncGenerator[Lifecycle, None]:
    async with bench.pool(Policy(), services=services) as pool:
        yield Lifecycle(pool, bench.store, bench.engine, offer or Catalogue(SPEC, {}))


@asynccontextmanager
async def other_store(bench: Bench) -> AsyncGenerator[None, None]:
    """Pools that are opened now write as another process does."""
    before, bench.store = bench.store, type(bench.store)(bench.path / "state.db")
    try:
        yield
    finally:
        await bench.store.aclose()
        bench.store = before


def attached(bench: Bench) -> bool:
    (box,) = bench.engine.boxes.values()
    return box.attached


async def use(lifecycle: Lifecycle, ref: str = "it") -> Network:
    """A call in the box; what it may reach meanwhile."""
    async with lifecycle.open(ME, ref) as claim:
        return claim.box.network


async def test_a_running_box_is_cut_off_and_joined_at_once_also_under_a_call(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        async with lifecycle.open(ME, "it") as claim:
            for network in (NONE, FULL, ONE):
                report = await lifecycle.set_network(ME, "it", network)
                assert report.box.network == network
                assert attached(bench) is (network is FULL)
                await claim.channel.request("stat", path="/")
        assert bench.events.count(NetworkChanged(claim.box.id)) == 3


@pytest.mark.parametrize("act", [Act.FREEZE, Act.STOP])
async def test_a_paused_box_is_not_woken_for_it(bench: Bench, act: Act):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        paused = (await lifecycle.pause(ME, "it", act)).box.state
        assert (await lifecycle.set_network(ME, "it", NONE)).box.state is paused
        assert not attached(bench)
        assert await use(lifecycle) == NONE
        assert not attached(bench)


async def test_what_was_changed_outlives_server_and_store(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        await lifecycle.set_network(ME, "it", TWO)
    for path in bench.path.glob("state.db*"):
        path.unlink()
    bench.store = type(bench.store)(bench.path / "state.db")
    async with serving(bench) as lifecycle:
        assert await use(lifecycle) == TWO


async def test_another_server_learns_of_it_and_loses_no_time_over_it(bench: Bench):
    async with serving(bench) as one, serving(bench) as two:
        await one.create(ME, Order("it"))
        assert await use(two) == FULL
        await one.set_network(ME, "it", NONE)
        assert await use(two) == NONE
        await two.set_network(ME, "it", ONE)
        assert await use(one) == ONE


async def test_a_change_that_its_server_wrote_down_and_did_not_do_is_done_by_the_next_call(
    bench: Bench,
):
    assert isinstance(bench.engine, FaultyEngine)
    fault = Refusal("change the network of")
    async with serving(bench) as one, serving(bench) as two:
        await one.create(ME, Order("it"))
        await use(two)
        bench.engine.faults.append(fault)
        with pytest.raises(EngineRefused):
            await one.set_network(ME, "it", NONE)
        await bench.pass_time(3)
        assert attached(bench)
        with pytest.raises(EngineRefused):  # nobody uses it as long as it reaches too much
            await use(two)
        fault.heal()
        assert await use(two) == NONE
        assert not attached(bench)


async def test_the_first_server_after_one_that_died_over_a_change_does_it(bench: Bench):
    assert isinstance(bench.engine, FaultyEngine)
    fault = Refusal("change the network of")
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        bench.engine.faults.append(fault)
        with pytest.raises(EngineRefused):
            await lifecycle.set_network(ME, "it", NONE)
    fault.heal()
    async with serving(bench) as lifecycle:
        assert await use(lifecycle) == NONE
        assert not attached(bench)


async def test_a_change_can_be_cancelled_at_any_moment(tmp_path: Path):
    cycles = 0
    while True:
        bench = Bench(tmp_path / str(cycles))
        async with serving(bench) as lifecycle:
            await lifecycle.create(ME, Order("it"))
            cut = await cancelled_after(cycles, partial(lifecycle.set_network, ME, "it", NONE))
            await quiet()
            network = await use(lifecycle)
            assert attached(bench) is (network == FULL)
        bench.close()
        if not cut:
            assert network == NONE
            return
        cycles += 1


async def test_boxes_of_others_and_lost_ones_are_refused(bench: Bench):
    async with serving(bench) as lifecycle:
        box = (await lifecycle.create(ME, Order("it"))).box.id
        with pytest.raises(BoxNotFound):
            await lifecycle.set_network(SOMEBODY, box, NONE)
        await bench.engine.delete(BoxId(box))
        await lifecycle.list(ME)
        with pytest.raises(BoxLost):
            await lifecycle.set_network(ME, box, NONE)


# The ceiling


async def test_a_tool_narrows_freely_and_widens_up_to_the_ceiling(bench: Bench):
    async with serving(bench, offer=CLOSED) as lifecycle:
        await lifecycle.create(ME, Order("it", network="none"))
        assert (await lifecycle.set_network(ME, "it", ONE)).box.network == ONE
        for beyond, words in ((TWO, "two.example:22"), (FULL, "network 'full'")):
            with pytest.raises(BeyondCeiling) as caught:
                await lifecycle.set_network(ME, "it", beyond)
            assert caught.value.what == (words,)
        assert await use(lifecycle) == ONE
        assert not attached(bench)


@pytest.mark.parametrize(
    ("ceiling", "approved", "wanted", "beyond"),
    [
        (FULL, NONE, ["127.0.0.1:22", "a.example"], ("127.0.0.1:22",)),
        (ONE, NONE, ["one.example", "evil.example"], ("evil.example",)),
        (NONE, ONE, ["one.example", "evil.example"], ("evil.example",)),
        (NONE, NONE, ["evil.example"], ("network 'allowlist'", "evil.example")),
    ],
)
async def test_by_a_step_down_or_an_approval_nothing_else_is_reached(
    bench: Bench, ceiling: Network, approved: Network, wanted: list[str], beyond: tuple[str, ...]
):
    offer = Catalogue(replace(SPEC, network=NONE), {}, ceiling=Ceiling(ceiling))
    async with serving(bench, offer=offer) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        await lifecycle.set_network(ME, "it", approved, approved=True)
        with pytest.raises(BeyondCeiling) as caught:
            await lifecycle.set_network(ME, "it", Network(Mode.ALLOWLIST, parse_rules(wanted)))
        assert caught.value.what == beyond
        assert await use(lifecycle) == approved


async def test_the_person_may_go_beyond_it_for_one_box_and_a_tool_narrow_that_again(bench: Bench):
    wider = Network(Mode.ALLOWLIST, (*TWO.allow, *parse_rules(["three.example"])))
    async with serving(bench, offer=CLOSED) as lifecycle:
        await lifecycle.create(ME, Order("it", network="none"))
        await lifecycle.set_network(ME, "it", wider, approved=True)
        assert (await lifecycle.set_network(ME, "it", TWO)).box.network == TWO
        with pytest.raises(BeyondCeiling):
            await lifecycle.set_network(ME, "it", wider)


async def test_forks_and_snapshots_of_a_box_beyond_the_ceiling_are_cut_down_to_it(bench: Bench):
    async with serving(bench, offer=CLOSED) as lifecycle:
        await lifecycle.create(ME, Order("it", network="none"))
        await lifecycle.set_network(ME, "it", FULL, approved=True)
        (fork,) = await lifecycle.fork(ME, "it", 1)
        await lifecycle.snapshot(ME, "saved", "it")
        copy = await lifecycle.create(ME, Order("copy", snapshot="saved"))
        assert fork.box.network == copy.box.network == ONE
        assert [box.attached for box in bench.engine.boxes.values()] == [True, False, False]


async def test_forks_and_snapshots_are_as_the_box_was_by_then(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        await lifecycle.set_network(ME, "it", TWO)
        (fork,) = await lifecycle.fork(ME, "it", 1)
        await lifecycle.snapshot(ME, "saved", "it")
        await lifecycle.set_network(ME, "it", NONE)
        copy = await lifecycle.create(ME, Order("copy", snapshot="saved"))
        assert fork.box.network == copy.box.network == TWO


@pytest.mark.parametrize(
    ("order", "beyond"),
    [
        (Order(network="full"), ("network 'full'",)),
        (Order(allow=["one.example", "evil.example"]), ("evil.example",)),
        (
            Order(image="strange:latest", network="none"),
            (f"image 'strange:latest' (allowed: {SPEC.image}, *:base)",),
        ),
    ],
)
async def test_a_box_beyond_the_ceiling_is_made_for_the_person_only(
    bench: Bench, order: Order, beyond: tuple[str, ...]
):
    async with serving(bench, offer=CLOSED) as lifecycle:
        with pytest.raises(BeyondCeiling) as caught:
            await lifecycle.create(ME, order)
        assert caught.value.what == beyond == lifecycle.catalogue.beyond(order)
        assert not bench.engine.boxes


# What servers do for a box


class Attendant:
    """Notes what it is called for; it serves until it is cancelled.

    It begins when the box answered, and needs `linger` turns of the event loop to end.
    """

    def __init__(self, linger: int = 0) -> None:
        self._linger = linger
        self.serving: list[Mode] = []
        self.policies: list[Callable[[], Network]] = []

    def way(self, box: Box, /) -> Mode:
        return box.network.mode

    async def attend(
        self, channel: Channel, box: Callable[[], Box], /, *, task_status: TaskStatus[None]
    ) -> None:
        assert channel.open
        mode = box().network.mode
        self.policies.append(lambda: box().network)
        await channel.request("stat", path="/")
        self.serving.append(mode)
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(self._linger):
                    await checkpoint()
            self.serving.remove(mode)


async def test_a_box_is_attended_before_its_first_call_in_the_way_of_its_network(bench: Bench):
    attendant = Attendant()
    async with serving(bench, attendant) as lifecycle:
        await lifecycle.create(ME, Order("it", network="none"))
        assert attendant.serving == [Mode.NONE]
        await lifecycle.set_network(ME, "it", ONE)
        assert attendant.serving == [Mode.ALLOWLIST]
        await lifecycle.set_network(ME, "it", TWO)
        assert attendant.serving == [Mode.ALLOWLIST]
        assert len(attendant.policies) == 2  # other rules end no connection that they allow
        assert attendant.policies[-1]() == TWO
        await lifecycle.pause(ME, "it", Act.STOP)
        await quiet()
        assert attendant.serving == []
        await use(lifecycle)
        assert attendant.serving == [Mode.ALLOWLIST]
    assert attendant.serving == []


async def test_a_spare_becomes_a_box_with_less_network_before_its_first_call(bench: Bench):
    attendant = Attendant()
    policy = Policy(warm_min=1, warm_max=1)
    async with bench.pool(policy, SPEC, services=[attendant]) as pool:
        lifecycle = Lifecycle(pool, bench.store, bench.engine, Catalogue(SPEC, {}))
        await bench.pass_time(3)
        (spare,) = bench.engine.boxes
        made = await lifecycle.create(ME, Order("it", allow=["one.example"]))
        assert made.box.id == spare
        assert made.box.network == ONE
        assert not bench.engine.boxes[spare].attached
        assert Mode.ALLOWLIST in attendant.serving  # beside what the next spare needs


@pytest.mark.parametrize(("who", "anew"), [(ME, []), (SOMEBODY, [SOMEBODY.principal])])
async def test_a_spare_is_attended_in_its_owners_way_before_the_first_call(
    bench: Bench, who: Caller, anew: list[Principal]
):
    class Personal(Attendant):
        def way(self, box: Box, /) -> Mode:
            return Mode.FULL if box.principal in (None, LOCAL) else Mode.NONE

        async def attend(
            self, channel: Channel, box: Callable[[], Box], /, *, task_status: TaskStatus[None]
        ) -> None:
            owners.append(box().principal)
            await super().attend(channel, box, task_status=task_status)

    owners: list[Principal | None] = []
    policy = Policy(warm_min=1, warm_max=1)
    async with bench.pool(policy, SPEC, services=[Personal()]) as pool:
        lifecycle = Lifecycle(pool, bench.store, bench.engine, Catalogue(SPEC, {}))
        await bench.pass_time(3)
        (spare,) = bench.engine.boxes
        assert (await lifecycle.create(who, Order("it"))).box.id == spare
        assert [owner for owner in owners if owner is not None] == anew


async def test_a_box_that_is_stopped_is_left_alone_before_its_daemon_ends(bench: Bench):
    attendant = Attendant()
    attended: list[Mode] = []

    class Looking(FaultyEngine):
        async def stop(self, box: BoxId) -> None:
            await quiet()
            attended.extend(attendant.serving)
            await super().stop(box)

    bench.engine = Looking()
    async with serving(bench, attendant) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        assert attendant.serving == [Mode.FULL]
        await lifecycle.pause(ME, "it", Act.STOP)
        assert attended == []


async def test_a_change_of_one_service_leaves_the_others_alone(bench: Bench):
    class Steady(Attendant):
        def way(self, box: Box, /) -> Mode:
            return Mode.FULL

    steady, attendant = Steady(), Attendant()
    async with serving(bench, steady, attendant) as lifecycle:
        await lifecycle.create(ME, Order("it", network="none"))
        await lifecycle.set_network(ME, "it", ONE)
        assert len(steady.policies) == 1
        assert len(attendant.policies) == 2


async def test_one_that_fails_keeps_nobody_from_his_box(bench: Bench):
    class Unwilling(Attendant):
        async def attend(self, *_: object, **__: object) -> None:
            raise EngineRefused("serve", "it does not want to")

    async with serving(bench, Unwilling()) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        assert await use(lifecycle) == FULL
        assert (await lifecycle.info(ME, "it")).box.state is State.RUNNING


# What others left undone, and races


async def test_no_call_has_a_box_whose_server_died_before_it_was_cut_off(bench: Bench):
    """A spare became somebody's with less network, and who assigned it did no more than that."""
    policy = Policy(warm_min=1, warm_max=1)
    async with bench.pool(policy, SPEC) as pool:
        lifecycle = Lifecycle(pool, bench.store, bench.engine, Catalogue(SPEC, {}))
        await bench.pass_time(3)
        (spare,) = bench.engine.boxes
        stored = await bench.store.box(spare)
        assert stored is not None
        given = stored.assigned(LOCAL, None, bench.clock.now(), Terms(network=NONE))
        assert await bench.store.assign(given, Room())
        async with lifecycle.open(ME, spare) as claim:
            assert claim.box.network == NONE
            assert not bench.fake(spare).attached


async def test_a_change_that_failed_in_a_frozen_box_holds_before_the_next_call(bench: Bench):
    assert isinstance(bench.engine, FaultyEngine)
    fault = Refusal("change the network of")
    async with serving(bench) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        await lifecycle.pause(ME, "it", Act.FREEZE)
        bench.engine.faults.append(fault)
        with pytest.raises(EngineRefused):
            await lifecycle.set_network(ME, "it", NONE)
        with pytest.raises(EngineRefused):
            await use(lifecycle)
        fault.heal()
        await use(lifecycle)
        assert not attached(bench)


async def test_who_follows_a_change_late_does_not_undo_a_later_one(bench: Bench):
    async with bench.pool(Policy()) as pool:
        lifecycle = Lifecycle(pool, bench.store, bench.engine, Catalogue(SPEC, {}))
        box = (await lifecycle.create(ME, Order("it"))).box
        box = (await lifecycle.set_network(ME, box.id, NONE)).box
        async with pool.tickets.alone_with(f"{box.id}-network"):  # as another server would
            for network in (FULL, NONE):
                box = replace(box.noted("", bench.clock.now()), terms=Terms(network=network))
                assert await bench.store.set_terms(box)
                if network is FULL:  # which is learned, but not followed yet
                    await lifecycle.list(ME)
        await quiet()
        await anyio.sleep(2 * LOCK_RETRY)
        assert not attached(bench)


async def test_servers_learn_of_it_while_the_engine_makes_no_networks(bench: Bench):
    assert isinstance(bench.engine, FaultyEngine)
    bench.engine.faults.append(Refusal("prepare"))
    attendant = Attendant()
    stocked = bench.pool(Policy(warm_max=1), SPEC, services=[attendant])
    async with stocked as pool, other_store(bench), serving(bench) as other:
        box = (await other.create(ME, Order("it", allow=["one.example"]))).box.id
        async with pool.claim(box, LOCAL):
            (policy,) = attendant.policies
        await bench.pass_time(3)
        assert "tidy up" in bench.failures()
        await other.set_network(ME, "it", NONE)
        await bench.pass_time(3)
        assert policy() == NONE


async def test_a_frozen_box_is_attended_in_its_new_way_when_it_wakes(bench: Bench):
    attendant = Attendant()
    async with serving(bench, attendant) as lifecycle:
        await lifecycle.create(ME, Order("it", network="none"))
        await lifecycle.pause(ME, "it", Act.FREEZE)
        with anyio.fail_after(SERVE_TIMEOUT - 1):  # its boxd can't answer
            await lifecycle.set_network(ME, "it", ONE)
        assert attendant.serving == []
        async with lifecycle.open(ME, "it"):
            assert attendant.serving == [Mode.ALLOWLIST]


async def test_other_rules_for_a_frozen_box_end_nothing(bench: Bench):
    attendant = Attendant()
    async with serving(bench, attendant) as lifecycle:
        await lifecycle.create(ME, Order("it", allow=["one.example"]))
        await lifecycle.pause(ME, "it", Act.FREEZE)
        await lifecycle.set_network(ME, "it", TWO)
        await use(lifecycle)
        assert len(attendant.policies) == 1


async def test_what_was_served_has_ended_when_a_change_is_told(bench: Bench):
    attendant = Attendant(linger=20)
    async with serving(bench, attendant) as lifecycle:
        await lifecycle.create(ME, Order("it", allow=["one.example"]))
        await lifecycle.set_network(ME, "it", FULL)
        assert attendant.serving == [Mode.FULL]


async def test_one_that_ended_is_called_again_by_the_next_look(bench: Bench):
    class Stumbling(Attendant):
        attempts = 0

        async def attend(
            self, channel: Channel, box: Callable[[], Box], /, *, task_status: TaskStatus[None]
        ) -> None:
            self.attempts += 1
            if self.attempts == 1:
                raise EngineRefused("serve", "something else listens on its port")
            await super().attend(channel, box, task_status=task_status)

    attendant = Stumbling()
    async with serving(bench, attendant) as lifecycle:
        await lifecycle.create(ME, Order("it", allow=["one.example"]))
        assert attendant.serving == []
        await bench.pass_time(2 * TRUST)
        async with lifecycle.open(ME, "it"):
            assert attendant.serving == [Mode.ALLOWLIST]
