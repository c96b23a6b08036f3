"""Watches over real channels to a real boxd; what the box does, the test does itself."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.boxd.connection import MAX_STREAMS
from box_mcp.capabilities import watching
from box_mcp.capabilities.watching import Watches
from box_mcp.channel import Channel, open_channel
from box_mcp.domain.box import Box, BoxSpec
from box_mcp.domain.names import BoxId
from box_mcp.errors import BoxBroken, BoxNotFound, CallRefused, LimitReached
from box_mcp.events import BoxAssigned, BoxMoved
from box_mcp.slots import Claim
from tests.capabilities.test_hostile_answers import answering, end, note
from tests.support.boxd import PATIENCE, LocalBoxd, local_boxd
from tests.support.lines import Line

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

BOX = Box(BoxId("box-aaaaaaaa"), BoxSpec("image", 1, 2**30), created=0)


@pytest.fixture
def boxd() -> Iterator[LocalBoxd]:
    yield from local_boxd()


@asynccontextmanager
async def claimed(boxd: LocalBoxd) -> AsyncGenerator[Claim, None]:
    """The box in the hands of a call, by a channel that ends with the block."""
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX) as link:
        link.connect(str(boxd.socket))
        socket.send_fds(link, [b"-"], [theirs.fileno()] * 2)
    channel = await open_channel(BOX.id, Line(*await asyncio.open_connection(sock=ours)))
    async with reading(channel):
        yield Claim(BOX, channel)


@asynccontextmanager
async def reading(channel: Channel) -> AsyncGenerator[None, None]:
    async with anyio.create_task_group() as group:
        group.start_soon(channel.receive_forever)
        yield
        await channel.aclose()
        group.cancel_scope.cancel()


@dataclass
class Listener:
    """Somebody who is told of changes."""

    _told: asyncio.Queue[None] = field(default_factory=asyncio.Queue[None])

    async def tell(self) -> None:
        self._told.put_nowait(None)

    async def hears(self) -> None:
        with anyio.fail_after(PATIENCE):
            await self._told.get()

    @property
    def silent(self) -> bool:
        return self._told.empty()


async def test_a_change_is_told(boxd: LocalBoxd):
    watches, listener = Watches(), Listener()
    async with watches.open(), claimed(boxd) as claim:
        await watches.add(claim, "a", listener.tell)
        assert listener.silent
        (boxd.workspace / "a").write_text("1")
        await listener.hears()
        (boxd.workspace / "a").unlink()
        await listener.hears()


async def test_a_watch_waits_for_the_next_channel_and_tells_that_something_may_have_changed(
    boxd: LocalBoxd,
):
    watches, listener = Watches(), Listener()
    async with watches.open():
        async with claimed(boxd) as claim:
            await watches.add(claim, "a", listener.tell)
        for _ in range(2):
            async with claimed(boxd) as claim:
                watches.claimed(claim)
                await listener.hears()
                (boxd.workspace / "a").touch()
                await listener.hears()
                (boxd.workspace / "a").unlink()
                await listener.hears()
                watches.claimed(claim)
                assert repr(watches) == "<Watches 1, 0 waiting, 0 listening>"
                assert listener.silent


async def test_who_is_removed_is_told_no_more(boxd: LocalBoxd):
    watches, gone, listener = Watches(), Listener(), Listener()
    async with watches.open():
        async with claimed(boxd) as claim:
            first = await watches.add(claim, "a", gone.tell)
            second = await watches.add(claim, "a", listener.tell)
            watches.remove(first)
            (boxd.workspace / "a").touch()
            await listener.hears()
            assert gone.silent
        watches.remove(second)
        watches.remove(second)
        await anyio.wait_all_tasks_blocked()
        assert repr(watches) == "<Watches 0, 0 waiting, 0 listening>"


async def test_a_watch_that_is_refused_is_none(boxd: LocalBoxd):
    watches, listener = Watches(), Listener()
    (boxd.workspace / "secret").touch(0)
    async with watches.open(), claimed(boxd) as claim:
        with pytest.raises(CallRefused) as caught:
            await watches.add(claim, "secret", listener.tell)
        assert caught.value.code == "denied"
        assert repr(watches) == "<Watches 0, 0 waiting, 0 listening>"


async def come_to(watches: Watches, state: str) -> None:
    """Waits until they are so: a box's word goes through several tasks."""
    with anyio.fail_after(PATIENCE):
        while repr(watches) != state:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)


async def test_a_file_that_may_not_be_read_any_more_is_told_and_tried_again(boxd: LocalBoxd):
    watches, listener = Watches(), Listener()
    file = boxd.workspace / "a"
    file.touch(0o644)
    async with watches.open(), claimed(boxd) as claim:
        await watches.add(claim, "a", listener.tell)
        file.chmod(0)
        await listener.hears()
        await come_to(watches, "<Watches 1, 1 waiting, 0 listening>")
        watches.claimed(claim)
        assert repr(watches) != "<Watches 1, 1 waiting, 0 listening>"
        await come_to(watches, "<Watches 1, 1 waiting, 0 listening>")
        assert listener.silent
        file.chmod(0o644)
        watches.claimed(claim)
        await listener.hears()


