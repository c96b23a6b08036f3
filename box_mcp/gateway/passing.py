"""A request that is passed on to a server in a box, and its answer, as both come.

Each has a connection of its own, and is written anew from what another parser read: so no two
requests can be taken for one.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from typing import Protocol

import anyio
import h11
from anyio.lowlevel import checkpoint

from box_mcp.gateway.exchange import WEBSOCKET, Outcome, end_to_end, tokens
from box_mcp.gateway.heads import HEAD_LIMIT
from box_mcp.gateway.incoming import HungUp
from box_mcp.gateway.relay import CHUNK, DEAD, Duplex

Headers = list[tuple[bytes, bytes]]

LAST_STATUS = 599  # what there is beyond means nothing to anybody


class BrokenOff(Exception):
    """An answer ended too early: so must the connection, or half of it would pass for whole."""


class Asker(Protocol):
    """Who asked. Iterating over `body` raises HungUp where they leave before its end."""

    def body(self) -> AsyncIterable[bytes]:
        """What they send."""
        ...

    async def gone(self) -> None:
        """Returns when they have left, after all of the body."""
        ...

    async def begin(self, status: int, headers: Headers) -> None:
        """The answer's head."""
        ...

    async def say(self, piece: bytes) -> None:
        """More of its body."""
        ...


def rewritten(
    request: h11.Request, headers: Headers, forwarded: Headers, *, upgrade: bool
) -> h11.Request:
    """`request` as the box gets it: with these of its headers, and what is told of its sender."""
    host = next(value for name, value in request.headers if name == b"host")
    kept = [(name, value) for name, value in headers if name.lower() != b"host"]
    if tokens(request, b"transfer-encoding"):
        kept.append((b"Transfer-Encoding", b"chunked"))
    connection = [(b"Connection", b"close")]
    if upgrade:
        connection = [(b"Connection", b"Upgrade"), (b"Upgrade", WEBSOCKET)]
    return h11.Request(
        method=request.method,
        target=request.target,
        headers=[(b"Host", host), *forwarded, *kept, *connection],
    )


class Passing:
    """`tunnel` is connected to the server in the box, and not used yet. Tells `touched` of bytes.

    When the server switched to another protocol, `head` is its answer, and `first` what came behind
    it.
    """

    def __init__(self, tunnel: Duplex, touched: Callable[[], None]) -> None:
        self.head: h11.InformationalResponse | None = None
        self.first = b""
        self._tunnel = tunnel
        self._touched = touched
        self._far = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)

    async def run(self, request: h11.Request, asker: Asker) -> Outcome:
        """Sends the request, and passes the answer back."""
        if not await self._send(self._far.send(request)):
            return Outcome.UNANSWERED
        outcome = Outcome.BROKEN
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen, asker, group.cancel_scope)
            outcome = await self._pass_back(asker)
            group.cancel_scope.cancel()
        return outcome

    async def _listen(self, asker: Asker, exchange: anyio.CancelScope) -> None:
        """Passes on what the asker sends; cancels the exchange when they have left."""
        with suppress(HungUp):
            await self._send_body(asker.body())
            await asker.gone()
        exchange.cancel()

    async def _send_body(self, body: AsyncIterable[bytes]) -> None:
        """The server may have answered before it heard all, and listen no more."""
        with suppress(h11.LocalProtocolError):  # what it answered was none: that ends all
            async for piece in body:
                if piece:
                    await self._send(self._far.send(h11.Data(data=piece)))
            await self._send(self._far.send(h11.EndOfMessage()))

    async def _pass_back(self, asker: Asker) -> Outcome:
        broken = Outcome.UNANSWERED
        while True:
            try:
                event = self._far.next_event()
                if event is h11.NEED_DATA:
                    self._far.receive_data(await self._heard())
                    continue
            except (h11.RemoteProtocolError, *DEAD):
                return broken
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    self.head, self.first = event, bytes(self._far.trailing_data[0])
                    return Outcome.SWITCHED
            elif isinstance(event, h11.Response):
                if event.status_code > LAST_STATUS:
                    return broken
                broken = Outcome.BROKEN
                await asker.begin(event.status_code, end_to_end(event))
            elif isinstance(event, h11.Data):
                await checkpoint()  # very many small ones may be there at once
                await asker.say(bytes(event.data))
            else:
                return Outcome.DONE

    async def _heard(self) -> bytes:
        try:
            data = await self._tunnel.receive(CHUNK)
        except anyio.EndOfStream:
            return b""
        self._touched()
        return data

    async def _send(self, data: bytes | None) -> bool:
        try:
            if data:
                await self._tunnel.send(data)
                self._touched()
        except DEAD:
            return False
        return True
