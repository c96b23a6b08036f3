"""A box that lies, stalls or floods while files come out of it or go in ends its own transfer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, Any

import anyio
import pytest

from box_mcp.boxd import parcel, wire
from box_mcp.capabilities import crossing
from box_mcp.capabilities.transfer import Transfers, copy_between
from box_mcp.channel import open_channel
from box_mcp.errors import BoxBroken, CallInterrupted, CallRefused
from tests.support.boxd import PATIENCE
from tests.support.lines import Liar, Said

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

TALLY: dict[str, Any] = {
    "files": 1,
    "directories": 0,
    "links": 0,
    "bytes": 5,
    "left_out": [],
    "more_left_out": 0,
}
FILE = parcel.Entry(parcel.FILE, 0o644, 5, 0, b"").packed() + b"hello"
WHOLE = FILE + parcel.LAST.packed()


@asynccontextmanager
async def lying(**answers: list[Said]) -> AsyncGenerator[Transfers]:
    survey = [(wire.END, {"kind": "file", **TALLY})]
    channel = await open_channel("box-aaaaaaaa", Liar({"survey": survey, **answers}))
    async with anyio.create_task_group() as group:
        group.start_soon(channel.receive_forever)
        yield Transfers(channel)
        await channel.aclose()
        group.cancel_scope.cancel()


class Source:
    """One large file."""

    size = 1024 * 1024

    def entries(self) -> Iterator[tuple[parcel.Entry, IO[bytes] | bytes | None]]:
        yield parcel.Entry(parcel.FILE, 0o644, self.size, 0, b""), bytes(self.size)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crossing, "STALLED_AFTER", 0.4)
    monkeypatch.setattr(crossing, "END_PATIENCE", 0.4)
    monkeypatch.setattr(crossing, "LOOK_EVERY", 0.1)


async def test_a_proper_parcel_is_taken():
    async with lying(pack=[(wire.DATA, WHOLE), (wire.END, TALLY)]) as transfers:
        assert (await transfers.download("x", parcel.Sink())).bytes == 5


LIES: dict[str, list[Said]] = {
    "nothing": [],
    "an end at once": [(wire.END, TALLY)],
    "an end in the middle": [(wire.DATA, FILE), (wire.END, TALLY)],
    "no end": [(wire.DATA, WHOLE)],
    "half a file": [(wire.DATA, WHOLE[:-30])],
    "garbage": [(wire.DATA, b"x" * 5000)],
    "more behind the end": [(wire.DATA, WHOLE + FILE), (wire.END, TALLY)],
    "more data behind the end": [(wire.DATA, WHOLE), (wire.DATA, FILE), (wire.END, {})],
    "an end that tells nothing": [(wire.DATA, WHOLE), (wire.END, {})],
    "an end of nonsense": [(wire.DATA, WHOLE), (wire.END, {**TALLY, "left_out": [1] * 9})],
    "notes": [(wire.NOTE, {"n": n}) for n in range(999)],
    "more than there is credit for": [(wire.DATA, b"x" * wire.CHUNK)] * 9,
    "a file without an end": [
        (wire.DATA, parcel.Entry(parcel.FILE, 0, 2**50, 0, b"").packed() + b"x" * 9)
    ],
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("into", ["here", "another box"])
async def test_a_lie_ends_what_comes_out(lie: str, into: str):
    with anyio.fail_after(PATIENCE):
        async with lying(pack=LIES[lie]) as source, lying(unpack=[]) as target:
            here = source.download("x", parcel.Sink())
            there = copy_between(source, "x", target, "y")
            copying, unused = (here, there) if into == "here" else (there, here)
            unused.close()
            with pytest.raises((BoxBroken, CallInterrupted)):
                await copying


REPLIES: list[list[Said]] = [
    [],
    [(wire.END, {})],
    [(wire.FAIL, {"code": "x", "message": "y"})],
    [(wire.DATA, b"x"), (wire.END, {})],
    [(wire.CREDIT, b"\xff\xff\xff\xff")],
    [(wire.NOTE, {"n": n}) for n in range(999)],
]


@pytest.mark.parametrize("said", REPLIES)
async def test_a_lie_ends_what_goes_in(said: list[Said]):
    with anyio.fail_after(PATIENCE):
        async with lying(unpack=said) as transfers:
            with pytest.raises((BoxBroken, CallInterrupted, CallRefused)):
                await transfers.upload(Source(), "x")


async def test_more_than_there_is_room_for_never_reaches_the_sink():
    async with lying(pack=[(wire.DATA, WHOLE), (wire.END, TALLY)]) as transfers:
        with pytest.raises(parcel.TooMuch):
            await transfers.download("x", parcel.Sink(), max_bytes=4)
