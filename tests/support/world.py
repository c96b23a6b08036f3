"""Servers that share one engine and one directory in simulated time, and what they owe callers.

The `Ledger` is told of all that is asked for and answered, and watches the engine's door. What the
servers must never do is written down there as a breach, at the moment that they do it.
"""

# A server's death takes away what only the pool knows.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import anyio

from box_mcp.capabilities.files import Files
from box_mcp.domain.box import TABLE, State
from box_mcp.domain.catalogue import Catalogue, Order
from box_mcp.domain.network import Mode, Network
from box_mcp.domain.plan import EVICT_AFTER, Policy
from box_mcp.engines.base import Condition
from box_mcp.engines.fake import FakeEngine
from box_mcp.errors import BoxError, BoxNotFound, CallRefused, ServerClosed
from box_mcp.events import BoxMoved, Event
from box_mcp.lifecycle import Caller, Lifecycle
from box_mcp.pool import Pool
from box_mcp.records import Records
from box_mcp.tickets import Ticket, Tickets
from tests.support.faults import FaultyEngine, StoreInLine
from tests.support.invariants import SPEC
from tests.support.simulation import LoopClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from anyio.abc import TaskGroup

    from box_mcp.domain.box import Box
    from box_mcp.domain.names import BoxId, Principal
    from box_mcp.domain.plan import Act
    from box_mcp.slots import Claim

MARK = "mark"
"""The file that each call in a box reads, and some write."""
SLACK = 3.0  # s; servers tell others every two that a box is in use
ASKED = 120.0  # s; what was asked for may be done so much later, by a stalled engine
SIZES = {"small": (1.0, 2**30)}

Content = bytes | None

HERE: ContextVar[Server] = ContextVar("HERE")
"""The server that the running code belongs to."""


@dataclass(eq=False)
class Errand:
    """Something that a caller asked a server for."""

    number: int
    what: str
    server: Server
    caller: Caller
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    done: bool = False
    error: BoxError | None = None

    def __repr__(self) -> str:
        return f"<{self.number}: {self.what} for {self.caller.principal} on {self.server.name}>"


@dataclass(eq=False)
class Owed:
    """A box that somebody was given. `contents` is what its mark may be."""

    box: BoxId
    principal: Principal
    ttl: float | None
    keep_awake: bool
    used: float
    contents: set[Content]
    history: list[Content]
    writing: anyio.Lock = field(default_factory=anyio.Lock)
    claims: list[tuple[Server, Claim]] = field(default_factory=list["tuple[Server, Claim]"])
    networks: int = 0
    """How many changes of what it may reach were begun, or have ended."""
    asked_to_pause: float = 0.0
    busy_since: float = 0.0
    doomed: bool = False
    """Its deletion was asked for."""


@dataclass(eq=False)
class Kept:
    """A snapshot that was asked for. `certain` tells whether it must be there, None for perhaps."""

    contents: set[Content] = field(default_factory=set["Content"])
    certain: bool | None = False
    under_way: int = 0
    begun: int = 0


