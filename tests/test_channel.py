from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from box_mcp import channel as channels
from box_mcp.boxd import wire
from box_mcp.boxd.wire import CREDIT, DATA, END, FAIL, HELLO, MAX_PAYLOAD, NOTE, OPEN, WINDOW
from box_mcp.channel import Channel, RemoteCall, open_channel
from box_mcp.domain.box import BoxSpec
from box_mcp.domain.names import mint_id
from box_mcp.engines.fake import FakeEngine
from box_mcp.errors import BoxBroken, CallInterrupted, CallRefused
from box_mcp.events import BoxAsked, Event
from tests.support.invariants import quiet

BOX = "box-aaaaaaaa"
GREETING = wire.pack_object(HELLO, 0, {"version": wire.VERSION, "boot": "b1"})
DONE = {"done": True}


class Line:
    """A byte stream whose other end is the test."""

    def __init__(self, *, greets: bool = True) -> None:
        self.sent = bytearray()
        self.closed = False
        self.deaf = False
        self._said = bytearray(GREETING if greets else b"")
        self._hung_up = False
        self._news = anyio.Event()
        self._listening = anyio.Event()
        self._heard = wire.Decoder(wire.FROM_SERVER)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        while not self._said:
            if self.closed:
                raise anyio.ClosedResourceError
            if self._hung_up:
                raise anyio.EndOfStream
            self._news = anyio.Event()
            await self._news.wait()
        data = bytes(self._said[:max_bytes])
        del self._said[:max_bytes]
        return data

    async def send(self, item: bytes) -> None:
        if self._hung_up or self.closed:
            raise anyio.BrokenResourceError
        half = len(item) // 2
        self.sent += item[:half]
        if self.deaf:
            await self._listening.wait()
        await anyio.lowlevel.checkpoint()
        self.sent += item[half:]

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True
        self._news.set()

    @property
    def heard_all(self) -> bool:
        return not self._said

    def tell(self, data: bytes) -> None:
        self._said += data
        self._news.set()

    def hang_up(self) -> None:
        self._hung_up = True
        self._news.set()

    def listen(self) -> None:
        """Hears what was said while it was deaf."""
        self.deaf = False
        self._listening.set()

    def heard(self) -> list[wire.Frame]:
        """The frames that came since this was last asked for."""
        data, self.sent = bytes(self.sent), bytearray()
        return self._heard.feed(data)


@asynccontextmanager
async def talking(line: Line) -> AsyncGenerator[Channel, None]:
    """A channel that is read, over `line`; what was said to greet is forgotten."""
    channel = await open_channel(BOX, line)
    line.heard()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(channel.receive_forever)
            yield channel
            group.cancel_scope.cancel()


def end(stream: int, result: dict[str, Any] = DONE) -> bytes:
    return wire.pack_object(END, stream, result)


def data_in(line: Line) -> int:
    """How many bytes of data came since this was last asked for."""
    return sum(len(frame.payload) for frame in line.heard() if frame.kind == DATA)


def fail(stream: int, code: str = "not_found", message: str = "no such file") -> bytes:
    return wire.pack_object(FAIL, stream, {"code": code, "message": message})


# The greeting


async def test_both_ends_greet():
    line = Line()
    channel = await open_channel(BOX, line)
    (hello,) = line.heard()
    assert (hello.kind, hello.stream, hello.object()) == (HELLO, 0, {"version": wire.VERSION})
    assert channel.hello["boot"] == "b1"
    assert repr(channel) == f"<Channel {BOX} open 0 calls busy=False>"


GREETINGS = {
    "another version": wire.pack_object(HELLO, 0, {"version": 99}),
    "no version": wire.pack_object(HELLO, 0, {}),
    "no object": wire.pack(HELLO, 0, b"[]"),
    "no JSON": wire.pack(HELLO, 0, b"{"),
    "another kind": wire.pack_object(NOTE, 0, {"version": wire.VERSION}),
    "a kind that only servers send": wire.pack_object(OPEN, 0, {}),
    "an endless frame": (2**32 - 1).to_bytes(4, "big") + bytes([HELLO, 0, 0, 0, 0, 0]),
    "a shell's complaint": b"/bin/sh: python3: not found\n",
    "nonsense after the greeting": GREETING + b"\xff" * 10,
    "a stranger's answer after the greeting": GREETING + end(7),
}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
async def test_a_box_that_does_not_greet_properly_is_broken(greeting: bytes):
    line = Line(greets=False)
    line.tell(greeting)
    with pytest.raises(BoxBroken) as failure:
        await open_channel(BOX, line)
    assert failure.value.box == BOX
    assert line.closed


