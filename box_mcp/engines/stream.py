"""The stdin and stdout of an exec as a channel's stream, on a connection of asyncio's."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import anyio

from box_mcp.engines.pipe import STDERR, STDERR_KEPT, STREAM_HEADER

RECEIVE_AHEAD = 1024 * 1024  # bytes that may wait for their reader

ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
"""Seconds of silence until the other end is asked whether it lives, and between questions."""
UNHEARD = 60_000  # ms until a connection is given up whose other end confirms nothing


def keep_alive(line: socket.socket) -> None:
    """Has the kernel see to it that a silent TCP connection is not forgotten on the way.

    And that it breaks when the other machine has gone without a word.
    """
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*ALIVE, ("TCP_USER_TIMEOUT", UNHEARD)):
        with suppress(AttributeError, OSError):  # other systems know fewer
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class DockerStream(asyncio.Protocol):
    """The stdin and stdout of an exec as one byte stream, without Docker's framing.

    A protocol of asyncio's own: anyio's stream on a unix socket registers with the event loop
    anew for every receive, which costs more than all the rest.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._payload = bytearray()
        self._begun = False
        self._closed = False
        self._gone = anyio.Event()
        self._arrived = anyio.Event()
        self._writable = anyio.Event()
        self._writable.set()
        self.complaint = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: the socket is in our hands."""
        assert isinstance(transport, asyncio.Transport)  # of a stream socket
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes came; what comes too fast for its reader waits in the engine."""
        self._buffer += data
        payload = self._take_payload()
        if payload and not self._begun:
            self._begun = True
            if payload[0]:  # a frame of boxd's begins with zero; this is the engine, as plain text
                return self._give_up(payload)
        self._payload += payload
        if len(self._payload) > RECEIVE_AHEAD and self._transport is not None:
            self._transport.pause_reading()
        if self._payload:
            self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio gives it
        """Asyncio: the exec has ended, or the engine."""
        self._gone.set()
        self._arrived.set()
        self._writable.set()

    def pause_writing(self) -> None:
        """Asyncio: the engine takes no more."""
        self._writable = anyio.Event()

    def resume_writing(self) -> None:
        """Asyncio: it takes more again."""
        self._writable.set()

    async def receive(self, max_bytes: int = RECEIVE_AHEAD) -> bytes:
        """What the box wrote; at least one byte. What it wrote to stderr is kept as `complaint`."""
        if not self._payload:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._gone.is_set():
                raise anyio.EndOfStream
            self._arrived = anyio.Event()
            await self._arrived.wait()
            return await self.receive(max_bytes)
        data = bytes(memoryview(self._payload)[:max_bytes])
        del self._payload[:max_bytes]
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        return data

    async def send(self, item: bytes) -> None:
        """Sends all of `item`; the direction into the box is not framed."""
        if self._closed or self._transport is None:
            raise anyio.ClosedResourceError
        if self._gone.is_set():
            raise anyio.BrokenResourceError
        self._transport.write(item)
        if not self._writable.is_set():
            await self._writable.wait()

    async def aclose(self) -> None:
        """Ends the exec's stdin, which boxd notices.

        What was sent still goes out first. A box that takes nothing would hold that up for ever:
        whoever gives up waiting throws it away.
        """
        self._closed = True
        self._arrived.set()
        self._writable.set()
        if self._transport is not None:
            self._transport.close()
            try:
                await self._gone.wait()
            finally:
                self._transport.abort()

    def _give_up(self, words: bytes) -> None:
        """The engine could not execute the connector, and says so where that would write."""
        self.complaint = words[:STDERR_KEPT]
        if self._transport is not None:
            self._transport.close()

    def _take_payload(self) -> bytes:
        """All complete stdout payloads in the buffer, joined."""
        buffer = self._buffer
        start = 0
        payload = bytearray()
        with memoryview(buffer) as view:
            while len(buffer) - start >= STREAM_HEADER.size:
                kind, length = STREAM_HEADER.unpack_from(buffer, start)
                begin, end = start + STREAM_HEADER.size, start + STREAM_HEADER.size + length
                if len(buffer) < end:
                    break
                start = end
                if kind == STDERR:
                    self.complaint = (self.complaint + view[begin:end])[-STDERR_KEPT:]
                else:
                    payload += view[begin:end]
        del buffer[:start]
        return bytes(payload)
