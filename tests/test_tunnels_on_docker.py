"""Tunnels into a real box and out of it, though it has no network."""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.capabilities.tunnels import Tunnel, connect, listen
from box_mcp.domain.network import Mode, Network
from box_mcp.engines.docker import DockerEngine
from tests.support.engines import MEBI, Workshop, channel_to, run, said, workshop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyio.abc import ByteReceiveStream

    from box_mcp.channel import Channel

FILES_PORT, SOCKET_PORT, PROXY_PORT = 8000, 8001, 3128
WEB_SOCKET = """
import base64, hashlib, socket
listener = socket.create_server(("127.0.0.1", 8001))
print("up", flush=True)
link, _ = listener.accept()
head = b""
while b"\\r\\n\\r\\n" not in head:
    head += link.recv(1000)
key = head.split(b"Sec-WebSocket-Key: ")[1].split(b"\\r\\n")[0]
proof = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
link.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\n"
             b"Connection: Upgrade\\r\\nSec-WebSocket-Accept: " + proof + b"\\r\\n\\r\\n")
while data := link.recv(65536):
    link.sendall(data)
"""


@pytest.fixture(scope="module")
async def shop() -> AsyncGenerator[Workshop, None]:
    """With one box that is cut off, and boxd in it no root."""
    async with workshop(DockerEngine()) as shop:
        await shop.running(network=Network(Mode.NONE), sudo=False)
        yield shop


@asynccontextmanager
async def box_of(shop: Workshop) -> AsyncGenerator[Channel, None]:
    async with channel_to(shop.engine, shop.made[0]) as channel:
        yield channel


async def heard_out(stream: ByteReceiveStream) -> bytes:
    return b"".join([piece async for piece in stream])


async def test_a_server_on_the_boxs_loopback_is_reached_from_the_host(shop: Workshop):
    async with box_of(shop) as channel:
        await said(channel, f"mkdir www; head -c {8 * MEBI} /dev/urandom > www/big")
        digest = (await said(channel, "sha256sum www/big")).partition(" ")[0]
        serve = f"python3 -u -m http.server -d www -b 127.0.0.1 {FILES_PORT}"
        await said(channel, f"setsid {serve} > log 2>&1 & until grep -q Serving log; do :; done")
        async with connect(channel, FILES_PORT) as tunnel:
            await tunnel.send(b"GET /big HTTP/1.0\r\n\r\n")
            head, _, body = (await heard_out(tunnel)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 OK")
        assert hashlib.sha256(body).hexdigest() == digest


async def test_a_web_socket_passes_in_both_directions_at_once(shop: Workshop):
    async with box_of(shop) as channel:
        await run(channel, "cat > ws.py", stdin=WEB_SOCKET)
        await said(channel, "setsid python3 ws.py > ws 2>&1 & until grep -q up ws; do :; done")
        async with connect(channel, SOCKET_PORT) as tunnel:
            key = b64encode(os.urandom(16))
            await tunnel.send(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
            )
            assert b" 101 Switching Protocols\r\n" in await tunnel.receive()
            frames = [bytes([0x82, 126, 4, 0]) + os.urandom(1024) for _ in range(2000)]
            sent, received = b"".join(frames), bytearray()

            async def hear() -> None:
                while len(received) < len(sent):
                    received.extend(await tunnel.receive())

            async with anyio.create_task_group() as group:
                group.start_soon(hear)
                for frame in frames:
                    await tunnel.send(frame)
            assert received == sent


async def test_a_box_without_a_network_reaches_what_a_server_offers_it(shop: Workshop):
    async def answer(tunnel: Tunnel) -> None:
        request = (await tunnel.receive()).partition(b"\r\n")[0]
        await tunnel.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nyou asked " + request)

    env = {"http_proxy": f"http://127.0.0.1:{PROXY_PORT}"}
    fetch = "curl -sS --max-time 10 http://files.example/a"
    async with box_of(shop) as channel:
        assert (await run(channel, fetch)).failed
        async with anyio.create_task_group() as group:
            await group.start(listen, channel, PROXY_PORT, env, answer)
            expected = "you asked GET http://files.example/a HTTP/1.1"
            assert await said(channel, fetch) == expected
            group.cancel_scope.cancel()
        assert (await run(channel, fetch)).failed
        told = await said(channel, f"curl -sS -x http://127.0.0.1:{PROXY_PORT} http://a.example/")
        assert "no server serves it now" in told


async def test_tunnels_live_on_while_their_box_is_frozen(shop: Workshop):
    async with box_of(shop) as channel, connect(channel, FILES_PORT) as tunnel:
        await tunnel.send(b"GET / HTTP/1.0\r\n")
        await shop.engine.freeze(shop.made[0])
        await shop.engine.thaw(shop.made[0])
        await tunnel.send(b"\r\n")
        assert (await heard_out(tunnel)).startswith(b"HTTP/1.0 200 OK")