class Ledger:
    """What servers owe, and where they failed."""

    def __init__(self, policy: Policy, clock: LoopClock) -> None:
        self.policy = policy
        self.clock = clock
        self.breaches: list[str] = []
        self.owed: dict[BoxId, Owed] = {}
        self.kept: dict[tuple[Principal, str], Kept] = {}
        self.taken: set[BoxId] = set()
        self.loose: set[BoxId] = set()

    def breach(self, words: str) -> None:
        self.breaches.append(words)

    def given(self, box: Box, contents: set[Content] | None = None) -> Owed:
        """A caller knows of the box from here on."""
        assert box.principal is not None
        if box.id not in self.owed:
            self.owed[box.id] = Owed(
                box=box.id,
                principal=box.principal,
                ttl=box.terms.ttl,
                keep_awake=box.terms.keep_awake,
                used=box.used,
                contents=contents or {None},
                history=[],
            )
        return self.owed[box.id]

    @contextmanager
    def in_use(self, server: Server, claim: Claim) -> Generator[Owed, None, None]:
        """A call has the box."""
        owed = self.given(claim.box)
        owed.used = self.clock.now()
        owed.claims.append((server, claim))
        try:
            yield owed
        finally:
            if (server, claim) in owed.claims:
                owed.claims.remove((server, claim))
            if not server.dead:
                owed.used = self.clock.now()

    def died(self, server: Server) -> None:
        """Its calls were in use of boxes until now."""
        for owed in self.owed.values():
            if any(one is server for one, _ in owed.claims):
                owed.used = self.clock.now()
            owed.claims = [(one, claim) for one, claim in owed.claims if one is not server]

    def expired(self, owed: Owed) -> bool:
        """Whether the box may have been deleted unasked."""
        life = self.policy.delete_after if owed.ttl is None else owed.ttl
        return life is not None and self.clock.now() - owed.used >= life - SLACK

    def must_live(self, owed: Owed) -> bool:
        return not (owed.doomed or owed.box in self.taken or self.expired(owed))

    # At the engine's door

    def about_to(self, server: Server, operation: str, box: BoxId, engine: FakeEngine) -> None:
        """A server is about to have its way with a box."""
        owed, fake = self.owed.get(box), engine.boxes.get(box)
        if owed is None or fake is None:
            return
        told = f"{server.name} does {operation} to {box}, which is {fake.condition}"
        in_use = [claim for _, claim in owed.claims if claim.channel.open]
        others = [claim for one, claim in owed.claims if one is not server and claim.channel.open]
        if operation == "freeze" and fake.condition is Condition.RUNNING:
            if in_use:
                self.breach(f"{told}, under a call")
            if self.clock.now() - owed.asked_to_pause > ASKED:
                self._unasked(told, owed, busy=fake.busy)
        elif operation == "stop" and in_use and fake.condition is Condition.RUNNING:
            self.breach(f"{told}, under a call")
        elif operation == "delete":
            if others:
                self.breach(f"{told}, under another server's call")
            if self.must_live(owed):
                self.breach(f"{told}, though nobody asked for it")

    def _unasked(self, told: str, owed: Owed, *, busy: bool) -> None:
        now, policy = self.clock.now(), self.policy
        idle = EVICT_AFTER if policy.room.crowds else policy.pause_after
        if owed.keep_awake:
            self.breach(f"{told}, but was to be kept awake")
        if idle is None or now - owed.used < idle - SLACK:
            self.breach(f"{told}, used {now - owed.used:.1f} s ago")
        if busy and now - owed.busy_since < policy.job_awake_max - SLACK:
            self.breach(f"{told}, but it is busy")

    def did(self, server: Server, operation: str, box: BoxId, engine: FakeEngine) -> None:
        """A server had its way with a box."""
        if operation in ("freeze", "stop", "delete"):
            self.loose.discard(box)
        if operation in ("start", "thaw") and (limit := self.policy.room.awake) is not None:
            awake = [
                one.id
                for one in engine.boxes.values()
                if one.condition is Condition.RUNNING and one.id not in self.loose
            ]
            if len(awake) > limit:
                self.breach(f"{server.name} woke {box}, one too many: {awake}")

    def hear(self, server: Server, event: Event) -> None:
        """What pools say of themselves."""
        if not isinstance(event, BoxMoved) or server.dead:
            return
        known = {(before.value, after.value) for (before, _), after in TABLE.items()}
        if (event.before, event.after) not in known:
            self.breach(f"{server.name} made an illegal move: {event}")
        owed = self.owed.get(event.box)  # pyright: ignore[reportArgumentType]
        if event.after == State.LOST and owed and event.box not in self.taken and not owed.doomed:
            self.breach(f"{server.name} lost a box: {event}")


class WatchedEngine(FaultyEngine):
    """An engine that knows which server asks, and does nothing more for the dead."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    async def at_door(self, operation: str, box: BoxId) -> None:
        await super().at_door(operation, box)
        server = HERE.get()
        if server.dead:
            await anyio.sleep_forever()
        self.ledger.about_to(server, operation, box, self)

    async def answer(self, operation: str, box: BoxId) -> None:
        self.ledger.did(HERE.get(), operation, box, self)
        await super().answer(operation, box)

    def lose(self, box: BoxId) -> None:
        if box in self.boxes:
            self.ledger.taken.add(box)
        super().lose(box)


class MortalTickets(Tickets):
    """Tickets that a dying process lets go of."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._made: list[Ticket] = []

    def ticket(self, name: str) -> Ticket:
        self._made.append(super().ticket(name))
        return self._made[-1]

    def leave(self, beyond: Path) -> None:
        """All are free for others; what holds them has files of its own from now on."""
        self._directory = beyond
        for ticket in self._made:
            ticket.close()
            ticket._path = beyond / ticket._path.name

    def close(self) -> None:
        for ticket in self._made:
            ticket.close()


