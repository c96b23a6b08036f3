"""Hearing of changes in boxes, without holding them.

A watch is a request that stays open on its box's channel. It is no claim: the box is paused when
idle as any other. In a frozen box it goes on after the thaw. When the channel ends (the box was
stopped, its daemon died), the watch waits for the next channel that somebody's call opens, and
then says that something changed: what happened meanwhile, nobody knows.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
from anyio.abc import TaskGroup, TaskStatus

from box_mcp.capabilities.calls import answering, checked_path
from box_mcp.channel import Channel
from box_mcp.domain.box import State
from box_mcp.domain.names import BoxId
from box_mcp.errors import BoxBroken, BoxError, BoxNotFound, CallRefused, LimitReached
from box_mcp.events import BoxAssigned, BoxMoved, Event
from box_mcp.slots import Claim

logger = logging.getLogger(__name__)

MAX_WATCHES = 1024  # of one server
MAX_OWN_WATCHES = 256  # of one principal; boxd takes 1024 requests on a channel
BEGIN_TIMEOUT = 30.0  # s for a box to begin watching; it takes less than 1 ms
REST = 0.2  # s between two words on one watch; boxd sends one each 0.25

Changed = Callable[[], Awaitable[None]]
"""Tells somebody of a change; what it takes to tell it is waited for."""


class Watch:
    """A path in a box that somebody wants to hear of, by a channel to the box if there is one."""

    def __init__(self, claim: Claim, path: str, changed: Changed) -> None:
        self.box = claim.box.id
        self.principal = claim.box.principal or ""
        self.path = path
        self.changed = changed
        self.scope = anyio.CancelScope()
        self.begun = False
        self._channel: Channel | None = claim.channel
        self._arrived = anyio.Event()

    @property
    def waits(self) -> bool:
        """True while it hears nothing."""
        return self._channel is None

    @property
    def ended(self) -> bool:
        """True once it was removed, or its box is gone."""
        return self.scope.cancel_called

    def go_on(self, channel: Channel) -> None:
        """There is this channel to its box."""
        if channel is not self._channel:
            self._channel = channel
            self._arrived.set()

    async def next_channel(self, ended: Channel) -> Channel:
        """The one to go on with when `ended` brings nothing any more."""
        if self._channel is ended:
            self._channel = None
        while self._channel is None:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._channel


class Watches:
    """All watches of one server."""

    def __init__(self) -> None:
        self._watches: dict[BoxId, set[Watch]] = {}
        self._audience: dict[Changed, str] = {}
        self._tasks: TaskGroup

    def __repr__(self) -> str:
        every = self._every()
        waiting = sum(watch.waits for watch in every)
        return f"<Watches {len(every)}, {waiting} waiting, {len(self._audience)} listening>"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Runs them. Channels should have ended before: else each watch gives up its request."""
        async with anyio.create_task_group() as self._tasks:
            try:
                yield
            finally:
                self._tasks.cancel_scope.cancel()

    async def add(self, claim: Claim, path: str, changed: Changed) -> Watch:
        """Watches a path in a claimed box: from now on, until `remove`, whoever claims the box.

        Raises LimitReached, InvalidArgument, CallRefused, BoxNotFound when the box goes meanwhile,
        and what channels raise.
        """
        watch = Watch(claim, checked_path("path", path), changed)
        _demand_room([one.principal for one in self._every()], watch.principal)
        self._watches.setdefault(watch.box, set()).add(watch)
        try:
            async with answering(claim.channel, BEGIN_TIMEOUT):
                await self._tasks.start(self._keep, watch, claim.channel)
        except BaseException:
            self.remove(watch)
            raise
        return watch

    def remove(self, watch: Watch) -> None:
        """Watches no more; twice is fine."""
        watch.scope.cancel()
        watches = self._watches.get(watch.box, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(watch.box, None)

    def claimed(self, claim: Claim) -> None:
        """A call has the box: watches go on by its channel, if it is not the one they had."""
        for watch in self._watches.get(claim.box.id, ()):
            watch.go_on(claim.channel)

    def listen(self, principal: str, changed: Changed) -> Callable[[], object]:
        """Has `changed` called when boxes of the principal's come or go.

        Until what is returned is called. Raises LimitReached.
        """
        _demand_room([*self._audience.values()], principal)
        self._audience[changed] = principal
        return partial(self._audience.pop, changed, None)

    def notice(self, event: Event) -> None:
        """Hears of what happens to boxes."""
        match event:
            case BoxAssigned(_, principal):
                self._tell_audience(principal)
            case BoxMoved(box, _, State.DELETED | State.LOST, _, principal):
                for watch in list(self._watches.get(BoxId(box), ())):
                    self.remove(watch)
                self._tell_audience(principal)
            case _:
                pass

    def _every(self) -> list[Watch]:
        return [watch for watches in self._watches.values() for watch in watches]

    def _tell_audience(self, principal: str) -> None:
        for changed, who in self._audience.items():
            if who == principal:
                self._tasks.start_soon(_tell, changed)

    async def _keep(self, watch: Watch, channel: Channel, *, task_status: TaskStatus[None]) -> None:
        async def begun() -> None:
            watch.begun = True
            task_status.started()

        with watch.scope:
            await self._follow(watch, channel, begun)
            while True:
                channel = await watch.next_channel(channel)
                with suppress(BoxError):  # it waits for the next
                    await self._follow(watch, channel, watch.changed)
        if not watch.begun:
            raise BoxNotFound(watch.box)

    async def _follow(self, watch: Watch, channel: Channel, begun: Changed) -> None:
        """Calls `begun` when the box watches, then tells of changes until it does no more.

        Raises what keeps it from beginning.
        """
        began = False
        try:
            async with channel.call("watch", path=watch.path) as call:
                async for _ in call.labelled():
                    await _tell(watch.changed if began else begun)
                    began = True
                    await anyio.sleep(REST)
            if not began:
                raise BoxBroken(channel.box, "its daemon answers a watch with an end")
        except BoxError as error:
            if not began:
                raise
            if isinstance(error, CallRefused):  # by the user's rights, or the machine's limits
                await _tell(watch.changed)


def _demand_room(principals: list[str], principal: str) -> None:
    """Raises LimitReached where those of `principals` leave none for one more of this one's."""
    if principals.count(principal) >= MAX_OWN_WATCHES:
        raise LimitReached("own_watches", MAX_OWN_WATCHES)
    if len(principals) >= MAX_WATCHES:
        raise LimitReached("watches", MAX_WATCHES)


async def _tell(changed: Changed) -> None:
    try:
        await changed()
    except Exception:
        logger.exception("a change could not be told")
