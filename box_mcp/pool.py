"""The pool owns the boxes of one server process: it hands them to calls and tends the idle ones.

Whenever anything changes it asks `domain.plan` what to do, and has it done (`worker.py`): one act
per box at a time, each in a task of the pool's own. A call that is cancelled while it waits takes
nothing with it: the act goes on, and the next call finds its result.

    claim ──▶ waiter ──▶ make_plan ──▶ grants     the call goes on, holding the box
                            │    ├───▶ acts       engine work, then the table moves the box
                            │    ├───▶ refusals   no room for it, for too long
                            └────┴───▶ spares     warm boxes for callers to come

Several servers share store, engine and boxes. Each box has a ticket (`tickets.py`): a server shares
it while a call runs, and has it alone while it changes the box. Who finds another generation on
it than he knew looks at the store first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from box_mcp.domain.box import Box, BoxSpec, Move, State, Terms
from box_mcp.domain.disk import Bounds
from box_mcp.domain.names import BoxId, BoxName, Principal, mint_id
from box_mcp.domain.network import Network
from box_mcp.domain.plan import (
    MOVES,
    PAUSED,
    RECENT,
    TRUST,
    Act,
    Policy,
    View,
    Waiting,
    choose_spare,
    make_plan,
    next_step,
    ready,
)
from box_mcp.engines.base import Condition, Engine, Found, OpenPipe, Saved
from box_mcp.errors import (
    BoxError,
    BoxLost,
    BoxNotFound,
    CallLeft,
    EngineRefused,
    IllegalMove,
    ServerClosed,
    StoreUnusable,
)
from box_mcp.events import ActFailed, BoxAssigned, BoxClaimed, Hook
from box_mcp.janitor import Janitor
from box_mcp.roster import Roster
from box_mcp.services import Service
from box_mcp.slots import Claim, Clock, Save, Site, Slot, SystemClock, Waiter
from box_mcp.store import Store
from box_mcp.tickets import Presence, Tickets
from box_mcp.worker import IDLE_ACTS, SPARE_RETRY, Setup, Worker, differs

WARM_DELAY = 2.0  # s after the start before anything is done unasked: clients list tools first
EXIT_GRACE = 0.35  # s for tidying up; clients kill a server about half a second after SIGINT

UNFOUNDED = (State.CREATED, State.LOST)  # the engine need not have a box that is so
INSPECTED = 6  # boxes that an engine lists in the time in which it tells of a single one


@dataclass(frozen=True)
class Statistics:
    """The pool at one moment. `states` counts the boxes that are somebody's, by their state."""

    boxes: int
    spares: int
    claims: int
    waiters: int
    acting: int
    states: Mapping[State, int]


