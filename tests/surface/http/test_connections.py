"""Connections: how slowly one may speak and listen, how many there may be, how they end."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from box_mcp.surface.http.connections import STREAMED, Bounds, Connections, Web
from box_mcp.surface.http.listening import Listen, bind, parse_listen, tls_context
from tests.support.certificates import certificate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from anyio.abc import ByteStream
    from starlette.types import Receive, Scope, Send

SHORT, NEVER = 0.2, 60.0  # s
FAIR = 0.7  # s in which something is done also on a busy machine
GONE = (anyio.BrokenResourceError, anyio.EndOfStream)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@dataclass
class App:
    """Reads a request whole and says how much it was; or does what it is told."""

    size: int = 0
    streamed: bool = False
    unread: bool = False
    seen: list[Scope] = field(default_factory=list[Any])
    begun: anyio.Event = field(default_factory=anyio.Event)
    go: anyio.Event | None = None
    gone: anyio.Event = field(default_factory=anyio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope)
        if self.streamed:
            scope[STREAMED] = True
        self.begun.set()
        came = 0
        while not self.unread:
            message = await receive()
            if message["type"] == "http.disconnect":
                return self.gone.set()
            came += len(message["body"])
            if not message["more_body"]:
                break
        if self.go is not None:
            await self.go.wait()
        head = [(b"content-length", b"%d" % (self.size or len(str(came))))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for _ in range(self.size // 65536):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": b"" if self.size else b"%d" % came})
        self.gone.set()


@dataclass
class Served:
    """A server of the app, and what it told of those that it did not listen to."""

    web: Web
    port: int
    told: list[tuple[str, str]]

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[ByteStream, None]:
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            yield stream

    async def ask(self, said: bytes) -> bytes:
        async with self.connect() as stream:
            await stream.send(said)
            return await answer(stream)

    @property
    def reasons(self) -> list[str]:
        return [why for _, why in self.told]


@asynccontextmanager
async def served(
    app: App | None = None,
    tls: ssl.SSLContext | None = None,
    trusted: bool = False,
    **bounds: Any,
) -> AsyncGenerator[Served, None]:
    sockets, told = bind(parse_listen("127.0.0.1:0")), list[tuple[str, str]]()
    connections = Connections(
        Bounds(**bounds), lambda _: trusted, lambda address, why: told.append((address, why))
    )
    web = Web(app or App(), sockets, connections, tls)
    with anyio.fail_after(20):
        async with web.open():
            yield Served(web, sockets[0].getsockname()[1], told)


async def answer(stream: ByteStream) -> bytes:
    """One answer that says its length."""
    said = b""
    while b"\r\n\r\n" not in said:
        said += await stream.receive()
    head, _, body = said.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
    while len(body) < length:
        body += await stream.receive()
    return head.split(b"\r\n")[0] + b" " + body


async def rest(stream: ByteStream) -> bytes:
    """All that comes until the connection ends."""
    said = b""
    try:
        while True:
            said += await stream.receive()
    except GONE:
        return said


async def drip(stream: ByteStream, piece: bytes, pause: float = 0.0) -> None:
    """Sends the same again and again, as long as somebody listens."""
    while True:
        await stream.send(piece)
        await anyio.sleep(pause)


async def test_a_request_is_answered_and_its_connection_kept():
    async with served() as here, here.connect() as stream:
        for _ in range(2):
            await stream.send(POST % 3 + b"abc")
            assert await answer(stream) == b"HTTP/1.1 200 OK 3"
        assert len(here.web.connections.open) == 1


async def test_answers_have_a_date_and_do_not_say_what_the_server_is_made_of():
    async with served() as here, here.connect() as stream:
        await stream.send(GET)
        said = (await stream.receive()).lower()
        assert b"\r\ndate: " in said
        assert b"uvicorn" not in said


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
async def test_a_head_that_does_not_come_to_its_end_ends_the_connection(said: bytes):
    async with served(head=SHORT, body=NEVER) as here, here.connect() as stream:
        if said:
            await stream.send(said)
        assert await rest(stream) == b""
        assert here.told == [("127.0.0.1", "too slow")]


async def test_a_head_that_drips_has_no_more_time_than_another():
    async with served(head=SHORT, body=NEVER) as here, here.connect() as stream:
        with pytest.raises(GONE):
            await drip(stream, b"x", SHORT / 10)


async def test_a_second_head_has_its_time_from_its_first_byte():
    async with served(head=FAIR, body=NEVER) as here, here.connect() as stream:
        await stream.send(GET)
        await answer(stream)
        await anyio.sleep(FAIR + SHORT)
        assert len(here.web.connections.open) == 1
        await stream.send(GET)
        assert await answer(stream) == b"HTTP/1.1 200 OK 0"
        await stream.send(b"G")
        assert await rest(stream) == b""


async def test_a_body_that_does_not_come_to_its_end_ends_the_connection():
    app = App()
    async with served(app, head=NEVER, body=SHORT) as here, here.connect() as stream:
        await stream.send(POST % 10 + b"abc")
        assert await rest(stream) == b""
        await app.gone.wait()
        assert here.reasons == ["too slow"]


async def test_a_body_that_comes_fast_enough_has_all_the_time_that_it_takes():
    async with served(head=NEVER, body=FAIR, rate=10) as here, here.connect() as stream:
        await stream.send(POST % 100)
        for _ in range(10):
            await anyio.sleep(FAIR / 8)
            await stream.send(b"x" * 10)
        assert await answer(stream) == b"HTTP/1.1 200 OK 100"


async def test_a_body_that_drips_does_not():
    async with served(head=NEVER, body=SHORT, rate=1000) as here, here.connect() as stream:
        await stream.send(POST % 1000)
        with pytest.raises(GONE):
            await drip(stream, b"x", SHORT / 10)
        assert here.reasons == ["too slow"]


async def test_an_app_that_takes_its_time_is_not_taken_for_a_slow_client():
    app = App(go=anyio.Event())
    async with served(app, head=FAIR, body=SHORT) as here, here.connect() as stream:
        await stream.send(POST % 3 + b"abc")
        await app.begun.wait()
        await anyio.sleep(FAIR + SHORT)
        assert app.go is not None
        app.go.set()
        assert await answer(stream) == b"HTTP/1.1 200 OK 3"


async def test_a_body_that_is_passed_on_as_it_comes_is_bounded_by_who_does_so():
    app = App(streamed=True)
    async with served(app, head=NEVER, body=SHORT, max_body=10) as here, here.connect() as stream:
        size = 4 * 1024 * 1024
        await stream.send(POST % size)
        await anyio.sleep(2 * SHORT)
        await stream.send(b"x" * size)
        assert await answer(stream) == b"HTTP/1.1 200 OK %d" % size


async def test_more_than_a_body_may_have_is_not_even_thrown_away():
    async with served(App(unread=True), max_body=10) as here, here.connect() as stream:
        await stream.send(POST % 10**9)
        with pytest.raises(GONE):
            await drip(stream, b"x" * 65536)
        assert here.reasons == ["too large"]


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CRUMB = b"1\r\nx\r\n"


async def test_a_body_of_very_many_pieces_is_no_body():
    async with served() as here, here.connect() as stream:
        await stream.send(CHUNKED + CRUMB * 5000)
        assert (await rest(stream)).startswith(b"HTTP/1.1 400 ")
        assert here.reasons == ["no HTTP"]


async def test_nor_is_what_is_said_after_an_answer():
    app = App(unread=True)
    async with served(app) as here, here.connect() as stream:
        await stream.send(CHUNKED)
        assert await answer(stream) == b"HTTP/1.1 200 OK 0"
        await stream.send(CRUMB * 5000)
        assert await rest(stream) == b""
        assert here.reasons == ["no HTTP"]


async def test_a_body_may_have_some_small_pieces_and_very_many_large_ones():
    many = b"80\r\n" + b"x" * 128 + b"\r\n"
    async with served() as here:
        for pieces, size in ((CRUMB * 1500, 1500), (many * 5000, 5000 * 128)):
            answered = await here.ask(CHUNKED + pieces + b"0\r\n\r\n")
            assert answered == b"HTTP/1.1 200 OK %d" % size


async def test_what_is_passed_on_as_it_comes_may_come_in_any_number_of_pieces():
    app = App(streamed=True)
    async with served(app) as here, here.connect() as stream:
        await stream.send(CHUNKED)
        await app.begun.wait()
        await stream.send(CRUMB * 5000 + b"0\r\n\r\n")
        assert await answer(stream) == b"HTTP/1.1 200 OK 5000"


async def test_who_does_not_read_its_answer_does_not_get_the_rest():
    app = App(size=64 * 1024 * 1024)
    async with served(app, stall=SHORT) as here, here.connect() as stream:
        await stream.send(GET)
        await app.gone.wait()
        assert here.reasons == ["does not read"]
        assert len(await rest(stream)) < app.size


async def test_nor_keeps_a_connection_that_was_closed_already():
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        head = [(b"content-length", b"40000")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"x" * 40000})
        said.set()

    said, sockets = anyio.Event(), bind(parse_listen("127.0.0.1:0"))
    sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    web = Web(app, sockets, Connections(Bounds(stall=SHORT)))
    with anyio.fail_after(20), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with web.open():
            client.connect(sockets[0].getsockname())
            client.sendall(GET.replace(b"Host", b"Connection: close\r\nHost"))
            await said.wait()
            await web.connections.none_left()


async def test_who_reads_on_gets_all():
    async with served(stall=SHORT) as here, here.connect() as stream:
        await stream.send(GET)
        await answer(stream)
        (connection,) = here.web.connections.open
        connection.pause_writing()
        connection.resume_writing()
        await anyio.sleep(2 * SHORT)
        await stream.send(GET)
        assert await answer(stream) == b"HTTP/1.1 200 OK 0"


async def test_one_address_can_have_so_many_connections():
    async with served(most=5, most_own=2) as here:
        async with here.connect() as one, here.connect() as two:
            for stream in (one, two):
                await stream.send(GET)
                await answer(stream)
            async with here.connect() as three:
                assert await rest(three) == b""
            assert here.reasons == ["too many connections"]
        await here.web.connections.none_left()
        assert await here.ask(GET) == b"HTTP/1.1 200 OK 0"


async def test_a_proxy_has_as_many_as_all_together_may_have():
    async with (
        served(most=2, most_own=1, trusted=True) as here,
        here.connect() as one,
        here.connect() as two,
    ):
        for stream in (one, two):
            await stream.send(GET)
            await answer(stream)
        async with here.connect() as three:
            assert await rest(three) == b""


def test_clients_leave_descriptors_to_boxes_and_files():
    assert Bounds(most=4000, most_own=1000).within(65_536) == Bounds(most=4000, most_own=1000)
    assert Bounds(most=4000, most_own=1000).within(1024) == Bounds(most=512, most_own=512)


@pytest.mark.parametrize(
    "said",
    [
        *(b"\x16\x03\x01\x02\x00\x01\x00", b"nonsense\r\n\r\n", b"GET /\r\n\r\n"),
        *(b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000,
    ],
)
async def test_what_is_no_http_is_told_so_and_its_connection_ends(said: bytes):
    async with served() as here, here.connect() as stream:
        await stream.send(said)
        assert (await rest(stream)).startswith(b"HTTP/1.1 400 ")
        assert here.told == [("127.0.0.1", "no HTTP")]


async def test_an_upgrade_that_nobody_takes_is_answered_as_any_request():
    app = App()
    asked = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with served(app) as here:
        assert (await here.ask(asked)).startswith(b"HTTP/1.1 200 OK")
        assert app.seen[0]["type"] == "http"


async def test_at_the_end_idle_connections_go_at_once_and_others_after_their_answer():
    app = App(go=anyio.Event())
    async with served(app) as here, here.connect() as idle, here.connect() as busy:
        await busy.send(GET)
        await app.begun.wait()
        here.web.stop_listening()
        assert await rest(idle) == b""
        with pytest.raises(OSError, match=r"."):
            await here.ask(GET)
        assert app.go is not None
        app.go.set()
        assert await answer(busy) == b"HTTP/1.1 200 OK 0"
        assert await rest(busy) == b""
        await here.web.connections.none_left()


async def test_what_is_still_under_way_can_be_cut():
    app = App(go=anyio.Event())
    async with served(app) as here, here.connect() as stream:
        await stream.send(GET)
        await app.begun.wait()
        here.web.cut()
        assert await rest(stream) == b""
        await here.web.connections.none_left()


async def test_with_a_certificate_tls_is_spoken(tmp_path: Path):
    made = certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(made.certificate))
    app = App()
    async with served(app, tls_context(made.certificate, made.key)) as here:
        async with await anyio.connect_tcp("localhost", here.port, ssl_context=trust) as stream:
            await stream.send(GET)
            assert await answer(stream) == b"HTTP/1.1 200 OK 0"
            assert app.seen[0]["scheme"] == "https"
        async with here.connect() as plain:
            await plain.send(GET)
            assert b"HTTP/1.1 200" not in await rest(plain)


async def test_connections_count_before_tls_is_spoken_on_them(tmp_path: Path):
    made = certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(made.certificate))
    async with served(tls=tls_context(made.certificate, made.key), most_own=2) as here:
        async with here.connect() as one, here.connect() as two, here.connect() as three:
            assert await rest(three) == b""
            assert here.told == [("127.0.0.1", "too many connections")]
            await two.send(b"no TLS")
            assert b"HTTP" not in await rest(two)
            async with await anyio.connect_tcp("localhost", here.port, ssl_context=trust) as four:
                await four.send(GET)
                assert await answer(four) == b"HTTP/1.1 200 OK 0"
                here.web.stop_listening()
                assert await rest(one) == await rest(four) == b""
        await here.web.connections.none_left()


def cut(client: socket.socket) -> None:
    """Closes it as if its program had crashed: it has no address any more."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


