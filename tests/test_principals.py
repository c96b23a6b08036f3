"""What is one principal's is nobody else's, and nobody finds out that it is there.

Boxes are on an engine in memory; tests/attacks/test_tokens.py does the same from outside.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import random
import string
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import pytest
from mcp import MCPError

from box_mcp.capabilities.agent.agents import Agents
from box_mcp.capabilities.agent.asked import Usual
from box_mcp.capabilities.files import Files
from box_mcp.database import Database
from box_mcp.domain.access import Grant
from box_mcp.domain.catalogue import Catalogue, Order
from box_mcp.domain.names import BoxId, BoxName, Principal
from box_mcp.domain.network import Mode, Network
from box_mcp.domain.plan import Act, Policy
from box_mcp.domain.runs import Run, mint_run_id
from box_mcp.domain.sites import Domain, label_of
from box_mcp.domain.snapshots import tag
from box_mcp.engines.base import Saved
from box_mcp.engines.fake import FakeEngine, FakeImage
from box_mcp.errors import (
    BoxError,
    BoxNotFound,
    ImageMissing,
    InvalidArgument,
    SnapshotsFull,
    UsageError,
)
from box_mcp.gateway.sites import Sites
from box_mcp.ledger import MIGRATIONS as LEDGER_MIGRATIONS
from box_mcp.ledger import Ledger
from box_mcp.lifecycle import MAX_REMEMBERED, Caller, Lifecycle
from box_mcp.pool import Pool
from box_mcp.store import MIGRATIONS as STORE_MIGRATIONS
from box_mcp.store import Store
from box_mcp.surface.tasks import TaskId, View
from tests.support.invariants import SPEC, Bench, FakeClock, quiet
from tests.test_lifecycle import catalogue, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

ME, YOU = Caller(Principal("me"), "talk"), Caller(Principal("you"), "talk")
UNKNOWN = BoxId("box-00000000")
GIB = 2**30


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


async def opened(lifecycle: Lifecycle, ref: str) -> None:
    async with lifecycle.open(ME, ref):
        pass


async def looked_into(lifecycle: Lifecycle, ref: str) -> None:
    async with lifecycle.look_into(ME, ref):
        pass


REQUESTS: dict[str, Callable[[Lifecycle, str], Awaitable[object]]] = {
    "find": lambda lifecycle, ref: lifecycle.find(ME, ref),
    "info": lambda lifecycle, ref: lifecycle.info(ME, ref),
    "pause": lambda lifecycle, ref: lifecycle.pause(ME, ref, Act.FREEZE),
    "resume": lambda lifecycle, ref: lifecycle.resume(ME, ref),
    "delete": lambda lifecycle, ref: lifecycle.delete(ME, ref),
    "usage": lambda lifecycle, ref: lifecycle.usage(ME, ref),
    "changes": lambda lifecycle, ref: lifecycle.changes(ME, ref),
    "snapshot": lambda lifecycle, ref: lifecycle.snapshot(ME, "stolen", ref),
    "fork": lambda lifecycle, ref: lifecycle.fork(ME, ref, 1),
    "network": lambda lifecycle, ref: lifecycle.set_network(ME, ref, Network(Mode.NONE)),
    "call": opened,
    "quiet call": looked_into,
    "snapshot of": lambda lifecycle, ref: lifecycle.create(ME, Order(snapshot=ref)),
    "snapshot deleted": lambda lifecycle, ref: lifecycle.delete_snapshot(ME, ref),
    "image": lambda lifecycle, ref: lifecycle.create(ME, Order(image=f"box-mcp-snapshot:{ref}")),
}


class WatchedEngine(FakeEngine):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def at_door(self, operation: str, box: BoxId) -> None:
        self.asked.append(f"{operation} {box}")
        await super().at_door(operation, box)

    async def saved(self) -> Any:
        self.asked.append("saved")
        return await super().saved()

    async def labels(self, image: str) -> Any:
        self.asked.append(f"labels {image}")
        return await super().labels(image)


@pytest.mark.parametrize("request_", REQUESTS)
async def test_what_is_anothers_is_answered_as_what_there_is_not_and_takes_the_same_way(
    request_: str, tmp_path: Path
):
    engine = WatchedEngine()
    bench = Bench(tmp_path, engine)
    asked: list[str] = []

    async def tried(lifecycle: Lifecycle, ref: str) -> tuple[str, list[str], list[str]]:
        asked.clear()
        engine.asked.clear()
        with pytest.raises(BoxError) as caught:
            await REQUESTS[request_](lifecycle, ref)
        seen = (caught.value.explain(), [*asked], [*engine.asked])
        assert seen[1] or seen[2] or request_.startswith("snapshot "), "it was not looked for"
        return cast("Any", str(seen).replace(ref, "REF"))

    async with serving(bench) as lifecycle:
        theirs = (await lifecycle.create(YOU, Order("theirs"))).box
        await lifecycle.create(ME, Order("mine"))
        await lifecycle.snapshot(YOU, "theirs", "theirs")
        before = await state_of(bench, YOU)
        bench.store.file.connection.set_trace_callback(asked.append)
        refs = (theirs.id, UNKNOWN) if request_ != "image" else (tag(*THEIRS), "0" * 32)
        known, unknown = [await tried(lifecycle, ref) for ref in refs]
        named, unnamed = [await tried(lifecycle, ref) for ref in ("theirs", "nobody")]
        bench.store.file.connection.set_trace_callback(None)
        assert known == unknown
        assert named == unnamed
        assert await state_of(bench, YOU) == before
    bench.close()


THEIRS = (YOU.principal, BoxName("theirs"))


async def state_of(bench: Bench, caller: Caller) -> object:
    """All of a principal's boxes and their copies."""
    boxes = [box for box in await bench.store.boxes() if box.principal == caller.principal]
    return boxes, [vars(bench.fake(box)).copy() for box in boxes], sorted(bench.engine.saves)


