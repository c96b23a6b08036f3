"""One box in the hands of one server: what the pool knows of it, its connection, what is under way.

A `Slot` decides nothing. The pool moves it; `view()` is what plans are made from.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from box_mcp.channel import Channel, open_channel
from box_mcp.domain.box import Box, State
from box_mcp.domain.network import Network
from box_mcp.domain.plan import Act, BoxView
from box_mcp.engines.base import Engine, OpenPipe, Saved
from box_mcp.errors import BoxBroken, BoxError, CallInterrupted, CallRefused
from box_mcp.events import Hook
from box_mcp.services import Attended, Service
from box_mcp.store import Store
from box_mcp.tickets import Ticket, Tickets

PING_TIMEOUT = 0.5  # s for an idle box to prove that it is awake


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
class Site:
    """What all parts of a pool work with."""

    engine: Engine
    store: Store
    tickets: Tickets
    clock: Clock
    hook: Hook


@dataclass(frozen=True)
class Claim:
    """A box in the hands of one call. `news` is what the caller should hear of it first.

    `open_pipe` is None where the engine opens none.
    """

    box: Box
    channel: Channel
    news: str = ""
    open_pipe: OpenPipe | None = None


@dataclass(frozen=True)
class Save:
    """How a box is to be saved. `check` raises if it may not be, when nobody else has its tag.

    Of those with the same `account`, one is checked and made at a time.
    """

    tag: str | None
    labels: Mapping[str, str]
    check: Callable[[], Awaitable[None]]
    account: str | None = None


class Job:
    """One act under way, shielded from all but the pool's own end."""

    def __init__(self, act: Act, reason: str, asked: bool) -> None:
        self.act = act
        self.reason = reason
        self.asked = asked
        self.scope = anyio.CancelScope(shield=True)
        self.done = anyio.Event()
        self.error: BoxError | None = None
        self.save: Save | None = None
        self.saved: Saved | None = None
        self.network: Network | None = None
        self.ahead = False  # the box moved already, before the act was over


class Slot:
    """One box in this server's hands.

    `ours` tells that this server makes the box, `recorded` that the store has it, `unsettled` that
    the engine may let it reach other than the record says. `generation` is that of the last change
    that is known here: another in the ticket means that some other server changed the box since.
    """

    def __init__(self, box: Box, ticket: Ticket, *, ours: bool = False) -> None:
        self.box = box
        self.ticket = ticket
        self.ours = ours
        self.recorded = True
        self.doubtful = not ours
        self.unsettled = not ours
        self.orphaned = False
        self.generation = -1
        self.job: Job | None = None
        self.channel: Channel | None = None
        self.claims = 0
        self.heard = 0.0
        self.rest_until = 0.0
        self.busy_since: float | None = None
        self.boot = ""
        self.news = ""
        self.attended: dict[Service, Attended] = {}

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
        box = self.box
        return BoxView(
            id=box.id,
            state=box.state,
            used=box.used,
            since=box.since,
            principal=box.principal,
            memory=box.spec.memory,
            heard=self.heard,
            connected=self.connected,
            doubtful=self.doubtful,
            acting=self.job is not None or not self.recorded,
            act=self.job.act if self.job is not None else None,
            claims=self.claims,
            busy_since=self.busy_since,
            job_kept=self.channel is not None and self.channel.open and self.channel.keeps_awake,
            rest_until=self.rest_until,
            ttl=box.terms.ttl,
            keep_awake=box.terms.keep_awake,
            orphaned=self.orphaned,
        )

    def hold(self) -> bool:
        """Keeps other servers from changing the box; False when one does, or has since we looked.

        It is doubtful then.
        """
        if self.claims == 0 and not self.ticket.share():
            self.doubtful = True
        elif self.ticket.generation() != self.generation:
            self.doubtful = True
            self.let_go()
        return not self.doubtful

    def let_go(self) -> None:
        """Lets other servers change the box, when nothing here is going on in it."""
        if self.claims == 0 and self.job is None:
            self.ticket.release()

    async def connect(
        self,
        site: Site,
        tasks: TaskGroup,
        changed: Callable[[Slot, Channel], None],
    ) -> None:
        """Opens a new channel; raises BoxBroken and the engine's errors.

        `changed` is called when the box comes to be busy or idle, and when the connection ends.
        """
        await self.disconnect()
        now = site.clock.now()
        channel = await open_channel(self.box.id, await site.engine.open_channel(self.box.id))
        channel.on_change = partial(changed, self, channel)
        channel.hook = site.hook
        self.channel = channel
        tasks.start_soon(channel.receive_forever)
        boot = str(channel.hello.get("boot"))
        if (self.boot and self.boot != boot) or (not self.boot and self.box.state is State.STOPPED):
            why = self.box.reason or "its daemon ended"
            self.news = (
                f"[the box had been stopped ({why}) and was started again: "
                "its files survived, its processes did not]"
            )
        self.boot, self.heard = boot, now
        self.busy_since = now if channel.busy else None

    async def disconnect(self, why: CallInterrupted | None = None) -> None:
        """Closes the channel, if any; what runs in the box goes on. Calls under way raise `why`."""
        channel, self.channel = self.channel, None
        self.busy_since = None
        self.leave_alone()
        if channel is not None:
            channel.on_change = lambda: None
            await channel.aclose(why)

    def way(self, service: Service) -> object:
        """In which way it is served; None where it is not."""
        attended = self.attended.get(service)
        return attended and attended.way

    def leave_alone(self, service: Service | None = None) -> None:
        """Ends what is served to the box: by one service, or by all."""
        for one in [service] if service is not None else list(self.attended):
            if (attended := self.attended.pop(one, None)) is not None:
                attended.scope.cancel()

    async def answers(self) -> bool:
        """Whether its boxd answers on the open channel, soon."""
        if self.channel is None or not self.connected:
            return False
        with anyio.move_on_after(PING_TIMEOUT):
            try:
                await self.channel.request("stat", path="/")
            except CallRefused:
                return True
            except (BoxBroken, CallInterrupted):
                return False
            return True
        return False


class Waiter:
    """A call that waits for its box since a moment."""

    def __init__(self, slot: Slot, since: float) -> None:
        self.slot = slot
        self.since = since
        self.done = anyio.Event()
        self.claim: Claim | None = None
        self.error: BoxError | None = None

    def refuse(self, error: BoxError) -> None:
        """Ends the waiting with `error`."""
        self.error = error
        self.done.set()
