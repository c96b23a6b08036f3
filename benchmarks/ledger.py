"""What must be true of boxes and snapshots, told from servers' answers alone; no server in sight.

Commands append words to a file of a box, each word once in a run, with numbers that grow. A word
whose command was answered is in the file for ever; one whose command died with its server may be,
or come to be. A copy of a box has the words that the box had: those that it may have are told by
its lineage, the boxes that it descends from, each with the last number at the time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

ORDER_LABEL = "order"
"""A label of boxes that were created: the number of the order. Forks have their origin's."""


class Fate(StrEnum):
    """What was asked for a box or a snapshot, and answered."""

    WANTED = "wanted"
    DOUBTFUL = "doubtful"
    """Its making or its deletion was asked for, and not answered yet: it may be there or not."""
    GONE = "gone"


@dataclass(eq=False)
class Kept:
    """A box, by its id, or a snapshot, by its name; and the words that are in it.

    It may have words of the boxes in `lineage`, up to those numbers; of any box if that is None.
    """

    key: str
    name: str | None = None
    fate: Fate = Fate.WANTED
    must: set[str] = field(default_factory=set[str])
    lineage: Mapping[str, float] | None = None
    deletions: int = 0
    """How many calls to delete it are under way, or were never answered."""
    may_come: bool = False
    """Whether the engine may still make it, though whoever asked for it died."""

    def doom(self) -> None:
        """Its deletion is about to be asked for."""
        self.fate = Fate.DOUBTFUL if self.fate is Fate.WANTED else self.fate
        self.deletions += 1

    def spare(self) -> None:
        """Its deletion was refused."""
        self.deletions -= 1
        if self.fate is Fate.DOUBTFUL and not self.deletions and not self.may_come:
            self.fate = Fate.WANTED


@dataclass
class Order:
    """A call that creates a box; `dead` when it will not be answered any more."""

    name: str | None
    dead: bool = False


class Ledger:
    """All boxes and snapshots, and the `breaches` of what must be true; `tell` hears of each."""

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self._tell = tell
        self.boxes: dict[str, Kept] = {}
        self.snapshots: dict[str, Kept] = {}
        self.own: dict[str, Kept] = {}
        """Which box each conversation has, by its last answered call."""
        self.orders: dict[int, Order] = {}
        self.making = 0
        """How many boxes are being made, beside those that are ordered."""
        self.strays = 0
        """How many of them may exist that nobody was told of, since their servers died."""
        self.claims = Counter[str | None]()
        """How often each name was asked for."""
        self.breaches: list[str] = []
        self._words: dict[str, str] = {}  # and the box that each was for
        self._last = 0

    def breach(self, what: str) -> None:
        """A rule was broken."""
        self.breaches.append(what)
        self._tell(what)

    # Words

    def new_word(self, box: Kept) -> str:
        """A word that is about to be written to the box."""
        self._last += 1
        word = f"w{self._last:06d}"
        self._words[word] = box.key
        return word

    def read(self, box: Kept, must: AbstractSet[str], seen: AbstractSet[str]) -> None:
        """A call found these words in the box, which had to be there when it began."""
        if missing := must - seen:
            self.breach(f"{box.key} has lost {_some(missing)}")
        if strange := {word for word in seen if not self._may_have(box, word)}:
            self.breach(f"{box.key} has what was never written to it: {_some(strange)}")
        box.must |= seen

    def _may_have(self, box: Kept, word: str) -> bool:
        if word not in self._words or box.lineage is None:
            return word in self._words
        return int(word[1:]) <= box.lineage.get(self._words[word], 0)

    def lineage_of_copy(self, origin: Kept) -> Mapping[str, float] | None:
        """The lineage of what was copied from the box until now."""
        return None if origin.lineage is None else {**origin.lineage, origin.key: self._last}

    # Boxes

    def order(self, name: str | None) -> int:
        """A box is about to be asked for; the number goes into its label."""
        self._last += 1
        self.orders[self._last] = Order(name)
        self.claims[name] += 1
        return self._last

    def claimed(self, name: str) -> bool:
        """Whether any box may have this name."""
        boxes = any(box.name == name and box.fate is not Fate.GONE for box in self.boxes.values())
        return boxes or any(order.name == name for order in self.orders.values())

    def add(self, box: str, name: str | None, copied: Kept | None = None) -> Kept:
        """A server told of a new box, made as a copy or from nothing."""
        if box in self.boxes:
            self.breach(f"{box} was made twice")
        copied = copied or Kept("", lineage={})
        lineage = None if copied.lineage is None else {**copied.lineage, box: math.inf}
        made = self.boxes[box] = Kept(box, name, must=set(copied.must), lineage=lineage)
        return made

    def meet(self, facts: Mapping[str, Any]) -> Kept | None:
        """The box of which a server tells; None for one that may be in the making.

        One that nobody was told of must have come of a call whose server died. One that never ran
        need not come to be.
        """
        if (box := self.boxes.get(facts["id"])) is not None:
            return box
        forked = facts["image"].startswith("sha256:")
        number = None if forked else facts["labels"].get(ORDER_LABEL)
        order = self.orders.get(int(number)) if number is not None else None
        if (order is not None and not order.dead) or (number is None and self.making):
            return None
        if order is not None and number is not None:
            del self.orders[int(number)]
        elif number is None and self.strays:
            self.strays -= 1
        else:
            self.breach(f"{facts['id']} exists, but nobody asked for it: {dict(facts)}")
        fate = Fate.DOUBTFUL if facts["state"] == "created" else Fate.WANTED
        return self.boxes.setdefault(facts["id"], Kept(facts["id"], facts["name"], fate))

    def listing(self, before: Mapping[Kept, Fate], told: Iterable[Mapping[str, Any]]) -> None:
        """A server told of all boxes; the call began at `before`."""
        told = list(told)
        for facts in told:
            box = self.meet(facts)
            if facts["state"] == "lost" and box is not None and box.fate is Fate.WANTED:
                self.breach(f"{box.key} is lost: {facts['note']}")
                box.fate = Fate.DOUBTFUL  # told once
        self.compare(before, {facts["id"] for facts in told})
        names = Counter(facts["name"] for facts in told if facts["name"] is not None)
        for name in [name for name, number in names.items() if number > 1]:
            self.breach(f"several boxes are called {name}")

    def compare(self, before: Mapping[Kept, Fate], there: AbstractSet[str]) -> None:
        """What was wanted before a list was asked for is in it, what was gone is not."""
        for one, fate in before.items():
            if fate is Fate.WANTED is one.fate and one.key not in there:
                self.breach(f"{one.key} is not listed")
                one.fate = Fate.GONE
            elif fate is Fate.GONE is one.fate and one.key in there:
                self.breach(f"{one.key} was deleted, but is listed")


def fates(of: Mapping[str, Kept]) -> Mapping[Kept, Fate]:
    """What was asked for each until now."""
    return {one: one.fate for one in of.values()}


def _some(words: AbstractSet[str]) -> str:
    some = sorted(words)[:5]
    return ", ".join(some) + (f" and {len(words) - 5} more" if len(words) > len(some) else "")
