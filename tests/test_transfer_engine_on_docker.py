"""Transfers by connections of their own, through a real engine."""

from __future__ import annotations

import os
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
from anyio import to_thread

from box_mcp.boxd.parcel import TooMuch
from box_mcp.capabilities.transfer import OPEN_PIPE_FROM, Transfers, copy_between
from box_mcp.engines.docker import DockerEngine
from box_mcp.errors import CallInterrupted, CallRefused
from tests.support.client import docker, kill_boxd, until
from tests.support.engines import MEBI, Workshop, channel_to, said, workshop
from tests.support.transfers import Hashed, OneFile, digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from box_mcp.channel import Channel
    from box_mcp.domain.names import BoxId

SIZE = 256 * MEBI
GROWTH = 64 * MEBI  # of a server's memory, whatever it moves


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("transfer") / "big"
    with path.open("wb") as file:
        for _ in range(SIZE // MEBI):
            file.write(os.urandom(MEBI))
    yield path
    path.unlink()


@pytest.fixture(scope="module")
async def shop() -> AsyncGenerator[Workshop, None]:
    async with workshop(DockerEngine()) as shop:
        await shop.running()
        yield shop


@asynccontextmanager
async def transfers(shop: Workshop, box: BoxId) -> AsyncGenerator[tuple[Transfers, Channel], None]:
    async with channel_to(shop.engine, box) as channel:
        yield Transfers(channel, lambda token: shop.engine.open_pipe(box, token)), channel


async def nothing_is_left(box: BoxId, channel: Channel, threads: int) -> None:
    """No half-made file, no exec but the channel's own, no thread at work."""

    async def left() -> bool:
        files = await said(channel, "find /workspace -name '.box-*'")
        sleepers = await said(channel, "pgrep -xc sleep; true")
        at_work = threading.active_count() > threads + 1  # anyio keeps one for its next
        return not files and sleepers == "1" and not at_work

    await until(left, f"nothing is left of a transfer in {box}, or by it")


def rss() -> int:
    return psutil.Process().memory_info().rss


async def test_much_goes_up_and_down_unchanged_in_constant_memory(shop: Workshop, big: Path):
    (box,) = shop.made[:1]
    expected = digest(big)
    async with transfers(shop, box) as (moves, channel):
        threads = threading.active_count()
        peak = before = rss()
        told: list[tuple[int, int, str]] = []

        async def tell(done: int, total: int, name: str) -> None:
            nonlocal peak
            peak = max(peak, rss())
            told.append((done, total, name))

        moved = await moves.upload(OneFile(big, in_tree=True), "tree", on_progress=tell)
        assert (moved.files, moved.directories, moved.links) == (1, 1, 1)
        assert moved.bytes == SIZE + 3
        assert (await said(channel, "sha256sum < tree/link")).split()[0] == expected
        sink = Hashed()
        moved = await moves.download("tree", sink, on_progress=tell)
        assert (moved.files, moved.bytes) == (1, SIZE + 3)
        assert sink.hashes[b"big"] == expected
        assert [done for done, *_ in told[-2:]][-1] == SIZE + 3
        assert all(total in (SIZE, SIZE + 3) for _, total, _ in told)
        assert peak - before < GROWTH
        await nothing_is_left(box, channel, threads)


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_transfer_cancelled_in_the_middle_leaves_nothing(
    shop: Workshop, big: Path, direction: str
):
    (box,) = shop.made[:1]
    async with transfers(shop, box) as (moves, channel):
        if direction == "down":
            await moves.upload(OneFile(big), "source", overwrite=True)
        threads = threading.active_count()
        with anyio.CancelScope() as scope:

            async def stop(done: int, _total: int, _name: str) -> None:
                if done:
                    scope.cancel()

            if direction == "up":
                await moves.upload(OneFile(big), "up", on_progress=stop)
            else:
                await moves.download("source", Hashed(), on_progress=stop)
        assert scope.cancelled_caught
        await nothing_is_left(box, channel, threads)
        assert await said(channel, "ls") in ("source\ntree", "tree", "source", "")


async def test_what_a_sink_raises_comes_out(shop: Workshop, big: Path):
    (box,) = shop.made[:1]

    class Full(Hashed):
        def content(self, data: memoryview) -> None:
            raise OSError(28, "the user's disk is full")

    async with transfers(shop, box) as (moves, channel):
        threads = threading.active_count()
        await moves.upload(OneFile(big), "source", overwrite=True)
        with pytest.raises(OSError, match="disk is full"):
            await moves.download("source", Full())
        sink = Hashed()
        with pytest.raises(TooMuch):
            await moves.download("source", sink, max_bytes=SIZE - 1)
        assert not sink.begun.is_set()
        await nothing_is_left(box, channel, threads)


async def test_what_stands_in_the_way_is_told_though_bytes_are_under_way(shop: Workshop, big: Path):
    (box,) = shop.made[:1]
    async with transfers(shop, box) as (moves, channel):
        threads = threading.active_count()
        await said(channel, "echo old > there")
        with pytest.raises(CallRefused) as refused:
            await moves.upload(OneFile(big), "there")
        assert refused.value.code == "exists"
        assert await said(channel, "cat there") == "old"
        await nothing_is_left(box, channel, threads)


async def test_a_little_goes_without_a_connection_of_its_own(shop: Workshop, tmp_path: Path):
    (box,) = shop.made[:1]
    little = tmp_path / "little"
    little.write_bytes(os.urandom(3 * MEBI))
    assert little.stat().st_size < OPEN_PIPE_FROM
    async with channel_to(shop.engine, box) as channel:
        moves, sink = Transfers(channel), Hashed()
        assert (await moves.upload(OneFile(little), "little")).bytes == 3 * MEBI
        await moves.download("little", sink)
        assert sink.hashes[b""] == digest(little)


async def test_a_box_frozen_meanwhile_goes_on_when_it_is_thawed(shop: Workshop, big: Path):
    (box,) = shop.made[:1]
    async with transfers(shop, box) as (moves, _):
        sink = Hashed()
        await moves.upload(OneFile(big), "source", overwrite=True)
        sink.hold.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(moves.download, "source", sink)
            await to_thread.run_sync(sink.begun.wait)
            await shop.engine.freeze(box)
            sink.hold.set()
            await shop.engine.thaw(box)
        assert sink.hashes[b""] == digest(big)


@pytest.mark.parametrize("size", [3 * MEBI, SIZE])
async def test_a_tree_goes_from_one_box_to_another(shop: Workshop, size: int):
    (source,) = shop.made[:1]
    target = await shop.running()
    async with (
        transfers(shop, source) as (here, channel),
        transfers(shop, target) as (there, other),
    ):
        make = f"mkdir -p from/d; head -c {size} /dev/urandom > from/d/f; ln -sf d/f from/l"
        await said(channel, make)
        moved = await copy_between(here, "from", there, "to")
        assert (moved.files, moved.directories, moved.links) == (1, 2, 1)
        hashed = "cd %s; sha256sum l"
        assert await said(channel, hashed % "from") == await said(other, hashed % "to")
        with pytest.raises(CallRefused) as refused:
            await copy_between(here, "from", there, "to")
        assert refused.value.code == "exists"
    await shop.engine.delete(target)


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_daemon_killed_in_the_middle_is_told_and_no_half_file_has_its_name(
    big: Path, direction: str
):
    async with workshop(DockerEngine()) as shop:
        box = await shop.running()
        async with transfers(shop, box) as (moves, _):
            if direction == "down":
                await moves.upload(OneFile(big), "source")

            async def kill(done: int, _total: int, _name: str) -> None:
                if done:
                    await to_thread.run_sync(kill_boxd, box)

            going = (
                moves.upload(OneFile(big), "up", on_progress=kill)
                if direction == "up"
                else moves.download("source", Hashed(), on_progress=kill)
            )
            with pytest.raises(CallInterrupted):
                await going
        await shop.engine.stop(box)
        assert "/workspace/up\n" not in docker("diff", box) + "\n"
