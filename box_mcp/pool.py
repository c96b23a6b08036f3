"""The pool owns the boxes of one server process: it hands them to calls and tends the idle ones.

Whenever anything changes it asks `domain.plan` what to do, and does it: one act per box at a time,
each in a task of the pool's own. A call that is cancelled while it waits takes nothing with it:
the act goes on, and the next call finds its result.

    claim ──▶ waiter ──▶ make_plan ──▶ grants   the call goes on, holding the box
                            │    └───▶ acts     engine work, then the table moves the box
                            └────────▶ spares   warm boxes for callers to come
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

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
from box_mcp.engines.base import Condition, Engine
from box_mcp.errors import (
    BoxBroken,
    BoxError,
    BoxLost,
    BoxNotFound,
    CallInterrupted,
    EngineRefused,
    IllegalMove,
    LimitReached,
    NameTaken,
    ServerClosed,
)
from box_mcp.events import ActFailed, BoxMoved, Hook
from box_mcp.store import NameInUse, Store

logger = logging.getLogger(__name__)

WARM_DELAY = 2.0  # s after the start before the first spare: a client lists the tools first
SPARE_RETRY = 30.0  # s after a spare failed
SAVE_USED_EVERY = 30.0  # s; how stale a box's time of use in the store may be
PING_TIMEOUT = 0.5  # s for an idle box to prove that it is awake
EXIT_GRACE = (
    0.35  # s for tidying up at exit: clients kill a server about half a second after SIGINT
)

IDLE_ACTS = (Act.FREEZE, Act.STOP, Act.DELETE)
STATES = {
    Condition.CREATED: State.STOPPED,
    Condition.RUNNING: State.RUNNING,
    Condition.FROZEN: State.FROZEN,
    Condition.STOPPED: State.STOPPED,
    Condition.ABSENT: State.LOST,
}


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


class Slot:
    """One box in this server's hands."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.channel: Channel | None = None
        self.claims = 0
        self.acting: Act | None = None
        self.used = box.used
        self.saved_used = box.used
        self.busy_since: float | None = None
        self.boot = ""
        self.news = ""
        self.failure: BoxError | None = None
        self.settled = anyio.Event()

    def __repr__(self) -> str:
        doing = f" {self.acting}ing" if self.acting else ""
        return f"<Slot {self.box.id} {self.box.state}{doing} claims={self.claims}>"

    @property
    def connected(self) -> bool:
        """Whether a channel to its boxd is open."""
        return self.channel is not None and self.channel.open

    def view(self) -> BoxView:
        """What a plan needs to know."""
        return BoxView(
            id=self.box.id,
            state=self.box.state,
            used=self.used,
            since=self.box.since,
            spare=self.box.principal is None,
            connected=self.connected,
            acting=self.acting is not None,
            claims=self.claims,
            busy_since=self.busy_since,
        )


class Waiter:
    """A call that waits for its box."""

    def __init__(self, box: BoxId) -> None:
        self.box = box
        self.done = anyio.Event()
        self.claim: Claim | None = None
        self.error: BoxError | None = None


