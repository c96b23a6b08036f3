"""The pool owns the boxes of one server process: it hands them to calls and tends the idle ones.

Whenever anything changes it asks `domain.plan` what to do, and does it: one act per box at a time,
each in a task of the pool's own. A call that is cancelled while it waits takes nothing with it:
the act goes on, and the next call finds its result.

    claim ──▶ waiter ──▶ make_plan ──▶ grants     the call goes on, holding the box
                            │    ├───▶ acts       engine work, then the table moves the box
                            │    ├───▶ refusals   no room for it, for too long
                            └────┴───▶ spares     warm boxes for callers to come

Several servers share store, engine and boxes. Each box has a ticket (`tickets.py`): a server shares
it while a call runs, and has it alone while it changes the box. Who finds another generation on
it than he knew looks at the store first.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from box_mcp.channel import Channel
from box_mcp.domain.box import Box, BoxSpec, Move, State, Terms, way
from box_mcp.domain.limits import ABOUT_TO_RUN, Room
from box_mcp.domain.names import BoxId, BoxName, Principal, mint_id
from box_mcp.domain.plan import (
    EVICT_AFTER,
    MOVES,
    RECENT,
    TRUST,
    WAKING,
    Act,
    Policy,
    View,
    Waiting,
    choose_spare,
    make_plan,
    next_step,
    ready,
)
from box_mcp.engines.base import Condition, Engine, Found, Saved
from box_mcp.errors import (
    BoxBroken,
    BoxError,
    BoxLost,
    BoxNotFound,
    EngineRefused,
    EngineStalled,
    IllegalMove,
    LimitReached,
    NameTaken,
    ServerClosed,
)
from box_mcp.events import ActFailed, BoxMoved, Hook
from box_mcp.slots import Claim, Clock, Job, Slot, SystemClock, Waiter
from box_mcp.store import Full, NameInUse, Store
from box_mcp.tickets import Presence, Ticket, Tickets

logger = logging.getLogger(__name__)

WARM_DELAY = 2.0  # s after the start before anything is done unasked: clients list tools first
WATCH_EVERY = 2.0  # s between two looks at what other servers did
SPARE_RETRY = 30.0  # s after a spare failed
ACT_RETRY = 60.0  # s after an act failed, before idleness tries another
LOCK_RETRY = 0.01  # s between two tries for a box that another server changes
LOCK_PATIENCE = 90.0  # s for such a change; starting a box with its setup takes longest
USE_PATIENCE = 0.5  # s for a call of another server: it may be ending, or its server dying
CROWDED_RETRY = 0.1  # s, when the store knows that there is no room, and the plan did not
START_AT_ONCE = 4  # boxes; of more, each would be ready only when nearly all are
STOCK = 2  # boxes to come whose networks are made ahead
DOOMED = "about to be deleted"  # the reason on record: if its server dies, others go on
UNNAMED = "unnamed-images"  # the ticket of all of them
EXIT_GRACE = (
    0.35  # s for tidying up at exit: clients kill a server about half a second after SIGINT
)

UNFOUNDED = (State.CREATED, State.LOST)  # the engine need not have a box that is so
UNBORN = (Condition.ABSENT, Condition.CREATED)
IDLE_ACTS = (Act.FREEZE, Act.STOP, Act.DELETE)
STATES = {
    Condition.CREATED: State.STOPPED,
    Condition.RUNNING: State.RUNNING,
    Condition.FROZEN: State.FROZEN,
    Condition.STOPPED: State.STOPPED,
    Condition.ABSENT: State.LOST,
}

Setup = Callable[[Channel, Box], Awaitable[str]]
"""Prepares a box that was just made, and returns what its first call should hear of it."""


@dataclass(frozen=True)
class Statistics:
    """The pool at one moment."""

    boxes: int
    spares: int
    claims: int
    waiters: int
    acting: int


class Pool:
    """All boxes of this server. Use as an async context manager.

    `directory` is where servers on this machine meet. `spare_spec` is what spares are made from,
    None for no spares.
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
        hook: Hook = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._tickets = Tickets(directory / "boxes")
        self._presence = Presence(directory / "servers")
        none = replace(policy, warm_min=0, warm_max=0)
        self._policy = policy if spare_spec is not None else none
        self._spare_spec = spare_spec
        self._setup = setup
        self._hook = hook
        self._clock = clock or SystemClock()
        self._slots: dict[BoxId, Slot] = {}
        self._gone: set[BoxId] = set()  # deleted here; an answer of the store may be older
        self._stock: dict[BoxId, Ticket] = {}
        self._creations = deque[float](maxlen=100)
        self._starting = anyio.Semaphore(START_AT_ONCE)
        self._waiters: list[Waiter] = []
        self._warm_from = self._clock.now() + WARM_DELAY
        self._wake_at: float | None = None
        self._nap = anyio.CancelScope()
        self._nap_until: float | None = None
        self._untidy = True  # other servers may have left something
        self._closing = False
        self._tasks: TaskGroup

    def __repr__(self) -> str:
        return f"<Pool {list(self._slots.values())} {len(self._waiters)} waiting>"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Pool, None]:
        """Runs the pool. At exit, running boxes are left to their dead man's switch."""
        with self._presence:
            alone = self._presence.alone()
            for box in await self._store.boxes():
                slot = self._take_in(box)
                slot.rest_until = self._warm_from
                slot.orphaned = alone and box.state is State.FROZEN
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._tend)
                self._tasks.start_soon(self._watch)
                self._tasks.start_soon(self._tell_of_use)
                self._replan()
                try:
                    yield self
                finally:
                    await self._close(last=self._presence.alone())
        for slot in self._slots.values():
            slot.ticket.close()

    async def _close(self, *, last: bool) -> None:
        self._closing = True
        for waiter in self._waiters:
            waiter.refuse(ServerClosed())
        with anyio.move_on_after(EXIT_GRACE, shield=True):
            await self._tidy_up(last)
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
            slot.box = slot.box.touched(slot.ticket.used())
        return slot.box

    async def named(self, name: BoxName, principal: Principal) -> BoxId:
        """The box that `principal` calls so; raises BoxNotFound."""
        own = [slot.box for slot in self._slots.values() if slot.recorded]
        if not any((box.name, box.principal) == (name, principal) for box in own):
            own = await self.boxes(principal)
        found = [box.id for box in own if (box.name, box.principal) == (name, principal)]
        if not found:
            raise BoxNotFound(name)
        return found[0]

    async def reconcile(self, principal: Principal, box: BoxId | None = None) -> None:
        """Looks whether the engine has the boxes of `principal`, or one, as they are known here.

        Those that somebody else changed are moved to where they are, and connected to if they run.
        Those in use are left alone. Raises the engine's errors.
        """
        found = await self._found(principal) if box is None else [await self._engine.inspect(box)]
        conditions = {one.box: one.condition for one in found}
        for slot in list(self._slots.values()):
            if slot.box.principal == principal and box in (None, slot.box.id):
                await self._at_rest(slot)
                condition = conditions.get(slot.box.id, Condition.ABSENT)
                if self._is_idle(slot) and _differs(slot.box, condition):
                    await self._begin(slot, Act.CHECK, "looked for").done.wait()

    async def _found(self, principal: Principal) -> Sequence[Found]:
        """What the engine lists; raises EngineRefused when that is not where the boxes are."""
        made = [one for one in await self.boxes(principal) if one.state not in UNFOUNDED]
        found = await self._engine.list() if made else ()
        there = {one.box for one in found if one.condition is not Condition.ABSENT}
        if len(made) > 1 and there.isdisjoint(one.id for one in made):
            why = "it has none of them; perhaps it is another engine than they were made on"
            raise EngineRefused("find your boxes", why)
        return found

    def _is_idle(self, slot: Slot) -> bool:
        """Whether no server does anything with the box right now."""
        if slot.job is not None or slot.claims or not slot.recorded or self._closing:
            return False
        idle = slot.box.id in self._slots and slot.ticket.share()
        slot.let_go()
        return idle

    def outlook(self, box: Box) -> tuple[bool, tuple[float, Act] | None]:
        """Whether `box` is busy here, and what idleness will do to it next, and when."""
        slot = self._slots.get(box.id)
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
        if self._closing:
            raise ServerClosed
        now = self._clock.now()
        self._creations.append(now)
        blank = Box(mint_id(), spec, created=now, since=now)
        wanted = blank.assigned(principal, name, now, terms or Terms())
        slot = await self._assigned_spare(wanted) if spec == self._spare_spec else None
        if slot is None:
            slot = self._new_slot(replace(wanted, id=self._next_id()))
            await self._record(slot, slot.box, self._store.add)
        self._replan()
        return slot.box

    @asynccontextmanager
    async def claim(self, box: BoxId, principal: Principal) -> AsyncGenerator[Claim, None]:
        """Holds the box awake and connected for the length of the block, waking it if need be.

        Raises BoxNotFound, BoxLost, BoxBroken, LimitReached, ServerClosed and the engine's errors.
        """
        slot = await self._slot(box, principal)
        if self._closing:
            raise ServerClosed
        if slot.box.state is State.LOST:
            raise BoxLost(box, slot.box.reason)
        waiter = Waiter(slot, self._clock.now())
        self._waiters.append(waiter)
        if not (ready(slot.view(), waiter.since) and self._grant(slot)):
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
                self._give_back(slot)

    async def wake(self, box: BoxId, principal: Principal) -> None:
        """Wakes the box for a call to come, which will hear the news of it; raises as `claim`."""
        async with self.claim(box, principal) as claim:
            pass
        if (slot := self._slots.get(box)) is not None:
            slot.news = slot.news or claim.news

    async def withdraw(self, box: BoxId, principal: Principal) -> None:
        """Deletes a box that could not be given to its maker; at least it is nobody's any more.

        One that somebody uses meanwhile, or waits for, is his. Raises BoxNotFound, ServerClosed.
        """
        slot = await self._own_at_rest(box, principal)
        if slot.claims or any(waiter.slot is slot for waiter in self._waiters):
            return
        error = BoxLost(box, "it could not be given to its maker")
        job = self._begin(slot, Act.DELETE, error.reason, asked=True)
        await job.done.wait()
        in_use = isinstance(job.error, IllegalMove)
        if in_use or self._slots.get(box) is not slot or not slot.ticket.take():
            return
        slot.generation = slot.ticket.bump()
        if slot.box.state not in (State.CREATED, State.LOST):
            await self._move(slot, Move.LOSE, error.reason)
        await self._disown(slot, error)
        slot.let_go()
        self._replan()

    async def act(self, box: BoxId, principal: Principal, act: Act) -> Box:
        """Does `act` now because somebody asked; raises IllegalMove when the box can't.

        Pausing waits for nobody: with a call running in the box, it is refused. Deleting is
        refused only while another server's call runs in it.
        """
        slot = await self._own_at_rest(box, principal)
        if slot.doubtful and act is not Act.DELETE:
            await self.reconcile(principal, box)
            await self._at_rest(slot)
            if slot.box.state is State.LOST:
                raise BoxLost(box, slot.box.reason)
        if self._slots.get(box) is not slot:
            raise BoxNotFound(box)
        slot.box.moved(MOVES[act], self._clock.now())  # raises, and changes nothing
        if slot.claims and act is not Act.DELETE:
            raise IllegalMove(box, act.value, "in use by a running call")
        await self._ended(self._begin(slot, act, "asked for", asked=True))
        return slot.box

    async def save(
        self, box: BoxId, principal: Principal, tag: str | None, labels: dict[str, str]
    ) -> Saved:
        """Copies the files of the box, in whatever state, to an image; it is not woken for it.

        Running calls and commands stand still meanwhile. A cancelled caller's image is made
        all the same.
        """
        slot = await self._own_at_rest(box, principal)
        if slot.box.state in (State.CREATED, State.LOST):
            raise IllegalMove(box, "save", slot.box.state.value)
        job = self._begin(slot, Act.SAVE, "asked for", asked=True)
        job.save = tag, labels
        await self._ended(job)
        assert job.saved is not None  # it ended without error
        return job.saved

    @asynccontextmanager
    async def alone_with(self, what: str) -> AsyncGenerator[None, None]:
        """Keeps all others, in this server and in others, from the same for as long."""
        ticket = self._tickets.ticket(what)
        try:
            while not ticket.take():  # noqa: ASYNC110 - another process has it
                await anyio.sleep(LOCK_RETRY)
            yield
        finally:
            ticket.discard()

    @asynccontextmanager
    async def sharing_images(self) -> AsyncGenerator[None, None]:
        """Keeps all servers from clearing away images that have no name, and no box yet."""
        ticket = self._tickets.ticket(UNNAMED)
        try:
            while not ticket.share():  # noqa: ASYNC110 - another process has it
                await anyio.sleep(LOCK_RETRY)
            yield
        finally:
            ticket.close()

    # Which boxes there are

    async def _own_at_rest(self, box: BoxId, principal: Principal) -> Slot:
        slot = await self._slot(box, principal)
        await self._at_rest(slot)
        await self._catch_up(slot, None)
        await self._at_rest(slot)
        if self._closing:
            raise ServerClosed
        if self._slots.get(box) is not slot:
            raise BoxNotFound(box)
        return slot

    async def _at_rest(self, slot: Slot) -> None:
        while slot.job is not None:
            await slot.job.done.wait()

    async def _slot(self, box: BoxId, principal: Principal) -> Slot:
        slot = self._slots.get(box)
        if slot is None or slot.spare:  # another server may have made it somebody's
            stored = await self._store.box(box)
            slot = await self._owned(stored) if stored is not None else None
        if slot is None or slot.box.principal != principal or not slot.recorded:
            raise BoxNotFound(box)
        return slot

    def _new_slot(self, box: Box) -> Slot:
        ticket = self._stock.pop(box.id, None) or self._tickets.ticket(box.id)
        slot = self._slots[box.id] = Slot(box, ticket, ours=True)
        slot.generation = slot.ticket.generation()
        return slot

    def _next_id(self) -> BoxId:
        return next(iter(self._stock), None) or mint_id()

    def _take_in(self, stored: Box) -> Slot:
        """The slot of a stored box, new if need be, with what other servers wrote of it."""
        slot = self._slots.get(stored.id)
        if slot is None:
            slot = Slot(stored, self._tickets.ticket(stored.id))
            slot.doubtful = not slot.spare
            if stored.id not in self._gone:
                self._slots[stored.id] = slot
        if slot.job is None and slot.recorded:
            self._learn(slot, stored)
        return slot

    async def _owned(self, stored: Box) -> Slot:
        """As `_take_in`; that a spare became somebody's is learned whatever goes on in it."""
        slot = self._take_in(stored)
        while slot.spare and stored.principal is not None and not self._closing:
            await self._at_rest(slot)
            await anyio.lowlevel.checkpoint()
            slot = self._take_in(stored)
        return slot

    async def _read_store(self) -> None:
        """Learns what other servers made, changed and deleted."""
        known = [slot for slot in self._slots.values() if slot.recorded]
        stored = {box.id: box for box in await self._store.boxes()}
        for box in stored.values():
            await self._owned(box)
        for slot in known:
            gone = slot.box.id not in stored or _disowned(slot, stored[slot.box.id])
            if gone and slot.job is None and slot.recorded:
                await self._forget(slot)

    async def _catch_up(self, slot: Slot, job: Job | None) -> None:
        """As `_read_store` for one box, on behalf of `job`; another job on it knows better."""
        stored = await self._store.box(slot.box.id)
        if slot.job is not job or slot.box.id not in self._slots:
            return
        if stored is None or _disowned(slot, stored):
            await self._forget(slot)
        else:
            self._learn(slot, stored)

    def _learn(self, slot: Slot, stored: Box) -> None:
        slot.box = slot.box.caught_up(stored)
        if slot.box.state is State.LOST:
            self._fail_waiters(slot, BoxLost(slot.box.id, slot.box.reason))
        if slot.spare and slot.box.state is State.CREATED and not slot.ours:
            # Its maker holds the ticket; if not, he died.
            slot.doubtful = slot.ticket.share()
            slot.let_go()

    async def _assigned_spare(self, wanted: Box) -> Slot | None:
        """A spare that now is as `wanted` says; None when there is none that works."""
        while (chosen := choose_spare([slot.view() for slot in self._slots.values()])) is not None:
            slot = self._slots[chosen]
            assigned = replace(wanted, id=chosen, state=slot.box.state, since=slot.box.since)
            if slot.hold() and await self._sound(slot):
                if await self._record(slot, assigned, self._store.assign):
                    return slot
                await self._catch_up(slot, None)  # another server was faster
            else:
                slot.doubtful = True
        self._replan()
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

    async def _record(
        self, slot: Slot, box: Box, write: Callable[[Box, Room], Awaitable[bool | None]]
    ) -> bool:
        """Makes the box somebody's, or leaves all as it was; False when `write` says so."""
        before, slot.box = slot.box, box
        slot.recorded, written = False, False
        try:
            with anyio.CancelScope(shield=True):
                written = await write(box, self._policy.room) is not False
            if not written:
                slot.box = before
        except BaseException as error:
            slot.box = before
            if box.state is State.CREATED:
                self._slots.pop(box.id)
                if slot.ticket.take():  # nobody else knows of it
                    self._stock[box.id] = slot.ticket
            if isinstance(error, NameInUse):
                raise NameTaken(box.name or "", await self._holder(box)) from None
            if isinstance(error, Full):
                raise self._full(error.limit) from None
            raise
        finally:
            slot.recorded = True
            if box.id in self._slots:
                slot.let_go()
        return written

    async def _holder(self, box: Box) -> str:
        for other in await self._store.boxes():
            if (other.name, other.principal) == (box.name, box.principal):
                return other.id
        return "deleted just now"

    def _full(self, limit: str) -> LimitReached:
        return LimitReached(limit, getattr(self._policy.room, limit))

    def _discard(self, slot: Slot) -> None:
        """The box never was, or is no more."""
        self._slots.pop(slot.box.id, None)
        if slot.ticket.take():  # a look at it may have made its file anew
            slot.ticket.discard()
        slot.ticket.close()

    async def _forget(self, slot: Slot, error: BoxError | None = None) -> None:
        """The box is no more: whoever waits for it hears of it."""
        self._gone.add(slot.box.id)
        self._fail_waiters(slot, error or BoxNotFound(slot.box.id))
        await slot.disconnect()
        self._discard(slot)

    # What is to be done

    def _replan(self) -> None:
        if self._closing:
            return
        now = self._clock.now()
        while self._creations and now - self._creations[0] > RECENT:
            self._creations.popleft()
        view = View(
            now=now,
            boxes=[slot.view() for slot in self._slots.values()],
            waiters=[Waiting(waiter.slot.box.id, waiter.since) for waiter in self._waiters],
            warm_from=self._warm_from,
            creations=self._creations,
        )
        plan = make_plan(view, self._policy)
        granted = [self._grant(self._slots[box]) for box in plan.grants]
        for box, act in plan.acts:
            self._begin(self._slots[box], act, self._reason(self._slots[box], act))
        for box, limit in plan.refusals:
            self._fail_waiters(self._slots[box], self._full(limit))
        for _ in range(plan.spares):
            self._begin_spare()
        self._sleep_until(plan.wake_at)
        if not all(granted):
            self._replan()

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
                self._replan()

    async def _watch(self) -> None:
        """Learns what other servers do, clears up after those that ended, and keeps the stock."""
        known: AbstractSet[str] = frozenset()
        while True:
            await self._clock.sleep_until(self._clock.now() + WATCH_EVERY)
            try:
                if await self._store.changed():
                    await self._read_store()
                    self._replan()
                others = self._presence.others()
                self._untidy = self._untidy or not known <= others
                known = others
                if self._untidy:
                    await self._tidy()
                if self._policy.warm_max and len(self._stock) < STOCK:
                    await self._add_to_stock()
            except BoxError as error:
                self._hook(ActFailed("-", "watch", str(error)))
                await self._clock.sleep_until(self._clock.now() + SPARE_RETRY)

    async def _tell_of_use(self) -> None:
        """Should this server die, others know how long its calls have used their boxes."""
        while True:
            await self._clock.sleep_until(self._clock.now() + WATCH_EVERY)
            for slot in self._slots.values():
                if slot.claims:
                    slot.ticket.touch(self._clock.now())

    async def _add_to_stock(self) -> None:
        box = mint_id()
        ticket = self._tickets.ticket(box)
        ticket.take()  # so all see that its network is somebody's
        try:
            await self._engine.prepare(box)
        except BaseException:
            ticket.close()
            self._untidy = True  # it may have been made all the same
            raise
        self._stock[box] = ticket

    async def _tidy(self) -> None:
        self._untidy, done = False, False
        try:
            done = await self._clear_up()
        finally:
            self._untidy = self._untidy or not done

    async def _clear_up(self) -> bool:
        """Removes what is left of servers that ended in the middle of something, as far as it can.

        A container without a record is none of that, since the record goes last: it may hold
        somebody's files, so it stays for a person to judge.
        """
        found = await self._engine.list()
        networks = {one.box for one in found if one.condition is Condition.ABSENT}
        for name in sorted(networks | self._tickets.names()):
            async with self._abandoned(name) as abandoned:
                if abandoned and name in networks:
                    await self._engine.delete(BoxId(name))
        for box in await self._store.boxes():
            if box.reason in (ABOUT_TO_RUN, DOOMED):
                await self._settle(box)
        images = self._tickets.ticket(UNNAMED)
        if not images.take():
            return False  # a box is being forked
        try:
            needed = {box.spec.image for box in await self._store.boxes()}
            for saved in await self._engine.saved():
                if saved.image.startswith("sha256:") and saved.image not in needed:
                    await self._engine.drop(saved.image)
        finally:
            images.discard()
        return True

    async def _settle(self, box: Box) -> None:
        """Its server died over waking it, which is undone, or over deleting it, which is done."""
        slot = self._take_in(box)
        if slot.claims or slot.job is not None or not slot.ticket.take():
            return
        if box.reason == DOOMED:
            await self._begin(slot, Act.DELETE, "asked for", asked=True).done.wait()
        else:
            slot.box = replace(slot.box, reason="its server ended")
            await self._save(slot)
            slot.let_go()

    @asynccontextmanager
    async def _abandoned(self, name: str) -> AsyncGenerator[bool, None]:
        """Whether no server knows anything of this name, nor will before the end of the block."""
        if name in self._slots or name in self._stock:
            yield False
            return
        ticket = self._tickets.ticket(name)
        free = ticket.take() and await self._store.box(BoxId(name)) is None
        try:
            yield free
        finally:
            if free:
                ticket.discard()
            else:
                ticket.close()

    async def _granted(self, waiter: Waiter) -> Claim:
        await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error
        assert waiter.claim is not None  # done without error
        return waiter.claim

    def _grant(self, slot: Slot) -> bool:
        """Gives the box to all who wait for it; False when another server changed it."""
        assert slot.channel is not None  # the plan grants connected boxes only
        if not slot.hold():
            return False
        now = self._clock.now()
        news, slot.news = slot.news, ""
        slot.orphaned = False
        slot.box = slot.box.touched(now)
        slot.ticket.touch(now)
        for waiter in [waiter for waiter in self._waiters if waiter.slot is slot]:
            self._waiters.remove(waiter)
            slot.claims += 1
            waiter.claim = Claim(slot.box, slot.channel, news)
            waiter.done.set()
        return True

    def _give_back(self, slot: Slot) -> None:
        """A call is done with the box."""
        now = self._clock.now()
        slot.claims -= 1
        slot.box = slot.box.touched(now)
        if slot.claims or slot.box.id not in self._slots:
            return
        slot.ticket.touch(now)
        slot.let_go()
        self._replan_for(slot)

    def _replan_for(self, slot: Slot) -> None:
        """Plans again after a change of one box, unless all that came of it is a next step."""
        step = next_step(slot.view(), self._policy)
        if self._waiters or slot.doubtful:
            self._replan()
        elif step is not None and step[0] < (self._wake_at or float("inf")):
            self._sleep_until(step[0])

    def _waited_for(self, slot: Slot) -> bool:
        return any(waiter.slot is slot for waiter in self._waiters)

    def _fail_waiters(self, slot: Slot, error: BoxError) -> None:
        for waiter in [waiter for waiter in self._waiters if waiter.slot is slot]:
            self._waiters.remove(waiter)
            waiter.refuse(error)

    # Acts

    def _reason(self, slot: Slot, act: Act) -> str:
        if act not in IDLE_ACTS:
            return "a call came"
        return "idle" if self._due(slot, act) else "to make room"

    def _begin(self, slot: Slot, act: Act, reason: str, *, asked: bool = False) -> Job:
        job = slot.job = Job(act, reason, asked)
        self._tasks.start_soon(self._perform, slot, job)
        return job

    def _begin_spare(self) -> None:
        assert self._spare_spec is not None  # the policy asks for none otherwise
        now = self._clock.now()
        slot = self._new_slot(Box(self._next_id(), self._spare_spec, created=now, since=now))
        self._begin(slot, Act.START, "spare")

    async def _ended(self, job: Job) -> None:
        await job.done.wait()
        if job.error is not None:
            raise job.error

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
        if slot.claims and slot.box.id in self._slots:
            slot.ticket.share()
        slot.let_go()
        job.done.set()
        self._replan()

    async def _do(self, slot: Slot, job: Job) -> None:
        match job.act:
            case Act.CHECK:
                await self._check(slot, job)
            case Act.SAVE:
                await self._share(slot)
                # One save at a time: the end of one would thaw the box under the other.
                async with self._saving(slot), self.sharing_images():
                    self._untidy = self._untidy or job.save[0] is None  # if nobody comes for it
                    job.saved = await self._engine.save(slot.box.id, *job.save)
            case _:
                if await self._take(slot, job):
                    await self._change(slot, job)

    async def _share(self, slot: Slot) -> None:
        """No other server changes the box from here on."""
        await self._patiently(slot, slot.ticket.share)

    async def _patiently(self, slot: Slot, done: Callable[[], bool]) -> None:
        deadline = anyio.current_time() + LOCK_PATIENCE
        while not done():
            if anyio.current_time() > deadline:
                waited = f"another server has been changing it for {LOCK_PATIENCE:g} s"
                raise BoxBroken(slot.box.id, waited)
            await anyio.sleep(LOCK_RETRY)

    async def _take(self, slot: Slot, job: Job) -> bool:
        """The box for ourselves alone; False when `job` is of no use or possible any more."""
        before = slot.box.state
        if not slot.ticket.take():
            if job.act in IDLE_ACTS and not job.asked:
                slot.rest_until = self._clock.now() + WATCH_EVERY
                return False
            refuse_at = anyio.current_time() + USE_PATIENCE
            await self._patiently(slot, lambda: self._taken(slot, job, refuse_at))
        if not await self._up_to_date(slot, job):
            return False
        slot.generation = slot.ticket.generation()
        slot.box = slot.box.touched(slot.ticket.used())
        if job.asked:
            slot.box.moved(MOVES[job.act], self._clock.now())  # raises, and changes nothing
            return True
        return slot.box.state is before and self._still_wanted(slot, job)

    async def _up_to_date(self, slot: Slot, job: Job | None) -> bool:
        """Learns what other servers changed; False when the box is gone, or a spare somebody's."""
        spare = slot.spare
        made = slot.box.state is not State.CREATED
        if (spare and made) or slot.ticket.generation() != slot.generation:
            await self._catch_up(slot, job)
        return slot.box.id in self._slots and slot.spare is spare

    def _taken(self, slot: Slot, job: Job, refuse_at: float) -> bool:
        if slot.ticket.take():
            return True
        late = anyio.current_time() > refuse_at
        if job.asked and late and (slot.claims or slot.ticket.share()):
            raise IllegalMove(slot.box.id, job.act.value, "in use by a call of another server")
        return False

    def _still_wanted(self, slot: Slot, job: Job) -> bool:
        if job.act not in IDLE_ACTS or slot.spare or self._due(slot, job.act):
            return True
        unused = self._clock.now() - slot.box.used
        return job.reason != "idle" and unused >= EVICT_AFTER

    def _due(self, slot: Slot, act: Act) -> bool:
        step = next_step(slot.view(), self._policy)
        return step is not None and step[0] <= self._clock.now() and step[1] is act

    async def _change(self, slot: Slot, job: Job) -> None:
        born = slot.box.state is State.CREATED and job.act is Act.START
        if slot.spare and born:
            await self._store.add(slot.box, Room())
        slot.generation = slot.ticket.bump()
        if job.act in WAKING and not await self._found_room(slot):
            if slot.spare:  # nobody waits for it, so nobody would try again
                self._warm_from = self._clock.now() + SPARE_RETRY
                await self._drop(slot, self._full("awake"))
            return
        if job.act is Act.DELETE:
            slot.box = slot.box.noted(DOOMED, self._clock.now())
            await self._save(slot)
        await self._work(slot, job.act)
        slot.doubtful = job.act is not Act.STOP and not slot.connected
        if not job.ahead:
            await self._move(slot, MOVES[job.act], job.reason)
        if slot.box.state is State.RUNNING and not slot.connected:
            raise BoxBroken(slot.box.id, "its daemon ended as soon as it was greeted")
        if born and slot.box.spec.setup and self._setup is not None and slot.channel is not None:
            slot.news = await self._setup(slot.channel, slot.box)

    async def _found_room(self, slot: Slot) -> bool:
        """Whether the limits let the box wake, as all servers together count."""
        room = self._policy.room
        if not room.crowds or await self._store.reserve(slot.box, room):
            return True
        await self._read_store()
        await anyio.sleep(CROWDED_RETRY)
        return False

    async def _work(self, slot: Slot, act: Act) -> None:
        match act:
            case Act.START:
                async with self._starting:
                    if slot.box.state is State.CREATED:
                        await self._make(slot)
                    await self._engine.start(slot.box.id)
                    await self._connect(slot)
            case Act.THAW:
                self._tasks.start_soon(self._greet, slot, slot.job)
                await self._engine.thaw(slot.box.id)
                if not slot.connected:
                    await self._connect(slot)
            case Act.FREEZE:
                await self._engine.freeze(slot.box.id)
            case Act.STOP:
                await self._engine.stop(slot.box.id)
                await slot.disconnect()
            case Act.DELETE:
                await slot.disconnect()
                await self._engine.delete(slot.box.id)
            case Act.CHECK | Act.SAVE:
                raise AssertionError("these move nothing")

    async def _greet(self, slot: Slot, job: Job | None) -> None:
        """Calls have a thawing box when its boxd answers: the engine needs longer to say so."""
        if not await slot.answers() or job is None or slot.job is not job:
            return
        if slot.box.state is State.FROZEN:
            job.ahead, slot.heard = True, self._clock.now()
            await self._move(slot, Move.THAW, job.reason)
            if slot.job is job and slot.connected and self._waited_for(slot):
                self._grant(slot)

    async def _make(self, slot: Slot) -> None:
        if not slot.ours:  # its maker died over it: it never ran, so nothing is lost
            await self._engine.delete(slot.box.id)
            slot.ours = True
        await self._engine.create(slot.box.id, slot.box.spec)

    async def _check(self, slot: Slot, job: Job) -> None:
        """Makes slot and engine agree: the box is running and connected, or known to be neither."""
        await self._share(slot)
        if not await self._up_to_date(slot, job):
            return
        slot.generation = slot.ticket.generation()
        if slot.box.state is State.RUNNING and await slot.answers():
            slot.doubtful, slot.heard = False, self._clock.now()
            return
        broken = slot.channel is not None and slot.channel.broken
        await slot.disconnect()
        async with self._saving(slot):  # the engine holds a box still while another server saves it
            found = await self._engine.inspect(slot.box.id)
            if slot.box.state is State.CREATED and found.condition in UNBORN:
                slot.doubtful = False
                return
            await self._reconcile(slot, found, "found so")
            if slot.box.state is State.RUNNING and (broken or not await self._came_back(slot)):
                await self._end_boxd(slot)

    def _saving(self, slot: Slot) -> AbstractAsyncContextManager[None]:
        """No other server saves the box meanwhile."""
        return self.alone_with(f"{slot.box.id}-save")

    async def _end_boxd(self, slot: Slot) -> None:
        """A boxd that is dying or dead: what is left is ended, and the next plan starts it anew."""
        if not slot.ticket.take():
            raise BoxBroken(slot.box.id, "its daemon answers another server's call, but not us")
        slot.generation = slot.ticket.bump()
        await self._engine.stop(slot.box.id)
        found = await self._engine.inspect(slot.box.id)
        await self._reconcile(slot, found, "its daemon did not answer")

    async def _came_back(self, slot: Slot) -> bool:
        try:
            await self._connect(slot)
        except (BoxBroken, EngineRefused):
            return False
        return True

    async def _reconcile(self, slot: Slot, found: Found, reason: str) -> None:
        """Moves the box to where the engine found it."""
        goal = STATES[found.condition]
        if goal is State.LOST and slot.box.reason == DOOMED:
            return await self._move(slot, Move.DELETE, DOOMED)
        if goal is not slot.box.state and slot.box.state is not State.LOST:
            await slot.disconnect()
            why = f"{reason}: {found.detail}" if found.detail else reason
            for move in way(slot.box.state, goal):
                await self._move(slot, move, why)
        slot.doubtful = False

    async def _connect(self, slot: Slot) -> None:
        now = self._clock.now()
        await slot.connect(self._engine, self._tasks, now, self._channel_changed)

    def _channel_changed(self, slot: Slot, channel: Channel) -> None:
        """Its boxd says that it came to be busy or idle, or the connection ended."""
        now = self._clock.now()
        slot.busy_since = now if channel.open and channel.busy else None
        slot.doubtful = slot.doubtful or not channel.open
        if channel.open:
            slot.box = slot.box.touched(now)
            slot.ticket.touch(now)
        self._replan_for(slot)

    async def _move(self, slot: Slot, move: Move, reason: str) -> None:
        before = slot.box.state
        slot.box = slot.box.moved(move, self._clock.now(), reason)
        self._hook(BoxMoved(slot.box.id, before, slot.box.state, reason))
        if slot.box.state is State.DELETED:
            unnamed = slot.box.spec.image.startswith("sha256:")
            # Who else removed it left the image that would have gone with it.
            self._untidy = self._untidy or unnamed or before is State.LOST
            with self._reporting(slot, "forget"):
                await self._store.remove(slot.box.id)
            slot.ticket.discard()
            return await self._forget(slot)
        if slot.box.state is State.LOST:
            self._fail_waiters(slot, BoxLost(slot.box.id, reason))
        await self._save(slot)

    async def _save(self, slot: Slot) -> None:
        """Writes the box down. That this fails is no reason not to use the box."""
        if not slot.recorded or slot.box.id not in self._slots:
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
        await self._take_back(slot, job.act)
        if slot.box.id not in self._slots:
            return
        if job.act is Act.SAVE:
            return await self._failed_to_save(slot, job, error)
        if slot.box.state is State.CREATED:
            if slot.ours and job.act is Act.START:
                job.error = await self._explained(slot, error)
                if slot.spare:
                    self._warm_from = self._clock.now() + SPARE_RETRY
                return await self._drop(slot, job.error)
            slot.rest_until = self._clock.now() + ACT_RETRY
            return self._fail_waiters(slot, error)
        if isinstance(error, IllegalMove):
            return
        slot.doubtful = True
        slot.rest_until = self._clock.now() + ACT_RETRY
        if isinstance(error, BoxBroken | EngineRefused):
            with self._reporting(slot, "look at"):
                found = await self._engine.inspect(slot.box.id)
                await self._reconcile(slot, found, f"could not {job.act}")
        if job.act is Act.THAW and slot.box.state is State.STOPPED:
            return  # whoever stopped it died before he wrote that down: it is started instead
        if slot.box.state is State.LOST and job.act is not Act.DELETE:
            job.error = BoxLost(slot.box.id, slot.box.reason)
        self._fail_waiters(slot, error)

    async def _take_back(self, slot: Slot, act: Act) -> None:
        """It is on record that the box is about to run, or to be deleted: it is not any more."""
        if slot.box.reason == DOOMED:
            slot.box = slot.box.noted("could not be deleted", self._clock.now())
        if act in (*WAKING, Act.DELETE):
            await self._save(slot)

    async def _failed_to_save(self, slot: Slot, job: Job, error: BoxError) -> None:
        """The box is as it was, unless it is no more."""
        if isinstance(error, EngineRefused):
            with self._reporting(slot, "look at"):
                found = await self._engine.inspect(slot.box.id)
                if found.condition is Condition.ABSENT:
                    await self._reconcile(slot, found, "could not save")
                    job.error = BoxLost(slot.box.id, slot.box.reason)

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
        """Takes a box that never came to be, or is not needed, out of everything.

        Its record goes last: whoever takes over from us would not know of it otherwise.
        """
        await slot.disconnect()
        gone = False
        with self._reporting(slot, Act.DELETE):
            await self._engine.delete(slot.box.id)
            gone = not isinstance(error, EngineStalled)  # it may yet do what it was asked for
        if not gone:
            return await self._disown(slot, error)
        with self._reporting(slot, "forget"):
            await self._store.remove(slot.box.id)
        self._gone.add(slot.box.id)
        self._fail_waiters(slot, error)
        slot.ticket.discard()
        self._discard(slot)

    async def _disown(self, slot: Slot, error: BoxError) -> None:
        """The box is a spare of no use from now on, which is deleted when the engine is well."""
        self._fail_waiters(slot, error)
        slot.box = replace(slot.box, principal=None, name=None)
        slot.doubtful, slot.rest_until = True, self._clock.now() + ACT_RETRY
        slot.recorded = False  # else what was read before makes it somebody's again
        with self._reporting(slot, "forget"):
            await self._store.disown(slot.box.id)
        slot.recorded = True

    async def _tidy_up(self, last: bool) -> None:
        """What is not done in time is left to boxd and to the next server."""
        if last:
            with suppress(BoxError):
                await self._read_store()
        async with anyio.create_task_group() as group:
            for slot in list(self._slots.values()):
                group.start_soon(self._put_away, slot, last)
            for box in list(self._stock):
                group.start_soon(self._unstock, box)

    async def _unstock(self, box: BoxId) -> None:
        await self._engine.delete(box)
        self._stock.pop(box).discard()

    async def _put_away(self, slot: Slot, last: bool) -> None:
        """What is half made goes; with the last server, spares go, and frozen boxes are stopped."""
        half_made = slot.job is not None and slot.ours and slot.box.state is State.CREATED
        if slot.job is not None:
            if half_made or (slot.spare and last):
                slot.job.scope.cancel()
            await slot.job.done.wait()
        if slot.box.id not in self._slots:
            return
        if (slot.spare and last) or (half_made and slot.box.state is State.CREATED):
            if slot.ticket.take() and await self._up_to_date(slot, None):
                slot.ticket.bump()
                await self._drop(slot, ServerClosed())
        elif last and slot.box.state is State.FROZEN and slot.ticket.take():
            slot.ticket.bump()
            with self._reporting(slot, Act.STOP):
                await self._engine.stop(slot.box.id)
                await self._move(slot, Move.STOP, "the last server ended")
        elif not slot.spare:
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


def _differs(box: Box, condition: Condition) -> bool:
    """Whether the engine has the box in another state than it is known in."""
    unborn = box.state is State.CREATED and condition in UNBORN
    return not unborn and box.state is not State.LOST and STATES[condition] is not box.state


def _disowned(slot: Slot, stored: Box) -> bool:
    """Whether another server, which failed to make the box, made it nobody's again."""
    theirs = slot.box.principal is not None and not slot.ours
    return theirs and stored.principal is None and stored.state in (State.CREATED, State.LOST)
