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
from benchmarks.ledger import ORDER_LABEL, Fate, Kept, Ledger, fates

MOST = 18  # boxes, above which none is made any more
FEW = 4  # boxes, below which none is deleted
FORKS = 2  # at most, by one call
GONE_TRIED = 3  # of the boxes that were deleted, so many are called still
WEIGHTS = {Fate.WANTED: 20, Fate.DOUBTFUL: 4, Fate.GONE: 1}
BOX_NAMES = tuple(f"name-{number}" for number in range(8))
SNAPSHOT_NAMES = tuple(f"snapshot-{number}" for number in range(8))
CONVERSATIONS = tuple(f"conversation-{number}" for number in range(3))
EXTRA_TIME = 60.0  # s at most for what the dice have left out
OUTPUT = 100_000  # bytes, for all words of a box

WORD = re.compile(r"\bw\d{6}\b")
HOST = re.compile(r"^host (box-[a-z0-9]{8})$", re.MULTILINE)
READ = "echo host $(hostname); cat words 2>/dev/null; true"

PREFIX = re.compile(r"^Error executing tool \w+: ")  # the SDK's
UNANSWERED, TIMED_OUT = "server ended", "no answer in time"
CLOSED, LIMIT = "server shut down", "limit reached"
NO_BOX, NO_SNAPSHOT, NAME_TAKEN = "no such box", "no such snapshot", "name taken"
IN_USE, PAUSED, UNBORN = "in use", "paused so already", "never ran"
LOST, INTERRUPTED, NO_IMAGE = "lost", "interrupted", "no such image"
OTHER = "other"
KINDS = {
    NO_BOX: "You have no box",
    NO_SNAPSHOT: "You have no snapshot",
    NAME_TAKEN: "The name .* is taken already",
    IN_USE: r"The box \S+ is in use by ",
    PAUSED: r"The box \S+ is (frozen|stopped): it can't (freeze|stop)",
    UNBORN: r"The box \S+ is created: it can't",
    LIMIT: "The limit of ",
    LOST: r"The box \S+ is lost",
    INTERRUPTED: r"The box \S+ went away during the call",
    CLOSED: "This box_mcp server is shutting down",
    NO_IMAGE: "The engine has no image",
}
"""Kinds of errors, and how a tool tells of each."""
ANYTIME = (UNANSWERED, CLOSED, LIMIT)
"""How any call may end while servers do."""
GOING = (NO_BOX, LOST, INTERRUPTED, NO_IMAGE, UNBORN)
"""How calls may end to a box that need not be there."""


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
    """Calls of one conversation come one at a time, as do changes of one snapshot."""


