"""The pool owns the boxes of one server process: it hands them to calls and tends the idle ones.

Whenever anything changes it asks `domain.plan` what to do, and does it: one act per box at a time,
each in a task of the pool's own. A call that is cancelled while it waits takes nothing with it:
the act goes on, and the next call finds its result.

    claim ──▶ waiter ──▶ make_plan ──▶ grants   the call goes on, holding the box
                            │    ├───▶ acts     engine work, then the table moves the box
                            │    ├───▶ notes    its time of use, for other servers to see
                            └────┴───▶ spares   warm boxes for callers to come

Other servers may share store and engine. Before an act, the pool reads what they wrote of the box
(`_overtaken`); when they did something that it could not know, the plan is made anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from box_mcp.channel import Channel, open_channel
from box_mcp.domain.box import Box, BoxSpec, Move, State, way
from box_mcp.domain.names import BoxId, BoxName, Principal, mint_id
from box_mcp.domain.plan import (
    MOVES,
    Act,
    BoxView,
    Policy,
    View,
    choose_spare,
    make_plan,
    next_step,
    owned,
)
from box_mcp.engines.base import Condition, Engine, Found
from box_mcp.errors import (
    BoxBroken,
    BoxError,
    BoxLost,
    BoxNotFound,
    CallInterrupted,
    CallRefused,
    EngineRefused,
    IllegalMove,
    LimitReached,
    NameTaken,
    ServerClosed,
)
from box_mcp.events import ActFailed, BoxMoved, Hook
from box_mcp.store import NameInUse, Store

logger = logging.getLogger(__name__)

WARM_DELAY = 2.0  # s after the start before anything is done unasked: clients list tools first
SPARE_RETRY = 30.0  # s after a spare failed
ACT_RETRY = 60.0  # s after an act failed, before idleness tries another
MAKING = 15.0  # s that another server may need to make a box; after it, it must have died
PING_TIMEOUT = 0.5  # s for an idle box to prove that it is awake
EXIT_GRACE = (
    0.35  # s for tidying up at exit: clients kill a server about half a second after SIGINT
)

UNBORN = (Condition.ABSENT, Condition.CREATED)
IDLE_ACTS = (Act.FREEZE, Act.STOP, Act.DELETE)
STATES = {
    Condition.CREATED: State.STOPPED,
    Condition.RUNNING: State.RUNNING,
    Condition.FROZEN: State.FROZEN,
    Condition.STOPPED: State.STOPPED,
    Condition.ABSENT: State.LOST,
}


class Clock(Protocol):
    """Where the pool has the time from, in seconds since the epoch."""

    def now(self) -> float:
        """The time."""
        ...

    async def sleep_until(self, moment: float) -> None:
        """Returns when `moment` has come."""
        ...


class SystemClock:
    """The machine's."""

    def now(self) -> float:
        """The time of day, which all servers on the machine share."""
        return time.time()

    async def sleep_until(self, moment: float) -> None:
        """Sleeps as long as it seems to be now."""
        await anyio.sleep(max(0.0, moment - time.time()))


@dataclass(frozen=True)
class Claim:
    """A box in the hands of one call. `news` is what the caller should hear of it first."""

    box: Box
    channel: Channel
    news: str = ""


@dataclass(frozen=True)
class Statistics:
    """The pool at one moment."""

    boxes: int
    spares: int
    claims: int
    waiters: int
    acting: int


class Job:
    """One act under way, shielded from all but the pool's own end."""

    def __init__(self, act: Act, reason: str, asked: bool) -> None:
        self.act = act
        self.reason = reason
        self.asked = asked
        self.scope = anyio.CancelScope(shield=True)
        self.done = anyio.Event()
        self.error: BoxError | None = None


