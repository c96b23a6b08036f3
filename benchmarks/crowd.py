"""Many principals at once, each in boxes of its own, who look whether they get what is theirs."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic, perf_counter
from typing import Any

import anyio

from benchmarks.fleet import Answer
from benchmarks.thinhttp import HungUp, Refused, ThinHttp

FILE = "word"
LOOK = f"cat {FILE}; hostname"
PROCESS = re.compile(r"\bp\d+\b")
BORN = re.compile(r"\bbox-[0-9a-z]{8}\b")
UNKNOWN = "You have no box"
AGAIN = 0.05  # s until a server that hung up is called again


@dataclass
class Owned:
    """A box as its owner knows it: the words one of which is in its file."""

    id: str
    name: str
    words: set[str] = field(default_factory=set[str])


@dataclass
class Tally:
    """What came of all calls: their seconds by kind, if they began before `until`.

    `back` is when each principal was answered for the first time after the server was gone.
    """

    taken: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])
    cut: int = 0
    until: float = math.inf
    killed: float = math.inf
    back: dict[str, float] = field(default_factory=dict[str, float])


class Principal:
    """One client with one token, whose calls come one after another."""

    def __init__(self, name: str, client: ThinHttp, tally: Tally) -> None:
        self.name = name
        self.boxes: list[Owned] = []
        self.strangers: Sequence[Owned] = ()
        self._client = client
        self._tally = tally
        self._dice = random.Random(name)  # noqa: S311 - the same calls in every run
        self._numbers = count()
        self._gone = False

    async def make(self, name: str) -> None:
        """A box more, with a word in it."""
        made = await self._call("create", "box_create", name=name)
        if made is not None:
            box = Owned(made.record["id"], name)
            self.boxes.append(box)
            await self._write(box)

    async def run(self, until: float) -> None:
        """Calls until the time is over."""
        actions = self._actions()
        names, weights = list(actions), [weight for _, weight in actions.values()]
        while monotonic() < until:
            (name,) = self._dice.choices(names, weights)
            await actions[name][0](self._dice.choice(self.boxes))

    async def examine(self) -> Collection[str]:
        """The boxes that are found as they must be."""
        there = await self._call("list", "box_list")
        boxes: list[dict[str, str]] = there.record["boxes"] if there is not None else []
        listed = {box["id"] for box in boxes}
        return [box.id for box in self.boxes if box.id in listed and await self._run(box)]

    def _actions(self) -> dict[str, tuple[Callable[[Owned], Awaitable[object]], int]]:
        return {
            "run": (self._run, 24),
            "read": (self._read, 16),
            "write": (self._write, 12),
            "edit": (self._edit, 10),
            "search": (self._search, 8),
            "list": (self._list, 6),
            "info": (self._info, 8),
            "process": (self._process, 4),
            "stranger": (self._stranger, 4),
            "pause": (self._pause, 3),
            "snapshot": (self._snapshot, 1),
        }

    async def _call(self, kind: str, tool: str, **arguments: Any) -> Answer | None:
        """What a call succeeds with; None, and noted, when it does not."""
        answer = await self._ask(kind, tool, **arguments)
        if answer is not None and answer.failed:
            self._tally.errors.append(f"{self.name}: {kind} failed: {answer.text[:300]}")
            return None
        return answer

    async def _ask(self, kind: str, tool: str, **arguments: Any) -> Answer | None:
        tally, began = self._tally, perf_counter()
        counts = monotonic() < tally.until
        try:
            answer = await self._client.call(tool, **arguments)
        except HungUp:
            tally.cut += 1
            self._gone = True
            return await anyio.sleep(AGAIN)
        except Refused as refused:
            tally.errors.append(f"{self.name}: {kind} was refused: {refused}")
            return None
        if counts:
            tally.taken[kind].append(perf_counter() - began)
        if self._gone:
            tally.back.setdefault(self.name, monotonic())
        return answer

    def _judge(self, box: Owned, kind: str, text: str) -> bool:
        """Whether what a call printed is of this box."""
        found = [word for word in box.words if word in text]
        others = set(BORN.findall(text)) - {box.id}
        if not found or others:
            said = f"{self.name}: {kind} in {box.id} ({box.words}) brought {text[:300]!r}"
            self._tally.wrong.append(said)
            return False
        box.words = set(found)
        return True

    def _new_word(self, box: Owned) -> str:
        """It comes to be in the file by the call that is made now, or was when it is not told."""
        word = f"<{self.name} {box.name} {next(self._numbers)}>"
        box.words.add(word)
        return word

    async def _run(self, box: Owned, kind: str = "shell_run") -> bool:
        done = await self._call(kind, "shell_run", box=box.id, command=LOOK)
        if done is None:
            return False
        if box.id not in done.text:
            self._tally.wrong.append(f"{self.name}: a command for {box.id} printed {done.text!r}")
            return False
        return self._judge(box, kind, done.text)

    async def _read(self, box: Owned) -> None:
        done = await self._call("file_read", "file_read", box=box.name, path=FILE)
        if done is not None:
            self._judge(box, "file_read", done.text)

    async def _write(self, box: Owned) -> None:
        word = self._new_word(box)
        done = await self._call("file_write", "file_write", box=box.id, path=FILE, content=word)
        if done is not None:
            box.words = {word}

    async def _edit(self, box: Owned) -> None:
        if len(box.words) > 1:  # which of them is there?
            return await self._read(box)
        (old,) = box.words
        edit = {"old": old, "new": self._new_word(box)}
        done = await self._call("file_edit", "file_edit", box=box.id, path=FILE, edits=[edit])
        if done is not None:
            box.words = {edit["new"]}

    async def _search(self, box: Owned) -> None:
        done = await self._call("file_search", "file_search", box=box.id, pattern="^<")
        if done is not None:
            self._judge(box, "file_search", done.text)

    async def _list(self, _: Owned) -> None:
        done = await self._call("box_list", "box_list")
        if done is None:
            return
        listed, own = {box["id"] for box in done.record["boxes"]}, {box.id for box in self.boxes}
        if listed != own:
            self._tally.wrong.append(f"{self.name}: box_list brought {listed}, not {own}")

    async def _info(self, box: Owned) -> None:
        done = await self._call("box_info", "box_info", box=box.name)
        if done is not None and done.record["id"] != box.id:
            self._tally.wrong.append(f"{self.name}: box_info of {box.id} brought {done.text}")

    async def _process(self, box: Owned) -> None:
        command = f"{LOOK}; sleep 60"
        begun = await self._call(
            "background", "shell_run", box=box.id, command=command, background=True
        )
        if begun is None:
            return
        process = PROCESS.findall(begun.text)[0]
        there = {"box": box.id, "id": process}
        waiting = {"pattern": box.id, "cursor": 0, "wait": 10}
        page = await self._call("process_output", "process_output", **there, **waiting)
        if page is not None and self._judge(box, "process_output", page.text):
            await self._call("process_signal", "process_signal", **there)

    async def _stranger(self, _: Owned) -> None:
        """Another's box, as one that there is not."""
        box = self._dice.choice(self.strangers)
        answer = await self._ask("another's box", "file_read", box=box.id, path=FILE)
        if answer is not None and not (answer.failed and UNKNOWN in answer.text):
            self._tally.wrong.append(f"{self.name}: {box.id} of another answered {answer.text!r}")

    async def _pause(self, box: Owned) -> None:
        if await self._call("box_pause", "box_pause", box=box.id) is not None:
            await self._run(box, "shell_run, waking")

    async def _snapshot(self, box: Owned) -> None:
        name = f"saved-{next(self._numbers)}"
        done = await self._call("snapshot_create", "snapshot_create", box=box.id, name=name)
        if done is not None:
            await self._call("snapshot_delete", "snapshot_delete", name=name)