async def test_a_box_that_another_server_made_is_nobody_elses_either(bench: Bench):
    async with serving(bench) as one, serving(bench) as two:
        box = (await one.create(YOU, Order("theirs"))).box.id
        for ref in (box, "theirs"):
            with pytest.raises(BoxNotFound):
                await two.info(ME, ref)
            assert (await two.info(YOU, ref)).box.id == box


async def test_what_a_box_was_saved_to_is_no_image_for_others(bench: Bench):
    async with serving(bench) as lifecycle:
        await lifecycle.create(YOU, Order("theirs"))
        await lifecycle.fork(YOU, "theirs", 1)
        await lifecycle.snapshot(YOU, "state", "theirs")
        images = list(bench.engine.saves)
        assert len(images) == 2
        for image in (*images, "no/such:image"):
            with pytest.raises(ImageMissing) as caught:
                await lifecycle.create(ME, Order(image=image))
            assert str(caught.value) == f"The engine has no image {image!r}"
            assert await lifecycle.list(ME) == []
        for image in images:
            assert (await lifecycle.create(YOU, Order(image=image))).box.spec.image == image


async def test_a_saved_image_that_does_not_say_whose_it_is_is_nobodys(bench: Bench):
    saved = Saved("sha256:abc", {"box_mcp.snapshot": "{"}, 1, 1, 0.0)
    bench.engine.saves["sha256:abc"] = FakeImage(saved, SPEC.image, {})
    async with serving(bench) as lifecycle:
        with pytest.raises(ImageMissing):
            await lifecycle.create(ME, Order(image="sha256:abc"))


@pytest.mark.parametrize(
    "image", ["../containers/box-aaaaaaaa", "a/../b", "-x", "a b", "a\n", "a?b", "é", "a" * 501]
)
async def test_what_can_be_no_image_is_not_even_asked_for(bench: Bench, image: str):
    async with serving(bench) as lifecycle:
        with pytest.raises(InvalidArgument, match="no image is called so"):
            await lifecycle.create(ME, Order(image=image))
        assert await lifecycle.list(ME) == []


async def test_routes_of_others_are_not_even_named(bench: Bench):
    offer = catalogue(routes=("work", "home"), reserved={"work": ["you", "boss-*"], "home": ["*"]})
    async with serving(bench, offer=offer) as lifecycle:
        with pytest.raises(InvalidArgument, match=r"'work', which is none of this box's: home$"):
            await lifecycle.create(ME, Order(routes=["work"]))
        assert (await lifecycle.create(YOU, Order(routes=["work"]))).box.spec.routes == ("work",)


# How much one may keep


async def write(lifecycle: Lifecycle, caller: Caller, ref: str, content: bytes) -> None:
    async with lifecycle.open(caller, ref) as claim:
        await Files(claim.channel).write("file", content)


@asynccontextmanager
async def bounded(bench: Bench, limit: int) -> AsyncGenerator[Lifecycle, None]:
    async with serving(bench, offer=catalogue(max_own_snapshots=limit)) as lifecycle:
        yield lifecycle


async def test_saved_boxes_of_one_principal_hold_so_much_and_no_more(bench: Bench):
    async with bounded(bench, 250) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        await lifecycle.create(YOU, Order("theirs"))
        await write(lifecycle, ME, "it", b"x" * 100)
        await write(lifecycle, YOU, "theirs", b"x" * 200)
        await lifecycle.snapshot(YOU, "state", "theirs")
        await lifecycle.snapshot(ME, "first", "it")
        await lifecycle.snapshot(ME, "second", "it")
        for request in (
            lambda: lifecycle.snapshot(ME, "third", "it"),
            lambda: lifecycle.fork(ME, "it", 1),
        ):
            with pytest.raises(SnapshotsFull, match="for each caller is reached") as caught:
                await request()
            assert (caught.value.held, caught.value.more) == (200, 100)
            assert caught.value.named == (("first", 100), ("second", 100))
        await lifecycle.delete_snapshot(ME, "first")
        await lifecycle.snapshot(ME, "third", "it")
        assert len(await lifecycle.list(ME)) == 1