async def test_there_is_a_limit(boxd: LocalBoxd, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watching, "MAX_WATCHES", 1)
    watches, listener = Watches(), Listener()
    async with watches.open(), claimed(boxd) as claim:
        only = await watches.add(claim, "a", listener.tell)
        with pytest.raises(LimitReached, match="limit of 1 subscriptions to resources is reached"):
            await watches.add(claim, "b", listener.tell)
        watches.remove(only)
        await watches.add(claim, "b", listener.tell)


async def test_the_watches_of_a_box_that_is_gone_end_and_its_coming_and_going_is_told(
    boxd: LocalBoxd,
):
    watches, listener, audience = Watches(), Listener(), Listener()
    async with watches.open(), claimed(boxd) as claim:
        await watches.add(claim, "a", listener.tell)
        stop = watches.listen("local", audience.tell)
        watches.notice(BoxMoved("box-bbbbbbbb", "running", "deleted", "asked for", "local"))
        await audience.hears()
        assert repr(watches) == "<Watches 1, 0 waiting, 1 listening>"
        watches.notice(BoxMoved(BOX.id, "frozen", "stopped", "idle", "local"))
        watches.notice(BoxMoved(BOX.id, "stopped", "deleted", "idle", "local"))
        await audience.hears()
        watches.notice(BoxAssigned(BOX.id, "local"))
        await audience.hears()
        stop()
        watches.notice(BoxAssigned(BOX.id, "local"))
        await anyio.wait_all_tasks_blocked()
        assert audience.silent
        assert repr(watches) == "<Watches 0, 0 waiting, 0 listening>"


async def test_who_listens_hears_of_nobody_elses_boxes():
    watches, mine, yours = Watches(), Listener(), Listener()
    async with watches.open():
        watches.listen("me", mine.tell)
        watches.listen("you", yours.tell)
        watches.notice(BoxAssigned("box-bbbbbbbb", "you"))
        watches.notice(BoxMoved("box-bbbbbbbb", "running", "deleted", "asked for", "you"))
        watches.notice(BoxMoved("box-cccccccc", "running", "deleted", "not needed"))
        await yours.hears()
        await yours.hears()
        await anyio.wait_all_tasks_blocked()
        assert mine.silent
        assert yours.silent


async def test_one_who_listens_all_the_time_leaves_room_for_others(
    boxd: LocalBoxd, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watching, "MAX_OWN_WATCHES", 1)
    watches, listener = Watches(), Listener()
    stops = [watches.listen(who, Listener().tell) for who in ("me", "you")]
    with pytest.raises(LimitReached, match="limit of 1 subscriptions to resources for each caller"):
        watches.listen("me", Listener().tell)
    stops[0]()
    watches.listen("me", Listener().tell)
    async with watches.open(), claimed(boxd) as claim:
        await watches.add(claim, "a", listener.tell)
        with pytest.raises(LimitReached, match="for each caller"):
            await watches.add(claim, "b", listener.tell)


async def test_a_watch_whose_box_goes_before_it_began_is_none():
    watches = Watches()
    async with watches.open(), answering() as (channel, _), anyio.create_task_group() as group:

        async def add() -> None:
            with pytest.raises(BoxNotFound):
                await watches.add(Claim(BOX, channel), "a", Listener().tell)

        group.start_soon(add)
        await anyio.wait_all_tasks_blocked()
        watches.notice(BoxMoved(BOX.id, "running", "deleted", "asked for"))
    assert repr(watches) == "<Watches 0, 0 waiting, 0 listening>"


async def test_a_listener_that_fails_harms_nobody(
    boxd: LocalBoxd, caplog: pytest.LogCaptureFixture
):
    async def fail() -> None:
        raise RuntimeError("deaf")

    watches, listener = Watches(), Listener()
    async with watches.open(), claimed(boxd) as claim:
        await watches.add(claim, "a", fail)
        await watches.add(claim, "a", listener.tell)
        (boxd.workspace / "a").touch()
        await listener.hears()
        (boxd.workspace / "a").unlink()
        await listener.hears()
    assert "a change could not be told" in caplog.text


async def test_a_box_that_ends_a_watch_at_once_is_broken():
    watches = Watches()
    async with watches.open(), answering(end({})) as (channel, _):
        with pytest.raises(BoxBroken):
            await watches.add(Claim(BOX, channel), "a", Listener().tell)


async def test_a_box_that_floods_is_not_believed():
    watches, listener = Watches(), Listener()
    flood = [note({"changed": number}) for number in range(1000)]
    async with watches.open(), answering(*flood) as (channel, _):
        await watches.add(Claim(BOX, channel), "a", listener.tell)
        await anyio.wait_all_tasks_blocked()
        assert channel.broken


def test_boxd_takes_all_watches_of_its_owner_and_calls_beside():
    assert 2 * watching.MAX_OWN_WATCHES <= MAX_STREAMS
