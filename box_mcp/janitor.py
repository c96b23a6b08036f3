"""Looks what other servers do, clears up after those that ended, and keeps networks in stock."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from box_mcp.disk import DiskWatch
from box_mcp.domain.box import Box, State
from box_mcp.domain.disk import Bounds
from box_mcp.domain.limits import ABOUT_TO_RUN
from box_mcp.domain.names import BoxId, mint_id
from box_mcp.domain.plan import Act
from box_mcp.engines.base import Condition
from box_mcp.errors import BoxError
from box_mcp.events import ActFailed
from box_mcp.roster import DOOMED, Roster
from box_mcp.slots import Site
from box_mcp.tickets import UNNAMED, Presence
from box_mcp.worker import Planner, Worker

WATCH_EVERY = 2.0  # s between two looks at what other servers did
WATCH_RETRY = 30.0  # s after what is done so often failed
STOCK = 2  # boxes to come whose networks are made ahead


class Janitor:
    """Works beside the pool. Without `stock`, it keeps no networks ahead."""

    def __init__(
        self,
        site: Site,
        roster: Roster,
        worker: Worker,
        presence: Presence,
        planner: Planner,
        *,
        stock: bool,
    ) -> None:
        self._engine = site.engine
        self._store = site.store
        self._tickets = site.tickets
        self._clock = site.clock
        self._hook = site.hook
        self._roster = roster
        self._worker = worker
        self._presence = presence
        self._stock = STOCK if stock else 0
        self._planner = planner

    async def watch(self) -> None:
        """Learns what other servers do; an engine that is not well delays nothing of that."""
        while True:
            await self._clock.sleep_until(self._clock.now() + WATCH_EVERY)
            try:
                if await self._store.changed():
                    await self._roster.read_store()
                    self._planner.replan()
            except BoxError as error:
                await self._rest("watch", error)

    async def keep(self) -> None:
        """Clears up after servers that ended, and keeps the stock and what the engine should."""
        known: AbstractSet[str] = frozenset()
        while True:
            await self._clock.sleep_until(self._clock.now() + WATCH_EVERY)
            with suppress(BoxError):  # what it could not keep it has logged
                await self._engine.keep()
            try:
                others = self._presence.others()
                self._roster.untidy = self._roster.untidy or not known <= others
                known = others
                if self._roster.untidy:
                    await self._tidy()
                if len(self._roster.stock) < self._stock:
                    await self._add_to_stock()
            except BoxError as error:
                await self._rest("tidy up", error)

    async def watch_disk(self, bounds: Bounds) -> None:
        """Stops boxes that are here and take more of the engine's disk than they may."""
        watch = DiskWatch(self._engine, bounds, self._stop)
        while True:
            await self._clock.sleep_until(self._clock.now() + WATCH_EVERY)
            slots = [slot for slot in self._roster.slots.values() if slot.recorded]
            running, frozen = (
                [slot.box.id for slot in slots if slot.box.state is state and slot.connected]
                for state in (State.RUNNING, State.FROZEN)
            )
            try:
                await watch.look(running, frozen, self._clock.now())
            except BoxError as error:
                await self._rest("watch the disk", error)

    async def _rest(self, doing: str, error: BoxError) -> None:
        self._hook(ActFailed("-", doing, str(error)))
        await self._clock.sleep_until(self._clock.now() + WATCH_RETRY)

    async def _stop(self, box: BoxId, reason: str) -> bool:
        """Whatever runs in it; False if it can't be, as when another server has a call in it."""
        slot = self._roster.slots.get(box)
        if slot is None or slot.job is not None or slot.box.state is not State.RUNNING:
            return False
        job = self._worker.begin(slot, Act.STOP, reason, asked=True)
        await job.done.wait()
        return job.error is None

    async def tell_of_use(self) -> None:
        """Should this server die, others know how long its calls have used their boxes."""
        while True:
            await self._clock.sleep_until(self._clock.now() + WATCH_EVERY)
            for slot in self._roster.slots.values():
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
            self._roster.untidy = True  # it may have been made all the same
            raise
        self._roster.stock[box] = ticket

    async def _tidy(self) -> None:
        self._roster.untidy, done = False, False
        try:
            done = await self._clear_up()
        finally:
            self._roster.untidy = self._roster.untidy or not done

    async def _clear_up(self) -> bool:
        """Removes what is left of servers that ended in the middle of something, as far as it can.

        A container without a record is none of that, since the record goes last: it may hold
        somebody's files, so it stays for a person to judge.
        """
        found = await self._engine.list()
        await self._roster.read_store()  # what is known is not in question, nor in anybody's way
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
        slot = self._roster.take_in(box)
        if slot.claims or slot.job is not None or not slot.ticket.take():
            return
        if box.reason == DOOMED:
            await self._worker.begin(slot, Act.DELETE, "asked for", asked=True).done.wait()
        else:
            slot.box = replace(slot.box, reason="its server ended")
            await self._roster.save(slot)
            slot.let_go()

    @asynccontextmanager
    async def _abandoned(self, name: str) -> AsyncGenerator[bool, None]:
        """Whether no server knows anything of this name, nor will before the end of the block."""
        if name in self._roster.slots or name in self._roster.stock:
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

    async def unstock(self, box: BoxId) -> None:
        """Removes a network that no box will need. One that stays is found by the next server."""
        ticket = self._roster.stock.pop(box)
        try:
            await self._engine.delete(box)
            ticket.discard()
        except BoxError as error:
            self._hook(ActFailed(box, "unstock", str(error)))
        finally:
            ticket.close()