class Worker:
    """`number` and the scene's seed decide what it does; it calls any server, or `only` one."""

    def __init__(self, scene: Scene, number: int, only: Server | None = None) -> None:
        self._scene = scene
        self._ledger = scene.ledger
        self._name = f"w{number}"
        self._dice = random.Random(f"{scene.seed} {number}")  # noqa: S311 - repeatable
        self._only = only

    async def run(self, until: float, kinds: frozenset[str] = frozenset()) -> None:
        """Works until the time is over, and on at what is missing of `kinds`, within reason."""
        actions, taken = self.actions(), self._scene.tally.taken
        while (late := monotonic() - until) < EXTRA_TIME:
            missing = sorted(kinds - taken.keys())
            if late > 0 and not missing:
                return
            names = ["create", "delete", *missing] if late > 0 else list(actions)
            (name,) = self._dice.choices(names, [actions[name][1] for name in names])
            await actions[name][0]()
            await anyio.lowlevel.checkpoint()

    def actions(self) -> Mapping[str, tuple[Callable[[], Awaitable[None]], int]]:
        """All that may be done, and how often each beside the others."""
        freeze = partial(self._call, "freeze", "box_pause", IN_USE, PAUSED, depth="frozen")
        stop = partial(self._call, "stop", "box_pause", IN_USE, PAUSED, depth="stopped")
        return {
            "write": (self._write, 24),
            "read": (self._read, 14),
            "create": (self._create, 7),
            "create by name": (self._create_by_name, 6),
            "restore": (self._restore, 5),
            "fork": (self._fork, 4),
            "first call": (self._first_call, 5),
            "freeze": (freeze, 8),
            "stop": (stop, 6),
            "resume": (partial(self._call, "resume", "box_resume"), 6),
            "info": (partial(self._call, "info", "box_info"), 4),
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
            reply = _read(await server.call(tool, thread, arguments))
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

    def _judge(self, action: str, reply: Reply, *allowed: str) -> None:
        """The call must have succeeded, or failed as it may."""
        if reply.error is not None and reply.error not in (*ANYTIME, *allowed):
            self._ledger.breach(f"{action} of {self._name} failed: {reply.answer.text}")

    # Which box

    def _some_box(self) -> Kept | None:
        """Mostly one that must exist."""
        boxes = list(self._ledger.boxes.values())
        gone = [box for box in boxes if box.fate is Fate.GONE]
        boxes = [box for box in boxes if box.fate is not Fate.GONE] + gone[-GONE_TRIED:]
        return self._one_of(boxes, [WEIGHTS[box.fate] for box in boxes])

    def _one_of(self, kept: list[Kept], weights: list[int] | None = None) -> Kept | None:
        return self._dice.choices(kept, weights)[0] if kept else None

    def _wanted(self) -> list[Kept]:
        return [box for box in self._ledger.boxes.values() if box.fate is Fate.WANTED]

    def _ref(self, box: Kept) -> str:
        """Its id, or its name, which might come to mean another if it was not wanted any more."""
        if box.name is not None and box.fate is Fate.WANTED and self._dice.random() < 0.3:  # noqa: PLR2004
            return box.name
        return box.key

    def _room(self) -> bool:
        there = [box for box in self._ledger.boxes.values() if box.fate is not Fate.GONE]
        return len(there) + len(self._ledger.orders) + self._ledger.making < MOST

    # Calls to boxes

    async def _call(self, action: str, tool: str, *allowed: str, **arguments: Any) -> None:
        if (box := self._some_box()) is not None:
            reply = await self.ask(action, tool, box=self._ref(box), **arguments)
            self._judge(action, reply, *allowed, *_if_going(box))

    async def _write(self) -> None:
        if (box := self._some_box()) is not None:
            word = self._ledger.new_word(box)
            await self.look("write", box, f"echo {word} >> words; {READ}", {word})

    async def _read(self) -> None:
        if (box := self._some_box()) is not None:
            await self.look("read", box)

    async def look(
        self, action: str, box: Kept, command: str = READ, written: Collection[str] = ()
    ) -> None:
        """Runs a command that prints the words of the box, the `written` ones among them."""
        must, fate, ref = box.must | set(written), box.fate, self._ref(box)
        reply = await self.ask(action, "shell_run", command=command, box=ref, max_output=OUTPUT)
        self._judge(action, reply, *_if_going(box))
        if reply.error is not None:
            return
        host = HOST.search(reply.answer.text)
        if host is not None and host[1] == box.key:
            if fate is Fate.GONE:
                self._ledger.breach(f"{box.key} was deleted, but answers")
            self._ledger.read(box, must, set(WORD.findall(reply.answer.text)))
        elif host is None or ref == box.key or box.fate is Fate.WANTED:
            self._ledger.breach(f"a command for {box.key} ({ref}) printed {reply.answer.text!r}")

    async def _first_call(self) -> None:
        """A call of a conversation, in the box of its own."""
        ledger, conversation = self._ledger, self._dice.choice(CONVERSATIONS)
        async with self._scene.turns[conversation]:
            own = ledger.own.get(conversation)
            if (own is None or own.fate is not Fate.WANTED) and not self._room():
                return
            ledger.making += 1
            reply = await self.ask("first call", "shell_run", conversation, command=READ)
            ledger.making -= 1
            safe = own is not None and own.fate is Fate.WANTED
            self._judge("first call", reply, *(() if safe else GOING))
            if reply.error is not None:
                ledger.strays += 1  # also when the box was made, but not started
                return
            host = HOST.search(reply.answer.text)
            if host is None:
                return ledger.breach(f"a first call printed {reply.answer.text!r}")
            if own is not None and safe and own.key != host[1]:
                ledger.breach(f"{conversation} has {host[1]}, but had {own.key}")
            ledger.own[conversation] = ledger.boxes.get(host[1]) or ledger.add(host[1], None)

    # Boxes

    async def _create(self) -> None:
        """Half of them as spares are, half not."""
        env = {"EXTRA": "1"} if self._dice.random() < 0.5 else {}  # noqa: PLR2004
        await self._order("create", env=env)

    async def _create_by_name(self) -> None:
        """Of names that are taken, some are reused."""
        name, reuse = self._dice.choice(BOX_NAMES), self._dice.random() < 0.5  # noqa: PLR2004
        await self._order("create by name", name, reuse=reuse)

    async def _restore(self) -> None:
        there = [one for one in self._ledger.snapshots.values() if one.fate is not Fate.GONE]
        if (snapshot := self._one_of(there)) is not None:
            await self.restore(snapshot)

    async def restore(self, snapshot: Kept) -> None:
        """A box from a snapshot, which others may be deleting."""
        await self._order("restore", saved=snapshot, snapshot=snapshot.key)

    async def _order(
        self, action: str, name: str | None = None, saved: Kept | None = None, **more: Any
    ) -> None:
        ledger = self._ledger
        if not self._room():
            return
        contested = name is not None and ledger.claimed(name)
        sure = saved is None or saved.fate is Fate.WANTED
        number = ledger.order(name)
        claims, labels = ledger.claims[name], {ORDER_LABEL: str(number)}
        reply = await self.ask(action, "box_create", name=name, labels=labels, **more)
        allowed: list[str] = []
        if name is not None and (contested or ledger.claims[name] != claims):
            allowed += [NAME_TAKEN, *GOING]
        sure = sure and (saved is None or saved.fate is Fate.WANTED)
        if not sure:
            allowed += [NO_SNAPSHOT, NO_IMAGE]
        self._judge(action, reply, *allowed)
        if reply.lost:
            ledger.orders[number].dead = True  # what it made, will be seen
            return
        del ledger.orders[number]
        facts = reply.answer.record
        if reply.error is not None:
            return
        if facts["name"] != name:
            ledger.breach(f"{facts['id']} was made as {name}, but is called {facts['name']}")
        if facts["labels"].get(ORDER_LABEL) == str(number):
            ledger.add(facts["id"], name, saved if sure else Kept(""))
        else:  # reused
            ledger.meet(facts)

    async def _fork(self) -> None:
        ledger, box, count = self._ledger, self._some_box(), self._dice.randint(1, FORKS)
        if box is None or not self._room():
            return
        must = set(box.must)
        ledger.making += count
        reply = await self.ask("fork", "box_fork", box=box.key, count=count)
        ledger.making -= count
        self._judge("fork", reply, *_if_going(box))
        if reply.lost:
            ledger.strays += count
        copied = Kept("", must=must, lineage=ledger.lineage_of_copy(box))
        for facts in reply.answer.record.get("boxes", ()):
            ledger.add(facts["id"], None, copied)

    async def list(self) -> None:
        """All boxes, as any server knows them."""
        before = fates(self._ledger.boxes)
        reply = await self.ask("list", "box_list")
        self._judge("list", reply)
        if reply.error is None:
            self._ledger.listing(before, reply.answer.record["boxes"])

    async def _delete(self) -> None:
        """One whose deletion was never answered rather than another."""
        boxes = [box for box in self._ledger.boxes.values() if box.fate is Fate.DOUBTFUL]
        if len(wanted := self._wanted()) > FEW:
            boxes += wanted
        if (box := self._one_of(boxes)) is not None:
            await self.delete(box)

    async def delete(self, box: Kept) -> None:
        """Deletes a box, which others may be calling."""
        named = {"box": box.key, "discard": True}  # there may be no time to look into it
        await self._remove(box, "delete", "box_delete", (IN_USE,), NO_BOX, **named)

    async def _remove(
        self,
        what: Kept,
        action: str,
        tool: str,
        allowed: Collection[str],
        missing: str,
        **arguments: Any,
    ) -> None:
        fate = what.fate
        what.doom()
        reply = await self.ask(action, tool, **arguments)
        alone = fate is Fate.WANTED and what.deletions == 1
        self._judge(action, reply, *allowed, *(() if alone else (missing,)))
        if reply.error is None or (reply.error == missing and not what.may_come):
            what.fate = Fate.GONE
        elif not reply.lost:
            what.spare()

    # Snapshots

    async def _snapshot(self) -> None:
        """Of a name that is free, or of one that is taken, which must be refused."""
        ledger, name = self._ledger, self._dice.choice(SNAPSHOT_NAMES)
        async with self._scene.turns[name]:
            box, earlier = self._some_box(), ledger.snapshots.get(name)
            if box is None or (earlier is not None and earlier.fate is Fate.DOUBTFUL):
                return
            made = Kept(name, fate=Fate.DOUBTFUL, must=set(box.must), may_come=True)
            taken = earlier is not None and earlier.fate is Fate.WANTED
            if not taken:
                ledger.snapshots[name] = made
            reply = await self.ask("snapshot", "snapshot_create", name=name, box=box.key)
            self._judge("snapshot", reply, *_if_going(box), *((NAME_TAKEN,) if taken else ()))
            made.may_come = reply.lost
            if reply.error is None:
                made.fate, made.lineage = Fate.WANTED, ledger.lineage_of_copy(box)
                if taken:
                    ledger.breach(f"the snapshot {name} was made anew, though it was there")
            elif not reply.lost:
                made.fate = Fate.GONE

    async def _delete_snapshot(self) -> None:
        """One of which it is not known whether it is there rather than another."""
        there = [one for one in self._ledger.snapshots.values() if one.fate is not Fate.GONE]
        doubtful = [one for one in there if one.fate is Fate.DOUBTFUL]
        if (snapshot := self._one_of(doubtful or there)) is not None:
            await self.delete_snapshot(snapshot)

    async def delete_snapshot(self, snapshot: Kept) -> None:
        """Deletes a snapshot, from which others may be making boxes."""
        name = snapshot.key
        async with self._scene.turns[name]:
            if self._ledger.snapshots[name] is snapshot and snapshot.fate is not Fate.GONE:
                action = "delete snapshot"
                await self._remove(snapshot, action, "snapshot_delete", (), NO_SNAPSHOT, name=name)

    async def list_snapshots(self) -> None:
        """All snapshots, as the engine has them."""
        before = fates(self._ledger.snapshots)
        reply = await self.ask("list snapshots", "snapshot_list")
        self._judge("list snapshots", reply)
        if reply.error is not None:
            return
        there = {facts["name"] for facts in reply.answer.record["snapshots"]}
        now = self._ledger.snapshots
        self._ledger.compare({o: fate for o, fate in before.items() if now[o.key] is o}, there)
        for name in there - now.keys():
            self._ledger.breach(f"the snapshot {name} exists, but nobody asked for it")


def _if_going(box: Kept) -> Collection[str]:
    """Errors that calls to a box may end with."""
    return () if box.fate is Fate.WANTED else GOING


def _read(answer: Answer) -> Reply:
    """The answer with the kind of error that it tells of."""
    if not answer.failed:
        return Reply(answer)
    said = PREFIX.sub("", answer.text)
    kinds = (kind for kind, words in KINDS.items() if re.match(words, said))
    return Reply(answer, next(kinds, OTHER))
