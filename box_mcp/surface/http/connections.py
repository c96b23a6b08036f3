"""Connections of HTTP: how many there may be, how long they may take, and how they end.

uvicorn parses and writes HTTP. It knows no bound for how slowly a request may come, nor for how
many connections one client has; and its signals and its waiting are not what a server of calls
needs, so they are ours.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from email.utils import formatdate
from socket import socket
from typing import Any, cast

import anyio
import h11
from starlette.types import ASGIApp, Scope
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.server import ServerState

from box_mcp.surface.http.switching import Switching

MAX_HEAD = 32 * 1024  # bytes that a head may have come to without its end; tokens take 8 KB at most
KEEP_ALIVE = 65  # s that an idle connection stays; proxies keep theirs for 60
HANDSHAKE_TIMEOUT = 10  # s for TLS's
TLS_BUFFER = 32 * 1024  # bytes of each connection for what is decrypted; asyncio has 256 KiB
BACKLOG = 1024
SLACK = 1024 * 1024  # bytes beyond the longest body: its head, and how chunks are told
PIECES = 2_000  # chunks that a body may come in, however small they are
PIECES_A_SECOND = 200  # more of them
PIECE = 64  # bytes on average, which as many may have as there are

STREAMED = "box_mcp.streamed"
"""In the ASGI scope of a request whose body is passed on as it comes: who does that bounds it."""

Refusing = Callable[[str, str], None]
"""Hears of the address and the reason when a connection is not listened to."""


@dataclass(frozen=True)
class Bounds:
    """What connections are held to, in seconds and bytes.

    `most_own` of them may be of one address, unless it is a proxy that is trusted. A head may take
    `head`, from the connection or from its first byte on; a body `body`, and beyond that as long as
    it comes at `rate` a second. Who does not read an answer for `stall` does not get the rest.
    """

    most: int = 4_000
    most_own: int = 1_000
    head: float = 10.0
    body: float = 30.0
    rate: int = 16 * 1024
    stall: float = 60.0
    max_body: int = 16 * 1024 * 1024

    def within(self, descriptors: int) -> Bounds:
        """With half of them for clients at most: who has all leaves none for boxes and files."""
        most = min(self.most, descriptors // 2)
        return replace(self, most=most, most_own=min(self.most_own, most))


class Connections:
    """All connections of a server. `trusts` tells whether an address is a proxy's."""

    def __init__(
        self,
        bounds: Bounds,
        trusts: Callable[[str], bool] = lambda _address: False,
        refusing: Refusing = lambda _address, _why: None,
    ) -> None:
        self.bounds = bounds
        self.refusing = refusing
        self.open: set[Connection] = set()
        self._trusts = trusts
        self._own: Counter[str] = Counter()
        self._closing: dict[Connection, float] = {}
        self._changed = anyio.Event()

    def admit(self, connection: Connection, address: str) -> bool:
        """Whether it may stay."""
        full = len(self.open) >= self.bounds.most
        own = self._own[address] >= self.bounds.most_own
        if full or (own and not self._trusts(address)):
            self.refusing(address, "too many connections")
            return False
        self.open.add(connection)
        self._own[address] += 1
        return True

    def leave(self, connection: Connection, address: str) -> None:
        """It is closed."""
        if connection in self.open:
            self.open.remove(connection)
            self._own[address] -= 1
            if not self._own[address]:
                del self._own[address]
            self._changed.set()

    def cut_unread(self, now: float) -> None:
        """Ends those that were closed a while ago, but for what their clients do not read."""
        closing = [one for one in self.open if one.transport.is_closing()]
        self._closing = {one: self._closing.get(one, now) for one in closing}
        for one, since in self._closing.items():
            if now - since >= self.bounds.stall:
                one.transport.abort()

    async def none_left(self) -> None:
        """Returns when all are closed."""
        while self.open:
            self._changed = anyio.Event()
            await self._changed.wait()


