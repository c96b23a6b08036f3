"""Faults of engines, boxes and stores, each of which goes wrong in one way until it is healed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from box_mcp.boxd import wire
from box_mcp.domain.names import BoxId
from box_mcp.engines.fake import FakeEngine, FakeLine
from box_mcp.errors import EngineRefused, EngineStalled, EngineUnreachable, StoreUnusable
from box_mcp.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from box_mcp.domain.box import Box, BoxSpec
    from box_mcp.domain.limits import Room
    from box_mcp.engines.base import Found, Saved

T = TypeVar("T")

OPERATIONS = (
    *("prepare", "create", "start", "freeze", "thaw", "stop", "delete"),
    *("look at", "connect to", "change the network of", "save", "list", "list snapshots", "drop"),
    "find the disk of",
)
NO_BOX = BoxId("")
"""Stands for the box where an operation concerns none."""


class Bug(RuntimeError):
    """A mistake of ours."""


class Fault:
    """What goes wrong with calls for `operation` (or all) at an engine's door while it is `ill`.

    `line_type` is what boxes are connected by meanwhile, `last_words` what their boxds say.
    """

    line_type: type[FakeLine] = FakeLine
    last_words = ""

    def __init__(self, operation: str = "") -> None:
        assert not operation or operation in OPERATIONS
        self.operation = operation
        self.ill = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.operation!r})"

    def concerns(self, operation: str) -> bool:
        """Whether it spoils such a call now."""
        return self.ill and self.operation in ("", operation)

    def heal(self) -> None:
        """From now on all is well."""
        self.ill = False

    async def before(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        """Happens before the engine does what it is told to."""

    async def after(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        """Happens when it has done so, before it says so."""


class Stall(Fault):
    """Calls are held until it is healed; `reached` tells that one is.

    After `patience` (s) they are given up, as clients of real engines do.
    """

    def __init__(self, operation: str = "", patience: float = math.inf) -> None:
        super().__init__(operation)
        self.reached = anyio.Event()
        self._patience = patience
        self._healed = anyio.Event()

    def heal(self) -> None:
        super().heal()
        self._healed.set()

    async def before(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        self.reached.set()
        with anyio.move_on_after(self._patience) as scope:
            await self._healed.wait()
        if scope.cancelled_caught:
            raise EngineStalled(f"{operation} a box", self._patience)


class Dawdling(Stall):
    """It does at once what it is told to, and says so when it is healed."""

    async def before(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        self.reached.set()

    async def after(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        await self._healed.wait()


class Refusal(Fault):
    """It says no."""

    async def before(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        raise EngineRefused(f"{operation} a box", "it does not want to")


class Stumble(Fault):
    """There is a bug of ours in it."""

    async def before(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        raise Bug


class NoAnswer(Fault):
    """Nobody is there."""

    async def before(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        raise EngineUnreachable("nowhere", "nobody answers")


class LateAnswer(Fault):
    """It does what it is told to, and does not say so in time."""

    async def after(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        raise EngineStalled(f"{operation} a box", 60.0)


class HalfDone(Fault):
    """It does the better half of what it is told to, and says that it failed."""

    async def before(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        if operation == "delete" and box in engine.boxes:
            engine.boxes[box].end("its removal began")
            raise EngineRefused("delete a box", "its files are in use")

    async def after(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        raise EngineRefused(f"{operation} a box", "it came half way")


class DeathAtStart(Fault):
    """What it starts is gone at once."""

    last_words = "Traceback\nno space left"

    def __init__(self) -> None:
        super().__init__("start")

    async def after(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        engine.boxes[box].end("exit code 1")


class Loss(Fault):
    """The box that is asked for is gone, with all its files."""

    async def before(self, engine: FaultyEngine, operation: str, box: BoxId) -> None:
        engine.lose(box)


class BadLine(Fault):
    """Boxes that are connected to have a faulty boxd."""

    def __init__(self, line_type: type[FakeLine]) -> None:
        super().__init__("connect to")
        self.line_type = line_type


class FaultyEngine(FakeEngine):
    """An engine with faults, which may begin and be healed while it runs."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        self.faults = list(faults)

    async def at_door(self, operation: str, box: BoxId) -> None:
        await super().at_door(operation, box)
        for fault in self._faults_of(operation):
            await fault.before(self, operation, box)

    async def answer(self, operation: str, box: BoxId) -> None:
        """Passed when something is done, before whoever asked for it hears so."""
        for fault in self._faults_of(operation):
            await fault.after(self, operation, box)

    def lose(self, box: BoxId) -> None:
        """A box is gone without anybody's doing."""
        if (lost := self.boxes.pop(box, None)) is not None:
            lost.end("lost")

    async def prepare(self, box: BoxId) -> None:
        await super().prepare(box)
        await self.answer("prepare", box)

    async def create(self, box: BoxId, spec: BoxSpec) -> None:
        await super().create(box, spec)
        await self.answer("create", box)

    async def start(self, box: BoxId) -> None:
        await super().start(box)
        await self.answer("start", box)

    async def freeze(self, box: BoxId) -> None:
        await super().freeze(box)
        await self.answer("freeze", box)

    async def thaw(self, box: BoxId) -> None:
        await super().thaw(box)
        await self.answer("thaw", box)

    async def stop(self, box: BoxId) -> None:
        await super().stop(box)
        await self.answer("stop", box)

    async def delete(self, box: BoxId) -> None:
        await super().delete(box)
        await self.answer("delete", box)

    async def inspect(self, box: BoxId) -> Found:
        found = await super().inspect(box)
        await self.answer("look at", box)
        return found

    async def attach(self, box: BoxId, *, attached: bool) -> None:
        await super().attach(box, attached=attached)
        await self.answer("change the network of", box)

    async def save(self, box: BoxId, tag: str | None, labels: Mapping[str, str]) -> Saved:
        saved = await super().save(box, tag, labels)
        await self.answer("save", box)
        return saved

    async def list(self) -> Sequence[Found]:
        await self.at_door("list", NO_BOX)
        found = await super().list()
        await self.answer("list", NO_BOX)
        return found

    async def labels(self, image: str) -> Mapping[str, str] | None:
        await self.at_door("look at an image", NO_BOX)
        labels = await super().labels(image)
        await self.answer("look at an image", NO_BOX)
        return labels

    async def free_disk(self) -> int | None:
        await self.at_door("find the disk of", NO_BOX)
        free = await super().free_disk()
        await self.answer("find the disk of", NO_BOX)
        return free

    async def free_files(self) -> int | None:
        await self.at_door("find the disk of", NO_BOX)
        free = await super().free_files()
        await self.answer("find the disk of", NO_BOX)
        return free

    async def saved(self) -> Sequence[Saved]:
        await self.at_door("list snapshots", NO_BOX)
        saved = await super().saved()
        await self.answer("list snapshots", NO_BOX)
        return saved

    async def drop(self, image: str) -> None:
        await self.at_door("drop", NO_BOX)
        await super().drop(image)
        await self.answer("drop", NO_BOX)

    async def last_words(self, box: BoxId) -> str:
        await super().last_words(box)
        return "\n".join(fault.last_words for fault in self.faults if fault.last_words)

    async def open_channel(self, box: BoxId) -> FakeLine:
        lines = [fault.line_type for fault in self._faults_of("connect to")]
        self.line_type = lines[-1] if lines else FakeLine
        line = await super().open_channel(box)
        try:
            await self.answer("connect to", box)
        except BaseException:
            await line.aclose()  # nobody else has it
            raise
        return line

    def _faults_of(self, operation: str) -> list[Fault]:
        return [fault for fault in self.faults if fault.concerns(operation)]


