"""What boxes there are, what they hold, and what nobody needs any more; for the command line.

`take_stock` reads store, records, tickets and engine, and changes nothing: servers may run beside
it. What it tells of left-overs is looked at again by `clean`, with their tickets taken.

    container, network, volume   its box has no record, and no server holds its ticket
    image                        a fork's, or a deleted snapshot's, that no box needs
    record                       of a box whose container is gone, or that was deleted
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from anyio import to_thread

from box_mcp.domain.box import Box, State
from box_mcp.domain.names import BoxId
from box_mcp.domain.plan import BoxView, Policy, next_step
from box_mcp.domain.snapshots import Snapshot, read_labels
from box_mcp.engines.base import Condition
from box_mcp.engines.holdings import Cleaner, Container, Holdings, Image, cleaner, holdings
from box_mcp.errors import BoxError, EngineError, StoreUnusable
from box_mcp.records import Records
from box_mcp.store import Store
from box_mcp.tickets import UNNAMED, Ticket, Tickets
from box_mcp.worker import STATES

GONE = "its container is gone"


class Kind(StrEnum):
    """What a left-over is; in the order in which those of one box have to go."""

    CONTAINER = "container"
    NETWORK = "network"
    VOLUME = "volume"
    RECORD = "record"
    IMAGE = "image"


@dataclass(frozen=True)
class Place:
    """Where servers that share boxes meet: their directory, and the mark of what is theirs."""

    directory: Path
    owner: str
    policy: Policy

    @property
    def store(self) -> Path:
        """The state file."""
        return self.directory / "state.db"


@dataclass(frozen=True)
class Held:
    """A box and what it holds, in bytes; None for what can't be told.

    `next` says what will become of it, at `next_at` where that is known.
    """

    box: Box
    memory: int | None
    disk: int | None
    in_use: bool
    next: str
    next_at: float | None = None


@dataclass(frozen=True)
class HeldImage:
    """A box saved to an image; `size` is all of it, `added` what it alone holds."""

    snapshot: Snapshot
    size: int
    added: int
    users: int


@dataclass(frozen=True)
class Leftover:
    """Something that nobody needs. `key` is what the engine calls it."""

    kind: Kind
    name: str
    why: str
    key: str
    box: BoxId | None = None
    memory: int | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Inventory:
    """All there is in one place. `troubles` are what kept it from being complete.

    `strangers` counts the boxes of each other owner on the same engine.
    """

    boxes: Sequence[Held] = ()
    images: Sequence[HeldImage] = ()
    leftovers: Sequence[Leftover] = ()
    strangers: Mapping[str, int] = field(default_factory=dict[str, int])
    servers: int = 0
    troubles: Sequence[BoxError] = ()
    notes: Sequence[str] = ()


async def take_stock(place: Place) -> Inventory:
    """Looks at everything. What fails is told in `troubles`, and the rest all the same."""
    began = time.time()
    troubles: list[BoxError] = []
    held: Holdings | None = None
    try:
        held = await to_thread.run_sync(holdings, place.owner)
    except EngineError as error:
        troubles.append(error)
    stored: list[Box] | None = None
    notes: tuple[str, ...] = ()
    try:
        stored, notes = await _remembered(place)
    except StoreUnusable as error:
        troubles.append(error)
    look = _Look(place, stored, held, began)
    return Inventory(
        boxes=list(look.boxes()),
        images=list(look.images()),
        leftovers=list(look.leftovers()),
        strangers=held.strangers if held is not None else {},
        servers=look.servers,
        troubles=troubles,
        notes=(*notes, *look.notes()),
    )


async def clean(place: Place, leftovers: Iterable[Leftover]) -> AsyncGenerator[str, None]:
    """Removes each; yields for each, in their order, why not, or nothing.

    Raises StoreUnusable and the engine's errors.
    """
    store = Store(place.store)
    try:
        with cleaner(place.owner) as engine:
            sweep = _Sweep(place, store, engine)
            for leftover in leftovers:
                yield await sweep.remove(leftover)
    finally:
        await store.aclose()


async def _remembered(place: Place) -> tuple[list[Box], tuple[str, ...]]:
    """Every box that is known, and from where, if that is worth a word; nothing is made for it."""
    if not place.store.exists():
        records = await to_thread.run_sync(Records(place.directory / "records").read_all)
        if not records:
            return [], ()
        lost = f"The state file {place.store} is gone: boxes are shown from their records"
        return [one.box for one in records], (f"{lost}. The next server makes it anew.",)
    store = Store(place.store)
    try:
        return await store.boxes(), ()
    finally:
        await store.aclose()


def outlook(box: Box, policy: Policy, now: float, *, attended: bool) -> tuple[str, float | None]:
    """What will become of a box that no call uses, and when, if that is known.

    A box that is not `attended` by any server is left to itself.
    """
    if box.state is State.LOST:
        return box.reason, None
    if not attended and box.state in _UNATTENDED:
        return _UNATTENDED[box.state], None
    if box.principal is None:
        return "waits for a caller", None
    step = next_step(_view(box), policy)
    if step is None:
        return "kept awake" if box.terms.keep_awake else "stays", None
    due, act = step
    if due > now:
        return act.value, due
    late = "when its commands end" if box.state is State.RUNNING else "soon"
    return f"{act} {late if attended else 'by the next server'}", None


class _Look:
    """Store and engine laid side by side; None for the one that does not answer."""

    def __init__(
        self, place: Place, stored: list[Box] | None, held: Holdings | None, began: float
    ) -> None:
        self._place = place
        self._began = began
        self._held = held
        self._stored = {box.id: box for box in stored or ()}
        self._remembers = stored is not None
        self._containers = {one.box: one for one in held.containers} if held is not None else {}
        self._now = time.time()
        self.servers = sum(map(_is_taken, (place.directory / "servers").glob("*.lock")))

    def boxes(self) -> Iterator[Held]:
        """Every box that is known, as the engine has it, oldest first."""
        for box in sorted(self._stored.values(), key=lambda box: box.created):
            container = self._containers.get(box.id)
            yield self._told(self._as_found(box, container), container)

    def images(self) -> Iterator[HeldImage]:
        """Every saved image that is of use, oldest first."""
        found = [(image, _described(image)) for image in self._saved() if not self._useless(image)]
        known = [(image, snapshot) for image, snapshot in found if snapshot is not None]
        for image, snapshot in sorted(known, key=lambda one: one[1].created):
            shown = snapshot if image.named else replace(snapshot, name=None)
            yield HeldImage(shown, image.size, image.added, image.users)

    def leftovers(self) -> Iterator[Leftover]:
        """What nobody needs, those of one box together; nothing where that can't be told."""
        if self._held is None or not self._remembers:
            return
        things = [*self._nobodys(self._held), *self._records()]
        order = list(Kind)
        yield from sorted(things, key=lambda one: (one.box or "", order.index(one.kind)))
        for image in filter(self._useless, self._held.images):
            why = "no box that was made of it is left"
            yield Leftover(Kind.IMAGE, _short(image.key), why, image.key, None, None, image.added)

    def notes(self) -> Iterator[str]:
        """What should be known before anything is believed lost."""
        if self._strange_engine():
            yield (
                "This engine has none of the boxes that are remembered here. Are they on another "
                "one (DOCKER_HOST)? Their records are kept."
            )
        elif self._containers and self._remembers and not self._stored:
            yield (
                f"There is no record of any box in {self._place.directory}: "
                "all that bear its mark count as nobody's."
            )

    def _as_found(self, box: Box, container: Container | None) -> Box:
        """The box in the state that the engine has it in."""
        if self._held is None or box.state is State.LOST or box.since > self._began:
            return box
        found = Condition.ABSENT if container is None else container.condition
        if box.state is State.CREATED and found in (Condition.ABSENT, Condition.CREATED):
            return box
        state = STATES[found]
        if state is box.state:
            return box
        return replace(box, state=state, since=0.0, reason=container.status if container else GONE)

    def _told(self, box: Box, container: Container | None) -> Held:
        path = self._ticket(box.id)
        in_use = _is_taken(path)
        box = box.touched(_last_use(path))
        coming, at = ("in use", None) if in_use else self._outlook(box)
        known = self._held is not None
        memory = container.memory if container is not None else 0
        disk = container.disk if container is not None else 0
        return Held(box, memory if known else None, disk if known else None, in_use, coming, at)

    def _outlook(self, box: Box) -> tuple[str, float | None]:
        return outlook(box, self._place.policy, self._now, attended=self.servers > 0)

    def _nobodys(self, held: Holdings) -> Iterator[Leftover]:
        for one in held.containers:
            if self._is_nobodys(one.box):
                why = f"nobody's, {one.status.lower()}"
                sizes = one.memory, one.disk
                yield Leftover(Kind.CONTAINER, one.box, why, one.key, one.box, *sizes)
        why = "its box is no more"
        for one in held.networks:
            if self._is_nobodys(one.box):
                yield Leftover(Kind.NETWORK, f"{one.box}-net", why, one.key, one.box)
        for one in held.volumes:
            if self._is_nobodys(one.box):
                yield Leftover(Kind.VOLUME, one.key, why, one.key, one.box)

    def _is_nobodys(self, box: BoxId) -> bool:
        return box not in self._stored and not _is_taken(self._ticket(box))

    def _records(self) -> Iterator[Leftover]:
        for held in self.boxes():
            box = held.box
            lost = box.state is State.LOST and box.id not in self._containers
            sure = self._stored[box.id].state is State.LOST or not self._strange_engine()
            if lost and sure and not held.in_use:
                yield Leftover(Kind.RECORD, box.id, f"lost: {box.reason}", "", box.id)
        for record in Records(self._place.directory / "records").read_all():
            box = record.box
            if self._is_nobodys(box.id):
                yield Leftover(Kind.RECORD, box.id, "its box was deleted", "", box.id)

    def _strange_engine(self) -> bool:
        """Whether it may be another engine than the one that the boxes were made on."""
        made = any(box.state not in (State.CREATED, State.LOST) for box in self._stored.values())
        return self._held is not None and made and not self._containers

    def _saved(self) -> Sequence[Image]:
        return self._held.images if self._held is not None else ()

    def _useless(self, image: Image) -> bool:
        """Whether no box needs it, nor will; while one is being forked, that can't be told."""
        needed = {box.spec.image for box in self._stored.values()}
        forking = _is_taken(self._place.directory / "boxes" / f"{UNNAMED}.lock")
        return not (image.named or image.users or image.key in needed or forking)

    def _ticket(self, box: BoxId) -> Path:
        return self._place.directory / "boxes" / f"{box}.lock"