class Parser(h11.Connection):
    """h11's, for a server, which counts the pieces of a body where that is `bounded`.

    Each costs the same, however small: while a megabyte of chunks of one byte is parsed, which
    anybody may send, nobody else is heard for seconds.
    """

    def __init__(self, bounded: Callable[[], bool]) -> None:
        super().__init__(h11.SERVER, MAX_HEAD)
        self._bounded = bounded
        self._pieces = self._size = 0
        self._since = 0.0

    def next_event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        """As h11 has it."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._size = 0
            self._since = time.monotonic()
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._size += len(event.data)
            if self._pieces > PIECES and self._bounded():
                self._demand_few()
        return event

    def _demand_few(self) -> None:
        seconds = time.monotonic() - self._since
        if self._pieces > PIECES + self._size // PIECE + seconds * PIECES_A_SECOND:
            raise h11.RemoteProtocolError("the body comes in too many pieces")


class Connection(H11Protocol):
    """One connection: uvicorn's, with bounds. What takes it over is its own master."""

    def __init__(self, connections: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = Parser(lambda: STREAMED not in self.scope)
        self._all = connections
        self._bounds = connections.bounds
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._switched = False
        self._body_since: float | None = None
        self._body_size = 0

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def counts(self, transport: asyncio.Transport) -> bool:
        """Whether it may stay; it is one of all from now on, even if nothing is said yet.

        Who has left already, and has no address any more, would be taken for somebody at the unix
        socket: for a proxy.
        """
        self.transport, self.client = transport, get_remote_addr(transport)
        gone = self.client is None and not _is_unix(transport)
        if gone or not self._all.admit(self, self._address):
            transport.abort()
            return False
        return True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio has it."""
        known = self.client if self in self._all.open else None
        super().connection_made(transport)
        if self in self._all.open:
            self.client = known  # who left since then is still the same
        elif not self.counts(transport):
            return
        self._limit(self._bounds.head)

    def never_made(self) -> None:
        """It ended before it was one of HTTP."""
        self._all.leave(self, self._address)

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        self._unlimit()
        self._reads()
        super().connection_lost(exc)
        self._all.leave(self, self._address)

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        super().data_received(data)
        if self._switched or self.transport.is_closing():
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._body(len(data))
            return
        self._body_since = None
        if state is not h11.IDLE:
            self._unlimit()
        elif self._timer is None:
            self._limit(self._bounds.head)

    def on_response_complete(self) -> None:
        """As uvicorn has it: what comes next may take its time to begin."""
        if self.conn.their_state is not h11.SEND_BODY:
            self._unlimit()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """As asyncio has it: what was sent is not read."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self._bounds.stall, self._cut, "does not read")

    def resume_writing(self) -> None:
        """As asyncio has it."""
        super().resume_writing()
        self._reads()

    def _reads(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def shutdown(self) -> None:
        """As uvicorn has it; what took the connection over has no end of its own."""
        if self._switched:
            self.transport.close()
            return
        with suppress(h11.LocalProtocolError):  # it is over anyway
            super().shutdown()

    def _should_upgrade_to_ws(self) -> bool:
        return True

    def handle_websocket_upgrade(self, event: h11.Request) -> None:  # noqa: ARG002 - in the scope
        """As uvicorn has it: the app may take the connection as it is."""
        self._switched = True
        self._unlimit()
        behind, _ = self.conn.trailing_data
        app, scope = cast("ASGIApp", self.app), cast("Scope", self.scope)
        taken = Switching(app, scope, self.transport, behind, self.connection_lost)
        self.tasks.add(taken.task)
        taken.task.add_done_callback(self.tasks.discard)

    def send_400_response(self, msg: str) -> None:
        """As uvicorn has it: for what is no HTTP, be it the rest of a request being answered."""
        self._all.refusing(self._address, "no HTTP")
        under_way: Any = self.cycle  # None before the first request, whatever uvicorn's types say
        if under_way is not None and not under_way.response_complete:
            under_way.disconnected = True
            under_way.message_event.set()
            if under_way.response_started:
                return self.transport.close()
        with suppress(h11.LocalProtocolError):  # who asked by HEAD is given no body
            super().send_400_response(msg)
        self.transport.close()

    def _body(self, more: int) -> None:
        """A piece of a body came, which is not whole yet; perhaps nobody wants it any more."""
        if STREAMED in self.scope:
            return self._unlimit()
        if self._body_since is None:
            self._unlimit()
            self._body_since, self._body_size = self.loop.time(), 0
            self._limit(self._bounds.body)
        self._body_size += more
        if self._body_size > self._bounds.max_body + SLACK:
            self._cut("too large")

    def _limit(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._late)

    def _unlimit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._body_since is not None:
            if STREAMED in self.scope:
                return
            allowed = self._bounds.body + self._body_size / self._bounds.rate
            if (left := self._body_since + allowed - self.loop.time()) > 0:
                self._limit(left)
                return
        self._cut("too slow")

    def _cut(self, why: str) -> None:
        if not self.transport.is_closing():
            self._all.refusing(self._address, why)
            self.transport.abort()


def _is_unix(transport: asyncio.Transport) -> bool:
    known = transport.get_extra_info("socket")
    return known is not None and known.family.name == "AF_UNIX"


class Secured(SSLProtocol):
    """TLS before a connection, which counts as one before the two have shaken hands.

    asyncio's own way to serve TLS tells of a connection after that only: so strangers could have as
    many as there are descriptors.
    """

    max_size = TLS_BUFFER

    def __init__(self, connection: Connection, tls: ssl.SSLContext) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            connection,
            tls,
            cast("asyncio.Future[Any]", None),  # nobody waits for it
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
        )
        self._connection = connection
        self._plain: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio has it."""
        self._plain = transport
        if self._connection.counts(cast("asyncio.Transport", transport)):
            super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """As asyncio has it."""
        super().connection_lost(exc)
        if self._connection.transport is self._plain:
            self._connection.never_made()


class Web:
    """Serves an ASGI app on sockets that are bound, while `open`."""

    def __init__(
        self,
        app: ASGIApp,
        sockets: Sequence[socket],
        connections: Connections,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.connections = connections
        self._sockets = sockets
        self._tls = tls
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
        self._config = Config(
            app,
            http=H11Protocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        self._config.load()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Listens; what is still connected at the end is cut."""
        loop = asyncio.get_running_loop()
        for bound in self._sockets:
            server = await loop.create_server(self._protocol, sock=bound, backlog=BACKLOG)
            self._servers.append(server)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_time)
            try:
                yield
            finally:
                self.stop_listening()
                self.cut()
                tasks.cancel_scope.cancel()

    def stop_listening(self) -> None:
        """Takes no more connections; each ends after its answer, those that are idle at once."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections.open):
            connection.shutdown()

    def cut(self) -> None:
        """Ends all connections, whatever is under way on them."""
        for connection in list(self.connections.open):
            connection.transport.abort()

    def _protocol(self) -> asyncio.Protocol | asyncio.BufferedProtocol:
        connection = Connection(self.connections, self._config, self._state, {})
        return Secured(connection, self._tls) if self._tls else connection

    async def _keep_time(self) -> None:
        """Once a second: all answers have a date, and it is looked who does not read the last."""
        while True:
            date = formatdate(time.time(), usegmt=True).encode()
            self._state.default_headers = [(b"date", date)]
            self.connections.cut_unread(time.monotonic())
            await anyio.sleep(1)
