"""What is done to one box at a time: engine work first, then the table of moves.

Each act is a job in a task of its own that no caller can cancel. A job has the box for itself, or
shares it, among all servers on the machine.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from box_mcp.channel import Channel
from box_mcp.domain.box import Box, Move, State, way
from box_mcp.domain.limits import Room
from box_mcp.domain.network import Mode, Network
from box_mcp.domain.plan import EVICT_AFTER, MOVES, PAUSED, WAKING, Act, Policy, next_step
from box_mcp.engines.base import Condition, Found
from box_mcp.errors import (
    BoxBroken,
    BoxError,
    BoxLost,
    BoxNotFound,
    EngineRefused,
    EngineStalled,
    IllegalMove,
    ServerClosed,
)
from box_mcp.events import ActFailed, NetworkChanged
from box_mcp.roster import ACT_RETRY, DOOMED, Roster
from box_mcp.services import Attended, Service
from box_mcp.slots import Job, Site, Slot
from box_mcp.tickets import LOCK_RETRY

logger = logging.getLogger(__name__)

SPARE_RETRY = 30.0  # s after a spare failed
LOCK_PATIENCE = 90.0  # s for another server's change; starting a box with its setup takes longest
USE_PATIENCE = 0.5  # s for a call of another server: it may be ending, or its server dying
TAKEN_RETRY = 2.0  # s until idleness tries again, when another server has the box
CROWDED_RETRY = 0.1  # s, when the store knows that there is no room, and the plan did not
SERVE_TIMEOUT = 5.0  # s for a box to take what its server offers; it needs milliseconds
START_AT_ONCE = 4  # boxes; of more, each would be ready only when nearly all are

IDLE_ACTS = (Act.FREEZE, Act.STOP, Act.DELETE)
UNBORN = (Condition.ABSENT, Condition.CREATED)
STATES = {
    Condition.CREATED: State.STOPPED,
    Condition.RUNNING: State.RUNNING,
    Condition.FROZEN: State.FROZEN,
    Condition.STOPPED: State.STOPPED,
    Condition.ABSENT: State.LOST,
}

Setup = Callable[[Channel, Box], Awaitable[str]]
"""Prepares a box that was just made, and returns what its first call should hear of it."""


class Planner(Protocol):
    """Who decides what is to be done next."""

    def grant(self, slot: Slot) -> bool:
        """Gives a connected box to all who wait for it; False when another server changed it."""
        ...

    def replan(self) -> None:
        """Something changed."""
        ...

    def replan_for(self, slot: Slot) -> None:
        """Something changed in this box, perhaps nothing but its next step."""
        ...


class Worker:
    """Does acts, in `tasks`, and tells the planner of each end.

    `spares_from` is the moment from which spares may be made.
    """

    tasks: TaskGroup

    def __init__(
        self,
        site: Site,
        roster: Roster,
        policy: Policy,
        setup: Setup | None,
        services: Sequence[Service],
        planner: Planner,
    ) -> None:
        self._site = site
        self._engine = site.engine
        self._store = site.store
        self._tickets = site.tickets
        self._clock = site.clock
        self._hook = site.hook
        self._roster = roster
        self._policy = policy
        self._setup = setup
        self._services = services
        self._planner = planner
        self._starting = anyio.Semaphore(START_AT_ONCE)
        self.spares_from = 0.0
        roster.on_network_change = self._follow_network

    def begin(self, slot: Slot, act: Act, reason: str, *, asked: bool = False) -> Job:
        """Starts an act on a box that is at rest; `asked` for, it is done or fails with words."""
        job = slot.job = Job(act, reason, asked)
        self.tasks.start_soon(self._perform, slot, job)
        return job

    async def ended(self, job: Job) -> None:
        """Waits for the end of an act; raises what it failed with."""
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
                await self._failed_or_worse(slot, job, job.error)
        if job.scope.cancelled_caught:
            job.error = ServerClosed()
        slot.job = None
        if slot.claims and slot.box.id in self._roster.slots:
            slot.ticket.share()
        slot.let_go()
        job.done.set()
        self._planner.replan()

    async def _do(self, slot: Slot, job: Job) -> None:
        match job.act:
            case Act.CHECK:
                await self._check(slot, job)
            case Act.SAVE:
                await self._save(slot, job)
            case Act.ATTACH:
                await self._attach(slot, job)
            case _:
                if await self._take(slot, job):
                    await self._change(slot, job)

    async def _save(self, slot: Slot, job: Job) -> None:
        await self._share(slot)
        assert job.save is not None  # what is to be saved
        save = job.save
        # One save of a box at a time: the end of one would thaw the box under the other.
        async with (
            self._apart("saves", save.account),
            self._apart("snapshot", save.tag),
            self._saving(slot),
            self._tickets.sharing_images(),
        ):
            await save.check()
            if save.tag is None:  # and if nobody comes for it
                self._roster.untidy = True
            job.saved = await self._engine.save(slot.box.id, save.tag, save.labels)

    def _apart(self, what: str, name: str | None) -> AbstractAsyncContextManager[None]:
        """Nobody else saves anything of this name meanwhile: of this account, or by this tag."""
        return nullcontext() if name is None else self._tickets.alone_with(f"{what}-{name}")

    async def _attach(self, slot: Slot, job: Job) -> None:
        """What it may reach is written down first: who goes on after us knows what was meant."""
        await self._share(slot)
        async with self._networking(slot):
            if not await self._roster.up_to_date(slot, job):
                raise BoxNotFound(slot.box.id)
            assert job.network is not None
            await self._write_network(slot, job, job.network)
            slot.generation = slot.ticket.bump()  # nobody else changes it: it is shared
            await self._apply_network(slot)

    def _networking(self, slot: Slot) -> AbstractAsyncContextManager[None]:
        """Nobody else changes what the box may reach meanwhile."""
        return self._tickets.alone_with(f"{slot.box.id}-network")

    async def _write_network(self, slot: Slot, job: Job, network: Network) -> None:
        while True:
            terms = replace(slot.box.terms, network=network)
            changed = replace(slot.box.noted(slot.box.reason, self._clock.now()), terms=terms)
            if await self._store.set_terms(changed):
                slot.box = replace(slot.box, terms=terms, since=changed.since)
                return
            await self._roster.catch_up(slot, job)
            if slot.box.id not in self._roster.slots:
                raise BoxNotFound(slot.box.id)

    async def _apply_network(self, slot: Slot) -> None:
        """As `_settle_network`, for who keeps others from changing it; and serves it as it is."""
        slot.unsettled = True
        self._hook(NetworkChanged(slot.box.id))
        await self._settle(slot)
        if slot.box.state is not State.FROZEN:
            return await self._serve(slot)
        for service in self.outdated(slot):
            slot.leave_alone(service)  # what it needs instead begins when it wakes and can answer

    async def _settle_network(self, slot: Slot) -> None:
        """The engine lets the box reach what the record says: whoever wrote it may have died."""
        if slot.unsettled and slot.box.terms.network is not None:
            async with self._networking(slot):
                await self._settle(slot)

    async def _settle(self, slot: Slot) -> None:
        if slot.box.state in (State.CREATED, State.LOST):
            return
        stored = await self._store.box(slot.box.id)  # others may have changed it since we looked
        if stored is not None and stored.terms.network is not None:
            full = stored.network.mode is Mode.FULL
            await self._engine.attach(slot.box.id, attached=full)
        slot.unsettled = False

    def _follow_network(self, slot: Slot) -> None:
        """Another server changed what the box may reach, and may have died over it."""
        slot.unsettled = True  # no call has the box before that is settled
        slot.doubtful = slot.doubtful or slot.box.state is State.RUNNING

        async def follow() -> None:
            with self._roster.reporting(slot, Act.ATTACH):
                async with self._networking(slot):
                    await self._apply_network(slot)

        self.tasks.start_soon(follow)

    async def _serve(self, slot: Slot) -> None:
        """Serves what the box asks of this server, in the way that it has now."""
        if slot.channel is None:
            return
        awaited: list[anyio.Event] = []
        for service in self.outdated(slot):
            if (before := slot.attended.get(service)) is not None:
                awaited.append(before.ended)
            slot.leave_alone(service)
            if (way := service.way(slot.box)) is not None:
                now = slot.attended[service] = Attended(way)
                self.tasks.start_soon(self._serving, service, slot, slot.channel, now)
        awaited += [attended.begun for attended in slot.attended.values()]
        with anyio.move_on_after(SERVE_TIMEOUT):
            for event in awaited:
                await event.wait()

    def outdated(self, slot: Slot) -> list[Service]:
        """The services that serve the box in another way than it has now."""
        return [one for one in self._services if slot.way(one) != one.way(slot.box)]

    async def _serving(
        self, service: Service, slot: Slot, channel: Channel, attended: Attended
    ) -> None:
        try:
            with attended.scope, self._roster.reporting(slot, "serve"):
                await service.attend(channel, lambda: slot.box, task_status=attended)
        finally:
            attended.started()
            attended.ended.set()
            if slot.attended.get(service) is attended:  # the next look at the box tries again
                slot.leave_alone(service)

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
                slot.rest_until = self._clock.now() + TAKEN_RETRY
                return False
            refuse_at = anyio.current_time() + USE_PATIENCE
            await self._patiently(slot, lambda: self._taken(slot, job, refuse_at))
        if not await self._roster.up_to_date(slot, job):
            return False
        slot.generation = slot.ticket.generation()
        slot.box = slot.box.touched(slot.ticket.used())
        if job.asked:
            if slot.box.state is PAUSED.get(job.act):
                return False
            slot.box.moved(MOVES[job.act], self._clock.now())  # raises, and changes nothing
            return True
        return slot.box.state is before and self._still_wanted(slot, job)

    def _taken(self, slot: Slot, job: Job, refuse_at: float) -> bool:
        if slot.ticket.take():
            return True
        late = anyio.current_time() > refuse_at
        if job.asked and late and (slot.claims or slot.ticket.share()):
            raise IllegalMove(slot.box.id, job.act.value, "in use by a call of another server")
        return False

    def _still_wanted(self, slot: Slot, job: Job) -> bool:
        if job.act not in IDLE_ACTS or slot.spare or self.due(slot, job.act):
            return True
        unused = self._clock.now() - slot.box.used
        return job.reason != "idle" and unused >= EVICT_AFTER

    def due(self, slot: Slot, act: Act) -> bool:
        """Whether idleness asks for `act` by now."""
        step = next_step(slot.view(), self._policy)
        return step is not None and step[0] <= self._clock.now() and step[1] is act

    async def _change(self, slot: Slot, job: Job) -> None:
        born = slot.box.state is State.CREATED and job.act is Act.START
        if slot.spare and born:
            await self._store.add(slot.box, Room())
        slot.generation = slot.ticket.bump()
        if job.act in WAKING and not await self._found_room(slot):
            if slot.spare:  # nobody waits for it, so nobody would try again
                self.spares_from = self._clock.now() + SPARE_RETRY
                await self._drop(slot, self._roster.full("awake"))
            return
        if job.act is Act.DELETE:
            slot.box = slot.box.noted(DOOMED, self._clock.now())
            await self._roster.save(slot)
        await self._work(slot, job.act)
        slot.doubtful = job.act is not Act.STOP and not slot.connected
        if not job.ahead:
            await self._roster.move(slot, MOVES[job.act], job.reason)
        if slot.box.state is State.RUNNING and not slot.connected:
            raise BoxBroken(slot.box.id, "its daemon ended as soon as it was greeted")
        if born and slot.box.spec.setup and self._setup is not None and slot.channel is not None:
            slot.news = await self._setup(slot.channel, slot.box)

    async def _found_room(self, slot: Slot) -> bool:
        """Whether the limits let the box wake, as all servers together count."""
        room = self._policy.room
        if not room.crowds or await self._store.reserve(slot.box, room):
            return True
        await self._roster.read_store()
        await anyio.sleep(CROWDED_RETRY)
        return False

    async def _work(self, slot: Slot, act: Act) -> None:
        match act:
            case Act.START:
                async with self._starting:
                    if slot.box.state is State.CREATED:
                        await self._make(slot)
                    else:
                        await self._settle_network(slot)
                    await self._engine.start(slot.box.id)
                    await self._connect(slot)
            case Act.THAW:
                await self._settle_network(slot)
                self.tasks.start_soon(self._greet, slot, slot.job)
                await self._engine.thaw(slot.box.id)
                if not slot.connected:
                    await self._connect(slot)
                await self._serve(slot)
            case Act.FREEZE:
                await self._engine.freeze(slot.box.id)
            case Act.STOP:
                slot.leave_alone()
                await self._engine.stop(slot.box.id)
                await slot.disconnect()
            case Act.DELETE:
                await slot.disconnect()
                await self._engine.delete(slot.box.id)
            case Act.CHECK | Act.SAVE | Act.ATTACH:
                raise AssertionError("these move nothing")

    async def _greet(self, slot: Slot, job: Job | None) -> None:
        """Calls have a thawing box when its boxd answers: the engine needs longer to say so."""
        if not await slot.answers() or job is None or slot.job is not job:
            return
        await self._serve(slot)
        if slot.job is job and slot.box.state is State.FROZEN:
            job.ahead, slot.heard = True, self._clock.now()
            await self._roster.move(slot, Move.THAW, job.reason)
            if slot.job is job and slot.connected and self._roster.waited_for(slot):
                self._planner.grant(slot)

    async def _make(self, slot: Slot) -> None:
        if not slot.ours:  # its maker died over it: it never ran, so nothing is lost
            await self._engine.delete(slot.box.id)
            slot.ours = True
        spec = replace(slot.box.spec, network=slot.box.network)
        await self._engine.create(slot.box.id, spec)

    async def _check(self, slot: Slot, job: Job) -> None:
        """Makes slot and engine agree: the box is running and connected, or known to be neither."""
        await self._share(slot)
        if not await self._roster.up_to_date(slot, job):
            return
        slot.generation = slot.ticket.generation()
        if slot.box.state is State.RUNNING and await slot.answers():
            await self._settle_network(slot)
            await self._serve(slot)
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
        return self._tickets.alone_with(f"{slot.box.id}-save")

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
            await self._settle_network(slot)
            await self._connect(slot)
        except (BoxBroken, EngineRefused):
            return False
        return True

    async def _reconcile(self, slot: Slot, found: Found, reason: str) -> None:
        """Moves the box to where the engine found it."""
        goal = STATES[found.condition]
        if goal is State.LOST and slot.box.reason == DOOMED:
            return await self._roster.move(slot, Move.DELETE, DOOMED)
        if goal is not slot.box.state and slot.box.state is not State.LOST:
            await slot.disconnect()
            why = f"{reason}: {found.detail}" if found.detail else reason
            for move in way(slot.box.state, goal):
                await self._roster.move(slot, move, why)
        slot.doubtful = False

    async def _connect(self, slot: Slot) -> None:
        await slot.connect(self._site, self.tasks, self._channel_changed)
        await self._serve(slot)

    def _channel_changed(self, slot: Slot, channel: Channel) -> None:
        """Its boxd says that it came to be busy or idle, or the connection ended."""
        now = self._clock.now()
        busy = channel.open and channel.busy
        slot.busy_since = (slot.busy_since or now) if busy else None
        slot.doubtful = slot.doubtful or not channel.open
        if not channel.open:
            slot.leave_alone()
        else:
            slot.box = slot.box.touched(now)
            slot.ticket.touch(now)
        self._planner.replan_for(slot)

    async def _failed_or_worse(self, slot: Slot, job: Job, error: BoxError) -> None:
        """As `_failed`. That it fails, too, ends no server: who waits hears of `error`."""
        try:
            await self._failed(slot, job, error)
        except Exception:
            logger.exception("what is left of a failed %s of %s stays", job.act, slot.box.id)
            slot.doubtful, slot.rest_until = True, self._clock.now() + ACT_RETRY
            self._roster.refuse(slot, error)

    async def _failed(self, slot: Slot, job: Job, error: BoxError) -> None:
        """After a failed act: the callers hear of it, and nothing half-made stays behind."""
        self._hook(ActFailed(slot.box.id, job.act, str(error)))
        await self._take_back(slot, job.act)
        if slot.box.id not in self._roster.slots:
            return
        if job.act in (Act.SAVE, Act.ATTACH):
            return await self._failed_aside(slot, job, error)
        if slot.box.state is State.CREATED:
            if slot.ours and job.act is Act.START:
                job.error = await self._explained(slot, error)
                if slot.spare:
                    self.spares_from = self._clock.now() + SPARE_RETRY
                return await self._drop(slot, job.error)
            slot.rest_until = self._clock.now() + ACT_RETRY
            return self._roster.refuse(slot, error)
        if isinstance(error, IllegalMove):
            return
        slot.doubtful = True
        slot.rest_until = self._clock.now() + ACT_RETRY
        if isinstance(error, BoxBroken | EngineRefused):
            with self._roster.reporting(slot, "look at"):
                found = await self._engine.inspect(slot.box.id)
                await self._reconcile(slot, found, f"could not {job.act}")
                slot.doubtful = slot.unsettled
        if job.act is Act.THAW and slot.box.state is State.STOPPED:
            return  # whoever stopped it died before he wrote that down: it is started instead
        if slot.box.state is State.LOST and job.act is not Act.DELETE:
            job.error = BoxLost(slot.box.id, slot.box.reason)
        self._roster.refuse(slot, error)

    async def _take_back(self, slot: Slot, act: Act) -> None:
        """It is on record that the box is about to run, or to be deleted: it is not any more."""
        if slot.box.reason == DOOMED:
            slot.box = slot.box.noted("could not be deleted", self._clock.now())
        if act in (*WAKING, Act.DELETE):
            await self._roster.save(slot)

    async def _failed_aside(self, slot: Slot, job: Job, error: BoxError) -> None:
        """An act that moves nothing: the box is as it was, unless it is no more."""
        slot.doubtful = slot.doubtful or slot.unsettled
        if isinstance(error, EngineRefused):
            with self._roster.reporting(slot, "look at"):
                found = await self._engine.inspect(slot.box.id)
                if found.condition is Condition.ABSENT:
                    await self._reconcile(slot, found, f"could not {job.act}")
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
        with self._roster.reporting(slot, Act.DELETE):
            await self._engine.delete(slot.box.id)
            gone = not isinstance(error, EngineStalled)  # it may yet do what it was asked for
        if not gone:
            return await self._roster.disown(slot, error)
        with self._roster.reporting(slot, "forget"):
            await self._store.remove(slot.box.id)
        slot.ticket.discard()
        await self._roster.forget(slot, error)

    async def put_away(self, slot: Slot, last: bool) -> None:
        """What is half made goes; with the last server, spares go, and frozen boxes are stopped."""
        half_made = slot.job is not None and slot.ours and slot.box.state is State.CREATED
        if slot.job is not None:
            if half_made or (slot.spare and last):
                slot.job.scope.cancel()
            await slot.job.done.wait()
        if slot.box.id not in self._roster.slots:
            return
        if (slot.spare and last) or (half_made and slot.box.state is State.CREATED):
            if slot.ticket.take() and await self._roster.up_to_date(slot, None):
                slot.ticket.bump()
                await self._drop(slot, ServerClosed())
        elif last and slot.box.state is State.FROZEN and slot.ticket.take():
            slot.ticket.bump()
            with self._roster.reporting(slot, Act.STOP):
                await self._engine.stop(slot.box.id)
                await self._roster.move(slot, Move.STOP, "the last server ended")
        elif not slot.spare:
            await self._roster.save(slot)


def differs(box: Box, condition: Condition) -> bool:
    """Whether the engine has the box in another state than it is known in."""
    unborn = box.state is State.CREATED and condition in UNBORN
    return not unborn and box.state is not State.LOST and STATES[condition] is not box.state