class BoxdThatNeverGreets(FakeLine):
    """Hears all and says nothing."""

    def serve(self) -> None:
        return


class BoxdThatHangsUp(FakeLine):
    """Greets, and ends the connection at the first request."""

    def _open(self, stream: int, request: dict[str, object]) -> None:
        self.hang_up()


class BoxdThatSpeaksNonsense(FakeLine):
    """Greets, and answers requests with what is no frame."""

    def _open(self, stream: int, request: dict[str, object]) -> None:
        self.tell(b"\xff" * 64)


class BoxdThatShoutsAtOnce(FakeLine):
    """Greets, and speaks nonsense in the same breath."""

    def _hello(self) -> dict[str, object]:
        hello = super()._hello()
        self.tell(wire.pack_object(wire.HELLO, 0, hello))
        return hello


class BoxdThatShoutsAfterwards(FakeLine):
    """Greets, and speaks nonsense with the next breath."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await super().receive(max_bytes)
        self.tell(b"\xff" * 64)
        return data


class BoxdThatFloods(FakeLine):
    """Answers each request with more notes than anybody can want."""

    def _open(self, stream: int, request: dict[str, object]) -> None:
        for number in range(1000):
            self.tell(wire.pack_object(wire.NOTE, stream, {"number": number}))


class StoreInLine(Store):
    """A store without worker threads: whoever runs an event loop over it can repeat the run."""

    async def _run(self, function: Callable[[], T]) -> T:
        await checkpoint()
        result = self.file.run_here(function)
        await checkpoint()  # its answer is on its way while others go on
        return result


class StoreThatFails(StoreInLine):
    """Works until `ill` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ill = False

    async def _run(self, function: Callable[[], T]) -> T:
        await checkpoint()
        if self.ill:
            raise StoreUnusable(self.file.path, "disk full")
        return await super()._run(function)


class StoreThatRecordsSlowly(StoreThatFails):
    """Holds new boxes; `reached` tells that one waits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reached = anyio.Event()
        self.go_on = anyio.Event()

    async def assign(self, box: Box, room: Room) -> bool:
        self.reached.set()
        await self.go_on.wait()
        return await super().assign(box, room)
