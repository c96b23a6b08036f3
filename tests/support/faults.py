"""Engines, boxes and stores that fail in one way each; `heal()` ends the trouble."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from box_mcp.boxd import wire
from box_mcp.engines.fake import FakeEngine, FakeLine
from box_mcp.errors import EngineRefused, EngineStalled, EngineUnreachable, StoreUnusable
from box_mcp.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from box_mcp.domain.box import Box
    from box_mcp.domain.limits import Room
    from box_mcp.domain.names import BoxId

T = TypeVar("T")

OPERATIONS = (
    *("create", "start", "freeze", "thaw", "stop", "delete"),
    *("look at", "connect to", "save"),
)


class FaultyEngine(FakeEngine):
    """One fault at the door, for calls of `operation` (or all), until it is healed."""

    def __init__(self, operation: str = "") -> None:
        super().__init__()
        assert not operation or operation in OPERATIONS
        self.operation = operation
        self.ill = True

    def heal(self) -> None:
        """From now on the engine works."""
        self.ill = False

    async def at_door(self, operation: str, box: BoxId) -> None:
        await super().at_door(operation, box)
        if self.ill and self.operation in ("", operation):
            await self.fail(operation, box)

    async def fail(self, operation: str, box: BoxId) -> None:
        raise NotImplementedError


class EngineThatStalls(FaultyEngine):
    """Holds calls at the door; `reached` tells that one is there."""

    def __init__(self, operation: str) -> None:
        super().__init__(operation)
        self.reached = anyio.Event()
        self._healed = anyio.Event()

    def heal(self) -> None:
        super().heal()
        self._healed.set()

    async def fail(self, operation: str, box: BoxId) -> None:
        self.reached.set()
        await self._healed.wait()


class EngineThatRefuses(FaultyEngine):
    """Says no."""

    async def fail(self, operation: str, box: BoxId) -> None:
        raise EngineRefused(f"{operation} a box", "it does not want to")


class EngineThatStumbles(FaultyEngine):
    """Has a bug of ours in it."""

    async def fail(self, operation: str, box: BoxId) -> None:
        raise RuntimeError("a bug")


class EngineWithoutAnswer(FaultyEngine):
    """Nobody is there."""

    async def fail(self, operation: str, box: BoxId) -> None:
        raise EngineUnreachable("nowhere", "nobody answers")


class EngineThatAnswersTooLate(FakeEngine):
    """Does what it is told to, and does not say so in time."""

    def __init__(self) -> None:
        super().__init__()
        self.ill = True

    def heal(self) -> None:
        self.ill = False

    async def freeze(self, box: BoxId) -> None:
        await super().freeze(box)
        self._stall("freeze")

    async def thaw(self, box: BoxId) -> None:
        await super().thaw(box)
        self._stall("thaw")

    async def stop(self, box: BoxId) -> None:
        await super().stop(box)
        self._stall("stop")

    async def delete(self, box: BoxId) -> None:
        await super().delete(box)
        self._stall("delete")

    def _stall(self, operation: str) -> None:
        if self.ill:
            raise EngineStalled(f"{operation} a box", 60.0)


class EngineWhoseBoxesDieAtStart(FakeEngine):
    """What it starts is gone at once."""

    async def start(self, box: BoxId) -> None:
        await super().start(box)
        self.boxes[box].end("exit code 1")

    async def last_words(self, box: BoxId) -> str:
        await super().last_words(box)
        return "Traceback\nno space left"


class EngineWithBoxd(FakeEngine):
    """An engine whose boxes are connected by a faulty line, until it is healed."""

    def __init__(self, line_type: type[FakeLine]) -> None:
        super().__init__()
        self.line_type = line_type

    def heal(self) -> None:
        """Boxes that are started from now on are well."""
        self.line_type = FakeLine


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
        result = self._guarded(function)
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
            raise StoreUnusable(self._path, "disk full")
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
