"""What a user may ask of boxes: make, find, list, pause, resume, save, fork, delete.

Whose they are counts: every method knows only the caller's own.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256

import anyio

from box_mcp.domain.box import Box, BoxSpec, State
from box_mcp.domain.catalogue import Catalogue, Order, about_env
from box_mcp.domain.names import BoxId, BoxName, Principal, is_id, parse_name
from box_mcp.domain.network import Network
from box_mcp.domain.plan import Act
from box_mcp.domain.snapshots import Snapshot, read_labels
from box_mcp.engines.base import Change, Condition, Engine, Saved, Usage
from box_mcp.errors import (
    BeyondCeiling,
    BoxError,
    BoxLost,
    BoxNotFound,
    DiskFull,
    EngineError,
    EngineRefused,
    ImageMissing,
    InvalidArgument,
    InvalidName,
    NameTaken,
    NoBoxYet,
    SnapshotNotFound,
    SnapshotsFull,
    first_error,
)
from box_mcp.pool import Pool
from box_mcp.slots import Claim, Save
from box_mcp.store import Store

MAX_FORKS = 20  # boxes made by one call
MAX_REMEMBERED = 10_000  # conversations whose own box is known without a look into the store


@dataclass(frozen=True)
class Caller:
    """Who is calling, and in which conversation; see docs/architecture.md.

    `only_reads`: no box is made for it.
    """

    principal: Principal
    conversation: str
    only_reads: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Report:
    """A box, its present and its near future; times in seconds since the epoch."""

    box: Box
    busy: bool
    next_act: Act | None
    next_at: float | None
    notes: tuple[str, ...] = ()


class Lifecycle:
    """The users' side of the pool. `catalogue` is what they may ask for."""

    def __init__(self, pool: Pool, store: Store, engine: Engine, catalogue: Catalogue) -> None:
        self._pool = pool
        self._store = store
        self._engine = engine
        self.catalogue = catalogue
        self._own: OrderedDict[Caller, BoxId] = OrderedDict()
        self._making: dict[Caller, anyio.Lock] = {}

    async def create(self, caller: Caller, order: Order) -> Report:
        """A new running box; or, with `reuse`, the caller's box of that name, woken.

        Raises InvalidName, NameTaken, LimitReached, InvalidArgument, BeyondCeiling,
        SnapshotNotFound, DiskFull and what `Pool.claim` raises; a box that can't start leaves
        nothing behind.
        """
        name = parse_name(order.name) if order.name else None
        if order.reuse and name is not None:
            with suppress(BoxNotFound):
                return await self._reused(await self._pool.named(name, caller.principal), caller)
        notes = about_env(order.env)
        spec = await self._spec(caller, order)
        await self._refuse_full_disk()
        try:
            box = await self._pool.create(caller.principal, name, spec, order.terms)
        except NameTaken as error:
            if order.reuse and is_id(error.holder):  # made a moment ago by somebody else
                return await self._reused(BoxId(error.holder), caller)
            raise
        try:
            await self._pool.wake(box.id, caller.principal)
        except BoxError:
            with suppress(BoxError):
                await self._pool.withdraw(box.id, caller.principal)
            raise
        return replace(await self._report(box.id, caller), notes=notes)

    async def let_go(self) -> None:
        """Ends all calls, without what they run in boxes, and takes no more."""
        await self._pool.let_go()

    @asynccontextmanager
    async def open(self, caller: Caller, ref: str | None) -> AsyncGenerator[Claim, None]:
        """Holds the box that `ref` names, or the conversation's own, made when there is none."""
        if ref is not None:
            box, news = await self.find(caller, ref), ""
        else:
            box, news = await self._own_box(caller)
        async with self._pool.claim(box, caller.principal) as claim:
            yield replace(claim, news="\n".join(filter(None, (news, claim.news))))

    @asynccontextmanager
    async def look_into(self, caller: Caller, ref: str) -> AsyncGenerator[Claim, None]:
        """As `open`, for who has no words for the news of the box: the next call will hear it."""
        box = await self.find(caller, ref)
        async with self._pool.quiet_claim(box, caller.principal) as claim:
            yield claim

    async def find(self, caller: Caller, ref: str) -> BoxId:
        """The id that `ref`, an id or a name, means to this caller; raises BoxNotFound."""
        if is_id(ref):
            return (await self._pool.box(BoxId(ref), caller.principal)).id
        try:
            name = parse_name(ref)
        except InvalidName:
            raise BoxNotFound(ref) from None
        return await self._pool.named(name, caller.principal)

    async def meant(self, caller: Caller, ref: str | None) -> BoxId:
        """As `find`; without `ref` the conversation's own box. Raises NoBoxYet."""
        if ref is not None:
            return await self.find(caller, ref)
        own = await self._known_own_box(caller)
        if own is None:
            raise NoBoxYet(only_reads=caller.only_reads)
        return own

    async def list(self, caller: Caller) -> list[Report]:
        """All boxes of the caller, oldest first, as the engine has them."""
        notes = await self._looked(caller)
        boxes = await self._pool.boxes(caller.principal)
        return [replace(self._reported(box), notes=notes) for box in boxes]

    async def known(self, caller: Caller) -> Sequence[Box]:
        """As `list`, without asking the engine."""
        return await self._pool.boxes(caller.principal)

    async def info(self, caller: Caller, ref: str | None) -> Report:
        """One box, which is not woken for it."""
        box = await self.meant(caller, ref)
        notes = await self._looked(caller, box)
        report = self._reported(await self._pool.box(box, caller.principal, fresh=True))
        return replace(report, notes=notes)

    async def pause(self, caller: Caller, ref: str | None, act: Act) -> Report:
        """Freezes or stops a box; raises IllegalMove for one in use, or a stopped one to freeze."""
        box = await self._pool.act(await self.meant(caller, ref), caller.principal, act)
        return self._reported(box)

    async def resume(self, caller: Caller, ref: str | None) -> Report:
        """Wakes a box; one that runs is left as it is."""
        box = await self.meant(caller, ref)
        await self._pool.wake(box, caller.principal)
        return await self._report(box, caller)

    async def set_network(
        self, caller: Caller, ref: str | None, network: Network, *, approved: bool = False
    ) -> Report:
        """Lets a box reach more or less, at once, whether it runs or not.

        Raises BeyondCeiling unless the person approved, and what `Pool.set_network` raises.
        """
        box = await self._pool.box(await self.meant(caller, ref), caller.principal, fresh=True)
        if not approved and (beyond := self.beyond(network, box.network)):
            raise BeyondCeiling(beyond)
        await self._pool.set_network(box.id, caller.principal, network)
        return await self._report(box.id, caller)

    def beyond(self, network: Network, now: Network) -> list[str]:
        """What is wider in `network` than both the ceiling and what a box may reach `now`."""
        more = network.beyond(now)
        return [one for one in network.beyond(self.catalogue.ceiling.network) if one in more]

    async def delete(self, caller: Caller, ref: str) -> Box:
        """Deletes a box with its files, whatever runs in it."""
        return await self._pool.act(await self.find(caller, ref), caller.principal, Act.DELETE)

    async def usage(self, caller: Caller, ref: str | None) -> Usage:
        """What a box holds right now."""
        box = await self._pool.box(await self.meant(caller, ref), caller.principal)
        if box.state in (State.CREATED, State.LOST):
            return Usage(0, None)
        async with self._still_there(box.id):
            return await self._engine.usage(box.id)

    async def changes(self, caller: Caller, ref: str | None) -> Sequence[Change]:
        """The paths that were added, changed and deleted since the box was made."""
        box = await self.meant(caller, ref)
        await self._pool.reconcile(caller.principal, box)
        known = await self._pool.box(box, caller.principal)
        if known.state is State.LOST:
            raise BoxLost(box, known.reason)
        async with self._still_there(box):
            return await self._engine.changes(box)

    @asynccontextmanager
    async def _still_there(self, box: BoxId) -> AsyncGenerator[None, None]:
        """Raises BoxNotFound in place of a refusal of what another server is deleting."""
        try:
            yield
        except EngineRefused:
            if (await self._engine.inspect(box)).condition is Condition.ABSENT:
                raise BoxNotFound(box) from None
            raise

    async def snapshot(self, caller: Caller, name: str, ref: str | None) -> tuple[Snapshot, Saved]:
        """Saves a box under a name that the caller has not used for another snapshot."""
        parsed = parse_name(name)
        box = await self._pool.box(await self.meant(caller, ref), caller.principal)
        snapshot = Snapshot(caller.principal, parsed, box.id, _present(box), time.time())

        async def check() -> None:
            if await self._snapshot_named(caller, parsed) is not None:
                raise NameTaken(parsed, "a snapshot")
            await self._refuse_saving(caller, box.id)

        save = Save(snapshot.tag, snapshot.labels(), check, self._account(caller))
        return snapshot, await self._pool.save(box.id, caller.principal, save)

    async def snapshots(self, caller: Caller) -> list[tuple[Snapshot, Saved]]:
        """The caller's snapshots, oldest first."""
        return [one for one in await self._copies(caller) if is_named(one[1].image)]

    async def _copies(self, caller: Caller) -> list[tuple[Snapshot, Saved]]:
        """All that boxes of the caller's were saved to and that is still there, oldest first."""
        known = [(_described(saved.labels), saved) for saved in await self._engine.saved()]
        own = [
            (snapshot, saved)
            for snapshot, saved in known
            if snapshot is not None and snapshot.principal == caller.principal
        ]
        return sorted(own, key=lambda one: one[0].created)

    async def delete_snapshot(self, caller: Caller, name: str) -> Snapshot:
        """Deletes a snapshot; boxes made from it go on. Raises SnapshotNotFound."""
        snapshot, saved = await self._snapshot(caller, name)
        await self._engine.drop(saved.image)
        return snapshot

    async def fork(self, caller: Caller, ref: str | None, count: int) -> list[Report]:
        """So many new running boxes with the files and settings of one, made side by side.

        The copy that they are made from goes with the last of them.
        """
        if not 1 <= count <= MAX_FORKS:
            raise InvalidArgument("count", f"is not between 1 and {MAX_FORKS}")
        box = await self._pool.box(await self.meant(caller, ref), caller.principal)
        async with self._pool.tickets.sharing_images():
            return await self._fork(caller, box, count)

    async def _fork(self, caller: Caller, box: Box, count: int) -> list[Report]:
        spec = self.catalogue.contained(_present(box))
        snapshot = Snapshot(caller.principal, None, box.id, spec, time.time())
        check = partial(self._refuse_saving, caller, box.id)
        save = Save(None, snapshot.labels(), check, self._account(caller))
        saved = await self._pool.save(box.id, caller.principal, save)
        spec = replace(spec, image=saved.image, setup="")
        awake = box.terms.keep_awake and self.catalogue.ceiling.keep_awake
        terms = replace(box.terms, network=None, keep_awake=awake)
        made: list[Box] = []

        async def make() -> None:
            fork = await self._pool.create(caller.principal, None, spec, terms)
            made.append(fork)
            await self._pool.wake(fork.id, caller.principal)

        try:
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(make)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._undo_fork(caller, made, saved)
            if isinstance(error, BaseExceptionGroup):
                raise first_error(error) from None  # pyright: ignore[reportUnknownArgumentType]
            raise
        return [await self._report(fork.id, caller) for fork in made]

    async def _looked(self, caller: Caller, box: BoxId | None = None) -> tuple[str, ...]:
        """Asks the engine; and notes on how far what is told of the boxes can be relied on."""
        try:
            await self._pool.reconcile(caller.principal, box)
        except EngineError as error:
            return (f"as last known: {error}",)
        return ()

    async def _own_box(self, caller: Caller) -> tuple[BoxId, str]:
        """The conversation's own box, made if need be; and news of it when it was."""
        async with self._alone(caller):
            if (own := await self._known_own_box(caller)) is not None:
                return own, ""
            if caller.only_reads:
                raise NoBoxYet(only_reads=True)
            with anyio.CancelScope(shield=True):  # no box without a conversation that knows it
                await self._make_own_box(caller)
            own = self._own[caller]
            return own, f"[made the box {own} for this session; calls without `box` use it]"

    @asynccontextmanager
    async def _alone(self, caller: Caller) -> AsyncGenerator[None]:
        """One call of a conversation at a time."""
        lock = self._making.setdefault(caller, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():  # nobody waits for it
                self._making.pop(caller, None)

    def _remember(self, caller: Caller, box: BoxId) -> None:
        self._own.pop(caller, None)
        self._own[caller] = box
        if len(self._own) > MAX_REMEMBERED:
            self._own.popitem(last=False)

    async def _make_own_box(self, caller: Caller) -> None:
        box = await self._pool.create(caller.principal, None, self.catalogue.default)
        self._remember(caller, box.id)
        await self._store.set_own_box(caller.principal, caller.conversation, box.id)

    async def _known_own_box(self, caller: Caller) -> BoxId | None:
        """The conversation's own box, unless it is lost or deleted."""
        if (own := self._own.get(caller)) is not None and await self._usable(own, caller):
            return own
        own = await self._store.own_box(caller.principal, caller.conversation)
        if own is None or not await self._usable(own, caller):
            self._own.pop(caller, None)
            return None
        self._remember(caller, own)
        return own

    async def _usable(self, box: BoxId, caller: Caller) -> bool:
        try:
            return (await self._pool.box(box, caller.principal)).state is not State.LOST
        except BoxNotFound:
            return False

    async def _report(self, box: BoxId, caller: Caller) -> Report:
        return self._reported(await self._pool.box(box, caller.principal))

    def _reported(self, box: Box) -> Report:
        busy, step = self._pool.outlook(box)
        return Report(box, busy, step[1] if step else None, step[0] if step else None)

    async def _reused(self, box: BoxId, caller: Caller) -> Report:
        await self._pool.wake(box, caller.principal)
        report = await self._report(box, caller)
        return replace(report, notes=(f"{box} was there already under this name: reused",))

    async def _undo_fork(self, caller: Caller, made: Sequence[Box], saved: Saved) -> None:
        for fork in made:
            with suppress(BoxError):
                await self._pool.withdraw(fork.id, caller.principal)
        with suppress(BoxError):
            await self._engine.drop(saved.image)

    def _account(self, caller: Caller) -> str | None:
        """What `Save` calls whoever's copies are counted: else each would see room for itself."""
        if self.catalogue.max_own_snapshots is None:
            return None
        return sha256(caller.principal.encode()).hexdigest()[:32]

    async def _refuse_saving(self, caller: Caller, box: BoxId) -> None:
        """Raises DiskFull, and SnapshotsFull where another copy would be too much."""
        await self._refuse_full_disk()
        limit = self.catalogue.max_own_snapshots
        if limit is None:
            return
        copies = await self._copies(caller)
        held = sum(saved.added for _, saved in copies)
        more = (await self._engine.usage(box)).disk or 0
        if held + more > limit:
            named = [
                (snapshot.name or "", saved.added)
                for snapshot, saved in copies
                if is_named(saved.image)
            ]
            named.sort(key=lambda one: -one[1])
            raise SnapshotsFull(limit, held, more, named)

    async def _refuse_full_disk(self) -> None:
        if not self.catalogue.min_free_disk:
            return
        free = await self._engine.free_disk()
        if free is not None and free < self.catalogue.min_free_disk:
            raise DiskFull(free, self.catalogue.min_free_disk)

    async def _snapshot(self, caller: Caller, name: str) -> tuple[Snapshot, Saved]:
        try:
            parsed = parse_name(name)
        except InvalidName:
            raise SnapshotNotFound(name) from None
        found = await self._snapshot_named(caller, parsed)
        if found is None:
            raise SnapshotNotFound(name)
        return found

    async def _snapshot_named(self, caller: Caller, name: BoxName) -> tuple[Snapshot, Saved] | None:
        named = [one for one in await self.snapshots(caller) if one[0].name == name]
        return named[0] if named else None

    async def _spec(self, caller: Caller, order: Order) -> BoxSpec:
        if order.snapshot is None:
            spec = self.catalogue.of(caller.principal).spec(order)
            if order.image:
                await self._demand_image(caller, order.image)
            return spec
        snapshot, saved = await self._snapshot(caller, order.snapshot)
        offer = self.catalogue.of(caller.principal)
        return offer.spec(order, replace(snapshot.spec, image=saved.image, setup=""))

    async def _demand_image(self, caller: Caller, image: str) -> None:
        """Raises ImageMissing where there is none, or it is somebody else's box that was saved."""
        labels = await self._engine.labels(image)
        if labels is None:
            return
        saved = _described(labels)
        if saved is None or saved.principal != caller.principal:
            raise ImageMissing(image)


def is_named(image: str) -> bool:
    """Whether it is a snapshot's: others are a fork's, or deleted and needed still."""
    return not image.startswith("sha256:")


def _present(box: Box) -> BoxSpec:
    """What a box like this one is made from."""
    return replace(box.spec, network=box.network)


def _described(labels: Mapping[str, str]) -> Snapshot | None:
    try:
        return read_labels(labels)
    except ValueError:
        return None


PAUSES = {"frozen": Act.FREEZE, "stopped": Act.STOP}


def pause_act(depth: str) -> Act:
    """The act for a depth of pause; raises InvalidArgument."""
    if depth not in PAUSES:
        raise InvalidArgument("depth", f"is none of {', '.join(PAUSES)}")
    return PAUSES[depth]