async def test_a_box_that_hangs_up_before_it_greeted_is_broken():
    line = Line(greets=False)
    line.hang_up()
    with pytest.raises(BoxBroken):
        await open_channel(BOX, line)
    assert line.closed


async def test_a_box_that_never_greets_is_broken_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(channels, "HELLO_TIMEOUT", 0.02)
    line = Line(greets=False)
    with pytest.raises(BoxBroken, match=r"no word from its daemon within 0\.02 s"):
        await open_channel(BOX, line)
    assert line.closed


async def test_what_the_connector_complained_of_explains_a_broken_box():
    class LineWithComplaint(Line):
        complaint = b"python3: not found\n"

    line = LineWithComplaint(greets=False)
    line.hang_up()
    with pytest.raises(BoxBroken, match="python3: not found"):
        await open_channel(BOX, line)


async def test_a_greeting_in_pieces_is_understood():
    line = Line(greets=False)
    async with anyio.create_task_group() as group:
        group.start_soon(open_channel, BOX, line)
        for byte in GREETING:
            line.tell(bytes([byte]))
            await quiet()
    assert not line.closed


async def test_what_comes_in_one_piece_with_the_greeting_is_heard():
    line = Line()
    line.tell(wire.pack_object(NOTE, 0, {"busy": True}))
    async with talking(line) as channel:
        assert channel.busy


async def test_a_cancelled_greeting_closes_the_line():
    line = Line(greets=False)
    async with anyio.create_task_group() as group:
        group.start_soon(open_channel, BOX, line)
        await quiet()
        group.cancel_scope.cancel()
    assert line.closed


# Requests


async def test_a_request_is_opened_and_answered_by_its_end():
    line = Line()
    async with talking(line) as channel, channel.call("stat", path="/") as call:
        (request,) = line.heard()
        assert (request.kind, request.stream) == (OPEN, 1)
        assert request.object() == {"op": "stat", "path": "/"}
        line.tell(end(1))
        assert await call.wait() == DONE
        assert repr(channel) == f"<Channel {BOX} open 1 calls busy=False>"
    assert line.heard() == []


async def test_a_refusal_has_its_code_and_message_and_spares_the_channel():
    line = Line()
    async with talking(line) as channel, channel.call("stat") as call:
        line.tell(fail(1, "denied", "not yours"))
        with pytest.raises(CallRefused, match="not yours") as refusal:
            await call.wait()
        assert refusal.value.code == "denied"
        assert channel.open


async def test_a_refusal_can_be_written_in_any_encoding():
    line = Line()
    async with talking(line) as channel, channel.call("stat") as call:
        line.tell(fail(1, "not_found", "\udcff"))
        with pytest.raises(CallRefused) as refusal:
            await call.wait()
    assert str(refusal.value).encode() == b"\\udcff"


async def test_requests_are_answered_in_any_order():
    line = Line()
    async with talking(line) as channel, channel.call("a") as first, channel.call("b") as second:
        line.tell(end(2, {"to": "second"}) + end(1, {"to": "first"}))
        assert await first.wait() == {"to": "first"}
        assert await second.wait() == {"to": "second"}


async def test_many_requests_at_once_get_their_own_answers():
    line = Line()
    answers: dict[str, Any] = {}

    async def ask(op: str) -> None:
        answers[op] = await channel.request(op)

    async with talking(line) as channel, anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(ask, f"op {number}")
        await quiet()
        for request in reversed(line.heard()):
            line.tell(end(request.stream, {"to": request.object()["op"]}))
    assert answers == {f"op {number}": {"to": f"op {number}"} for number in range(50)}