class Server:
    """A server process. Killed, it goes on where nobody can see it, and ends there."""

    def __init__(self, world: World, name: str, *, warm: bool) -> None:
        self.name = name
        self.dead = False
        self.up = anyio.Event()
        self.leave = anyio.Event()
        self.gone = anyio.Event()
        self._world = world
        self._scope = anyio.CancelScope()
        self._store = StoreInLine(world.directory / "state.db")
        self._tickets = MortalTickets(world.directory / "boxes")
        with patch("box_mcp.pool.Tickets", return_value=self._tickets):
            self.pool = Pool(
                world.engine,
                self._store,
                world.directory,
                world.policy,
                SPEC if warm else None,
                hook=partial(world.ledger.hear, self),
                clock=world.clock,
            )
        self.lifecycle = Lifecycle(self.pool, self._store, world.engine, Catalogue(SPEC, SIZES))
        self.calls: TaskGroup

    def __repr__(self) -> str:
        return f"<Server {self.name}{' dead' if self.dead else ''}>"

    async def live(self) -> None:
        """From its start to its end."""
        HERE.set(self)
        try:
            with self._scope:
                async with anyio.create_task_group() as self.calls:
                    async with self.pool.open():
                        self.up.set()
                        await self.leave.wait()
                    self.calls.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - told in the ledger
            if not self.dead:
                self._world.ledger.breach(f"{self} ended in {error!r}")
        finally:
            self._tickets.close()
            self.pool._presence._ticket.close()
            self._store.file.disconnect()
            self.gone.set()

    def kill(self) -> None:
        """As kill -9: what was asked of engine and store was done by now, or never will be."""
        self.dead = True
        self._world.ledger.died(self)
        beyond = self._world.directory / f"beyond-{self.name}"
        self._tickets.leave(beyond)
        presence = self.pool._presence
        presence._directory = beyond
        presence._ticket.close()
        presence._ticket._path = beyond / presence._ticket._path.name
        self._store.file.disconnect()
        self._store.file.path = beyond / "state.db"
        self._store._records = Records(beyond / "records")
        elsewhere = FakeEngine()
        for part in (self.pool, self.pool._worker, self.pool._janitor, self.lifecycle):
            part._engine = elsewhere
        for slot in self.pool._roster.slots.values():
            if slot.channel is not None:
                self._hang_up(slot.channel._stream)
            if slot.job is not None:
                slot.job.scope.cancel()
        self._scope.cancel()

    def _hang_up(self, line: object) -> None:
        for box in self._world.engine.boxes.values():
            for one in [one for one in box.lines if one is line]:
                one.hang_up()
                box.lines.remove(one)


