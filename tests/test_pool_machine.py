"""Random sequences of all that may be asked of servers and all that may happen to them.

Several servers share one engine and one directory; the `Ledger` knows what they owe. Time is
simulated, so a sequence that failed fails again.
"""

# The end looks at what only the pool knows.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from unittest.mock import patch

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from box_mcp import pool as pools
from box_mcp.domain.box import State, Terms
from box_mcp.domain.catalogue import Order
from box_mcp.domain.limits import Room
from box_mcp.domain.names import LOCAL, BoxId, Principal
from box_mcp.domain.network import Mode
from box_mcp.domain.plan import Act, Policy
from box_mcp.engines.base import Condition
from box_mcp.lifecycle import Caller
from tests.support.faults import (
    OPERATIONS,
    Fault,
    HalfDone,
    LateAnswer,
    Loss,
    NoAnswer,
    Refusal,
    Stall,
)
from tests.support.simulation import SimulatedLoop
from tests.support.world import Errand, Owed, Server, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from box_mcp.domain.snapshots import Snapshot
    from box_mcp.engines.base import Saved
    from box_mcp.engines.fake import FakeBox
    from box_mcp.lifecycle import Report
    from tests.support.world import Ledger

T = TypeVar("T")

CALLERS = (Caller(LOCAL, "talk"), Caller(LOCAL, "more talk"), Caller(Principal("she"), "talk"))
POLICIES = [
    Policy(
        pause_after=20,
        stop_after=40,
        delete_after=delete_after,
        orphan_after=30,
        job_awake_max=60,
        warm_min=min(1, warm),
        warm_max=warm,
        room=room,
        queue_timeout=15,
    )
    for delete_after in (None, 300)
    for warm in (0, 2)
    for room in (Room(), Room(awake=2), Room(own_boxes=3))
]
MOST_SERVERS = 3
MOST_FAULTS = 2
PATIENCE = 400.0  # s; simulated, after which nothing that was asked for is under way any more
RECOVERY = 200.0  # s; simulated, after which nothing that dead servers left is there any more
REST = 50  # turns of the event loop in a second, when nobody asks for anything
ALARMS = "box_mcp"  # the logger of all that nobody foresaw

number = st.integers(0, 5)  # of one among those that there are
caller = st.sampled_from(CALLERS)
name = st.sampled_from(["one", "two"])
turns = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 21, 34, 100])  # of the event loop
hold = st.sampled_from([0.0, 0.0, 0.1, 7.0, 30.0, 100.0])  # s that a call takes


@dataclass(frozen=True)
class About:
    """Which box is meant and which server is asked; and whether somebody else than its owner asks.

    The loop turns so often before anything else happens.
    """

    box: int
    at: int
    foreign: bool
    turns: int


about_a_box = st.builds(
    About, box=number, at=number, foreign=st.sampled_from([False] * 5 + [True]), turns=turns
)