async def test_who_has_left_before_being_heard_is_not_taken_for_another():
    app = App()
    async with served(app) as here:
        client = socket.create_connection(("127.0.0.1", here.port))
        client.sendall(GET)
        cut(client)  # nothing of this waits, so the server has not seen it yet
        assert (await here.ask(GET)).startswith(b"HTTP/1.1 200 ")
        assert [scope["client"] and scope["client"][0] for scope in app.seen] == ["127.0.0.1"]


async def test_who_leaves_as_tls_begins_is_one_connection_less(tmp_path: Path):
    files = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(files.certificate))
    async with served(App(), tls_context(files.certificate, files.key), most_own=1) as here:
        coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting.wrap_bio(coming, going, server_hostname="localhost")
        client = socket.create_connection(("127.0.0.1", here.port))
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                client.sendall(going.read())
                await anyio.wait_readable(client)
                coming.write(client.recv(65536))
            else:
                break
        client.sendall(going.read())
        cut(client)
        await here.web.connections.none_left()
        async with await anyio.connect_tcp(
            "127.0.0.1", here.port, tls_hostname="localhost", ssl_context=trusting
        ) as stream:
            await stream.send(GET)
            assert (await answer(stream)).startswith(b"HTTP/1.1 200 ")


async def test_over_a_unix_socket_there_is_no_address(tmp_path: Path):
    app, where = App(), Listen(path=tmp_path / "box.sock")
    web = Web(app, bind(where), Connections(Bounds()))
    with anyio.fail_after(10):
        async with web.open(), await anyio.connect_unix(str(where.path)) as stream:
            await stream.send(GET)
            assert await answer(stream) == b"HTTP/1.1 200 OK 0"
            assert app.seen[0]["client"] is None