class Slot:
    """One box in this server's hands.

    `ours` tells that this server makes the box, `recorded` that the store has it or need not.
    """

    def __init__(self, box: Box, *, ours: bool = False) -> None:
        self.box = box
        self.ours = ours
        self.recorded = True
        self.doubtful = not ours
        self.job: Job | None = None
        self.channel: Channel | None = None
        self.claims = 0
        self.noted = box.used
        self.heard = 0.0
        self.rest_until = 0.0
        self.busy_since: float | None = None
        self.boot = ""
        self.news = ""

    def __repr__(self) -> str:
        doing = f" {self.job.act}…" if self.job else ""
        return f"<Slot {self.box.id} {self.box.state}{doing} claims={self.claims}>"

    @property
    def spare(self) -> bool:
        """Whether the box is nobody's yet."""
        return self.box.principal is None

    @property
    def connected(self) -> bool:
        """Whether a channel to its boxd is open."""
        return self.channel is not None and self.channel.open

    def view(self) -> BoxView:
        """What a plan needs to know."""
        return BoxView(
            id=self.box.id,
            state=self.box.state,
            used=self.box.used,
            since=self.box.since,
            noted=self.noted,
            heard=self.heard,
            spare=self.spare,
            connected=self.connected,
            doubtful=self.doubtful,
            acting=self.job is not None or not self.recorded,
            claims=self.claims,
            busy_since=self.busy_since,
            rest_until=self.rest_until,
        )