class World:
    """One engine, one directory, and all that goes on there; to be run in a loop."""

    def __init__(self, directory: Path, policy: Policy) -> None:
        self.directory = directory
        self.policy = policy
        self.clock = LoopClock()
        self.ledger = Ledger(policy, self.clock)
        self.engine = WatchedEngine(self.ledger)
        self.servers: list[Server] = []
        self.errands: list[Errand] = []
        self.failed_orders: list[Errand] = []
        self._group: TaskGroup
        self._count = 0

    async def exist(self, ended: anyio.Event) -> None:
        """Runs while the world does."""
        async with anyio.create_task_group() as self._group:
            self._group.start_soon(self._end_what_nobody_is_connected_to)
            await ended.wait()
            self._group.cancel_scope.cancel()

    async def _end_what_nobody_is_connected_to(self) -> None:
        """The dead man's switch of every boxd."""
        alone: Counter[BoxId] = Counter()
        while True:
            await anyio.sleep(1.0)
            for box in self.engine.boxes.values():
                if box.condition is Condition.RUNNING:
                    alone[box.id] = 0 if box.lines or box.busy else alone[box.id] + 1
                if alone[box.id] > self.policy.orphan_after:
                    alone[box.id] = 0
                    box.end("no server came")

    # Servers

    def living(self) -> list[Server]:
        return [one for one in self.servers if not one.dead and not one.leave.is_set()]

    async def add_server(self, *, warm: bool) -> Server:
        server = Server(self, f"server{len(self.servers)}", warm=warm)
        self.servers.append(server)
        self._group.start_soon(server.live)
        await server.up.wait()
        return server

    async def end_server(self, server: Server) -> None:
        """In peace."""
        server.leave.set()
        await server.gone.wait()

    # Errands

    def begin(
        self, what: str, server: Server, caller: Caller, work: Callable[[Errand], Awaitable[None]]
    ) -> Errand:
        """A caller asks for something; his errand goes on by itself."""
        self._count += 1
        errand = Errand(self._count, what, server, caller)
        self.errands.append(errand)
        server.calls.start_soon(self._run, errand, work)
        return errand

    async def _run(self, errand: Errand, work: Callable[[Errand], Awaitable[None]]) -> None:
        HERE.set(errand.server)
        try:
            with errand.scope:
                await work(errand)
        except BoxError as error:
            errand.error = error
        except Exception as error:  # noqa: BLE001 - told in the ledger
            if not errand.server.dead:
                self.ledger.breach(f"{errand} ended in {error!r}")
        finally:
            errand.done = True
            self.errands.remove(errand)

    async def create(self, order: Order, errand: Errand) -> None:
        key = (errand.caller.principal, order.snapshot or "")
        kept = self.ledger.kept.get(key)
        contents = set(kept.contents) if kept is not None and order.snapshot else None
        try:
            report = await errand.server.lifecycle.create(errand.caller, order)
        except ServerClosed:
            raise
        except BoxError:
            self.failed_orders.append(errand)
            raise
        if report.box.principal != errand.caller.principal:
            self.ledger.breach(f"{errand} was given a box of {report.box.principal}")
        self.ledger.given(report.box, contents)

    async def call(self, ref: str | None, hold: float, write: bool, errand: Errand) -> None:
        """Reads the mark, perhaps writes it, takes its time, and reads it again."""
        async with errand.server.lifecycle.open(errand.caller, ref) as claim:
            if claim.box.principal != errand.caller.principal:
                self.ledger.breach(f"{errand} was let into a box of {claim.box.principal}")
            with self.ledger.in_use(errand.server, claim) as owed:
                self._check_reach(owed.box, claim.box.network.mode, f"{errand} has it")
                files = Files(claim.channel)
                await self._read(owed, files)
                if write:
                    await self._write(owed, files, b"%d" % errand.number)
                await anyio.sleep(hold)
                await self._read(owed, files)

    async def call_in(self, hold: float, write: bool, owed: Owed, errand: Errand) -> None:
        """A call in a certain box."""
        await self._foreign(owed, errand, lambda: self.call(owed.box, hold, write, errand))

    async def _read(self, owed: Owed, files: Files) -> None:
        allowed = set(owed.contents)
        seen = len(owed.history)
        try:
            content = (await files.read(MARK, 1, 9, 99)).content
        except CallRefused as refusal:
            if refusal.code != "not_found":
                raise
            content = None
        if content not in allowed | set(owed.history[seen:]):
            self.ledger.breach(f"{owed.box} holds {content}, which is none of {owed.contents}")

    async def _write(self, owed: Owed, files: Files, content: bytes) -> None:
        async with owed.writing:
            owed.contents.add(content)
            owed.history.append(content)
            await files.write(MARK, content)
            owed.contents = {content}

    async def pause(self, act: Act, owed: Owed, errand: Errand) -> None:
        owed.asked_to_pause = self.clock.now()
        try:
            await self._foreign(
                owed, errand, lambda: errand.server.lifecycle.pause(errand.caller, owed.box, act)
            )
        finally:
            owed.asked_to_pause = self.clock.now()

    async def resume(self, owed: Owed, errand: Errand) -> None:
        await self._foreign(
            owed, errand, lambda: errand.server.lifecycle.resume(errand.caller, owed.box)
        )
        owed.used = self.clock.now()

    async def delete(self, owed: Owed, errand: Errand) -> None:
        if errand.caller.principal == owed.principal:
            owed.doomed = True
        await self._foreign(
            owed, errand, lambda: errand.server.lifecycle.delete(errand.caller, owed.box)
        )
        if owed.box in self.engine.boxes:
            self.ledger.breach(f"{owed.box} is there, though {errand} succeeded")

    async def fork(self, count: int, owed: Owed, errand: Errand) -> None:
        contents, seen = set(owed.contents), len(owed.history)
        forks: list[Box] = []

        async def fork() -> None:
            reports = await errand.server.lifecycle.fork(errand.caller, owed.box, count)
            forks.extend(report.box for report in reports)

        await self._foreign(owed, errand, fork)
        if len({one.id for one in forks}) != count:
            self.ledger.breach(f"{errand} came to {forks}")
        for one in forks:
            self.ledger.given(one, contents | set(owed.history[seen:]))

    async def snapshot(self, name: str, owed: Owed, errand: Errand) -> None:
        contents, seen = set(owed.contents), len(owed.history)
        kept = self.ledger.kept.setdefault((errand.caller.principal, name), Kept())
        with self._changing(kept) as alone:
            try:
                await self._foreign(
                    owed,
                    errand,
                    lambda: errand.server.lifecycle.snapshot(errand.caller, name, owed.box),
                )
            finally:
                contents |= set(owed.history[seen:])
                kept.contents |= contents
            if alone():
                kept.contents, kept.certain = contents, True

    async def delete_snapshot(self, name: str, errand: Errand) -> None:
        kept = self.ledger.kept.setdefault((errand.caller.principal, name), Kept())
        with self._changing(kept) as alone:
            await errand.server.lifecycle.delete_snapshot(errand.caller, name)
            if alone():
                kept.contents, kept.certain = set(), False

    @contextmanager
    def _changing(self, kept: Kept) -> Generator[Callable[[], bool], None, None]:
        """Tells whether nobody else changed it meanwhile; else, or after a failure, who knows?"""
        kept.certain = None
        kept.under_way += 1
        kept.begun += 1
        alone, mine = kept.under_way == 1, kept.begun
        try:
            yield lambda: alone and kept.begun == mine
        finally:
            kept.under_way -= 1

    async def set_network(self, mode: Mode, owed: Owed, errand: Errand) -> None:
        owed.networks += 1
        begun = owed.networks
        try:
            await self._foreign(
                owed,
                errand,
                lambda: errand.server.lifecycle.set_network(errand.caller, owed.box, Network(mode)),
            )
        except BaseException:
            owed.networks += 1
            raise
        if owed.networks == begun:
            self._check_reach(owed.box, mode, f"{errand} succeeded")
        owed.networks += 1

    def _check_reach(self, box: BoxId, mode: Mode, when: str) -> None:
        """No box reaches more than whoever uses it or changed it was told."""
        fake = self.engine.boxes.get(box)
        if fake is not None and fake.attached and mode is not Mode.FULL:
            self.ledger.breach(f"{box} reaches the network, but has {mode}: {when}")

    async def look(self, owed: Owed, errand: Errand) -> None:
        lifecycle, caller = errand.server.lifecycle, errand.caller
        for report in await lifecycle.list(caller):
            if report.box.principal != caller.principal:
                self.ledger.breach(f"{errand} saw {report.box}")
        await self._foreign(owed, errand, lambda: lifecycle.info(caller, owed.box))
        await self._foreign(owed, errand, lambda: lifecycle.changes(caller, owed.box))
        await self._foreign(owed, errand, lambda: lifecycle.usage(caller, owed.box))

    async def _foreign(
        self, owed: Owed, errand: Errand, work: Callable[[], Awaitable[object]]
    ) -> None:
        """Nobody but its owner hears anything of a box."""
        try:
            await work()
        except BoxNotFound:
            raise
        except BoxError as error:
            if owed.principal != errand.caller.principal:
                self.ledger.breach(f"{errand} heard of {owed.box} that {error}")
            raise
        if owed.principal != errand.caller.principal:
            self.ledger.breach(f"{errand} succeeded with {owed.box}, which is {owed.principal}'s")