class Pool:
    """All boxes of this server. Use as an async context manager.

    `spare_spec` is what spares are made from, None for no spares; `clock` gives seconds since
    the epoch.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        policy: Policy,
        spare_spec: BoxSpec | None = None,
        hook: Hook = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._store = store
        self._policy = policy if spare_spec is not None else replace(policy, warm=0)
        self._spare_spec = spare_spec
        self._hook = hook
        self._clock = clock
        self._slots: dict[BoxId, Slot] = {}
        self._waiters: list[Waiter] = []
        self._warm_from = clock() + WARM_DELAY
        self._wake_at: float | None = None
        self._replanned = anyio.Event()
        self._closing = False
        self._tasks: TaskGroup

    def __repr__(self) -> str:
        return f"<Pool {list(self._slots.values())} {len(self._waiters)} waiting>"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Pool, None]:
        """Runs the pool. At exit, running boxes are left to their dead man's switch."""
        for box in await self._store.boxes():
            self._slots.setdefault(box.id, Slot(box))
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._tend)
            self._replan()
            try:
                yield self
            finally:
                self._closing = True
                for waiter in self._waiters:
                    self._refuse(waiter, ServerClosed())
                with anyio.move_on_after(EXIT_GRACE, shield=True):
                    await self._tidy_up()
                self._tasks.cancel_scope.cancel()

    def statistics(self) -> Statistics:
        """Counts, for tests and metrics."""
        slots = self._slots.values()
        return Statistics(
            boxes=sum(slot.box.principal is not None for slot in slots),
            spares=sum(slot.box.principal is None for slot in slots),
            claims=sum(slot.claims for slot in slots),
            waiters=len(self._waiters),
            acting=sum(slot.acting is not None for slot in slots),
        )

    async def boxes(self, principal: Principal) -> list[Box]:
        """All boxes of `principal`, oldest first, those that other servers made included."""
        for box in await self._store.boxes():
            self._slots.setdefault(box.id, Slot(box))
        own = [slot.box for slot in self._slots.values() if slot.box.principal == principal]
        return sorted(own, key=lambda box: box.created)

    async def box(self, box: BoxId, principal: Principal) -> Box:
        """The box of this id; raises BoxNotFound when it is unknown or somebody else's."""
        return (await self._slot(box, principal)).box

    def outlook(self, box: Box) -> tuple[bool, tuple[float, Act] | None]:
        """Whether `box` is busy here, and what idleness will do to it next, and when."""
        slot = self._slots[box.id]
        busy = slot.claims > 0 or slot.busy_since is not None
        return busy, next_step(slot.view(), self._policy)

    async def create(self, principal: Principal, name: BoxName | None, spec: BoxSpec) -> Box:
        """A new box, recorded but perhaps not started: the first claim waits for that.

        Takes a spare when one fits. Raises LimitReached and NameTaken.
        """
        views = [slot.view() for slot in self._slots.values()]
        if owned(views) >= self._policy.max_boxes:
            raise LimitReached("boxes", self._policy.max_boxes)
        self._refuse_taken(principal, name)
        now = self._clock()
        spare = choose_spare(views) if spec == self._spare_spec else None
        slot = self._slots[spare] if spare else Slot(Box(mint_id(), spec, created=now, since=now))
        slot.box = slot.box.assigned(principal, name, now)
        slot.used = now
        self._slots[slot.box.id] = slot
        try:
            await self._store.save(slot.box)
        except NameInUse:
            await self._drop(slot)
            raise NameTaken(name or "", "made by another server") from None
        self._replan()
        return slot.box

    @asynccontextmanager
    async def claim(self, box: BoxId, principal: Principal) -> AsyncGenerator[Claim, None]:
        """Holds the box awake and connected for the length of the block, waking it if need be.

        Raises BoxNotFound, BoxLost, BoxBroken, ServerClosed and the engine's errors.
        """
        slot = await self._slot(box, principal)
        waiter = Waiter(box)
        if self._closing:
            raise ServerClosed
        if slot.box.state is State.LOST:
            raise BoxLost(box, slot.box.reason)
        self._waiters.append(waiter)
        self._replan()
        try:
            await waiter.done.wait()
            if waiter.error is not None:
                raise waiter.error
            assert waiter.claim is not None  # done without error
            yield waiter.claim
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.claim is not None:
                self._release(slot)

    async def act(self, box: BoxId, principal: Principal, act: Act) -> Box:
        """Does `act` now because somebody asked; raises IllegalMove when the box can't.

        Pausing waits for nobody: with a call running in the box, it is refused. Deleting is not.
        """
        slot = await self._slot(box, principal)
        while slot.acting is not None:
            await slot.settled.wait()
        slot.box.moved(MOVES[act], self._clock())  # raises, and changes nothing
        if slot.claims and act is not Act.DELETE:
            raise IllegalMove(box, act.value, "in use by a running call")
        slot.failure = None
        self._begin(slot, act, "asked for")
        await slot.settled.wait()
        if slot.failure is not None:
            raise slot.failure
        return slot.box

    async def _slot(self, box: BoxId, principal: Principal) -> Slot:
        if box not in self._slots and (stored := await self._store.box(box)) is not None:
            self._slots.setdefault(box, Slot(stored))
        slot = self._slots.get(box)
        if slot is None or slot.box.principal != principal:
            raise BoxNotFound(box)
        return slot

    def _refuse_taken(self, principal: Principal, name: BoxName | None) -> None:
        for slot in self._slots.values():
            if name is not None and (slot.box.principal, slot.box.name) == (principal, name):
                raise NameTaken(name, slot.box.id)

    def _replan(self) -> None:
        if self._closing:
            return
        view = View(
            now=self._clock(),
            boxes=[slot.view() for slot in self._slots.values()],
            waiters=[waiter.box for waiter in self._waiters],
            warm_from=self._warm_from,
        )
        plan = make_plan(view, self._policy)
        for box in plan.grants:
            self._grant(self._slots[box])
        for box, act in plan.acts:
            self._begin(self._slots[box], act, "idle" if act in IDLE_ACTS else "a call came")
        for _ in range(plan.spares):
            self._begin_spare()
        self._wake_at = plan.wake_at
        self._replanned.set()

    async def _tend(self) -> None:
        while True:
            self._replanned = anyio.Event()
            delay = None if self._wake_at is None else max(0.0, self._wake_at - self._clock())
            with anyio.move_on_after(delay):
                await self._replanned.wait()
                continue
            self._replan()

    def _grant(self, slot: Slot) -> None:
        assert slot.channel is not None  # the plan grants connected boxes only
        news, slot.news = slot.news, ""
        for waiter in [waiter for waiter in self._waiters if waiter.box == slot.box.id]:
            self._waiters.remove(waiter)
            slot.claims += 1
            waiter.claim = Claim(slot.box, slot.channel, news)
            waiter.done.set()
        slot.used = self._clock()

    def _release(self, slot: Slot) -> None:
        slot.claims -= 1
        slot.used = self._clock()
        if slot.used - slot.saved_used > SAVE_USED_EVERY and not self._closing:
            slot.saved_used = slot.used
            self._tasks.start_soon(self._save, slot)
        self._replan()

    def _refuse(self, waiter: Waiter, error: BoxError) -> None:
        waiter.error = error
        waiter.done.set()

    def _begin(self, slot: Slot, act: Act, reason: str) -> None:
        slot.acting = act
        slot.settled = anyio.Event()
        self._tasks.start_soon(self._perform, slot, act, reason)

    def _begin_spare(self) -> None:
        assert self._spare_spec is not None  # the policy asks for none otherwise
        now = self._clock()
        slot = Slot(Box(mint_id(), self._spare_spec, created=now, since=now))
        self._slots[slot.box.id] = slot
        self._begin(slot, Act.START, "spare")

    async def _perform(self, slot: Slot, act: Act, reason: str) -> None:
        try:
            await self._do(slot, act, reason)
        except BoxError as error:
            await self._failed(slot, act, error)
        except Exception as error:
            logger.exception("%s of %s failed unexpectedly", act, slot.box.id)
            await self._failed(
                slot, act, BoxBroken(slot.box.id, f"this server failed to {act} it: {error!r}")
            )
        finally:
            slot.acting = None
            slot.settled.set()
            self._replan()

    async def _do(self, slot: Slot, act: Act, reason: str) -> None:
        match act:
            case Act.START:
                await self._start(slot, reason)
            case Act.THAW:
                await self._engine.thaw(slot.box.id)
                if not slot.connected:
                    await self._connect(slot)
                await self._move(slot, Move.THAW, reason)
            case Act.CHECK:
                await self._check(slot)
            case Act.FREEZE:
                if not await self._used_elsewhere(slot):
                    await self._engine.freeze(slot.box.id)
                    await self._move(slot, Move.FREEZE, reason)
            case Act.STOP:
                await self._engine.stop(slot.box.id)
                await self._disconnect(slot)
                await self._move(slot, Move.STOP, reason)
            case Act.DELETE:
                await self._disconnect(slot)
                await self._engine.delete(slot.box.id)
                await self._move(slot, Move.DELETE, reason)

    async def _start(self, slot: Slot, reason: str) -> None:
        if slot.box.state is State.CREATED:
            await self._engine.create(slot.box.id, slot.box.spec)
        await self._engine.start(slot.box.id)
        await self._connect(slot)
        await self._move(slot, Move.START, reason)

    async def _check(self, slot: Slot) -> None:
        """Makes slot and engine agree: the box is running and connected, or known to be neither."""
        if slot.channel is not None and slot.connected:
            with anyio.move_on_after(PING_TIMEOUT):
                await slot.channel.request("stat", path="/")
                slot.used = self._clock()
                return
            await self._disconnect(slot)
        await self._reconcile(slot, "found so")
        if slot.box.state is not State.RUNNING:
            return
        try:
            await self._connect(slot)
        except (BoxBroken, EngineRefused):
            # Its boxd is dying or dead: end what is left, and let the next plan start it anew.
            await self._engine.stop(slot.box.id)
            await self._reconcile(slot, "its daemon did not answer")
        slot.used = self._clock()

    async def _reconcile(self, slot: Slot, reason: str) -> None:
        found = await self._engine.inspect(slot.box.id)
        goal = STATES[found.condition]
        if goal is not slot.box.state:
            await self._disconnect(slot)
            for move in way(slot.box.state, goal):
                await self._move(
                    slot, move, f"{reason}: {found.detail}" if found.detail else reason
                )

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
        slot.boot = boot
        self._channel_changed(slot, channel)

    async def _disconnect(self, slot: Slot) -> None:
        channel, slot.channel = slot.channel, None
        if channel is not None:
            channel.on_change = lambda: None
            await channel.aclose()
        slot.busy_since = None

    def _channel_changed(self, slot: Slot, channel: Channel) -> None:
        if not (channel.open and channel.busy):
            slot.busy_since = None
        elif slot.busy_since is None:
            slot.busy_since = self._clock()
        slot.used = max(slot.used, self._clock())
        self._replan()

    async def _used_elsewhere(self, slot: Slot) -> bool:
        """Another server may have used the box since we did: then it is not idle after all."""
        stored = await self._store.box(slot.box.id)
        if stored is None or stored.used <= slot.used:
            return False
        slot.used = stored.used
        return self._clock() - stored.used < (self._policy.pause_after or 0.0)

    async def _move(self, slot: Slot, move: Move, reason: str) -> None:
        before = slot.box.state
        slot.box = slot.box.moved(move, self._clock(), reason)
        self._hook(BoxMoved(slot.box.id, before, slot.box.state, reason))
        if slot.box.state is State.DELETED:
            self._slots.pop(slot.box.id, None)
            await self._store.remove(slot.box.id)
            self._fail_waiters(slot, BoxNotFound(slot.box.id))
        else:
            await self._save(slot)
        if slot.box.state is State.LOST:
            self._fail_waiters(slot, BoxLost(slot.box.id, reason))

    async def _save(self, slot: Slot) -> None:
        if slot.box.principal is not None:
            await self._store.save(replace(slot.box, used=slot.used))

    async def _failed(self, slot: Slot, act: Act, error: BoxError) -> None:
        """After a failed act: the callers hear of it, and nothing half-made stays behind."""
        self._hook(ActFailed(slot.box.id, act, str(error)))
        slot.failure = error
        if slot.box.state is State.CREATED:
            error = slot.failure = await self._explained(slot, error)
            self._fail_waiters(slot, error)
            self._warm_from = self._clock() + SPARE_RETRY
            await self._drop(slot)
            return
        self._fail_waiters(slot, error)
        slot.box = replace(
            slot.box, since=self._clock()
        )  # idle acts are tried again, but not at once
        if isinstance(error, BoxBroken | EngineRefused):
            try:
                await self._reconcile(slot, f"could not {act}")
            except BoxError as another:
                self._hook(ActFailed(slot.box.id, "look at", str(another)))

    async def _explained(self, slot: Slot, error: BoxError) -> BoxError:
        """`error` with the last words of a box that never came up."""
        if not isinstance(error, BoxBroken | EngineRefused):
            return error
        try:
            words = await self._engine.last_words(slot.box.id)
        except BoxError:
            return error
        return BoxBroken(slot.box.id, words.splitlines()[-1]) if words else error

    async def _drop(self, slot: Slot) -> None:
        """Takes a box that never came to be out of everything."""
        self._slots.pop(slot.box.id, None)
        await self._disconnect(slot)
        await self._store.remove(slot.box.id)
        try:
            await self._engine.delete(slot.box.id)
        except BoxError as error:
            self._hook(ActFailed(slot.box.id, Act.DELETE, str(error)))

    def _fail_waiters(self, slot: Slot, error: BoxError) -> None:
        for waiter in [waiter for waiter in self._waiters if waiter.box == slot.box.id]:
            self._waiters.remove(waiter)
            self._refuse(waiter, error)

    async def _tidy_up(self) -> None:
        """Spares go, frozen boxes stop; what is not done in time, boxd or the next server does."""
        async with anyio.create_task_group() as group:
            for slot in list(self._slots.values()):
                if slot.box.principal is None:
                    group.start_soon(self._quietly, self._engine.delete, slot.box.id)
                elif slot.used > slot.saved_used:
                    group.start_soon(self._save, slot)

    async def _quietly(self, do: Callable[[BoxId], object], box: BoxId) -> None:
        try:
            await do(box)  # type: ignore[misc]
        except (BoxError, CallInterrupted) as error:
            self._hook(ActFailed(box, "tidy up", str(error)))
