"""Engines and the boxes that tests make on them, which are gone afterwards."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pytest

from box_mcp.capabilities.shell import Shell
from box_mcp.channel import open_channel
from box_mcp.domain.box import BoxSpec
from box_mcp.domain.names import BoxId, mint_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from box_mcp.capabilities.shell import RunRecord
    from box_mcp.channel import Channel
    from box_mcp.engines.base import Condition, Engine, Found

IMAGE = "box-mcp:base"
RUN = token_hex(4)
"""In the names of images made for tests: several runs may share an engine."""
MEBI = 1024 * 1024
SPEC = BoxSpec(image=IMAGE, cpus=2, memory=256 * MEBI, pids=128)

Test = TypeVar("Test", bound="Callable[..., object]")

PATIENCE = 30.0
"""Seconds; no wait in these tests is longer, however busy the machine."""


@dataclass
class Workshop:
    """An engine, and the boxes that were made on it for tests."""

    engine: Engine
    made: list[BoxId] = field(default_factory=list[BoxId])

    def new_id(self) -> BoxId:
        """An id whose box is deleted in the end, if it came to be."""
        self.made.append(mint_id())
        return self.made[-1]

    async def created(self, **changes: Any) -> BoxId:
        """A box that was never started, of `SPEC` with `changes`."""
        box = self.new_id()
        await self.engine.create(box, replace(SPEC, **changes))
        return box

    async def running(self, **changes: Any) -> BoxId:
        """A started box."""
        box = await self.created(**changes)
        await self.engine.start(box)
        return box

    async def condition(self, box: BoxId) -> Condition:
        """How the engine finds it."""
        return (await self.engine.inspect(box)).condition

    async def listed(self, box: BoxId) -> Found | None:
        """What the engine's list says of it."""
        return next((found for found in await self.engine.list() if found.box == box), None)


@asynccontextmanager
async def workshop(engine: Engine) -> AsyncGenerator[Workshop, None]:
    """A workshop that is cleared up after the block, also when that fails."""
    shop = Workshop(engine)
    try:
        yield shop
    finally:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for box in shop.made:
                    group.start_soon(engine.delete, box)
            await engine.aclose()


@asynccontextmanager
async def channel_to(
    engine: Engine, box: BoxId, patience: float = PATIENCE
) -> AsyncGenerator[Channel, None]:
    """A greeted channel that works for the length of the block."""
    with anyio.fail_after(patience):
        channel = await open_channel(box, await engine.open_channel(box))
        async with anyio.create_task_group() as group:
            group.start_soon(channel.receive_forever)
            try:
                yield channel
            finally:
                await channel.aclose()


@dataclass(frozen=True)
class Ran:
    """What came of a command: all that it printed, and how it ended."""

    output: str
    record: RunRecord

    @property
    def failed(self) -> bool:
        return self.record.exit != 0


async def run(channel: Channel, command: str, *, stdin: str | None = None) -> Ran:
    """Runs a command to its end, good or bad."""
    outcome = await Shell(channel).run(
        command, stdin=stdin, timeout=20, yield_after=25, max_output=200_000
    )
    assert not outcome.record.running
    assert not outcome.skipped
    return Ran((outcome.head + outcome.tail).decode(errors="replace").strip(), outcome.record)


async def said(channel: Channel, command: str) -> str:
    """What a command that succeeds prints."""
    ran = await run(channel, command)
    assert not ran.failed, f"{command}: {ran}"
    return ran.output


def that_leaves_sockets_behind(test: Test) -> Test:
    """Marks a test after which docker-py leaves sockets to the garbage collector.

    It does so with those that could not connect, and with answers that were cut short.
    """
    marked = pytest.mark.usefixtures("collected")(test)
    return pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")(marked)
