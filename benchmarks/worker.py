"""One client of several servers, who does one random thing after another and checks each answer."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, perf_counter
from typing import Any

import anyio

from benchmarks.fleet import Answer, Fleet, Journal, Server, ServerGone
from benchmarks.ledger import ORDER_LABEL, Box, Fate, Ledger, Order, Snapshot

MOST = 18  # boxes that may exist, before none is made any more
FEW = 4  # boxes, below which none is deleted
FORKS = 2  # at most, by one call
GONE_TRIED = 3  # of the boxes that were deleted, so many are called still
BOX_NAMES = tuple(f"name-{number}" for number in range(8))
SNAPSHOT_NAMES = tuple(f"snapshot-{number}" for number in range(6))
CONVERSATIONS = tuple(f"conversation-{number}" for number in range(3))
OUTPUT = 100_000  # bytes, for all words of a box

WORD = re.compile(r"\bw\d{6}\b")
HOST = re.compile(r"^host (box-[a-z0-9]{8})$", re.MULTILINE)
READ = "echo host $(hostname); cat words 2>/dev/null; true"

PREFIX = re.compile(r"^Error executing tool \w+: ")  # the SDK's
UNANSWERED, TIMED_OUT = "server ended", "no answer in time"
CLOSED, LIMIT = "server shut down", "limit reached"
NO_BOX, NO_SNAPSHOT, NAME_TAKEN = "no such box", "no such snapshot", "name taken"
IN_USE, PAUSED = "in use", "paused so already"
LOST, BROKEN, INTERRUPTED, NO_IMAGE = "lost", "broken", "interrupted", "no such image"
OTHER = "other"
KINDS = {
    NO_BOX: "You have no box",
    NO_SNAPSHOT: "You have no snapshot",
    NAME_TAKEN: "The name .* is taken already",
    IN_USE: r"The box \S+ is in use by ",
    PAUSED: r"The box \S+ is (frozen|stopped): it can't (freeze|stop)",
    LIMIT: "The limit of ",
    LOST: r"The box \S+ is lost",
    BROKEN: r"The box \S+ does not answer",
    INTERRUPTED: r"The box \S+ went away during the call",
    CLOSED: "This box_mcp server is shutting down",
    NO_IMAGE: "The engine has no image",
}
"""Kinds of errors, and how a tool tells of each."""
ANYTIME = (UNANSWERED, CLOSED, LIMIT)
"""How any call may end while servers do."""


@dataclass(frozen=True)
class Reply:
    """What came of a call; `error` is a kind, None when all is well."""

    answer: Answer
    error: str | None = None

    @property
    def lost(self) -> bool:
        """Whether it will never be known what the call did."""
        return self.error in (UNANSWERED, TIMED_OUT, CLOSED)


@dataclass
class Tally:
    """What was done, in seconds each, and how the rest failed."""

    taken: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


@dataclass(frozen=True)
class Scene:
    """What all workers share."""

    seed: int
    fleet: Fleet
    ledger: Ledger
    tally: Tally
    journal: Journal
    turns: dict[str, anyio.Lock] = field(default_factory=lambda: defaultdict(anyio.Lock))
    """A conversation's calls come one at a time."""


