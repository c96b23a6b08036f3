"""HTTP in tunnels: what is allowed to one name must not reach another one at its address."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.gateway.screening import MAX_LINE
from tests.support.egress import LOOPBACK, everything, listening, proxy, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyio.abc import SocketStream

    from tests.support.egress import Place

pytestmark = pytest.mark.anyio

HERE = f"{LOOPBACK}:*"


class Site:
    """Answers whatever comes, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""

    async def __call__(self, stream: SocketStream) -> None:
        async for data in stream:
            self.heard += data
            if self.heard.endswith((b"\r\n\r\n", b"x")):
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@asynccontextmanager
async def tunnel(
    *rules: str, target: str = "a.example"
) -> AsyncGenerator[tuple[Place, SocketStream, Site], None]:
    site = Site()
    async with (
        listening(site) as port,
        proxy(*rules, HERE) as box,
        await box.tunnel(f"{target}:{port}") as client,
    ):
        with anyio.fail_after(10):
            yield box, client, site


def request(host: str, target: str = "/", method: str = "GET", end: str = "\r\n") -> bytes:
    return end.join([f"{method} {target} HTTP/1.1", f"Host: {host}", "", ""]).encode()


async def test_requests_for_the_tunnels_host_pass():
    async with tunnel("a.example:*") as (box, client, site):
        for _ in range(2):
            await client.send(request("A.example"))
            assert (await until(client, b"ok")).startswith(b"HTTP/1.1 200 ")
        assert site.heard.startswith(b"GET / HTTP/1.1\r\nHost: a.example:")
        assert box.refused == {}


@pytest.mark.parametrize(
    "asked",
    [
        request("b.example"),
        request("b.example:80"),
        b"\r\n\r\n" + request("b.example"),
        b" \t" + request("b.example"),
        request("b.example", end="\n"),
        request("b.example", method="get"),
        request("b.example", method="X"),
        request("b.example").replace(b" /", b"\t/"),
        *(
            request("b.example").replace(b" ", space)
            for space in (b"\x0b", b"\x0c", b"\r", b"\xa0")
        ),
        b"\x0b" + request("b.example"),
        request("b.example").replace(b"HTTP/1.1", b"http/1.1"),
        request("b.example").replace(b"HTTP/1.1", b"HTTP/1.1 "),
        request("a.example", "http://b.example/"),
        request("a.example") + request("b.example"),
        request("b.example:80", "b.example:80", "CONNECT"),
        request("a.example\r\nHost: b.example"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /" + b"y" * MAX_LINE,
        b"X",  # and the rest of it, byte by byte
        b"GE",
        b"get ",
    ],
)
async def test_requests_for_another_host_do_not_pass(asked: bytes):
    async with tunnel("a.example:*", "b.example:*") as (_, client, site):
        await client.send(asked)
        try:
            if len(asked) < 5:
                while True:
                    for byte in b" / HTTP/1.1\r\nHost: b.example\r\n\r\n":
                        await client.send(bytes([byte]))
            answer = await everything(client)
        except anyio.BrokenResourceError:
            answer = b""
        assert b"b.example" not in site.heard
        assert answer.count(b"HTTP/1.1 200 ") <= asked.startswith(request("a.example"))


async def test_a_request_for_another_host_is_told_as_refused():
    async with tunnel("a.example:*") as (box, client, site):
        await client.send(request("b.example"))
        answer = await everything(client)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"its request is meant for 'b.example'" in answer
        assert site.heard == b""
        assert [name.partition(":")[0] for name in box.refused] == ["a.example"]


async def test_the_same_holds_for_socks():
    site = Site()
    async with listening(site) as port, proxy("a.example:*", HERE) as box:
        hello = b"\x05\x01\x00\x05\x01\x00\x03\x09a.example" + port.to_bytes(2, "big")
        answer = await box.ask(hello + request("b.example"))
        assert b"HTTP/1.1 403 " in answer
        answer = await box.ask(hello + request("a.example\r\nConnection: close"))
        assert answer.endswith(b"ok")
        assert b"b.example" not in site.heard


@pytest.mark.parametrize(
    "first", [b"x", b"EHLO a\r\nx", b"*1\r\n$1\r\nx", b"\x00\x03x", b"Hello world x", b"\xff\n\nx"]
)
async def test_other_protocols_pass_at_once(first: bytes):
    async with tunnel("a.example:*") as (box, client, site):
        await client.send(first)
        await until(client, b"ok")
        assert site.heard == first
        assert box.refused == {}


async def test_what_is_said_to_an_address_is_not_looked_at():
    async with tunnel(target=LOOPBACK) as (_, client, site):
        await client.send(request("b.example"))
        await until(client, b"ok")
        assert site.heard == request("b.example")


async def test_a_websocket_passes_a_tunnel():
    async def site(stream: SocketStream) -> None:
        head = await until(stream, b"\r\n\r\n")
        assert b"Upgrade: websocket" in head
        await stream.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n"
        )
        async for data in stream:
            await stream.send(data)

    async with (
        listening(site) as port,
        proxy("a.example:*", HERE) as box,
        await box.tunnel(f"a.example:{port}") as client,
    ):
        await client.send(request(f"a.example:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket"))
        assert (await until(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        await client.send(b"\x81\x02hi")
        assert await client.receive() == b"\x81\x02hi"
