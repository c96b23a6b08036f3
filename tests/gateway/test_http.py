from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.domain.network import Mode, Network
from box_mcp.gateway.ways import Limits
from tests.support.egress import LOOPBACK, echo, everything, listening, proxy, until

if TYPE_CHECKING:
    from anyio.abc import SocketStream

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSE = "Connection: close"
HERE = f"{LOOPBACK}:*"


class Site:
    """Answers the one request of each connection in the same way, and remembers its head."""

    def __init__(self, *answer: bytes) -> None:
        self.heads: list[bytes] = []
        self._answer = answer or (OK,)

    async def __call__(self, stream: SocketStream) -> None:
        self.heads.append(await until(stream, b"\r\n\r\n"))
        for piece in self._answer:
            await stream.send(piece)


def get(url: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {url} HTTP/{version}", "Host: elsewhere.example", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_a_request_for_an_allowed_host_is_answered_and_names_that_host():
    site = Site()
    async with listening(site) as port, proxy("a.example:*", HERE) as box:
        answer = await box.ask(get(f"http://A.example.:{port}/x?y=1", CLOSE))
        assert status(answer) == 200
        assert body(answer) == b"ok"
        assert site.heads == [
            b"GET /x?y=1 HTTP/1.1\r\nHost: a.example:%d\r\nConnection: close\r\n\r\n" % port
        ]
        assert box.refused == {}


async def test_a_refusal_says_what_was_refused_why_and_how_to_ask():
    site = Site()
    async with listening(site) as port, proxy("a.example:*", HERE) as box:
        answer = await box.ask(get(f"http://b.example:{port}/secret?token=1"))
        assert status(answer) == 403
        told = body(answer).decode()
        assert f"b.example:{port} is refused: no rule allows it" in told
        assert "a.example:*" in told
        assert "network_policy" in told
        assert "secret" not in told
        assert box.refused == {f"b.example:{port}": 1}
        assert site.heads == []


async def test_a_name_that_no_rule_allows_is_not_even_looked_up():
    async with proxy("a.example", HERE) as box:
        for request in (get("http://c2VjcmV0.b.example/"), get("b.example:443", method="CONNECT")):
            assert status(await box.ask(request)) == 403
        assert box.asked == []


async def test_every_request_of_a_kept_connection_is_judged():
    site = Site()
    async with (
        listening(site) as port,
        proxy("a.example:*", HERE) as box,
        await box.dial() as client,
    ):
        for _ in range(2):
            await client.send(get(f"http://a.example:{port}/"))
            assert status(await until(client, b"ok")) == 200
        await client.send(get(f"http://b.example:{port}/"))
        assert status(await everything(client)) == 403
        assert len(site.heads) == 2


async def test_a_changed_policy_holds_for_the_next_request():
    async with (
        listening(Site()) as port,
        proxy("a.example:*", HERE) as box,
        await box.dial() as client,
    ):
        await client.send(get(f"http://a.example:{port}/"))
        await until(client, b"ok")
        box.network = Network(Mode.NONE)
        await client.send(get(f"http://a.example:{port}/"))
        assert status(await everything(client)) == 403


async def test_requests_that_come_at_once_are_answered_in_turn():
    site = Site()
    async with listening(site) as port, proxy("*:*", HERE) as box:
        requests = [get(f"http://a.example:{port}/{number}") for number in range(3)]
        answer = await box.ask(b"".join(requests) + get(f"http://b.example:{port}/", CLOSE))
        assert answer.count(b"HTTP/1.1 200 OK") == 4
        paths = [head.split(b" ")[1] for head in site.heads]
        assert paths == [b"/0", b"/1", b"/2", b"/"]


async def test_what_is_between_neighbours_is_not_passed_on():
    site = Site(
        b"HTTP/1.1 200 OK\r\nKeep-Alive: 5\r\nProxy-Authenticate: Basic\r\nX-Kept: 1\r\n"
        b"Connection: X-Mine\r\nX-Mine: 1\r\nContent-Length: 2\r\n\r\nok"
    )
    headers = (
        *("Proxy-Authorization: Basic c2VjcmV0", "Proxy-Connection: keep-alive", "TE: trailers"),
        *("Connection: X-Hidden, Host, close", "X-Hidden: 1", "X-Kept: 1", "Upgrade: h2c"),
        *("HTTP2-Settings: AAMAAABkAAQAAP__",),
    )
    async with listening(site) as port, proxy("*:*", HERE) as box:
        answer = await box.ask(get(f"http://a.example:{port}/", *headers))
        assert b"x-kept: 1\r\n" in answer.lower()
        for word in (b"Keep-Alive", b"Basic", b"X-Mine"):
            assert word not in answer
        (head,) = site.heads
        assert head == (
            b"GET / HTTP/1.1\r\nHost: a.example:%d\r\nX-Kept: 1\r\nConnection: close\r\n\r\n" % port
        )


@pytest.mark.parametrize(
    ("headers", "sent", "framing"),
    [
        (["Content-Length: 5"], b"12345", b"Content-Length: 5"),
        (["Transfer-Encoding: chunked"], b"5;x=y\r\n12345\r\n0\r\nX: y\r\n\r\n", b"chunked"),
        (["Content-Length: 5", "Connection: Content-Length"], b"12345", b"Content-Length: 5"),
    ],
)
async def test_a_body_is_passed_on_however_its_end_is_told(
    headers: list[str], sent: bytes, framing: bytes
):
    got: list[bytes] = []

    async def site(stream: SocketStream) -> None:
        data = b""
        while b"12345" not in data:
            data += await stream.receive()
        got.append(data)
        await stream.send(OK)

    async with listening(site) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        await client.send(get(f"http://a.example:{port}/", *headers, method="POST") + sent)
        assert status(await until(client, b"ok")) == 200
        assert framing in got[0]
        await client.send(get(f"http://a.example:{port}/12345", CLOSE))  # the connection is in step
        assert status(await everything(client)) == 200


async def test_a_client_that_waits_to_be_told_to_go_on_is_told_by_the_site():
    async def site(stream: SocketStream) -> None:
        head = await until(stream, b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        await stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await until(stream, b"12345")
        await stream.send(OK)

    async with listening(site) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        headers = ("Expect: 100-continue", "Content-Length: 5", CLOSE)
        await client.send(get(f"http://a.example:{port}/", *headers, method="PUT"))
        assert status(await until(client, b"\r\n\r\n")) == 100
        await client.send(b"12345")
        assert status(await everything(client)) == 200


async def test_a_client_that_waits_to_be_told_to_go_on_is_refused_before_it_sends():
    async with proxy("a.example") as box:
        headers = ("Expect: 100-continue", "Content-Length: 5")
        assert status(await box.ask(get("http://b.example/", *headers, method="PUT"))) == 403


async def test_a_site_may_answer_before_it_has_all():
    site = Site(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    async with listening(site) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        await client.send(
            get(f"http://a.example:{port}/", "Content-Length: 1000000", method="POST")
        )
        assert status(await everything(client)) == 413


async def test_a_websocket_passes():
    async def site(stream: SocketStream) -> None:
        head = await until(stream, b"\r\n\r\n")
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        await stream.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello"
        )
        await echo(stream)

    async with listening(site) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        asked = get(f"http://a.example:{port}/", "Connection: Upgrade", "Upgrade: WebSocket")
        await client.send(asked + b"early")
        answer = await until(client, b"early")
        assert status(answer) == 101
        assert b"Sec-WebSocket-Accept: x\r\n" in answer
        assert body(answer) == b"helloearly"
        await client.send(b"\x00late")
        await client.send_eof()
        assert await everything(client) == b"\x00late"


async def test_a_site_can_not_switch_to_what_nobody_asked_for():
    site = Site(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nbytes")
    async with listening(site) as port, proxy("*:*", HERE) as box:
        answer = await box.ask(
            get(f"http://a.example:{port}/", "Connection: Upgrade", "Upgrade: h2c")
        )
        assert status(answer) == 502
        assert b"Upgrade" not in site.heads[0]


@pytest.mark.parametrize(
    "request_",
    [
        get("http://a.example/", "Content-Length: 5", "Transfer-Encoding: chunked"),
        get("http://a.example/", "Content-Length: 5", "Content-Length: 6"),
        get("http://a.example/", "Content-Length: +5"),
        get("http://a.example/", "Transfer-Encoding: gzip, chunked"),
        get("http://a.example/", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        get("http://a.example/", "Transfer-Encoding: chunked", version="1.0"),
        get("http://a.example/", "Transfer-Encoding : chunked"),
        get("http://a.example/", "X: y\n\tfolded"),
        get("http://a.example/", "X: y\r\n folded"),
        get("http://a.example/", "X: y\nY: z"),
        get("http://a.example/", "X: y\rContent-Length: 5"),
        get("http://a.example/", "X: \x00"),
        get("http://a.example/", "Host: b.example"),
        get("http://a.example/").replace(b"\r\n", b"\n"),
        get("http://a.example/", version="1.2"),
        get("http://a.example/", version="2.0"),
        get("a.example:443", "Content-Length: 5", method="CONNECT") + b"12345",
        b"\r\n" + get("http://a.example/"),
        b"GET  http://a.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a.example/\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
        b"GET http://a.example/ HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_a_request_that_could_be_read_in_two_ways_is_not_served(request_: bytes):
    async with proxy("*:*", HERE) as box:
        answer = await box.ask(request_)
        assert 400 <= status(answer) < 600
        assert status(answer) not in (403, 502, 504)
        assert box.asked == []


@pytest.mark.parametrize(
    "target",
    [
        *("http://0x7f.1/", "http://127.1/", "http://2130706433/", "http://0177.0.0.1/"),
        *("http://u:p@a.example/", "http://a.example@b.example/", "http://a.example:0/"),
        *("http://a.example:99999/", "http://a.example:/", "http:///x", "http://[::1%25lo]/"),
        *("http://[127.0.0.1]/", "http://a%2eexample/", "http://a.example\\@b.example/"),
        *("https://a.example/", "/", "*", "ftp://a.example/", "http://a.example/#x", "a.example"),
    ],
)
async def test_a_target_that_is_none_is_not_served(target: str):
    async with proxy("*:*", "[::/0]:*", "0.0.0.0/0:*") as box:
        assert status(await box.ask(get(target))) == 400
        assert box.asked == []


@pytest.mark.parametrize(
    "target", ["a.example", "a.example:", "a.example:x", "http://a.example:80", "0x7f.1:80", ":80"]
)
async def test_a_target_of_connect_that_is_none_is_not_served(target: str):
    async with proxy("*:*", "0.0.0.0/0:*") as box:
        assert status(await box.ask(get(target, method="CONNECT"))) == 400


async def test_a_head_may_come_byte_by_byte():
    async with listening(Site()) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        for byte in get(f"http://a.example:{port}/", CLOSE):
            await client.send(bytes([byte]))
        assert status(await everything(client)) == 200


async def test_a_client_that_ends_within_its_request_is_told():
    async with proxy("*:*", HERE) as box, await box.dial() as client:
        await client.send(b"GET http://a.example/ HT")
        await client.send_eof()
        assert status(await everything(client)) == 400


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    ],
)
async def test_a_site_that_does_not_speak_http_is_no_refusal(answer: bytes):
    async with listening(Site(answer)) as port, proxy("*:*", HERE) as box:
        told = await box.ask(get(f"http://a.example:{port}/"))
        assert status(told) == 502
        assert b"is allowed, but can't be reached" in told
        assert box.refused == {}


async def test_a_site_that_is_not_there_is_no_refusal():
    async with listening(echo) as port:
        pass
    async with proxy("*:*", HERE) as box:
        for request in (
            get(f"http://a.example:{port}/"),
            get(f"a.example:{port}", method="CONNECT"),
            get("http://nowhere.example/"),
        ):
            assert status(await box.ask(request)) == 502
        assert box.refused == {}


async def test_a_name_that_is_not_looked_up_in_time_is_no_refusal():
    async with proxy("*:*", names={"slow.example": []}, limits=Limits(look_up=0.05)) as box:
        assert status(await box.ask(get("http://slow.example/"))) == 504
        assert box.refused == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nx",
    ],
)
async def test_half_an_answer_is_not_passed_on_as_a_whole_one(answer: bytes):
    async with (
        listening(Site(answer)) as port,
        proxy("*:*", HERE) as box,
        await box.dial() as client,
    ):
        await client.send(get(f"http://a.example:{port}/"))
        with pytest.raises(anyio.BrokenResourceError):
            await everything(client)


@pytest.mark.parametrize(
    "sent",
    [
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345X0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\n12345\r\n0\r\n\r\n",
    ],
)
async def test_a_body_that_is_none_ends_the_connection(sent: bytes):
    ended = anyio.Event()

    async def site(stream: SocketStream) -> None:
        await everything(stream)
        ended.set()

    async with listening(site) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        head = f"POST http://a.example:{port}/ HTTP/1.1\r\nHost: a\r\n".encode()
        with anyio.fail_after(5):
            await client.send(head + sent + b"\r\n" * 5)
            with pytest.raises(anyio.BrokenResourceError):
                await everything(client)
            await ended.wait()


async def test_an_older_client_gets_an_answer_that_it_can_read():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    site = Site(b"HTTP/1.1 103 Early Hints\r\n\r\n", chunked)
    async with listening(site) as port, proxy("*:*", HERE) as box:
        answer = await box.ask(get(f"http://a.example:{port}/", version="1.0"))
        assert status(answer) == 200
        assert b"chunked" not in answer
        assert body(answer) == b"ok"


async def test_an_answer_that_ends_with_its_connection_is_passed_on_in_chunks():
    site = Site(b"HTTP/1.0 200 OK\r\n\r\n", b"one")
    async with listening(site) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        await client.send(get(f"http://a.example:{port}/"))
        answer = await until(client, b"0\r\n\r\n")
        assert body(answer) == b"3\r\none\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
async def test_an_answer_without_body_keeps_the_connection_in_step(method: str, answer: bytes):
    site = Site(answer)
    async with listening(site) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        for _ in range(2):
            await client.send(get(f"http://a.example:{port}/", method=method))
            assert (await until(client, b"\r\n\r\n")).startswith(answer[:12])


async def test_hints_ahead_of_an_answer_are_passed_on():
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with listening(Site(hint, OK)) as port, proxy("*:*", HERE) as box:
        answer = await box.ask(get(f"http://a.example:{port}/", CLOSE))
        assert status(answer) == 103
        assert b"Link: </x>" in answer
        assert answer.endswith(b"ok")


async def test_much_passes_in_little_memory():
    size, piece = 32 * 1024 * 1024, bytes(64 * 1024)

    async def site(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(piece)):
            await stream.send(piece)

    async with listening(site) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        await client.send(get(f"http://a.example:{port}/", CLOSE))
        tracemalloc.start()
        try:
            got = 0
            async for data in client:
                got += len(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert got > size
        assert peak < 4 * 1024 * 1024


async def test_what_nobody_reads_is_not_fetched():
    async def site(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
        with anyio.move_on_after(0.5) as waiting:
            while True:
                await stream.send(bytes(1024 * 1024))
        assert waiting.cancelled_caught
        full.set()

    full = anyio.Event()
    async with listening(site) as port, proxy("*:*", HERE) as box, await box.dial() as client:
        tracemalloc.start()
        try:
            await client.send(get(f"http://a.example:{port}/"))
            with anyio.fail_after(10):
                await full.wait()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * 1024 * 1024


async def test_a_client_that_goes_away_takes_its_request_with_it():
    begun, ended = anyio.Event(), anyio.Event()

    async def site(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        begun.set()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(64 * 1024 * 1024))
        ended.set()

    async with listening(site) as port, proxy("*:*", HERE) as box:
        with anyio.fail_after(5):
            async with await box.dial() as client:
                await client.send(get(f"http://a.example:{port}/"))
                await begun.wait()
            await ended.wait()