class Worker:
    """`number` and the scene's seed decide what it does; it calls any server, or `only` one."""

    def __init__(self, scene: Scene, number: int, only: Server | None = None) -> None:
        self._scene = scene
        self._ledger = scene.ledger
        self._name = f"w{number}"
        self._dice = random.Random(f"{scene.seed} {number}")  # noqa: S311 - repeatable
        self._only = only

    async def run(self, until: float) -> None:
        """Works until the time is over."""
        actions = self.actions()
        names = list(actions)
        weights = [weight for _, weight in actions.values()]
        while monotonic() < until:
            (name,) = self._dice.choices(names, weights)
            await actions[name][0]()
            await anyio.lowlevel.checkpoint()

    def actions(self) -> Mapping[str, tuple[Callable[[], Awaitable[None]], int]]:
        """All that may be done, and how often each beside the others."""
        return {
            "write": (self._write, 24),
            "read": (self._read, 14),
            "create": (self._create, 7),
            "create by name": (self._create_by_name, 6),
            "restore": (self._restore, 5),
            "fork": (self._fork, 4),
            "first call": (self._first_call, 5),
            "freeze": (partial(self._pause, "freeze", "frozen"), 8),
            "stop": (partial(self._pause, "stop", "stopped"), 6),
            "resume": (self._resume, 6),
            "info": (self._info, 4),
            "list": (self.list, 4),
            "delete": (self._delete, 9),
            "snapshot": (self._snapshot, 5),
            "delete snapshot": (self._delete_snapshot, 3),
            "list snapshots": (self.list_snapshots, 3),
        }

    async def ask(
        self, action: str, tool: str, thread: str | None = None, **arguments: Any
    ) -> Reply:
        """Calls a tool of any server, and counts what came of it."""
        scene = self._scene
        server = self._only or await scene.fleet.pick(self._dice)
        told = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        scene.journal.note(self._name, f"> {server.name} {action}: {tool}({told}) {thread or ''}")
        began = perf_counter()
        try:
            reply = _read(await server.call(tool, thread, **arguments))
        except ServerGone:
            reply = Reply(Answer("the server ended"), UNANSWERED)
            if not server.ending:
                self._ledger.breach(f"{server.name} ended by itself during {action}")
        except TimeoutError:
            reply = Reply(Answer("no answer came in time"), TIMED_OUT)
        if reply.error is None:
            scene.tally.taken[action].append(perf_counter() - began)
        else:
            scene.tally.errors[reply.error][action] += 1
        said = reply.answer.text.replace("\n", " ")[:300]
        scene.journal.note(self._name, f"< {server.name} {reply.error or 'ok'}: {said}")
        return reply

    def _judge(self, action: str, reply: Reply, allowed: Collection[str] = ()) -> None:
        """The call must have succeeded, or failed as it may."""
        if reply.error is not None and reply.error not in (*ANYTIME, *allowed):
            self._ledger.breach(f"{action} of {self._name} failed: {reply.answer.text}")

    # Which box

    def _some_box(self) -> Box | None:
        """Mostly one that must exist."""
        boxes = list(self._ledger.boxes.values())
        gone = [box for box in boxes if box.fate is Fate.GONE]
        boxes = [box for box in boxes if box.fate is not Fate.GONE] + gone[-GONE_TRIED:]
        weights = {Fate.WANTED: 20, Fate.DOUBTFUL: 4, Fate.GONE: 1}
        return self._one_of(boxes, [weights[box.fate] for box in boxes])

    def _one_of(self, boxes: list[Any], weights: list[int] | None = None) -> Any:
        return self._dice.choices(boxes, weights)[0] if boxes else None

    def _ref(self, box: Box) -> str:
        """Its id, or its name, which might come to mean another if it was not wanted any more."""
        if box.name is not None and box.fate is Fate.WANTED and self._dice.random() < 0.3:  # noqa: PLR2004
            return box.name
        return box.id

    @staticmethod
    def _if_going(box: Box) -> Collection[str]:
        """Errors that calls to a box end with that is being deleted, or was."""
        return () if box.fate is Fate.WANTED else (NO_BOX, LOST, INTERRUPTED)

    def _room(self, boxes: int = 1) -> bool:
        return self._ledger.possible() + boxes <= MOST

    # Commands

    async def _write(self) -> None:
        if (box := self._some_box()) is not None:
            word = self._ledger.new_word(box)
            await self.look("write", box, f"echo {word} >> words; {READ}", word)

    async def _read(self) -> None:
        if (box := self._some_box()) is not None:
            await self.look("read", box)

    async def look(
        self, action: str, box: Box, command: str = READ, word: str | None = None
    ) -> None:
        """Runs a command that prints the words of the box, `word` among them."""
        before, ref = self._ledger.glance(box, word), self._ref(box)
        reply = await self.ask(action, "shell_run", command=command, box=ref, max_output=OUTPUT)
        self._judge(action, reply, self._if_going(box))
        if reply.error is None and self._is(box, ref, reply):
            self._ledger.read(before, set(WORD.findall(reply.answer.text)))

    def _is(self, box: Box, ref: str, reply: Reply) -> bool:
        """Whether the box answered; none of its name may have, while there is the box."""
        host = HOST.search(reply.answer.text)
        if host is not None and host[1] == box.id:
            return True
        if host is None or ref == box.id or box.fate is Fate.WANTED:
            self._ledger.breach(f"a command for {box.id} ({ref}) printed {reply.answer.text!r}")
        return False

    async def _first_call(self) -> None:
        """A call of a conversation, in the box of its own."""
        conversation = self._dice.choice(CONVERSATIONS)
        async with self._scene.turns[conversation]:
            own = self._ledger.own.get(conversation)
            known = own is not None and own.fate is Fate.WANTED
            if not known and not self._room():
                return
            order = self._ledger.order("own")
            reply = await self.ask("first call", "shell_run", conversation, command=READ)
            safe = known and own is not None and own.fate is Fate.WANTED
            self._judge("first call", reply, () if safe else (NO_BOX, LOST, INTERRUPTED))
            if reply.error is not None:
                return self._unanswered(order, reply)
            host = HOST.search(reply.answer.text)
            if host is None:
                return self._ledger.breach(f"a first call printed {reply.answer.text!r}")
            if own is not None and own.fate is Fate.WANTED and own.id != host[1]:
                self._ledger.breach(f"{conversation} has {host[1]}, but had {own.id}")
            if host[1] in self._ledger.boxes:
                self._ledger.settle(order)
                self._ledger.own[conversation] = self._ledger.boxes[host[1]]
            else:
                (self._ledger.own[conversation],) = self._ledger.told(order, [host[1]])

    # Boxes

    async def _create(self) -> None:
        """Half of them as spares are, half not."""
        if self._room():
            env = {"EXTRA": "1"} if self._dice.random() < 0.5 else {}  # noqa: PLR2004
            await self._order("create", env=env)

    async def _create_by_name(self) -> None:
        """Of names that are taken, some are reused."""
        if self._room():
            name, reuse = self._dice.choice(BOX_NAMES), self._dice.random() < 0.5  # noqa: PLR2004
            await self._order("create by name", name, reuse=reuse)

    async def _restore(self) -> None:
        snapshots = [one for one in self._ledger.snapshots.values() if one.fate is not Fate.GONE]
        snapshot: Snapshot | None = self._one_of(snapshots)
        if snapshot is not None and self._room():
            await self.restore(snapshot)

    async def restore(self, snapshot: Snapshot) -> None:
        """A box from a snapshot, which others may be deleting."""
        snapshot.users += 1
        await self._order("restore", saved=snapshot, snapshot=snapshot.name)
        snapshot.users -= 1

    async def _order(
        self, action: str, name: str | None = None, saved: Snapshot | None = None, **more: Any
    ) -> None:
        ledger = self._ledger
        holder = ledger.holder(name)
        contested = ledger.claimed(name)
        order = ledger.order("create", name, saved.copied if saved is not None else None)
        claims = ledger.claims[name]
        labels = {ORDER_LABEL: str(order.number)}
        reply = await self.ask(action, "box_create", name=name, labels=labels, **more)
        allowed: list[str] = []
        if name is not None and (contested or ledger.claims[name] != claims):
            allowed += [NAME_TAKEN, NO_BOX, LOST, INTERRUPTED]
        if saved is not None and saved.fate is not Fate.WANTED:
            allowed += [NO_SNAPSHOT, NO_IMAGE]
        self._judge(action, reply, allowed)
        if reply.error is not None:
            return self._unanswered(order, reply)
        self._made(order, holder, reply)

    def _made(self, order: Order, holder: Box | None, reply: Reply) -> None:
        facts = reply.answer.record
        if holder is not None and holder.fate is Fate.WANTED and holder.id != facts["id"]:
            self._ledger.breach(f"{facts['id']} was made as {order.name}, which is {holder.id}")
        if facts["labels"].get(ORDER_LABEL) == str(order.number):
            self._ledger.told(order, [facts["id"]])
        else:  # reused
            self._ledger.settle(order)
            self._ledger.meet(facts)

    async def _fork(self) -> None:
        box, count = self._some_box(), self._dice.randint(1, FORKS)
        if box is None or not self._room(count):
            return
        before = self._ledger.glance(box)
        order = self._ledger.order("fork", boxes=count)
        reply = await self.ask("fork", "box_fork", box=box.id, count=count)
        self._judge("fork", reply, self._if_going(box))
        if reply.error is not None:
            return self._unanswered(order, reply)
        order.copied = self._ledger.copy(before)
        self._ledger.told(order, [facts["id"] for facts in reply.answer.record["boxes"]])

    def _unanswered(self, order: Order, reply: Reply) -> None:
        """A call that failed made nothing; what one made whose server ended, will be seen."""
        if reply.lost:
            self._ledger.unanswered(order)
        else:
            self._ledger.settle(order)

    async def _pause(self, action: str, depth: str) -> None:
        if (box := self._some_box()) is not None:
            reply = await self.ask(action, "box_pause", box=self._ref(box), depth=depth)
            self._judge(action, reply, (IN_USE, PAUSED, *self._if_going(box)))

    async def _resume(self) -> None:
        if (box := self._some_box()) is not None:
            reply = await self.ask("resume", "box_resume", box=self._ref(box))
            self._judge("resume", reply, self._if_going(box))

    async def _info(self) -> None:
        if (box := self._some_box()) is not None:
            reply = await self.ask("info", "box_info", box=self._ref(box))
            self._judge("info", reply, self._if_going(box))

    async def list(self) -> None:
        """All boxes, as any server knows them."""
        before = self._ledger.before()
        reply = await self.ask("list", "box_list")
        self._judge("list", reply)
        if reply.error is None:
            self._ledger.listing(before, reply.answer.record["boxes"])

    async def _delete(self) -> None:
        """One whose deletion was never answered rather than another."""
        ledger = self._ledger
        doubtful = [box for box in ledger.boxes.values() if box.fate is Fate.DOUBTFUL]
        wanted = ledger.wanted()
        if len(wanted) <= FEW and not doubtful:
            return
        box: Box = self._one_of(doubtful) if len(wanted) <= FEW else self._one_of(doubtful + wanted)
        await self.delete(box)

    async def delete(self, box: Box) -> None:
        """Deletes a box, which others may be calling."""
        before = box.fate
        self._ledger.doom(box)
        reply = await self.ask("delete", "box_delete", box=box.id)
        self._judge("delete", reply, (IN_USE, *(() if before is Fate.WANTED else (NO_BOX,))))
        if reply.error in (None, NO_BOX):
            self._ledger.gone(box)
        elif not reply.lost:
            self._ledger.spare(box)

    # Snapshots

    async def _snapshot(self) -> None:
        """Of a name that is free, or of one that is taken, which must be refused."""
        box, name = self._some_box(), self._dice.choice(SNAPSHOT_NAMES)
        earlier = self._ledger.snapshots.get(name)
        if box is None or (earlier is not None and not earlier.free):
            return
        before = self._ledger.glance(box)
        if earlier is not None and earlier.fate is Fate.WANTED:
            with earlier.in_hand():
                reply = await self.ask("snapshot", "snapshot_create", name=name, box=box.id)
            self._judge("snapshot", reply, (NAME_TAKEN, *self._if_going(box)))
            if reply.error is None:
                self._ledger.breach(f"the snapshot {name} was made anew, though it was there")
            return
        snapshot = self._ledger.snapshot(name, before)
        with snapshot.in_hand():
            reply = await self.ask("snapshot", "snapshot_create", name=name, box=box.id)
        self._judge("snapshot", reply, self._if_going(box))
        if reply.error is None:
            snapshot.made(before)
        elif not reply.lost:
            snapshot.fate = Fate.GONE

    async def _delete_snapshot(self) -> None:
        """One of which it is not known whether it is there rather than another."""
        there = [one for one in self._ledger.snapshots.values() if one.fate is not Fate.GONE]
        doubtful = [one for one in there if one.fate is Fate.DOUBTFUL]
        snapshot: Snapshot | None = self._one_of(doubtful or there)
        if snapshot is not None and not snapshot.busy:
            await self.delete_snapshot(snapshot)

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Deletes a snapshot, from which others may be making boxes."""
        before, snapshot.fate = snapshot.fate, Fate.DOUBTFUL
        with snapshot.in_hand():
            reply = await self.ask("delete snapshot", "snapshot_delete", name=snapshot.name)
        self._judge("delete snapshot", reply, () if before is Fate.WANTED else (NO_SNAPSHOT,))
        if reply.error in (None, NO_SNAPSHOT):
            snapshot.fate = Fate.GONE
        elif not reply.lost:
            snapshot.fate = before

    async def list_snapshots(self) -> None:
        """All snapshots, as the engine has them."""
        before = self._ledger.before()
        reply = await self.ask("list snapshots", "snapshot_list")
        self._judge("list snapshots", reply)
        if reply.error is None:
            told = reply.answer.record["snapshots"]
            self._ledger.snapshot_listing(before, {facts["name"] for facts in told})


def _read(answer: Answer) -> Reply:
    """The answer with the kind of error that it tells of."""
    if not answer.failed:
        return Reply(answer)
    said = PREFIX.sub("", answer.text)
    kinds = (kind for kind, words in KINDS.items() if re.match(words, said))
    return Reply(answer, next(kinds, OTHER))
