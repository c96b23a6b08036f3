"""What must be true of boxes and snapshots, told from servers' answers alone; no server in sight.

Commands append words to a file of a box, each word once in a run. A word whose command was
answered is in the file for ever; one whose command died with its server may be, or come to be. So
a box is known by the words that it must have and those that it may have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any, Literal

ORDER_LABEL = "order"
"""A label of boxes that were created: the number of the order. Forks have their origin's."""

Kind = Literal["create", "fork", "own"]


class Fate(StrEnum):
    """What was asked for a box or a snapshot, and answered."""

    WANTED = "wanted"
    DOUBTFUL = "doubtful"
    """Its making or its deletion was asked for, and never answered: it may be there or not."""
    GONE = "gone"


@dataclass(eq=False)
class Copy:
    """The words of a box at one moment, between two that are known."""

    must: AbstractSet[str] = frozenset()
    may: AbstractSet[str] = frozenset()

    def learn(self, seen: AbstractSet[str]) -> None:
        """What one box has of them, all that are made from the same copy have."""
        self.must, self.may = self.must | (seen & self.may), self.may & seen


@dataclass(eq=False)
class Box:
    """A box that somebody was told of; `copied` is what was in it from its beginning."""

    id: str
    name: str | None = None
    copied: Copy = field(default_factory=Copy)
    fate: Fate = Fate.WANTED
    deletions: int = 0
    """How many calls to delete it are under way, or were never answered."""
    written: set[str] = field(default_factory=set[str])
    asked: set[str] = field(default_factory=set[str])

    @property
    def must(self) -> AbstractSet[str]:
        """The words that it has."""
        return self.copied.must | self.written

    @property
    def may(self) -> AbstractSet[str]:
        """Those that it may have, and no others."""
        return self.copied.must | self.copied.may | self.asked


@dataclass(frozen=True)
class Glance:
    """How a box was when a call to it began."""

    box: Box
    fate: Fate
    must: AbstractSet[str]


@dataclass(eq=False)
class Snapshot:
    """A snapshot that somebody asked for; `busy` while that or its deletion is under way."""

    name: str
    copied: Copy
    fate: Fate = Fate.DOUBTFUL
    busy: bool = False
    users: int = 0
    """How many boxes are being made from it."""

    @property
    def free(self) -> bool:
        """Whether it is known what its name means, and nobody is about to change or use that."""
        return not self.busy and not self.users and self.fate is not Fate.DOUBTFUL

    @contextmanager
    def in_hand(self) -> Generator[None, None, None]:
        """For the time of a call that makes or deletes it."""
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def made(self, before: Glance) -> None:
        """It is a copy of the box made since `before`."""
        self.fate = Fate.WANTED
        self.copied.may = self.copied.may & before.box.may


@dataclass(eq=False)
class Order:
    """A call that makes boxes; `untold` of them may exist that nobody was told of."""

    number: int
    kind: Kind
    name: str | None
    copied: Copy
    untold: int
    under_way: bool = True