class Waiter:
    """A call that waits for its box."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.done = anyio.Event()
        self.claim: Claim | None = None
        self.error: BoxError | None = None

    def refuse(self, error: BoxError) -> None:
        """Ends the waiting with `error`."""
        self.error = error
        self.done.set()


class Pool:
    """All boxes of this server. Use as an async context manager.

    `spare_spec` is what spares are made from, None for no spares.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        policy: Policy,
        spare_spec: BoxSpec | None = None,
        hook: Hook = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._policy = policy if spare_spec is not None else replace(policy, warm=0)
        self._spare_spec = spare_spec
        self._hook = hook
        self._clock = clock or SystemClock()
        self._slots: dict[BoxId, Slot] = {}
        self._gone: set[BoxId] = set()  # deleted here; an answer of the store may be older
        self._waiters: list[Waiter] = []
        self._warm_from = self._clock.now() + WARM_DELAY
        self._wake_at: float | None = None
        self._nap = anyio.CancelScope()
        self._nap_until: float | None = None
        self._closing = False
        self._tasks: TaskGroup

    def __repr__(self) -> str:
        return f"<Pool {list(self._slots.values())} {len(self._waiters)} waiting>"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Pool, None]:
        """Runs the pool. At exit, running boxes are left to their dead man's switch."""
        for box in await self._store.boxes():
            self._take_in(box).rest_until = self._warm_from
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._tend)
            self._replan()
            try:
                yield self
            finally:
                self._closing = True
                for waiter in self._waiters:
                    waiter.refuse(ServerClosed())
                with anyio.move_on_after(EXIT_GRACE, shield=True):
                    await self._tidy_up()
                for slot in self._slots.values():
                    if slot.job is not None:
                        slot.job.scope.cancel()
                self._tasks.cancel_scope.cancel()

    def statistics(self) -> Statistics:
        """Counts, for tests and metrics."""
        slots = self._slots.values()
        return Statistics(
            boxes=sum(not slot.spare for slot in slots),
            spares=sum(slot.spare for slot in slots),
            claims=sum(slot.claims for slot in slots),
            waiters=len(self._waiters),
            acting=sum(slot.job is not None for slot in slots),
        )

    async def boxes(self, principal: Principal) -> list[Box]:
        """All boxes of `principal`, oldest first, those that other servers made included."""
        await self._read_store()
        slots = [slot for slot in self._slots.values() if slot.recorded]
        own = [slot.box for slot in slots if slot.box.principal == principal]
        return sorted(own, key=lambda box: box.created)

    async def box(self, box: BoxId, principal: Principal, *, fresh: bool = False) -> Box:
        """The box of this id; raises BoxNotFound when it is unknown or somebody else's.

        It is as this server knows it; with `fresh`, as any server does.
        """
        slot = await self._slot(box, principal)
        if fresh:
            await self._catch_up(slot, None)
            slot = await self._slot(box, principal)
        return slot.box

    def outlook(self, box: Box) -> tuple[bool, tuple[float, Act] | None]:
        """Whether `box` is busy here, and what idleness will do to it next, and when."""
        slot = self._slots.get(box.id)
        if slot is None:
            return False, None
        busy = slot.claims > 0 or slot.busy_since is not None
        return busy, next_step(slot.view(), self._policy)

    async def create(self, principal: Principal, name: BoxName | None, spec: BoxSpec) -> Box:
        """A new box, recorded but perhaps not started: the first claim waits for that.

        Takes a spare when one fits. Raises LimitReached and NameTaken.
        """
        await self._read_store()
        if self._closing:
            raise ServerClosed
        views = [slot.view() for slot in self._slots.values()]
        if owned(views) >= self._policy.max_boxes:
            raise LimitReached("boxes", self._policy.max_boxes)
        self._refuse_taken(principal, name)
        now = self._clock.now()
        spare = choose_spare(views) if spec == self._spare_spec else None
        if spare is not None:
            slot = self._slots[spare]
        else:
            slot = Slot(Box(mint_id(), spec, created=now, since=now), ours=True)
            self._slots[slot.box.id] = slot
        await self._assign(slot, principal, name)
        self._replan()
        return slot.box

    @asynccontextmanager
    async def claim(self, box: BoxId, principal: Principal) -> AsyncGenerator[Claim, None]:
        """Holds the box awake and connected for the length of the block, waking it if need be.

        Raises BoxNotFound, BoxLost, BoxBroken, ServerClosed and the engine's errors.
        """
        slot = await self._slot(box, principal)
        if self._closing:
            raise ServerClosed
        if slot.box.state is State.LOST:
            raise BoxLost(box, slot.box.reason)
        waiter = Waiter(slot)
        self._waiters.append(waiter)
        self._replan()
        try:
            yield await self._granted(waiter)
        except BaseException:
            if waiter.claim is not None:  # its caller hears of a failure only
                slot.news = slot.news or waiter.claim.news
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.claim is not None:
                slot.claims -= 1
                slot.box = slot.box.touched(self._clock.now())
            self._replan()

    async def wake(self, box: BoxId, principal: Principal) -> None:
        """Wakes the box for a call to come, which will hear the news of it; raises as `claim`."""
        async with self.claim(box, principal) as claim:
            pass
        if (slot := self._slots.get(box)) is not None:
            slot.news = slot.news or claim.news

    async def act(self, box: BoxId, principal: Principal, act: Act) -> Box:
        """Does `act` now because somebody asked; raises IllegalMove when the box can't.

        Pausing waits for nobody: with a call running in the box, it is refused. Deleting is not.
        """
        slot = await self._slot(box, principal)
        await self._at_rest(slot)
        await self._catch_up(slot, None)
        await self._at_rest(slot)
        if self._closing:
            raise ServerClosed
        if self._slots.get(box) is not slot:
            raise BoxNotFound(box)
        slot.box.moved(MOVES[act], self._clock.now())  # raises, and changes nothing
        if slot.claims and act is not Act.DELETE:
            raise IllegalMove(box, act.value, "in use by a running call")
        job = self._begin(slot, act, "asked for", asked=True)
        await job.done.wait()
        if job.error is not None:
            raise job.error
        return slot.box

    async def leftovers(self) -> dict[BoxId, str]:
        """What is of no use any more, and why: boxes without a record, records of lost boxes.

        A box without a record that runs is the spare of a living server: without a server it
        would have stopped by its dead man's switch.
        """
        await self._read_store()
        nobodys = {
            found.box: f"nobody's, {found.detail or found.condition}"
            for found in await self._engine.list()
            if found.box not in self._slots and found.condition is not Condition.RUNNING
        }
        boxes = [slot.box for slot in self._slots.values()]
        lost = {box.id: f"lost, {box.reason}" for box in boxes if box.state is State.LOST}
        return nobodys | lost

    async def clear(self, box: BoxId) -> None:
        """Deletes one of the `leftovers`."""
        slot = self._slots.get(box)
        if slot is None or slot.box.principal is None:
            await self._engine.delete(box)
        else:
            await self.act(box, slot.box.principal, Act.DELETE)

    # Which boxes there are

    async def _at_rest(self, slot: Slot) -> None:
        while slot.job is not None:
            await slot.job.done.wait()

    async def _slot(self, box: BoxId, principal: Principal) -> Slot:
        if box not in self._slots and (stored := await self._store.box(box)) is not None:
            self._take_in(stored)
        slot = self._slots.get(box)
        if slot is None or slot.box.principal != principal or not slot.recorded:
            raise BoxNotFound(box)
        return slot

    def _take_in(self, stored: Box) -> Slot:
        """The slot of a stored box, new if need be, with what other servers wrote of it."""
        if stored.id in self._gone:
            return Slot(stored)
        slot = self._slots.setdefault(stored.id, Slot(stored))
        if slot.job is None and slot.recorded:
            self._learn(slot, stored)
        return slot

    async def _read_store(self) -> None:
        """Learns what other servers made, changed and deleted."""
        known = [slot for slot in self._slots.values() if slot.recorded and not slot.spare]
        stored = {box.id: box for box in await self._store.boxes()}
        for box in stored.values():
            self._take_in(box)
        for slot in known:
            if slot.box.id not in stored and slot.job is None:
                await self._forget(slot)

    async def _catch_up(self, slot: Slot, job: Job | None) -> None:
        """As `_read_store` for one box, on behalf of `job`; another job on it knows better."""
        if slot.spare:
            return
        stored = await self._store.box(slot.box.id)
        if slot.job is not job or slot.box.id not in self._slots:
            return
        if stored is None:
            await self._forget(slot)
        else:
            self._learn(slot, stored)

    def _learn(self, slot: Slot, stored: Box) -> None:
        slot.box = slot.box.caught_up(stored)
        slot.noted = max(slot.noted, stored.used)
        if slot.box.state is State.LOST:
            self._fail_waiters(slot, BoxLost(slot.box.id, slot.box.reason))

    async def _assign(self, slot: Slot, principal: Principal, name: BoxName | None) -> None:
        """Makes the box somebody's, or leaves all as it was."""
        before = slot.box
        slot.box = before.assigned(principal, name, self._clock.now())
        slot.noted = slot.box.used
        slot.recorded = False
        try:
            with anyio.CancelScope(shield=True):
                await self._store.add(slot.box)
        except BaseException as error:
            slot.box = before
            if before.state is State.CREATED:
                del self._slots[before.id]
            if isinstance(error, NameInUse):
                raise NameTaken(name or "", "made by another server") from None
            raise
        finally:
            slot.recorded = True

    def _refuse_taken(self, principal: Principal, name: BoxName | None) -> None:
        for slot in self._slots.values():
            if name is not None and (slot.box.principal, slot.box.name) == (principal, name):
                raise NameTaken(name, slot.box.id)

    async def _forget(self, slot: Slot, error: BoxError | None = None) -> None:
        """The box is no more: whoever waits for it hears of it."""
        self._slots.pop(slot.box.id, None)
        self._gone.add(slot.box.id)
        self._fail_waiters(slot, error or BoxNotFound(slot.box.id))
        await self._disconnect(slot)

    # What is to be done

    def _replan(self) -> None:
        if self._closing:
            return
        view = View(
            now=self._clock.now(),
            boxes=[slot.view() for slot in self._slots.values()],
            waiters=[waiter.slot.box.id for waiter in self._waiters],
            warm_from=self._warm_from,
        )
        plan = make_plan(view, self._policy)
        for box in plan.grants:
            self._grant(self._slots[box])
        for box, act in plan.acts:
            self._begin(self._slots[box], act, "idle" if act in IDLE_ACTS else "a call came")
        for box in plan.notes:
            self._note_use(self._slots[box])
        for _ in range(plan.spares):
            self._begin_spare()
        self._wake_at = plan.wake_at
        if plan.wake_at is not None and plan.wake_at < (self._nap_until or float("inf")):
            self._nap.cancel()

    async def _tend(self) -> None:
        """Plans again when the time has come that the last plan named."""
        while True:
            self._nap, self._nap_until = anyio.CancelScope(), self._wake_at
            with self._nap as nap:
                await self._clock.sleep_until(self._nap_until or float("inf"))
            if not nap.cancel_called:
                self._replan()

    async def _granted(self, waiter: Waiter) -> Claim:
        await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error
        assert waiter.claim is not None  # done without error
        return waiter.claim

    def _grant(self, slot: Slot) -> None:
        assert slot.channel is not None  # the plan grants connected boxes only
        news, slot.news = slot.news, ""
        slot.box = slot.box.touched(self._clock.now())
        for waiter in [waiter for waiter in self._waiters if waiter.slot is slot]:
            self._waiters.remove(waiter)
            slot.claims += 1
            waiter.claim = Claim(slot.box, slot.channel, news)
            waiter.done.set()

    def _fail_waiters(self, slot: Slot, error: BoxError) -> None:
        for waiter in [waiter for waiter in self._waiters if waiter.slot is slot]:
            self._waiters.remove(waiter)
            waiter.refuse(error)

    def _note_use(self, slot: Slot) -> None:
        if slot.claims:
            slot.box = slot.box.touched(self._clock.now())
        slot.noted = slot.box.used
        self._tasks.start_soon(self._save, slot)

    # Acts

    def _begin(self, slot: Slot, act: Act, reason: str, *, asked: bool = False) -> Job:
        job = slot.job = Job(act, reason, asked)
        self._tasks.start_soon(self._perform, slot, job)
        return job

    def _begin_spare(self) -> None:
        assert self._spare_spec is not None  # the policy asks for none otherwise
        now = self._clock.now()
        slot = Slot(Box(mint_id(), self._spare_spec, created=now, since=now), ours=True)
        self._slots[slot.box.id] = slot
        self._begin(slot, Act.START, "spare")

    async def _perform(self, slot: Slot, job: Job) -> None:
        with job.scope:
            try:
                await self._do(slot, job)
            except BoxError as error:
                job.error = error
            except Exception as error:
                logger.exception("%s of %s failed unexpectedly", job.act, slot.box.id)
                detail = f"this server failed to {job.act} it: {error!r}"
                job.error = BoxBroken(slot.box.id, detail)
            if job.error is not None:
                await self._failed(slot, job, job.error)
        if job.scope.cancelled_caught:
            job.error = ServerClosed()
        slot.job = None
        job.done.set()
        self._replan()

    async def _do(self, slot: Slot, job: Job) -> None:
        if job.act is Act.CHECK:
            return await self._check(slot, job)
        if not job.asked and await self._overtaken(slot, job):
            return
        await self._work(slot, job.act)
        if job.act is Act.FREEZE and await self._used_meanwhile(slot, job):
            return await self._engine.thaw(slot.box.id)
        slot.doubtful = job.act is not Act.STOP and not slot.connected
        await self._move(slot, MOVES[job.act], job.reason)
        if slot.box.state is State.RUNNING and not slot.connected:
            raise BoxBroken(slot.box.id, "its daemon ended as soon as it was greeted")

    async def _work(self, slot: Slot, act: Act) -> None:
        match act:
            case Act.START:
                if slot.box.state is State.CREATED:
                    await self._engine.create(slot.box.id, slot.box.spec)
                await self._engine.start(slot.box.id)
                await self._connect(slot)
            case Act.THAW:
                await self._engine.thaw(slot.box.id)
                if not slot.connected:
                    await self._connect(slot)
            case Act.FREEZE:
                await self._engine.freeze(slot.box.id)
            case Act.STOP:
                await self._engine.stop(slot.box.id)
                await self._disconnect(slot)
            case Act.DELETE:
                await self._disconnect(slot)
                await self._engine.delete(slot.box.id)
            case Act.CHECK:
                raise AssertionError("a check moves to what it finds")

    async def _overtaken(self, slot: Slot, job: Job) -> bool:
        """Whether another server did what makes `job` wrong, which was planned without it."""
        before = slot.box.state
        await self._catch_up(slot, job)
        if slot.box.id not in self._slots or slot.box.state is not before:
            return True
        return job.act in IDLE_ACTS and not self._due(slot, job.act)

    async def _used_meanwhile(self, slot: Slot, job: Job) -> bool:
        """Whether a call came to another server while the idle box was being frozen."""
        if job.asked:
            return False
        await self._catch_up(slot, job)
        return slot.box.state is State.RUNNING and not self._due(slot, job.act)

    def _due(self, slot: Slot, act: Act) -> bool:
        step = next_step(slot.view(), self._policy)
        return step is not None and step[0] <= self._clock.now() and step[1] is act

    async def _check(self, slot: Slot, job: Job) -> None:
        """Makes slot and engine agree: the box is running and connected, or known to be neither."""
        if slot.box.state is State.RUNNING and await self._answers(slot):
            slot.doubtful, slot.heard = False, self._clock.now()
            return
        broken = slot.channel is not None and slot.channel.broken
        await self._disconnect(slot)
        await self._catch_up(slot, job)
        if slot.box.id not in self._slots:
            return
        found = await self._engine.inspect(slot.box.id)
        if slot.box.state is State.CREATED and found.condition in UNBORN:
            return await self._inherit(slot)
        await self._reconcile(slot, found, "found so")
        if slot.box.state is State.RUNNING and (broken or not await self._came_back(slot)):
            # Its boxd is dying or dead: end what is left, and let the next plan start it anew.
            await self._engine.stop(slot.box.id)
            found = await self._engine.inspect(slot.box.id)
            await self._reconcile(slot, found, "its daemon did not answer")

    async def _answers(self, slot: Slot) -> bool:
        if slot.channel is None or not slot.connected:
            return False
        with anyio.move_on_after(PING_TIMEOUT):
            try:
                await slot.channel.request("stat", path="/")
            except CallRefused:
                return True
            except (BoxBroken, CallInterrupted):
                return False
            return True
        return False

    async def _came_back(self, slot: Slot) -> bool:
        try:
            await self._connect(slot)
        except (BoxBroken, EngineRefused):
            return False
        return True

    async def _inherit(self, slot: Slot) -> None:
        """A box that another server recorded but did not start is made here, if that one died."""
        if self._clock.now() - slot.box.created < MAKING:
            raise BoxBroken(slot.box.id, "another server is still making it")
        await self._engine.delete(slot.box.id)  # never started: nothing is lost with it
        slot.ours, slot.doubtful = True, False

    async def _reconcile(self, slot: Slot, found: Found, reason: str) -> None:
        """Moves the box to where the engine found it."""
        goal = STATES[found.condition]
        if goal is not slot.box.state and slot.box.state is not State.LOST:
            await self._disconnect(slot)
            why = f"{reason}: {found.detail}" if found.detail else reason
            for move in way(slot.box.state, goal):
                await self._move(slot, move, why)
        slot.doubtful = False

    async def _connect(self, slot: Slot) -> None:
        await self._disconnect(slot)
        channel = await open_channel(slot.box.id, await self._engine.open_channel(slot.box.id))
        channel.on_change = partial(self._channel_changed, slot, channel)
        slot.channel = channel
        self._tasks.start_soon(channel.receive_forever)
        boot = str(channel.hello.get("boot"))
        if (slot.boot and slot.boot != boot) or (not slot.boot and slot.box.state is State.STOPPED):
            slot.news = (
                f"[the box had been stopped ({slot.box.reason or 'its daemon ended'}) "
                "and was started again: "
                "its files survived, its processes did not]"
            )
        slot.boot, slot.heard = boot, self._clock.now()
        slot.busy_since = slot.heard if channel.busy else None

    async def _disconnect(self, slot: Slot) -> None:
        channel, slot.channel = slot.channel, None
        slot.busy_since = None
        if channel is not None:
            channel.on_change = lambda: None
            await channel.aclose()

    def _channel_changed(self, slot: Slot, channel: Channel) -> None:
        """Its boxd says that it came to be busy or idle, or the connection ended."""
        now = self._clock.now()
        slot.busy_since = now if channel.open and channel.busy else None
        slot.doubtful = slot.doubtful or not channel.open
        if channel.open:
            slot.box = slot.box.touched(now)
        self._replan()

    async def _move(self, slot: Slot, move: Move, reason: str) -> None:
        before = slot.box.state
        slot.box = slot.box.moved(move, self._clock.now(), reason)
        self._hook(BoxMoved(slot.box.id, before, slot.box.state, reason))
        if slot.box.state is State.DELETED:
            await self._forget(slot)
            with self._reporting(slot, "forget"):
                await self._store.remove(slot.box.id)
            return
        if slot.box.state is State.LOST:
            self._fail_waiters(slot, BoxLost(slot.box.id, reason))
        await self._save(slot)

    async def _save(self, slot: Slot) -> None:
        """Writes the box down. That this fails is no reason not to use the box."""
        if slot.spare or not slot.recorded or slot.box.id not in self._slots:
            return
        saved = True
        with self._reporting(slot, "record"):
            saved = await self._store.save(slot.box)
        if not saved:  # deleted by another server
            await self._forget(slot)

    # When things go wrong, and at the end

    async def _failed(self, slot: Slot, job: Job, error: BoxError) -> None:
        """After a failed act: the callers hear of it, and nothing half-made stays behind."""
        self._hook(ActFailed(slot.box.id, job.act, str(error)))
        if slot.box.id not in self._slots:
            return
        if slot.box.state is State.CREATED:
            if slot.ours and job.act is Act.START:
                job.error = await self._explained(slot, error)
                if slot.spare:
                    self._warm_from = self._clock.now() + SPARE_RETRY
                await self._drop(slot, job.error)
            return self._fail_waiters(slot, error)
        slot.doubtful = True
        slot.rest_until = self._clock.now() + ACT_RETRY
        if isinstance(error, BoxBroken | EngineRefused):
            with self._reporting(slot, "look at"):
                found = await self._engine.inspect(slot.box.id)
                await self._reconcile(slot, found, f"could not {job.act}")
        if slot.box.state is State.LOST and job.act is not Act.DELETE:
            job.error = BoxLost(slot.box.id, slot.box.reason)
        self._fail_waiters(slot, error)

    async def _explained(self, slot: Slot, error: BoxError) -> BoxError:
        """`error` with the last words of a box that never came up."""
        if not isinstance(error, BoxBroken | EngineRefused):
            return error
        try:
            words = await self._engine.last_words(slot.box.id)
        except BoxError:
            return error
        return BoxBroken(slot.box.id, words.splitlines()[-1]) if words else error

    async def _drop(self, slot: Slot, error: BoxError) -> None:
        """Takes a box that never came to be out of everything."""
        await self._forget(slot, error)
        with self._reporting(slot, "forget"):
            await self._store.remove(slot.box.id)
        with self._reporting(slot, Act.DELETE):
            await self._engine.delete(slot.box.id)

    async def _tidy_up(self) -> None:
        """What is not done in time is left to boxd and to the next server."""
        async with anyio.create_task_group() as group:
            for slot in list(self._slots.values()):
                group.start_soon(self._put_away, slot)

    async def _put_away(self, slot: Slot) -> None:
        """Spares go, with what is only half made; acts on other boxes come to their end."""
        going = slot.spare or (slot.job is not None and slot.box.state is State.CREATED)
        if slot.job is not None:
            if going:
                slot.job.scope.cancel()
            await slot.job.done.wait()
        if slot.box.id not in self._slots:
            return
        if going and slot.box.state is not State.DELETED:
            await self._drop(slot, ServerClosed())
        elif slot.box.used > slot.noted:
            await self._save(slot)

    @contextmanager
    def _reporting(self, slot: Slot, doing: str) -> Generator[None, None, None]:
        """For work whose failure is told to the hook and changes nothing else."""
        try:
            yield
        except BoxError as error:
            self._hook(ActFailed(slot.box.id, doing, str(error)))
        except Exception as error:
            logger.exception("%s of %s failed unexpectedly", doing, slot.box.id)
            self._hook(ActFailed(slot.box.id, doing, repr(error)))
