"""An exec's stdin and stdout over TLS, which docker's client does not let go of once it has them.

Asyncio's TLS has to be there from a connection's first byte on. So these connections are made here.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl

import h11
from anyio import to_thread

from box_mcp.engines.address import Tls
from box_mcp.engines.stream import DockerStream, keep_alive
from box_mcp.errors import EngineRefused

OPERATION = "connect to a box"
MAX_HEAD = 64 * 1024  # bytes of an engine's answer, its complaint included
CLOSE_PATIENCE = 5.0  # s for an engine to say goodbye


def context_of(tls: Tls) -> ssl.SSLContext:
    """As docker's client and its command line check an engine; raises OSError."""
    context = ssl.create_default_context(cafile=str(tls.ca) if tls.verify else None)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(tls.certificate, tls.key)
    return context


class Upgrade:
    """The question for an exec's streams, and the engine's answer; without a connection."""

    def __init__(self, host: str, path: str) -> None:
        self._http = h11.Connection(h11.CLIENT, MAX_HEAD)
        self._status = 0
        self._complaint = b""
        body = b'{"Detach": false, "Tty": false}'
        headers = [
            ("Host", host),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "Upgrade"),
            ("Upgrade", "tcp"),
        ]
        events = (
            h11.Request(method="POST", target=path, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        self.question = b"".join(self._http.send(event) or b"" for event in events)

    def take(self, data: bytes) -> bytes | None:
        """What is behind the answer, or None while that is not complete; raises EngineRefused.

        No `data` is the connection's end.
        """
        try:
            self._http.receive_data(data)
            while not _is_all(event := self._http.next_event()):
                self._note(event)
        except h11.RemoteProtocolError as error:
            raise EngineRefused(OPERATION, f"its answer is no HTTP: {error}") from None
        switched = self._http.their_state is h11.SWITCHED_PROTOCOL
        return self._http.trailing_data[0] if switched else None

    def _note(self, event: object) -> None:
        if isinstance(event, h11.Response):
            self._status = event.status_code
        elif isinstance(event, h11.Data):
            self._complaint = (self._complaint + bytes(event.data))[:MAX_HEAD]
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            raise EngineRefused(OPERATION, self._words())

    def _words(self) -> str:
        try:
            return str(json.loads(self._complaint)["message"])
        except (ValueError, KeyError, TypeError):
            return f"it answers with HTTP status {self._status} instead of a stream"


def _is_all(event: object) -> bool:
    """Whether there is nothing more in what was received."""
    return event is h11.NEED_DATA or event is h11.PAUSED


class Hijacker:
    """Opens streams at an engine of that address; `path` of each is the exec's."""

    def __init__(self, host: str, port: int, tls: Tls, timeout: float) -> None:
        self._where = (host, port)
        self._name = f"{host}:{port}"
        self._tls = tls
        self._timeout = timeout

    def socket(self, path: str) -> ssl.SSLSocket:
        """A blocking one; it is read byte by byte up to where the stream begins."""
        upgrade = Upgrade(self._name, path)
        context = context_of(self._tls)
        plain = socket.create_connection(self._where, self._timeout)
        try:
            keep_alive(plain)
            line = context.wrap_socket(plain, server_hostname=self._where[0])
        except BaseException:
            plain.close()
            raise
        try:
            line.sendall(upgrade.question)
            while upgrade.take(line.recv(1)) is None:
                pass
        except BaseException:
            line.close()
            raise
        return line

    async def stream(self, path: str) -> DockerStream:
        """The same on asyncio's terms."""
        loop = asyncio.get_running_loop()
        context = await to_thread.run_sync(context_of, self._tls)
        async with asyncio.timeout(self._timeout):
            transport, asking = await loop.create_connection(
                lambda: _Asking(Upgrade(self._name, path), loop.create_future()),
                *self._where,
                ssl=context,
                ssl_shutdown_timeout=CLOSE_PATIENCE,
            )
            try:
                return await asking.answered
            except BaseException:
                transport.abort()
                raise


class _Asking(asyncio.Protocol):
    """Until the engine has answered; then a stream takes its place."""

    def __init__(self, upgrade: Upgrade, answered: asyncio.Future[DockerStream]) -> None:
        self.answered = answered
        self._upgrade = upgrade
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: TLS is agreed on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        keep_alive(transport.get_extra_info("socket"))
        transport.write(self._upgrade.question)

    def data_received(self, data: bytes) -> None:
        """Asyncio: a part of the answer, and maybe the stream's first bytes."""
        try:
            rest = self._upgrade.take(data)
        except EngineRefused as error:
            return self._fail(error)
        if rest is None or self.answered.done() or self._transport is None:
            return
        stream = DockerStream()
        self._transport.set_protocol(stream)
        stream.connection_made(self._transport)
        if rest:
            stream.data_received(rest)
        self.answered.set_result(stream)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: before there was an answer."""
        self._fail(exc or ConnectionResetError("the engine hung up"))

    def _fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)