class Pool:
    """All boxes of this server. Use as an async context manager.

    `directory` is where servers on this machine meet, and `tickets` what they agree on there.
    `spare_spec` is what spares are made from, None for no spares.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        directory: Path,
        policy: Policy,
        spare_spec: BoxSpec | None = None,
        *,
        setup: Setup | None = None,
        services: Sequence[Service] = (),
        disk: Bounds | None = None,
        hook: Hook = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        if spare_spec is None:
            policy = replace(policy, warm_min=0, warm_max=0)
        self.tickets = Tickets(directory / "boxes")
        site = Site(engine, store, self.tickets, clock or SystemClock(), hook)
        self._presence = Presence(directory / "servers")
        self._engine = engine
        self._store = store
        self._clock = site.clock
        self._hook = hook
        self._policy = policy
        self._spare_spec = spare_spec
        self._roster = Roster(site, policy.room)
        self._worker = Worker(site, self._roster, policy, setup, services, self)
        self._worker.spares_from = self._clock.now() + WARM_DELAY
        stock = policy.warm_max > 0
        self._janitor = Janitor(site, self._roster, self._worker, self._presence, self, stock=stock)
        self._disk = disk
        self._creations = deque[float](maxlen=100)
        self._wake_at: float | None = None
        self._nap = anyio.CancelScope()
        self._nap_until: float | None = None
        self._tasks: TaskGroup

    def __repr__(self) -> str:
        return f"<Pool {list(self._roster.slots.values())} {len(self._roster.waiters)} waiting>"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Pool, None]:
        """Runs the pool. At exit, running boxes are left to their dead man's switch."""
        with self._presence:
            alone = self._presence.alone()
            for box in await self._store.boxes():
                slot = self._roster.take_in(box)
                slot.rest_until = self._worker.spares_from
                slot.orphaned = alone and box.state is State.FROZEN
            async with anyio.create_task_group() as self._tasks:
                self._worker.tasks = self._tasks
                self._tasks.start_soon(self._tend)
                self._tasks.start_soon(self._janitor.watch)
                self._tasks.start_soon(self._janitor.keep)
                self._tasks.start_soon(self._janitor.tell_of_use)
                if self._disk is not None:
                    self._tasks.start_soon(self._janitor.watch_disk, self._disk)
                self.replan()
                try:
                    yield self
                finally:
                    await self._close(last=self._presence.alone())
        for slot in self._roster.slots.values():
            slot.ticket.close()

    async def let_go(self) -> None:
        """Ends all calls from below, so that what they run in boxes goes on; no more are taken."""
        self._take_no_more()
        async with (
            anyio.create_task_group() as group
        ):  # each takes a while when its box is not well
            for slot in list(self._roster.slots.values()):
                group.start_soon(slot.disconnect, CallLeft(slot.box.id))

    def _take_no_more(self) -> None:
        self._roster.closing = True
        for waiter in self._roster.waiters:
            waiter.refuse(ServerClosed())

    async def _close(self, *, last: bool) -> None:
        self._take_no_more()
        with anyio.move_on_after(EXIT_GRACE, shield=True):
            await self._tidy_up(last)
        for slot in self._roster.slots.values():
            if slot.job is not None:
                slot.job.scope.cancel()
        self._tasks.cancel_scope.cancel()

    def statistics(self) -> Statistics:
        """Counts, for tests and metrics."""
        slots = self._roster.slots.values()
        return Statistics(
            boxes=sum(not slot.spare for slot in slots),
            spares=sum(slot.spare for slot in slots),
            claims=sum(slot.claims for slot in slots),
            waiters=len(self._roster.waiters),
            acting=sum(slot.job is not None for slot in slots),
            states=Counter(slot.box.state for slot in slots if not slot.spare),
        )

    async def boxes(self, principal: Principal) -> list[Box]:
        """All boxes of `principal`, oldest first, those that other servers made included."""
        await self._roster.read_store()
        slots = [slot for slot in self._roster.slots.values() if slot.recorded]
        own = [slot.box for slot in slots if slot.box.principal == principal]
        return sorted(own, key=lambda box: box.created)

    async def box(self, box: BoxId, principal: Principal, *, fresh: bool = False) -> Box:
        """The box of this id; raises BoxNotFound when it is unknown or somebody else's.

        It is as this server knows it; with `fresh`, as any server does.
        """
        slot = await self._roster.slot(box, principal)
        if fresh:
            await self._roster.catch_up(slot, None)
            slot = await self._roster.slot(box, principal)
            slot.box = slot.box.touched(slot.ticket.used())
        return slot.box

    async def named(self, name: BoxName, principal: Principal) -> BoxId:
        """The box that `principal` calls so; raises BoxNotFound."""
        return (await self._roster.named(name, principal)).box.id

    async def reconcile(self, principal: Principal, box: BoxId | None = None) -> None:
        """Looks whether the engine has the boxes of `principal`, or one, as they are known here.

        Those that somebody else changed are moved to where they are, and connected to if they run.
        Those in use are left alone. Raises the engine's errors.
        """
        found = await self._found(principal) if box is None else [await self._engine.inspect(box)]
        conditions = {one.box: one.condition for one in found}
        for slot in list(self._roster.slots.values()):
            if slot.box.principal == principal and box in (None, slot.box.id):
                await self._roster.at_rest(slot)
                condition = conditions.get(slot.box.id, Condition.ABSENT)
                if self._is_idle(slot) and differs(slot.box, condition):
                    await self._worker.begin(slot, Act.CHECK, "looked for").done.wait()

    async def _found(self, principal: Principal) -> Sequence[Found]:
        """What the engine has of them; raises EngineRefused when that is not where they are."""
        made = [one for one in await self.boxes(principal) if one.state not in UNFOUNDED]
        if len(made) <= len(self._roster.slots) // INSPECTED:
            found = [await self._engine.inspect(one.id) for one in made]
        else:
            found = await self._engine.list()
        there = {one.box for one in found if one.condition is not Condition.ABSENT}
        if len(made) > 1 and there.isdisjoint(one.id for one in made):
            why = "it has none of them; perhaps it is another engine than they were made on"
            raise EngineRefused("find your boxes", why)
        return found

    def _is_idle(self, slot: Slot) -> bool:
        """Whether no server does anything with the box right now."""
        if slot.job is not None or slot.claims or not slot.recorded or self._roster.closing:
            return False
        idle = slot.box.id in self._roster.slots and slot.ticket.share()
        slot.let_go()
        return idle

    def outlook(self, box: Box) -> tuple[bool, tuple[float, Act] | None]:
        """Whether `box` is busy here, and what idleness will do to it next, and when."""
        slot = self._roster.slots.get(box.id)
        if slot is None:
            return False, None
        busy = slot.claims > 0 or slot.busy_since is not None
        return busy, next_step(slot.view(), self._policy)

    async def create(
        self, principal: Principal, name: BoxName | None, spec: BoxSpec, terms: Terms | None = None
    ) -> Box:
        """A new box, recorded but perhaps not started: the first claim waits for that.

        Takes a spare when one fits. Raises LimitReached and NameTaken.
        """
        if self._roster.closing:
            raise ServerClosed
        now = self._clock.now()
        self._creations.append(now)
        blank = Box(mint_id(), spec, created=now, since=now)
        wanted = blank.assigned(principal, name, now, terms or Terms())
        slot = await self._assigned_spare(wanted)
        if slot is None:
            slot = self._roster.add(replace(wanted, id=self._roster.next_id()))
            await self._roster.record(slot, slot.box, self._store.add)
        self._hook(BoxAssigned(slot.box.id, principal))
        self.replan()
        return slot.box

    @asynccontextmanager
    async def claim(self, box: BoxId, principal: Principal) -> AsyncGenerator[Claim, None]:
        """Holds the box awake and connected for the length of the block, waking it if need be.

        Raises BoxNotFound, BoxLost, BoxBroken, LimitReached, ServerClosed and the engine's errors.
        """
        slot = await self._roster.slot(box, principal)
        if self._roster.closing:
            raise ServerClosed
        if slot.box.state is State.LOST:
            raise BoxLost(box, slot.box.reason)
        waiter, was = Waiter(slot, self._clock.now()), slot.box.state
        self._roster.waiters.append(waiter)
        if not (ready(slot.view(), waiter.since) and self.grant(slot)):
            self.replan()
        try:
            claim = await self._granted(waiter)
            waited = max(0.0, self._clock.now() - waiter.since)
            self._hook(BoxClaimed(box, principal, was, waited))
            yield claim
        except BaseException:
            if waiter.claim is not None:  # its caller hears of a failure only
                slot.news = slot.news or waiter.claim.news
            raise
        finally:
            if waiter in self._roster.waiters:
                self._roster.waiters.remove(waiter)
            if waiter.claim is not None:
                self._give_back(slot)

    @asynccontextmanager
    async def quiet_claim(self, box: BoxId, principal: Principal) -> AsyncGenerator[Claim, None]:
        """As `claim`, for who has no words for the news of the box: the next call will hear it."""
        async with self.claim(box, principal) as claim:
            yield claim
        if (slot := self._roster.slots.get(box)) is not None:
            slot.news = slot.news or claim.news

    async def wake(self, box: BoxId, principal: Principal) -> None:
        """Wakes the box for a call to come; raises as `claim`."""
        async with self.quiet_claim(box, principal):
            pass

    async def withdraw(self, box: BoxId, principal: Principal) -> None:
        """Deletes a box that could not be given to its maker; at least it is nobody's any more.

        One that somebody uses meanwhile, or waits for, is his. Raises BoxNotFound, ServerClosed.
        """
        slot = await self._own_at_rest(box, principal)
        if slot.claims or self._roster.waited_for(slot):
            return
        error = BoxLost(box, "it could not be given to its maker")
        job = self._worker.begin(slot, Act.DELETE, error.reason, asked=True)
        await job.done.wait()
        in_use = isinstance(job.error, IllegalMove)
        if in_use or self._roster.slots.get(box) is not slot or not slot.ticket.take():
            return
        slot.generation = slot.ticket.bump()
        if slot.box.state not in (State.CREATED, State.LOST):
            await self._roster.move(slot, Move.LOSE, error.reason)
        await self._roster.disown(slot, error)
        slot.let_go()
        self.replan()

    async def act(self, box: BoxId, principal: Principal, act: Act) -> Box:
        """Does `act` now because somebody asked; raises IllegalMove when the box can't.

        Pausing waits for nobody: with a call running in the box, it is refused. A box that is
        paused so already is left as it is. Deleting is refused only while another server's call
        runs in it.
        """
        slot = await self._own_at_rest(box, principal)
        if slot.doubtful and act is not Act.DELETE:
            await self.reconcile(principal, box)
            await self._roster.at_rest(slot)
            if slot.box.state is State.LOST:
                raise BoxLost(box, slot.box.reason)
        if self._roster.slots.get(box) is not slot:
            raise BoxNotFound(box)
        if slot.box.state is PAUSED.get(act):
            return slot.box
        slot.box.moved(MOVES[act], self._clock.now())  # raises, and changes nothing
        if slot.claims and act is not Act.DELETE:
            raise IllegalMove(box, act.value, "in use by a running call")
        await self._worker.ended(self._worker.begin(slot, act, "asked for", asked=True))
        return slot.box

    async def save(self, box: BoxId, principal: Principal, save: Save) -> Saved:
        """Copies the files of the box, in whatever state, to an image; it is not woken for it.

        Running calls and commands stand still meanwhile. A cancelled caller's image is made
        all the same, and nothing else under its tag before that.
        """
        slot = await self._own_at_rest(box, principal)
        if slot.box.state in (State.CREATED, State.LOST):
            raise IllegalMove(box, "save", slot.box.state.value)
        job = self._worker.begin(slot, Act.SAVE, "asked for", asked=True)
        job.save = save
        await self._worker.ended(job)
        assert job.saved is not None  # it ended without error
        return job.saved

    async def set_network(self, box: BoxId, principal: Principal, network: Network) -> Box:
        """Changes what the box may reach; it is not woken for it, and what runs in it goes on.

        Connections that are allowed no more are cut. Once this was begun, a cancelled caller's
        change is made all the same. Raises BoxNotFound, BoxLost and the engine's errors.
        """
        slot = await self._own_at_rest(box, principal)
        if slot.box.state is State.LOST:
            raise BoxLost(box, slot.box.reason)
        job = self._worker.begin(slot, Act.ATTACH, "asked for", asked=True)
        job.network = network
        await self._worker.ended(job)
        return slot.box

    async def _own_at_rest(self, box: BoxId, principal: Principal) -> Slot:
        slot = await self._roster.slot(box, principal)
        await self._roster.at_rest(slot)
        await self._roster.catch_up(slot, None)
        await self._roster.at_rest(slot)
        if self._roster.closing:
            raise ServerClosed
        if self._roster.slots.get(box) is not slot:
            raise BoxNotFound(box)
        return slot

    async def _assigned_spare(self, wanted: Box) -> Slot | None:
        """A spare that now is as `wanted` says; None when there is none that works.

        What it may reach is settled with the first call.
        """
        spec = self._spare_spec
        if spec is None or replace(wanted.spec, network=spec.network) != spec:
            return None
        changed = wanted.spec.network != spec.network
        if changed:
            wanted = replace(wanted, spec=spec, terms=replace(wanted.terms, network=wanted.network))
        while (chosen := choose_spare(self._roster.views())) is not None:
            slot = self._roster.slots[chosen]
            assigned = replace(wanted, id=chosen, state=slot.box.state, since=slot.box.since)
            if slot.hold() and await self._sound(slot):
                if await self._roster.record(slot, assigned, self._store.assign):
                    slot.unsettled = changed
                    outdated = bool(self._worker.outdated(slot))
                    slot.doubtful = slot.doubtful or changed or outdated
                    return slot
                await self._roster.catch_up(slot, None)  # another server was faster
            else:
                slot.doubtful = True
        self.replan()
        return None

    async def _sound(self, slot: Slot) -> bool:
        now = self._clock.now()
        if now - slot.heard <= TRUST:
            return True
        slot.recorded = False  # nobody else takes it meanwhile
        try:
            sound = await slot.answers()
        finally:
            slot.recorded = True
        return sound

    def replan(self) -> None:
        """Makes a plan, and begins what it says."""
        if self._roster.closing:
            return
        now = self._clock.now()
        while self._creations and now - self._creations[0] > RECENT:
            self._creations.popleft()
        view = View(
            now=now,
            boxes=self._roster.views(),
            waiters=[Waiting(waiter.slot.box.id, waiter.since) for waiter in self._roster.waiters],
            warm_from=self._worker.spares_from,
            creations=self._creations,
        )
        plan = make_plan(view, self._policy)
        granted = [self.grant(self._roster.slots[box]) for box in plan.grants]
        for box, act in plan.acts:
            slot = self._roster.slots[box]
            self._worker.begin(slot, act, self._reason(slot, act))
        for box, limit in plan.refusals:
            self._roster.refuse(self._roster.slots[box], self._roster.full(limit))
        for _ in range(plan.spares):
            self._begin_spare()
        self._sleep_until(plan.wake_at)
        if not all(granted):
            self.replan()

    def _sleep_until(self, moment: float | None) -> None:
        self._wake_at = moment
        if moment is not None and moment < (self._nap_until or float("inf")):
            self._nap.cancel()

    async def _tend(self) -> None:
        """Plans again when the time has come that the last plan named."""
        while True:
            self._nap, self._nap_until = anyio.CancelScope(), self._wake_at
            with self._nap as nap:
                await self._clock.sleep_until(self._nap_until or float("inf"))
            if not nap.cancel_called:
                self.replan()

    async def _granted(self, waiter: Waiter) -> Claim:
        await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error
        assert waiter.claim is not None  # done without error
        return waiter.claim

    def grant(self, slot: Slot) -> bool:
        """Gives the box to all who wait for it; False when another server changed it.

        Where what servers agree on can't be read, they hear of that instead.
        """
        assert slot.channel is not None  # the plan grants connected boxes only
        try:
            if not slot.hold():
                return False
        except StoreUnusable as error:
            self._roster.refuse(slot, error)
            return True
        now = self._clock.now()
        news, slot.news = slot.news, ""
        slot.orphaned = False
        slot.box = slot.box.touched(now)
        slot.ticket.touch(now)
        for waiter in [waiter for waiter in self._roster.waiters if waiter.slot is slot]:
            self._roster.waiters.remove(waiter)
            slot.claims += 1
            waiter.claim = Claim(slot.box, slot.channel, news, self._open_pipe(slot.box.id))
            waiter.done.set()
        return True

    def _open_pipe(self, box: BoxId) -> OpenPipe | None:
        return partial(self._engine.open_pipe, box) if self._engine.abilities.opens_pipes else None

    def _give_back(self, slot: Slot) -> None:
        """A call is done with the box."""
        now = self._clock.now()
        slot.claims -= 1
        slot.box = slot.box.touched(now)
        if slot.claims or slot.box.id not in self._roster.slots:
            return
        slot.ticket.touch(now)
        slot.let_go()
        self.replan_for(slot)

    def replan_for(self, slot: Slot) -> None:
        """Plans again after a change of one box, unless all that came of it is a next step."""
        step = next_step(slot.view(), self._policy)
        if slot.doubtful or any(waiter.slot.job is None for waiter in self._roster.waiters):
            self.replan()  # those whose boxes are woken already get them when that is done
        elif step is not None and step[0] < (self._wake_at or float("inf")):
            self._sleep_until(step[0])

    def _reason(self, slot: Slot, act: Act) -> str:
        if act not in IDLE_ACTS:
            return "a call came"
        return "idle" if self._worker.due(slot, act) else "to make room"

    def _begin_spare(self) -> None:
        assert self._spare_spec is not None  # the policy asks for none otherwise
        now = self._clock.now()
        box = Box(self._roster.next_id(), self._spare_spec, created=now, since=now)
        try:
            slot = self._roster.add(box)
        except StoreUnusable as error:
            self._hook(ActFailed(box.id, Act.START, str(error)))
            self._worker.spares_from = now + SPARE_RETRY
        else:
            self._worker.begin(slot, Act.START, "spare")

    async def _tidy_up(self, last: bool) -> None:
        """What is not done in time is left to boxd and to the next server."""
        if last:
            with suppress(BoxError):
                await self._roster.read_store()
        async with anyio.create_task_group() as group:
            for slot in list(self._roster.slots.values()):
                group.start_soon(self._put_away, slot, last)
            for box in list(self._roster.stock):
                group.start_soon(self._janitor.unstock, box)

    async def _put_away(self, slot: Slot, last: bool) -> None:
        with self._roster.reporting(slot, "put away"):  # the others are, all the same
            await self._worker.put_away(slot, last)
