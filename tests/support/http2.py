"""A small server that speaks HTTP/2 over TLS, and nothing else."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener, TLSStream

from tests.support.webserver import certify

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

Headers = list[tuple[str, str]]


@dataclass
class Stream:
    """A request and what is left of its answer."""

    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    left: int = 0


@dataclass
class Site:
    """Answers each request with `size` bytes, or with the request's body; remembers heads."""

    port: int
    authority: Path
    """What clients must believe."""
    asked: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    connections: int = 0
    size: int | None = None
    answer: Headers = field(default_factory=list[tuple[str, str]])
    """Headers of answers."""
    ended: anyio.Event = field(default_factory=anyio.Event)
    """Set when a connection has ended."""

    @property
    def url(self) -> str:
        """Its base."""
        return f"https://localhost:{self.port}"

    async def serve(self, stream: TLSStream) -> None:
        """One connection."""
        self.connections += 1
        async with stream:
            try:
                await _Conversation(self, stream).run()
            except (anyio.EndOfStream, anyio.BrokenResourceError, h2.exceptions.ProtocolError):
                pass
            finally:
                self.ended.set()


class _Conversation:
    def __init__(self, site: Site, stream: TLSStream) -> None:
        self._site = site
        self._stream = stream
        config = h2.config.H2Configuration(client_side=False, validate_outbound_headers=False)
        self._h2 = h2.connection.H2Connection(config)
        self._streams: dict[int, Stream] = {}

    async def run(self) -> None:
        self._h2.initiate_connection()
        while True:
            await self._stream.send(self._h2.data_to_send())
            for event in self._h2.receive_data(await self._stream.receive()):
                self._hear(event)
            for number, stream in list(self._streams.items()):
                await self._go_on(number, stream)

    def _hear(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=number, headers=headers):
                assert headers is not None
                told = {name.decode(): value.decode() for name, value in headers}
                self._site.asked.append(told)
                self._streams[number] = Stream(told, left=-1)
            case h2.events.DataReceived(stream_id=number, data=data):
                self._streams[number].body += data or b""
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, number)
            case h2.events.StreamEnded(stream_id=number):
                stream = self._streams[number]
                stream.left = len(stream.body) if self._site.size is None else self._site.size
                self._h2.send_headers(number, [(":status", "200"), *self._site.answer])
            case h2.events.StreamReset(stream_id=number):
                self._streams.pop(number, None)
            case _:
                pass

    async def _go_on(self, number: int, stream: Stream) -> None:
        """As far as the client has room for."""
        while stream.left > 0:
            room = min(
                stream.left,
                self._h2.local_flow_control_window(number),
                self._h2.max_outbound_frame_size,
            )
            if room <= 0:
                return
            piece, stream.body = bytes(stream.body[:room]), stream.body[room:]
            self._h2.send_data(number, piece or bytes(room))
            stream.left -= room
            await self._stream.send(self._h2.data_to_send())
        if stream.left == 0:
            self._h2.end_stream(number)
            del self._streams[number]
            await self._stream.send(self._h2.data_to_send())


@asynccontextmanager
async def http2(directory: Path) -> AsyncGenerator[Site, None]:
    """A server for ``localhost``, as long as the block; its authority is made in a directory."""
    authority = await anyio.to_thread.run_sync(certify, directory, ["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    context.set_alpn_protocols(["h2"])
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    site = Site(listener.extra(SocketAttribute.local_port), authority)
    tls = TLSListener(listener, context, standard_compatible=False)
    async with tls, anyio.create_task_group() as group:
        group.start_soon(tls.serve, site.serve)
        yield site
        group.cancel_scope.cancel()