_UNATTENDED = {
    State.RUNNING: "stops by itself when idle: no server runs",
    State.FROZEN: "stop by the next server",
}


class _Sweep:
    """Removes left-overs; each is looked at once more, while nobody else can touch it."""

    def __init__(self, place: Place, store: Store, engine: Cleaner) -> None:
        self._place = place
        self._store = store
        self._engine = engine
        self._tickets = Tickets(place.directory / "boxes")

    async def remove(self, leftover: Leftover) -> str:
        """Why it stays; empty when it went."""
        if leftover.box is None:
            return await self._remove_image(leftover)
        async with self._alone(leftover.box) as alone:
            if not alone:
                return "a server holds it"
            box = await self._store.box(leftover.box)
            if leftover.kind is Kind.RECORD:
                return await self._remove_record(leftover.box, box)
            if box is not None:
                return "there is a record of its box now"
            return await to_thread.run_sync(self._remove_thing, leftover, leftover.box)

    def _remove_thing(self, leftover: Leftover, box: BoxId) -> str:
        match leftover.kind:
            case Kind.CONTAINER:
                servers = any(map(_is_taken, (self._place.directory / "servers").glob("*.lock")))
                return self._engine.container(box, leftover.key, servers=servers)
            case Kind.NETWORK:
                return self._engine.network(box)
            case _:
                return self._engine.volume(leftover.key)

    async def _remove_record(self, box: BoxId, stored: Box | None) -> str:
        if stored is not None and stored.state is State.CREATED:
            return "it is being made"
        if why_not := await to_thread.run_sync(self._engine.network, box):
            return why_not
        await self._store.remove(box)
        return ""

    async def _remove_image(self, leftover: Leftover) -> str:
        async with self._alone(UNNAMED) as alone:
            if not alone:
                return "a box is being forked"
            if any(box.spec.image == leftover.key for box in await self._store.boxes()):
                return "a box needs it"
            return await to_thread.run_sync(self._engine.image, leftover.key)

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncGenerator[bool, None]:
        ticket = self._tickets.ticket(name)
        alone = ticket.take()
        try:
            yield alone
        finally:
            if alone:
                ticket.discard()
            else:
                ticket.close()


def _view(box: Box) -> BoxView:
    """The box as a server sees it that is connected to it, and in which nothing runs."""
    return BoxView(
        id=box.id,
        state=box.state,
        used=box.used,
        since=box.since,
        principal=box.principal,
        connected=True,
        ttl=box.terms.ttl,
        keep_awake=box.terms.keep_awake,
    )


def _is_taken(path: Path) -> bool:
    """Whether some process holds or shares this ticket; none is made for the look."""
    if not path.exists():
        return False
    ticket = Ticket(path)
    try:
        return not ticket.take()
    finally:
        ticket.close()


def _last_use(path: Path) -> float:
    if not path.exists():
        return 0.0
    ticket = Ticket(path)
    try:
        return ticket.used()
    finally:
        ticket.close()


def _described(image: Image) -> Snapshot | None:
    try:
        return read_labels(image.labels)
    except ValueError:
        return None


def _short(key: str) -> str:
    return key.removeprefix("sha256:")[:12]