async def test_data_and_notes_come_labelled_and_in_order():
    line = Line()
    async with talking(line) as channel, channel.call("run") as call:
        line.tell(wire.pack_data(1, b"out", wire.STDOUT) + wire.pack_object(NOTE, 1, {"n": 1}))
        line.tell(wire.pack_data(1, b"err", wire.STDERR) + end(1))
        items = [item async for item in call.labelled()]
    assert items == [(wire.STDOUT, b"out"), (-1, {"n": 1}), (wire.STDERR, b"err")]
    assert call.result == DONE


async def test_a_request_that_fits_no_frame_is_refused_and_spares_the_channel():
    line = Line()
    async with talking(line) as channel:
        with pytest.raises(CallRefused) as refusal:
            await channel.request("stat", path="x" * MAX_PAYLOAD)
        assert refusal.value.code == "too_large"
        assert line.heard() == []
        assert channel.open


# Breaches: what a box may not say

BREACHES = {
    "a kind that only servers send": wire.pack_object(OPEN, 1, {}),
    "an unknown kind": wire.pack(200, 1),
    "a greeting amid a call": wire.pack_object(HELLO, 1, {}),
    "a second greeting": GREETING,
    "a frame over the limit": (MAX_PAYLOAD + 1).to_bytes(4, "big") + bytes([DATA, 0, 0, 0, 0, 1]),
    "an end that is no JSON": wire.pack(END, 1, b"{"),
    "an end that is no object": wire.pack(END, 1, b"[]"),
    "an end that nests too deep": wire.pack(END, 1, b"[" * 200_000),
    "an end that is no UTF-8": wire.pack(END, 1, b'"\xff"'),
    "an end with an endless number": wire.pack(END, 1, b'{"n": ' + b"9" * 5000 + b"}"),
    "a failure that is no object": wire.pack(FAIL, 1, b"7"),
    "a note that is no object": wire.pack(NOTE, 1, b"null"),
    "a word of the box that is no object": wire.pack(NOTE, 0, b"null"),
    "data of the box": wire.pack_data(0, b"x"),
    "an end of the box": end(0),
    "an answer to nobody": end(99),
    "data for nobody": wire.pack_data(99, b"x"),
    "credit for nobody": wire.pack_credit(99, 1),
    "two ends": end(1) + end(1),
    "an end after a failure": fail(1) + end(1),
    "data after the end": end(1) + wire.pack_data(1, b"x"),
    "a note after the end": end(1) + wire.pack_object(NOTE, 1, {}),
    "more data than there is credit": wire.pack_data(1, b"x" * (WINDOW + 1)),
    "more credit than a window holds": wire.pack_credit(1, wire.MAX_WINDOW),
    "credit of three bytes": wire.pack(CREDIT, 1, b"abc"),
    "a flood of notes": wire.pack_object(NOTE, 1, {}) * 257,
    "a huge note": wire.pack_object(NOTE, 1, {"newest": "x" * 10_000}),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES)
async def test_a_breach_of_the_rules_closes_the_channel_with_words(breach: bytes):
    line = Line()
    changes: list[bool] = []
    async with talking(line) as channel, channel.call("a"), channel.call("b") as other:
        channel.on_change = lambda: changes.append(channel.open)
        line.tell(breach)
        with pytest.raises(BoxBroken, match="its daemon broke the protocol"):
            await other.wait()
        assert not channel.open
        assert channel.broken
        with pytest.raises(BoxBroken):
            await channel.request("c")
    assert line.closed
    assert changes == [False]


async def test_the_breaching_call_itself_hears_of_it_too():
    line = Line()
    async with talking(line) as channel, channel.call("run") as call:
        line.tell(wire.pack_data(1, b"good") + wire.pack(END, 1, b"{"))
        with pytest.raises(BoxBroken):
            await call.wait()


async def test_an_answer_to_a_call_that_is_over_is_a_breach():
    line = Line()
    async with talking(line) as channel:
        async with channel.call("a") as call:
            line.tell(end(1))
            await call.wait()
        line.tell(end(1))
        await quiet()
        assert channel.broken


