"""Connections of HTTP: how many there may be, how long they may take, and how they end.

uvicorn parses and writes HTTP. It knows no bound for how slowly a request may come, nor for how
many connections one client has; and its signals and its waiting are not what a server of calls
needs, so they are ours.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from email.utils import formatdate
from socket import socket
from typing import Any

import anyio
import h11
from starlette.types import ASGIApp
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MAX_CONNECTIONS = 4_000
MAX_OWN_CONNECTIONS = 1_000  # of one address, unless it is a proxy that is trusted
MAX_HEAD = 32 * 1024  # bytes that a head may have come to without its end; tokens take 8 KB at most
KEEP_ALIVE = 65  # s that an idle connection stays; proxies keep theirs for 60
HANDSHAKE_TIMEOUT = 10.0  # s for TLS's
HEAD_TIMEOUT = 10.0  # s for a head, from the connection or from its first byte
BODY_GRACE = 30.0  # s for a body, and as long as it takes at
BODY_RATE = 16 * 1024  # bytes/s
BACKLOG = 1024

Refusing = Callable[[str, str], None]
"""Hears of the address and the reason when a connection is not listened to."""


class Connections:
    """All connections of a server. `trusts` tells whether an address is a proxy's."""

    def __init__(
        self,
        max_body: int,
        trusts: Callable[[str], bool] = lambda _address: False,
        refusing: Refusing = lambda _address, _why: None,
    ) -> None:
        self.max_body = max_body
        self.refusing = refusing
        self.open: set[Connection] = set()
        self._trusts = trusts
        self._own: Counter[str] = Counter()
        self._changed = anyio.Event()

    def admit(self, connection: Connection, address: str) -> bool:
        """Whether it may stay."""
        full = len(self.open) >= MAX_CONNECTIONS
        if full or (self._own[address] >= MAX_OWN_CONNECTIONS and not self._trusts(address)):
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

    async def none_left(self) -> None:
        """Returns when all are closed."""
        while self.open:
            self._changed = anyio.Event()
            await self._changed.wait()


class Connection(H11Protocol):
    """One connection: uvicorn's, with bounds."""

    def __init__(self, connections: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._all = connections
        self._timer: asyncio.TimerHandle | None = None
        self._body_since: float | None = None
        self._body_size = 0

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio has it."""
        super().connection_made(transport)
        if self._all.admit(self, self._address):
            self._limit(HEAD_TIMEOUT)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        self._unlimit()
        super().connection_lost(exc)
        self._all.leave(self, self._address)

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._body(len(data))
            return
        self._body_since = None
        if state is not h11.IDLE:
            self._unlimit()
        elif self._timer is None:
            self._limit(HEAD_TIMEOUT)

    def on_response_complete(self) -> None:
        """As uvicorn has it: what comes next may take its time to begin."""
        if self.conn.their_state is not h11.SEND_BODY:
            self._unlimit()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn has it: for what is no HTTP."""
        self._all.refusing(self._address, "no HTTP")
        super().send_400_response(msg)

    def _body(self, more: int) -> None:
        """A piece of a body came, which is not whole yet."""
        if self._body_since is None:
            self._unlimit()
            self._body_since, self._body_size = self.loop.time(), 0
            self._limit(BODY_GRACE)
        self._body_size += more
        if self._body_size > self._all.max_body + MAX_HEAD + 256 * 1024:
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
            allowed = self._body_since + BODY_GRACE + self._body_size / BODY_RATE
            if (left := allowed - self.loop.time()) > 0:
                self._limit(left)
                return
        self._cut("too slow")

    def _cut(self, why: str) -> None:
        if not self.transport.is_closing():
            self._all.refusing(self._address, why)
            self.transport.abort()


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
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            h11_max_incomplete_event_size=MAX_HEAD,
        )
        self._config.load()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Listens; what is still connected at the end is cut."""
        loop = asyncio.get_running_loop()
        timeout = HANDSHAKE_TIMEOUT if self._tls else None
        for bound in self._sockets:
            server = await loop.create_server(
                self._connection,
                sock=bound,
                ssl=self._tls,
                backlog=BACKLOG,
                ssl_handshake_timeout=timeout,
            )
            self._servers.append(server)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tell_the_time)
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

    def _connection(self) -> Connection:
        return Connection(self.connections, self._config, self._state, {})

    async def _tell_the_time(self) -> None:
        """All answers have a date, which changes once a second."""
        while True:
            date = formatdate(time.time(), usegmt=True).encode()
            self._state.default_headers = [(b"date", date)]
            await anyio.sleep(1)