async def test_what_forks_need_counts_as_well(bench: Bench):
    async with bounded(bench, 150) as lifecycle:
        await lifecycle.create(ME, Order("it"))
        await write(lifecycle, ME, "it", b"x" * 100)
        (fork,) = await lifecycle.fork(ME, "it", 1)
        with pytest.raises(SnapshotsFull) as caught:
            await lifecycle.snapshot(ME, "state", "it")
        assert "forks and boxes of deleted snapshots still need" in caught.value.explain()
        await lifecycle.delete(ME, fork.box.id)
        await lifecycle.snapshot(ME, "state", "it")


class SlowlySaving(FakeEngine):
    """Others get far meanwhile."""

    async def save(self, box: BoxId, tag: str | None, labels: Mapping[str, str]) -> Saved:
        await quiet()
        return await super().save(box, tag, labels)


async def test_copies_that_are_made_at_once_are_counted_one_by_one(tmp_path: Path):
    bench = Bench(tmp_path, SlowlySaving())
    async with bounded(bench, 250) as one, bounded(bench, 250) as two:
        refused: list[SnapshotsFull] = []

        async def save(lifecycle: Lifecycle, box: str) -> None:
            try:
                await lifecycle.snapshot(ME, f"of-{box}", box)
            except SnapshotsFull as error:
                refused.append(error)

        for number in range(4):
            await one.create(ME, Order(f"it{number}"))
            await write(one, ME, f"it{number}", b"x" * 100)
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(save, (one, two)[number % 2], f"it{number}")
        assert len(refused) == 2
        assert sum(saved.added for _, saved in await one.snapshots(ME)) == 200
    bench.close()


def test_a_refusal_names_what_there_is_and_what_can_go():
    named = [(f"s{number}", (20 - number) * GIB) for number in range(12)]
    held = sum(size for _, size in named) + GIB // 2
    told = SnapshotsFull(50 * GIB, held, 3 * GIB, named).explain()
    assert told == (
        "The limit of 50 GiB for saved boxes for each caller is reached: yours hold 174 GiB, and "
        "this one would add 3 GiB. There are: s0 20 GiB, s1 19 GiB, s2 18 GiB, s3 17 GiB, s4 16 "
        "GiB, s5 15 GiB, s6 14 GiB, s7 13 GiB, s8 12 GiB, s9 11 GiB, 2 more, 0.5 GiB that forks "
        "and boxes of deleted snapshots still need. Delete some (`snapshot_delete`), or ask "
        "whoever runs box_mcp for more `max_own_snapshots`."
    )
    assert "There are" not in SnapshotsFull(GIB, 0, 2 * GIB).explain()


async def test_conversations_that_come_and_go_leave_nothing_in_memory(bench: Bench):
    only_reads = [Caller(ME.principal, f"talk {number}", only_reads=True) for number in range(50)]
    async with serving(bench) as lifecycle:
        for caller in only_reads:
            with pytest.raises(UsageError):
                await opened_by(lifecycle, caller)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(opened_by, lifecycle, ME)
        assert lifecycle._making == {}
        assert list(lifecycle._own) == [ME]
        for number in range(MAX_REMEMBERED + 10):
            lifecycle._remember(Caller(ME.principal, str(number)), UNKNOWN)
        assert len(lifecycle._own) == MAX_REMEMBERED


async def opened_by(lifecycle: Lifecycle, caller: Caller) -> None:
    async with lifecycle.open(caller, None):
        pass


# A million guesses


class Inline(Database):
    """Whoever asks it does so in his own thread."""

    async def run(self, function: Callable[[], T]) -> T:
        return self.run_here(function)


@dataclass
class House:
    """What several principals have, and how each of them asks for what."""

    lifecycle: Lifecycle
    agents: Agents
    store: Store
    sites: Sites
    handles: dict[str, dict[Principal, set[str]]]

    async def box(self, who: Principal, guess: str) -> bool:
        return await self.lifecycle.find(Caller(who, "guess"), guess) in self.handles["box"][who]

    async def name(self, who: Principal, guess: str) -> bool:
        return await self.box(who, guess)

    async def task(self, who: Principal, guess: str) -> bool:
        return await self.box(who, TaskId.parse(guess).box)

    async def run(self, who: Principal, guess: str) -> bool:
        return (await self.agents.find(who, guess)).principal == who

    async def snapshot(self, who: Principal, guess: str) -> bool:
        snapshot, _ = await self.lifecycle._snapshot(Caller(who, "guess"), guess)
        return snapshot.principal == who

    async def session(self, who: Principal, guess: str) -> bool:
        found = await self.store.own_box(who, guess)
        return found is None or found in self.handles["box"][who]

    async def port(self, who: Principal, guess: str) -> bool:
        site = self.sites.owned(guess, Grant(who))
        return site is None or site.principal == who


