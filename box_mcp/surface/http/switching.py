"""Requests that would switch to WebSockets: their connection as the bytes that it is.

No WebSocket is understood here. An app that takes the stream, from the extension `STREAM` of the
scope, answers on it; any other answers as to every request, and the connection ends then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

import anyio
from starlette.types import ASGIApp, Message, Scope

logger = logging.getLogger(__name__)

STREAM = "box_mcp.stream"
HELD = 64 * 1024  # bytes that came and that nobody took yet

BODIES = frozenset((b"content-length", b"transfer-encoding"))


class Switching(asyncio.Protocol):
    """Takes a connection over from uvicorn, whose request's head was read; `first` came behind it.

    `lost` hears of the connection's end. A request with a body is not taken.
    """

    def __init__(
        self,
        app: ASGIApp,
        scope: Scope,
        transport: asyncio.Transport,
        first: bytes,
        lost: Callable[[Exception | None], None],
    ) -> None:
        self._app = app
        self._scope = scope
        self._transport = transport
        self._lost = lost
        self._heard = False
        self._stream = Stream(transport)
        self._stream.feed(first)
        scope["extensions"] = {**scope.get("extensions", {}), STREAM: self._stream}
        transport.set_protocol(self)
        self.task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, data: bytes) -> None:
        """Whatever the client says."""
        self._stream.feed(data)

    def eof_received(self) -> None:
        """They say no more, and the connection ends with that."""
        self._stream.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """They are gone."""
        self._stream.lose()
        self._lost(exc)

    def pause_writing(self) -> None:
        """They do not read as fast as is written."""
        self._stream.pause()

    def resume_writing(self) -> None:
        """They do."""
        self._stream.resume()

    async def _run(self) -> None:
        try:
            if BODIES & {name for name, _ in self._scope["headers"]}:
                await self._send({"type": "http.response.start", "status": 400})
            else:
                await self._app(self._scope, self._receive, self._send)
        except Exception:
            logger.exception("a request to switch protocols failed")
        finally:
            self._transport.close()

    async def _receive(self) -> Message:
        if not self._heard:
            self._heard = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._stream.lost.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        """An ordinary answer: how long it is tells the connection's end."""
        data: bytes = message.get("body", b"")
        if message["type"] == "http.response.start":
            status = HTTPStatus(message["status"])
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
            lines += [b": ".join(one) for one in headers]
            data = b"\r\n".join([*lines, b"", b""])
        elif self._scope["method"] == "HEAD":
            return
        with suppress(anyio.BrokenResourceError):
            await self._stream.send(data)


class Stream:
    """The bytes of a connection both ways."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.lost = anyio.Event()
        self._transport = transport
        self._buffer = bytearray()
        self._ended = False
        self._came = anyio.Event()
        self._writable = anyio.Event()
        self._writable.set()

    async def receive(self, max_bytes: int = HELD) -> bytes:
        """Some bytes; raises anyio.EndOfStream at the end. Cancelled, it loses nothing."""
        while not self._buffer:
            if self._ended:
                raise anyio.EndOfStream
            if self.lost.is_set():
                raise anyio.BrokenResourceError
            self._came = anyio.Event()
            await self._came.wait()
        data = bytes(self._buffer[:max_bytes])
        del self._buffer[:max_bytes]
        if len(self._buffer) < HELD and not self._transport.is_closing():
            self._transport.resume_reading()
        return data

    async def send(self, item: bytes) -> None:
        """Sends all of `item`, as fast as it is read at the other end."""
        await self._writable.wait()
        if self.lost.is_set() or self._transport.is_closing():
            raise anyio.BrokenResourceError
        self._transport.write(item)
        await self._writable.wait()

    async def send_eof(self) -> None:
        """Nothing more will be sent."""
        if not self._transport.is_closing():
            self._transport.close()

    def feed(self, data: bytes) -> None:
        """Takes what came."""
        self._buffer += data
        if len(self._buffer) >= HELD:
            self._transport.pause_reading()
        self._came.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._came.set()

    def lose(self) -> None:
        """The connection is gone."""
        self.lost.set()
        self._came.set()
        self._writable.set()

    def pause(self) -> None:
        """What is sent has to wait."""
        if not self.lost.is_set():
            self._writable = anyio.Event()

    def resume(self) -> None:
        """It need not."""
        self._writable.set()