class ServersAtWork(RuleBasedStateMachine):
    """Callers, servers, an engine and the world behind their backs."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="pool-machine-"))
        self.loop = SimulatedLoop()
        self.faults: list[Fault] = []
        self.alarm = Alarm()
        logging.getLogger(ALARMS).addHandler(self.alarm)
        minted = count(1)
        self.minting = patch.object(pools, "mint_id", lambda: BoxId(f"box-{next(minted):08}"))
        self.minting.start()
        self.ended = anyio.Event()
        self.existence: asyncio.Task[None]
        self.world: World

    @initialize(policy=st.sampled_from(POLICIES), servers=st.integers(1, MOST_SERVERS))
    def begin(self, policy: Policy, servers: int) -> None:
        async def begin() -> None:
            self.world = World(self.directory, policy)
            self.existence = self.loop.create_task(self.world.exist(self.ended))
            await checkpoint()
            for _ in range(servers):
                await self.world.add_server(warm=policy.warm_max > 0)

        self.loop.run(begin())

    # What callers ask for

    @rule(
        who=caller,
        at=number,
        name=st.none() | name,
        reuse=st.booleans(),
        ttl=st.sampled_from([None, None, 15.0, 90.0]),
        keep_awake=st.sampled_from([False, False, True]),
        snapshot=st.none() | st.none() | name,
        network=st.none() | st.sampled_from([Mode.FULL, Mode.NONE]),
        turns=turns,
    )
    def create(
        self,
        who: Caller,
        at: int,
        name: str | None,
        reuse: bool,
        ttl: float | None,
        keep_awake: bool,
        snapshot: str | None,
        network: Mode | None,
        turns: int,
    ) -> None:
        def work(errand: Errand) -> Awaitable[None]:
            terms = Terms({"order": str(errand.number)}, ttl, keep_awake)
            order = Order(name=name, reuse=reuse, snapshot=snapshot, network=network, terms=terms)
            return self.world.create(order, errand)

        self.ask(f"create {name}", who, at, work, turns)

    @rule(who=caller, at=number, hold=hold, write=st.booleans(), turns=turns)
    def call_own(self, who: Caller, at: int, hold: float, write: bool, turns: int) -> None:
        self.ask("call", who, at, partial(self.world.call, None, hold, write), turns)

    @rule(about=about_a_box, hold=hold, write=st.booleans())
    @precondition(lambda self: self.ledger.owed)
    def call(self, about: About, hold: float, write: bool) -> None:
        self.ask_about(about, "call", partial(self.world.call_in, hold, write))

    @rule(about=about_a_box, act=st.sampled_from([Act.FREEZE, Act.STOP]))
    @precondition(lambda self: self.ledger.owed)
    def pause(self, about: About, act: Act) -> None:
        self.ask_about(about, act.value, partial(self.world.pause, act))

    @rule(about=about_a_box)
    @precondition(lambda self: self.ledger.owed)
    def resume(self, about: About) -> None:
        self.ask_about(about, "resume", self.world.resume)

    @rule(about=about_a_box)
    @precondition(lambda self: self.ledger.owed)
    def look(self, about: About) -> None:
        self.ask_about(about, "look at", self.world.look)

    @rule(about=about_a_box)
    @precondition(lambda self: self.ledger.owed)
    def delete(self, about: About) -> None:
        self.ask_about(about, "delete", self.world.delete)

    @rule(about=about_a_box, mode=st.sampled_from(Mode))
    @precondition(lambda self: self.ledger.owed)
    def set_network(self, about: About, mode: Mode) -> None:
        self.ask_about(about, f"give {mode}", partial(self.world.set_network, mode))

    @rule(about=about_a_box, mode=st.sampled_from(Mode))
    @precondition(lambda self: self.ledger.owed and len(self.world.living()) > 1)
    def a_server_dies_over_a_network(self, about: About, mode: Mode) -> None:
        """It wrote it down and did no more; another, which used the box before, is called then."""
        call = partial(self.world.call_in, 0.0, False)
        self.ask_about(replace(about, at=about.at + 1, turns=100), "call", call)
        stall = Stall("change the network of")
        self.faults.append(stall)
        self.world.engine.faults.append(stall)
        change = partial(self.world.set_network, mode)
        self.ask_about(replace(about, turns=100), f"give {mode}", change)
        self.at_once(self.server(about.at).kill)
        self.at_once(partial(self.heal, stall))
        self.ask_about(replace(about, turns=100), "call", call)

    @rule(about=about_a_box, forks=st.integers(1, 3))
    @precondition(lambda self: self.ledger.owed)
    def fork(self, about: About, forks: int) -> None:
        self.ask_about(about, "fork", partial(self.world.fork, forks))

    @rule(about=about_a_box, name=name)
    @precondition(lambda self: self.ledger.owed)
    def snapshot(self, about: About, name: str) -> None:
        self.ask_about(about, f"save as {name}", partial(self.world.snapshot, name))

    @rule(who=caller, at=number, name=name, turns=turns)
    def delete_snapshot(self, who: Caller, at: int, name: str, turns: int) -> None:
        self.ask(
            f"delete snapshot {name}", who, at, partial(self.world.delete_snapshot, name), turns
        )

    @rule(errand=number, turns=turns)
    @precondition(lambda self: self.world.errands)
    def cancel(self, errand: int, turns: int) -> None:
        errands = self.world.errands
        self.at_once(errands[errand % len(errands)].scope.cancel)
        self.turn(turns)

    # What happens

    @rule(turns=turns)
    def time_passes_a_little(self, turns: int) -> None:
        self.turn(turns)

    @rule(seconds=st.sampled_from([0.3, 6.0, 25.0, 25.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run(anyio.sleep(seconds))

    @rule(warm=st.booleans())
    @precondition(lambda self: len(self.world.living()) < MOST_SERVERS)
    def a_server_starts(self, warm: bool) -> None:
        warm = warm and self.world.policy.warm_max > 0
        self.loop.run(self.world.add_server(warm=warm))

    @rule(at=number, turns=turns)
    @precondition(lambda self: self.world.living())
    def a_server_is_killed(self, at: int, turns: int) -> None:
        self.at_once(self.server(at).kill)
        self.turn(turns)

    @rule(at=number)
    @precondition(lambda self: self.world.living())
    def a_server_ends(self, at: int) -> None:
        self.loop.run(self.world.end_server(self.server(at)))

    @rule(
        kind=st.sampled_from([Stall, Refusal, NoAnswer, LateAnswer, HalfDone, Loss]),
        operation=st.sampled_from(["", *OPERATIONS]),
        turns=turns,
    )
    @precondition(lambda self: len(self.faults) < MOST_FAULTS)
    def a_fault_begins(self, kind: type[Fault], operation: str, turns: int) -> None:
        def begin() -> None:
            fault = Stall(operation, patience=60.0) if kind is Stall else kind(operation)
            self.faults.append(fault)
            self.world.engine.faults.append(fault)

        self.at_once(begin)
        self.turn(turns)

    @rule(fault=number, turns=turns)
    @precondition(lambda self: self.faults)
    def a_fault_ends(self, fault: int, turns: int) -> None:
        self.at_once(partial(self.heal, self.faults[fault % len(self.faults)]))
        self.turn(turns)

    @rule(box=number)
    @precondition(lambda self: self.world.engine.boxes)
    def a_command_begins_or_ends(self, box: int) -> None:
        fake = self.fake(box)
        if fake is not None and fake.condition is Condition.RUNNING and fake.id in self.ledger.owed:
            self.ledger.owed[fake.id].busy_since = self.at_once(self.world.clock.now)
            self.at_once(partial(fake.set_busy, not fake.busy))

    @rule(box=number)
    @precondition(lambda self: self.world.engine.boxes)
    def a_box_is_ended_behind_our_back(self, box: int) -> None:
        fake = self.fake(box)
        if fake is not None and fake.condition in (Condition.RUNNING, Condition.FROZEN):
            self.at_once(partial(fake.end, "killed"))

    @rule(box=number)
    @precondition(lambda self: self.world.engine.boxes)
    def a_box_is_removed_behind_our_back(self, box: int) -> None:
        if (fake := self.fake(box)) is not None:
            self.at_once(partial(self.world.engine.lose, fake.id))

    @rule(box=number)
    @precondition(lambda self: self.world.engine.boxes)
    def a_box_is_paused_or_unpaused_behind_our_back(self, box: int) -> None:
        fake = self.fake(box)
        if fake is not None and fake.condition is Condition.RUNNING:
            fake.condition = Condition.FROZEN
        elif fake is not None and fake.condition is Condition.FROZEN:
            self.ledger.loose.add(fake.id)
            fake.condition = Condition.RUNNING
            self.at_once(fake.flush)

    @rule(killed=st.booleans())
    @precondition(lambda self: self.world.engine.boxes)
    def the_engine_restarts(self, killed: bool) -> None:
        """Or the whole machine does, and all servers with it."""

        def restart() -> None:
            for fake in self.world.engine.boxes.values():
                if fake.condition in (Condition.RUNNING, Condition.FROZEN):
                    fake.end("the engine ended")
            for server in self.world.living() if killed else ():
                server.kill()

        self.at_once(restart)

    @invariant()
    def nothing_is_amiss(self) -> None:
        if hasattr(self, "world"):
            assert not self.ledger.breaches, "\n".join(self.ledger.breaches)
            assert not self.alarm.records

    # The end

    def teardown(self) -> None:
        try:
            if hasattr(self, "world") and not self.ledger.breaches and not self.alarm.records:
                self.loop.run(self.finish())
                self.nothing_is_amiss()
        finally:
            self.loop.end()
            self.minting.stop()
            logging.getLogger(ALARMS).removeHandler(self.alarm)
            shutil.rmtree(self.directory)

    async def finish(self) -> None:
        """All faults end, all errands end, time passes: what must be there is, and nothing else."""
        for fault in list(self.faults):
            self.heal(fault)
        for fake in self.world.engine.boxes.values():
            fake.set_busy(False)
        with anyio.move_on_after(PATIENCE):
            while self.world.errands:  # noqa: ASYNC110 - time is simulated
                await anyio.sleep(1.0)
        for errand in self.world.errands:
            self.ledger.breach(f"{errand} never ended")
        if not self.world.living():
            await self.world.add_server(warm=False)
        turns = self.loop.turns
        await anyio.sleep(RECOVERY)
        if self.loop.turns - turns > REST * RECOVERY:
            self.ledger.breach("servers with nothing to do are busy")
        server = self.world.living()[0]
        await self.check_all_is_known(server)
        await self.check_nothing_is_in_vain(server)
        await self.check_all_is_there(server)
        await self.remove_all(server)
        for one in self.world.living():
            await self.world.end_server(one)
        last = await self.world.add_server(warm=False)  # clears up after those that were cut short
        await anyio.sleep(10.0)
        await self.world.end_server(last)
        self.check_nothing_is_left()
        self.ended.set()

    async def check_all_is_known(self, server: Server) -> None:
        engine, ledger = self.world.engine, self.ledger
        rows = {box.id: box for box in await server.pool._store.boxes()}
        for box in engine.boxes.values():
            if box.id not in rows:
                ledger.breach(f"{box.id}, which is {box.condition}, is nobody's")
            elif box.condition in (Condition.RUNNING, Condition.FROZEN):
                row = rows[box.id]
                spare = row.principal is None
                if box.condition is Condition.FROZEN and row.state is State.CREATED:
                    continue  # by hand, when the server that made it had died before it said so
                if not (spare or row.terms.keep_awake or box.id in ledger.loose):
                    ledger.breach(f"{box.id} is {box.condition} though idle; recorded: {row}")
        failed = {str(errand.number): errand for errand in self.world.failed_orders}
        for row in rows.values():
            if (errand := failed.get(row.terms.labels.get("order", ""))) is not None:
                ledger.breach(f"{row} is there though {errand} failed: {errand.error}")
            if row.principal is not None and row.terms.ttl and row.state != "lost":
                ledger.breach(f"{row} has outlived its time")

    async def check_nothing_is_in_vain(self, server: Server) -> None:
        """No image without boxes, and no network but those of boxes to come."""
        engine, ledger = self.world.engine, self.ledger
        rows = {box.id: box for box in await server.pool._store.boxes()}
        used = {row.spec.image for row in rows.values()}
        for image in engine.saves:
            if image.startswith("sha256:") and image not in used:
                ledger.breach(f"{image} is of no use")
        stocks = {box for one in self.world.living() for box in one.pool._roster.stock}
        for box in engine.prepared - stocks - set(rows):
            ledger.breach(f"a network was made for {box}, which will never be")

    async def check_all_is_there(self, server: Server) -> None:
        for who in CALLERS:
            for report in await self.list(server, who):
                pause = partial(server.lifecycle.pause, who, report.box.id, Act.STOP)
                await self.demand(f"stop {report.box}", server, who, pause, mild=True)
        for owed in self.ledger.owed.values():
            if self.ledger.must_live(owed):
                who = Caller(owed.principal, "the end")
                call = partial(self.world.call, owed.box, 0.0, False)
                await self.answered(self.world.begin("the last call", server, who, call))
                await self.check_network(server, owed.box)
                pause = partial(server.lifecycle.pause, who, owed.box, Act.STOP)
                await self.demand(f"stop {owed.box}", server, who, pause)
        for who in CALLERS:
            snapshots = {snapshot.name for snapshot, _ in await self.snapshots(server, who)}
            for (principal, name), kept in self.ledger.kept.items():
                if principal != who.principal or kept.certain is None:
                    continue
                if kept.certain is not (name in snapshots):
                    self.ledger.breach(f"{name} of {principal}: {kept}, but there are {snapshots}")

    async def check_network(self, server: Server, box: BoxId) -> None:
        """Whoever used a box sees to it that it reaches what the record says."""
        row, fake = await server.pool._store.box(box), self.world.engine.boxes.get(box)
        if row is None or fake is None or fake.condition is not Condition.RUNNING:
            return
        if fake.attached is not (row.network.mode is Mode.FULL):
            self.ledger.breach(f"{box} is attached: {fake.attached}, but has {row.network}")

    async def remove_all(self, server: Server) -> None:
        for owed in self.ledger.owed.values():
            owed.doomed = True
        for who in CALLERS:
            for report in await self.list(server, who):
                delete = partial(server.lifecycle.delete, who, report.box.id)
                await self.demand(f"delete {report.box}", server, who, delete)
            for snapshot, _ in await self.snapshots(server, who):
                drop = partial(server.lifecycle.delete_snapshot, who, str(snapshot.name))
                await self.demand(f"drop {snapshot}", server, who, drop)
        await anyio.sleep(10.0)

    def check_nothing_is_left(self) -> None:
        engine = self.world.engine
        for kind, left in (
            ("boxes", list(engine.boxes)),
            ("networks", list(engine.prepared)),
            ("images", list(engine.saves)),
            ("records", list(self.directory.glob("records/*"))),
            ("tickets", list(self.directory.glob("boxes/*"))),
            ("signs of life", list(self.directory.glob("servers/*"))),
        ):
            if left:
                self.ledger.breach(f"{kind} are left: {left}")

    async def list(self, server: Server, who: Caller) -> list[Report]:
        return await self.demand("list", server, who, partial(server.lifecycle.list, who)) or []

    async def snapshots(self, server: Server, who: Caller) -> list[tuple[Snapshot, Saved]]:
        ask = partial(server.lifecycle.snapshots, who)
        return await self.demand("list snapshots", server, who, ask) or []

    async def demand(
        self,
        what: str,
        server: Server,
        who: Caller,
        ask: Callable[[], Awaitable[T]],
        *,
        mild: bool = False,
    ) -> T | None:
        """What is asked for; not to get it is a breach, unless `mild`."""
        got: list[T] = []

        async def work(_: Errand) -> None:
            got.append(await ask())

        errand = self.world.begin(what, server, who, work)
        await self.answered(errand, mild=mild)
        return got[0] if got else None

    async def answered(self, errand: Errand, *, mild: bool = False) -> None:
        with anyio.move_on_after(PATIENCE):
            while not errand.done:  # noqa: ASYNC110 - time is simulated
                await anyio.sleep(0.01)
        if errand.error is not None and not mild:
            self.ledger.breach(f"{errand} failed: {errand.error!r}")
        if not errand.done:
            self.ledger.breach(f"{errand} never ended")

    # Tools

    @property
    def ledger(self) -> Ledger:
        return self.world.ledger

    def ask(
        self,
        what: str,
        who: Caller,
        at: int,
        work: Callable[[Errand], Awaitable[None]],
        turns: int,
    ) -> None:
        if self.world.living():
            self.at_once(partial(self.world.begin, what, self.server(at), who, work))
            self.turn(turns)

    def ask_about(
        self, about: About, what: str, work: Callable[[Owed, Errand], Awaitable[None]]
    ) -> None:
        boxes = list(self.ledger.owed.values())
        owed = boxes[about.box % len(boxes)]
        who = next(one for one in CALLERS if about.foreign is (one.principal != owed.principal))
        self.ask(f"{what} {owed.box}", who, about.at, partial(work, owed), about.turns)

    def at_once(self, function: Callable[[], T]) -> T:
        """Nothing else goes on meanwhile, but it is done where all else is."""

        async def call() -> T:
            return function()

        return self.loop.run(call())

    def turn(self, turns: int) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await checkpoint()

        self.loop.run(turn())

    def heal(self, fault: Fault) -> None:
        fault.heal()
        self.faults.remove(fault)
        self.world.engine.faults.remove(fault)

    def server(self, number: int) -> Server:
        living = self.world.living()
        return living[number % len(living)]

    def fake(self, number: int) -> FakeBox | None:
        boxes = list(self.world.engine.boxes.values())
        return boxes[number % len(boxes)] if boxes else None


class Alarm(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(logging.Formatter().format(record))


# Only a sequence that failed takes long: it is made as short as it can be.
pytestmark = pytest.mark.timeout(600)

ServersAtWork.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    database=None,
    derandomize=True,
    print_blob=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_what_servers_owe_they_keep_whatever_happens = ServersAtWork.TestCase