MANY = {
    "box": 150_000,
    "name": 30_000,
    "task": 100_000,
    "run": 150_000,
    "session": 250_000,
    "port": 316_000,
    "snapshot": 4_000,
}
"""Guesses of each kind: a million."""

WHO = [Principal(who) for who in ("me", "you", "Me", "me@example.com", "me:you", "m")]
ODD = [*string.printable, "\0", "%", "_", "*", "é", "\ufb01", "\u202e", "\uff10"]


@asynccontextmanager
async def house(path: Path) -> AsyncGenerator[House, None]:
    """Everybody has two boxes, of which one has a name that all others use, too."""
    handles: dict[str, dict[Principal, set[str]]] = {
        kind: {who: set() for who in WHO} for kind in MANY
    }
    store, engine = Store(path / "state.db"), FakeEngine()
    store.file = Inline(path / "state.db", STORE_MIGRATIONS)
    ledger, sites = Ledger(path / "runs.db"), Sites(Domain("http", "localhost", 80))
    ledger._file = Inline(path / "runs.db", LEDGER_MIGRATIONS)
    agents = Agents(ledger, cast("Any", None), {}, Usual("none", 1.0), cast("Any", None))
    async with Pool(engine, store, path, Policy(), clock=FakeClock()).open() as pool:
        lifecycle = Lifecycle(pool, store, engine, Catalogue(SPEC, {}))
        for number, who in enumerate(WHO):
            caller = Caller(who, f"talk-{number}")
            own = (await lifecycle.create(caller, Order(f"name-{number}"))).box.id
            shared = (await lifecycle.create(caller, Order("it"))).box.id
            await store.set_own_box(who, caller.conversation, own)
            run = Run(mint_run_id(), who, own, "key", "claude_code", began=1.0)
            await ledger.add(run)
            for name in ("state", f"state-{number}"):
                await lifecycle.snapshot(caller, name, own)
                handles["snapshot"][who].add(name)
            sites.expose(cast("Any", None), own, 8000, who)
            handles["box"][who] |= {own, shared}
            handles["name"][who] |= {"it", f"name-{number}"}
            handles["task"][who] |= {
                str(TaskId(box, "p1", 1_800_000_000, View(12_000))) for box in (own, shared)
            }
            handles["run"][who].add(run.id)
            handles["session"][who].add(caller.conversation)
            handles["port"][who].add(label_of(own, 8000))
        yield House(lifecycle, agents, store, sites, handles)
    store.file.disconnect()
    ledger._file.disconnect()


FRESH = {
    "box": "box-{}",
    "name": "name-{}",
    "task": "box-{}.p1.1800000000.12000",
    "run": "run-{}",
    "session": "talk-{}",
    "port": "box-{}-8000",
    "snapshot": "state-{}",
}
"""Handles of the right form."""
LETTERS = string.ascii_lowercase + string.digits


def guess(luck: random.Random, real: Sequence[str], form: str) -> str:
    """A handle that somebody has, or nearly so, or one of the right form."""
    way = luck.random()
    if way < 0.7:
        return form.format("".join(luck.choices(LETTERS, k=8)))
    known = luck.choice(real)
    if way < 0.8:
        return known
    place = luck.randrange(len(known))
    if way < 0.9:
        return known[:place] + luck.choice(ODD) + known[place + 1 :]
    return luck.choice([known.upper(), known[:place], known * 2, f"{known} ", f" {known}", ""])


@pytest.mark.parametrize("kind", MANY)
async def test_no_guess_of_many_ever_is_another_principals(kind: str, tmp_path: Path):
    luck = random.Random(seed := random.randrange(2**32))
    async with house(tmp_path) as home:
        tried = getattr(home, kind)
        real = sorted({handle for known in home.handles[kind].values() for handle in known})
        met = 0
        for _ in range(MANY[kind]):
            who, asked = luck.choice(WHO), guess(luck, real, FRESH[kind])
            try:
                assert await tried(who, asked), (seed, who, asked)
                met += asked in home.handles[kind][who]
            except (UsageError, MCPError):
                assert asked not in home.handles[kind][who], (seed, who, asked)
        assert met, "not even one's own was found"


def test_a_million_guesses_are_made():
    assert sum(MANY.values()) == 1_000_000