class Ledger:
    """All boxes and snapshots, and the `breaches` of what must be true; `tell` hears of each."""

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self._tell = tell
        self.boxes: dict[str, Box] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.orders: dict[int, Order] = {}
        self.claims = Counter[str | None]()
        """How often each name was asked for."""
        self.words: set[str] = set()
        self.own: dict[str, Box] = {}
        """Which box each conversation has, by its last answered call."""
        self.breaches: list[str] = []
        self._numbers = count(1)

    def breach(self, what: str) -> None:
        """A rule was broken."""
        self.breaches.append(what)
        self._tell(what)

    def wanted(self) -> list[Box]:
        """The boxes that must exist."""
        return [box for box in self.boxes.values() if box.fate is Fate.WANTED]

    def possible(self) -> int:
        """How many boxes may exist."""
        known = sum(box.fate is not Fate.GONE for box in self.boxes.values())
        return known + sum(order.untold for order in self.orders.values())

    # Words

    def new_word(self, box: Box) -> str:
        """A word that is about to be written to the box."""
        word = f"w{next(self._numbers):06d}"
        self.words.add(word)
        box.asked.add(word)
        return word

    def glance(self, box: Box, word: str | None = None) -> Glance:
        """The box before a call to it, which is to write `word`."""
        must = box.must if word is None else {*box.must, word}
        return Glance(box, box.fate, frozenset(must))

    def read(self, before: Glance, seen: AbstractSet[str]) -> None:
        """The call found these words in it."""
        box = before.box
        if before.fate is Fate.GONE:
            self.breach(f"{box.id} was deleted, but answers")
        if missing := before.must - seen:
            self.breach(f"{box.id} has lost {listed(missing)}")
        if strange := seen - box.may:
            self.breach(f"{box.id} has what was never written to it: {listed(strange)}")
        box.copied.learn(seen)
        box.written |= seen & box.asked

    def copy(self, before: Glance) -> Copy:
        """What a copy of the box holds that was made since."""
        return Copy(before.must, frozenset(before.box.may))

    def unknown(self) -> Copy:
        """Any words, those that are yet to be written included."""
        return Copy(may=self.words)

    # Boxes

    def order(
        self,
        kind: Kind,
        name: str | None = None,
        copied: Copy | None = None,
        boxes: int = 1,
    ) -> Order:
        """Boxes are about to be asked for."""
        order = Order(next(self._numbers), kind, name, copied or Copy(), boxes)
        self.orders[order.number] = order
        self.claims[name] += 1
        return order

    def told(self, order: Order, ids: Iterable[str]) -> list[Box]:
        """The order was answered with these new boxes."""
        self.settle(order)
        return [self._add(Box(box, order.name, order.copied)) for box in ids]

    def unanswered(self, order: Order) -> None:
        """The order's server died. What a restored box will be made from, time will tell."""
        order.under_way = False
        if order.copied.may:
            order.copied = self.unknown()

    def settle(self, order: Order) -> None:
        """No box came of the order that was not told."""
        self.orders.pop(order.number, None)

    def meet(self, facts: Mapping[str, Any]) -> Box | None:
        """The box of which a server tells; None for one that is being made.

        One that nobody was told of must have come of an order whose server died.
        """
        if (box := self.boxes.get(facts["id"])) is not None:
            return box
        origin = self._origin(facts)
        if origin is None:
            self.breach(f"{facts['id']} exists, but nobody asked for it: {dict(facts)}")
        elif origin.under_way:
            return None
        elif origin.untold:
            origin.untold -= 1
        copied = self.unknown()
        if origin is not None and origin.kind != "fork":
            copied = origin.copied
        return self._add(Box(facts["id"], facts["name"], copied))

    def listing(self, before: Before, told: Sequence[Mapping[str, Any]]) -> None:
        """A server told of all boxes; the call began at `before`."""
        there = {facts["id"] for facts in told}
        for facts in told:
            self.meet(facts)
        for box, fate in before.boxes.items():
            if fate is Fate.WANTED is box.fate and box.id not in there:
                self.breach(f"{box.id} is not listed")
            elif fate is Fate.GONE and box.id in there:
                self.breach(f"{box.id} was deleted, but is listed")
            elif fate is Fate.DOUBTFUL and box.id not in there:
                box.fate = Fate.GONE
        for facts in told:
            box = self.boxes.get(facts["id"])
            if facts["state"] == "lost" and box is not None and box.fate is Fate.WANTED:
                self.breach(f"{box.id} is lost: {facts['note']}")
        making = {order.kind for order in self.orders.values() if order.under_way}
        for order in before.dead:
            if order.kind == "create" or order.kind not in making:
                self.settle(order)

    def before(self) -> Before:
        """All of it before a call."""
        boxes = {box: box.fate for box in self.boxes.values()}
        snapshots = {one: one.fate for one in self.snapshots.values() if not one.busy}
        dead = [order for order in self.orders.values() if not order.under_way]
        return Before(boxes, snapshots, dead)

    def holder(self, name: str | None) -> Box | None:
        """The box that must have this name; None for no name, too."""
        boxes = self.wanted() if name is not None else []
        return next((box for box in boxes if box.name == name), None)

    def claimed(self, name: str | None) -> bool:
        """Whether any box may have this name."""
        boxes = any(b.name == name and b.fate is not Fate.GONE for b in self.boxes.values())
        return boxes or any(order.name == name for order in self.orders.values())

    def _origin(self, facts: Mapping[str, Any]) -> Order | None:
        if not str(facts["image"]).startswith("sha256:"):
            if (number := facts["labels"].get(ORDER_LABEL)) is not None:
                return self.orders.get(int(number))
            kind = "own"
        else:
            kind = "fork"
        orders = [order for order in self.orders.values() if order.kind == kind and order.untold]
        return max(orders, key=lambda order: order.under_way, default=None)

    def _add(self, box: Box) -> Box:
        if (other := self.holder(box.name)) is not None:
            self.breach(f"{box.id} and {other.id} have one name: {box.name}")
        if box.id in self.boxes:
            self.breach(f"{box.id} was made twice")
        return self.boxes.setdefault(box.id, box)

    def doom(self, box: Box) -> None:
        """Its deletion is about to be asked for."""
        box.fate = Fate.DOUBTFUL if box.fate is Fate.WANTED else box.fate
        box.deletions += 1

    def spare(self, box: Box) -> None:
        """Its deletion was refused."""
        box.deletions -= 1
        if box.fate is Fate.DOUBTFUL and not box.deletions:
            box.fate = Fate.WANTED

    def gone(self, box: Box) -> None:
        """It is no more."""
        box.fate = Fate.GONE

    # Snapshots

    def snapshot(self, name: str, before: Glance) -> Snapshot:
        """A copy of the box is about to be asked for."""
        copied = Copy(before.must, self.words)
        self.snapshots[name] = Snapshot(name, copied)
        return self.snapshots[name]

    def snapshot_listing(self, before: Before, names: AbstractSet[str]) -> None:
        """A server told of all snapshots; the call began at `before`."""
        for name in names - self.snapshots.keys():
            self.breach(f"the snapshot {name} exists, but nobody asked for it")
        for snapshot, fate in before.snapshots.items():
            name = snapshot.name
            if self.snapshots[name] is not snapshot or snapshot.busy:
                continue
            if fate is Fate.WANTED is snapshot.fate and name not in names:
                self.breach(f"the snapshot {name} is not listed")
            elif fate is Fate.GONE and name in names:
                self.breach(f"the snapshot {name} was deleted, but is listed")
            elif fate is Fate.DOUBTFUL and name not in names:
                snapshot.fate = Fate.GONE


@dataclass(frozen=True)
class Before:
    """The whole ledger when a call began; `dead` are orders that will never be answered."""

    boxes: Mapping[Box, Fate]
    snapshots: Mapping[Snapshot, Fate]
    dead: Sequence[Order]


def listed(words: AbstractSet[str]) -> str:
    """Some of the words."""
    some = sorted(words)[:5]
    return ", ".join(some) + (f" and {len(words) - 5} more" if len(words) > len(some) else "")
