"""Requests to the servers of routes: over HTTP/1.1 or 2, by the proxies that the environment names.

Redirects are not followed, cookies not kept, bodies not decoded. What went wrong is told without
addresses and headers, which may be secret.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
import anyio.to_thread

from box_mcp.errors import first_error

if TYPE_CHECKING:
    import httpx2

CLOSE_TIMEOUT = 1.0  # s for letting go of a connection
KEPT = 20.0  # s that a connection waits for the next request; servers wait for a minute or so
MAX_UNUSED = 4  # lines of a box
MOVED = frozenset((301, 302, 303, 307, 308))
UNACCEPTED = frozenset((401, 407))

for _name in ("httpx2", "httpcore2", "hpack"):  # they write whole addresses and headers
    logging.getLogger(_name).setLevel(logging.WARNING)


class Unanswered(Exception):
    """A server gave no answer, or only half of one; `late` when not in time.

    `sent` tells whether it may have heard the request.
    """

    def __init__(self, detail: str, *, late: bool = False, sent: bool = True) -> None:
        super().__init__(detail)
        self.late = late
        self.sent = sent


@dataclass(frozen=True)
class Outgoing:
    """A request; without a length in its headers, a body is sent as it comes.

    `secrets` are what must not come back of it. `name` is what the server must prove to be, where
    its URL has its address instead.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: AsyncIterable[bytes] | bytes | None = None
    secrets: Sequence[str] = field(default=(), repr=False)
    name: str = ""


class Answer:
    """The head of an answer; its body comes by `pieces`, once. `secrets` are the request's."""

    def __init__(self, response: httpx2.Response, secrets: Sequence[str]) -> None:
        self.secrets = secrets
        self.status = response.status_code
        self.headers = response.headers
        self._response = response

    @property
    def succeeded(self) -> bool:
        """Whether it is what was asked for."""
        return 200 <= self.status < 300

    @property
    def moved(self) -> bool:
        """Whether it is said to be elsewhere."""
        return self.status in MOVED

    @property
    def unaccepted(self) -> bool:
        """Whether another credential is wanted."""
        return self.status in UNACCEPTED

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, in whatever coding it has; raises Unanswered."""
        import httpx2

        try:
            async for piece in self._response.aiter_raw():
                yield piece
        except httpx2.HTTPError as error:
            raise _worded(error) from None

    async def read(self, limit: int) -> bytes | None:
        """All of the body, or None where it is longer; raises Unanswered."""
        whole = bytearray()
        async for piece in self.pieces():
            whole += piece
            if len(whole) > limit:
                return None
        return bytes(whole)

    async def aclose(self) -> None:
        """Its body is not wanted."""
        await self._response.aclose()


class Authorities:
    """Whom to believe what server one speaks to: the usual ones, and those of `bundle` (PEM)."""

    def __init__(self, bundle: Path | None) -> None:
        self._bundle = bundle
        self._context: ssl.SSLContext | None = None

    async def context(self) -> ssl.SSLContext:
        """Read once, in a thread: it takes some 70 ms. Raises Unanswered."""
        if self._context is None:
            self._context = await anyio.to_thread.run_sync(self._read)
        return self._context

    def _read(self) -> ssl.SSLContext:
        import httpx2

        try:
            context = httpx2.create_ssl_context()
            if self._bundle is not None:
                context.load_verify_locations(self._bundle)
        except (OSError, ssl.SSLError):
            detail = "the authorities that box_mcp's settings name can't be read"
            raise Unanswered(detail, sent=False) from None
        return context


class Lines:
    """Connections to servers, for one box, while it is `open`.

    Of those that are not in use, some wait a little for a box's next conversation: the greetings of
    TLS take longer than most questions.
    """

    def __init__(self, authorities: Authorities, *, connect: float, idle: float) -> None:
        self._authorities = authorities
        self._waits = {"connect": connect, "read": idle, "write": idle, "pool": connect}
        self._unused: list[Line] = []
        self._rests = anyio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Self, None]:
        """Has some wait, but none for long; at the end there is none."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._end_old)
                yield self
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None
        finally:
            while self._unused:
                await self._unused.pop().aclose()

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[Line, None]:
        """One for a conversation; what ends in the middle of something is not used again."""
        line = self._unused.pop() if self._unused else Line(self._authorities, self._waits)
        try:
            yield line
        except BaseException:
            await line.aclose()
            raise
        if len(self._unused) < MAX_UNUSED:
            line.until = anyio.current_time() + KEPT
            self._unused.append(line)
            self._rests.set()
        else:
            await line.aclose()

    async def _end_old(self) -> None:
        """What rests longest is first, and the last that is used again."""
        while True:
            if not self._unused:
                self._rests = anyio.Event()
                await self._rests.wait()
            await anyio.sleep_until(self._unused[0].until if self._unused else 0)
            while self._unused and self._unused[0].until <= anyio.current_time():
                await self._unused.pop(0).aclose()


class Line:
    """One conversation with servers, a request after the other.

    It has connections of its own: in HTTP/2 an answer that is read slowly, or given up, would hold
    up all others on its connection. Servers that prove to be another have others, too.
    """

    def __init__(self, authorities: Authorities, waits: Mapping[str, float]) -> None:
        self.until = 0.0
        """Until when it waits for its next use."""
        self._authorities = authorities
        self._waits = waits
        self._clients: dict[str, httpx2.AsyncClient] = {}

    async def aclose(self) -> None:
        """Ends all that is under way; whoever is cancelled still does."""
        for client in self._clients.values():
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True), suppress(Exception):
                await client.aclose()

    async def ask(self, outgoing: Outgoing) -> Answer:
        """Sends a request, and returns when the answer begins; raises Unanswered.

        What reading its body raises comes through as it is.
        """
        import httpx2

        client = await self._client(outgoing.name)
        try:
            request = httpx2.Request(
                outgoing.method,
                outgoing.url,
                headers=dict(outgoing.headers),
                content=outgoing.body,
                extensions={"timeout": dict(self._waits), "sni_hostname": outgoing.name or None},
            )
        except (httpx2.InvalidURL, UnicodeError):
            raise Unanswered("its address makes no sense", sent=False) from None
        try:
            response = await client.send(request, stream=True, auth=None)
            return Answer(response, outgoing.secrets)
        except httpx2.HTTPError as error:
            raise _worded(error) from None

    async def _client(self, name: str) -> httpx2.AsyncClient:
        """No proxy is asked for a server whose address is known."""
        import httpx2

        if name not in self._clients:
            context = await self._authorities.context()
            limits = httpx2.Limits(keepalive_expiry=KEPT)
            self._clients[name] = httpx2.AsyncClient(
                verify=context, http2=True, trust_env=not name, limits=limits
            )
        return self._clients[name]


def _worded(error: httpx2.HTTPError) -> Unanswered:
    import httpx2

    match error:
        case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return Unanswered("no connection to it came about in time", late=True, sent=False)
        case httpx2.ConnectError():
            return Unanswered(f"no connection to it came about: {_why(error)}", sent=False)
        case httpx2.ProxyError():
            return Unanswered("the proxy on the way to it refused", sent=False)
        case httpx2.TimeoutException():
            return Unanswered("it was silent for too long", late=True)
        case httpx2.RemoteProtocolError():
            return Unanswered("it broke off, or spoke nonsense")
        case _:
            return Unanswered("the connection to it broke")


def _why(error: BaseException) -> str:
    """What the system says of a connection that failed."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    return (error.strerror if isinstance(error, OSError) else None) or "nobody answers"