async def test_credit_may_cross_the_end_of_its_stream_on_the_way():
    line = Line()
    async with talking(line) as channel:
        async with channel.call("write", upload=b"x" * 100) as call:
            line.tell(end(1) + wire.pack_credit(1, 100))
            await call.wait()
        line.tell(wire.pack_credit(1, 0))
        await quiet()
        assert channel.open


async def test_empty_data_is_not_kept():
    line = Line()
    async with talking(line) as channel, channel.call("run") as call:
        line.tell(wire.pack(DATA, 1) * 10_000 + end(1))
        assert [item async for item in call.labelled()] == []


async def call_ended(call: RemoteCall) -> None:
    """Waits without reading."""
    while not call.ended:  # noqa: ASYNC110 - calls tell it to readers only
        await anyio.sleep(0.01)


async def test_small_pieces_of_data_wait_as_large_ones():
    line = Line()
    async with talking(line) as channel, channel.call("run") as call:
        line.tell(wire.pack_data(1, b"x" * 64, wire.STDOUT) * (WINDOW // 64) + end(1))
        await call_ended(call)
        held = channel.held
        pieces = [item async for _, item in call.labelled()]
        assert sum(map(len, pieces)) == WINDOW
        assert len(pieces) == held < 100
        assert channel.held == 0


@pytest.mark.parametrize(
    "small",
    [
        [wire.pack(DATA, 1, b"a", wire.STDOUT), wire.pack(DATA, 1, b"a", wire.STDERR)],
        [wire.pack_object(NOTE, 1, {"a": [[]] * 2000})],
    ],
    ids=["data", "notes"],
)
async def test_what_nobody_reads_fills_no_memory_and_what_is_read_may_go_on(
    small: list[bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(channels, "MAX_HELD", 4000)
    line = Line()
    async with talking(line) as channel:
        async with channel.call("run") as call:
            for _ in range(2000):
                line.tell(b"".join(small))
                for _ in small:
                    await call.receive()
            assert channel.held == 0
            line.tell(b"".join(small) * 2001)
            await call_ended(call)
            with pytest.raises(BoxBroken, match="small pieces"):
                await call.wait()
        assert channel.held == 0


@pytest.mark.parametrize("size", [1, 1024])
async def test_a_box_that_sends_frames_without_end_leaves_others_their_turns(
    size: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(channels, "FRAME_REST", 60)
    line = Line()
    async with talking(line) as channel, channel.call("run"):
        line.tell(wire.pack(DATA, 1, b"x" * size) * (WINDOW // 1024) * (1024 // size))
        await quiet()
        assert line.heard_all is (size > 1)


async def test_notes_that_are_read_are_no_flood():
    line = Line()
    count = 0
    async with talking(line) as channel, channel.call("run") as call:
        line.tell(wire.pack_object(NOTE, 1, {}))
        async for _ in call.labelled():
            count += 1
            line.tell(wire.pack_object(NOTE, 1, {}) if count < 1000 else end(1))
    assert count == 1000


async def test_only_news_of_the_box_is_passed_on():
    line = Line()
    told: list[bool] = []
    async with talking(line) as channel:
        channel.on_change = lambda: told.append(channel.busy)
        for busy in (False, True, True, 1, False):
            line.tell(wire.pack_object(NOTE, 0, {"busy": busy}))
        line.tell(wire.pack_object(NOTE, 0, {"something": "else"}))
        await quiet()
        assert told == [True, False]
        channel.on_change = lambda: None


# Cancellation


async def test_leaving_a_call_cancels_it_in_the_box_and_spares_the_others():
    line = Line()
    async with talking(line) as channel, channel.call("other") as other:
        async with anyio.create_task_group() as group:
            group.start_soon(channel.request, "slow")
            await quiet()
            line.heard()
            group.cancel_scope.cancel()
        assert [(frame.kind, frame.stream) for frame in line.heard()] == [(wire.CANCEL, 2)]
        line.tell(wire.pack_data(2, b"late") + wire.pack_object(NOTE, 2, {}) + end(2))
        line.tell(end(1))
        assert await other.wait() == DONE


async def test_a_cancelled_stream_is_over_with_its_end():
    line = Line()
    async with talking(line) as channel:
        async with channel.call("slow"):
            pass
        line.tell(fail(1))
        await quiet()
        assert channel.open
        line.tell(fail(1))
        await quiet()
        assert channel.broken


async def test_a_call_that_ended_is_not_cancelled():
    line = Line()
    async with talking(line) as channel:
        async with channel.call("quick"):
            line.tell(end(1))
            await quiet()
        assert [frame.kind for frame in line.heard()] == [OPEN]


async def test_a_frame_is_sent_whole_though_its_sender_is_cancelled():
    line = Line()
    async with talking(line) as channel:
        line.deaf = True
        async with anyio.create_task_group() as group:
            group.start_soon(channel.request, "slow")
            await quiet()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await quiet()
                line.listen()
        assert [frame.kind for frame in line.heard()] == [OPEN, wire.CANCEL]


async def test_a_box_that_takes_nothing_does_not_hold_its_callers_for_ever(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(channels, "SEND_TIMEOUT", 0.02)
    line = Line()
    async with talking(line) as channel:
        line.deaf = True
        with pytest.raises(CallInterrupted, match="takes nothing any more"):
            await channel.request("stat")
        with pytest.raises(CallInterrupted):
            await channel.request("stat")
        assert not channel.open


# The end of the line


async def test_the_end_of_the_line_interrupts_all_calls():
    line = Line()
    async with talking(line) as channel, channel.call("a") as first, channel.call("b") as second:
        line.hang_up()
        for call in (first, second):
            with pytest.raises(CallInterrupted, match="its daemon ended"):
                await call.wait()
        assert not channel.open
        assert not channel.broken
        assert "closed" in repr(channel)
    assert line.closed


async def test_what_came_before_the_end_of_the_line_is_not_lost():
    line = Line()
    async with talking(line) as channel, channel.call("read") as call:
        line.tell(wire.pack_data(1, b"x" * WINDOW) + end(1))
        line.hang_up()
        await quiet()
        content = [item async for _, item in call.labelled()]
    assert sum(map(len, content)) == WINDOW
    assert call.result == DONE


async def test_a_broken_line_interrupts_whoever_sends():
    line = Line()
    async with talking(line) as channel:
        line.hang_up()
        with pytest.raises(CallInterrupted):
            await channel.request("stat")


async def test_a_channel_that_we_close_says_so():
    line = Line()
    async with talking(line) as channel, channel.call("a") as call:
        await channel.aclose()
        await channel.aclose()
        for request in (call.wait(), channel.request("b")):
            with pytest.raises(CallInterrupted, match="this server closed the connection"):
                await request
    assert line.closed


# Flow control


async def test_data_waits_for_credit():
    line = Line()
    async with talking(line) as channel, channel.call("write") as call:
        line.heard()
        async with anyio.create_task_group() as group:
            group.start_soon(call.send, b"x" * (WINDOW + 2 * wire.CHUNK))
            await quiet()
            assert data_in(line) == WINDOW
            line.tell(wire.pack_credit(1, wire.CHUNK))
            await quiet()
            assert data_in(line) == wire.CHUNK
            line.tell(wire.pack_credit(1, wire.CHUNK))
        assert data_in(line) == wire.CHUNK


@pytest.mark.parametrize("answer", [end(1), fail(1)])
async def test_data_is_held_back_when_the_box_has_answered(answer: bytes):
    line = Line()
    async with talking(line) as channel, channel.call("write") as call:
        async with anyio.create_task_group() as group:
            group.start_soon(call.send, b"x" * (2 * WINDOW))
            await quiet()
            line.heard()
            line.tell(answer)
        assert data_in(line) == 0


async def test_credit_is_given_for_what_was_read_only():
    line = Line()
    async with talking(line) as channel, channel.call("read") as call:
        line.heard()
        line.tell(wire.pack_data(1, b"x" * WINDOW))
        await quiet()
        assert line.heard() == []
        pieces = call.labelled()
        read = 0
        while read < WINDOW:
            _, piece = await anext(pieces)
            read += len(piece)
        assert sum(frame.credit() for frame in line.heard()) == WINDOW


async def test_a_large_file_goes_to_a_box_and_comes_back():
    engine, box = FakeEngine(), mint_id()
    await engine.create(box, BoxSpec("box-mcp:base", cpus=1, memory=2**30))
    await engine.start(box)
    content = bytes(range(256)) * 8 * 1024
    channel = await open_channel(box, await engine.open_channel(box))
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(channel.receive_forever)
            written = await channel.request("write", path="big", upload=content)
            assert (written["size"], written["created"]) == (len(content), True)
            assert engine.boxes[box].files["/workspace/big"] == content
            small = await channel.request("write", path="small", upload=b"abc\n")
            assert small["size"] == 4
            async with channel.call("read", path="small", first_line=1, max_lines=9) as call:
                assert [item async for item in call.labelled()] == [(0, b"abc\n")]
            group.cancel_scope.cancel()


# What is told of requests


async def ended(line: Line, channel: Channel, *said: bytes) -> None:
    """Makes a request, and hears the box say something."""
    with suppress(CallRefused, CallInterrupted):
        async with channel.call("read") as call:
            for one in said:
                line.tell(one)
            await call.wait()


async def test_each_request_is_told_of_with_how_it_ended():
    line, heard = Line(), list[Event]()
    async with talking(line) as channel:
        channel.hook = heard.append
        await ended(line, channel, end(1))
        refusal = {"code": "not_found", "message": "no such file"}
        await ended(line, channel, wire.pack_object(FAIL, 2, refusal))
        await ended(line, channel, wire.pack_object(FAIL, 3, {"code": "a needle\n", "message": ""}))
        async with channel.call("follow"):
            pass
        line.hang_up()
        await ended(line, channel)
    told = [(one.request, one.outcome) for one in heard if isinstance(one, BoxAsked)]
    assert told[:3] == [("read", "ok"), ("read", "not_found"), ("read", "refused")]
    assert told[3:] == [("follow", "left"), ("read", "lost")]
    assert {one.box for one in heard if isinstance(one, BoxAsked)} == {BOX}


async def test_what_is_done_with_an_answer_is_none_of_the_requests_time():
    line, heard = Line(), list[Event]()
    async with talking(line) as channel:
        channel.hook = heard.append
        began = perf_counter()
        async with channel.call("read") as call:
            line.tell(end(1))
            await call.wait()
            answered = perf_counter()
            await anyio.sleep(0.01)
    (one,) = heard
    assert isinstance(one, BoxAsked)
    assert 0 < one.seconds <= answered - began


# Anything at all

KINDS = st.one_of(st.sampled_from([DATA, CREDIT, NOTE, END, FAIL]), st.integers(0, 255))
PAYLOADS = st.one_of(
    st.just(b"{}"),
    st.just(b'{"busy": true}'),
    st.binary(max_size=40),
    st.integers(0, 2**32 - 1).map(lambda size: size.to_bytes(4, "big")),
)
FRAMES = st.builds(wire.pack, KINDS, st.integers(0, 4), PAYLOADS, st.integers(0, 3))
TALK = st.lists(st.one_of(FRAMES, st.binary(max_size=30)), max_size=20)


async def hear_out(talk: list[bytes]) -> None:
    """Calls that hear `talk` and then the end of the line end with a result or an error of ours."""
    line = Line()
    ended: list[bool] = []

    async def ask(channel: Channel) -> None:
        with suppress(BoxBroken, CallInterrupted, CallRefused):
            await channel.request("stat")
        ended.append(True)

    async with talking(line) as channel:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask, channel)
            await quiet()
            for piece in talk:
                line.tell(piece)
                await quiet()
            line.hang_up()
        assert not channel.open
    assert len(ended) == 3


@settings(max_examples=300, database=None)
@given(TALK)
def test_whatever_a_box_says_calls_end_with_our_errors_and_in_time(talk: list[bytes]):
    anyio.run(hear_out, talk)


@settings(max_examples=100, database=None)
@given(st.lists(st.one_of(FRAMES, st.binary(max_size=30)), max_size=4))
def test_whatever_a_box_greets_with_it_is_greeted_or_broken(talk: list[bytes]):
    async def greet() -> None:
        line = Line(greets=False)
        line.tell(b"".join(talk))
        line.hang_up()
        try:
            await open_channel(BOX, line)
        except BoxBroken:
            assert line.closed

    anyio.run(greet)
