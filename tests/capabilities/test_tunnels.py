"""Tunnels as byte streams, over a real boxd; and over boxes that lie."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.lowlevel import checkpoint

from box_mcp.boxd import wire
from box_mcp.capabilities import tunnels
from box_mcp.capabilities.tunnels import Tunnel, connect, listen
from box_mcp.channel import Channel, open_channel
from box_mcp.errors import BoxBroken, BoxError, CallInterrupted, CallRefused
from tests.support.boxd import LocalBoxd, local_boxd
from tests.support.lines import Liar, Line, Said

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from anyio.abc import ByteStream

BOX = "box-aaaaaaaa"
LOOPBACK = "127.0.0.1"
MANY = os.urandom(4 * 1024 * 1024)
JUNK: list[Any] = [None, "x", -1, 1.5, float("nan"), 2**70, [], {}, True, False, "\udcff"]

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def boxd() -> Iterator[LocalBoxd]:
    yield from local_boxd()


@asynccontextmanager
async def reading(line: Any) -> AsyncGenerator[Channel, None]:
    """A channel over `line` whose test is over within seconds."""
    with anyio.fail_after(20):
        channel = await open_channel(BOX, line)
        async with anyio.create_task_group() as group:
            group.start_soon(channel.receive_forever)
            try:
                yield channel
            finally:
                await channel.aclose()


@asynccontextmanager
async def channel_to(boxd: LocalBoxd) -> AsyncGenerator[Channel, None]:
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX) as link:
        link.connect(str(boxd.socket))
        socket.send_fds(link, [b"-"], [theirs.fileno()] * 2)
    async with reading(Line(*await asyncio.open_unix_connection(sock=ours))) as channel:
        yield channel


@pytest.fixture
async def channel(boxd: LocalBoxd) -> AsyncGenerator[Channel, None]:
    async with channel_to(boxd) as channel:
        yield channel


@asynccontextmanager
async def program(serve: Callable[[SocketStream], Awaitable[object]]) -> AsyncGenerator[int, None]:
    """The port of a program that serves each connection so, and closes it."""

    async def handle(stream: SocketStream) -> None:
        async with stream:
            await serve(stream)

    async with (
        await anyio.create_tcp_listener(local_host=LOOPBACK) as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, handle)
        yield listener.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()


@asynccontextmanager
async def listening(
    channel: Channel, handler: tunnels.Handler, **env: str
) -> AsyncGenerator[int, None]:
    """The port of boxd that `handler` serves."""
    port = free_port()
    async with anyio.create_task_group() as group:
        await group.start(listen, channel, port, env, handler)
        yield port
        group.cancel_scope.cancel()


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return listener.getsockname()[1]


async def said_by(channel: Channel, command: str) -> bytes:
    """What a command in the box prints."""
    request: dict[str, Any] = {"command": command, "head": 99, "tail": 99}
    async with channel.call("run", **request, timeout=9) as call:
        said = [item async for _, item in call.labelled() if isinstance(item, bytes)]
    return b"".join(said)


async def echo(stream: ByteStream) -> None:
    async for data in stream:
        await stream.send(data)
    await stream.send_eof()


async def heard_out(stream: ByteStream) -> bytes:
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)


async def exchanged(stream: ByteStream, data: bytes) -> bytes:
    """What comes back while `data` is sent."""
    back: list[bytes] = []

    async def hear() -> None:
        back.append(await heard_out(stream))

    async with anyio.create_task_group() as group:
        group.start_soon(hear)
        await stream.send(data)
        await stream.send_eof()
    return back[0]


async def test_what_is_sent_to_a_port_in_the_box_comes_back_whole(channel: Channel):
    async with program(echo) as port, connect(channel, port) as tunnel:
        back = await exchanged(tunnel, MANY)
        assert hashlib.sha256(back).digest() == hashlib.sha256(MANY).digest()
        while repr(tunnel) == f"<Tunnel {BOX} open>":
            await checkpoint()  # the box's last word comes behind its last byte
        assert repr(tunnel) == f"<Tunnel {BOX} ended>"


async def test_programs_in_the_box_are_served_and_have_their_variables(channel: Channel):
    async with listening(channel, echo, SOME_PROXY="here") as port:
        async with await anyio.connect_tcp(LOOPBACK, port) as stream:
            assert await exchanged(stream, MANY) == MANY
        assert await said_by(channel, "echo $SOME_PROXY") == b"here\n"


async def test_commands_in_the_box_have_the_files_that_are_offered(channel: Channel):
    offer = partial(listen, files={"SOME_FILE": "here\n"})
    async with anyio.create_task_group() as group:
        await group.start(offer, channel, free_port(), {}, echo)
        assert await said_by(channel, 'cat "$SOME_FILE"') == b"here\n"
        group.cancel_scope.cancel()


async def test_files_that_boxd_does_not_take_are_refused(channel: Channel):
    with pytest.raises(CallRefused):
        await listen(channel, free_port(), {}, echo, files={"../x": ""})


async def test_a_hundred_connections_are_served_at_once(channel: Channel):
    together = anyio.Event()
    arrived = 0

    async def serve(tunnel: Tunnel) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 100:
            together.set()
        await together.wait()
        await echo(tunnel)

    async def call(port: int, number: int) -> None:
        async with await anyio.connect_tcp(LOOPBACK, port) as stream:
            assert await exchanged(stream, b"%d" % number) == b"%d" % number

    async with listening(channel, serve) as port, anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(call, port, number)


async def test_more_connections_than_may_be_served_at_once_wait_their_turn(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tunnels, "MAX_SERVED", 2)
    serving = most = 0

    async def serve(tunnel: Tunnel) -> None:
        nonlocal serving, most
        serving += 1
        most = max(most, serving)
        await echo(tunnel)
        serving -= 1

    async with listening(channel, serve) as port:
        callers = [await anyio.connect_tcp(LOOPBACK, port) for _ in range(7)]
        for caller in callers:
            async with caller:
                assert await exchanged(caller, b"x") == b"x"
    assert most == 2


async def test_a_port_on_which_nothing_listens_is_refused(channel: Channel):
    with pytest.raises(CallRefused) as refused:
        async with connect(channel, free_port()):
            pytest.fail("nothing listens there")
    assert refused.value.code == "not_listening"


async def test_a_port_that_a_program_has_can_not_be_listened_on(channel: Channel):
    async with program(echo) as port:
        with pytest.raises(CallRefused) as refused:
            await listen(channel, port, {}, echo)
    assert refused.value.code == "in_use"


async def test_the_other_end_hears_the_end_and_still_answers(channel: Channel):
    async def answer(stream: ByteStream) -> None:
        await stream.send(b"heard: " + await heard_out(stream))

    async with program(answer) as port, connect(channel, port) as tunnel:
        await tunnel.send(b"abc")
        await tunnel.send_eof()
        await tunnel.send_eof()
        assert await tunnel.receive(4) == b"hear"
        assert await heard_out(tunnel) == b"d: abc"
        with pytest.raises(anyio.EndOfStream):
            await tunnel.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await tunnel.send(b"more")


async def test_a_wait_for_data_that_is_cancelled_loses_nothing(channel: Channel):
    async with program(echo) as port, connect(channel, port) as tunnel:
        for number in range(50):
            await tunnel.send(b"%03d" % number)
            with anyio.move_on_after(0):
                await tunnel.receive()
                pytest.fail("what is cancelled already receives nothing")
        received = b""
        while len(received) < 3 * 50:
            with anyio.move_on_after(0.0001):
                received += await tunnel.receive(5)
        assert received == b"".join(b"%03d" % number for number in range(50))


async def test_a_tunnel_that_is_closed_still_brings_what_was_sent(channel: Channel):
    heard: list[bytes] = []
    done = anyio.Event()

    async def hear(stream: SocketStream) -> None:
        await stream.send(b"never received")
        heard.append(await heard_out(stream))
        done.set()

    async with program(hear) as port:
        async with connect(channel, port) as tunnel:
            await tunnel.send(MANY)
        await done.wait()
        assert heard == [MANY]
        for use in (tunnel.receive(), tunnel.send(b"x"), tunnel.send_eof()):
            with pytest.raises(anyio.ClosedResourceError):
                await use
        await tunnel.aclose()


async def test_who_waits_for_data_hears_that_the_tunnel_was_closed(channel: Channel):
    async with (
        program(echo) as port,
        connect(channel, port) as tunnel,
        anyio.create_task_group() as group,
    ):

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await tunnel.receive()

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await tunnel.aclose()


@pytest.mark.parametrize("why", ["error", "cancel", "abort"])
async def test_a_tunnel_whose_block_fails_is_a_connection_reset(channel: Channel, why: str):
    resets = 0
    done = anyio.Event()

    async def hear(stream: SocketStream) -> None:
        nonlocal resets
        try:
            await heard_out(stream)
        except anyio.BrokenResourceError:
            resets += 1
        done.set()

    async def leave(tunnel: Tunnel) -> None:
        if why == "error":
            raise KeyError(why)
        if why == "abort":
            return await tunnel.abort()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await tunnel.aclose()

    async with program(hear) as port:
        with pytest.raises(KeyError) if why == "error" else anyio.CancelScope():
            async with connect(channel, port) as tunnel:
                await tunnel.send(b"half")
                await leave(tunnel)
        await done.wait()
    assert resets == 1


async def test_a_handler_that_fails_ends_its_own_connection_only(
    channel: Channel, caplog: pytest.LogCaptureFixture
):
    async def serve(tunnel: Tunnel) -> None:
        said = await tunnel.receive()
        if said == b"fail":
            raise LookupError(said)
        if said == b"group":
            async with anyio.create_task_group() as group:
                group.start_soon(tunnel.receive)
                raise LookupError(said)
        await tunnel.send(said)

    async with listening(channel, serve) as port:
        for said in (b"fail", b"group"):
            async with await anyio.connect_tcp(LOOPBACK, port) as stream:
                await stream.send(said)
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
        async with await anyio.connect_tcp(LOOPBACK, port) as stream:
            await stream.send(b"fine")
            assert await heard_out(stream) == b"fine"


async def test_a_program_that_goes_away_is_nothing_to_be_told_of(
    channel: Channel, caplog: pytest.LogCaptureFixture
):
    left = anyio.Event()

    async def serve(tunnel: Tunnel) -> None:
        try:
            while True:
                await tunnel.send(MANY)
        finally:
            left.set()

    async with listening(channel, serve) as port:
        stream = await anyio.connect_tcp(LOOPBACK, port)
        await stream.receive()
        await stream.aclose()
        await left.wait()
    assert not caplog.records


async def test_a_listener_that_is_cancelled_closes_all_and_the_port_says_why(channel: Channel):
    served = anyio.Event()

    async def serve(tunnel: Tunnel) -> None:
        served.set()
        await anyio.sleep_forever()

    async with listening(channel, serve) as port:
        stream = await anyio.connect_tcp(LOOPBACK, port)
        await served.wait()
    with pytest.raises(anyio.BrokenResourceError):
        await stream.receive()
    await stream.aclose()
    async with await anyio.connect_tcp(LOOPBACK, port) as stream:
        assert b" 503 Service Unavailable" in await heard_out(stream)


async def test_handlers_that_take_nothing_delay_no_other_call(channel: Channel):
    full = anyio.Event()

    async def pour(stream: SocketStream) -> None:
        with anyio.move_on_after(0.3):
            while True:
                await stream.send(MANY)
        full.set()

    async with program(pour) as port, connect(channel, port) as tunnel:
        await full.wait()
        for _ in range(10):
            await channel.request("stat", path="/")
        assert await tunnel.receive(1) == MANY[:1]


async def test_two_servers_offer_a_port_and_the_older_has_it_when_the_newer_ends(
    boxd: LocalBoxd, channel: Channel
):
    async def says(tunnel: Tunnel, what: bytes) -> None:
        await tunnel.send(what)

    async def answer(port: int) -> bytes:
        async with await anyio.connect_tcp(LOOPBACK, port) as stream:
            return await heard_out(stream)

    async with listening(channel, partial(says, what=b"old")) as port:
        async with channel_to(boxd) as second, anyio.create_task_group() as group:
            await group.start(listen, second, port, {}, partial(says, what=b"new"))
            assert await answer(port) == b"new"
            group.cancel_scope.cancel()
        assert await answer(port) == b"old"


async def test_a_box_that_goes_away_breaks_its_tunnels_and_ends_its_listeners():
    async def hold(stream: ByteStream) -> None:
        with pytest.raises(anyio.BrokenResourceError):
            await heard_out(stream)

    with LocalBoxd() as boxd:
        async with (
            channel_to(boxd) as channel,
            program(hold) as port,
            connect(channel, port) as tunnel,
            anyio.create_task_group() as group,
        ):

            async def listens(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                with pytest.raises(CallInterrupted):
                    await listen(channel, free_port(), {}, echo, task_status=task_status)

            await group.start(listens)
            boxd.process.send_signal(signal.SIGTERM)
            with pytest.raises(anyio.BrokenResourceError) as broken:
                await tunnel.receive()
            assert isinstance(broken.value.__cause__, CallInterrupted)
            with pytest.raises(anyio.BrokenResourceError):
                await tunnel.send(b"x")
            with pytest.raises(CallInterrupted):
                async with connect(channel, port):
                    pytest.fail("the box is gone")


CONNECTED: Said = (wire.NOTE, {"connected": True})
EOF: Said = (wire.NOTE, {"eof": True})
TOO_MUCH: list[Said] = [(wire.DATA, bytes(wire.MAX_PAYLOAD)), (wire.DATA, b"x")]
LIES: list[list[Said]] = [
    [(wire.END, {})],
    [(wire.FAIL, {"code": 1, "message": ["x"]})],
    [(wire.NOTE, {"accepted": 1})],
    [(wire.DATA, b"data")],
    [(wire.NOTE, {})] * 1000,
    TOO_MUCH,
    [(wire.CREDIT, b"\xff" * 4)],
    [(wire.CREDIT, b"")],
    *([(wire.NOTE, {"connected": junk})] for junk in JUNK if junk is not True),
    *([(wire.NOTE, {"listening": junk})] for junk in JUNK if junk is not True),
]


GOING_ON: list[list[Said]] = [
    [(wire.END, {})],
    [(wire.FAIL, {"code": "x", "message": "y"})],
    [(wire.NOTE, {"eof": False})],
    [(wire.NOTE, {"eof": 1})],
    [(wire.NOTE, {"newest": "x"})],
    [(wire.NOTE, {})] * 1000,
    [(wire.CREDIT, b"\xff" * 4)],
    TOO_MUCH,
    [EOF, *TOO_MUCH],
    [EOF, (wire.END, {}), (wire.DATA, b"x")],
]


@pytest.mark.parametrize("answer", LIES, ids=lambda answer: ascii(answer)[:40])
async def test_what_does_not_begin_as_it_should_is_a_broken_box_or_a_refusal(
    answer: list[Said],
):
    async with reading(Liar({"connect": answer, "listen": answer})) as channel:
        with pytest.raises((BoxBroken, CallRefused)):
            async with connect(channel, 1):
                pytest.fail("that is no connection")
        with pytest.raises((BoxBroken, CallRefused)):
            await listen(channel, 1, {}, echo)


@pytest.mark.parametrize("token", [junk for junk in JUNK if junk is not False], ids=ascii)
async def test_a_connection_without_a_proper_token_ends_the_listener(token: Any):
    answer = [(wire.NOTE, {"listening": True}), (wire.NOTE, {"accepted": token})]
    async with reading(Liar({"listen": answer})) as channel:
        with pytest.raises(BoxBroken, match="its daemon sent no proper"):
            await listen(channel, 1, {}, echo)


@pytest.mark.parametrize(
    "lies",
    GOING_ON,
    ids=lambda lies: ascii(lies)[:40],
)
async def test_a_tunnel_that_goes_on_with_lies_breaks_and_nothing_else_does(
    lies: list[Said],
):
    async def use(tunnel: Tunnel) -> None:
        heard = 0
        while heard <= wire.WINDOW:
            heard += len(await tunnel.receive())
            await tunnel.send(b"x" * 1000)

    async def serves(channel: Channel, broken: anyio.Event) -> None:
        async def handle(tunnel: Tunnel) -> None:
            try:
                await use(tunnel)
            finally:
                broken.set()

        with suppress(BoxError):
            await listen(channel, 1, {}, handle)

    accepted = [(wire.NOTE, {"listening": True}), (wire.NOTE, {"accepted": 7})]
    liar = Liar({"connect": [CONNECTED, *lies], "listen": accepted, "accept": lies})
    async with reading(liar) as channel, anyio.create_task_group() as group:
        broken = anyio.Event()
        group.start_soon(serves, channel, broken)
        await broken.wait()
        group.cancel_scope.cancel()
    async with reading(Liar({"connect": [CONNECTED, *lies]})) as channel:
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream, BoxBroken)):
            async with connect(channel, 1) as tunnel:
                await use(tunnel)


async def test_a_box_that_announces_more_than_anybody_reads_ends_its_channel():
    flood = [(wire.NOTE, {"listening": True})]
    flood += [(wire.NOTE, {"accepted": number}) for number in range(1000)]
    async with reading(Liar({"listen": flood})) as channel:
        with pytest.raises(BoxBroken, match="flooded"):
            await listen(channel, 1, {}, echo)


async def test_a_box_that_never_answers_is_given_up_and_its_channel_closed(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(tunnels, "BEGIN_TIMEOUT", 0.05)
    for use in (connect_to, listen_on):
        async with reading(Liar({})) as channel:
            with pytest.raises(CallInterrupted, match="it gave no answer within"):
                await use(channel)
            assert not channel.open


async def connect_to(channel: Channel) -> None:
    async with connect(channel, 1):
        pytest.fail("nobody answered")


async def listen_on(channel: Channel) -> None:
    await listen(channel, 1, {}, echo)
