"""Byte streams for channels: to a boxd over a socket, and to a box that lies."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from box_mcp.boxd import wire

if TYPE_CHECKING:
    import asyncio

Said = tuple[int, Any]
"""The kind of a frame, and what it holds."""


class Line:
    """A byte stream over a socket of asyncio's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if data := await self._reader.read(max_bytes):
            return data
        raise anyio.EndOfStream

    async def send(self, item: bytes) -> None:
        self._writer.write(item)
        await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class Liar:
    """A byte stream to a box that answers each kind of request with frames of its own."""

    def __init__(self, answers: dict[str, list[Said]]) -> None:
        self._answers = answers
        self._decoder = wire.Decoder(wire.FROM_SERVER)
        self._send, self._receive = anyio.create_memory_object_stream[bytes](1000)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._receive.receive()

    async def send(self, item: bytes) -> None:
        for frame in self._decoder.feed(item):
            if frame.kind == wire.HELLO:
                hello = {"version": wire.VERSION, "boot": "x", "busy": False}
                await self._send.send(wire.pack_object(wire.HELLO, 0, hello))
            elif frame.kind == wire.OPEN:
                answer = bytearray()
                for kind, said in self._answers.get(frame.object()["op"], []):
                    payload = said if isinstance(said, bytes) else json.dumps(said).encode()
                    answer += wire.pack(kind, frame.stream, payload)
                await self._send.send(bytes(answer))

    async def aclose(self) -> None:
        self._send.close()
        self._receive.close()
