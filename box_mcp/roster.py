"""The boxes that one server knows of, in step with the store and with what other servers do."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace

import anyio

from box_mcp.domain.box import Box, Move, State
from box_mcp.domain.limits import Room
from box_mcp.domain.names import BoxId, BoxName, Principal, mint_id
from box_mcp.domain.plan import BoxView
from box_mcp.errors import (
    BoxError,
    BoxLost,
    BoxNotFound,
    LimitReached,
    NameTaken,
    StoreUnusable,
)
from box_mcp.events import ActFailed, BoxMoved
from box_mcp.slots import Job, Site, Slot, Waiter
from box_mcp.store import Full, NameInUse
from box_mcp.tickets import Ticket

logger = logging.getLogger(__name__)

ACT_RETRY = 60.0  # s after an act failed, before idleness tries another
DOOMED = "about to be deleted"  # the reason on record: if its server dies, others go on


class Roster:
    """All slots, and who waits for them.

    `stock` has the tickets of boxes to come whose networks are made already; `untidy` tells that
    something may have been left behind that is nobody's any more, `closing` that this server ends.
    `on_network_change` hears of a box whose network another server changed.
    """

    def __init__(self, site: Site, room: Room) -> None:
        self._store = site.store
        self._tickets = site.tickets
        self._clock = site.clock
        self._hook = site.hook
        self._room = room
        self._gone: set[BoxId] = set()  # deleted here; an answer of the store may be older
        self.slots: dict[BoxId, Slot] = {}
        self.waiters: list[Waiter] = []
        self.stock: dict[BoxId, Ticket] = {}
        self.untidy = True  # other servers may have left something
        self.closing = False
        self.on_network_change: Callable[[Slot], None] = lambda _: None

    async def slot(self, box: BoxId, principal: Principal) -> Slot:
        """The slot of a recorded box; raises BoxNotFound when it is unknown or somebody else's.

        Both take the same way, and so the same time: nobody can find out which it is.
        """
        slot = self.slots.get(box)
        if slot is None or slot.box.principal != principal:  # another server may have made it his
            stored = await self._store.own(box, principal)
            slot = await self._owned(stored) if stored is not None else None
        if slot is None or slot.box.principal != principal or not slot.recorded:
            raise BoxNotFound(box)
        return slot

    async def named(self, name: BoxName, principal: Principal) -> Slot:
        """The slot of the recorded box that `principal` calls so; raises BoxNotFound."""
        for slot in self.slots.values():
            if slot.recorded and (slot.box.name, slot.box.principal) == (name, principal):
                return slot
        stored = await self._store.named(name, principal)  # another server may have made it
        slot = await self._owned(stored) if stored is not None else None
        if slot is None or slot.box.principal != principal or not slot.recorded:
            raise BoxNotFound(name)
        return slot

    def add(self, box: Box) -> Slot:
        """The slot of a box that this server will make."""
        ticket = self.stock.pop(box.id, None) or self._tickets.ticket(box.id)
        slot = Slot(box, ticket, ours=True)
        slot.generation = slot.ticket.generation()  # raises, and changes nothing
        self.slots[box.id] = slot
        return slot

    def views(self) -> list[BoxView]:
        """What plans are made from."""
        return [slot.view() for slot in self.slots.values()]

    def next_id(self) -> BoxId:
        """For a new box: one from the stock, if there is any."""
        return next(iter(self.stock), None) or mint_id()

    def take_in(self, stored: Box) -> Slot:
        """The slot of a stored box, new if need be, with what other servers wrote of it."""
        slot = self.slots.get(stored.id)
        if slot is None:
            slot = Slot(stored, self._tickets.ticket(stored.id))
            slot.doubtful = not slot.spare
            if stored.id not in self._gone:
                self.slots[stored.id] = slot
        if slot.job is None and slot.recorded:
            self._learn(slot, stored)
        return slot

    async def _owned(self, stored: Box) -> Slot:
        """As `take_in`; that a spare became somebody's is learned whatever goes on in it."""
        slot = self.take_in(stored)
        while slot.spare and stored.principal is not None and not self.closing:
            await self.at_rest(slot)
            await anyio.lowlevel.checkpoint()
            slot = self.take_in(stored)
        return slot

    async def at_rest(self, slot: Slot) -> None:
        """Returns when nothing is being done to the box."""
        while slot.job is not None:
            await slot.job.done.wait()

    async def read_store(self) -> None:
        """Learns what other servers made, changed and deleted."""
        known = [slot for slot in self.slots.values() if slot.recorded]
        stored = {box.id: box for box in await self._store.boxes()}
        for box in stored.values():
            await self._owned(box)
        for slot in known:
            gone = slot.box.id not in stored or _disowned(slot, stored[slot.box.id])
            if gone and slot.job is None and slot.recorded:
                await self.forget(slot)

    async def catch_up(self, slot: Slot, job: Job | None) -> None:
        """As `read_store` for one box, on behalf of `job`; another job on it knows better."""
        stored = await self._store.box(slot.box.id)
        if slot.job is not job or slot.box.id not in self.slots:
            return
        if stored is None or _disowned(slot, stored):
            await self.forget(slot)
        else:
            self._learn(slot, stored)

    async def up_to_date(self, slot: Slot, job: Job | None) -> bool:
        """Learns what other servers changed; False when the box is gone, or a spare somebody's."""
        spare = slot.spare
        made = slot.box.state is not State.CREATED
        # Given away, a spare was not changed; nor was a box by its deletion that was never made.
        if spare is made or slot.ticket.generation() != slot.generation:
            await self.catch_up(slot, job)
        return slot.box.id in self.slots and slot.spare is spare

    def _learn(self, slot: Slot, stored: Box) -> None:
        before = slot.box.network
        slot.box = slot.box.caught_up(stored)
        if slot.box.network != before:
            self.on_network_change(slot)
        if slot.box.state is State.LOST:
            self.refuse(slot, BoxLost(slot.box.id, slot.box.reason))
        if slot.spare and slot.box.state is State.CREATED and not slot.ours:
            # Its maker holds the ticket; if not, he died.
            slot.doubtful = slot.ticket.share()
            slot.let_go()

    async def record(
        self, slot: Slot, box: Box, write: Callable[[Box, Room], Awaitable[bool | None]]
    ) -> bool:
        """Makes the box somebody's, or leaves all as it was; False when `write` says so."""
        before, slot.box = slot.box, box
        slot.recorded, written = False, False
        try:
            with anyio.CancelScope(shield=True):
                written = await write(box, self._room) is not False
            if not written:
                slot.box = before
        except BaseException as error:
            slot.box = before
            if box.state is State.CREATED:
                self.slots.pop(box.id)
                if slot.ticket.take():  # nobody else knows of it
                    self.stock[box.id] = slot.ticket
            if isinstance(error, NameInUse):
                raise NameTaken(box.name or "", await self._holder(box)) from None
            if isinstance(error, Full):
                raise self.full(error.limit) from None
            raise
        finally:
            slot.recorded = True
            if box.id in self.slots:
                slot.let_go()
        return written

    async def _holder(self, box: Box) -> str:
        for other in await self._store.boxes():
            if (other.name, other.principal) == (box.name, box.principal):
                return other.id
        return "deleted just now"

    def full(self, limit: str) -> LimitReached:
        """That the limit of this name is reached."""
        return LimitReached(limit, getattr(self._room, limit))

    async def move(self, slot: Slot, move: Move, reason: str) -> None:
        """Moves the box by the one table of moves, and writes it down; raises IllegalMove."""
        before = slot.box.state
        slot.box = slot.box.moved(move, self._clock.now(), reason)
        owner = slot.box.principal or ""
        self._hook(BoxMoved(slot.box.id, before, slot.box.state, reason, owner))
        if slot.box.state is State.DELETED:
            unnamed = slot.box.spec.image.startswith("sha256:")
            # Who else removed it left the image that would have gone with it.
            self.untidy = self.untidy or unnamed or before is State.LOST
            with self.reporting(slot, "forget"):
                await self._store.remove(slot.box.id)
            slot.ticket.discard()
            return await self.forget(slot)
        if slot.box.state is State.LOST:
            self.refuse(slot, BoxLost(slot.box.id, reason))
        await self.save(slot)

    async def save(self, slot: Slot) -> None:
        """Writes the box down. That this fails is no reason not to use the box."""
        if not slot.recorded or slot.box.id not in self.slots:
            return
        saved = True
        with self.reporting(slot, "record"):
            saved = await self._store.save(slot.box)
        if not saved:  # deleted by another server
            await self.forget(slot)

    async def disown(self, slot: Slot, error: BoxError) -> None:
        """The box is a spare of no use from now on, which is deleted when the engine is well."""
        self.refuse(slot, error)
        slot.box = replace(slot.box, principal=None, name=None)
        slot.doubtful, slot.rest_until = True, self._clock.now() + ACT_RETRY
        slot.recorded = False  # else what was read before makes it somebody's again
        with self.reporting(slot, "forget"):
            await self._store.disown(slot.box.id)
        slot.recorded = True

    async def forget(self, slot: Slot, error: BoxError | None = None) -> None:
        """The box is no more: whoever waits for it hears of it."""
        self._gone.add(slot.box.id)
        self.refuse(slot, error or BoxNotFound(slot.box.id))
        await slot.disconnect()
        self._discard(slot)

    def _discard(self, slot: Slot) -> None:
        """The box never was, or is no more."""
        self.slots.pop(slot.box.id, None)
        with suppress(StoreUnusable):
            if slot.ticket.take():  # a look at it may have made its file anew
                slot.ticket.discard()
        slot.ticket.close()

    def refuse(self, slot: Slot, error: BoxError) -> None:
        """Whoever waits for the box hears of `error`."""
        for waiter in [waiter for waiter in self.waiters if waiter.slot is slot]:
            self.waiters.remove(waiter)
            waiter.refuse(error)

    def waited_for(self, slot: Slot) -> bool:
        """Whether a call waits for the box."""
        return any(waiter.slot is slot for waiter in self.waiters)

    @contextmanager
    def reporting(self, slot: Slot, doing: str) -> Generator[None, None, None]:
        """For work whose failure is told to the hook and changes nothing else."""
        try:
            yield
        except BoxError as error:
            self._hook(ActFailed(slot.box.id, doing, str(error)))
        except Exception as error:
            logger.exception("%s of %s failed unexpectedly", doing, slot.box.id)
            self._hook(ActFailed(slot.box.id, doing, repr(error)))


def _disowned(slot: Slot, stored: Box) -> bool:
    """Whether another server, which failed to make the box, made it nobody's again."""
    theirs = slot.box.principal is not None and not slot.ours
    return theirs and stored.principal is None and stored.state in (State.CREATED, State.LOST)
